"""Filters of admin lists that an index answers: an exact word, a tag, a period."""

import datetime
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import FieldTextFilter, RangeDateTimeFilter, TextFilter


class ExactFilter(FieldTextFilter):  # type: ignore[misc]
    """The whole word, as it is written. To look within words would read every row."""

    def __init__(self, field: Any, request: HttpRequest, params: Any, *place: Any, **named: Any) -> None:
        super().__init__(field, request, params, *place, **named)
        self.lookup_kwarg = self.field_path
        self.lookup_val = params.pop(self.field_path, None)
        if self.value():
            self.used_parameters[self.field_path] = [self.value().strip()]


class TagFilter(TextFilter):  # type: ignore[misc]
    """One tag, as `feature=search`, of rows that have `tags`."""

    title = "tag (key=value)"
    parameter_name = "tag"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        key, separator, value = (self.value() or "").strip().partition("=")
        return queryset.filter(tags__contains={key: value}) if separator else queryset


class PeriodFilter(RangeDateTimeFilter):  # type: ignore[misc]
    """From one moment on, and before another, in UTC. A date without a time is its midnight."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        bounds = {f"{self.parameter_name}__gte": self._moment("from"), f"{self.parameter_name}__lt": self._moment("to")}
        return queryset.filter(**{lookup: moment for lookup, moment in bounds.items() if moment is not None})

    def _moment(self, end: str) -> datetime.datetime | None:
        day = self.used_parameters.get(f"{self.parameter_name}_{end}_0")
        clock = self.used_parameters.get(f"{self.parameter_name}_{end}_1") or "00:00"
        if not day:
            return None
        try:
            return datetime.datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=datetime.UTC)
        except ValueError as error:
            raise IncorrectLookupParameters(error) from error
