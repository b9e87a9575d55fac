"""WebSockets, to a client or to a provider: whole messages, bounded, with backpressure. What they say is not its business.

Framing is the sans-I/O protocol of `websockets` (RFC 6455), without extensions. A ping is answered by whoever gets it; two
sockets that are joined look after each their own side.
"""

import asyncio
import base64
import binascii
import re
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from uvicorn.protocols.http.flow_control import FlowControl
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import OP_BINARY, OP_CONT, OP_TEXT, CloseCode, Frame
from websockets.http11 import Response
from websockets.protocol import OPEN, Protocol, Side
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI
from websockets.utils import accept_key

from proxy.wire.http1 import (
    ConnectFailed,
    ConnectTimedOut,
    FirstByteTimedOut,
    Origin,
    UpstreamFailure,
    UpstreamProtocolError,
)

# OpenAI takes 15 MiB of audio in one event.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
# What is read ahead of whoever takes the messages: past it the other side has to wait.
BUFFERED_BYTES_MAX = 256 * 1024
# How long the other side has to answer our closing.
CLOSE_S = 3.0
REASON_BYTES_MAX = 123
VERSION = b"13"
KEY_BYTES = 16

_TARGET = re.compile(rb"/[\x21-\x7e]*")


class Message(NamedTuple):
    data: bytes
    is_text: bool = True


class Closed(Exception):
    """The other side is gone. `code` is its own (1005 where it gave none), or 1006 where it went without a word."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class HandshakeRefused(UpstreamFailure):
    """The provider answered with HTTP instead of a WebSocket."""

    may_have_been_billed = False

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.status = response.status_code
        self.headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.raw_items()]
        self.body = bytes(response.body or b"")


class WebSocket:
    """One side of a connection that has been opened. Read it by one task."""

    def __init__(self, protocol: Protocol, transport: asyncio.Transport, flow: FlowControl) -> None:
        self.subprotocol = (protocol.subprotocol or "").encode()
        self._protocol = protocol
        self._transport = transport
        self._flow = flow
        self._loop = asyncio.get_running_loop()
        self._messages: deque[Message] = deque()
        self._buffered_bytes = 0
        # Of a message that comes in several frames.
        self._parts: list[bytes] = []
        self._is_text = True
        self._waiter: asyncio.Future[None] | None = None
        self._closer: asyncio.TimerHandle | None = None
        self._is_done = False
        self.heard_at_s = self._loop.time()

    @property
    def was_closed(self) -> bool:
        """Whether the other side has said goodbye."""
        return self._protocol.close_rcvd is not None

    async def receive(self) -> Message:
        """The next message. Raises `Closed` once all that came before were taken."""
        while not self._messages:
            if self._protocol.state is not OPEN:
                raise self._closed()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        self._buffered_bytes -= len(message.data)
        if self._buffered_bytes <= BUFFERED_BYTES_MAX:
            self._flow.resume_reading()
        return message

    async def send(self, message: Message) -> None:
        """Raises `Closed`."""
        if self._flow.write_paused:
            await self._flow.drain()
        if self._protocol.state is not OPEN:
            raise self._closed()
        self._say(message)

    def ping(self) -> None:
        if self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            self._write()

    def silent_s(self) -> float:
        """For how long nothing has come; 0 while it is we who do not read."""
        return 0.0 if self._flow.read_paused else self._loop.time() - self.heard_at_s

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", last: bytes = b"") -> None:
        """Say `last` and goodbye; what still comes is not read any more. Idempotent, and does not wait."""
        self._is_done = True
        if self._protocol.state is OPEN:
            if last:
                self._say(Message(last))
            if code == CloseCode.NO_STATUS_RCVD:
                self._protocol.send_close()
            else:
                self._protocol.send_close(code, reason.encode()[:REASON_BYTES_MAX].decode("utf-8", "ignore"))
        self._write()
        self._messages.clear()
        self._buffered_bytes = 0
        self._flow.resume_reading()

    # Called by the connection

    def feed(self, data: bytes) -> None:
        if self._protocol.reader.eof:
            return
        self.heard_at_s = self._loop.time()
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._take(event)
        self._write()
        if self._buffered_bytes > BUFFERED_BYTES_MAX:
            self._flow.pause_reading()
        self._wake()

    def lost(self) -> None:
        self._protocol.receive_eof()
        if self._closer is not None:
            self._closer.cancel()
        self._wake()

    def _take(self, frame: Frame) -> None:
        if self._is_done:
            return
        if frame.opcode in (OP_TEXT, OP_BINARY):
            self._is_text = frame.opcode is OP_TEXT
        elif frame.opcode is not OP_CONT:
            return
        if frame.data:
            self._parts.append(bytes(frame.data))
        if frame.fin:
            message = Message(b"".join(self._parts), self._is_text)
            self._parts.clear()
            self._messages.append(message)
            self._buffered_bytes += len(message.data)

    def _say(self, message: Message) -> None:
        say = self._protocol.send_text if message.is_text else self._protocol.send_binary
        say(message.data)
        self._write()

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if self._transport.is_closing():
                continue
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
        if self._closer is None and self._protocol.close_expected():
            self._closer = self._loop.call_later(CLOSE_S, self._transport.abort)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _closed(self) -> Closed:
        received = self._protocol.close_rcvd
        return Closed(received.code, received.reason) if received else Closed(CloseCode.ABNORMAL_CLOSURE, "")


# The server's side


def is_handshake(fields: Mapping[bytes, bytes]) -> bool:
    """Whether the headers ask for a WebSocket, as RFC 6455 wants it."""
    try:
        key = base64.b64decode(fields.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        return False
    return (
        fields.get(b"upgrade", b"").lower() == b"websocket"
        and fields.get(b"sec-websocket-version") == VERSION
        and len(key) == KEY_BYTES
    )


def accepting_headers(fields: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    accepted = accept_key(fields[b"sec-websocket-key"].decode("ascii"))
    return [(b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", accepted.encode())]


def server_socket(transport: asyncio.Transport, flow: FlowControl) -> WebSocket:
    return WebSocket(Protocol(Side.SERVER, max_size=MESSAGE_BYTES_MAX), transport, flow)


# The client's side


async def connect(
    origin: Origin,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    subprotocols: Sequence[bytes],
    ssl_context: ssl.SSLContext | None,
    connect_timeout_s: float,
    answer_timeout_s: float,
) -> WebSocket:
    """A WebSocket at `target` below the origin's path. Raises an `UpstreamFailure`, `HandshakeRefused` among them."""
    offered = [Subprotocol(subprotocol.decode("ascii")) for subprotocol in subprotocols]
    uri = WebSocketURI(origin.scheme == "https", origin.host, origin.port, "/", "")
    protocol = ClientProtocol(uri, subprotocols=offered or None, max_size=MESSAGE_BYTES_MAX)
    head = _handshake(origin, target, headers, protocol.key.encode(), subprotocols)
    loop = asyncio.get_running_loop()
    connection = _Connection(protocol)
    try:
        try:
            async with asyncio.timeout(connect_timeout_s):
                await loop.create_connection(lambda: connection, origin.host, origin.port, ssl=ssl_context)
        except TimeoutError as error:
            raise ConnectTimedOut(f"{origin.pool_name} took no connection in time") from error
        except OSError as error:
            raise ConnectFailed(f"{origin.pool_name} cannot be reached") from error
        connection.transport.write(head)
        try:
            async with asyncio.timeout(answer_timeout_s):
                await connection.answered
        except TimeoutError as error:
            raise FirstByteTimedOut("no answer in time") from error
        if protocol.handshake_exc is not None:
            if isinstance(protocol.handshake_exc, InvalidStatus):
                raise HandshakeRefused(protocol.handshake_exc.response)
            raise UpstreamProtocolError("the provider's handshake is not valid") from protocol.handshake_exc
    except BaseException:
        connection.abort()
        raise
    connection.socket.subprotocol = (protocol.subprotocol or "").encode()
    return connection.socket


class _Connection(asyncio.Protocol):
    """The socket to a provider."""

    transport: asyncio.Transport
    socket: WebSocket

    def __init__(self, protocol: ClientProtocol) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        self._protocol = protocol
        self._flow: FlowControl | None = None

    def abort(self) -> None:
        if self._flow is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._flow = FlowControl(self.transport)
        self.socket = WebSocket(self._protocol, self.transport, self._flow)

    def data_received(self, data: bytes) -> None:
        self.socket.feed(data)
        if self._protocol.state is OPEN or self._protocol.handshake_exc is not None:
            self._answer()

    def pause_writing(self) -> None:
        assert self._flow is not None
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        assert self._flow is not None
        self._flow.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.socket.lost()
        self.resume_writing()
        self._answer()

    def _answer(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)


def _handshake(
    origin: Origin, target: bytes, headers: Sequence[tuple[bytes, bytes]], key: bytes, subprotocols: Sequence[bytes]
) -> bytes:
    if not _TARGET.fullmatch(target):
        raise ValueError("a target begins with / and is visible ASCII")
    lines = [
        b"GET %b%b HTTP/1.1" % (origin.path_prefix, target),
        b"host: " + origin.authority,
        b"upgrade: websocket",
        b"connection: Upgrade",
        b"sec-websocket-key: " + key,
        b"sec-websocket-version: " + VERSION,
        *(b"%b: %b" % header for header in headers),
    ]
    if subprotocols:
        lines.append(b"sec-websocket-protocol: " + b", ".join(subprotocols))
    head = b"\r\n".join([*lines, b"", b""])
    # One count over the whole finds a line break smuggled into any value.
    if not head.count(b"\n") == head.count(b"\r") == len(lines) + 1 or b"\0" in head:
        raise ValueError("a header value holds a line break or a NUL")
    return head
