"""Many streams at once that say one word and then nothing: what they weigh, and how they end when they are cut."""

import asyncio
import contextlib
import time
from typing import Any

from bench.rig import Rig

OPEN_AT_ONCE = 200


class Stream(asyncio.Protocol):
    """One streamed answer. `first` is set at its first event; `ended_at_s` is when the last byte came."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if b"data: " in self.received and not self.first.done():
            self.first.set_result(None)
        if self.received.endswith(b"0\r\n\r\n") and not self.ended.done():
            self.ended.set_result(time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.first, self.ended):
            if not future.done():
                future.set_exception(error or ConnectionError(f"closed without an end: {self.received[-300:]!r}"))
                future.exception()


def request(body: str, secret: str, headers: dict[str, str]) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n{more}authorization: Bearer {secret}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


async def open_streams(port: int, requests: list[bytes]) -> list[Stream]:
    """All of them, each with its first event."""
    loop = asyncio.get_running_loop()
    streams: list[Stream] = []
    for start in range(0, len(requests), OPEN_AT_ONCE):
        batch = requests[start : start + OPEN_AT_ONCE]
        opened = await asyncio.gather(
            *(loop.create_connection(lambda r=r: Stream(r), "127.0.0.1", port) for r in batch)
        )
        streams += [stream for _, stream in opened]
        await asyncio.gather(*(stream.first for _, stream in opened))
    return streams


def hold_idle_streams(made: Rig, body: str, count: int, headers: dict[str, str]) -> dict[str, Any]:
    idle = body.replace("dull", "idle")
    before = made.resident_bytes()

    async def hold() -> dict[str, Any]:
        requests = [request(idle, made.secrets[n % len(made.secrets)], headers) for n in range(count)]
        began = time.perf_counter()
        streams = await open_streams(made.proxy.port, requests)
        opened_s = time.perf_counter() - began
        await asyncio.sleep(3)
        cpu_s, resident = made.cpu_s(), made.resident_bytes()
        await asyncio.sleep(3)
        idle_cpu = (made.cpu_s() - cpu_s) / 3
        for stream in streams:
            stream.transport.abort()
        with contextlib.suppress(Exception):
            await asyncio.gather(*(stream.ended for stream in streams), return_exceptions=True)
        return {
            "idle_streams": count,
            "opened_in_s": round(opened_s, 1),
            "resident_mb_before": round(before / 1e6, 1),
            "resident_mb": round(resident / 1e6, 1),
            "kib_per_stream": round((resident - before) / count / 1024, 1),
            "idle_cpu_percent": round(idle_cpu * 100, 1),
        }

    return asyncio.run(hold())
