"""Sums of usage: which a caller asks for, and their reading from the roll-ups. Exact; bounded by what the caller may see.

A tag is summed by team and project only: of a tag and a model together the roll-ups know nothing.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import DateField, F, Q, QuerySet, Sum
from django.db.models.functions import TruncDate, TruncMonth

from budgets.ledger_models import UsageDay, UsageHour, UsageTagDay, UsageTagHour

DAY = timedelta(days=1)
DEFAULT_DAYS = 30
HOURLY_DAYS_MAX = 92
DAILY_DAYS_MAX = 3_660
YEAR_MIN, YEAR_MAX = 2000, 2999
TAG_PREFIX = "tag:"
TIMES = ("hour", "day", "month")


class InvalidQuestion(ValueError):
    """`field` is the parameter that is wrong; the message says how it is written."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Dimension(NamedTuple):
    """Something usage is grouped by: its column, how its values are read back, and whether tags are summed by it too."""

    column: str
    parse: Callable[[str], Any]
    goes_with_tags: bool


DIMENSIONS = {
    "hour": Dimension("hour", datetime.fromisoformat, True),
    "day": Dimension("day", date.fromisoformat, True),
    "month": Dimension("month", date.fromisoformat, True),
    "team": Dimension("team_id", UUID, True),
    "project": Dimension("project_id", UUID, True),
    "virtual_key": Dimension("virtual_key_id", UUID, False),
    "alias": Dimension("alias", str, False),
    "model": Dimension("model", str, False),
    "provider": Dimension("provider", str, False),
    "tag": Dimension("tag_value", str, True),
}
FILTERS = ("team", "project", "virtual_key", "alias", "model", "provider")
_SUMS = (
    "requests",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_usd",
    "saved_usd",
    "shadow_cost_usd",
)
_TAG_SUMS = ("requests", "tokens", "cost_usd")


@dataclass(frozen=True)
class Question:
    """Which usage (`start` inclusive, `end` exclusive, both on the hour) and what it is grouped by."""

    start: datetime
    end: datetime
    group_by: tuple[str, ...] = ()
    filters: tuple[tuple[str, Any], ...] = ()
    tag_key: str = ""
    tag_value: str | None = None

    @classmethod
    def parse(cls, parameters: Mapping[str, Any], now: datetime) -> "Question":
        """From typed parameters. Raises `InvalidQuestion`."""
        end = _utc(parameters, "end") or _midnight(now) + DAY
        start = _utc(parameters, "start") or end - DEFAULT_DAYS * DAY
        group_by, grouped_tag = _group_by(parameters.get("group_by", ""))
        tag_key, equals, tag_value = parameters.get("tag", "").partition("=")
        if "tag" in parameters and not (tag_key and equals):
            raise InvalidQuestion("tag", "Write it as key=value.")
        if grouped_tag and tag_key and grouped_tag != tag_key:
            raise InvalidQuestion("tag", "Filter by the tag that is grouped by, or by none.")
        question = cls(
            start=start,
            end=end,
            group_by=group_by,
            filters=tuple((name, parameters[name]) for name in FILTERS if name in parameters),
            tag_key=grouped_tag or tag_key,
            tag_value=tag_value if equals else None,
        )
        question.check()
        return question

    def check(self) -> None:
        for name, moment in (("start", self.start), ("end", self.end)):
            if moment.minute or moment.second or moment.microsecond:
                raise InvalidQuestion(name, "Usage is summed by the hour: name a full one.")
        if self.start >= self.end:
            raise InvalidQuestion("end", "The end is after the start.")
        days_max = HOURLY_DAYS_MAX if self.is_hourly else DAILY_DAYS_MAX
        if self.end - self.start > days_max * DAY:
            raise InvalidQuestion(
                "start", f"At most {HOURLY_DAYS_MAX} days by the hour, {DAILY_DAYS_MAX} by whole days."
            )
        if not self.tag_key:
            return
        for name in self.group_by:
            if not DIMENSIONS[name].goes_with_tags:
                raise InvalidQuestion("group_by", f"Tags are summed by team and project, not by {name}.")
        for name, _ in self.filters:
            if not DIMENSIONS[name].goes_with_tags:
                raise InvalidQuestion(name, "Tags are summed by team and project only.")

    @property
    def is_hourly(self) -> bool:
        """Whether the hours are to be read: the days answer for whole days (UTC) only."""
        return "hour" in self.group_by or self.start != _midnight(self.start) or self.end != _midnight(self.end)


def rows_after(viewer: Any, question: Question, last: Sequence[Any] | None, rows_max: int) -> list[dict[str, Any]]:
    """The groups in the order of `group_by`, those after the values `last`; without grouping one row, of all there is."""
    rows, columns = _rows(viewer, question)
    sums = _TAG_SUMS if question.tag_key else _SUMS
    totals = {f"total_{name}": Sum(name, default=0) for name in sums}
    if not columns:
        return [_shown(question, rows.aggregate(**totals))]
    rows = rows.annotate(**columns)
    if last is not None:
        rows = rows.filter(_after(list(columns), last))
    rows = rows.values(*columns).annotate(**totals).order_by(*columns)
    return [_shown(question, row) for row in rows[:rows_max]]


def encode_cursor(question: Question, row: Mapping[str, Any]) -> str:
    values = [row[name] if isinstance(row[name], str) else _text(row[name]) for name in question.group_by]
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


def decode_cursor(question: Question, cursor: str) -> list[Any]:
    """The values of the last group seen. Raises `InvalidQuestion`."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor))
        pairs = zip(question.group_by, values, strict=True)
        return [DIMENSIONS[name].parse(value) for name, value in pairs]
    except (binascii.Error, ValueError, TypeError, AttributeError):
        raise InvalidQuestion("cursor", "This cursor is of another question.") from None


def _group_by(text: str) -> tuple[tuple[str, ...], str]:
    """The dimensions, `tag` for a tag; and its key."""
    names, tag_key = [], ""
    for part in filter(None, (part.strip() for part in text.split(","))):
        name = part
        if part.startswith(TAG_PREFIX):
            if tag_key:
                raise InvalidQuestion("group_by", "One tag at a time.")
            name, tag_key = "tag", part.removeprefix(TAG_PREFIX)
        if name not in DIMENSIONS or (name == "tag" and not tag_key):
            raise InvalidQuestion("group_by", f"Any of {', '.join(DIMENSIONS)}; a tag as tag:KEY.")
        if name in names:
            raise InvalidQuestion("group_by", f"{name} stands there twice.")
        names.append(name)
    if len(set(names).intersection(TIMES)) > 1:
        raise InvalidQuestion("group_by", f"One of {', '.join(TIMES)} at a time.")
    return tuple(names), tag_key


def _rows(viewer: Any, question: Question) -> tuple[QuerySet[Any], dict[str, Any]]:
    """The roll-up's rows in question, and the expressions that group them."""
    model: Any
    if question.is_hourly:
        model, time = (UsageTagHour if question.tag_key else UsageHour), "hour"
        span: tuple[date, date] = question.start, question.end
    else:
        model, time = (UsageTagDay if question.tag_key else UsageDay), "day"
        span = question.start.date(), question.end.date()
    rows = model.objects.for_user(viewer).filter(**{f"{time}__gte": span[0], f"{time}__lt": span[1]}).order_by()
    rows = rows.filter(**{DIMENSIONS[name].column: value for name, value in question.filters})
    if question.tag_key:
        rows = rows.filter(tag_key=question.tag_key)
    if question.tag_value is not None:
        rows = rows.filter(tag_value=question.tag_value)
    return rows, {f"group_{name}": _expression(name, time) for name in question.group_by}


def _expression(name: str, time: str) -> Any:
    if name == "month":
        return TruncMonth(time, output_field=DateField(), **_zone(time))
    if name == "day" and time == "hour":
        return TruncDate(time, **_zone(time))
    return F(DIMENSIONS[name].column)


def _zone(time: str) -> dict[str, Any]:
    return {"tzinfo": UTC} if time == "hour" else {}


def _after(columns: Sequence[str], last: Sequence[Any]) -> Q:
    """Greater than `last`, compared value by value from the left."""
    after = Q(pk__in=[])
    for index, column in enumerate(columns):
        same = dict(zip(columns[:index], last[:index], strict=True))
        after |= Q(**same, **{f"{column}__gt": last[index]})
    return after


def _shown(question: Question, row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: row[f"group_{name}"] for name in question.group_by}
    sums: dict[str, Any] = {name: row.get(f"total_{name}") for name in (*_SUMS, "tokens")}
    if sums["tokens"] is None:
        sums["tokens"] = sums["input_tokens"] + sums["output_tokens"]
    return shown | sums


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def _utc(parameters: Mapping[str, Any], name: str) -> datetime | None:
    """A moment of this era: dates at the ends of the calendar cannot be shifted."""
    moment: datetime | None = parameters.get(name)
    if moment is not None and not YEAR_MIN <= moment.year <= YEAR_MAX:
        raise InvalidQuestion(name, f"A moment from {YEAR_MIN} to {YEAR_MAX}.")
    return moment and moment.astimezone(UTC)


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
