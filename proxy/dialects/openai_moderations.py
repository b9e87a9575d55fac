"""OpenAI's moderations. Pure; no I/O."""

from collections.abc import Mapping

import msgspec

from proxy.dialects.dialect import TEMPLATE_TOKENS, Call, HeadReader, json_fields
from proxy.dialects.openai import OpenAI

# What OpenAI takes where a client names none.
DEFAULT_MODEL = "omni-moderation-latest"


class _Head(msgspec.Struct):
    model: str = DEFAULT_MODEL


_decode_head = HeadReader(_Head).read


class OpenAIModerations(OpenAI):
    name = "openai.moderations"
    operation = "moderations"
    capability = "moderations"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_head(body)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            input_tokens_max=len(body) + TEMPLATE_TOKENS,
            output_tokens_max=0,
        )


MODERATIONS = OpenAIModerations()
