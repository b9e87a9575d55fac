from itertools import pairwise

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgets import gate
from budgets.limits import MINUTE_US, NEVER_FITS, Refused, Taken, correct, take

NOW_US = 1_800_000_000_000_000


def take_all(per_minute: int, count: int) -> list[Taken | Refused]:
    verdicts: list[Taken | Refused] = []
    arrival_us = None
    for _ in range(count):
        verdict = take(arrival_us, NOW_US, per_minute, 1)
        verdicts.append(verdict)
        arrival_us = verdict.arrival_us if isinstance(verdict, Taken) else arrival_us
    return verdicts


@pytest.mark.parametrize("per_minute", [1, 2, 3, 7, 59, 60, 61, 600])
def test_a_burst_takes_one_minutes_worth_and_not_one_more(per_minute):
    verdicts = take_all(per_minute, per_minute + 1)
    assert all(isinstance(verdict, Taken) for verdict in verdicts[:-1])
    assert [verdict.remaining for verdict in verdicts] == [*range(per_minute - 1, -1, -1), 0]
    assert isinstance(verdicts[-1], Refused)
    assert 0 < verdicts[-1].retry_after_ms <= -(-60_000 // per_minute)


def test_waiting_as_long_as_told_is_enough():
    verdicts = take_all(7, 8)
    retry_after_us = verdicts[-1].retry_after_ms * 1000
    assert isinstance(take(verdicts[-2].arrival_us, NOW_US + retry_after_us, 7, 1), Taken)


def test_a_cost_above_a_whole_minute_never_fits():
    assert take(None, NOW_US, 100, 101) == Refused(100, NEVER_FITS)
    assert take(None, NOW_US, 0, 0) == Refused(0, NEVER_FITS)
    assert isinstance(take(None, NOW_US, 100, 100), Taken)


def test_giving_back_what_was_not_used_leaves_what_was():
    held = take(None, NOW_US, 1000, 800)
    corrected = correct(held.arrival_us, NOW_US, 1000, 300 - 800)
    assert corrected == take(None, NOW_US, 1000, 300).arrival_us
    assert correct(held.arrival_us, NOW_US, 1000, -800) is None
    assert correct(held.arrival_us, NOW_US, 1000, -5000) is None


def test_using_more_than_was_held_delays_the_next():
    held = take(None, NOW_US, 60, 60)
    overdrawn_us = correct(held.arrival_us, NOW_US, 60, 60)
    assert overdrawn_us == NOW_US + 2 * MINUTE_US
    assert take(overdrawn_us, NOW_US, 60, 1) == Refused(0, 61_000)


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.integers(0, MINUTE_US), st.integers(0, 100)), min_size=2, max_size=50),
)
def test_any_minute_takes_at_most_two_minutes_worth(per_minute, steps):
    """One from before, one that flows back; the rounding of an arrival gives a microsecond per step at most."""
    now_us, arrival_us, taken = NOW_US, None, []
    for pause_us, cost in steps:
        now_us += pause_us
        verdict = take(arrival_us, now_us, per_minute, cost)
        if isinstance(verdict, Taken):
            arrival_us = verdict.arrival_us
            taken.append((now_us, cost))
    for start_us, _ in taken:
        inside = sum(cost for at_us, cost in taken if start_us <= at_us < start_us + MINUTE_US)
        assert inside <= 2 * per_minute + len(steps) * per_minute / MINUTE_US
    assert all(before[0] <= after[0] for before, after in pairwise(taken))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    per_minute=st.integers(0, 100_000_000),
    cost=st.integers(0, 100_000_000),
    lead_us=st.none() | st.integers(-5_000_000, 2 * MINUTE_US),
)
def test_the_script_takes_by_the_same_rule(redis_url, per_minute, cost, lead_us):
    """Redis tells the time itself: some microsecond between asking and answer must explain the answer, and what is stored."""
    with redis.Redis.from_url(redis_url) as client:
        check = gate.LimitCheck("tpm", gate.rate_key("tpm", "key", "k"), per_minute, cost)
        client.flushall()
        client.mset({gate.EPOCH: "1", gate.lease_key("w"): "1"})
        before_us = redis_time_us(client)
        arrival_us = None if lead_us is None else before_us + lead_us
        if arrival_us is not None:
            client.set(check.key, arrival_us)
        argument = gate.encode_admit(
            worker="w",
            attempt_id="a",
            kill_fields=(),
            limits=[check],
            budgets=(),
            full_nanos=0,
            tranche_nanos=0,
            hold=gate.hold_value((), (), b"{}"),
        )
        answer = gate.decode_admit(client.eval(gate.ADMIT.text, 0, argument))
        after_us = redis_time_us(client)
        stored = client.get(check.key)
        stored_us = int(stored) if stored is not None else 0

    def explains(now_us: int) -> bool:
        match take(arrival_us, now_us, per_minute, cost):
            case Taken(arrival_us=taken_us, remaining=remaining, reset_ms=reset_ms):
                # What is stored has an end, and may just have reached it.
                is_stored = max(stored_us, now_us) == taken_us or taken_us <= after_us
                return answer == gate.Admitted(0, (remaining,), (reset_ms,)) and is_stored
            case Refused(remaining=remaining, retry_after_ms=retry_after_ms):
                return answer == gate.Limited(0, remaining, retry_after_ms) and stored_us == (arrival_us or 0)

    assert any(explains(now_us) for now_us in range(before_us, after_us + 1))


def redis_time_us(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1_000_000 + int(microseconds)
