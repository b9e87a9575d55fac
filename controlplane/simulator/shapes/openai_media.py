"""OpenAI's pictures and sounds: images drawn and edited, speech, what was said in a sound."""

import base64
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec
from msgspec.structs import replace

from controlplane.simulator import wire
from controlplane.simulator.calls import Answer, Asked, Call, Counts, Event, Plan, Request, count, decode, plan_words
from controlplane.simulator.directives import Directives
from controlplane.simulator.forms import read_form
from controlplane.simulator.shapes.openai_errors import error_body
from controlplane.simulator.wire import data_event
from controlplane.simulator.words import Prose, encode, picture, sound

IMAGE_TOKENS = 16  # Of each image that is sent to be edited.
SOUND_BYTES_A_SECOND = 8_000
SOUND_TOKENS_A_SECOND = 10
SPEECH_MS_A_TOKEN = 20
_TYPES = {"mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "pcm": "audio/pcm"}

_COUNTS = frozenset(map(str, range(1, 11)))

Images = Annotated[int, msgspec.Meta(ge=1, le=10)]


# Images


class ImagesRequest(msgspec.Struct):
    prompt: str
    model: str = "gpt-image-1"
    n: Images | None = None
    stream: bool | None = None


class Drawing(NamedTuple):
    images: int
    images_sent: int
    verb: bytes


_decode_images = msgspec.json.Decoder(ImagesRequest).decode


def ask_generation(request: Request) -> Asked:
    """Raises `Refused`."""
    asked = decode(_decode_images, request.body)
    drawing = Drawing(asked.n or 1, 0, b"generation")
    return Asked(asked.model, [asked.prompt], Picture, is_stream=bool(asked.stream), details=drawing)


def ask_edit(request: Request) -> Asked:
    """Raises `Refused`."""
    form = read_form(request)
    form.file("image")
    images_sent = len(form.files["image"])
    wanted = form.fields.get("n", "1")
    return Asked(
        model=form.fields.get("model", "gpt-image-1"),
        texts=[form.field("prompt")],
        answers=Picture,
        is_stream=form.fields.get("stream") == "true",
        more_tokens=images_sent * IMAGE_TOKENS,
        details=Drawing(int(wanted) if wanted in _COUNTS else 1, images_sent, b"edit"),
    )


class Picture(Answer):
    """Each image has as many output tokens as a text would have. DALL-E's are paid each: it tells no usage."""

    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        drawing: Drawing = asked.details
        tokens = 0 if asked.model.startswith("dall-e") else directives.output_tokens
        counts = count(directives, input_tokens, tokens * drawing.images)
        return Plan(counts, Prose(tokens), choices=drawing.images, units=drawing.images)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        counts = self.plan.counts
        is_told = self.says_usage and bool(counts.output_tokens)
        self._usage = _image_usage(counts, self.asked.details.images_sent) if is_told else b""

    def whole(self) -> tuple[bytes, bytes]:
        drawn = b'{"b64_json":"%b"}' % base64.b64encode(picture())
        told = b',"usage":%b' % self._usage if self._usage else b""
        images = b",".join([drawn] * self.plan.choices)
        form = b'"background":"opaque","output_format":"png","quality":"low","size":"1024x1024"'
        return b'{"created":%d,%b,"data":[%b]%b}' % (self.call.created_s, form, images, told), self._usage

    def events(self) -> Iterator[Event]:
        for _ in range(self.plan.visible_tokens):
            yield b"", self.plan.choices, 0, b""
        name = b"image_%b.completed" % self.asked.details.verb
        told = b',"usage":%b' % self._usage if self._usage else b""
        drawn = base64.b64encode(picture())
        fields = b'{"type":"%b","b64_json":"%b","created_at":%d%b}' % (name, drawn, self.call.created_s, told)
        yield wire.named_event(name, fields), 0, self.shown_tokens(), self._usage

    def failure(self, status: int) -> bytes:
        return wire.named_event(b"error", error_body(status))


def _image_usage(counts: Counts, images_sent: int) -> bytes:
    drawn = min(images_sent * IMAGE_TOKENS, counts.input_tokens)
    return (
        b'{"input_tokens":%d,"input_tokens_details":{"image_tokens":%d,"text_tokens":%d},"output_tokens":%d,'
        b'"output_tokens_details":{"image_tokens":%d,"text_tokens":0},"total_tokens":%d}'
    ) % (
        counts.input_tokens,
        drawn,
        counts.input_tokens - drawn,
        counts.output_tokens,
        counts.output_tokens,
        counts.input_tokens + counts.output_tokens,
    )


# Speech


class SpeechRequest(msgspec.Struct):
    model: str
    input: str
    voice: str | dict[str, str] = ""
    instructions: str | None = None
    response_format: str | None = None
    stream_format: str | None = None


_decode_speech = msgspec.json.Decoder(SpeechRequest).decode


def ask_speech(request: Request) -> Asked:
    """Raises `Refused`."""
    asked = decode(_decode_speech, request.body)
    texts = [asked.input] if asked.instructions is None else [asked.input, asked.instructions]
    return Asked(asked.model, texts, Speech, is_stream=asked.stream_format == "sse", details=asked)


class Speech(Answer):
    """20 ms of sound for each token. Whatever format was asked for, it is a WAV. As bytes it tells no usage."""

    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        plan = plan_words(asked, input_tokens, directives)
        return replace(plan, units=len(asked.details.input))

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        form = self.asked.details.response_format or "mp3"
        self.whole_fields = b"content-type: %b\r\n" % _TYPES.get(form, "audio/wav").encode()

    def whole(self) -> tuple[bytes, bytes]:
        return sound(self.plan.visible_tokens * SPEECH_MS_A_TOKEN), b""

    def events(self) -> Iterator[Event]:
        heard = base64.b64encode(sound(SPEECH_MS_A_TOKEN))
        for _ in range(self.plan.visible_tokens):
            yield data_event(b'{"type":"speech.audio.delta","audio":"%b"}' % heard), 1, 1, b""
        usage = _token_usage(self.plan.counts) if self.says_usage else b""
        told = b',"usage":%b' % usage if usage else b""
        yield data_event(b'{"type":"speech.audio.done"%b}' % told), 0, 0, usage

    def failure(self, status: int) -> bytes:
        return data_event(error_body(status))


def _token_usage(counts: Counts) -> bytes:
    total = counts.input_tokens + counts.output_tokens
    return b'{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d}' % (
        counts.input_tokens,
        counts.output_tokens,
        total,
    )


# What was said


class Heard(NamedTuple):
    seconds: int
    form: str
    is_translation: bool


def ask_transcription(request: Request) -> Asked:
    """Raises `Refused`."""
    return _ask_heard(request, is_translation=False)


def ask_translation(request: Request) -> Asked:
    """Raises `Refused`."""
    return _ask_heard(request, is_translation=True)


def _ask_heard(request: Request, *, is_translation: bool) -> Asked:
    form = read_form(request)
    seconds = -(-len(form.file("file").content) // SOUND_BYTES_A_SECOND)
    prompt = form.fields.get("prompt")
    return Asked(
        model=form.field("model"),
        texts=[prompt] if prompt else [],
        answers=Transcript,
        is_stream=form.fields.get("stream") == "true",
        more_tokens=seconds * SOUND_TOKENS_A_SECOND,
        details=Heard(seconds, form.fields.get("response_format", "json"), is_translation),
    )


class Transcript(Answer):
    """Whisper is paid by the second, the others by the token."""

    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        return replace(plan_words(asked, input_tokens, directives), units=asked.details.seconds)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        heard: Heard = self.asked.details
        self._usage = b""
        if self.says_usage:
            is_whisper = self.asked.model.startswith("whisper")
            by_time = b'{"type":"duration","seconds":%d}' % heard.seconds
            self._usage = by_time if is_whisper else _heard_usage(self.plan.counts, heard)
        if heard.form in ("text", "srt", "vtt"):
            self.whole_fields = b"content-type: text/plain; charset=utf-8\r\n"

    def whole(self) -> tuple[bytes, bytes]:
        heard: Heard = self.asked.details
        said = msgspec.json.decode(b'"%b"' % self.plan.saying.whole(), type=str)
        if heard.form in ("text", "srt", "vtt"):
            return _written(said, heard).encode(), b""
        answer: dict[str, object] = {"text": said}
        if heard.form == "verbose_json":
            segment = {"id": 0, "start": 0.0, "end": float(heard.seconds), "text": said}
            task = "translate" if heard.is_translation else "transcribe"
            answer |= {"task": task, "language": "english", "duration": float(heard.seconds), "segments": [segment]}
        if self._usage:
            answer["usage"] = msgspec.Raw(self._usage)
        return encode(answer), self._usage

    def events(self) -> Iterator[Event]:
        saying = self.plan.saying
        for position in range(saying.tokens):
            yield data_event(b'{"type":"transcript.text.delta","delta":"%b"}' % saying.piece(position)), 1, 1, b""
        told = b',"usage":%b' % self._usage if self._usage else b""
        done = b'{"type":"transcript.text.done","text":"%b"%b}' % (saying.whole(), told)
        yield data_event(done), 0, 0, self._usage
        if not self.call.directives.no_done:
            yield b"data: [DONE]\n\n", 0, 0, b""

    def failure(self, status: int) -> bytes:
        return data_event(error_body(status))


def _written(said: str, heard: Heard) -> str:
    if heard.form == "text":
        return f"{said}\n"
    until = f"00:{heard.seconds // 60:02d}:{heard.seconds % 60:02d}"
    if heard.form == "srt":
        return f"1\n00:00:00,000 --> {until},000\n{said}\n\n"
    return f"WEBVTT\n\n00:00:00.000 --> {until}.000\n{said}\n\n"


def _heard_usage(counts: Counts, heard: Heard) -> bytes:
    heard_tokens = min(heard.seconds * SOUND_TOKENS_A_SECOND, counts.input_tokens)
    return (
        b'{"type":"tokens","input_tokens":%d,"input_token_details":{"text_tokens":%d,"audio_tokens":%d},'
        b'"output_tokens":%d,"total_tokens":%d}'
    ) % (
        counts.input_tokens,
        counts.input_tokens - heard_tokens,
        heard_tokens,
        counts.output_tokens,
        counts.input_tokens + counts.output_tokens,
    )
