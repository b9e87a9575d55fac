"""How budgets burn down: where they will stand when their window ends, at the pace so far. Reads only."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import redis
from django.db.models import Q

from budgets.counters import Counter, spends
from budgets.models import SUBJECT_RELATED, Budget, BudgetQuerySet, Scope
from controlplane.dashboard import Question

BUDGETS_MAX = 200
SHOWN_MAX = 8
# A projection from less than this share of the window says nothing.
PROJECTED_FROM = 0.04


@dataclass(frozen=True)
class Burn:
    """A budget's fullest counter in its present window."""

    counter: Counter
    now: datetime

    @property
    def budget(self) -> Budget:
        return self.counter.budget

    @property
    def elapsed_share(self) -> float:
        """Of the window; nothing of one that never ends."""
        counter = self.counter
        if counter.ends_at is None:
            return 0.0
        return max(0.0, (self.now - counter.starts_at) / (counter.ends_at - counter.starts_at))

    @property
    def projected(self) -> Decimal | None:
        """Spent when the window ends, at the pace so far; None while it is too early to say, or where it never ends."""
        if self.elapsed_share < PROJECTED_FROM:
            return None
        return self.counter.spent / Decimal(self.elapsed_share)

    @property
    def runs_out_at(self) -> datetime | None:
        """When nothing is left, at the pace so far; None where that is after the window."""
        counter = self.counter
        if self.projected is None or self.projected <= counter.cap or not counter.spent:
            return None
        return counter.starts_at + (self.now - counter.starts_at) * float(counter.cap / counter.spent)

    @property
    def level(self) -> str:
        """`over`, `tight` (it will not last) or `fine`."""
        if not self.counter.left:
            return "over"
        return "tight" if self.runs_out_at else "fine"


def burning(viewer: Any, question: Question, client: redis.Redis, now: datetime) -> list[Burn]:
    """The budgets of the question's teams and projects that are nearest to their end, the nearest first."""
    fullest = [
        Burn(found.counters[0], now) for found in spends(_chosen(viewer, question), now, client) if found.counters
    ]
    return sorted(fullest, key=_fullest_first)[:SHOWN_MAX]


def _fullest_first(burn: Burn) -> tuple[float, str]:
    return -burn.counter.spent_share - burn.counter.held_share, burn.budget.name


def _chosen(viewer: Any, question: Question) -> BudgetQuerySet:
    budgets = Budget.objects.for_user(viewer).filter(is_active=True)
    if question.key:
        budgets = budgets.filter(Q(virtual_key=question.key))
    else:
        # There may be as many budgets of keys as there are keys.
        budgets = budgets.exclude(scope=Scope.KEY)
        if question.project:
            budgets = budgets.filter(Q(project=question.project))
        elif question.team:
            budgets = budgets.filter(Q(team=question.team) | Q(project__team=question.team))
    chosen = list(budgets.order_by("-pk").values_list("pk", flat=True)[:BUDGETS_MAX])
    return Budget.objects.filter(pk__in=chosen).select_related(*SUBJECT_RELATED)
