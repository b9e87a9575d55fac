"""What a worker learns from its calls, by deployment: how much of an output to hold at first, and what a call has used whose
provider never said. No I/O, no clock."""

from collections import defaultdict
from math import ceil

import msgspec

from audit.records import Usage
from proxy.attempt import Attempt, Outcome
from proxy.estimate import FORGETTING, Experience, Seen, cached_of, dearest, pace_of
from proxy.room import ASK_EVERY_S_MAX, EXTEND_WAIT_S
from proxy.service_tiers import geo_asked

TRANCHE_TOKENS = 1024
# The provider is some way ahead of what we have read: ask for the next tranche while half of this one is left.
EXTEND_AHEAD_TOKENS = TRANCHE_TOKENS // 2
# Output that never shows as text: end-of-turn tokens, the frame around tool calls.
HIDDEN_OUTPUT_TOKENS = 64
# What a stream is taken to need of a deployment that nobody has had an answer from. Too little, and streams that have begun would
# keep each other from their ends; too much, and others wait for what is not used.
FIRST_NEEDED_TOKENS = 4096
# Of a workspace that may be set to one.
UNKNOWN_GEO = "unknown"


class Learning:
    def __init__(self) -> None:
        # What streams have lately needed their holds to cover, in tokens of output.
        self._needed_tokens: dict[str, float] = {}
        self._experience: defaultdict[str, Experience] = defaultdict(Experience)

    def tranche_tokens(self, attempt: Attempt) -> int:
        """How many tokens of output are held at first where room is tight: all where output can hide, or nothing streams, else
        as many as streams of the deployment have lately needed, so that few have to ask for more."""
        call, deployment, most = attempt.described.call, attempt.upstream.deployment, attempt.output_tokens_max
        # What is made in the background goes on, also where a tranche is refused; a session asks by the answer.
        is_safe = call.is_stream and deployment.output_is_visible
        if not is_safe or call.is_background or call.is_session or call.batch_requests:
            return most
        lately = int(self._needed_tokens.get(deployment.deployment_id, FIRST_NEEDED_TOKENS))
        return min(most, max(TRANCHE_TOKENS, lately) * call.choices)

    def note(self, attempt: Attempt, outcome: Outcome, now_s: float) -> None:
        """What holds and estimates of the deployment's next calls go by."""
        call, deployment_id = attempt.described.call, attempt.upstream.deployment.deployment_id
        if call.is_stream:
            needed = needed_tokens(outcome.output_bytes, outcome.output_chunks, outcome.shown_s) / call.choices
            lately = self._needed_tokens.get(deployment_id, 0.0)
            self._needed_tokens[deployment_id] = max(needed, lately * FORGETTING)
        is_like_others = call.capability == "chat" and not (
            call.is_session or call.is_background or call.batch_requests
        )
        if is_like_others and outcome.usage is not None and not call.is_free:
            seen = _seen(attempt, outcome, now_s)
            experience = self._experience[deployment_id]
            experience.note(outcome.usage, attempt.input_tokens_max, seen, is_stream=call.is_stream)
            if attempt.prepared.may_be_in_geo and geo_asked(call.fields) is None:
                experience.geo = outcome.usage.inference_geo

    def usage_of(self, attempt: Attempt, outcome: Outcome, now_s: float) -> Usage:
        """Of a call whose usage never came: of all that it may be billed as, what costs most. What its provider has said by then
        is believed."""
        call, upstream, known = attempt.described.call, attempt.upstream, outcome.usage_so_far
        if call.is_session:
            return known or Usage()  # Its meter has estimated what was not told.
        experience = self._experience[upstream.deployment.deployment_id]
        # We were cut off, and a provider that runs on may do so to the end.
        output = (
            attempt.output_tokens_max
            if upstream.provider.runs_on
            else experience.output_tokens(
                _seen(attempt, outcome, now_s),
                is_visible=upstream.deployment.output_is_visible,
                held=attempt.covered_tokens,
                most=attempt.output_tokens_max,
            )
        )
        alternatives: dict[str, tuple[object, ...]] = {}
        if known is None:
            known = self._asked_usage(attempt, experience)
            alternatives["service_tier"] = attempt.prepared.service_tiers or ("",)
            alternatives["inference_geo"] = _geos(attempt, experience)
        runs = call.tool_calls_max if outcome.tool_runs is None else outcome.tool_runs
        if runs > known.tool_calls:
            known = msgspec.structs.replace(known, tool_calls=runs)
            alternatives["searches"] = (runs, known.searches)
        usage = msgspec.structs.replace(known, output_tokens=max(output, known.output_tokens))
        return dearest(usage, attempt.price, alternatives) if alternatives else usage

    def _asked_usage(self, attempt: Attempt, experience: Experience) -> Usage:
        """What goes into the call, as far as its request tells."""
        input_tokens = experience.input_tokens(attempt.input_tokens_max)
        cached = cached_of(attempt.prepared.outgoing.body)
        return Usage(
            input_tokens=input_tokens,
            cache_write_input_tokens=ceil(input_tokens * cached.written),
            cache_write_1h_input_tokens=ceil(input_tokens * cached.for_long),
            units=attempt.described.call.units_max,
        )


def needed_tokens(output_bytes: int, output_chunks: int, shown_s: float) -> int:
    """How many tokens of output the hold of a stream is to cover that has come so far: its bytes bound them from above, and the
    provider is some way ahead of what we have read; a fast one goes far (a token a chunk, for all we know) while its
    stream waits for room."""
    meanwhile = ceil(pace_of(output_chunks, shown_s) * (EXTEND_WAIT_S + ASK_EVERY_S_MAX))
    return HIDDEN_OUTPUT_TOKENS + max(output_bytes + EXTEND_AHEAD_TOKENS, output_chunks + meanwhile)


def _geos(attempt: Attempt, experience: Experience) -> tuple[str, ...]:
    """Where it may have been served."""
    if not attempt.prepared.may_be_in_geo:
        return ("",)
    geo = geo_asked(attempt.described.call.fields)
    if geo is None:
        geo = experience.geo
    return ("", UNKNOWN_GEO) if geo is None else (geo,)


def _seen(attempt: Attempt, outcome: Outcome, now_s: float) -> Seen:
    return Seen(
        chunks=outcome.output_chunks,
        output_bytes=outcome.output_bytes,
        shown_s=outcome.shown_s,
        running_s=now_s - attempt.dispatched_at_s,
        in_flight_s=outcome.in_flight_s,
    )
