"""How Azure is spoken to, below `/azure/openai`: what OpenAI has, under `v1/`, a date or a deployment's name."""

from typing import Any

import msgspec
from msgspec.structs import replace

from controlplane.simulator.calls import Asked, Desk, Fixed, Refused, Request, Shape, decode, unknown_url
from controlplane.simulator.directives import Like
from controlplane.simulator.shapes import openai, openai_errors, openai_realtime
from controlplane.simulator.shapes.openai_chat import Completion
from controlplane.simulator.words import encode

_V1 = "/azure/openai/v1/"
_DEPLOYMENTS = "/azure/openai/deployments/"
# What needs an `api-version`, and has its model in the body.
_DATED = ("/azure/openai/", "/azure/models/")
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode


def _head(call_id: bytes) -> bytes:
    return (
        b"apim-request-id: %b\r\nx-request-id: %b\r\nx-ms-region: Simulated\r\n"
        b"x-ratelimit-remaining-requests: 118\r\nx-ratelimit-remaining-tokens: 119968\r\n"
    ) % (call_id, call_id)


def _key(request: Request) -> bytes:
    """An API key, or a token of Entra ID."""
    return request.headers.get(b"api-key", b"").strip() or request.bearer()


class AzureCompletion(Completion):
    """The first chunk tells of filters, and of nothing else."""

    usual_like = Like.AZURE


def ask(request: Request, call_id: str, desk: Desk) -> Asked | Fixed:
    """Raises `Refused`."""
    if request.path in openai_realtime.PATHS:
        return openai_realtime.ask(request)
    asked = openai.ask(_as_openai(request), call_id, desk)
    if isinstance(asked, Asked) and asked.answers is Completion:
        return replace(asked, answers=AzureCompletion)
    return asked


def _as_openai(request: Request) -> Request:
    """The same as OpenAI would be sent it. Raises `Refused`."""
    headers = {**request.headers, b"authorization": b"Bearer " + _key(request)}
    if request.path.startswith(_V1):
        return request._replace(path=f"/v1/{request.path.removeprefix(_V1)}", headers=headers)
    root = next((root for root in _DATED if request.path.startswith(root)), None)
    if root is None:
        raise unknown_url(request)
    if not request.parameter("api-version"):
        raise Refused(404, "Resource not found")
    if not request.path.startswith(_DEPLOYMENTS):
        return request._replace(path=f"/v1/{request.path.removeprefix(root)}", headers=headers)
    deployment, _, operation = request.path.removeprefix(_DEPLOYMENTS).partition("/")
    body = request.body
    if body and not request.header(b"content-type").startswith("multipart/"):
        body = encode(decode(_decode_fields, body) | {"model": deployment})
    return request._replace(path=f"/v1/{operation}", headers=headers, body=body)


def error(status: int, message: str, code: str | None, like: str) -> Fixed:
    return openai_errors.error(status, message, code, Like.AZURE)


SHAPE = Shape(head=_head, key=_key, ask=ask, error=error)
