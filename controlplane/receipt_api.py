"""The API of receipts: what a request cost and why. The one endpoint that a virtual key opens too, for its project's requests."""

from typing import Any, ClassVar
from uuid import UUID

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import exceptions, serializers
from rest_framework.authentication import BaseAuthentication, SessionAuthentication, get_authorization_header
from rest_framework.request import Request
from rest_framework.response import Response

from audit.api_base import ApiView
from audit.models import UsageRecord
from audit.querysets import READERS
from audit.records import Usage
from budgets.models import Budget
from budgets.receipt import Receipt, RequestReceipt, may_be_pending, receipt_of_request
from controlplane.api_access import REFUSED, BearerToken, HasScope
from keys.models import VirtualKey
from keys.tokens import API_TOKEN_PREFIX, TOKEN_LENGTH_MAX, digest

RETRY_AFTER_S = 1


class KeyHolder:
    """Whoever presents a virtual key: sees the usage records of its project, and may do nothing else."""

    is_authenticated = True

    def __init__(self, virtual_key: VirtualKey) -> None:
        self.virtual_key = virtual_key


class VirtualKeyBearer(BaseAuthentication):
    """`Authorization: Bearer tg-…`: a virtual key, as applications present it to the gateway."""

    def authenticate(self, request: Request) -> tuple[Any, VirtualKey] | None:
        scheme, _, presented = get_authorization_header(request).decode("latin-1").partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or presented.startswith(API_TOKEN_PREFIX):
            return None
        if not presented or len(presented) > TOKEN_LENGTH_MAX:
            raise exceptions.AuthenticationFailed(REFUSED)
        virtual_key = VirtualKey.objects.filter(digest=digest(presented)).first()
        if virtual_key is None or virtual_key.status != "active":
            raise exceptions.AuthenticationFailed(REFUSED)
        return KeyHolder(virtual_key), virtual_key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class VirtualKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = VirtualKeyBearer
    name = "virtual key"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "A virtual key: tg-…"}


class HoldsKeyOrScope(HasScope):
    def has_permission(self, request: Request, view: Any) -> bool:
        caller: Any = request.user
        return isinstance(caller, KeyHolder) or super().has_permission(request, view)


class NamedSerializer(serializers.Serializer[Any]):
    """`name` is empty where it is gone."""

    id = serializers.UUIDField()
    name = serializers.CharField()


class TagSerializer(serializers.Serializer[Any]):
    key = serializers.CharField()
    value = serializers.CharField()
    source = serializers.ChoiceField(["project", "key", "body", "header"])  # type: ignore[assignment]


class StepSerializer(serializers.Serializer[Any]):
    deployment = serializers.CharField()
    outcome = serializers.ChoiceField(["answered", "failed", "not tried", "passed over"])
    reason = serializers.CharField()


class LineSerializer(serializers.Serializer[Any]):
    """`rate` is per million tokens, or for each where `is_each`; like `amount` in the provider's currency."""

    what = serializers.CharField()
    number = serializers.IntegerField()
    rate = serializers.CharField()
    is_each = serializers.BooleanField()
    amount = serializers.CharField()


class CountedSerializer(serializers.Serializer[Any]):
    """A budget that an attempt was counted in. Amounts are US dollars, tokens or requests, as `unit` says."""

    id = serializers.UUIDField()
    name = serializers.CharField(help_text="Empty where the budget was removed since.")
    unit = serializers.ChoiceField(Budget.Unit.choices)
    held = serializers.CharField(allow_null=True, help_text="Of tokens it is not known: null.")
    counted = serializers.CharField()


class AttemptSerializer(serializers.ModelSerializer[UsageRecord]):
    """A usage record with its meters, and its lines: meters times prices."""

    currency = serializers.CharField()
    lines = LineSerializer(many=True)
    cache_saving_usd = serializers.CharField()
    budgets = CountedSerializer(many=True)

    class Meta:
        model = UsageRecord
        fields = (
            "attempt_id",
            "kind",
            "attempt_number",
            "admitted_at",
            "state",
            "deployment",
            "provider",
            "model",
            "request_model",
            "response_model",
            "upstream_id",
            "status_code",
            "error_type",
            "finish_reason",
            "latency_ms",
            "first_token_ms",
            "usage_source",
            *Usage.__struct_fields__,
            "price_id",
            "held_usd",
            "cost_usd",
            "saved_usd",
            "resolved_at",
            "kill_switch_id",
            "currency",
            "lines",
            "cache_saving_usd",
            "budgets",
        )


class CorrectionSerializer(serializers.ModelSerializer[UsageRecord]):
    """An entry that changed the cost of an attempt (`adjusts`) later, by so much."""

    class Meta:
        model = UsageRecord
        fields = ("adjusts", "ingested_at", "cost_usd")


class ReceiptSerializer(serializers.Serializer[Any]):
    """Money is a decimal in a string. `is_settled` is false while an attempt is in suspense: then the cost is what is held."""

    request_id = serializers.UUIDField()
    is_settled = serializers.BooleanField()
    team = NamedSerializer()
    project = NamedSerializer()
    virtual_key = NamedSerializer()
    environment = serializers.CharField()
    end_user = serializers.CharField()
    alias = serializers.CharField()
    downgraded_from = serializers.CharField(
        help_text="The alias that was asked for, where a budget had a cheaper one take its place."
    )
    operation = serializers.CharField()
    is_stream = serializers.BooleanField()
    tags = TagSerializer(many=True)
    route = StepSerializer(many=True)
    attempts = AttemptSerializer(many=True)
    corrections = CorrectionSerializer(many=True)
    corrections_usd = serializers.CharField()
    cost_usd = serializers.CharField()
    cache_saving_usd = serializers.CharField(help_text="By the provider's cache.")
    saved_usd = serializers.CharField(help_text="By the gateway's own cache: what its answer would have cost.")
    latency_ms = serializers.IntegerField()


class PendingSerializer(serializers.Serializer[Any]):
    request_id = serializers.UUIDField()
    detail = serializers.CharField()


class ReceiptView(ApiView):
    """What a request cost and why: the route with its reasons, every attempt, meters times prices, where the tags came from."""

    scope: ClassVar[str] = "usage"
    queryset = UsageRecord.objects.all()
    serializer_class = ReceiptSerializer
    authentication_classes = (VirtualKeyBearer, BearerToken, SessionAuthentication)
    permission_classes = (HoldsKeyOrScope,)
    lookup_field = "request_id"
    lookup_value_converter = "uuid"

    @extend_schema(
        responses={
            200: ReceiptSerializer,
            202: OpenApiResponse(PendingSerializer, description="Nothing is in the ledger yet. Try again."),
        }
    )
    def retrieve(self, request: Request, request_id: UUID) -> Response:
        receipt = receipt_of_request(request_id, self.visible())
        if receipt is not None:
            return Response(_body(receipt))
        if not may_be_pending(request_id):
            raise exceptions.NotFound("There is no such request, it reached no provider, or it is not yours to see.")
        detail = (
            "Nothing is in the ledger of such a request yet: it may still run, or be on its way; or it was refused before any "
            "provider was called, and never will be."
        )
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return Response({"request_id": request_id, "detail": detail}, 202, headers=headers)

    def visible(self) -> Any:
        caller: Any = self.caller
        if isinstance(caller, KeyHolder):
            return self.queryset.filter(project_id=caller.virtual_key.project_id)
        return self.queryset.all().for_user(caller, READERS)


def _body(receipt: RequestReceipt) -> dict[str, Any]:
    last = receipt.last
    return {
        "request_id": last.request_id,
        "is_settled": receipt.is_settled,
        "team": _named(last.team_id, receipt.team),
        "project": _named(last.project_id, receipt.project),
        "virtual_key": _named(last.virtual_key_id, receipt.virtual_key),
        "environment": last.environment,
        "end_user": last.end_user,
        "alias": last.alias,
        "downgraded_from": last.downgraded_from,
        "operation": last.operation,
        "is_stream": last.is_stream,
        "tags": [tag._asdict() for tag in receipt.tags],
        "route": [step._asdict() for step in receipt.route],
        "attempts": [_attempt(attempt) for attempt in receipt.attempts],
        "corrections": [
            {"adjusts": record.adjusts, "ingested_at": record.ingested_at, "cost_usd": f"{record.cost_usd:f}"}
            for record in receipt.corrections
        ],
        "corrections_usd": f"{sum(record.cost_usd for record in receipt.corrections):f}",
        "cost_usd": f"{receipt.cost_usd:f}",
        "cache_saving_usd": f"{receipt.cache_saving_usd:f}",
        "saved_usd": f"{receipt.saved_usd:f}",
        "latency_ms": receipt.latency_ms,
    }


def _named(pk: UUID, row: Any) -> dict[str, Any]:
    return {"id": pk, "name": "" if row is None else row.name}


def _attempt(receipt: Receipt) -> dict[str, Any]:
    record = receipt.record
    own = ("currency", "lines", "cache_saving_usd", "budgets")
    columns = {name: getattr(record, name) for name in AttemptSerializer.Meta.fields if name not in own}
    return columns | {
        "held_usd": f"{record.held_usd:f}",
        "cost_usd": f"{record.cost_usd:f}",
        "saved_usd": f"{record.saved_usd:f}",
        "currency": receipt.price.provider.currency if receipt.price else "USD",
        "lines": [
            {
                "what": line.what,
                "number": line.number,
                "rate": f"{line.rate.normalize():f}",
                "is_each": line.is_each,
                "amount": f"{line.amount.normalize():f}",
            }
            for line in receipt.lines
        ],
        "cache_saving_usd": f"{receipt.cache_saving_usd:f}",
        "budgets": [
            {
                "id": one.budget_id,
                "name": one.name,
                "unit": one.unit,
                "held": None if one.held is None else f"{one.held:f}",
                "counted": f"{one.counted:f}",
            }
            for one in receipt.budgets
        ],
    }
