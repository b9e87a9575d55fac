"""What Bedrock answers: whole, in a stream, as an error. Pure.

`inputTokens` leaves out what was read from the cache and written to it. Which model answered is not said, nor an id.
"""

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from audit.records import Usage
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
    Done,
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
    ToolCall,
    UsageSeen,
)
from proxy.providers.provider import OpenToolCalls, StreamReader, checked_usage, name_of
from proxy.service_tiers import tier_of
from proxy.wire.event_stream import EXCEPTION
from proxy.wire.frame import Frame
from proxy.wire.json_shape import Shape

# Whose signatures these are.
ORIGIN = "anthropic"

_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}

FINISHES = {
    "end_turn": STOP,
    "stop_sequence": STOP_SEQUENCE,
    "max_tokens": LENGTH,
    "model_context_window_exceeded": LENGTH,
    "tool_use": TOOL_CALLS,
    "guardrail_intervened": CONTENT_FILTER,
    "content_filtered": CONTENT_FILTER,
    "refusal": REFUSAL,
    "pause_turn": PAUSE,
}

# The status codes that Bedrock gives to its exceptions, which a stream reports without one.
_STATUS_CODES = {
    "validationException": 400,
    "accessDeniedException": 403,
    "resourceNotFoundException": 404,
    "modelTimeoutException": 408,
    "modelStreamErrorException": 424,
    "modelErrorException": 424,
    "throttlingException": 429,
    "modelNotReadyException": 429,
    "internalServerException": 500,
    "serviceUnavailableException": 503,
}
# The other way round, for answers, whose header says it and whose body does not.
_EXCEPTIONS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}


_NULL = msgspec.Raw(b"null")


class _Shape(msgspec.Struct, rename="camel"):
    pass


class _Source(_Shape):
    bytes: str | None = None


class _Image(_Shape):
    format: str | None = None
    source: _Source | None = None


class _ToolUse(_Shape):
    """In a stream the arguments come as text, piece by piece; whole, they are an object. `type` tells a tool of Bedrock's."""

    tool_use_id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")
    type: str | None = None


class _ReasoningText(_Shape):
    text: str | None = None
    signature: str | None = None


class _Reasoning(_Shape):
    """Whole, with `reasoning_text`; in a stream, its fields by themselves."""

    reasoning_text: _ReasoningText | None = None
    text: str | None = None
    signature: str | None = None
    redacted_content: str | None = None


class _TextOnly(_Shape):
    text: str | None = None


class _Web(_Shape):
    url: str | None = None


class _Place(_Shape):
    document_index: int | None = None


class _Location(_Shape):
    web: _Web | None = None
    document_char: _Place | None = None
    document_page: _Place | None = None
    document_chunk: _Place | None = None


class _Citation(_Shape):
    title: str | None = None
    source: str | None = None
    source_content: list[_TextOnly] | None = None
    location: _Location | None = None


class _Citations(_Shape):
    content: list[_TextOnly] | None = None
    citations: list[msgspec.Raw] | None = None


class _Block(_Shape):
    """Exactly one is there."""

    text: str | None = None
    tool_use: _ToolUse | None = None
    reasoning_content: _Reasoning | None = None
    citations_content: _Citations | None = None
    image: _Image | None = None
    tool_result: Any = None


class _Message(_Shape):
    content: list[_Block] | None = None


class _Output(_Shape):
    message: _Message


class _CacheDetail(_Shape):
    ttl: str | None = None
    input_tokens: int | None = None


class _Usage(_Shape):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None
    cache_details: list[_CacheDetail] | None = None
    server_tool_usage: dict[str, Any] | None = None


class _Tier(_Shape):
    type: str | None = None


class _Router(_Shape):
    invoked_model_id: str | None = None


class _Trace(_Shape):
    prompt_router: _Router | None = None

    def model(self) -> str:
        """Which model a prompt router chose; otherwise nothing says it."""
        return name_of(self.prompt_router.invoked_model_id) if self.prompt_router else ""


class _Response(_Shape):
    output: _Output
    stop_reason: str | None = None
    usage: _Usage | None = None
    service_tier: _Tier | None = None
    trace: _Trace | None = None
    additional_model_response_fields: Any = None


class _Delta(_Shape):
    text: str | None = None
    tool_use: _ToolUse | None = None
    reasoning_content: _Reasoning | None = None
    citation: msgspec.Raw = _NULL
    image: _Image | None = None


class _Start(_Shape):
    tool_use: _ToolUse | None = None
    image: _Image | None = None
    tool_result: Any = None


class _Frame(_Shape):
    """Every event of a stream; which one it is, its header says."""

    content_block_index: int = 0
    start: _Start | None = None
    delta: _Delta | None = None
    stop_reason: str | None = None
    additional_model_response_fields: Any = None
    usage: _Usage | None = None
    service_tier: _Tier | None = None


class _Error(_Shape):
    """AWS itself writes `Message`; `__type` is there where a protocol older than Bedrock's answers."""

    message: str | None = None
    loud_message: str | None = msgspec.field(name="Message", default=None)
    kind: str | None = msgspec.field(name="__type", default=None)


_responses = Shape(_Response)
_frames = Shape(_Frame)
_errors = Shape(_Error)
_citations = Shape(_Citation)
_texts = Shape(str)
_objects = Shape(dict[str, Any])


def read_answer(body: bytes) -> Answer:
    """Raises `msgspec.DecodeError`."""
    response = _responses.read(body)
    parts: list[Part] = []
    for block in response.output.message.content or ():
        parts += _read_block(block)
    reason = response.stop_reason or ""
    return Answer(
        model=response.trace.model() if response.trace else "",
        choices=[
            Choice(
                parts=parts,
                finish=FINISHES.get(reason, STOP),
                finish_detail=name_of(reason),
                stop_sequence=_stop_sequence(response.additional_model_response_fields),
            )
        ],
        usage=_usage_of(response.usage, response.service_tier),
        service_tier=_tier(response.service_tier),
    )


def _read_block(block: _Block) -> Sequence[Part]:
    if block.text is not None:
        return [Text(text=block.text)] if block.text else ()
    if block.tool_use is not None:
        use = block.tool_use
        if use.type == "server_tool_use":
            return [Opaque(kind="server_tool_use", value={"name": use.name, "input": use.input})]
        return [ToolCall(call_id=use.tool_use_id, name=use.name, arguments=bytes(use.input).decode("utf-8", "replace"))]
    if block.reasoning_content is not None:
        return [_read_thinking(block.reasoning_content)]
    if block.citations_content is not None:
        cited = block.citations_content
        text = "".join(piece.text or "" for piece in cited.content or ())
        citations = tuple(read for raw in cited.citations or () if (read := _read_citation(raw)) is not None)
        return [Text(text=text, citations=citations)]
    if block.image is not None and block.image.source is not None and block.image.source.bytes:
        return [_read_image(block.image.format, block.image.source.bytes)]
    return [Opaque(kind="tool_result" if block.tool_result is not None else "unknown", value=block.tool_result)]


def _read_thinking(reasoning: _Reasoning) -> Thinking:
    if reasoning.redacted_content:
        return Thinking(redacted=reasoning.redacted_content, origin=ORIGIN)
    text = reasoning.reasoning_text
    signature = (text.signature or "") if text else ""
    return Thinking(text=(text.text or "") if text else "", signature=signature, origin=ORIGIN if signature else "")


def _read_citation(raw: msgspec.Raw) -> Citation | None:
    """None where it cannot be read."""
    citation = _citations.find(raw)
    if citation is None:
        return None
    location = citation.location or _Location()
    place = location.document_char or location.document_page or location.document_chunk
    url = (location.web.url if location.web else None) or citation.source or ""
    return Citation(
        url=url if url.startswith(("https://", "http://")) else "",
        title=citation.title or "",
        cited_text="".join(piece.text or "" for piece in citation.source_content or ()),
        document=-1 if place is None or place.document_index is None else place.document_index,
        source=_objects.find(raw),
    )


def _read_image(word: str | None, data: str) -> Media:
    return Media(kind="image", media_type=_MEDIA_TYPES.get(word or "", "image/png"), data=data)


def _usage_of(usage: _Usage | None, tier: _Tier | None) -> Usage | None:
    if usage is None or usage.input_tokens is None:
        return None
    cached, written = usage.cache_read_input_tokens or 0, usage.cache_write_input_tokens or 0
    for_an_hour = sum(detail.input_tokens or 0 for detail in usage.cache_details or () if detail.ttl == "1h")
    runs = [count for count in (usage.server_tool_usage or {}).values() if type(count) is int]
    return checked_usage(
        Usage(
            input_tokens=usage.input_tokens + cached + written,
            cache_read_input_tokens=cached,
            cache_write_input_tokens=written,
            cache_write_1h_input_tokens=for_an_hour,
            output_tokens=usage.output_tokens or 0,
            tool_calls=sum(runs),
            searches=sum(runs),
            service_tier=tier_of(_tier(tier)),
        )
    )


def _stop_sequence(fields: Any) -> str | None:
    """As it was asked for with `additionalModelResponseFieldPaths`."""
    found = fields.get("stop_sequence") if type(fields) is dict else None
    return found if type(found) is str else None


def _tier(tier: _Tier | None) -> str:
    return (tier.type or "") if tier else ""


# Streams


class ConverseReader(StreamReader):
    """messageStart · (contentBlockStart? contentBlockDelta… contentBlockStop)… · messageStop · metadata."""

    def __init__(self) -> None:
        self._tool_calls = OpenToolCalls()
        # Blocks that are open of tools that Bedrock runs, and what they gave.
        self._opaque: set[int] = set()
        self._images: dict[int, tuple[str | None, list[bytes]]] = {}
        self._text_block = -1

    def read(self, frame: Frame) -> Sequence[Event]:
        if frame.event.startswith(EXCEPTION):
            return (Failed(error=read_exception(frame)),)
        found = _frames.find(frame.data)
        if found is None:
            return (_opaque_done(frame),) if frame.data else ()
        match frame.event:
            case b"contentBlockDelta":
                if found.delta is not None and found.content_block_index not in self._opaque:
                    events = self._read_delta(found.content_block_index, found.delta)
                    if events is not None:
                        return events
                return (_opaque_done(frame),)
            case b"contentBlockStart":
                return self._began(found.content_block_index, found.start, frame)
            case b"contentBlockStop":
                return self._ended(found.content_block_index)
            case b"messageStart":
                return (Began(),)
            case b"messageStop":
                reason = found.stop_reason or ""
                return (
                    Finished(
                        finish=FINISHES.get(reason, STOP),
                        finish_detail=name_of(reason),
                        stop_sequence=_stop_sequence(found.additional_model_response_fields),
                    ),
                )
            case b"metadata":
                usage = _usage_of(found.usage, found.service_tier)
                return (Done(),) if usage is None else (UsageSeen(usage=usage), Done())
            case _:
                return (_opaque_done(frame),)

    def _began(self, block: int, start: _Start | None, frame: Frame) -> Sequence[Event]:
        if start is None:
            return ()
        use = start.tool_use
        if use is not None and use.type != "server_tool_use":
            return self._tool_calls.begin(block, use.tool_use_id, use.name)
        if start.image is not None:
            self._images[block] = (start.image.format, [])
            return ()
        self._opaque.add(block)
        return (_opaque_done(frame),)

    def _read_delta(self, block: int, delta: _Delta) -> Sequence[Event] | None:
        """None where it says nothing that is known."""
        if delta.text is not None:
            if not delta.text:
                return ()
            begins_part = self._text_block not in (-1, block)
            self._text_block = block
            return (TextDelta(text=delta.text, begins_part=begins_part),)
        if delta.tool_use is not None:
            piece = _texts.find(delta.tool_use.input)
            return None if piece is None else self._tool_calls.add(block, piece)
        if delta.reasoning_content is not None:
            return _read_reasoning(delta.reasoning_content)
        if delta.citation != _NULL:
            citation = _read_citation(delta.citation)
            return None if citation is None else (Cited(citation=citation),)
        if delta.image is not None and delta.image.source is not None:
            return self._read_image(block, delta.image.source.bytes or "")
        return None

    def _read_image(self, block: int, piece: str) -> Sequence[Event] | None:
        if block not in self._images:
            return None
        try:
            self._images[block][1].append(base64.b64decode(piece))
        except ValueError:
            return None
        return ()

    def _ended(self, block: int) -> Sequence[Event]:
        self._opaque.discard(block)
        if block in self._images:
            word, pieces = self._images.pop(block)
            return (MediaDone(media=_read_image(word, base64.b64encode(b"".join(pieces)).decode())),)
        return self._tool_calls.end(block)


def _read_reasoning(reasoning: _Reasoning) -> Sequence[Event] | None:
    if reasoning.text is not None:
        # Text and signature return together, so both say whose they are.
        return (ThinkingDelta(text=reasoning.text, origin=ORIGIN),) if reasoning.text else ()
    if reasoning.signature:
        return (ThinkingDelta(signature=reasoning.signature, origin=ORIGIN),)
    if reasoning.redacted_content:
        return (ThinkingDelta(redacted=reasoning.redacted_content, origin=ORIGIN),)
    return None


def _opaque_done(frame: Frame) -> OpaqueDone:
    return OpaqueDone(kind=frame.event.decode("ascii", "replace"), size=len(frame.data))


# Errors


def read_error(status_code: int, body: bytes) -> ProviderError:
    """`{"message"}`. Which exception it is stands in the header `x-amzn-errortype`; the status says as much."""
    error = _errors.find(body) or _Error()
    kind = (error.kind or "").rpartition("#")[2] or _EXCEPTIONS.get(status_code, "")
    return ProviderError(
        message=error.message or error.loud_message or "no message", kind=name_of(kind), status_code=status_code
    )


def read_exception(frame: Frame) -> ProviderError:
    """What a stream reports in the middle of it."""
    kind = frame.event.removeprefix(EXCEPTION).decode("ascii", "replace")
    status_code = _STATUS_CODES.get(kind, 500)
    error = read_error(status_code, frame.data)
    error.kind = name_of(kind)
    return error
