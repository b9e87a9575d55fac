"""A provider that costs nothing: canned answers in OpenAI's shape, so that the upstream never is the bottleneck.

    python -m bench.upstream PORT

A body with `"stream": true` gets a stream of `EVENTS` events; one that also says `idle` gets one event and then silence.
"""

import asyncio
import json
import sys

import uvloop

EVENTS = 20
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_795_000_000,
        "model": "bench",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Thank you. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100},
    }
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(event: object) -> bytes:
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    body = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(body), body)


def _delta(**choice: object) -> dict[str, object]:
    return {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "model": "bench",
        "choices": [{"index": 0, **choice}],
    }


TOKEN = _chunk(_delta(delta={"content": " token"}, finish_reason=None))
USAGE = {
    **_delta(),
    "choices": [],
    "usage": {"prompt_tokens": 40, "completion_tokens": EVENTS, "total_tokens": 40 + EVENTS},
}
STREAM_END = _chunk(_delta(delta={}, finish_reason="stop")) + _chunk(USAGE) + _chunk(b"[DONE]") + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.pending = b""

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while (end := self.pending.find(b"\r\n\r\n")) >= 0:
            head = self.pending[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.pending) < end + 4 + length:
                return
            body = self.pending[end + 4 : end + 4 + length]
            self.pending = self.pending[end + 4 + length :]
            self.answer(body)

    def answer(self, body: bytes) -> None:
        write = self.transport.write  # type: ignore[attr-defined]
        if b'"stream": true' not in body and b'"stream":true' not in body:
            write(WHOLE)
            return
        write(STREAM_HEAD)
        write(TOKEN)
        if b"idle" in body:
            return
        for _ in range(EVENTS - 1):
            write(TOKEN)
        write(STREAM_END)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=8192)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
