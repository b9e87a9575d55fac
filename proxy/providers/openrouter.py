"""OpenRouter. Pure; no I/O.

Source: openrouter.ai/docs. It passes signed reasoning and cache markers on to those who know them, and reports its usage
unasked; errors may come within a chunk.
"""

from collections.abc import Sequence
from typing import Any

from proxy.neutral import Media, Prompt, Reasoning, Thinking, ToolCall
from proxy.providers import openai_completions, openai_embeddings
from proxy.providers.openai_chat import is_off
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.openai_responses import OPEN_RESPONSES
from proxy.providers.provider import Provider
from proxy.reasoning_details import sent_details


class OpenRouterChat(CompatibleChat):
    renames = {}
    carried = (
        CompatibleChat.carried
        | {
            "top_k",
            "min_p",
            "repetition_penalty",
            "verbosity",
            "service_tier",
            "metadata",
            "prompt_cache_key",
            "modalities",
        }
    ) - {"choices"}
    media = frozenset({"image", "document", "audio", "video"})
    efforts = ("none", "minimal", "low", "medium", "high", "xhigh")

    def adjust(self, body: dict[str, Any], prompt: Prompt) -> None:
        if prompt.cache:
            body["cache_control"] = _marker(prompt.cache)

    def mark(self, part: dict[str, Any], cache: str) -> dict[str, Any]:
        return {**part, "cache_control": _marker(cache)}

    def write_media(self, media: Media, lost: list[str]) -> dict[str, Any] | None:
        if media.kind == "document" and media.url and not (media.is_cited or media.context):
            return {"type": "file", "file": {"filename": media.name or "document.pdf", "file_data": media.url}}
        return super().write_media(media, lost)

    def write_reasoning(self, reasoning: Reasoning, body: dict[str, Any], prompt: Prompt, lost: list[str]) -> None:
        wanted: dict[str, Any] = {}
        if is_off(reasoning):
            wanted["enabled"] = False
        elif reasoning.budget_tokens is not None and not reasoning.effort:
            wanted["max_tokens"] = reasoning.budget_tokens
        elif (effort := self.effort_of(reasoning)) is not None:
            wanted["effort"] = effort
        elif reasoning.is_on or reasoning.is_adaptive:
            wanted["enabled"] = True
        if reasoning.summary == "omitted":
            wanted["exclude"] = True
        if wanted:
            body["reasoning"] = wanted

    def write_thinking(self, thoughts: Sequence[Thinking], message: dict[str, Any], lost: list[str]) -> None:
        message["reasoning_details"] = sent_details(thoughts)

    def write_signatures(self, calls: Sequence[ToolCall], message: dict[str, Any], lost: list[str]) -> None:
        signed = [Thinking(signature=call.signature, origin="gemini", thinking_id=call.call_id) for call in calls]
        message["reasoning_details"] = [*message.get("reasoning_details", ()), *sent_details(signed)]


def _marker(cache: str) -> dict[str, str]:
    return {"type": "ephemeral", "ttl": cache} if cache == "1h" else {"type": "ephemeral"}


PROVIDER = Provider(
    name="openrouter",
    apis=(OpenRouterChat(), OPEN_RESPONSES, openai_completions.COMPLETIONS, openai_embeddings.EMBEDDINGS),
)
