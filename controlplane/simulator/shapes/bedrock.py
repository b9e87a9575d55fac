"""How Bedrock is spoken to, below `/bedrock`: `/model/{id}/` with `converse`, `invoke`, each as a stream too;
OpenAI's below `/openai/v1`."""

import re
from typing import Any

import msgspec

from controlplane.simulator.calls import Asked, Desk, Fixed, Refused, Request, Shape, decode, demand, unknown_url
from controlplane.simulator.shapes import openai
from controlplane.simulator.shapes.anthropic_messages import MessagesRequest
from controlplane.simulator.shapes.bedrock_converse import ConverseAnswer, ConverseRequest
from controlplane.simulator.shapes.bedrock_errors import error
from controlplane.simulator.shapes.bedrock_invoke import (
    CohereRequest,
    InvokeCohere,
    InvokeMessages,
    InvokeNova,
    InvokeTitan,
    TitanRequest,
)
from controlplane.simulator.words import count_tokens, encode

_ROOT = "/bedrock/model/"
_OPENAI = "/bedrock/openai/v1/"
_SIGNED = re.compile(
    rb"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/\d{8}/[^/,]+/[^/,]+/aws4_request,\s*"
    rb"SignedHeaders=[^,\s]+,\s*Signature=[0-9a-f]{64}$"
)
_decode_converse = msgspec.json.Decoder(ConverseRequest).decode
_decode_messages = msgspec.json.Decoder(MessagesRequest).decode
_decode_titan = msgspec.json.Decoder(TitanRequest).decode
_decode_cohere = msgspec.json.Decoder(CohereRequest).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode


class CountInput(msgspec.Struct):
    converse: ConverseRequest | None = None


class CountRequest(msgspec.Struct):
    input: CountInput


_decode_count = msgspec.json.Decoder(CountRequest).decode


def _head(call_id: bytes) -> bytes:
    return b"x-amzn-requestid: %b\r\n" % call_id


def _key(request: Request) -> bytes:
    """An API key, or the id of the access key that signed the request; nobody checks the signature itself."""
    signed = _SIGNED.match(request.headers.get(b"authorization", b""))
    return signed[1] if signed else request.bearer()


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    if request.path.startswith(_OPENAI):
        return openai.ask(request._replace(path=f"/v1/{request.path.removeprefix(_OPENAI)}"), call_id, desk)
    if not request.path.startswith(_ROOT):
        raise unknown_url(request)
    demand(request, "POST")
    model, _, operation = request.path.removeprefix(_ROOT).rpartition("/")
    match operation:
        case "converse" | "converse-stream":
            converse = decode(_decode_converse, request.body)
            return converse.asked(model, ConverseAnswer, is_stream=operation == "converse-stream")
        case "invoke" | "invoke-with-response-stream":
            return _invoke(request, model, is_stream=operation != "invoke")
        case "count-tokens":
            counted = decode(_decode_count, request.body).input.converse
            texts = counted.texts() if counted is not None else []
            return Fixed(200, encode({"inputTokens": sum(map(count_tokens, texts))}))
        case _:
            raise unknown_url(request)


def _invoke(request: Request, model: str, *, is_stream: bool) -> Asked:
    """Whose model it is shows in the body. Raises `Refused`."""
    body = decode(_decode_any, request.body)
    if "anthropic_version" in body:
        return decode(_decode_messages, request.body).asked(model, InvokeMessages, is_stream=is_stream)
    if "messages" in body:
        return decode(_decode_converse, request.body).asked(model, InvokeNova, is_stream=is_stream)
    if is_stream:
        raise Refused(400, "The model is unsupported for streaming.")
    if "inputText" in body:
        titan = decode(_decode_titan, request.body)
        return Asked(model, [titan.input_text], InvokeTitan, details=titan)
    if "texts" in body:
        cohere = decode(_decode_cohere, request.body)
        return Asked(model, cohere.texts, InvokeCohere, details=cohere)
    raise Refused(400, "Malformed input request, please reformat your input and try again.")


SHAPE = Shape(head=_head, key=_key, ask=ask, error=error)
