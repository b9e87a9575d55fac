"""The API of virtual keys, of the vault's credentials, and of the tokens that open this API. A secret is answered once or never."""

from typing import Any, ClassVar

import django_filters
from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from audit.actors import Actor
from audit.api_base import (
    ApiFilterSet,
    ApiSerializer,
    ChangingView,
    CreatingView,
    ReasonSerializer,
    TrueOrFalse,
    WritingView,
)
from keys import services
from keys.credentials import LENGTH_MAX
from keys.models import CredentialPool, UpstreamCredential, VirtualKey
from teams.models import ApiToken
from teams.services import may_grant


class VirtualKeySerializer(ApiSerializer):
    default_tags = serializers.DictField(child=serializers.CharField(max_length=256), required=False)
    status = serializers.ChoiceField(choices=["active", "paused", "expired", "revoked"], read_only=True)

    class Meta:
        model = VirtualKey
        fields = (
            "id",
            "project",
            "name",
            "hint",
            "status",
            "aliases",
            "passthrough",
            "default_tags",
            "expires_at",
            "paused_at",
            "revoked_at",
            "created_at",
            "created_by",
        )


class IssuedVirtualKeySerializer(VirtualKeySerializer):
    """A virtual key with its secret, which no later answer says again."""

    secret = serializers.CharField(read_only=True)

    class Meta(VirtualKeySerializer.Meta):
        fields = (*VirtualKeySerializer.Meta.fields, "secret")  # type: ignore[assignment]


class VirtualKeyFilters(ApiFilterSet):
    team = django_filters.UUIDFilter(field_name="project__team_id")
    name = django_filters.CharFilter(lookup_expr="istartswith", label="The beginning of the name.")
    is_revoked = TrueOrFalse(field_name="revoked_at", lookup_expr="isnull", exclude=True)

    class Meta:
        model = VirtualKey
        fields = ("project", "hint")


class VirtualKeyView(ChangingView):
    """What applications hold. A key is not deleted but revoked: what it spent stays on record."""

    scope: ClassVar[str] = "keys"
    queryset = VirtualKey.objects.all()
    serializer_class = VirtualKeySerializer
    filterset_class = VirtualKeyFilters

    @extend_schema(responses={201: IssuedVirtualKeySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Issue a virtual key. This answer is the only one that says its secret."""
        return super().create(request, *args, **kwargs)

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> VirtualKey:
        issued = services.issue(VirtualKey(**values), actor=actor, reason=reason)
        self.secret = issued.secret
        return issued.virtual_key

    def shown_once(self, row: Any) -> dict[str, str]:
        return {"secret": self.secret.reveal()}

    @extend_schema(request=ReasonSerializer, responses=VirtualKeySerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Refuse its requests until it is resumed."""
        return self._answer(*self.act(services.pause_virtual_key))

    @extend_schema(request=ReasonSerializer, responses=VirtualKeySerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Accept its requests again."""
        return self._answer(*self.act(services.resume_virtual_key))

    @extend_schema(request=ReasonSerializer, responses=VirtualKeySerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Refuse its requests for good. Needs a reason."""
        return self._answer(*self.act(services.revoke_virtual_key))

    @extend_schema(request=ReasonSerializer, responses=IssuedVirtualKeySerializer)
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, pk: str) -> Response:
        """Give it a new secret, which only this answer says; the old one is dead at once. Needs a reason."""
        virtual_key, issued = self.act(services.rotate_virtual_key)
        return self._answer(virtual_key, secret=issued.secret.reveal())

    def _answer(self, virtual_key: VirtualKey, _: object = None, **more: str) -> Response:
        virtual_key.refresh_from_db()
        return Response({**self.get_serializer(virtual_key).data, **more})


class ApiTokenSerializer(ApiSerializer):
    class Meta:
        model = ApiToken
        fields = ("id", "service_account", "hint", "expires_at", "revoked_at", "last_used_at", "created_at")


class IssuedApiTokenSerializer(ApiTokenSerializer):
    """A token with its secret, which no later answer says again."""

    secret = serializers.CharField(read_only=True)

    class Meta(ApiTokenSerializer.Meta):
        fields = (*ApiTokenSerializer.Meta.fields, "secret")  # type: ignore[assignment]


class ApiTokenFilters(ApiFilterSet):
    is_revoked = TrueOrFalse(field_name="revoked_at", lookup_expr="isnull", exclude=True)

    class Meta:
        model = ApiToken
        fields = ("service_account",)


class ApiTokenView(CreatingView):
    """Bearer tokens of service accounts. Only who may do all that the account may can issue or revoke one."""

    scope: ClassVar[str] = "service_accounts"
    queryset = ApiToken.objects.select_related("service_account")
    serializer_class = ApiTokenSerializer
    filterset_class = ApiTokenFilters

    def check(self, values: dict[str, Any], present: Any = None) -> None:
        account = values["service_account"] if present is None else present.service_account
        if not may_grant(self.caller, account):
            raise PermissionDenied("This account may do more than you may, so its tokens are not yours to give.")

    @extend_schema(responses={201: IssuedApiTokenSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Issue a token. This answer is the only one that says its secret."""
        return super().create(request, *args, **kwargs)

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> ApiToken:
        issued = services.issue_api_token(
            values["service_account"], actor=actor, expires_at=values.get("expires_at"), reason=reason
        )
        self.secret = issued.secret
        return issued.api_token

    def shown_once(self, row: Any) -> dict[str, str]:
        return {"secret": self.secret.reveal()}

    @extend_schema(request=ReasonSerializer, responses=ApiTokenSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Refuse it for good. Needs a reason."""
        api_token, _ = self.act(services.revoke_api_token)
        api_token.refresh_from_db()
        return Response(self.get_serializer(api_token).data)


class CredentialPoolSerializer(ApiSerializer):
    class Meta:
        model = CredentialPool
        fields = ("id", "name", "provider", "created_at")


class CredentialPoolView(WritingView):
    """Credentials that stand in for one another at one provider."""

    scope: ClassVar[str] = "credentials"
    queryset = CredentialPool.objects.all()
    serializer_class = CredentialPoolSerializer
    filterset_fields = ("name", "provider")


class UpstreamCredentialSerializer(ApiSerializer):
    secret = serializers.CharField(
        write_only=True,
        max_length=LENGTH_MAX,
        help_text="As the provider gave it. It is sealed, and no answer says it.",
    )

    class Meta:
        model = UpstreamCredential
        fields = ("id", "pool", "name", "secret", "fingerprint", "is_active", "created_at")


class UpstreamCredentialFilters(ApiFilterSet):
    class Meta:
        model = UpstreamCredential
        fields = ("pool", "name", "is_active")


class UpstreamCredentialView(WritingView):
    """Providers' secrets, in the vault. They go in and never come out; `fingerprint` is the last four characters."""

    scope: ClassVar[str] = "credentials"
    queryset = UpstreamCredential.objects.all()
    serializer_class = UpstreamCredentialSerializer
    filterset_class = UpstreamCredentialFilters

    def insert(self, values: dict[str, Any], actor: Actor, reason: str) -> UpstreamCredential:
        secret = values.pop("secret")
        return services.store_credential(UpstreamCredential(**values), secret, actor=actor, reason=reason)

    def change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        secret = values.pop("secret", None)
        with transaction.atomic():
            super().change(row, values, actor, reason)
            if secret is not None:
                services.replace_credential_secret(row, secret, actor=actor, reason=reason)
