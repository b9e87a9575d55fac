"""OpenAI's images, audio and moderations, as OpenAI and the providers shaped like it speak them. Pure; no I/O.

All alike: a JSON body or a form in which the model's name is put, an answer or events that may say their usage in tokens or
seconds. Where they say none, what the request asked for counts (`Call.units_max`): images, characters, seconds.
"""

import math

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call, is_form
from proxy.neutral import ProviderError
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Api, ChunkMeter, Measured, Outgoing, StreamMeter, checked_usage, name_of, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.chunks import Chunks
from proxy.wire.frame import Frame, FrameParser
from proxy.wire.json_gate import dump_object
from proxy.wire.multipart import parse_form, replace_field
from proxy.wire.sse import SSEParser

_NULL = msgspec.Raw(b"null")


class OpenAIMedia(Api):
    def __init__(self, name: str, capability: str, target: bytes) -> None:
        self.name = name
        self.capability = capability
        self.target = target

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return Outgoing(self.target, _with_model(call, deployment), content_type=call.content_type)

    def measure(self, body: bytes) -> Measured:
        if body[:1] != b"{":
            return Measured()  # Text, subtitles: they say nothing of themselves.
        answer = _decode(body)
        return Measured(_usage_of(answer.usage), name_of(answer.model), has_error=bytes(answer.error) != b"null")

    def stream_meter(self, call: Call) -> StreamMeter:
        return MediaMeter()

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class OpenAISpeech(OpenAIMedia):
    """The answer is sound, unless the client asked for events."""

    stream_types = (b"",)

    def accept(self, call: Call) -> bytes:
        return b"*/*"

    def frame_parser(self, call: Call) -> FrameParser:
        return SSEParser() if call.parameters.get("stream_format") == "sse" else Chunks()

    def stream_meter(self, call: Call) -> StreamMeter:
        return MediaMeter() if call.parameters.get("stream_format") == "sse" else ChunkMeter()


class MediaMeter(StreamMeter):
    """`….delta` and `….partial_image` events, then one `….done` or `….completed` with the usage."""

    def observe(self, frame: Frame) -> bool:
        if not frame.data:
            return False
        try:
            event = _decode(frame.data)
        except msgspec.DecodeError:
            event = _Answer()
        self.output_chunks += 1
        self.output_bytes += len(frame.data)
        if bytes(event.error) != b"null" or event.type == "error":
            self.has_error = True
        elif event.type.endswith((".done", ".completed")):
            self.is_done = True
            self.usage_so_far = _usage_of(event.usage)
        return False


def _with_model(call: Call, deployment: Deployment) -> bytes:
    """The client's body with the provider's name of the model, the rest as it was sent."""
    if is_form(call.content_type):
        return replace_field(parse_form(call.body, call.content_type), call.body, "model", deployment.upstream_model)
    return dump_object(renamed(call, deployment))


class _Details(msgspec.Struct):
    text_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    input_token_details: _Details | None = None
    output_tokens_details: _Details | None = None
    seconds: float | None = None


class _Answer(msgspec.Struct):
    """A whole answer, and just as well an event."""

    type: str = ""
    model: str | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NULL


_decode = msgspec.json.Decoder(_Answer).decode


def _usage_of(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    if usage.seconds is not None:
        return checked_usage(Usage(units=math.ceil(usage.seconds)))
    if usage.input_tokens is None:
        return None
    given = usage.input_tokens_details or usage.input_token_details or _Details()
    made = usage.output_tokens_details or _Details()
    return checked_usage(
        Usage(
            input_tokens=usage.input_tokens,
            cache_read_input_tokens=given.cached_tokens or 0,
            output_tokens=usage.output_tokens or 0,
            input_audio_tokens=given.audio_tokens or 0,
            input_image_tokens=given.image_tokens or 0,
            output_audio_tokens=made.audio_tokens or 0,
            output_image_tokens=made.image_tokens or 0,
        )
    )


SPEECH = OpenAISpeech("openai.speech", "speech", b"/audio/speech")
TRANSCRIPTIONS = OpenAIMedia("openai.audio.transcriptions", "transcription", b"/audio/transcriptions")
TRANSLATIONS = OpenAIMedia("openai.audio.translations", "transcription", b"/audio/translations")
GENERATIONS = OpenAIMedia("openai.images.generations", "images", b"/images/generations")
EDITS = OpenAIMedia("openai.images.edits", "images", b"/images/edits")
VARIATIONS = OpenAIMedia("openai.images.variations", "images", b"/images/variations")
MODERATIONS = OpenAIMedia("openai.moderations", "moderations", b"/moderations")

ALL = (SPEECH, TRANSCRIPTIONS, TRANSLATIONS, GENERATIONS, EDITS, VARIATIONS, MODERATIONS)
