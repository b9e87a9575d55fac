"""What the ledger says was spent in the budgets' windows: the counters of the gate, counted again. Reads PostgreSQL only.

Whole days (of UTC) and whole hours come from the roll-ups, which are written with the ledger in one transaction, where they
have the dimensions of the subject; the parts of hours that a window begins or ends in, and what no roll-up tells apart, come
from the records themselves.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, models

from audit.models import UsageRecord
from budgets import gate
from budgets.matching import EACH, counter_values, matches
from budgets.models import OWNERS, SUBJECT_COLUMNS, TAG, Budget, BudgetQuerySet, subject_of
from budgets.windows import HOUR_S, window_bounds
from routing.models import Deployment

NANO_DIGITS = 9
DAY_S = 24 * HOUR_S
# As the scripts have it: a counter outlives its window, for clocks that are behind and settles that come late.
COUNTER_GRACE_S = 3_600

# The columns that tell dimensions apart, by where they are read. A tag's is `tag_value` in the roll-up of its key.
_ROLLED_UP = {
    "team": "team_id",
    "project": "project_id",
    "key": "virtual_key_id",
    "alias": "alias",
    "model": "model",
    "provider": "provider",
}
_RECORDED = _ROLLED_UP | {
    "environment": "environment",
    "end_user": "end_user",
    "deployment": "deployment",
    "pool": "pool",
}
_IDS = frozenset({"team", "project", "key"})
_MEASURES = {
    # (of the roll-up by hour and day, of the roll-up of tags, of the records)
    Budget.Unit.USD: ("cost_usd", "cost_usd", "cost_usd"),
    Budget.Unit.TOKENS: ("input_tokens + output_tokens", "tokens", "input_tokens + output_tokens"),
    # What was voided never reached a provider; the roll-ups count it as a request all the same.
    Budget.Unit.REQUESTS: ("requests", "requests", "CASE WHEN state = 'voided' THEN 0 ELSE 1 END"),
}


class Spent(NamedTuple):
    """What one counter is to hold: nano-USD, tokens or requests, by the budget's unit. `each` has the values that tell it from
    the budget's others."""

    budget_id: UUID
    each: tuple[str, ...]
    start_s: int
    end_s: int
    amount: int

    @property
    def key(self) -> str:
        return gate.spend_key(str(self.budget_id), self.start_s, *self.each)

    @property
    def expire_at_s(self) -> int:
        return self.end_s + COUNTER_GRACE_S


class Row(NamedTuple):
    """A budget, as far as counting needs it."""

    pk: UUID
    subject: dict[str, str]
    window: str
    unit: str
    zone: str
    fiscal_month: int
    starts_at_s: float | None
    ends_at_s: float | None

    def bounds(self, at_s: float) -> tuple[int, int]:
        return window_bounds(
            self.window,
            self.zone,
            at_s,
            fiscal_month=self.fiscal_month,
            starts_at_s=self.starts_at_s,
            ends_at_s=self.ends_at_s,
        )


class _Group(NamedTuple):
    """Budgets that one query answers: of the same unit and window, whose subjects name the same dimensions."""

    named: tuple[str, ...]
    each: tuple[str, ...]
    unit: str
    start_s: int
    end_s: int


_FIELDS = ("pk", *SUBJECT_COLUMNS, "window", "unit", "zone", "fiscal_month", "starts_at", "ends_at")


def rows_of(budgets: BudgetQuerySet | None = None) -> Iterator[Row]:
    """All active ones, where none are chosen."""
    chosen = Budget.objects.filter(is_active=True) if budgets is None else budgets
    found = chosen.with_subject().with_zone().order_by("pk")
    for row in found.values_list(*_FIELDS, named=True).iterator():
        yield Row(
            pk=row.pk,
            subject=subject_of(row),
            window=row.window,
            unit=row.unit,
            zone=row.zone,
            fiscal_month=row.fiscal_month,
            starts_at_s=row.starts_at.timestamp() if row.starts_at else None,
            ends_at_s=row.ends_at.timestamp() if row.ends_at else None,
        )


def spent(at_s: float, budgets: BudgetQuerySet | None = None) -> list[Spent]:
    """The counters of budgets (all active ones) in the windows that `at_s` falls in, posted and suspense together, exact.

    Those with nothing spent are left out.
    """
    groups: defaultdict[_Group, defaultdict[tuple[str, ...], list[UUID]]] = defaultdict(lambda: defaultdict(list))
    for row in rows_of(budgets):
        group, values = _group_of(row, *row.bounds(at_s))
        groups[group][values].append(row.pk)
    return [
        Spent(budget_id, each, group.start_s, group.end_s, amount)
        for group, budget_ids in groups.items()
        for values, each, amount in _sums(group, list(budget_ids))
        for budget_id in budget_ids.get(values, ())
    ]


def spent_by_value(row: Row, start_s: int, end_s: int) -> dict[tuple[str, ...], int]:
    """What one budget counts in any span, by the values of its dimensions that have counters of their own."""
    group, wanted = _group_of(row, start_s, end_s)
    return {each: amount for values, each, amount in _sums(group, [wanted]) if values == wanted}


def counters_of(attempt: Mapping[str, str], at_s: float) -> list[gate.BudgetCounter]:
    """The counters that an attempt of these values (by dimension), admitted at `at_s`, is counted in."""
    whose = models.Q(scope="global")
    for dimension, field in OWNERS.items():
        whose |= models.Q(**{field: attempt[dimension]})
    counters = []
    for row in rows_of(Budget.objects.filter(whose, is_active=True)):
        start_s, end_s = row.bounds(at_s)
        if matches(row.subject, attempt) and start_s <= at_s < end_s:
            key = gate.spend_key(str(row.pk), start_s, *counter_values(row.subject, attempt))
            # What it allows is not asked of what was admitted.
            counters.append(gate.BudgetCounter(key, 0, False, end_s))
    return counters


def dimensions_of(record: UsageRecord) -> dict[str, str]:
    """What a record says of the dimensions of subjects."""
    deployments = Deployment.objects.filter(name=record.deployment).values_list("pk", flat=True)
    values = {name: str(getattr(record, column)) for name, column in _RECORDED.items()}
    tags = {f"{TAG}{name}": value for name, value in record.tags.items()}
    return values | tags | {"deployment": str(deployments[0]) if deployments else ""}


def _group_of(row: Row, start_s: int, end_s: int) -> tuple[_Group, tuple[str, ...]]:
    """The group, and the values of the dimensions it names."""
    dimensions = sorted(row.subject)
    named = tuple(name for name in dimensions if row.subject[name] != EACH)
    each = tuple(name for name in dimensions if row.subject[name] == EACH)
    return _Group(named, each, row.unit, start_s, end_s), tuple(row.subject[name] for name in named)


def _sums(group: _Group, wanted: Sequence[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], int]]:
    """(values named, values of each, amount) for at least the `wanted` values, where there is anything."""
    parameters = _span(group)
    deployments = _deployment_names() if "deployment" in (*group.named, *group.each) else {}
    for number, name in enumerate(group.named):
        named = {row[number] for row in wanted}
        parameters[f"named_{number}"] = sorted(
            {deployments.get(pk, pk) for pk in named} if name == "deployment" else named
        )
    ids = {name: pk for pk, name in deployments.items()}
    digits = NANO_DIGITS if group.unit == Budget.Unit.USD else 0
    with connection.cursor() as cursor:
        cursor.execute(_sql(group), parameters)
        for *values, amount in cursor:
            found = [
                ids.get(value, value) if name == "deployment" else value
                for name, value in zip((*group.named, *group.each), values, strict=True)
            ]
            if amount:
                split = len(group.named)
                yield tuple(found[:split]), tuple(found[split:]), int(Decimal(amount).scaleb(digits))


def _sql(group: _Group) -> str:
    names = (*group.named, *group.each)
    by_hour, by_tag, by_record = _MEASURES[Budget.Unit(group.unit)]
    tags = [name for name in names if name.startswith(TAG)]
    records = {name: f"tags ->> %({_tag_parameter(name)})s" if name in tags else _RECORDED[name] for name in names}

    def part(table: str, columns: Mapping[str, str], measure: str, condition: str) -> str:
        chosen = "".join(f"{columns[name]}::text AS value_{number}, " for number, name in enumerate(names))
        wanted = "".join(
            f" AND {columns[name]} = ANY(%(named_{number})s::{'uuid' if name in _IDS else 'text'}[])"
            for number, name in enumerate(group.named)
        )
        wanted += "".join(f" AND {columns[name]}::text <> ''" for name in group.each)
        return f"SELECT {chosen}{measure} AS amount FROM {table} WHERE {condition}{wanted}"  # noqa: S608

    if _ROLLED_UP.keys() >= set(names):
        parts = _rolled_up("budgets_usage", _ROLLED_UP, by_hour, part)
    elif len(tags) == 1 and {*tags, "team", "project"} >= set(names):
        columns = _ROLLED_UP | {tags[0]: "tag_value"}
        parts = _rolled_up("budgets_usagetag", columns, by_tag, part, f"tag_key = %({_tag_parameter(tags[0])})s AND ")
    else:
        return _summed(names, [part("audit_usagerecord", records, by_record, _BETWEEN.format("start", "end"))])
    parts.append(part("audit_usagerecord", records, by_record, _AT_THE_ENDS))
    if group.unit == Budget.Unit.REQUESTS:
        voided = f"state = 'voided' AND {_BETWEEN.format('first_hour', 'last_hour')}"
        parts.append(part("audit_usagerecord", records, "-1", voided))
    return _summed(names, parts)


_BETWEEN = "admitted_at >= %({})s AND admitted_at < %({})s"
_AT_THE_ENDS = f"({_BETWEEN.format('start', 'first_hour')} OR {_BETWEEN.format('last_hour', 'end')})"


def _rolled_up(prefix: str, columns: Mapping[str, str], measure: str, part: Any, condition: str = "") -> list[str]:
    days = "day >= %(first_day)s::date AND day < %(last_day)s::date"
    hours = "(hour >= %(first_hour)s AND hour < %(first_day)s OR hour >= %(last_day)s AND hour < %(last_hour)s)"
    return [
        part(f"{prefix}day", columns, measure, condition + days),
        part(f"{prefix}hour", columns, measure, condition + hours),
    ]


def _summed(names: Sequence[str], parts: Iterable[str]) -> str:
    values = "".join(f"value_{number}, " for number in range(len(names)))
    grouped = f" GROUP BY {values[:-2]}" if names else ""
    return f"SELECT {values}sum(amount) FROM ({' UNION ALL '.join(parts)}) AS part{grouped}"  # noqa: S608


def _tag_parameter(name: str) -> str:
    """Names of tags go in as values: they may hold anything."""
    return f"tag_{name.encode().hex()}"


def _span(group: _Group) -> dict[str, Any]:
    # PostgreSQL takes the year 5138; the roll-ups have no days that far.
    first_hour_s, last_hour_s = _whole(HOUR_S, group.start_s, group.end_s)
    first_day_s, last_day_s = _whole(DAY_S, first_hour_s, last_hour_s)
    tags = [name for name in (*group.named, *group.each) if name.startswith(TAG)]
    return {
        "start": _moment(group.start_s),
        "first_hour": _moment(first_hour_s),
        "first_day": _moment(first_day_s),
        "last_day": _moment(last_day_s),
        "last_hour": _moment(last_hour_s),
        "end": _moment(group.end_s),
    } | {_tag_parameter(name): name.removeprefix(TAG) for name in tags}


def _deployment_names() -> dict[str, str]:
    """By id: the ledger knows deployments by name."""
    return {str(pk): name for pk, name in Deployment.objects.values_list("pk", "name")}


def _whole(unit_s: int, start_s: int, end_s: int) -> tuple[int, int]:
    """The part of a span that is whole units; of no length where there is none."""
    first_s = min(-(-start_s // unit_s) * unit_s, end_s)
    return first_s, max(end_s // unit_s * unit_s, first_s)


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
