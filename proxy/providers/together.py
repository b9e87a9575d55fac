"""Together. Pure; no I/O.

Source: docs.together.ai/reference/chat-completions. `logprobs` is a number: how many alternatives of each token.
"""

from typing import Any

from proxy.neutral import Prompt
from proxy.providers import openai_completions, openai_embeddings
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.provider import Provider
from proxy.providers.rerank import RERANK


class TogetherChat(CompatibleChat):
    carried = (CompatibleChat.carried | {"top_k", "min_p", "repetition_penalty"}) - {"user", "parallel_tool_calls"}
    media = frozenset({"image", "audio", "video"})
    thinking_field = "reasoning"

    def adjust(self, body: dict[str, Any], prompt: Prompt) -> None:
        top = body.pop("top_logprobs", None)
        if body.pop("logprobs", False):
            body["logprobs"] = top or 1
        if body.get("reasoning_effort") == "none":
            del body["reasoning_effort"]
            body["reasoning"] = {"enabled": False}


PROVIDER = Provider(
    name="together",
    apis=(TogetherChat(), openai_completions.COMPLETIONS, openai_embeddings.EMBEDDINGS, RERANK),
)
