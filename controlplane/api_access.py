"""Who calls the REST API, and what they may do there: service accounts by token and scope, people by session and permission."""

from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from keys.tokens import API_TOKEN_PREFIX, TOKEN_LENGTH_MAX, digest
from teams.models import ApiToken, ServiceAccount

USED_EVERY = timedelta(minutes=1)
REFUSED = "This token is unknown, expired or revoked."


class BearerToken(BaseAuthentication):
    """`Authorization: Bearer tgapi-…`: a token of a service account, which is then `request.user`."""

    def authenticate(self, request: Request) -> tuple[Any, ApiToken] | None:
        scheme, _, presented = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        presented = presented.strip()
        if not presented.startswith(API_TOKEN_PREFIX) or len(presented) > TOKEN_LENGTH_MAX:
            raise exceptions.AuthenticationFailed(REFUSED)
        # By digest: what the time of the look-up tells of is a hash of the guess.
        token = ApiToken.objects.select_related("service_account__team").filter(digest=digest(presented)).first()
        if token is None or not token.is_usable:
            raise exceptions.AuthenticationFailed(REFUSED)
        _note_use(token)
        return token.service_account, token

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def _note_use(token: ApiToken) -> None:
    """At most once a minute: a read must not become a write."""
    now = timezone.now()
    before = now - USED_EVERY
    if token.last_used_at is None or token.last_used_at < before:
        unused = Q(last_used_at=None) | Q(last_used_at__lt=before)
        ApiToken.objects.filter(unused, pk=token.pk).update(last_used_at=now)


class BearerTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = BearerToken
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "A token of a service account: tgapi-…"}


class HasScope(BasePermission):
    """A service account needs the scope of the resource; somebody signed in, the permission on its model. Else: no."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        if view.action is None:
            return True  # There is no such method: that is what will be said.
        caller: Any = request.user
        if isinstance(caller, ServiceAccount):
            wanted = scope_of(view, request.method or "")
            if caller.may(wanted):
                return True
            raise exceptions.PermissionDenied(f"This needs the scope {wanted}.")
        return bool(caller.is_staff and caller.has_perm(permission_of(view, request.method or "")))


def scope_of(view: Any, method: str) -> str:
    """Such as `keys:write`. A view that names no resource has a scope that nobody holds."""
    return f"{view.scope}:{'read' if method in SAFE_METHODS else 'write'}"


def permission_of(view: Any, method: str) -> str:
    """Such as `keys.change_virtualkey`."""
    verb = view.permission_verbs.get(view.action) or _verb(view.action, method)
    options = view.queryset.model._meta
    return f"{options.app_label}.{verb}_{options.model_name}"


def _verb(action: str, method: str) -> str:
    if method in SAFE_METHODS:
        return "view"
    return {"create": "add", "destroy": "delete"}.get(action, "change")
