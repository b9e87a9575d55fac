"""What a worker learns from its calls, by deployment: how much of an output to hold at first, and what a call has used whose
provider never said. No I/O, no clock."""

from collections import defaultdict
from math import ceil

import msgspec

from audit.records import Usage
from proxy.attempt import Attempt, Outcome
from proxy.estimate import FORGETTING, Experience, Seen, pace_of
from proxy.room import ASK_EVERY_S_MAX, EXTEND_WAIT_S

TRANCHE_TOKENS = 1024
# The provider is some way ahead of what we have read: ask for the next tranche while half of this one is left.
EXTEND_AHEAD_TOKENS = TRANCHE_TOKENS // 2
# Output that never shows as text: end-of-turn tokens, the frame around tool calls.
HIDDEN_OUTPUT_TOKENS = 64
# What a stream is taken to need of a deployment that nobody has had an answer from. Too little, and streams that have begun would
# keep each other from their ends; too much, and others wait for what is not used.
FIRST_NEEDED_TOKENS = 4096


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

    def usage_of(self, attempt: Attempt, outcome: Outcome, now_s: float) -> Usage:
        """Of a call whose usage never came."""
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
        if known is not None:
            return msgspec.structs.replace(known, output_tokens=max(output, known.output_tokens))
        tiers = attempt.prepared.service_tiers
        return Usage(
            input_tokens=experience.input_tokens(attempt.input_tokens_max),
            output_tokens=output,
            units=call.units_max,
            service_tier=tiers[0] if tiers else "",
        )


def needed_tokens(output_bytes: int, output_chunks: int, shown_s: float) -> int:
    """How many tokens of output the hold of a stream is to cover that has come so far: its bytes bound them from above, and the
    provider is some way ahead of what we have read; a fast one goes far (a token a chunk, for all we know) while its
    stream waits for room."""
    meanwhile = ceil(pace_of(output_chunks, shown_s) * (EXTEND_WAIT_S + ASK_EVERY_S_MAX))
    return HIDDEN_OUTPUT_TOKENS + max(output_bytes + EXTEND_AHEAD_TOKENS, output_chunks + meanwhile)


def _seen(attempt: Attempt, outcome: Outcome, now_s: float) -> Seen:
    return Seen(
        chunks=outcome.output_chunks,
        output_bytes=outcome.output_bytes,
        shown_s=outcome.shown_s,
        running_s=now_s - attempt.dispatched_at_s,
        in_flight_s=outcome.in_flight_s,
    )
