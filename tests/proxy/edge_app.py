"""An application behind the edge that keeps a record of all that reached it, and misbehaves when asked to."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.wire.websocket import Closed

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CHUNK = b"x" * 65536


class EdgeApp:
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.gone: list[str] = []
        self.cut: list[str] = []
        self.sent = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        path = scope["path"]
        scope["tollgate.client_gone"] = lambda: self.gone.append(path)
        if path == "/early":
            await _answer(send, 401, b"no")
        elif path == "/stream":
            await self._stream(scope, send)
        elif path == "/broken-off":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        elif path == "/large":
            await _answer(send, 200, CHUNK * 512)
            self.sent += 1
        elif path == "/block":
            time.sleep(3600)
        elif path == "/fail":
            raise RuntimeError("a secret that must stay inside")
        elif path == "/pid":
            await _answer(send, 200, str(os.getpid()).encode())
        elif path == "/v1/realtime":
            await self._echo(scope, send)
        elif path == "/record":
            await _answer(send, 200, json.dumps({"seen": self.seen, "gone": self.gone, "cut": self.cut}).encode())
        else:
            await self._record(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    async def _record(self, scope: Message, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.seen.append(
            {"method": scope["method"], "path": scope["path"], "headers": headers, "body_bytes": len(body)}
        )
        try:
            await asyncio.sleep(float(scope["query_string"] or 0))
        except asyncio.CancelledError:
            self.cut.append(scope["path"])
            raise
        await _answer(send, 200, scope["path"].encode())

    async def _echo(self, scope: Message, send: Send) -> None:
        """A WebSocket that answers each message with itself, until one says what to do; the query may refuse it."""
        query = scope["query_string"]
        if query == b"refuse" or "tollgate.upgrade" not in scope:
            await _answer(send, 403, b"no")
            return
        await asyncio.sleep(0.1)
        socket = scope["tollgate.upgrade"]([(b"x-query", query)])
        try:
            while True:
                message = await socket.receive()
                if message.data == b"fail":
                    raise RuntimeError("a secret that must stay inside")
                if message.data == b"leave":
                    return
                await socket.send(message)
        except Closed as closed:
            self.gone.append(f"{closed.code} {closed.reason}")

    async def _stream(self, scope: Message, send: Send) -> None:
        """As many chunks of 64 KiB as the query says, as fast as the client takes them."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(int(scope["query_string"])):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            if scope["path"] in self.gone:
                return
            self.sent += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(send: Send, status_code: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


application = EdgeApp()
