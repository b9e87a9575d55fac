"""How Ollama is spoken to, below `/ollama`: its own chat and vectors under `api/`, OpenAI's under `v1/`. Without a key too."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from controlplane.simulator import wire
from controlplane.simulator.calls import (
    LENGTH,
    Answer,
    Asked,
    Call,
    Desk,
    Event,
    Fixed,
    Plan,
    Request,
    Shape,
    decode,
    demand,
    plan_input,
    unknown_url,
)
from controlplane.simulator.directives import PROFILES, Directives
from controlplane.simulator.shapes import anthropic, openai
from controlplane.simulator.shapes.openai_chat import Tool
from controlplane.simulator.words import DIMENSIONS, as_object, encode, place, vector_json

_OPENAI = "/ollama/v1/"
_MESSAGES = {
    400: "invalid request",
    401: "unauthorized",
    404: "model not found, try pulling it first",
    429: "too many requests",
    500: "llama runner process has terminated",
    503: "server busy, please try again. maximum pending requests exceeded",
}


class Message(msgspec.Struct):
    role: str
    content: str = ""


class Options(msgspec.Struct):
    num_predict: int | None = None


class ChatRequest(msgspec.Struct):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool = True
    tools: list[Tool] | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None


class EmbedRequest(msgspec.Struct):
    model: str
    input: str | list[str]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None

    def items(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_decode_embed = msgspec.json.Decoder(EmbedRequest).decode


def _head(call_id: bytes) -> bytes:
    return b""


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    if request.path == "/ollama/v1/messages":
        return anthropic.ask(request._replace(path=f"{anthropic.ROOT}/messages"), call_id, desk)
    if request.path.startswith(_OPENAI):
        return openai.ask(request._replace(path=f"/v1/{request.path.removeprefix(_OPENAI)}"), call_id, desk)
    match request.path:
        case "/ollama/api/chat":
            demand(request, "POST")
            return _ask_chat(request)
        case "/ollama/api/embed":
            demand(request, "POST")
            embed = decode(_decode_embed, request.body)
            return Asked(embed.model, embed.items(), Vectors, details=embed)
        case "/ollama/api/tags":
            demand(request, "GET")
            return Fixed(200, encode({"models": [{"name": name, "model": name} for name in PROFILES]}))
        case "/ollama/api/version":
            demand(request, "GET")
            return Fixed(200, encode({"version": "0.12.0"}))
        case _:
            raise unknown_url(request)


def _ask_chat(request: Request) -> Asked:
    """Raises `Refused`."""
    chat = decode(_decode_chat, request.body)
    cap = chat.options.num_predict if chat.options is not None else None
    return Asked(
        model=chat.model,
        texts=[message.content for message in chat.messages],
        answers=Chat,
        is_stream=chat.stream,
        cap=cap if cap is not None and cap > 0 else None,
        tools=[tool.function.name for tool in chat.tools if tool.function is not None] if chat.tools else (),
        has_results=chat.messages[-1].role == "tool",
        schema={} if chat.format == "json" else chat.format or None,
    )


class Chat(Answer):
    """A stream is one JSON object a line; a tool's call comes as a whole."""

    stream_fields = wire.JSON_LINES

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(call.created_s)).encode()
        self._opened = b'{"model":%b,"created_at":"%b","message":{"role":"assistant",' % (self.model, moment)

    def whole(self) -> tuple[bytes, bytes]:
        plan = self.plan
        thinking = b',"thinking":"%b"' % self.thoughts() if plan.reasoning_tokens else b""
        said = b"" if plan.tool else plan.saying.whole()
        calls = b',"tool_calls":[%b]' % self._tool_call() if plan.tool else b""
        usage = self._usage()
        return self._opened + b'"content":"%b"%b%b}%b' % (said, thinking, calls, self._ending(usage)), usage

    def events(self) -> Iterator[Event]:
        plan, saying = self.plan, self.plan.saying
        for position in range(plan.reasoning_tokens):
            yield self._line(b'"content":"","thinking":"%b"' % self.thought(position)), 1, 1, b""
        if plan.tool:
            for _ in range(saying.tokens):
                yield b"", 1, 0, b""
            yield self._line(b'"content":"","tool_calls":[%b]' % self._tool_call()), 0, saying.tokens, b""
        else:
            for position in range(saying.tokens):
                yield self._line(b'"content":"%b"' % saying.piece(position)), 1, 1, b""
        usage = self._usage()
        yield self._opened + b'"content":""}%b\n' % self._ending(usage), 0, 0, usage

    def _line(self, fields: bytes) -> bytes:
        return b'%b%b},"done":false}\n' % (self._opened, fields)

    def _tool_call(self) -> bytes:
        plan = self.plan
        call = b'{"index":0,"name":%b,"arguments":%b}' % (encode(plan.tool), as_object(plan.saying))
        return b'{"id":"call_%b","function":%b}' % (self.id, call)

    def _ending(self, usage: bytes) -> bytes:
        reason = b"length" if self.plan.finish == LENGTH else b"stop"
        times = b'"total_duration":1000000,"load_duration":1000'
        told = b"," + usage[1:-1] if usage else b""
        return b',"done":true,"done_reason":"%b",%b%b}' % (reason, times, told)

    def _usage(self) -> bytes:
        if not self.says_usage:
            return b""
        counts = self.plan.counts
        return b'{"prompt_eval_count":%d,"prompt_eval_duration":1000,"eval_count":%d,"eval_duration":1000}' % (
            counts.input_tokens,
            counts.output_tokens,
        )

    def broken(self) -> bytes:
        return b'{"model":"broken","message":{"con\n'

    def failure(self, status: int) -> bytes:
        return encode({"error": _MESSAGES[500]}) + b"\n"

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        return self._opened + b'"content":""}', b',"done":false}\n'


class Vectors(Answer):
    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        return plan_input(asked, input_tokens, directives)

    def whole(self) -> tuple[bytes, bytes]:
        asked: EmbedRequest = self.asked.details
        dimensions = asked.dimensions or DIMENSIONS
        vectors = b",".join(vector_json(dimensions, place(item) % dimensions) for item in asked.items())
        usage = b'{"prompt_eval_count":%d}' % self.plan.counts.input_tokens if self.says_usage else b""
        told = b"," + usage[1:-1] if usage else b""
        times = b'"total_duration":1000000,"load_duration":1000'
        return b'{"model":%b,"embeddings":[%b],%b%b}' % (self.model, vectors, times, told), usage


def error(status: int, message: str, code: str | None, like: str) -> Fixed:
    usual = _MESSAGES.get(status) or _MESSAGES[500 if status >= 500 else 400]
    return Fixed(status, encode({"error": message or usual}))


SHAPE = Shape(head=_head, key=Request.bearer, ask=ask, error=error, needs_key=False)
