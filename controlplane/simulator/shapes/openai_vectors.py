"""OpenAI's embeddings and moderations, and reranking as it is spoken beside them (vLLM, Jina, Together). None streams."""

from typing import Annotated, Any, Literal

import msgspec

from controlplane.simulator.calls import Answer, Asked, Plan, Request, decode, plan_input
from controlplane.simulator.directives import Directives, Like
from controlplane.simulator.words import DIMENSIONS, encode, place, vector_base64, vector_json

_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)


class EmbeddingsRequest(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None

    def items(self) -> list[str | list[int]]:
        """One for each vector asked for: a text, or a text as token numbers."""
        if isinstance(self.input, str):
            return [self.input]
        numbers = [item for item in self.input if isinstance(item, int)]
        if numbers:
            return [numbers]
        return [item for item in self.input if not isinstance(item, int)]


class RerankRequest(msgspec.Struct):
    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool | None = None

    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else str(document.get("text", "")) for document in self.documents]


class ModerationRequest(msgspec.Struct):
    input: str | list[str | dict[str, Any]]
    model: str = "omni-moderation-latest"

    def texts(self) -> list[str]:
        items = [self.input] if isinstance(self.input, str) else self.input
        return [item if isinstance(item, str) else str(item.get("text") or "") for item in items]


_decode_embeddings = msgspec.json.Decoder(EmbeddingsRequest).decode
_decode_rerank = msgspec.json.Decoder(RerankRequest).decode
_decode_moderation = msgspec.json.Decoder(ModerationRequest).decode


def ask_embeddings(request: Request) -> Asked:
    """Raises `Refused`."""
    embeddings = decode(_decode_embeddings, request.body)
    items = embeddings.items()
    texts = [item for item in items if isinstance(item, str)]
    numbers = sum(len(item) for item in items if not isinstance(item, str))
    return Asked(embeddings.model, texts, Embeddings, more_tokens=numbers, details=embeddings)


def ask_rerank(request: Request) -> Asked:
    """Raises `Refused`."""
    rerank = decode(_decode_rerank, request.body)
    return Asked(rerank.model, [rerank.query, *rerank.texts()], Ranking, details=rerank)


def ask_moderation(request: Request) -> Asked:
    """Raises `Refused`."""
    moderation = decode(_decode_moderation, request.body)
    return Asked(moderation.model, moderation.texts(), Moderation)


class _WithoutOutput(Answer):
    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        return plan_input(asked, input_tokens, directives)

    def _input_usage(self) -> bytes:
        tokens = self.plan.counts.input_tokens
        return b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens) if self.says_usage else b""


class Embeddings(_WithoutOutput):
    def whole(self) -> tuple[bytes, bytes]:
        asked: EmbeddingsRequest = self.asked.details
        dimensions = asked.dimensions or DIMENSIONS
        vector = vector_base64 if asked.encoding_format == "base64" else vector_json
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector(dimensions, place(item) % dimensions))
            for index, item in enumerate(asked.items())
        )
        usage = self._input_usage()
        told = b',"usage":%b' % usage if usage else b""
        # Mistral's have an id.
        name = b'"id":"%b",' % self.id if self.call.directives.like == Like.MISTRAL else b""
        return b'{%b"object":"list","data":[%b],"model":%b%b}' % (name, data, self.model, told), usage


class Ranking(_WithoutOutput):
    def whole(self) -> tuple[bytes, bytes]:
        asked: RerankRequest = self.asked.details
        usage = self._input_usage()
        results = [
            {"index": index, "relevance_score": score}
            | ({"document": {"text": asked.texts()[index]}} if asked.return_documents else {})
            for index, score in ranks(asked.query, asked.texts(), asked.top_n)
        ]
        answer = {"id": f"rerank-{self.call.call_id}", "model": self.asked.model_name(), "results": results}
        return encode(answer | ({"usage": msgspec.Raw(usage)} if usage else {})), usage


class Moderation(_WithoutOutput):
    def whole(self) -> tuple[bytes, bytes]:
        result = {
            "flagged": False,
            "categories": dict.fromkeys(_CATEGORIES, False),
            "category_scores": dict.fromkeys(_CATEGORIES, 0.0001),
            "category_applied_input_types": {category: ["text"] for category in _CATEGORIES},
        }
        results = [result] * len(self.asked.texts)
        return encode({"id": f"modr-{self.call.call_id}", "model": self.asked.model_name(), "results": results}), b""


def ranks(query: str, documents: list[str], top_n: int | None) -> list[tuple[int, float]]:
    """(place among the documents, score from 0 to 1): the more words of the query it has, the better; the best first."""
    wanted = set(query.lower().split())
    scores = [len(wanted & set(text.lower().split())) / (len(wanted) or 1) * 0.98 + 0.01 for text in documents]
    return sorted(enumerate(scores), key=lambda item: -item[1])[:top_n]
