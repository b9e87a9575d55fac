"""OpenAI's moderations. Pure; no I/O."""

from collections.abc import Mapping

import msgspec

from proxy.dialects.dialect import TEMPLATE_TOKENS, Call, invalid_field, json_fields
from proxy.dialects.openai import OpenAI

# What OpenAI takes where a client names none.
DEFAULT_MODEL = "omni-moderation-latest"


class _Head(msgspec.Struct):
    model: str = DEFAULT_MODEL


_decode_head = msgspec.json.Decoder(_Head).decode


class OpenAIModerations(OpenAI):
    name = "openai.moderations"
    operation = "moderations"
    capability = "moderations"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        try:
            head = _decode_head(body)
        except msgspec.ValidationError as error:
            raise invalid_field(error) from error
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
