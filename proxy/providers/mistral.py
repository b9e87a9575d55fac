"""Mistral. Pure; no I/O.

Source: docs.mistral.ai/api. It refuses fields that it does not know, and ids of calls that are not nine letters and digits.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from proxy.neutral import Media, Thinking
from proxy.providers import openai_embeddings
from proxy.providers.openai_chat import data_url
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.provider import Provider

_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")


class MistralChat(CompatibleChat):
    renames = {"max_completion_tokens": "max_tokens", "seed": "random_seed"}
    asks_for_usage = False  # It stands on the last chunk anyway.
    carried = (CompatibleChat.carried | {"metadata"}) - {"user", "logit_bias"}
    media = frozenset({"image", "document", "audio"})
    any_tool = "any"
    efforts = ("none", "high")

    def call_id(self, call_id: str) -> str:
        return (
            call_id if _CALL_ID.fullmatch(call_id) else hashlib.blake2b(call_id.encode(), digest_size=5).hexdigest()[:9]
        )

    def write_media(self, media: Media, lost: list[str]) -> dict[str, Any] | None:
        if media.kind == "audio" and (media.data or media.url):
            return {"type": "input_audio", "input_audio": media.data or media.url}
        if media.kind == "document" and (media.data or media.url) and not (media.is_cited or media.context):
            named = {"document_name": media.name} if media.name else {}
            url = media.url or data_url(media, "application/pdf")
            return {"type": "document_url", "document_url": url, **named}
        return super().write_media(media, lost)

    def write_thinking(self, thoughts: Sequence[Thinking], message: dict[str, Any], lost: list[str]) -> None:
        """Reasoning comes first among the parts of the content."""
        lost.extend(thought.path for thought in thoughts if thought.origin and (thought.signature or thought.redacted))
        own = [thought for thought in thoughts if not thought.origin or not (thought.signature or thought.redacted)]
        said = message["content"]
        content = [{"type": "text", "text": said}] if isinstance(said, str) and said else said or []
        chunks = [_chunk(thought) for thought in own]
        message["content"] = [*chunks, *content] or ""


def _chunk(thought: Thinking) -> dict[str, Any]:
    chunk: dict[str, Any] = {"type": "thinking", "thinking": [{"type": "text", "text": thought.text}]}
    return {**chunk, "signature": thought.signature} if thought.signature else chunk


PROVIDER = Provider(name="mistral", apis=(MistralChat(), openai_embeddings.EMBEDDINGS))
