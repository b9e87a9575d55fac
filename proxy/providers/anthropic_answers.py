"""What Anthropic's Messages API answers: whole, in a stream. Pure; no I/O.

`input_tokens` leaves out what was read from the cache and written to it. A stream says its input in `message_start`, its
output in `message_delta`, and counts that up to there.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from audit.records import Usage
from proxy.neutral import (
    LENGTH,
    PAUSE,
    REFUSAL,
    STOP,
    STOP_SEQUENCE,
    TOOL_CALLS,
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
    Done,
    Event,
    Failed,
    Finished,
    Opaque,
    OpaqueDone,
    Part,
    ProviderError,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    UsageSeen,
)
from proxy.providers.anthropic_requests import ORIGIN
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Measured, OpenToolCalls, StreamReader, checked_usage, name_of
from proxy.service_tiers import geo_of, tier_of
from proxy.wire.frame import Frame
from proxy.wire.json_shape import Shape

FINISHES = {
    "end_turn": STOP,
    "stop_sequence": STOP_SEQUENCE,
    "max_tokens": LENGTH,
    "model_context_window_exceeded": LENGTH,
    "tool_use": TOOL_CALLS,
    "refusal": REFUSAL,
    "pause_turn": PAUSE,
    "compaction": PAUSE,
}
_NULL = msgspec.Raw(b"null")
_INPUT = frozenset({"input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"})


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _ServerToolUse(msgspec.Struct):
    web_search_requests: int | None = None


class _Counts(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation: _CacheCreation | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(_Counts):
    """`iterations` are there where one answer took several runs (compaction): what is billed is their sum."""

    server_tool_use: _ServerToolUse | None = None
    output_tokens_details: _OutputDetails | None = None
    iterations: list[_Counts] | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    citations: list[msgspec.Raw] | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Answer(msgspec.Struct):
    """A whole message; `message_start` holds the same with nothing in it yet."""

    type: str = ""
    id: str | None = None
    model: str | None = None
    content: list[msgspec.Raw] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: Any = None
    # Raw: counts that cannot be read must not cost the answer.
    usage: msgspec.Raw = _NULL
    error: Any = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    citation: msgspec.Raw = _NULL
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int | None = None
    message: _Answer | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: msgspec.Raw = _NULL
    error: Any = None


class _Citation(msgspec.Struct):
    type: str = ""
    cited_text: str | None = None
    title: str | None = None
    document_title: str | None = None
    document_index: int | None = None
    url: str | None = None
    source: str | None = None
    file_id: str | None = None


_answers = Shape(_Answer)
_blocks = Shape(_Block)
_events = Shape(_Event)
_citations = Shape(_Citation)
_usages = Shape(_Usage)
_values = Shape(dict[str, Any])


# Whole


def measure(body: bytes) -> Measured:
    answer = _answers.read(body)
    return Measured(
        usage=usage_of(_usages.find(answer.usage)),
        response_model=name_of(answer.model),
        finish_reason=name_of(answer.stop_reason),
        has_error=answer.error is not None,
    )


def read_answer(body: bytes) -> Answer:
    """Raises `msgspec.DecodeError`."""
    answer = _answers.read(body)
    if answer.content is None:
        raise msgspec.DecodeError("a message has content")
    parts = [_read_block(raw) for raw in answer.content]
    if explanation := _explanation(answer.stop_details):
        parts.append(Refusal(text=explanation))
    usage = _usages.find(answer.usage)
    return Answer(
        answer_id=answer.id or "",
        model=answer.model or "",
        choices=[
            Choice(
                parts=[part for part in parts if part is not None],
                finish=FINISHES.get(answer.stop_reason or "", STOP),
                finish_detail=name_of(answer.stop_reason),
                stop_sequence=answer.stop_sequence,
            )
        ],
        usage=usage_of(usage),
        service_tier=(usage.service_tier or "") if usage else "",
    )


def _read_block(raw: msgspec.Raw) -> Part | None:
    """None for a text that says nothing."""
    block = _blocks.find(raw)
    match block.type if block is not None else "":
        case "text":
            assert block is not None
            citations = tuple(read for cited in block.citations or () if (read := _read_citation(cited)) is not None)
            return Text(text=block.text or "", citations=citations) if block.text else None
        case "tool_use":
            assert block is not None
            arguments = bytes(block.input).decode("utf-8", "replace")
            return ToolCall(call_id=block.id or "", name=block.name or "", arguments=arguments)
        case "thinking":
            assert block is not None
            signature = block.signature or ""
            return Thinking(text=block.thinking or "", signature=signature, origin=ORIGIN if signature else "")
        case "redacted_thinking":
            assert block is not None
            return Thinking(redacted=block.data or "", origin=ORIGIN)
        case kind:
            return Opaque(kind=kind or "unknown", value=_values.find(raw))


def _explanation(stop_details: Any) -> str:
    """Why the model refused, where it says so."""
    found = stop_details.get("explanation") if type(stop_details) is dict else None
    return found if type(found) is str else ""


def _read_citation(raw: msgspec.Raw) -> Citation | None:
    """None where it cannot be read. Places are those in the source, not in the answer."""
    citation = _citations.find(raw)
    if citation is None:
        return None
    url = citation.url or citation.source or ""
    return Citation(
        url=url if url.startswith(("https://", "http://")) else "",
        title=citation.title or citation.document_title or "",
        cited_text=citation.cited_text or "",
        document=-1 if citation.document_index is None else citation.document_index,
        file_id=citation.file_id or "",
        source=_values.find(raw),
    )


def usage_of(usage: _Usage | None) -> Usage | None:
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    runs: Sequence[_Counts] = usage.iterations or (usage,)
    cached = sum(run.cache_read_input_tokens or 0 for run in runs)
    written = sum(run.cache_creation_input_tokens or 0 for run in runs)
    for_an_hour = sum(run.cache_creation.ephemeral_1h_input_tokens or 0 for run in runs if run.cache_creation)
    details = usage.output_tokens_details
    searches = (usage.server_tool_use.web_search_requests or 0) if usage.server_tool_use else 0
    return checked_usage(
        Usage(
            input_tokens=sum(run.input_tokens or 0 for run in runs) + cached + written,
            cache_read_input_tokens=cached,
            cache_write_input_tokens=written,
            cache_write_1h_input_tokens=for_an_hour,
            output_tokens=sum(run.output_tokens or 0 for run in runs),
            reasoning_tokens=(details.thinking_tokens or 0) if details else 0,
            tool_calls=searches,
            searches=searches,
            service_tier=tier_of(usage.speed) or tier_of(usage.service_tier),
            inference_geo=geo_of(usage.inference_geo),
        )
    )


# Streams


class MessagesReader(StreamReader):
    """message_start · (content_block_start content_block_delta… content_block_stop)… · message_delta · message_stop."""

    def __init__(self) -> None:
        self._usage = _Usage()
        self._tool_calls = OpenToolCalls()
        self._texts = 0
        self.tool_runs: int = 0

    def read(self, frame: Frame) -> Sequence[Event]:
        if not frame.data:
            # A whole error that is only called a stream.
            return (Failed(error=_stream_error(frame.raw)),) if frame.raw.lstrip()[:1] == b"{" else ()
        event = _events.find(frame.data)
        if event is None:
            return (_opaque(frame, "unknown"),)
        match event.type:
            case "content_block_delta":
                found = self._read_delta(event.index or 0, event.delta) if event.delta is not None else None
                return (_opaque(frame, event.type),) if found is None else found
            case "content_block_start":
                return self._began(event.index or 0, event.content_block, frame)
            case "content_block_stop":
                return self._tool_calls.end(event.index or 0)
            case "message_start":
                return self._started(event.message or _Answer())
            case "message_delta":
                return self._finished(event.delta or _Delta(), _usages.find(event.usage))
            case "message_stop":
                return (Done(),)
            case "ping":
                return ()
            case "error":
                return (Failed(error=_stream_error(frame.data)),)
            case kind:
                return (_opaque(frame, kind),)

    def _started(self, message: _Answer) -> Sequence[Event]:
        usage = _usages.find(message.usage)
        tier = (usage.service_tier or "") if usage else ""
        began = Began(answer_id=message.id or "", model=message.model or "", service_tier=tier)
        return (began, *self._count(usage))

    def _finished(self, delta: _Delta, usage: _Usage | None) -> Sequence[Event]:
        seen = self._count(usage)
        if delta.stop_reason is None:
            return seen
        finish = FINISHES.get(delta.stop_reason, STOP)
        detail = name_of(delta.stop_reason)
        finished = Finished(finish=finish, finish_detail=detail, stop_sequence=delta.stop_sequence)
        if explanation := _explanation(delta.stop_details):
            return (RefusalDelta(text=explanation), finished, *seen)
        return (finished, *seen)

    def _count(self, usage: _Usage | None) -> Sequence[Event]:
        """What is said later counts; what is not said again still holds."""
        if usage is None:
            return ()
        # An end that knows of no input at all does not mean that there was none.
        knows_input = usage.input_tokens or usage.cache_read_input_tokens or usage.cache_creation_input_tokens
        for name in _Usage.__struct_fields__:
            value = getattr(usage, name)
            if value is not None and (knows_input or name not in _INPUT):
                setattr(self._usage, name, value)
        seen = usage_of(self._usage)
        return () if seen is None else (UsageSeen(usage=seen),)

    def _began(self, index: int, block: _Block | None, frame: Frame) -> Sequence[Event]:
        match block.type if block is not None else "":
            case "text":
                assert block is not None
                self._texts += 1
                if self._texts == 1 and not block.text:
                    return ()
                return (TextDelta(text=block.text or "", begins_part=self._texts > 1),)
            case "thinking":
                assert block is not None
                return (ThinkingDelta(text=block.thinking, origin=ORIGIN),) if block.thinking else ()
            case "redacted_thinking":
                assert block is not None
                return (ThinkingDelta(redacted=block.data or "", origin=ORIGIN),)
            case "tool_use":
                assert block is not None
                arguments = bytes(block.input).decode("utf-8", "replace")
                said = "" if arguments in ("{}", "null") else arguments
                return self._tool_calls.begin(index, block.id or "", block.name or "", said)
            case kind:
                if block is not None and kind == "server_tool_use" and block.name == "web_search":
                    self.tool_runs += 1
                return (_opaque(frame, kind),)

    def _read_delta(self, index: int, delta: _Delta) -> Sequence[Event] | None:
        """None where it says nothing that is known."""
        match delta.type:
            case "text_delta":
                return (TextDelta(text=delta.text),) if delta.text else ()
            case "input_json_delta":
                return self._tool_calls.add(index, delta.partial_json or "")
            case "thinking_delta":
                # Text and signature return together, so both say whose they are.
                return (ThinkingDelta(text=delta.thinking, origin=ORIGIN),) if delta.thinking else ()
            case "signature_delta":
                return (ThinkingDelta(signature=delta.signature, origin=ORIGIN),) if delta.signature else ()
            case "citations_delta":
                citation = _read_citation(delta.citation)
                return None if citation is None else (Cited(citation=citation),)
            case _:
                return None


def _opaque(frame: Frame, kind: str) -> OpaqueDone:
    """What a tool of the provider gave is no output of the model's."""
    return OpaqueDone(kind=kind, size=0 if kind.endswith("_tool_result") else len(frame.data))


def _stream_error(body: bytes) -> ProviderError:
    """In a stream the status line said 200 already."""
    error = read_error(0, body)
    if error.kind == "overloaded_error":
        error.status_code = 529
    return error
