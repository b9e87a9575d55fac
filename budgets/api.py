"""The API of budgets and limits, and of the sums of usage."""

from typing import Any, ClassVar

import django_filters
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.helpers import forced_singular_serializer
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from audit.actors import Actor
from audit.api_base import PAGE_SIZE, PAGE_SIZE_MAX, ApiFilterSet, ApiSerializer, ApiView, StrictSerializer, WritingView
from budgets import services
from budgets.models import Budget, Limit, Scope, SubjectRule, UsageHour
from budgets.usage import DIMENSIONS, InvalidQuestion, Question, decode_cursor, encode_cursor, rows_after

SUBJECTS = {"team": Scope.TEAM, "project": Scope.PROJECT, "virtual_key": Scope.KEY}


class SubjectRuleFilters(ApiFilterSet):
    of_team = django_filters.UUIDFilter(method="within_team", label="Of a team, its projects and its virtual keys.")

    def within_team(self, rules: QuerySet[Any], name: str, team: Any) -> QuerySet[Any]:
        return rules.filter(Q(team=team) | Q(project__team=team) | Q(virtual_key__project__team=team))


class SubjectRuleView(WritingView):
    """Rules for one team, project or virtual key: name exactly one. It stays; the scope follows from it."""

    scope: ClassVar[str] = "budgets"

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> SubjectRule:
        named = [scope for field, scope in SUBJECTS.items() if values.get(field) is not None]
        if len(named) != 1:
            raise ValidationError("Name a team, or a project, or a virtual key: exactly one.")
        rule: SubjectRule = self.queryset.model(**values, scope=named[0])
        services.create_rule(rule, actor=actor, reason=reason)
        return rule

    def change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        services.change_rule(row, actor=actor, reason=reason, values=values)

    def remove(self, row: Any, actor: Actor, reason: str) -> None:
        services.remove_rule(row, actor=actor, reason=reason)


class BudgetSerializer(ApiSerializer):
    class Meta:
        model = Budget
        fields = (
            "id",
            "name",
            "scope",
            "team",
            "project",
            "virtual_key",
            "window",
            "amount_usd",
            "is_hard",
            "is_active",
            "created_at",
        )
        read_only_fields = ("scope",)


class BudgetFilters(SubjectRuleFilters):
    class Meta:
        model = Budget
        fields = ("scope", "team", "project", "virtual_key", "window", "is_hard", "is_active")


class BudgetView(SubjectRuleView):
    """At most this much in each hour, day or month of the team's calendar."""

    queryset = Budget.objects.all()
    serializer_class = BudgetSerializer
    filterset_class = BudgetFilters


class LimitSerializer(ApiSerializer):
    class Meta:
        model = Limit
        fields = ("id", "scope", "team", "project", "virtual_key", "metric", "amount", "is_active", "created_at")
        read_only_fields = ("scope",)


class LimitFilters(SubjectRuleFilters):
    class Meta:
        model = Limit
        fields = ("scope", "team", "project", "virtual_key", "metric", "is_active")


class LimitView(SubjectRuleView):
    """Requests or tokens per minute, or requests at once."""

    queryset = Limit.objects.all()
    serializer_class = LimitSerializer
    filterset_class = LimitFilters


class UsageQuestionSerializer(StrictSerializer):
    """What is asked, as it stands in the URL."""

    group_by = serializers.CharField(
        required=False,
        max_length=200,
        help_text=f"Any of {', '.join(DIMENSIONS)} and tag:KEY, separated by commas; at most one of hour, day, month.",
    )
    start = serializers.DateTimeField(
        required=False, help_text="Inclusive, on the hour. Without it: 30 days before the end."
    )
    end = serializers.DateTimeField(
        required=False, help_text="Exclusive, on the hour. Without it: the end of today, UTC."
    )
    team = serializers.UUIDField(required=False)
    project = serializers.UUIDField(required=False)
    virtual_key = serializers.UUIDField(required=False)
    alias = serializers.CharField(required=False)
    model = serializers.CharField(required=False)
    provider = serializers.CharField(required=False)
    tag = serializers.CharField(required=False, help_text="Such as feature=search.")
    cursor = serializers.CharField(required=False, help_text="From `next` of the page before.")
    page_size = serializers.IntegerField(required=False, min_value=1, max_value=PAGE_SIZE_MAX, default=PAGE_SIZE)


class UsageSumSerializer(serializers.Serializer[Any]):
    """One group: what it is grouped by, and its sums. What is not known of a tag is null. Money is a decimal, exact."""

    hour = serializers.DateTimeField(required=False)
    day = serializers.DateField(required=False)
    month = serializers.DateField(required=False)
    team = serializers.UUIDField(required=False)
    project = serializers.UUIDField(required=False)
    virtual_key = serializers.UUIDField(required=False)
    alias = serializers.CharField(required=False)
    model = serializers.CharField(required=False)
    provider = serializers.CharField(required=False)
    tag = serializers.CharField(required=False)
    requests = serializers.IntegerField()
    errors = serializers.IntegerField(allow_null=True)  # type: ignore[assignment]
    tokens = serializers.IntegerField()
    input_tokens = serializers.IntegerField(allow_null=True)
    output_tokens = serializers.IntegerField(allow_null=True)
    cached_tokens = serializers.IntegerField(allow_null=True)
    cost_usd = serializers.DecimalField(max_digits=None, decimal_places=9)


class UsageSerializer(serializers.Serializer[Any]):
    start = serializers.DateTimeField()
    end = serializers.DateTimeField()
    next = serializers.URLField(allow_null=True)
    results = UsageSumSerializer(many=True)


class UsageView(ApiView):
    """Sums of usage over hours, days or months (UTC), by subject, alias, model, provider or tag."""

    scope: ClassVar[str] = "usage"
    queryset = UsageHour.objects.all()
    serializer_class = UsageSerializer
    pagination_class = None
    filter_backends = ()

    @extend_schema(parameters=[UsageQuestionSerializer], responses=forced_singular_serializer(UsageSerializer))  # type: ignore[no-untyped-call]
    def list(self, request: Request) -> Response:
        """Sum usage up. Without `group_by` one row: all of it. Groups come in the order of what they are grouped by."""
        given = UsageQuestionSerializer(data=request.query_params.dict())
        given.is_valid(raise_exception=True)
        parameters = given.validated_data
        try:
            question = Question.parse(parameters, timezone.now())
            last = decode_cursor(question, parameters["cursor"]) if "cursor" in parameters else None
        except InvalidQuestion as error:
            raise ValidationError({error.field: str(error)}) from error
        size = parameters["page_size"]
        rows = rows_after(self.caller, question, last, size + 1)
        following = None
        if len(rows) > size:
            rows.pop()
            cursor = encode_cursor(question, rows[-1])
            following = replace_query_param(request.build_absolute_uri(), "cursor", cursor)
        answer = {"start": question.start, "end": question.end, "next": following, "results": rows}
        return Response(UsageSerializer(answer).data)
