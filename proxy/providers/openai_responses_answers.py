"""Answers and streams of responses, read as OpenAI and the providers shaped like it write them. Pure; no I/O.

A response is the same object whole and within the events of its stream. Servers differ in what they leave out of the
events: what came in no delta is read from the item that is done, and else from the response that is completed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import RESPONSE
from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
    REFUSAL,
    STOP,
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
    TokenLogprob,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    UsageSeen,
)
from proxy.providers.openai_answers import read_logprob
from proxy.providers.openai_errors import error_of
from proxy.providers.provider import Kept, Measured, StreamReader, checked_usage, name_of, objects_in, text_of
from proxy.service_tiers import tier_of
from proxy.wire.frame import Frame
from proxy.wire.json_shape import Shape

_FINISHES = {"max_output_tokens": LENGTH, "content_filter": CONTENT_FILTER}
# Items that stand for one run of a tool that the provider bills by the run.
_BILLED_ITEMS = frozenset(
    {"web_search_call", "x_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"}
)
# Between the passages of one reasoning.
_PARAGRAPH = "\n\n"

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


def measure(body: bytes) -> Measured:
    """`finish_reason` of an answer that is still being made (`background`) is its status: queued or in_progress.
    Raises `msgspec.DecodeError`."""
    response = _responses.read(body)
    return Measured(
        usage=_usage_of(response, _runs_of(response.items())),
        response_model=name_of(response.model),
        finish_reason=name_of(response.reason() or response.status),
        has_error=response.has_error(),
        kept=(Kept(RESPONSE, response.id),) if type(response.id) is str and response.id else (),
    )


def read_answer(body: bytes) -> Answer:
    """Raises `msgspec.DecodeError`."""
    response = _responses.read(body)
    if response.output is None:
        raise msgspec.ValidationError("a response has `output`")
    items = response.items()
    parts, logprobs = _parts_of(items)
    if type(response.reasoning) is str and response.reasoning.strip():
        parts.insert(0, Thinking(text=response.reasoning))  # mistral.rs
    finish, detail = response.finish(has_calls=any(isinstance(part, ToolCall) for part in parts))
    return Answer(
        answer_id=text_of(response.id),
        model=text_of(response.model),
        created_at_s=_moment(response.created_at),
        choices=[Choice(parts=parts, finish=finish, finish_detail=detail, logprobs=logprobs or None)],
        usage=_usage_of(response, _runs_of(items)),
        service_tier=text_of(response.service_tier),
    )


def answer_id_of(body: bytes) -> str:
    """By which the provider keeps a response; "" where it names none."""
    try:
        return text_of(_responses.read(body).id)
    except msgspec.DecodeError:
        return ""


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_tokens_details: "_WriteDetails | None" = None


class _WriteDetails(msgspec.Struct):
    ttl_12h_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    # xAI's count of the runs of its tools, by kind.
    server_side_tool_usage_details: dict[str, int | None] | None = None


class _ImageDetails(msgspec.Struct):
    image_tokens: int | None = None


class _ImageUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _ImageDetails | None = None
    output_tokens_details: _ImageDetails | None = None


class _SearchUsage(msgspec.Struct):
    num_requests: int | None = None


class _ToolUsage(msgspec.Struct):
    """What OpenAI's own tools used besides the model: searches that are billed, tokens of the images' model."""

    image_gen: _ImageUsage | None = None
    web_search: _SearchUsage | None = None


class _Response(msgspec.Struct):
    """Values of any type: what some server writes otherwise must not hide the rest."""

    id: Any = None
    model: Any = None
    created_at: Any = None
    status: Any = None
    service_tier: Any = None
    error: Any = None
    incomplete_details: Any = None
    output: list[Any] | None = None
    reasoning: Any = None
    usage: msgspec.Raw = _NULL
    tool_usage: msgspec.Raw = _NULL

    def items(self) -> list[dict[str, Any]]:
        return objects_in(self.output)

    def reason(self) -> str:
        details = self.incomplete_details
        return text_of(details.get("reason")) if type(details) is dict else ""

    def has_error(self) -> bool:
        return self.error is not None or self.status == "failed"

    def finish(self, *, has_calls: bool) -> tuple[str, str]:
        """(the neutral word, the provider's own)."""
        reason = self.reason()
        if reason:
            return _FINISHES.get(reason, STOP), reason
        if self.status == "incomplete":
            return LENGTH, "incomplete"
        if has_calls:
            return TOOL_CALLS, text_of(self.status)
        return REFUSAL if any(_refuses(item) for item in self.items()) else STOP, text_of(self.status)


_responses = Shape(_Response)
_usages = Shape(_Usage)
_tool_usages = Shape(_ToolUsage)


def _refuses(item: dict[str, Any]) -> bool:
    return item.get("type") == "message" and any(
        part.get("type") == "refusal" for part in objects_in(item.get("content"))
    )


def _moment(value: Any) -> int:
    return int(value) if type(value) is int or type(value) is float else 0


def _runs_of(items: Iterable[dict[str, Any]]) -> list[str]:
    """Of each run of a tool that is billed by the run, the kind of its item. To open a page is no search."""
    runs = []
    for item in items:
        kind = item.get("type")
        if type(kind) is str and kind in _BILLED_ITEMS:
            action = item.get("action")
            if kind != "web_search_call" or type(action) is not dict or action.get("type") in (None, "search"):
                runs.append(kind)
    return runs


def _usage_of(response: _Response, runs: list[str]) -> Usage | None:
    usage = _usages.find(response.usage)
    if usage is None or usage.input_tokens is None:
        return None
    tools = _tool_usages.find(response.tool_usage) or _ToolUsage()
    details = usage.input_tokens_details or _InputDetails()
    writes = details.cache_write_tokens_details or _WriteDetails()
    thoughts = usage.output_tokens_details or _OutputDetails()
    images = tools.image_gen or _ImageUsage()
    billed = _billed_runs(usage, tools, runs)
    seen, drawn = images.input_tokens_details or _ImageDetails(), images.output_tokens_details
    return checked_usage(
        Usage(
            input_tokens=usage.input_tokens + (images.input_tokens or 0),
            cache_read_input_tokens=details.cached_tokens or 0,
            cache_write_input_tokens=details.cache_write_tokens or 0,
            cache_write_1h_input_tokens=writes.ttl_12h_tokens or 0,
            # Should a server leave reasoning out of its output, as some do in chats, then the total has it.
            output_tokens=max(usage.output_tokens or 0, (usage.total_tokens or 0) - usage.input_tokens)
            + (images.output_tokens or 0),
            reasoning_tokens=thoughts.reasoning_tokens or 0,
            input_image_tokens=seen.image_tokens or 0,
            output_image_tokens=(images.output_tokens if drawn is None else drawn.image_tokens) or 0,
            tool_calls=billed,
            searches=min(_searches(usage, tools, runs), billed),
            service_tier=tier_of(response.service_tier),
        )
    )


def _billed_runs(usage: _Usage, tools: _ToolUsage, runs: list[str]) -> int:
    """As the provider counts them where it does; images whose tokens it tells are billed by those."""
    counted = usage.server_side_tool_usage_details
    if counted:
        return sum(count or 0 for kind, count in counted.items() if kind != "mcp_calls")
    billed = len(runs)
    if tools.web_search is not None and tools.web_search.num_requests is not None:
        billed += tools.web_search.num_requests - runs.count("web_search_call")
    if tools.image_gen is not None and tools.image_gen.output_tokens:
        billed -= runs.count("image_generation_call")
    return billed


def _searches(usage: _Usage, tools: _ToolUsage, runs: list[str]) -> int:
    """Those of the billed runs that looked something up on the web."""
    counted = usage.server_side_tool_usage_details
    if counted:
        return sum(counted.get(kind) or 0 for kind in ("web_search_calls", "x_search_calls"))
    if tools.web_search is not None and tools.web_search.num_requests is not None:
        return tools.web_search.num_requests
    return runs.count("web_search_call")


def _parts_of(items: Iterable[dict[str, Any]]) -> tuple[list[Part], list[TokenLogprob]]:
    parts: list[Part] = []
    logprobs: list[TokenLogprob] = []
    for item in items:
        match item.get("type"):
            case "message":
                for part in objects_in(item.get("content")):
                    if part.get("type") == "refusal":
                        parts.append(Refusal(text=text_of(part.get("refusal"))))
                    elif part.get("type") in ("output_text", "text"):
                        citations = tuple(map(_citation, objects_in(part.get("annotations"))))
                        parts.append(Text(text=text_of(part.get("text")), citations=citations))
                        logprobs += _logprobs(part.get("logprobs"))
                    else:
                        parts.append(Opaque(kind=text_of(part.get("type")), value=part))
            case "function_call" | "custom_tool_call":
                parts.append(_call_of(item, len(parts)))
            case "reasoning":
                thinking = _thinking_of(item)
                if thinking is not None:
                    parts.append(thinking)
            case kind:
                parts.append(Opaque(kind=text_of(kind), value=item))
    return parts, logprobs


def _call_of(item: dict[str, Any], index: int) -> ToolCall:
    is_custom = item.get("type") == "custom_tool_call"
    arguments = text_of(item.get("input")) if is_custom else text_of(item.get("arguments")) or "{}"
    return ToolCall(
        call_id=text_of(item.get("call_id")) or text_of(item.get("id")) or f"call_{index}",
        name=text_of(item.get("name")),
        arguments=arguments,
        is_custom=is_custom,
    )


def _thinking_of(item: dict[str, Any]) -> Thinking | None:
    """None for an item that says nothing: hidden reasoning, which only its provider knows."""
    texts = [text_of(part.get("text")) for name in ("summary", "content") for part in objects_in(item.get(name))]
    text, encrypted = _PARAGRAPH.join(filter(None, texts)), text_of(item.get("encrypted_content"))
    if not text and not encrypted:
        return None
    origin = "openai" if encrypted else ""
    return Thinking(text=text, signature=encrypted, origin=origin, thinking_id=text_of(item.get("id")))


def _citation(note: dict[str, Any]) -> Citation:
    start, end = note.get("start_index"), note.get("end_index")
    return Citation(
        url=text_of(note.get("url")),
        title=text_of(note.get("title")) or text_of(note.get("filename")),
        start=start if type(start) is int else -1,
        end=end if type(end) is int else -1,
        file_id=text_of(note.get("file_id")),
        source=note,
    )


def _logprobs(value: Any) -> list[TokenLogprob]:
    return [read_logprob(each) for each in objects_in(value)]


# Stream of events


class _Event(msgspec.Struct):
    """One event; each kind has a few of the fields."""

    type: Any = None
    delta: Any = None
    item: Any = None
    item_id: Any = None
    output_index: Any = None
    content_index: Any = None
    summary_index: Any = None
    annotation: Any = None
    logprobs: Any = None
    response: _Response | None = None
    # Of an error, which some write around and some within.
    error: Any = None
    message: Any = None
    code: Any = None
    param: Any = None


_events = Shape(_Event)


class ResponsesReader(StreamReader):
    """Places are told by `output_index`, or by `item_id` where a server leaves that out."""

    def __init__(self) -> None:
        self._calls: dict[Any, int] = {}
        self._calls_begun = 0
        # Places of which something came.
        self._heard: set[Any] = set()
        self._text_at: Any = None
        self._thought_at: Any = None
        self._runs: list[str] = []
        # Places of runs that have begun and not ended.
        self._running: set[Any] = set()
        self.tool_runs: int = 0
        self._has_failed = False

    def read(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if not data or data == b"[DONE]":
            return ()
        event = _events.find(data)
        if event is None:
            return (OpaqueDone(kind="malformed", size=len(data)),)
        kind = text_of(event.type) or frame.event.decode("latin-1")
        handle = _HANDLERS.get(kind)
        if handle is not None:
            return handle(self, event)
        if event.error is not None:
            return self._error(event)
        if kind.endswith(".delta"):
            # Output of a tool's or a kind that we do not know: it counts as long as it is.
            return (OpaqueDone(kind=kind, size=len(text_of(event.delta))),)
        return ()  # How far something is, or what came in pieces once more as a whole.

    def _text(self, event: _Event) -> Sequence[Event]:
        place = _place(event)
        self._heard.add(place)
        at = (place, _key(event.content_index))
        begins_part = self._text_at not in (None, at)
        self._text_at = at
        logprobs = _logprobs(event.logprobs) if event.logprobs else None
        return (TextDelta(text=text_of(event.delta), begins_part=begins_part, logprobs=logprobs),)

    def _thought(self, event: _Event) -> Sequence[Event]:
        place = _place(event)
        self._heard.add(place)
        at = (place, event.type, _key(event.summary_index), _key(event.content_index))
        text = text_of(event.delta)
        if self._thought_at is not None and self._thought_at != at and self._thought_at[0] == place:
            text = _PARAGRAPH + text
        self._thought_at = at
        return (ThinkingDelta(text=text, thinking_id=text_of(event.item_id)),)

    def _added(self, event: _Event) -> Sequence[Event]:
        item = event.item
        if type(item) is dict and item.get("type") in ("function_call", "custom_tool_call"):
            return (self._began_call(event, item),)
        if type(item) is dict and item.get("type") in _BILLED_ITEMS:
            self._running.add(_place_of_item(event, item))
            self.tool_runs = len(self._runs) + len(self._running)
        return ()

    def _began_call(self, event: _Event, item: dict[str, Any]) -> ToolCallBegan:
        call, index = _call_of(item, self._calls_begun), self._calls_begun
        self._calls_begun += 1
        self._calls[_place_of_item(event, item)] = index
        return ToolCallBegan(index=index, call_id=call.call_id, name=call.name, is_custom=call.is_custom)

    def _refusal(self, event: _Event) -> Sequence[Event]:
        self._heard.add(_place(event))
        return (RefusalDelta(text=text_of(event.delta)),)

    def _cited(self, event: _Event) -> Sequence[Event]:
        return (Cited(citation=_citation(event.annotation)),) if type(event.annotation) is dict else ()

    def _arguments(self, event: _Event) -> Sequence[Event]:
        place = _place(event)
        index = self._calls.get(place)
        if index is None:
            return ()
        self._heard.add(place)
        return (ToolCallDelta(index=index, arguments=text_of(event.delta)),)

    def _done(self, event: _Event) -> Sequence[Event]:
        item = event.item
        if type(item) is not dict:
            return ()
        self._runs += _runs_of((item,))
        self._running.discard(_place_of_item(event, item))
        self.tool_runs = len(self._runs) + len(self._running)
        return self._rest_of(item, event)

    def _rest_of(self, item: dict[str, Any], event: _Event) -> list[Event]:
        """What the item says that came in no delta."""
        place = _place_of_item(event, item)
        is_heard = place in self._heard
        self._heard.add(place)
        kind = item.get("type")
        events: list[Event] = []
        if kind in ("function_call", "custom_tool_call"):
            if place not in self._calls:
                events.append(self._began_call(event, item))
            if not is_heard:
                arguments = _call_of(item, 0).arguments
                events.append(ToolCallDelta(index=self._calls[place], arguments=arguments))
        elif kind == "reasoning":
            thinking = _thinking_of(item)
            if thinking is not None and thinking.text and not is_heard:
                events.append(ThinkingDelta(text=thinking.text, thinking_id=thinking.thinking_id))
            if thinking is not None and thinking.signature:
                events.append(
                    ThinkingDelta(signature=thinking.signature, origin="openai", thinking_id=thinking.thinking_id)
                )
        elif kind == "message":
            if not is_heard:
                events += self._whole_message(item)
        else:
            events.append(OpaqueDone(kind=text_of(kind), size=len(_encode(item)), value=item))
        return events

    def _whole_message(self, item: dict[str, Any]) -> Iterator[Event]:
        for part in _parts_of([item])[0]:
            if isinstance(part, Refusal):
                yield RefusalDelta(text=part.text)
            elif isinstance(part, Text):
                begins_part = self._text_at is not None
                self._text_at = object()
                yield TextDelta(text=part.text, begins_part=begins_part)
                for citation in part.citations:
                    yield Cited(citation=citation)

    def _created(self, event: _Event) -> Sequence[Event]:
        response = event.response or _Response()
        began = Began(
            answer_id=text_of(response.id),
            model=text_of(response.model),
            created_at_s=_moment(response.created_at),
            service_tier=text_of(response.service_tier),
        )
        return (began,)

    def _ended(self, event: _Event) -> Sequence[Event]:
        response = event.response or _Response()
        events: list[Event] = []
        items = response.items()
        if not self._heard and not self._has_failed:
            for index, item in enumerate(items):
                events += self._rest_of(item, _Event(output_index=index))
        usage = _usage_of(response, _runs_of(items) or self._runs)
        if usage is not None:
            events.append(UsageSeen(usage=usage))
        if response.has_error():
            return (*events, *self._failed(error_of({"error": response.error})))
        finish, detail = response.finish(has_calls=self._calls_begun > 0)
        return (*events, Finished(finish=finish, finish_detail=detail), Done())

    def _error(self, event: _Event) -> Sequence[Event]:
        return self._failed(error_of({name: getattr(event, name) for name in _ERROR_FIELDS}))

    def _failed(self, error: ProviderError) -> Sequence[Event]:
        """Once: an `error` is followed by `response.failed`."""
        if self._has_failed:
            return ()
        self._has_failed = True
        return (Failed(error=error),)


_ERROR_FIELDS = ("error", "message", "code", "param")
_HANDLERS: Mapping[str, Callable[[ResponsesReader, _Event], Sequence[Event]]] = {
    "response.created": ResponsesReader._created,
    "response.output_item.added": ResponsesReader._added,
    "response.output_text.delta": ResponsesReader._text,
    "response.output_text.annotation.added": ResponsesReader._cited,
    "response.refusal.delta": ResponsesReader._refusal,
    "response.reasoning_summary_text.delta": ResponsesReader._thought,
    "response.reasoning_text.delta": ResponsesReader._thought,
    "response.function_call_arguments.delta": ResponsesReader._arguments,
    "response.custom_tool_call_input.delta": ResponsesReader._arguments,
    "response.output_item.done": ResponsesReader._done,
    "response.completed": ResponsesReader._ended,
    "response.incomplete": ResponsesReader._ended,
    "response.failed": ResponsesReader._ended,
    "response.cancelled": ResponsesReader._ended,
    "error": ResponsesReader._error,
}


def _key(value: Any) -> Any:
    """An index or id; whatever else stands there names no place."""
    return value if type(value) is int or type(value) is str else None


def _place(event: _Event) -> Any:
    return _key(event.output_index if event.output_index is not None else event.item_id)


def _place_of_item(event: _Event, item: dict[str, Any]) -> Any:
    return _key(event.output_index if event.output_index is not None else item.get("id"))
