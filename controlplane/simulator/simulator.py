"""What the simulator makes of a request: whose it is, what is to happen to it, and what the journal says. No sockets.

It is the independent witness of the gateway's accounts, so it imports nothing of Tollgate outside its own package.
"""

import functools
import hashlib
import random
import secrets
from typing import Any, Protocol

import msgspec

from controlplane.simulator import wire
from controlplane.simulator.calls import Asked, Call, Fixed, Refused, Request, Shape, decode
from controlplane.simulator.directives import BadDirective, Directives, Settings, find_in_message
from controlplane.simulator.journal import Controlled, Ended, Journal, Progress, Received
from controlplane.simulator.shapes import anthropic, azure, bedrock, cohere, gemini, ollama, openai, vertex
from controlplane.simulator.store import Store
from controlplane.simulator.words import count_tokens

CONTROL = "/_control"
SUMMARY = "/_journal/summary"
# What a path begins with → how it is spoken to. OpenAI has what is left.
SHAPES: dict[str, Shape] = {
    "anthropic": anthropic.SHAPE,
    "azure": azure.SHAPE,
    "bedrock": bedrock.SHAPE,
    "cohere": cohere.SHAPE,
    "gemini": gemini.SHAPE,
    "ollama": ollama.SHAPE,
    "vertex": vertex.SHAPE,
}
_ATTEMPT_ID_MAX = 200
_KEYS_MAX = 4096
_KEY_DIGEST_DIGITS = 12

_encode = msgspec.json.Encoder().encode
_decode_settings = msgspec.json.Decoder(dict[str, Any]).decode


class Stoppable(Protocol):
    def stop(self) -> None: ...


class Simulator:
    """What all connections share: settings, journal, what is kept, the numbering of calls, chance."""

    def __init__(self, settings: Settings, journal: Journal, *, seed: int | None = None) -> None:
        self.settings = settings
        self.journal = journal
        self.store = Store()
        self.connections: set[Stoppable] = set()
        self._random = random.Random(seed)  # noqa: S311 (which requests are to fail is no secret)
        # Every process begins its call ids differently, so that many of them may write one journal.
        self._call_prefix = secrets.token_hex(6)
        self._calls = 0

    def accept(self, request: Request, *, batch: str = "", asked: Asked | None = None) -> Call:
        """The request as a call, of which all is known that the answer depends on. In the journal before it is answered.

        Where it is known what the request asks for, `asked` says it.
        """
        self._calls += 1
        shape = SHAPES.get(request.path[1 : request.path.find("/", 1)], openai.SHAPE)
        attempt_id = "" if batch else request.header(b"x-client-request-id")[:_ATTEMPT_ID_MAX]
        call = Call(shape, f"{self._call_prefix}{self._calls:017d}", attempt_id, request.created_s)
        call.batch = batch
        key = shape.key(request)
        try:
            if not key and shape.needs_key:
                raise Refused(401)
            understood = shape.ask(request, call.call_id, self) if asked is None else asked
            if isinstance(understood, Fixed):
                call.fixed = understood
            else:
                self._plan(call, understood, request, key)
        except Refused as refused:
            call.fixed = call.error(refused.status, refused.message, refused.code)
        asked = call.asked
        self.journal.received(
            Received(
                call=call.call_id,
                attempt_id=attempt_id,
                method=request.method,
                path=request.path,
                model=asked.model if asked is not None else "",
                stream=asked is not None and asked.is_stream,
                key_digest=_digest(key),
                body_bytes=len(request.body),
                input_tokens=call.input_tokens,
                batch=batch or msgspec.UNSET,
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
                batch=call.batch or msgspec.UNSET,
            )
        )

    # The endpoints that no provider has. They are for whoever runs the simulator, and leave no call in the journal.

    def is_private(self, path: str) -> bool:
        return path in (CONTROL, SUMMARY)

    def control(self, request: Request) -> bytes:
        """The answer to a request of the operator, head and all."""
        try:
            return _plain(Fixed(200, self._control(request)))
        except BadDirective as error:
            return _plain(openai.SHAPE.error(400, str(error), "bad_directive", ""))
        except Refused as refused:
            return _plain(openai.SHAPE.error(refused.status, refused.message, refused.code, ""))

    def _control(self, request: Request) -> bytes:
        match request.path, request.method:
            case (path, "GET") if path == SUMMARY:
                return _encode(self.journal.summary() | {"connections": len(self.connections)})
            case (path, "GET") if path == CONTROL:
                return _encode(self.settings.as_directives())
            case (path, "POST") if path == CONTROL:
                self.settings.update(decode(_decode_settings, request.body))
            case (path, "DELETE") if path == CONTROL:
                self.settings.reset()
            case _:
                raise Refused(405, f"{request.path} has no {request.method}.")
        directives = self.settings.as_directives()
        self.journal.write(Controlled(settings=directives))
        return _encode(directives)

    # What a shape has at hand

    def directives(self, request: Request) -> Directives:
        return self._resolve("", "", request)

    def run(self, request: Request, batch: str) -> tuple[int, bytes]:
        call = self.accept(request, batch=batch)
        if call.fixed is not None:
            call.status, body = call.fixed.status, call.fixed.body
        else:
            assert call.asked is not None
            assert call.plan is not None
            answer = call.asked.answers(call)
            body, call.usage = answer.whole()
            call.status, call.generated, call.sent = 200, call.plan.output_tokens(), answer.shown_tokens()
        self.note_end(call, "completed")
        return call.status, body

    # Understanding a request

    def _plan(self, call: Call, asked: Asked, request: Request, key: bytes) -> None:
        """Raises `Refused`."""
        call.asked = asked
        call.input_tokens = sum(map(count_tokens, asked.texts)) + asked.more_tokens
        call.directives = directives = self._choose(asked, request)
        if directives.error is not None:
            call.fault = "error"
            call.fixed = _error(call, directives.error, key)
            return
        if not asked.has_results:
            _check_tool(asked, directives)
        call.plan = asked.answers.plan_for(asked, call.input_tokens, directives)

    def _choose(self, asked: Asked, request: Request) -> Directives:
        in_message = next(filter(None, map(find_in_message, asked.texts)), "")
        directives = self._resolve(asked.model, in_message, request)
        rate = directives.error_rate
        return directives if rate is None or self._random.random() < rate else directives.calm()

    def _resolve(self, model: str, in_message: str, request: Request) -> Directives:
        """Raises `Refused`."""
        try:
            return self.settings.resolve(model, in_message, request.header(b"x-simulate"))
        except BadDirective as error:
            raise Refused(400, str(error), code="bad_directive") from None


def refuse(status: int) -> bytes:
    """The answer to what is no request at all; the connection ends with it."""
    return _plain(openai.SHAPE.error(status, "", None, ""), b"connection: close\r\n")


def _plain(answer: Fixed, fields: bytes = b"") -> bytes:
    length = wire.content_length(len(answer.body))
    return wire.head(answer.status, answer.fields + fields + length) + answer.body


def _check_tool(asked: Asked, directives: Directives) -> None:
    """Raises `Refused`."""
    if directives.tool and directives.tool not in asked.tools:
        raise Refused(400, f"tool needs {directives.tool} among the tools of the request.", code="bad_directive")
    if directives.tool_call and not asked.tools:
        raise Refused(400, "tool_call needs a function among the tools of the request.", code="bad_directive")


def _error(call: Call, status: int, key: bytes) -> Fixed:
    directives = call.directives
    message = f"Incorrect API key provided: {key.decode('latin-1')}." if directives.echo_key else ""
    error = call.error(status, message)
    return error._replace(fields=error.fields + wire.retry_after(status, directives.retry_after_s))


@functools.lru_cache(_KEYS_MAX)
def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:_KEY_DIGEST_DIGITS] if key else ""
