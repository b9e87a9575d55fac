"""Cohere's embeddings. Pure; no I/O."""

from typing import Any

import msgspec

from proxy.dialects.dialect import Call
from proxy.neutral import Embedded, Embedding, Media, ProviderError
from proxy.providers.cohere_chat import write_image
from proxy.providers.cohere_errors import read_error
from proxy.providers.cohere_usage import Meta, usage_of_meta
from proxy.providers.provider import Api, Measured, Outgoing, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

_INPUT_TYPES = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}

_encode = msgspec.json.Encoder().encode


class _Head(msgspec.Struct):
    meta: Meta | None = None


class _ByType(msgspec.Struct):
    float: list[list[float]]


class _Embedded(msgspec.Struct):
    embeddings: _ByType
    meta: Meta | None = None


_heads = Shape(_Head)
_embedded = Shape(_Embedded)


class CohereEmbed(Api):
    name = "cohere.embed"
    capability = "embeddings"
    target = b"/v2/embed"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return Outgoing(self.target, dump_object(renamed(call, deployment)))

    def measure(self, body: bytes) -> Measured:
        return Measured(usage=usage_of_meta(_heads.read(body).meta))

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        """Cohere's models want a task: a document's, where the client has none. Too long an input is an error, as it is
        with everybody but Cohere, and not cut."""
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "input_type": _INPUT_TYPES.get(prompt.task, "search_document"),
            "embedding_types": ["float"],
            "truncate": "NONE",
        }
        if prompt.task and prompt.task not in _INPUT_TYPES:
            lost.append(prompt.names.get("task", "task"))
        for name in ("title", "user"):
            if getattr(prompt, name):
                lost.append(prompt.names.get(name, name))
        if prompt.dimensions is not None:
            body["output_dimension"] = prompt.dimensions
        images = _data_images(prompt)
        if all(isinstance(item, str) for item in prompt.inputs):
            body["texts"] = prompt.inputs
        elif len(images) == len(prompt.inputs):
            body["images"] = images
            body["input_type"] = "image"
        else:
            body["inputs"] = _write_inputs(prompt, lost)
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Embedded:
        embedded = _embedded.read(body)
        return Embedded(vectors=embedded.embeddings.float, usage=usage_of_meta(embedded.meta))

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class CohereEmbedV1(CohereEmbed):
    """The same with other defaults, for clients that were written for it."""

    name = "cohere.embed.v1"
    target = b"/v1/embed"
    is_translatable = False


def _data_images(prompt: Embedding) -> list[str]:
    """Older models take these alone."""
    return [
        f"data:{item.media_type};base64,{item.data}"
        for item in prompt.inputs
        if isinstance(item, Media) and item.kind == "image" and item.data
    ]


def _write_inputs(prompt: Embedding, lost: list[str]) -> list[dict[str, Any]]:
    inputs: list[dict[str, Any]] = []
    for item in prompt.inputs:
        content: list[dict[str, Any]] = []
        if isinstance(item, str):
            content.append({"type": "text", "text": item})
        elif not isinstance(item, Media):
            lost.append(prompt.names.get("inputs", "input"))  # Token ids of somebody else's tokeniser.
        elif (image := write_image(item)) is not None:
            content.append(image)
        else:
            lost.append(item.path)
        inputs.append({"content": content})
    return inputs


EMBED = CohereEmbed()
EMBED_V1 = CohereEmbedV1()
