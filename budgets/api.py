"""The API of budgets and limits, and of the sums of usage."""

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, cast

import django_filters
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.helpers import forced_singular_serializer
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from audit.actors import Actor
from audit.api_base import (
    PAGE_SIZE,
    PAGE_SIZE_MAX,
    REASON_LENGTH_MAX,
    ApiFilterSet,
    ApiSerializer,
    ApiView,
    CreatingView,
    OwnRows,
    ReasonSerializer,
    StrictSerializer,
    WritingView,
)
from audit.querysets import READERS
from budgets import services
from budgets.counters import COUNTERS_MAX, OBSERVED_DAYS, observed_since, spend_of, would_have_refused
from budgets.ledger_models import UsageHour
from budgets.models import (
    OWNERS,
    PERCENT_MAX,
    SUBJECT_FIELDS,
    THRESHOLDS_MAX,
    Budget,
    Increase,
    Limit,
    SubjectRule,
    Threshold,
)
from budgets.usage import DIMENSIONS, InvalidQuestion, Question, decode_cursor, encode_cursor, rows_after
from budgets.windows import FOREVER_S
from keys.redis import redis_client
from routing.models import ModelAlias


class AmountField(serializers.DecimalField):
    """US dollars, tokens or requests, as the unit says; exact, as text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_digits=24, decimal_places=9, min_value=0, normalize_output=True, **options)


RULE_FIELDS = ("id", "name", "scope", *SUBJECT_FIELDS.values(), "tags", "each")


class SubjectRuleFilters(ApiFilterSet):
    of_team = django_filters.UUIDFilter(method="within_team", label="Of a team, its projects and its virtual keys.")
    tag = django_filters.CharFilter(method="with_tag", label="Whose subject has this tag, such as customer=acme.")

    def within_team(self, rules: QuerySet[Any], name: str, team: Any) -> QuerySet[Any]:
        return rules.filter(Q(team=team) | Q(project__team=team) | Q(virtual_key__project__team=team))

    def with_tag(self, rules: QuerySet[Any], name: str, tag: str) -> QuerySet[Any]:
        key, _, value = tag.partition("=")
        return rules.filter(tags__contains={key: value})


class SubjectRuleSerializer(ApiSerializer):
    """Empty is everybody, or everything. What is not named of the subject cannot be named later: it stays."""

    tags = serializers.DictField(child=serializers.CharField(max_length=256), required=False)
    each = serializers.ListField(
        child=serializers.CharField(max_length=80),
        required=False,
        help_text=f"Dimensions of which each value has a counter of its own: {', '.join(SUBJECT_FIELDS)}, tag:NAME.",
    )
    amount = AmountField()


class ObservedSerializer(serializers.Serializer[Any]):
    """What a rule that only observes would have refused."""

    requests = serializers.IntegerField(
        allow_null=True,
        help_text="Of all its counters together; null where the rule observes nothing, or it is not known.",
    )
    since = serializers.DateTimeField(help_text=f"Inclusive: {OBSERVED_DAYS} days of UTC, today being the last.")


class SubjectRuleView(WritingView):
    """Rules for whatever their subject names: at most one of team, project and virtual key, narrowed down by the rest."""

    scope: ClassVar[str] = "budgets"
    permission_verbs: ClassVar[dict[str, str]] = {"observed": "view"}

    @extend_schema(responses=ObservedSerializer)
    @action(detail=True, methods=["get"], filter_backends=(), pagination_class=None)
    def observed(self, request: Request, pk: uuid.UUID) -> Response:
        """What it would have refused in the last days, where it only observes."""
        rule, now = self.get_object(), timezone.now()
        refused = would_have_refused([rule], now, redis_client())
        return Response(ObservedSerializer({"requests": refused.get(rule.pk), "since": observed_since(now)}).data)

    def check(self, values: dict[str, Any], present: Any = None) -> None:
        if (
            present is None
            and not any(values.get(field) for field in OWNERS.values())
            and not self.caller.sees_all_teams
        ):
            raise PermissionDenied(
                "Name a team, a project or a virtual key: only who sees every team sets what is for all."
            )

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> SubjectRule:
        rule: SubjectRule = self.queryset.model(**values)
        services.create_rule(rule, actor=actor, reason=reason)
        return rule

    def change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        services.change_rule(row, actor=actor, reason=reason, values=values)

    def remove(self, row: Any, actor: Actor, reason: str) -> None:
        services.remove_rule(row, actor=actor, reason=reason)


class ThresholdSerializer(StrictSerializer):
    """`per_minute` goes with throttle, `alias` with downgrade."""

    percent = serializers.IntegerField(min_value=1, max_value=PERCENT_MAX)
    action = serializers.ChoiceField(choices=Threshold.Action.choices, default=Threshold.Action.ALERT)
    per_minute = serializers.IntegerField(min_value=1, max_value=2**31 - 1, required=False, allow_null=True)
    alias = OwnRows(queryset=ModelAlias.objects.all(), required=False, allow_null=True)

    def validate(self, attrs: Any) -> Any:
        # They are set as a whole, so each is whole, also where the budget is only changed in part.
        if "percent" not in attrs:
            raise ValidationError({"percent": "This field is required."})
        return {"action": Threshold.Action.ALERT, **attrs}


class BudgetSerializer(SubjectRuleSerializer):
    rollover = AmountField(required=False)
    thresholds = ThresholdSerializer(many=True, max_length=THRESHOLDS_MAX, required=False)  # type: ignore[call-arg]

    class Meta:
        model = Budget
        fields = (
            *RULE_FIELDS,
            "window",
            "starts_at",
            "ends_at",
            "time_zone",
            "fiscal_month",
            "unit",
            "amount",
            "mode",
            "rollover",
            "thresholds",
            "is_active",
            "created_at",
        )
        read_only_fields = ("scope",)


class BudgetFilters(SubjectRuleFilters):
    class Meta:
        model = Budget
        fields = ("scope", *SUBJECT_FIELDS.values(), "window", "unit", "mode", "is_active")


class SpendQuestionSerializer(StrictSerializer):
    at = serializers.DateTimeField(
        required=False, help_text="A moment in the window that is asked for; without it: now."
    )

    def validate_at(self, at: datetime) -> datetime:
        if not 0 <= at.timestamp() < FOREVER_S:
            raise serializers.ValidationError("No window is known of that moment.")
        return at


def _amount(**options: Any) -> serializers.DecimalField:
    return serializers.DecimalField(max_digits=None, decimal_places=9, normalize_output=True, **options)


class CounterSerializer(serializers.Serializer[Any]):
    """One counter of a budget."""

    each = serializers.DictField(child=serializers.CharField(), help_text="The values it is of, by dimension.")
    spent = _amount()
    held = _amount(allow_null=True, help_text="For requests that run; null where it is not known.")
    rolled_over = _amount(help_text="From the window before.")
    left = _amount()


class SpendSerializer(serializers.Serializer[Any]):
    """What was spent in one window, the most first."""

    unit = serializers.ChoiceField(choices=Budget.Unit.choices)
    window_start = serializers.DateTimeField(source="starts_at")
    window_end = serializers.DateTimeField(source="ends_at", allow_null=True, help_text="Exclusive; null: it has none.")
    amount = _amount(source="budget.amount")
    increased_by = _amount(help_text="By what is in force of its temporary increases.")
    counters = CounterSerializer(source="shown", many=True)
    is_cut = serializers.BooleanField(help_text=f"There are more than these {COUNTERS_MAX:,} counters.")


class SeenBudgets(OwnRows):
    """A budget, out of those the caller sees: who may only look may ask."""

    roles = READERS


class IncreaseSerializer(ApiSerializer):
    amount = AmountField()
    budget = SeenBudgets(queryset=Budget.objects.all())
    reason = serializers.CharField(max_length=REASON_LENGTH_MAX, help_text="What it is for.")

    class Meta:
        model = Increase
        fields = (
            "id",
            "budget",
            "amount",
            "starts_at",
            "ends_at",
            "state",
            "requested_by_name",
            "decided_by_name",
            "decided_at",
            "note",
            "created_at",
        )
        read_only_fields = ("state", "requested_by_name", "decided_by_name", "decided_at", "note")


class GrantSerializer(StrictSerializer):
    """`amount` in the budget's unit, on top of its own."""

    amount = AmountField()
    starts_at = serializers.DateTimeField(required=False, help_text="Without it: now.")
    ends_at = serializers.DateTimeField()
    reason = serializers.CharField(max_length=REASON_LENGTH_MAX)


class BudgetView(SubjectRuleView):
    """At most this much in each window: of money, tokens or requests. `thresholds` are set as a whole."""

    queryset = Budget.objects.prefetch_related("thresholds__alias")
    serializer_class = BudgetSerializer
    filterset_class = BudgetFilters
    permission_verbs: ClassVar[dict[str, str]] = SubjectRuleView.permission_verbs | {"spend": "view", "grant": "change"}

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> SubjectRule:
        thresholds = values.pop("thresholds", ())
        with transaction.atomic():
            budget = super().insert(values, actor, reason)
            services.set_thresholds(cast(Budget, budget), thresholds, actor=actor, reason=reason)
        return budget

    def change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        thresholds = values.pop("thresholds", None)
        with transaction.atomic():
            super().change(row, values, actor, reason)
            if thresholds is not None:
                services.set_thresholds(row, thresholds, actor=actor, reason=reason)

    @extend_schema(parameters=[SpendQuestionSerializer], responses=SpendSerializer)
    @action(detail=True, methods=["get"], filter_backends=(), pagination_class=None)
    def spend(self, request: Request, pk: uuid.UUID) -> Response:
        """What was spent, is held and is left in the window of now, or of another moment."""
        budget = self.get_object()
        given = SpendQuestionSerializer(data=request.query_params.dict())
        given.is_valid(raise_exception=True)
        at = given.validated_data.get("at") or timezone.now()
        return Response(SpendSerializer(spend_of(budget, at, redis_client())).data)

    @extend_schema(request=GrantSerializer, responses={201: IncreaseSerializer})
    @action(detail=True, methods=["post"])
    def grant(self, request: Request, pk: uuid.UUID) -> Response:
        """Grant a temporary increase at once. To ask somebody else for one, add to `increases`."""
        budget = self.get_object()
        serializer = GrantSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        increase = services.grant_increase(
            budget,
            values["amount"],
            values.get("starts_at") or timezone.now(),
            values["ends_at"],
            actor=Actor.from_request(request),
            reason=values["reason"],
        )
        return Response(IncreaseSerializer(increase, context=self.get_serializer_context()).data, 201)


class IncreaseFilters(ApiFilterSet):
    class Meta:
        model = Increase
        fields = ("budget", "state")


class IncreaseView(CreatingView):
    """Temporary increases of budgets. Adding one asks for it; somebody else approves or rejects it."""

    scope: ClassVar[str] = "budgets"
    queryset = Increase.objects.select_related("budget")
    serializer_class = IncreaseSerializer
    filterset_class = IncreaseFilters
    # Whoever sees a budget may ask.
    permission_verbs: ClassVar[dict[str, str]] = {
        "create": "view",
        "approve": "decide",
        "reject": "decide",
        "end": "change",
    }

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> Increase:
        values.setdefault("starts_at", timezone.now())
        return services.request_increase(**values, actor=actor, reason=reason)

    @extend_schema(request=ReasonSerializer, responses=IncreaseSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: uuid.UUID) -> Response:
        """Approve what somebody else asked for: it is in force at once, for its time. `reason` is the note they read."""
        return self._decide(services.approve_increase)

    @extend_schema(request=ReasonSerializer, responses=IncreaseSerializer)
    @action(detail=True, methods=["post"])
    def reject(self, request: Request, pk: uuid.UUID) -> Response:
        """Reject what somebody else asked for."""
        return self._decide(services.reject_increase)

    @extend_schema(request=ReasonSerializer, responses={204: None})
    @action(detail=True, methods=["post"])
    def end(self, request: Request, pk: uuid.UUID) -> Response:
        """Take back what is left of its time."""
        self.act(services.end_increase)
        return Response(status=204)

    def _decide(self, decide: Callable[..., None]) -> Response:
        increase, _ = self.act(decide)
        return Response(self.get_serializer(increase).data)


class LimitSerializer(SubjectRuleSerializer):
    burst = AmountField(required=False, allow_null=True)

    class Meta:
        model = Limit
        fields = (
            *RULE_FIELDS,
            "metric",
            "amount",
            "window_s",
            "burst",
            "is_observed",
            "is_active",
            "created_at",
        )
        read_only_fields = ("scope",)


class LimitFilters(SubjectRuleFilters):
    class Meta:
        model = Limit
        fields = ("scope", *SUBJECT_FIELDS.values(), "metric", "is_observed", "is_active")


class LimitView(SubjectRuleView):
    """Requests, tokens or spend in any stretch of `window_s` seconds, or requests at once."""

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
    saved_usd = serializers.DecimalField(
        max_digits=None,
        decimal_places=9,
        allow_null=True,
        help_text="What answers from the gateway's cache would have cost.",
    )
    shadow_cost_usd = serializers.DecimalField(
        max_digits=None, decimal_places=9, allow_null=True, help_text="What of the cost is that of shadow calls."
    )


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
