"""What every endpoint here has in common: rows bounded by what the caller may see, writes through the audited services,
nothing taken that is not named. Who calls, and what they may do, is decided in `controlplane/api.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import django_filters
from django import forms
from django.db import models
from django_filters.rest_framework import DjangoFilterBackend, FilterSet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import mixins, serializers
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.fields import empty
from rest_framework.pagination import CursorPagination
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from audit import services
from audit.actors import Actor
from audit.querysets import READERS, WRITERS

PAGE_SIZE = 50
PAGE_SIZE_MAX = 200
REASON_HEADER = "X-Audit-Reason"
REASON_LENGTH_MAX = 2_000
NOT_WRITABLE = "This is not a field that can be written."


class Pages(CursorPagination):
    """Newest first. The cursor names the last row seen, so a page costs the same wherever it is."""

    page_size = PAGE_SIZE
    page_size_query_param = "page_size"
    max_page_size = PAGE_SIZE_MAX
    ordering = "-id"

    def get_page_size(self, request: Request) -> int:
        return page_size(request)

    def decode_cursor(self, request: Request) -> Any:
        try:
            return super().decode_cursor(request)
        except NotFound as error:
            raise ValidationError({"cursor": "This is no cursor of a list."}) from error

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            if parameter["name"] == self.page_size_query_param:
                parameter["schema"] |= {"minimum": 1, "maximum": PAGE_SIZE_MAX, "default": PAGE_SIZE}
        return parameters


def page_size(request: Request) -> int:
    """As asked for. Raises ValidationError for what is no size, rather than answering another question."""
    text = request.query_params.get("page_size", str(PAGE_SIZE))
    if text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= PAGE_SIZE_MAX:
        return int(text)
    raise ValidationError({"page_size": f"A whole number from 1 to {PAGE_SIZE_MAX}."})


@extend_schema_field(OpenApiTypes.BOOL)
class TrueOrFalse(django_filters.TypedChoiceFilter):  # type: ignore[misc]
    """`true` or `false`, and nothing that is taken for neither."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        choices = [("true", "true"), ("false", "false")]
        super().__init__(*args, choices=choices, coerce=lambda text: text == "true", **kwargs)


class WholeNumber(django_filters.NumberFilter):  # type: ignore[misc]
    field_class = forms.IntegerField


class ApiFilterSet(FilterSet):  # type: ignore[misc]
    """Related rows are named by id, and not looked up: whether a stranger's row exists is not told."""

    FILTER_DEFAULTS: ClassVar[dict[Any, Any]] = {
        **FilterSet.FILTER_DEFAULTS,
        models.ForeignKey: {"filter_class": django_filters.UUIDFilter},
        models.BooleanField: {"filter_class": TrueOrFalse},
        models.PositiveSmallIntegerField: {"filter_class": WholeNumber},
    }


class StrictFilters(DjangoFilterBackend):  # type: ignore[misc]
    """A parameter that is not known, or empty, is refused: a filter that is none would show every row."""

    filterset_base = ApiFilterSet

    def filter_queryset(self, request: Request, queryset: Any, view: Any) -> Any:
        if view.detail:
            return queryset
        filterset = self.get_filterset(request, queryset, view)
        known = {"cursor", "page_size", *(filterset.filters if filterset else ())}
        refuse_unknown(request.query_params, known, "There is no such filter.")
        empty = [name for name, value in request.query_params.items() if not value]
        if empty:
            raise ValidationError(dict.fromkeys(empty, "Say a value: without one this would be no filter."))
        return super().filter_queryset(request, queryset, view)


def refuse_unknown(given: Mapping[str, Any], known: set[str], message: str) -> None:
    """Raises ValidationError that names what is not known."""
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValidationError(dict.fromkeys(unknown, message))


class StrictSerializer(serializers.Serializer[Any]):
    """Takes the fields that can be written and refuses every other: a misspelled field is not silently left out."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            writable = {name: field for name, field in self.fields.items() if not field.read_only}
            refuse_unknown(data, set(writable), NOT_WRITABLE)
            numbers = [name for name in data if _is_text(writable[name]) and not isinstance(data[name], str | None)]
            if numbers:
                raise ValidationError(dict.fromkeys(numbers, "Not a valid string."))
        return super().to_internal_value(data)


def _is_text(field: Any) -> bool:
    return isinstance(field, serializers.CharField)


class ReasonSerializer(StrictSerializer):
    """The body of an act that has no fields: why."""

    reason = serializers.CharField(
        required=False, allow_blank=True, max_length=REASON_LENGTH_MAX, write_only=True, help_text="Goes on record."
    )


class OwnRows(serializers.PrimaryKeyRelatedField[Any]):
    """A related row, out of those the caller may write to."""

    roles: ClassVar[tuple[str, ...]] = WRITERS

    def run_validation(self, data: Any = empty) -> Any:
        if data == "":  # Which would be taken for null, and null is every team.
            self.fail("incorrect_type", data_type="str")
        return super().run_validation(data)

    def get_queryset(self) -> Any:
        return super().get_queryset().for_user(self.context["request"].user, self.roles)  # type: ignore[union-attr]


class ApiSerializer(StrictSerializer, serializers.ModelSerializer[Any]):
    """Fields of a model and, when written, a reason. Constraints are checked where the row is written, by the services."""

    serializer_related_field = OwnRows
    reason = serializers.CharField(
        required=False, allow_blank=True, max_length=REASON_LENGTH_MAX, write_only=True, help_text="Goes on record."
    )

    def get_field_names(self, declared_fields: Any, info: Any) -> list[str]:
        return [*super().get_field_names(declared_fields, info), "reason"]

    def get_validators(self) -> list[Any]:
        return []


class ApiView(GenericViewSet[Any]):
    """What is asked of every endpoint. `scope` is the resource that the caller's scopes must name."""

    scope: ClassVar[str] = ""
    # The model permission each action asks of a signed-in user, where it does not follow from the method.
    permission_verbs: ClassVar[dict[str, str]] = {}

    @property
    def caller(self) -> Any:
        """A user or a service account."""
        return self.request.user

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Answers hold what only this caller may see, so nobody keeps them on the way."""
        headers: dict[str, str] = super().default_response_headers
        return headers | {"Cache-Control": "no-store"}


class ReadOnlyView(mixins.ListModelMixin, mixins.RetrieveModelMixin, ApiView):
    """List and detail of what the caller may see. Subclasses declare `queryset` and `serializer_class`."""

    queryset: Any
    pagination_class: Any = Pages
    filter_backends = (StrictFilters,)
    lookup_value_converter = "uuid"

    def get_queryset(self) -> Any:
        return self.visible(READERS)

    def visible(self, roles: Any) -> Any:
        return self.queryset.all().for_user(self.caller, roles)

    def check_object_permissions(self, request: Request, obj: Any) -> None:
        """Whoever only sees a row is refused; who does not see it was told that there is none."""
        super().check_object_permissions(request, obj)
        if request.method not in SAFE_METHODS and not self.visible(WRITERS).filter(pk=obj.pk).exists():
            self.permission_denied(request, message="You may look at this, and not change it.")


class CreatingView(ReadOnlyView):
    """Adds rows. Subclasses override `insert` where the model has a service of its own, and `check` for who may."""

    http_method_names = ["get", "post", "head"]

    def check(self, values: dict[str, Any], present: Any = None) -> None:
        """Raise PermissionDenied where the caller may not write these `values` (on the row `present`)."""

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values, reason = reasoned(request, serializer)
        self.check(values)
        row = self.insert(values, Actor.from_request(request), reason)
        return Response({**self.get_serializer(row).data, **self.shown_once(row)}, 201)

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> Any:
        row = self.queryset.model(**values)
        services.create(row, actor=actor, reason=reason)
        return row

    def shown_once(self, row: Any) -> dict[str, str]:
        """What the answer to a creation says, and nothing else ever."""
        return {}

    def act(self, act: Callable[..., Any]) -> Any:
        """Call a service with the row of the URL, the actor and the reason; what it returns, and the row."""
        row = self.get_object()
        self.check({}, row)
        return row, act(row, actor=Actor.from_request(self.request), reason=reason_alone(self.request))


class ChangingView(CreatingView):
    """Adds and changes rows; those that are not deleted but revoked or deactivated."""

    http_method_names = ["get", "post", "patch", "head"]

    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        row = self.get_object()
        serializer = self.get_serializer(row, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        values, reason = reasoned(request, serializer)
        self.check(values, row)
        self.change(row, values, Actor.from_request(request), reason)
        # Read again: what belongs to the row may have changed with it.
        return Response(self.get_serializer(self.get_queryset().get(pk=row.pk)).data)

    def change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        services.change(row, actor=actor, reason=reason, values=values)


class WritingView(ChangingView):
    """Adds, changes and deletes rows."""

    http_method_names = ["get", "post", "patch", "delete", "head"]

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        row = self.get_object()
        self.check({}, row)
        self.remove(row, Actor.from_request(request), reason_alone(request))
        return Response(status=204)

    def remove(self, row: Any, actor: Actor, reason: str) -> None:
        services.remove(row, actor=actor, reason=reason)


def reasoned(request: Request, serializer: Any) -> tuple[dict[str, Any], str]:
    """What is to be written, and why: the body's `reason`, else the header's."""
    values, in_header = dict(serializer.validated_data), _reason_in_header(request)
    return values, values.pop("reason", "") or in_header


def reason_alone(request: Request) -> str:
    """Why, of a request that says nothing else. Raises ValidationError when it does."""
    serializer = ReasonSerializer(data=request.data)
    serializer.is_valid(raise_exception=True)
    _, reason = reasoned(request, serializer)
    return reason


def _reason_in_header(request: Request) -> str:
    serializer = ReasonSerializer(data={"reason": request.headers.get(REASON_HEADER, "")})
    serializer.is_valid(raise_exception=True)
    return str(serializer.validated_data["reason"])
