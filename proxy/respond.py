"""Answering the client: heads, bodies, stream parts, and errors in the dialect's shape, also after the first byte."""

from collections.abc import Sequence

import msgspec

from proxy.authenticate import Subject
from proxy.dialects import openai
from proxy.errors import ClientGone, GatewayError, MethodNotAllowed, UpstreamRefused
from proxy.receive import Request, Send

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


class Responder:
    """One answer: nothing sent, then a whole body, or a stream that ends once."""

    __slots__ = ("_send", "has_ended", "has_started", "request_id", "status_code")

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self.request_id = request.request_id.encode()
        self.has_started = False
        self.has_ended = False
        self.status_code = 0

    async def whole(self, status_code: int, body: bytes, headers: Headers) -> None:
        headers.append((b"content-length", b"%d" % len(body)))
        await self._start(status_code, headers)
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self, headers: Headers) -> None:
        # Some reverse proxies buffer unless told not to.
        headers += [EVENT_STREAM, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._start(200, headers)

    async def part(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self, last: bytes = b"") -> None:
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": last})

    async def fail(self, error: GatewayError) -> None:
        """Tell the client what went wrong, in whichever way is still open. Nothing once the answer has ended."""
        if self.has_ended or isinstance(error, ClientGone):
            return
        if self.has_started:
            await self.end_stream(openai.render_error_event(error))
        elif isinstance(error, UpstreamRefused):
            await self._fail_in_the_providers_words(error)
        else:
            await self.whole(error.status_code, openai.render_error(error), _error_headers(error))

    async def _fail_in_the_providers_words(self, error: UpstreamRefused) -> None:
        """A client error of the provider crosses as it is; a failure of the provider is one of a gateway's (502)."""
        passes = error.status_code < 500 and _is_json_object(error.body)
        retry_after = [(name, value) for name, value in error.headers if name == b"retry-after"]
        if passes:
            await self.whole(error.status_code, error.body, [JSON, *retry_after])
            return
        told = GatewayError(
            f"the provider answered {error.status_code}: {_message_of(error.body)}",
            code="upstream_error",
            details={"upstream_status": error.status_code},
        )
        told.status_code = error.status_code if error.status_code < 500 else 502
        await self.whole(told.status_code, openai.render_error(told), [JSON, *retry_after])

    async def _start(self, status_code: int, headers: Headers) -> None:
        headers.append((b"x-request-id", self.request_id))
        self.has_started = True
        self.status_code = status_code
        await self._send({"type": "http.response.start", "status": status_code, "headers": headers})


def _error_headers(error: GatewayError) -> Headers:
    headers: Headers = [JSON]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    return headers


def rate_limit_headers(subject: Subject, remaining: Sequence[int], reset_ms: Sequence[int]) -> Headers:
    """`x-ratelimit-*` as OpenAI sends them, of the tightest limit of each kind; by position in the subject's limits."""
    headers: Headers = []
    for names, positions in subject.rate_headers:
        if positions:
            at = min(positions, key=remaining.__getitem__)
            headers.append((names.limit, b"%d" % subject.limits[at].per_minute))
            headers.append((names.remaining, b"%d" % max(remaining[at], 0)))
            headers.append((names.reset, b"%dms" % reset_ms[at]))
    return headers


def _is_json_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except msgspec.DecodeError:
        return False


class _ErrorObject(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject


def _message_of(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error.message[:500] or "no message"
    except msgspec.DecodeError:
        return "no message"
