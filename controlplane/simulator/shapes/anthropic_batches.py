"""Anthropic's batches of messages: they are answered when somebody looks at them after their time (`work_ms`)."""

import time
from typing import Annotated, Any

import msgspec

from controlplane.simulator.calls import Desk, Fixed, Refused, Request, decode, demand
from controlplane.simulator.store import Kept
from controlplane.simulator.wire import JSON_LINES
from controlplane.simulator.words import encode

_KIND = "message_batch"
_MESSAGES = "/anthropic/v1/messages"
_DAY_S = 86_400


class Line(msgspec.Struct):
    custom_id: str
    params: dict[str, Any]


class BatchRequest(msgspec.Struct):
    requests: Annotated[list[Line], msgspec.Meta(min_length=1, max_length=100_000)]


_decode = msgspec.json.Decoder(BatchRequest).decode


def ask(request: Request, path: str, call_id: str, desk: Desk) -> Fixed:
    """`path` is what comes after `/messages/batches/`. Raises `Refused`."""
    if not path:
        demand(request, "GET", "POST")
        return _create(request, call_id, desk) if request.method == "POST" else _list(request, desk)
    name, _, verb = path.partition("/")
    kept = desk.store.find(_KIND, name)
    if kept is None:
        raise Refused(404, f"No batch {name}.")
    kept = _settle(kept, request, desk)
    facts = kept.facts
    if verb == "cancel":
        demand(request, "POST")
        return _answer(_cancel(kept, request, desk))
    if verb == "results":
        demand(request, "GET")
        if facts["shown"]["results_url"] is None:
            raise Refused(404, f"Batch {name} has no results yet.")
        return Fixed(200, kept.content, JSON_LINES)
    demand(request, "GET", "DELETE")
    if request.method == "DELETE":
        desk.store.drop(name)
        return Fixed(200, encode({"id": name, "type": "message_batch_deleted"}))
    return _answer(kept)


def _create(request: Request, call_id: str, desk: Desk) -> Fixed:
    lines = decode(_decode, request.body).requests
    name = f"msgbatch_{call_id}"
    shown = {
        "id": name,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": _counts(processing=len(lines)),
        "ended_at": None,
        "created_at": _moment(request.created_s),
        "expires_at": _moment(request.created_s + _DAY_S),
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    due_s = request.arrived_s + desk.directives(request).work_ms / 1000
    kept = Kept(_KIND, {"shown": shown, "lines": lines, "request": request}, due_s=due_s)
    desk.store.keep(name, kept)
    return _answer(kept)


def _list(request: Request, desk: Desk) -> Fixed:
    batches = [_settle(kept, request, desk).facts["shown"] for kept in list(desk.store.all(_KIND))]
    ends = {"first_id": batches[0]["id"], "last_id": batches[-1]["id"]} if batches else {}
    return Fixed(200, encode({"data": batches, "has_more": False} | ends))


def _settle(kept: Kept, request: Request, desk: Desk) -> Kept:
    """Answer its lines, once its time has come."""
    if kept.facts["shown"]["ended_at"] is not None or request.arrived_s < kept.due_s:
        return kept
    results = []
    for line in kept.facts["lines"]:
        asked = kept.facts["request"]._replace(path=_MESSAGES, body=encode(line.params))
        status, body = desk.run(asked, kept.facts["shown"]["id"])
        kind, field = ("succeeded", "message") if status == 200 else ("errored", "error")
        results.append((kind, {"custom_id": line.custom_id, "result": {"type": kind, field: msgspec.Raw(body)}}))
    return _end(kept, results, request, desk)


def _cancel(kept: Kept, request: Request, desk: Desk) -> Kept:
    if kept.facts["shown"]["ended_at"] is not None:
        return kept
    results = [
        ("canceled", {"custom_id": line.custom_id, "result": {"type": "canceled"}}) for line in kept.facts["lines"]
    ]
    kept.facts["shown"]["cancel_initiated_at"] = _moment(request.created_s)
    return _end(kept, results, request, desk)


def _end(kept: Kept, results: list[tuple[str, Any]], request: Request, desk: Desk) -> Kept:
    name = kept.facts["shown"]["id"]
    kinds = [kind for kind, _ in results]
    shown = kept.facts["shown"] | {
        "processing_status": "ended",
        "request_counts": _counts(**{kind: kinds.count(kind) for kind in set(kinds)}),
        "ended_at": _moment(request.created_s),
        "results_url": f"{_MESSAGES}/batches/{name}/results",
    }
    content = b"".join(encode(result) + b"\n" for _, result in results)
    ended = Kept(_KIND, {"shown": shown, "lines": []}, content)
    desk.store.keep(name, ended)
    return ended


def _answer(kept: Kept) -> Fixed:
    return Fixed(200, encode(kept.facts["shown"]))


def _counts(**counts: int) -> dict[str, int]:
    return {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0} | counts


def _moment(at_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
