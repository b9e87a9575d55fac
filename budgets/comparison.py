"""Comparing the ledger's records with their roll-ups, and roll-ups by day with those by hour. Reads PostgreSQL only.

Both sides of a comparison are read by one statement, so whatever is ingested meanwhile is in both or in neither. What the
statements add up is what `budgets.rollups` adds: they are written apart from it, as the second of two witnesses.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from django.db import connection, transaction

from budgets.ledger_models import Drift

NANO_DIGITS = 9
USD = "usd"
HOUR = timedelta(hours=1)
# More than these is not read by anybody, and says the same.
DRIFTS_MAX = 100


class Difference(NamedTuple):
    """Of one row. Amounts are nano-USD where the unit is usd."""

    kind: str
    what: str
    unit: str
    expected: int
    found: int


class _Fields(NamedTuple):
    """Of a roll-up: what its rows are told apart by, and what of them is compared, money first: (unit, column)."""

    keys: tuple[str, ...]
    sums: tuple[tuple[str, str], ...]


_USAGE = _Fields(
    ("team_id", "project_id", "virtual_key_id", "alias", "model", "provider"),
    (
        (USD, "cost_usd"),
        (USD, "saved_usd"),
        (USD, "shadow_cost_usd"),
        ("requests", "requests"),
        ("errors", "errors"),
        ("input tokens", "input_tokens"),
        ("output tokens", "output_tokens"),
        ("cached tokens", "cached_tokens"),
    ),
)
_TAGS = _Fields(
    ("team_id", "project_id", "tag_key", "tag_value"),
    ((USD, "cost_usd"), ("requests", "requests"), ("tokens", "tokens")),
)

# An entry that corrects another's cost is no request.
_RECORDS = """
SELECT team_id, project_id, virtual_key_id, alias, model, provider, sum(cost_usd) AS cost_usd,
    sum(saved_usd) AS saved_usd, coalesce(sum(cost_usd) FILTER (WHERE kind = 'shadow'), 0) AS shadow_cost_usd,
    count(*) FILTER (WHERE adjusts IS NULL) AS requests,
    count(*) FILTER (WHERE error_type <> '' OR status_code >= 400) AS errors, sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens, sum(cache_read_input_tokens) AS cached_tokens
FROM audit_usagerecord WHERE admitted_at >= %(start)s AND admitted_at < %(end)s
GROUP BY team_id, project_id, virtual_key_id, alias, model, provider
"""
# Records that have the same tags are many: they are added up before their tags are told apart.
_TAGGED_RECORDS = """
SELECT team_id, project_id, tag.key AS tag_key, tag.value AS tag_value, sum(cost_usd) AS cost_usd, sum(requests) AS requests,
    sum(tokens) AS tokens
FROM (
    SELECT team_id, project_id, tags, sum(cost_usd) AS cost_usd, count(*) FILTER (WHERE adjusts IS NULL) AS requests,
        sum(input_tokens + output_tokens) AS tokens
    FROM audit_usagerecord WHERE admitted_at >= %(start)s AND admitted_at < %(end)s GROUP BY team_id, project_id, tags
) AS alike, jsonb_each_text(tags) AS tag
GROUP BY team_id, project_id, tag.key, tag.value
"""


def _rows(table: str, column: str, keys: Sequence[str], sums: Sequence[tuple[str, str]]) -> str:
    """SQL of a roll-up's own rows."""
    return f"SELECT {', '.join((*keys, *(name for _, name in sums)))} FROM {table} WHERE {column} = %(start)s"  # noqa: S608


def _summed(table: str, keys: Sequence[str], sums: Sequence[tuple[str, str]]) -> str:
    """SQL of the hours of one day, added up."""
    names, added = ", ".join(keys), ", ".join(f"sum({name}) AS {name}" for _, name in sums)
    return f"SELECT {names}, {added} FROM {table} WHERE hour >= %(start)s AND hour < %(end)s GROUP BY {names}"  # noqa: S608


def _differing(expected: str, found: str, keys: Sequence[str], sums: Sequence[tuple[str, str]]) -> str:
    """SQL of the rows that two queries do not agree about: keys, then each sum twice. A row that is missing is one of noughts."""
    pairs = [(f"coalesce(e.{name}, 0)", f"coalesce(f.{name}, 0)") for _, name in sums]
    shown = ", ".join(f"{one}, {other}" for one, other in pairs)
    differ = " OR ".join(f"{one} <> {other}" for one, other in pairs)
    return (
        f"SELECT {', '.join(keys)}, {shown} FROM ({expected}) AS e FULL JOIN ({found}) AS f USING ({', '.join(keys)})"  # noqa: S608
        f" WHERE {differ} ORDER BY {', '.join(keys)} LIMIT {DRIFTS_MAX}"
    )


class _Comparison(NamedTuple):
    kind: str
    sql: str
    keys: Sequence[str]
    sums: Sequence[tuple[str, str]]


def _comparison(kind: str, expected: str, found: str, fields: _Fields) -> _Comparison:
    return _Comparison(kind, _differing(expected, found, *fields), *fields)


_OF_AN_HOUR = (
    _comparison(Drift.Kind.HOURS, _RECORDS, _rows("budgets_usagehour", "hour", *_USAGE), _USAGE),
    _comparison(Drift.Kind.TAG_HOURS, _TAGGED_RECORDS, _rows("budgets_usagetaghour", "hour", *_TAGS), _TAGS),
)
_OF_A_DAY = (
    _comparison(
        Drift.Kind.DAYS, _summed("budgets_usagehour", *_USAGE), _rows("budgets_usageday", "day", *_USAGE), _USAGE
    ),
    _comparison(
        Drift.Kind.TAG_DAYS, _summed("budgets_usagetaghour", *_TAGS), _rows("budgets_usagetagday", "day", *_TAGS), _TAGS
    ),
)


def compare_hour(hour: datetime) -> Iterator[Difference]:
    """The records admitted in that hour, with the roll-ups of it."""
    name = f"{hour:%Y-%m-%d %H:00}"
    yield from _compare(_OF_AN_HOUR, name, {"start": hour, "end": hour + HOUR})


def compare_day(day: datetime) -> Iterator[Difference]:
    """The roll-ups of its hours, with those of the day (UTC) that begins at `day`."""
    yield from _compare(_OF_A_DAY, f"{day:%Y-%m-%d}", {"start": day, "end": day + timedelta(days=1)})


def _compare(comparisons: Sequence[_Comparison], name: str, span: Mapping[str, datetime]) -> Iterator[Difference]:
    for kind, sql, keys, sums in comparisons:
        with transaction.atomic(), connection.cursor() as cursor:
            # The planner expects many more groups than there are, and would sort millions of records for them: twice as slow.
            cursor.execute("SET LOCAL enable_sort = off")
            cursor.execute(sql, dict(span))
            rows = cursor.fetchall()
        for row in rows:
            key = ", ".join(f"{column.removesuffix('_id')} {value}" for column, value in zip(keys, row, strict=False))
            pairs = zip(row[len(keys) :: 2], row[len(keys) + 1 :: 2], strict=True)
            for (unit, _), (expected, found) in zip(sums, pairs, strict=True):
                if expected != found:
                    yield Difference(kind, f"{name}, {key}", unit, _whole(unit, expected), _whole(unit, found))
                    break  # One word about a row is enough.


def _whole(unit: str, value: Any) -> int:
    return nanos(value) if unit == USD else int(value)


def nanos(amount_usd: Decimal) -> int:
    return int(amount_usd.scaleb(NANO_DIGITS))
