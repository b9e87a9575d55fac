"""The edge's WebSockets over raw sockets: only where they are spoken, only with a proper handshake, at any cut of bytes."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from proxy.dialects.table import CONVERSE, ENDPOINTS
from proxy.wire.websocket import MESSAGE_BYTES_MAX
from proxy.worker import WEBSOCKET_PATHS
from tests.proxy.test_edge import Gunicorn, read_to_end, request, split_answers, wait_until

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
        began_s = time.monotonic()
        wait_for_end(connection)
        assert 1 < time.monotonic() - began_s < 6


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
