"""Anthropic's messages, as clients speak them: answers and streams. Pure; no I/O.

A stream is a message of blocks, one after the other: `message_start`, then for each block `content_block_start`, its deltas
and `content_block_stop`, then `message_delta` with the reason and the usage, and `message_stop`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call, StreamWriter
from proxy.neutral import (
    CONTENT_FILTER,
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
    Event,
    Finished,
    Media,
    MediaDone,
    Part,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    UsageSeen,
    unwrap_signature,
    wrap_signature,
)
from proxy.wire.json_shape import Shape

ORIGIN = "anthropic"
# Who signs texts and calls, for which there is no place here: shown before them as reasoning that nobody can read.
SIGNS_PARTS = "gemini"

_STOP_REASONS = {
    STOP: "end_turn",
    STOP_SEQUENCE: "stop_sequence",
    LENGTH: "max_tokens",
    TOOL_CALLS: "tool_use",
    CONTENT_FILTER: "refusal",
    REFUSAL: "refusal",
    PAUSE: "pause_turn",
}
_SERVICE_TIERS = {"default": "standard", "standard": "standard", "priority": "priority", "batch": "batch"}
_CITATION_TYPES = frozenset(
    {
        "char_location",
        "page_location",
        "content_block_location",
        "web_search_result_location",
        "search_result_location",
    }
)
# The key that Anthropic's documentation gives to arguments that are no JSON.
INVALID_JSON = "INVALID_JSON"

_encode = msgspec.json.Encoder().encode
_objects = Shape(dict[str, Any])


def wrapped(origin: str, thinking_id: str, signature: str) -> str:
    """A signature as it is shown: Anthropic's own as it is, any other with whose it is, and its item's id."""
    if not signature or (origin == ORIGIN and not thinking_id):
        return signature
    return wrap_signature(f"{origin}.{thinking_id}" if thinking_id else origin, signature)


def unwrapped(shown: str) -> tuple[str, str, str]:
    """(origin, id, signature). Thinking without any is nobody's."""
    found = unwrap_signature(shown)
    if found is None:
        return ORIGIN if shown else "", "", shown
    origin, _, thinking_id = found[0].partition(".")
    return origin, thinking_id, found[1]


def write_answer(answer: Answer, call: Call) -> bytes:
    """Of the first choice: a client of this API cannot ask for others."""
    choice = answer.choices[0] if answer.choices else Choice(parts=[])
    content: list[dict[str, Any]] = []
    for part in choice.parts:
        _add_blocks(part, content)
    return _encode(
        {
            **_head(answer.answer_id, call),
            "content": content,
            "stop_reason": _STOP_REASONS.get(choice.finish, "end_turn"),
            "stop_sequence": choice.stop_sequence if choice.finish == STOP_SEQUENCE else None,
            "usage": _usage(answer.usage or Usage(), answer.service_tier),
        }
    )


def _head(answer_id: str, call: Call) -> dict[str, Any]:
    return {"id": answer_id, "type": "message", "role": "assistant", "model": call.alias}


def _add_blocks(part: Part, content: list[dict[str, Any]]) -> None:
    match part:
        case Text(text=text, signature=signature):
            if signature:
                content.append(_signature_block(signature))
            block: dict[str, Any] = {"type": "text", "text": text}
            if part.citations:
                block["citations"] = list(map(_citation, part.citations))
            content.append(block)
        case ToolCall(signature=signature):
            if signature:
                content.append(_signature_block(signature))
            call = {"type": "tool_use", "id": part.call_id, "name": part.name, "input": _input(part.arguments)}
            content.append(call)
        case Thinking(redacted=redacted):
            signature = wrapped(part.origin, part.thinking_id, part.signature)
            if part.text or signature:
                content.append({"type": "thinking", "thinking": part.text, "signature": signature})
            if redacted:
                content.append(_redacted_block(part.origin, part.thinking_id, redacted))
        case Refusal(text=text):
            content.append({"type": "text", "text": text})
        case Media(transcript=transcript) if transcript:
            content.append({"type": "text", "text": transcript})
        case _:
            pass  # What has no counterpart here.


def _redacted_block(origin: str, thinking_id: str, data: str) -> dict[str, Any]:
    return {"type": "redacted_thinking", "data": wrapped(origin, thinking_id, data)}


def _signature_block(signature: str) -> dict[str, Any]:
    return _redacted_block(SIGNS_PARTS, "", signature)


def _input(arguments: str) -> Any:
    """The arguments as the model wrote them, where they are an object."""
    text = arguments.strip().encode() or b"{}"
    return msgspec.Raw(text) if _objects.find(text) is not None else {INVALID_JSON: arguments}


def _citation(citation: Citation) -> dict[str, Any]:
    source = citation.source
    if type(source) is dict and type(source.get("type")) is str and source["type"] in _CITATION_TYPES:
        return source
    cited = {"cited_text": citation.cited_text}
    if citation.url or citation.document < 0:
        place = {"type": "web_search_result_location", "url": citation.url, "title": citation.title}
        return {**place, "encrypted_index": "", **cited}
    # Where in the document it stands, the provider does not say.
    return {
        "type": "char_location",
        **cited,
        "document_index": citation.document,
        "document_title": citation.title or None,
        "start_char_index": 0,
        "end_char_index": len(citation.cited_text),
        "file_id": citation.file_id or None,
    }


def _usage(usage: Usage, service_tier: str = "") -> dict[str, Any]:
    """Here `input_tokens` are those that no cache has part in."""
    read, written, hour = (
        usage.cache_read_input_tokens,
        usage.cache_write_input_tokens,
        usage.cache_write_1h_input_tokens,
    )
    told: dict[str, Any] = {
        "input_tokens": max(usage.input_tokens - read - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": max(written - hour, 0),
            "ephemeral_1h_input_tokens": hour,
        },
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    if usage.searches:
        told["server_tool_use"] = {"web_search_requests": usage.searches, "web_fetch_requests": 0}
    if service_tier in _SERVICE_TIERS:
        told["service_tier"] = _SERVICE_TIERS[service_tier]
    return told


# Streams

_EMPTY_TEXT: Mapping[str, Any] = {"type": "text", "text": ""}
_EMPTY_THINKING: Mapping[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}


class _Call:
    __slots__ = ("began", "pieces")

    def __init__(self, began: ToolCallBegan) -> None:
        self.began = began
        # Of the arguments so far; as long as its block is not open, nothing of them was told.
        self.pieces: list[str] = []

    def is_whole(self) -> bool:
        # An object ends so; looking at all that has come for each piece of it would take ever longer.
        ends = bool(self.pieces) and self.pieces[-1].rstrip().endswith("}")
        return ends and _objects.find("".join(self.pieces).encode()) is not None


class MessagesWriter(StreamWriter):
    """One block at a time: of calls that come at once, one waits until the arguments of that before it are whole. `Failed` is
    not written here: the gateway tells errors, in `Dialect.render_error_event`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._has_begun = False
        self._usage = Usage()
        self._service_tier = ""
        self._finished: Finished | None = None
        self._block = -1  # The index of the block that is open, or was the last.
        self._open: type | _Call | None = None  # What is being told in it.
        self._signature = ""  # Came after the text that it signs, and is told when another block follows.
        self._calls: dict[int, _Call] = {}
        self._waiting: list[_Call] = []

    def write(self, events: Iterable[Event]) -> bytes:
        told: list[bytes] = []
        if not self._has_begun:
            events = tuple(events)
            for seen in events:
                if type(seen) is UsageSeen:  # What is known by then, the start of the message tells.
                    self._usage = seen.usage
        for event in events:
            write = _WRITERS.get(type(event))
            # The only choice that a client of this API can ask for.
            if write is None or getattr(event, "choice", 0) != 0:
                continue
            if not self._has_begun and type(event) is not UsageSeen:
                told.append(self._begin(event if type(event) is Began else Began()))
            told.append(write(self, event))
        return b"".join(told)

    def finish(self) -> bytes:
        told = b"" if self._has_begun else self._begin(Began())
        told += self._close_all()
        finished = self._finished or Finished(finish=TOOL_CALLS if self._calls else STOP)
        delta = {
            "stop_reason": _STOP_REASONS.get(finished.finish, "end_turn"),
            "stop_sequence": finished.stop_sequence if finished.finish == STOP_SEQUENCE else None,
        }
        last = {"type": "message_delta", "delta": delta, "usage": _usage(self._usage)}
        return told + _frame(b"message_delta", last) + _frame(b"message_stop", {"type": "message_stop"})

    def _begin(self, began: Began) -> bytes:
        self._has_begun = True
        usage = _usage(self._usage, began.service_tier)
        ends: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        message = {**_head(began.answer_id, self._call), **ends}
        return _frame(b"message_start", {"type": "message_start", "message": message})

    def began(self, event: Began) -> bytes:
        return b""

    def usage_seen(self, event: UsageSeen) -> bytes:
        self._usage = event.usage
        return b""

    def finished(self, event: Finished) -> bytes:
        # Told with the usage, which may come later.
        self._finished = self._finished or event
        return b""

    def text(self, event: TextDelta) -> bytes:
        told = b""
        # What a signature covers ends with it.
        is_new = event.begins_part or self._open is not Text or self._signature != ""
        if event.signature and not is_new:
            # Too late to stand before its text, and nothing may come after the last: agents take the last block for the
            # answer, which thereby was empty. Gemini can do without it, as opposed to that of a call.
            self._signature = event.signature
            return self._delta(b"text_delta", b"text", event.text) if event.text else b""
        if event.signature:
            told = self._tell_whole(_signature_block(event.signature)) + self._start(Text, _EMPTY_TEXT)
        elif is_new:
            if not event.text:  # A part that begins has nothing to say yet.
                return self._close() if self._open is Text else b""
            told = self._start(Text, _EMPTY_TEXT)
        if event.text:
            told += self._delta(b"text_delta", b"text", event.text)
        return told + self._close() if event.signature else told

    def refusal(self, event: RefusalDelta) -> bytes:
        return self.text(TextDelta(text=event.text))

    def thinking(self, event: ThinkingDelta) -> bytes:
        told = b""
        if (event.text or event.signature) and self._open is not Thinking:
            told = self._start(Thinking, _EMPTY_THINKING)
        if event.text:
            told += self._delta(b"thinking_delta", b"thinking", event.text)
        if event.signature:
            signature = wrapped(event.origin, event.thinking_id, event.signature)
            told += self._delta(b"signature_delta", b"signature", signature) + self._close()
        if event.redacted:
            told += self._tell_whole(_redacted_block(event.origin, event.thinking_id, event.redacted))
        return told

    def cited(self, event: Cited) -> bytes:
        told = b"" if self._open is Text else self._start(Text, _EMPTY_TEXT)
        delta = {"type": "citations_delta", "citation": _citation(event.citation)}
        change = {"type": "content_block_delta", "index": self._block, "delta": delta}
        return told + _frame(b"content_block_delta", change)

    def media(self, event: MediaDone) -> bytes:
        return self.text(TextDelta(text=event.media.transcript, begins_part=True))

    def call_began(self, event: ToolCallBegan) -> bytes:
        call = self._calls[event.index] = _Call(event)
        self._waiting.append(call)
        return self._next_calls()

    def call_delta(self, event: ToolCallDelta) -> bytes:
        call = self._calls.get(event.index)
        if call is None or not event.arguments:
            return b""
        call.pieces.append(event.arguments)
        if call is not self._open:
            return b""
        told = self._delta(b"input_json_delta", b"partial_json", event.arguments)
        return told + self._next_calls() if self._waiting else told

    def _next_calls(self) -> bytes:
        """Tell of the calls that wait, as far as those before them are whole."""
        told = b""
        while self._waiting and not (isinstance(self._open, _Call) and not self._open.is_whole()):
            told += self._start_call(self._waiting.pop(0))
        return told

    def _start_call(self, call: _Call) -> bytes:
        began = call.began
        told = b""
        if began.signature:
            told = self._close() + self._tell_block(_signature_block(began.signature))
        block = {"type": "tool_use", "id": began.call_id, "name": began.name, "input": {}}
        told += self._close() + self._open_block(call, block)
        return told + self._delta(b"input_json_delta", b"partial_json", "".join(call.pieces))

    # Blocks

    def _start(self, kind: type, block: Mapping[str, Any]) -> bytes:
        return self._close_all() + self._open_block(kind, block)

    def _tell_whole(self, block: Mapping[str, Any]) -> bytes:
        return self._close_all() + self._tell_block(block)

    def _tell_block(self, block: Mapping[str, Any]) -> bytes:
        return self._open_block(None, block) + self._close()

    def _open_block(self, kind: "type | _Call | None", block: Mapping[str, Any]) -> bytes:
        told = b""
        if self._signature:
            signature, self._signature = self._signature, ""
            told = self._tell_block(_signature_block(signature)) + self._tell_block(_EMPTY_TEXT)
        self._block += 1
        self._open = kind if kind is not None else object
        start = {"type": "content_block_start", "index": self._block, "content_block": block}
        return told + _frame(b"content_block_start", start)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % self._block

    def _close_all(self) -> bytes:
        """Also of calls whose arguments never became whole."""
        told = b""
        while self._waiting:
            told += self._start_call(self._waiting.pop(0))
        return told + self._close()

    def _delta(self, kind: bytes, name: bytes, text: str) -> bytes:
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"%b","%b":%b}}\n\n' % (self._block, kind, name, _encode(text))
        )


def _frame(event: bytes, data: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event, _encode(data))


_WRITERS: Mapping[type, Callable[[MessagesWriter, Any], bytes]] = {
    Began: MessagesWriter.began,
    TextDelta: MessagesWriter.text,
    ThinkingDelta: MessagesWriter.thinking,
    RefusalDelta: MessagesWriter.refusal,
    ToolCallBegan: MessagesWriter.call_began,
    ToolCallDelta: MessagesWriter.call_delta,
    Cited: MessagesWriter.cited,
    MediaDone: MessagesWriter.media,
    Finished: MessagesWriter.finished,
    UsageSeen: MessagesWriter.usage_seen,
}
