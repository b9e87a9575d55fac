"""Bedrock's InvokeModel: each maker's own body. Anthropic's messages and Nova's converse, which stream, Titan's and Cohere's embeddings."""

import base64
from typing import Annotated

import msgspec

from controlplane.simulator import wire
from controlplane.simulator.calls import Answer, Asked, Call, Plan, plan_input
from controlplane.simulator.directives import Directives
from controlplane.simulator.shapes.anthropic_messages import MessageAnswer
from controlplane.simulator.shapes.bedrock_converse import ConverseAnswer, exception
from controlplane.simulator.shapes.event_stream import frame, padded_frame
from controlplane.simulator.words import DIMENSIONS, encode, place, vector_json

_STREAM_FIELDS = wire.EVENT_STREAM + b"x-amzn-bedrock-content-type: application/json\r\n"
_PING = base64.b64encode(b'{"type":"ping"}')


class TitanRequest(msgspec.Struct, rename="camel"):
    input_text: str
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None


class CohereRequest(msgspec.Struct):
    texts: Annotated[list[str], msgspec.Meta(min_length=1)]


class _InvokeAnswer(Answer):
    """The counts are in headers too."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        counts = self.plan.counts
        fields = (
            b"x-amzn-bedrock-input-token-count: %d\r\nx-amzn-bedrock-output-token-count: %d\r\n"
            b"x-amzn-bedrock-cache-read-input-token-count: %d\r\n"
            b"x-amzn-bedrock-cache-write-input-token-count: %d\r\nx-amzn-bedrock-invocation-latency: 1\r\n"
        ) % (counts.fresh_tokens(), counts.output_tokens, counts.cached_tokens, counts.written_tokens)
        self.whole_fields = wire.JSON + (fields if self.says_usage else b"")


class InvokeMessages(_InvokeAnswer, MessageAnswer):
    """Each of Anthropic's events is in base64, in a frame of its own; the last has the counts once more."""

    stream_fields = _STREAM_FIELDS

    def _frame(self, name: bytes, data: bytes) -> bytes:
        if name == b"message_stop" and self.says_usage:
            counts = self.plan.counts
            metrics = (
                b'{"inputTokenCount":%d,"outputTokenCount":%d,"invocationLatency":1,"firstByteLatency":1,'
                b'"cacheReadInputTokenCount":%d,"cacheWriteInputTokenCount":%d}'
            ) % (counts.fresh_tokens(), counts.output_tokens, counts.cached_tokens, counts.written_tokens)
            data = b'{"type":"message_stop","amazon-bedrock-invocationMetrics":%b}' % metrics
        return frame(b"chunk", b'{"bytes":"%b","p":"abcdefgh"}' % base64.b64encode(data))

    def _ping(self) -> bytes:
        return b""

    def failure(self, status: int) -> bytes:
        return exception(status)

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        return padded_frame(b"chunk", b'{"bytes":"%b"' % _PING, blanks, b"}")


class InvokeNova(_InvokeAnswer, ConverseAnswer):
    """Nova's bodies are Converse's, and so are its events, each as an object under its name."""

    stream_fields = _STREAM_FIELDS

    def _event(self, kind: bytes, fields: bytes) -> bytes:
        data = b'{"%b":{%b}}' % (kind, fields)
        return frame(b"chunk", b'{"bytes":"%b","p":"abcdefgh"}' % base64.b64encode(data))

    def broken(self) -> bytes:
        return frame(b"chunk", b'{"bytes":"eyJ0')

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        return padded_frame(b"chunk", b'{"bytes":"%b"' % base64.b64encode(b"{}"), blanks, b"}")


class _Vectors(_InvokeAnswer):
    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        return plan_input(asked, input_tokens, directives)


class InvokeTitan(_Vectors):
    def whole(self) -> tuple[bytes, bytes]:
        asked: TitanRequest = self.asked.details
        dimensions = asked.dimensions or DIMENSIONS
        vector = vector_json(dimensions, place(asked.input_text) % dimensions)
        usage = b'{"inputTextTokenCount":%d}' % self.plan.counts.input_tokens if self.says_usage else b""
        told = b"," + usage[1:-1] if usage else b""
        return b'{"embedding":%b%b}' % (vector, told), usage


class InvokeCohere(_Vectors):
    def whole(self) -> tuple[bytes, bytes]:
        asked: CohereRequest = self.asked.details
        vectors = b",".join(vector_json(DIMENSIONS, place(text) % DIMENSIONS) for text in asked.texts)
        return (
            b'{"id":"%b","response_type":"embeddings_floats","texts":%b,"embeddings":[%b]}'
            % (self.id, encode(asked.texts), vectors),
            b"",
        )
