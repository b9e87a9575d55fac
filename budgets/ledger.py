"""Ingest: usage events from the Redis stream into the ledger and its roll-ups, each exactly once.

Only the commit decides what is in. A crash before it leaves the stream as it was, a crash after it repeats entries that
conflict with their own rows and change nothing. So no step needs to know how far an earlier run came.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from uuid import UUID

import msgspec
import redis
from django.db import DataError, IntegrityError, connection, transaction

from audit.models import UsageRecord
from audit.records import Candidate, Kind, PriceTerms, State, Usage, UsageEvent, UsageSource, read_event
from budgets import gate, ledger_rows, watch
from budgets.rollups import Rollups

log = logging.getLogger(__name__)

DEAD_LETTERS = "tg:usage:dead"
# Field of an event → in how many events it had to be mended.
MENDED = "tg:usage:mended"
# One transaction: the more, the more of them fall into the same row of a roll-up.
BATCH_ENTRIES = 10_000
# One command to Redis, which serves nobody else meanwhile: about a millisecond.
CHUNK_ENTRIES = 1_000
RUN_S = 20.0
EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
NANO_DIGITS = 9

Fields = dict[bytes, bytes]


class Entry(NamedTuple):
    """One stream entry, understood. `seq` is 0 where no settle of its worker stands behind it. `mended` are the fields that the
    ledger could not have taken as they came."""

    entry_id: bytes
    fields: Fields
    worker: str
    seq: int
    attempt_id: UUID
    event: UsageEvent
    mended: Sequence[str]


class Refused(NamedTuple):
    """One stream entry that cannot be in the ledger, and why."""

    entry_id: bytes
    fields: Fields
    reason: str


class Taken(Exception):
    """Another process is ingesting."""


@contextmanager
def alone() -> Iterator[None]:
    """Nobody else ingests meanwhile, so the ledger stands still. Raises `Taken`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext('budgets.ingest'))")
        if not cursor.fetchone()[0]:
            raise Taken
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtext('budgets.ingest'))")


def ingest(client: redis.Redis, *, run_s: float = RUN_S, until: bytes = b"+") -> int:
    """Take in what is in the stream, up to the entry `until`, or for `run_s`; how many entries left the stream.

    Raises `Taken`, OperationalError or `redis.RedisError`, and has then lost and doubled nothing.
    """
    deadline_s = time.monotonic() + run_s
    taken_in = 0
    while batch := _read(client, until):
        _ingest_batch(client, batch)
        taken_in += len(batch)
        if time.monotonic() > deadline_s:
            break
    return taken_in


def event_of(record: UsageRecord) -> UsageEvent:
    """The event that a row of the ledger was made from."""
    return UsageEvent(
        attempt_id=str(record.attempt_id),
        request_id=str(record.request_id),
        kind=cast(Kind, record.kind),
        attempt_number=record.attempt_number,
        admitted_at_us=(record.admitted_at - EPOCH_START) // timedelta(microseconds=1),
        team_id=str(record.team_id),
        project_id=str(record.project_id),
        virtual_key_id=str(record.virtual_key_id),
        environment=record.environment,
        end_user=record.end_user,
        alias=record.alias,
        downgraded_from=record.downgraded_from,
        provider=record.provider,
        model=record.model,
        deployment=record.deployment,
        pool=record.pool,
        operation=record.operation,
        request_model=record.request_model,
        response_model=record.response_model,
        upstream_id=record.upstream_id,
        is_stream=record.is_stream,
        state=cast(State, record.state),
        status_code=record.status_code,
        error_type=record.error_type,
        finish_reason=record.finish_reason,
        usage=Usage(
            input_tokens=record.input_tokens,
            cache_read_input_tokens=record.cache_read_input_tokens,
            cache_write_input_tokens=record.cache_write_input_tokens,
            output_tokens=record.output_tokens,
            reasoning_tokens=record.reasoning_tokens,
            cache_write_1h_input_tokens=record.cache_write_1h_input_tokens,
            input_audio_tokens=record.input_audio_tokens,
            input_image_tokens=record.input_image_tokens,
            output_audio_tokens=record.output_audio_tokens,
            output_image_tokens=record.output_image_tokens,
            tool_calls=record.tool_calls,
            units=record.units,
            searches=record.searches,
            batch_requests=record.batch_requests,
            service_tier=record.service_tier,
            inference_geo=record.inference_geo,
        ),
        usage_source=cast(UsageSource, record.usage_source),
        cost_nanos=_nanos(record.cost_usd),
        held_nanos=_nanos(record.held_usd),
        saved_nanos=_nanos(record.saved_usd),
        price_id=str(record.price_id or ""),
        terms=msgspec.convert(record.terms, PriceTerms),
        currency_cost_nanos=None if record.currency_cost is None else _nanos(record.currency_cost),
        adjusts=str(record.adjusts or ""),
        latency_ms=record.latency_ms,
        first_token_ms=record.first_token_ms,
        kill_switch_id=str(record.kill_switch_id or ""),
        tags=record.tags,
        tag_sources=record.tag_sources,
        route=msgspec.convert(record.route, tuple[Candidate, ...]),
        budget_ids=tuple(map(str, record.budget_ids)),
    )


def _read(client: redis.Redis, until: bytes) -> list[tuple[bytes, Fields]]:
    """The oldest entries of the stream, one batch at most."""
    batch: list[tuple[bytes, Fields]] = []
    start = b"-"
    while len(batch) < BATCH_ENTRIES:
        chunk = cast(
            "list[tuple[bytes, Fields]]",
            client.xrange(gate.USAGE, cast(str, start), cast(str, until), count=CHUNK_ENTRIES),
        )
        batch += chunk
        if len(chunk) < CHUNK_ENTRIES:
            break
        start = b"(" + chunk[-1][0]
    return batch


def _ingest_batch(client: redis.Redis, batch: Sequence[tuple[bytes, Fields]]) -> None:
    understood = [_understand(entry_id, fields) for entry_id, fields in batch]
    refused = [item for item in understood if isinstance(item, Refused)]
    entries = [item for item in understood if isinstance(item, Entry)]
    watermarks: dict[str, int] = {}
    refused += _store_what_fits(entries, watermarks)
    if refused:
        _put_aside(client, refused)
    _tell_mended(client, Counter(name for entry in entries for name in entry.mended))
    watch.note(client, (entry.event for entry in entries))
    entry_ids = [entry_id for entry_id, _ in batch]
    with client.pipeline(transaction=False) as pipeline:
        if watermarks:
            pipeline.hset(gate.INGESTED, mapping=cast(Any, watermarks))
        for start in range(0, len(entry_ids), CHUNK_ENTRIES):
            pipeline.xdel(gate.USAGE, *entry_ids[start : start + CHUNK_ENTRIES])
        pipeline.execute()


def _put_aside(client: redis.Redis, refused: Iterable[Refused]) -> None:
    """Out of the stream and into the dead letters in one step, as they came and with the reason."""
    with client.pipeline(transaction=True) as pipeline:
        for dead in refused:
            log.error("usage event %s is put aside in %s: %s", dead.entry_id.decode(), DEAD_LETTERS, dead.reason)
            pipeline.xadd(DEAD_LETTERS, cast("dict[Any, Any]", dead.fields | {b"reason": dead.reason.encode()}))
            pipeline.xdel(gate.USAGE, dead.entry_id)
        pipeline.execute()


def _tell_mended(client: redis.Redis, fields: Mapping[str, int]) -> None:
    """Each is counted; the log has the first of a kind."""
    for name, events in fields.items():
        if client.hincrby(MENDED, name, events) == events:
            log.error("usage events come with an impossible %s: it is mended, counted, and not told again", name)


def _understand(entry_id: bytes, fields: Fields) -> Entry | Refused:
    try:
        event, mended = read_event(fields[b"event"])
        if b"state" in fields:
            # The worker died: the event is from before the call, and the hold is what it may have cost.
            state, cost_nanos = msgspec.convert(fields[b"state"].decode(), State), int(fields[b"cost_nanos"])
            event = msgspec.structs.replace(event, state=state, cost_nanos=cost_nanos, held_nanos=cost_nanos)
        worker, seq = fields[b"worker"].decode(), int(fields[b"seq"])
        return Entry(entry_id, fields, worker, seq, UUID(event.attempt_id), event, mended)
    except KeyError as error:
        return Refused(entry_id, fields, f"field {error} is missing")
    except ValueError as error:  # msgspec's errors are ValueErrors too.
        return Refused(entry_id, fields, str(error))


def _store_what_fits(entries: Sequence[Entry], watermarks: dict[str, int]) -> list[Refused]:
    """Store all in one transaction; where the database refuses the whole, each half on its own, down to the culprit."""
    if not entries:
        return []
    try:
        watermarks.update(_store(entries))
        return []
    except (DataError, IntegrityError) as error:
        if len(entries) == 1:
            return [Refused(entries[0].entry_id, entries[0].fields, str(error).splitlines()[0])]
        middle = len(entries) // 2
        first_half = _store_what_fits(entries[:middle], watermarks)
        return first_half + _store_what_fits(entries[middle:], watermarks)


def _store(entries: Iterable[Entry]) -> dict[str, int]:
    """One transaction: rows, roll-ups and watermarks; the watermarks. Raises `Taken`."""
    outcomes, seqs = _fold(entries)
    rollups = Rollups()
    with transaction.atomic():
        _lock()
        inserted = ledger_rows.insert(outcomes.values())
        for attempt_id in inserted:
            rollups.add(outcomes[attempt_id])
        known = outcomes.keys() - inserted
        _resolve({attempt_id: outcomes[attempt_id] for attempt_id in known}, rollups)
        ledger_rows.add_hours(rollups.hours)
        ledger_rows.add_tags(rollups.tags)
        return ledger_rows.advance(seqs)


def _fold(entries: Iterable[Entry]) -> tuple[dict[UUID, UsageEvent], dict[str, int]]:
    """What became of each attempt (suspense gives way to what resolves it), and each worker's last sequence number."""
    outcomes: dict[UUID, UsageEvent] = {}
    seqs: dict[str, int] = {}
    for entry in entries:
        earlier = outcomes.get(entry.attempt_id)
        if earlier is None or earlier.state == "suspense":
            outcomes[entry.attempt_id] = entry.event
        if entry.seq > 0:
            seqs[entry.worker] = max(entry.seq, seqs.get(entry.worker, 0))
    return outcomes, seqs


def _lock() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext('budgets.ingest'))")
        if not cursor.fetchone()[0]:
            raise Taken


def _resolve(outcomes: Mapping[UUID, UsageEvent], rollups: Rollups) -> None:
    """Give the rows in suspense their final state; rows in any other state stay as they are."""
    final = {attempt_id: event for attempt_id, event in outcomes.items() if event.state != "suspense"}
    if not final:
        return
    rows = UsageRecord.objects.filter(state=UsageRecord.State.SUSPENSE, attempt_id__in=list(final)).select_for_update()
    in_suspense = {row.attempt_id: event_of(row) for row in rows.order_by("attempt_id")}
    if not in_suspense:
        return
    ledger_rows.resolve(final[attempt_id] for attempt_id in in_suspense)
    for attempt_id, before in in_suspense.items():
        rollups.take_back(before)
        rollups.add(final[attempt_id])


def _nanos(amount_usd: Decimal) -> int:
    return int(amount_usd.scaleb(NANO_DIGITS))
