"""Cohere's reranking. Pure; no I/O."""

from typing import Any

import msgspec

from proxy.dialects.dialect import Call
from proxy.neutral import ProviderError, Ranked, Reranking
from proxy.providers.cohere_errors import read_error
from proxy.providers.cohere_usage import Meta, usage_of_meta
from proxy.providers.provider import Api, Measured, Outgoing, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

_encode = msgspec.json.Encoder().encode


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranked(msgspec.Struct):
    results: list[_Result]
    id: str | None = None
    meta: Meta | None = None


_ranked = Shape(_Ranked)


class CohereRerank(Api):
    """Billed in search units: a query with up to a hundred documents."""

    name = "cohere.rerank"
    capability = "rerank"
    target = b"/v2/rerank"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return Outgoing(self.target, dump_object(renamed(call, deployment)))

    def measure(self, body: bytes) -> Measured:
        return Measured(usage=usage_of_meta(_ranked.read(body).meta))

    def write_request(
        self, prompt: Reranking, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "query": prompt.query,
            "documents": prompt.documents,
        }
        if prompt.top_n is not None:
            body["top_n"] = prompt.top_n
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Ranked:
        ranked = _ranked.read(body)
        return Ranked(
            results=[(result.index, result.relevance_score) for result in ranked.results],
            answer_id=ranked.id or "",
            usage=usage_of_meta(ranked.meta),
        )

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class CohereRerankV1(CohereRerank):
    """The same, and documents may have fields."""

    name = "cohere.rerank.v1"
    target = b"/v1/rerank"
    is_translatable = False


RERANK = CohereRerank()
RERANK_V1 = CohereRerankV1()
