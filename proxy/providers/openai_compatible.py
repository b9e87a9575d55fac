"""Whoever offers OpenAI's chat completions under another base URL, taken conservatively. Pure; no I/O."""

import re
from collections.abc import Mapping
from typing import ClassVar

from proxy.providers import openai_completions, openai_embeddings, openai_realtime
from proxy.providers.openai_chat import OpenAIChat
from proxy.providers.provider import UNBOUNDED_FIELDS, Provider
from proxy.providers.rerank import RERANK
from proxy.wire.frame import Frame

# Mistral's errors, and those of vLLM before 0.10.
_BARE_ERROR = re.compile(rb'\{\s*"object"\s*:\s*"error"')


class CompatibleChat(OpenAIChat):
    """What nearly everybody takes; providers that are known say in their own file what they take besides."""

    renames: ClassVar[Mapping[str, str]] = {"max_completion_tokens": "max_tokens"}
    carried = frozenset(
        {
            "parallel_tool_calls", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "choices",
            "logprobs", "top_logprobs", "logit_bias", "output_format", "reasoning", "user", "cache",
        }
    )  # fmt: skip
    extras: ClassVar[frozenset[str]] = frozenset()
    media = frozenset({"image"})
    efforts: ClassVar[tuple[str, ...]] = ("none", "low", "medium", "high")
    thinking_field = "reasoning_content"
    unbounded = UNBOUNDED_FIELDS

    def reframe(self, frame: Frame) -> bytes:
        """An error within a stream is none to OpenAI's clients unless it is called one."""
        if _BARE_ERROR.match(frame.data):
            return b'data: {"error":' + frame.data + b"}\n\n"
        return frame.raw


PROVIDER = Provider(
    name="openai_compatible",
    apis=(
        CompatibleChat(),
        openai_completions.COMPLETIONS,
        openai_embeddings.EMBEDDINGS,
        RERANK,
        openai_realtime.REALTIME,
    ),
)
