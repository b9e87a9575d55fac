"""Rate limits: the rule by which requests, tokens and money in a window are counted (GCRA). Values in, values out; no clock.

What was taken is measured in the time it takes to flow back: a limit of `amount` units in a window gives back one every
window / amount. Its state is how far what was taken is *ahead* of what has flowed back, in whole nanoseconds, and when that was
so; a burst is how far it may be ahead. Durations are rounded up, so that what passes is never more than burst + rate x time; at
a million requests a second that costs a thousandth. `lua/admit.lua` applies the same rule.
"""

import msgspec

NEVER_FITS = -1
REQUESTS, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS = "requests", "tokens", "input_tokens", "output_tokens"
CONCURRENCY, SPEND = "concurrency", "spend"
NANOS_PER_S = 1_000_000_000
# The longest burst, 52 days: two of it are still counted exactly by Lua.
CAPACITY_MAX_NS = 2**52


class Ahead(msgspec.Struct, frozen=True):
    """The state of a limit that is not at rest."""

    ahead_ns: int
    written_at_us: int


class Taken(msgspec.Struct, frozen=True):
    """Allowed. `ahead` is to be stored, `free_ns` may be taken at once, all flows back in `reset_ms`."""

    ahead: Ahead
    free_ns: int
    reset_ms: int


class Refused(msgspec.Struct, frozen=True):
    """Nothing changes. `retry_after_ms` is `NEVER_FITS` when the cost is more than a whole burst."""

    free_ns: int
    retry_after_ms: int


def cost_ns(units: int, amount: int, window_ns: int) -> int:
    """How long so many units take to flow back. Where nothing may flow, more than there ever is."""
    return min(-(-units * window_ns // amount), CAPACITY_MAX_NS + 1) if amount > 0 else 1


def capacity_ns(metric: str, burst: int, amount: int, window_ns: int) -> int:
    """How far the limit may be ahead. Requests come one by one: each of a burst of them is rounded up."""
    if amount <= 0:
        return 0
    whole_ns = burst * cost_ns(1, amount, window_ns) if metric == REQUESTS else cost_ns(burst, amount, window_ns)
    return min(whole_ns, CAPACITY_MAX_NS)


def units_in(free_ns: int, amount: int, window_ns: int) -> int:
    """How many units may be taken at once."""
    return free_ns * amount // window_ns


def take(ahead: Ahead | None, now_us: int, capacity_ns: int, cost_ns: int) -> Taken | Refused:
    """Take what costs so much at `now_us`. `ahead` is what the last `take` or `correct` stored; None is a limit at rest."""
    before_ns = _ahead_now(ahead, now_us)
    after_ns = before_ns + cost_ns
    if after_ns > capacity_ns:
        retry_after_ms = -((capacity_ns - after_ns) // 1_000_000) if cost_ns <= capacity_ns else NEVER_FITS
        return Refused(max(capacity_ns - before_ns, 0), retry_after_ms)
    return Taken(Ahead(after_ns, now_us), capacity_ns - after_ns, -(-after_ns // 1_000_000))


def correct(ahead: Ahead | None, now_us: int, delta_ns: int) -> Ahead | None:
    """Take so much more, or give back when it is negative, whatever the limit: it is used already.

    Returns the state to store, or None for a limit at rest. What was used above the limit delays the next requests.
    """
    corrected_ns = _ahead_now(ahead, now_us) + delta_ns
    return Ahead(corrected_ns, now_us) if corrected_ns > 0 else None


def _ahead_now(ahead: Ahead | None, now_us: int) -> int:
    if ahead is None:
        return 0
    return max(ahead.ahead_ns - max(now_us - ahead.written_at_us, 0) * 1000, 0)
