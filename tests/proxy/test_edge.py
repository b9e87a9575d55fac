"""The edge over raw sockets: what is ambiguous is refused, what is slow is cut, and the worker serves on."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import uvicorn

from proxy.config import Config, ConfigError
from proxy.wire.server import EdgeLimits, EdgeProtocol, EdgeServer, Reading, Refusal
from tests.proxy.conftest import ClockedLoop
from tests.proxy.edge_app import EdgeApp
from tests.stack import Process, free_port

TIMEOUT_S = 20.0  # Nothing here takes as long, unless it hangs.
HOST = b"Host: gateway\r\n"
CHUNKED = b"POST /x HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"


def request(target: bytes = b"/x", *lines: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    length = [b"Content-Length: %d" % len(body)] if body else []
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), b"Host: gateway", *lines, *length, b"", body])


class Answer(NamedTuple):
    status_code: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def code(self) -> str:
        return json.loads(self.body)["error"]["code"]


def split_answers(received: bytes) -> list[Answer]:
    """All answers of a connection, which must have been sent with a length."""
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        length = int(headers[b"content-length"])
        answers.append(Answer(int(status_line.split()[1]), headers, rest[:length]))
        received = rest[length:]
    return answers


class Edge:
    """A worker to send bytes to, whoever runs it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def exchange(self, data: bytes) -> list[Answer]:
        """Send, then read until the server closes. What keeps a connection open past `TIMEOUT_S` fails the test."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # It answered early and went away; the answer is still there to be read.
            return split_answers(read_to_end(connection))

    def accepts(self) -> bool:
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return False
        return True

    def get(self, target: bytes) -> Answer:
        return self.exchange(request(target, b"Connection: close"))[0]

    def record(self) -> dict[str, Any]:
        return json.loads(self.get(b"/record").body)


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


class Gunicorn(Edge):
    """Real workers as they run in production, with `edge_app` in the place of the proxy."""

    def __init__(self, directory: Path, workers: int, **environment: str) -> None:
        super().__init__(free_port())
        environment = {
            **os.environ,
            "REDIS_URL": "redis://127.0.0.1:1",
            "TOLLGATE_PROXY_BIND": f"127.0.0.1:{self.port}",
            "TOLLGATE_PROXY_WORKERS": str(workers),
            **environment,
        }
        argv = [sys.executable, "-m", "gunicorn", "-c", "proxy/gunicorn.conf.py", "tests.proxy.edge_app:application"]
        self.process = Process(argv, environment, directory / "gunicorn.log")
        wait_until(lambda: len(self.answering()) == workers)

    def answering(self) -> set[int]:
        """The workers that answer; not each of them at each call."""
        try:
            return {int(self.get(b"/pid").body) for _ in range(8)}
        except OSError:
            return set()

    def who_answers(self, connections: int) -> Counter[int]:
        """The worker of each of so many connections, all open in the end. Each is answered before the next one comes, so
        that a worker that was off the processor for a while can catch up."""
        workers = Counter[int]()
        with contextlib.ExitStack() as stack:
            for _ in range(connections):
                connection = stack.enter_context(self.connect())
                connection.sendall(request(b"/pid"))
                response = HTTPResponse(connection)
                response.begin()
                workers[int(response.read())] += 1
        return workers


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """One worker for all requests that should do no harm to it."""
    gunicorn = Gunicorn(tmp_path_factory.mktemp("edge"), workers=1, TOLLGATE_BODY_BYTES_MAX="1048576")
    yield gunicorn
    gunicorn.process.stop()


@pytest.fixture
def make_workers(tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    started: list[Gunicorn] = []

    def make(workers: int, **environment: str) -> Gunicorn:
        started.append(Gunicorn(tmp_path, workers, **environment))
        return started[-1]

    yield make
    for gunicorn in started:
        gunicorn.process.stop()


# One meaning per request

BAD: dict[str, tuple[bytes, int, str]] = {
    "no Host": (b"GET /x HTTP/1.1\r\n\r\n", 400, "invalid_host"),
    "two Hosts": (request(b"/x", b"Host: other"), 400, "invalid_host"),
    "two equal Hosts": (request(b"/x", b"Host: gateway"), 400, "invalid_host"),
    "empty Host": (b"GET /x HTTP/1.1\r\nHost:\r\n\r\n", 400, "invalid_host"),
    "list of Hosts": (b"GET /x HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "invalid_host"),
    "Host with user": (b"GET /x HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, "invalid_host"),
    "Host with path": (b"GET /x HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "invalid_host"),
    "HTTP/1.0": (b"GET /x HTTP/1.0\r\nHost: gateway\r\n\r\n", 505, "http_version_not_supported"),
    "HTTP/0.9": (b"GET /x\r\n\r\n", 505, "http_version_not_supported"),
    "HTTP/1.2": (b"GET /x HTTP/1.2\r\nHost: gateway\r\n\r\n", 400, "malformed_request"),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request"),
    "HTTP/2.0 in words": (b"GET /x HTTP/2.0\r\nHost: gateway\r\n\r\n", 505, "http_version_not_supported"),
    "RTSP": (b"DESCRIBE /x RTSP/1.0\r\nHost: gateway\r\n\r\n", 505, "http_version_not_supported"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400, "malformed_request"),
    "absolute target": (request(b"http://other/x"), 400, "invalid_target"),
    "authority target": (b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", 400, "invalid_target"),
    "asterisk target": (request(b"*", method=b"OPTIONS"), 400, "invalid_target"),
    "fragment": (request(b"/x#y"), 400, "invalid_target"),
    "space in target": (request(b"/x y"), 400, "malformed_request"),
    "control character in target": (request(b"/x\x01y"), 400, "malformed_request"),
    "8-bit target": (request(b"/x\xc3\xa9"), 400, "malformed_request"),
    "long target": (request(b"/" + b"x" * 8192), 414, "target_too_long"),
    "unknown method": (request(method=b"FOO"), 400, "malformed_request"),
    "lower-case method": (request(method=b"get"), 400, "malformed_request"),
    "underscore": (request(b"/x", b"Content_Length: 3"), 400, "invalid_header_name"),
    "NUL in value": (request(b"/x", b"X: a\x00b"), 400, "malformed_request"),
    "NUL in name": (request(b"/x", b"X\x00: a"), 400, "malformed_request"),
    "control character": (request(b"/x", b"X: a\x01b"), 400, "malformed_request"),
    "DEL": (request(b"/x", b"X: a\x7fb"), 400, "malformed_request"),
    "bare CR": (request(b"/x", b"X: a\rb"), 400, "malformed_request"),
    "bare LF between headers": (b"GET /x HTTP/1.1\r\nHost: gateway\nX: a\r\n\r\n", 400, "malformed_request"),
    "bare LF throughout": (b"GET /x HTTP/1.1\nHost: gateway\n\n", 400, "malformed_request"),
    "folded header": (request(b"/x", b"X: a", b" b"), 400, "malformed_request"),
    "folded header by tab": (request(b"/x", b"X: a", b"\tb"), 400, "malformed_request"),
    "space before the first header": (b"GET /x HTTP/1.1\r\n Host: gateway\r\n\r\n", 400, "malformed_request"),
    "space before the colon": (request(b"/x", b"X : a"), 400, "malformed_request"),
    "no name": (request(b"/x", b": a"), 400, "malformed_request"),
    "no colon": (request(b"/x", b"X"), 400, "malformed_request"),
    "101 headers": (request(b"/x", *[b"X-%d: a" % n for n in range(100)]), 431, "too_many_headers"),
    "33 KiB of headers": (request(b"/x", *[b"X-%d: %b" % (n, b"a" * 1024) for n in range(33)]), 431, "headers_too_large"),
    "8 MB header": (request(b"/x", b"X: " + b"a" * 8_000_000), 431, "headers_too_large"),
    "8 MB header, unfinished": (b"GET /x HTTP/1.1\r\nX: " + b"a" * 8_000_000, 431, "headers_too_large"),
    "8 MB header name": (b"GET /x HTTP/1.1\r\n" + b"a" * 8_000_000, 431, "headers_too_large"),
    "two Authorizations": (request(b"/x", b"Authorization: a", b"authorization: b"), 400, "repeated_header"),
    "two Content-Types": (request(b"/x", b"Content-Type: a", b"Content-Type: a"), 400, "repeated_header"),
    "upgrade": (request(b"/x", b"Connection: Upgrade", b"Upgrade: websocket"), 400, "upgrade_refused"),
    "upgrade to HTTP/2": (request(b"/x", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), 400, "upgrade_refused"),
    "upgrade, not connected": (request(b"/x", b"Upgrade: h2c"), 400, "upgrade_refused"),
    "unknown expectation": (request(b"/x", b"Expect: 200-ok"), 417, "unknown_expectation"),
    "Content-Length and chunked": (
        request(b"/x", b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "chunked and Content-Length": (
        request(b"/x", b"Transfer-Encoding: chunked", b"Content-Length: 3") + b"0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "two equal lengths": (request(b"/x", b"Content-Length: 3", b"Content-Length: 3") + b"abc", 400, "malformed_request"),
    "two lengths": (request(b"/x", b"Content-Length: 3", b"Content-Length: 4") + b"abcd", 400, "malformed_request"),
    "body over the limit": (request(method=b"POST", body=b"x" * (1024 * 1024 + 1)), 413, "request_too_large"),
    "1 TB announced": (request(b"/x", b"Content-Length: 1000000000000", method=b"POST"), 413, "request_too_large"),
    "chunked body over the limit": (CHUNKED + b"10000\r\n%b\r\n" % (b"x" * 65536) * 20, 413, "request_too_large"),
    "body of chunk extensions": (CHUNKED + b"1;" + b"x" * 2_000_000, 413, "request_too_large"),
    "trailer": (CHUNKED + b"3\r\nabc\r\n0\r\nAuthorization: b\r\n\r\n", 400, "trailers_refused"),
    "chunk without its end": (CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400, "malformed_request"),
    "chunk ended by LF": (CHUNKED + b"3\r\nabc\n0\r\n\r\n", 400, "malformed_request"),
    "chunk size ended by LF": (CHUNKED + b"3\nabc\r\n0\r\n\r\n", 400, "malformed_request"),
    "chunk size with a sign": (CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n", 400, "malformed_request"),
    "chunk size with 0x": (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400, "malformed_request"),
    "chunk size with a space": (CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n", 400, "malformed_request"),
    "chunk size over 64 bits": (CHUNKED + b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n", 400, "malformed_request"),
    **{
        f"Content-Length {length!r}": (request(b"/x", b"Content-Length: " + length) + b"abc", 400, "malformed_request")
        for length in (b"", b"+3", b"-3", b"0x3", b"3a", b"3,3", b"3 3", b"3.0", b"\xb2", b"9" * 30)
    },
    **{
        f"Transfer-Encoding {coding!r}": (
            request(b"/x", b"Transfer-Encoding: " + coding) + b"3\r\nabc\r\n0\r\n\r\n",
            400,
            code,
        )
        for coding, code in [
            (b"gzip, chunked", "invalid_framing"),
            (b"chunked, chunked", "malformed_request"),
            (b"chunked, identity", "malformed_request"),
            (b"identity", "invalid_framing"),
            (b"gzip", "invalid_framing"),
            (b"xchunked", "invalid_framing"),
            (b"chunked;q=1", "invalid_framing"),
            (b"\x0bchunked", "malformed_request"),
            (b"", "malformed_request"),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize(("data", "status_code", "code"), BAD.values(), ids=BAD.keys())
def test_an_ambiguous_request_is_refused_and_harms_nobody(edge, data, status_code, code):
    before = len(edge.record()["seen"])
    answers = edge.exchange(data + request(b"/smuggled"))
    assert [(answer.status_code, answer.code) for answer in answers] == [(status_code, code)]
    assert answers[0].headers[b"connection"] == b"close"
    assert json.loads(answers[0].body)["error"].keys() == {"message", "type", "param", "code"}
    assert edge.get(b"/honest").status_code == 200
    assert [seen["path"] for seen in edge.record()["seen"][before:]] == ["/honest"]


GOOD: dict[str, bytes] = {
    "plain": request(),
    "body": request(method=b"POST", body=b"abc"),
    "chunked body": CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
    "chunked body, mixed case": CHUNKED.replace(b"chunked", b"Chunked") + b"3\r\nabc\r\n0\r\n\r\n",
    "body as large as allowed": request(method=b"POST", body=b"x" * 1024 * 1024),
    "100 headers": request(b"/x", *[b"X-%d: a" % n for n in range(99)]),
    "31 KiB of headers": request(b"/x", *[b"X-%d: %b" % (n, b"a" * 1000) for n in range(31)]),
    "long target": request(b"/" + b"x" * 8000),
    "Host with port": b"GET /x HTTP/1.1\r\nHost: gateway:8080\r\n\r\n",
    "IPv6 Host": b"GET /x HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    "list headers repeated": request(b"/x", b"X-Forwarded-For: a", b"X-Forwarded-For: b", b"Accept: c", b"Accept: d"),
    "spaces around values": request(b"/x", b"X: \t a b \t "),
    "empty lines before": b"\r\n\r\n" + request(),
    "8-bit value": request(b"/x", b"X: \xc3\xa9"),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_a_plain_request_is_answered_and_its_connection_kept(edge, data):
    answers = edge.exchange(data + request(b"/last", b"Connection: close"))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].body == b"/last"


@pytest.mark.parametrize("data", [*GOOD.values(), CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"])
def test_it_does_not_matter_where_the_network_cuts_a_request(edge, data):
    data = data[: 64 * 1024] if len(data) < 64 * 1024 else request(method=b"POST", body=b"x" * 5000)
    with edge.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = max(1, len(data) // 50)
        for start in range(0, len(data), step):
            connection.sendall(data[start : start + step])
            time.sleep(0.0005)
        connection.sendall(request(b"/last", b"Connection: close"))
        assert [answer.status_code for answer in split_answers(read_to_end(connection))] == [200, 200]


def test_a_trailer_never_joins_the_headers_that_the_application_has(edge):
    edge.exchange(CHUNKED + b"3\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n")
    assert all("x-late" not in dict(seen["headers"]) for seen in edge.record()["seen"])


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(edge):
    with edge.connect() as connection:
        connection.sendall(request(b"/x", b"Expect: 100-continue", b"Content-Length: 3", method=b"POST"))
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc" + request(b"/last", b"Connection: close"))
        assert [answer.status_code for answer in split_answers(read_to_end(connection))] == [200, 200]


def test_the_answer_to_head_has_no_body(edge):
    with edge.connect() as connection:
        connection.sendall(request(method=b"HEAD") + request(b"/last", b"Connection: close"))
        head, _, rest = read_to_end(connection).partition(b"\r\n\r\n")
    assert b"content-length: 2" in head
    assert [answer.body for answer in split_answers(rest)] == [b"/last"]


def test_a_failure_in_the_application_says_nothing_about_itself(edge):
    answers = edge.exchange(request(b"/fail") + request(b"/next"))
    assert [answer.status_code for answer in answers] == [500]
    assert json.loads(answers[0].body)["error"]["type"] == "server_error"
    assert b"secret" not in answers[0].body


def test_an_early_answer_leaves_the_connection_in_step(edge):
    body = b"GET /smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n" * 1000
    answers = edge.exchange(request(b"/early", method=b"POST", body=body) + request(b"/last", b"Connection: close"))
    assert [answer.status_code for answer in answers] == [401, 200]
    assert all(seen["path"] != "/smuggled" for seen in edge.record()["seen"])


# Several requests on one connection


def test_requests_sent_ahead_are_answered_in_their_order(edge):
    answers = edge.exchange(
        request(b"/a?0.1") + request(b"/b", method=b"POST", body=b"abc") + request(b"/c", b"Connection: close")
    )
    assert [answer.body for answer in answers] == [b"/a", b"/b", b"/c"]


def test_more_requests_ahead_than_allowed_end_the_connection_after_those_allowed(edge):
    answers = edge.exchange(b"".join(request(b"/%d?0.05" % number) for number in range(50)))
    assert [answer.body for answer in answers] == [b"/%d" % number for number in range(len(answers))]
    assert 1 < len(answers) < 50


@pytest.mark.parametrize(
    "bad",
    [
        b"GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"garbage\r\n\r\n",
        CHUNKED + b"garbage",
        b"X: " + b"a" * 100_000,
        request(b"/smuggled", b"Content-Length: 1000000000", method=b"POST"),
    ],
)
def test_an_honest_request_is_answered_though_the_next_one_is_not(edge, bad):
    answers = edge.exchange(request(b"/a?0.1") + request(b"/b") + bad + request(b"/smuggled"))
    assert [answer.body for answer in answers] == [b"/a", b"/b"]
    assert edge.get(b"/honest").status_code == 200
    assert all(seen["path"] != "/smuggled" for seen in edge.record()["seen"])


def test_bytes_after_the_last_request_are_no_request(edge):
    answers = edge.exchange(request(b"/a", b"Connection: close") + request(b"/smuggled"))
    assert [answer.body for answer in answers] == [b"/a"]
    assert all(seen["path"] != "/smuggled" for seen in edge.record()["seen"])


# Deadlines, with limits short enough to wait for

# So long that only a clock that is put forward comes to their ends, and each differs from the others by more than a slow
# machine can take.
LIMITS = EdgeLimits(
    body_bytes_max=4 * 1024 * 1024,
    head_s=1_000,
    body_s=2_000,
    body_bytes_per_s=64,
    idle_s=3_000,
    stalled_write_s=4_000,
    linger_s=5_000,
    linger_bytes=8 * 1024 * 1024,
)
MARGIN_S = 100


class LocalEdge:
    """The server in the test's own event loop, its application within reach."""

    def __init__(self, limits: EdgeLimits = LIMITS) -> None:
        self.app = EdgeApp()
        self._loop = cast(ClockedLoop, asyncio.get_running_loop())
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            http=partial(EdgeProtocol, limits=limits),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self.server = EdgeServer(config, grace_s=0)
        self._task = asyncio.create_task(self.server.serve(sockets=[listener]))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, data: bytes) -> list[Answer]:
        """Send, then wait for the end: what came."""
        reader, writer = await self.connect()
        writer.write(data)
        return await read_answers(reader, writer)

    async def send_part(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send what is no whole request, on the only connection, and wait until all of it was read."""
        reader, writer = await self.connect()
        writer.write(data)
        await until(lambda: len(self.connections) == 1 and self.connections[0].bytes_in == len(data))
        return reader, writer

    @property
    def connections(self) -> list[EdgeProtocol]:
        return list(self.server.server_state.connections)

    def is_waiting(self) -> bool:
        """Whether the only connection is neither refused nor closed."""
        (connection,) = self.connections
        return not connection.transport.is_closing() and connection.reading is not Reading.DISCARDING

    def pass_time(self, seconds: float) -> None:
        """Put the clock forward, and look at the deadlines, as the server does of itself twice a second."""
        self._loop.ahead_s += seconds
        for connection in self.connections:
            connection.look_at_deadlines(self._loop.time())

    def is_cut_after(self, seconds: float) -> bool:
        """Asked again and again: what the system still takes for the other side begins its wait anew."""
        self.pass_time(seconds)
        return not self.connections

    def pass_deadline(self, seconds: float) -> None:
        """So long from now the only connection is still waited for, and a little later no more."""
        self.pass_time(seconds - MARGIN_S)
        assert self.is_waiting()
        self.pass_time(2 * MARGIN_S)
        assert not self.is_waiting()

    async def stop(self) -> None:
        self.server.should_exit = True
        for connection in self.connections:
            connection.transport.abort()  # It would have as long as `LIMITS` says.
        await self._task


async def read_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[Answer]:
    """All that comes until the server closes."""
    answers = split_answers(await asyncio.wait_for(reader.read(), TIMEOUT_S))
    await close(writer)
    return answers


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass


@pytest.fixture
async def local() -> AsyncIterator[LocalEdge]:
    edge = LocalEdge()
    while not edge.server.started:
        await asyncio.sleep(0.01)
    yield edge
    await edge.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_connection_that_says_nothing_is_closed(local):
    reader, writer = await local.connect()
    await until(lambda: len(local.connections) == 1)
    local.pass_deadline(LIMITS.head_s)
    assert await read_answers(reader, writer) == []


async def test_the_server_looks_at_the_deadlines_of_itself():
    edge = LocalEdge(EdgeLimits(head_s=0.01))
    await until(lambda: edge.server.started)
    try:
        assert await edge.send(b"") == []
    finally:
        await edge.stop()


@pytest.mark.parametrize("line", [b"\r\n", b"X: y\r\n"])
async def test_a_head_that_comes_byte_by_byte_has_one_deadline_in_all(local, line):
    head = b"" if line == b"\r\n" else b"GET /x HTTP/1.1\r\nHost: gateway\r\n"
    reader, writer = await local.send_part(head)
    for byte in line * 4:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
        local.pass_time(LIMITS.head_s / len(line * 4) - 1)
    assert local.is_waiting()
    local.pass_time(MARGIN_S)
    assert [answer.code for answer in await read_answers(reader, writer)] == (["request_timeout"] if head else [])


async def test_the_head_of_a_later_request_has_its_deadline_from_its_first_byte(local):
    reader, writer = await local.connect()
    writer.write(request())
    await reader.readuntil(b"/x")
    local.pass_time(LIMITS.head_s + MARGIN_S)  # Idle longer than a head may take.
    writer.write(b"GET ")
    await until(lambda: local.connections[0].bytes_in == 4)
    local.pass_deadline(LIMITS.head_s)
    assert [answer.code for answer in await read_answers(reader, writer)] == ["request_timeout"]


async def test_an_idle_connection_is_closed_without_a_word(local):
    reader, writer = await local.connect()
    writer.write(request())
    await reader.readuntil(b"/x")
    local.pass_deadline(LIMITS.idle_s)
    assert await read_answers(reader, writer) == []


@pytest.mark.parametrize(
    "head",
    [CHUNKED + b"1\r\nx\r\n", CHUNKED + b"100000;", request(b"/x", b"Content-Length: 1000", method=b"POST") + b"x"],
)
async def test_a_body_that_does_not_come_is_not_waited_for(local, head):
    reader, writer = await local.send_part(head)
    local.pass_deadline(LIMITS.body_s)
    assert [answer.code for answer in await read_answers(reader, writer)] == ["request_timeout"]
    assert local.app.gone == ["/x"]
    assert local.app.seen == []


async def test_a_body_that_comes_slowly_but_steadily_has_its_time(local):
    part, parts = b"x" * 128 * 1024, 4
    length = b"Content-Length: %d" % (parts * len(part))
    head = request(b"/x", length, b"Connection: close", method=b"POST")
    reader, writer = await local.send_part(head)
    for number in range(1, parts):
        writer.write(part)
        await until(lambda number=number: local.connections[0].bytes_in == len(head) + number * len(part))
        local.pass_time(len(part) / LIMITS.body_bytes_per_s)  # Longer than a body has that does not come.
        assert local.is_waiting()
    writer.write(part)
    assert [answer.status_code for answer in await read_answers(reader, writer)] == [200]


async def test_a_body_left_unfinished_after_an_early_answer_is_not_waited_for(local):
    reader, writer = await local.send_part(request(b"/early", b"Content-Length: 1000", method=b"POST") + b"x")
    assert b" 401 " in await reader.readuntil(b"no")
    local.pass_deadline(LIMITS.body_s)
    assert await read_answers(reader, writer) == []


async def test_an_answer_that_takes_long_has_no_deadline_here(local):
    reader, writer = await local.connect()
    writer.write(request(b"/x?0.5", b"Connection: close"))
    await until(lambda: len(local.app.seen) == 1)
    local.pass_time(1_000_000)
    assert [answer.status_code for answer in await read_answers(reader, writer)] == [200]


async def test_an_application_that_leaves_within_its_answer_ends_the_connection_without_its_end(local):
    reader, writer = await local.connect()
    writer.write(request(b"/broken-off") + request(b"/next"))
    received = await asyncio.wait_for(reader.read(), TIMEOUT_S)
    assert received.endswith(b"\r\n1\r\nx\r\n")
    await close(writer)


@pytest.mark.parametrize("lines", [(), (b"Connection: close",)])
async def test_a_client_that_stops_reading_stops_the_application_and_is_cut(local, lines):
    with socket.create_connection(("127.0.0.1", local.port)) as connection:
        connection.sendall(request(b"/stream?10000", *lines))
        await until(lambda: local.app.sent > 0)
        await until(partial(local.is_cut_after, LIMITS.stalled_write_s))
        await until(lambda: local.app.gone == ["/stream"])
        assert local.app.sent < 1000  # 64 KiB each: what the sockets hold, not the whole 640 MB.


@pytest.mark.parametrize("lines", [(), (b"Connection: close",)])
async def test_a_client_that_leaves_the_end_of_an_answer_unread_is_cut(local, lines):
    """The application is done; what it wrote is still here."""
    with socket.create_connection(("127.0.0.1", local.port)) as connection:
        connection.sendall(request(b"/large", *lines))
        await until(lambda: local.app.sent == 1)
        assert len(local.connections) == 1
        local.pass_time(LIMITS.stalled_write_s + MARGIN_S)
        await until(lambda: not local.connections)
        assert local.app.gone == []


async def test_a_client_that_leaves_is_reported_at_once(local):
    _, writer = await local.connect()
    writer.write(request(b"/x?30"))
    await until(lambda: len(local.app.seen) == 1)
    await close(writer)
    await until(lambda: local.app.gone == ["/x"])


async def test_a_client_that_leaves_with_requests_waiting_is_reported_for_the_one_that_runs(local):
    _, writer = await local.connect()
    writer.write(request(b"/a?30") + request(b"/b"))
    await until(lambda: len(local.app.seen) == 1)
    await close(writer)
    await until(lambda: local.app.gone == ["/a"])
    await asyncio.sleep(0.1)
    assert [seen["path"] for seen in local.app.seen] == ["/a"]


async def test_a_client_that_got_its_answer_is_not_reported(local):
    await local.send(request(b"/x", b"Connection: close"))
    assert local.app.gone == []


async def test_a_refused_client_that_goes_on_sending_gets_to_read_why(local):
    body = b"x" * (LIMITS.body_bytes_max + 1024 * 1024)
    answers = await local.send(request(method=b"POST", body=body))
    assert [answer.code for answer in answers] == ["request_too_large"]


async def test_a_refused_client_that_never_stops_sending_is_cut(local):
    _, writer = await local.connect()
    writer.write(request(b"/x", b"Content-Length: 1000000000000", method=b"POST"))
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 10 * LIMITS.linger_bytes:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536
    assert sent < 4 * LIMITS.linger_bytes
    await close(writer)


async def test_honest_requests_go_on_among_200_slow_heads(local):
    crowd = [await local.connect() for _ in range(200)]
    await until(lambda: len(local.connections) == len(crowd))
    for byte in b"GET /slow HTTP/1.1\r\nX: y":
        for _, writer in crowd:
            writer.write(bytes([byte]))
        answers = await local.send(request(b"/honest", b"Connection: close"))
        assert [answer.status_code for answer in answers] == [200]
    assert sum(connection.reading is Reading.HEAD for connection in local.connections) == len(crowd)
    local.pass_time(LIMITS.head_s + MARGIN_S)
    refused = [await read_answers(*one) for one in crowd]
    assert {answers[0].code for answers in refused} == {"request_timeout"}
    assert {seen["path"] for seen in local.app.seen} == {"/honest"}


async def test_refusals_are_counted(local):
    before = EdgeProtocol.refusals[Refusal.HOST]
    await local.send(b"GET /x HTTP/1.1\r\n\r\n")
    assert EdgeProtocol.refusals[Refusal.HOST] == before + 1


# The worker


def test_sigterm_lets_a_running_request_end(make_workers):
    gunicorn = make_workers(1)
    with gunicorn.connect() as connection:
        connection.sendall(request(b"/x", b"Expect: 100-continue", b"Content-Length: 1", method=b"POST"))
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"  # It runs, and waits for its body.
        os.kill(gunicorn.process.process.pid, signal.SIGTERM)
        wait_until(lambda: not gunicorn.accepts())
        connection.sendall(b"x")
        answers = split_answers(read_to_end(connection))
    assert [answer.body for answer in answers] == [b"/x"]
    assert gunicorn.process.process.wait(TIMEOUT_S) == 0


def test_a_request_that_outlives_the_grace_is_cut(make_workers):
    gunicorn = make_workers(1, TOLLGATE_GRACE_S="0.3")
    with gunicorn.connect() as connection:
        connection.sendall(request(b"/x?3600"))
        wait_until(lambda: len(gunicorn.record()["seen"]) == 1)
        os.kill(gunicorn.process.process.pid, signal.SIGTERM)
        answers = split_answers(read_to_end(connection))
    assert [(answer.status_code, answer.code) for answer in answers] == [(503, "server_stopping")]
    assert gunicorn.process.process.wait(TIMEOUT_S) == 0


def test_an_idle_connection_does_not_hold_up_the_stop(make_workers):
    gunicorn = make_workers(2, TOLLGATE_GRACE_S="3600")
    with gunicorn.connect():
        os.kill(gunicorn.process.process.pid, signal.SIGTERM)
        assert gunicorn.process.process.wait(TIMEOUT_S) == 0


def test_sigint_waits_for_nobody(make_workers):
    gunicorn = make_workers(1, TOLLGATE_GRACE_S="3600")
    with gunicorn.connect() as connection:
        connection.sendall(request(b"/x?3600"))
        wait_until(lambda: len(gunicorn.record()["seen"]) == 1)
        os.kill(gunicorn.process.process.pid, signal.SIGINT)
        gunicorn.process.process.wait(TIMEOUT_S)


def test_a_worker_whose_master_died_leaves(make_workers):
    gunicorn = make_workers(2)
    workers = gunicorn.process.children()
    os.kill(gunicorn.process.process.pid, signal.SIGKILL)
    gunicorn.process.process.wait(TIMEOUT_S)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_killed_worker_is_replaced_and_the_others_answer_meanwhile(make_workers):
    gunicorn = make_workers(2)
    killed, other = gunicorn.process.children()
    master = gunicorn.process.process.pid
    os.kill(master, signal.SIGSTOP)  # So that there is no other yet.
    try:
        os.kill(killed, signal.SIGKILL)
        assert gunicorn.get(b"/pid").body == str(other).encode()
    finally:
        os.kill(master, signal.SIGCONT)
    wait_until(lambda: len(gunicorn.answering() - {killed, other}) == 1)


def test_a_worker_that_is_blocked_is_killed_and_replaced(make_workers):
    gunicorn = make_workers(1, GUNICORN_CMD_ARGS="--timeout 2")
    (blocked,) = gunicorn.process.children()
    with gunicorn.connect() as connection:
        connection.sendall(request(b"/block"))
        wait_until(lambda: blocked not in gunicorn.process.children())
    wait_until(lambda: len(gunicorn.answering()) == 1)


def test_a_worker_that_is_stuck_does_not_keep_the_others_from_accepting(make_workers):
    gunicorn = make_workers(2)
    stuck, other = gunicorn.process.children()
    os.kill(stuck, signal.SIGSTOP)
    try:
        assert gunicorn.who_answers(100) == {other: 100}
    finally:
        os.kill(stuck, signal.SIGCONT)


def test_connections_spread_over_the_workers(make_workers):
    workers = make_workers(4).who_answers(200)
    assert len(workers) == 4
    # The kernel alone leaves one of them with two or three. How near to fifty it comes depends on who gets the processor.
    assert min(workers.values()) >= 10, workers


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", ""),
        ("REDIS_URL", "http://127.0.0.1"),
        ("REDIS_URL", "redis://[::1"),
        ("TOLLGATE_PROXY_PORT", "0"),
        ("TOLLGATE_PROXY_PORT", "many"),
        ("TOLLGATE_PROXY_WORKERS", "0"),
        ("TOLLGATE_PROXY_WORKERS", "1.5"),
        ("TOLLGATE_BODY_BYTES_MAX", "-1"),
        ("TOLLGATE_GRACE_S", "nan"),
        ("TOLLGATE_LEASE_S", "0"),
    ],
)
def test_nonsense_in_the_environment_is_one_clear_line(name, value):
    with pytest.raises(ConfigError, match=name) as error:
        Config.from_environment({"REDIS_URL": "redis://:sesame@127.0.0.1", name: value})
    assert "\n" not in str(error.value)


def test_settings_do_not_print_their_secrets():
    config = Config.from_environment({"REDIS_URL": "redis://:sesame@127.0.0.1", "TOLLGATE_VAULT_KEY": "open"})
    assert "sesame" not in repr(config)
    assert "open" not in repr(config)
    assert config.redis_url == "redis://:sesame@127.0.0.1"
    assert config.bind == "127.0.0.1:8080"
