"""The gate's counters as people read them: spent, held, rolled over and left, by budget and value. Reads only.

What is spent comes from the ledger; what is held besides, from the gate. Where Redis does not answer, or has not been rebuilt,
what is held is not known.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import cast
from uuid import UUID

import redis
from django.db.models import Min, Sum

from budgets import gate
from budgets.ledger_models import UsageDay
from budgets.matching import EACH
from budgets.models import Budget, BudgetQuerySet, Increase, Limit
from budgets.spend import DAY_S, NANO_DIGITS, Spent, in_whole_units, rows_of, spent, spent_by_value
from budgets.windows import FOREVER_S, HOUR_S

COUNTERS_MAX = 1_000
PARTS_MAX = 31
OBSERVED_DAYS = 7
PARTS_S = (120, 3_600, DAY_S, 7 * DAY_S)


@dataclass(frozen=True)
class Counter:
    """One counter of a budget in one window, in the budget's unit. `held` is None where unknown."""

    budget: Budget
    starts_at: datetime
    ends_at: datetime | None
    spent: Decimal
    # What is never passed, or, of one that refuses nothing, its amount; with what is on top of it.
    cap: Decimal
    held: Decimal | None = None
    rolled_over: Decimal = Decimal(0)
    increased_by: Decimal = Decimal(0)
    each: Mapping[str, str] = field(default_factory=dict)

    @property
    def extra(self) -> Decimal:
        return self.rolled_over + self.increased_by

    @property
    def each_text(self) -> str:
        return ", ".join(self.each.values())

    @property
    def left(self) -> Decimal:
        return max(Decimal(0), self.cap - self.spent - (self.held or 0))

    @property
    def spent_share(self) -> float:
        return self._share(self.spent)

    @property
    def held_share(self) -> float:
        return self._share(self.held or Decimal(0))

    def _share(self, amount: Decimal) -> float:
        return float(amount / self.cap) if self.cap else float(bool(amount))


@dataclass(frozen=True)
class WindowSpend:
    """The counters of one budget in one window, the fullest first."""

    budget: Budget
    starts_at: datetime
    ends_at: datetime | None
    zone: str
    increased_by: Decimal
    counters: Sequence[Counter]

    @property
    def unit(self) -> str:
        return self.budget.unit

    @property
    def shown(self) -> Sequence[Counter]:
        return self.counters[:COUNTERS_MAX]

    @property
    def is_cut(self) -> bool:
        return len(self.counters) > COUNTERS_MAX


def spend_of(budget: Budget, at: datetime, client: redis.Redis) -> WindowSpend:
    """Of the window that `at` falls in."""
    return spends(Budget.objects.filter(pk=budget.pk), at, client)[0]


def spends(budgets: BudgetQuerySet, at: datetime, client: redis.Redis) -> list[WindowSpend]:
    """Of each of these budgets the window that `at` falls in."""
    rows = list(rows_of(budgets))
    bounds = {row.pk: row.bounds(at.timestamp()) for row in rows}
    of_ledger: defaultdict[UUID, dict[tuple[str, ...], Spent]] = defaultdict(dict)
    for row in rows:
        if EACH not in row.subject.values():
            of_ledger[row.pk][()] = Spent(row.pk, (), *bounds[row.pk], 0)
    for item in spent(at.timestamp(), budgets):
        if item.start_s == bounds[item.budget_id][0]:
            of_ledger[item.budget_id][item.each] = item
    keys = [item.key for items in of_ledger.values() for item in items.values()]
    of_gate = read(client, keys)
    known, increased = {budget.pk: budget for budget in budgets}, _increases(budgets, at)
    answers = []
    for row in rows:
        budget, (start_s, end_s) = known[row.pk], bounds[row.pk]
        starts_at, ends_at = _moment(start_s), None if end_s >= FOREVER_S else _moment(end_s)
        more = increased.get(row.pk, Decimal(0))
        cap = row.cap(in_whole_units(more, row.unit))
        dimensions = [name for name in sorted(row.subject) if row.subject[name] == EACH]
        counters = []
        for each, item in of_ledger[row.pk].items():
            counters.append(
                Counter(
                    budget=budget,
                    starts_at=starts_at,
                    ends_at=ends_at,
                    spent=_in_unit(item.spent, budget),
                    cap=_in_unit(cap + item.rolled_over, budget),
                    held=None if of_gate is None else _in_unit(_held(of_gate.get(item.key), item), budget),
                    rolled_over=_in_unit(item.rolled_over, budget),
                    increased_by=more,
                    each=dict(zip(dimensions, each, strict=True)),
                )
            )
        counters.sort(key=lambda counter: (-counter.spent_share - counter.held_share, *counter.each.values()))
        answers.append(WindowSpend(budget, starts_at, ends_at, row.zone, more, counters))
    return answers


def spent_in_parts(budget: Budget, window: WindowSpend, now: datetime) -> list[tuple[datetime, Decimal]]:
    """When each part of the window begins, and what was spent in it; up to now."""
    (row,) = rows_of(Budget.objects.filter(pk=budget.pk))
    edges = _edges(window, now)
    return [
        (_moment(start_s), _in_unit(sum(spent_by_value(row, start_s, end_s).values()), budget))
        for start_s, end_s in pairwise(edges)
    ]


def _edges(window: WindowSpend, now: datetime) -> list[int]:
    """Parts of an hour or of days, so that they are bars that can be told apart; until the one that is now."""
    first_s = int(window.starts_at.timestamp())
    if window.ends_at is None:
        first = UsageDay.objects.aggregate(first=Min("day"))["first"]
        first_s = int(datetime.combine(first or now.date(), time.min, UTC).timestamp())
    now_s = int(now.timestamp())
    end_s = int(window.ends_at.timestamp()) if window.ends_at else now_s + HOUR_S
    length_s = max(end_s - first_s, 0)
    part_s = next(
        (part for part in PARTS_S if length_s <= part * PARTS_MAX), -(-length_s // PARTS_MAX // DAY_S) * DAY_S
    )
    starts = [start_s for start_s in range(first_s, end_s, part_s) if start_s <= now_s]
    return [*starts, min(starts[-1] + part_s, end_s)] if starts else []


def read(client: redis.Redis, keys: Sequence[str]) -> dict[str, int] | None:
    """By counter: what the gate has counted, spent and held. None where Redis does not answer or has not been rebuilt."""
    if not keys:
        return {}
    try:
        with client.pipeline(transaction=False) as pipeline:
            pipeline.exists(gate.EPOCH)
            pipeline.mget(keys)
            is_built, values = cast("tuple[int, list[bytes | None]]", pipeline.execute())
    except redis.RedisError:
        return None
    return {key: int(value) for key, value in zip(keys, values, strict=True) if value} if is_built else None


def observed_since(now: datetime) -> datetime:
    """From when on it is told what observed rules would have refused: `OBSERVED_DAYS` days of UTC, that of `now` being the last."""
    return datetime.combine(now.astimezone(UTC).date(), time.min, UTC) - timedelta(days=OBSERVED_DAYS - 1)


def would_have_refused(rules: Iterable[Budget | Limit], now: datetime, client: redis.Redis) -> dict[UUID, int]:
    """By rule that only observes, how many requests it would have refused since `observed_since`, all its values together. Empty
    where Redis does not answer."""
    asked = [rule.pk for rule in rules if rule.is_observed]
    since = observed_since(now)
    try:
        with client.pipeline(transaction=False) as pipeline:
            for day in range(OBSERVED_DAYS if asked else 0):
                start_s = int((since + timedelta(days=day)).timestamp())
                pipeline.hmget(gate.observed_key(start_s), [str(pk) for pk in asked])
            days = cast("list[list[bytes | None]]", pipeline.execute())
    except redis.RedisError:
        return {}
    return {pk: sum(int(count or 0) for count in counts) for pk, *counts in zip(asked, *days, strict=True)}


def _increases(budgets: BudgetQuerySet, at: datetime) -> dict[UUID, Decimal]:
    """By budget, what is added to its amount at that moment."""
    rows = Increase.objects.in_force(at).filter(budget__in=budgets, starts_at__lte=at)
    return dict(rows.values_list("budget_id").annotate(Sum("amount")).order_by())


def _held(counted: int | None, item: Spent) -> int:
    return 0 if counted is None else max(0, counted - item.amount)


def _in_unit(amount: int, budget: Budget) -> Decimal:
    return Decimal(amount).scaleb(-NANO_DIGITS) if budget.unit == Budget.Unit.USD else Decimal(amount)


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
