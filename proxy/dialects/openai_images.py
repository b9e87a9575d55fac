"""OpenAI's images: generated, edited, varied. Pure; no I/O. Billed by the image or by the token, as the model's price says."""

from collections.abc import Mapping

import msgspec

from proxy.dialects.dialect import (
    MEDIA_TOKENS_MAX,
    TEMPLATE_TOKENS,
    Call,
    HeadReader,
    form_of,
    is_form,
    json_fields,
    plain,
)
from proxy.dialects.openai import OpenAI
from proxy.errors import InvalidRequest

IMAGES_MAX = 16
# Images that are elsewhere.
MEDIA_MARKS = (b'_url"', b'"file_id"')
# What gpt-image makes at most of one image at its highest quality and largest size, and of each partial image.
# Source: OpenAI's image generation guide, table of output tokens (6,240) and partial images (100 each).
IMAGE_TOKENS_MAX = 8_192


class _Head(msgspec.Struct):
    model: str
    n: int | None = None
    stream: bool | None = None


_decode_head = HeadReader(_Head).read


class OpenAIImages(OpenAI):
    operation = "images"
    capability = "images"

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields: dict[str, msgspec.Raw] = {}
        far = 0
        if is_form(content_type):
            form = form_of(body, content_type)
            model, images, is_stream = form.required("model"), form.integer("n"), form.text("stream") == "true"
        else:
            fields = json_fields(body)
            seen = plain(body)
            far = sum(seen.count(mark) for mark in MEDIA_MARKS)
            head = _decode_head(body)
            model, images, is_stream = head.model, head.n, bool(head.stream)
        images = 1 if images is None else images
        if not 1 <= images <= IMAGES_MAX:
            raise InvalidRequest(f"`n` must be between 1 and {IMAGES_MAX}", param="n")
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=model,
            body=body,
            content_type=content_type,
            fields=fields,
            parameters=parameters,
            is_stream=is_stream,
            input_tokens_max=min(len(body) + far * MEDIA_TOKENS_MAX, MEDIA_TOKENS_MAX * IMAGES_MAX) + TEMPLATE_TOKENS,
            output_tokens_max=IMAGE_TOKENS_MAX,
            choices=images,
            units_max=images,
            has_images=True,
        )


GENERATIONS = OpenAIImages("openai.images.generations")
EDITS = OpenAIImages("openai.images.edits")
VARIATIONS = OpenAIImages("openai.images.variations")
