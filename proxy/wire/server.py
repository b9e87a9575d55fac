"""The server side of HTTP/1.1: uvicorn's httptools protocol, with one meaning per request and a deadline for each wait.

What could be read in two ways is refused before any application code sees it, in OpenAI's error shape, and the
connection is closed. No routing, no authentication, nothing about the body's content.
"""

import asyncio
import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState
from websockets.frames import CloseCode

from proxy.wire.websocket import WebSocket, accepting_headers, is_handshake, server_socket

MIB = 1024 * 1024
HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
TARGET_BYTES_MAX = 8 * 1024
PIPELINED_MAX = 8
# What a header costs beside its name and value: the colon, a space, the line's end.
HEADER_FRAMING_BYTES = 4
NEVER = float("inf")
SWEEP_S = 0.5
DRAIN_POLL_S = 0.02
YIELD_S = 0.001
ACCEPTED_AFTER_YIELD = 4
# For requests that were cut at the end of the grace.
SETTLE_S = 3.0

HOST = re.compile(rb"[A-Za-z0-9._~-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
# Headers that may come several times: lists by their standard, and nothing here decides by them.
REPEATABLE = frozenset(
    {
        b"accept", b"accept-encoding", b"accept-language", b"baggage", b"cache-control", b"cookie", b"forwarded",
        b"tracestate", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
    }
)  # fmt: skip

# What clients usually send, as they spell it: most names need no look of their own.
USUAL_NAMES = {
    spelling: name
    for name in (
        b"accept", b"accept-encoding", b"accept-language", b"authorization", b"connection", b"content-length",
        b"content-type", b"cookie", b"host", b"idempotency-key", b"openai-beta", b"openai-organization",
        b"openai-project", b"traceparent", b"tracestate", b"transfer-encoding", b"user-agent", b"via",
        b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"x-request-id",
        b"x-stainless-arch", b"x-stainless-async", b"x-stainless-lang", b"x-stainless-os",
        b"x-stainless-package-version", b"x-stainless-raw-response", b"x-stainless-read-timeout",
        b"x-stainless-retry-count", b"x-stainless-runtime", b"x-stainless-runtime-version", b"x-stainless-timeout",
        b"x-tollgate-tags",
    )
    for spelling in (name, name.title())
}  # fmt: skip


def last_answer(status_code: int, error_type: str, code: str, message: str, *more_headers: str) -> bytes:
    """A whole answer in OpenAI's error shape, after which the connection is closed."""
    body = json.dumps({"error": {"message": message, "type": error_type, "param": None, "code": code}}).encode()
    lines = [
        f"HTTP/1.1 {status_code} {HTTPStatus(status_code).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *more_headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


FAILED = last_answer(500, "server_error", "gateway_error", "the gateway failed")
STOPPING = last_answer(
    503, "server_error", "server_stopping", "this server stops: ask again, another one answers", "retry-after: 1"
)


class Refusal(Enum):
    """Why a request is refused: status, code, message."""

    MALFORMED = 400, "malformed_request", "this is not well-formed HTTP/1.1"
    VERSION = 505, "http_version_not_supported", "HTTP/1.1 is required (nginx: proxy_http_version 1.1)"
    TARGET = 400, "invalid_target", "the request target must be a path: no absolute URL, no *, no fragment"
    TARGET_TOO_LONG = 414, "target_too_long", f"the request target is longer than {TARGET_BYTES_MAX} bytes"
    HEAD_TOO_LARGE = 431, "headers_too_large", f"the headers are larger than {HEAD_BYTES_MAX} bytes"
    TOO_MANY_HEADERS = 431, "too_many_headers", f"there are more than {HEADERS_MAX} headers"
    HEADER_NAME = 400, "invalid_header_name", "header names with an underscore are refused: proxies differ on them"
    REPEATED_HEADER = 400, "repeated_header", "a header that must be single came more than once"
    HOST = 400, "invalid_host", "exactly one valid Host header is required"
    FRAMING = 400, "invalid_framing", "give either one valid Content-Length or `Transfer-Encoding: chunked`"
    EXPECTATION = 417, "unknown_expectation", "the only Expect header known here is 100-continue"
    UPGRADE = 400, "upgrade_refused", "no other protocol is spoken here: send no Upgrade header, no CONNECT"
    HANDSHAKE = 400, "invalid_handshake", "this is no handshake of a WebSocket: RFC 6455, version 13, no body"
    TRAILERS = 400, "trailers_refused", "fields after a chunked body are refused"
    BODY_TOO_LARGE = 413, "request_too_large", "the body is larger than this gateway accepts"
    HEAD_TOO_SLOW = 408, "request_timeout", "the headers did not arrive in time"
    BODY_TOO_SLOW = 408, "request_timeout", "the body did not arrive in time"
    PIPELINE_FULL = 400, "pipeline_full", f"more than {PIPELINED_MAX} requests wait for an answer on this connection"

    def __init__(self, status_code: int, code: str, message: str) -> None:
        self.response = last_answer(status_code, "invalid_request_error", code, message)


ASGI = {"version": "3.0", "spec_version": "2.3"}


class RequestRefused(Exception):
    """Raised inside a parser callback; httptools carries it out as the context of its own error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.name)
        self.refusal = refusal


@dataclass(frozen=True, kw_only=True)
class EdgeLimits:
    """What one connection may cost. A body has `body_s`, and a second more for each `body_bytes_per_s` that came.

    `body_bytes_max` counts a chunked body with its framing. A client that is refused in the middle of sending may send on
    for `linger_s` or `linger_bytes`, unread, so that it gets to read why; a reset would have taken the answer from it.
    """

    body_bytes_max: int = 32 * MIB
    head_s: float = 10.0
    body_s: float = 30.0
    body_bytes_per_s: int = 64 * 1024
    idle_s: float = 75.0
    stalled_write_s: float = 30.0
    linger_s: float = 5.0
    linger_bytes: int = 64 * MIB


DEFAULT_LIMITS = EdgeLimits()


class Reading(Enum):
    """Where the reader stands in the bytes that come in."""

    BETWEEN = "between requests"
    HEAD = "head"
    BODY = "body"
    DISCARDING = "discarding"
    UPGRADING = "what comes after the handshake of a WebSocket"


# Reading a member off its enum costs more than a global does, and these are read for every request.
BETWEEN, HEAD, BODY, DISCARDING, UPGRADING = Reading


class EdgeCycle(RequestResponseCycle):
    """One exchange. Writes in its own way: a whole answer is one write, and no header is looked at twice.

    The application sends `headers` and `body` with every message, and a body of known length in one piece.
    """

    _head = b""
    # Of an exchange that has become a session; its end ends the exchange.
    socket: WebSocket | None = None

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self._start(message["status"], message["headers"])
        else:
            self._go_on(message["body"], message.get("more_body", False))

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._give_up(STOPPING)
        except Exception:
            self.logger.exception("the application failed")
            self._give_up(FAILED)
        else:
            if self.socket is not None:
                self._end_session(self.socket)
            elif not self.response_complete and not self.disconnected:
                self.logger.error("the application left without a whole answer")
                self._give_up(FAILED)
        finally:
            self.on_response = lambda: None  # Parts the exchange from its connection, which refers to it.

    def _give_up(self, answer: bytes) -> None:
        if self.disconnected or self.response_complete:
            return
        if self.socket is not None:
            self._end_session(self.socket, CloseCode.INTERNAL_ERROR)
            return
        if not self.response_started:
            self.transport.write(answer)
        self.response_complete = True
        self.message_event.set()
        self.transport.close()
        self.on_response()

    def upgrade(self, headers: list[tuple[bytes, bytes]]) -> WebSocket:
        """Accept the handshake. From here on nothing is sent but through the WebSocket."""
        accepting = accepting_headers(dict(self.scope["headers"]))
        lines = [b"%b: %b\r\n" % header for header in (*self.default_headers, *accepting, *headers)]
        self.response_started = True
        self.socket = server_socket(self.transport, self.flow)
        if not self.disconnected:
            self.transport.write(b"%b%b\r\n" % (STATUS_LINE[101], _fields(lines)))
        return self.socket

    def _end_session(self, socket: WebSocket, code: int = CloseCode.NORMAL_CLOSURE) -> None:
        self.response_complete = True
        socket.close(code)

    def _start(self, status_code: int, headers: list[tuple[bytes, bytes]]) -> None:
        lines = [b"%b: %b\r\n" % header for header in (*self.default_headers, *headers)]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        fields = _fields(lines)
        self.chunked_encoding = b"\ncontent-length: " not in b"\n" + fields
        if self.chunked_encoding:
            fields += b"transfer-encoding: chunked\r\n"
        self.response_started = True
        self.waiting_for_100_continue = False
        head = b"%b%b\r\n" % (STATUS_LINE[status_code], fields)
        if self.chunked_encoding:
            self.transport.write(head)
        else:
            self._head = head  # Goes with the body.

    def _go_on(self, body: bytes, more_body: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.transport.write(self._head)
        elif self.chunked_encoding:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self.transport.write(chunk if more_body else chunk + b"0\r\n\r\n")
        else:
            assert not more_body, "an answer of known length comes whole"
            self.transport.write(self._head + body)
        if more_body:
            return
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _fields(lines: list[bytes]) -> bytes:
    fields = b"".join(lines)
    # What crosses from a provider must not bring a line of its own.
    assert fields.count(b"\n") == fields.count(b"\r") == len(lines), "a line break in a header"
    return fields


class EdgeProtocol(HttpToolsProtocol):
    """One client connection. Its deadlines are plain numbers that `EdgeServer` looks at, so that a request costs no timer.

    A `tollgate.client_gone` callable that the application puts into the scope is called when the client leaves early. At
    the paths of `websocket_paths` the scope of a handshake has a `tollgate.upgrade`: call it with headers to accept. Until
    then it is a request like any other, and may be answered as one.
    """

    refusals: ClassVar[Counter[Refusal]] = Counter()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        limits: EdgeLimits = DEFAULT_LIMITS,
        websocket_paths: Collection[bytes] = (),
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # uvicorn lets bytes after a `connection: close` request pass as another request.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self.limits = limits
        self.websocket_paths = websocket_paths
        # What came behind a handshake before it was accepted, and what it was made.
        self.early = b""
        self.socket: WebSocket | None = None
        self.reading = BETWEEN
        # What the deadline is for. The first head's runs from the connection on, later ones from their first byte.
        self.awaited = HEAD
        self.deadline = NEVER
        self.write_deadline = NEVER
        # Read since the last quiet moment, and how many of them belong to requests already read to their end.
        self.bytes_in = 0
        self.bytes_done = 0
        self.running: RequestResponseCycle | None = None

    # Called by the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.time() + self.limits.head_s

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        # uvicorn tells only the newest request of a pipeline.
        self._tell_gone()
        if self.socket is not None:
            self.socket.lost()

    def data_received(self, data: bytes) -> None:
        if self.reading is DISCARDING:
            self._discard(len(data))
            return
        if self.reading is UPGRADING:
            self._hear(data)
            return
        self.bytes_in += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, RequestRefused):
                raise
            self._refuse(error.__context__.refusal)
        except httptools.HttpParserUpgrade as upgrade:
            self.reading = UPGRADING
            self._hear(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(Refusal.MALFORMED)
        else:
            if self.reading is BETWEEN:
                self.bytes_in = self.bytes_done = 0
            else:
                self._await_rest(len(data))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_deadline = self.loop.time() + self.limits.stalled_write_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_deadline = NEVER

    # Called by the parser: in place of uvicorn's, which also look after HTTP/1.0, WebSockets and access logs.

    def on_message_begin(self) -> None:
        self.reading = HEAD
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((USUAL_NAMES.get(name) or _clean_name(name), value))

    def on_headers_complete(self) -> None:
        self._check_head()
        newest, self.cycle = self.cycle, self._make_cycle()
        if newest is None or newest.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        self.reading = BODY
        # The parser reports trailers as headers: they must not join a scope that the application already has.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.headers:
            raise RequestRefused(Refusal.TRAILERS)
        self.reading = self.awaited = BETWEEN
        self.bytes_done = self.bytes_in
        if self.cycle.response_complete:
            self.deadline = self.loop.time() + self.limits.idle_s
            return
        self.deadline = NEVER
        self.cycle.more_body = False
        self.cycle.message_event.set()

    def _hear(self, data: bytes) -> None:
        """What comes after a handshake."""
        if self.socket is not None:
            self.socket.feed(data)
        elif len(self.early) + len(data) <= HEAD_BYTES_MAX:
            self.early += data  # Early, but not wrong: it is read once the handshake is accepted.
        else:
            self.transport.abort()

    def _upgrade(self, cycle: EdgeCycle, headers: list[tuple[bytes, bytes]]) -> WebSocket:
        self.socket = cycle.upgrade(headers)
        if cycle.disconnected:
            self.socket.lost()
        elif self.early:
            self.socket.feed(self.early)
        self.early = b""
        return self.socket

    def _make_cycle(self) -> EdgeCycle:
        raw_path, _, query = self.url.partition(b"?")
        path = raw_path.decode("ascii")
        is_upgrade = self.parser.should_upgrade()
        scope: Any = {
            "type": "http",
            "asgi": ASGI,
            "http_version": "1.1",
            "method": self.parser.get_method().decode("ascii"),
            "scheme": self.scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
            "client": self.client,
            "server": self.server,
        }
        cycle = EdgeCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.parser.should_keep_alive() and not is_upgrade,
            on_response=self.on_response_complete,
        )
        if is_upgrade:
            scope["tollgate.upgrade"] = partial(self._upgrade, cycle)
        return cycle

    # Called by the application's side

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        # Before it begins: whoever cuts a request needs its task, and asking asyncio for it costs each request 2 µs.
        cast(dict[str, Any], cycle.scope)["tollgate.task"] = task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        """In place of uvicorn's, which arms a timer for each response."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.reading is BETWEEN:
            self.deadline = self.loop.time() + self.limits.idle_s

    # Deadlines

    def look_at_deadlines(self, now: float) -> None:
        """`now` is the event loop's clock."""
        if self.transport.is_closing() and self.write_deadline == NEVER:
            self.write_deadline = now + self.limits.stalled_write_s
        if self.write_deadline <= now:
            self.transport.abort()
        elif self.deadline <= now:
            self._deadline_passed(now)

    def _await_rest(self, size: int) -> None:
        """The read ended inside a request, `size` bytes after the one before."""
        bytes_in = self.bytes_in - self.bytes_done
        if self.reading is HEAD and bytes_in > HEAD_BYTES_MAX:
            self._refuse(Refusal.HEAD_TOO_LARGE)
            return
        if bytes_in > HEAD_BYTES_MAX + self.limits.body_bytes_max:
            self._refuse(Refusal.BODY_TOO_LARGE)
            return
        if self.awaited is not self.reading:
            self.awaited = self.reading
            self.deadline = self.loop.time() + (self.limits.head_s if self.reading is HEAD else self.limits.body_s)
        if self.reading is BODY:
            self.deadline += size / self.limits.body_bytes_per_s

    def _deadline_passed(self, now: float) -> None:
        if self.reading is HEAD:
            self._refuse(Refusal.HEAD_TOO_SLOW)
        elif self.reading is not BODY:
            self.transport.close()
        elif self.pipeline or self.flow.read_paused:
            self.deadline = now + self.limits.body_s  # It is we who do not read.
        else:
            self._refuse(Refusal.BODY_TOO_SLOW)

    # What is refused

    def _check_head(self) -> None:
        """Raises `RequestRefused`. The parser itself refuses folded lines, bare LF, NUL, and most framing tricks."""
        if len(self.headers) > HEADERS_MAX:
            raise RequestRefused(Refusal.TOO_MANY_HEADERS)
        if len(self.url) > TARGET_BYTES_MAX:
            raise RequestRefused(Refusal.TARGET_TOO_LONG)
        if self.bytes_in > HEAD_BYTES_MAX and self._head_bytes() > HEAD_BYTES_MAX:
            raise RequestRefused(Refusal.HEAD_TOO_LARGE)
        if self.parser.get_http_version() != "1.1":
            raise RequestRefused(Refusal.VERSION)
        if not self.url.startswith(b"/") or b"#" in self.url:
            raise RequestRefused(Refusal.TARGET)
        if len(self.pipeline) == PIPELINED_MAX:
            raise RequestRefused(Refusal.PIPELINE_FULL)
        self._check_fields(dict(self.headers))

    def _check_fields(self, fields: dict[bytes, bytes]) -> None:
        if len(fields) != len(self.headers):
            self._check_repeated()
        if HOST.fullmatch(fields.get(b"host", b"")) is None:
            raise RequestRefused(Refusal.HOST)
        if b"upgrade" in fields or self.parser.should_upgrade():
            self._check_upgrade(fields)
        if b"expect" in fields:
            self._check_expectation(fields[b"expect"])
        if b"transfer-encoding" in fields:
            self._check_chunked(fields)
        elif int(fields.get(b"content-length", 0)) > self.limits.body_bytes_max:
            raise RequestRefused(Refusal.BODY_TOO_LARGE)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + HEADER_FRAMING_BYTES for name, value in self.headers)

    def _check_repeated(self) -> None:
        times = Counter(name for name, _ in self.headers)
        if times[b"host"] > 1:
            raise RequestRefused(Refusal.HOST)
        if any(number > 1 and name not in REPEATABLE for name, number in times.items()):
            raise RequestRefused(Refusal.REPEATED_HEADER)

    def _check_upgrade(self, fields: dict[bytes, bytes]) -> None:
        if self.url.partition(b"?")[0] not in self.websocket_paths:
            raise RequestRefused(Refusal.UPGRADE)
        has_body = b"transfer-encoding" in fields or b"content-length" in fields
        is_alone = self.cycle is None or self.cycle.response_complete
        is_get = self.parser.get_method() == b"GET" and self.parser.should_upgrade()
        if has_body or not is_alone or not is_get or not is_handshake(fields):
            raise RequestRefused(Refusal.HANDSHAKE)

    def _check_expectation(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            raise RequestRefused(Refusal.EXPECTATION)
        self.expect_100_continue = True

    @staticmethod
    def _check_chunked(fields: dict[bytes, bytes]) -> None:
        if fields[b"transfer-encoding"].lower() != b"chunked" or b"content-length" in fields:
            raise RequestRefused(Refusal.FRAMING)

    # Refusing

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close. Behind requests that are still being answered: close once they are."""
        self.refusals[refusal] += 1
        if self.reading is BODY and self.pipeline:
            self.pipeline.popleft()  # The newest, whose body this was.
        elif self.reading is BODY:
            self._give_up_request(refusal)
            return
        self.reading = DISCARDING
        last = self.pipeline[0][0] if self.pipeline else self.running
        if last is None or last.response_complete:
            self._answer(refusal)
        else:
            last.keep_alive = False
            self.deadline = NEVER

    def _give_up_request(self, refusal: Refusal) -> None:
        """The application has the head of a request whose rest does not come or is not acceptable."""
        self.reading = DISCARDING
        has_started = self.cycle.response_started
        self._tell_gone()
        if has_started:
            self.transport.close()
        else:
            self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        self.bytes_in = 0
        self.deadline = self.loop.time() + self.limits.linger_s
        self.flow.resume_reading()
        self.transport.write(refusal.response)
        self.transport.write_eof()

    def _discard(self, size: int) -> None:
        self.bytes_in += size
        if self.bytes_in > self.limits.linger_bytes:
            self.transport.abort()

    def _tell_gone(self) -> None:
        cycle = self.running
        if cycle is None or cycle.response_complete:
            return
        cycle.disconnected = True
        cycle.message_event.set()
        if self.socket is not None and self.socket.was_closed:
            return  # It has said goodbye, and whoever reads the session hears it.
        client_gone: Callable[[], None] | None = cast(dict[str, Any], cycle.scope).get("tollgate.client_gone")
        if client_gone is not None:
            client_gone()


def _clean_name(name: bytes) -> bytes:
    if b"_" in name:
        raise RequestRefused(Refusal.HEADER_NAME)
    return name.lower()


class EdgeServer(Server):
    """uvicorn's server, with one timer for the deadlines of all connections, an eye on its siblings when it accepts one,
    and a stop that lets cut requests settle.

    Signals are the owner's business: it sets `should_exit`, and `grace_s` to 0 when there is no time.
    """

    def __init__(
        self,
        config: Config,
        *,
        grace_s: float,
        on_sweep: Callable[[], None] | None = None,
        is_my_turn: Callable[[], bool] | None = None,
    ) -> None:
        """`on_sweep` is called every `SWEEP_S` seconds, as long as the event loop turns. `is_my_turn` is asked before a
        connection is accepted from a socket that other processes accept from too."""
        super().__init__(config)
        self.grace_s = grace_s
        self._on_sweep = on_sweep
        self._is_my_turn = is_my_turn
        self._listeners: list[socket.socket] = []
        self._arriving: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes over the listening `sockets`: they are closed when it stops."""
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        self._listeners = sockets or []
        for listener in self._listeners:
            listener.setblocking(False)
            loop.add_reader(listener, self._knocked, loop, listener)
        self._sweep(loop)

    def connections(self) -> int:
        return len(self.server_state.connections) + len(self._arriving)

    def _knocked(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        """Every worker wakes for every connection. One that has its share lets the others go first, for a moment: should
        they be stuck, it accepts all the same."""
        if self._is_my_turn is None or self._is_my_turn():
            self._accept(loop, listener)
            return
        loop.remove_reader(listener)
        loop.call_later(YIELD_S, self._accept_waiting, loop, listener)

    def _accept_waiting(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        if listener not in self._listeners:
            return
        loop.add_reader(listener, self._knocked, loop, listener)
        for _ in range(ACCEPTED_AFTER_YIELD):
            if not self._accept(loop, listener):
                return

    def _accept(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> bool:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError:
            # Out of file descriptors. The listener stays readable: asking again at once would only spin.
            loop.remove_reader(listener)
            loop.call_later(SWEEP_S, self._accept_waiting, loop, listener)
            return False
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(loop.connect_accepted_socket(self._make_protocol, connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)
        return True

    def _make_protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(SWEEP_S, self._sweep, loop)
        if self._on_sweep is not None:
            self._on_sweep()
        now = loop.time()
        for connection in list(self.server_state.connections):
            cast(EdgeProtocol, connection).look_at_deadlines(now)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let live requests end for `grace_s`, cancel the rest and let them settle, then the lifespan."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._drain(lambda: self.grace_s)
        for task in list(self.server_state.tasks):
            task.cancel("the server stops")
        await self._drain(lambda: SETTLE_S)
        await self.lifespan.shutdown()

    async def _drain(self, seconds: Callable[[], float]) -> None:
        """`seconds` is asked each time: a second signal may cut the wait short."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self.server_state.tasks or self.server_state.connections:
            if loop.time() - began >= seconds():
                return
            await asyncio.sleep(DRAIN_POLL_S)
