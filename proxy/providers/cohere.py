"""Cohere: chat, embeddings and reranking. Pure; no I/O."""

from proxy.providers.cohere_chat import CHAT
from proxy.providers.cohere_embed import EMBED, EMBED_V1
from proxy.providers.cohere_rerank import RERANK, RERANK_V1
from proxy.providers.provider import Provider

PROVIDER = Provider(
    name="cohere",
    apis=(CHAT, EMBED, EMBED_V1, RERANK, RERANK_V1),
    response_headers=frozenset({b"content-type", b"retry-after", b"x-debug-trace-id"}),
)
