"""What Cohere's APIs have in common for their clients: errors, the list of models, content, what is billed. Pure; no I/O.

Cohere signs nothing. Signatures of other providers stand as `signature` (and `data` for redacted thinking) of the content
block or tool call, wrapped; clients that send back the message they got return them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Dialect
from proxy.errors import GatewayError
from proxy.fields import Fields, wrong
from proxy.neutral import Media, Part, Text, Thinking, unwrap_signature
from proxy.snapshot import Alias

IMAGE_MARK = b'"image_url"'

_encode = msgspec.json.Encoder().encode


class Cohere(Dialect):
    request_headers = (b"x-client-name",)
    is_translatable = True

    def render_error(self, error: GatewayError, request_id: str) -> bytes:
        """`{id, message}`, and our details."""
        return _encode({"id": request_id, "message": error.message, "code": error.code, **error.details})

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        delta = {"finish_reason": "ERROR", "error": error.message}
        return server_sent({"id": request_id, "type": "message-end", "delta": delta})

    def render_models(self, aliases: Iterable[Alias], parameters: Mapping[str, str]) -> bytes:
        models = [{"name": alias.name, "endpoints": ["chat", "embed", "rerank"]} for alias in aliases]
        return _encode(models[0] if "model" in parameters else {"models": models})


def server_sent(value: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (str(value["type"]).encode(), _encode(value))


def meta(version: str, usage: Usage | None) -> dict[str, Any]:
    used = usage or Usage()
    billed: dict[str, int] = {"search_units": used.units} if used.units else {"input_tokens": used.input_tokens}
    return {"api_version": {"version": version}, "billed_units": billed}


# Content


def read_content(message: Fields, lost: list[str]) -> Iterator[Part]:
    """A text, or blocks of text, thinking, images and documents."""
    content = message.any("content")
    if content is None:
        return
    if type(content) is str:
        yield Text(text=content)
        return
    if type(content) is not list:
        raise wrong(message.path("content"), "a text or a list of blocks")
    for index, value in enumerate(content):
        block = Fields(value, f"{message.path('content')}.{index}.")
        kind = block.required_text("type")
        if kind == "text":
            yield Text(text=block.required_text("text"), signature=block.text("signature") or "")
        elif kind == "thinking":
            yield _read_thought(block)
        elif kind == "image_url":
            yield _read_image(block, lost)
        elif kind == "document":
            yield Text(text=_document_text(block.any("document"), block.path("document")))
        else:
            lost.append(block.path("type"))
            continue
        block.rest(lost)


def _read_thought(block: Fields) -> Thinking:
    wrapped, data = block.text("signature") or "", block.text("data") or ""
    origin, own = unwrap_signature(wrapped or data) or ("", "")
    return Thinking(
        text=block.text("thinking") or "",
        signature=own if wrapped else "",
        redacted=own if data and not wrapped else "",
        origin=origin,
        path=block.path("thinking"),
    )


def _read_image(block: Fields, lost: list[str]) -> Media:
    image = block.object("image_url")
    if image is None:
        raise wrong(block.path("image_url"), "an object")
    media = image_at(image.required_text("url"), image.path("url"))
    media.detail = image.text("detail") or ""
    image.rest(lost)
    return media


def image_at(url: str, path: str) -> Media:
    if not url.startswith("data:"):
        return Media(kind="image", url=url, path=path)
    head, found, data = url[len("data:") :].partition(",")
    if not found or not head.endswith(";base64"):
        raise wrong(path, "a URL, or a data URL in base64")
    return Media(kind="image", media_type=head.removesuffix(";base64"), data=data, path=path)


def _document_text(value: Any, path: str) -> str:
    """Of a tool's document, all that it says."""
    data = value.get("data") if type(value) is dict else value
    if type(data) is str:
        return data
    if type(data) is not dict:
        raise wrong(path, "a text or an object")
    return _encode(data).decode()


def texts(fields: Fields, name: str) -> list[str]:
    values = fields.items(name)
    for index, value in enumerate(values):
        if type(value) is not str:
            raise wrong(f"{fields.path(name)}.{index}", "a text")
    return values
