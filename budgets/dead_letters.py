"""Usage events that could not be in the ledger: shown, and given to ingest once more when the cause is gone.

An event that is in the ledger already changes nothing there, so it does no harm to replay one twice.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import redis
from django.db import transaction

from audit import services as audit
from audit.actors import Actor
from budgets import gate
from budgets.ledger import CHUNK_ENTRIES, DEAD_LETTERS, Fields

REASON = b"reason"


class DeadLetter(NamedTuple):
    """`fields` are those that came; `reason` is why they could not be stored."""

    entry_id: bytes
    fields: Fields
    reason: str


def dead_letters(client: redis.Redis) -> Iterator[DeadLetter]:
    """The oldest first. Raises `redis.RedisError`."""
    start = b"-"
    while chunk := cast(
        "list[tuple[bytes, Fields]]", client.xrange(DEAD_LETTERS, cast(str, start), count=CHUNK_ENTRIES)
    ):
        for entry_id, fields in chunk:
            came = {name: value for name, value in fields.items() if name != REASON}
            yield DeadLetter(entry_id, came, fields.get(REASON, b"").decode())
        start = b"(" + chunk[-1][0]


def replay(client: redis.Redis, letters: list[DeadLetter], *, actor: Actor, reason: str = "") -> None:
    """Back into the usage stream, each in one step, with an audit entry. Raises `redis.RedisError`."""
    with transaction.atomic():
        audit.record(
            actor, "replay", object_type="audit.usagerecord", object_name=f"{len(letters)} dead letters", reason=reason
        )
        for letter in letters:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.xadd(gate.USAGE, cast("dict[Any, Any]", letter.fields))
                pipeline.xdel(DEAD_LETTERS, letter.entry_id)
                pipeline.execute()
