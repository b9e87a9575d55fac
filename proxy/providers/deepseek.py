"""DeepSeek. Pure; no I/O.

Source: api-docs.deepseek.com. Thinking is switched apart from its effort, and has to come back where it led to a call.
"""

from typing import Any

from proxy.neutral import Prompt, Reasoning
from proxy.providers.openai_chat import is_off
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.openai_responses import OPEN_RESPONSES
from proxy.providers.provider import Provider


class DeepSeekChat(CompatibleChat):
    carried = frozenset(
        {
            "temperature", "top_p", "frequency_penalty", "presence_penalty", "stop", "logprobs", "top_logprobs",
            "output_format", "reasoning", "user", "cache",
        }
    )  # fmt: skip
    media = frozenset()
    has_schemas = False
    efforts = ("low", "medium", "high", "max")

    def write_reasoning(self, reasoning: Reasoning, body: dict[str, Any], prompt: Prompt, lost: list[str]) -> None:
        body["thinking"] = {"type": "disabled" if is_off(reasoning) else "enabled"}
        effort = self.effort_of(reasoning)
        if effort is not None:
            body["reasoning_effort"] = effort


PROVIDER = Provider(name="deepseek", apis=(DeepSeekChat(), OPEN_RESPONSES))
