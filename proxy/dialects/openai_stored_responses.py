"""OpenAI's stored responses, as clients speak of them: read again, followed, cancelled, deleted. Pure; no I/O.

Source: https://platform.openai.com/docs/api-reference/responses.
"""

from proxy.dialects.dialect import RESPONSE
from proxy.dialects.openai import OpenAI
from proxy.dialects.stored import CANCEL, DELETE, READ, StoredDialect, Verb

INPUT_ITEMS = Verb("input_items", "GET", "/input_items")


class OpenAIStoredResponses(StoredDialect, OpenAI):
    name = "openai.stored_responses"
    operation = "responses"
    capability = "responses"
    root = "/responses"
    kind = RESPONSE


READ_RESPONSE = OpenAIStoredResponses(READ)
READ_INPUT_ITEMS = OpenAIStoredResponses(INPUT_ITEMS)
CANCEL_RESPONSE = OpenAIStoredResponses(CANCEL)
DELETE_RESPONSE = OpenAIStoredResponses(DELETE)
