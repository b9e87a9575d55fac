"""The statements that ingest writes with: rows of the ledger, additions to the roll-ups, watermarks. Each expects a transaction.

Rows travel as one JSON text, one parameter whatever their number; moments in it are Unix microseconds and money is
nano-USD, so both are whole numbers and exact.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection

from audit.ids import uuid7
from audit.records import UsageEvent
from budgets.pricing import NANOS_PER_UNIT
from budgets.rollups import HourKey, HourSum, TagKey, TagSum

_EVENT_COLUMNS = {
    "attempt_id": "uuid",
    "request_id": "uuid",
    "kind": "text",
    "attempt_number": "smallint",
    "admitted_at": "bigint",
    "team_id": "uuid",
    "project_id": "uuid",
    "virtual_key_id": "uuid",
    "environment": "text",
    "end_user": "text",
    "alias": "text",
    "downgraded_from": "text",
    "provider": "text",
    "model": "text",
    "deployment": "text",
    "pool": "text",
    "operation": "text",
    "request_model": "text",
    "response_model": "text",
    "upstream_id": "text",
    "is_stream": "boolean",
    "state": "text",
    "status_code": "smallint",
    "error_type": "text",
    "finish_reason": "text",
    "input_tokens": "bigint",
    "cache_read_input_tokens": "bigint",
    "cache_write_input_tokens": "bigint",
    "output_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "cache_write_1h_input_tokens": "bigint",
    "input_audio_tokens": "bigint",
    "input_image_tokens": "bigint",
    "output_audio_tokens": "bigint",
    "output_image_tokens": "bigint",
    "tool_calls": "bigint",
    "units": "bigint",
    "searches": "bigint",
    "batch_requests": "bigint",
    "service_tier": "text",
    "inference_geo": "text",
    "usage_source": "text",
    "cost_usd": "bigint",
    "held_usd": "bigint",
    "saved_usd": "bigint",
    "price_id": "uuid",
    "terms": "jsonb",
    "currency_cost": "bigint",
    "adjusts": "uuid",
    "latency_ms": "integer",
    "first_token_ms": "integer",
    "kill_switch_id": "uuid",
    "tags": "jsonb",
    "tag_sources": "jsonb",
    "route": "jsonb",
    "budget_ids": "uuid[]",
}
_HOUR_COLUMNS = {
    "id": "uuid",
    "hour": "bigint",
    "team_id": "uuid",
    "project_id": "uuid",
    "virtual_key_id": "uuid",
    "alias": "text",
    "model": "text",
    "provider": "text",
    "requests": "bigint",
    "errors": "bigint",
    "input_tokens": "bigint",
    "output_tokens": "bigint",
    "cached_tokens": "bigint",
    "cost_usd": "bigint",
    "saved_usd": "bigint",
    "shadow_cost_usd": "bigint",
    "latency_histogram": "bigint[]",
    "first_token_histogram": "bigint[]",
}
_TAG_COLUMNS = {
    "id": "uuid",
    "hour": "bigint",
    "team_id": "uuid",
    "project_id": "uuid",
    "tag_key": "text",
    "tag_value": "text",
    "requests": "bigint",
    "tokens": "bigint",
    "cost_usd": "bigint",
}
_MONEY_COLUMNS = ("cost_usd", "held_usd", "saved_usd", "shadow_cost_usd", "currency_cost")
# An attempt's identity, and whose it is, stay as they were when it went into suspense.
_RESOLVED_COLUMNS = (
    "alias",
    "provider",
    "model",
    "deployment",
    "pool",
    "request_model",
    "response_model",
    "upstream_id",
    "state",
    "status_code",
    "error_type",
    "finish_reason",
    "input_tokens",
    "cache_read_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cache_write_1h_input_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "output_audio_tokens",
    "output_image_tokens",
    "tool_calls",
    "units",
    "searches",
    "batch_requests",
    "service_tier",
    "inference_geo",
    "usage_source",
    "cost_usd",
    "price_id",
    "terms",
    "currency_cost",
    "latency_ms",
    "first_token_ms",
    "kill_switch_id",
)


def _value(column: str) -> str:
    """SQL of one column's value out of the JSON."""
    if column in ("admitted_at", "hour"):
        return f"timestamptz 'epoch' + new.{column} * interval '1 microsecond'"
    return f"new.{column} * 0.000000001" if column in _MONEY_COLUMNS else f"new.{column}"


def _insert_sql(table: str, columns: Mapping[str, str]) -> str:
    names, values = ", ".join(columns), ", ".join(map(_value, columns))
    return f"INSERT INTO {table} AS total ({names}) SELECT {values} FROM {_recordset(columns)}"  # noqa: S608


def _recordset(columns: Mapping[str, str]) -> str:
    types = ", ".join(f"{name} {column_type}" for name, column_type in columns.items())
    return f"json_to_recordset(%s) AS new ({types})"


def _added(*columns: str) -> str:
    return ", ".join(f"{column} = total.{column} + excluded.{column}" for column in columns)


def _added_up(*histograms: str) -> str:
    return ", ".join(
        f"{name} = (SELECT coalesce(array_agg(coalesce(a, 0) + coalesce(b, 0) ORDER BY position), '{{}}')"  # noqa: S608
        f" FROM unnest(total.{name}, excluded.{name}) WITH ORDINALITY AS bucket (a, b, position))"
        for name in histograms
    )


_INSERT = _insert_sql("audit_usagerecord", _EVENT_COLUMNS) + " ON CONFLICT DO NOTHING RETURNING attempt_id"
_RESOLVE = (
    f"UPDATE audit_usagerecord AS old SET {', '.join(f'{name} = {_value(name)}' for name in _RESOLVED_COLUMNS)},"  # noqa: S608
    f" resolved_at = now() FROM {_recordset(_EVENT_COLUMNS)}"
    f" WHERE old.attempt_id = new.attempt_id AND old.admitted_at = {_value('admitted_at')} AND old.state = 'suspense'"
)
_ADD_HOURS = (
    _insert_sql("budgets_usagehour", _HOUR_COLUMNS)
    + " ON CONFLICT (hour, team_id, project_id, virtual_key_id, alias, model, provider) DO UPDATE SET "
    + _added(
        "requests",
        "errors",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "cost_usd",
        "saved_usd",
        "shadow_cost_usd",
    )
    + ", "
    + _added_up("latency_histogram", "first_token_histogram")
)
_ADD_TAGS = (
    _insert_sql("budgets_usagetaghour", _TAG_COLUMNS)
    + " ON CONFLICT (hour, team_id, project_id, tag_key, tag_value) DO UPDATE SET "
    + _added("requests", "tokens", "cost_usd")
)
# For the verifier, which compares what has changed.
_TOUCH = _insert_sql("budgets_touchedhour", {"hour": "bigint"}) + " ON CONFLICT DO NOTHING"
_ADVANCE = (
    "INSERT INTO budgets_ingestwatermark AS mark (worker, seq, updated_at)"
    " SELECT worker, seq, now() FROM json_to_recordset(%s) AS new (worker text, seq bigint)"
    " ON CONFLICT (worker) DO UPDATE SET seq = greatest(mark.seq, excluded.seq), updated_at = excluded.updated_at"
    " RETURNING worker, seq"
)


def insert(events: Iterable[UsageEvent]) -> set[UUID]:
    """Insert those that are not there yet; their attempt ids."""
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, [_rows(events)])
        return {attempt_id for (attempt_id,) in cursor.fetchall()}


def resolve(events: Iterable[UsageEvent]) -> None:
    """Give those rows that are in suspense the outcome that these events say."""
    with connection.cursor() as cursor:
        cursor.execute(_RESOLVE, [_rows(events)])


def add_hours(hours: Mapping[HourKey, HourSum]) -> None:
    rows = [
        (uuid7(), *key, *(getattr(total, name) for name in HourSum.__slots__))
        for key, total in sorted(hours.items(), key=_by_key)
    ]
    _execute(_ADD_HOURS, _HOUR_COLUMNS, rows)
    _execute(_TOUCH, ("hour",), [(hour_us,) for hour_us in sorted({key.hour_us for key in hours})])


def add_tags(tags: Mapping[TagKey, TagSum]) -> None:
    rows = [
        (uuid7(), *key, *(getattr(total, name) for name in TagSum.__slots__))
        for key, total in sorted(tags.items(), key=_by_key)
    ]
    _execute(_ADD_TAGS, _TAG_COLUMNS, rows)


def _by_key(item: tuple[Any, Any]) -> Any:
    return item[0]


def _execute(sql: str, columns: Iterable[str], rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(sql, [_json([dict(zip(columns, row, strict=True)) for row in rows])])


def advance(seqs: Mapping[str, int]) -> dict[str, int]:
    """Move the watermarks of these workers up, never down; where they are now."""
    with connection.cursor() as cursor:
        cursor.execute(_ADVANCE, [_json([{"worker": worker, "seq": seq} for worker, seq in sorted(seqs.items())])])
        return dict(cursor.fetchall())


def _rows(events: Iterable[UsageEvent]) -> str:
    return _json([_row(event) for event in events])


def _row(event: UsageEvent) -> dict[str, Any]:
    row = msgspec.structs.asdict(event)
    row |= msgspec.structs.asdict(row.pop("usage"))
    row["admitted_at"] = row.pop("admitted_at_us")
    row["cost_usd"], row["held_usd"] = row.pop("cost_nanos"), row.pop("held_nanos")
    row["saved_usd"] = row.pop("saved_nanos")
    row["price_id"], row["kill_switch_id"] = event.price_id or None, event.kill_switch_id or None
    row["terms"], row["adjusts"] = event.terms, event.adjusts or None
    row["currency_cost"] = in_currency(row.pop("currency_cost_nanos"), event)
    return row


def in_currency(nanos: int | None, event: UsageEvent) -> int | None:
    """In the provider's currency, also where only the USD are known: of what is held, and of what a dead worker left."""
    if event.terms.currency == "USD":
        return None
    return event.cost_nanos * NANOS_PER_UNIT // event.terms.usd_per_unit_nanos if nanos is None else nanos


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
