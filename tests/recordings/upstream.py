"""A server that answers each call with its recorded answer. It knows the recording by the `traceparent` of the client's call.

Streams come in pieces of random sizes, the same in every run.
"""

import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.recordings.corpus import Recording, recordings

# Hop by hop, or said by this server itself.
NOT_REPLAYED = frozenset({"date", "server", "via", "content-length", "transfer-encoding", "connection", "alt-svc"})
PIECE_BYTES_MAX = 700


class Received(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class ReplayUpstream:
    """Every provider at once, on one port of loopback."""

    def __init__(self) -> None:
        # By the number of the recording; the last one counts.
        self.received: dict[int, Received] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.received))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def traceparent(recording: Recording) -> str:
    """The number comes after a one, since a trace's id is never zero."""
    return f"00-1{recording.number:031x}-00000000000000aa-01"


def pieces(body: bytes, seed: int, piece_bytes_max: int = PIECE_BYTES_MAX) -> Iterator[bytes]:
    """`body` cut at random, never empty."""
    draw = random.Random(seed)
    at = 0
    while at < len(body):
        size = draw.randint(1, piece_bytes_max)
        yield body[at : at + size]
        at += size


def _handler(received: dict[int, Received]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        timeout = 30

        def answer(self) -> None:
            number = int(self.headers["traceparent"][4:35], 16)
            recording = recordings()[number]
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received[number] = Received(self.command, self.path, headers, body)
            self.send_response(recording.status)
            for name, value in recording.response["headers"]:
                if name not in NOT_REPLAYED:
                    self.send_header(name, value)
            if recording.is_stream:
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for piece in pieces(recording.body, number):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.send_header("content-length", str(len(recording.body)))
                self.end_headers()
                self.wfile.write(recording.body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

    return Handler
