"""vLLM, and servers that follow it. Pure; no I/O.

Source: docs.vllm.ai/en/latest/serving/openai_compatible_server.html. Whether a template can be told not to think, and how,
is the model's affair; `enable_thinking` is what most call it. Of Anthropic's messages
(docs.vllm.ai/en/stable/serving/integrations/claude_code) it knows neither betas nor `thinking`, and it invents signatures.
"""

from typing import Any

from proxy.neutral import Prompt
from proxy.providers import anthropic, openai_completions, openai_embeddings
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.openai_responses import OPEN_RESPONSES
from proxy.providers.provider import Provider
from proxy.providers.rerank import RERANK


class VllmChat(CompatibleChat):
    renames = {}
    carried = CompatibleChat.carried | {"top_k", "min_p", "repetition_penalty"}
    media = frozenset({"image", "audio", "video"})
    thinking_field = "reasoning"

    def adjust(self, body: dict[str, Any], prompt: Prompt) -> None:
        if body.get("reasoning_effort") == "none":
            body["chat_template_kwargs"] = {"enable_thinking": False}


CHAT = VllmChat()
PROVIDER = Provider(
    name="vllm",
    apis=(
        CHAT,
        OPEN_RESPONSES,
        anthropic.OPEN_MESSAGES,
        anthropic.OPEN_COUNT_TOKENS,
        openai_completions.COMPLETIONS,
        openai_embeddings.EMBEDDINGS,
        RERANK,
    ),
)
