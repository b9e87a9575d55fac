"""Plays scripts on a socket. What the socket speaks, HTTP or WebSocket, is its subclasses' business.

No framework and no tasks: a connection is a protocol object, a wait is a timer; so 5,000 open streams are 5,000 timers.
"""

import asyncio
import socket
import struct
from collections.abc import Iterator
from typing import cast

from controlplane.simulator.calls import Call
from controlplane.simulator.script import Cut, Pause, Step, Until
from controlplane.simulator.simulator import Simulator

_FLUSH_BYTES = 64 << 10
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds.


class Player(asyncio.Protocol):
    """One client's socket, and the script of one call at a time."""

    __slots__ = (
        "_arrived_s",
        "_call",
        "_is_paused",
        "_loop",
        "_progress",
        "_simulator",
        "_steps",
        "_timer",
        "_transport",
        "_waits_for_room",
    )

    def __init__(self, simulator: Simulator, loop: asyncio.AbstractEventLoop) -> None:
        self._simulator = simulator
        self._loop = loop
        self._transport: asyncio.Transport
        self._call: Call | None = None
        self._steps: Iterator[Step] = iter(())
        self._arrived_s = 0.0
        self._progress = 0
        self._timer: asyncio.Handle | None = None
        self._is_paused = False
        self._waits_for_room = False

    def stop(self) -> None:
        """The simulator ends, and with it what it was saying."""
        self._abandon("stopped")
        self._transport.abort()

    def _go_on(self) -> None:
        """A call has been played to its end: what is next?"""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._simulator.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._simulator.connections.discard(self)
        self._abandon("client_gone")

    def eof_received(self) -> None:
        """The client has hung up, and with that our side closes too: what is generated from here on would be billed and never sent."""
        self._abandon("client_gone")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._waits_for_room:
            self._waits_for_room = False
            self._advance()

    # Playing

    def _play(self, call: Call, steps: Iterator[Step], arrived_s: float) -> None:
        self._call = call
        self._steps = steps
        self._arrived_s = arrived_s
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

    def _abandon(self, end: str) -> None:
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
