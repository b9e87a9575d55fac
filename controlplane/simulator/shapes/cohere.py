"""How Cohere is spoken to, below `/cohere/v2`: chat, vectors, ranks, models; v1 of the last three."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from controlplane.simulator.calls import (
    LENGTH,
    STOP,
    TOOL,
    Answer,
    Asked,
    Call,
    Counts,
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
from controlplane.simulator.shapes.openai_chat import Tool
from controlplane.simulator.shapes.openai_vectors import RerankRequest, ranks
from controlplane.simulator.wire import named_event
from controlplane.simulator.words import DIMENSIONS, encode, place, vector_base64, vector_json

# Of the input, what is counted and not billed: the model's own preamble.
PREAMBLE_TOKENS = 10
_DOCUMENTS_A_SEARCH = 100
_FINISH = {STOP: b"COMPLETE", LENGTH: b"MAX_TOKENS", TOOL: b"TOOL_CALL"}
_MESSAGES = {
    400: "invalid request: the model does not take this value.",
    401: "invalid api token",
    403: "you do not have access to this model.",
    404: "model not found, make sure the correct model ID was used and that you have access to the model.",
    429: "You are past the rate limit, please wait and try again later.",
    500: "internal server error",
    503: "the service is unavailable, please try again later.",
}


# Chat


class Part(msgspec.Struct):
    text: str | None = None
    document: dict[str, Any] | None = None

    def texts(self) -> list[str]:
        if self.document is not None:
            return [encode(self.document.get("data")).decode()]
        return [] if self.text is None else [self.text]


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None

    def texts(self) -> list[str]:
        if isinstance(self.content, str):
            return [self.content]
        return [text for part in self.content or () for text in part.texts()]


class ChatRequest(msgspec.Struct):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tools: list[Tool] | None = None
    response_format: dict[str, Any] | None = None

    def schema(self) -> object:
        form = self.response_format or {}
        return (form.get("json_schema") or form.get("schema") or {}) if form.get("type") == "json_object" else None


class EmbedRequest(msgspec.Struct):
    model: str
    texts: list[str] | None = None
    inputs: list[Message] | None = None
    embedding_types: list[Literal["float", "int8", "base64"]] | None = None
    output_dimension: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None

    def items(self) -> list[str]:
        return self.texts if self.texts is not None else ["".join(item.texts()) for item in self.inputs or ()]


_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_decode_embed = msgspec.json.Decoder(EmbedRequest).decode
_decode_rerank = msgspec.json.Decoder(RerankRequest).decode


def _head(call_id: bytes) -> bytes:
    return b"x-debug-trace-id: %b\r\n" % call_id


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    match request.path:
        case "/cohere/v2/chat":
            demand(request, "POST")
            return _ask_chat(request)
        case "/cohere/v2/embed" | "/cohere/v1/embed":
            demand(request, "POST")
            embed = decode(_decode_embed, request.body)
            return Asked(embed.model, embed.items(), Vectors, details=embed)
        case "/cohere/v2/rerank" | "/cohere/v1/rerank":
            demand(request, "POST")
            rerank = decode(_decode_rerank, request.body)
            return Asked(rerank.model, [rerank.query, *rerank.texts()], Ranking, details=rerank)
        case "/cohere/v1/models":
            demand(request, "GET")
            models = [{"name": name, "endpoints": ["chat", "embed", "rerank"]} for name in PROFILES]
            return Fixed(200, encode({"models": models}))
        case _:
            raise unknown_url(request)


def _ask_chat(request: Request) -> Asked:
    """Raises `Refused`."""
    chat = decode(_decode_chat, request.body)
    return Asked(
        model=chat.model,
        texts=[text for message in chat.messages for text in message.texts()],
        answers=Chat,
        is_stream=bool(chat.stream),
        cap=chat.max_tokens,
        tools=[tool.function.name for tool in chat.tools if tool.function is not None] if chat.tools else (),
        has_results=chat.messages[-1].role == "tool",
        schema=chat.schema(),
    )


class Chat(Answer):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._finish = _FINISH[self.plan.finish]
        self._usage = usage_json(self.plan.counts) if self.says_usage else b""

    def whole(self) -> tuple[bytes, bytes]:
        plan = self.plan
        parts = []
        if plan.reasoning_tokens:
            parts.append(b'{"type":"thinking","thinking":"%b"}' % self.thoughts())
        calls = b""
        if plan.tool:
            calls = b',"tool_plan":"","tool_calls":[%b]' % self._call(plan.saying.whole())
        else:
            parts.append(b'{"type":"text","text":"%b"}' % plan.saying.whole())
        content = b',"content":[%b]' % b",".join(parts) if parts else b""
        told = b',"usage":%b' % self._usage if self._usage else b""
        body = b'{"id":"%b","message":{"role":"assistant"%b%b},"finish_reason":"%b"%b}' % (
            self.id,
            content,
            calls,
            self._finish,
            told,
        )
        return body, self._usage

    def _call(self, arguments: bytes) -> bytes:
        name = encode(self.plan.tool)
        return b'{"id":"call_%b","type":"function","function":{"name":%b,"arguments":"%b"}}' % (
            self.id,
            name,
            arguments,
        )

    def events(self) -> Iterator[Event]:
        plan, saying = self.plan, self.plan.saying
        message = b'{"role":"assistant","content":[],"tool_plan":"","tool_calls":[],"citations":[]}'
        started = b'"id":"%b","delta":{"message":%b}' % (self.id, message)
        yield self._event(b"message-start", started), 0, 0, b""
        index = 0
        if plan.reasoning_tokens:
            yield self._content(b"content-start", index, b'{"type":"thinking","thinking":""}'), 0, 0, b""
            for position in range(plan.reasoning_tokens):
                thought = b'{"thinking":"%b"}' % self.thought(position)
                yield self._content(b"content-delta", index, thought), 1, 1, b""
            yield self._event(b"content-end", b'"index":%d' % index), 0, 0, b""
            index = 1
        if plan.tool:
            start = b'"index":0,"delta":{"message":{"tool_calls":%b}}' % self._call(b"")
            yield self._event(b"tool-call-start", start), 0, 0, b""
            form = b'"index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"%b"}}}}'
            for position in range(saying.tokens):
                yield self._event(b"tool-call-delta", form % saying.piece(position)), 1, 1, b""
            yield self._event(b"tool-call-end", b'"index":0'), 0, 0, b""
        else:
            yield self._content(b"content-start", index, b'{"type":"text","text":""}'), 0, 0, b""
            for position in range(saying.tokens):
                yield self._content(b"content-delta", index, b'{"text":"%b"}' % saying.piece(position)), 1, 1, b""
            yield self._event(b"content-end", b'"index":%d' % index), 0, 0, b""
        told = b',"usage":%b' % self._usage if self._usage else b""
        ended = b'"delta":{"finish_reason":"%b"%b}' % (self._finish, told)
        yield self._event(b"message-end", ended), 0, 0, self._usage
        if not self.call.directives.no_done:
            yield b"data: [DONE]\n\n", 0, 0, b""

    def _content(self, kind: bytes, index: int, content: bytes) -> bytes:
        return self._event(kind, b'"index":%d,"delta":{"message":{"content":%b}}' % (index, content))

    def _event(self, kind: bytes, fields: bytes) -> bytes:
        return named_event(kind, b'{"type":"%b",%b}' % (kind, fields))

    def broken(self) -> bytes:
        return b'event: content-delta\ndata: {"type":"content-delta","index":0,"del\n\n'

    def failure(self, status: int) -> bytes:
        return self._event(b"message-end", b'"delta":{"error":%b,"finish_reason":"ERROR"}' % encode(_MESSAGES[500]))


def usage_json(counts: Counts) -> bytes:
    cached = b',"cached_tokens":%d' % counts.cached_tokens if counts.cached_tokens else b""
    billed = b'{"input_tokens":%d,"output_tokens":%d}' % (counts.input_tokens, counts.output_tokens)
    counted = b'{"input_tokens":%d,"output_tokens":%d}' % (
        counts.input_tokens + PREAMBLE_TOKENS,
        counts.output_tokens,
    )
    return b'{"billed_units":%b,"tokens":%b%b}' % (billed, counted, cached)


# Vectors and ranks


class Vectors(Answer):
    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        return plan_input(asked, input_tokens, directives)

    def whole(self) -> tuple[bytes, bytes]:
        asked: EmbedRequest = self.asked.details
        items, dimensions = asked.items(), asked.output_dimension or DIMENSIONS
        kinds = asked.embedding_types or ["float"]
        vectors = b",".join(
            b'"%b":[%b]' % (kind.encode(), b",".join(_VECTORS[kind](dimensions, place(i) % dimensions) for i in items))
            for kind in kinds
        )
        usage = b'{"input_tokens":%d}' % self.plan.counts.input_tokens if self.says_usage else b""
        told = b',"billed_units":%b' % usage if usage else b""
        body = (
            b'{"id":"%b","texts":%b,"embeddings":{%b},"meta":{"api_version":{"version":"2"}%b},'
            b'"response_type":"embeddings_by_type"}'
        ) % (self.id, encode(items), vectors, told)
        return body, usage


def _small(dimensions: int, turn: int) -> bytes:
    """Whole numbers from -127 to 127."""
    return encode([round(value * 127) for value in msgspec.json.decode(vector_json(dimensions, turn))])


_VECTORS: dict[str, Callable[[int, int], bytes]] = {"float": vector_json, "int8": _small, "base64": vector_base64}


class Ranking(Answer):
    """Billed by the search: a query with up to a hundred documents."""

    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        searches = -(-len(asked.details.documents) // _DOCUMENTS_A_SEARCH)
        return replace(plan_input(asked, input_tokens, directives), units=searches)

    def whole(self) -> tuple[bytes, bytes]:
        asked: RerankRequest = self.asked.details
        usage = b'{"search_units":%d}' % self.plan.units if self.says_usage else b""
        meta: dict[str, Any] = {"api_version": {"version": "2"}}
        if usage:
            meta["billed_units"] = msgspec.Raw(usage)
        results = [
            {"index": index, "relevance_score": score}
            | ({"document": {"text": asked.texts()[index]}} if asked.return_documents else {})
            for index, score in ranks(asked.query, asked.texts(), asked.top_n)
        ]
        return encode({"id": self.call.call_id, "results": results, "meta": meta}), usage


def error(status: int, message: str, code: str | None, like: str) -> Fixed:
    usual = _MESSAGES.get(status) or _MESSAGES[500 if status >= 500 else 400]
    return Fixed(status, encode({"id": "simulator", "message": message or usual}))


SHAPE = Shape(head=_head, key=Request.bearer, ask=ask, error=error)
