"""The upstream client against servers on loopback that answer well, badly, late, or not at all."""

import asyncio
import os
import random
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.wire.http1 import (
    BUFFERED_BYTES_MAX,
    KEEP_ALIVE_MARGIN_S,
    SWEEP_EVERY_S,
    BodyTooLarge,
    ConnectFailed,
    ConnectTimedOut,
    FirstByteTimedOut,
    IdleTimedOut,
    Origin,
    PoolExhausted,
    ResponseClosed,
    UpstreamFailure,
    UpstreamPool,
    UpstreamProtocolError,
    UpstreamResponse,
)
from tests.proxy.conftest import ClockedLoop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SECRET = b"Bearer sk-that-must-never-show"
TIMEOUT_S = 20.0  # Nothing here takes as long, unless it hangs.
LONG_S = 1_000.0  # Only a clock that is put forward comes to the end of it.

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Provider:
    """A server of the test's own; `ended` is set when a connection has ended."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.open = 0
        self.ended = asyncio.Event()

    async def start(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=ssl_context, backlog=1000)
        self.port = self.server.sockets[0].getsockname()[1]
        self.origin = Origin.parse(f"{'https' if ssl_context else 'http'}://localhost:{self.port}/v1")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self.handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self.ended.set()
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


def answering(*answers: bytes, then_hang_up: bool = False) -> Handler:
    """Give each request the next answer, the last one for ever."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        while True:
            await read_request(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
            if then_hang_up:
                return

    return handle


async def stay_silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


Serve = Callable[..., Awaitable[Provider]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    providers: list[Provider] = []

    async def start(handler: Handler, ssl_context: ssl.SSLContext | None = None) -> Provider:
        provider = Provider(handler)
        await provider.start(ssl_context)
        providers.append(provider)
        return provider

    yield start
    for provider in providers:
        provider.server.close()


@pytest.fixture
async def pool() -> AsyncIterator[UpstreamPool]:
    pool = UpstreamPool()
    yield pool
    await pool.close()


async def send(pool: UpstreamPool, origin: Origin, **changes: Any) -> UpstreamResponse:
    arguments: dict[str, Any] = {
        "method": b"POST",
        "target": b"/chat",
        "headers": [(b"authorization", SECRET)],
        "body": b"{}",
        "connect_timeout_s": TIMEOUT_S,
        "first_byte_timeout_s": LONG_S,
        "idle_timeout_s": LONG_S,
        **changes,
    }
    method, target, headers, body = (arguments.pop(name) for name in ("method", "target", "headers", "body"))
    return await pool.send(origin, method, target, headers, body, **arguments)


async def exchange(pool: UpstreamPool, origin: Origin, **changes: Any) -> bytes:
    response = await send(pool, origin, **changes)
    try:
        return await response.read(1_000_000)
    finally:
        response.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def pass_time(seconds: float) -> None:
    """Put the clock forward, and let the pool look at it."""
    cast(ClockedLoop, asyncio.get_running_loop()).ahead_s += seconds
    await asyncio.sleep(2 * SWEEP_EVERY_S)


async def pass_deadline(task: "asyncio.Task[Any]", seconds: float) -> None:
    """So long from now the task still waits, and a little later no more."""
    await pass_time(0.9 * seconds)
    assert not task.done()
    await pass_time(0.2 * seconds)
    await asyncio.wait([task], timeout=TIMEOUT_S)
    assert task.done()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# What is sent


async def test_a_request_is_written_exactly(pool: UpstreamPool, serve: Serve) -> None:
    received: list[tuple[bytes, bytes]] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            received.append(await read_request(reader))
            writer.write(OK)

    provider = await serve(keep)
    headers = [(b"accept", b"text/event-stream"), (b"x-name", "ä".encode())]
    assert await exchange(pool, provider.origin, headers=headers, body=b'{"a": 1}') == b"ok"
    assert (
        await exchange(pool, provider.origin, method=b"GET", target=b"/models?limit=1", headers=[], body=b"") == b"ok"
    )
    assert await exchange(pool, provider.origin, headers=[], body=b"") == b"ok"
    host = b"localhost:%d" % provider.port
    assert received == [
        (
            b"POST /v1/chat HTTP/1.1\r\nhost: " + host + b"\r\naccept: text/event-stream\r\nx-name: \xc3\xa4\r\n"
            b"content-length: 8\r\n\r\n",
            b'{"a": 1}',
        ),
        (b"GET /v1/models?limit=1 HTTP/1.1\r\nhost: " + host + b"\r\n\r\n", b""),
        (b"POST /v1/chat HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: 0\r\n\r\n", b""),
    ]


@pytest.mark.parametrize("size", [1_000, 64 * 1024, 64 * 1024 + 1, 20_000_000])
async def test_a_body_of_any_size_arrives_whole(pool: UpstreamPool, serve: Serve, size: int) -> None:
    bodies: list[bytes] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await read_request(reader))[1])
        writer.write(OK)

    body = random.Random(size).randbytes(size)
    assert await exchange(pool, (await serve(keep)).origin, body=body) == b"ok"
    assert bodies == [body]


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": [(b"x", b"a\r\nhost: evil")]},
        {"headers": [(b"x", b"a\nb")]},
        {"headers": [(b"x", b"a\rb")]},
        {"headers": [(b"x", b"a\0b")]},
        {"headers": [(b"x: y\r\nz", b"a")]},
        {"headers": [(b"x y", b"a")]},
        {"headers": [(b"", b"a")]},
        {"headers": [(b"Content-Length", b"5")]},
        {"headers": [(b"transfer-encoding", b"chunked")]},
        {"headers": [(b"host", b"evil")]},
        {"headers": [(b"connection", b"close")]},
        {"target": b"chat"},
        {"target": b"http://evil/"},
        {"target": b"/a b"},
        {"target": b"/a\r\nx: y"},
        {"target": b""},
        {"method": b"GET /evil HTTP/1.1\r\n\r\nGET"},
        {"method": b"HEAD"},
        {"method": b"CONNECT"},
    ],
)
async def test_nothing_can_be_smuggled_into_a_request(
    pool: UpstreamPool, serve: Serve, changes: dict[str, Any]
) -> None:
    provider = await serve(answering(OK))
    with pytest.raises(ValueError) as refusal:
        await send(pool, provider.origin, **changes)
    assert "evil" not in str(refusal.value)
    assert provider.connections == 0


# What comes back


async def test_status_and_headers_come_as_sent_in_lower_case(pool: UpstreamPool, serve: Serve) -> None:
    answer = b"HTTP/1.1 429 Slow Down\r\nX-One: 1\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n"
    response = await send(pool, (await serve(answering(answer))).origin)
    assert response.status == 429
    assert response.headers == [
        (b"x-one", b"1"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"content-length", b"0"),
    ]
    assert await response.next_chunk() == b""
    assert await response.next_chunk() == b""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (CHUNKED + b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-Trailer: 1\r\nX-Status: 500\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_an_answer_is_read_whole_and_its_connection_used_again(
    pool: UpstreamPool, serve: Serve, answer: bytes, expected: bytes
) -> None:
    provider = await serve(answering(answer))
    for _ in range(3):
        assert await exchange(pool, provider.origin) == expected
    assert provider.connections == 1
    assert (pool.busy_connections, pool.idle_connections) == (0, 1)


async def test_an_answer_in_single_bytes_is_the_same_answer(pool: UpstreamPool, serve: Serve) -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for i in range(len(answer)):
                writer.write(answer[i : i + 1])
                await asyncio.sleep(0.0005)

    provider = await serve(drip)
    for _ in range(2):
        response = await send(pool, provider.origin)
        assert response.headers == [(b"transfer-encoding", b"chunked")]
        assert await response.read(100) == b"abcde"
    assert provider.connections == 1


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"])
async def test_a_body_may_end_with_its_connection(pool: UpstreamPool, serve: Serve, head: bytes) -> None:
    provider = await serve(answering(head + b"to the end", then_hang_up=True))
    for _ in range(2):
        assert await exchange(pool, provider.origin) == b"to the end"
    assert provider.connections == 2


async def test_chunks_come_as_they_are_sent(pool: UpstreamPool, serve: Serve) -> None:
    go_on = asyncio.Event()

    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for text in (b"one", b"two", b"tri"):
            writer.write((CHUNKED if text == b"one" else b"") + b"3\r\n" + text + b"\r\n")
            await go_on.wait()
            go_on.clear()
        writer.write(b"0\r\n\r\n")

    response = await send(pool, (await serve(step)).origin)
    seen = []
    while chunk := await response.next_chunk():
        seen.append(chunk)
        go_on.set()
    assert seen == [b"one", b"two", b"tri"]
    assert pool.idle_connections == 1


async def test_chunks_that_are_already_there_come_as_one(pool: UpstreamPool, serve: Serve) -> None:
    response = await send(pool, (await serve(answering(CHUNKED + b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"))).origin)
    assert await response.next_chunk() == b"abc"


async def test_a_whole_answer_can_be_read_while_its_connection_carries_the_next(
    pool: UpstreamPool, serve: Serve
) -> None:
    provider = await serve(answering(OK.replace(b"ok", b"#1"), OK.replace(b"ok", b"#2")))
    first = await send(pool, provider.origin)
    second = await send(pool, provider.origin)
    assert (await second.read(10), await first.read(10)) == (b"#2", b"#1")
    first.close()
    assert provider.connections == 1
    assert pool.idle_connections == 1


async def test_a_body_longer_than_its_reader_wants_is_left(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 10_000_000))
    response = await send(pool, provider.origin)
    with pytest.raises(BodyTooLarge):
        await response.read(1_000)
    await until(lambda: provider.open == 0)
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


# Answers that are none


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 700 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 201 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 66_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 3_000_000,
        b"HTTP/1.1 200 " + b"x" * 3_000_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
        b"HTTP/1.1 200 O",
        b"",
    ],
)
async def test_an_answer_that_is_not_http_is_refused_and_its_connection_left(
    pool: UpstreamPool, serve: Serve, answer: bytes
) -> None:
    provider = await serve(answering(answer, then_hang_up=True))
    with pytest.raises(UpstreamProtocolError) as failure:
        await exchange(pool, provider.origin)
    assert failure.value.may_have_been_billed
    assert SECRET.decode() not in str(failure.value)
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n", b"abc"),
        (CHUNKED + b"5\r\nabc", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n0\r\n", b"abc"),
        (CHUNKED + b"3\r\nabc\r\nzz\r\n", b"abc"),
        (CHUNKED + b"3\r\nabcd\r\n", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n0\r\nX: " + b"x" * 3_000_000, b"abc"),
        (CHUNKED + b"3\r\nabc\r\n3;" + b"x" * 3_000_000, b"abc"),
    ],
)
async def test_a_body_that_breaks_off_is_an_error_after_the_last_byte_that_came(
    pool: UpstreamPool, serve: Serve, answer: bytes, seen: bytes
) -> None:
    provider = await serve(answering(answer, then_hang_up=True))
    response = await send(pool, provider.origin)
    chunks = []
    with pytest.raises(UpstreamProtocolError):
        while True:
            chunks.append(await response.next_chunk())
            assert chunks[-1] != b""
    assert b"".join(chunks) == seen
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


async def test_an_answer_never_came_before_it_was_asked_for(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(answering(OK))
    for _ in range(50):
        asked_at_s = time.monotonic()
        response = await send(pool, provider.origin)
        await response.read(100)
        assert asked_at_s <= response.received_at_s <= time.monotonic()


async def test_a_reset_in_a_body_without_length_is_not_its_end(pool: UpstreamPool, serve: Serve) -> None:
    has_begun = asyncio.Event()

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await has_begun.wait()
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    response = await send(pool, (await serve(reset)).origin)
    has_begun.set()
    with pytest.raises(UpstreamProtocolError):
        await response.read(100)


# Connections in the pool


@pytest.mark.parametrize("is_kept_alive", [False, True])
async def test_a_request_without_an_answer_is_never_sent_again(
    pool: UpstreamPool, serve: Serve, is_kept_alive: bool
) -> None:
    requests = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        if is_kept_alive:
            await read_request(reader)
            writer.write(OK)
        await read_request(reader)
        requests += 1

    provider = await serve(hang_up)
    if is_kept_alive:
        await exchange(pool, provider.origin)
    with pytest.raises(UpstreamProtocolError) as failure:
        await exchange(pool, provider.origin)
    assert failure.value.may_have_been_billed
    assert requests == 1
    assert provider.connections == 1


async def test_a_connection_that_ended_while_idle_is_not_used(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(answering(OK, then_hang_up=True))
    for i in range(3):
        assert await exchange(pool, provider.origin) == b"ok"
        await until(lambda: pool.idle_connections == 0)
        assert provider.connections == i + 1


async def test_a_connection_that_speaks_while_idle_is_not_used(pool: UpstreamPool, serve: Serve) -> None:
    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(OK.replace(b"ok", b"no"))
        await reader.read()

    provider = await serve(chatter)
    assert await exchange(pool, provider.origin) == b"ok"
    await until(lambda: pool.idle_connections == 0)
    assert await exchange(pool, provider.origin) == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        OK + OK.replace(b"ok", b"no"),
        OK + b"H",
        OK + b"junk",
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_a_connection_with_more_or_less_than_one_answer_is_not_used_again(
    pool: UpstreamPool, serve: Serve, answer: bytes
) -> None:
    provider = await serve(answering(answer))
    for i in range(3):
        assert await exchange(pool, provider.origin) == b"ok"
        assert provider.connections == i + 1
        assert pool.idle_connections == 0


async def test_a_connection_answered_before_its_request_was_read_is_not_used_again(
    pool: UpstreamPool, serve: Serve
) -> None:
    was_read = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await was_read.wait()

    provider = await serve(refuse)
    response = await send(pool, provider.origin, body=b"x" * 50_000_000)
    assert response.status == 413
    assert await response.read(10) == b"no"
    was_read.set()
    assert pool.idle_connections == 0


async def test_the_connection_used_last_is_used_next_and_the_others_age(serve: Serve) -> None:
    pool = UpstreamPool(idle_lifetime_s=LONG_S)
    provider = await serve(answering(OK))
    await asyncio.gather(*(exchange(pool, provider.origin) for _ in range(5)))
    assert pool.idle_connections == provider.connections == 5
    for _ in range(3):
        await exchange(pool, provider.origin)
        await pass_time(0.4 * LONG_S)
    assert provider.connections == 5
    assert pool.idle_connections == 1
    await pass_time(LONG_S)
    assert pool.idle_connections == 0
    await until(lambda: provider.open == 0)
    assert pool._sweeper is None, "a pool without connections has no timer"
    assert await exchange(pool, provider.origin) == b"ok"
    await pool.close()


async def test_a_connection_too_old_is_not_used_even_before_it_is_swept(serve: Serve) -> None:
    pool = UpstreamPool(idle_lifetime_s=0.01)
    provider = await serve(answering(OK))
    for _ in range(3):
        await exchange(pool, provider.origin)
        await asyncio.sleep(0.02)
    assert provider.connections == 3
    await pool.close()


async def test_a_connection_is_left_before_the_provider_said_it_would_leave_it(serve: Serve) -> None:
    pool = UpstreamPool(idle_lifetime_s=LONG_S)
    provider = await serve(answering(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=500, max=100\r\n\r\n")))
    for _ in range(2):
        await exchange(pool, provider.origin)
    assert provider.connections == 1
    await pass_time(450)
    assert pool.idle_connections == 1
    await pass_time(50 - KEEP_ALIVE_MARGIN_S)
    assert pool.idle_connections == 0
    await exchange(pool, provider.origin)
    assert provider.connections == 2
    await pool.close()


async def test_prefixes_of_one_origin_share_connections(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(answering(OK))
    for prefix in ("", "/v1", "/v2/"):
        await exchange(pool, Origin.parse(f"http://localhost:{provider.port}{prefix}"))
    assert provider.connections == 1


async def test_past_its_bound_the_pool_refuses_at_once(serve: Serve) -> None:
    pool = UpstreamPool(connections_max=3)
    provider = await serve(stay_silent)
    waiting = [asyncio.create_task(send(pool, provider.origin)) for _ in range(3)]
    await until(lambda: provider.open == 3)
    with pytest.raises(PoolExhausted) as failure:
        await send(pool, provider.origin)
    assert not failure.value.may_have_been_billed
    other = await serve(answering(OK))
    assert await exchange(pool, other.origin) == b"ok", "the bound is of each origin"
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    with pytest.raises(FirstByteTimedOut):
        await send(pool, provider.origin, first_byte_timeout_s=0.05)
    await pool.close()


async def test_closing_the_pool_ends_every_connection(serve: Serve) -> None:
    pool = UpstreamPool()
    provider = await serve(answering(OK, CHUNKED + b"1\r\na\r\n"))
    await exchange(pool, provider.origin)
    first, second = await send(pool, provider.origin), await send(pool, provider.origin)
    assert await first.next_chunk() == b"a"
    reading = asyncio.create_task(first.next_chunk())
    await asyncio.sleep(0.01)
    await pool.close()
    with pytest.raises(ResponseClosed):
        await reading
    assert await second.next_chunk() in (b"a", b"ok")
    await until(lambda: provider.open == 0)
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)
    await pool.close()


# Time


async def test_nobody_there_is_not_a_bill(pool: UpstreamPool, free_port: int) -> None:
    with pytest.raises(ConnectFailed) as failure:
        await send(pool, Origin.parse(f"http://127.0.0.1:{free_port}"))
    assert not failure.value.may_have_been_billed
    with pytest.raises(ConnectFailed):
        await send(pool, Origin.parse("http://no-such-host.invalid"))
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


async def test_a_connection_that_takes_too_long_is_not_a_bill(pool: UpstreamPool) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        with pytest.raises(ConnectTimedOut) as failure:
            await send(pool, Origin.parse(f"http://127.0.0.1:{address[1]}"), connect_timeout_s=0.2)
        assert not failure.value.may_have_been_billed
        for filler in fillers:
            filler.close()
    assert pool.busy_connections == 0


async def test_no_answer_in_time_is_perhaps_a_bill(pool: UpstreamPool, serve: Serve) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for byte in b"HTTP/1.1 200 OK\r\n" + b"x: 1\r\n" * 100:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    for handler in (stay_silent, drip):
        provider = await serve(handler)
        was_sent = asyncio.Event()
        waiting = asyncio.create_task(send(pool, provider.origin, idle_timeout_s=1, on_dispatch=was_sent.set))
        await was_sent.wait()
        await pass_deadline(waiting, LONG_S)
        with pytest.raises(FirstByteTimedOut) as failure:
            await waiting
        assert failure.value.may_have_been_billed
        await until(lambda provider=provider: provider.open == 0)
    assert pool.busy_connections == 0


async def test_an_answer_that_falls_silent_is_given_up(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(answering(CHUNKED + b"3\r\nabc\r\n"))
    response = await send(pool, provider.origin)
    assert await response.next_chunk() == b"abc"
    await pass_time(2 * LONG_S)  # Only waiting for the provider counts.
    reading = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0)
    await pass_deadline(reading, LONG_S)
    with pytest.raises(IdleTimedOut):
        await reading
    await until(lambda: provider.open == 0)
    assert pool.busy_connections == 0


async def test_a_connection_that_was_given_back_has_no_deadline(serve: Serve) -> None:
    pool = UpstreamPool(idle_lifetime_s=3 * LONG_S)
    provider = await serve(answering(OK))
    await exchange(pool, provider.origin)
    await pass_time(2 * LONG_S)
    assert pool.idle_connections == 1
    await pool.close()


# Cancelling and closing


@pytest.mark.parametrize("handler", [stay_silent, answering(CHUNKED + b"3\r\nabc\r\n")])
async def test_cancelling_closes_the_connection_at_once(pool: UpstreamPool, serve: Serve, handler: Handler) -> None:
    provider = await serve(handler)
    task = asyncio.create_task(exchange(pool, provider.origin))
    await until(lambda: provider.open == 1)
    task.cancel()
    await asyncio.wait_for(provider.ended.wait(), TIMEOUT_S)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


async def speak_to_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(CHUNKED + b"3\r\nabc\r\n")
    await reader.read()  # Until the other side has hung up.
    writer.write(b"3\r\ndef\r\n")


async def test_who_hangs_up_hears_the_last_word(pool: UpstreamPool, serve: Serve) -> None:
    response = await send(pool, (await serve(speak_to_the_end)).origin)
    assert await response.next_chunk() == b"abc"
    assert response.hang_up() and response.hang_up()
    assert not response.has_heard_all
    assert await response.next_chunk() == b"def"
    with pytest.raises(UpstreamProtocolError):
        await response.next_chunk()
    assert response.has_heard_all
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


async def test_a_connection_that_was_hung_up_is_not_used_again(pool: UpstreamPool, serve: Serve) -> None:
    async def end_well(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await speak_to_the_end(reader, writer)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)

    response = await send(pool, (await serve(end_well)).origin)
    response.hang_up()
    assert await response.read(100) == b"abcdef"
    assert response.has_heard_all
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


async def test_who_was_cancelled_can_read_on(pool: UpstreamPool, serve: Serve) -> None:
    response = await send(pool, (await serve(speak_to_the_end)).origin)
    assert await response.next_chunk() == b"abc"
    reading = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    response.hang_up()
    assert await response.next_chunk() == b"def"
    response.close()


async def test_closing_a_response_wakes_its_reader(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(answering(CHUNKED + b"3\r\nabc\r\n"))
    response = await send(pool, provider.origin)
    assert await response.next_chunk() == b"abc"
    reading = asyncio.create_task(response.next_chunk())
    await asyncio.sleep(0.01)
    response.close()
    response.close()
    with pytest.raises(ResponseClosed):
        await reading
    await asyncio.wait_for(provider.ended.wait(), TIMEOUT_S)


async def test_a_response_closed_before_it_was_read_does_not_look_ended(pool: UpstreamPool, serve: Serve) -> None:
    response = await send(pool, (await serve(answering(OK))).origin)
    response.close()
    with pytest.raises(ResponseClosed):
        await response.next_chunk()
    assert pool.idle_connections == 1


async def test_closing_a_response_that_is_unread_closes_its_connection(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(answering(CHUNKED + b"3\r\nabc\r\n"))
    response = await send(pool, provider.origin)
    response.close()
    await asyncio.wait_for(provider.ended.wait(), TIMEOUT_S)
    assert (pool.busy_connections, pool.idle_connections) == (0, 0)


async def test_two_thousand_cancels_leak_nothing(pool: UpstreamPool, serve: Serve) -> None:
    async def answer_in_steps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            number = re.search(rb"x-number: (\d+)", head)[1]  # type: ignore[index]
            await asyncio.sleep(0.001)
            writer.write(CHUNKED + b"%x\r\n%b\r\n" % (len(number), number))
            await asyncio.sleep(0.001)
            writer.write(b"1\r\n!\r\n0\r\n\r\n")

    provider = await serve(answer_in_steps)
    await exchange(pool, provider.origin, headers=[(b"x-number", b"0")])
    tasks_before = len(asyncio.all_tasks()) - provider.open
    descriptors_before = open_descriptors() - 2 * provider.open
    seeded = random.Random(11)
    completed = 0

    async def call(number: int) -> None:
        nonlocal completed
        text = b"%d" % number
        assert await exchange(pool, provider.origin, headers=[(b"x-number", text)]) == text + b"!"
        completed += 1

    for round_number in range(40):
        tasks = [asyncio.create_task(call(round_number * 100 + i)) for i in range(100)]
        victims = seeded.sample(tasks, 50)
        for victim in victims:
            await asyncio.sleep(seeded.random() * 0.0005)
            victim.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
    assert completed >= 2_000
    assert pool.busy_connections == 0
    await pool.close()
    await until(lambda: provider.open == 0)
    await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
    await until(lambda: open_descriptors() <= descriptors_before)


# TLS


async def test_https_is_spoken_with_name_and_protocol(
    serve: Serve, server_context: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    names: list[str | None] = []
    protocols: list[str | None] = []
    server_context.sni_callback = lambda _socket, name, _context: names.append(name)
    body = random.Random(1).randbytes(3_000_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    pool = UpstreamPool()
    provider = await serve(answer, server_context)
    for _ in range(3):
        response = await send(pool, provider.origin, body=body)
        assert await response.read(len(body)) == body
    assert provider.connections == 1
    assert names == ["localhost"]
    assert protocols == ["http/1.1"]
    await pool.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    pool: UpstreamPool, serve: Serve, server_context: ssl.SSLContext
) -> None:
    provider = await serve(answering(OK), server_context)
    with pytest.raises(ConnectFailed) as failure:
        await send(pool, provider.origin)
    assert not failure.value.may_have_been_billed
    assert pool.busy_connections == 0


async def test_a_certificate_of_another_name_is_refused(
    serve: Serve, server_context: ssl.SSLContext, certificate: Path
) -> None:
    pool = UpstreamPool(ssl_context=ssl.create_default_context(cafile=certificate))
    provider = await serve(answering(OK), server_context)
    assert await exchange(pool, provider.origin) == b"ok"
    with pytest.raises(ConnectFailed):
        await send(pool, Origin.parse(f"https://127.0.0.1:{provider.port}"))
    await pool.close()


async def test_tls_has_no_word_for_hanging_up(serve: Serve, server_context: ssl.SSLContext, certificate: Path) -> None:
    provider = await serve(answering(CHUNKED + b"3\r\nabc\r\n"), server_context)
    pool = UpstreamPool(ssl_context=ssl.create_default_context(cafile=certificate))
    try:
        response = await send(pool, provider.origin)
        assert not response.hang_up()
        assert response.trip_s > 0
        response.close()
    finally:
        await pool.close()


async def test_a_handshake_cancelled_or_late_leaves_nothing(pool: UpstreamPool, serve: Serve) -> None:
    provider = await serve(stay_silent)
    origin = Origin.parse(f"https://localhost:{provider.port}")
    descriptors_before = open_descriptors()
    with pytest.raises(ConnectTimedOut):
        await send(pool, origin, connect_timeout_s=0.1)
    tasks = [asyncio.create_task(send(pool, origin)) for _ in range(50)]
    await until(lambda: pool.busy_connections == 50)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert pool.busy_connections == 0
    await until(lambda: provider.open == 0)
    await until(lambda: open_descriptors() <= descriptors_before)


async def test_a_body_over_tls_may_break_off_too(
    serve: Serve, server_context: ssl.SSLContext, certificate: Path
) -> None:
    pool = UpstreamPool(ssl_context=ssl.create_default_context(cafile=certificate))
    provider = await serve(answering(CHUNKED + b"3\r\nabc\r\n", then_hang_up=True), server_context)
    response = await send(pool, provider.origin)
    assert await response.next_chunk() == b"abc"
    with pytest.raises(UpstreamProtocolError):
        await response.next_chunk()
    await pool.close()


@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_slow_reader_slows_the_provider_down(
    serve: Serve, server_context: ssl.SSLContext, certificate: Path, is_tls: bool
) -> None:
    pool = UpstreamPool(ssl_context=ssl.create_default_context(cafile=certificate))
    body = b"x" * 30_000_000
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 100_000):
            writer.write(body[start : start + 100_000])
            await writer.drain()
            sent += 100_000
        await reader.read()

    response = await send(pool, (await serve(pour, server_context if is_tls else None)).origin)
    await until(lambda: response._is_paused)
    await asyncio.sleep(0.5)
    await pass_time(2 * LONG_S)  # It is we who do not read.
    assert response._buffered_bytes <= 2 * BUFFERED_BYTES_MAX
    assert sent < len(body) / 2
    size = 0
    while chunk := await response.next_chunk():
        assert len(chunk) <= 2 * BUFFERED_BYTES_MAX
        size += len(chunk)
    assert size == len(body)
    assert pool.idle_connections == 1
    await pool.close()


# Origins


@pytest.mark.parametrize(
    ("base_url", "scheme", "host", "port", "path_prefix", "authority"),
    [
        ("https://api.example.com/v1", "https", "api.example.com", 443, b"/v1", b"api.example.com"),
        ("https://api.example.com/v1/", "https", "api.example.com", 443, b"/v1", b"api.example.com"),
        ("http://API.example.com", "http", "api.example.com", 80, b"", b"api.example.com"),
        ("http://localhost:8090/", "http", "localhost", 8090, b"", b"localhost:8090"),
        ("https://h:443", "https", "h", 443, b"", b"h"),
        ("http://[::1]:8000/a%20b", "http", "::1", 8000, b"/a%20b", b"[::1]:8000"),
    ],
)
def test_a_base_url_is_read_whole(
    base_url: str, scheme: str, host: str, port: int, path_prefix: bytes, authority: bytes
) -> None:
    origin = Origin.parse(base_url)
    assert (origin.scheme, origin.host, origin.port) == (scheme, host, port)
    assert (origin.path_prefix, origin.authority) == (path_prefix, authority)


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.example.com",
        "ftp://h",
        "http://",
        "http:///v1",
        "https://user:pass@h",
        "https://h?key=1",
        "https://h#x",
        "https://h?",
        "https://h:0",
        "https://h:65536",
        "https://h:x",
        "https://h/a b",
        "https://h/\r\nx: y",
        "https://h/ä",
        'https://h/"',
        "https://ä.example",
        "https://[::1",
    ],
)
def test_a_base_url_that_says_too_much_or_too_little_is_refused(base_url: str) -> None:
    with pytest.raises(ValueError):
        Origin.parse(base_url)


def test_every_failure_says_whether_it_may_cost_money() -> None:
    unbilled = {ConnectFailed, PoolExhausted, ConnectTimedOut}
    billed = {UpstreamProtocolError, FirstByteTimedOut, IdleTimedOut, BodyTooLarge, ResponseClosed}
    assert all(issubclass(failure, UpstreamFailure) and not failure.may_have_been_billed for failure in unbilled)
    assert all(issubclass(failure, UpstreamFailure) and failure.may_have_been_billed for failure in billed)
