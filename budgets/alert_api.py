"""The API of alerts, of the channels they go out by, and of their notices."""

from datetime import datetime
from typing import Any, ClassVar

import django_filters
from django.core.exceptions import PermissionDenied as Refused
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from audit.actors import Actor
from audit.api_base import (
    REASON_LENGTH_MAX,
    ApiFilterSet,
    ApiSerializer,
    ReadOnlyView,
    ReasonSerializer,
    StrictSerializer,
    WritingView,
    reasoned,
)
from budgets import alert_services as services
from budgets.alert_models import Alert, AlertQuerySet, Channel, Delivery
from budgets.channels import ADDRESS_LENGTH_MAX
from keys.vault import Secret


class ChannelSerializer(ApiSerializer):
    address = serializers.CharField(
        write_only=True,
        max_length=ADDRESS_LENGTH_MAX,
        help_text="Sealed at once, and in no answer. For a webhook an https URL, else an address as docs/alerts.md lists them.",
    )

    class Meta:
        model = Channel
        fields = (
            "id",
            "name",
            "team",
            "kind",
            "address",
            "least_severity",
            "may_be_private",
            "is_active",
            "created_at",
        )


class IssuedChannelSerializer(ChannelSerializer):
    """A channel with what its messages are signed with, which no later answer says again. Empty where nothing is signed."""

    signing_secret = serializers.CharField(read_only=True)

    class Meta(ChannelSerializer.Meta):
        fields = (*ChannelSerializer.Meta.fields, "signing_secret")  # type: ignore[assignment]


class DeliverySerializer(ApiSerializer):
    class Meta:
        model = Delivery
        fields = (
            "id",
            "channel",
            "channel_name",
            "alert",
            "event",
            "occurrence",
            "state",
            "tries",
            "due_at",
            "last_error",
            "created_at",
            "ended_at",
        )
        read_only_fields = fields


class ChannelFilters(ApiFilterSet):
    class Meta:
        model = Channel
        fields = ("team", "kind", "is_active")


class ChannelView(WritingView):
    """Where alerts go. Without a team it gets what concerns no team, and the alerts of teams that have no channel."""

    scope: ClassVar[str] = "alerts"
    queryset = Channel.objects.all()
    serializer_class = ChannelSerializer
    filterset_class = ChannelFilters

    @extend_schema(responses={201: IssuedChannelSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Add a channel. For a webhook this answer is the only one that says what its messages are signed with."""
        return super().create(request, *args, **kwargs)

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> Channel:
        address = values.pop("address")
        channel = Channel(**self._bounded({"team": None, **values}, is_readdressed=True))
        self.signing_secret: Secret | None = services.add_channel(channel, address, actor=actor, reason=reason)
        return channel

    def shown_once(self, row: Any) -> dict[str, str]:
        return {"signing_secret": self.signing_secret.reveal() if self.signing_secret else ""}

    def change(self, row: Channel, values: dict[str, Any], actor: Actor, reason: str) -> None:
        address = values.pop("address", "")
        bounded = self._bounded(values, is_readdressed=bool(address))
        services.change_channel(row, actor=actor, values=bounded, address=address, reason=reason)

    @extend_schema(request=ReasonSerializer, responses={202: DeliverySerializer})
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: str) -> Response:
        """Send a test. What becomes of it is in its notice, a few seconds later."""
        _, delivery = self.act(services.fire_test)
        return Response(DeliverySerializer(delivery).data, 202)

    @extend_schema(request=ReasonSerializer, responses=IssuedChannelSerializer)
    @action(detail=True, methods=["post"], url_path="renew-signing-secret")
    def renew_signing_secret(self, request: Request, pk: str) -> Response:
        """Give a webhook a new signing secret, which only this answer says; the old one signs nothing any more."""
        channel, secret = self.act(services.renew_signing_secret)
        return Response({**self.get_serializer(channel).data, "signing_secret": secret.reveal()})

    def _bounded(self, values: dict[str, Any], *, is_readdressed: bool) -> dict[str, Any]:
        try:
            return services.bounded(self.caller, values, is_readdressed=is_readdressed)
        except Refused as error:
            raise PermissionDenied(str(error)) from error


class AlertSerializer(ApiSerializer):
    status = serializers.ChoiceField(choices=Alert.Status.choices, read_only=True)

    class Meta:
        model = Alert
        fields = (
            "id",
            "kind",
            "severity",
            "status",
            "title",
            "text",
            "team_id",
            "about_id",
            "counter",
            "percent",
            "window_start",
            "window_end",
            "occurrence",
            "opened_at",
            "recovered_at",
            "recovery",
            "acknowledged_at",
            "acknowledged_by",
            "note",
        )
        read_only_fields = fields


class AlertFilters(ApiFilterSet):
    status = django_filters.ChoiceFilter(method="with_status", choices=Alert.Status.choices)

    class Meta:
        model = Alert
        fields = ("kind", "severity", "team_id", "about_id")

    def with_status(self, alerts: AlertQuerySet, name: str, status: str) -> AlertQuerySet:
        return alerts.of_status(status)


class NoteSerializer(StrictSerializer):
    note = serializers.CharField(max_length=REASON_LENGTH_MAX, help_text="What comes of it; goes on record.")


class MuteSerializer(ReasonSerializer):
    until = serializers.DateTimeField(help_text="A moment that has passed ends it.")


class MutedSerializer(serializers.Serializer[Any]):
    about_id = serializers.UUIDField()
    until = serializers.DateTimeField()


class AlertView(ReadOnlyView):
    """What somebody should know, from when it was so until it was over."""

    scope: ClassVar[str] = "alerts"
    http_method_names = ["get", "post", "head"]
    queryset = Alert.objects.all()
    serializer_class = AlertSerializer
    filterset_class = AlertFilters

    @extend_schema(request=NoteSerializer, responses=AlertSerializer)
    @action(detail=True, methods=["post"])
    def acknowledge(self, request: Request, pk: str) -> Response:
        """Say that somebody is on it, and what comes of it."""
        alert = self.get_object()
        serializer = NoteSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        services.acknowledge(alert, actor=Actor.from_request(request), note=serializer.validated_data["note"])
        return Response(self.get_serializer(alert).data)

    @extend_schema(request=MuteSerializer, responses=MutedSerializer)
    @action(detail=True, methods=["post"])
    def mute(self, request: Request, pk: str) -> Response:
        """Tell nobody of alerts about what this one is about, until then."""
        alert = self.get_object()
        serializer = MuteSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values, reason = reasoned(request, serializer)
        until: datetime = values["until"]
        muted = services.mute(alert, until, actor=Actor.from_request(request), reason=reason)
        return Response(MutedSerializer(muted).data)


class DeliveryFilters(ApiFilterSet):
    class Meta:
        model = Delivery
        fields = ("channel", "alert", "state", "event")


class DeliveryView(ReadOnlyView):
    """The notices of alerts: to whom, whether they arrived, and what was in the way."""

    scope: ClassVar[str] = "alerts"
    queryset = Delivery.objects.all()
    serializer_class = DeliverySerializer
    filterset_class = DeliveryFilters
