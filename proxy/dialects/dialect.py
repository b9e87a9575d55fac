"""What every dialect is: a client's requests described and read, answers, streams and errors written. Pure; no I/O.

One file per API that clients speak (`openai_chat.py`, `anthropic.py`, …), each with a class derived from `Dialect`;
`table.py` says which path belongs to which. A dialect knows nothing of providers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from proxy.errors import GatewayError, InvalidRequest
from proxy.neutral import Event, Request
from proxy.snapshot import Alias
from proxy.wire.json_gate import MalformedBody, parse_object
from proxy.wire.multipart import FormPart, MalformedForm, field, parse_form

T = TypeVar("T")

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

# Chat templates add a few tokens for each message and for the answer's start.
TEMPLATE_TOKENS = 64
# An image by URL, a file by id, audio: what its tokens are bounded by, since they do not show in the request's bytes.
MEDIA_TOKENS_MAX = 32_768
# Pages are packed, and a film is long: what bounds such a thing is the model's context alone.
LONG_MEDIA_TOKENS_MAX = 1_000_000
# Below, looking through all of it costs less than leaving the text out.
TEXT_LEFT_OUT_FROM_BYTES = 2048
# Where text stands in a turn or a part of one, alone or as parts.
_TEXT_NAMES = frozenset({"content", "parts", "text"})
QUOTE = ord('"')
# A character of ASCII that is written by its number.
_BY_NUMBER = re.compile(rb"\\u00[2-7]")
_FILE_ID = re.compile(rb'"file_id"\s*:\s*"([!-~]{1,128}?)"')

_encode = msgspec.json.Encoder().encode
_decode_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


# What providers keep beyond a request, by the word that stands in `Call.kept_kind`.
FILE, BATCH, MESSAGE_BATCH, RESPONSE = "file", "batch", "message_batch", "response"


class Call(msgspec.Struct, kw_only=True):
    """One client call, described: what admission, routing and the provider's side need to know of it.

    `fields` is the JSON body's top level, values as the raw bytes that were validated (empty where the body is no JSON);
    `parameters` what the path and query say. Bounds hold for the whole call: tokens, and `units_max` of whatever else the
    API bills by (`audit.records.Usage.units`). `output_tokens_max` is None where the client may get as many as the model
    gives, and 0 where an API makes none (embeddings).
    """

    dialect: "Dialect"
    operation: str
    # What a model must be able to do to serve this; counting the tokens of a chat, for example, wants a chat model.
    capability: str
    alias: str
    body: bytes
    content_type: bytes = JSON
    fields: dict[str, msgspec.Raw] = {}
    parameters: Mapping[str, str] = {}
    is_stream: bool = False
    wants_usage_chunk: bool = False
    input_tokens_max: int
    output_tokens_max: int | None = None
    choices: int = 1
    units_max: int = 0
    tool_calls_max: int = 0
    # Files at a provider that the call names: whose they are is checked before anybody is asked.
    file_ids: tuple[str, ...] = ()
    # The context that the call itself asks for, where that may be more than the model's usual one.
    context_tokens: int = 0
    # Whether it may be billed at the rates for audio or images.
    has_audio: bool = False
    has_images: bool = False
    is_free: bool = False
    # What the provider keeps of it: a kind of those above, "" for nothing.
    kept_kind: str = ""
    # The id of the stored response that it goes on from.
    follows: str = ""
    # It goes on when it was answered: a response made in the background, or a batch of so many requests, whose bounds are
    # the sums of theirs.
    is_background: bool = False
    batch_requests: int = 0
    # A conversation of many answers on one connection: the bounds are those of one answer.
    is_session: bool = False
    metadata: Any = None
    # Read by `Dialect.read_prompt` once, when a provider of another dialect is called.
    prompt: Request | None = None


class StreamWriter:
    """Stream events → the bytes of one client's stream. One object per stream."""

    def write(self, events: Iterable[Event]) -> bytes:
        """What to send now; b"" for nothing yet. Nothing is held back that the dialect can already say."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """The provider said that this was all: what ends a good stream."""
        raise NotImplementedError


class Dialect:
    """Stateless: one instance serves all requests."""

    # Also the name of the wire format: an API of a provider with the same name takes its requests as they are.
    name: str
    operation: ClassVar[str]
    capability: ClassVar[str]
    # The headers of a client that may cross to a provider that speaks the same dialect.
    request_headers: ClassVar[tuple[bytes, ...]] = ()
    # The header that tells the client which request this was.
    request_id_header: ClassVar[bytes] = b"x-request-id"
    stream_content_type: ClassVar[bytes] = EVENT_STREAM
    # Whether `read_prompt`, `write_answer` and `stream_writer` exist: not for APIs that have no counterpart.
    is_translatable: ClassVar[bool] = False

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        """Raises `InvalidRequest` naming the field that is wrong."""
        raise NotImplementedError

    def read_prompt(self, call: Call) -> Request:
        """The whole request in neutral words, of the operation's own type. Raises `InvalidRequest`; what cannot be said goes
        into `lost` by its path."""
        raise NotImplementedError

    def write_answer(self, answer: Any, call: Call) -> bytes:
        """`answer` is of the operation's own type (`neutral.Reply`). The model is named as the client named it: by its
        alias."""
        raise NotImplementedError

    def stream_writer(self, call: Call) -> StreamWriter:
        raise NotImplementedError

    def stream_type(self, call: Call) -> bytes:
        """The content type of the stream that the client gets."""
        return self.stream_content_type

    def render_error(self, error: GatewayError, request_id: str) -> bytes:
        raise NotImplementedError

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        """The last words of a stream that cannot go on; the official SDKs raise them as an API error."""
        raise NotImplementedError

    def render_models(self, aliases: Iterable[Alias], parameters: Mapping[str, str]) -> bytes:
        """The list of models, or the one that `parameters["model"]` names; it is among `aliases`."""
        raise NotImplementedError


def json_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The top level of a JSON body. Raises `InvalidRequest`."""
    try:
        return parse_object(body)
    except MalformedBody as error:
        raise InvalidRequest(f"the body is not acceptable JSON: {error}") from error


def plain(body: bytes) -> bytes:
    """Checked JSON, as marks are looked for in it: no escape hides one."""
    if b"\\" not in body:
        return body
    if b"\\/" in body or (b"\\u00" in body and _BY_NUMBER.search(body)):
        return msgspec.json.encode(msgspec.json.decode(body))
    return body


def beside_text(body: bytes, fields: Mapping[str, msgspec.Raw], turns: str) -> bytes:
    """As `plain`, without what is merely said in the turns of a conversation: no mark counts there, and it is most of the bytes."""
    if len(body) < TEXT_LEFT_OUT_FROM_BYTES or turns not in fields:
        return plain(body)
    return plain(_encode({**fields, turns: _beside_text(fields[turns])}))


def _beside_text(value: msgspec.Raw) -> Any:
    """Of turns, or of the parts of one. What is shaped otherwise stays as it is: the provider may know what it means."""
    try:
        return [
            {name: _beside_text(inner) if name in _TEXT_NAMES else inner for name, inner in one.items()}
            for one in _decode_objects(value)
        ]
    except msgspec.ValidationError:
        return None if memoryview(value)[0] == QUOTE else value


def file_ids_in(seen: bytes) -> tuple[str, ...]:
    """The files that a body (as `plain` has it) names by their ids."""
    if b'"file_id"' not in seen:
        return ()
    return tuple(dict.fromkeys(found.decode() for found in _FILE_ID.findall(seen)))


class Form:
    """The fields of a multipart form. A field that is missing or wrong is an `InvalidRequest` that names it."""

    def __init__(self, body: bytes, parts: list[FormPart]) -> None:
        self._body = body
        self._parts = parts

    def text(self, name: str) -> str | None:
        try:
            return field(self._parts, self._body, name)
        except MalformedForm as error:
            raise InvalidRequest(f"the form is not acceptable: {error}", param=name) from error

    def required(self, name: str) -> str:
        value = self.text(name)
        if not value:
            raise InvalidRequest(f"the form lacks `{name}`", code="invalid_value", param=name)
        return value

    def integer(self, name: str) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdigit():
            raise InvalidRequest(f"`{name}` must be a whole number", code="invalid_value", param=name)
        return int(value[:18])


def is_form(content_type: bytes) -> bool:
    return content_type[:19].lower() == b"multipart/form-data"


def form_of(body: bytes, content_type: bytes) -> Form:
    """Raises `InvalidRequest`."""
    if not is_form(content_type):
        raise InvalidRequest("the body must be multipart/form-data")
    try:
        return Form(body, parse_form(body, content_type))
    except MalformedForm as error:
        raise InvalidRequest(f"the form is not acceptable: {error}") from error


class HeadReader(Generic[T]):
    """Reads the few fields of a JSON body that a dialect acts on: `kind` is a `msgspec.Struct` of them."""

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def read(self, body: bytes) -> T:
        """Raises `InvalidRequest` naming the field that is wrong, also for a model without a name."""
        try:
            head = self._decode(body)
        except msgspec.ValidationError as error:
            raise invalid_field(error) from error
        if getattr(head, "model", None) == "":
            raise InvalidRequest("`model` is empty: name one of the aliases that GET /v1/models lists", param="model")
        return head


def invalid_field(error: msgspec.ValidationError) -> InvalidRequest:
    """msgspec ends its reasons with ``- at `$.field` ``; a missing field is named in its own words."""
    reason = str(error)
    _, found, path = reason.partition("`$.")
    if not found:
        _, found, path = reason.partition("missing required field `")
    param = path.rstrip("`").split("[")[0] if found else None
    return InvalidRequest(f"invalid request: {reason}", code="invalid_value", param=param)


def error_type_of(status_code: int) -> str:
    """OpenAI's word for the class of an error; most others use the same."""
    if status_code == 401:
        return "authentication_error"
    if status_code == 403:
        return "permission_error"
    if status_code == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status_code < 500 else "server_error"
