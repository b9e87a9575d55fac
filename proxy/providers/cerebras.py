"""Cerebras. Pure; no I/O.

Source: inference-docs.cerebras.ai/api-reference/chat-completions. Text only, one choice, no penalties.
"""

from proxy.providers import openai_completions
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.provider import Provider


class CerebrasChat(CompatibleChat):
    renames = {}
    carried = CompatibleChat.carried - {"choices", "frequency_penalty", "presence_penalty", "logit_bias"}
    media = frozenset()
    thinking_field = "reasoning"


PROVIDER = Provider(name="cerebras", apis=(CerebrasChat(), openai_completions.COMPLETIONS))
