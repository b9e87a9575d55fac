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
from budgets import caps, gate
from budgets.matching import EACH, counter_values, matches
from budgets.models import OWNERS, SUBJECT_COLUMNS, TAG, Budget, BudgetQuerySet, Increase, subject_of
from budgets.windows import HOUR_S, window_bounds
from routing.models import Deployment

NANO_DIGITS = 9
DAY_S = 24 * HOUR_S
# As the scripts have it: a counter outlives its window, for clocks that are behind and settles that come late.
COUNTER_GRACE_S = 3_600
# How far back roll-overs are followed. Each is at most the roll-over, so what is older hardly ever matters.
WINDOWS_BACK_MAX = 24

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
    # What was voided never reached a provider; the roll-ups count it as a request all the same. What corrects a cost is none.
    Budget.Unit.REQUESTS: (
        "requests",
        "requests",
        "CASE WHEN state = 'voided' OR adjusts IS NOT NULL THEN 0 ELSE 1 END",
    ),
}


class Spent(NamedTuple):
    """What was spent of one counter in one window (nano-USD, tokens or requests, by the budget's unit), what it got from the window
    before, and what the next one got from it. `each` has the values that tell it from the budget's others."""

    budget_id: UUID
    each: tuple[str, ...]
    start_s: int
    end_s: int
    spent: int
    rolled_over: int = 0
    rolled_on: int = 0
    # A counter that the next window asks is kept until that ends.
    kept_until_s: int = 0

    @property
    def key(self) -> str:
        return gate.spend_key(str(self.budget_id), self.start_s, *self.each)

    @property
    def amount(self) -> int:
        """What the counter is to hold."""
        return self.spent - self.rolled_over + self.rolled_on

    @property
    def expire_at_s(self) -> int:
        return max(self.end_s, self.kept_until_s) + COUNTER_GRACE_S


class Row(NamedTuple):
    """A budget, as far as counting needs it. Amounts are in whole units, nano-USD where it is money."""

    pk: UUID
    subject: dict[str, str]
    window: str
    unit: str
    zone: str
    fiscal_month: int
    starts_at_s: float | None
    ends_at_s: float | None
    amount: int
    rollover: int
    rolls_over_since_s: float
    mode: str
    # The percentages of the thresholds that block.
    blocking: Sequence[int]

    @property
    def refuses_at(self) -> int | None:
        """The percentage that nothing passes, if any."""
        return self.cap_percent if caps.refuses(self.mode, self.blocking) else None

    @property
    def cap_percent(self) -> int:
        return caps.cap_percent(self.mode, self.blocking)

    def cap(self, added: int) -> int:
        """With so much added to the amount."""
        return caps.share(self.amount + added, self.cap_percent)

    def bounds(self, at_s: float) -> tuple[int, int]:
        return window_bounds(
            self.window,
            self.zone,
            at_s,
            fiscal_month=self.fiscal_month,
            starts_at_s=self.starts_at_s,
            ends_at_s=self.ends_at_s,
        )

    def kept_until_s(self, end_s: int) -> int:
        """Of a counter whose window ends then: where there is a roll-over, the next window asks what it left."""
        return self.bounds(end_s)[1] if self.rollover else end_s


class _Group(NamedTuple):
    """Budgets that one query answers: of the same unit and window, whose subjects name the same dimensions."""

    named: tuple[str, ...]
    each: tuple[str, ...]
    unit: str
    start_s: int
    end_s: int


_FIELDS = (
    "pk",
    *SUBJECT_COLUMNS,
    "window",
    "unit",
    "zone",
    "fiscal_month",
    "starts_at",
    "ends_at",
    "amount",
    "rollover",
    "rolls_over_since",
    "mode",
    "blocking",
)


def rows_of(budgets: BudgetQuerySet | None = None) -> Iterator[Row]:
    """All active ones, where none are chosen."""
    chosen = Budget.objects.filter(is_active=True) if budgets is None else budgets
    found = chosen.with_subject().with_zone().with_blocking().order_by("pk")
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
            amount=in_whole_units(row.amount, row.unit),
            rollover=in_whole_units(row.rollover, row.unit),
            rolls_over_since_s=row.rolls_over_since.timestamp() if row.rolls_over_since else 0.0,
            mode=row.mode,
            blocking=row.blocking,
        )


def in_whole_units(amount: Decimal, unit: str) -> int:
    """Nano-USD, tokens or requests."""
    return int(amount.scaleb(NANO_DIGITS)) if unit == Budget.Unit.USD else int(amount)


def spent(at_s: float, budgets: BudgetQuerySet | None = None) -> list[Spent]:
    """The counters of budgets (all active ones) in the windows that `at_s` falls in, posted and suspense together, exact.

    Those with nothing spent are left out; of a budget with a roll-over the counters of the window before are there too.
    """
    plain: list[Row] = []
    rolling: list[Row] = []
    for row in rows_of(budgets):
        (rolling if row.rollover else plain).append(row)
    counters = _spent((row, *row.bounds(at_s)) for row in plain)
    return counters + list(_with_roll_over(rolling, at_s)) if rolling else counters


def _spent(windows: Iterable[tuple[Row, int, int]]) -> list[Spent]:
    groups: defaultdict[_Group, defaultdict[tuple[str, ...], list[UUID]]] = defaultdict(lambda: defaultdict(list))
    for row, start_s, end_s in windows:
        group, values = _group_of(row, start_s, end_s)
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


class _Past:
    """What was spent of budgets with a roll-over: in the present window (0), the one before (1), and as far back as matters."""

    def __init__(self, rows: Sequence[Row], at_s: float) -> None:
        self._bounds = [{row.pk: row.bounds(at_s) for row in rows}]
        self._spent = [self._read(rows)]
        self._increases: defaultdict[UUID, list[Increase]] = defaultdict(list)
        approved = Increase.objects.filter(state=Increase.State.APPROVED, budget__in=[row.pk for row in rows])
        for increase in approved:
            self._increases[increase.budget_id].append(increase)
        further = rows
        while further and len(self._spent) <= WINDOWS_BACK_MAX:
            self._bounds.append({row.pk: row.bounds(self._bounds[-1][row.pk][0] - 1) for row in further})
            self._spent.append(self._read(further))
            further = [row for row in further if self._depends_on_more(row)]

    def _read(self, rows: Sequence[Row]) -> Mapping[UUID, Mapping[tuple[str, ...], int]]:
        found: defaultdict[UUID, dict[tuple[str, ...], int]] = defaultdict(dict)
        for item in _spent((row, *self._bounds[-1][row.pk]) for row in rows):
            found[item.budget_id][item.each] = item.spent
        return found

    def _depends_on_more(self, row: Row) -> bool:
        """Whether what the last window that was read left depends on what it got itself."""
        start_s, end_s = self._bounds[-1][row.pk]
        cap, spent = self._cap(row, end_s), self._spent[-1].get(row.pk, {})
        return row.rolls_over_since_s < start_s and any(abs(cap - amount) < row.rollover for amount in spent.values())

    def _cap(self, row: Row, end_s: int) -> int:
        """At the end of a window."""
        last = datetime.fromtimestamp(end_s - 1, UTC)
        return row.cap(
            sum(
                in_whole_units(increase.amount, row.unit)
                for increase in self._increases[row.pk]
                if increase.starts_at <= last < increase.ends_at
            )
        )

    def window(self, row: Row, back: int) -> tuple[int, int]:
        return self._bounds[back][row.pk]

    def values(self, row: Row) -> set[tuple[str, ...]]:
        """Of all counters that the present window or the one before has."""
        seen = {each for spent in self._spent[:2] for each in spent.get(row.pk, ())}
        return seen if EACH in row.subject.values() else seen | {()}

    def spent(self, row: Row, each: tuple[str, ...], back: int) -> int:
        return self._spent[back].get(row.pk, {}).get(each, 0)

    def rolled_over(self, row: Row, each: tuple[str, ...], back: int) -> int:
        """Into the window that is so far back: as `lua/admit.lua` moves it with the first attempt of that window."""
        if back + 1 >= len(self._bounds) or row.pk not in self._bounds[back + 1]:
            return 0
        start_s, end_s = self.window(row, back + 1)
        spent = self.spent(row, each, back + 1)
        # What a window left before its budget rolled over is known only where something was counted.
        if row.rolls_over_since_s > (end_s if spent else start_s):
            return 0
        got = self.rolled_over(row, each, back + 1) if spent else 0
        return max(0, min(row.rollover, self._cap(row, end_s) + got - spent))


def _with_roll_over(rows: Sequence[Row], at_s: float) -> Iterator[Spent]:
    """The counters of now and of the window before, what is left moved from the one to the other."""
    past = _Past(rows, at_s)
    for row in rows:
        (start_s, end_s), (before_s, _) = past.window(row, 0), past.window(row, 1)
        for each in past.values(row):
            moved = past.rolled_over(row, each, 0)
            spent_before = past.spent(row, each, 1)
            got_before = past.rolled_over(row, each, 1) if spent_before else 0
            yield Spent(row.pk, each, start_s, end_s, past.spent(row, each, 0), moved, 0, row.kept_until_s(end_s))
            yield Spent(row.pk, each, before_s, start_s, spent_before, got_before, moved, end_s)


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
            counters.append(gate.BudgetCounter(key, 0, False, row.kept_until_s(end_s), gate.UNITS[row.unit]))
    return counters


def dimensions_of(record: UsageRecord) -> dict[str, str]:
    """What a record says of the dimensions of subjects."""
    ids = Deployment.objects.filter(name=record.deployment).values_list("pk", flat=True)
    values = {name: str(getattr(record, column)) for name, column in _RECORDED.items()}
    tags = {f"{TAG}{name}": value for name, value in record.tags.items()}
    # What is passed through to a provider goes by its name alone.
    return values | tags | {"deployment": str(next(iter(ids), record.deployment))}


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
