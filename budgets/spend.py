"""What the ledger says was spent in the budgets' windows: the counters of the gate, counted again. Reads PostgreSQL only."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, models
from django.db.models.functions import Coalesce

from budgets import gate
from budgets.models import Budget, Scope
from budgets.windows import HOUR_S, window_bounds

NANO_DIGITS = 9
DAY_S = 86_400
# As the scripts have it: a counter outlives its window, for clocks that are behind and settles that come late.
COUNTER_GRACE_S = 3_600
DAY_S = 24 * HOUR_S
SUBJECT_COLUMNS = {Scope.TEAM: "team_id", Scope.PROJECT: "project_id", Scope.KEY: "virtual_key_id"}

_SPENT = """
SELECT subject, sum(cost_usd) FROM (
    SELECT {subject} AS subject, cost_usd FROM budgets_usageday
        WHERE {subject} = ANY(%(subjects)s) AND day >= %(first_day)s::date AND day < %(last_day)s::date
    UNION ALL
    SELECT {subject} AS subject, cost_usd FROM budgets_usagehour
        WHERE {subject} = ANY(%(subjects)s)
        AND (hour >= %(first_hour)s AND hour < %(first_day)s OR hour >= %(last_day)s AND hour < %(last_hour)s)
    UNION ALL
    SELECT {subject} AS subject, cost_usd FROM audit_usagerecord
        WHERE {subject} = ANY(%(subjects)s) AND cost_usd <> 0
        AND (admitted_at >= %(start)s AND admitted_at < %(first_hour)s
            OR admitted_at >= %(last_hour)s AND admitted_at < %(end)s)
) AS part GROUP BY subject
"""


class Spent(NamedTuple):
    """One counter: its key, what it is to hold, and when it may go, in Unix seconds."""

    key: str
    nanos: int
    expire_at_s: int


class _Group(NamedTuple):
    """Budgets whose spend one query answers: the same kind of subject in the same window."""

    scope: str
    start_s: int
    end_s: int


def with_time_zone(budgets: models.QuerySet[Budget]) -> models.QuerySet[Any]:
    """The budgets with `time_zone`, their team's: it says where their windows begin."""
    return budgets.annotate(
        time_zone=Coalesce("team__time_zone", "project__team__time_zone", "virtual_key__project__team__time_zone")
    )


def spent(at_s: float, budgets: models.QuerySet[Budget] | None = None) -> list[Spent]:
    """The counters of active budgets in the windows that `at_s` falls in, posted and suspense together, exact to the nano.

    Whole days (of UTC) and whole hours come from the roll-ups, which are written with the ledger in one transaction; only
    the part of an hour that a window begins or ends in is read from the ledger itself. Those with nothing spent are left out.
    """
    chosen = with_time_zone((Budget.objects.all() if budgets is None else budgets).filter(is_active=True))
    groups: defaultdict[_Group, defaultdict[UUID, list[UUID]]] = defaultdict(lambda: defaultdict(list))
    rows = chosen.values_list("pk", "scope", "window", "time_zone", "team_id", "project_id", "virtual_key_id")
    for budget_id, scope, window, time_zone, team_id, project_id, virtual_key_id in rows.iterator():
        group = _Group(scope, *window_bounds(window, time_zone, at_s))
        groups[group][team_id or project_id or virtual_key_id].append(budget_id)
    return [
        Spent(gate.spend_key(str(budget_id), group.start_s), nanos, group.end_s + COUNTER_GRACE_S)
        for group, budget_ids in groups.items()
        for subject, nanos in _spent_by_subject(group, budget_ids)
        for budget_id in budget_ids[subject]
        if nanos
    ]


def counters_of(team_id: UUID, project_id: UUID, virtual_key_id: UUID, at_s: float) -> list[gate.BudgetCounter]:
    """The counters that an attempt of these, admitted at `at_s`, is counted in."""
    subject = models.Q(team_id=team_id) | models.Q(project_id=project_id) | models.Q(virtual_key_id=virtual_key_id)
    chosen = with_time_zone(Budget.objects.filter(subject, is_active=True)).order_by("pk")
    counters = []
    for budget_id, window, time_zone in chosen.values_list("pk", "window", "time_zone"):
        start_s, end_s = window_bounds(window, time_zone, at_s)
        # What it allows is not asked of what was admitted.
        counters.append(gate.BudgetCounter(gate.spend_key(str(budget_id), start_s), 0, False, end_s))
    return counters


def _spent_by_subject(group: _Group, subjects: Iterable[UUID]) -> list[tuple[UUID, int]]:
    first_hour_s, last_hour_s = _whole(HOUR_S, group.start_s, group.end_s)
    first_day_s, last_day_s = _whole(DAY_S, first_hour_s, last_hour_s)
    parameters: dict[str, Any] = {
        "subjects": list(subjects),
        "start": _moment(group.start_s),
        "first_hour": _moment(first_hour_s),
        "first_day": _moment(first_day_s),
        "last_day": _moment(last_day_s),
        "last_hour": _moment(last_hour_s),
        "end": _moment(group.end_s),
    }
    with connection.cursor() as cursor:
        cursor.execute(_SPENT.format(subject=SUBJECT_COLUMNS[Scope(group.scope)]), parameters)
        return [(subject, int(cost_usd.scaleb(NANO_DIGITS))) for subject, cost_usd in cursor.fetchall()]


def _whole(unit_s: int, start_s: int, end_s: int) -> tuple[int, int]:
    """The part of a span that is whole units; of no length where there is none."""
    first_s = min(-(-start_s // unit_s) * unit_s, end_s)
    return first_s, max(end_s // unit_s * unit_s, first_s)


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
