"""Cohere's embeddings, as clients speak them. Pure; no I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.dialects.cohere import IMAGE_MARK, Cohere, image_at, meta, read_content, texts
from proxy.dialects.dialect import MEDIA_TOKENS_MAX, TEMPLATE_TOKENS, Call, HeadReader, json_fields, plain
from proxy.dialects.openai_embeddings import TASKS, packed_base64
from proxy.fields import Fields, wrong
from proxy.neutral import Embedded, Embedding, Media, Text

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Head(msgspec.Struct):
    model: str
    images: list[msgspec.Raw] | None = None


_decode_head = HeadReader(_Head).read


class CohereEmbed(Cohere):
    name = "cohere.embed"
    operation = "embeddings"
    capability = "embeddings"
    version = "2"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_head(body)
        images = plain(body).count(IMAGE_MARK) + len(head.images or ())
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            input_tokens_max=len(body) + TEMPLATE_TOKENS + images * MEDIA_TOKENS_MAX,
            output_tokens_max=0,
            units_max=images,
            has_images=images > 0,
        )

    def read_prompt(self, call: Call) -> Embedding:
        """`encoding` is what of `embedding_types` can be made of floats, separated by blanks."""
        fields = Fields(_decode(call.body))
        fields.any("model")
        lost: list[str] = []
        task = fields.text("input_type") or ""
        encodings: list[str] = []
        for index, kind in enumerate(texts(fields, "embedding_types")):
            if kind in {"float", "base64"}:
                encodings.append(kind)
            else:
                lost.append(f"embedding_types.{index}")
        # What is too long is an error with others, and so it is with "NONE".
        if (fields.text("truncate") or "NONE").upper() != "NONE":
            lost.append("truncate")
        embedding = Embedding(
            inputs=_read_inputs(fields, lost),
            dimensions=fields.integer("output_dimension"),
            task=TASKS.get(task, ""),
            encoding=" ".join(encodings),
            names={"task": "input_type", "dimensions": "output_dimension", "inputs": "texts"},
            lost=lost,
        )
        if task not in TASKS and task not in {"", "image"}:
            lost.append("input_type")
        fields.rest(lost)
        return embedding

    def write_answer(self, answer: Embedded, call: Call) -> bytes:
        assert isinstance(call.prompt, Embedding), "an answer comes after its request"
        encodings = call.prompt.encoding.split()
        written: dict[str, Any] = {"id": "", "texts": [text for text in call.prompt.inputs if isinstance(text, str)]}
        if not encodings and self.version == "1":
            written["embeddings"] = answer.vectors
            written["response_type"] = "embeddings_floats"
        else:
            by_type: dict[str, Any] = {}
            if "float" in encodings or not encodings:
                by_type["float"] = answer.vectors
            if "base64" in encodings:
                by_type["base64"] = [packed_base64(vector) for vector in answer.vectors]
            written["embeddings"] = by_type
            written["response_type"] = "embeddings_by_type"
        written["meta"] = meta(self.version, answer.usage)
        return _encode(written)


class CohereEmbedV1(CohereEmbed):
    """Where no type is asked for, the vectors stand there as they are."""

    name = "cohere.embed.v1"
    version = "1"


def _read_inputs(fields: Fields, lost: list[str]) -> list[str | list[int] | Media]:
    inputs: list[str | list[int] | Media] = [*texts(fields, "texts")]
    inputs += [image_at(url, f"images.{index}") for index, url in enumerate(texts(fields, "images"))]
    for item in fields.objects("inputs"):
        parts = list(read_content(item, lost))
        if len(parts) == 1 and isinstance(parts[0], Text):
            inputs.append(parts[0].text)
        elif len(parts) == 1 and isinstance(parts[0], Media):
            inputs.append(parts[0])
        else:
            lost.append(item.path("content"))  # Texts and images as one.
        item.rest(lost)
    if not inputs and not lost:
        raise wrong("texts", "a list of texts")
    return inputs


EMBED = CohereEmbed()
EMBED_V1 = CohereEmbedV1()
