"""What the gate says observed rules would have refused. Of all its days: midnight may come while a test runs."""

from collections import Counter

import redis


def days(client: redis.Redis) -> list[str]:
    """Their hashes; each has an end."""
    keys = [key.decode() for key in client.keys("tg:observed:*")]
    assert all(client.ttl(key) > 0 for key in keys)
    return keys


def by_rule(client: redis.Redis) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for day in days(client):
        counted.update({rule_id.decode(): int(count) for rule_id, count in client.hgetall(day).items()})
    return dict(counted)
