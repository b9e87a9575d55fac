"""One answer as a script: bytes to send, moments to wait for, and how it breaks off. No socket, no clock.

The server plays the steps in order, and asks for no more when the client is gone; so what a `Call` has counted by then is
what was generated, and what is billed.
"""

import functools
import gzip
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import NamedTuple

from controlplane.simulator import wire
from controlplane.simulator.calls import Answer, Call
from controlplane.simulator.directives import Directives, Fault

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


def script(call: Call) -> Iterator[Step]:
    """The steps of the answer to `call`. Whoever plays them may stop at any time."""
    fixed, directives = call.fixed, call.directives
    if directives.latency_ms:
        yield Until(directives.latency_ms / 1000)
    if fixed is not None:
        call.status, call.usage = fixed.status, fixed.usage
        # What follows 101 is no body of HTTP.
        length = wire.content_length(len(fixed.body)) if fixed.status != 101 else b""
        yield _head(call, fixed.fields + length) + fixed.body
        return
    assert call.asked is not None
    answer = call.asked.answers(call)
    fault = directives.fault
    is_silent = fault in _SILENT_FAULTS and directives.after_tokens is None
    if fault is not None and (is_silent or fault in _HEAD_FAULTS):
        yield from _fail_at_head(answer, fault)
    elif call.asked.is_stream:
        yield from _stream(answer)
    else:
        yield from _whole(answer)


def exchange(call: Call, frame: Frame) -> Iterator[Step]:
    """The same where every event is a message by itself, and there are no heads."""
    fixed, directives = call.fixed, call.directives
    if directives.latency_ms:
        yield Until(directives.latency_ms / 1000)
    if fixed is not None:
        call.status = fixed.status
        yield frame(fixed.body)
        return
    assert call.asked is not None
    call.status = 200
    answer = call.asked.answers(call)
    if directives.first_token_ms:
        yield Until(_first_token_s(directives))
    yield from _play(answer, directives.fault, frame)


def _head(call: Call, fields: bytes) -> bytes:
    call.status = call.status or 200
    shape = call.shape
    return wire.head(call.status, shape.head(call.call_id.encode()) + shape.limits(call) + fields)


def _first_token_s(directives: Directives) -> float:
    return (directives.latency_ms + directives.first_token_ms) / 1000


def _moment(call: Call, choices: int) -> Until:
    """When the next token is generated; those of all choices come together."""
    directives = call.directives
    return Until(_first_token_s(directives) + (call.generated // choices) / directives.tokens_per_second)


# Whole answers


def _whole(answer: Answer) -> Iterator[Step]:
    call, plan, directives = answer.call, answer.plan, answer.call.directives
    if directives.first_token_ms:
        yield Until(_first_token_s(directives))
    if directives.tokens_per_second:
        for _ in range(plan.reasoning_tokens + plan.visible_tokens):
            yield _moment(call, plan.choices)
            call.generated += plan.choices
    call.generated = plan.output_tokens()
    body, usage = answer.whole()
    if directives.fault is not None:
        yield from _fail_whole(answer, directives.fault, body)
        return
    call.sent, call.usage = answer.shown_tokens(), usage
    yield _head(call, answer.whole_fields + wire.content_length(len(body))) + body


def _fail_whole(answer: Answer, fault: Fault, body: bytes) -> Iterator[Step]:
    call, fields = answer.call, answer.whole_fields
    call.fault = fault
    half = body[: len(body) // 2]
    if fault is Fault.BAD_JSON:
        yield _head(call, fields + wire.content_length(len(half))) + half
    elif fault is Fault.BAD_LENGTH:
        yield _head(call, fields + wire.content_length(len(half))) + body
    elif fault is Fault.ERROR_EVENT:
        error = call.error(500)
        yield _head(call, error.fields + wire.content_length(len(error.body))) + error.body
    elif fault is Fault.HUGE_BODY:
        yield _head(call, fields + wire.content_length(len(body) + call.directives.fault_bytes)) + body
        yield from _junk(fault, call.directives.fault_bytes, bytes)
    elif fault in _JUNK or fault is Fault.BAD_CHUNKING:
        yield _head(call, fields + wire.CHUNKED) + wire.http_chunk(half)
        yield from _break(answer, fault, wire.http_chunk)
    else:
        yield _head(call, fields + wire.content_length(len(body))) + half
        yield from _break(answer, fault, bytes)


# Streams


def _stream(answer: Answer) -> Iterator[Step]:
    call, directives = answer.call, answer.call.directives
    fault = directives.fault
    frame: Frame = wire.http_chunk
    framing = wire.CHUNKED
    if fault is Fault.BAD_LENGTH:
        call.fault, fault = fault, None
        frame, framing = bytes, wire.content_length(_SHORT_LENGTH)
    yield _head(call, answer.stream_fields + framing)
    if directives.first_token_ms:
        yield Until(_first_token_s(directives))
    yield from _play(answer, fault, frame)
    if framing is wire.CHUNKED:
        yield wire.LAST_CHUNK


def _play(answer: Answer, fault: Fault | None, frame: Frame) -> Iterator[Step]:
    """The events of the stream at their pace, each in a frame of its own, until the fault strikes."""
    call, plan, directives = answer.call, answer.plan, answer.call.directives
    is_paced, is_split = directives.tokens_per_second > 0, directives.split_utf8
    strike_at = min(directives.after_tokens or 0, answer.shown_tokens())
    for data, generated, sent, usage in answer.events():
        if is_paced and generated:
            yield _moment(call, plan.choices)
        if fault is not None and call.sent >= strike_at:
            yield from _break(answer, fault, frame)
            if fault not in _PASSING_FAULTS:
                return
            fault = None
        call.generated += generated
        call.sent += sent
        if usage:
            call.usage = usage
        if is_split:
            yield from _split(data, frame)
        elif data:
            yield frame(data)


def _split(data: bytes, frame: Frame) -> Iterator[Step]:
    """In two, inside the first character that is longer than a byte."""
    place = next((place for place, byte in enumerate(data, 1) if byte >= 0x80), len(data))
    if data:
        yield frame(data[:place])
    if rest := data[place:]:
        yield Pause(SPLIT_PAUSE_S)
        yield frame(rest)


# Faults


def _fail_at_head(answer: Answer, fault: Fault) -> Iterator[Step]:
    call = answer.call
    if fault is Fault.BAD_STATUS_LINE:
        yield b"HTTP/9.9 perhaps\r\n\r\n"
    elif fault is Fault.ENDLESS_HEAD:
        yield b"HTTP/1.1 200 OK\r\n"
    elif fault is Fault.GZIP_BOMB:
        yield _head(call, answer.whole_fields + b"content-encoding: gzip\r\n" + wire.CHUNKED)
        block = wire.http_chunk(_bomb_block())
        for _ in range(0, call.directives.fault_bytes, _BOMB_BLOCK_BYTES):
            yield block
    yield from _break(answer, fault, bytes)


def _break(answer: Answer, fault: Fault, frame: Frame) -> Iterator[Step]:
    """What is on the wire from here on is the fault's."""
    call = answer.call
    call.fault = fault
    if fault is Fault.BAD_JSON:
        yield frame(answer.broken())
    elif fault is Fault.HUGE_BODY:
        before, after = answer.huge(call.directives.fault_bytes)
        yield frame(before)
        yield from _junk(fault, call.directives.fault_bytes, frame)
        yield frame(after)
    elif fault is Fault.ERROR_EVENT:
        yield frame(answer.failure(500))
    elif fault is Fault.GZIP_BOMB:
        yield wire.LAST_CHUNK
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
