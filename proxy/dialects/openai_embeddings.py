"""OpenAI's embeddings, as clients speak them. Pure; no I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.dialects.dialect import TEMPLATE_TOKENS, Call, invalid_field, json_fields
from proxy.dialects.openai import OpenAI
from proxy.errors import InvalidRequest


class _Head(msgspec.Struct):
    model: str
    metadata: Any = None


_decode_head = msgspec.json.Decoder(_Head).decode


class OpenAIEmbeddings(OpenAI):
    name = "openai.embeddings"
    operation = "embeddings"
    capability = "embeddings"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        try:
            head = _decode_head(body)
        except msgspec.ValidationError as error:
            raise invalid_field(error) from error
        if not head.model:
            raise InvalidRequest("`model` is empty: name one of the aliases that GET /v1/models lists", param="model")
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            input_tokens_max=len(body) + TEMPLATE_TOKENS,
            output_tokens_max=0,
            metadata=head.metadata,
        )


EMBEDDINGS = OpenAIEmbeddings()
