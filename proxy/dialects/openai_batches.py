"""OpenAI's batches, as clients speak of them. Pure; no I/O.

A batch is made from a file that was uploaded before; what its requests may use is known since then.
Source: https://platform.openai.com/docs/api-reference/batch.
"""

from collections.abc import Mapping

import msgspec

from proxy.dialects.dialect import BATCH, Call, Dialect, json_fields
from proxy.dialects.openai import OpenAI
from proxy.dialects.openai_chat import CHAT
from proxy.dialects.openai_completions import COMPLETIONS
from proxy.dialects.openai_embeddings import EMBEDDINGS
from proxy.dialects.openai_moderations import MODERATIONS
from proxy.dialects.openai_responses import RESPONSES
from proxy.dialects.stored import CANCEL, CREATE, LIST, READ, StoredDialect, text_of

# What the requests of a batch may call; Azure leaves the version out.
DIALECTS: Mapping[str, Dialect] = {
    f"{version}{path}": dialect
    for version in ("/v1", "")
    for path, dialect in (
        ("/chat/completions", CHAT),
        ("/responses", RESPONSES),
        ("/embeddings", EMBEDDINGS),
        ("/completions", COMPLETIONS),
        ("/moderations", MODERATIONS),
    )
}


class OpenAIBatches(StoredDialect, OpenAI):
    name = "openai.batches"
    operation = "batch"
    capability = "batch"
    root = "/batches"
    kind = BATCH

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        call = super().describe(body, content_type, parameters)
        if self.verb is CREATE:
            call.fields = json_fields(body)
            call.parameters = {
                **call.parameters,
                "input_file_id": text_of(call.fields, "input_file_id"),
                "endpoint": text_of(call.fields, "endpoint"),
            }
            call.metadata = msgspec.json.decode(call.fields.get("metadata", msgspec.Raw(b"null")))
            call.is_free = False
        return call


CREATE_BATCH = OpenAIBatches(CREATE)
BATCHES = OpenAIBatches(LIST)
READ_BATCH = OpenAIBatches(READ)
CANCEL_BATCH = OpenAIBatches(CANCEL)
