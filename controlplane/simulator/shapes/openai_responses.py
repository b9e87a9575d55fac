"""OpenAI's Responses: whole, as a stream, in the background; kept, read again, cancelled and deleted."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgspec

from controlplane.simulator.calls import (
    LENGTH,
    Answer,
    Asked,
    Call,
    Counts,
    Desk,
    Event,
    Fixed,
    Refused,
    Request,
    decode,
    demand,
)
from controlplane.simulator.shapes.openai_chat import Form
from controlplane.simulator.shapes.openai_errors import error_body
from controlplane.simulator.store import Kept, Store
from controlplane.simulator.wire import named_event
from controlplane.simulator.words import encode

PATH = "/v1/responses"
_KIND = "response"
_ENCRYPTED = b"gAAAAABzaW11bGF0ZWQgcmVhc29uaW5n"


class Part(msgspec.Struct):
    text: str | None = None


class Item(msgspec.Struct):
    """Of the input: a message, a tool's result (`output`), or anything else that has been said."""

    type: str = "message"
    content: str | list[Part] | None = None
    output: str | list[Part] | None = None

    def texts(self) -> list[str]:
        return [text for content in (self.content, self.output) for text in _texts(content)]


def _texts(content: str | list[Part] | None) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part.text for part in content or () if part.text is not None]


class Tool(msgspec.Struct):
    type: str
    name: str | None = None


class Text(msgspec.Struct):
    format: dict[str, Any] | None = None


class ResponsesRequest(msgspec.Struct):
    model: str
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tools: list[Tool] | None = None
    text: Text | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None

    def texts(self) -> list[str]:
        said = [self.input] if isinstance(self.input, str) else [text for item in self.input for text in item.texts()]
        return [self.instructions, *said] if self.instructions else said

    def has_results(self) -> bool:
        return not isinstance(self.input, str) and bool(self.input) and self.input[-1].type.endswith("_output")

    def schema(self) -> object:
        form = (self.text.format if self.text is not None else None) or {}
        is_schema = form.get("type") == "json_schema"
        return form.get("schema", {}) if is_schema else Form(type=str(form.get("type", ""))).schema()


class Details(NamedTuple):
    request: ResponsesRequest
    store: Store
    arrived_s: float


_decode = msgspec.json.Decoder(ResponsesRequest).decode


def ask(request: Request, desk: Desk) -> Asked:
    """Raises `Refused`."""
    demand(request, "POST")
    asked = decode(_decode, request.body)
    earlier = asked.previous_response_id
    if earlier is not None and desk.store.find(_KIND, earlier) is None:
        raise Refused(400, f"Previous response with id '{earlier}' not found.", code="previous_response_not_found")
    return Asked(
        model=asked.model,
        texts=asked.texts(),
        answers=Response,
        is_stream=bool(asked.stream),
        cap=asked.max_output_tokens,
        tools=[tool.name for tool in asked.tools if tool.name is not None] if asked.tools else (),
        has_results=asked.has_results(),
        schema=asked.schema(),
        details=Details(asked, desk.store, request.arrived_s),
    )


def ask_kept(request: Request, desk: Desk) -> Fixed:
    """`/v1/responses/{id}`, its `/cancel` and its `/input_items`. Raises `Refused`."""
    name, _, verb = request.path.removeprefix(f"{PATH}/").partition("/")
    kept = desk.store.find(_KIND, name)
    if kept is None:
        raise Refused(404, f"Response with id '{name}' not found.", code="response_not_found")
    if verb == "cancel":
        demand(request, "POST")
        return _cancel(kept, name, request, desk.store)
    if verb == "input_items":
        demand(request, "GET")
        return Fixed(200, encode({"object": "list", "data": [], "has_more": False}))
    demand(request, "GET", "DELETE")
    if request.method == "DELETE":
        desk.store.drop(name)
        return Fixed(200, encode({"id": name, "object": "response", "deleted": True}))
    if request.arrived_s < kept.due_s:
        return Fixed(200, _unfinished(kept, "queued"))
    return Fixed(200, kept.content, usage=kept.facts["usage"])


def _cancel(kept: Kept, name: str, request: Request, store: Store) -> Fixed:
    if not kept.facts["is_background"]:
        raise Refused(400, "Cannot cancel a synchronous response.")
    if request.arrived_s < kept.due_s:
        cancelled = _unfinished(kept, "cancelled")
        store.keep(name, Kept(_KIND, kept.facts | {"usage": b""}, cancelled))
        return Fixed(200, cancelled)
    return Fixed(200, kept.content, usage=kept.facts["usage"])


def _unfinished(kept: Kept, status: str) -> bytes:
    response = msgspec.json.decode(kept.content)
    return encode(response | {"status": status, "output": [], "usage": None, "completed_at": None})


class Response(Answer):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        details: Details = self.asked.details
        self._request = details.request
        self._usage = usage_json(self.plan.counts) if self.says_usage else b""
        self._response_id = b"resp_" + self.id
        self._sequence = 0
        self.shows_reasoning = False

    def whole(self) -> tuple[bytes, bytes]:
        response = self._finished()
        self._keep(response)
        if self._request.background:
            return _unfinished(Kept(_KIND, {}, response), "queued"), b""
        return response, self._usage

    def _keep(self, response: bytes) -> None:
        details: Details = self.asked.details
        if self._request.store is False and not self._request.background:
            return
        work_s = self.call.directives.work_ms / 1000 if self._request.background else 0
        facts = {"usage": self._usage, "is_background": bool(self._request.background)}
        kept = Kept(_KIND, facts, response, details.arrived_s + work_s)
        details.store.keep(self._response_id.decode(), kept)

    # Its parts

    def _finished(self) -> bytes:
        is_cut = self.plan.finish == LENGTH
        items = b",".join(self._items())
        status = b"incomplete" if is_cut else b"completed"
        reason = b'{"reason":"max_output_tokens"}' if is_cut else b"null"
        return self._response(status, output=items, incomplete=reason, usage=self._usage or b"null")

    def _response(
        self,
        status: bytes,
        *,
        output: bytes = b"",
        incomplete: bytes = b"null",
        usage: bytes = b"null",
        error: bytes = b"null",
    ) -> bytes:
        request = self._request
        return (
            b'{"id":"%b","object":"response","created_at":%d,"status":"%b","background":%b,"error":%b,'
            b'"incomplete_details":%b,"instructions":%b,"max_output_tokens":%b,"model":%b,"output":[%b],'
            b'"parallel_tool_calls":true,"previous_response_id":%b,"reasoning":{"effort":null,"summary":null},'
            b'"service_tier":"default","store":%b,"temperature":1.0,"text":{"format":{"type":"text"}},'
            b'"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":%b,"user":null,"metadata":%b}'
        ) % (
            self._response_id,
            self.call.created_s,
            status,
            encode(bool(request.background)),
            error,
            incomplete,
            encode(request.instructions),
            encode(request.max_output_tokens),
            self.model,
            output,
            encode(request.previous_response_id),
            encode(request.store is not False),
            usage,
            encode(request.metadata or {}),
        )

    def _items(self) -> list[bytes]:
        items = [self._reasoning(is_done=True)] if self.plan.reasoning_tokens else []
        return [*items, self._item(b"incomplete" if self.plan.finish == LENGTH else b"completed", is_done=True)]

    def _reasoning(self, *, is_done: bool) -> bytes:
        secret = b',"encrypted_content":"%b"' % _ENCRYPTED if is_done else b""
        return b'{"id":"rs_%b","type":"reasoning","summary":[]%b}' % (self.id, secret)

    def _item(self, status: bytes, *, is_done: bool) -> bytes:
        """What is said, or the call of the tool."""
        said = self.plan.saying.whole() if is_done else b""
        if self.plan.tool:
            return (
                b'{"id":"fc_%b","type":"function_call","status":"%b","arguments":"%b","call_id":"call_%b","name":%b}'
            ) % (self.id, status, said, self.id, encode(self.plan.tool))
        content = self._part(said) if is_done else b""
        return b'{"id":"msg_%b","type":"message","status":"%b","content":[%b],"role":"assistant"}' % (
            self.id,
            status,
            content,
        )

    def _part(self, said: bytes) -> bytes:
        return b'{"type":"output_text","annotations":[],"logprobs":[],"text":"%b"}' % said

    # Its events

    def events(self) -> Iterator[Event]:
        plan = self.plan
        started = b'"response":%b' % self._response(b"in_progress")
        yield self._event(b"response.created", started), 0, 0, b""
        yield self._event(b"response.in_progress", started), 0, 0, b""
        index = 0
        if plan.reasoning_tokens:
            yield self._item_event(b"added", index, self._reasoning(is_done=False)), 0, 0, b""
            for _ in range(plan.reasoning_tokens):
                yield b"", 1, 0, b""
            yield self._item_event(b"done", index, self._reasoning(is_done=True)), 0, 0, b""
            index = 1
        yield self._item_event(b"added", index, self._item(b"in_progress", is_done=False)), 0, 0, b""
        yield from self._say_call(index) if plan.tool else self._say_text(index)
        (*_, item) = self._items()
        yield self._item_event(b"done", index, item), 0, 0, b""
        response = self._finished()
        self._keep(response)
        last = b"response.incomplete" if plan.finish == LENGTH else b"response.completed"
        yield self._event(last, b'"response":%b' % response), 0, 0, self._usage

    def _say_call(self, index: int) -> Iterator[Event]:
        saying = self.plan.saying
        place = b'"item_id":"fc_%b","output_index":%d' % (self.id, index)
        for position in range(saying.tokens):
            delta = b'%b,"delta":"%b"' % (place, saying.piece(position))
            yield self._event(b"response.function_call_arguments.delta", delta), 1, 1, b""
        done = b'%b,"arguments":"%b"' % (place, saying.whole())
        yield self._event(b"response.function_call_arguments.done", done), 0, 0, b""

    def _say_text(self, index: int) -> Iterator[Event]:
        saying = self.plan.saying
        place = b'"item_id":"msg_%b","output_index":%d,"content_index":0' % (self.id, index)
        yield self._event(b"response.content_part.added", b'%b,"part":%b' % (place, self._part(b""))), 0, 0, b""
        for position in range(saying.tokens):
            delta = b'%b,"delta":"%b","logprobs":[],"obfuscation":"x9Kq"' % (place, saying.piece(position))
            yield self._event(b"response.output_text.delta", delta), 1, 1, b""
        said = saying.whole()
        yield self._event(b"response.output_text.done", b'%b,"text":"%b","logprobs":[]' % (place, said)), 0, 0, b""
        yield self._event(b"response.content_part.done", b'%b,"part":%b' % (place, self._part(said))), 0, 0, b""

    def _item_event(self, what: bytes, index: int, item: bytes) -> bytes:
        return self._event(b"response.output_item." + what, b'"output_index":%d,"item":%b' % (index, item))

    def _event(self, name: bytes, fields: bytes) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return named_event(name, b'{"type":"%b","sequence_number":%d,%b}' % (name, number, fields))

    def broken(self) -> bytes:
        return b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","del\n\n'

    def failure(self, status: int) -> bytes:
        error = msgspec.json.decode(error_body(status))["error"]
        said = encode({"code": error["code"] or error["type"], "message": error["message"]})
        told = b'"error":%b' % encode(error)
        failed = b'"response":%b' % self._response(b"failed", error=said)
        return self._event(b"error", told) + self._event(b"response.failed", failed)

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        return b'event: keepalive\ndata: {"type":"keepalive"', b"}\n\n"


def usage_json(counts: Counts) -> bytes:
    return (
        b'{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d},"output_tokens":%d,'
        b'"output_tokens_details":{"reasoning_tokens":%d},"total_tokens":%d}'
    ) % (
        counts.input_tokens,
        counts.cached_tokens,
        counts.output_tokens,
        counts.reasoning_tokens,
        counts.input_tokens + counts.output_tokens,
    )
