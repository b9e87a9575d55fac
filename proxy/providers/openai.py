"""OpenAI, and whoever offers the same APIs under another base URL. Pure; no I/O."""

from proxy.providers import (
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_media,
    openai_realtime,
    openai_responses,
    openai_stored,
)
from proxy.providers.provider import Provider

PROVIDER = Provider(
    name="openai",
    apis=(
        openai_chat.CHAT,
        openai_responses.RESPONSES,
        openai_completions.COMPLETIONS,
        openai_embeddings.EMBEDDINGS,
        *openai_media.ALL,
        openai_realtime.REALTIME,
        *openai_stored.ALL,
    ),
    response_headers=frozenset({b"content-type", b"retry-after", b"openai-processing-ms", b"openai-version"}),
)
