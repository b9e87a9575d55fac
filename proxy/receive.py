"""Taking a request in: its head as a `Request`, its body whole and bounded. The framing was checked by `wire/server.py`."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.errors import ClientGone, RequestTooLarge
from proxy.ids import new_id

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Request:
    """`headers` by lower-case name; the edge has refused the ambiguous ones. `raw_path` and `query` as they were sent, without the `?`."""

    __slots__ = ("body", "headers", "method", "path", "query", "raw_path", "request_id", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_path: str = scope["raw_path"].decode("ascii")
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = new_id()
        self.body = b""


async def read_body(receive: Receive, body_bytes_max: int) -> bytes:
    """Raises `RequestTooLarge`, or `ClientGone` when the client leaves before its body is complete."""
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone("the client left")
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        _check_size(len(body), body_bytes_max)
        return body
    parts, size = [body], len(body)
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone("the client left")
        part = message.get("body", b"")
        size += len(part)
        _check_size(size, body_bytes_max)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def body_at_hand(body: bytes) -> Receive:
    """For whoever reads a body that was read before."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body}

    return receive


def _check_size(size: int, body_bytes_max: int) -> None:
    if size > body_bytes_max:
        raise RequestTooLarge(f"the body is larger than {body_bytes_max} bytes")
