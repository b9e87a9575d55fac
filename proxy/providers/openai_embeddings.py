"""OpenAI's embeddings, as OpenAI and the providers shaped like it speak them. Pure; no I/O."""

import base64
from array import array
from sys import byteorder
from typing import Any, ClassVar

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.neutral import Embedded, Embedding, Media, ProviderError
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Api, Measured, Outgoing, checked_usage, name_of, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")
_FLOAT_BYTES = 4


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Head(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NULL


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Vector]
    model: str | None = None
    usage: _Usage | None = None


_heads = Shape(_Head)
_answers = Shape(_Answer)


class OpenAIEmbeddings(Api):
    name = "openai.embeddings"
    capability = "embeddings"
    target: ClassVar[bytes] = b"/embeddings"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return Outgoing(self.target, dump_object(renamed(call, deployment)))

    def measure(self, body: bytes) -> Measured:
        head = _heads.read(body)
        return Measured(
            usage=_usage_of(head.usage), response_model=name_of(head.model), has_error=bytes(head.error) != b"null"
        )

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        """A task is no loss: these models make one embedding for every task."""
        if prompt.title:
            lost.append(prompt.names.get("title", "title"))
        lost += [item.path for item in prompt.inputs if isinstance(item, Media)]
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "input": [item for item in prompt.inputs if not isinstance(item, Media)],
            "encoding_format": "float",
        }
        if prompt.dimensions is not None:
            body["dimensions"] = prompt.dimensions
        if prompt.user is not None:
            body["user"] = prompt.user
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Embedded:
        answer = _answers.read(body)
        data = sorted(answer.data, key=lambda item: item.index or 0)
        return Embedded(
            vectors=[_floats(item.embedding) for item in data],
            model=name_of(answer.model),
            usage=_usage_of(answer.usage),
        )

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


def texts_of(prompt: Embedding, lost: list[str]) -> list[str]:
    """For a provider that takes nothing else: tokens are those of another's tokeniser."""
    for item in prompt.inputs:
        if isinstance(item, Media):
            lost.append(item.path)
        elif not isinstance(item, str):
            lost.append(prompt.names.get("inputs", "input"))
    return [item for item in prompt.inputs if isinstance(item, str)]


def _usage_of(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    tokens = usage.prompt_tokens or usage.total_tokens
    return checked_usage(Usage(input_tokens=tokens)) if tokens is not None else None


def _floats(embedding: list[float] | str) -> list[float]:
    """Base64 is of little-endian 32-bit floats. Some providers send it although floats were asked for."""
    if isinstance(embedding, list):
        return embedding
    try:
        packed = base64.b64decode(embedding)
    except ValueError as error:
        raise msgspec.DecodeError("an embedding is not base64") from error
    if len(packed) % _FLOAT_BYTES:
        raise msgspec.DecodeError("an embedding holds a part of a number")
    floats = array("f", packed)
    if byteorder == "big":
        floats.byteswap()
    return floats.tolist()


EMBEDDINGS = OpenAIEmbeddings()
