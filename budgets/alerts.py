"""When to alert, and in which words: thresholds crossed, budgets that run out at their recent pace, waits between the tries of a
delivery. Values in, values out.
"""

from collections.abc import Iterable
from datetime import datetime
from math import exp2
from zoneinfo import ZoneInfo

import msgspec

from budgets.caps import WHOLE_PERCENT

# A cap is never passed, and what fits last leaves something: so nearly the whole cap is the whole.
NEARLY_WHOLE_PERCENT = 99
# What is held goes back and forth: a threshold is behind us when so many points of the amount lie between.
RECOVERY_POINTS = 5

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
# Of a window so much goes into the pace: of a day an hour, of a month thirty.
HALF_LIVES_PER_WINDOW = 24
HALF_LIFE_MIN_S = 150
HALF_LIFE_MAX_S = 7 * DAY_S
# A budget of all time runs out some day: worth an alert when that is near.
HORIZON_S = 14 * DAY_S
# It runs out when so much of what is left of the window is left without money; it lasts when nothing is. In between it stays
# what it was, so that nobody hears of every change of the wind.
MARGIN = 0.05

FIRST_WAIT_S = 10.0
WAIT_MAX_S = HOUR_S
# The last try is some three hours after the first.
TRIES_MAX = 12


def crossed(used: int, amount: int, percents: Iterable[int], *, refuses_at: int | None) -> list[int]:
    """Those of `percents`, and the whole, that `used` has reached of `amount`; the lowest first. Of nothing, anything is all.
    The whole is always worth an alert, whatever thresholds there are. `refuses_at` is the percentage that is never passed."""
    return [percent for percent in sorted({*percents, WHOLE_PERCENT}) if _reached(used, amount, percent, refuses_at)]


def is_behind(used: int, amount: int, percent: int) -> bool:
    """Whether a threshold that was crossed no longer is, by a margin."""
    return used <= 0 or used * 100 < amount * (percent - RECOVERY_POINTS)


def still_refuses(left: int, refused_left: int, amount: int) -> bool:
    """Whether what was refused with `refused_left` most likely still is: no more is left, or not by a margin."""
    return left * 100 < refused_left * 100 + amount * RECOVERY_POINTS


def _reached(used: int, amount: int, percent: int, refuses_at: int | None) -> bool:
    of_it = NEARLY_WHOLE_PERCENT if percent == refuses_at else WHOLE_PERCENT
    return used > 0 and used * 100 * WHOLE_PERCENT >= amount * percent * of_it


class Pace(msgspec.Struct, frozen=True, array_like=True):
    """How fast a counter grows. `weighted` is a moving average in units per second, in which what was before `since_s` counts as
    nothing."""

    since_s: float
    at_s: float
    used: int
    weighted: float = 0.0


def half_life_s(start_s: float, end_s: float) -> float:
    """In so many seconds what was spent counts half as much for the pace of this window."""
    return min(max((end_s - start_s) / HALF_LIVES_PER_WINDOW, HALF_LIFE_MIN_S), HALF_LIFE_MAX_S)


def moved(pace: Pace | None, used: int, at_s: float, half_life: float) -> Pace:
    """The pace after another look at the counter. What was held and is given back counts against it."""
    if pace is None:
        return Pace(at_s, at_s, used)
    passed_s = at_s - pace.at_s
    if passed_s <= 0:
        return pace
    kept = exp2(-passed_s / half_life)
    per_second = (used - pace.used) / passed_s
    return Pace(pace.since_s, at_s, used, pace.weighted * kept + per_second * (1 - kept))


def runs_out_at_s(pace: Pace, amount: int, half_life: float) -> float | None:
    """When nothing is left at this pace. None where it never is, or while there is too little to go by: less than a half-life."""
    seen_s = pace.at_s - pace.since_s
    if seen_s < half_life:
        return None
    per_second = pace.weighted / (1 - exp2(-seen_s / half_life))
    if per_second <= 0:
        return None
    return pace.at_s + max(0, amount - pace.used) / per_second


def runs_out(at_s: float | None, now_s: float, end_s: float) -> bool | None:
    """Whether a budget that has nothing left `at_s` runs out before its window ends; None: too close to say anything new."""
    end_s = min(end_s, now_s + HORIZON_S)
    if at_s is None or at_s >= end_s:
        return False
    return True if at_s < end_s - (end_s - now_s) * MARGIN else None


def wait_s(tries: int, fraction: float) -> float:
    """How long to wait after so many failed tries: twice as long each time, and `fraction` (0 to 1, random) of the half of it,
    so that those that failed together do not come back together."""
    longest = min(FIRST_WAIT_S * exp2(tries - 1), WAIT_MAX_S)
    return longest * (0.5 + 0.5 * fraction)


def moment_text(at_s: float, time_zone: str) -> str:
    """`Thursday 14:00`, with the date, in the budget's time zone."""
    return f"{datetime.fromtimestamp(at_s, ZoneInfo(time_zone)):%A %Y-%m-%d %H:%M} ({time_zone})"
