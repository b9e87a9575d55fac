"""OpenAI's batches: a file of requests, answered when somebody looks at the batch after its time (`work_ms`)."""

from typing import Any

import msgspec

from controlplane.simulator.calls import Desk, Fixed, Refused, Request, decode, demand
from controlplane.simulator.shapes import openai_files
from controlplane.simulator.store import Kept
from controlplane.simulator.words import encode

PATH = "/v1/batches"
_KIND = "batch"
_DAY_S = 86_400


class BatchRequest(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class Line(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


_decode = msgspec.json.Decoder(BatchRequest).decode
_decode_line = msgspec.json.Decoder(Line).decode


def ask(request: Request, call_id: str, desk: Desk) -> Fixed:
    """`/v1/batches`, `/v1/batches/{id}` and its `/cancel`. Raises `Refused`."""
    name, _, verb = request.path.removeprefix(PATH).strip("/").partition("/")
    if not name:
        demand(request, "GET", "POST")
        return _create(request, call_id, desk) if request.method == "POST" else _list(request, desk)
    kept = desk.store.find(_KIND, name)
    if kept is None:
        raise Refused(404, f"No batch found with id '{name}'.", code="not_found")
    kept = _settle(kept, request, desk)
    if verb == "cancel":
        demand(request, "POST")
        return _answer(_cancel(kept, request, desk))
    demand(request, "GET")
    return _answer(kept)


def _create(request: Request, call_id: str, desk: Desk) -> Fixed:
    asked = decode(_decode, request.body)
    openai_files.find(asked.input_file_id, desk)
    name = f"batch_{call_id}"
    shown: dict[str, Any] = {
        "id": name,
        "object": "batch",
        "endpoint": asked.endpoint,
        "errors": None,
        "input_file_id": asked.input_file_id,
        "completion_window": asked.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": request.created_s,
        "in_progress_at": None,
        "expires_at": request.created_s + _DAY_S,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": asked.metadata,
    }
    due_s = request.arrived_s + desk.directives(request).work_ms / 1000
    kept = Kept(_KIND, {"shown": shown, "request": request}, due_s=due_s)
    desk.store.keep(name, kept)
    return _answer(kept)


def _list(request: Request, desk: Desk) -> Fixed:
    batches = [_settle(kept, request, desk).facts["shown"] for kept in list(desk.store.all(_KIND))]
    ends = {"first_id": batches[0]["id"], "last_id": batches[-1]["id"]} if batches else {}
    return Fixed(200, encode({"object": "list", "data": batches, "has_more": False} | ends))


def _settle(kept: Kept, request: Request, desk: Desk) -> Kept:
    """Answer its lines, once its time has come."""
    shown = kept.facts["shown"]
    if shown["status"] not in ("validating", "in_progress"):
        return kept
    if request.arrived_s < kept.due_s:
        return _change(kept, desk, {"status": "in_progress", "in_progress_at": request.created_s})
    try:
        lines = _read_lines(shown, desk)
    except (Refused, msgspec.DecodeError) as error:
        errors = {"object": "list", "data": [{"code": "invalid_json_line", "message": str(error), "line": None}]}
        return _change(kept, desk, {"status": "failed", "failed_at": request.created_s, "errors": errors})
    answers = [_run(number, line, kept, desk) for number, line in enumerate(lines)]
    succeeded = [answer for is_good, answer in answers if is_good]
    failed = [answer for is_good, answer in answers if not is_good]
    ended = {
        "status": "completed",
        "completed_at": request.created_s,
        "request_counts": {"total": len(lines), "completed": len(succeeded), "failed": len(failed)},
        "output_file_id": _keep_lines("output", shown["id"], succeeded, request, desk),
        "error_file_id": _keep_lines("error", shown["id"], failed, request, desk),
    }
    return _change(kept, desk, ended)


def _read_lines(shown: dict[str, Any], desk: Desk) -> list[Line]:
    """Raises `Refused`, `msgspec.DecodeError`."""
    content = openai_files.find(shown["input_file_id"], desk).content
    return [_decode_line(line) for line in content.splitlines() if line.strip()]


def _run(number: int, line: Line, kept: Kept, desk: Desk) -> tuple[bool, bytes]:
    """(whether it succeeded, its line of the output)."""
    name = kept.facts["shown"]["id"]
    path = line.url if line.url.startswith("/v1/") else f"/v1{line.url}"  # Azure's leave it out.
    asked: Request = kept.facts["request"]._replace(path=path, method=line.method, body=bytes(line.body))
    status, body = desk.run(asked, name)
    response = {"status_code": status, "request_id": f"req_{name}_{number}", "body": msgspec.Raw(body)}
    answer = {
        "id": f"batch_req_{name}_{number}",
        "custom_id": line.custom_id,
        "response": response,
        "error": None,
    }
    return status == 200, encode(answer) + b"\n"


def _keep_lines(kind: str, name: str, lines: list[bytes], request: Request, desk: Desk) -> str | None:
    if not lines:
        return None
    file_id = f"file-{kind}-{name}"
    openai_files.keep(
        desk,
        file_id,
        b"".join(lines),
        file_name=f"{name}_{kind}.jsonl",
        purpose="batch_output",
        created_s=request.created_s,
    )
    return file_id


def _cancel(kept: Kept, request: Request, desk: Desk) -> Kept:
    status = kept.facts["shown"]["status"]
    if status not in ("validating", "in_progress"):
        raise Refused(409, f"Cannot cancel a batch with status '{status}'.")
    moments = {"cancelling_at": request.created_s, "cancelled_at": request.created_s}
    return _change(kept, desk, {"status": "cancelled"} | moments)


def _change(kept: Kept, desk: Desk, changes: dict[str, Any]) -> Kept:
    changed = kept._replace(facts=kept.facts | {"shown": kept.facts["shown"] | changes})
    desk.store.keep(changed.facts["shown"]["id"], changed)
    return changed


def _answer(kept: Kept) -> Fixed:
    return Fixed(200, encode(kept.facts["shown"]))
