"""Bedrock's Converse, whole and as a stream of binary events."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from controlplane.simulator import wire
from controlplane.simulator.calls import LENGTH, STOP, TOOL, Answer, Asked, Call, Counts, Event
from controlplane.simulator.shapes.anthropic_messages import SIGNATURE
from controlplane.simulator.shapes.bedrock_errors import known
from controlplane.simulator.shapes.event_stream import frame, padded_frame
from controlplane.simulator.words import as_object, encode

_FINISH = {STOP: b"end_turn", LENGTH: b"max_tokens", TOOL: b"tool_use"}
# Every event has some of it, so that nobody may tell the words from their length.
_PADDING = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Camel(msgspec.Struct, rename="camel"):
    pass


class Result(Camel):
    content: list[dict[str, Any]]

    def texts(self) -> list[str]:
        return [
            str(part["text"]) if "text" in part else encode(part["json"]).decode()
            for part in self.content
            if "text" in part or "json" in part
        ]


class Block(Camel):
    text: str | None = None
    tool_result: Result | None = None

    def texts(self) -> list[str]:
        if self.tool_result is not None:
            return self.tool_result.texts()
        return [] if self.text is None else [self.text]


class Message(Camel):
    role: str
    content: list[Block]


class Spec(Camel):
    name: str


class Tool(Camel):
    tool_spec: Spec | None = None


class Tools(Camel):
    tools: list[Tool]


class Inference(Camel):
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = msgspec.field(default=None, name="max_new_tokens")


class ConverseRequest(Camel):
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    system: list[Block] | None = None
    inference_config: Inference | None = None
    tool_config: Tools | None = None
    output_config: dict[str, Any] | None = None

    def texts(self) -> list[str]:
        blocks = [*(self.system or ()), *(block for message in self.messages for block in message.content)]
        return [text for block in blocks for text in block.texts()]

    def schema(self) -> object:
        """It is a text of JSON within the JSON."""
        form = (self.output_config or {}).get("textFormat")
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            return None
        try:
            return msgspec.json.decode(form["structure"]["jsonSchema"]["schema"])
        except (KeyError, TypeError, msgspec.DecodeError):
            return {}

    def asked(self, model: str, answers: type[Answer], *, is_stream: bool) -> Asked:
        tools = self.tool_config.tools if self.tool_config is not None else ()
        inference = self.inference_config or Inference()
        return Asked(
            model=model,
            texts=self.texts(),
            answers=answers,
            is_stream=is_stream,
            cap=inference.max_tokens or inference.max_new_tokens,
            tools=[tool.tool_spec.name for tool in tools if tool.tool_spec is not None],
            has_results=any(block.tool_result is not None for block in self.messages[-1].content),
            schema=self.schema(),
        )


class ConverseAnswer(Answer):
    stream_fields = wire.EVENT_STREAM

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._finish = _FINISH[self.plan.finish]
        self._usage = usage_json(self.plan.counts) if self.says_usage else b""

    def whole(self) -> tuple[bytes, bytes]:
        plan = self.plan
        blocks = []
        if plan.reasoning_tokens:
            thought = b'{"text":"%b","signature":"%b"}' % (self.thoughts(), SIGNATURE)
            blocks.append(b'{"reasoningContent":{"reasoningText":%b}}' % thought)
        if plan.tool:
            blocks.append(b'{"toolUse":{%b,"input":%b}}' % (self._tool(), as_object(plan.saying)))
        elif plan.visible_tokens:
            blocks.append(b'{"text":"%b"}' % plan.saying.whole())
        message = b'{"message":{"content":[%b],"role":"assistant"}}' % b",".join(blocks)
        told = b',"usage":%b' % self._usage if self._usage else b""
        body = b'{"metrics":{"latencyMs":1},"output":%b,"stopReason":"%b"%b}' % (message, self._finish, told)
        return body, self._usage

    def _tool(self) -> bytes:
        return b'"name":%b,"toolUseId":"tooluse_%b"' % (encode(self.plan.tool), self.id)

    def events(self) -> Iterator[Event]:
        plan, saying = self.plan, self.plan.saying
        yield self._event(b"messageStart", b'"role":"assistant"'), 0, 0, b""
        index = 0
        if plan.reasoning_tokens:
            for position in range(plan.reasoning_tokens):
                yield self._delta(index, b'{"reasoningContent":{"text":"%b"}}' % self.thought(position)), 1, 1, b""
            signature = b'{"reasoningContent":{"signature":"%b"}}' % SIGNATURE
            yield self._delta(index, signature) + self._stop(index), 0, 0, b""
            index = 1
        if plan.tool:
            start = b'"contentBlockIndex":%d,"start":{"toolUse":{%b}}' % (index, self._tool())
            yield self._event(b"contentBlockStart", start), 0, 0, b""
        form = b'{"toolUse":{"input":"%b"}}' if plan.tool else b'{"text":"%b"}'
        for position in range(saying.tokens):
            yield self._delta(index, form % saying.piece(position)), 1, 1, b""
        if plan.tool or saying.tokens:
            yield self._stop(index), 0, 0, b""
        yield self._event(b"messageStop", b'"stopReason":"%b"' % self._finish), 0, 0, b""
        if self._usage:
            ended = b'"metrics":{"latencyMs":1},"usage":%b' % self._usage
            yield self._event(b"metadata", ended), 0, 0, self._usage

    def _delta(self, index: int, delta: bytes) -> bytes:
        return self._event(b"contentBlockDelta", b'"contentBlockIndex":%d,"delta":%b' % (index, delta))

    def _stop(self, index: int) -> bytes:
        return self._event(b"contentBlockStop", b'"contentBlockIndex":%d' % index)

    def _event(self, kind: bytes, fields: bytes) -> bytes:
        padding = _PADDING[: len(fields) % len(_PADDING)].encode()
        return frame(kind, b'{%b,"p":"%b"}' % (fields, padding))

    def broken(self) -> bytes:
        return frame(b"contentBlockDelta", b'{"contentBlockIndex":0,"del')

    def failure(self, status: int) -> bytes:
        return exception(status)

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        return padded_frame(b"contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":""}', blanks, b"}")


def exception(status: int) -> bytes:
    """An error as an event: `internalServerException`."""
    kind, message = known(status)
    return frame((kind[0].lower() + kind[1:]).encode(), encode({"message": message}), is_exception=True)


def usage_json(counts: Counts) -> bytes:
    """What is read from a cache or written to one stands beside `inputTokens`, and is in the total."""
    fresh = counts.fresh_tokens()
    cached = b""
    if counts.cached_tokens or counts.written_tokens:
        for_an_hour = counts.written_1h_tokens
        details = b'[{"inputTokens":%d,"ttl":"5m"},{"inputTokens":%d,"ttl":"1h"}]' % (
            counts.written_tokens - for_an_hour,
            for_an_hour,
        )
        cached = b',"cacheReadInputTokens":%d,"cacheWriteInputTokens":%d,"cacheDetails":%b' % (
            counts.cached_tokens,
            counts.written_tokens,
            details if counts.written_tokens else b"[]",
        )
    total = counts.input_tokens + counts.output_tokens
    return b'{"inputTokens":%d,"outputTokens":%d%b,"totalTokens":%d}' % (fresh, counts.output_tokens, cached, total)
