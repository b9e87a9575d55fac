"""Rebuild: an empty Redis gets back what it held: configuration from the models, counters from the ledger, and the epoch last.

Until the epoch is there nothing is admitted, settled or reaped, so nothing moves while it is counted. Holds of attempts
that still run, and settles that PostgreSQL does not have, come back from the workers' journals afterwards; until all
workers have put back theirs, nothing more is held (`budgets/lua/heartbeat.lua`).
"""

import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar, cast

import redis
from django.db import transaction

from audit import services as audit
from audit.actors import Actor
from audit.models import UsageRecord
from budgets import balance, gate, ledger
from budgets.comparison import Difference
from budgets.ledger_models import Drift, IngestWatermark
from budgets.spend import COUNTER_GRACE_S, spent
from controlplane import compiler, jobs, publish
from keys.kills import encode_flag
from keys.models import KillSwitch
from keys.redis import redis_client
from proxy.snapshot import KeyRecord, encode

log = logging.getLogger(__name__)

KEYS_IN_PROGRESS = "tg:keys:rebuilding"
COUNTERS = "tg:spend:*"
FIELDS_PER_CALL = 5_000
# Between two looks at counters that differ.
CONFIRM_S = 2.0

Item = TypeVar("Item")


def rebuild_redis(*, force: bool = False) -> bool:
    """Give Redis everything it holds, when its epoch is missing, or anyway; false when there was nothing to do.

    Raises `redis.RedisError`, OperationalError, `publish.Superseded` or `redis.WatchError` (somebody else has rebuilt):
    then the epoch is not ours, and the next second tries again.
    """
    client = redis_client()
    if force:
        client.delete(gate.EPOCH)
    if client.exists(gate.EPOCH):
        return False
    started_at_s = time.monotonic()
    # What is in the stream was spent and is counted in the ledger only; without an epoch nothing joins it.
    _drain(client)
    with publish.publication() as (number, now, notes):
        if client.exists(gate.EPOCH):
            return False  # Somebody else has rebuilt while we waited for our turn.
        keys = _write_keys(client, number)
        publish.write(client, number, compiler.compile_snapshot(number, now), {})
        _raise_flags(client)
        _write_watermarks(client)
        _write_suspense(client)
        counters = _write_counters(client)
        publish.forget(notes)
        with _still_without_epoch(client) as pipeline:
            pipeline.set(gate.EPOCH, uuid.uuid4().hex)
    # Traffic does not wait for it: what is not there yet is not known for a moment.
    _write_stored(client)
    elapsed_s = time.monotonic() - started_at_s
    log.warning("Redis is rebuilt: %d virtual keys, %d counters, %.1f s", keys, counters, elapsed_s)
    return True


@contextmanager
def _still_without_epoch(client: redis.Redis) -> Iterator["redis.client.Pipeline"]:
    """Commands that happen together, and only while there is no epoch: a rebuilder that was held up changes nothing."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.watch(gate.EPOCH)  # type: ignore[no-untyped-call]
        if pipeline.exists(gate.EPOCH):
            raise redis.WatchError("Redis was rebuilt by somebody else")
        pipeline.multi()
        yield pipeline
        pipeline.execute()


def _drain(client: redis.Redis) -> None:
    while client.xlen(gate.USAGE):
        ledger.ingest(client)


def _write_keys(client: redis.Redis, number: int) -> int:
    """Every virtual key into a hash of its own, which then takes the place of the old one; how many."""
    building = f"{KEYS_IN_PROGRESS}:{number}"
    client.delete(building)
    written = 0
    for records in compiler.compile_all_keys():
        client.hset(building, mapping=_encoded(records))
        written += len(records)
    with _still_without_epoch(client) as pipeline:
        if written:
            pipeline.rename(building, gate.KEYS)
        else:
            pipeline.delete(gate.KEYS)
        pipeline.hincrby(gate.VERSIONS, "keys", 1)
    return written


def _encoded(records: Mapping[str, KeyRecord]) -> dict[Any, Any]:
    return {digest: encode(record) for digest, record in records.items()}


def _raise_flags(client: redis.Redis) -> None:
    """The switches on record. A flag that is there stays: it may have been thrown while PostgreSQL was away."""
    for kill_switch in KillSwitch.objects.active():
        flag = kill_switch.flag
        client.hsetnx(gate.KILLS, flag.field, cast(str, encode_flag(flag)))
    client.hincrby(gate.VERSIONS, "kills", 1)


def _write_watermarks(client: redis.Redis) -> None:
    watermarks = dict(IngestWatermark.objects.values_list("worker", "seq"))
    with _still_without_epoch(client) as pipeline:
        for batch in _batches(watermarks.items()):
            pipeline.hset(gate.APPLIED, mapping=cast(Any, dict(batch)))
            pipeline.hset(gate.INGESTED, mapping=cast(Any, dict(batch)))


def _write_suspense(client: redis.Redis) -> None:
    """A worker that was taken for dead and settles after all finds what to correct, and whoever follows a job, the job. What
    Redis still has says more than the ledger."""
    rows = UsageRecord.objects.filter(state=UsageRecord.State.SUSPENSE).order_by()
    kept = cast("dict[bytes, bytes]", client.hgetall(gate.SUSPENSE))
    with _still_without_epoch(client) as pipeline:
        pipeline.delete(gate.SUSPENSE, gate.JOBS)
        for row in rows.iterator():
            attempt_id = str(row.attempt_id)
            hold = kept.get(attempt_id.encode()) or jobs.hold_of(row)
            pipeline.hset(gate.SUSPENSE, attempt_id, cast(str, hold))
            if jobs.is_job(row):
                pipeline.zadd(gate.JOBS, {attempt_id: 0})


def _write_stored(client: redis.Redis) -> None:
    for batch in _batches(jobs.stored(client.time()[0])):
        with client.pipeline(transaction=False) as pipeline:
            for key, value, expire_at_s in batch:
                pipeline.set(key, value, nx=True, exat=expire_at_s)
            pipeline.execute()


def _write_counters(client: redis.Redis) -> int:
    """The spend counters of the windows of now: what the ledger says, and the holds that Redis still has; how many."""
    held = _held(client)
    now_s = client.time()[0]
    counters = spent(now_s)
    with _still_without_epoch(client) as pipeline:
        for name in client.scan_iter(match=COUNTERS, count=FIELDS_PER_CALL):
            pipeline.delete(name)
        for counter in counters:
            pipeline.set(counter.key, counter.amount, exat=counter.expire_at_s)
        for (key, window_end_s), nanos in held.items():
            pipeline.incrby(key, nanos)
            pipeline.expireat(key, window_end_s + COUNTER_GRACE_S)
    return len(counters)


class NotBuilt(Exception):
    """Redis has no epoch: it is being rebuilt, and its counters with it."""


def drifted_counters(
    client: redis.Redis, *, confirm_s: float = CONFIRM_S, sleep: Callable[[float], None] = time.sleep
) -> list[Difference]:
    """The counters that do not hold what the ledger says and running attempts hold, by as much at two moments.

    Twice, since what workers put back after a Redis that had lost something looks like drift until they have.
    Raises `NotBuilt`, `ledger.Taken`, `redis.RedisError` or OperationalError.
    """
    differences = _differences(client)
    if differences:
        sleep(confirm_s)
        before = {difference.what: difference.found - difference.expected for difference in differences}
        differences = [
            difference
            for difference in _differences(client)
            if before.get(difference.what) == difference.found - difference.expected
        ]
    return differences


def repair_counters(client: redis.Redis, differences: Sequence[Difference], *, actor: Actor, reason: str = "") -> None:
    """Move each counter by what it differs, and leave an audit entry.

    Moved, not set: attempts that hold, settle and give back meanwhile have moved it by theirs, and that stays.
    """
    expire_at_s = {counter.key: counter.expire_at_s for counter in spent(client.time()[0])}
    with transaction.atomic():
        states = [
            {difference.what: getattr(difference, name) for difference in differences} for name in ("found", "expected")
        ]
        audit.record(
            actor,
            "rebuild_counters",
            object_type="budgets.budget",
            object_name=f"{len(differences)} counters",
            before=states[0],
            after=states[1],
            reason=reason,
        )
        with client.pipeline(transaction=True) as pipeline:
            pipeline.watch(gate.EPOCH)  # type: ignore[no-untyped-call]
            if not pipeline.exists(gate.EPOCH):
                raise NotBuilt
            pipeline.multi()
            for difference in differences:
                pipeline.incrby(difference.what, difference.expected - difference.found)
                if difference.what in expire_at_s:
                    pipeline.expireat(difference.what, expire_at_s[difference.what])
            pipeline.execute()


def _differences(client: redis.Redis) -> list[Difference]:
    compared = balance.compare(client)
    if compared is None:
        raise NotBuilt
    return [difference for difference in compared.differences if difference.kind == Drift.Kind.COUNTERS]


def _held(client: redis.Redis) -> dict[tuple[str, int], int]:
    """What running attempts hold, by counter and the end of its window. Nothing, after Redis was empty."""
    held: defaultdict[tuple[str, int], int] = defaultdict(int)
    for name in client.scan_iter(match=gate.holds_key("*"), count=FIELDS_PER_CALL):
        for value in cast("list[bytes]", client.hvals(name)):
            for counter, amount in gate.decode_kept_hold(value).amounts():
                held[counter.key, counter.expire_at_s] += amount
    return held


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, FIELDS_PER_CALL)):
        yield batch
