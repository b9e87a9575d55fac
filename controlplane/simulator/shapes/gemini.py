"""How the Gemini API is spoken to, below `/gemini/v1beta`: contents, their tokens counted, vectors, models; OpenAI's under `openai/`."""

import msgspec

from controlplane.simulator.calls import Asked, Desk, Fixed, Request, Shape, decode, demand, unknown_url
from controlplane.simulator.directives import PROFILES
from controlplane.simulator.shapes import openai
from controlplane.simulator.shapes.gemini_contents import (
    ContentAnswer,
    ContentArray,
    CountRequest,
    EmbedRequest,
    EmbedsRequest,
    GenerateRequest,
    Vector,
    Vectors,
)
from controlplane.simulator.shapes.gemini_errors import error
from controlplane.simulator.words import count_tokens, encode

_ROOTS = ("/gemini/v1beta/models", "/gemini/v1/models")
_OPENAI = "/gemini/v1beta/openai/"
_decode_generate = msgspec.json.Decoder(GenerateRequest).decode
_decode_count = msgspec.json.Decoder(CountRequest).decode
_decode_embed = msgspec.json.Decoder(EmbedRequest).decode
_decode_embeds = msgspec.json.Decoder(EmbedsRequest).decode


def _head(call_id: bytes) -> bytes:
    return b"server: scaffolding on HTTPServer2\r\nserver-timing: gfet4t7; dur=1\r\n"


def _key(request: Request) -> bytes:
    """An API key, in the header or in the query, or the token of an OAuth client."""
    return request.headers.get(b"x-goog-api-key", b"").strip() or request.parameter("key").encode() or request.bearer()


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    if request.path.startswith(_OPENAI):
        return openai.ask(request._replace(path=f"/v1/{request.path.removeprefix(_OPENAI)}"), call_id, desk)
    root = next((root for root in _ROOTS if request.path.startswith(root)), None)
    if root is None:
        raise unknown_url(request)
    name = request.path.removeprefix(root).strip("/")
    if not name:
        demand(request, "GET")
        return Fixed(200, models())
    demand(request, "POST")
    model, _, method = name.rpartition(":")
    return ask_model(request, model, method)


def ask_model(request: Request, model: str, method: str) -> Asked | Fixed:
    """What Vertex has too. Raises `Refused`."""
    match method:
        case "generateContent":
            return decode(_decode_generate, request.body).asked(model, ContentAnswer, is_stream=False)
        case "streamGenerateContent":
            answers = ContentAnswer if request.parameter("alt") == "sse" else ContentArray
            return decode(_decode_generate, request.body).asked(model, answers, is_stream=True)
        case "countTokens":
            tokens = sum(map(count_tokens, decode(_decode_count, request.body).texts()))
            details = [{"modality": "TEXT", "tokenCount": tokens}]
            return Fixed(200, encode({"totalTokens": tokens, "promptTokensDetails": details}))
        case "embedContent":
            embed = decode(_decode_embed, request.body)
            return Asked(model, embed.content.texts(), Vector, details=embed)
        case "batchEmbedContents":
            embeds = decode(_decode_embeds, request.body)
            texts = [text for inner in embeds.requests for text in inner.content.texts()]
            return Asked(model, texts, Vectors, details=embeds)
        case _:
            raise unknown_url(request)


def models() -> bytes:
    methods = ["generateContent", "countTokens", "embedContent"]
    known = [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in PROFILES]
    return encode({"models": known})


SHAPE = Shape(head=_head, key=_key, ask=ask, error=error)
