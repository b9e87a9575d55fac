"""What the Gemini API answers, whole and in streams. Pure; no I/O."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from audit.records import Usage
from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
    STOP,
    TOOL_CALLS,
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
    Event,
    Failed,
    Finished,
    Media,
    MediaDone,
    Opaque,
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
from proxy.providers import provider as base
from proxy.providers.provider import Measured, StreamReader, checked_usage
from proxy.service_tiers import tier_of
from proxy.wire.frame import Frame
from proxy.wire.json_shape import Shape

ORIGIN = "gemini"

# By name, and by number where a client asks for `enum-encoding=int`.
FINISHES = (
    "FINISH_REASON_UNSPECIFIED", "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER", "LANGUAGE", "BLOCKLIST",
    "PROHIBITED_CONTENT", "SPII", "MALFORMED_FUNCTION_CALL", "IMAGE_SAFETY",
)  # fmt: skip
MODALITIES = ("MODALITY_UNSPECIFIED", "TEXT", "IMAGE", "VIDEO", "AUDIO", "DOCUMENT")
_FILTERED = frozenset(
    {
        "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_RECITATION",
        "IMAGE_PROHIBITED_CONTENT", "MODEL_ARMOR",
    }
)  # fmt: skip

# A prompt grounded in a search is billed once by these, each of its queries by later models.
_BILLED_BY_PROMPT = ("gemini-1", "gemini-2")

_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode


# What is read of an answer, which is also what each frame of a stream holds.


class _Shape(msgspec.Struct, rename="camel"):
    pass


class _PartialArg(_Shape):
    json_path: str = "$"
    string_value: str | None = None
    number_value: float | None = None
    bool_value: bool | None = None
    will_continue: bool | None = None


class _FunctionCall(_Shape):
    id: str | None = None
    name: str | None = None
    args: msgspec.Raw = _NULL
    partial_args: list[_PartialArg] | None = None
    will_continue: bool | None = None


class _Blob(_Shape):
    mime_type: str | None = None
    data: str | None = None
    file_uri: str | None = None


class _Part(_Shape):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: _FunctionCall | None = None
    inline_data: _Blob | None = None
    file_data: _Blob | None = None
    executable_code: msgspec.Raw = _NULL
    code_execution_result: msgspec.Raw = _NULL
    tool_call: msgspec.Raw = _NULL
    tool_response: msgspec.Raw = _NULL


class _Content(_Shape):
    parts: list[_Part] | None = None


class _Place(_Shape):
    title: str | None = None
    uri: str | None = None
    text: str | None = None


class _Chunk(_Shape):
    web: _Place | None = None
    retrieved_context: _Place | None = None
    maps: _Place | None = None


class _Segment(_Shape):
    start_index: int | None = None
    end_index: int | None = None
    text: str | None = None


class _Support(_Shape):
    segment: _Segment | None = None
    grounding_chunk_indices: list[int] | None = None


class _Grounding(_Shape):
    web_search_queries: list[str] | None = None
    grounding_chunks: list[_Chunk] | None = None
    grounding_supports: list[_Support] | None = None


class _Source(_Shape):
    start_index: int | None = None
    end_index: int | None = None
    uri: str | None = None
    title: str | None = None


class _Citations(_Shape):
    """Vertex AI has another name for the same."""

    citation_sources: list[_Source] | None = None
    citations: list[_Source] | None = None


class _Token(_Shape):
    token: str | None = None
    log_probability: float | None = None


class _TopTokens(_Shape):
    candidates: list[_Token] | None = None


class _Logprobs(_Shape):
    chosen_candidates: list[_Token] | None = None
    top_candidates: list[_TopTokens] | None = None


class _Candidate(_Shape):
    content: _Content | None = None
    finish_reason: str | int | None = None
    index: int | None = None
    citation_metadata: _Citations | None = None
    grounding_metadata: _Grounding | None = None
    logprobs_result: _Logprobs | None = None


class _Count(_Shape):
    modality: str | int | None = None
    token_count: int | None = None


class _Usage(_Shape):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    prompt_tokens_details: list[_Count] | None = None
    # So embeddings write it.
    prompt_token_details: list[_Count] | None = None
    tool_use_prompt_tokens_details: list[_Count] | None = None
    candidates_tokens_details: list[_Count] | None = None
    service_tier: str | int | None = None
    traffic_type: str | int | None = None


class _Feedback(_Shape):
    block_reason: str | int | None = None


class _Answer(_Shape):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    model_version: str | None = None
    response_id: str | None = None
    create_time: str | None = None
    error: msgspec.Raw = _NULL


class _Values(_Shape):
    values: list[float] = []


class _EmbedAnswer(_Shape):
    embedding: _Values | None = None
    embeddings: list[_Values] | None = None
    usage_metadata: _Usage | None = None
    error: msgspec.Raw = _NULL


class _EmbedHead(_Shape):
    usage_metadata: _Usage | None = None
    error: msgspec.Raw = _NULL


class _CountAnswer(_Shape):
    total_tokens: int | None = None
    error: msgspec.Raw = _NULL


_answers = Shape(_Answer)
EMBED_ANSWERS = Shape(_EmbedAnswer)
EMBED_HEADS = Shape(_EmbedHead)
COUNT_ANSWERS = Shape(_CountAnswer)
_values = Shape(Any)


def is_error(error: msgspec.Raw) -> bool:
    return bytes(error) != b"null"


# Reading an answer


def measure(body: bytes) -> Measured:
    """Raises `msgspec.DecodeError`."""
    answer = _answers.read(body)
    reason = next((c.finish_reason for c in answer.candidates or () if c.finish_reason is not None), None)
    if reason is None and answer.prompt_feedback is not None:
        reason = answer.prompt_feedback.block_reason
    return Measured(
        usage=usage_of(answer.usage_metadata, _searches(answer)),
        response_model=base.name_of(answer.model_version),
        finish_reason=base.name_of(_word(reason, FINISHES)),
        has_error=is_error(answer.error),
    )


def read_answer(body: bytes) -> Answer:
    """Raises `msgspec.DecodeError`. An answer without candidates is to a prompt that was blocked."""
    answer = _answers.read(body)
    if is_error(answer.error):
        raise msgspec.DecodeError("the answer is an error")
    answer_id = base.name_of(answer.response_id)
    choices = [
        _read_candidate(candidate, f"{answer_id}_{index}" if index else answer_id)
        for index, candidate in enumerate(answer.candidates or ())
    ]
    if not choices:
        reason = answer.prompt_feedback.block_reason if answer.prompt_feedback is not None else None
        choices = [Choice(parts=[], finish=CONTENT_FILTER, finish_detail=_word(reason, ()))]
    usage = answer.usage_metadata
    return Answer(
        answer_id=answer_id,
        model=base.name_of(answer.model_version),
        created_at_s=_seconds(answer.create_time),
        choices=choices,
        usage=usage_of(usage, _searches(answer)),
        service_tier=_tier(usage),
    )


def _read_candidate(candidate: _Candidate, answer_id: str) -> Choice:
    parts: list[Part] = []
    calls = 0
    raw_parts = (candidate.content.parts if candidate.content is not None else None) or ()
    for part in raw_parts:
        signature = part.thought_signature or ""
        if part.function_call is not None:
            parts.append(_read_call(part.function_call, signature, f"call_{answer_id}_{calls}"))
            calls += 1
        elif part.text is not None:
            if part.thought:
                parts.append(Thinking(text=part.text, signature=signature, origin=ORIGIN))
            elif part.text or signature:
                parts.append(Text(text=part.text, signature=signature))
        elif (media := _read_media(part)) is not None:
            parts.append(media)
        elif (opaque := _read_opaque(part)) is not None:
            kind, raw = opaque
            parts.append(Opaque(kind=kind, value=_values.find(raw)))
    text = "".join(part.text for part in parts if isinstance(part, Text))
    citations = tuple(_citations(candidate, text))
    if citations:
        last = next((part for part in reversed(parts) if isinstance(part, Text)), None)
        if last is not None:
            last.citations = citations
    finish, detail = _finish_of(candidate.finish_reason, calls > 0)
    return Choice(parts=parts, finish=finish, finish_detail=detail, logprobs=_read_logprobs(candidate.logprobs_result))


def _read_call(call: _FunctionCall, signature: str, derived_id: str) -> ToolCall:
    arguments = _json_text(call.args)
    if call.partial_args:
        pieces = _PartialArguments()
        arguments = pieces.add(call.partial_args) + pieces.end()
    return ToolCall(
        call_id=call.id or derived_id,
        name=call.name or "",
        arguments="{}" if arguments == "null" else arguments,
        signature=signature,
    )


def _json_text(raw: msgspec.Raw) -> str:
    """As it was written; what is raw was not decoded, so its text may be broken."""
    return bytes(raw).decode(errors="replace")


def _read_media(part: _Part) -> Media | None:
    blob = part.inline_data or part.file_data
    if blob is None:
        return None
    kind = (blob.mime_type or "").partition("/")[0]
    return Media(
        kind=kind if kind in ("image", "audio", "video") else "document",  # type: ignore[arg-type]
        media_type=blob.mime_type or "",
        data=blob.data or "",
        url=blob.file_uri or "",
    )


def _read_opaque(part: _Part) -> tuple[str, msgspec.Raw] | None:
    for kind, raw in (
        ("executable_code", part.executable_code),
        ("code_execution_result", part.code_execution_result),
        ("tool_call", part.tool_call),
        ("tool_response", part.tool_response),
    ):
        if bytes(raw) != b"null":
            return kind, raw
    return None


def _finish_of(reason: str | int | None, has_calls: bool) -> tuple[str, str]:
    word = _word(reason, FINISHES)
    if word == "MAX_TOKENS":
        return LENGTH, word
    if word in _FILTERED:
        return CONTENT_FILTER, word
    return (TOOL_CALLS if has_calls else STOP), word


def _word(value: str | int | None, words: Sequence[str]) -> str:
    if isinstance(value, int):
        return words[value] if 0 <= value < len(words) else str(value)
    return value or ""


def _seconds(create_time: str | None) -> int:
    try:
        return int(datetime.fromisoformat(create_time).timestamp()) if create_time else 0
    except (ValueError, OverflowError):
        return 0


def _tier(usage: _Usage | None) -> str:
    return usage.service_tier.lower() if usage is not None and isinstance(usage.service_tier, str) else ""


def _read_logprobs(logprobs: _Logprobs | None) -> list[TokenLogprob] | None:
    if logprobs is None or not logprobs.chosen_candidates:
        return None
    tops = logprobs.top_candidates or []
    return [
        TokenLogprob(
            token=chosen.token or "",
            logprob=chosen.log_probability or 0.0,
            bytes=list((chosen.token or "").encode()),
            top=tuple(
                TokenLogprob(token=top.token or "", logprob=top.log_probability or 0.0)
                for top in (tops[index].candidates or () if index < len(tops) else ())
            ),
        )
        for index, chosen in enumerate(logprobs.chosen_candidates)
    ]


def _citations(candidate: _Candidate, text: str) -> Iterable[Citation]:
    """Of pages that were searched or read, and of texts that are recited. `text` is the choice's so far."""
    raw = text.encode()
    grounding = candidate.grounding_metadata
    if grounding is not None:
        chunks = grounding.grounding_chunks or []
        for support in grounding.grounding_supports or ():
            segment = support.segment or _Segment()
            start, end = _characters(raw, segment.start_index or 0, segment.end_index, segment.text)
            for index in support.grounding_chunk_indices or ():
                chunk = chunks[index] if 0 <= index < len(chunks) else _Chunk()
                place = chunk.web or chunk.retrieved_context or chunk.maps
                if place is not None:
                    yield Citation(
                        url=place.uri or "",
                        title=place.title or "",
                        cited_text=place.text or "",
                        start=start,
                        end=end,
                    )
    recited = candidate.citation_metadata
    if recited is not None:
        for source in recited.citation_sources or recited.citations or ():
            start, end = _characters(raw, source.start_index or 0, source.end_index, None)
            yield Citation(url=source.uri or "", title=source.title or "", start=start, end=end)


def _characters(raw: bytes, start: int, end: int | None, said: str | None) -> tuple[int, int]:
    """Offsets in bytes, as characters; (-1, -1) where they cannot be. `said` is what must stand there."""
    if end is None or not 0 <= start <= end:
        return -1, -1
    if said and raw[start:end] != said.encode():
        # It counts from a part of the text, or from one that is not text.
        start = raw.find(said.encode())
        end = start + len(said.encode())
    if not 0 <= start <= end <= len(raw):
        return -1, -1
    before = len(raw[:start].decode(errors="ignore"))
    return before, before + len(raw[start:end].decode(errors="ignore"))


# Counting


def usage_of(usage: _Usage | None, searches: int = 0) -> Usage | None:
    """None where it does not say: the first frames of a stream may hold no counts."""
    if usage is None or usage.prompt_token_count is None:
        return None
    thoughts = usage.thoughts_token_count or 0
    prompt = (
        *(usage.prompt_tokens_details or usage.prompt_token_details or ()),
        *(usage.tool_use_prompt_tokens_details or ()),
    )
    made = usage.candidates_tokens_details or ()
    return checked_usage(
        Usage(
            input_tokens=usage.prompt_token_count + (usage.tool_use_prompt_token_count or 0),
            cache_read_input_tokens=usage.cached_content_token_count or 0,
            output_tokens=(usage.candidates_token_count or 0) + thoughts,
            reasoning_tokens=thoughts,
            input_audio_tokens=_tokens_of("AUDIO", prompt),
            input_image_tokens=_tokens_of("IMAGE", prompt),
            output_audio_tokens=_tokens_of("AUDIO", made),
            output_image_tokens=_tokens_of("IMAGE", made),
            tool_calls=searches,
            searches=searches,
            service_tier=tier_of(usage.service_tier) or tier_of(usage.traffic_type),
        )
    )


def _tokens_of(modality: str, counts: Iterable[_Count]) -> int:
    return sum(count.token_count or 0 for count in counts if _word(count.modality, MODALITIES) == modality)


def _searches(answer: _Answer) -> int:
    """How many searches are billed: each query, or one for the prompt by older models; one where a map was asked."""
    queries: set[str] = set()
    asked_map = False
    for candidate in answer.candidates or ():
        grounding = candidate.grounding_metadata
        if grounding is not None:
            queries.update(query for query in grounding.web_search_queries or () if query)
            asked_map = asked_map or any(chunk.maps is not None for chunk in grounding.grounding_chunks or ())
    return _billed_searches(queries, asked_map, answer.model_version or "")


def _billed_searches(queries: set[str], asked_map: bool, model: str) -> int:
    searches = min(len(queries), 1) if model.startswith(_BILLED_BY_PROMPT) else len(queries)
    return searches + asked_map


# Streams


class _Progress:
    """What a stream has said of one choice."""

    def __init__(self) -> None:
        self.calls = 0
        self.text: list[str] = []
        self.cited: set[tuple[str, int, int]] = set()
        self.finish_reason: str | int | None = None
        # The call whose arguments are still coming.
        self.pieces: _PartialArguments | None = None


class Reader(StreamReader):
    """One stream of `GenerateContentResponse`s. Nothing ends it but its finish reasons."""

    def __init__(self) -> None:
        self._has_begun = False
        self._answer_id = ""
        self._model = ""
        self._choices: dict[int, _Progress] = {}
        self._usage: _Usage | None = None
        self._queries: set[str] = set()
        self._asked_map = False

    def read(self, frame: Frame) -> Sequence[Event]:
        # After the events of a stream an error may come bare.
        data = frame.data or frame.raw.strip()
        if not data or (not frame.data and data[:1] not in (b"{", b"[")):
            return ()
        answer = _answers.find(data)
        if answer is None:
            return (OpaqueDone(kind="unreadable", size=len(data)),)
        if is_error(answer.error):
            return (Failed(error=read_error(0, data)),)
        return self._events(answer)

    def _events(self, answer: _Answer) -> list[Event]:
        events: list[Event] = []
        if not self._has_begun:
            self._has_begun = True
            self._answer_id = base.name_of(answer.response_id)
            self._model = base.name_of(answer.model_version)
            events.append(
                Began(
                    answer_id=self._answer_id,
                    model=self._model,
                    created_at_s=_seconds(answer.create_time),
                    service_tier=_tier(answer.usage_metadata),
                )
            )
        searches = self._billed_searches()
        for candidate in answer.candidates or ():
            self._read_candidate(candidate, events)
        feedback = answer.prompt_feedback
        if not answer.candidates and feedback is not None and feedback.block_reason:
            events.append(Finished(finish=CONTENT_FILTER, finish_detail=_word(feedback.block_reason, ())))
        usage = answer.usage_metadata
        has_usage = usage is not None and usage.prompt_token_count is not None
        if has_usage or searches != self._billed_searches():
            self._usage = usage if has_usage else self._usage
            counted = usage_of(self._usage, self._billed_searches())
            if counted is not None:
                events.append(UsageSeen(usage=counted))
        return events

    def _billed_searches(self) -> int:
        return _billed_searches(self._queries, self._asked_map, self._model)

    def _read_candidate(self, candidate: _Candidate, events: list[Event]) -> None:
        choice = candidate.index or 0
        progress = self._choices.get(choice)
        if progress is None:
            progress = self._choices[choice] = _Progress()
        logprobs = _read_logprobs(candidate.logprobs_result)
        for part in (candidate.content.parts if candidate.content is not None else None) or ():
            signature = part.thought_signature or ""
            if part.function_call is not None:
                self._read_call(part.function_call, signature, choice, progress, events)
            elif part.text is not None:
                if part.thought:
                    events.append(ThinkingDelta(text=part.text, signature=signature, origin=ORIGIN, choice=choice))
                elif part.text or signature:
                    progress.text.append(part.text)
                    events.append(TextDelta(text=part.text, signature=signature, choice=choice, logprobs=logprobs))
                    logprobs = None
            elif (media := _read_media(part)) is not None:
                events.append(MediaDone(media=media, choice=choice))
            elif (opaque := _read_opaque(part)) is not None:
                kind, raw = opaque
                events.append(OpaqueDone(kind=kind, size=len(bytes(raw)), value=_values.find(raw), choice=choice))
        if candidate.grounding_metadata is not None or candidate.citation_metadata is not None:
            self._read_citations(candidate, choice, progress, events)
        if candidate.finish_reason is not None and progress.finish_reason is None:
            progress.finish_reason = candidate.finish_reason
            self._end_call(choice, progress, events)
            finish, detail = _finish_of(candidate.finish_reason, progress.calls > 0)
            events.append(Finished(finish=finish, finish_detail=detail, choice=choice))

    def _read_call(
        self, call: _FunctionCall, signature: str, choice: int, progress: _Progress, events: list[Event]
    ) -> None:
        """A call comes whole, or begins with its name, goes on with pieces, and ends with one that does not continue."""
        if call.name:
            self._end_call(choice, progress, events)
            index = progress.calls
            progress.calls += 1
            scope = f"{self._answer_id}_{choice}" if choice else self._answer_id
            events.append(
                ToolCallBegan(
                    index=index,
                    call_id=call.id or f"call_{scope}_{index}",
                    name=call.name,
                    signature=signature,
                    choice=choice,
                )
            )
            arguments = _json_text(call.args)
            if arguments != "null":
                events.append(ToolCallDelta(index=index, arguments=arguments, choice=choice))
                return
            progress.pieces = _PartialArguments()
        pieces = progress.pieces
        if pieces is None:
            return
        if call.partial_args:
            piece = pieces.add(call.partial_args)
            if piece:
                events.append(ToolCallDelta(index=progress.calls - 1, arguments=piece, choice=choice))
        if not call.will_continue:
            self._end_call(choice, progress, events)

    def _end_call(self, choice: int, progress: _Progress, events: list[Event]) -> None:
        if progress.pieces is not None:
            rest = progress.pieces.end()
            progress.pieces = None
            events.append(ToolCallDelta(index=progress.calls - 1, arguments=rest, choice=choice))

    def _read_citations(self, candidate: _Candidate, choice: int, progress: _Progress, events: list[Event]) -> None:
        grounding = candidate.grounding_metadata
        if grounding is not None:
            self._queries.update(query for query in grounding.web_search_queries or () if query)
            self._asked_map |= any(chunk.maps is not None for chunk in grounding.grounding_chunks or ())
        for citation in _citations(candidate, "".join(progress.text)):
            # What was said with one frame may be said again with the next.
            said = (citation.url, citation.start, citation.end)
            if said not in progress.cited:
                progress.cited.add(said)
                events.append(Cited(citation=citation, choice=choice))


_PATH = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]")
_Key = str | int


class _PartialArguments:
    """Arguments that come value by value, each with its JSON path, as the text of one object.

    Pieces of a string go on until one that does not continue. They come in the order in which a writer of JSON needs them.
    """

    def __init__(self) -> None:
        # The way to the last value: keys of the open objects and arrays, and then its own.
        self._path: list[_Key] = []
        self._is_in_string = False

    def add(self, pieces: Iterable[_PartialArg]) -> str:
        return "".join([self._add(piece) for piece in pieces])

    def end(self) -> str:
        """What closes all that is open."""
        text = '"' if self._is_in_string else ""
        self._is_in_string = False
        if not self._path:
            return text + "{}"
        text += "".join(_closing(key) for key in reversed(self._path))
        self._path = []
        return text

    def _add(self, piece: _PartialArg) -> str:
        path = [int(index) if index else name or quoted for name, index, quoted in _PATH.findall(piece.json_path)]
        if not path:
            return ""
        text = ""
        if not self._is_in_string or path != self._path:
            text = self._move_to(path)
            if piece.string_value is not None:
                text += '"'
                self._is_in_string = True
        if self._is_in_string:
            text += _encode(piece.string_value or "").decode()[1:-1]
            if not piece.will_continue:
                text += '"'
                self._is_in_string = False
            return text
        if piece.bool_value is not None:
            return text + ("true" if piece.bool_value else "false")
        number = piece.number_value
        if number is None:
            return text + "null"
        return text + _encode(int(number) if number.is_integer() else number).decode()

    def _move_to(self, path: list[_Key]) -> str:
        """What stands between the last value and the next."""
        text = '"' if self._is_in_string else ""
        self._is_in_string = False
        shared = 0
        while shared < min(len(path), len(self._path)) - 1 and path[shared] == self._path[shared]:
            shared += 1
        text += "".join(_closing(key) for key in reversed(self._path[shared + 1 :]))
        text += "," if self._path else _opening(path[0])
        text += _named(path[shared])
        for key in path[shared + 1 :]:
            text += _opening(key) + _named(key)
        self._path = path
        return text


def _opening(key: _Key) -> str:
    return "[" if isinstance(key, int) else "{"


def _closing(key: _Key) -> str:
    return "]" if isinstance(key, int) else "}"


def _named(key: _Key) -> str:
    return "" if isinstance(key, int) else _encode(key).decode() + ":"


# Errors


class _Error(msgspec.Struct):
    code: Any = None
    message: Any = None
    status: Any = None
    details: Any = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None


_error_bodies = Shape(_ErrorBody)
_error_lists = Shape(list[_ErrorBody])
_DELAY = re.compile(r"(\d+)(?:\.(\d*))?s")


def read_error(status_code: int, body: bytes) -> ProviderError:
    """`{"error": {code, message, status, details}}`, or that in an array; a page of HTML says nothing.

    A key that is not good is told as a 400.
    """
    found = _error_bodies.find(body)
    if found is None:
        found = next(iter(_error_lists.find(body) or ()), None)
    error = found.error if found is not None else None
    if isinstance(error, str):
        return ProviderError(message=error, status_code=status_code)
    if error is None:
        return ProviderError(message="no message", status_code=status_code)
    reason, retry_after_s, field = "", None, ""
    for detail in error.details if isinstance(error.details, list) else ():
        if isinstance(detail, dict):
            reason = reason or base.name_of(detail.get("reason"))
            retry_after_s = retry_after_s or _delay(detail.get("retryDelay"))
            field = field or _first_field(detail.get("fieldViolations"))
    code = error.code if type(error.code) is int else status_code
    return ProviderError(
        message=error.message if isinstance(error.message, str) and error.message else "no message",
        kind=base.name_of(error.status),
        code=reason,
        param=field,
        status_code=401 if reason == "API_KEY_INVALID" else status_code or code,
        retry_after_s=retry_after_s,
    )


def _delay(text: Any) -> int | None:
    """`13.5s`, rounded up."""
    found = _DELAY.fullmatch(text) if isinstance(text, str) else None
    return int(found[1]) + bool((found[2] or "").strip("0")) if found is not None else None


def _first_field(violations: Any) -> str:
    first = violations[0] if isinstance(violations, list) and violations else None
    return base.name_of(first.get("field")) if isinstance(first, dict) else ""
