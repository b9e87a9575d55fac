"""OpenAI's files: uploaded, listed, read, deleted."""

from typing import Any

from controlplane.simulator.calls import Desk, Fixed, Refused, Request, demand
from controlplane.simulator.forms import read_form
from controlplane.simulator.store import Kept
from controlplane.simulator.words import encode

PATH = "/v1/files"
_KIND = "file"
_BYTES = b"content-type: application/octet-stream\r\n"


def ask(request: Request, call_id: str, desk: Desk) -> Fixed:
    """`/v1/files`, `/v1/files/{id}` and its `/content`. Raises `Refused`."""
    name, _, verb = request.path.removeprefix(PATH).strip("/").partition("/")
    if not name:
        demand(request, "GET", "POST")
        return _upload(request, call_id, desk) if request.method == "POST" else _list(request, desk)
    kept = desk.store.find(_KIND, name)
    if kept is None:
        raise Refused(404, f"No such File object: {name}", code="not_found")
    if verb == "content":
        demand(request, "GET")
        return Fixed(200, kept.content, _BYTES)
    demand(request, "GET", "DELETE")
    if request.method == "DELETE":
        desk.store.drop(name)
        return Fixed(200, encode({"id": name, "object": "file", "deleted": True}))
    return Fixed(200, encode(kept.facts))


def keep(desk: Desk, name: str, content: bytes, *, file_name: str, purpose: str, created_s: int) -> dict[str, Any]:
    facts = {
        "id": name,
        "object": "file",
        "bytes": len(content),
        "created_at": created_s,
        "filename": file_name,
        "purpose": purpose,
        "status": "processed",
    }
    desk.store.keep(name, Kept(_KIND, facts, content))
    return facts


def find(name: str, desk: Desk) -> Kept:
    """Raises `Refused`."""
    kept = desk.store.find(_KIND, name)
    if kept is None:
        raise Refused(400, f"No such File object: {name}", code="not_found")
    return kept


def _upload(request: Request, call_id: str, desk: Desk) -> Fixed:
    form = read_form(request)
    upload = form.file("file")
    facts = keep(
        desk,
        f"file-{call_id}",
        upload.content,
        file_name=upload.name,
        purpose=form.field("purpose"),
        created_s=request.created_s,
    )
    return Fixed(200, encode(facts))


def _list(request: Request, desk: Desk) -> Fixed:
    purpose = request.parameter("purpose")
    files = [kept.facts for kept in desk.store.all(_KIND) if purpose in ("", kept.facts["purpose"])]
    return Fixed(200, encode({"object": "list", "data": files, "has_more": False}))
