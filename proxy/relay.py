"""Relaying the provider's answer, whole or frame by frame, and counting along. What was seen is told to SETTLE."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from proxy.admission import Admission
from proxy.attempt import Attempt, Outcome
from proxy.call import gateway_error
from proxy.clock import Clock
from proxy.dialects.dialect import RESPONSE, Call, StreamWriter
from proxy.errors import ClientGone, GatewayError, LeaseLost, UpstreamBroken, UpstreamFailed, UpstreamStreamFailed
from proxy.estimate import SILENCE_S_MAX
from proxy.learning import TRANCHE_TOKENS, needed_tokens
from proxy.neutral import Answer, Began, Event, Failed
from proxy.prepare import Prepared
from proxy.providers.provider import Api, EventMeter, Kept, Measured, StreamMeter, StreamReader, name_of
from proxy.respond import JSON, Headers, Responder, rate_limit_headers
from proxy.wire import http1
from proxy.wire.frame import Frame, StreamMalformed, StreamTooLarge

ANSWER_BYTES_MAX = 64 * 1024 * 1024
# How long a provider that was told that nobody listens has to say its last word. Who throws a kill switch waits as long for the
# last words of their streams; when the client has left, nobody waits.
LAST_WORD_S = 0.05
LAST_WORD_UNWAITED_S = 0.25


def answers_in_stream(response: http1.UpstreamResponse, attempt: Attempt) -> bool:
    return attempt.prepared.api.answers_in_stream(attempt.described.call, response.header(b"content-type"))


async def relay_whole(
    response: http1.UpstreamResponse,
    attempt: Attempt,
    outcome: Outcome,
    responder: Responder,
    admission: Admission,
) -> None:
    """Read the answer, settle, then send it with its cost. Raises an `UpstreamFailed` when it breaks off."""
    try:
        body = await response.read(ANSWER_BYTES_MAX)
    except http1.UpstreamFailure as failure:
        raise gateway_error(failure) from failure
    outcome.output_bytes = len(body)
    outcome.output_chunks = 1
    outcome.in_flight_s = 0.0
    outcome.status_code = response.status
    try:
        measured, told = _read_whole(body, attempt, admission.clock)
    except msgspec.DecodeError as error:
        raise UpstreamBroken("the provider's answer is not of the expected shape", may_have_been_billed=True) from error
    outcome.usage = measured.usage
    outcome.response_model = measured.response_model
    outcome.finish_reason = measured.finish_reason
    _remember(attempt, outcome, measured.kept)
    if measured.has_error:
        raise UpstreamBroken("the provider's answer is an error", may_have_been_billed=True)
    _check_lease(admission)
    cost = admission.settle(attempt, outcome)
    headers = _headers(response, attempt)
    headers.append(_content_type(response, attempt.prepared))
    if attempt.event.state != "suspense":
        headers.append((b"x-tollgate-cost-usd", _usd(cost)))
    await responder.whole(response.status, told, headers)


def _remember(attempt: Attempt, outcome: Outcome, kept: Sequence[Kept]) -> None:
    """Before the client hears of it, so that it can ask for it at once."""
    call = attempt.described.call
    if not kept or attempt.remember is None or attempt.prepared.is_translated:
        return
    if kept[0].kind == call.kept_kind:
        outcome.upstream_id = name_of(kept[0].upstream_id)
    elif kept[0].kind == RESPONSE:
        return  # The client has asked not to keep it.
    attempt.remember(attempt, kept)


def _read_whole(body: bytes, attempt: Attempt, clock: Clock) -> tuple[Measured, bytes]:
    """(what it says of itself, what the client gets). Raises `msgspec.DecodeError`."""
    api, call = attempt.prepared.api, attempt.described.call
    if not attempt.prepared.is_translated:
        return api.measure(body), api.retell(body)
    answer = api.read_answer(body)
    finish_reason = ""
    if isinstance(answer, Answer):
        _identify(answer, attempt, clock)
        if answer.choices:
            finish_reason = answer.choices[-1].finish_detail or answer.choices[-1].finish
    measured = Measured(answer.usage, name_of(answer.model), name_of(finish_reason))
    return measured, call.dialect.write_answer(answer, call)


def _identify(answer: Answer | Began, attempt: Attempt, clock: Clock) -> None:
    """Some providers give their answers no name or no time; most dialects have both."""
    answer.answer_id = answer.answer_id or attempt.attempt_id
    answer.created_at_s = answer.created_at_s or int(clock.now_s())


async def relay_stream(
    response: http1.UpstreamResponse,
    attempt: Attempt,
    outcome: Outcome,
    responder: Responder,
    admission: Admission,
) -> None:
    """Send each event as it comes. Raises an `UpstreamFailed`, `LeaseLost` or a refusal of `extend` in mid-stream."""
    call, api = attempt.described.call, attempt.prepared.api
    _check_is_stream(response, api)
    outcome.status_code = response.status
    stream = _Stream(response, attempt, outcome, admission)
    try:
        await responder.start_stream(_stream_type(response, attempt.prepared, call), _headers(response, attempt))
        await stream.pass_on(responder)
    except http1.UpstreamFailure as failure:
        raise gateway_error(failure) from failure
    except (StreamTooLarge, StreamMalformed) as error:
        raise UpstreamBroken("the provider's stream is malformed", may_have_been_billed=True) from error
    except UpstreamFailed:
        raise
    except (asyncio.CancelledError, GatewayError) as cut:
        # It is we who cut it. What the provider has made by now is billed, whether or not anybody reads it.
        is_client_gone = any(isinstance(reason, ClientGone) for reason in cut.args)
        await stream.hear_out(LAST_WORD_UNWAITED_S if is_client_gone else LAST_WORD_S)
        raise
    finally:
        stream.tell()
    if not stream.meter.has_ended:
        raise UpstreamBroken("the provider's stream ended before it was finished", may_have_been_billed=True)
    admission.settle(attempt, outcome)
    await responder.end_stream()


class _Stream:
    """A provider's stream while it is relayed, and what is known of it."""

    def __init__(
        self, response: http1.UpstreamResponse, attempt: Attempt, outcome: Outcome, admission: Admission
    ) -> None:
        call, api = attempt.described.call, attempt.prepared.api
        self._response = response
        self._attempt = attempt
        self._outcome = outcome
        self._admission = admission
        self._clock = admission.clock
        is_translated = attempt.prepared.is_translated
        self._passage: _Passage = _Translation(attempt, self._clock) if is_translated else _Untouched(api, call)
        self._parser = api.frame_parser(call)
        self._bytes_max = api.stream_bytes_max
        self._is_cut = False
        self.meter = self._passage.meter

    async def pass_on(self, responder: Responder) -> None:
        response, attempt, passage, parser, meter = (
            self._response,
            self._attempt,
            self._passage,
            self._parser,
            self.meter,
        )
        tranches = Tranches(attempt, self._admission)
        received_bytes = 0
        while chunk := await response.next_chunk():
            received_bytes += len(chunk)
            if received_bytes > self._bytes_max:
                raise UpstreamBroken("the provider's stream does not end", may_have_been_billed=True)
            passing = passage.take(parser.feed(chunk))
            if attempt.first_token_at_s is None and meter.output_chunks:
                attempt.first_token_at_s = response.received_at_s
            if meter.answer_id and not self._outcome.upstream_id:
                _remember(attempt, self._outcome, (Kept(RESPONSE, meter.answer_id),))
            if not tranches.are_whole:
                await tranches.cover(meter, response.received_at_s)
            _check_lease(self._admission)
            if passing:
                await responder.part(passing)
        tail = parser.finish()
        passing = passage.take([tail]) if tail is not None else b""
        # A frame that was cut short is not passed on: whatever follows it could not be read.
        if meter.has_ended and (passing := passing + passage.end()):
            _check_lease(self._admission)
            await responder.part(passing)

    async def hear_out(self, last_word_s: float) -> None:
        """Read, for nobody but the meter, what is on its way: to the provider's last word where it can be told that nobody
        listens, else what is at hand."""
        self._is_cut = True
        with suppress(http1.UpstreamFailure, GatewayError, StreamTooLarge, StreamMalformed, TimeoutError):
            async with asyncio.timeout(last_word_s if self._response.hang_up() else 0):
                while chunk := await self._response.next_chunk():
                    self._passage.take(self._parser.feed(chunk))

    def tell(self) -> None:
        """What SETTLE goes by."""
        outcome, meter, response = self._outcome, self.meter, self._response
        if self._attempt.first_token_at_s is not None:
            outcome.shown_s = response.received_at_s - self._attempt.first_token_at_s
        # Also where its last word was heard: until it heard ours, it may have gone on in silence.
        has_ended_itself = response.has_heard_all and not self._is_cut
        silent_s = min(max(self._clock.monotonic_s() - response.received_at_s, 0.0), SILENCE_S_MAX)
        trip_s = 0.0 if response.has_heard_all else response.trip_s
        outcome.in_flight_s = 0.0 if has_ended_itself or meter.has_ended else silent_s + trip_s
        outcome.usage = meter.usage
        outcome.usage_so_far = meter.usage_so_far
        outcome.tool_runs = meter.tool_runs
        outcome.output_chunks = meter.output_chunks
        outcome.output_bytes = meter.output_bytes
        outcome.response_model = meter.response_model
        outcome.finish_reason = meter.finish_reason
        if meter.has_error:
            outcome.error_type = UpstreamStreamFailed.error_type


class _Passage(Protocol):
    """The way of a stream's frames to the client."""

    @property
    def meter(self) -> StreamMeter: ...

    def take(self, frames: list[Frame]) -> bytes:
        """What the client gets for them now."""
        ...

    def end(self) -> bytes:
        """What it gets when the provider has said that this was all."""
        ...


class _Untouched:
    """The same dialect on both sides: as it came, but for what came only because we asked."""

    def __init__(self, api: Api, call: Call) -> None:
        self.meter = api.stream_meter(call)
        self._reframe = api.reframe

    def take(self, frames: list[Frame]) -> bytes:
        if len(frames) == 1:
            return b"" if self.meter.observe(frames[0]) else self._reframe(frames[0])
        return b"".join([self._reframe(frame) for frame in frames if not self.meter.observe(frame)])

    def end(self) -> bytes:
        return b""


class _Translation:
    """Across dialects: frame to events, events to the client's frames."""

    def __init__(self, attempt: Attempt, clock: Clock) -> None:
        call = attempt.described.call
        self._attempt = attempt
        self._clock = clock
        self._reader: StreamReader = attempt.prepared.api.stream_reader()
        self._writer: StreamWriter = call.dialect.stream_writer(call)
        self.meter: EventMeter = EventMeter(self._reader)

    def take(self, frames: list[Frame]) -> bytes:
        """Raises `UpstreamStreamFailed` for an error inside the stream; what came with it before is lost with it."""
        told = b""
        for frame in frames:
            events = self._reader.read(frame)
            self.meter.count(events)
            if self.meter.has_error:
                raise _stream_failed(events)
            if events and isinstance(events[0], Began):
                _identify(events[0], self._attempt, self._clock)
            told += self._writer.write(events)
        return told

    def end(self) -> bytes:
        return self._writer.finish()


def _stream_failed(events: Sequence[Event]) -> UpstreamStreamFailed:
    error = next(event.error for event in events if isinstance(event, Failed))
    return UpstreamStreamFailed(error.message, code=error.code or error.kind)


class Tranches:
    """How far the hold of a running stream reaches, in output tokens; bytes bound them from above."""

    __slots__ = ("_admission", "_attempt")

    def __init__(self, attempt: Attempt, admission: Admission) -> None:
        self._attempt = attempt
        self._admission = admission

    @property
    def are_whole(self) -> bool:
        return self._attempt.covered_tokens >= self._attempt.output_tokens_max

    async def cover(self, meter: StreamMeter, now_s: float) -> None:
        """Extend where it has become short: by a tranche, or by more where what has come is longer."""
        attempt = self._attempt
        shown_s = now_s - attempt.first_token_at_s if attempt.first_token_at_s is not None else 0.0
        needed = needed_tokens(meter.output_bytes, meter.output_chunks, shown_s)
        missing = needed - attempt.covered_tokens
        if missing <= 0:
            return
        tranche = TRANCHE_TOKENS * attempt.described.call.choices
        more = min(max(tranche, missing), attempt.output_tokens_max - attempt.covered_tokens)
        await self._admission.extend(attempt, more)


def _check_lease(admission: Admission) -> None:
    """Right before anything is passed on: a worker that was paused past its lease has not heard of a kill since."""
    if not admission.has_lease:
        raise LeaseLost("this worker lost its lease; the request was stopped")


def _check_is_stream(response: http1.UpstreamResponse, api: Api) -> None:
    content_type = response.header(b"content-type", api.stream_types[0]).lower()
    encoding = response.header(b"content-encoding", b"identity")
    if not content_type.startswith(api.stream_types) or encoding != b"identity":
        raise UpstreamBroken("the provider's answer is not a stream", may_have_been_billed=True)


def _stream_type(response: http1.UpstreamResponse, prepared: Prepared, call: Call) -> bytes:
    default = call.dialect.stream_type(call)
    if prepared.is_translated:
        return default
    return prepared.api.stream_type(call, response.header(b"content-type", default))


def _content_type(response: http1.UpstreamResponse, prepared: Prepared) -> tuple[bytes, bytes]:
    if prepared.is_translated:
        return JSON
    return b"content-type", response.header(b"content-type", JSON[1])


def _headers(response: http1.UpstreamResponse, attempt: Attempt) -> Headers:
    crossing = attempt.upstream.kind.response_headers
    headers = [(n, v) for n, v in response.headers if n in crossing and n != b"content-type"]
    headers.append(attempt.upstream.deployment_header)
    dropped = attempt.prepared.dropped
    if dropped:
        headers.append((b"x-tollgate-dropped", ", ".join(dropped).encode("ascii", "replace")))
    if attempt.described.downgraded_from:
        headers.append(
            (b"x-tollgate-downgraded", b"from=" + attempt.described.downgraded_from.encode("ascii", "replace"))
        )
    return headers + rate_limit_headers(attempt.rules, attempt.free, attempt.reset_ms)


def _usd(nanos: int) -> bytes:
    return b"%d.%09d" % divmod(nanos, 1_000_000_000)
