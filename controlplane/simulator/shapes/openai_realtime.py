"""OpenAI's Realtime: a session on a WebSocket, in which text and sounds are said and answered."""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from controlplane.simulator.calls import LENGTH, Answer, Asked, Call, Counts, Event, Fixed, Refused, Request
from controlplane.simulator.shapes.openai_errors import error_body
from controlplane.simulator.websocket import handshake
from controlplane.simulator.words import encode, sound

PATHS = frozenset({"/v1/realtime", "/azure/openai/v1/realtime", "/azure/openai/realtime"})
_PROTOCOL = "realtime"
# What the input has: 24,000 samples a second, two bytes each; ten tokens a second.
_SOUND_BYTES_A_TOKEN = 4_800
_SOUND_MS_A_TOKEN = 20
_ITEMS_MAX = 1_000

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def ask(request: Request) -> Fixed:
    """Raises `Refused`."""
    key = request.headers.get(b"sec-websocket-key", b"")
    if request.method != "GET" or request.header(b"upgrade").lower() != "websocket" or not key:
        raise Refused(400, "Realtime is spoken on a WebSocket.")
    if not (request.parameter("model") or request.parameter("deployment")):
        raise Refused(400, "You must provide a model parameter.", code="missing_model")
    offered = [protocol.strip() for protocol in request.header(b"sec-websocket-protocol").split(",")]
    return Fixed(101, b"", handshake(key, _PROTOCOL.encode() if _PROTOCOL in offered else b""))


class Session:
    """What has been said, and how to answer. No sockets."""

    def __init__(self, request: Request, call_id: str) -> None:
        self._call_id = call_id
        self._model = request.parameter("model") or request.parameter("deployment")
        self._settings: dict[str, Any] = {}
        self._items: list[dict[str, Any]] = []
        self._sound_tokens = 0
        self._heard_bytes = 0
        self._events = 0

    def opening(self) -> list[bytes]:
        return [self._event("session.created", session=self._session())]

    def is_cancel(self, event: bytes) -> bool:
        return _read(event).get("type") == "response.cancel"

    def receive(self, event: bytes) -> tuple[list[bytes], Asked | None]:
        """(the events that answer it at once, what is asked of the model)."""
        asked = _read(event)
        match asked.get("type"):
            case "session.update":
                self._settings |= _object(asked, "session")
                return [self._event("session.updated", session=self._session())], None
            case "conversation.item.create":
                return self._add(_object(asked, "item")), None
            case "input_audio_buffer.append":
                return self._hear(asked), None
            case "input_audio_buffer.commit":
                return self._commit(), None
            case "input_audio_buffer.clear":
                self._heard_bytes = 0
                return [self._event("input_audio_buffer.cleared")], None
            case "response.create":
                return [], self._ask(_object(asked, "response"))
            case "response.cancel":
                return [self._error("There is no active response.")], None
            case kind:
                return [self._error(f"Unknown event type: {kind}", asked.get("event_id"))], None

    def refusal(self, refused: Fixed) -> bytes:
        """An error as an event."""
        return self._event("error", **_read(refused.body))

    def remember(self, call: Call) -> None:
        """What was answered is a part of the conversation from now on."""
        if call.plan is not None and not call.plan.tool and len(self._items) < _ITEMS_MAX:
            said = msgspec.json.decode(b'"%b"' % call.plan.saying.whole(), type=str)
            self._items.append({"type": "message", "role": "assistant", "content": [{"text": said}]})

    def cancelled(self, call: Call) -> list[bytes]:
        if call.asked is None or call.plan is None:
            return []
        return [Response(call).done(b"cancelled")]

    # Its events

    def _session(self) -> dict[str, Any]:
        usual = {"type": "realtime", "object": "realtime.session", "id": f"sess_{self._call_id}", "model": self._model}
        return usual | {"output_modalities": ["text"], "instructions": "", "tools": []} | self._settings

    def _add(self, item: dict[str, Any]) -> list[bytes]:
        if len(self._items) >= _ITEMS_MAX:
            return [self._error("The conversation is too long.")]
        self._items.append(item)
        self._sound_tokens += sum(_sound_tokens(part.get("audio")) for part in _parts(item))
        shown = {"id": f"item_{self._call_id}_{len(self._items)}", "object": "realtime.item", "status": "completed"}
        shown |= item
        return [self._event(f"conversation.item.{what}", item=shown) for what in ("added", "done")]

    def _hear(self, asked: dict[str, Any]) -> list[bytes]:
        self._heard_bytes += _bytes(asked.get("audio"))
        return []

    def _commit(self) -> list[bytes]:
        if not self._heard_bytes:
            return [self._error("The buffer is too small: it has no sound.")]
        tokens, self._heard_bytes = -(-self._heard_bytes // _SOUND_BYTES_A_TOKEN), 0
        self._sound_tokens += tokens
        committed = self._event("input_audio_buffer.committed", item_id=f"item_{self._call_id}_{len(self._items) + 1}")
        return [committed, *self._add({"type": "message", "role": "user", "content": [{"type": "input_audio"}]})]

    def _ask(self, response: dict[str, Any]) -> Asked:
        """Everything that was said is input once more; the newest stands first, for its directives."""
        told = self._settings | response
        items = told["input"] if isinstance(told.get("input"), list) else self._items
        texts = [text for item in reversed(items) if isinstance(item, dict) for text in _texts(item)]
        instructions = told.get("instructions")
        if isinstance(instructions, str) and instructions:
            texts.append(instructions)
        cap = told.get("max_output_tokens")
        tools = told.get("tools")
        names = [tool.get("name") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
        last = items[-1] if items and isinstance(items[-1], dict) else {}
        return Asked(
            model=self._model,
            texts=texts,
            answers=Response,
            is_stream=True,
            cap=cap if isinstance(cap, int) and cap > 0 else None,
            tools=[name for name in names if isinstance(name, str)],
            has_results=last.get("type") == "function_call_output",
            more_tokens=self._sound_tokens,
            details=(self._sound_tokens, told.get("output_modalities") == ["audio"]),
        )

    def _error(self, message: str, event_id: object = None) -> bytes:
        error = {"type": "invalid_request_error", "code": "invalid_value", "message": message, "param": None}
        return self._event("error", error=error | {"event_id": event_id})

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._events += 1
        return encode({"type": kind, "event_id": f"event_{self._call_id}_{self._events}"} | fields)


def _read(event: bytes) -> dict[str, Any]:
    try:
        return _decode(event)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}


def _object(asked: dict[str, Any], name: str) -> dict[str, Any]:
    value = asked.get(name)
    return value if isinstance(value, dict) else {}


def _parts(item: dict[str, Any]) -> list[dict[str, Any]]:
    content = item.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _texts(item: dict[str, Any]) -> list[str]:
    said = [part.get("text") or part.get("transcript") for part in _parts(item)]
    return [text for text in [*said, item.get("output")] if isinstance(text, str)]


def _bytes(audio: object) -> int:
    """Of a sound in base64."""
    try:
        return len(base64.b64decode(audio)) if isinstance(audio, str) else 0
    except binascii.Error:
        return 0


def _sound_tokens(audio: object) -> int:
    return -(-_bytes(audio) // _SOUND_BYTES_A_TOKEN)


class Response(Answer):
    """One answer of the model. As a sound, each token is a word and 20 ms of it."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._sound_tokens, self._is_sound = self.asked.details
        self._is_sound = self._is_sound and not self.plan.tool
        self._number = 0
        self.shows_reasoning = False

    def events(self) -> Iterator[Event]:
        plan, saying = self.plan, self.plan.saying
        yield self._event(b"response.created", b'"response":%b' % self._response(b"in_progress")), 0, 0, b""
        yield self._event(b"response.output_item.added", self._place(self._item(b"in_progress", b""))), 0, 0, b""
        for _ in range(plan.reasoning_tokens):
            yield b"", 1, 0, b""
        if plan.tool:
            kind, field = b"response.function_call_arguments", b"arguments"
        elif self._is_sound:
            kind, field = b"response.output_audio_transcript", b"transcript"
        else:
            kind, field = b"response.output_text", b"text"
        if not plan.tool:
            yield self._event(b"response.content_part.added", self._at + b',"part":' + self._part(b"")), 0, 0, b""
        heard = base64.b64encode(sound(_SOUND_MS_A_TOKEN)) if self._is_sound else b""
        for position in range(saying.tokens):
            yield self._event(kind + b".delta", b'%b,"delta":"%b"' % (self._at, saying.piece(position))), 1, 1, b""
            if heard:
                yield self._event(b"response.output_audio.delta", b'%b,"delta":"%b"' % (self._at, heard)), 0, 0, b""
        said = saying.whole()
        if heard:
            yield self._event(b"response.output_audio.done", self._at), 0, 0, b""
        yield self._event(kind + b".done", b'%b,"%b":"%b"' % (self._at, field, said)), 0, 0, b""
        if not plan.tool:
            yield self._event(b"response.content_part.done", self._at + b',"part":' + self._part(said)), 0, 0, b""
        yield self._event(b"response.output_item.done", self._place(self._item(b"completed", said))), 0, 0, b""
        usage = self._usage(plan.counts) if self.says_usage else b""
        status = b"incomplete" if plan.finish == LENGTH else b"completed"
        ended = self._response(status, self._item(status, said), usage)
        yield self._event(b"response.done", b'"response":%b' % ended), 0, 0, usage

    def done(self, status: bytes) -> bytes:
        """What ends an answer that was not given to its end."""
        counts = replace(self.plan.counts, output_tokens=self.call.generated)
        usage = self._usage(counts) if self.says_usage else b""
        return self._event(b"response.done", b'"response":%b' % self._response(status, b"", usage))

    @property
    def _at(self) -> bytes:
        place = b'"response_id":"resp_%b","item_id":"item_%b","output_index":0' % (self.id, self.id)
        return place if self.plan.tool else place + b',"content_index":0'

    def _place(self, item: bytes) -> bytes:
        return b'"response_id":"resp_%b","output_index":0,"item":%b' % (self.id, item)

    def _response(self, status: bytes, output: bytes = b"", usage: bytes = b"") -> bytes:
        return b'{"object":"realtime.response","id":"resp_%b","status":"%b","output":[%b],"usage":%b}' % (
            self.id,
            status,
            output,
            usage or b"null",
        )

    def _item(self, status: bytes, said: bytes) -> bytes:
        opened = b'{"id":"item_%b","object":"realtime.item","status":"%b",' % (self.id, status)
        if self.plan.tool:
            named = b'"type":"function_call","name":%b,"call_id":"call_%b"' % (encode(self.plan.tool), self.id)
            return b'%b%b,"arguments":"%b"}' % (opened, named, said)
        content = self._part(said) if said else b""
        return b'%b"type":"message","role":"assistant","content":[%b]}' % (opened, content)

    def _part(self, said: bytes) -> bytes:
        form = b'{"type":"output_audio","transcript":"%b"}' if self._is_sound else b'{"type":"output_text","text":"%b"}'
        return form % said

    def _usage(self, counts: Counts) -> bytes:
        heard = min(self._sound_tokens, counts.input_tokens)
        spoken = counts.output_tokens if self._is_sound else 0
        return (
            b'{"total_tokens":%d,"input_tokens":%d,"output_tokens":%d,"input_token_details":{"text_tokens":%d,'
            b'"audio_tokens":%d,"image_tokens":0,"cached_tokens":%d,"cached_tokens_details":{"text_tokens":%d,'
            b'"audio_tokens":0,"image_tokens":0}},"output_token_details":{"text_tokens":%d,"audio_tokens":%d}}'
        ) % (
            counts.input_tokens + counts.output_tokens,
            counts.input_tokens,
            counts.output_tokens,
            counts.input_tokens - heard,
            heard,
            counts.cached_tokens,
            counts.cached_tokens,
            counts.output_tokens - spoken,
            spoken,
        )

    def _event(self, kind: bytes, fields: bytes) -> bytes:
        self._number += 1
        return b'{"type":"%b","event_id":"event_%b_%d",%b}' % (kind, self.id, self._number, fields)

    def broken(self) -> bytes:
        return b'{"type":"response.output_text.delta","del'

    def failure(self, status: int) -> bytes:
        return b'{"type":"error","event_id":"event_%b",%b' % (self.id, error_body(status)[1:])
