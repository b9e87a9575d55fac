"""What OpenAI's clients speak: their requests described, our answers and errors in their shapes. Pure; no I/O."""

from collections.abc import Iterable
from typing import Any

import msgspec

from proxy.errors import GatewayError, InvalidRequest
from proxy.snapshot import Alias

CHAT = "chat"
EMBEDDINGS = "embeddings"
OPERATIONS = {"/v1/chat/completions": CHAT, "/v1/embeddings": EMBEDDINGS}

# Parts whose tokens do not show in the bytes of the request: an image by URL, a file by id, audio. Each is bounded apart.
MEDIA_MARKS = (b'"image_url"', b'"input_audio"', b'"file"')
MEDIA_TOKENS_MAX = 32_768
# Chat templates add a few tokens for each message and for the answer's start.
TEMPLATE_TOKENS = 64

_encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, kw_only=True):
    """One client call, described. `fields` is the body's top level, values as the raw bytes that were validated."""

    operation: str
    alias: str
    fields: dict[str, msgspec.Raw]
    is_stream: bool = False
    wants_usage_chunk: bool = False
    output_tokens_max: int | None = None
    choices: int = 1
    input_tokens_max: int
    metadata: Any = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Fields(msgspec.Struct):
    """Only what we act on; everything else passes through untouched."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    metadata: Any = None


_decode_fields = msgspec.json.Decoder(_Fields).decode


def describe(operation: str, fields: dict[str, msgspec.Raw], body: bytes) -> Call:
    """Raises `InvalidRequest` naming the field that is wrong."""
    try:
        known = _decode_fields(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid request: {error}", code="invalid_value", param=_param_of(str(error))) from error
    if not known.model:
        raise InvalidRequest("`model` is empty: name one of the aliases that GET /v1/models lists", param="model")
    caps = [cap for cap in (known.max_tokens, known.max_completion_tokens) if cap is not None]
    if any(cap < 1 for cap in caps):
        raise InvalidRequest("the output cap must be at least 1", param="max_completion_tokens")
    choices = known.n if known.n is not None else 1
    if not 1 <= choices <= 128:
        raise InvalidRequest("`n` must be between 1 and 128", param="n")
    media = sum(body.count(mark) for mark in MEDIA_MARKS) if operation == CHAT else 0
    return Call(
        operation=operation,
        alias=known.model,
        fields=fields,
        is_stream=bool(known.stream) and operation == CHAT,
        wants_usage_chunk=known.stream_options is not None and bool(known.stream_options.include_usage),
        output_tokens_max=max(caps, default=None),
        choices=choices,
        # Byte-level tokenisers never make more tokens than bytes.
        input_tokens_max=len(body) + TEMPLATE_TOKENS + media * MEDIA_TOKENS_MAX,
        metadata=known.metadata,
    )


def render_error(error: GatewayError) -> bytes:
    """`{"error": {message, type, param, code, …}}`."""
    return _encode({"error": _error_object(error)})


def render_error_event(error: GatewayError) -> bytes:
    """The last event of a stream that cannot go on; the official SDKs raise it as an API error."""
    return b"data: " + _encode({"error": _error_object(error)}) + b"\n\n"


def render_models(aliases: Iterable[Alias]) -> bytes:
    data = [
        {"id": alias.name, "object": "model", "created": alias.created_at_s, "owned_by": "tollgate"}
        for alias in aliases
    ]
    return _encode({"object": "list", "data": data})


def _error_object(error: GatewayError) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": _type_of(error.status_code),
        "param": error.param,
        "code": error.code,
        **error.details,
    }


def _type_of(status_code: int) -> str:
    if status_code == 401:
        return "authentication_error"
    if status_code == 403:
        return "permission_error"
    if status_code == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status_code < 500 else "server_error"


def _param_of(reason: str) -> str | None:
    """msgspec ends its reasons with ``- at `$.field` ``; a missing field is named in its own words."""
    _, found, path = reason.partition("`$.")
    if found:
        return path.rstrip("`").split("[")[0]
    _, found, name = reason.partition("missing required field `")
    return name.rstrip("`") if found else None
