"""llama.cpp's server. Pure; no I/O.

Source: github.com/ggml-org/llama.cpp, tools/server/README.md. Efforts reach the model through its chat template. Of
Anthropic's messages it knows no betas and no schema, and leaves out what it cannot read.
"""

from typing import Any

from proxy.neutral import Prompt
from proxy.providers import anthropic, openai_completions, openai_embeddings
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.openai_responses import OPEN_RESPONSES
from proxy.providers.provider import Provider
from proxy.providers.rerank import RERANK


class LlamaCppChat(CompatibleChat):
    renames = {"max_completion_tokens": "max_tokens", "repetition_penalty": "repeat_penalty"}
    carried = CompatibleChat.carried | {"top_k", "min_p", "repetition_penalty"}
    media = frozenset({"image", "audio"})

    def adjust(self, body: dict[str, Any], prompt: Prompt) -> None:
        effort = body.get("reasoning_effort")
        if effort is not None:
            body["chat_template_kwargs"] = (
                {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
            )


CHAT = LlamaCppChat()
PROVIDER = Provider(
    name="llamacpp",
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
