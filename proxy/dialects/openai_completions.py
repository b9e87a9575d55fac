"""OpenAI's legacy completions, as clients speak them: a text goes on. Passed, never translated. Pure; no I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.dialects.dialect import TEMPLATE_TOKENS, Call, HeadReader, json_fields
from proxy.dialects.openai import OpenAI
from proxy.errors import InvalidRequest

# What OpenAI gives where `max_tokens` is not said.
MAX_TOKENS_DEFAULT = 16
# Of `n` and `best_of`, and of prompts in one request.
CHOICES_MAX = 128
PROMPTS_MAX = 2_048


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Head(msgspec.Struct):
    model: str
    prompt: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    metadata: Any = None


_decode_head = HeadReader(_Head).read


class OpenAICompletions(OpenAI):
    name = "openai.completions"
    operation = "completions"
    capability = "completions"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_head(body)
        tokens = head.max_tokens if head.max_tokens is not None else MAX_TOKENS_DEFAULT
        if tokens < 0:
            raise InvalidRequest("`max_tokens` must be at least 0", param="max_tokens")
        for name, number in (("n", head.n), ("best_of", head.best_of)):
            if number is not None and not 1 <= number <= CHOICES_MAX:
                raise InvalidRequest(f"`{name}` must be between 1 and {CHOICES_MAX}", param=name)
        prompts = _prompts(head.prompt)
        if prompts > PROMPTS_MAX:
            raise InvalidRequest(f"`prompt` must hold {PROMPTS_MAX} prompts at most", param="prompt")
        input_tokens_max = len(body) + TEMPLATE_TOKENS
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            is_stream=bool(head.stream),
            wants_usage_chunk=head.stream_options is not None and bool(head.stream_options.include_usage),
            # The prompt comes back with the completion, and is counted as it passes.
            output_tokens_max=tokens + (input_tokens_max if head.echo else 0),
            # `best_of` are made and billed, of which `n` are shown; each prompt has its own.
            choices=max(head.n or 1, head.best_of or 1) * prompts,
            input_tokens_max=input_tokens_max,
            metadata=head.metadata,
        )


def _prompts(prompt: Any) -> int:
    """A text, a list of token ids, or a list of either."""
    if type(prompt) is list and prompt and type(prompt[0]) is not int:
        return len(prompt)
    return 1


COMPLETIONS = OpenAICompletions()
