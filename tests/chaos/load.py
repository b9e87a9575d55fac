"""Clients: plain HTTP/1.1 over a connection of its own for each call, so that one that leaves really leaves."""

import asyncio
import contextlib
import importlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import uvloop

CHAT = "/v1/chat/completions"
TIMEOUT_S = 60.0


class Answer(NamedTuple):
    """`status` 0: no answer came. `is_whole`: it ended as HTTP says that it ends."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool
    elapsed_s: float

    @property
    def error_code(self) -> str:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(self.body)["error"]["code"])
        return ""


async def ask(
    port: int,
    secret: str,
    body: Mapping[str, Any],
    *,
    leave_after_s: float | None = None,
    leave_after_bytes: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One call. With `leave_after_s` or `leave_after_bytes` the client drops its connection so long after it has asked, or when
    so much has come."""
    began_at_s = time.monotonic()
    encoded = json.dumps(body).encode()
    lines = {
        "host": f"127.0.0.1:{port}",
        "authorization": f"Bearer {secret}",
        "content-type": "application/json",
        "content-length": str(len(encoded)),
        "connection": "close",
        **(headers or {}),
    }
    head = f"POST {CHAT} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    parts: list[bytes] = []
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(TIMEOUT_S if leave_after_s is None else leave_after_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + encoded)
            while part := await reader.read(65536):
                parts.append(part)
                if leave_after_bytes is not None and sum(map(len, parts)) >= leave_after_bytes:
                    break
    except (OSError, TimeoutError):
        pass
    finally:
        if writer is not None:
            writer.transport.abort()
    return _understand(b"".join(parts), time.monotonic() - began_at_s)


def ask_now(port: int, secret: str, body: Mapping[str, Any], **options: Any) -> Answer:
    """The same, where nothing else runs."""
    return asyncio.run(ask(port, secret, body, **options))


Ask = Callable[[int, str], Coroutine[Any, Any, list[Answer]]]


@contextlib.contextmanager
def asked_apart(ask_often: Ask, port: int, secret: str) -> Iterator[Callable[[], list[Answer]]]:
    """`ask_often` in a process of its own, that is ready to ask: how long an answer takes there does not depend on what load and
    relays do here."""
    started = get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=started, initializer=importlib.import_module, initargs=(ask_often.__module__,)
    ) as pool:
        pool.submit(time.monotonic).result()
        yield lambda: pool.submit(_run, ask_often, port, secret).result()


def _run(ask_often: Ask, port: int, secret: str) -> list[Answer]:
    return asyncio.run(ask_often(port, secret))


def _understand(answer: bytes, elapsed_s: float) -> Answer:
    head, is_there, rest = answer.partition(b"\r\n\r\n")
    if not is_there:
        return Answer(0, {}, b"", False, elapsed_s)
    status_line, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    headers = {name.lower(): value.strip() for name, value in pairs}
    status = int(status_line.split()[1])
    if "chunked" in headers.get("transfer-encoding", ""):
        body, is_whole = _join_chunks(rest)
    else:
        body, is_whole = rest, len(rest) == int(headers.get("content-length", -1))
    return Answer(status, headers, body, is_whole, elapsed_s)


def _join_chunks(rest: bytes) -> tuple[bytes, bool]:
    chunks, at = [], 0
    while (end := rest.find(b"\r\n", at)) >= 0:
        size = int(rest[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(chunks), True
        chunks.append(rest[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(chunks), False


class Load:
    """Within `with`, clients that ask all the time, in a thread of their own: a third of the calls are answered whole, a third
    streamed, and a third are streams whose client leaves. A broken connection says nothing about what the provider did."""

    WHOLE = "[[simulate output_tokens=12]]"
    STREAM = "[[simulate tokens_per_second=100,output_tokens=40]]"

    def __init__(self, port: int, secret: str, *, clients: int = 24, seed: int = 0, pause_s: float = 0.1) -> None:
        self._port, self._secret, self._clients, self._pause_s = port, secret, clients, pause_s
        self._draw = random.Random(seed)
        self.statuses: Counter[int] = Counter()
        self.slowest_s: dict[int, float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(TIMEOUT_S + 5)

    @property
    def answered(self) -> int:
        return self.statuses[200]

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number % 3) for number in range(self._clients)))

    async def _client(self, kind: int) -> None:
        while not self._is_over.is_set():
            if kind == 0:
                answer = await ask(self._port, self._secret, self._body(self.WHOLE))
            elif kind == 1:
                answer = await ask(self._port, self._secret, self._body(self.STREAM, stream=True))
            else:
                body = self._body(self.STREAM, stream=True)
                answer = await ask(self._port, self._secret, body, leave_after_s=self._draw.uniform(0.02, 0.3))
            self.statuses[answer.status] += 1
            self.slowest_s[answer.status] = max(answer.elapsed_s, self.slowest_s.get(answer.status, 0.0))
            await asyncio.sleep(self._pause_s * self._draw.uniform(0.5, 1.5))

    def _body(self, content: str, **fields: Any) -> dict[str, Any]:
        return chat(content, max_tokens=64, **fields)


def chat(content: str = "Hello", *, model: str = "demo", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}
