"""Calling the provider: one attempt's request sent, its failures told in the gateway's words."""

from proxy.admission import Attempt
from proxy.describe import Described
from proxy.errors import UpstreamBroken, UpstreamFailed, UpstreamRefused, UpstreamTimedOut, UpstreamUnreachable
from proxy.providers import openai
from proxy.receive import Request
from proxy.wire import http1

ERROR_BODY_BYTES_MAX = 256 * 1024
FIRST_REDIRECT = 300
# What crosses from the client to the provider; everything else of its headers stays here.
REQUEST_HEADERS = (b"openai-beta", b"traceparent", b"tracestate")

_FIXED_HEADERS = (
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"tollgate"),
)


async def call_provider(
    pool: http1.UpstreamPool, attempt: Attempt, described: Described, request: Request
) -> http1.UpstreamResponse:
    """The provider's answer, its head read and its status 200. Raises an `UpstreamFailed`."""
    upstream, call = attempt.upstream, described.call
    authorization = upstream.authorization()
    headers = [
        *_FIXED_HEADERS,
        *authorization,
        (b"accept", b"text/event-stream" if call.is_stream else b"application/json"),
        # The provider's own log then names our attempt.
        (b"x-client-request-id", attempt.attempt_id.encode()),
    ]
    headers.extend((name, request.headers[name]) for name in REQUEST_HEADERS if name in request.headers)
    body = openai.build_body(call, upstream.deployment, upstream.provider)
    try:
        response = await pool.send(
            upstream.origin,
            b"POST",
            openai.TARGETS[call.operation],
            headers,
            body,
            connect_timeout_s=upstream.provider.connect_timeout_s,
            first_byte_timeout_s=upstream.provider.first_byte_timeout_s,
            idle_timeout_s=upstream.provider.idle_timeout_s,
            on_dispatch=attempt.dispatched,
        )
    except http1.UpstreamFailure as failure:
        raise gateway_error(failure) from failure
    if response.status >= 400:
        raise await _refused(response, authorization)
    if response.status != 200:
        response.close()  # A redirect is never followed, and never told: where a provider is, is the gateway's own affair.
        raise UpstreamBroken(
            f"the provider answered {response.status}", may_have_been_billed=response.status < FIRST_REDIRECT
        )
    return response


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


async def _refused(response: http1.UpstreamResponse, authorization: http1.Headers) -> UpstreamFailed:
    try:
        body = await response.read(ERROR_BODY_BYTES_MAX)
    except http1.UpstreamFailure:
        body = b""
    finally:
        response.close()
    if response.status in (401, 403):
        # The provider does not like *our* credential; its words may quote it.
        return UpstreamBroken("the provider refused the gateway's credential", may_have_been_billed=False)
    for _, value in authorization:
        # Some quote the key with other refusals too.
        body = body.replace(openai.secret_of(value), b"[redacted]")
    headers = [(name, value) for name, value in response.headers if name in openai.RESPONSE_HEADERS]
    return UpstreamRefused(response.status, body, headers)
