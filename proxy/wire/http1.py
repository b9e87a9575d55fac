"""Upstream HTTP/1.1: one worker's connections to the providers. No routing, no retries, no idea of what a body means.

A request that was handed to a socket is never sent a second time by this module, whatever happens to it: the provider
may already be charging for it. Every failure says so in `may_have_been_billed`.

Parsing is `httptools` (llhttp, strict); sockets are plain `asyncio.Protocol`s, so that a short exchange costs two
wake-ups of the loop and no task. Bodies are never decompressed, redirects never followed, cookies never kept.
"""

import asyncio
import functools
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import ECONNABORTED
from math import inf
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

CONNECTIONS_MAX = 10_000
IDLE_LIFETIME_S = 15.0
KEEP_ALIVE_MARGIN_S = 1
HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 200
BUFFERED_BYTES_MAX = 256 * 1024
SWEEP_EVERY_S = 0.1

# Past this size a copy costs more than a second buffer in the same write.
_JOINED_BODY_BYTES_MAX = 64 * 1024

Headers = Sequence[tuple[bytes, bytes]]


class UpstreamFailure(Exception):
    """A call that did not end well. `may_have_been_billed`: whether the provider may charge for it."""

    may_have_been_billed = True


class ConnectFailed(UpstreamFailure):
    """No listener, no such host, or no trust in its certificate. Nothing was sent."""

    may_have_been_billed = False


class PoolExhausted(ConnectFailed):
    """The origin has as many connections as it may have; whoever comes now does not wait in line."""


class ConnectTimedOut(UpstreamFailure):
    """Not connected in time. Nothing was sent."""

    may_have_been_billed = False


class UpstreamProtocolError(UpstreamFailure):
    """Not HTTP, or cut short: the connection ended before its answer did."""


class FirstByteTimedOut(UpstreamFailure):
    """No response headers in time."""


class IdleTimedOut(UpstreamFailure):
    """The answer began, then fell silent."""


class BodyTooLarge(UpstreamFailure):
    """The answer is longer than its reader is ready to hold."""


class ResponseClosed(UpstreamFailure):
    """Closed on our side while somebody still waited for more of it."""


_PATH = re.compile(r"(?:/[A-Za-z0-9\-._~!$&'()*+,;=:@%]*)*")
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_HEADER_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout=(\d{1,9})")
_METHODS = frozenset({b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"})
# How a message ends, and where it goes, is decided here and by nobody else.
_FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
_OUR_HEADERS = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"te", b"expect"}
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a provider listens, from its base URL; `path_prefix` goes before every target. Made by `parse` alone."""

    scheme: str
    host: str
    port: int
    path_prefix: bytes
    authority: bytes = field(repr=False)
    pool_name: str = field(repr=False)

    @classmethod
    def parse(cls, base_url: str) -> Self:
        """`http[s]://host[:port][/prefix]`, and nothing else. Raises `ValueError`."""
        if not base_url.isascii() or not base_url.isprintable() or " " in base_url:
            raise ValueError("a base URL is printable ASCII without blanks (write an international host as xn--…)")
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"}:
            raise ValueError("a base URL begins with http:// or https://")
        if "@" in parts.netloc:
            raise ValueError("a base URL holds no user or password")
        if "?" in base_url or "#" in base_url:
            raise ValueError("a base URL has no query and no fragment")
        if not parts.hostname or parts.port == 0:
            raise ValueError("a base URL names a host, and a port between 1 and 65535")
        if not _PATH.fullmatch(parts.path):
            raise ValueError("the path of a base URL holds a character that must be percent-encoded")
        default_port = 443 if parts.scheme == "https" else 80
        port = parts.port or default_port
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        authority = name if port == default_port else f"{name}:{port}"
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port,
            path_prefix=parts.path.rstrip("/").encode(),
            authority=authority.encode(),
            pool_name=f"{parts.scheme}://{authority}",
        )


class UpstreamPool:
    """The connections of one event loop; make it, use it and close it there.

    `connections_max` is per scheme, host and port. A connection that was idle for `idle_lifetime_s`, or for
    as long as the provider said it would keep it, is not used again.
    `ssl_context` defaults to the system's certificate authorities.
    """

    def __init__(
        self,
        *,
        connections_max: int = CONNECTIONS_MAX,
        idle_lifetime_s: float = IDLE_LIFETIME_S,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.connections_max = connections_max
        self.idle_lifetime_s = idle_lifetime_s
        self.loop = asyncio.get_running_loop()
        self.is_closed = False
        self._ssl_context = ssl_context
        self._sites: dict[str, _Site] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def busy_connections(self) -> int:
        """Connections that carry a request, or are being made to carry one."""
        return sum(len(site.busy) + site.connecting for site in self._sites.values())

    @property
    def idle_connections(self) -> int:
        return sum(len(site.idle) for site in self._sites.values())

    async def send(
        self,
        origin: Origin,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        connect_timeout_s: float,
        first_byte_timeout_s: float,
        idle_timeout_s: float,
        on_dispatch: Callable[[], None] | None = None,
    ) -> "UpstreamResponse":
        """Send one request and wait for the head of its answer. `on_dispatch` is called once connected, right before the
        first byte leaves: whatever goes wrong earlier has cost nothing.

        `target` begins with `/` and follows the origin's path prefix. Host, content-length and whatever else frames
        the message are written here: giving them is a `ValueError`, and so is a line break in a value. Raises an
        `UpstreamFailure`. Cancelling closes the connection at once; so must whoever leaves the response unread.
        """
        assert not self.is_closed, "the pool is closed"
        head = _encode_head(origin, method, target, headers, len(body))
        site = self._sites.get(origin.pool_name) or self._add_site(origin)
        connection = site.take_idle() or await site.connect(connect_timeout_s)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_EVERY_S, self._sweep)
        response = UpstreamResponse(connection, idle_timeout_s)
        if on_dispatch is not None:
            on_dispatch()
        connection.send(response, head, body)
        await response._wait_for_head(first_byte_timeout_s)
        return response

    async def close(self) -> None:
        """Abort every connection, those in use too. Idempotent."""
        self.is_closed = True
        for site in self._sites.values():
            site.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        await asyncio.sleep(0)  # The sockets themselves are closed at the end of this tick.

    def ssl_context(self, origin: Origin) -> ssl.SSLContext | None:
        """None where the origin is spoken to in the clear."""
        if origin.scheme != "https":
            return None
        if self._ssl_context is None:
            self._ssl_context = _default_ssl_context()
        return self._ssl_context

    def _add_site(self, origin: Origin) -> "_Site":
        site = self._sites[origin.pool_name] = _Site(self, origin, self.ssl_context(origin))
        return site

    def _sweep(self) -> None:
        """Every deadline of every connection. One timer for all: arming one per request costs more than the parsing."""
        now = self.loop.time()
        for site in self._sites.values():
            site.sweep(now)
        has_connections = any(site.busy or site.idle for site in self._sites.values())
        self._sweeper = self.loop.call_later(SWEEP_EVERY_S, self._sweep) if has_connections else None


class UpstreamResponse:
    """One answer. `headers` have lower-case names, in the order they came.

    Read it by one task, with `read` or `next_chunk`, and `close` it in a `finally`.
    """

    __slots__ = (
        "_buffered_bytes",
        "_chunks",
        "_connection",
        "_failure",
        "_idle_timeout_s",
        "_is_complete",
        "_is_paused",
        "_waiter",
        "has_heard_all",
        "headers",
        "received_at_s",
        "status",
        "trip_s",
    )

    def __init__(self, connection: "_Connection", idle_timeout_s: float) -> None:
        self.status = 0
        # The other side has said that nothing more comes, whether or not its answer was complete.
        self.has_heard_all = False
        self.trip_s = connection.trip_s
        # When its last bytes came; who reads them may be late. Not by the loop's clock, which stands still for a turn of it, and
        # counts milliseconds: what came would seem to be older than what was asked.
        self.received_at_s = time.monotonic()
        self.headers: list[tuple[bytes, bytes]] = []
        self._connection = connection
        self._idle_timeout_s = idle_timeout_s
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._is_complete = False
        self._is_paused = False
        self._failure: UpstreamFailure | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes, default: bytes = b"") -> bytes:
        """The first of that lower-case name."""
        for candidate, value in self.headers:
            if candidate == name:
                return value
        return default

    async def next_chunk(self) -> bytes:
        """All the body bytes that are here, or the next to come; `b""` when the body has ended well.

        Raises `UpstreamProtocolError` (after the last bytes that came), `IdleTimedOut`, or `ResponseClosed` when
        somebody closed it with bytes unread. Who is cancelled can go on to read.
        """
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self._is_complete:
                return b""
            await self._wait(self._idle_timeout_s)
        return self._take()

    async def read(self, bytes_max: int) -> bytes:
        """The whole body. Raises `BodyTooLarge` past `bytes_max`, and what `next_chunk` raises."""
        parts: list[bytes] = []
        size = 0
        try:
            while chunk := await self.next_chunk():
                size += len(chunk)
                if size > bytes_max:
                    self.close()
                    raise BodyTooLarge(f"the provider's answer is longer than {bytes_max} bytes")
                parts.append(chunk)
        except asyncio.CancelledError:
            self.close()
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def hang_up(self) -> bool:
        """Say that no more is wanted, and stay to read what is on its way. False where that cannot be said (TLS has no word for
        it): then what is at hand is all there is."""
        return self._is_complete or self._failure is not None or self._connection.write_eof()

    def close(self) -> None:
        """Be done with it. An answer not yet complete takes its connection along. Idempotent."""
        closed = ResponseClosed("the response was closed before its end")
        if not self._is_complete:
            self._fail(closed)
        elif self._chunks:
            self._failure = closed
        self._chunks.clear()

    async def _wait_for_head(self, timeout_s: float) -> None:
        try:
            while not self.status:
                if self._failure is not None:
                    raise self._failure
                await self._wait(timeout_s)
        except asyncio.CancelledError:
            self.close()
            raise

    def _fail(self, failure: UpstreamFailure) -> None:
        """The first failure counts, and ends the connection; what came before it can still be read."""
        if self._is_complete or self._failure is not None:
            return
        self._failure = failure
        self._connection.abort()
        self._wake()

    def _time_out(self) -> None:
        late = IdleTimedOut("the provider fell silent") if self.status else FirstByteTimedOut("no answer in time")
        self._fail(late)

    async def _wait(self, timeout_s: float) -> None:
        assert self._waiter is None, "one task reads a response"
        connection = self._connection
        loop = connection.site.pool.loop
        self._waiter = loop.create_future()
        connection.deadline = loop.time() + timeout_s
        try:
            await self._waiter
        finally:
            self._waiter = None
            # A complete response has given its connection back, and that may carry another's deadline by now.
            if not self._is_complete:
                connection.deadline = inf

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self) -> bytes:
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._connection.resume_reading()
        return body


class _Site:
    """The connections to one scheme, host and port."""

    def __init__(self, pool: UpstreamPool, origin: Origin, ssl_context: ssl.SSLContext | None) -> None:
        self.pool = pool
        self.host = origin.host
        self.port = origin.port
        self.name = origin.pool_name
        self.ssl_context = ssl_context
        self.busy: set[_Connection] = set()
        # Until when each may be used. The last one in is the first one out, so that the rest can age and go.
        self.idle: dict[_Connection, float] = {}
        self.connecting = 0

    def take_idle(self) -> "_Connection | None":
        now = self.pool.loop.time()
        while self.idle:
            connection, usable_until = self.idle.popitem()
            if now < usable_until and connection.is_open():
                self.busy.add(connection)
                return connection
            connection.abort()
        return None

    def put_idle(self, connection: "_Connection") -> None:
        self.busy.discard(connection)
        lifetime_s = min(self.pool.idle_lifetime_s, connection.announced_lifetime_s)
        self.idle[connection] = self.pool.loop.time() + lifetime_s

    def forget(self, connection: "_Connection") -> None:
        self.busy.discard(connection)
        self.idle.pop(connection, None)

    async def connect(self, timeout_s: float) -> "_Connection":
        if len(self.busy) + len(self.idle) + self.connecting >= self.pool.connections_max:
            raise PoolExhausted(f"{self.name} already has {self.pool.connections_max} connections")
        connection = _Connection(self)
        self.connecting += 1
        began_at_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                await self.pool.loop.create_connection(lambda: connection, self.host, self.port, ssl=self.ssl_context)
            if self.pool.is_closed or not connection.is_open():
                raise ConnectionAbortedError(ECONNABORTED, "hung up before anything was sent")
            connection.trip_s = time.monotonic() - began_at_s
            self.busy.add(connection)
        except TimeoutError as error:
            raise ConnectTimedOut(f"{self.name} took no connection in time") from error
        except OSError as error:
            raise ConnectFailed(f"{self.name} cannot be reached: {error.strerror or type(error).__name__}") from error
        finally:
            self.connecting -= 1
            if connection not in self.busy:
                connection.abort()
        return connection

    def sweep(self, now: float) -> None:
        for connection in [c for c in self.busy if c.deadline < now]:
            connection.time_out()
        for connection in [c for c, usable_until in self.idle.items() if usable_until < now]:
            connection.abort()

    def close(self) -> None:
        for connection in [*self.busy, *self.idle]:
            connection.close()


class _Connection(asyncio.Protocol):
    """One socket, and the answer that is being read from it."""

    __slots__ = (
        "_has_hung_up",
        "_may_reuse",
        "_parser",
        "_response",
        "_transport",
        "_unproductive_bytes",
        "announced_lifetime_s",
        "deadline",
        "is_lost",
        "site",
        "trip_s",
    )

    def __init__(self, site: _Site) -> None:
        self.site = site
        self.deadline = inf
        self.announced_lifetime_s = inf
        self.is_lost = False
        # How long it took to connect: no less than there and back.
        self.trip_s = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._response: UpstreamResponse | None = None
        self._transport: asyncio.Transport | None = None
        self._may_reuse = False
        self._has_hung_up = False
        # Received since the last body byte: the head, and later trailers and chunk extensions.
        self._unproductive_bytes = 0

    def send(self, response: UpstreamResponse, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        self._response = response
        self._may_reuse = False
        self._unproductive_bytes = 0
        if len(body) <= _JOINED_BODY_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def is_open(self) -> bool:
        return not self.is_lost and self._transport is not None and not self._transport.is_closing()

    def write_eof(self) -> bool:
        if self._transport is None or not self._transport.can_write_eof() or not self.is_open():
            return False
        if not self._has_hung_up:
            self._has_hung_up = True
            self._transport.write_eof()
        return True

    def resume_reading(self) -> None:
        if self._transport is not None and self.is_open():
            self._transport.resume_reading()

    def time_out(self) -> None:
        if self._response is not None:
            self._response._time_out()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self.abort()

    def abort(self) -> None:
        self.is_lost = True
        self._response = None
        self.site.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _release(self) -> None:
        """The answer is whole: back to the pool, if both sides are done with it."""
        assert self._transport is not None
        self._response = None
        self.deadline = inf
        # A provider that answers before it has read the whole request leaves the rest of it in our buffer.
        if self._may_reuse and not self._has_hung_up and self._transport.get_write_buffer_size() == 0:
            self.site.put_idle(self)
        else:
            self.abort()

    def _end(self, failure: UpstreamProtocolError) -> None:
        if self._response is not None:
            self._response._fail(failure)
        self.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.is_lost:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        response, transport = self._response, self._transport
        if response is None or transport is None:
            # Nobody asked. Whatever it is, the next request must not take it for its answer.
            self.abort()
            return
        response.received_at_s = time.monotonic()
        buffered_before = response._buffered_bytes
        self._unproductive_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            reason = error.__context__ if isinstance(error.__context__, UpstreamProtocolError) else None
            self._end(reason or UpstreamProtocolError("the provider's answer is not valid HTTP/1.1"))
            response._wake()  # It may have been complete before the nonsense began.
            return
        if response._is_complete:
            self._release()
        elif response._buffered_bytes > buffered_before:
            self._unproductive_bytes = 0
            if response._buffered_bytes > BUFFERED_BYTES_MAX:
                response._is_paused = True
                transport.pause_reading()
        elif self._unproductive_bytes > HEAD_BYTES_MAX:
            self._end(UpstreamProtocolError("the provider's answer has too long a head or trailer"))
            return
        if response.status:
            response._wake()

    def eof_received(self) -> None:
        if self._response is not None:
            self._response.has_heard_all = True
        self._finish()
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._finish()
        self._end(UpstreamProtocolError("the connection to the provider was lost"))

    def _finish(self) -> None:
        """The other side has said all it will say: right only for a body that nothing else delimits."""
        response = self._response
        if response is None:
            return
        if not response.status:
            self._end(UpstreamProtocolError("the provider hung up before it answered"))
        elif any(name in _FRAMING_HEADERS for name, _ in response.headers):
            self._end(UpstreamProtocolError("the provider hung up in the middle of its answer"))
        else:
            response._is_complete = True
            response._wake()

    # httptools. What is raised here comes out of `feed_data`.

    def on_message_begin(self) -> None:
        if self._response is None or self._response._is_complete:
            raise UpstreamProtocolError("the provider sent an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        assert response is not None
        if response.status:
            return  # A trailer.
        name = name.lower()
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise UpstreamProtocolError("the provider's answer has a transfer coding other than chunked")
        if name == b"keep-alive":
            self.announced_lifetime_s = _announced_lifetime_s(value)
        response.headers.append((name, value))

    def on_headers_complete(self) -> None:
        response = self._response
        assert response is not None
        status = self._parser.get_status_code()
        headers = response.headers
        if status == 101 or not 100 <= status <= 599:
            raise UpstreamProtocolError("the provider answered with a status that is none")
        if len(headers) > HEADERS_MAX:
            raise UpstreamProtocolError(f"the provider's answer has more than {HEADERS_MAX} headers")
        # The read may hold a part of the body too; count the head alone only when it could matter.
        if self._unproductive_bytes > HEAD_BYTES_MAX and _head_bytes(headers) > HEAD_BYTES_MAX:
            raise UpstreamProtocolError(f"the head of the provider's answer has more than {HEAD_BYTES_MAX} bytes")
        if status < 200:
            headers.clear()
        else:
            response.status = status

    def on_body(self, body: bytes) -> None:
        response = self._response
        assert response is not None
        response._chunks.append(body)
        response._buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        response = self._response
        assert response is not None
        if response.status:
            response._is_complete = response.has_heard_all = True
            self._may_reuse = self._parser.should_keep_alive()


def _encode_head(origin: Origin, method: bytes, target: bytes, headers: Headers, body_bytes: int) -> bytes:
    if method not in _METHODS:
        raise ValueError("not a method that this client speaks")
    if not _TARGET.fullmatch(target):
        raise ValueError("a target begins with / and is visible ASCII")
    parts = [method, b" ", origin.path_prefix, target, b" HTTP/1.1\r\nhost: ", origin.authority]
    for name, value in headers:
        _check_header_name(name)
        parts += (b"\r\n", name, b": ", value)
    has_body = body_bytes > 0 or method != b"GET"
    if has_body:
        parts += (b"\r\ncontent-length: ", b"%d" % body_bytes)
    parts.append(b"\r\n\r\n")
    head = b"".join(parts)
    # One count over the whole finds a line break smuggled into any value.
    line_count = len(headers) + has_body + len(("request line", "host", "empty line"))
    if head.count(b"\n") != line_count or head.count(b"\r") != line_count or b"\0" in head:
        raise ValueError("a header value holds a line break or a NUL")
    return head


# Names come from allow-lists, so there are few; the bound is for the day that this is no longer so.
@functools.lru_cache(maxsize=1024)
def _check_header_name(name: bytes) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("not a header name")
    if name.lower() in _OUR_HEADERS:
        raise ValueError(f"{name.decode()} is written by the client itself")


def _announced_lifetime_s(keep_alive: bytes) -> float:
    """What `Keep-Alive: timeout=5` promises, less a margin: a request must not cross the provider's goodbye."""
    timeout = _KEEP_ALIVE_TIMEOUT.search(keep_alive)
    return max(0, int(timeout[1]) - KEEP_ALIVE_MARGIN_S) if timeout else inf


def _head_bytes(headers: Headers) -> int:
    return sum(len(name) + len(value) + len(": \r\n") for name, value in headers)


def _default_ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
