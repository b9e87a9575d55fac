"""The API of prices that are proposed, and of past periods that are reckoned again."""

from functools import partial
from typing import Any, ClassVar

from django.http import StreamingHttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from audit.actors import Actor
from audit.api_base import ApiSerializer, CreatingView, ReadOnlyView, ReasonSerializer, reason_alone
from audit.csv_export import csv_response
from budgets import rerate
from budgets.impact import impact_of_proposal
from routing import services
from routing.price_models import PriceProposal, Rerate


class PriceProposalSerializer(ApiSerializer):
    class Meta:
        model = PriceProposal
        fields = (
            "id",
            "source",
            "model",
            "provider",
            "effective_from",
            "rates",
            "differences",
            "remarks",
            "state",
            "price",
            "decided_by",
            "decided_at",
            "created_at",
        )


class TeamChangeSerializer(serializers.Serializer[Any]):
    team = serializers.CharField()
    before_usd = serializers.DecimalField(max_digits=24, decimal_places=9)
    after_usd = serializers.DecimalField(max_digits=24, decimal_places=9)
    difference_usd = serializers.DecimalField(max_digits=24, decimal_places=9)


class ImpactSerializer(serializers.Serializer[Any]):
    """The last days' use at the proposed price, by the teams that the caller sees."""

    days = serializers.IntegerField()
    requests = serializers.IntegerField()
    total = TeamChangeSerializer()
    teams = TeamChangeSerializer(many=True)


class PriceProposalView(ReadOnlyView):
    """Prices that a list outside says, for a person to approve or reject. Nothing of them is in force before."""

    scope: ClassVar[str] = "routing"
    http_method_names = ["get", "post", "head"]
    queryset = PriceProposal.objects.all()
    serializer_class = PriceProposalSerializer
    filterset_fields = ("model", "provider", "state")

    @extend_schema(responses=ImpactSerializer)
    @action(detail=True)
    def impact(self, request: Request, pk: str) -> Response:
        """What the last 30 days would have cost, by team; of those that the caller sees."""
        return Response(ImpactSerializer(impact_of_proposal(self.caller, self.get_object(), timezone.now())).data)

    @extend_schema(request=ReasonSerializer, responses=PriceProposalSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Make it the price in force, from its day on, and not before now."""
        return self._decide(services.approve_proposal)

    @extend_schema(request=ReasonSerializer, responses=PriceProposalSerializer)
    @action(detail=True, methods=["post"])
    def reject(self, request: Request, pk: str) -> Response:
        """Leave the price in force. The same rates are not proposed again."""
        return self._decide(services.reject_proposal)

    def _decide(self, decide: Any) -> Response:
        proposal = self.get_object()
        decide(proposal, actor=Actor.from_request(self.request), reason=reason_alone(self.request))
        proposal.refresh_from_db()
        return Response(self.get_serializer(proposal).data)


class RerateSerializer(ApiSerializer):
    class Meta:
        model = Rerate
        fields = (
            "id",
            "provider",
            "model",
            "starts_at",
            "ends_at",
            "price",
            "discount_percent",
            "usd_per_unit",
            "note",
            "state",
            "asked_by",
            "decided_by",
            "applied_at",
            "records",
            "before_usd",
            "after_usd",
            "created_at",
        )
        read_only_fields = ("state", "asked_by", "decided_by", "applied_at", "records", "before_usd", "after_usd")


class RerateSummarySerializer(serializers.Serializer[Any]):
    """What it would change, or has changed."""

    records = serializers.IntegerField()
    unpriced = serializers.IntegerField()
    before_usd = serializers.DecimalField(max_digits=24, decimal_places=9)
    after_usd = serializers.DecimalField(max_digits=24, decimal_places=9)


class RerateView(CreatingView):
    """A past period reckoned again: asked for, approved by somebody else, then written as entries that correct others. It tells of
    every team, and so only to who sees them all."""

    scope: ClassVar[str] = "routing"
    queryset = Rerate.objects.all()
    serializer_class = RerateSerializer
    filterset_fields = ("provider", "model", "state")

    def check(self, values: dict[str, Any], present: Any = None) -> None:
        if not self.caller.sees_all_teams:
            raise PermissionDenied("A re-rate concerns every team: only who sees them all asks for one.")

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> Rerate:
        provider, starts_at, ends_at = (values.pop(name) for name in ("provider", "starts_at", "ends_at"))
        return services.ask_for_rerate(provider, starts_at, ends_at, actor=actor, **values)

    @extend_schema(responses=RerateSummarySerializer)
    @action(detail=True)
    def summary(self, request: Request, pk: str) -> Response:
        """What it would change, or has changed."""
        return Response(RerateSummarySerializer(rerate.summarize(self.get_object())).data)

    @extend_schema(responses={(200, "text/csv"): OpenApiTypes.STR})
    @action(detail=True)
    def report(self, request: Request, pk: str) -> StreamingHttpResponse:
        """One line of CSV for each record whose cost differs."""
        row = self.get_object()
        return csv_response(f"rerate-{row.pk}", rerate.REPORT_HEADER, rerate.report_lines(row))

    @extend_schema(request=ReasonSerializer, responses=RerateSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Have it applied; not by who asked for it."""
        return self._decide(is_approved=True)

    @extend_schema(request=ReasonSerializer, responses=RerateSerializer)
    @action(detail=True, methods=["post"])
    def reject(self, request: Request, pk: str) -> Response:
        """Leave the ledger as it is."""
        return self._decide(is_approved=False)

    def _decide(self, *, is_approved: bool) -> Response:
        row, _ = self.act(partial(services.decide_rerate, is_approved=is_approved))
        return Response(self.get_serializer(row).data)
