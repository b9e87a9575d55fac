"""Rate limits: the rule by which requests and tokens per minute are counted (GCRA). Values in, values out; no clock.

A limit is one number, the *theoretical arrival time*: the moment at which all that was taken so far will have flowed back, at
`per_minute` units in every minute. A burst may take one minute's worth at once. `lua/admit.lua` applies the same rule.
"""

import msgspec

MINUTE_US = 60_000_000
NEVER_FITS = -1


class Taken(msgspec.Struct, frozen=True):
    """Allowed. `arrival_us` is to be stored, `remaining` units may be taken at once, all flows back in `reset_ms`."""

    arrival_us: int
    remaining: int
    reset_ms: int


class Refused(msgspec.Struct, frozen=True):
    """Nothing changes. `retry_after_ms` is `NEVER_FITS` when the cost is more than a whole minute's worth."""

    remaining: int
    retry_after_ms: int


def take(arrival_us: int | None, now_us: int, per_minute: int, cost: int) -> Taken | Refused:
    """Take `cost` units at `now_us`. `arrival_us` is what the last `take` or `correct` stored; None is a limit at rest."""
    if per_minute <= 0 or cost > per_minute:
        return Refused(_remaining(arrival_us, now_us, per_minute), NEVER_FITS)
    taken_us = max(arrival_us or 0, now_us) + _duration_us(cost, per_minute)
    excess_us = taken_us - now_us - MINUTE_US
    if excess_us > 0:
        return Refused(_remaining(arrival_us, now_us, per_minute), -(-excess_us // 1000))
    return Taken(taken_us, _remaining(taken_us, now_us, per_minute), -(-(taken_us - now_us) // 1000))


def correct(arrival_us: int | None, now_us: int, per_minute: int, delta: int) -> int | None:
    """Take `delta` units more, or give back when it is negative, whatever the limit: they are used already.

    Returns the arrival time to store, or None for a limit at rest. What was used above the limit delays the next requests.
    """
    if per_minute <= 0:
        return arrival_us
    corrected_us = max(arrival_us or 0, now_us) + _duration_us(delta, per_minute)
    return corrected_us if corrected_us > now_us else None


def _duration_us(units: int, per_minute: int) -> int:
    """Rounded down: rounded up, a limit of 7 would refuse the seventh request of a burst for 3 microseconds."""
    return units * MINUTE_US // per_minute


def _remaining(arrival_us: int | None, now_us: int, per_minute: int) -> int:
    free_us = now_us + MINUTE_US - max(arrival_us or 0, now_us)
    return max(free_us * per_minute // MINUTE_US, 0)
