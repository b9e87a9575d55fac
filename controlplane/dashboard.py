"""What was used: the questions the dashboard can be asked, and their answers as plain values. Reads only the roll-ups.

A question is what stands in the URL. Every answer is bounded by `for_user`. What is money, requests, tokens or latency of a
tag is not known by model or key: the roll-ups by tag keep team and project.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, cast
from urllib.parse import urlencode

from django.contrib.postgres.fields import ArrayField
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Aggregate, BigIntegerField, Case, CharField, F, Model, Q, QuerySet, Sum, Value, When
from django.db.models.functions import TruncMonth
from django.db.models.sql.compiler import SQLCompiler
from django.urls import reverse

from budgets.ledger_models import UsageDay, UsageHour, UsageTagDay, UsageTagHour
from budgets.rollups import HISTOGRAM_BOUNDS_MS, percentile_ms
from controlplane.periods import CUSTOM, DAY, Period, Span, midnight, parse_period
from keys.models import VirtualKey
from teams.models import Project, Team

BUCKETS = len(HISTOGRAM_BOUNDS_MS) + 1
SERIES_MAX = 7
BREAKDOWN_ROWS = 100
TOP_ROWS = 8
TAG_KEYS_MAX = 12
EXPORT_CHUNK_ROWS = 1_000
TAG_PREFIX = "tag:"
FEATURE = f"{TAG_PREFIX}feature"
ZERO = Decimal(0)
FILTERS = ("team", "project", "environment", "alias", "model", "provider", "key", "tag")
# What the list of records calls those it does not call the same.
RECORD_FILTERS = {"project": "project_id", "key": "virtual_key_id"}
NOT_WITH_TAGS = ("alias", "model", "provider", "key")
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


class Dimension(NamedTuple):
    """Something usage can be split by. `column` is that of the roll-ups; `named` the model whose rows its ids are."""

    name: str
    title: str
    titles: str
    column: str
    named: type[Model] | None = None


DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        Dimension("team", "team", "teams", "team_id", Team),
        Dimension("project", "project", "projects", "project_id", Project),
        Dimension("model", "model", "models", "model"),
        Dimension("provider", "provider", "providers", "provider"),
        Dimension("alias", "alias", "aliases", "alias"),
        Dimension("key", "virtual key", "virtual keys", "virtual_key_id", VirtualKey),
    )
}


def dimension_of(name: str) -> Dimension:
    """`team` and the like, or `tag:` and a tag key. An unknown name is that of the teams."""
    if name.startswith(TAG_PREFIX) and len(name) > len(TAG_PREFIX):
        tag_key = name.removeprefix(TAG_PREFIX)
        return Dimension(name, tag_key, "features" if name == FEATURE else f"values of {tag_key}", "tag_value")
    return DIMENSIONS.get(name, DIMENSIONS["team"])


@dataclass(frozen=True)
class Question:
    """Which usage, and how to split it. Empty is "all". `key` is a virtual key's id; `tag` is `key=value`."""

    period: Period
    team: str = ""
    project: str = ""
    environment: str = ""
    alias: str = ""
    model: str = ""
    provider: str = ""
    key: str = ""
    tag: str = ""
    by: str = "team"
    dropped: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, parameters: Mapping[str, str], today: date) -> "Question":
        """From a query string. What makes no sense is left out; `dropped` names filters that do not go with a tag."""
        given = {name: parameters.get(name, "").replace("\x00", "").strip() for name in (*FILTERS, "by")}
        for name in ("team", "project", "key"):
            given[name] = _canonical_id(given[name])
        if "=" not in given["tag"]:
            given["tag"] = ""
        dropped: tuple[str, ...] = ()
        if given["tag"] or given["by"].startswith(TAG_PREFIX):
            dropped = tuple(name for name in NOT_WITH_TAGS if given[name])
            given |= dict.fromkeys(NOT_WITH_TAGS, "")
        if given["tag"] and given["by"] not in ("project", TAG_PREFIX + given["tag"].partition("=")[0]):
            given["by"] = "team"
        period = parse_period(parameters.get("range", ""), parameters.get("from", ""), parameters.get("to", ""), today)
        return cls(period=period, dropped=dropped, **given | {"by": dimension_of(given["by"]).name})

    @property
    def dimension(self) -> Dimension:
        return dimension_of(self.by)

    @property
    def is_by_tag(self) -> bool:
        """Whether the split is by the values of a tag."""
        return self.by.startswith(TAG_PREFIX)

    @property
    def filters(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in FILTERS if getattr(self, name)}

    def query(self, **changes: str) -> str:
        """The query string of this question with other values; an empty value takes a filter away."""
        values = {"range": self.period.name, "from": "", "to": "", "by": self.by, **self.filters}
        if self.period.name == CUSTOM:
            values |= {"from": self.period.first.isoformat(), "to": self.period.last.isoformat()}
        values |= changes
        if "range" in changes and changes["range"] != CUSTOM:
            values |= {"from": "", "to": ""}
        if "team" in changes:
            values |= {"project": changes.get("project", ""), "key": changes.get("key", "")}
        return "?" + urlencode({name: value for name, value in values.items() if value})

    def narrowed_to(self, dimension: Dimension, value: str) -> str:
        """The query string for this usage of one team, model, … only."""
        if dimension.column == "tag_value":
            return self.query(tag=f"{dimension.name.removeprefix(TAG_PREFIX)}={value}", by="team")
        return self.query(**{dimension.name: value})

    def records_url(self, dimension: Dimension | None = None, value: str = "") -> str:
        """The page of the records behind this, or behind one row of it."""
        chosen = dict(self.filters)
        if dimension is not None and dimension.column == "tag_value":
            chosen["tag"] = f"{dimension.name.removeprefix(TAG_PREFIX)}={value}"
        elif dimension is not None:
            chosen[dimension.name] = value
        parameters = {RECORD_FILTERS.get(name, name): value for name, value in chosen.items()}
        for end, day in (("from", self.period.first), ("to", self.period.last + DAY)):
            parameters |= {f"admitted_at_{end}_0": day.isoformat(), f"admitted_at_{end}_1": "00:00:00"}
        return f"{reverse('admin:audit_usagerecord_changelist')}?{urlencode(parameters)}"


@dataclass(frozen=True)
class Figures:
    """Sums of usage. Errors are None where they are not known (by tag)."""

    requests: int = 0
    errors: int | None = 0
    tokens: int = 0
    cost_usd: Decimal = ZERO

    @property
    def error_rate(self) -> float | None:
        return None if self.errors is None or not self.requests else self.errors / self.requests


@dataclass(frozen=True)
class Row(Figures):
    """One team, model, … with its usage. `value` is what the roll-ups call it."""

    value: str = ""
    name: str = ""
    share: float = 0.0
    query: str = ""
    records_url: str = ""


@dataclass(frozen=True)
class Bucket(Figures):
    """One hour, day or month."""

    start: datetime | None = None


@dataclass(frozen=True)
class Series:
    """Cost of one team, model, … in each bucket."""

    name: str
    costs_usd: list[Decimal]


@dataclass(frozen=True)
class Latency:
    """Milliseconds; None where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None
    first_token_p95: float | None


class Compared(NamedTuple):
    """What was spent, and how much more or less that is than before; None where nothing was spent before."""

    cost_usd: Decimal
    before_usd: Decimal

    @property
    def change(self) -> float | None:
        return float(self.cost_usd / self.before_usd) - 1 if self.before_usd else None


class HistogramSum(Aggregate):
    """Adds histograms up bucket by bucket. To unnest them would make a row of every bucket: three times as slow."""

    output_field = ArrayField(BigIntegerField())

    def as_sql(
        self,
        compiler: SQLCompiler,
        connection: BaseDatabaseWrapper,
        function: str | None = None,
        template: str | None = None,
        arg_joiner: str | None = None,
        **extra_context: Any,
    ) -> tuple[str, tuple[str | int, ...]]:
        column, parameters = compiler.compile(self.get_source_expressions()[0])
        # A histogram ends with its last bucket that was needed: what is beyond is null.
        sums = ", ".join(f"coalesce(sum({column}[{position}]), 0)" for position in range(1, BUCKETS + 1))
        return f"ARRAY[{sums}]::bigint[]", (*parameters,) * BUCKETS


class Usage:
    """The answers to one question of one viewer, each asked when it is needed."""

    def __init__(self, viewer: Any, question: Question) -> None:
        self.viewer = viewer
        self.question = question

    # What is there to be read

    @cached_property
    def _subjects(self) -> Q:
        question, chosen = self.question, Q()
        for name in ("team", "project"):
            if getattr(question, name):
                chosen &= Q(**{f"{name}_id": getattr(question, name)})
        if question.environment:
            projects = Project.objects.for_user(self.viewer).filter(environment=question.environment)
            # As ids, not as a subquery: the planner then knows how few they are.
            chosen &= Q(project_id__in=list(projects.values_list("pk", flat=True)))
        return chosen

    def _seen(self, model: type[Model]) -> QuerySet[Any]:
        rows: Any = model._default_manager
        return cast("QuerySet[Any]", rows.for_user(self.viewer).filter(self._subjects).order_by())

    def _usage(self, model: type[UsageHour] | type[UsageDay]) -> QuerySet[Any]:
        rows = self._seen(model)
        for name in NOT_WITH_TAGS:
            if value := getattr(self.question, name):
                rows = rows.filter(**{DIMENSIONS[name].column: value})
        return rows

    def _tags(self, model: type[UsageTagHour] | type[UsageTagDay], tag_key: str) -> QuerySet[Any]:
        rows = self._seen(model).filter(tag_key=tag_key)
        key, _, value = self.question.tag.partition("=")
        return rows.filter(tag_value=value) if key == tag_key else rows

    def _rows(self, by: Dimension | None = None) -> QuerySet[Any]:
        """The rows of the period, with the `bucket` each belongs to."""
        period = self.question.period
        is_hourly = period.unit == "hour"
        bucket: Any
        if tag_key := self._tag_key(by):
            rows = self._tags(UsageTagHour if is_hourly else UsageTagDay, tag_key)
        else:
            rows = self._usage(UsageHour if is_hourly else UsageDay)
        if is_hourly:
            within, bucket = Q(hour__gte=period.span.start, hour__lt=period.span.end), F("hour")
        else:
            within = Q(day__gte=period.first, day__lte=period.last)
            bucket = TruncMonth("day") if period.unit == "month" else F("day")
        return cast("QuerySet[Any]", rows.filter(within).annotate(bucket=bucket))

    def _tag_key(self, by: Dimension | None) -> str:
        """The tag whose roll-up has the answer, or nothing."""
        if by is not None and by.column == "tag_value":
            return by.name.removeprefix(TAG_PREFIX)
        return self.question.tag.partition("=")[0]

    # Answers

    @cached_property
    def _by_bucket(self) -> dict[datetime, dict[str, Any]]:
        is_by_tag = bool(self._tag_key(None))
        sums = _sums(is_by_tag=is_by_tag)
        if not is_by_tag:
            sums |= {name: HistogramSum(f"{name}_histogram") for name in ("latency", "first_token")}
        return {_moment(row["bucket"]): row for row in self._rows().values("bucket").annotate(**sums)}

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Every bucket of the period, also the empty ones."""
        found, is_by_tag = self._by_bucket, bool(self._tag_key(None))
        return [
            Bucket(start=start, **_figures(found[start], is_by_tag)) if start in found else Bucket(start=start)
            for start in self.question.period.buckets
        ]

    @property
    def total(self) -> Figures:
        errors = [bucket.errors for bucket in self.buckets if bucket.errors is not None]
        return Figures(
            requests=sum(bucket.requests for bucket in self.buckets),
            errors=None if self._tag_key(None) else sum(errors),
            tokens=sum(bucket.tokens for bucket in self.buckets),
            cost_usd=sum((bucket.cost_usd for bucket in self.buckets), ZERO),
        )

    def breakdown(self, by: Dimension, rows_max: int = BREAKDOWN_ROWS) -> list[Row]:
        """The dearest first. Of a tag with several values per record there is none: a record has one value per key."""
        is_by_tag = bool(self._tag_key(by))
        rows = self._rows(by).values(by.column).annotate(**_sums(is_by_tag=is_by_tag))
        found = list(rows.order_by("-cost_usd", by.column)[:rows_max])
        names = names_of(by, [row[by.column] for row in found])
        whole = self.total.cost_usd
        return [
            Row(
                value=str(row[by.column]),
                name=names[row[by.column]],
                share=float(row["cost_usd"] / whole) if whole else 0.0,
                query=self.question.narrowed_to(by, str(row[by.column])),
                records_url=self.question.records_url(by, str(row[by.column])),
                **_figures(row, is_by_tag),
            )
            for row in found
        ]

    def series(self, top: Sequence[Row]) -> list[Series]:
        """Cost over time of the first of `top` (a breakdown by the question's dimension), and of all others together."""
        by, starts = self.question.dimension, self.question.period.buckets
        shown = top[:SERIES_MAX]
        group = Case(
            *(When(**{by.column: row.value}, then=Value(row.value)) for row in shown),
            default=Value(""),
            output_field=CharField(),
        )
        rows = self._rows(by).annotate(group=group).values("bucket", "group").annotate(cost_usd=Sum("cost_usd"))
        costs = {(row["group"], _moment(row["bucket"])): row["cost_usd"] for row in rows}
        series = [Series(row.name, [costs.get((row.value, start), ZERO) for start in starts]) for row in shown]
        rest = [costs.get(("", start), ZERO) for start in starts]
        return [*series, Series("Others", rest)] if any(rest) else series

    def latency(self) -> Latency:
        latency, first_token = self._histogram("latency"), self._histogram("first_token")
        return Latency(
            **{name: percentile_ms(latency, share) for name, share in PERCENTILES.items()},
            first_token_p95=percentile_ms(first_token, PERCENTILES["p95"]),
        )

    def _histogram(self, name: str) -> list[int]:
        """That of the whole period; empty by tag, where none is kept."""
        histograms = [row[name] for row in self._by_bucket.values() if name in row]
        return [sum(counts) for counts in zip(*histograms, strict=True)]

    def latency_over_time(self) -> dict[str, list[float | None]]:
        rows = [self._by_bucket.get(start, {}) for start in self.question.period.buckets]
        histograms = [row.get("latency", []) for row in rows]
        return {name: [percentile_ms(counts, share) for counts in histograms] for name, share in PERCENTILES.items()}

    def tag_keys(self) -> list[str]:
        """The tag keys in use in the period, the most spent on first."""
        rows = self._seen(UsageTagDay).filter(day__gte=self.question.period.first, day__lte=self.question.period.last)
        keys = rows.values("tag_key").annotate(cost_usd=Sum("cost_usd")).order_by("-cost_usd", "tag_key")
        return [row["tag_key"] for row in keys[:TAG_KEYS_MAX]]

    def compared(self, spans: Mapping[str, tuple[Span, Span]]) -> dict[str, Compared]:
        """What was spent in each first span, and in the second to compare it with. Two queries, however many spans."""
        tag_key = self._tag_key(None)
        days = self._tags(UsageTagDay, tag_key) if tag_key else self._usage(UsageDay)
        hours = self._tags(UsageTagHour, tag_key) if tag_key else self._usage(UsageHour)
        day_sums, hour_sums = {}, {}
        for name, pair in spans.items():
            for place, span in zip(("now", "before"), pair, strict=True):
                in_days, in_hours = _days_and_edges(span)
                if in_days:
                    day_sums[f"{name}_{place}"] = Sum("cost_usd", filter=in_days, default=ZERO)
                if in_hours:
                    hour_sums[f"{name}_{place}"] = Sum("cost_usd", filter=in_hours, default=ZERO)
        first = min(span.start for pair in spans.values() for span in pair)
        by_day = days.filter(day__gte=first.date()).aggregate(**day_sums)
        by_hour = hours.filter(_any_of(hour_sums)).aggregate(**hour_sums) if hour_sums else {}

        sums = {name: by_day.get(name, ZERO) + by_hour.get(name, ZERO) for name in by_day | by_hour}
        return {name: Compared(sums[f"{name}_now"], sums[f"{name}_before"]) for name in spans}

    def every_row(self) -> Iterator[Row]:
        """The whole breakdown, however long; read and named some rows at a time."""
        by = self.question.dimension
        rows = self._rows(by).values(by.column).annotate(**_sums(is_by_tag=bool(self._tag_key(by))))
        return (figures for _, figures in self._named(rows.order_by("-cost_usd", by.column)))

    def lines(self) -> Iterator[tuple[datetime, Row]]:
        """The whole breakdown in every bucket, in the order of time."""
        by = self.question.dimension
        rows = self._rows(by).values("bucket", by.column).annotate(**_sums(is_by_tag=bool(self._tag_key(by))))
        for row, figures in self._named(rows.order_by("bucket", "-cost_usd", by.column)):
            yield _moment(row["bucket"]), figures

    def _named(self, rows: QuerySet[Any]) -> Iterator[tuple[Mapping[str, Any], Row]]:
        by = self.question.dimension
        is_by_tag, source = bool(self._tag_key(by)), rows.iterator(chunk_size=EXPORT_CHUNK_ROWS)
        while chunk := list(islice(source, EXPORT_CHUNK_ROWS)):
            names = names_of(by, {row[by.column] for row in chunk})
            for row in chunk:
                value = row[by.column]
                yield row, Row(value=str(value), name=names[value], **_figures(row, is_by_tag))


def names_of(by: Dimension, values: Iterable[Any]) -> dict[Any, str]:
    """What people call them. A row that is gone keeps its id for a name."""
    values = list(values)
    if by.named is None:
        return {value: str(value) or "(none)" for value in values}
    rows = by.named._default_manager.select_related(*(["team"] if by.named is Project else [])).in_bulk(values)
    return {value: _called(rows.get(value, value)) for value in values}


def _called(row: Any) -> str:
    # Projects of different teams are often called the same.
    return f"{row} ({row.team})" if isinstance(row, Project) else str(row)


def _canonical_id(text: str) -> str:
    try:
        return str(uuid.UUID(text)) if text else ""
    except ValueError:
        return ""


def _sums(*, is_by_tag: bool) -> dict[str, Any]:
    if is_by_tag:
        return {name: Sum(name) for name in ("requests", "tokens", "cost_usd")}
    sums = {name: Sum(name) for name in ("requests", "errors", "cost_usd")}
    return sums | {"tokens": Sum("input_tokens") + Sum("output_tokens")}


def _figures(row: Mapping[str, Any], is_by_tag: bool) -> dict[str, Any]:
    return {
        "requests": int(row["requests"]),
        "errors": None if is_by_tag else int(row["errors"]),
        "tokens": int(row["tokens"]),
        "cost_usd": row["cost_usd"],
    }


def _moment(bucket: date | datetime) -> datetime:
    return bucket if isinstance(bucket, datetime) else midnight(bucket)


def _days_and_edges(span: Span) -> tuple[Q, Q]:
    """Which rows by day, and which by hour at either end, make up the span; an empty Q is none."""
    first_day, last_day = midnight(span.start.date()), midnight(span.end.date())
    if first_day < span.start:
        first_day += DAY
    if first_day >= last_day:
        return Q(), Q(hour__gte=span.start, hour__lt=span.end)
    edges = Q()
    if span.start < first_day:
        edges |= Q(hour__gte=span.start, hour__lt=first_day)
    if last_day < span.end:
        edges |= Q(hour__gte=last_day, hour__lt=span.end)
    return Q(day__gte=first_day.date(), day__lt=last_day.date()), edges


def _any_of(sums: Mapping[str, Any]) -> Q:
    chosen = Q()
    for part in sums.values():
        chosen |= part.filter
    return chosen
