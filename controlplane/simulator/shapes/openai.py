"""How OpenAI is spoken to: which request is what, the key, the errors, the models."""

from controlplane.simulator.calls import Asked, Call, Desk, Fixed, Request, Shape, demand, unknown_url
from controlplane.simulator.directives import PROFILES
from controlplane.simulator.shapes import (
    openai_batches,
    openai_chat,
    openai_completions,
    openai_files,
    openai_media,
    openai_realtime,
    openai_responses,
    openai_vectors,
)
from controlplane.simulator.shapes.openai_errors import error
from controlplane.simulator.words import encode

_CREATED_S = 1_760_000_000  # Of the models. Any moment in the past does.
_ASKS = {
    "/v1/chat/completions": openai_chat.ask,
    "/v1/completions": openai_completions.ask,
    "/v1/images/generations": openai_media.ask_generation,
    "/v1/images/edits": openai_media.ask_edit,
    "/v1/audio/speech": openai_media.ask_speech,
    "/v1/audio/transcriptions": openai_media.ask_transcription,
    "/v1/audio/translations": openai_media.ask_translation,
    "/v1/embeddings": openai_vectors.ask_embeddings,
    "/v1/moderations": openai_vectors.ask_moderation,
    "/v1/rerank": openai_vectors.ask_rerank,
}
_HEAD = b"openai-version: 2020-10-01\r\nopenai-processing-ms: 1\r\nx-request-id: req_%b\r\n"
_LIMITS = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %b\r\n"
    b"x-ratelimit-limit-tokens: 150000000\r\nx-ratelimit-remaining-tokens: 149999000\r\nx-ratelimit-reset-tokens: 0s\r\n"
)
_AMPLE = _LIMITS % (30_000, 29_999, b"2ms")


def _head(call_id: bytes) -> bytes:
    return _HEAD % call_id


def limits(call: Call) -> bytes:
    """Of a limit of one more than what is left."""
    left = call.directives.requests_left
    return _AMPLE if left is None else _LIMITS % (left + 1, left, b"%ds" % call.directives.limit_reset_s)


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    ask_for = _ASKS.get(request.path)
    if ask_for is not None:
        demand(request, "POST")
        return ask_for(request)
    if request.path == openai_responses.PATH:
        return openai_responses.ask(request, desk)
    if request.path.startswith(f"{openai_responses.PATH}/"):
        return openai_responses.ask_kept(request, desk)
    if request.path in openai_realtime.PATHS:
        return openai_realtime.ask(request)
    if request.path.startswith(openai_files.PATH):
        return openai_files.ask(request, call_id, desk)
    if request.path.startswith(openai_batches.PATH):
        return openai_batches.ask(request, call_id, desk)
    if request.path == "/v1/models":
        demand(request, "GET")
        return Fixed(200, models())
    raise unknown_url(request)


def models() -> bytes:
    data = [{"id": name, "object": "model", "created": _CREATED_S, "owned_by": "simulator"} for name in PROFILES]
    return encode({"object": "list", "data": data})


SHAPE = Shape(head=_head, key=Request.bearer, ask=ask, error=error, limits=limits)
