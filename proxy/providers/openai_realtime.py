"""OpenAI's Realtime: where its sessions are, and what their events say of what they use. Pure; no I/O.

Source: developers.openai.com/api/reference/realtime. An answer is billed by the usage in its `response.done`; the
transcription of what was heard by that of `conversation.item.input_audio_transcription.completed`. Both generations of
events are read: `response.audio.delta` and `session.turn_detection` of the beta, `response.output_audio.delta` and
`session.audio.input.turn_detection` since.
"""

import math
from typing import Any
from urllib.parse import urlencode

import msgspec

from audit.records import Usage
from budgets.pricing import Price, ceiling, cost_nanos, hold_nanos
from proxy.dialects.dialect import TEMPLATE_TOKENS, Call
from proxy.neutral import ProviderError
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import TOKENS_MAX, Api, Outgoing, SessionMeter, checked_usage, name_of
from proxy.snapshot import Deployment, Provider

# How OpenAI counts sound, and what a second of it takes in bytes. Unless it is known to be PCM it is the smaller G.711.
HEARD_TOKENS_PER_SECOND = 10
SPOKEN_TOKENS_PER_SECOND = 20
PCM_BYTES_PER_SECOND = 48_000
PCM = frozenset({"audio/pcm", "pcm16"})
BYTES_PER_SECOND_MIN = 8_000
BYTES_PER_TOKEN = 4

SESSION_UPDATES = frozenset({"session.update", "transcription_session.update"})
SESSION_STATES = frozenset(
    {"session.created", "session.updated", "transcription_session.created", "transcription_session.updated"}
)
AUDIO_DELTAS = frozenset({"response.output_audio.delta", "response.audio.delta"})
TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
ACTIVE_RESPONSE = "conversation_already_has_active_response"

_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode
_decode_value = msgspec.json.Decoder().decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class OpenAIRealtime(Api):
    name = "openai.realtime"
    capability = "realtime"

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        # A session that only transcribes names its model in its settings, and is refused where it names one here.
        is_transcription = "intent=transcription" in call.parameters["query"].split("&")
        named = {} if is_transcription else {"model": deployment.upstream_model}
        return Outgoing(with_query(b"/realtime", call, **named), b"", method=b"GET")

    def session_meter(self, call: Call, deployment: Deployment) -> SessionMeter:
        return RealtimeMeter(call.alias, deployment)

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


def with_query(path: bytes, call: Call, **named: str) -> bytes:
    """`path` with what names the model, and the rest of the client's query as it was."""
    return path + b"?" + "&".join(filter(None, [urlencode(named), call.parameters["query"]])).encode()


class _Event(msgspec.Struct):
    """What is read of every event; the rest of it only where its type says that it matters."""

    type: Any = ""
    response_id: Any = None
    delta: msgspec.Raw = _NULL


_decode_event = msgspec.json.Decoder(_Event).decode
_NO_EVENT = _Event()


class _Answering:
    """A response that has begun: the tokens of it that were seen."""

    __slots__ = ("spoken_tokens", "text_tokens")

    def __init__(self) -> None:
        self.text_tokens = 0
        self.spoken_tokens = 0.0


class RealtimeMeter(SessionMeter):
    """What one session uses, and what it may still use.

    The hold covers one answer for each `response.create` on its way or in progress. Where the provider answers by itself
    once it has heard somebody, it covers one more: the next may begin before we have read what the last one used.
    """

    def __init__(self, alias: str, deployment: Deployment) -> None:
        super().__init__()
        self._alias = alias
        self._deployment = deployment
        # Event ids of `response.create`s that nothing has answered yet.
        self._asked: list[object] = []
        self._running: dict[object, _Answering] = {}
        # The longest answer that the session's settings allow, and that a client has asked for besides.
        self._output_tokens_max = deployment.max_output_tokens
        self._asked_output_tokens_max = 0
        self._answers_by_itself = True
        self._has_heard = False
        self._transcribes = False
        self._heard_bytes_per_second = BYTES_PER_SECOND_MIN
        self._spoken_bytes_per_second = BYTES_PER_SECOND_MIN
        # Heard while it is transcribed, and what of it was accounted for.
        self._to_transcribe_tokens = 0.0
        self._transcribed_tokens = 0
        # The conversation as the last answer left it, and what was said since.
        self._conversation_tokens = TEMPLATE_TOKENS
        self._said_bytes = 0
        self._heard_tokens = 0.0
        # Reckoned once for all the deltas between two events that change it.
        self._needed_nanos: int | None = None

    # What passes

    def sent(self, message: bytes) -> bytes:
        kind = _event(message).type
        if kind == "input_audio_buffer.append":
            self._hear(len(message))
            return message
        self._needed_nanos = None
        self._said_bytes += len(message)
        if kind == "response.create":
            self._ask(_object(message))
        elif isinstance(kind, str) and kind in SESSION_UPDATES:
            return self._update(message)
        return message

    def withheld(self, message: bytes) -> None:
        if _event(message).type == "response.create":
            del self._asked[-1:]
            self._needed_nanos = None

    def received(self, message: bytes) -> None:
        event = _event(message)
        kind = event.type
        if not isinstance(kind, str):
            return
        if kind.endswith(".delta"):
            self._see(event, kind)
            return
        self._needed_nanos = None
        if kind == "response.created":
            self._begin(_object(_object(message).get("response")))
        elif kind == "response.done":
            self._end(_object(_object(message).get("response")))
        elif kind == TRANSCRIBED:
            self._account_transcription(_object(message).get("usage"))
        elif kind in SESSION_STATES:
            self._settle_in(_object(_object(message).get("session")))
        elif kind == "error":
            self._refuse(_object(_object(message).get("error")))

    def _hear(self, message_bytes: int) -> None:
        """Base64 within JSON: a little more than the sound itself."""
        tokens = message_bytes * 3 / 4 / self._heard_bytes_per_second * HEARD_TOKENS_PER_SECOND
        if self._transcribes or not self._has_heard:
            self._needed_nanos = None
        self._has_heard = True
        self._heard_tokens += tokens
        if self._transcribes:
            self._to_transcribe_tokens += tokens

    def _ask(self, event: dict[str, Any]) -> None:
        self._asked.append(event.get("event_id"))
        self._allow(_object(event.get("response")))

    def _update(self, message: bytes) -> bytes:
        session = _object(_object(message).get("session"))
        self._allow(session)
        heard = _heard(session)
        # Until the provider tells what is in force now, the dearer holds.
        self._transcribes = self._transcribes or heard.get("transcription") is not None
        self._answers_by_itself = self._answers_by_itself or heard.get("turn_detection") is not None
        if heard.get("format") is not None:
            self._heard_bytes_per_second = BYTES_PER_SECOND_MIN
        return _renamed(message, self._alias, self._deployment.upstream_model)

    def _allow(self, settings: dict[str, Any]) -> None:
        cap = _output_cap(settings)
        if cap == "inf":
            cap = self._deployment.max_output_tokens
        if type(cap) is int:
            self._asked_output_tokens_max = max(self._asked_output_tokens_max, min(cap, TOKENS_MAX))

    def _settle_in(self, session: dict[str, Any]) -> None:
        """What the provider says is in force."""
        self.response_model = name_of(session.get("model")) or self.response_model
        heard, spoken = _heard(session), _object(_object(session.get("audio")).get("output"))
        turns = heard.get("turn_detection", {})
        self._answers_by_itself = turns is not None and _object(turns).get("create_response") is not False
        self._has_heard = self._has_heard or _object(turns).get("idle_timeout_ms") is not None
        self._transcribes = heard.get("transcription") is not None
        self._heard_bytes_per_second = _bytes_per_second(heard.get("format"))
        self._spoken_bytes_per_second = _bytes_per_second(spoken.get("format", session.get("output_audio_format")))
        cap = _output_cap(session)
        allowed = min(cap, TOKENS_MAX) if type(cap) is int and cap > 0 else self._deployment.max_output_tokens
        # An answer that runs keeps what it began with.
        self._output_tokens_max = max(allowed, self._output_tokens_max) if self._running else allowed

    def _see(self, event: _Event, kind: str) -> None:
        answering = self._running.get(_key(event.response_id))
        if answering is None:
            return
        self.has_begun_to_answer = True
        size = len(bytes(event.delta)) - len('""')
        if kind in AUDIO_DELTAS:
            answering.spoken_tokens += size * 3 / 4 / self._spoken_bytes_per_second * SPOKEN_TOKENS_PER_SECOND
        else:
            answering.text_tokens += max(1, -(-size // BYTES_PER_TOKEN))

    def _begin(self, response: dict[str, Any]) -> None:
        del self._asked[:1]
        self._running[_key(response.get("id"))] = _Answering()

    def _end(self, response: dict[str, Any]) -> None:
        answering = self._running.pop(_key(response.get("id")), None)
        if answering is None:
            del self._asked[:1]
        status = response.get("status")
        reason = _object(response.get("status_details")).get("reason")
        self.finish_reason = name_of(reason) or name_of(status) or self.finish_reason
        usage = _answer_usage(response.get("usage"))
        if usage is None and status != "failed":
            usage = self._estimate(answering or _Answering())
            self.is_estimated = True
        if usage is not None:
            self._add(usage)
            self._conversation_tokens = usage.input_tokens + usage.output_tokens
            self._said_bytes, self._heard_tokens = 0, 0.0

    def _account_transcription(self, value: Any) -> None:
        usage = _transcription_usage(value)
        if usage is not None:
            self._add(usage)
            self._transcribed_tokens += usage.input_tokens

    def _refuse(self, error: dict[str, Any]) -> None:
        """An error that answers a `response.create`: by its id, or by what it is about where the client gave none."""
        event_id, param = error.get("event_id"), error.get("param")
        if event_id in self._asked and event_id is not None:
            self._asked.remove(event_id)
        elif error.get("code") == ACTIVE_RESPONSE or (isinstance(param, str) and param.startswith("response")):
            del self._asked[:1]

    # What it costs

    def needed_nanos(self, price: Price) -> int:
        if self._needed_nanos is None:
            self._needed_nanos = self._reckon(price)
        return self._needed_nanos

    @property
    def _answers_under_way(self) -> int:
        """Those that run, or may begin before we have heard of it."""
        return len(self._asked) + len(self._running) + (self._answers_by_itself and self._has_heard)

    def needed_tokens(self) -> int:
        each = self._deployment.context_window + max(self._output_tokens_max, self._asked_output_tokens_max)
        to_transcribe = max(math.ceil(self._to_transcribe_tokens) - self._transcribed_tokens, 0)
        used = self.usage.input_tokens + self.usage.output_tokens
        return used + self._answers_under_way * each + 2 * to_transcribe

    def _reckon(self, price: Price) -> int:
        answers = self._answers_under_way
        needed = cost_nanos(self.usage, price)
        if answers:
            output_tokens = max(self._output_tokens_max, self._asked_output_tokens_max)
            window = self._deployment.context_window
            needed += answers * hold_nanos(
                ceiling(price, window), window, output_tokens, has_audio=True, has_images=True
            )
        to_transcribe = math.ceil(self._to_transcribe_tokens) - self._transcribed_tokens
        if to_transcribe > 0:
            # A spoken word takes more tokens than a written one.
            needed += hold_nanos(ceiling(price, to_transcribe), to_transcribe, to_transcribe, has_audio=True)
        return needed

    def finish(self) -> None:
        unfinished = [*self._running.values(), *(_Answering() for _ in self._asked)]
        self._running.clear()
        self._asked.clear()
        for answering in unfinished:
            self._add(self._estimate(answering))
            self.is_estimated = True

    def _estimate(self, answering: _Answering) -> Usage:
        heard = math.ceil(self._heard_tokens)
        said = self._conversation_tokens + -(-self._said_bytes // BYTES_PER_TOKEN) + heard
        window = self._deployment.context_window
        output_max = max(self._output_tokens_max, self._asked_output_tokens_max)
        spoken = math.ceil(answering.spoken_tokens)
        return Usage(
            input_tokens=min(said, window),
            input_audio_tokens=min(heard, window),
            output_tokens=min(answering.text_tokens + spoken, output_max),
            output_audio_tokens=min(spoken, output_max),
        )

    def _add(self, usage: Usage) -> None:
        self.usage += usage


class _Tokens(msgspec.Struct):
    text_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    reasoning_tokens: int | None = None


class _InputTokens(_Tokens):
    cached_tokens: int | None = None
    cached_tokens_details: _Tokens | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_token_details: _InputTokens | None = None
    output_token_details: _Tokens | None = None
    seconds: float | None = None


def _answer_usage(value: Any) -> Usage | None:
    """None where it does not say, or says what nobody can mean."""
    usage = _usage(value)
    if usage is None or usage.input_tokens is None:
        return None
    given, made = usage.input_token_details or _InputTokens(), usage.output_token_details or _Tokens()
    cached = given.cached_tokens_details or _Tokens()
    # Sound and images that come from the cache cost what all that is cached costs.
    return checked_usage(
        Usage(
            input_tokens=usage.input_tokens,
            cache_read_input_tokens=given.cached_tokens or 0,
            output_tokens=usage.output_tokens or 0,
            reasoning_tokens=made.reasoning_tokens or 0,
            input_audio_tokens=max((given.audio_tokens or 0) - (cached.audio_tokens or 0), 0),
            input_image_tokens=max((given.image_tokens or 0) - (cached.image_tokens or 0), 0),
            output_audio_tokens=made.audio_tokens or 0,
        )
    )


def _transcription_usage(value: Any) -> Usage | None:
    """By another model, which bills tokens or seconds: counted as sound that was heard."""
    usage = _usage(value)
    if usage is None:
        return None
    if usage.seconds is not None:
        heard = math.ceil(usage.seconds * HEARD_TOKENS_PER_SECOND) if math.isfinite(usage.seconds) else 0
        return checked_usage(Usage(input_tokens=heard, input_audio_tokens=heard))
    heard = usage.input_tokens or 0
    details = usage.input_token_details
    audio = heard if details is None or details.audio_tokens is None else details.audio_tokens
    return checked_usage(Usage(input_tokens=heard, input_audio_tokens=audio, output_tokens=usage.output_tokens or 0))


def _usage(value: Any) -> _Usage | None:
    try:
        return msgspec.convert(value, _Usage)
    except msgspec.ValidationError:
        return None


def _event(message: bytes) -> _Event:
    try:
        return _decode_event(message)
    except _UNREADABLE:
        return _NO_EVENT


def _object(value: Any) -> dict[str, Any]:
    """Of a message, or of something within one; {} for anything that is no object."""
    if isinstance(value, bytes):
        try:
            value = _decode_value(value)
        except _UNREADABLE:
            return {}
    return value if isinstance(value, dict) else {}


def _key(response_id: Any) -> str:
    return response_id if isinstance(response_id, str) else ""


def _heard(session: dict[str, Any]) -> dict[str, Any]:
    """How the session listens, in the words since the beta; what is not said is not there."""
    heard = _object(_object(session.get("audio")).get("input"))
    beta = {
        "turn_detection": "turn_detection",
        "transcription": "input_audio_transcription",
        "format": "input_audio_format",
    }
    return {name: session[old] for name, old in beta.items() if old in session} | heard


def _bytes_per_second(form: Any) -> int:
    name = form.get("type") if isinstance(form, dict) else form
    return PCM_BYTES_PER_SECOND if isinstance(name, str) and name in PCM else BYTES_PER_SECOND_MIN


def _output_cap(settings: dict[str, Any]) -> Any:
    return settings.get("max_output_tokens", settings.get("max_response_output_tokens"))


# Where a `session.update` names a model, and whether any name that stands there becomes the deployment's own: what answers
# is what was admitted. Another model may transcribe.
_MODEL_PATHS = (
    (("session", "model"), True),
    (("session", "audio", "input", "transcription", "model"), False),
    (("session", "input_audio_transcription", "model"), False),
)


def _renamed(message: bytes, alias: str, upstream_model: str) -> bytes:
    """A `session.update` with the model called as the provider calls it; the very same bytes where it names none."""
    model = msgspec.Raw(_encode(upstream_model))
    renamed = msgspec.Raw(message)
    for path, is_always in _MODEL_PATHS:
        try:
            renamed = _put(renamed, path, model, b"" if is_always else _encode(alias))
        except _UNREADABLE:
            continue  # There is no such object in it.
    return bytes(renamed)


def _put(value: msgspec.Raw, path: tuple[str, ...], model: msgspec.Raw, instead_of: bytes) -> msgspec.Raw:
    """Raises `msgspec.DecodeError`."""
    fields = _decode_object(value)
    name, *rest = path
    if name not in fields:
        return value
    old = fields[name]
    if rest:
        new = _put(old, tuple(rest), model, instead_of)
    else:
        new = model if bytes(old) != b"null" and instead_of in (b"", bytes(old)) else old
    return value if new == old else msgspec.Raw(_encode({**fields, name: new}))


REALTIME = OpenAIRealtime()
