"""OpenAI's chat completions, as clients speak them: answers and streams. Pure; no I/O.

Beyond what OpenAI documents an answer holds, where there is any, `reasoning_content` and `reasoning_details` (signatures are
wrapped, and come back with the next turn), Google's `extra_content` with a thought signature, and OpenRouter's `images`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call, StreamWriter
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
    Event,
    Finished,
    Media,
    MediaDone,
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
from proxy.reasoning_details import shown_detail, shown_details

_encode = msgspec.json.Encoder().encode

# All others stop.
_FINISHES = {LENGTH: "length", TOOL_CALLS: "tool_calls", CONTENT_FILTER: "content_filter"}

# The tiers that OpenAI has, and what others call its ordinary one.
_TIERS = {tier: tier for tier in ("auto", "default", "flex", "scale", "priority", "fast")}
_TIERS |= {"standard": "default", "on_demand": "default"}


def write_answer(answer: Answer, call: Call) -> bytes:
    body: dict[str, Any] = {
        "id": answer.answer_id,
        "object": "chat.completion",
        "created": answer.created_at_s,
        "model": call.alias,
        "choices": [_choice(choice, index, answer, call) for index, choice in enumerate(answer.choices)],
    }
    if answer.usage is not None:
        body["usage"] = _usage(answer.usage)
    if answer.service_tier in _TIERS:
        body["service_tier"] = _TIERS[answer.service_tier]
    if answer.system_fingerprint:
        body["system_fingerprint"] = answer.system_fingerprint
    return _encode(body)


def _choice(choice: Choice, index: int, answer: Answer, call: Call) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    calls: list[dict[str, Any]] = []
    for part in choice.parts:
        match part:
            case ToolCall():
                calls.append(_tool_call(part))
            case Refusal(text=text):
                message["refusal"] = text
            case Media():
                _add_media(message, part, answer.answer_id)
            case _:
                pass  # Text and thinking come as a whole; the rest is without counterpart here.
    _add_text(message, [part for part in choice.parts if type(part) is Text])
    _add_thinking(message, [part for part in choice.parts if type(part) is Thinking])
    if calls and _is_legacy(call):
        message["function_call"] = calls[0].get("function")
    elif calls:
        message["tool_calls"] = calls
    elif message["content"] is None and message["refusal"] is None:
        message["content"] = ""
    return {
        "index": index,
        "message": message,
        "logprobs": None if choice.logprobs is None else _logprobs(choice.logprobs),
        "finish_reason": _finish(choice.finish, call, has_refusal=message["refusal"] is not None),
    }


def _add_text(message: dict[str, Any], texts: list[Text]) -> None:
    annotations: list[dict[str, Any]] = []
    length = 0
    for text in texts:
        annotations += _annotations(text.citations, length, length + len(text.text))
        length += len(text.text)
        if text.signature:
            message["extra_content"] = _signed(text.signature)
    if texts:
        message["content"] = "".join([text.text for text in texts])
    if annotations:
        message["annotations"] = annotations


def _add_thinking(message: dict[str, Any], thoughts: list[Thinking]) -> None:
    text = "".join([thought.text for thought in thoughts])
    if text:
        message["reasoning_content"] = text
    if any(thought.origin for thought in thoughts):
        message["reasoning_details"] = shown_details(thoughts)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    written = {"id": call.call_id, **_called(call.name, call.arguments, call.is_custom)}
    if call.signature:
        written["extra_content"] = _signed(call.signature)
    return written


def _called(name: str, arguments: str, is_custom: bool) -> dict[str, Any]:
    if is_custom:
        return {"type": "custom", "custom": {"name": name, "input": arguments}}
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _signed(signature: str) -> dict[str, Any]:
    return {"google": {"thought_signature": signature}}


def _is_legacy(call: Call) -> bool:
    return "functions" in call.fields and "tools" not in call.fields


def _finish(finish: str, call: Call, *, has_refusal: bool) -> str:
    if finish == REFUSAL:
        return "stop" if has_refusal else "content_filter"  # As OpenAI has it where it says why.
    if finish == TOOL_CALLS and _is_legacy(call):
        return "function_call"
    return _FINISHES.get(finish, "stop")


def _annotations(citations: Iterable[Citation], start: int, end: int) -> list[dict[str, Any]]:
    """Of pages on the web: for documents this API has no word. `start` and `end` hold where the provider does not say."""
    annotations = []
    for citation in citations:
        if not citation.url:
            continue
        is_placed = citation.start >= 0
        cited: dict[str, Any] = {
            "url": citation.url,
            "title": citation.title,
            "start_index": citation.start if is_placed else start,
            "end_index": citation.end if is_placed else end,
        }
        if citation.cited_text:
            cited["content"] = citation.cited_text
        annotations.append({"type": "url_citation", "url_citation": cited})
    return annotations


def _add_media(message: dict[str, Any], media: Media, answer_id: str) -> None:
    if media.kind == "image":
        images = message.setdefault("images", [])
        images.append({"type": "image_url", "image_url": {"url": _url(media)}, "index": len(images)})
    elif media.kind == "audio":
        message["audio"] = _audio(media, answer_id)


def _audio(media: Media, answer_id: str) -> dict[str, Any]:
    return {"id": f"audio_{answer_id}", "data": media.data, "transcript": media.transcript, "expires_at": 0}


def _url(media: Media) -> str:
    return media.url or f"data:{media.media_type or 'image/png'};base64,{media.data}"


def _logprobs(logprobs: list[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [{**_logprob(item), "top_logprobs": [_logprob(top) for top in item.top]} for item in logprobs],
        "refusal": None,
    }


def _logprob(item: TokenLogprob) -> dict[str, Any]:
    return {"token": item.token, "logprob": item.logprob, "bytes": item.bytes}


def _usage(usage: Usage) -> dict[str, Any]:
    prompt_details = {"cached_tokens": usage.cache_read_input_tokens, "audio_tokens": usage.input_audio_tokens}
    if usage.cache_write_input_tokens:
        prompt_details["cache_write_tokens"] = usage.cache_write_input_tokens
    if usage.input_image_tokens:
        prompt_details["image_tokens"] = usage.input_image_tokens
    completion_details = {
        "reasoning_tokens": usage.reasoning_tokens,
        "audio_tokens": usage.output_audio_tokens,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }
    if usage.output_image_tokens:
        completion_details["image_tokens"] = usage.output_image_tokens
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": completion_details,
    }


# Streams


class _ChoiceState:
    __slots__ = ("custom", "has_calls", "has_refusal", "is_finished", "length", "part_start", "thought")

    def __init__(self) -> None:
        self.custom: set[int] = set()
        self.has_calls = False
        self.has_refusal = False
        self.is_finished = False
        # Characters of text so far, and where its last part began: what a citation without a place covers.
        self.length = 0
        self.part_start = 0
        self.thought = 0


class ChatWriter(StreamWriter):
    """A chunk for each event. `Failed` is not written here: the gateway tells errors, in `Dialect.render_error_event`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._is_legacy = _is_legacy(call)
        self._usage: Usage | None = None
        self._choices: dict[int, _ChoiceState] = {}
        self._tail = b',"logprobs":null,"finish_reason":null}]' + self._null_usage() + b"}\n\n"
        self._begin(Began())

    def write(self, events: Iterable[Event]) -> bytes:
        chunks: list[bytes] = []
        for event in events:
            choice = getattr(event, "choice", None)
            if choice is not None and choice not in self._choices:
                chunks.append(self._role(choice))
            write = _WRITERS.get(type(event))
            if write is not None:
                chunks.append(write(self, event))
        return b"".join(chunks)

    def finish(self) -> bytes:
        chunks = [
            self.finished(Finished(finish=TOOL_CALLS if state.has_calls else STOP, choice=index))
            for index, state in self._choices.items()
            if not state.is_finished
        ]
        if self._call.wants_usage_chunk and self._usage is not None:
            chunks.append(self._head + b'"choices":[],"usage":' + _encode(_usage(self._usage)) + b"}\n\n")
        return b"".join(chunks) + b"data: [DONE]\n\n"

    def began(self, event: Began) -> bytes:
        self._begin(event)
        return b"" if self._choices else self._role(0)

    def text(self, event: TextDelta) -> bytes:
        state = self._choices[event.choice]
        if event.begins_part:
            state.part_start = state.length
        state.length += len(event.text)
        delta: dict[str, Any] = {"content": event.text}
        if event.signature:
            delta["extra_content"] = _signed(event.signature)
        if event.logprobs is None:
            return self._chunk(event.choice, delta)
        return self._whole(event.choice, delta, _logprobs(event.logprobs), None)

    def thinking(self, event: ThinkingDelta) -> bytes:
        state = self._choices[event.choice]
        delta: dict[str, Any] = {"reasoning_content": event.text} if event.text else {}
        if event.origin:
            delta["reasoning_details"] = [shown_detail(event, state.thought)]
        if event.signature or event.redacted:
            state.thought += 1
        return self._chunk(event.choice, delta) if delta else b""

    def refusal(self, event: RefusalDelta) -> bytes:
        self._choices[event.choice].has_refusal = True
        return self._chunk(event.choice, {"refusal": event.text})

    def call_began(self, event: ToolCallBegan) -> bytes:
        state = self._choices[event.choice]
        state.has_calls = True
        if self._is_legacy:
            function = {"name": event.name, "arguments": ""}
            return self._chunk(event.choice, {"function_call": function}) if event.index == 0 else b""
        if event.is_custom:
            state.custom.add(event.index)
        call = {"index": event.index, "id": event.call_id, **_called(event.name, "", event.is_custom)}
        if event.signature:
            call["extra_content"] = _signed(event.signature)
        return self._chunk(event.choice, {"tool_calls": [call]})

    def call_delta(self, event: ToolCallDelta) -> bytes:
        index, arguments = event.index, event.arguments
        if self._is_legacy:
            return self._chunk(event.choice, {"function_call": {"arguments": arguments}}) if index == 0 else b""
        if index in self._choices[event.choice].custom:
            return self._chunk(event.choice, {"tool_calls": [{"index": index, "custom": {"input": arguments}}]})
        return self._chunk(event.choice, {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})

    def cited(self, event: Cited) -> bytes:
        state = self._choices[event.choice]
        annotations = _annotations((event.citation,), state.part_start, state.length)
        return self._chunk(event.choice, {"annotations": annotations}) if annotations else b""

    def media(self, event: MediaDone) -> bytes:
        delta: dict[str, Any] = {}
        _add_media(delta, event.media, self._answer_id)
        return self._chunk(event.choice, delta) if delta else b""

    def finished(self, event: Finished) -> bytes:
        state = self._choices[event.choice]
        if state.is_finished:
            return b""
        state.is_finished = True
        reason = _finish(event.finish, self._call, has_refusal=state.has_refusal)
        return self._whole(event.choice, {}, None, reason)

    def usage_seen(self, event: UsageSeen) -> bytes:
        self._usage = event.usage
        return b""

    def _begin(self, began: Began) -> None:
        self._answer_id = began.answer_id
        head: dict[str, Any] = {
            "id": began.answer_id,
            "object": "chat.completion.chunk",
            "created": began.created_at_s,
            "model": self._call.alias,
        }
        if began.service_tier in _TIERS:
            head["service_tier"] = _TIERS[began.service_tier]
        if began.system_fingerprint:
            head["system_fingerprint"] = began.system_fingerprint
        self._head = b"data: " + _encode(head)[:-1] + b","

    def _role(self, choice: int) -> bytes:
        """The first chunk of a choice says who speaks."""
        self._choices[choice] = _ChoiceState()
        return self._chunk(choice, {"role": "assistant", "content": "", "refusal": None})

    def _chunk(self, choice: int, delta: dict[str, Any]) -> bytes:
        return b'%b"choices":[{"index":%d,"delta":%b%b' % (self._head, choice, _encode(delta), self._tail)

    def _whole(self, choice: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> bytes:
        item = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return b'%b"choices":[%b]%b}\n\n' % (self._head, _encode(item), self._null_usage())

    def _null_usage(self) -> bytes:
        """As OpenAI has it in all chunks but the last, where usage was asked for."""
        return b',"usage":null' if self._call.wants_usage_chunk else b""


_WRITERS: Mapping[type, Callable[[ChatWriter, Any], bytes]] = {
    Began: ChatWriter.began,
    TextDelta: ChatWriter.text,
    ThinkingDelta: ChatWriter.thinking,
    RefusalDelta: ChatWriter.refusal,
    ToolCallBegan: ChatWriter.call_began,
    ToolCallDelta: ChatWriter.call_delta,
    Cited: ChatWriter.cited,
    MediaDone: ChatWriter.media,
    Finished: ChatWriter.finished,
    UsageSeen: ChatWriter.usage_seen,
}
