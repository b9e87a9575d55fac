"""A TCP relay that misbehaves on demand: between the proxy and Redis, PostgreSQL, or a Redis and its replica.

It runs in a thread of the test's own process, so nothing has to be installed. Faults are Toxiproxy's.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, NamedTuple

READ_BYTES = 65536
ENDS_WITHIN_S = 4.0
# With a linger of nought seconds a close is a reset.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(NamedTuple):
    """What happens to the bytes, both ways where nothing is said. `reset_after` and `half_close_after` count bytes of an answer."""

    latency_s: float = 0.0
    is_black_hole: bool = False
    is_refusing: bool = False
    slice_bytes: int = 0
    reset_after: int | None = None
    half_close_after: int | None = None


NONE = Fault()


class FaultProxy:
    """Relays 127.0.0.1:`port` to `target`, the path of a Unix socket or a port of this machine.

    `struck` counts what a fault has done: a test whose fault never struck has shown nothing.
    """

    def __init__(self, target: str | int) -> None:
        self.target = target
        self.fault = NONE
        self.struck = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def set(self, fault: Fault) -> None:
        self.fault = fault

    def clear(self) -> None:
        """As if nothing had been: what was swallowed on open connections is lost, so those end."""
        had_black_hole = self.fault.is_black_hole
        self.fault = NONE
        if had_black_hole:
            self.reset_all()

    def reset_all(self) -> None:
        self._do(self._reset_all())

    def move(self, target: str | int) -> None:
        """As when another server takes the address over."""
        self.target = target
        self.reset_all()

    def close(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(5)

    async def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _close(self) -> None:
        self._server.close()
        await self._reset_all()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=ENDS_WITHIN_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault.is_refusing:
            self.struck += 1
            _reset(writer)
            return
        try:
            there_reader, there_writer = await self._connect()
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, there_writer}
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(
                    self._relay(reader, there_writer, is_answer=False),
                    self._relay(there_reader, writer, is_answer=True),
                )
        finally:
            for end in (writer, there_writer):
                self._writers.discard(end)
                end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, int):
            return await asyncio.open_connection("127.0.0.1", self.target)
        return await asyncio.open_unix_connection(self.target)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        relayed = 0
        while data := await reader.read(READ_BYTES):
            fault = self.fault
            if fault.is_black_hole:
                self.struck += 1
                continue
            if fault.latency_s:
                self.struck += 1
                await asyncio.sleep(fault.latency_s)
            relayed += len(data)
            if is_answer and fault.reset_after is not None and relayed > fault.reset_after:
                self.struck += 1
                _reset(writer)
                return
            if is_answer and fault.half_close_after is not None and relayed > fault.half_close_after:
                self.struck += 1
                writer.write_eof()
                return
            await self._write(writer, data, fault.slice_bytes)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, slice_bytes: int) -> None:
        if not slice_bytes:
            writer.write(data)
            await writer.drain()
            return
        self.struck += 1
        for start in range(0, len(data), slice_bytes):
            writer.write(data[start : start + slice_bytes])
            await writer.drain()
            await asyncio.sleep(0)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_INET:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
