"""Cohere's reranking, as clients speak it. Pure; no I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.dialects.cohere import Cohere, meta
from proxy.dialects.dialect import TEMPLATE_TOKENS, Call, HeadReader, json_fields
from proxy.fields import Fields
from proxy.neutral import Ranked, Reranking

# A search unit is a query with up to so many documents; a longer document counts for each so many tokens.
DOCUMENTS_PER_UNIT = 100
TOKENS_PER_DOCUMENT = 500

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Head(msgspec.Struct):
    model: str
    query: str
    documents: list[msgspec.Raw]


_decode_head = HeadReader(_Head).read


class CohereRerank(Cohere):
    name = "cohere.rerank"
    operation = "rerank"
    capability = "rerank"
    version = "2"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        """Bounds for providers that bill search units and for those that bill tokens, who count the query with each document."""
        fields = json_fields(body)
        head = _decode_head(body)
        documents = len(head.documents)
        pieces = documents + len(body) // TOKENS_PER_DOCUMENT
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            input_tokens_max=len(body) + documents * (len(head.query.encode()) + TEMPLATE_TOKENS),
            output_tokens_max=0,
            units_max=-(-pieces // DOCUMENTS_PER_UNIT),
        )

    def read_prompt(self, call: Call) -> Reranking:
        fields = Fields(_decode(call.body))
        fields.any("model")
        lost: list[str] = []
        reranking = Reranking(
            query=fields.required_text("query"),
            documents=[_read_document(value, index, lost) for index, value in enumerate(fields.items("documents"))],
            top_n=fields.integer("top_n"),
            returns_documents=bool(fields.flag("return_documents")),
            lost=lost,
        )
        fields.rest(lost)
        return reranking

    def write_answer(self, answer: Ranked, call: Call) -> bytes:
        assert isinstance(call.prompt, Reranking), "an answer comes after its request"
        documents = call.prompt.documents
        results: list[dict[str, Any]] = []
        for index, score in answer.results:
            result: dict[str, Any] = {"index": index, "relevance_score": score}
            if call.prompt.returns_documents and 0 <= index < len(documents):
                result["document"] = {"text": documents[index]}
            results.append(result)
        return _encode({"id": answer.answer_id, "results": results, "meta": meta(self.version, answer.usage)})


class CohereRerankV1(CohereRerank):
    """Documents may be objects with a `text`. Jina, vLLM and llama.cpp took this form over."""

    name = "cohere.rerank.v1"
    version = "1"


def _read_document(value: Any, index: int, lost: list[str]) -> str:
    if type(value) is str:
        return value
    document = Fields(value, f"documents.{index}.")
    text = document.required_text("text")
    document.rest(lost)
    return text


RERANK = CohereRerank()
RERANK_V1 = CohereRerankV1()
