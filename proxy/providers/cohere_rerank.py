"""Cohere's reranking. Pure; no I/O."""

import msgspec

from proxy.neutral import ProviderError, Ranked
from proxy.providers.cohere_errors import read_error
from proxy.providers.cohere_usage import Meta, usage_of_meta
from proxy.providers.provider import Measured
from proxy.providers.rerank import Rerank
from proxy.wire.json_shape import Shape


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranked(msgspec.Struct):
    results: list[_Result]
    id: str | None = None
    meta: Meta | None = None


_ranked = Shape(_Ranked)


class CohereRerank(Rerank):
    """Billed in search units: a query with up to a hundred documents."""

    name = "cohere.rerank"
    target = b"/v2/rerank"

    def measure(self, body: bytes) -> Measured:
        return Measured(usage=usage_of_meta(_ranked.read(body).meta))

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
