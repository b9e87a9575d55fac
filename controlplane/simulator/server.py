"""The simulator on the wire: HTTP/1.1 connections that play scripts. What is answered, and why, is in `simulator.py`.

No framework and no tasks: a connection is a protocol object, a wait is a timer; so 5,000 open streams are 5,000 timers.
"""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import cast
from urllib.parse import unquote

import httptools

from controlplane.simulator.calls import Call, Request
from controlplane.simulator.script import Cut, Pause, Step, Until, script
from controlplane.simulator.simulator import Simulator, refuse

BODY_BYTES_MAX = 64 << 20
PIPELINED_MAX = 16
_FLUSH_BYTES = 64 << 10
_HEADERS = frozenset(
    {
        *(b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key"),
        *(b"x-client-request-id", b"x-simulate", b"expect", b"content-type", b"accept"),
        *(b"upgrade", b"sec-websocket-key", b"sec-websocket-protocol"),
    }
)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds.


class Connection(asyncio.Protocol):
    """One client's socket: reads requests, and plays the script of one at a time."""

    __slots__ = (
        "_arrived_s",
        "_body",
        "_body_bytes",
        "_call",
        "_headers",
        "_is_paused",
        "_keeps_alive",
        "_loop",
        "_parser",
        "_pending",
        "_progress",
        "_simulator",
        "_steps",
        "_target",
        "_timer",
        "_transport",
        "_waits_for_room",
    )

    def __init__(self, simulator: Simulator, loop: asyncio.AbstractEventLoop) -> None:
        self._simulator = simulator
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._pending: deque[Request] = deque()
        self._call: Call | None = None
        self._steps: Iterator[Step] = iter(())
        self._arrived_s = 0.0
        self._keeps_alive = True
        self._progress = 0
        self._timer: asyncio.Handle | None = None
        self._is_paused = False
        self._waits_for_room = False

    def stop(self) -> None:
        """The simulator ends, and with it what it was saying."""
        self._abandon("stopped")
        self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._simulator.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse_connection(400)
            return
        # Out here, because the parser takes what is raised in a callback for a mistake of the client's.
        if self._pending and self._call is None and not self._transport.is_closing():
            self._begin(self._pending.popleft())

    def connection_lost(self, exc: Exception | None) -> None:
        self._simulator.connections.discard(self)
        self._abandon("client_gone")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._waits_for_room:
            self._waits_for_room = False
            self._advance()

    # httptools

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = {}
        self._body = []
        self._body_bytes = 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _HEADERS:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._call is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._body_bytes <= BODY_BYTES_MAX:
            self._body.append(part)
        elif self._call is None and not self._transport.is_closing():
            self._refuse_connection(413)

    def on_message_complete(self) -> None:
        if self._transport.is_closing():
            return
        path, _, query = self._target.decode("latin-1").partition("?")
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=unquote(path) if "%" in path else path,
            query=query,
            headers=self._headers,
            body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
            keeps_alive=self._parser.should_keep_alive(),
            arrived_s=self._loop.time(),
            created_s=int(time.time()),
        )
        if len(self._pending) < PIPELINED_MAX:
            self._pending.append(request)
        else:
            self._transport.abort()

    # Playing

    def _begin(self, request: Request) -> None:
        self._keeps_alive = request.keeps_alive
        if self._simulator.is_private(request.path):
            self._transport.write(self._simulator.control(request))
            self._go_on()
            return
        self._call = self._simulator.accept(request)
        self._steps = script(self._call)
        self._arrived_s = request.arrived_s
        self._progress = 0
        self._advance()

    def _advance(self) -> None:
        """Play until the script says to wait, or until so much is written that others should have their turn."""
        self._timer = None
        if self._is_paused:
            self._waits_for_room = True
            return
        written: list[bytes] = []
        written_bytes = 0
        for step in self._steps:
            if isinstance(step, bytes):
                written.append(step)
                written_bytes += len(step)
                delay_s = 0.0
                if written_bytes < _FLUSH_BYTES:
                    continue
            elif isinstance(step, Cut):
                self._cut(step, b"".join(written))
                return
            else:
                delay_s = step.seconds if isinstance(step, Pause) else self._seconds_until(step)
                if delay_s <= 0:
                    continue
            self._write(b"".join(written))
            self._timer = self._loop.call_later(delay_s, self._advance)
            return
        self._end("completed")
        self._transport.write(b"".join(written))
        self._go_on()

    def _seconds_until(self, moment: Until) -> float:
        return self._arrived_s + moment.offset_s - self._loop.time()

    def _write(self, data: bytes) -> None:
        """The journal has it before the client can have it."""
        call = self._call
        assert call is not None
        if call.generated != self._progress:
            self._progress = call.generated
            self._simulator.note_progress(call)
        if data:
            self._transport.write(data)

    def _cut(self, cut: Cut, data: bytes) -> None:
        if cut is Cut.HANG:
            self._write(data)  # The call stays open, until the client has had enough.
            return
        self._end("fault")
        self._transport.write(data)
        if cut is Cut.RESET:
            endpoint: socket.socket = self._transport.get_extra_info("socket")
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        else:
            self._transport.close()

    def _go_on(self) -> None:
        if not self._keeps_alive:
            self._transport.close()
        elif self._pending:
            self._begin(self._pending.popleft())

    def _abandon(self, end: str) -> None:
        self._pending.clear()
        self._waits_for_room = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._call is not None:
            self._end(end)

    def _end(self, end: str) -> None:
        call, self._call = self._call, None
        assert call is not None
        self._steps = iter(())
        self._simulator.note_end(call, end)

    def _refuse_connection(self, status: int) -> None:
        """What came is no request, or too much of one."""
        self._abandon("client_gone")
        self._transport.write(refuse(status))
        self._transport.close()
