"""Who does something: the actor of every write. No models, no request handling beyond reading who asks and from where."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from django.conf import settings
from django.http import HttpRequest

Kind = Literal["user", "service_account", "system"]


@dataclass(frozen=True, slots=True)
class Actor:
    """`id` is empty for the system itself; `ip` is None where no request is behind the act."""

    kind: Kind
    id: str
    name: str
    ip: str | None = None

    @classmethod
    def from_request(cls, request: HttpRequest) -> Self:
        """The signed-in user or service account. Raises PermissionError when nobody is signed in."""
        principal: Any = request.user
        if not principal.is_authenticated:
            raise PermissionError("nobody is signed in, so nobody can be held to account")
        return cls(principal.actor_kind, str(principal.pk), str(principal), client_ip(request))

    @classmethod
    def system(cls, name: str) -> Self:
        return cls("system", "", name)


def client_ip(request: HttpRequest) -> str | None:
    """The address of the client, as the outermost proxy that we trust saw it; None on a Unix socket.

    Each trusted proxy appends the address it was called from, so only that many entries, from the right, are true;
    whatever stands left of them was written by the client.
    """
    forwarded = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",") if part.strip()]
    trusted: int = settings.TRUSTED_PROXIES
    if trusted and len(forwarded) >= trusted:
        return forwarded[-trusted]
    return str(request.META.get("REMOTE_ADDR", "")) or None
