"""Anthropic's batches of messages, as clients speak of them. Pure; no I/O.

The requests stand in the body that makes the batch. Source: https://platform.claude.com/docs/en/api/messages/batches.
"""

from collections.abc import Mapping

import msgspec

from proxy.dialects.anthropic import MESSAGES, Anthropic
from proxy.dialects.dialect import MESSAGE_BATCH, Call, Dialect, json_fields
from proxy.dialects.stored import CANCEL, CREATE, DELETE, LIST, READ, StoredDialect, Verb
from proxy.errors import InvalidRequest

RESULTS = Verb("results", "GET", "/results")
DIALECTS: Mapping[str, Dialect] = {"": MESSAGES}

_decode_requests = msgspec.json.Decoder(list[msgspec.Raw]).decode


class AnthropicBatches(StoredDialect, Anthropic):
    name = "anthropic.batches"
    operation = "batch"
    capability = "batch"
    root = "/messages/batches"
    kind = MESSAGE_BATCH

    @property
    def is_content(self) -> bool:
        return self.verb is RESULTS

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        call = super().describe(body, content_type, parameters)
        if self.verb is CREATE:
            call.fields = json_fields(body)
            call.is_free = False
        return call


def requests_of(call: Call) -> list[bytes]:
    """The requests of a batch that is to be made. Raises `InvalidRequest`."""
    try:
        return [bytes(request) for request in _decode_requests(call.fields.get("requests", msgspec.Raw(b"[]")))]
    except msgspec.DecodeError as error:
        raise InvalidRequest("`requests` must be a list", code="invalid_value", param="requests") from error


CREATE_BATCH = AnthropicBatches(CREATE)
BATCHES = AnthropicBatches(LIST)
READ_BATCH = AnthropicBatches(READ)
READ_RESULTS = AnthropicBatches(RESULTS)
CANCEL_BATCH = AnthropicBatches(CANCEL)
DELETE_BATCH = AnthropicBatches(DELETE)
