"""What every shape has in common: a request as it came, what it asks for, what will be said, and the account of it. Pure.

A *shape* is how one provider is spoken to. It reads a request into an `Asked`, which is the same for all, and has an `Answer`
for each kind of it, which writes the plan that was made of it, whole or as the events of a stream.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qs

import msgspec

from controlplane.simulator import wire
from controlplane.simulator.directives import Directives
from controlplane.simulator.journal import Bill
from controlplane.simulator.store import Store
from controlplane.simulator.words import Argument, Given, Prose, Saying, encode, fitting, spaced_json, text, word

_BEARER = b"bearer "
STOP, LENGTH, TOOL = "stop", "length", "tool"

Body = TypeVar("Body")


class Request(NamedTuple):
    """As it came off the wire, its path unquoted. `arrived_s` is on the clock of the event loop, `created_s` on Unix'."""

    method: str
    path: str
    query: str
    headers: Mapping[bytes, bytes]
    body: bytes
    keeps_alive: bool
    arrived_s: float
    created_s: int

    def header(self, name: bytes) -> str:
        value = self.headers.get(name)
        return value.decode("latin-1") if value else ""

    def parameter(self, name: str) -> str:
        """Of the query; empty where there is none."""
        return parse_qs(self.query).get(name, [""])[0] if self.query else ""

    def bearer(self) -> bytes:
        value = self.headers.get(b"authorization", b"")
        return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else b""


class Fixed(NamedTuple):
    """An answer that no model gives: a refusal, a list. `fields` are more headers."""

    status: int
    body: bytes
    fields: bytes = wire.JSON
    usage: bytes = b""


class Refused(Exception):
    """The simulator itself finds fault with a request, as a provider would."""

    def __init__(self, status: int, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class Counts(msgspec.Struct, frozen=True):
    """The tokens of an answer, as the client is to be told. The input has cached and written ones in it, and those written
    for an hour are among the written; the output has the reasoning in it."""

    input_tokens: int
    cached_tokens: int
    written_tokens: int
    written_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int

    def fresh_tokens(self) -> int:
        """Of the input, what was neither read from a cache nor written to one."""
        return self.input_tokens - self.cached_tokens - self.written_tokens


class Plan(msgspec.Struct, frozen=True):
    """What a model will say if nobody stops it. Tokens are per choice. `units` are what is billed beside tokens."""

    counts: Counts
    saying: Saying
    choices: int = 1
    reasoning_tokens: int = 0
    finish: str = STOP
    tool: str = ""
    units: int = 0

    @property
    def visible_tokens(self) -> int:
        return self.saying.tokens

    def output_tokens(self) -> int:
        return self.choices * (self.reasoning_tokens + self.saying.tokens)


class Asked(msgspec.Struct, frozen=True):
    """What a request asks for, in no provider's words.

    `cap` bounds the output tokens of each choice, `tools` are the names of the functions that it offers, `schema` is the
    JSON schema that the text is to fit (None: it is prose), `more_tokens` are those of the input that are no text, and
    `details` is what only its own kind of answer understands.
    """

    model: str
    texts: Sequence[str]
    answers: "type[Answer]"
    is_stream: bool = False
    cap: int | None = None
    choices: int = 1
    tools: Sequence[str] = ()
    has_results: bool = False
    schema: object = None
    more_tokens: int = 0
    details: Any = None

    def model_name(self) -> str:
        """Without the directives in it."""
        return self.model.partition("?")[0]


class Call:
    """One request that is being answered, and the account of it."""

    __slots__ = (
        "asked",
        "attempt_id",
        "batch",
        "call_id",
        "created_s",
        "directives",
        "fault",
        "fixed",
        "generated",
        "input_tokens",
        "plan",
        "sent",
        "shape",
        "status",
        "usage",
    )

    def __init__(self, shape: "Shape", call_id: str, attempt_id: str, created_s: int) -> None:
        self.shape = shape
        self.call_id = call_id
        self.attempt_id = attempt_id
        self.created_s = created_s
        self.batch = ""
        self.directives = Directives()
        self.asked: Asked | None = None
        self.input_tokens = 0
        # One of the two answers it.
        self.fixed: Fixed | None = None
        self.plan: Plan | None = None
        self.status = 0  # 0 until a head is sent.
        self.fault = ""
        self.generated = 0
        self.sent = 0
        self.usage = b""

    def error(self, status: int, message: str = "", code: str | None = None) -> Fixed:
        return self.shape.error(status, message, code, self.directives.like or "")

    def bill(self) -> Bill:
        """What no model answers is free. The rest costs its input, and the output that was generated: all of it where the
        provider does not stop when the connection does (`runs_on`)."""
        plan, directives = self.plan, self.directives
        if plan is None:
            return Bill()
        output_tokens = plan.output_tokens() if directives.runs_on else self.generated
        counts = plan.counts
        return Bill(
            self.input_tokens,
            counts.cached_tokens,
            output_tokens,
            counts.written_tokens or msgspec.UNSET,
            counts.written_1h_tokens or msgspec.UNSET,
            plan.units or msgspec.UNSET,
        )


# What is on the wire next, with the tokens that were generated for it, those that show in it, and the usage that it tells
# (JSON, or nothing). No bytes: a token that nobody sees.
Event = tuple[bytes, int, int, bytes]


class Answer:
    """The answer to one call in the words of one shape."""

    stream_fields: bytes = wire.EVENTS
    whole_fields: bytes = wire.JSON

    def __init__(self, call: Call) -> None:
        asked, plan = call.asked, call.plan
        assert asked is not None
        assert plan is not None
        self.call = call
        self.asked = asked
        self.plan = plan
        self.says_usage = not call.directives.no_usage
        self.shows_reasoning = True
        self.id = call.call_id.encode()
        self.model = encode(asked.model_name())

    @classmethod
    def plan_for(cls, asked: Asked, input_tokens: int, directives: Directives) -> Plan:
        """The output cap of the request holds for each choice, reasoning included."""
        return plan_words(asked, input_tokens, directives)

    def whole(self) -> tuple[bytes, bytes]:
        """The body, and the usage that it tells (JSON, or nothing)."""
        raise NotImplementedError

    def events(self) -> Iterator[Event]:
        """The stream from its first byte to its last."""
        raise NotImplementedError

    def shown_tokens(self) -> int:
        """How many there will be on the wire."""
        plan = self.plan
        return plan.output_tokens() if self.shows_reasoning else plan.choices * plan.visible_tokens

    def thought(self, position: int) -> bytes:
        """A token of the reasoning, where it is shown: prose, as JSON has it."""
        return word(position)

    def thoughts(self) -> bytes:
        return text(self.plan.reasoning_tokens)

    def broken(self) -> bytes:
        """An event that is no JSON."""
        return b'data: {"type":"broken","con\n\n'

    def failure(self, status: int) -> bytes:
        """An error in the middle of a stream whose status was 200."""
        raise NotImplementedError

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        """What stands before and after so many blanks, to be an event that means nothing."""
        return b'data: {"type":"ping"', b"}\n\n"


class Desk(Protocol):
    """What a shape has at hand to answer a request, beyond the request."""

    store: Store

    def directives(self, request: Request) -> Directives:
        """Those of the settings and of the request's header, where no model and no message has any."""

    def run(self, request: Request, batch: str) -> tuple[int, bytes]:
        """Answer a request of a batch at once, and account for it: (status, body)."""


def tells_no_limits(_call: Call) -> bytes:
    return b""


class Shape(NamedTuple):
    """How one provider is spoken to. `like` is whose ways it has taken on, where it has many (see `quirks`)."""

    head: Callable[[bytes], bytes]  # The call's id → the headers that every answer has.
    key: Callable[[Request], bytes]  # The credential; empty where there is none in the right place.
    ask: Callable[[Request, str, Desk], Asked | Fixed]  # The request, the call's id. Raises `Refused`.
    error: Callable[[int, str, str | None, str], Fixed]  # Status, message, code, like.
    needs_key: bool = True
    limits: Callable[[Call], bytes] = tells_no_limits  # The headers that say what its rate limits have left.


def plan_words(asked: Asked, input_tokens: int, directives: Directives) -> Plan:
    wanted_words = directives.output_tokens
    calls_tool = bool(directives.tool or directives.tool_call) and not asked.has_results
    given = None
    if calls_tool and directives.args:
        given = directives.args
    elif not calls_tool and asked.schema is not None:
        given = spaced_json(fitting(asked.schema))
    if given is not None:
        wanted_words = given.count(" ") + 1
    wanted = directives.reasoning_tokens + wanted_words
    allowed = wanted if asked.cap is None else min(asked.cap, wanted)
    reasoning = min(directives.reasoning_tokens, allowed)
    saying: Saying
    if given is not None:
        saying = Given(given, allowed - reasoning)
    elif calls_tool:
        saying = Argument(allowed - reasoning, is_wide=directives.split_utf8)
    else:
        saying = Prose(allowed - reasoning, is_wide=directives.split_utf8)
    finish = LENGTH if allowed < wanted else TOOL if calls_tool else STOP
    counts = count(directives, input_tokens, allowed * asked.choices, reasoning * asked.choices)
    tool = (directives.tool or next(iter(asked.tools), "")) if calls_tool else ""
    return Plan(counts, saying, asked.choices, reasoning, finish, tool)


def count(directives: Directives, input_tokens: int, output_tokens: int = 0, reasoning_tokens: int = 0) -> Counts:
    factor = directives.usage_factor
    told_input, told_output = round(input_tokens * factor), round(output_tokens * factor)
    if not (directives.cached_tokens or directives.cache_write_tokens or directives.cache_write_1h_tokens):
        return Counts(told_input, 0, 0, 0, told_output, reasoning_tokens)
    cached = min(directives.cached_tokens, input_tokens)
    for_an_hour = min(directives.cache_write_1h_tokens, input_tokens - cached)
    written = min(directives.cache_write_tokens + for_an_hour, input_tokens - cached)
    return Counts(told_input, cached, written, for_an_hour, told_output, reasoning_tokens)


NOTHING = Prose(0)


def plan_input(asked: Asked, input_tokens: int, directives: Directives) -> Plan:
    """Of an operation that has no output to count."""
    return Plan(count(directives, input_tokens), NOTHING)


def decode(decoder: Callable[[bytes], Body], body: bytes) -> Body:
    """Raises `Refused`."""
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise Refused(400, str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Refused(400, "The body of the request is not valid JSON.", code="invalid_json") from None


def demand(request: Request, *methods: str) -> None:
    """Raises `Refused`."""
    if request.method not in methods:
        raise Refused(405, f"Not allowed to {request.method} on {request.path}.", code="method_not_allowed")


def unknown_url(request: Request) -> Refused:
    return Refused(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")
