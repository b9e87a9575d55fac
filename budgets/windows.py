"""Calendar windows of budgets: which hour, day or month a moment falls in. No clock: the moment is passed in.

There is no job that resets a budget: the start of the window is part of the counter's name.
"""

from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

HOUR_S = 3600

# The last answer per (window, zone). Nearly all questions are about now, so nearly all find theirs here.
_latest: dict[tuple[str, str], tuple[int, int]] = {}


def window_bounds(window: str, time_zone: str, at_s: float) -> tuple[int, int]:
    """(start, end) in Unix seconds of the window that `at_s` falls in: start inclusive, end exclusive.

    `window` is hour, day or month on the calendar of the IANA zone. A day starts at the first moment of its date and so has
    23 or 25 hours where the clock changes. Hours are counted from the start of the day: they begin with the zone's clock
    (at :30 UTC in Kolkata) and still neither overlap nor leave a gap where it changes by half an hour.

    Raises `ValueError` for an unknown window, `zoneinfo.ZoneInfoNotFoundError` (a `KeyError`) for an unknown zone.
    """
    bounds = _latest.get((window, time_zone))
    if bounds is None or not bounds[0] <= at_s < bounds[1]:
        bounds = _latest[window, time_zone] = _compute(window, time_zone, at_s)
    return bounds


def _compute(window: str, time_zone: str, at_s: float) -> tuple[int, int]:
    zone = _zone(time_zone)
    today = datetime.fromtimestamp(at_s, zone).date()
    match window:
        case "hour":
            day_start, day_end = _starts_of(today, today + timedelta(days=1), zone)
            start = day_start + (int(at_s) - day_start) // HOUR_S * HOUR_S
            return start, min(start + HOUR_S, day_end)
        case "day":
            return _starts_of(today, today + timedelta(days=1), zone)
        case "month":
            first = today.replace(day=1)
            return _starts_of(first, (first + timedelta(days=31)).replace(day=1), zone)
        case _:
            raise ValueError(f"unknown window {window!r}: hour, day and month are known")


def _starts_of(first: date, after: date, zone: ZoneInfo) -> tuple[int, int]:
    return _start_of(first, zone), _start_of(after, zone)


def _start_of(day: date, zone: ZoneInfo) -> int:
    """The first moment of a date. Where the clock skips midnight, that is the moment of the change (fold 0 says so)."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


@lru_cache(maxsize=1024)
def _zone(time_zone: str) -> ZoneInfo:
    return ZoneInfo(time_zone)
