"""What calls about stored things have in common, in any dialect: files, batches, stored responses. Pure; no I/O.

Such a call is sent as it came, to where the thing is. What a client may do with it is a `Verb`; an API's dialect has an
instance for each.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple
from urllib.parse import quote

import msgspec

from proxy.dialects.dialect import Call, Dialect, json_fields
from proxy.errors import InvalidRequest

# More than one line of a batch may say, and more than fits into any context.
LINES_MAX = 100_000


class Verb(NamedTuple):
    """`suffix` is what comes after the id in the path; without one the call is about no thing that is there already."""

    name: str
    method: str
    suffix: str | None = None


CREATE = Verb("create", "POST")
LIST = Verb("list", "GET")
READ = Verb("read", "GET", "")
CANCEL = Verb("cancel", "POST", "/cancel")
DELETE = Verb("delete", "DELETE", "")


class Bounds(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the requests of a batch may use at most, together. `endpoint` is the path that all of them call."""

    endpoint: str
    requests: int = 0
    input_tokens_max: int = 0
    output_tokens_max: int = 0
    units_max: int = 0
    tool_calls_max: int = 0
    has_audio: bool = False
    has_images: bool = False


class StoredDialect(Dialect):
    """`root` is where the API is below the base URL, `kind` what it keeps."""

    root: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, verb: Verb) -> None:
        self.verb = verb

    @property
    def is_content(self) -> bool:
        """Whether the answer is what is stored rather than what is said of it."""
        return False

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        """`parameters["path"]` becomes the target below the provider's base URL."""
        path = self.root
        if self.verb.suffix is not None:
            path += f"/{quote(parameters['id'], safe='')}{self.verb.suffix}"
        if "query" in parameters:
            path += f"?{parameters['query']}"
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias="",
            body=body,
            content_type=content_type,
            parameters={**parameters, "method": self.verb.method, "path": path},
            input_tokens_max=0,
            output_tokens_max=0,
            is_free=True,
            kept_kind=self.kind if self.verb is CREATE else "",
        )


def as_batch(call: Call, body: bytes, alias: str, bounds: Bounds) -> Call:
    """The creation of a batch, with what it may use."""
    return msgspec.structs.replace(
        call,
        alias=alias,
        body=body,
        is_free=False,
        batch_requests=bounds.requests,
        input_tokens_max=bounds.input_tokens_max,
        output_tokens_max=bounds.output_tokens_max,
        units_max=bounds.units_max,
        tool_calls_max=bounds.tool_calls_max,
        has_audio=bounds.has_audio,
        has_images=bounds.has_images,
    )


def text_of(fields: dict[str, msgspec.Raw], name: str) -> str:
    """Raises `InvalidRequest`."""
    try:
        value = msgspec.json.decode(fields.get(name, msgspec.Raw(b"null")), type=str)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`{name}` must be a text", code="invalid_value", param=name) from error
    return value


class Line(NamedTuple):
    """One request of a batch. `call` describes it as if it had come alone; `fields` is all that the line says, by name."""

    number: int
    fields: dict[str, msgspec.Raw]
    call: Call


def read_line(number: int, text: bytes, dialects: Mapping[str, Dialect], body_name: str) -> Line:
    """A line of a batch whose request stands in the field `body_name`; it goes to what its `url` names in `dialects`, and
    where it has none, to the only one. Raises `InvalidRequest` that names the line, counted from 1."""
    try:
        fields = json_fields(text)
        body = bytes(fields.get(body_name, b""))
        if not body:
            raise InvalidRequest(f"it lacks `{body_name}`")
        if "custom_id" not in fields:
            raise InvalidRequest("it lacks `custom_id`")
        dialect = dialects[""] if "" in dialects else dialects.get(text_of(fields, "url"))
        if dialect is None:
            raise InvalidRequest(f"its `url` must be one of {', '.join(dialects)}")
        call = dialect.describe(body, b"application/json", {})
        if call.is_stream or call.is_background:
            raise InvalidRequest("a request of a batch can neither stream nor run in the background")
        if call.follows:
            raise InvalidRequest("a request of a batch cannot go on from a stored response")
    except InvalidRequest as error:
        raise InvalidRequest(
            f"line {number} of the batch: {error.message}", code="invalid_batch_line", param=f"line {number}"
        ) from error
    return Line(number, fields, call)


def check_alike(lines: list[Line]) -> Line:
    """The first of the lines: all call the same model at the same endpoint. Raises `InvalidRequest`."""
    if not lines:
        raise InvalidRequest("the batch has no requests", code="empty_batch")
    if len(lines) > LINES_MAX:
        raise InvalidRequest(f"a batch has {LINES_MAX} requests at most", code="invalid_batch")
    first = lines[0]
    for line in lines:
        if (line.call.alias, line.call.dialect) != (first.call.alias, first.call.dialect):
            raise InvalidRequest(
                f"line {line.number} of the batch: all requests of a batch call the same model at the same endpoint",
                code="mixed_batch",
                param=f"line {line.number}",
            )
    return first
