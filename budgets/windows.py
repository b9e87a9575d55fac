"""Windows of budgets: which hour, day, week, month, quarter or year a moment falls in. No clock: the moment is passed in.

There is no job that resets a budget: the start of the window is part of the counter's name.
"""

from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

HOUR_S = 3600
# The end of what has none, the year 5138: as large as Redis and the calendar take it.
FOREVER_S = 100_000_000_000

# The last answer per (window, zone, fiscal month). Nearly all questions are about now, so nearly all find theirs here.
_latest: dict[tuple[str, str, int], tuple[int, int]] = {}


def window_bounds(
    window: str,
    time_zone: str,
    at_s: float,
    *,
    fiscal_month: int = 1,
    starts_at_s: float | None = None,
    ends_at_s: float | None = None,
) -> tuple[int, int]:
    """(start, end) in Unix seconds of the window that `at_s` falls in: start inclusive, end exclusive.

    `window` is hour, day, week (from Monday), month, quarter or year on the calendar of the IANA zone, a year beginning with
    `fiscal_month`; or total, all time. A fixed one is from `starts_at_s` to `ends_at_s`, and `at_s` may lie outside of it.

    A day starts at the first moment of its date and so has 23 or 25 hours where the clock changes. Hours are counted from the
    start of the day: they begin with the zone's clock (at :30 UTC in Kolkata) and still neither overlap nor leave a gap where
    it changes by half an hour.

    Raises `ValueError` for an unknown window, `zoneinfo.ZoneInfoNotFoundError` (a `KeyError`) for an unknown zone.
    """
    if window == "fixed":
        return int(starts_at_s or 0), FOREVER_S if ends_at_s is None else int(ends_at_s)
    if window == "total":
        return 0, FOREVER_S
    bounds = _latest.get((window, time_zone, fiscal_month))
    if bounds is None or not bounds[0] <= at_s < bounds[1]:
        bounds = _latest[window, time_zone, fiscal_month] = _compute(window, time_zone, at_s, fiscal_month)
    return bounds


def _compute(window: str, time_zone: str, at_s: float, fiscal_month: int) -> tuple[int, int]:
    zone = _zone(time_zone)
    today = datetime.fromtimestamp(at_s, zone).date()
    match window:
        case "hour":
            day_start, day_end = _starts_of(today, today + timedelta(days=1), zone)
            start = day_start + (int(at_s) - day_start) // HOUR_S * HOUR_S
            return start, min(start + HOUR_S, day_end)
        case "day":
            return _starts_of(today, today + timedelta(days=1), zone)
        case "week":
            monday = today - timedelta(days=today.weekday())
            return _starts_of(monday, monday + timedelta(days=7), zone)
        case "month" | "quarter" | "year":
            months = _MONTHS[window]
            first = _months_later(today, -((today.month - fiscal_month) % months))
            return _starts_of(first, _months_later(first, months), zone)
        case _:
            raise ValueError(f"unknown window {window!r}")


_MONTHS = {"month": 1, "quarter": 3, "year": 12}


def _months_later(day: date, months: int) -> date:
    """The first of the month that is so many months after that of `day`."""
    month = day.year * 12 + day.month - 1 + months
    return date(month // 12, month % 12 + 1, 1)


def _starts_of(first: date, after: date, zone: ZoneInfo) -> tuple[int, int]:
    return _start_of(first, zone), _start_of(after, zone)


def _start_of(day: date, zone: ZoneInfo) -> int:
    """The first moment of a date. Where the clock skips midnight, that is the moment of the change (fold 0 says so)."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


@lru_cache(maxsize=1024)
def _zone(time_zone: str) -> ZoneInfo:
    return ZoneInfo(time_zone)
