"""One answer as a script: bytes to send, moments to wait for, and how it breaks off. No socket, no clock.

The server plays the steps in order, and asks for no more when the client is gone; so what a `Call` has counted by then is
what was generated, and what is billed.
"""

import functools
import gzip
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import NamedTuple

from controlplane.simulator import answers
from controlplane.simulator.directives import Directives, Fault
from controlplane.simulator.journal import Bill
from controlplane.simulator.requests import ChatRequest, EmbeddingsRequest

# Long enough for what was sent before to be read: a reset throws away what still waits in the client's socket.
RESET_PAUSE_S = 0.02
SPLIT_PAUSE_S = 0.001
_JUNK_BLOCK_BYTES = 64 << 10
_BOMB_BLOCK_BYTES = 1 << 20

_JUNK = {
    Fault.ENDLESS_LINE: b"a",
    Fault.EMPTY_LINES: b"\n",
    Fault.EMPTY_EVENTS: b"data:\n\n",
    Fault.COMMENTS: b": nothing\n\n",
    Fault.ENDLESS_HEAD: b"x-filler: " + b"a" * 100 + b"\r\n",
    Fault.HUGE_BODY: b" ",
}
# Where the head would be.
_HEAD_FAULTS = frozenset({Fault.BAD_STATUS_LINE, Fault.ENDLESS_HEAD, Fault.GZIP_BOMB})
# Without `after_tokens` these leave the client without a head too.
_SILENT_FAULTS = frozenset({Fault.STALL, Fault.RESET})
# After these a stream goes on, as if nothing had been.
_PASSING_FAULTS = frozenset({Fault.BAD_JSON, Fault.HUGE_BODY})
_SHORT_LENGTH = 64


class Until(NamedTuple):
    """Go on at this moment, counted from the request's arrival."""

    offset_s: float


class Pause(NamedTuple):
    """Let what was sent reach the client by itself, then go on."""

    seconds: float


class Cut(Enum):
    """How an answer stops without an end. No step follows it."""

    HANG = auto()
    RESET = auto()
    CLOSE = auto()


Step = bytes | Until | Pause | Cut
Frame = Callable[[bytes], bytes]


class Fixed(NamedTuple):
    """An answer that no model gives: a refusal, a list."""

    status: int
    body: bytes
    fields: bytes = b""


class Plan(NamedTuple):
    """What a model will say if nobody stops it. Tokens are per choice; `usage` is JSON, as the client is to be told."""

    cached_tokens: int
    choices: int
    reasoning_tokens: int
    visible_tokens: int
    finish_reason: bytes
    usage: bytes

    def output_tokens(self) -> int:
        return self.choices * (self.reasoning_tokens + self.visible_tokens)


class Call:
    """One request that is being answered, and the account of it."""

    __slots__ = (
        "attempt_id",
        "call_id",
        "directives",
        "fault",
        "fixed",
        "generated",
        "input_tokens",
        "plan",
        "request",
        "sent",
        "status",
        "usage",
    )

    def __init__(self, call_id: str, attempt_id: str) -> None:
        self.call_id = call_id
        self.attempt_id = attempt_id
        self.directives = Directives()
        self.request: ChatRequest | EmbeddingsRequest | None = None
        self.input_tokens = 0
        # One of the two answers it.
        self.fixed: Fixed | None = None
        self.plan: Plan | None = None
        self.status = 0  # 0 until a head is sent.
        self.fault = ""
        self.generated = 0
        self.sent = 0
        self.usage = b""

    def bill(self) -> Bill:
        """What no model answers is free. The rest costs its input, and the output that was generated: all of it where the
        provider does not stop when the connection does (`runs_on`)."""
        plan = self.plan
        if plan is None:
            return Bill()
        output_tokens = plan.output_tokens() if self.directives.runs_on else self.generated
        return Bill(self.input_tokens, plan.cached_tokens, output_tokens)


def plan_chat(request: ChatRequest, input_tokens: int, directives: Directives) -> Plan:
    """The output cap of the request holds for each choice, reasoning included."""
    cap = request.output_cap()
    wanted = directives.reasoning_tokens + directives.output_tokens
    allowed = wanted if cap is None else min(cap, wanted)
    reasoning = min(directives.reasoning_tokens, allowed)
    finish_reason = b"tool_calls" if directives.tool_call else b"stop"
    choices = request.n or 1
    cached = min(directives.cached_tokens, input_tokens)
    factor = directives.usage_factor
    usage = answers.usage_json(
        round(input_tokens * factor),
        round(allowed * choices * factor),
        cached_tokens=cached,
        reasoning_tokens=reasoning * choices,
    )
    return Plan(
        cached_tokens=cached,
        choices=choices,
        reasoning_tokens=reasoning,
        visible_tokens=allowed - reasoning,
        finish_reason=b"length" if allowed < wanted else finish_reason,
        usage=usage,
    )


def plan_embeddings(input_tokens: int, directives: Directives) -> Plan:
    usage = answers.usage_json(round(input_tokens * directives.usage_factor), None)
    return Plan(0, 1, 0, 0, b"", usage)


def script(call: Call, created_s: int) -> Iterator[Step]:
    """The steps of the answer to `call`. Whoever plays them may stop at any time."""
    fixed, directives = call.fixed, call.directives
    if directives.latency_ms:
        yield Until(directives.latency_ms / 1000)
    if fixed is not None:
        call.status = fixed.status
        yield _head(call, answers.JSON + fixed.fields + answers.content_length(len(fixed.body))) + fixed.body
        return
    fault = directives.fault
    is_silent = fault in _SILENT_FAULTS and directives.after_tokens is None
    if fault is not None and (is_silent or fault in _HEAD_FAULTS):
        yield from _fail_at_head(call, fault)
    elif isinstance(call.request, ChatRequest) and call.request.stream:
        yield from _stream(call, call.request, created_s)
    else:
        yield from _whole(call, created_s)


def _head(call: Call, fields: bytes) -> bytes:
    call.status = call.status or 200
    return answers.head(call.status, call.call_id.encode(), fields)


def _moments(plan: Plan, directives: Directives) -> Iterator[Until | None]:
    """When each token is generated, one for all choices; None is at once."""
    begin_s = _first_token_s(directives)
    rate = directives.tokens_per_second
    for position in range(plan.reasoning_tokens + plan.visible_tokens):
        yield Until(begin_s + position / rate) if rate else None


def _first_token_s(directives: Directives) -> float:
    return (directives.latency_ms + directives.first_token_ms) / 1000


def _completion(call: Call, request: ChatRequest, created_s: int) -> answers.Completion:
    return answers.Completion(
        call.call_id.encode(),
        created_s,
        _answering_model(request.model),
        is_wide=call.directives.split_utf8,
        tool_name=request.tool_name() if call.directives.tool_call else "",
        says_usage=request.wants_usage_chunk(),
    )


def _answering_model(asked: str) -> str:
    return asked.partition("?")[0]


# Whole answers


def _whole(call: Call, created_s: int) -> Iterator[Step]:
    plan, directives = call.plan, call.directives
    assert plan is not None
    if directives.first_token_ms:
        yield Until(_first_token_s(directives))
    if directives.tokens_per_second:
        for moment in _moments(plan, directives):
            if moment is not None:
                yield moment
            call.generated += plan.choices
    call.generated = plan.output_tokens()
    usage = b"" if directives.no_usage else plan.usage
    body = _body(call, plan, usage, created_s)
    if directives.fault is not None:
        yield from _fail_whole(call, directives.fault, body)
        return
    call.sent, call.usage = plan.choices * plan.visible_tokens, usage
    yield _head(call, answers.JSON + answers.content_length(len(body))) + body


def _body(call: Call, plan: Plan, usage: bytes, created_s: int) -> bytes:
    if isinstance(call.request, ChatRequest):
        completion = _completion(call, call.request, created_s)
        return completion.whole(plan.choices, plan.visible_tokens, plan.finish_reason, usage)
    assert isinstance(call.request, EmbeddingsRequest)
    return answers.embeddings(
        call.request.items(),
        _answering_model(call.request.model),
        call.request.dimensions or answers.DIMENSIONS,
        usage,
        is_base64=call.request.encoding_format == "base64",
    )


def _fail_whole(call: Call, fault: Fault, body: bytes) -> Iterator[Step]:
    call.fault = fault
    half = body[: len(body) // 2]
    if fault is Fault.BAD_JSON:
        yield _head(call, answers.JSON + answers.content_length(len(half))) + half
    elif fault is Fault.BAD_LENGTH:
        yield _head(call, answers.JSON + answers.content_length(len(half))) + body
    elif fault is Fault.ERROR_EVENT:
        error = answers.error_body(500)
        yield _head(call, answers.JSON + answers.content_length(len(error))) + error
    elif fault is Fault.HUGE_BODY:
        yield _head(call, answers.JSON + answers.content_length(len(body) + call.directives.fault_bytes)) + body
        yield from _junk(fault, call.directives.fault_bytes, bytes)
    elif fault in _JUNK or fault is Fault.BAD_CHUNKING:
        yield _head(call, answers.JSON + answers.CHUNKED) + answers.http_chunk(half)
        yield from _break(call, fault, answers.http_chunk)
    else:
        yield _head(call, answers.JSON + answers.content_length(len(body))) + half
        yield from _break(call, fault, bytes)


# Streams


def _stream(call: Call, request: ChatRequest, created_s: int) -> Iterator[Step]:
    plan, directives = call.plan, call.directives
    assert plan is not None
    fault = directives.fault
    frame: Frame = answers.http_chunk
    framing = answers.CHUNKED
    if fault is Fault.BAD_LENGTH:
        call.fault, fault = fault, None
        frame, framing = bytes, answers.content_length(_SHORT_LENGTH)
    yield _head(call, answers.EVENTS + framing)
    strike_at = min(directives.after_tokens or 0, plan.choices * plan.visible_tokens)
    for event, tokens in _events(call, plan, _completion(call, request, created_s)):
        if isinstance(event, Until):
            yield event
            continue
        if fault is not None and call.sent >= strike_at:
            yield from _break(call, fault, frame)
            if fault not in _PASSING_FAULTS:
                return
            fault = None
        call.generated += tokens
        call.sent += tokens
        if directives.split_utf8:
            yield from _split(event, frame)
        else:
            yield frame(event)
    if framing is answers.CHUNKED:
        yield answers.LAST_CHUNK


def _events(call: Call, plan: Plan, completion: answers.Completion) -> Iterator[tuple[bytes | Until, int]]:
    """Each event of the stream with the tokens that show in it, and the moments to wait for."""
    directives = call.directives
    if directives.first_token_ms:
        yield Until(_first_token_s(directives)), 0
    choices = range(plan.choices)
    for index in choices:
        yield completion.opening(index), 0
    last = plan.visible_tokens - 1
    for position, moment in enumerate(_moments(plan, directives), -plan.reasoning_tokens):
        if moment is not None:
            yield moment, 0
        if position < 0:
            call.generated += plan.choices
            continue
        for index in choices:
            yield completion.token(index, position, is_last=position == last), 1
    for index in choices:
        yield completion.closing(index, plan.finish_reason), 0
    if completion.says_usage and not directives.no_usage:
        call.usage = plan.usage
        yield completion.usage_event(plan.usage), 0
    if not directives.no_done:
        yield answers.DONE, 0


def _split(data: bytes, frame: Frame) -> Iterator[Step]:
    """In two, inside the first character that is longer than a byte."""
    place = next((place for place, byte in enumerate(data, 1) if byte >= 0x80), len(data))
    yield frame(data[:place])
    if rest := data[place:]:
        yield Pause(SPLIT_PAUSE_S)
        yield frame(rest)


# Faults


def _fail_at_head(call: Call, fault: Fault) -> Iterator[Step]:
    if fault is Fault.BAD_STATUS_LINE:
        yield b"HTTP/9.9 perhaps\r\n\r\n"
    elif fault is Fault.ENDLESS_HEAD:
        yield b"HTTP/1.1 200 OK\r\n"
    elif fault is Fault.GZIP_BOMB:
        yield _head(call, answers.JSON + b"content-encoding: gzip\r\n" + answers.CHUNKED)
        block = answers.http_chunk(_bomb_block())
        for _ in range(0, call.directives.fault_bytes, _BOMB_BLOCK_BYTES):
            yield block
    yield from _break(call, fault, bytes)


def _break(call: Call, fault: Fault, frame: Frame) -> Iterator[Step]:
    """What is on the wire from here on is the fault's."""
    call.fault = fault
    if fault is Fault.BAD_JSON:
        yield frame(answers.BROKEN_EVENT)
    elif fault is Fault.HUGE_BODY:
        yield frame(b'data: {"object":"chat.completion.chunk","choices":[]')
        yield from _junk(fault, call.directives.fault_bytes, frame)
        yield frame(b"}\n\n")
    elif fault is Fault.ERROR_EVENT:
        yield frame(answers.error_event(500))
        yield answers.LAST_CHUNK
    elif fault is Fault.GZIP_BOMB:
        yield answers.LAST_CHUNK
    elif fault is Fault.STALL:
        yield Cut.HANG
    elif fault is Fault.RESET:
        yield Pause(RESET_PAUSE_S)
        yield Cut.RESET
    else:
        if fault is Fault.BAD_CHUNKING:
            yield b"no size\r\n"
        elif fault in _JUNK:
            yield from _junk(fault, call.directives.fault_bytes, frame)
        yield Cut.CLOSE


def _junk(fault: Fault, size_bytes: int, frame: Frame) -> Iterator[Step]:
    """So many bytes, in blocks, of what is never needed."""
    pattern = _JUNK[fault]
    block = pattern * (_JUNK_BLOCK_BYTES // len(pattern))
    framed = frame(block)
    whole_blocks, rest = divmod(size_bytes, len(block))
    for _ in range(whole_blocks):
        yield framed
    if rest:
        yield frame(block[:rest])


@functools.lru_cache(1)
def _bomb_block() -> bytes:
    """A megabyte of zeros, a thousand times smaller. One after the other they are one gzip file."""
    return gzip.compress(bytes(_BOMB_BLOCK_BYTES), mtime=0)
