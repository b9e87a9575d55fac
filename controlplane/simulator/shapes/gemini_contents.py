"""Gemini's contents and vectors, as the Gemini API and Vertex have them."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from controlplane.simulator import wire
from controlplane.simulator.calls import LENGTH, STOP, TOOL, Answer, Asked, Call, Counts, Event, Plan, plan_input
from controlplane.simulator.directives import Directives
from controlplane.simulator.shapes.gemini_errors import error_body
from controlplane.simulator.words import DIMENSIONS, as_object, encode, place, vector_json

SIGNATURE = b"CoYBc2ltdWxhdGVkLXRob3VnaHQtc2lnbmF0dXJl"
_CUT_HERE = b"\0"  # JSON holds no such byte.
# It says STOP with a tool's call too.
_FINISH = {STOP: b"STOP", LENGTH: b"MAX_TOKENS", TOOL: b"STOP"}


class Camel(msgspec.Struct, rename="camel"):
    pass


class Part(Camel):
    text: str | None = None
    function_response: dict[str, Any] | None = None


class Content(Camel):
    parts: list[Part] | Part | None = None  # One part may stand without its list.
    role: str | None = None

    def all_parts(self) -> list[Part]:
        return [self.parts] if isinstance(self.parts, Part) else self.parts or []

    def texts(self) -> list[str]:
        parts = self.all_parts()
        results = (part.function_response for part in parts if part.function_response is not None)
        said = [part.text for part in parts if part.text is not None]
        return said + [encode(result.get("response")).decode() for result in results]


class Declaration(Camel):
    name: str


class Tool(Camel):
    function_declarations: list[Declaration] | None = None


class Generation(Camel):
    max_output_tokens: int | None = None
    candidate_count: Annotated[int, msgspec.Meta(ge=1, le=8)] | None = None
    response_mime_type: str | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: dict[str, Any] | None = None

    def schema(self) -> object:
        if self.response_mime_type != "application/json":
            return None
        return self.response_schema or self.response_json_schema or {}


class GenerateRequest(Camel):
    contents: Annotated[list[Content], msgspec.Meta(min_length=1)]
    system_instruction: Content | None = None
    tools: list[Tool] | None = None
    generation_config: Generation | None = None

    def texts(self) -> list[str]:
        system = self.system_instruction.texts() if self.system_instruction is not None else []
        return system + [text for content in self.contents for text in content.texts()]

    def asked(self, model: str, answers: type[Answer], *, is_stream: bool) -> Asked:
        generation = self.generation_config or Generation()
        return Asked(
            model=model,
            texts=self.texts(),
            answers=answers,
            is_stream=is_stream,
            cap=generation.max_output_tokens,
            choices=generation.candidate_count or 1,
            tools=[known.name for tool in self.tools or () for known in tool.function_declarations or ()],
            has_results=any(part.function_response is not None for part in self.contents[-1].all_parts()),
            schema=generation.schema(),
        )


class CountRequest(Camel):
    contents: list[Content] | None = None
    generate_content_request: GenerateRequest | None = None

    def texts(self) -> list[str]:
        if self.generate_content_request is not None:
            return self.generate_content_request.texts()
        return [text for content in self.contents or () for text in content.texts()]


class EmbedRequest(Camel):
    content: Content
    output_dimensionality: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None

    def vector(self) -> bytes:
        dimensions = self.output_dimensionality or DIMENSIONS
        text = "".join(self.content.texts())
        return b'{"values":%b}' % vector_json(dimensions, place(text) % dimensions)


class EmbedsRequest(Camel):
    requests: Annotated[list[EmbedRequest], msgspec.Meta(min_length=1)]


class ContentAnswer(Answer):
    """The events of a stream are whole answers, each with its part of the text and the usage so far."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._finish = _FINISH[self.plan.finish]

    def whole(self) -> tuple[bytes, bytes]:
        plan = self.plan
        parts = []
        if plan.reasoning_tokens:
            parts.append(b'{"text":"%b","thought":true}' % self.thoughts())
        if plan.tool:
            parts.append(self._function_call())
        elif plan.visible_tokens:
            signature = b',"thoughtSignature":"%b"' % SIGNATURE if plan.reasoning_tokens else b""
            parts.append(b'{"text":"%b"%b}' % (plan.saying.whole(), signature))
        usage = self._usage(plan.counts)
        candidates = [self._candidate(index, b",".join(parts), self._finish) for index in range(plan.choices)]
        return self._envelope(b",".join(candidates), usage), usage

    def _function_call(self) -> bytes:
        """With a signature that has to come back in the next turn."""
        plan = self.plan
        return b'{"functionCall":{"name":%b,"args":%b,"id":"call_%b"},"thoughtSignature":"%b"}' % (
            encode(plan.tool),
            as_object(plan.saying),
            self.id,
            SIGNATURE,
        )

    def _candidate(self, index: int, parts: bytes, finish: bytes = b"") -> bytes:
        content = b'{"parts":[%b],"role":"model"}' % parts if parts else b'{"role":"model"}'
        ended = b',"finishReason":"%b"' % finish if finish else b""
        return b'{"content":%b%b,"index":%d}' % (content, ended, index)

    def _envelope(self, candidates: bytes, usage: bytes) -> bytes:
        told = b',"usageMetadata":%b' % usage if usage else b""
        return b'{"candidates":[%b]%b,"modelVersion":%b,"responseId":"%b"}' % (candidates, told, self.model, self.id)

    def _usage(self, counts: Counts) -> bytes:
        return usage_json(counts) if self.says_usage else b""

    def events(self) -> Iterator[Event]:
        plan, saying, choices = self.plan, self.plan.saying, range(self.plan.choices)
        so_far = self._usage(replace(plan.counts, output_tokens=0, reasoning_tokens=0))
        before, after = self._chunk(_CUT_HERE, so_far)
        for position in range(plan.reasoning_tokens):
            part = b'{"text":"%b","thought":true}' % self.thought(position)
            for index in choices:
                yield self._first(before + self._candidate(index, part) + after), 1, 1, so_far
        if plan.tool:
            for _ in range(saying.tokens):
                yield b"", plan.choices, 0, b""
            part = self._function_call()
            for index in choices:
                yield self._first(before + self._candidate(index, part) + after), 0, saying.tokens, so_far
        else:
            for position in range(saying.tokens):
                part = b'{"text":"%b"}' % saying.piece(position)
                for index in choices:
                    yield self._first(before + self._candidate(index, part) + after), 1, 1, so_far
        usage = self._usage(plan.counts)
        part = b'{"text":"","thoughtSignature":"%b"}' % SIGNATURE if plan.reasoning_tokens else b'{"text":""}'
        before, after = self._chunk(_CUT_HERE, usage)
        ended = b",".join(self._candidate(index, part, self._finish) for index in choices)
        yield self._first(before + ended + after) + self._last(), 0, 0, usage

    def _chunk(self, candidates: bytes, usage: bytes) -> list[bytes]:
        return self._frame(self._envelope(candidates, usage)).split(_CUT_HERE)

    def _frame(self, data: bytes) -> bytes:
        return b"data: %b\r\n\r\n" % data

    def _first(self, event: bytes) -> bytes:
        """The event, with what has to stand before it where it is the first."""
        return event

    def _last(self) -> bytes:
        return b""

    def broken(self) -> bytes:
        return self._frame(b'{"candidates":[{"content":{"parts":[{"te')

    def failure(self, status: int) -> bytes:
        return self._frame(error_body(status))

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        before, after = self._chunk(_CUT_HERE, b"")
        return before, after


class ContentArray(ContentAnswer):
    """Without `alt=sse` a stream is one JSON array."""

    stream_fields = wire.JSON

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._separator = b"["

    def _frame(self, data: bytes) -> bytes:
        return data + b"\r\n"

    def _first(self, event: bytes) -> bytes:
        separator, self._separator = self._separator, b","
        return separator + event

    def _last(self) -> bytes:
        return b"]"

    def broken(self) -> bytes:
        return self._first(super().broken())

    def failure(self, status: int) -> bytes:
        return self._first(super().failure(status)) + b"]"

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        before, after = super().huge(blanks)
        return self._first(before), after


class Vector(Answer):
    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        return plan_input(asked, input_tokens, directives)

    def whole(self) -> tuple[bytes, bytes]:
        asked: EmbedRequest = self.asked.details
        return b'{"embedding":%b}' % asked.vector(), b""


class Vectors(Vector):
    def whole(self) -> tuple[bytes, bytes]:
        asked: EmbedsRequest = self.asked.details
        return b'{"embeddings":[%b]}' % b",".join(request.vector() for request in asked.requests), b""


def usage_json(counts: Counts) -> bytes:
    """The thoughts stand beside the candidates' tokens."""
    candidates = counts.output_tokens - counts.reasoning_tokens
    cached = b'"cachedContentTokenCount":%d,' % counts.cached_tokens if counts.cached_tokens else b""
    thoughts = b',"thoughtsTokenCount":%d' % counts.reasoning_tokens if counts.reasoning_tokens else b""
    return (
        b'{"promptTokenCount":%d,%b"candidatesTokenCount":%d,"totalTokenCount":%d,'
        b'"promptTokensDetails":[{"modality":"TEXT","tokenCount":%d}]%b}'
    ) % (
        counts.input_tokens,
        cached,
        candidates,
        counts.input_tokens + counts.output_tokens,
        counts.input_tokens,
        thoughts,
    )
