"""What the counters in Redis hold and what they should, at one and the same moment; and so for what is in suspense.

Redis and PostgreSQL have no moment in common, so one is made: ingest is kept waiting, everything in Redis is read in one step,
and then exactly what was in the stream by that step is ingested. Now a counter must hold what the ledger says was spent in its
window, posted or in suspense, and what running attempts hold.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, cast

import redis

from audit.models import UsageRecord
from budgets import gate, ledger
from budgets.comparison import USD, Difference, nanos
from budgets.ledger_models import Drift
from budgets.matching import EACH
from budgets.spend import Spent, rows_of, spent

KEYS_PER_COMMAND = 5_000


class Balance(NamedTuple):
    """How many counters were compared, and what differed."""

    counters: int
    differences: list[Difference]


class _Counter(NamedTuple):
    """It may hold as much less than was spent as the window before left to it: `rollover` at most."""

    unit: str
    rollover: int


class _Moment(NamedTuple):
    """What Redis held at one moment. `until` is the last entry of the usage stream."""

    counters: dict[str, int]
    held: Mapping[str, int]
    suspense: dict[str, int]
    until: bytes


def compare(client: redis.Redis) -> Balance | None:
    """None while Redis is being rebuilt. Raises `ledger.Taken`, `redis.RedisError` or OperationalError."""
    now_s = client.time()[0]
    with ledger.alone():
        ledger.ingest(client)  # Nearly all of it beforehand: what then comes in between is little.
        counters = _counters(now_s, spent(now_s))
        moment = _moment(client, counters)
        if moment is None:
            return None
        ledger.ingest(client, until=moment.until)
        expected = {counter.key: counter.spent for counter in spent(now_s)}
        in_suspense = UsageRecord.objects.filter(state=UsageRecord.State.SUSPENSE).order_by()
        suspense = {
            str(attempt_id): nanos(cost_usd)
            for attempt_id, cost_usd in in_suspense.values_list("attempt_id", "cost_usd")
        }
    for key in counters:
        expected[key] = expected.get(key, 0) + moment.held.get(key, 0)
    return Balance(
        len(counters),
        [*_differing_counters(counters, moment.counters, expected), *_differing_suspense(moment.suspense, suspense)],
    )


def _counters(now_s: int, known: Iterable[Spent]) -> dict[str, _Counter]:
    """Those of the windows of now, by key. Of a budget with a counter for each value, those of values that have spent."""
    of_budgets = {}
    counters = {}
    for row in rows_of():
        of_budgets[row.pk] = counter = _Counter(row.unit, row.rollover)
        start_s, end_s = row.bounds(now_s)
        if EACH not in row.subject.values() and start_s <= now_s < end_s:
            counters[gate.spend_key(str(row.pk), start_s)] = counter
    for one in known:
        if one.start_s <= now_s < one.end_s:
            counters[one.key] = of_budgets[one.budget_id]
    return counters


def _moment(client: redis.Redis, names: Iterable[str]) -> _Moment | None:
    workers = [name.decode() for name in cast("list[bytes]", client.hkeys(gate.WORKERS))]
    keys = sorted(names)
    chunks = [keys[start : start + KEYS_PER_COMMAND] for start in range(0, len(keys), KEYS_PER_COMMAND)]
    with client.pipeline(transaction=True) as pipeline:
        pipeline.exists(gate.EPOCH)
        pipeline.xrevrange(gate.USAGE, count=1)
        pipeline.hgetall(gate.SUSPENSE)
        for worker in workers:
            pipeline.hvals(gate.holds_key(worker))
        for chunk in chunks:
            pipeline.mget(chunk)
        has_epoch, newest, kept, *rest = pipeline.execute()
    if not has_epoch:
        return None
    held: defaultdict[str, int] = defaultdict(int)
    for value in (value for values in rest[: len(workers)] for value in values):
        for counter, amount in gate.decode_kept_hold(value).amounts():
            held[counter.key] += amount
    suspense = {attempt_id.decode(): gate.decode_kept_hold(value) for attempt_id, value in kept.items()}
    for hold in suspense.values():
        for counter, amount in hold.amounts():
            # Money in suspense is in the ledger; how many tokens it will have been is not.
            if counter.unit == gate.TOKENS:
                held[counter.key] += amount
    amounts = [int(amount or 0) for amounts in rest[len(workers) :] for amount in amounts]
    return _Moment(
        counters=dict(zip(keys, amounts, strict=True)),
        held=held,
        suspense={attempt_id: hold.held_nanos for attempt_id, hold in suspense.items()},
        until=newest[0][0] if newest else b"0",
    )


def _differing_counters(
    counters: Mapping[str, _Counter], found: Mapping[str, int], expected: Mapping[str, int]
) -> Iterator[Difference]:
    for key, counter in sorted(counters.items()):
        if not -counter.rollover <= found[key] - expected[key] <= 0:
            yield Difference(Drift.Kind.COUNTERS, key, counter.unit, expected[key], found[key])


def _differing_suspense(found: Mapping[str, int], expected: Mapping[str, int]) -> Iterator[Difference]:
    for attempt_id in sorted({*found, *expected}):
        if found.get(attempt_id) != expected.get(attempt_id):
            amounts = expected.get(attempt_id, 0), found.get(attempt_id, 0)
            yield Difference(Drift.Kind.SUSPENSE, attempt_id, USD, *amounts)
