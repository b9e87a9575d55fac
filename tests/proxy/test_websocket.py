"""WebSockets over real sockets: the edge's, only where and how they are spoken, at any cut of bytes; and those to providers."""

import asyncio
import contextlib
import os
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any, cast

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from proxy.dialects.table import CONVERSE, ENDPOINTS
from proxy.errors import ClientGone, UpstreamTimedOut
from proxy.realtime import Patience, watch
from proxy.wire.http1 import ConnectFailed, FirstByteTimedOut, Origin, UpstreamProtocolError
from proxy.wire.websocket import (
    MESSAGE_BYTES_MAX,
    Closed,
    HandshakeRefused,
    Message,
    WebSocket,
    accepting_headers,
    connect,
)
from proxy.worker import WEBSOCKET_PATHS
from tests.proxy.conftest import ClockedLoop
from tests.proxy.test_edge import TIMEOUT_S, Gunicorn, read_to_end, request, split_answers, wait_until

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3.
UPGRADE = (
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: WebSocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: " + KEY,
)
PATH = b"/v1/realtime"
TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A


def frame(opcode: int, payload: bytes, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    size = len(payload)
    length = struct.pack(">B", 0x80 | size) if size < 126 else struct.pack(">BQ", 0x80 | 127, size)
    return bytes([opcode]) + length + mask + masked


def unmasked(opcode: int, payload: bytes) -> bytes:
    return bytes([opcode, len(payload)]) + payload


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    gunicorn = Gunicorn(tmp_path_factory.mktemp("edge"), workers=1)
    yield gunicorn
    gunicorn.process.stop()


def opened(edge: Gunicorn, path: bytes = PATH, early: bytes = b"") -> tuple[socket.socket, bytes]:
    """(the socket after the handshake, its head)."""
    connection = edge.connect()
    connection.sendall(request(path, *UPGRADE) + early)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return connection, head


def expect(connection: socket.socket, expected: bytes) -> None:
    received = b""
    while len(received) < len(expected):
        data = connection.recv(65_536)
        assert data, f"closed after {received!r}"
        received += data
    assert received == expected


def wait_for_end(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        read_to_end(connection)


def test_the_edge_upgrades_exactly_where_sessions_are_held():
    assert {endpoint.path.encode() for endpoint in ENDPOINTS if endpoint.action == CONVERSE} == WEBSOCKET_PATHS


def test_a_handshake_is_answered_as_the_rfc_has_it_and_messages_pass(edge):
    connection, head = opened(edge, PATH + b"?a=b")
    status_line, *lines = head.strip().split(b"\r\n")
    assert status_line == b"HTTP/1.1 101 Switching Protocols"
    assert {b"upgrade: websocket", b"connection: Upgrade", b"sec-websocket-accept: " + ACCEPT} < set(lines)
    assert b"x-query: a=b" in lines
    with connection:
        connection.sendall(frame(TEXT, b"Hello"))
        expect(connection, unmasked(TEXT, b"Hello"))
        connection.sendall(frame(PING, b"?"))
        expect(connection, unmasked(PONG, b"?"))
        connection.sendall(frame(CLOSE, struct.pack(">H", 4000) + b"done"))
        assert read_to_end(connection) == unmasked(CLOSE, struct.pack(">H", 4000) + b"done")
    wait_until(lambda: "4000 done" in edge.record()["gone"])


def test_frames_may_come_in_any_pieces_and_before_they_are_asked_for(edge):
    connection, _ = opened(edge, early=frame(TEXT, b"early") + frame(TEXT, b"and half")[:5])
    with connection:
        expect(connection, unmasked(TEXT, b"early"))
        for byte in frame(TEXT, b"and half")[5:] + frame(0x01, b"in ") + frame(0x00, b"") + frame(0x80, b"parts"):
            connection.sendall(bytes([byte]))
        expect(connection, unmasked(TEXT, b"and half") + unmasked(TEXT, b"in parts"))


def test_what_comes_too_early_and_too_much_is_cut(edge):
    with edge.connect() as connection:
        connection.sendall(request(PATH, *UPGRADE) + b"x" * 200_000)
        wait_for_end(connection)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (unmasked(TEXT, b"not masked"), 1002),
        (frame(0xC1, b"reserved bit"), 1002),
        (frame(0x83, b"unknown opcode"), 1002),
        (frame(0x80, b"nothing to go on from"), 1002),
        (frame(0x09, b"ping in parts"), 1002),
        (frame(CLOSE, b"\x01"), 1002),
        (b"\x81\xff" + struct.pack(">Q", MESSAGE_BYTES_MAX + 1) + b"abcd", 1009),
    ],
)
def test_a_frame_that_breaks_the_protocol_ends_the_connection(edge, sent, code):
    connection, _ = opened(edge)
    with connection:
        connection.sendall(sent)
        closing = read_to_end(connection)
    assert (closing[0], closing[2:4]) == (CLOSE, struct.pack(">H", code))


@pytest.mark.parametrize(("said", "code"), [(b"leave", 1000), (b"fail", 1011)])
def test_the_end_of_the_application_is_the_end_of_the_session(edge, said, code):
    connection, _ = opened(edge)
    with connection:
        connection.sendall(frame(TEXT, said))
        expect(connection, unmasked(CLOSE, struct.pack(">H", code)))
        connection.sendall(frame(TEXT, b"ignored") + frame(CLOSE, struct.pack(">H", code)))
        assert read_to_end(connection) == b""


def test_a_client_that_does_not_answer_the_closing_is_cut(edge):
    connection, _ = opened(edge)
    with connection:
        connection.sendall(frame(TEXT, b"leave"))
        expect(connection, unmasked(CLOSE, struct.pack(">H", 1000)))
        wait_for_end(connection)


def test_a_client_that_vanishes_is_noticed(edge):
    connection, _ = opened(edge, PATH + b"?vanish")
    before = len(edge.record()["gone"])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: len(edge.record()["gone"]) > before)


def test_a_handshake_can_be_answered_like_any_request_and_then_the_connection_is_closed(edge):
    (answer,) = edge.exchange(request(PATH + b"?refuse", *UPGRADE))
    assert (answer.status_code, answer.body, answer.headers[b"connection"]) == (403, b"no", b"close")


def _without(name: bytes) -> tuple[bytes, ...]:
    return tuple(line for line in UPGRADE if not line.lower().startswith(name))


def _instead(line: bytes) -> tuple[bytes, ...]:
    return (*_without(line.split(b":")[0].lower()), line)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (request(b"/x", *UPGRADE), "upgrade_refused"),
        (request(PATH + b"/", *UPGRADE), "upgrade_refused"),
        (request(b"/v1/%72ealtime", *UPGRADE), "upgrade_refused"),
        (request(PATH, *_instead(b"Upgrade: h2c")), "invalid_handshake"),
        (request(PATH, *_instead(b"Upgrade: websocket, h2c")), "invalid_handshake"),
        (request(PATH, *_instead(b"Connection: close")), "invalid_handshake"),
        (request(PATH, *_without(b"connection")), "invalid_handshake"),
        (request(PATH, *_without(b"sec-websocket-key")), "invalid_handshake"),
        (request(PATH, *_instead(b"Sec-WebSocket-Key: c2hvcnQ=")), "invalid_handshake"),
        (request(PATH, *_instead(b"Sec-WebSocket-Key: no base64!")), "invalid_handshake"),
        (request(PATH, *_instead(b"Sec-WebSocket-Version: 8")), "invalid_handshake"),
        (request(PATH, *_without(b"sec-websocket-version")), "invalid_handshake"),
        (request(PATH, *UPGRADE, method=b"POST"), "invalid_handshake"),
        (request(PATH, *UPGRADE, body=b"abc"), "invalid_handshake"),
        (request(PATH, *UPGRADE, b"Transfer-Encoding: chunked"), "invalid_handshake"),
        (request(PATH, *UPGRADE, b"Upgrade: websocket"), "repeated_header"),
        (request(PATH, *UPGRADE, b"Sec-WebSocket-Key: " + KEY), "repeated_header"),
    ],
)
def test_what_is_no_proper_handshake_is_refused(edge, sent, code):
    (answer,) = edge.exchange(sent)
    assert (answer.status_code, answer.code) == (400, code)


def test_a_handshake_behind_a_request_that_still_runs_gets_no_session(edge):
    with edge.connect() as connection:
        connection.sendall(request(b"/x?0.5") + request(PATH, *UPGRADE))
        (answer,) = split_answers(read_to_end(connection))
    assert answer.status_code == 200


def test_a_handshake_on_a_connection_that_was_used_before_is_accepted(edge):
    with edge.connect() as connection:
        connection.sendall(request(b"/x"))
        received = b""
        while b"/x" not in received:
            received += connection.recv(65_536)
        connection.sendall(request(PATH, *UPGRADE))
        assert connection.recv(65_536).startswith(b"HTTP/1.1 101 ")


def test_random_bytes_after_the_handshake_do_no_harm(edge):
    for _ in range(20):
        connection, _ = opened(edge)
        with connection:
            connection.sendall(os.urandom(500))
            connection.shutdown(socket.SHUT_WR)
            wait_for_end(connection)
    assert edge.get(b"/x").status_code == 200


# To providers


@pytest.fixture
async def make_server() -> AsyncIterator[Callable[..., Awaitable[Origin]]]:
    """A provider that answers each message with itself."""
    servers: list[Server] = []

    async def echo(socket: ServerConnection) -> None:
        async for said in socket:
            await socket.send(said)

    async def make(**options: Any) -> Origin:
        server = await serve(echo, "127.0.0.1", 0, **options)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]
        return Origin.parse(f"https://localhost:{port}/v1" if "ssl" in options else f"http://127.0.0.1:{port}/v1")

    yield make
    for server in servers:
        server.close()
        await server.wait_closed()


async def dial(origin: Origin, **options: Any) -> WebSocket:
    usual = {"subprotocols": [], "ssl_context": None, "connect_timeout_s": 2, "answer_timeout_s": 2}
    return await connect(origin, b"/realtime?model=m", [(b"x-a", b"1")], **{**usual, **options})


async def test_a_provider_is_spoken_to_over_tls_and_only_where_it_is_trusted(make_server, server_context, certificate):
    origin = await make_server(ssl=server_context)
    provider = await dial(origin, ssl_context=ssl.create_default_context(cafile=certificate))
    await provider.send(Message(b"Hello"))
    assert await provider.receive() == Message(b"Hello")
    provider.close()
    with pytest.raises(Closed):
        await provider.receive()
    with pytest.raises(ConnectFailed):
        await dial(origin, ssl_context=ssl.create_default_context())


async def test_a_refusal_is_read_whole_with_its_status(make_server):
    def refuse(socket: ServerConnection, request: Request) -> Response:
        assert (request.path, request.headers["x-a"]) == ("/v1/realtime?model=m", "1")
        return socket.respond(HTTPStatus.TOO_MANY_REQUESTS, "slow down")

    origin = await make_server(process_request=refuse)
    with pytest.raises(HandshakeRefused) as caught:
        await dial(origin)
    assert (caught.value.status, caught.value.body) == (429, b"slow down")
    assert dict(caught.value.headers)[b"content-type"].startswith(b"text/plain")
    assert not caught.value.may_have_been_billed


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"", UpstreamProtocolError),
        (b"nonsense\r\n\r\n", UpstreamProtocolError),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UpstreamProtocolError),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % ACCEPT,
            UpstreamProtocolError,
        ),
        (None, FirstByteTimedOut),
    ],
)
async def test_what_is_no_handshake_is_a_failure(answer, failure):
    async def serve_raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            writer.write(answer)
            writer.close()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve_raw, "127.0.0.1", 0) as server:
        origin = Origin.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(failure):
            await dial(origin, answer_timeout_s=0.3 if answer is None else TIMEOUT_S)


async def test_nobody_there_is_a_failure_before_anything_was_sent(free_port):
    with pytest.raises(ConnectFailed):
        await dial(Origin.parse(f"http://127.0.0.1:{free_port}"))


async def test_a_line_break_cannot_be_smuggled_into_the_handshake():
    origin = Origin.parse("http://127.0.0.1:1")
    for target, value in ((b"/x y", b""), (b"/x\r\nevil: 1", b""), (b"/x", b"1\r\nevil: 1"), (b"/x", b"1\n")):
        with pytest.raises(ValueError, match=r"target|line break"):
            await connect(
                origin,
                target,
                [(b"a", value)],
                subprotocols=[],
                ssl_context=None,
                connect_timeout_s=1,
                answer_timeout_s=1,
            )


@contextlib.asynccontextmanager
async def time_passing_for(*alive: WebSocket) -> AsyncIterator[None]:
    """The clock is put forward by ten seconds whenever each of them has been heard again, however long that takes."""
    loop = cast(ClockedLoop, asyncio.get_running_loop())

    async def pass_time() -> None:
        while True:
            heard_at_s = [side.heard_at_s for side in alive]
            while any(side.heard_at_s == before for side, before in zip(alive, heard_at_s, strict=True)):
                await asyncio.sleep(0.001)
            loop.ahead_s += 10

    passing = asyncio.create_task(pass_time())
    try:
        yield
    finally:
        passing.cancel()


async def test_a_side_that_answers_pings_is_there_until_nobody_has_spoken_for_too_long(make_server):
    origin = await make_server()
    client, provider = await dial(origin), await dial(origin)
    loop = asyncio.get_running_loop()
    spoken_at_s = loop.time()
    async with time_passing_for(client, provider):
        await watch(client, provider, lambda: spoken_at_s, Patience(ping_s=0.01, silence_s=60, idle_s=200))
    assert loop.time() - spoken_at_s >= 200
    client.close()
    provider.close()


@pytest.mark.parametrize(("is_client", "failure"), [(True, ClientGone), (False, UpstreamTimedOut)])
async def test_a_side_that_does_not_answer_a_ping_is_gone(make_server, is_client, failure):
    async def serve_raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (key,) = re.findall(rb"sec-websocket-key: (\S+)", head)
        accepting = b"".join(b"%b: %b\r\n" % header for header in accepting_headers({b"sec-websocket-key": key}))
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % accepting)
        await is_over.wait()
        writer.close()

    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(serve_raw, "127.0.0.1", 0) as server:
        dead = await dial(Origin.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        alive = await dial(await make_server())
        sides = (dead, alive) if is_client else (alive, dead)
        with pytest.raises(failure):
            async with time_passing_for(alive):
                await watch(*sides, loop.time, Patience(ping_s=0.01, silence_s=60, idle_s=200))
        is_over.set()
        alive.close()
        for side in sides:
            with pytest.raises(Closed):
                await side.receive()
