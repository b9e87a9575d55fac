"""The simulator on the wire: HTTP/1.1 connections that play scripts. What is answered, and why, is in `simulator.py`."""

import asyncio
import time
from collections import deque
from urllib.parse import unquote

import httptools

from controlplane.simulator.calls import Request
from controlplane.simulator.player import Player
from controlplane.simulator.script import script
from controlplane.simulator.simulator import Simulator, refuse
from controlplane.simulator.talk import Talk

BODY_BYTES_MAX = 64 << 20
PIPELINED_MAX = 16
_HEADERS = frozenset(
    {
        *(b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key"),
        *(b"x-client-request-id", b"x-simulate", b"expect", b"content-type", b"accept"),
        *(b"upgrade", b"sec-websocket-key", b"sec-websocket-protocol"),
    }
)


class Connection(Player):
    """A client's HTTP connection: answers its requests, one after the other."""

    __slots__ = ("_body", "_body_bytes", "_headers", "_keeps_alive", "_parser", "_pending", "_target")

    def __init__(self, simulator: Simulator, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(simulator, loop)
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._pending: deque[Request] = deque()
        self._keeps_alive = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse_connection(400)
            return
        # Out here, because the parser takes what is raised in a callback for a mistake of the client's.
        if self._pending and self._call is None and not self._transport.is_closing():
            self._begin(self._pending.popleft())

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
        call = self._simulator.accept(request)
        self._play(call, script(call), request.arrived_s)

    def _go_on(self) -> None:
        if not self._keeps_alive:
            self._transport.close()
        elif self._pending:
            self._begin(self._pending.popleft())

    def _abandon(self, end: str) -> None:
        self._pending.clear()
        super()._abandon(end)

    def _upgrade(self, rest: bytes) -> None:
        """The request that was just read wants something other than HTTP to follow; what does is in `rest` already."""
        if not self._pending or self._call is not None or self._transport.is_closing():
            self._refuse_connection(400)
            return
        request = self._pending.popleft()
        call = self._simulator.accept(request)
        if call.fixed is None or call.fixed.status != 101:
            self._keeps_alive = False
            self._play(call, script(call), request.arrived_s)
            return
        talk = Talk(self._simulator, self._loop, call, request)
        self._simulator.connections.discard(self)
        self._transport.set_protocol(talk)
        talk.connection_made(self._transport)
        talk.data_received(rest)

    def _refuse_connection(self, status: int) -> None:
        """What came is no request, or too much of one."""
        self._abandon("client_gone")
        self._transport.write(refuse(status))
        self._transport.close()
