"""How budgets burn down: spent, held, left, and where they will stand when their window ends. Reads only.

What is spent comes from the ledger's roll-ups; what is held besides, from the gate's counters. Where Redis does not answer,
what is held is not known.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import redis
from django.db.models import Q

from budgets import gate
from budgets.models import Budget, Scope
from budgets.spend import spent, with_time_zone
from budgets.windows import window_bounds
from controlplane.dashboard import Question

BUDGETS_MAX = 200
SHOWN_MAX = 8
# A projection from less than this share of the window says nothing.
PROJECTED_FROM = 0.04
NANO = Decimal("0.000000001")


@dataclass(frozen=True)
class Burn:
    """A budget in its present window. `held_usd` is None where it is not known."""

    budget: Budget
    spent_usd: Decimal
    held_usd: Decimal | None
    starts_at: datetime
    ends_at: datetime
    now: datetime

    @property
    def left_usd(self) -> Decimal:
        return max(Decimal(0), self.budget.amount_usd - self.spent_usd - (self.held_usd or 0))

    @property
    def spent_share(self) -> float:
        return self._share(self.spent_usd)

    @property
    def held_share(self) -> float:
        return self._share(self.held_usd or Decimal(0))

    @property
    def elapsed_share(self) -> float:
        return (self.now - self.starts_at) / (self.ends_at - self.starts_at)

    @property
    def projected_usd(self) -> Decimal | None:
        """Spent when the window ends, at the pace so far; None while it is too early to say."""
        if self.elapsed_share < PROJECTED_FROM:
            return None
        return self.spent_usd / Decimal(self.elapsed_share)

    @property
    def runs_out_at(self) -> datetime | None:
        """When nothing is left, at the pace so far; None where that is after the window."""
        if self.projected_usd is None or self.projected_usd <= self.budget.amount_usd or not self.spent_usd:
            return None
        return self.starts_at + (self.now - self.starts_at) * float(self.budget.amount_usd / self.spent_usd)

    @property
    def level(self) -> str:
        """`over`, `tight` (it will not last) or `fine`."""
        if not self.left_usd:
            return "over"
        return "tight" if self.runs_out_at else "fine"

    def _share(self, amount_usd: Decimal) -> float:
        whole = self.budget.amount_usd
        return float(amount_usd / whole) if whole else float(bool(amount_usd))


def burning(viewer: Any, question: Question, client: redis.Redis, now: datetime) -> list[Burn]:
    """The budgets of the question's teams and projects that are nearest to their end, the nearest first."""
    budgets = list(with_time_zone(_chosen(viewer, question)).select_related("team", "project__team", "virtual_key"))
    at_s = now.timestamp()
    windows = {budget.pk: window_bounds(budget.window, budget.time_zone, at_s) for budget in budgets}
    keys = {budget.pk: gate.spend_key(str(budget.pk), windows[budget.pk][0]) for budget in budgets}
    of_ledger = {item.key: item.nanos for item in spent(at_s, Budget.objects.filter(pk__in=list(keys)))}
    of_gate = _counters(client, list(keys.values()))
    burns = []
    for budget in budgets:
        key, (start_s, end_s) = keys[budget.pk], windows[budget.pk]
        posted = of_ledger.get(key, 0)
        held_usd = max(0, of_gate.get(key, 0) - posted) * NANO if of_gate is not None else None
        starts_at, ends_at = datetime.fromtimestamp(start_s, UTC), datetime.fromtimestamp(end_s, UTC)
        burns.append(Burn(budget, posted * NANO, held_usd, starts_at, ends_at, now))
    return sorted(burns, key=lambda burn: (-burn.spent_share - burn.held_share, burn.budget.name))[:SHOWN_MAX]


def _chosen(viewer: Any, question: Question) -> Any:
    budgets = Budget.objects.for_user(viewer).filter(is_active=True)
    if question.key:
        return budgets.filter(Q(virtual_key=question.key))[:BUDGETS_MAX]
    # There may be as many budgets of keys as there are keys.
    budgets = budgets.exclude(scope=Scope.KEY)
    if question.project:
        return budgets.filter(Q(project=question.project))[:BUDGETS_MAX]
    if question.team:
        return budgets.filter(Q(team=question.team) | Q(project__team=question.team))[:BUDGETS_MAX]
    return budgets[:BUDGETS_MAX]


def _counters(client: redis.Redis, keys: list[str]) -> dict[str, int] | None:
    """Nano-USD posted and held by key; None where Redis does not answer or has not been rebuilt."""
    if not keys:
        return {}
    try:
        with client.pipeline(transaction=False) as pipeline:
            pipeline.exists(gate.EPOCH)
            pipeline.mget(keys)
            is_built, values = pipeline.execute()
    except redis.RedisError:
        return None
    if not is_built:
        return None
    return {key: int(value) for key, value in zip(keys, cast("list[bytes | None]", values), strict=True) if value}
