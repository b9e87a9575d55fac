"""A WebSocket on the wire: messages in, and the answers to them played one at a time."""

import asyncio
from collections import deque

from controlplane.simulator.calls import Call, Request
from controlplane.simulator.player import Player
from controlplane.simulator.script import exchange, script
from controlplane.simulator.shapes.openai_realtime import Session
from controlplane.simulator.simulator import Simulator
from controlplane.simulator.websocket import (
    CLOSE,
    NORMAL,
    PING,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
    BadFrame,
    Reader,
    close_frame,
    frame,
    text_frame,
)

WAITING_MAX = 64


class Talk(Player):
    """A client's realtime session. Its handshake is a call that lasts as long as the connection; each response is one too."""

    __slots__ = ("_handshake", "_reader", "_request", "_session", "_waiting")

    def __init__(
        self, simulator: Simulator, loop: asyncio.AbstractEventLoop, handshake: Call, request: Request
    ) -> None:
        super().__init__(simulator, loop)
        self._handshake: Call | None = handshake
        self._request = request
        self._reader = Reader()
        self._session = Session(request, handshake.call_id)
        self._waiting: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._handshake is not None
        self._transport.write(b"".join(step for step in script(self._handshake) if isinstance(step, bytes)))
        self._send(self._session.opening())

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                if message.opcode == CLOSE:
                    self._close(NORMAL)
                    return
                if message.opcode == PING:
                    self._transport.write(frame(PONG, message.payload))
                elif message.opcode == TEXT:
                    self._receive(message.payload)
        except BadFrame as bad:
            self._close(bad.code)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_session("client_gone")

    def stop(self) -> None:
        super().stop()
        self._end_session("stopped")

    def _receive(self, event: bytes) -> None:
        """One thing at a time, except that an answer can be cancelled while it is given."""
        if self._call is None:
            self._handle(event)
        elif self._session.is_cancel(event):
            call = self._call
            self._abandon("cancelled")
            self._send(self._session.cancelled(call))
            self._go_on()
        elif len(self._waiting) < WAITING_MAX:
            self._waiting.append(event)
        else:
            self._close(PROTOCOL_ERROR)

    def _handle(self, event: bytes) -> None:
        replies, asked = self._session.receive(event)
        self._send(replies)
        if asked is not None:
            arrived_s = self._loop.time()
            request = self._request._replace(body=event, arrived_s=arrived_s)
            call = self._simulator.accept(request, asked=asked)
            if call.fixed is not None:
                call.fixed = call.fixed._replace(body=self._session.refusal(call.fixed))
            self._play(call, exchange(call, text_frame), arrived_s)

    def _go_on(self) -> None:
        while self._waiting and self._call is None and not self._transport.is_closing():
            self._handle(self._waiting.popleft())

    def _end(self, end: str) -> None:
        call = self._call
        super()._end(end)
        if end == "completed" and call is not None:
            self._session.remember(call)

    def _send(self, events: list[bytes]) -> None:
        self._transport.write(b"".join(map(text_frame, events)))

    def _close(self, code: int) -> None:
        self._abandon("client_gone")
        self._end_session("completed")
        self._transport.write(close_frame(code))
        self._transport.close()

    def _end_session(self, end: str) -> None:
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            self._simulator.note_end(handshake, end)
