"""OpenAI's chat completions, as OpenAI and the providers shaped like it speak them. Pure; no I/O."""

from collections.abc import Iterable

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.providers.provider import (
    TOKENS_MAX,
    Api,
    Measured,
    Outgoing,
    StreamMeter,
    name_of,
)
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.json_gate import dump_object

_encode = msgspec.json.Encoder().encode
_TRUE = msgspec.Raw(b"true")
_NULL = msgspec.Raw(b"null")


class OpenAIChat(Api):
    name = "openai.chat"
    capability = "chat"
    target = b"/chat/completions"

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = dict(call.fields)  # The next attempt may go to a provider that calls its cap otherwise.
        fields["model"] = msgspec.Raw(_encode(deployment.upstream_model))
        if call.output_tokens_max is None:
            fields[provider.output_cap_field] = msgspec.Raw(b"%d" % deployment.max_output_tokens)
        if call.is_stream and not call.wants_usage_chunk:
            fields["stream_options"] = _including_usage(fields.get("stream_options"))
        return Outgoing(self.target, dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        chunk = _decode_chunk(body)
        reasons = [choice.finish_reason for choice in chunk.choices or () if choice.finish_reason]
        return Measured(
            usage=_usage_of(chunk.usage),
            response_model=name_of(chunk.model),
            finish_reason=name_of(reasons[-1] if reasons else ""),
            has_error=bytes(chunk.error) != b"null",
        )

    def stream_meter(self, call: Call) -> StreamMeter:
        return ChatMeter(call.wants_usage_chunk)


def _including_usage(stream_options: msgspec.Raw | None) -> msgspec.Raw:
    options: dict[str, msgspec.Raw] = {}
    if stream_options is not None and bytes(stream_options) != b"null":
        options = msgspec.json.decode(stream_options, type=dict[str, msgspec.Raw])
    return msgspec.Raw(dump_object({**options, "include_usage": _TRUE}))


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Delta(msgspec.Struct):
    """Every field in which output can show. Raw, because some providers send arrays where others send text."""

    content: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL
    reasoning: msgspec.Raw = _NULL
    refusal: msgspec.Raw = _NULL
    tool_calls: msgspec.Raw = _NULL
    function_call: msgspec.Raw = _NULL

    def visible_bytes(self) -> int:
        parts = (
            self.content,
            self.reasoning_content,
            self.reasoning,
            self.refusal,
            self.tool_calls,
            self.function_call,
        )
        return sum(map(_visible_bytes, parts))


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Groq(msgspec.Struct):
    usage: _Usage | None = None


class _Chunk(msgspec.Struct):
    """A stream's chunk, and just as well a whole answer. Groq says its usage twice, or only in its own corner."""

    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    x_groq: _Groq | None = None
    error: msgspec.Raw = _NULL


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class ChatMeter(StreamMeter):
    """Decodes no more than it counts. The usage chunk is passed on only where the client had asked for it."""

    def __init__(self, wants_usage_chunk: bool) -> None:
        super().__init__()
        self._wants_usage_chunk = wants_usage_chunk

    def observe(self, frame: Frame) -> bool:
        data = frame.data
        if not data:
            return False
        if data == b"[DONE]":
            self.is_done = True
            return False
        try:
            chunk = _decode_chunk(data)
        except msgspec.DecodeError:
            # Not ours to judge: it passes through, and counts as output of its own length.
            self.output_chunks += 1
            self.output_bytes += len(data)
            return False
        if bytes(chunk.error) != b"null":
            self.has_error = True
        usage = chunk.usage or (chunk.x_groq.usage if chunk.x_groq else None)
        if usage is not None:
            self.usage = _usage_of(usage) or self.usage
        if chunk.model:
            self.response_model = name_of(chunk.model)
        if not chunk.choices:
            return chunk.usage is not None and not self._wants_usage_chunk
        self._count(chunk.choices)
        return False

    def _count(self, choices: Iterable[_Choice]) -> None:
        for choice in choices:
            if choice.finish_reason:
                self.finish_reason = name_of(choice.finish_reason)
            if choice.delta is not None:
                visible = choice.delta.visible_bytes()
                if visible:
                    self.output_chunks += 1
                    self.output_bytes += visible


def _usage_of(usage: _Usage | None) -> Usage | None:
    if usage is None or usage.prompt_tokens is None:
        return None
    completion = usage.completion_tokens or 0
    # Some leave reasoning out of completion_tokens; then the total is more than the sum.
    output = max(completion, (usage.total_tokens or 0) - usage.prompt_tokens)
    details, completion_details = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    written = (details.cache_write_tokens or 0) if details else 0
    reasoning = (completion_details.reasoning_tokens or 0) if completion_details else 0
    counts = (usage.prompt_tokens, completion, output, cached, written, reasoning)
    if any(not 0 <= count <= TOKENS_MAX for count in counts):
        return None
    return Usage(
        input_tokens=usage.prompt_tokens,
        cache_read_input_tokens=cached,
        cache_write_input_tokens=written,
        output_tokens=output,
        reasoning_tokens=reasoning,
    )


def _visible_bytes(part: msgspec.Raw) -> int:
    raw = bytes(part)
    if raw[:1] == b'"':
        return len(raw) - 2
    return 0 if raw == b"null" else len(raw)


CHAT = OpenAIChat()
