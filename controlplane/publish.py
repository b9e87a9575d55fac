"""Publishing: what was changed in the models is put in force through Redis. What it compiles to is `compiler.py`.

A change leaves a note in the outbox, in its own transaction. After the commit, and each second until it succeeds,
`publish_pending` writes what is noted. One publisher works at a time (a lock on the outbox); each has a number from a
sequence, and Redis refuses a number below the one it has seen: an older state is never left in force.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import redis
from django.db import InterfaceError, OperationalError, connection, models, transaction
from django.db.models import Q
from django.utils import timezone

from audit.models import AuditEntry
from budgets import gate
from budgets.models import Budget, Increase, Limit, Threshold
from budgets.spend import spent
from controlplane import compiler
from controlplane.models import Unpublished
from keys.models import CredentialPool, UpstreamCredential, VirtualKey
from keys.redis import redis_client
from proxy.snapshot import KeyRecord, Snapshot, encode
from routing.models import AliasTarget, Deployment, Model, ModelAlias, Provider
from routing.price_models import Contract, ContractStanding, ContractTier, ExchangeRate, Price, PriceTier
from teams.models import Project, Team

log = logging.getLogger(__name__)

LOCK_TIMEOUT_MS = 2_000
KEYS_PER_CALL = 1_000

IN_SNAPSHOT = (
    Team,
    Project,
    CredentialPool,
    UpstreamCredential,
    Provider,
    Model,
    Price,
    PriceTier,
    Contract,
    ContractTier,
    ContractStanding,
    ExchangeRate,
    Deployment,
    ModelAlias,
    AliasTarget,
)

# ARGV: number of the publication, its snapshot or '', then pairs of a digest and its record, '' where the key is gone.
_PUBLISH = """
local number = tonumber(ARGV[1])
if (tonumber(redis.call('HGET', 'tg:versions', 'publication')) or 0) > number then return 0 end
redis.call('HSET', 'tg:versions', 'publication', number)
if ARGV[2] ~= '' then
  redis.call('SET', 'tg:snapshot', ARGV[2])
  redis.call('HSET', 'tg:versions', 'snapshot', number)
  redis.call('PUBLISH', 'tg:push', cjson.encode({kind = 'snapshot', version = number}))
end
for i = 3, #ARGV, 2 do
  local digest, record = ARGV[i], ARGV[i + 1]
  if record == '' then redis.call('HDEL', 'tg:keys', digest) else redis.call('HSET', 'tg:keys', digest, record) end
  local keys_version = redis.call('HINCRBY', 'tg:versions', 'keys', 1)
  local version = record ~= '' and cjson.decode(record).version or 0
  redis.call('PUBLISH', 'tg:push', cjson.encode({kind = 'key', digest = digest, version = version, keys_version = keys_version}))
end
return 1
"""


# KEYS: a counter. ARGV: what the ledger says, and when it expires. Never lowers: what is held is in the counter alone.
_RAISE = """
if (tonumber(redis.call('GET', KEYS[1])) or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1], 'EXAT', ARGV[2])
end
"""


class Superseded(Exception):
    """Redis has seen a later publication than ours: what we compiled is old. Compiled again, it is not."""


def note_change(sender: object, entry: AuditEntry, obj: models.Model | None, **_: object) -> None:
    """Receiver of `audit.signals.recorded`: note what is to be published, in the transaction of the change."""
    notes = [*_notes(entry, obj)]
    if notes:
        Unpublished.objects.bulk_create(notes)
        transaction.on_commit(publish_soon)


def publish_soon() -> None:
    """Publish what is noted, or leave it for the next second."""
    try:
        publish_pending()
    except (redis.RedisError, OperationalError, InterfaceError, Superseded) as error:
        log.warning("publishing is put off: %s", error or type(error).__name__)


def publish_pending() -> bool:
    """Put in force what is noted and due; false when there was nothing to do.

    Raises `Superseded`, `redis.RedisError`, or OperationalError (also when another publisher takes long): then all that
    was noted still is.
    """
    if not Unpublished.objects.due().exists():
        return False
    client = redis_client()
    with publication() as (number, now, notes):
        if not client.exists(gate.EPOCH):
            return False  # Redis is empty: what it is to hold is told by the rebuild, and in which order.
        digests = sorted({note.digest for note in notes if note.digest})
        has_snapshot = any(not note.digest for note in notes)
        snapshot = compiler.compile_snapshot(number, now) if has_snapshot else None
        records = compiler.compile_keys(digests)
        _count_spent(client, {note.budget_id for note in notes if note.budget_id})
        write(client, number, snapshot, {digest: records.get(digest) for digest in digests})
        forget(notes)
    return True


def publish_snapshot() -> int:
    """Compile the snapshot and put it in force, changed or not; its version. Raises as `publish_pending`."""
    with publication() as (number, now, _):
        write(redis_client(), number, compiler.compile_snapshot(number, now), {})
    return number


@contextmanager
def publication() -> Iterator[tuple[int, datetime, list[Unpublished]]]:
    """The right to publish: (number, moment, the notes that are due), and one unchanging view of the models.

    Whoever leaves with an exception has published nothing: the notes stay.
    """
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        # A statement that has no view of the data yet: an advisory lock's SELECT would look, and then wait.
        cursor.execute("LOCK TABLE controlplane_unpublished IN SHARE UPDATE EXCLUSIVE MODE")
        cursor.execute("SELECT nextval(pg_get_serial_sequence('controlplane_unpublished', 'id'))")
        number = cursor.fetchone()[0]
        now = timezone.now()
        yield number, now, list(Unpublished.objects.filter(due_at__lte=now))


def forget(notes: Sequence[Unpublished]) -> None:
    Unpublished.objects.filter(pk__in=[note.pk for note in notes]).delete()


def write(client: redis.Redis, number: int, snapshot: Snapshot | None, records: Mapping[str, KeyRecord | None]) -> None:
    """Write to Redis and tell the workers; None removes a virtual key. Raises `Superseded`."""
    body = encode(snapshot) if snapshot is not None else b""
    pairs = [(digest, b"" if record is None else encode(record)) for digest, record in records.items()]
    batches = [pairs[start : start + KEYS_PER_CALL] for start in range(0, len(pairs), KEYS_PER_CALL)]
    for batch in batches or [[]]:
        if not client.eval(_PUBLISH, 0, number, body, *(part for pair in batch for part in pair)):
            _catch_up(client)
            raise Superseded
        body = b""  # The snapshot goes first: a new key's project is in it.


def _count_spent(client: redis.Redis, budget_ids: Collection[UUID]) -> None:
    """Before a new or changed budget is in force, its counter holds what its window has seen without it.

    Attempts that run at this moment were admitted without the budget, and stay so.
    """
    if not budget_ids:
        return
    for counter in spent(client.time()[0], Budget.objects.filter(pk__in=budget_ids, is_active=True)):
        client.eval(_RAISE, 1, counter.key, str(counter.spent - counter.rolled_over), str(counter.expire_at_s))


def _catch_up(client: redis.Redis) -> None:
    """After PostgreSQL came back from a backup its sequence is behind what Redis has seen: move it on."""
    seen = int(client.hget(gate.VERSIONS, "publication") or 0)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT setval(name, greatest(nextval(name), %s))"
            " FROM (SELECT pg_get_serial_sequence('controlplane_unpublished', 'id') AS name) AS sequence",
            [seen],
        )


def _notes(entry: AuditEntry, obj: models.Model | None) -> Iterator[Unpublished]:
    if isinstance(obj, VirtualKey):
        states = (entry.before or {}, entry.after or {})
        # A rotated key has two: the new one comes, the old one goes.
        yield from _digests({state["digest"] for state in states if "digest" in state})
    elif isinstance(obj, Budget | Limit):
        yield Unpublished(digest=_digest_of(obj), budget_id=obj.pk if isinstance(obj, Budget) else None)
    elif isinstance(obj, Threshold | Increase):
        yield Unpublished(digest=_digest_of(obj.budget))
    elif isinstance(obj, IN_SNAPSHOT):
        yield Unpublished()
        if isinstance(obj, Price | ExchangeRate | Contract) and obj.effective_from > timezone.now():
            yield Unpublished(due_at=obj.effective_from)
        if isinstance(obj, Contract) and obj.effective_until is not None:
            yield Unpublished(due_at=obj.effective_until)
        if isinstance(obj, Team) and _changed(entry, "time_zone"):
            yield from _notes_of_windows(obj)


def _digest_of(rule: Budget | Limit) -> str:
    """Of the virtual key that the rule travels with; "" for the snapshot."""
    return rule.virtual_key.digest if rule.virtual_key is not None else ""


def _notes_of_windows(team: Team) -> Iterator[Unpublished]:
    """The windows of all its budgets follow the team's calendar: they are other windows now."""
    of_team = Q(team=team) | Q(project__team=team) | Q(virtual_key__project__team=team)
    for budget_id, digest in Budget.objects.filter(of_team).values_list("pk", "virtual_key__digest"):
        yield Unpublished(digest=digest or "", budget_id=budget_id)


def _digests(digests: Iterable[str]) -> Iterator[Unpublished]:
    return (Unpublished(digest=digest) for digest in digests)


def _changed(entry: AuditEntry, field: str) -> bool:
    before: dict[str, Any] = entry.before or {}
    after: dict[str, Any] = entry.after or {}
    return before.get(field) != after.get(field)
