"""What OpenAI's APIs have in common for their clients: errors and the list of models. Pure; no I/O."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from proxy.dialects.dialect import Dialect, error_type_of
from proxy.errors import GatewayError
from proxy.snapshot import Alias

_encode = msgspec.json.Encoder().encode

# Mistral's clients ask for the models at the same path, and its SDK reads none without these.
_MISTRAL = {"type": "base", "capabilities": {}}


class OpenAI(Dialect):
    request_headers: ClassVar[tuple[bytes, ...]] = (b"openai-beta",)

    def render_error(self, error: GatewayError, request_id: str) -> bytes:
        """`{"error": {message, type, param, code, …}}`."""
        return _encode({"error": error_object(error)})

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"data: " + _encode({"error": error_object(error)}) + b"\n\n"

    def render_models(self, aliases: Iterable[Alias], parameters: Mapping[str, str]) -> bytes:
        data = [
            {"id": alias.name, "object": "model", "created": alias.created_at_s, "owned_by": "tollgate", **_MISTRAL}
            for alias in aliases
        ]
        if "model" in parameters:
            return _encode(data[0])
        return _encode({"object": "list", "data": data})


def error_object(error: GatewayError) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": error_type_of(error.status_code),
        "param": error.param,
        "code": error.code,
        **error.details,
    }
