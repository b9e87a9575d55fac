"""Answers and streams of chat completions, read as every provider shaped like OpenAI writes them. Pure; no I/O.

The shapes differ in where reasoning stands (`reasoning_content`, `reasoning`, `reasoning_details`, content arrays), in how
tool calls are told apart, and in what comes beside the text. All are read here: no provider says the same thing differently.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
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
    Media,
    MediaDone,
    Opaque,
    OpaqueDone,
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
)
from proxy.providers.openai_errors import error_of, read_error
from proxy.providers.openai_usage import ChatUsage, read_usage
from proxy.providers.provider import StreamReader, objects_in, text_of
from proxy.reasoning_details import read_detail, read_details
from proxy.wire.frame import Frame
from proxy.wire.json_shape import Shape

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_FINISHES = {
    "stop": STOP,
    "eos": STOP,
    "end_turn": STOP,
    "stop_sequence": STOP_SEQUENCE,
    "length": LENGTH,
    "max_tokens": LENGTH,
    "model_length": LENGTH,
    "insufficient_system_resource": LENGTH,
    "tool_calls": TOOL_CALLS,
    "tool_use": TOOL_CALLS,
    "function_call": TOOL_CALLS,
    "content_filter": CONTENT_FILTER,
}
# Beside the text; an answer may begin with any of them.
_NO_CHOICES: list["_Choice"] = []


class _Delta(msgspec.Struct):
    """A message, whole or a piece of one. Read with suspicion: one field of another type must not cost the others."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    annotations: Any = None
    audio: Any = None
    images: Any = None
    executed_tools: Any = None
    extra_content: Any = None


class _Choice(msgspec.Struct):
    index: Any = 0
    delta: _Delta | None = None
    finish_reason: Any = None
    stop_reason: Any = None
    logprobs: Any = None
    error: Any = None


class _Chunk(msgspec.Struct):
    id: Any = None
    model: Any = None
    created: Any = None
    choices: list[_Choice] | None = None
    usage: Any = None
    service_tier: Any = None
    system_fingerprint: Any = None
    object: Any = None
    error: Any = None
    x_groq: Any = None
    citations: Any = None
    search_results: Any = None


class _AnswerChoice(msgspec.Struct):
    message: _Delta
    finish_reason: Any = None
    stop_reason: Any = None
    logprobs: Any = None


class _Answer(msgspec.Struct):
    choices: list[_AnswerChoice]
    id: Any = None
    model: Any = None
    created: Any = None
    usage: Any = None
    service_tier: Any = None
    system_fingerprint: Any = None
    x_groq: Any = None
    citations: Any = None
    search_results: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_answers = Shape(_Answer)


# Whole answers


def read_answer(body: bytes) -> Answer:
    """Raises `msgspec.DecodeError` when it is not an answer of chat completions."""
    answer = _answers.read(body)
    answer_id = text_of(answer.id)
    sources = _sources(answer.search_results, answer.citations)
    choices: list[Choice] = []
    calls = searches = 0
    for choice in answer.choices:
        parts = _parts(choice.message, answer_id, calls, sources)
        calls += sum(type(part) is ToolCall for part in parts)
        searches += _searches(choice.message)
        finish, detail, sequence = _finish(choice.finish_reason, choice.stop_reason, parts)
        choices.append(
            Choice(
                parts=parts,
                finish=finish,
                finish_detail=detail,
                stop_sequence=sequence,
                logprobs=_logprobs(choice.logprobs),
            )
        )
    return Answer(
        answer_id=answer_id,
        model=text_of(answer.model),
        created_at_s=_seconds(answer.created),
        choices=choices,
        usage=_usage(answer.usage, answer.x_groq, searches, answer.service_tier),
        service_tier=text_of(answer.service_tier),
        system_fingerprint=text_of(answer.system_fingerprint),
    )


def _parts(message: _Delta, answer_id: str, calls: int, sources: tuple[Citation, ...]) -> list[Part]:
    parts: list[Part] = []
    parts += _thoughts(message)
    content = _content(message.content)
    if any(type(part) is Thinking for part in content):
        parts = content if not parts else [*parts, *(part for part in content if type(part) is not Thinking)]
    else:
        parts += content
    citations = (*_citations(message.annotations), *sources)
    if citations:
        last = next((part for part in reversed(parts) if type(part) is Text), None)
        if last is not None:
            last.citations = citations
    if refusal := text_of(message.refusal):
        parts.append(Refusal(text=refusal))
    parts += _media(message)
    if message.executed_tools:
        parts.append(Opaque(kind="executed_tools", value=message.executed_tools))
    found = [_tool_call(value) for value in objects_in(message.tool_calls)]
    if type(message.function_call) is dict:
        found.append(_function_call(message.function_call))
    for number, call in enumerate(found, calls):
        call.call_id = call.call_id or f"call_{answer_id}_{number}"
        parts.append(call)
    if signature := _google_signature(message.extra_content):
        _sign(parts, signature)
    return parts


def _thoughts(message: _Delta) -> list[Thinking]:
    if details := message.reasoning_details:
        thoughts = read_details(objects_in(details))
        if thoughts:
            return thoughts
    text = text_of(message.reasoning_content) or text_of(message.reasoning)
    return [Thinking(text=text)] if text else []


def _content(content: Any) -> list[Part]:
    if type(content) is str:
        return [Text(text=content)] if content else []
    if type(content) is dict:
        return [Text(text=_encode(content).decode())]  # Cloudflare decodes what a schema was asked of.
    parts: list[Part] = []
    for item in content if type(content) is list else ():
        if type(item) is str:
            parts.append(Text(text=item))
        elif type(item) is dict:
            kind = item.get("type")
            if kind == "thinking":
                parts.append(
                    Thinking(text=_thinking_text(item.get("thinking")), signature=text_of(item.get("signature")))
                )
            elif kind == "refusal":
                parts.append(Refusal(text=text_of(item.get("refusal"))))
            elif kind == "image_url":
                parts.append(_image(item))
            elif text := text_of(item.get("text")):
                parts.append(Text(text=text))
            elif kind != "text":
                parts.append(Opaque(kind=text_of(kind), value=item))
    return parts


def _thinking_text(thinking: Any) -> str:
    """Mistral: `[{"type": "text", "text"}]`."""
    return (
        "".join(text_of(item.get("text")) for item in objects_in(thinking))
        if type(thinking) is list
        else text_of(thinking)
    )


def _media(message: _Delta) -> list[Media]:
    media = [_image(image) for image in objects_in(message.images)]
    audio = message.audio
    if type(audio) is dict and (audio.get("data") or audio.get("transcript")):
        media.append(_audio(audio))
    return media


def _image(image: dict[str, Any]) -> Media:
    value = image.get("image_url")
    url = text_of(value.get("url")) if type(value) is dict else text_of(value)
    if url.startswith("data:"):
        media_type, _, data = url[5:].partition(";base64,")
        return Media(kind="image", media_type=media_type, data=data)
    return Media(kind="image", url=url)


def _audio(audio: dict[str, Any]) -> Media:
    return Media(kind="audio", data=text_of(audio.get("data")), transcript=text_of(audio.get("transcript")))


def _tool_call(value: dict[str, Any]) -> ToolCall:
    call_id, signature = text_of(value.get("id")), _google_signature(value.get("extra_content"))
    custom = value.get("custom")
    if type(custom) is dict:
        return ToolCall(
            call_id=call_id,
            name=text_of(custom.get("name")),
            arguments=text_of(custom.get("input")),
            is_custom=True,
            signature=signature,
        )
    function = value.get("function")
    call = _function_call(function if isinstance(function, dict) else {})
    call.call_id, call.signature = call_id, signature
    return call


def _function_call(function: dict[str, Any]) -> ToolCall:
    return ToolCall(
        call_id="", name=text_of(function.get("name")), arguments=_arguments(function.get("arguments")) or "{}"
    )


def _arguments(value: Any) -> str:
    if type(value) is str:
        return value
    return "" if value is None else _encode(value).decode()


def _citations(annotations: Any) -> list[Citation]:
    citations = []
    for annotation in objects_in(annotations):
        value = annotation.get("url_citation")
        if type(value) is not dict:
            continue
        start, end = _count(value.get("start_index")), _count(value.get("end_index"))
        is_placed = 0 <= start < end
        citations.append(
            Citation(
                url=text_of(value.get("url")),
                title=text_of(value.get("title")),
                cited_text=text_of(value.get("content")),
                start=start if is_placed else -1,
                end=end if is_placed else -1,
                source=annotation,
            )
        )
    return citations


def _sources(search_results: Any, citations: Any) -> tuple[Citation, ...]:
    """Perplexity: what it found, as objects or as mere addresses."""
    if results := objects_in(search_results):
        return tuple(
            Citation(
                url=text_of(result.get("url")),
                title=text_of(result.get("title")),
                cited_text=text_of(result.get("snippet")),
                source=result,
            )
            for result in results
        )
    return tuple(Citation(url=url) for url in citations if type(url) is str) if type(citations) is list else ()


def _searches(message: _Delta) -> int:
    """Runs of built-in tools that show in an answer whose usage does not count them: what Groq ran; a search, if it cites."""
    executed = len(message.executed_tools) if type(message.executed_tools) is list else 0
    return executed or int(any("url_citation" in annotation for annotation in objects_in(message.annotations)))


def _google_signature(extra_content: Any) -> str:
    """Gemini's endpoint for OpenAI's clients: `{"google": {"thought_signature"}}`."""
    google = extra_content.get("google") if type(extra_content) is dict else None
    return text_of(google.get("thought_signature")) if type(google) is dict else ""


def _sign(parts: list[Part], signature: str) -> None:
    """A signature of the message as a whole belongs to its first call, or else to its last text."""
    for part in parts:
        if type(part) is ToolCall:
            part.signature = part.signature or signature
            return
    for part in reversed(parts):
        if type(part) is Text:
            part.signature = signature
            return
    parts.append(Thinking(signature=signature, origin="gemini"))


def _finish(reason: Any, stop_reason: Any, parts: Sequence[Part]) -> tuple[str, str, str | None]:
    has_calls = any(type(part) is ToolCall for part in parts)
    return _finish_of(reason, stop_reason, has_calls, any(type(part) is Refusal for part in parts))


def _finish_of(reason: Any, stop_reason: Any, has_calls: bool, has_refusal: bool) -> tuple[str, str, str | None]:
    """(finish, the provider's own word where it is another, the stop sequence that vLLM tells)."""
    word = text_of(reason)
    finish = _FINISHES.get(word, STOP)
    if finish == STOP:
        if has_calls:
            finish = TOOL_CALLS  # OpenAI says "stop" after a call that was forced; others always do.
        elif has_refusal:
            finish = REFUSAL
        elif type(stop_reason) is str:
            finish = STOP_SEQUENCE
    detail = word if word != finish else ""
    return finish, detail, stop_reason if finish == STOP_SEQUENCE and type(stop_reason) is str else None


def _logprobs(logprobs: Any) -> list[TokenLogprob] | None:
    if type(logprobs) is not dict:
        return None
    if type(content := logprobs.get("content")) is list:
        return [read_logprob(item) for item in content if type(item) is dict]
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if type(tokens) is list and type(values) is list:  # Together, and OpenAI's older API.
        return [
            TokenLogprob(token=text_of(token), logprob=_number(value))
            for token, value in zip(tokens, values, strict=False)
        ]
    return None


def read_logprob(item: dict[str, Any]) -> TokenLogprob:
    raw = item.get("bytes")
    return TokenLogprob(
        token=text_of(item.get("token")),
        logprob=_number(item.get("logprob")),
        bytes=raw if type(raw) is list and all(type(byte) is int for byte in raw) else None,
        top=tuple(read_logprob(top) for top in objects_in(item.get("top_logprobs"))),
    )


# Streams


class _Call:
    """A tool call of a stream, known by what the provider calls it."""

    __slots__ = ("call_id", "has_arguments", "has_begun", "index", "is_custom", "name", "signature")

    def __init__(self, index: int, call_id: str, is_custom: bool) -> None:
        self.index = index
        self.call_id = call_id
        self.is_custom = is_custom
        self.name = ""
        self.signature = ""
        self.has_begun = False
        self.has_arguments = False


class _ChoiceState:
    __slots__ = ("by_index", "calls", "has_refusal", "is_finished")

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.by_index: dict[Any, _Call] = {}
        self.has_refusal = False
        self.is_finished = False


class ChatReader(StreamReader):
    """Emits what a chunk says at once; only a tool call without a name waits for its name or its first arguments."""

    def __init__(self) -> None:
        self._has_begun = False
        self._service_tier: Any = None
        self._answer_id = ""
        self._call_count = 0
        self._searches = 0
        self._choices: dict[int, _ChoiceState] = {}
        self._last_usage: Any = None

    def read(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if not data:
            # A whole error that is only called a stream.
            return [Failed(error=read_error(0, frame.raw))] if frame.raw.lstrip()[:1] == b"{" else ()
        if data == b"[DONE]":
            return [*self._late_calls(), Done()]
        if frame.event == b"error":
            return [Failed(error=read_error(0, data))]
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return [_unreadable(data)]
        events: list[Event] = []
        if not self._has_begun and (chunk.choices or chunk.id):
            events.append(self._begin(chunk))
        for choice in chunk.choices or _NO_CHOICES:
            self._read_choice(choice, chunk, events)
        if chunk.usage is not None or chunk.x_groq is not None:
            self._read_usage(chunk, events)
        if chunk.error is not None or chunk.object == "error":
            events.append(Failed(error=read_error(0, data)))
        return events

    def _begin(self, chunk: _Chunk) -> Began:
        self._has_begun = True
        self._service_tier = chunk.service_tier
        self._answer_id = text_of(chunk.id)
        return Began(
            answer_id=self._answer_id,
            model=text_of(chunk.model),
            created_at_s=_seconds(chunk.created),
            service_tier=text_of(chunk.service_tier),
            system_fingerprint=text_of(chunk.system_fingerprint),
        )

    def _read_choice(self, choice: _Choice, chunk: _Chunk, events: list[Event]) -> None:
        index = choice.index if type(choice.index) is int else 0
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _ChoiceState()
        delta = choice.delta
        if delta is not None:
            content = delta.content
            if delta.reasoning_content or delta.reasoning or delta.reasoning_details:
                _read_thoughts(delta, index, events)
            if content:
                if type(content) is str:
                    logprobs = _logprobs(choice.logprobs) if choice.logprobs is not None else None
                    events.append(TextDelta(text=content, choice=index, logprobs=logprobs))
                else:
                    _read_content(content, index, events)
            if delta.refusal and type(delta.refusal) is str:
                state.has_refusal = True
                events.append(RefusalDelta(text=delta.refusal, choice=index))
            if delta.tool_calls:
                for value in objects_in(delta.tool_calls):
                    self._read_call(value, state, index, events)
            self._read_rest(delta, state, index, events)
        if choice.error is not None:
            value = choice.error if type(choice.error) is dict else {"message": choice.error}
            events.append(Failed(error=error_of({"error": value})))
        elif choice.finish_reason is not None and not state.is_finished:
            state.is_finished = True
            self._complete_calls(state, index, events)
            events.extend(
                Cited(citation=citation, choice=index) for citation in _sources(chunk.search_results, chunk.citations)
            )
            finish, detail, sequence = _finish_of(
                choice.finish_reason, choice.stop_reason, bool(state.calls), state.has_refusal
            )
            events.append(Finished(finish=finish, finish_detail=detail, stop_sequence=sequence, choice=index))

    def _read_rest(self, delta: _Delta, state: _ChoiceState, index: int, events: list[Event]) -> None:
        """What is rare."""
        if type(delta.function_call) is dict:
            self._read_call({"function": delta.function_call, "index": "function_call"}, state, index, events)
        if delta.annotations:
            self._searches = max(self._searches, _searches(delta))
            events.extend(Cited(citation=citation, choice=index) for citation in _citations(delta.annotations))
        if delta.images or delta.audio:
            events.extend(MediaDone(media=media, choice=index) for media in _media(delta))
        if delta.executed_tools:
            for tool in objects_in(delta.executed_tools):
                number = tool.get("index")
                self._searches = max(self._searches, number + 1 if type(number) is int else 1)
            events.append(
                OpaqueDone(
                    kind="executed_tools",
                    size=len(_encode(delta.executed_tools)),
                    value=delta.executed_tools,
                    choice=index,
                )
            )
        if delta.extra_content and not delta.tool_calls and (signature := _google_signature(delta.extra_content)):
            events.append(TextDelta(text="", signature=signature, choice=index))

    def _read_call(self, value: dict[str, Any], state: _ChoiceState, choice: int, events: list[Event]) -> None:
        custom = value.get("custom")
        is_custom = type(custom) is dict
        function = custom if is_custom else value.get("function")
        if type(function) is not dict:
            function = {}
        name, call_id = text_of(function.get("name")), text_of(value.get("id"))
        call = self._find_call(value.get("index"), call_id, name, is_custom, state)
        if not call.has_begun:
            call.name = call.name or name
            call.signature = call.signature or _google_signature(value.get("extra_content"))
        arguments = _arguments(function.get("input") if is_custom else function.get("arguments"))
        if not call.has_begun and (call.name or arguments):
            events.append(_began(call, choice))
        if arguments:
            call.has_arguments = True
            events.append(ToolCallDelta(index=call.index, arguments=arguments, choice=choice))

    def _find_call(self, index: Any, call_id: str, name: str, is_custom: bool, state: _ChoiceState) -> _Call:
        """By its index; some have none, and Gemini's endpoint gives all calls the same: a new id with a name is a new call."""
        if index is None:
            known = next((call for call in state.calls if call.call_id == call_id), None) if call_id else None
            if known is None and not (call_id or name) and state.calls:
                known = state.calls[-1]
        else:
            key = index if type(index) in (int, str) else str(index)
            known = state.by_index.get(key)
            if known is not None and call_id and name and known.name and call_id != known.call_id:
                known = None
        if known is not None:
            return known
        call = _Call(len(state.calls), call_id or f"call_{self._answer_id}_{self._call_count}", is_custom)
        self._call_count += 1
        state.calls.append(call)
        if index is not None:
            state.by_index[index if type(index) in (int, str) else str(index)] = call
        return call

    def _complete_calls(self, state: _ChoiceState, choice: int, events: list[Event]) -> None:
        """Nothing more comes: a call without arguments has none."""
        for call in state.calls:
            if not call.has_begun:
                events.append(_began(call, choice))
            if not (call.has_arguments or call.is_custom):
                call.has_arguments = True
                events.append(ToolCallDelta(index=call.index, arguments="{}", choice=choice))

    def _late_calls(self) -> list[Event]:
        events: list[Event] = []
        for index, state in self._choices.items():
            self._complete_calls(state, index, events)
        return events

    def _read_usage(self, chunk: _Chunk, events: list[Event]) -> None:
        groq = chunk.x_groq if type(chunk.x_groq) is dict else {}
        if error := text_of(groq.get("error")):
            events.append(Failed(error=error_of({"error": error})))
        raw = chunk.usage if chunk.usage is not None else groq.get("usage")
        if raw is None or raw == self._last_usage:  # Perplexity repeats it with every chunk.
            return
        self._last_usage = raw
        usage = _usage(raw, None, self._searches, chunk.service_tier or self._service_tier)
        if usage is not None:
            events.append(UsageSeen(usage=usage))


def _read_thoughts(delta: _Delta, choice: int, events: list[Event]) -> None:
    if delta.reasoning_details:
        found = [read_detail(detail, choice) for detail in objects_in(delta.reasoning_details)]
        thoughts = [thought for thought in found if thought is not None]
        if thoughts:
            events.extend(thoughts)
            return
    text = text_of(delta.reasoning_content) or text_of(delta.reasoning)
    if text:
        events.append(ThinkingDelta(text=text, choice=choice))


def _read_content(content: Any, choice: int, events: list[Event]) -> None:
    for part in _content(content):
        match part:
            case Text(text=text):
                events.append(TextDelta(text=text, choice=choice))
            case Thinking(text=text, signature=signature):
                events.append(ThinkingDelta(text=text, signature=signature, choice=choice))
            case Refusal(text=text):
                events.append(RefusalDelta(text=text, choice=choice))
            case Media():
                events.append(MediaDone(media=part, choice=choice))
            case Opaque(kind=kind, value=value):
                events.append(OpaqueDone(kind=kind, size=len(_encode(value)), value=value, choice=choice))
            case _:
                pass


def _began(call: _Call, choice: int) -> ToolCallBegan:
    call.has_begun = True
    return ToolCallBegan(
        index=call.index,
        call_id=call.call_id,
        name=call.name,
        is_custom=call.is_custom,
        signature=call.signature,
        choice=choice,
    )


def _unreadable(data: bytes) -> Event:
    """An error of a shape that no chunk has, or something that nobody knows."""
    try:
        value = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if type(value) is dict and (value.get("error") is not None or value.get("object") == "error"):
        return Failed(error=error_of(value))
    return OpaqueDone(kind="chunk", size=len(data))


# Values


def _usage(value: Any, x_groq: Any, tool_calls: int, service_tier: Any) -> Any:
    if value is None and type(x_groq) is dict:
        value = x_groq.get("usage")
    if value is None:
        return None
    try:
        return read_usage(msgspec.convert(value, ChatUsage, strict=False), tool_calls, service_tier)
    except msgspec.ValidationError:
        return None


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) else 0.0


def _count(value: Any) -> int:
    return value if type(value) is int else -1


def _seconds(value: Any) -> int:
    return int(value) if type(value) in (int, float) and 0 <= value < 2**53 else 0
