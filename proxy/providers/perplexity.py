"""Perplexity. Pure; no I/O.

Source: docs.perplexity.ai/api-reference/chat-completions-post. Usage stands in every chunk, sources beside the choices, and
no `[DONE]` ends a stream. Its models call no tools.
"""

from typing import Any

from proxy.neutral import Media
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.provider import Provider


class PerplexityChat(CompatibleChat):
    asks_for_usage = False
    carried = frozenset(
        {
            "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "stop", "output_format", "reasoning",
            "cache",
        }
    )  # fmt: skip
    media = frozenset({"image", "document"})
    has_tools = False
    efforts = ("minimal", "low", "medium", "high")
    thinking_field = ""

    def write_media(self, media: Media, lost: list[str]) -> dict[str, Any] | None:
        if media.kind == "document" and (media.data or media.url) and not (media.is_cited or media.context):
            named = {"file_name": media.name} if media.name else {}
            return {"type": "file_url", "file_url": {"url": media.url or media.data}, **named}
        return super().write_media(media, lost)


PROVIDER = Provider(name="perplexity", apis=(PerplexityChat(),))
