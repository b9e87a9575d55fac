"""Calling the provider: one attempt's request sent, its failures told in the gateway's words."""

import re
from collections.abc import Callable

from proxy.attempt import Attempt
from proxy.authenticate import SUBPROTOCOLS
from proxy.clock import Clock
from proxy.errors import (
    CredentialRefused,
    UpstreamBroken,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from proxy.headroom import Headrooms
from proxy.neutral import ProviderError
from proxy.prepare import Prepared
from proxy.providers.provider import Authorizer, Headers, Outgoing
from proxy.receive import Request
from proxy.registry import Upstream
from proxy.snapshot import Provider
from proxy.wire import http1
from proxy.wire.http1 import Origin
from proxy.wire.websocket import HandshakeRefused, WebSocket, connect

ERROR_BODY_BYTES_MAX = 256 * 1024
TOKEN_BODY_BYTES_MAX = 64 * 1024
SUCCESS = 200
FIRST_REDIRECT = 300
UNAUTHORIZED = (401, 403)
# OAuth says so with a 400, too (RFC 6749, 5.2).
NO_TOKEN = (400, *UNAUTHORIZED)
# What crosses from every client to the provider, besides what the dialect's own rules let through.
REQUEST_HEADERS = (b"traceparent", b"tracestate")

# Of what a client offers to speak on a WebSocket, what is the provider's business: not the key that browsers put there.
_CROSSING_SUBPROTOCOL = re.compile(rb"realtime|openai-beta\.[a-z0-9-]+")

_FIXED_HEADERS = ((b"accept-encoding", b"identity"), (b"user-agent", b"tollgate"))


async def call_provider(
    pool: http1.UpstreamPool, attempt: Attempt, request: Request, clock: Clock, headrooms: Headrooms
) -> http1.UpstreamResponse:
    """The provider's answer, its head read and its status a success. Raises an `UpstreamFailed`."""
    upstream, prepared = attempt.upstream, attempt.prepared
    outgoing = prepared.outgoing
    authorizer = _authorizer(attempt, headrooms)
    headers = [
        (b"content-type", outgoing.content_type),
        (b"accept", prepared.api.accept(attempt.described.call)),
        *_headers(attempt, request),
    ]
    if authorizer is not None:
        headers += await _authorization(pool, authorizer, upstream, outgoing, clock)
    response = await _send(pool, upstream.provider, upstream.origin, outgoing, headers, on_dispatch=attempt.dispatched)
    if response.status >= 400:
        refusal = await _refused(response, prepared, authorizer)
        _hear(headrooms, attempt, response.status, response.headers, refusal)
        raise refusal
    _hear(headrooms, attempt, response.status, response.headers)
    is_success = SUCCESS <= response.status < FIRST_REDIRECT
    if not is_success or (response.status != SUCCESS and not prepared.api.has_many_successes):
        response.close()  # A redirect is never followed, and never told: where a provider is, is the gateway's own affair.
        raise UpstreamBroken(f"the provider answered {response.status}", may_have_been_billed=is_success)
    return response


async def open_session(
    pool: http1.UpstreamPool, attempt: Attempt, request: Request, clock: Clock, headrooms: Headrooms
) -> WebSocket:
    """A WebSocket to the provider. Raises an `UpstreamFailed`; nothing is billed for a handshake."""
    upstream, prepared = attempt.upstream, attempt.prepared
    authorizer = _authorizer(attempt, headrooms)
    headers = _headers(attempt, request)
    if authorizer is not None:
        headers += await _authorization(pool, authorizer, upstream, prepared.outgoing, clock)
    offered = (protocol.strip() for protocol in request.headers.get(SUBPROTOCOLS, b"").split(b","))
    try:
        socket = await connect(
            upstream.origin,
            prepared.outgoing.target,
            headers,
            subprotocols=[protocol for protocol in offered if _CROSSING_SUBPROTOCOL.fullmatch(protocol)],
            ssl_context=pool.ssl_context(upstream.origin),
            connect_timeout_s=upstream.provider.connect_timeout_s,
            answer_timeout_s=upstream.provider.first_byte_timeout_s,
        )
    except HandshakeRefused as refused:
        if refused.status < 400:
            raise UpstreamBroken(f"the provider answered {refused.status}", may_have_been_billed=False) from refused
        refusal = _refusal(refused.status, refused.headers, refused.body, prepared, authorizer)
        _hear(headrooms, attempt, refused.status, refused.headers, refusal)
        raise refusal from refused
    except http1.UpstreamFailure as failure:
        failure.may_have_been_billed = False
        raise gateway_error(failure) from failure
    attempt.dispatched()
    return socket


def _authorizer(attempt: Attempt, headrooms: Headrooms) -> Authorizer | None:
    """The credential of the attempt: one that has room, if any has."""
    upstream, described = attempt.upstream, attempt.described
    authorizer = upstream.authorizer(
        described.credential_id,
        may_use=lambda credential_id: headrooms.has_room(upstream, credential_id, described.call),
    )
    if authorizer is not None:
        attempt.credential_id = authorizer.credential_id
    headrooms.take(upstream, attempt.credential_id, described.call)
    return authorizer


def _hear(
    headrooms: Headrooms, attempt: Attempt, status: int, headers: Headers, refusal: UpstreamFailed | None = None
) -> None:
    if isinstance(refusal, UpstreamRefused):
        headers = [*headers, *refusal.headers]  # When to come again may be in the body alone.
    headrooms.hear(attempt.upstream, attempt.credential_id, status, headers)


def _headers(attempt: Attempt, request: Request) -> Headers:
    """What goes with every call: what crosses from the client, what the provider wants besides."""
    prepared, said = attempt.prepared, request.headers
    # The provider's own log then names our attempt.
    headers = [*_FIXED_HEADERS, (b"x-client-request-id", attempt.attempt_id.encode())]
    crossing: tuple[bytes, ...] = REQUEST_HEADERS
    if not prepared.is_translated:
        crossing += attempt.described.call.dialect.request_headers
    for name in crossing:
        if name in said:
            headers.append((name, said[name]))
    for header in prepared.outgoing.headers:
        # What the client said itself counts, where it may.
        if header[0] not in said or header[0] not in crossing:
            headers.append(header)
    return headers


async def fetch(
    pool: http1.UpstreamPool, upstream: Upstream, outgoing: Outgoing, clock: Clock, credential_id: str
) -> http1.UpstreamResponse:
    """What the gateway itself wants to know of a provider, whatever the status; nobody is charged for asking. Raises an
    `UpstreamFailed`."""
    headers = [*_FIXED_HEADERS, (b"content-type", outgoing.content_type), (b"accept", b"*/*"), *outgoing.headers]
    authorizer = upstream.authorizer(credential_id)
    if authorizer is not None:
        headers += await _authorization(pool, authorizer, upstream, outgoing, clock)
    return await _send(pool, upstream.provider, upstream.origin, outgoing, headers)


async def _authorization(
    pool: http1.UpstreamPool, authorizer: Authorizer, upstream: Upstream, outgoing: Outgoing, clock: Clock
) -> Headers:
    wanted = authorizer.token_request(clock.now_s())
    if wanted is not None:
        await _refresh(pool, authorizer, upstream, clock, wanted)
    path = upstream.origin.path_prefix + outgoing.target
    return authorizer.headers(outgoing, upstream.origin.authority.decode(), path, clock.now_s())


async def _send(
    pool: http1.UpstreamPool,
    provider: Provider,
    origin: Origin,
    outgoing: Outgoing,
    headers: Headers,
    *,
    on_dispatch: Callable[[], None] | None = None,
) -> http1.UpstreamResponse:
    try:
        return await pool.send(
            origin,
            outgoing.method,
            outgoing.target,
            headers,
            outgoing.body,
            connect_timeout_s=provider.connect_timeout_s,
            first_byte_timeout_s=provider.first_byte_timeout_s,
            idle_timeout_s=provider.idle_timeout_s,
            on_dispatch=on_dispatch,
        )
    except http1.UpstreamFailure as failure:
        raise gateway_error(failure) from failure


async def _refresh(
    pool: http1.UpstreamPool,
    authorizer: Authorizer,
    upstream: Upstream,
    clock: Clock,
    wanted: tuple[str, Outgoing],
) -> None:
    """Fetch the short-lived token that some providers want instead of the credential itself."""
    base_url, outgoing = wanted
    headers = [*_FIXED_HEADERS, (b"content-type", outgoing.content_type), *outgoing.headers]
    response = await _send(pool, upstream.provider, Origin.parse(base_url), outgoing, headers)
    try:
        body = await response.read(TOKEN_BODY_BYTES_MAX)
        authorizer.token_answered(response.status, body, clock.now_s())
    except (http1.UpstreamFailure, ValueError) as error:
        message = "no access token for the provider could be had"
        if response.status in NO_TOKEN:
            raise CredentialRefused(message) from error
        raise UpstreamBroken(message, may_have_been_billed=False) from error
    finally:
        response.close()


def gateway_error(failure: http1.UpstreamFailure) -> UpstreamFailed:
    billed = failure.may_have_been_billed
    match failure:
        case http1.ConnectFailed() | http1.ConnectTimedOut():
            return UpstreamUnreachable("the provider cannot be reached", may_have_been_billed=billed)
        case http1.FirstByteTimedOut():
            return UpstreamTimedOut("the provider did not answer in time", may_have_been_billed=billed)
        case http1.IdleTimedOut():
            return UpstreamTimedOut("the provider stopped in the middle of its answer", may_have_been_billed=billed)
        case _:
            return UpstreamBroken("the provider's answer broke off or is not HTTP", may_have_been_billed=billed)


async def _refused(
    response: http1.UpstreamResponse, prepared: Prepared, authorizer: Authorizer | None
) -> UpstreamFailed:
    try:
        body = await response.read(ERROR_BODY_BYTES_MAX)
    except http1.UpstreamFailure:
        body = b""
    finally:
        response.close()
    return _refusal(response.status, response.headers, body, prepared, authorizer)


def _refusal(
    status: int, headers: Headers, body: bytes, prepared: Prepared, authorizer: Authorizer | None
) -> UpstreamFailed:
    for secret in authorizer.secrets if authorizer is not None else ():
        # Some quote the key in their refusals.
        body = body.replace(secret, b"[redacted]")
    error = prepared.api.read_error(status, body)
    # The provider does not like *our* credential, which one of them says with a 400; its words may quote it.
    if not {status, error.status_code}.isdisjoint(UNAUTHORIZED):
        return CredentialRefused("the provider refused the gateway's credential")
    return UpstreamRefused(
        status,
        error.message,
        kind=error.kind,
        code=error.code,
        param=error.param,
        body=None if prepared.is_translated or prepared.api.has_own_errors else body,
        headers=_crossing(headers, prepared.upstream, error),
    )


def _crossing(headers: Headers, upstream: Upstream, error: ProviderError) -> Headers:
    """What of a refusal's head crosses. Some providers say in the body alone when to come again."""
    crossing = [(name, value) for name, value in headers if name in upstream.kind.response_headers]
    if error.retry_after_s is not None and all(name != b"retry-after" for name, _ in crossing):
        crossing.append((b"retry-after", b"%d" % error.retry_after_s))
    return crossing
