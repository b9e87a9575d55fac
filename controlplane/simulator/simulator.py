"""What the simulator makes of a request: whose it is, what is to happen to it, and what the journal says. No sockets.

It is the independent witness of the gateway's accounts, so it imports nothing of Tollgate outside its own package.
"""

import functools
import hashlib
import random
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from controlplane.simulator import answers
from controlplane.simulator.directives import BadDirective, Directives, Settings, find_in_message
from controlplane.simulator.journal import Controlled, Ended, Journal, Progress, Received
from controlplane.simulator.requests import ChatRequest, EmbeddingsRequest
from controlplane.simulator.script import Call, Fixed, plan_chat, plan_embeddings

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"
CONTROL = "/_control"
SUMMARY = "/_journal/summary"
_METHODS = {CHAT: ("POST",), EMBEDDINGS: ("POST",), MODELS: ("GET",)}
_ATTEMPT_ID_MAX = 200
_KEYS_MAX = 4096
_KEY_DIGEST_DIGITS = 12
_BEARER = b"bearer "

Asked = TypeVar("Asked")
_encode = msgspec.json.Encoder().encode
_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_decode_embeddings = msgspec.json.Decoder(EmbeddingsRequest).decode
_decode_settings = msgspec.json.Decoder(dict[str, Any]).decode


class Request(NamedTuple):
    """As it came off the wire. `arrived_s` is on the clock of the event loop."""

    method: str
    path: str
    authorization: bytes
    attempt_id: str
    directives: str
    body: bytes
    keeps_alive: bool
    arrived_s: float


class Refused(Exception):
    """The simulator itself finds fault with a request, as a provider would."""

    def __init__(self, status: int, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.answer = Fixed(status, answers.error_body(status, message=message, code=code))


class Stoppable(Protocol):
    def stop(self) -> None: ...


class Simulator:
    """What all connections share: settings, journal, the numbering of calls, chance."""

    def __init__(self, settings: Settings, journal: Journal, *, seed: int | None = None) -> None:
        self.settings = settings
        self.journal = journal
        self.connections: set[Stoppable] = set()
        self._random = random.Random(seed)  # noqa: S311 (which requests are to fail is no secret)
        # Every process begins its call ids differently, so that many of them may write one journal.
        self._call_prefix = secrets.token_hex(6)
        self._calls = 0

    def accept(self, request: Request) -> Call:
        """The request as a call, of which all is known that the answer depends on. In the journal before it is answered."""
        self._calls += 1
        call = Call(f"{self._call_prefix}{self._calls:017d}", request.attempt_id[:_ATTEMPT_ID_MAX])
        try:
            self._understand(call, request)
        except Refused as refused:
            call.fixed = refused.answer
        asked = call.request
        self.journal.received(
            Received(
                call=call.call_id,
                attempt_id=call.attempt_id,
                method=request.method,
                path=request.path,
                model=asked.model if asked is not None else "",
                stream=isinstance(asked, ChatRequest) and bool(asked.stream),
                key_digest=_key_digest(request.authorization),
                body_bytes=len(request.body),
                input_tokens=call.input_tokens,
            )
        )
        return call

    def note_progress(self, call: Call) -> None:
        self.journal.write(
            Progress(call=call.call_id, attempt_id=call.attempt_id, output_tokens=call.generated, tokens_sent=call.sent)
        )

    def note_end(self, call: Call, end: str) -> None:
        """`end` is how it looks from the socket: a completed answer may have been a refusal, or a fault to its end."""
        if end == "completed" and call.status >= 400:
            end = "refused"
        elif end == "completed" and call.fault:
            end = "fault"
        self.journal.ended(
            Ended(
                call=call.call_id,
                attempt_id=call.attempt_id,
                end=end,
                status=call.status,
                fault=call.fault,
                output_tokens=call.generated,
                tokens_sent=call.sent,
                usage=msgspec.Raw(call.usage) if call.usage else None,
                billed=call.bill(),
            )
        )

    # The endpoints that no provider has. They are for whoever runs the simulator, and leave no call in the journal.

    def is_private(self, path: str) -> bool:
        return path in (CONTROL, SUMMARY)

    def control(self, request: Request) -> bytes:
        """The answer to a request of the operator, head and all."""
        try:
            return _plain(200, self._control(request))
        except BadDirective as error:
            return _plain(400, answers.error_body(400, message=str(error), code="bad_directive"))
        except Refused as refused:
            return _plain(refused.answer.status, refused.answer.body)

    def _control(self, request: Request) -> bytes:
        match request.path, request.method:
            case (path, "GET") if path == SUMMARY:
                return _encode(self.journal.summary() | {"connections": len(self.connections)})
            case (path, "GET") if path == CONTROL:
                return _encode(self.settings.as_directives())
            case (path, "POST") if path == CONTROL:
                self.settings.update(_decode(_decode_settings, request.body))
            case (path, "DELETE") if path == CONTROL:
                self.settings.reset()
            case _:
                raise Refused(405, f"{request.path} has no {request.method}.")
        directives = self.settings.as_directives()
        self.journal.write(Controlled(settings=directives))
        return _encode(directives)

    # Understanding a request

    def _understand(self, call: Call, request: Request) -> None:
        """Raises `Refused`."""
        methods = _METHODS.get(request.path)
        if methods is None:
            raise Refused(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")
        if request.method not in methods:
            raise Refused(405, f"Not allowed to {request.method} on {request.path}.", code="method_not_allowed")
        if not _key(request.authorization):
            raise Refused(401, "No API key was provided: send it as Authorization: Bearer KEY.")
        if request.path == MODELS:
            call.fixed = Fixed(200, answers.models())
            return
        if request.path == CHAT:
            call.request = _decode(_decode_chat, request.body)
        else:
            call.request = _decode(_decode_embeddings, request.body)
        asked = call.request
        call.input_tokens = asked.input_tokens()
        call.directives = directives = self._directives(asked, request.directives)
        if directives.error is not None:
            call.fault = "error"
            call.fixed = _error(directives, directives.error, request.authorization)
        elif isinstance(asked, EmbeddingsRequest):
            call.plan = plan_embeddings(call.input_tokens, directives)
        elif directives.tool_call and not asked.tool_name():
            raise Refused(400, "tool_call needs a function among the tools of the request.", code="bad_directive")
        else:
            call.plan = plan_chat(asked, call.input_tokens, directives)

    def _directives(self, asked: ChatRequest | EmbeddingsRequest, in_header: str) -> Directives:
        in_message = next(filter(None, map(find_in_message, asked.texts())), "")
        try:
            directives = self.settings.resolve(asked.model, in_message, in_header)
        except BadDirective as error:
            raise Refused(400, str(error), code="bad_directive") from None
        rate = directives.error_rate
        return directives if rate is None or self._random.random() < rate else directives.calm()


def refuse(status: int) -> bytes:
    """The answer to what is no request at all; the connection ends with it."""
    return _plain(status, answers.error_body(status), b"connection: close\r\n")


def _plain(status: int, body: bytes, fields: bytes = b"") -> bytes:
    return answers.head(status, b"none", answers.JSON + fields + answers.content_length(len(body))) + body


def _error(directives: Directives, status: int, authorization: bytes) -> Fixed:
    message = f"Incorrect API key provided: {_key(authorization).decode('latin-1')}." if directives.echo_key else ""
    body = answers.error_body(status, message=message)
    return Fixed(status, body, answers.retry_after(status, directives.retry_after_s))


def _decode(decode: Callable[[bytes], Asked], body: bytes) -> Asked:
    """Raises `Refused`."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise Refused(400, str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Refused(400, "The body of the request is not valid JSON.", code="invalid_json") from None


@functools.lru_cache(_KEYS_MAX)
def _key_digest(authorization: bytes) -> str:
    key = _key(authorization)
    return hashlib.sha256(key).hexdigest()[:_KEY_DIGEST_DIGITS] if key else ""


def _key(authorization: bytes) -> bytes:
    return authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else b""
