"""Groq. Pure; no I/O.

Source: console.groq.com/docs/api-reference. One choice only, and neither penalties nor logprobs.
"""

from typing import Any

from proxy.neutral import Prompt
from proxy.providers import openai_stored
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.provider import Provider


class GroqChat(CompatibleChat):
    renames = {}
    carried = frozenset(
        {
            "parallel_tool_calls", "temperature", "top_p", "seed", "stop", "output_format", "reasoning", "user",
            "service_tier", "cache",
        }
    )  # fmt: skip
    thinking_field = "reasoning"

    def adjust(self, body: dict[str, Any], prompt: Prompt) -> None:
        if body.get("service_tier") == "default":
            body["service_tier"] = "on_demand"


PROVIDER = Provider(name="groq", apis=(GroqChat(), openai_stored.FILES, openai_stored.BATCHES))
