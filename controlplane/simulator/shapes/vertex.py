"""How Vertex is spoken to, below `/vertex`: Google's and Anthropic's models, OpenAI's chat, and where tokens are had."""

import re
from base64 import urlsafe_b64decode
from typing import Any
from urllib.parse import parse_qs

import msgspec

from controlplane.simulator import wire
from controlplane.simulator.calls import (
    Answer,
    Asked,
    Desk,
    Fixed,
    Plan,
    Request,
    Shape,
    decode,
    demand,
    plan_input,
    unknown_url,
)
from controlplane.simulator.directives import Directives
from controlplane.simulator.shapes import gemini, openai_chat
from controlplane.simulator.shapes.anthropic_messages import CountRequest, MessageAnswer, MessagesRequest
from controlplane.simulator.shapes.gemini_errors import error
from controlplane.simulator.words import DIMENSIONS, count_tokens, encode, place, vector_json

TOKEN = "/vertex/token"  # noqa: S105 (a path)
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_CLAIMS = frozenset({"iss", "aud", "iat", "exp"})
_MODEL = re.compile(r"/vertex/v1(?:beta1)?/(?:projects/[^/]+/locations/[^/]+/)?publishers/([^/]+)/models/(.+):(\w+)")
_CHAT = re.compile(r"/vertex/v1(?:beta1)?/projects/[^/]+/locations/[^/]+/endpoints/openapi/chat/completions")
_decode_messages = msgspec.json.Decoder(MessagesRequest).decode
_decode_count = msgspec.json.Decoder(CountRequest).decode


class Instance(msgspec.Struct):
    content: str


class PredictRequest(msgspec.Struct):
    instances: list[Instance]
    parameters: dict[str, Any] | None = None


_decode_predict = msgspec.json.Decoder(PredictRequest).decode


def _head(call_id: bytes) -> bytes:
    return b"server: scaffolding on HTTPServer2\r\nx-vertex-ai-llm-request-type: shared\r\n"


def _key(request: Request) -> bytes:
    """The access token; of the one who has none yet, what it asks for one with."""
    return request.body if request.path == TOKEN else request.bearer()


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    demand(request, "POST")
    if request.path == TOKEN:
        return _grant(request, call_id)
    if _CHAT.fullmatch(request.path):
        return openai_chat.ask(request)
    match = _MODEL.fullmatch(request.path)
    if match is None:
        raise unknown_url(request)
    publisher, model, method = match.groups()
    if publisher == "anthropic":
        return _ask_anthropic(request, model, method)
    if method == "predict":
        predict = decode(_decode_predict, request.body)
        return Asked(model, [instance.content for instance in predict.instances], Prediction, details=predict)
    return gemini.ask_model(request, model, method)


def _ask_anthropic(request: Request, model: str, method: str) -> Asked | Fixed:
    """Raises `Refused`."""
    if model.startswith("count-tokens"):
        counted = decode(_decode_count, request.body)
        return Fixed(200, encode({"input_tokens": sum(map(count_tokens, counted.texts()))}))
    if method not in ("rawPredict", "streamRawPredict"):
        raise unknown_url(request)
    messages = decode(_decode_messages, request.body)
    return messages.asked(model, MessageAnswer, is_stream=method == "streamRawPredict" or bool(messages.stream))


class Prediction(Answer):
    """Embeddings of old."""

    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        return plan_input(asked, input_tokens, directives)

    def whole(self) -> tuple[bytes, bytes]:
        asked: PredictRequest = self.asked.details
        wanted = (asked.parameters or {}).get("outputDimensionality")
        dimensions = wanted if isinstance(wanted, int) and 0 < wanted <= 16_384 else DIMENSIONS
        predictions = b",".join(_prediction(instance.content, dimensions) for instance in asked.instances)
        characters = sum(len(instance.content) for instance in asked.instances)
        usage = b'{"billableCharacterCount":%d}' % characters if self.says_usage else b""
        told = b',"metadata":%b' % usage if usage else b""
        return b'{"predictions":[%b]%b}' % (predictions, told), usage


def _prediction(text: str, dimensions: int) -> bytes:
    return b'{"embeddings":{"statistics":{"truncated":false,"token_count":%d},"values":%b}}' % (
        count_tokens(text),
        vector_json(dimensions, place(text) % dimensions),
    )


# Tokens


def _grant(request: Request, call_id: str) -> Fixed:
    """RFC 7523: an access token for a JWT. Nobody checks the signature, but it has to be a JWT with the usual claims."""
    form = parse_qs(request.body.decode("latin-1"))
    if form.get("grant_type") != [_GRANT]:
        return _no_grant("unsupported_grant_type", "Invalid grant_type")
    if not _is_jwt(form.get("assertion", [""])[0]):
        return _no_grant("invalid_grant", "Invalid JWT: it needs a header, claims and a signature.")
    token = {"access_token": f"ya29.simulated-{call_id}", "expires_in": 3599, "token_type": "Bearer"}
    return Fixed(200, encode(token), wire.JSON + b"cache-control: no-store\r\n")


def _no_grant(kind: str, message: str) -> Fixed:
    return Fixed(400, encode({"error": kind, "error_description": message}))


def _is_jwt(assertion: str) -> bool:
    parts = assertion.split(".")
    if len(parts) != 3 or not all(parts):
        return False
    header, claims = (_read_part(part) for part in parts[:2])
    return "alg" in header and claims.keys() >= _CLAIMS


def _read_part(part: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=dict[str, Any])
    except (ValueError, msgspec.DecodeError):
        return {}


SHAPE = Shape(head=_head, key=_key, ask=ask, error=error)
