"""xAI. Pure; no I/O.

Source: docs.x.ai/docs/api-reference. Reasoning is counted beside `completion_tokens`; errors are `{code, error: "text"}`.
"""

from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.openai_responses import RESPONSES
from proxy.providers.provider import Provider


class XaiChat(CompatibleChat):
    renames = {}
    carried = CompatibleChat.carried - {"logit_bias"}


PROVIDER = Provider(name="xai", apis=(XaiChat(), RESPONSES))
