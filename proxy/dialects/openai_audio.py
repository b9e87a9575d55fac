"""OpenAI's audio: speech from text, text from speech. Pure; no I/O.

Speech is billed by the character or the token, transcription by the second or the token, as the model's price says.
"""

from collections.abc import Mapping

import msgspec

from proxy.dialects.dialect import TEMPLATE_TOKENS, Call, HeadReader, form_of, json_fields
from proxy.dialects.openai import OpenAI

# What one second of the most compressed audio takes (6 kbit/s): a file is no longer than its bytes by this.
BYTES_PER_SECOND_MIN = 750
# OpenAI counts 10 tokens for a second of audio that it hears and some 20 for one that it speaks; a character is at most
# a few tenths of a second.
HEARD_TOKENS_PER_SECOND = 10
SPOKEN_TOKENS_PER_CHARACTER = 8


class _Speech(msgspec.Struct):
    model: str
    input: str
    stream_format: str | None = None


_decode_speech = HeadReader(_Speech).read


class OpenAISpeech(OpenAI):
    """The answer is audio, sent as it comes; `stream_format: "sse"` makes it events, which pass the same way."""

    name = "openai.speech"
    operation = "speech"
    capability = "speech"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_speech(body)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            parameters={"stream_format": head.stream_format or "audio"},
            is_stream=True,
            input_tokens_max=len(body) + TEMPLATE_TOKENS,
            output_tokens_max=SPOKEN_TOKENS_PER_CHARACTER * len(head.input) + TEMPLATE_TOKENS,
            units_max=len(head.input),
            has_audio=True,
        )


class OpenAITranscription(OpenAI):
    """A form with a file; `translations` answers in English."""

    operation = "transcription"
    capability = "transcription"

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        form = form_of(body, content_type)
        prompt = form.text("prompt") or ""
        seconds = -(-len(body) // BYTES_PER_SECOND_MIN)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=form.required("model"),
            body=body,
            content_type=content_type,
            is_stream=form.text("stream") == "true",
            input_tokens_max=seconds * HEARD_TOKENS_PER_SECOND + len(prompt.encode()) + TEMPLATE_TOKENS,
            units_max=seconds,
            has_audio=True,
        )


SPEECH = OpenAISpeech()
TRANSCRIPTIONS = OpenAITranscription("openai.audio.transcriptions")
TRANSLATIONS = OpenAITranscription("openai.audio.translations")
