"""The API of providers, models, their prices, deployments, and the aliases clients ask for."""

from decimal import Decimal
from typing import Any, ClassVar

import django_filters
from django.db import transaction
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from audit.actors import Actor
from audit.api_base import (
    ApiFilterSet,
    ApiSerializer,
    CreatingView,
    OwnRows,
    ReasonSerializer,
    StrictSerializer,
    WritingView,
)
from routing import services
from routing.models import Deployment, Model, ModelAlias, Operation, Provider
from routing.price_models import PRICE_RATES, Contract, ExchangeRate, ExchangeRateFeed, Price

TIMEOUT_S_MAX = 3_600
TARGETS_MAX = 100
TIERS_MAX = 50


class ProviderSerializer(ApiSerializer):
    options = serializers.DictField(child=serializers.CharField(max_length=500), required=False)

    class Meta:
        model = Provider
        fields = (
            "id",
            "slug",
            "name",
            "api",
            "base_url",
            "options",
            "may_be_private",
            "currency",
            "output_cap_field",
            "passthrough_hold",
            "runs_on",
            "connect_timeout_s",
            "first_byte_timeout_s",
            "idle_timeout_s",
            "is_active",
            "created_at",
        )
        extra_kwargs: ClassVar[dict[str, Any]] = {
            name: {"max_value": TIMEOUT_S_MAX}
            for name in ("connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s")
        }


class ProviderView(WritingView):
    """Places that serve models. A provider keeps its slug."""

    scope: ClassVar[str] = "routing"
    queryset = Provider.objects.all()
    serializer_class = ProviderSerializer
    filterset_fields = ("slug", "name", "api", "is_active")


class ModelSerializer(ApiSerializer):
    operations = serializers.ListField(
        child=serializers.ChoiceField(choices=Operation.choices), required=False, allow_empty=False
    )

    class Meta:
        model = Model
        fields = (
            "id",
            "name",
            "publisher",
            "operations",
            "context_window",
            "max_output_tokens",
            "output_is_visible",
            "is_active",
            "created_at",
        )


class ModelView(WritingView):
    """The registry of models. A model keeps its name."""

    scope: ClassVar[str] = "routing"
    queryset = Model.objects.all()
    serializer_class = ModelSerializer
    filterset_fields = ("name", "publisher", "is_active")


class PriceTierSerializer(StrictSerializer):
    """Rates in another service tier, above a length of input, or both. What `rates` leave out is `percent` of the price's."""

    service_tier = serializers.SlugField(max_length=64, default="", allow_blank=True)
    above_input_tokens = serializers.IntegerField(default=0, min_value=0, max_value=2_147_483_647)
    percent = serializers.IntegerField(default=100, min_value=0, max_value=10_000)
    rates = serializers.DictField(
        child=serializers.DecimalField(max_digits=18, decimal_places=9, min_value=0, normalize_output=True),
        default=dict,
        help_text=f"Any of {', '.join(PRICE_RATES)}.",
    )

    def validate_rates(self, rates: dict[str, Any]) -> dict[str, Any]:
        unknown = rates.keys() - set(PRICE_RATES)
        if unknown:
            raise serializers.ValidationError(f"Not a rate: {', '.join(sorted(unknown))}.")
        return rates

    def to_representation(self, tier: Any) -> dict[str, Any]:
        fields = {name: getattr(tier, name) for name in ("service_tier", "above_input_tokens", "percent")}
        rates = {name: str(getattr(tier, name)) for name in PRICE_RATES if getattr(tier, name) is not None}
        return fields | {"rates": rates}


class PriceSerializer(ApiSerializer):
    tiers = PriceTierSerializer(many=True, max_length=TIERS_MAX, required=False)  # type: ignore[call-arg]

    class Meta:
        model = Price
        fields = (
            "id",
            "model",
            "provider",
            "deployment",
            "effective_from",
            *PRICE_RATES,
            "batch_percent",
            "geo_percent",
            "tiers",
            "created_at",
        )
        extra_kwargs: ClassVar[dict[str, Any]] = {
            "cached_input": {"required": False, "help_text": "As input, where nothing is said."},
            "cache_write": {"required": False, "help_text": "As input, where nothing is said."},
        }


class PriceFilters(ApiFilterSet):
    in_force_from = django_filters.IsoDateTimeFilter(field_name="effective_from", lookup_expr="gte")
    in_force_before = django_filters.IsoDateTimeFilter(field_name="effective_from", lookup_expr="lt")

    class Meta:
        model = Price
        fields = ("model", "provider", "deployment")


class PriceView(CreatingView):
    """What a model costs at a provider from a moment on, in its currency per 1,000,000 tokens. A new one supersedes the old."""

    scope: ClassVar[str] = "routing"
    queryset = Price.objects.prefetch_related("tiers")
    serializer_class = PriceSerializer
    filterset_class = PriceFilters

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> Price:
        tiers = [services.Tier(**tier) for tier in values.pop("tiers", ())]
        return services.set_price(**values, tiers=tiers, actor=actor, reason=reason)


class ExchangeRateSerializer(ApiSerializer):
    class Meta:
        model = ExchangeRate
        fields = ("id", "currency", "usd_per_unit", "effective_from", "source")
        read_only_fields = ("source",)


class ExchangeRateView(CreatingView):
    """What one unit of a currency is worth in USD from a moment on. A new one supersedes the old."""

    scope: ClassVar[str] = "routing"
    queryset = ExchangeRate.objects.all()
    serializer_class = ExchangeRateSerializer
    filterset_fields = ("currency",)

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> ExchangeRate:
        return services.set_exchange_rate(**values, actor=actor, reason=reason)


class ExchangeRateFeedSerializer(ApiSerializer):
    class Meta:
        model = ExchangeRateFeed
        fields = ("id", "name", "url", "may_be_private", "is_active", "fetched_at", "due_at", "problem", "created_at")


class ExchangeRateFeedView(WritingView):
    """Where exchange rates are fetched from: once a day, an hour after it has failed, and when it is changed."""

    scope: ClassVar[str] = "routing"
    queryset = ExchangeRateFeed.objects.all()
    serializer_class = ExchangeRateFeedSerializer
    filterset_fields = ("name", "is_active")

    def change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        services.change_feed(row, values=values, actor=actor, reason=reason)

    @extend_schema(request=ReasonSerializer, responses={202: ExchangeRateFeedSerializer})
    @action(detail=True, methods=["post"])
    def fetch(self, request: Request, pk: str) -> Response:
        """Have it fetched within seconds; `fetched_at` or `problem` then says what became of it."""
        row, _ = self.act(services.fetch_feed_now)
        return Response(self.get_serializer(row).data, 202)


class ContractDiscountSerializer(StrictSerializer):
    """Another discount from so much of a month's spend on."""

    from_usd = serializers.DecimalField(max_digits=18, decimal_places=2, min_value=Decimal("0.01"))
    discount_percent = serializers.DecimalField(max_digits=5, decimal_places=2, min_value=0, max_value=100)


class ContractSerializer(ApiSerializer):
    tiers = ContractDiscountSerializer(many=True, max_length=TIERS_MAX, required=False)  # type: ignore[call-arg]

    class Meta:
        model = Contract
        fields = (
            "id",
            "name",
            "provider",
            "model",
            "effective_from",
            "effective_until",
            "discount_percent",
            "tiers",
            "commitment_usd",
            "free_tokens",
            "free_requests",
            "created_at",
        )


class CommitmentSerializer(serializers.Serializer[Any]):
    """The month so far against what the contract commits to; the last two at the pace so far."""

    starts_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField(help_text="Exclusive.")
    amount_usd = serializers.DecimalField(max_digits=18, decimal_places=2)
    spent_usd = serializers.DecimalField(max_digits=24, decimal_places=9)
    expected_usd = serializers.DecimalField(max_digits=None, decimal_places=9, help_text="Spent at its end.")
    shortfall_usd = serializers.DecimalField(max_digits=None, decimal_places=9, help_text="Paid beyond use.")


class ContractView(CreatingView):
    """What was negotiated with a provider: discounts, free quotas, a commitment. A new one supersedes the old."""

    scope: ClassVar[str] = "routing"
    queryset = Contract.objects.prefetch_related("tiers")
    serializer_class = ContractSerializer
    filterset_fields = ("provider", "model")

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> Contract:
        discounts = {tier["from_usd"]: tier["discount_percent"] for tier in values.pop("tiers", ())}
        provider, name = values.pop("provider"), values.pop("name")
        return services.add_contract(provider, name, discounts=discounts, actor=actor, reason=reason, **values)

    @extend_schema(responses=CommitmentSerializer)
    @action(detail=True)
    def commitment(self, request: Request, pk: str) -> Response:
        """How far this month has come with what the contract commits to; 404 where it commits to nothing now."""
        if not self.caller.sees_all_teams:
            raise PermissionDenied("It tells what all teams have spent: ask who sees every team.")
        commitment = self.get_object().commitment(timezone.now())
        if commitment is None:
            raise NotFound("It commits to nothing now.")
        return Response(CommitmentSerializer(commitment).data)


class DeploymentSerializer(ApiSerializer):
    class Meta:
        model = Deployment
        fields = (
            "id",
            "name",
            "model",
            "provider",
            "pool",
            "upstream_model",
            "region",
            "max_output_tokens",
            "uplift_percent",
            "auto_tier",
            "unpriced_hold",
            "is_active",
            "created_at",
        )


class DeploymentFilters(ApiFilterSet):
    class Meta:
        model = Deployment
        fields = ("name", "model", "provider", "pool", "region", "is_active")


class DeploymentView(WritingView):
    """A model at a provider, in a region, under a pool of credentials."""

    scope: ClassVar[str] = "routing"
    queryset = Deployment.objects.all()
    serializer_class = DeploymentSerializer
    filterset_class = DeploymentFilters


class TargetSerializer(StrictSerializer):
    """Tried by position, 0 first; targets of one position share its load by weight."""

    deployment = OwnRows(queryset=Deployment.objects.all())
    position = serializers.IntegerField(default=0, min_value=0, max_value=32_767)
    weight = serializers.IntegerField(default=1, min_value=1, max_value=32_767)


class ModelAliasSerializer(ApiSerializer):
    targets = TargetSerializer(many=True, max_length=TARGETS_MAX)  # type: ignore[call-arg]

    class Meta:
        model = ModelAlias
        fields = ("id", "name", "description", "is_lenient", "is_active", "targets", "created_at")


class ModelAliasView(WritingView):
    """The names clients ask for, and the deployments that may answer. `targets` are set as a whole."""

    scope: ClassVar[str] = "routing"
    queryset = ModelAlias.objects.prefetch_related("targets__deployment")
    serializer_class = ModelAliasSerializer
    filterset_fields = ("name", "is_active")

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> ModelAlias:
        targets = values.pop("targets")
        with transaction.atomic():
            alias: ModelAlias = super().insert(values, actor, reason)
            services.set_targets(alias, _targets(targets), actor=actor, reason=reason)
        return alias

    def change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        targets = values.pop("targets", None)
        with transaction.atomic():
            super().change(row, values, actor, reason)
            if targets is not None:
                services.set_targets(row, _targets(targets), actor=actor, reason=reason)


def _targets(rows: Any) -> list[services.Target]:
    return [services.Target(**row) for row in rows]
