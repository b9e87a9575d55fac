"""What every provider is: how it is authorized, and the APIs it has, each a pure translation. No I/O, no clock.

One file per provider with its `Provider`, made of `Api`s; `table.py` lists them by the word that stands in
`snapshot.Provider.api`. A provider that speaks another's API reuses its class and overrides what differs.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import msgspec

from audit.records import Usage
from budgets.pricing import Price
from proxy import snapshot
from proxy.dialects.dialect import JSON, Call
from proxy.neutral import (
    Began,
    Done,
    Event,
    Failed,
    Finished,
    OpaqueDone,
    ProviderError,
    RefusalDelta,
    Reply,
    TextDelta,
    ThinkingDelta,
    ToolCallBegan,
    ToolCallDelta,
    UsageSeen,
)
from proxy.wire.frame import Frame, FrameParser
from proxy.wire.sse import SSEParser

Headers = list[tuple[bytes, bytes]]

# More than any context window. A provider that says so, or that says less than nothing, is not believed.
TOKENS_MAX = 1_000_000_000
# A stream that is longer does not end.
STREAM_BYTES_MAX = 64 * 1024 * 1024
# What servers shaped like OpenAI's know besides, each in its way: other models (OpenRouter, LiteLLM, Groq's compound), answers
# that are fetched later (xAI), templates that write more than the request says (vLLM), caps and choices (llama.cpp).
UNBOUNDED_FIELDS = frozenset(
    {"models", "fallbacks", "preset", "compound_custom", "deferred", "chat_template", "n_predict", "n_cmpl"}
)
# Its own words, of which the ledger keeps so much.
NAME_CHARACTERS_MAX = 200

_encode = msgspec.json.Encoder().encode


class Outgoing(NamedTuple):
    """A request to the provider, but for its authorization. `target` comes after the base URL's path."""

    target: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = JSON
    method: bytes = b"POST"


class Kept(NamedTuple):
    """Something that the provider keeps, by its id; the kinds are in `dialects/dialect.py`."""

    kind: str
    upstream_id: str


class Measured(NamedTuple):
    """What a whole answer says of itself. `usage` is None where it does not say."""

    usage: Usage | None = None
    response_model: str = ""
    finish_reason: str = ""
    has_error: bool = False
    kept: tuple[Kept, ...] = ()


class StreamReader:
    """One stream of a provider, frame by frame, in neutral words."""

    # How many runs of the provider's own tools, each billed, have begun; None where its streams do not show them as they are.
    tool_runs: int | None = None

    def read(self, frame: Frame) -> Sequence[Event]:
        """What the frame says. Never raises: what cannot be read is an `OpaqueDone` with its size."""
        raise NotImplementedError


class OpenToolCalls:
    """The tool calls of a stream whose blocks are open, by the index of the block."""

    def __init__(self) -> None:
        self._count = 0
        self._by_block: dict[int, int] = {}
        self._without_arguments: set[int] = set()

    def begin(self, block: int, call_id: str, name: str, arguments: str = "") -> Sequence[Event]:
        index = self._by_block[block] = self._count
        self._count += 1
        began = ToolCallBegan(index=index, call_id=call_id, name=name)
        if arguments:
            return (began, ToolCallDelta(index=index, arguments=arguments))
        self._without_arguments.add(block)
        return (began,)

    def add(self, block: int, arguments: str) -> Sequence[Event] | None:
        """None where no call is open."""
        index = self._by_block.get(block)
        if index is None:
            return None
        if not arguments:
            return ()
        self._without_arguments.discard(block)
        return (ToolCallDelta(index=index, arguments=arguments),)

    def end(self, block: int) -> Sequence[Event]:
        index = self._by_block.pop(block, None)
        if index is None or block not in self._without_arguments:
            return ()
        # A call without arguments is one of an empty object; elsewhere no text at all would be none.
        self._without_arguments.discard(block)
        return (ToolCallDelta(index=index, arguments="{}"),)


class StreamMeter:
    """Reads along as the frames of a stream pass. What was seen is told to SETTLE."""

    def __init__(self) -> None:
        # As far as the provider has counted: some count along.
        self.usage_so_far: Usage | None = None
        self.response_model = ""
        self.finish_reason = ""
        self.is_done = False
        self.has_error = False
        self.output_chunks = 0
        self.output_bytes = 0
        self.answer_id = ""

    @property
    def tool_runs(self) -> int | None:
        """As `StreamReader` has it."""
        return None

    @property
    def has_ended(self) -> bool:
        """Whether the provider has said so: a stream that just stops was cut."""
        return self.is_done or bool(self.finish_reason) or self.has_error

    @property
    def usage(self) -> Usage | None:
        """What the whole answer used; None where the provider did not say, and for a stream that was cut."""
        return self.usage_so_far if self.finish_reason or self.is_done else None

    def observe(self, frame: Frame) -> bool:
        """Take note of a frame. True when it is not for the client: it came only because we asked."""
        raise NotImplementedError


class EventMeter(StreamMeter):
    """Counts what a reader makes of the frames."""

    def __init__(self, reader: StreamReader) -> None:
        super().__init__()
        self.reader = reader

    @property
    def tool_runs(self) -> int | None:
        return self.reader.tool_runs

    def observe(self, frame: Frame) -> bool:
        self.count(self.reader.read(frame))
        return False

    def count(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case TextDelta(text=text) | ThinkingDelta(text=text) | RefusalDelta(text=text):
                    self._saw(len(text.encode()))
                case ToolCallDelta(arguments=text) | ToolCallBegan(name=text):
                    self._saw(len(text.encode()))
                case OpaqueDone(size=size):
                    self._saw(size)
                case UsageSeen(usage=usage):
                    self.usage_so_far = usage
                case Began(model=model, answer_id=answer_id):
                    self.response_model = model[:NAME_CHARACTERS_MAX]
                    self.answer_id = answer_id[:NAME_CHARACTERS_MAX]
                case Finished(finish=finish, finish_detail=detail):
                    self.finish_reason = (detail or finish)[:NAME_CHARACTERS_MAX]
                case Failed():
                    self.has_error = True
                case Done():
                    self.is_done = True
                case _:
                    pass

    def _saw(self, size: int) -> None:
        if size:
            self.output_chunks += 1
            self.output_bytes += size


class ChunkMeter(StreamMeter):
    """Bytes that say nothing of themselves; they have ended when the connection says so."""

    @property
    def has_ended(self) -> bool:
        return True

    def observe(self, frame: Frame) -> bool:
        self.output_chunks += 1
        self.output_bytes += len(frame.raw)
        return False


class SessionMeter:
    """Reads along as the messages of a session pass, both ways, and says what the hold must cover."""

    def __init__(self) -> None:
        # What all answers together have used; estimated where the provider did not say.
        self.usage = Usage()
        self.is_estimated = False
        self.response_model = ""
        self.finish_reason = ""
        self.has_begun_to_answer = False

    def sent(self, message: bytes) -> bytes:
        """A client's message, before it goes on: as the provider is to get it. Never raises."""
        raise NotImplementedError

    def withheld(self, message: bytes) -> None:
        """The client's newest message did not go on after all."""
        raise NotImplementedError

    def received(self, message: bytes) -> None:
        """Take note of a message of the provider. Never raises."""
        raise NotImplementedError

    def needed_nanos(self, price: Price) -> int:
        """What is used so far, and the most that whatever may run now can use."""
        raise NotImplementedError

    def needed_tokens(self) -> int:
        """The same in tokens."""
        raise NotImplementedError

    def finish(self) -> None:
        """The session is over: what had begun and never said its usage is estimated."""
        raise NotImplementedError


class Api:
    """One API of a provider. Stateless: one instance serves all requests."""

    # The dialect whose requests it takes as they are, and whose answers it gives.
    name: str
    # What a model must be able to do to be called through it: `Call.capability`.
    capability: str
    # How its streams are framed, and the content types that such a stream may have.
    frames: ClassVar[type[FrameParser]] = SSEParser
    stream_types: ClassVar[tuple[bytes, ...]] = (b"text/event-stream",)
    stream_bytes_max: ClassVar[int] = STREAM_BYTES_MAX
    # Whether every status of 2xx is an answer, and not only 200.
    has_many_successes: ClassVar[bool] = False
    # Whether `write_request`, `read_answer` and `stream_reader` exist.
    is_translatable: ClassVar[bool] = False
    # Fields of a passing request that have it cost what the deployment's price does not bound: another model, or one of the
    # provider's choice, an answer that is fetched later, a cap by another name.
    unbounded: ClassVar[frozenset[str]] = frozenset()
    # Whether its errors have another shape than the dialect's own: a client of the same dialect is told them in that one.
    has_own_errors: ClassVar[bool] = False

    def accept(self, call: Call) -> bytes:
        """The `accept` header: what kind of answer is asked for."""
        return self.stream_types[0] if call.is_stream else JSON

    def answers_in_stream(self, call: Call, content_type: bytes) -> bool:
        return call.is_stream

    def serves(self, deployment: snapshot.Deployment, provider: snapshot.Provider) -> bool:
        """Whether this deployment can be called through this API: some providers have one API per family of models."""
        return True

    def frame_parser(self, call: Call) -> FrameParser:
        return self.frames()

    # The same dialect on both sides

    def pass_request(self, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider) -> Outgoing:
        """The client's request, bytes untouched but for what must change: the model, an output cap, a request for usage."""
        raise NotImplementedError

    def unbounded_in(self, call: Call) -> list[str]:
        """Which of `unbounded` a passing request asks for; an empty value asks for nothing."""
        if self.unbounded.isdisjoint(call.fields):
            return []
        return [name for name in call.fields if name in self.unbounded and msgspec.json.decode(call.fields[name])]

    def measure(self, body: bytes) -> Measured:
        """Raises `msgspec.DecodeError` when a whole answer is not of the API's shape."""
        raise NotImplementedError

    def retell(self, body: bytes) -> bytes:
        """A whole answer as the client gets it: what must not lead past the gateway, leads here."""
        return body

    def stream_meter(self, call: Call) -> StreamMeter:
        return EventMeter(self.stream_reader())

    def session_meter(self, call: Call, deployment: snapshot.Deployment) -> SessionMeter:
        """For a call that is a session on a WebSocket."""
        raise NotImplementedError

    # Across dialects

    def write_request(
        self,
        prompt: Any,
        call: Call,
        deployment: snapshot.Deployment,
        provider: snapshot.Provider,
        lost: list[str],
    ) -> Outgoing:
        """`prompt` is of the operation's own type (`neutral.Request`). Into `lost` goes, by the client's own name or path,
        whatever this API cannot be told. The output cap is `prompt.max_output_tokens`, and `deployment.max_output_tokens`
        where there is none. Must not change `prompt`."""
        raise NotImplementedError

    def stream_type(self, call: Call, content_type: bytes) -> bytes:
        """The content type that a client of the same dialect gets for a stream of the provider's `content_type`."""
        return content_type

    def reframe(self, frame: Frame) -> bytes:
        """The same dialect in another framing: what a client gets for a frame. Its own bytes, where the framing is the same."""
        return frame.raw

    def read_answer(self, body: bytes) -> Reply:
        """Raises `msgspec.DecodeError` when it is not an answer of this API."""
        raise NotImplementedError

    def stream_reader(self) -> StreamReader:
        raise NotImplementedError

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        """Of an answer with an error status, or a whole answer with `has_error`. Never raises."""
        return ProviderError(message="no message", status_code=status_code)


class Authorizer:
    """One credential of a provider, ready to authorize requests."""

    # Which of the vault's it is.
    credential_id = ""
    # What must never be passed on, were the provider to quote it.
    secrets: Sequence[bytes] = ()

    def headers(self, outgoing: Outgoing, origin: str, path: bytes, now_s: float) -> Headers:
        """`origin` is the authority, `path` the whole request path with its query: what a signature covers."""
        raise NotImplementedError

    def token_request(self, now_s: float) -> tuple[str, Outgoing] | None:
        """(base URL, request) for the short-lived token that `headers` needs; None while it has a good one."""
        return None

    def token_answered(self, status_code: int, body: bytes, now_s: float) -> None:
        """Raises `ValueError` where the answer holds no token."""
        raise NotImplementedError


class HeaderAuthorizer(Authorizer):
    """The same header for each request."""

    def __init__(self, name: bytes, value: str, secret: str) -> None:
        self._headers: Headers = [(name, value.encode("ascii"))]
        self.secrets = (secret.encode("ascii"),)

    def headers(self, outgoing: Outgoing, origin: str, path: bytes, now_s: float) -> Headers:
        return self._headers


def bearer(secret: str, provider: snapshot.Provider) -> Authorizer:
    return HeaderAuthorizer(b"authorization", f"Bearer {secret}", secret)


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's protocol. `apis` in the order of preference where a request has to be translated.

    `authorize(secret, provider)` raises `ValueError` for a secret that cannot be one of this provider's.
    """

    name: str
    apis: tuple[Api, ...]
    authorize: Callable[[str, snapshot.Provider], Authorizer] = bearer
    # What crosses back to the client, besides what the gateway says itself; the rest of its headers stays here.
    response_headers: frozenset[bytes] = frozenset({b"content-type", b"retry-after"})
    # Where another path of the provider is passed through, what its credential needs besides.
    passthrough_headers: tuple[tuple[bytes, bytes], ...] = ()


def renamed(call: Call, deployment: snapshot.Deployment) -> dict[str, msgspec.Raw]:
    """The client's fields, with the provider's name of the model."""
    return {**call.fields, "model": msgspec.Raw(_encode(deployment.upstream_model))}


def text_of(value: object) -> str:
    """Empty for anything that is no text."""
    return value if isinstance(value, str) else ""


def objects_in(value: object) -> list[dict[str, Any]]:
    """Those of a list; none for anything else."""
    return [each for each in value if type(each) is dict] if type(value) is list else []


def name_of(text: object) -> str:
    """A provider's own word, as much of it as the ledger keeps; "" for anything that is no text."""
    return text[:NAME_CHARACTERS_MAX] if isinstance(text, str) else ""


def checked_usage(usage: Usage) -> Usage | None:
    """None for counts that no provider can mean."""
    counts = usage.counts
    return usage if min(counts) >= 0 and max(counts) <= TOKENS_MAX else None
