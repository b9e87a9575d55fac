"""Answers and streams of OpenAI's responses, as clients read them. Pure; no I/O.

A whole answer is put together as its stream is, so that both hold the same items. Their ids are made of the answer's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call, StreamWriter
from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
    REFUSAL,
    STOP,
    Answer,
    Began,
    Citation,
    Cited,
    Event,
    Failed,
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
    TokenLogprob,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    UsageSeen,
    wrap_signature,
)

# Origins in a wrapped signature of what is no thinking with a signature: reasoning that only its provider can read, and the
# signatures that Gemini puts on a text (the one before) and on a call (the one after).
REDACTED = ".redacted"
OF_TEXT = "gemini.text"
OF_CALL = "gemini.call"

_SERVICE_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})

_encode = msgspec.json.Encoder().encode


def _response_of(call: Call, answer_id: str, created_at_s: int) -> dict[str, Any]:
    """The response before anything is in it. What the client asked for is told back as it was written."""

    def told(name: str, otherwise: Any = None) -> Any:
        value = call.fields.get(name)
        return otherwise if value is None or bytes(value) == b"null" else value

    base = answer_id.removeprefix("resp_") or "0"
    return {
        "id": f"resp_{base}",
        "object": "response",
        "created_at": created_at_s,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": told("instructions"),
        "max_output_tokens": told("max_output_tokens"),
        "max_tool_calls": told("max_tool_calls"),
        "model": call.alias,
        "output": [],
        "parallel_tool_calls": told("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": told("prompt_cache_key"),
        "reasoning": told("reasoning", _NO_REASONING),
        "safety_identifier": told("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": told("temperature"),
        "text": told("text", _PLAIN_TEXT),
        "tool_choice": told("tool_choice", "auto"),
        "tools": told("tools", ()),
        "top_logprobs": told("top_logprobs", 0),
        "top_p": told("top_p"),
        "truncation": told("truncation", "disabled"),
        "usage": None,
        "user": told("user"),
        "metadata": told("metadata", {}),
    }


_NO_REASONING = {"effort": None, "summary": None}
_PLAIN_TEXT = {"format": {"type": "text"}}


def _ending(finish: str, has_refusal: bool) -> dict[str, Any]:
    """A refusal in words is a complete answer; one without was cut off."""
    if finish == LENGTH:
        return {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    if finish == CONTENT_FILTER or (finish == REFUSAL and not has_refusal):
        return {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
    return {"status": "completed"}


def _item_id(prefix: str, response: dict[str, Any], index: int) -> str:
    return f"{prefix}_{response['id'][5:]}_{index}"


def _message_item(response: dict[str, Any], index: int) -> dict[str, Any]:
    return {
        "id": _item_id("msg", response, index),
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }


def _call_item(response: dict[str, Any], index: int, call_id: str, name: str, *, is_custom: bool) -> dict[str, Any]:
    if is_custom:
        item_id = _item_id("ctc", response, index)
        return {"id": item_id, "type": "custom_tool_call", "call_id": call_id, "name": name, "input": ""}
    return {
        "id": _item_id("fc", response, index),
        "type": "function_call",
        "status": "in_progress",
        "arguments": "",
        "call_id": call_id,
        "name": name,
    }


def _reasoning_item(response: dict[str, Any], index: int, encrypted: str = "", thinking_id: str = "") -> dict[str, Any]:
    item_id = thinking_id or _item_id("rs", response, index)
    item: dict[str, Any] = {"id": item_id, "type": "reasoning", "summary": []}
    if encrypted:
        item["encrypted_content"] = encrypted
    return item


def _encrypted(thinking: ThinkingDelta) -> str:
    if thinking.origin == "openai":
        return thinking.signature or thinking.redacted
    if thinking.redacted:
        return wrap_signature(thinking.origin + REDACTED, thinking.redacted)
    return wrap_signature(thinking.origin, thinking.signature) if thinking.signature else ""


def _image_item(media: Media, response: dict[str, Any], index: int) -> dict[str, Any]:
    return {
        "id": _item_id("ig", response, index),
        "type": "image_generation_call",
        "status": "completed",
        "output_format": media.media_type.rpartition("/")[2] or "png",
        "result": media.data,
    }


def _text_part() -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}


def _annotation(citation: Citation) -> dict[str, Any] | None:
    """None for a passage of a document that the client sent itself: there is no annotation for that."""
    start = max(citation.start, 0)
    if citation.url:
        return {
            "type": "url_citation",
            "start_index": start,
            "end_index": max(citation.end, start),
            "title": citation.title,
            "url": citation.url,
        }
    if citation.file_id:
        return {"type": "file_citation", "file_id": citation.file_id, "filename": citation.title, "index": start}
    return None


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {**_one_logprob(token), "top_logprobs": list(map(_one_logprob, token.top))}


def _one_logprob(token: TokenLogprob) -> dict[str, Any]:
    written = token.bytes if token.bytes is not None else list(token.token.encode())
    return {"token": token.token, "bytes": written, "logprob": token.logprob}


def _usage_object(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_input_tokens,
            "cache_write_tokens": usage.cache_write_input_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def frame(event: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(event))


def write_answer(answer: Answer, call: Call) -> bytes:
    """Of one choice: this API has no others."""
    building = Building(call)
    for event in _events_of(answer):
        building.take(event)
    return _encode(building.complete())


def _events_of(answer: Answer) -> Iterator[Event]:
    yield Began(answer_id=answer.answer_id, created_at_s=answer.created_at_s, service_tier=answer.service_tier)
    if answer.choices:
        choice = answer.choices[0]
        logprobs = choice.logprobs
        for index, part in enumerate(choice.parts):
            yield from _events_of_part(part, index, logprobs)
            if isinstance(part, Text):
                logprobs = None
        yield Finished(finish=choice.finish)
    if answer.usage is not None:
        yield UsageSeen(usage=answer.usage)


def _events_of_part(part: Part, index: int, logprobs: list[TokenLogprob] | None) -> Iterator[Event]:
    match part:
        case Text():
            yield TextDelta(text=part.text, begins_part=True, logprobs=logprobs)
            for citation in part.citations:
                yield Cited(citation=citation)
            yield TextDelta(text="", signature=part.signature)
        case Refusal():
            yield RefusalDelta(text=part.text)
        case Thinking():
            yield ThinkingDelta(
                text=part.text,
                signature=part.signature,
                redacted=part.redacted,
                origin=part.origin,
                thinking_id=part.thinking_id,
            )
        case ToolCall():
            yield ToolCallBegan(
                index=index,
                call_id=part.call_id,
                name=part.name,
                is_custom=part.is_custom,
                signature=part.signature,
            )
            yield ToolCallDelta(index=index, arguments=part.arguments)
        case Media():
            yield MediaDone(media=part)
        case _:
            pass  # A tool result is no answer's part, and what is opaque has no counterpart.


class _Open:
    """An item of which more may come. `part` is the open part of a message or reasoning, `pieces` what it says so far."""

    __slots__ = ("index", "item", "part", "part_index", "pieces")

    def __init__(self, item: dict[str, Any], index: int) -> None:
        self.item = item
        self.index = index
        self.part: dict[str, Any] | None = None
        self.part_index = -1
        self.pieces: list[str] = []


class Building:
    """A response in the making. One message or reasoning is open at a time; calls stay open to the end, because their
    pieces may come mixed."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._response: dict[str, Any] = {}
        self._items: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._calls: dict[int, _Open] = {}
        # Of the text of the open message: told when that is closed, since citations of the text may come yet.
        self._signature = ""
        self._finish = STOP
        self._has_refusal = False
        self._has_failed = False

    def take(self, event: Event) -> None:
        if not self._response:
            self._begin(event if isinstance(event, Began) else Began())
        handle = _HANDLERS.get(type(event))
        if handle is not None and getattr(event, "choice", 0) == 0:
            handle(self, event)

    def complete(self) -> dict[str, Any]:
        if not self._response:
            self._begin(Began())
        self._close_all()
        self._response.update(_ending(self._finish, self._has_refusal), output=self._items)
        return self._response

    def _emit(self, kind: str, **fields: Any) -> None:
        """What happened, where somebody listens."""

    def _begin(self, began: Began) -> None:
        self._response = _response_of(self._call, began.answer_id, began.created_at_s)
        if began.service_tier in _SERVICE_TIERS:  # Another provider's word would be none of this dialect's.
            self._response["service_tier"] = began.service_tier
        self._emit("response.created", response=self._response)
        self._emit("response.in_progress", response=self._response)

    def _finished(self, finished: Finished) -> None:
        self._finish = finished.finish
        self._response.update(_ending(finished.finish, self._has_refusal))
        self._close_all()

    def _used(self, seen: UsageSeen) -> None:
        self._response["usage"] = _usage_object(seen.usage)

    def _fail(self, failed: Failed) -> None:
        self._has_failed = True
        error = failed.error
        code = error.code or error.kind or "server_error"
        self._emit("error", code=code, message=error.message, param=error.param or None)
        self._response.update(status="failed", error={"code": code, "message": error.message}, output=self._items)
        self._emit("response.failed", response=self._response)

    # Items

    def _add(self, item: dict[str, Any]) -> _Open:
        added = _Open(item, len(self._items))
        self._items.append(item)
        self._emit("response.output_item.added", output_index=added.index, item=item)
        return added

    def _add_whole(self, item: dict[str, Any]) -> None:
        """An item that is done at once."""
        self._done(self._add(item))

    def _done(self, opened: _Open) -> None:
        item = opened.item
        if "status" in item:
            is_cut = self._response["status"] == "incomplete" and opened.index == len(self._items) - 1
            item["status"] = "incomplete" if is_cut else "completed"
        self._emit("response.output_item.done", output_index=opened.index, item=item)

    def _close(self) -> None:
        """What is open and no call."""
        opened, self._open = self._open, None
        if opened is not None:
            self._close_part(opened)
            self._done(opened)
        if self._signature:
            signature, self._signature = wrap_signature(OF_TEXT, self._signature), ""
            self._add_whole(_reasoning_item(self._response, len(self._items), signature))

    def _close_all(self) -> None:
        self._close()
        for opened in self._calls.values():
            item, written = opened.item, "".join(opened.pieces)
            place = {"item_id": item["id"], "output_index": opened.index}
            if item["type"] == "custom_tool_call":
                item["input"] = written
                self._emit("response.custom_tool_call_input.done", **place, input=written)
            else:
                item["arguments"] = written or "{}"
                self._emit(
                    "response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"]
                )
            self._done(opened)
        self._calls.clear()

    # Messages

    def _part_of_message(self, kind: str) -> _Open:
        opened = self._open
        if opened is None or opened.item["type"] != "message":
            self._close()
            opened = self._open = self._add(_message_item(self._response, len(self._items)))
        if opened.part is None or opened.part["type"] != kind:
            self._close_part(opened)
            opened.part = _text_part() if kind == "output_text" else {"type": "refusal", "refusal": ""}
            opened.part_index += 1
            self._emit("response.content_part.added", **_place(opened), part=opened.part)
        return opened

    def _text(self, delta: TextDelta) -> None:
        if delta.begins_part and self._open is not None:
            self._close_part(self._open)
        if delta.text:
            if self._signature:
                self._close()
            opened = self._part_of_message("output_text")
            opened.pieces.append(delta.text)
            logprobs = list(map(_logprob, delta.logprobs)) if delta.logprobs else []
            if logprobs and opened.part is not None:
                opened.part["logprobs"] += logprobs
            self._emit("response.output_text.delta", **_place(opened), delta=delta.text, logprobs=logprobs)
        if delta.signature:
            self._signature = delta.signature
            if self._open is not None and self._open.item["type"] != "message":
                self._close()

    def _refusal(self, delta: RefusalDelta) -> None:
        self._has_refusal = True
        opened = self._part_of_message("refusal")
        opened.pieces.append(delta.text)
        self._emit("response.refusal.delta", **_place(opened), delta=delta.text)

    def _cited(self, cited: Cited) -> None:
        """Some providers tell them before the text."""
        note = _annotation(cited.citation)
        if note is None:
            return
        opened = self._part_of_message("output_text")
        assert opened.part is not None
        notes = opened.part["annotations"]
        self._emit(
            "response.output_text.annotation.added", **_place(opened), annotation_index=len(notes), annotation=note
        )
        notes.append(note)

    def _close_part(self, opened: _Open) -> None:
        part, opened.part = opened.part, None
        if part is None:
            return
        text, place = "".join(opened.pieces), _place(opened)
        opened.pieces.clear()
        if part["type"] == "summary_text":
            part["text"] = text
            opened.item["summary"] = [part]
            self._emit("response.reasoning_summary_text.done", **place, text=text)
            self._emit("response.reasoning_summary_part.done", **place, part=part)
            return
        if part["type"] == "refusal":
            part["refusal"] = text
            self._emit("response.refusal.done", **place, refusal=text)
        else:
            part["text"] = text
            self._emit("response.output_text.done", **place, text=text, logprobs=part["logprobs"])
        opened.item["content"].append(part)
        self._emit("response.content_part.done", **place, part=part)

    # Reasoning, calls, images

    def _thinking(self, delta: ThinkingDelta) -> None:
        encrypted = _encrypted(delta)
        if not delta.text and not encrypted:
            return
        opened = self._open
        if opened is None or opened.item["type"] != "reasoning":
            self._close()
            item = _reasoning_item(self._response, len(self._items), thinking_id=delta.thinking_id)
            opened = self._open = self._add(item)
        if delta.text:
            if opened.part is None:
                opened.part, opened.part_index = {"type": "summary_text", "text": ""}, 0
                self._emit("response.reasoning_summary_part.added", **_place(opened), part=opened.part)
            opened.pieces.append(delta.text)
            self._emit("response.reasoning_summary_text.delta", **_place(opened), delta=delta.text)
        if encrypted:
            opened.item["encrypted_content"] = encrypted
            self._close()

    def _call_began(self, began: ToolCallBegan) -> None:
        self._close()
        if began.signature:
            self._add_whole(_reasoning_item(self._response, len(self._items), wrap_signature(OF_CALL, began.signature)))
        item = _call_item(self._response, len(self._items), began.call_id, began.name, is_custom=began.is_custom)
        self._calls[began.index] = self._add(item)

    def _arguments(self, delta: ToolCallDelta) -> None:
        opened = self._calls.get(delta.index)
        if opened is None or not delta.arguments:
            return
        opened.pieces.append(delta.arguments)
        is_custom = opened.item["type"] == "custom_tool_call"
        self._emit(
            "response.custom_tool_call_input.delta" if is_custom else "response.function_call_arguments.delta",
            item_id=opened.item["id"],
            output_index=opened.index,
            delta=delta.arguments,
        )

    def _media(self, done: MediaDone) -> None:
        """An image is shown as one that the provider's tool made; other media have no place."""
        if done.media.kind == "image" and done.media.data:
            self._close()
            self._add_whole(_image_item(done.media, self._response, len(self._items)))


_HANDLERS: Mapping[type, Callable[[Building, Any], None]] = {
    TextDelta: Building._text,
    ThinkingDelta: Building._thinking,
    RefusalDelta: Building._refusal,
    ToolCallBegan: Building._call_began,
    ToolCallDelta: Building._arguments,
    MediaDone: Building._media,
    Cited: Building._cited,
    Finished: Building._finished,
    UsageSeen: Building._used,
    Failed: Building._fail,
}


def _place(opened: _Open) -> dict[str, Any]:
    index = "summary_index" if opened.item["type"] == "reasoning" else "content_index"
    return {"item_id": opened.item["id"], "output_index": opened.index, index: opened.part_index}


class ResponsesWriter(Building, StreamWriter):
    """Tells each step as the event that the API has for it."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._frames: list[bytes] = []
        self._sequence = 0

    def write(self, events: Iterable[Event]) -> bytes:
        for event in events:
            if not self._has_failed:
                self.take(event)
        return self._told()

    def finish(self) -> bytes:
        if self._has_failed:
            return b""
        response = self.complete()
        self._emit(f"response.{response['status']}", response=response)
        return self._told()

    def _emit(self, kind: str, **fields: Any) -> None:
        self._frames.append(frame({"type": kind, "sequence_number": self._sequence, **fields}))
        self._sequence += 1

    def _told(self) -> bytes:
        told = b"".join(self._frames)
        self._frames.clear()
        return told
