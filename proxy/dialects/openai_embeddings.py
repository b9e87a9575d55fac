"""OpenAI's embeddings, as clients speak them. Pure; no I/O."""

import base64
from array import array
from collections.abc import Mapping
from sys import byteorder
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import MEDIA_TOKENS_MAX, TEMPLATE_TOKENS, Call, HeadReader, json_fields, plain
from proxy.dialects.openai import OpenAI
from proxy.fields import Fields, wrong
from proxy.neutral import Embedded, Embedding

# Inputs of providers shaped like OpenAI whose tokens do not show in the bytes of the request.
MEDIA_MARKS = (b'"image', b'"video', b'"audio')
# What OpenAI has no parameter for, and providers shaped like it call `input_type`.
TASKS = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "classification": "classification",
    "clustering": "clustering",
}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Head(msgspec.Struct):
    model: str
    metadata: Any = None


_decode_head = HeadReader(_Head).read


class OpenAIEmbeddings(OpenAI):
    name = "openai.embeddings"
    operation = "embeddings"
    capability = "embeddings"
    is_translatable = True

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_head(body)
        seen = plain(body)
        media = sum(seen.count(mark) for mark in MEDIA_MARKS)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            input_tokens_max=len(body) + TEMPLATE_TOKENS + media * MEDIA_TOKENS_MAX,
            output_tokens_max=0,
            metadata=head.metadata,
        )

    def read_prompt(self, call: Call) -> Embedding:
        fields = Fields(_decode(call.body))
        fields.any("model")
        lost: list[str] = []
        encoding = fields.text("encoding_format") or "float"
        if encoding not in {"float", "base64"}:
            raise wrong("encoding_format", '"float" or "base64"')
        task = fields.text("input_type") or ""
        if task and task not in TASKS:
            lost.append("input_type")
        embedding = Embedding(
            inputs=_read_inputs(fields.any("input")),
            dimensions=fields.integer("dimensions"),
            task=TASKS.get(task, ""),
            encoding=encoding,
            user=fields.text("user"),
            names={"task": "input_type"},
            lost=lost,
        )
        fields.rest(lost)
        return embedding

    def write_answer(self, answer: Embedded, call: Call) -> bytes:
        assert isinstance(call.prompt, Embedding), "an answer comes after its request"
        is_base64 = call.prompt.encoding == "base64"
        tokens = (answer.usage or Usage()).input_tokens
        return _encode(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": packed_base64(vector) if is_base64 else vector}
                    for index, vector in enumerate(answer.vectors)
                ],
                "model": call.alias,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )


def packed_base64(vector: list[float]) -> str:
    """Little-endian 32-bit floats."""
    packed = array("f", vector)
    if byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def _read_inputs(value: Any) -> list[Any]:
    """A text, a list of texts, the tokens of one text, or a list of such."""
    if type(value) is str:
        return [value]
    if type(value) is not list or not value:
        raise wrong("input", "a text, a list of texts, or token ids")
    if all(type(item) is int for item in value):
        return [value]
    for index, item in enumerate(value):
        if type(item) is not str and not (type(item) is list and all(type(token) is int for token in item)):
            raise wrong(f"input.{index}", "a text or token ids")
    return value


EMBEDDINGS = OpenAIEmbeddings()
