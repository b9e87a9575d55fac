"""OpenAI's Realtime: a session on a WebSocket, `GET /v1/realtime?model=…`. Pure; no I/O.

What is said in it is read by the provider's side, since it passes untouched; here is how it begins, and how it ends when
the gateway ends it.
"""

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

import msgspec

from proxy.dialects.dialect import Call
from proxy.dialects.openai import OpenAI, error_object
from proxy.errors import GatewayError, InvalidRequest

# More than any context window: each answer may read the whole conversation.
INPUT_TOKENS_MAX = 1_000_000_000

_encode = msgspec.json.Encoder().encode


class OpenAIRealtime(OpenAI):
    name = "openai.realtime"
    operation = "realtime"
    capability = "realtime"
    request_headers = (b"openai-beta", b"openai-safety-identifier")

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        """The alias is the query's `model`; the rest of the query is the provider's to read."""
        query = parse_qsl(parameters.get("query", ""), keep_blank_values=True, encoding="utf-8", errors="replace")
        models = [value for name, value in query if name == "model"]
        if len(models) != 1 or not models[0]:
            raise InvalidRequest("say `?model=…` once", code="invalid_value", param="model")
        if any(name == "call_id" for name, _ in query):
            # The upstream credential is everybody's: whose call it is cannot be told.
            raise InvalidRequest("a call of WebRTC or SIP cannot be joined here", code="invalid_value", param="call_id")
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=models[0],
            body=b"",
            parameters={"query": urlencode([(name, value) for name, value in query if name != "model"])},
            is_stream=True,
            is_session=True,
            input_tokens_max=INPUT_TOKENS_MAX,
            has_audio=True,
            has_images=True,
        )

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        """A server event of type `error`."""
        told = {**error_object(error), "event_id": None}
        return _encode({"type": "error", "event_id": f"event_{request_id}", "error": told})


REALTIME = OpenAIRealtime()
