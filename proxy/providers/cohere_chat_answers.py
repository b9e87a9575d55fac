"""What Cohere's chat answers, whole and in streams. Pure; no I/O.

A model that plans its tool calls says so in `tool_plan`; that is its thinking, and Cohere's templates write it as such.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
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
    OpaqueDone,
    Part,
    ProviderError,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    UsageSeen,
)
from proxy.providers.cohere_errors import is_error, read_error
from proxy.providers.cohere_usage import ChatUsage, usage_of_chat
from proxy.providers.provider import Measured, StreamReader, name_of, text_of
from proxy.wire.frame import Frame
from proxy.wire.json_shape import Shape

FINISHES = {
    "COMPLETE": STOP,
    "STOP_SEQUENCE": STOP_SEQUENCE,
    "MAX_TOKENS": LENGTH,
    "TOOL_CALL": TOOL_CALLS,
    "ERROR_TOXIC": CONTENT_FILTER,
    "ERROR_LIMIT": LENGTH,
}
FAILURES = frozenset({"ERROR", "TIMEOUT"})
_CITES_TEXT = frozenset({None, "TEXT_CONTENT"})
_ENDS = frozenset({"content-end", "citation-end"})
_NULL = msgspec.Raw(b"null")


# What is read


class _Block(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Citation(msgspec.Struct):
    start: int | None = None
    end: int | None = None
    content_index: int | None = None
    type: str | None = None
    sources: list[dict[str, Any]] | None = None


class _Logprob(msgspec.Struct):
    text: str | None = None
    logprobs: list[float] | None = None


class _Message(msgspec.Struct):
    content: list[_Block] | None = None
    tool_plan: str | None = None
    tool_calls: list[_ToolCall] | None = None
    citations: list[_Citation] | None = None


class _Answer(msgspec.Struct):
    message: _Message
    id: str | None = None
    finish_reason: str | None = None
    usage: ChatUsage | None = None
    logprobs: list[_Logprob] | None = None


class _Head(msgspec.Struct):
    finish_reason: str | None = None
    usage: ChatUsage | None = None


class _Frame(msgspec.Struct):
    """`delta` is read by what `type` says."""

    type: str
    id: str | None = None
    index: int | None = None
    delta: msgspec.Raw = _NULL


class _BlockMessage(msgspec.Struct):
    content: _Block


class _BlockDelta(msgspec.Struct):
    message: _BlockMessage
    logprobs: _Logprob | None = None


class _PlanMessage(msgspec.Struct):
    tool_plan: str | None = None


class _PlanDelta(msgspec.Struct):
    message: _PlanMessage


class _ToolCallMessage(msgspec.Struct):
    tool_calls: _ToolCall


class _ToolCallDelta(msgspec.Struct):
    message: _ToolCallMessage


class _CitationMessage(msgspec.Struct):
    citations: _Citation


class _CitationDelta(msgspec.Struct):
    message: _CitationMessage


class _EndDelta(msgspec.Struct):
    finish_reason: str | None = None
    error: str | None = None
    usage: msgspec.Raw = _NULL


_answers = Shape(_Answer)
_heads = Shape(_Head)
_frames = Shape(_Frame)
_block_deltas = Shape(_BlockDelta)
_plan_deltas = Shape(_PlanDelta)
_tool_call_deltas = Shape(_ToolCallDelta)
_citation_deltas = Shape(_CitationDelta)
_end_deltas = Shape(_EndDelta)
_usages = Shape(ChatUsage)


# Whole answers


def measure(body: bytes) -> Measured:
    """Raises `msgspec.DecodeError`."""
    head = _heads.read(body)
    return Measured(
        usage=usage_of_chat(head.usage),
        finish_reason=name_of(head.finish_reason),
        has_error=head.finish_reason in FAILURES,
    )


def read_answer(body: bytes) -> Answer:
    """Raises `msgspec.DecodeError`."""
    answer = _answers.read(body)
    logprobs = [token for item in answer.logprobs for token in _tokens(item)] if answer.logprobs else None
    finish = answer.finish_reason or ""
    return Answer(
        answer_id=answer.id or "",
        choices=[
            Choice(
                parts=_read_parts(answer.message),
                finish=FINISHES.get(finish, STOP),
                finish_detail=name_of(finish),
                logprobs=logprobs,
            )
        ],
        usage=usage_of_chat(answer.usage),
    )


def _read_parts(message: _Message) -> list[Part]:
    """Citations of the plan or of thinking have no part to stand at, and are left out."""
    citations = [
        (citation.content_index, read)
        for citation in message.citations or ()
        if citation.type in _CITES_TEXT
        for read in _citations(citation)
    ]
    parts: list[Part] = [Thinking(text=message.tool_plan)] if message.tool_plan else []
    only_text = len([block for block in message.content or () if block.text]) == 1
    for index, block in enumerate(message.content or ()):
        if block.thinking:
            parts.append(Thinking(text=block.thinking))
        if block.text:
            own = tuple(read for at, read in citations if only_text or (at or 0) == index)
            parts.append(Text(text=block.text, citations=own))
    for index, tool_call in enumerate(message.tool_calls or ()):
        function = tool_call.function or _Function()
        parts.append(
            ToolCall(
                call_id=tool_call.id or f"call_{index}",
                name=function.name or "",
                arguments=_arguments(function.arguments),
            )
        )
    return parts


def _arguments(text: str | None) -> str:
    """A tool without parameters is called with nothing, or with null."""
    return text if text and text != "null" else "{}"


def _citations(citation: _Citation) -> list[Citation]:
    """One for each source. `doc:0` is the first of the documents that were sent."""
    read: list[Citation] = []
    for source in citation.sources or ():
        document = source.get("document")
        fields: dict[str, Any] = document if isinstance(document, dict) else {}
        number = str(source.get("id", "")).removeprefix("doc:")
        read.append(
            Citation(
                url=text_of(fields.get("url")),
                title=text_of(fields.get("title")),
                cited_text=text_of(fields.get("text") or fields.get("snippet")),
                start=-1 if citation.start is None else citation.start,
                end=-1 if citation.end is None else citation.end,
                document=int(number) if number.isascii() and number.isdigit() and len(number) < 6 else -1,
                source=source,
            )
        )
    return read


def _tokens(item: _Logprob) -> list[TokenLogprob]:
    """Cohere gives the text of several tokens at once: it is all given to the first."""
    return [
        TokenLogprob(token=(item.text or "") if index == 0 else "", logprob=logprob)
        for index, logprob in enumerate(item.logprobs or ())
    ]


# Streams


class CohereChatReader(StreamReader):
    def __init__(self) -> None:
        self._tool_calls = -1
        self._has_arguments = False
        self._has_text = False
        self._begins_text = False

    def read(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if not data or data == b"[DONE]":
            return ()  # `message-end` has said so; not every deployment sends another end.
        read = _frames.find(data)
        if read is None:
            return _read_strange(data)
        events = self._events(read)
        return events if events is not None else (OpaqueDone(kind=read.type, size=len(data)),)

    def _events(self, frame: _Frame) -> Sequence[Event] | None:
        """None for what cannot be read."""
        match frame.type:
            case "content-delta" | "content-start":
                return self._read_block(frame)
            case "tool-call-delta":
                return self._read_arguments(frame)
            case "tool-call-start":
                return self._begin_tool_call(frame)
            case "tool-plan-delta":
                return _read_plan(frame)
            case "citation-start":
                return _read_citation(frame)
            case "message-start":
                return (Began(answer_id=frame.id or ""),)
            case "tool-call-end":
                return self._end_tool_call()
            case "message-end":
                return _read_end(frame)
            case _:
                return () if frame.type in _ENDS else None

    def _read_block(self, frame: _Frame) -> Sequence[Event] | None:
        delta = _block_deltas.find(frame.delta)
        if delta is None:
            return None
        block = delta.message.content
        if frame.type == "content-start" and block.type == "text":
            self._begins_text = self._has_text
        if block.thinking:
            return (ThinkingDelta(text=block.thinking),)
        if not block.text and delta.logprobs is None:
            return ()
        begins, self._begins_text, self._has_text = self._begins_text, False, True
        logprobs = _tokens(delta.logprobs) if delta.logprobs is not None else None
        return (TextDelta(text=block.text or "", begins_part=begins, logprobs=logprobs),)

    def _read_arguments(self, frame: _Frame) -> Sequence[Event] | None:
        delta = _tool_call_deltas.find(frame.delta)
        if delta is None:
            return None
        function = delta.message.tool_calls.function
        if self._tool_calls < 0 or function is None or not function.arguments:
            return ()
        if not self._has_arguments and function.arguments == "null":
            return ()
        self._has_arguments = True
        return (ToolCallDelta(index=self._tool_calls, arguments=function.arguments),)

    def _begin_tool_call(self, frame: _Frame) -> Sequence[Event] | None:
        delta = _tool_call_deltas.find(frame.delta)
        if delta is None:
            return None
        self._tool_calls += 1
        self._has_arguments = False
        tool_call = delta.message.tool_calls
        function = tool_call.function or _Function()
        call_id = tool_call.id or f"call_{self._tool_calls}"
        began = ToolCallBegan(index=self._tool_calls, call_id=call_id, name=function.name or "")
        if function.arguments:
            self._has_arguments = True
            return (began, ToolCallDelta(index=self._tool_calls, arguments=function.arguments))
        return (began,)

    def _end_tool_call(self) -> Sequence[Event]:
        """A tool without parameters is called with nothing, or with null."""
        if self._tool_calls < 0 or self._has_arguments:
            return ()
        self._has_arguments = True
        return (ToolCallDelta(index=self._tool_calls, arguments="{}"),)


def _read_plan(frame: _Frame) -> Sequence[Event] | None:
    delta = _plan_deltas.find(frame.delta)
    if delta is None:
        return None
    return (ThinkingDelta(text=delta.message.tool_plan),) if delta.message.tool_plan else ()


def _read_citation(frame: _Frame) -> Sequence[Event] | None:
    delta = _citation_deltas.find(frame.delta)
    if delta is None:
        return None
    citation = delta.message.citations
    return [Cited(citation=each) for each in _citations(citation)] if citation.type in _CITES_TEXT else ()


def _read_end(frame: _Frame) -> Sequence[Event] | None:
    delta = _end_deltas.find(frame.delta)
    if delta is None:
        return None
    events: list[Event] = []
    usage = usage_of_chat(_usages.find(delta.usage))
    if usage is not None:
        events.append(UsageSeen(usage=usage))
    finish = delta.finish_reason or ""
    if finish in FAILURES:
        message = delta.error or "the generation failed"
        return [*events, Failed(error=ProviderError(message=message, kind=name_of(finish)))]
    return [*events, Finished(finish=FINISHES.get(finish, STOP), finish_detail=name_of(finish)), Done()]


def _read_strange(data: bytes) -> Sequence[Event]:
    """An error where an event should be, or something unheard of."""
    return (Failed(error=read_error(0, data)),) if is_error(data) else (OpaqueDone(kind="", size=len(data)),)
