"""Anthropic's messages, whole and as a stream. Vertex and Bedrock carry the same."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from controlplane.simulator.calls import LENGTH, STOP, TOOL, Answer, Asked, Call, Counts, Event
from controlplane.simulator.shapes.anthropic_errors import error_body
from controlplane.simulator.wire import named_event
from controlplane.simulator.words import as_object, encode

SIGNATURE = b"RXJ1Z0NrWUlBeGdDS2tCc2ltdWxhdGVk"
_FINISH = {STOP: b"end_turn", LENGTH: b"max_tokens", TOOL: b"tool_use"}
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


class Block(msgspec.Struct):
    type: str = "text"
    text: str | None = None
    content: Any = None  # Of a tool's result: a text or blocks again.

    def texts(self) -> list[str]:
        if self.type == "tool_result":
            return result_texts(self.content)
        return [] if self.text is None else [self.text]


class Message(msgspec.Struct):
    role: str
    content: str | list[Block]

    def texts(self) -> list[str]:
        if isinstance(self.content, str):
            return [self.content]
        return [text for block in self.content for text in block.texts()]


class Tool(msgspec.Struct):
    name: str


class MessagesRequest(msgspec.Struct):
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    model: str = ""  # In the path at Vertex and Bedrock.
    system: str | list[Block] | None = None
    stream: bool | None = None
    tools: list[Tool] | None = None
    output_format: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    def texts(self) -> list[str]:
        system = [self.system] if isinstance(self.system, str) else [block.text or "" for block in self.system or ()]
        return system + [text for message in self.messages for text in message.texts()]

    def has_results(self) -> bool:
        last = self.messages[-1].content
        return not isinstance(last, str) and any(block.type == "tool_result" for block in last)

    def schema(self) -> object:
        form = self.output_format or (self.output_config or {}).get("format")
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            return None
        return form.get("schema", {})

    def asked(self, model: str, answers: type[Answer], *, is_stream: bool) -> Asked:
        return Asked(
            model=model,
            texts=self.texts(),
            answers=answers,
            is_stream=is_stream,
            cap=self.max_tokens,
            tools=[tool.name for tool in self.tools] if self.tools else (),
            has_results=self.has_results(),
            schema=self.schema(),
        )


class CountRequest(msgspec.Struct):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    system: str | list[Block] | None = None

    def texts(self) -> list[str]:
        return MessagesRequest(self.messages, 1, system=self.system).texts()


def result_texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    blocks = content if isinstance(content, list) else ()
    return [block["text"] for block in blocks if isinstance(block, dict) and isinstance(block.get("text"), str)]


class MessageAnswer(Answer):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._finish = _FINISH[self.plan.finish]
        self._tool = encode(self.plan.tool) if self.plan.tool else b""

    def whole(self) -> tuple[bytes, bytes]:
        plan = self.plan
        blocks = []
        if plan.reasoning_tokens:
            blocks.append(b'{"type":"thinking","thinking":"%b","signature":"%b"}' % (self.thoughts(), SIGNATURE))
        if self._tool:
            blocks.append(self._tool_use(as_object(plan.saying)))
        elif plan.visible_tokens:
            blocks.append(b'{"type":"text","text":"%b"}' % plan.saying.whole())
        usage = usage_json(plan.counts) if self.says_usage else b""
        return self._message(b",".join(blocks), b'"%b"' % self._finish, usage), usage

    def _message(self, content: bytes, finish: bytes, usage: bytes) -> bytes:
        told = b',"usage":%b' % usage if usage else b""
        return (
            b'{"model":%b,"id":"msg_%b","type":"message","role":"assistant","content":[%b],"stop_reason":%b,'
            b'"stop_sequence":null%b}'
        ) % (self.model, self.id, content, finish, told)

    def _tool_use(self, given: bytes) -> bytes:
        return b'{"type":"tool_use","id":"toolu_%b","name":%b,"input":%b}' % (self.id, self._tool, given)

    def events(self) -> Iterator[Event]:
        plan, saying = self.plan, self.plan.saying
        started = usage_json(replace(plan.counts, output_tokens=1)) if self.says_usage else b""
        yield self._event(b"message_start", b'"message":%b' % self._message(b"", b"null", started)), 0, 0, started
        index = 0
        if plan.reasoning_tokens:
            block = b'{"type":"thinking","thinking":"","signature":""}'
            yield self._start(index, block) + self._ping(), 0, 0, b""
            for position in range(plan.reasoning_tokens):
                delta = b'{"type":"thinking_delta","thinking":"%b"}' % self.thought(position)
                yield self._delta(index, delta), 1, 1, b""
            signature = b'{"type":"signature_delta","signature":"%b"}' % SIGNATURE
            yield self._delta(index, signature) + self._stop(index), 0, 0, b""
            index = 1
        if self._tool or saying.tokens:
            block = self._tool_use(b"{}") if self._tool else b'{"type":"text","text":""}'
            form = b'{"type":"text_delta","text":"%b"}'
            if self._tool:
                form = b'{"type":"input_json_delta","partial_json":"%b"}'
            yield self._start(index, block) + (self._ping() if index == 0 else b""), 0, 0, b""
            for position in range(saying.tokens):
                yield self._delta(index, form % saying.piece(position)), 1, 1, b""
            yield self._stop(index), 0, 0, b""
        usage = usage_json(plan.counts, is_delta=True) if self.says_usage else b""
        told = b',"usage":%b' % usage if usage else b""
        ended = b'"delta":{"stop_reason":"%b","stop_sequence":null}%b' % (self._finish, told)
        yield self._event(b"message_delta", ended), 0, 0, usage
        if not self.call.directives.no_done:
            yield self._frame(b"message_stop", b'{"type":"message_stop"   }'), 0, 0, b""

    def _start(self, index: int, block: bytes) -> bytes:
        return self._event(b"content_block_start", b'"index":%d,"content_block":%b' % (index, block))

    def _delta(self, index: int, delta: bytes) -> bytes:
        return self._event(b"content_block_delta", b'"index":%d,"delta":%b' % (index, delta))

    def _stop(self, index: int) -> bytes:
        return self._event(b"content_block_stop", b'"index":%d' % index)

    def _event(self, name: bytes, fields: bytes) -> bytes:
        return self._frame(name, b'{"type":"%b",%b}' % (name, fields))

    def _ping(self) -> bytes:
        return _PING

    def _frame(self, name: bytes, data: bytes) -> bytes:
        """How an event is told from the next. Bedrock has frames instead."""
        return named_event(name, data)

    def broken(self) -> bytes:
        return self._frame(b"content_block_delta", b'{"type":"content_block_delta","index":0,"del')

    def failure(self, status: int) -> bytes:
        return named_event(b"error", error_body(status))

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        return b'event: ping\ndata: {"type":"ping"', b"}\n\n"


def usage_json(counts: Counts, *, is_delta: bool = False) -> bytes:
    """What is read from a cache or written to one stands beside `input_tokens`. The stream's end does not say for how long
    it was written."""
    figures = b'"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d' % (
        counts.fresh_tokens(),
        counts.written_tokens,
        counts.cached_tokens,
    )
    if is_delta:
        return b'{%b,"output_tokens":%d}' % (figures, counts.output_tokens)
    written = b'{"ephemeral_5m_input_tokens":%d,"ephemeral_1h_input_tokens":%d}' % (
        counts.written_tokens - counts.written_1h_tokens,
        counts.written_1h_tokens,
    )
    return b'{%b,"cache_creation":%b,"output_tokens":%d,"service_tier":"standard"}' % (
        figures,
        written,
        counts.output_tokens,
    )
