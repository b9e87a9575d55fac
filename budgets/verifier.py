"""The verifier: each minute it looks whether all copies of the same money agree, and puts on record what does not.

Records are compared with their roll-ups by the hour: those hours that have changed since it last looked, those that differed
then, and some of the others, so that every hour comes round; after a run that took long, less often. Budget counters and suspense are compared at each run. It repairs
nothing: what differs has a cause, and whoever looks for it wants to see it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import redis
from django.db import connection, transaction
from django.db.models import Min
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from audit.models import UsageRecord
from budgets import balance, ledger
from budgets.comparison import HOUR, Difference, compare_day, compare_hour
from budgets.ledger_models import Drift, UsageHour, Verification

log = logging.getLogger(__name__)

VERIFIER = Actor.system("verifier")
# A counter is told to differ when it does so twice: a budget that is new, or a Redis that lost its last second, is set right
# within that time.
CONFIRM_S = 2.0
# What the sweep over all hours may take of each run.
SWEEP_S = 3.0
# How often as long as comparing took no hours are compared after it began: an hour of millions of records takes a tenth of the time
# at most, and usual ones are compared each minute.
REST = 10
RUNS_KEPT = timedelta(days=31)
OPENED_MAX = 100
# What is compared at one moment as a whole, and not by the hour.
BALANCED = (Drift.Kind.COUNTERS, Drift.Kind.SUSPENSE)


class Taken(Exception):
    """Another process is verifying."""


class Compared(NamedTuple):
    """What a run found in the hours and days of the ledger that it compared, and where the sweep and the next run go on."""

    differences: list[Difference]
    hours: set[datetime]
    days: set[datetime]
    swept_until: datetime | None
    rests_until: datetime | None


def verify(
    client: redis.Redis,
    *,
    sweep_s: float = SWEEP_S,
    confirm_s: float = CONFIRM_S,
    sleep: Callable[[float], None] = time.sleep,
    may_rest: bool = True,
) -> Verification:
    """One run. Raises `Taken` or OperationalError; where Redis does not answer, the ledger is compared all the same."""
    with _alone():
        started_s, now = time.monotonic(), timezone.now()
        last = Verification.objects.order_by("-at").first() or Verification()
        if may_rest and last.rests_until is not None and last.rests_until > now:
            compared = Compared([], set(), set(), last.swept_until, last.rests_until)
        else:
            compared = _compare_hours(last.swept_until, now, sweep_s)
        differences = compared.differences
        balanced = _balance(client, confirm_s, sleep)
        looked_at = {f"{hour:%Y-%m-%d %H:00}" for hour in compared.hours} | {f"{day:%Y-%m-%d}" for day in compared.days}
        if balanced is not None:
            differences += balanced.differences
        with transaction.atomic():
            open_drifts = _record(differences, looked_at, has_balance=balanced is not None)
            Verification.objects.filter(at__lt=now - RUNS_KEPT).delete()
            return Verification.objects.create(
                at=now,
                took_ms=round((time.monotonic() - started_s) * 1000),
                hours=len(compared.hours),
                counters=None if balanced is None else balanced.counters,
                drifts=open_drifts,
                swept_until=compared.swept_until,
                rests_until=compared.rests_until,
            )


def _compare_hours(swept_until: datetime | None, now: datetime, sweep_s: float) -> Compared:
    """Those that call for it, then others from where the last sweep ended for as long as `sweep_s` lasts, and all their days."""
    started_s = time.monotonic()
    differences: list[Difference] = []
    hours = set(_hours_to_compare())
    for hour in sorted(hours):
        differences += compare_hour(hour)
    for hour in _following(swept_until, now):
        if time.monotonic() - started_s > sweep_s:
            break
        swept_until = hour + HOUR
        if hour not in hours:
            differences += compare_hour(hour)
            hours.add(hour)
    else:
        swept_until = None  # Round it goes.
    days = {hour.replace(hour=0) for hour in hours}
    for day in sorted(days):
        differences += compare_day(day)
    took = timedelta(seconds=time.monotonic() - started_s)
    return Compared(differences, hours, days, swept_until, now + took * REST)


@contextmanager
def _alone() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext('budgets.verify'))")
        if not cursor.fetchone()[0]:
            raise Taken
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtext('budgets.verify'))")


def _balance(client: redis.Redis, confirm_s: float, sleep: Callable[[float], None]) -> balance.Balance | None:
    try:
        first = balance.compare(client)
        if first is None or not first.differences:
            return first
        sleep(confirm_s)
        second = balance.compare(client)
    except (redis.RedisError, ledger.Taken) as error:
        log.warning("counters are not compared: %s", error or type(error).__name__)
        return None
    if second is None:
        return None
    before = {(difference.kind, difference.what) for difference in first.differences}
    return second._replace(differences=[d for d in second.differences if (d.kind, d.what) in before])


def _hours_to_compare() -> list[datetime]:
    """Those that have changed, and those that differed. What is taken off the list and not compared, since this process dies,
    the sweep finds."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM budgets_touchedhour RETURNING hour")
        touched = {hour for (hour,) in cursor.fetchall()}
    of_rollups = Drift.objects.filter(closed_at=None).exclude(kind__in=BALANCED)
    return sorted(touched | {_moment_of(what) for what in of_rollups.values_list("what", flat=True)})


def _moment_of(what: str) -> datetime:
    """When the row of a roll-up is of: the hour, or the day's first."""
    name = what.partition(",")[0]
    return datetime.strptime(name, "%Y-%m-%d %H:%M" if " " in name else "%Y-%m-%d").replace(tzinfo=UTC)


def _following(since: datetime | None, now: datetime) -> Iterator[datetime]:
    """Every hour from `since`, or from the first of the ledger, until now."""
    if since is None:
        firsts = (
            UsageRecord.objects.aggregate(first=Min("admitted_at"))["first"],
            UsageHour.objects.aggregate(first=Min("hour"))["first"],
        )
        since = min((first for first in firsts if first is not None), default=now)
    hour = since.replace(minute=0, second=0, microsecond=0)
    while hour <= now:
        yield hour
        hour += HOUR


def _record(differences: Iterable[Difference], looked_at: set[str], *, has_balance: bool) -> int:
    """Open what differs newly, close what agrees again, each with an audit entry; how many are open."""
    now = timezone.now()
    found = {(difference.kind, difference.what): difference for difference in differences}
    present = {(drift.kind, drift.what): drift for drift in Drift.objects.filter(closed_at=None)}
    for key, drift in present.items():
        if key in found:
            drift.expected, drift.found, drift.unit = found[key].expected, found[key].found, found[key].unit
            drift.seen_at = now
            drift.save(update_fields=["expected", "found", "unit", "seen_at"])
        elif has_balance if drift.kind in BALANCED else drift.what.partition(",")[0] in looked_at:
            drift.closed_at = now
            drift.save(update_fields=["closed_at"])
            audit.record(VERIFIER, "close", drift)
    new = [difference for key, difference in found.items() if key not in present]
    for difference in new[:OPENED_MAX]:
        drift = Drift.objects.create(**difference._asdict(), opened_at=now, seen_at=now)
        log.error("drift of %s: %s: %s, expected %d, found %d", *difference)
        audit.record(VERIFIER, "open", drift, after=audit.describe(drift))
    return Drift.objects.filter(closed_at=None).count()
