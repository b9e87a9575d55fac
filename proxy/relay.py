"""Relaying the provider's answer, whole or chunk by chunk, and counting along. What was seen is told to SETTLE."""

import msgspec

from proxy.admission import HIDDEN_OUTPUT_TOKENS, TRANCHE_TOKENS, Admission, Attempt, Outcome, output_tokens_max
from proxy.call import gateway_error
from proxy.errors import LeaseLost, UpstreamBroken
from proxy.providers import openai
from proxy.respond import JSON, Headers, Responder, rate_limit_headers
from proxy.wire import http1
from proxy.wire.frame import StreamTooLarge
from proxy.wire.sse import SSEParser

ANSWER_BYTES_MAX = 64 * 1024 * 1024
# The provider is some way ahead of what we have read: ask for the next tranche while half of this one is left.
EXTEND_AHEAD_TOKENS = TRANCHE_TOKENS // 2
EVENT_STREAM_TYPE = b"text/event-stream"


async def relay_whole(
    response: http1.UpstreamResponse, attempt: Attempt, outcome: Outcome, responder: Responder, admission: Admission
) -> None:
    """Read the answer, settle, then send it with its cost. Raises an `UpstreamFailed` when it breaks off."""
    try:
        body = await response.read(ANSWER_BYTES_MAX)
    except http1.UpstreamFailure as failure:
        raise gateway_error(failure) from failure
    try:
        answer = openai.read_answer(body)
    except msgspec.DecodeError as error:
        raise UpstreamBroken(
            "the provider's answer is not JSON of the expected shape", may_have_been_billed=True
        ) from error
    outcome.usage = answer.usage
    outcome.output_bytes = len(body)
    outcome.response_model = answer.response_model
    outcome.finish_reason = answer.finish_reason
    outcome.status_code = response.status
    if answer.has_error:
        raise UpstreamBroken("the provider's answer is an error", may_have_been_billed=True)
    _check_lease(admission)
    cost = admission.settle(attempt, outcome)
    headers = [*_headers(response, attempt), JSON, (b"x-tollgate-cost-usd", _usd(cost))]
    await responder.whole(response.status, body, headers)


async def relay_stream(
    response: http1.UpstreamResponse, attempt: Attempt, outcome: Outcome, responder: Responder, admission: Admission
) -> None:
    """Send each event as it comes. Raises an `UpstreamFailed`, `LeaseLost` or a refusal of `extend` in mid-stream."""
    _check_is_stream(response)
    outcome.status_code = response.status
    wants_usage_chunk = attempt.described.call.wants_usage_chunk
    meter = openai.StreamMeter()
    tranches = Tranches(attempt, admission)
    parser = SSEParser()
    received_bytes = 0
    await responder.start_stream(_headers(response, attempt))
    try:
        while chunk := await response.next_chunk():
            received_bytes += len(chunk)
            if received_bytes > ANSWER_BYTES_MAX:
                raise UpstreamBroken("the provider's stream does not end", may_have_been_billed=True)
            passing = [event.raw for event in parser.feed(chunk) if not meter.observe(event) or wants_usage_chunk]
            if attempt.first_token_at_s is None and meter.output_chunks:
                attempt.first_token_at_s = admission.clock.monotonic_s()
            if tranches.are_short(meter.output_bytes):
                await tranches.extend(meter.output_bytes)
            _check_lease(admission)
            if passing:
                await responder.part(b"".join(passing) if len(passing) > 1 else passing[0])
        tail = parser.finish()
        # An event that was cut short is not passed on: whatever follows it could not be read.
        if tail is not None and (not meter.observe(tail) or wants_usage_chunk) and meter.has_ended:
            _check_lease(admission)
            await responder.part(tail.raw)
    except http1.UpstreamFailure as failure:
        raise gateway_error(failure) from failure
    except StreamTooLarge as error:
        raise UpstreamBroken("the provider's stream is malformed", may_have_been_billed=True) from error
    finally:
        outcome.usage = meter.usage
        outcome.output_chunks = meter.output_chunks
        outcome.output_bytes = meter.output_bytes
        outcome.response_model = meter.response_model
        outcome.finish_reason = meter.finish_reason
        if meter.has_error:
            outcome.error_type = "upstream_stream_error"
    if not meter.has_ended:
        raise UpstreamBroken("the provider's stream ended before it was finished", may_have_been_billed=True)
    admission.settle(attempt, outcome)
    await responder.end_stream()


class Tranches:
    """How far the hold of a running stream reaches, in output tokens; bytes bound them from above."""

    __slots__ = ("_admission", "_attempt", "_covered_tokens", "_tokens_max")

    def __init__(self, attempt: Attempt, admission: Admission) -> None:
        self._attempt = attempt
        self._admission = admission
        self._tokens_max = output_tokens_max(attempt.described, attempt.upstream)
        choices = attempt.described.call.choices
        is_whole = attempt.held_nanos >= attempt.full_nanos
        self._covered_tokens = self._tokens_max if is_whole else min(self._tokens_max, TRANCHE_TOKENS * choices)

    def are_short(self, output_bytes: int) -> bool:
        if self._covered_tokens >= self._tokens_max:
            return False
        return _needed_tokens(output_bytes) > self._covered_tokens

    async def extend(self, output_bytes: int) -> None:
        """By a tranche, or by more where what has come is longer."""
        tranche = TRANCHE_TOKENS * self._attempt.described.call.choices
        missing = _needed_tokens(output_bytes) - self._covered_tokens
        more = min(max(tranche, missing), self._tokens_max - self._covered_tokens)
        await self._admission.extend(self._attempt, more)
        self._covered_tokens += more


def _needed_tokens(output_bytes: int) -> int:
    return output_bytes + HIDDEN_OUTPUT_TOKENS + EXTEND_AHEAD_TOKENS


def _check_lease(admission: Admission) -> None:
    """Right before anything is passed on: a worker that was paused past its lease has not heard of a kill since."""
    if not admission.has_lease:
        raise LeaseLost("this worker lost its lease; the request was stopped")


def _check_is_stream(response: http1.UpstreamResponse) -> None:
    headers = dict(response.headers)
    content_type = headers.get(b"content-type", EVENT_STREAM_TYPE)
    if (
        not content_type.lower().startswith(EVENT_STREAM_TYPE)
        or headers.get(b"content-encoding", b"identity") != b"identity"
    ):
        raise UpstreamBroken("the provider's answer is not a stream", may_have_been_billed=True)


def _headers(response: http1.UpstreamResponse, attempt: Attempt) -> Headers:
    passing = [(n, v) for n, v in response.headers if n in openai.RESPONSE_HEADERS and n != b"content-type"]
    return [
        *passing,
        attempt.upstream.deployment_header,
        *rate_limit_headers(attempt.subject, attempt.remaining, attempt.reset_ms),
    ]


def _usd(nanos: int) -> bytes:
    return b"%d.%09d" % divmod(nanos, 1_000_000_000)
