"""Answering the client: heads, bodies, stream parts, and errors in the dialect's shape, also after the first byte."""

from collections.abc import Callable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

from websockets.frames import CloseCode

from proxy.authenticate import SUBPROTOCOLS
from proxy.dialects.dialect import Dialect
from proxy.errors import ClientGone, GatewayError, MethodNotAllowed, UpstreamRefused
from proxy.receive import Request, Send
from proxy.rules import Rules
from proxy.wire.json_gate import is_object
from proxy.wire.websocket import WebSocket

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")


class Responder:
    """One answer: nothing sent, then a whole body, or a stream that ends once."""

    __slots__ = ("_request", "_send", "_socket", "dialect", "has_ended", "has_started", "request_id", "status_code")

    def __init__(self, send: Send, request: Request, dialect: Dialect) -> None:
        self._send = send
        self._request = request
        self._socket: WebSocket | None = None
        self.dialect = dialect
        self.request_id = request.request_id
        self.has_started = False
        self.has_ended = False
        self.status_code = 0

    def tap(self, tapping: Callable[[Send], Send]) -> None:
        """Whatever is sent from here on goes through the `Send` that `tapping` makes of this one."""
        self._send = tapping(self._send)

    async def replay(self, status_code: int, headers: Headers, body: bytes) -> None:
        """An answer that was given before, the id of its request included."""
        self.has_started = self.has_ended = True
        self.status_code = status_code
        headers.append((b"x-tollgate-replayed", b"true"))
        await self._send({"type": "http.response.start", "status": status_code, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def whole(self, status_code: int, body: bytes, headers: Headers) -> None:
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send(self._start(status_code, headers))
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self, content_type: bytes, headers: Headers) -> None:
        # Some reverse proxies buffer unless told not to.
        headers += [(b"content-type", content_type), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._send(self._start(200, headers))

    async def part(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self, last: bytes = b"") -> None:
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": last})

    @property
    def offered_protocols(self) -> list[bytes]:
        """What the client would speak on a WebSocket, as it offered it."""
        return [protocol.strip() for protocol in self._request.headers.get(SUBPROTOCOLS, b"").split(b",")]

    def upgrade(self, headers: Headers) -> WebSocket:
        """Accept a handshake. What is said from here on, and how it ends, is the caller's, unless it fails."""
        headers.append((b"x-request-id", self.request_id.encode()))
        self.has_started = True
        self.status_code = HTTPStatus.SWITCHING_PROTOCOLS
        accept: Callable[[Headers], WebSocket] = self._request.scope["tollgate.upgrade"]
        self._socket = accept(headers)
        return self._socket

    async def fail(self, error: GatewayError) -> None:
        """Tell the client what went wrong, in whichever way is still open. Nothing once the answer has ended."""
        if self.has_ended or isinstance(error, ClientGone):
            return
        if self._socket is not None:
            self.has_ended = True
            code = CloseCode.POLICY_VIOLATION if error.status_code < 500 else CloseCode.INTERNAL_ERROR
            self._socket.close(code, error.code, last=self.dialect.render_error_event(error, self.request_id))
            return
        if self.has_started:
            await self.end_stream(self.dialect.render_error_event(error, self.request_id))
            return
        headers = _error_headers(error)
        if isinstance(error, UpstreamRefused):
            headers += [(name, value) for name, value in error.headers if name == b"retry-after"]
            if error.body is not None and error.upstream_status < 500 and is_object(error.body):
                # A client error of the provider crosses as it is, where the client speaks its dialect.
                await self.whole(error.upstream_status, error.body, headers)
                return
        await self.whole(error.status_code, self.dialect.render_error(error, self.request_id), headers)

    def _start(self, status_code: int, headers: Headers) -> MutableMapping[str, Any]:
        """The message that begins the answer."""
        request_id = self.request_id.encode()
        headers.append((b"x-request-id", request_id))
        if self.dialect.request_id_header != b"x-request-id":
            headers.append((self.dialect.request_id_header, request_id))
        self.has_started = True
        self.status_code = status_code
        return {"type": "http.response.start", "status": status_code, "headers": headers}


def _error_headers(error: GatewayError) -> Headers:
    headers: Headers = [JSON]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    return headers


def rate_limit_headers(rules: Rules, free: Sequence[int], reset_ms: Sequence[int]) -> Headers:
    """`x-ratelimit-*` as OpenAI sends them, of the tightest limit of each kind; by position among the rules' limits."""
    headers: Headers = []
    checks = rules.checks
    for names in rules.rate_headers:
        at = names.positions[0]
        remaining = checks[at].units_in(free[at])
        for other in names.positions[1:]:
            if (left := checks[other].units_in(free[other])) < remaining:
                remaining, at = left, other
        headers.append((names.limit, b"%d" % checks[at].amount))
        headers.append((names.remaining, b"%d" % remaining))
        headers.append((names.reset, b"%dms" % reset_ms[at]))
    return headers
