"""How Anthropic is spoken to, below `/anthropic/v1`: messages, their tokens counted, batches of them, models."""

from datetime import UTC, datetime

import msgspec

from controlplane.simulator.calls import Asked, Call, Desk, Fixed, Refused, Request, Shape, decode, demand, unknown_url
from controlplane.simulator.directives import PROFILES
from controlplane.simulator.shapes import anthropic_batches
from controlplane.simulator.shapes.anthropic_errors import error
from controlplane.simulator.shapes.anthropic_messages import CountRequest, MessageAnswer, MessagesRequest
from controlplane.simulator.words import count_tokens, encode

ROOT = "/anthropic/v1"
_HEAD = b"request-id: req_%b\r\nanthropic-organization-id: simulator\r\n"
_LIMITS = (
    b"anthropic-ratelimit-requests-limit: %d\r\nanthropic-ratelimit-requests-remaining: %d\r\n"
    b"anthropic-ratelimit-input-tokens-limit: 4000000\r\nanthropic-ratelimit-input-tokens-remaining: 3999000\r\n"
)
_AMPLE = _LIMITS % (4_000, 3_999)
_decode_messages = msgspec.json.Decoder(MessagesRequest).decode
_decode_count = msgspec.json.Decoder(CountRequest).decode


def _head(call_id: bytes) -> bytes:
    return _HEAD % call_id


def _limits(call: Call) -> bytes:
    """Of a limit of one more than what is left."""
    left = call.directives.requests_left
    if left is None:
        return _AMPLE
    reset_at = datetime.fromtimestamp(call.created_s + call.directives.limit_reset_s, UTC)
    reset = b"anthropic-ratelimit-requests-reset: %b\r\n" % reset_at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    return _LIMITS % (left + 1, left) + reset


def _key(request: Request) -> bytes:
    """An API key, or the token of an OAuth client."""
    return request.headers.get(b"x-api-key", b"").strip() or request.bearer()


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    path = request.path.removeprefix(ROOT)
    if path == "/messages":
        demand(request, "POST")
        messages = decode(_decode_messages, request.body)
        if not messages.model:
            raise Refused(400, "model: Field required")
        return messages.asked(messages.model, MessageAnswer, is_stream=bool(messages.stream))
    if path == "/messages/count_tokens":
        demand(request, "POST")
        counted = decode(_decode_count, request.body)
        return Fixed(200, encode({"input_tokens": sum(map(count_tokens, counted.texts()))}))
    if path.startswith("/messages/batches"):
        return anthropic_batches.ask(request, path.removeprefix("/messages/batches").strip("/"), call_id, desk)
    if path == "/models":
        demand(request, "GET")
        return Fixed(200, models())
    raise unknown_url(request)


def models() -> bytes:
    data = [
        {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"} for name in PROFILES
    ]
    return encode({"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})


SHAPE = Shape(head=_head, key=_key, ask=ask, error=error, limits=_limits)
