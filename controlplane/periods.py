"""The dashboard's ranges of time: whole days of UTC, as invoices and the roll-ups are cut. The clock is passed in."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

RANGES = {
    "today": "Today",
    "yesterday": "Yesterday",
    "7d": "7 days",
    "30d": "30 days",
    "month": "This month",
    "last-month": "Last month",
}
CUSTOM = "custom"
DEFAULT = "30d"
HOURLY_DAYS_MAX = 2
DAILY_DAYS_MAX = 92
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class Span(NamedTuple):
    """`start` inclusive, `end` exclusive; both on the hour."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Period:
    """The days from `first` to `last`, both included."""

    name: str
    first: date
    last: date

    @property
    def span(self) -> Span:
        return Span(midnight(self.first), midnight(self.last + DAY))

    @property
    def unit(self) -> str:
        """How finely it is drawn: hour, day or month."""
        days = (self.last - self.first).days + 1
        if days <= HOURLY_DAYS_MAX:
            return "hour"
        return "day" if days <= DAILY_DAYS_MAX else "month"

    @property
    def buckets(self) -> list[datetime]:
        """The start of each hour, day or month in it."""
        start, end = self.span
        if self.unit == "month":
            first, months = self.first.replace(day=1), []
            while first <= self.last:
                months.append(midnight(first))
                first = next_month(first)
            return months
        step = HOUR if self.unit == "hour" else DAY
        return [start + step * index for index in range((end - start) // step)]

    @property
    def label(self) -> str:
        if self.first == self.last:
            return f"{self.first:%d %b %Y}"
        return f"{self.first:%d %b %Y} to {self.last:%d %b %Y}"

    def so_far(self, now: datetime) -> Span:
        """What has passed of it, to the end of the hour that runs."""
        start, end = self.span
        return Span(start, max(start, min(end, _hour_after(now))))

    def before(self, now: datetime) -> Span:
        """As much time as has passed of it, one period earlier. A whole month is compared with a whole month."""
        start, end = self.so_far(now)
        if self.name in ("month", "last-month"):
            earlier = midnight((self.first - DAY).replace(day=1))
            is_over = end == self.span.end
            return Span(earlier, start if is_over else min(earlier + (end - start), start))
        shift = self.span.end - self.span.start
        return Span(start - shift, end - shift)


def parse_period(name: str, first: str, last: str, today: date) -> Period:
    """What a URL asks for; nonsense is the default. `first` and `last` are ISO dates, and count where `name` is custom."""
    if name == CUSTOM:
        try:
            days = sorted((date.fromisoformat(first), date.fromisoformat(last)))
            # Nobody's ledger is older; and dates at the ends of the calendar cannot be shifted.
            if days[0].year >= 2000 and days[1].year <= today.year + 1:
                return Period(CUSTOM, *days)
        except ValueError:
            pass
    return named_period(name if name in RANGES else DEFAULT, today)


def named_period(name: str, today: date) -> Period:
    this_month = today.replace(day=1)
    match name:
        case "today":
            days = (today, today)
        case "yesterday":
            days = (today - DAY, today - DAY)
        case "7d":
            days = (today - 6 * DAY, today)
        case "month":
            days = (this_month, today)
        case "last-month":
            days = ((this_month - DAY).replace(day=1), this_month - DAY)
        case _:
            days = (today - 29 * DAY, today)
    return Period(name, *days)


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def next_month(first: date) -> date:
    return (first + 31 * DAY).replace(day=1)


def _hour_after(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0) + HOUR
