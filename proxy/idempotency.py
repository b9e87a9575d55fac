"""`Idempotency-Key`: a request that is repeated under its key reaches a provider once, and gets the first one's answer.

The first request *claims* the key in Redis and, at its last byte, leaves its answer there, sealed. Whoever repeats it gets that
answer, or hears that there is none yet, or none any more. Only the request that claimed a key ever changes its entry.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import structlog

from budgets import gate
from keys.vault import MasterKey, VaultError, open_bytes, seal_bytes
from proxy.ask import call
from proxy.errors import (
    AnswerNotKept,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    InvalidRequest,
    OutcomeUnknown,
    Unavailable,
)
from proxy.live import LiveRequest
from proxy.receive import Request, Send
from proxy.wire.redis import RedisError, RedisPipeline

log = structlog.get_logger()

HEADER = b"idempotency-key"
KEPT_S = 24 * 3600
RETRY_AFTER_S = 1
# The last byte waits so long for the answer to be kept, so that whoever has it can ask again at once.
KEEPING_WAIT_S = 0.25
REWRITE_INTERVAL_S = 0.5
# Between finding an entry and reading it, it may go.
CLAIMS_MAX = 3

_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_BOUNDARY = re.compile(rb'boundary="?([^";]+)', re.IGNORECASE)
# What a client says to the gateway itself: tags, and for which model a file is.
_OWN_HEADERS = b"x-tollgate-"

Headers = list[tuple[bytes, bytes]]
State = Literal["running", "answered", "not_kept"]


class Entry(msgspec.Struct, frozen=True):
    """The value of `tg:idempotency:{key_id}:{digest}`. `fingerprint` is of the request; `answer` is sealed."""

    fingerprint: bytes
    request_id: str
    worker: str
    state: State = "running"
    answer: bytes = b""


class Answer(NamedTuple):
    """One answer, as it was given to the client."""

    status_code: int
    headers: Headers
    body: bytes


_pack = msgspec.msgpack.Encoder().encode
_unpack_entry = msgspec.msgpack.Decoder(Entry).decode
_unpack_answer = msgspec.msgpack.Decoder(tuple[int, list[tuple[bytes, bytes]], bytes]).decode


class Idempotency:
    def __init__(
        self, *, redis: RedisPipeline, worker: str, master_keys: Sequence[MasterKey], answer_bytes_max: int
    ) -> None:
        self.answer_bytes_max = answer_bytes_max
        self._redis = redis
        self._worker = worker
        self._master_keys = master_keys
        self._tasks: set[asyncio.Task[None]] = set()

    async def claim(
        self, key_id: str, request: Request, live: LiveRequest, acted_on: Iterable[bytes]
    ) -> "Claim | Answer":
        """For the first request under its key a claim, for a repeated one the answer of the first. Raises a `GatewayError` where
        there is none (`OutcomeUnknown`, `AnswerNotKept`, …), and `Unavailable`. `acted_on` names the headers that change what
        the body asks for."""
        presented = request.headers[HEADER]
        if _KEY.fullmatch(presented) is None:
            raise InvalidRequest(
                "`Idempotency-Key` is 1 to 255 printable characters of ASCII", code="invalid_idempotency_key"
            )
        name = f"tg:idempotency:{key_id}:{hashlib.sha256(presented).hexdigest()}"
        entry = Entry(fingerprint(presented, request, acted_on), request.request_id, self._worker)
        for _ in range(CLAIMS_MAX):
            if await self._try_to_claim(name, _pack(entry)):
                return Claim(self, name, entry, live)
            body = await call(self._redis, b"GET", name)
            if body is not None:
                return await self._replay(name, body, entry.fingerprint)
        raise IdempotencyKeyInUse(request.request_id, retry_after_s=RETRY_AFTER_S)

    async def _try_to_claim(self, name: str, value: bytes) -> bool:
        try:
            return await call(self._redis, b"SET", name, value, b"NX", b"EX", KEPT_S) is not None
        except (Unavailable, asyncio.CancelledError):
            # Perhaps it is there all the same, and nothing was asked of anybody: it must not stand in the next one's way.
            self._spawn(self._until_done(lambda: self._withdraw(name, value)))
            raise

    async def _replay(self, name: str, body: bytes, asked: bytes) -> Answer:
        try:
            first = _unpack_entry(body)
        except msgspec.DecodeError:
            log.error("an idempotency entry cannot be read", name=name)
            raise AnswerNotKept("") from None
        if first.fingerprint != asked:
            raise IdempotencyKeyReused(first.request_id)
        if first.state == "running":
            if await call(self._redis, b"EXISTS", gate.lease_key(first.worker)):
                raise IdempotencyKeyInUse(first.request_id, retry_after_s=RETRY_AFTER_S)
            raise OutcomeUnknown(first.request_id)
        if first.state == "not_kept":
            raise AnswerNotKept(first.request_id)
        try:
            return Answer(*_unpack_answer(open_bytes(first.answer, name, self._master_keys)))
        except (VaultError, msgspec.DecodeError) as error:
            log.error("a kept answer cannot be opened", request_id=first.request_id, reason=str(error))
            raise AnswerNotKept(first.request_id) from None

    # What becomes of a claim

    def keep(self, name: str, entry: Entry, answer: Answer) -> "asyncio.Task[None]":
        sealed = seal_bytes(_pack(answer), name, self._master_keys)
        return self._put(name, msgspec.structs.replace(entry, state="answered", answer=sealed))

    def keep_nothing(self, name: str, entry: Entry) -> "asyncio.Task[None]":
        """A provider may charge for it, so it is not repeated, but its answer is not there."""
        return self._put(name, msgspec.structs.replace(entry, state="not_kept"))

    def give_back(self, name: str) -> "asyncio.Task[None]":
        return self._spawn(self._until_done(lambda: self._redis.call(b"DEL", name)))

    def _put(self, name: str, entry: Entry) -> "asyncio.Task[None]":
        value = _pack(entry)
        return self._spawn(self._until_done(lambda: self._redis.call(b"SET", name, value, b"EX", KEPT_S)))

    async def _withdraw(self, name: str, value: bytes) -> None:
        # Not atomic, and need not be: what is our claim nobody else changes.
        if await self._redis.call(b"GET", name) == value:
            await self._redis.call(b"DEL", name)

    async def _until_done(self, step: Callable[[], Awaitable[Any]]) -> None:
        """For as long as Redis is away. While it is, nothing more is claimed."""
        while True:
            try:
                await step()
            except RedisError:
                await asyncio.sleep(REWRITE_INTERVAL_S)
            else:
                return

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """What could not be written yet stays a claim of a worker that is gone: its outcome is unknown."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=KEEPING_WAIT_S)
        for task in list(self._tasks):
            task.cancel()


class Claim:
    """The first request under its key. Its answer is recorded as it is sent, and kept before its last byte goes out.

    It runs to its end though the client leaves: whoever comes back for the answer finds it, and it is paid for once.
    """

    def __init__(self, idempotency: Idempotency, name: str, entry: Entry, live: LiveRequest) -> None:
        self._idempotency = idempotency
        self._name = name
        self._entry = entry
        self._live = live
        self._is_concluded = False
        self._is_client_gone = False
        self._is_too_large = False
        self._status_code = 0
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._size = 0

    def client_gone(self) -> None:
        self._is_client_gone = True
        self._cut_if_for_nobody()

    def recording(self, send: Send) -> Send:
        async def record_and_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._begin(message["status"], message["headers"])
            else:
                self._add(message["body"])
                if not message.get("more_body"):
                    await asyncio.wait([self._conclude()], timeout=KEEPING_WAIT_S)
            await send(message)

        return record_and_send

    def end(self, _task: object = None) -> None:
        """However the request ended. Idempotent."""
        if self._is_concluded:
            return
        self._is_concluded = True
        if self._is_final:
            self._idempotency.keep_nothing(self._name, self._entry)
        else:
            self._idempotency.give_back(self._name)

    @property
    def _is_final(self) -> bool:
        """Whether it has an outcome that must not come twice. A refusal that costs nothing may be tried again."""
        return 0 < self._status_code < 400 or self._live.may_have_been_billed

    def _begin(self, status_code: int, headers: Headers) -> None:
        self._status_code = status_code
        if self._is_final and status_code >= 400 and all(name != b"x-should-retry" for name, _ in headers):
            headers.append((b"x-should-retry", b"false"))  # It would get the same again.
        self._headers = list(headers)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._idempotency.answer_bytes_max:
            self._is_too_large = True
            self._parts.clear()
            self._cut_if_for_nobody()
        elif part:
            self._parts.append(part)

    def _cut_if_for_nobody(self) -> None:
        if self._is_client_gone and self._is_too_large:
            self._live.client_gone()

    def _conclude(self) -> "asyncio.Task[None]":
        self._is_concluded = True
        if not self._is_final:
            return self._idempotency.give_back(self._name)
        if self._is_too_large:
            return self._idempotency.keep_nothing(self._name, self._entry)
        answer = Answer(self._status_code, self._headers, b"".join(self._parts))
        return self._idempotency.keep(self._name, self._entry, answer)


def fingerprint(presented: bytes, request: Request, acted_on: Iterable[bytes]) -> bytes:
    """Digest of what is asked for. The key goes in as its salt: of it, Redis has only another digest."""
    body, said = request.body, _said(request.headers, acted_on)
    content_type = request.headers.get(b"content-type", b"")
    boundary = _BOUNDARY.search(content_type)
    if boundary is not None:
        # Clients draw another one for each retry.
        body, content_type = body.replace(boundary[1], b""), content_type.replace(boundary[1], b"")
    target = b"%b %b?%b" % (request.method.encode(), request.raw_path.encode(), request.query)
    digest = hashlib.sha256()
    for part in (presented, target, content_type, *said, body):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


def _said(headers: Mapping[bytes, bytes], acted_on: Iterable[bytes]) -> list[bytes]:
    names = {name for name in headers if name.startswith(_OWN_HEADERS)} | set(acted_on).intersection(headers)
    return [b"%b: %b" % (name, headers[name]) for name in sorted(names)]
