"""Hugging Face: its router, inference endpoints and TGI. Pure; no I/O.

Source: huggingface.co/docs/inference-providers/tasks/chat-completion. Some of its streams end without `[DONE]`.
"""

from proxy.providers import openai_embeddings
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.provider import Provider


class HuggingFaceChat(CompatibleChat):
    carried = CompatibleChat.carried - {"parallel_tool_calls", "user"}


PROVIDER = Provider(name="huggingface", apis=(HuggingFaceChat(), openai_embeddings.EMBEDDINGS))
