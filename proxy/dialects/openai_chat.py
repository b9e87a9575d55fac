"""OpenAI's chat completions, as clients speak them. Pure; no I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.dialects.dialect import MEDIA_TOKENS_MAX, TEMPLATE_TOKENS, Call, invalid_field, json_fields
from proxy.dialects.openai import OpenAI
from proxy.errors import InvalidRequest

# Parts whose tokens do not show in the bytes of the request: an image by URL, a file by id, audio. Each is bounded apart.
MEDIA_MARKS = (b'"image_url"', b'"input_audio"', b'"file"')
CHOICES_MAX = 128


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Head(msgspec.Struct):
    """Only what we act on; everything else passes through untouched."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    metadata: Any = None


_decode_head = msgspec.json.Decoder(_Head).decode


class OpenAIChat(OpenAI):
    name = "openai.chat"
    operation = "chat"
    capability = "chat"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        try:
            head = _decode_head(body)
        except msgspec.ValidationError as error:
            raise invalid_field(error) from error
        if not head.model:
            raise InvalidRequest("`model` is empty: name one of the aliases that GET /v1/models lists", param="model")
        caps = [cap for cap in (head.max_tokens, head.max_completion_tokens) if cap is not None]
        if any(cap < 1 for cap in caps):
            raise InvalidRequest("the output cap must be at least 1", param="max_completion_tokens")
        choices = head.n if head.n is not None else 1
        if not 1 <= choices <= CHOICES_MAX:
            raise InvalidRequest(f"`n` must be between 1 and {CHOICES_MAX}", param="n")
        media = sum(body.count(mark) for mark in MEDIA_MARKS)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            is_stream=bool(head.stream),
            wants_usage_chunk=head.stream_options is not None and bool(head.stream_options.include_usage),
            output_tokens_max=max(caps, default=None),
            choices=choices,
            # Byte-level tokenisers never make more tokens than bytes.
            input_tokens_max=len(body) + TEMPLATE_TOKENS + media * MEDIA_TOKENS_MAX,
            has_audio=b'"input_audio"' in body or b'"audio"' in body,
            metadata=head.metadata,
        )


CHAT = OpenAIChat()
