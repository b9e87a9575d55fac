"""Reranking as Jina, vLLM and llama.cpp have it, and as Voyage has it: billed in tokens. Pure; no I/O."""

from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.neutral import ProviderError, Ranked, Reranking
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Api, Measured, Outgoing, checked_usage, name_of, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


class _Usage(msgspec.Struct):
    total_tokens: int | None = None
    prompt_tokens: int | None = None


class _Head(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NULL


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranked(msgspec.Struct):
    """Voyage calls its results `data`."""

    results: list[_Result] | None = None
    data: list[_Result] | None = None
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None


_heads = Shape(_Head)
_ranked = Shape(_Ranked)


class Rerank(Api):
    """They took the form of Cohere's first version over."""

    name = "cohere.rerank.v1"
    capability = "rerank"
    target = b"/rerank"
    top_field = "top_n"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return Outgoing(self.target, dump_object(renamed(call, deployment)))

    def measure(self, body: bytes) -> Measured:
        head = _heads.read(body)
        return Measured(
            usage=_usage_of(head.usage), response_model=name_of(head.model), has_error=bytes(head.error) != b"null"
        )

    def write_request(
        self, prompt: Reranking, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "query": prompt.query,
            "documents": prompt.documents,
        }
        if prompt.top_n is not None:
            body[self.top_field] = prompt.top_n
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Ranked:
        ranked = _ranked.read(body)
        results = ranked.results if ranked.results is not None else ranked.data
        if results is None:
            raise msgspec.ValidationError("an answer without results")
        return Ranked(
            # llama.cpp gives them in the order of the documents.
            results=sorted(((result.index, result.relevance_score) for result in results), key=lambda pair: -pair[1]),
            answer_id=ranked.id or "",
            model=name_of(ranked.model),
            usage=_usage_of(ranked.usage),
        )

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


def _usage_of(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    tokens = usage.total_tokens if usage.total_tokens is not None else usage.prompt_tokens
    return checked_usage(Usage(input_tokens=tokens)) if tokens is not None else None


RERANK = Rerank()
