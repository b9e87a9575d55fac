from itertools import pairwise

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgets import gate
from budgets.limits import (
    NANOS_PER_S,
    NEVER_FITS,
    Ahead,
    Refused,
    Taken,
    capacity_ns,
    correct,
    cost_ns,
    take,
    units_in,
)

NOW_US = 1_800_000_000_000_000
MINUTE_NS = 60 * NANOS_PER_S
MONTH_NS = 31 * 86_400 * NANOS_PER_S


def take_all(amount: int, burst: int, count: int, window_ns: int = MINUTE_NS) -> list[Taken | Refused]:
    verdicts: list[Taken | Refused] = []
    ahead = None
    cost, capacity = cost_ns(1, amount, window_ns), capacity_ns("requests", burst, amount, window_ns)
    for _ in range(count):
        verdict = take(ahead, NOW_US, capacity, cost)
        verdicts.append(verdict)
        ahead = verdict.ahead if isinstance(verdict, Taken) else ahead
    return verdicts


@pytest.mark.parametrize("window_ns", [NANOS_PER_S, MINUTE_NS, MONTH_NS])
@pytest.mark.parametrize("amount", [1, 2, 3, 7, 59, 60, 61, 600])
def test_a_burst_takes_one_windows_worth_and_not_one_more(amount, window_ns):
    verdicts = take_all(amount, amount, amount + 1, window_ns)
    assert all(isinstance(verdict, Taken) for verdict in verdicts[:-1])
    assert [units_in(v.free_ns, amount, window_ns) for v in verdicts] == [*range(amount - 1, -1, -1), 0]
    assert isinstance(verdicts[-1], Refused)
    assert 0 < verdicts[-1].retry_after_ms <= -(-window_ns // amount // 1_000_000) + 1


def test_a_burst_may_be_less_or_more_than_a_windows_worth():
    assert [type(verdict) for verdict in take_all(60, 2, 3)] == [Taken, Taken, Refused]
    assert [type(verdict) for verdict in take_all(2, 5, 6)] == [Taken] * 5 + [Refused]


def test_waiting_as_long_as_told_is_enough():
    verdicts = take_all(7, 7, 8)
    retry_after_us = verdicts[-1].retry_after_ms * 1000
    capacity = capacity_ns("requests", 7, 7, MINUTE_NS)
    assert isinstance(take(verdicts[-2].ahead, NOW_US + retry_after_us, capacity, cost_ns(1, 7, MINUTE_NS)), Taken)


def test_a_cost_above_a_whole_burst_never_fits():
    assert take(None, NOW_US, 100, 101) == Refused(100, NEVER_FITS)
    assert isinstance(take(None, NOW_US, 100, 100), Taken)
    nothing = capacity_ns("tokens", 5, 0, MINUTE_NS)
    assert take(None, NOW_US, nothing, cost_ns(1, 0, MINUTE_NS)) == Refused(0, NEVER_FITS)


@pytest.mark.parametrize(
    ("amount", "units"),
    [(10**12, 10**12), (100 * 10**9, 2_345_678), (3, 2)],  # The second is money: $100 a minute.
)
def test_what_costs_a_whole_burst_fits_exactly(amount, units):
    cost = cost_ns(units, amount, MINUTE_NS)
    assert isinstance(take(None, NOW_US, capacity_ns("spend", units, amount, MINUTE_NS), cost), Taken)


def test_giving_back_what_was_not_used_leaves_what_was():
    held = take(None, NOW_US, 1000, 800)
    assert correct(held.ahead, NOW_US, 300 - 800) == take(None, NOW_US, 1000, 300).ahead
    assert correct(held.ahead, NOW_US, -800) is None
    assert correct(held.ahead, NOW_US, -5000) is None


def test_using_more_than_was_held_delays_the_next():
    held = take(None, NOW_US, MINUTE_NS, MINUTE_NS)
    overdrawn = correct(held.ahead, NOW_US, MINUTE_NS)
    assert overdrawn == Ahead(2 * MINUTE_NS, NOW_US)
    assert take(overdrawn, NOW_US, MINUTE_NS, NANOS_PER_S) == Refused(0, 61_000)


def test_a_clock_that_was_set_back_gives_nothing_back():
    held = take(None, NOW_US, MINUTE_NS, MINUTE_NS)
    assert isinstance(take(held.ahead, NOW_US - 3_600_000_000, MINUTE_NS, 1), Refused)


@given(
    amount=st.integers(1, 100_000_000),
    share=st.floats(0.1, 3),
    window_s=st.sampled_from((1, 60, 3600, 31 * 86_400)),
    steps=st.lists(st.tuples(st.integers(0, 2_000_000), st.integers(1, 100)), min_size=2, max_size=50),
)
def test_any_span_takes_at_most_a_burst_and_what_flows_back(amount, share, window_s, steps):
    """Counted in whole nanoseconds of the limit, over every span between two that were taken."""
    window_ns, burst = window_s * NANOS_PER_S, max(int(amount * share), 1)
    capacity = capacity_ns("tokens", burst, amount, window_ns)
    now_us, ahead, taken = NOW_US, None, []
    for pause_us, units in steps:
        now_us += pause_us
        verdict = take(ahead, now_us, capacity, cost_ns(units, amount, window_ns))
        if isinstance(verdict, Taken):
            ahead = verdict.ahead
            taken.append((now_us, units))
    for first, (start_us, _) in enumerate(taken):
        total = 0
        for at_us, units in taken[first:]:
            total += units
            # At most one nanosecond early: that of rounding up the burst.
            assert total * window_ns <= burst * window_ns + ((at_us - start_us) * 1000 + 1) * amount
    assert all(before[0] <= after[0] for before, after in pairwise(taken))


@pytest.mark.parametrize("amount", [7, 59, 600, 60_000, 7_000_003, 59_999_999])
def test_of_what_flows_back_hardly_anything_is_refused(amount):
    """A client that asks exactly as fast as it may, for a minute: less than one in a thousand is refused."""
    cost, capacity = cost_ns(1, amount, MINUTE_NS), capacity_ns("requests", 2, amount, MINUTE_NS)
    asked = min(amount, 20_000)
    now_ns, refused, ahead = NOW_US * 1000, 0, None
    for number in range(asked):
        at_us = -(-(now_ns + number * MINUTE_NS // amount) // 1000)
        verdict = take(ahead, at_us, capacity, cost)
        refused += isinstance(verdict, Refused)
        ahead = verdict.ahead if isinstance(verdict, Taken) else ahead
    assert refused <= asked * 0.001


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    amount=st.integers(0, 10**12),
    units=st.integers(0, 10**9),
    window_s=st.sampled_from((1, 60, 86_400, 31 * 86_400)),
    lead_us=st.none() | st.integers(-5_000_000, 120_000_000),
)
def test_the_script_takes_by_the_same_rule(redis_url, amount, units, window_s, lead_us):
    """Redis tells the time itself: some microsecond between asking and answer must explain the answer, and what is stored."""
    window_ns = window_s * NANOS_PER_S
    check = gate.LimitCheck(gate.rate_key("l"), amount, window_ns, capacity_ns("tokens", amount, amount, window_ns))
    cost = check.cost_ns(units)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.mset({gate.EPOCH: "1", gate.lease_key("w"): "1"})
        before_us = redis_time_us(client)
        ahead = None if lead_us is None else Ahead(abs(lead_us) * 1000, before_us - 1_000_000)
        if ahead is not None:
            client.set(check.key, f"{ahead.ahead_ns} {ahead.written_at_us}")
        argument = gate.encode_admit(
            worker="w",
            fence=1,
            attempt_id="a",
            kill_fields=(),
            checks=gate.LimitChecks([check]),
            costs_ns=[cost],
            budgets=(),
            full_nanos=0,
            tranche_nanos=0,
            hold=gate.hold_value((), (), b"{}"),
        )
        answer = gate.decode_admit(client.eval(gate.ADMIT.text, 0, argument))
        after_us = redis_time_us(client)
        stored = client.get(check.key)

    def explains(now_us: int) -> bool:
        match take(ahead, now_us, check.capacity, cost):
            case Taken(ahead=taken, free_ns=free_ns, reset_ms=reset_ms):
                # What is stored has an end, and may just have reached it.
                text = f"{taken.ahead_ns} {taken.written_at_us}".encode()
                is_stored = stored == text or taken.ahead_ns <= (after_us - now_us + 1_000) * 1000
                return answer == gate.Admitted(0, (free_ns,), (reset_ms,)) and is_stored
            case Refused(free_ns=free_ns, retry_after_ms=retry_after_ms):
                return answer == gate.Limited(0, free_ns, retry_after_ms)

    assert any(explains(now_us) for now_us in range(before_us, after_us + 1))


def redis_time_us(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1_000_000 + int(microseconds)
