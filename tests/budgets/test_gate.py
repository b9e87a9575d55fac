"""The gate's scripts one by one over a real Redis, its wire format, and 200 clients at once against one hard budget."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
import redis
import redis.asyncio

from audit.records import UsageEvent, encode_event
from budgets import gate, limits
from proxy.room import Line, Place, Room
from tests.budgets import observed

WORKER = "worker-1"
RUN_ID = "a" * 40
END_S = int(time.time()) + 3600
CAP_NANOS = 1_000
TEAM = gate.BudgetCounter(gate.spend_key("team", 0), CAP_NANOS, True, END_S)
KEY = gate.BudgetCounter(gate.spend_key("key", 0), 10 * CAP_NANOS, True, END_S)
SOFT = gate.BudgetCounter(gate.spend_key("soft", 0), 10, False, END_S)
EVENT = b'{"attempt_id":"a"}'
SLOT = gate.running_key("slots")
MINUTE_NS = 60 * limits.NANOS_PER_S
DAY_S = 86_400


def rate(
    limit_id: str, amount: int, *, metric: str = "requests", window_ns: int = MINUTE_NS, **more
) -> gate.LimitCheck:
    capacity = limits.capacity_ns(metric, amount, amount, window_ns)
    return gate.LimitCheck(gate.rate_key(limit_id), amount, window_ns, capacity, **more)


def at_once(most: int) -> gate.LimitCheck:
    return gate.LimitCheck(SLOT, most, 0, most)


class Call(NamedTuple):
    script: gate.Script
    argument: bytes
    decode: Callable[[Any], object]


class Gate:
    """The gate as a worker speaks to it, one call at a time."""

    def __init__(self, client: redis.Redis, worker: str = WORKER) -> None:
        self.client = client
        self.worker = worker
        self.fence = 0

    def ask(self, script: gate.Script, argument: bytes) -> list[object]:
        return self.client.evalsha(script.sha1, 0, argument)

    def together(self, *calls: Call) -> list[object]:
        """Their answers. No time passes between them, however late we are: who waits in a line must not be silent."""
        with self.client.pipeline() as transaction:
            for call in calls:
                transaction.evalsha(call.script.sha1, 0, call.argument)
            replies = transaction.execute()
        return [call.decode(reply) for call, reply in zip(calls, replies, strict=True)]

    def beat(
        self,
        *,
        fence: int | None = None,
        lease_ms: int = 60_000,
        is_in_step: bool = True,
        join: gate.Join | None = None,
    ) -> gate.Beat | gate.NotReady:
        argument = gate.encode_heartbeat(
            worker=self.worker,
            fence=self.fence if fence is None else fence,
            lease_ms=lease_ms,
            status=b'{"pid":1}',
            is_in_step=is_in_step,
            join=join,
        )
        return gate.decode_heartbeat(self.ask(gate.HEARTBEAT, argument))

    def join(self, run_id: str = RUN_ID, known: Sequence[str] = (), *, lease_ms: int = 60_000) -> gate.Beat:
        self.fence += 1
        beat = self.beat(join=gate.Join(run_id, known), lease_ms=lease_ms, is_in_step=False)
        assert isinstance(beat, gate.Beat)
        return beat

    def admit(self, *args: Any, **options: Any) -> object:
        return self.together(self.admitting(*args, **options))[0]

    def admitting(
        self,
        attempt_id: str,
        full: int,
        tranche: int | None = None,
        *,
        budgets: Sequence[gate.BudgetCounter] = (TEAM, KEY),
        limits: Sequence[gate.LimitCheck] = (),
        units: int = 1,
        full_tokens: int = 0,
        tranche_tokens: int | None = None,
        downgrades: Sequence[tuple[int, gate.Downgrade]] = (),
        kill_fields: Sequence[str] = ("global",),
        event: bytes = EVENT,
        fence: int | None = None,
    ) -> Call:
        checks = gate.LimitChecks(limits)
        argument = gate.encode_admit(
            worker=self.worker,
            fence=self.fence if fence is None else fence,
            attempt_id=attempt_id,
            kill_fields=kill_fields,
            checks=checks,
            costs_ns=[check.cost_ns(units) for check in checks[: checks.rates]],
            budgets=budgets,
            downgrades=downgrades,
            full_nanos=full,
            tranche_nanos=full if tranche is None else tranche,
            full_tokens=full_tokens,
            tranche_tokens=full_tokens if tranche_tokens is None else tranche_tokens,
            hold=gate.hold_value(budgets, checks.running_keys, event),
        )
        return Call(gate.ADMIT, argument, gate.decode_admit)

    def settle(self, *args: Any, **options: Any) -> object:
        return self.together(self.settling(*args, **options))[0]

    def settling(
        self,
        seq: int,
        attempt_id: str,
        cost: int,
        *,
        budgets: Sequence[gate.BudgetCounter] = (TEAM, KEY),
        slots: Sequence[str] = (),
        corrections: Sequence[tuple[str, int]] = (),
        tokens: int = 0,
        requests: int = 1,
    ) -> Call:
        argument = gate.encode_settle(
            worker=self.worker,
            seq=seq,
            attempt_id=attempt_id,
            cost_nanos=cost,
            budgets=budgets,
            tokens=tokens,
            requests=requests,
            corrections=corrections,
            running_keys=slots,
            event=EVENT,
        )
        return Call(gate.SETTLE, argument, gate.decode_settle)

    def reap(self, *, is_dead: bool = False, voided: Sequence[str] = ()) -> object:
        argument = gate.encode_reap(worker=self.worker, is_dead=is_dead, void_attempt_ids=voided)
        return gate.decode_reap(self.ask(gate.REAP, argument))

    def spent(self, counter: gate.BudgetCounter = TEAM) -> int:
        return int(self.client.get(counter.key) or 0)


@pytest.fixture
def ready(redis_url: str) -> Iterator[Gate]:
    """A gate that is built, and a worker with its lease."""
    with redis.Redis.from_url(redis_url) as client:
        for script in gate.SCRIPTS:
            assert client.script_load(script.text) == script.sha1
        client.set(gate.EPOCH, "1")
        asked = Gate(client)
        asked.join()
        asked.beat()
        yield asked


# Admit


def test_admitting_within_the_cap_holds_the_money_in_every_budget(ready: Gate) -> None:
    assert ready.admit("a", 600, budgets=(TEAM, KEY, SOFT)) == gate.Admitted(600, (), ())
    assert [ready.spent(counter) for counter in (TEAM, KEY, SOFT)] == [600, 600, 600]


def test_admitting_past_the_cap_is_refused(ready: Gate) -> None:
    ready.admit("a", 600)
    assert ready.admit("b", 401) == gate.OverBudget(0, 400)
    assert ready.admit("b", 400) == gate.Admitted(400, (), ())
    assert ready.admit("c", 1) == gate.OverBudget(0, 0)
    assert ready.admit("d", 0) == gate.Admitted(0, (), ())


def test_the_budget_that_refuses_is_named_by_its_position(ready: Gate) -> None:
    assert ready.admit("a", 2_000, budgets=(SOFT, KEY, TEAM)) == gate.OverBudget(2, CAP_NANOS)
    assert ready.client.keys("tg:spend:*") == []


def test_a_tranche_is_held_where_the_whole_does_not_fit(ready: Gate) -> None:
    assert ready.admit("a", 5_000, 300) == gate.Admitted(300, (), ())
    assert ready.admit("b", 700, 300) == gate.Admitted(300, (), ())
    assert ready.admit("c", 700, 300) == gate.Admitted(300, (), ())
    assert ready.admit("d", 700, 300) == gate.OverBudget(0, 100)


def test_a_soft_budget_counts_and_never_refuses(ready: Gate) -> None:
    assert ready.admit("a", 5_000, budgets=(SOFT,)) == gate.Admitted(5_000, (), ())
    assert ready.spent(SOFT) == 5_000


def test_nothing_is_admitted_without_epoch_or_lease(ready: Gate) -> None:
    ready.client.delete(gate.lease_key(WORKER))
    assert ready.admit("a", 1) == gate.NotReady("no_lease")
    ready.client.delete(gate.EPOCH)
    assert ready.admit("a", 1) == gate.NotReady("no_epoch")
    assert ready.client.keys("tg:holds:*") == []


def test_a_kill_switch_halts_at_once_and_is_quoted(ready: Gate) -> None:
    flag = '{"reason":"an incident — do not lift"}'.encode()
    ready.client.hset(gate.KILLS, "team:t", flag)
    assert ready.admit("a", 1, kill_fields=("global", "team:t")) == gate.Halted(flag)
    assert ready.admit("b", 1, kill_fields=("global", "team:other")) == gate.Admitted(1, (), ())
    ready.client.hdel(gate.KILLS, "team:t")
    assert ready.admit("c", 1, kill_fields=("global", "team:t")) == gate.Admitted(1, (), ())


def test_more_than_may_run_at_once_is_refused_until_one_ends(ready: Gate) -> None:
    two_at_once = at_once(2)
    assert ready.admit("a", 1, limits=[two_at_once]) == gate.Admitted(1, (1,), (0,))
    assert ready.admit("b", 1, limits=[two_at_once]) == gate.Admitted(1, (0,), (0,))
    assert ready.admit("c", 1, limits=[two_at_once]) == gate.Limited(0, 0, 1000)
    ready.settle(1, "a", 1, slots=[SLOT])
    assert ready.admit("c", 1, limits=[two_at_once]) == gate.Admitted(1, (0,), (0,))


def test_a_limit_that_refuses_leaves_the_others_untouched(ready: Gate) -> None:
    assert ready.admit("a", 1, limits=[rate("r", 10), at_once(0)]) == gate.Limited(1, 0, -1)
    assert ready.client.keys("tg:limit:*") == []


def test_over_budget_takes_nothing_from_the_limits(ready: Gate) -> None:
    assert ready.admit("a", 5_000, limits=[rate("r", 10)]) == gate.OverBudget(0, CAP_NANOS)
    assert ready.client.keys("tg:limit:*") == []


def test_a_counter_lives_an_hour_longer_than_its_window(ready: Gate) -> None:
    ready.admit("a", 1)
    ready.admit("b", 1)
    ready.settle(1, "a", 5)
    assert END_S + 3600 - time.time() - 600 < ready.client.ttl(TEAM.key) <= END_S + 3600 - time.time() + 600


def test_settling_long_after_the_window_leaves_no_counter_behind(ready: Gate) -> None:
    past = gate.BudgetCounter(gate.spend_key("team", 1), CAP_NANOS, True, 1_000_000_000)
    assert ready.settle(1, "a", 50, budgets=[past]) == gate.Settled(0)
    assert ready.client.keys("tg:spend:*") == []


@pytest.mark.parametrize("cap_nanos", [2**53 - 1, 2**53, 2**53 + 1, 2**60 + 12_345, 2**62 - 1, 2**63 - 1])
def test_a_cap_beyond_exact_numbers_is_never_passed(ready: Gate, cap_nanos: int) -> None:
    counter = gate.BudgetCounter(gate.spend_key("huge", 0), cap_nanos, True, END_S)
    margin = 0 if cap_nanos <= 2**53 else 8_192
    for below in (*range(1, 40), 500, 513, 1_023, 1_025, 4_000, 4_095, 4_097, 5_000, 8_192):
        ready.client.set(counter.key, cap_nanos - below)
        for wanted in {1, below - 1, below, below + 1} - {0}:
            answer = ready.admit(f"{below}-{wanted}", wanted, budgets=[counter])
            assert int(ready.client.get(counter.key)) <= cap_nanos
            if wanted <= below - margin:
                assert isinstance(answer, gate.Admitted)
            ready.client.set(counter.key, cap_nanos - below)


def test_an_absurd_hold_fits_no_ordinary_budget(ready: Gate) -> None:
    assert ready.admit("a", 10**40, 10**30) == gate.OverBudget(0, CAP_NANOS)
    assert ready.admit("a", 10**40, 200) == gate.Admitted(200, (), ())
    assert ready.admit("b", 10**40, budgets=[SOFT]) == gate.Admitted(2**53, (), ())
    assert ready.spent(SOFT) == 2**53


# Extend


def extend(
    ready: Gate, attempt_id: str, add: int, kill_fields: Sequence[str] = (), *, fence: int | None = None
) -> object:
    argument = gate.encode_extend(
        worker=ready.worker,
        fence=ready.fence if fence is None else fence,
        attempt_id=attempt_id,
        add_nanos=add,
        kill_fields=kill_fields,
        budgets=(TEAM, KEY),
    )
    return gate.decode_extend(ready.ask(gate.EXTEND, argument))


def test_a_hold_grows_while_there_is_room(ready: Gate) -> None:
    ready.admit("a", 600)
    assert extend(ready, "a", 300) == gate.Extended(900)
    assert extend(ready, "a", 101) == gate.OverBudget(0, 100)
    assert extend(ready, "a", 100) == gate.Extended(1_000)
    assert ready.spent() == 1_000


def test_a_hold_grows_only_for_a_living_worker_that_has_it_and_is_not_halted(ready: Gate) -> None:
    ready.admit("a", 600)
    assert extend(ready, "unknown", 1) == gate.NotReady("no_hold")
    ready.client.hset(gate.KILLS, "global", b"{}")
    assert extend(ready, "a", 1, ["global"]) == gate.Halted(b"{}")
    ready.client.delete(gate.lease_key(WORKER))
    assert extend(ready, "a", 1, ["global"]) == gate.NotReady("no_lease")
    ready.client.delete(gate.EPOCH)
    assert extend(ready, "a", 1) == gate.NotReady("no_epoch")
    assert ready.spent() == 600


# Units, modes, thresholds, roll-over

TOKENS = gate.BudgetCounter(gate.spend_key("tokens", 0), 1_000, True, END_S, gate.TOKENS)
REQUESTS = gate.BudgetCounter(gate.spend_key("requests", 0), 2, True, END_S, gate.REQUESTS)


def test_each_budget_counts_in_its_unit(ready: Gate) -> None:
    budgets = (TEAM, TOKENS, REQUESTS)
    assert ready.admit("a", 600, budgets=budgets, full_tokens=400) == gate.Admitted(600, (), (), 400)
    assert [ready.spent(counter) for counter in budgets] == [600, 400, 1]
    assert ready.admit("b", 1, budgets=budgets, full_tokens=601) == gate.OverBudget(1, 600)
    ready.settle(1, "a", 70, budgets=budgets, tokens=30)
    assert [ready.spent(counter) for counter in budgets] == [70, 30, 1]
    ready.admit("b", 1, budgets=budgets, full_tokens=1)
    assert ready.admit("c", 1, budgets=budgets, full_tokens=1) == gate.OverBudget(2, 0)


def test_an_attempt_that_was_never_sent_is_no_request(ready: Gate) -> None:
    ready.admit("a", 600, budgets=(TOKENS, REQUESTS), full_tokens=400)
    ready.settle(1, "a", 0, budgets=(TOKENS, REQUESTS), tokens=0, requests=0)
    assert (ready.spent(TOKENS), ready.spent(REQUESTS)) == (0, 0)


def test_every_unit_is_extended_reaped_and_restored(ready: Gate) -> None:
    budgets = (TEAM, TOKENS, REQUESTS)

    def spent() -> list[int]:
        return [ready.spent(counter) for counter in budgets]

    ready.admit("a", 500, 100, budgets=budgets, full_tokens=2_000, tranche_tokens=200)
    grown = gate.encode_extend(
        worker=WORKER, fence=1, attempt_id="a", add_nanos=50, add_tokens=30, kill_fields=(), budgets=budgets
    )
    assert gate.decode_extend(ready.ask(gate.EXTEND, grown)) == gate.Extended(150, 230)
    assert spent() == [150, 230, 1]
    stored = ready.client.hget(gate.holds_key(WORKER), "a")
    assert [amount for _, amount in gate.decode_kept_hold(stored).amounts()] == [150, 230, 1]
    ready.client.delete(gate.holds_key(WORKER), *(counter.key for counter in budgets))
    restored = gate.encode_restore(
        by=WORKER,
        fence=1,
        worker=WORKER,
        attempt_id="a",
        held_nanos=150,
        held_tokens=230,
        budgets=budgets,
        hold=gate.hold_value(budgets, (), EVENT),
    )
    assert gate.decode_restore(ready.ask(gate.RESTORE, restored)) == gate.Restored()
    assert spent() == [150, 230, 1]
    assert ready.client.hget(gate.holds_key(WORKER), "a") == stored
    ready.admit("b", 1, budgets=budgets, full_tokens=1)
    assert ready.reap(is_dead=True, voided=["b"]) == gate.Reaped(1, 1)
    assert spent() == [150, 230, 1]
    assert ready.settle(1, "a", 10, budgets=budgets, tokens=20) == gate.Settled(150)
    assert spent() == [10, 20, 1]


def test_a_whole_hold_is_taken_only_of_ample_room(ready: Gate) -> None:
    ample = gate.BudgetCounter(gate.spend_key("ample", 0), 256_000, True, END_S)
    assert ready.admit("a", 1_000, 10, budgets=[ample]) == gate.Admitted(1_000, (), ())
    assert ready.admit("b", 1_000, 10, budgets=[ample]) == gate.Admitted(10, (), ())


def test_an_observed_budget_counts_what_it_would_have_refused(ready: Gate) -> None:
    budget = SOFT._replace(is_observed=True)
    ready.admit("a", 11, budgets=[budget])
    ready.admit("b", 1, budgets=[budget])
    assert observed.by_rule(ready.client) == {"soft": 2}
    ready.admit("c", 5_000, budgets=[budget, TEAM])  # Refused by another.
    assert observed.by_rule(ready.client) == {"soft": 2}


def test_an_observed_limit_counts_what_it_would_have_refused_and_takes_nothing_for_it(ready: Gate) -> None:
    limit = rate("r", 1, is_observed=True)
    slot = gate.LimitCheck(SLOT, 1, 0, 1, True)
    for attempt_id in "abc":
        assert isinstance(ready.admit(attempt_id, 1, limits=[limit, slot]), gate.Admitted)
    assert observed.by_rule(ready.client) == {"r": 2, "slots": 2}
    assert ready.client.get(gate.OBSERVED_TOTAL) == b"4"
    ahead_ns, _ = ready.client.get(limit.key).split()
    assert int(ahead_ns) <= MINUTE_NS


def test_what_is_observed_is_counted_by_day_and_rule_however_many_counters_a_rule_has(ready: Gate) -> None:
    before_s, _ = ready.client.time()
    for user in range(100):
        limit = gate.LimitCheck(gate.rate_key("each", f"user:{user}"), 1, MINUTE_NS, 0, True)
        budget = SOFT._replace(key=gate.spend_key("all", 0, f"user:{user}"), cap=0, is_observed=True)
        ready.admit(f"attempt-{user}", 1, budgets=[budget], limits=[limit])
    after_s, _ = ready.client.time()
    starts_s = {moment_s // DAY_S * DAY_S for moment_s in (before_s, after_s)}
    assert set(observed.days(ready.client)) <= set(map(gate.observed_key, starts_s))
    assert observed.by_rule(ready.client) == {"each": 100, "all": 100}


def test_past_a_threshold_requests_pass_at_a_rate(ready: Gate) -> None:
    slow = gate.Throttle(500, "tg:limit:slow", MINUTE_NS // 2, MINUTE_NS)
    counter = TEAM._replace(throttles=(slow,))
    for attempt_id in "abcde":
        assert isinstance(ready.admit(attempt_id, 100, budgets=[counter]), gate.Admitted)
    assert isinstance(ready.admit("f", 1, budgets=[counter]), gate.Admitted)
    assert isinstance(ready.admit("g", 1, budgets=[counter]), gate.Admitted)
    refusal = ready.admit("h", 1, budgets=[counter])
    assert isinstance(refusal, gate.Throttled)
    assert refusal.index == 0 and 10_000 < refusal.retry_after_ms <= 30_000
    assert ready.spent() == 502


def test_past_a_threshold_another_alias_is_named_and_nothing_is_held(ready: Gate) -> None:
    cheaper = [(0, gate.Downgrade(500, "cheap"))]
    assert isinstance(ready.admit("a", 500, budgets=[TEAM], downgrades=cheaper), gate.Admitted)
    assert ready.admit("b", 1, budgets=[TEAM], downgrades=cheaper) == gate.Downgraded(0, "cheap")
    assert isinstance(ready.admit("b", 1, budgets=[TEAM]), gate.Admitted)
    assert ready.spent() == 501


def rolling(most: int = 300, *, is_empty_when_absent: bool = False) -> gate.BudgetCounter:
    """The window after that of TEAM."""
    carry = gate.Carry(TEAM.key, CAP_NANOS, most, is_empty_when_absent)
    return gate.BudgetCounter(gate.spend_key("team", 3600), CAP_NANOS, True, END_S + 3600, carry=carry)


@pytest.mark.parametrize(("spent", "carried"), [(900, 100), (400, 300), (1_000, 0), (1_200, 0)])
def test_a_new_window_takes_along_what_the_last_one_left(ready: Gate, spent: int, carried: int) -> None:
    ready.client.set(TEAM.key, spent)
    counter = rolling()
    assert ready.admit("a", CAP_NANOS + carried + 1, budgets=[counter]) == gate.OverBudget(0, CAP_NANOS + carried)
    assert ready.spent() == spent and not ready.client.exists(counter.key)
    assert ready.admit("a", CAP_NANOS + carried, budgets=[counter]) == gate.Admitted(CAP_NANOS + carried, (), ())
    assert (ready.spent(), ready.spent(counter)) == (spent + carried, CAP_NANOS)
    assert ready.client.ttl(counter.key) > 3600
    assert ready.admit("b", 1, budgets=[counter]) == gate.OverBudget(0, 0)
    if spent <= CAP_NANOS:  # A worker whose clock is behind finds what was left of the old window less the carry.
        assert ready.admit("c", CAP_NANOS - spent - carried + 1, budgets=[TEAM]) == gate.OverBudget(
            0, CAP_NANOS - spent - carried
        )


def test_what_is_carried_is_moved_once(ready: Gate) -> None:
    ready.client.set(TEAM.key, 900)
    counter = rolling()
    ready.admit("a", 10, budgets=[counter])
    ready.settle(1, "a", 0, budgets=[counter])
    assert ready.spent(counter) == -100
    ready.client.set(TEAM.key, 0)
    ready.admit("b", 10, budgets=[counter])
    assert ready.spent(counter) == -90


def test_of_a_window_that_nothing_is_known_of_nothing_is_carried(ready: Gate) -> None:
    assert ready.admit("a", CAP_NANOS + 1, budgets=[rolling()]) == gate.OverBudget(0, CAP_NANOS)
    known = rolling(is_empty_when_absent=True)
    assert isinstance(ready.admit("a", CAP_NANOS + 300, budgets=[known]), gate.Admitted)
    assert (ready.spent(), ready.spent(known)) == (300, CAP_NANOS)
    assert ready.client.ttl(TEAM.key) > 0


# Settle


def test_settling_replaces_the_hold_by_the_cost_and_appends_the_event(ready: Gate) -> None:
    ready.admit("a", 600)
    assert ready.settle(1, "a", 250) == gate.Settled(600)
    assert (ready.spent(TEAM), ready.spent(KEY)) == (250, 250)
    assert ready.client.hlen(gate.holds_key(WORKER)) == 0
    assert ready.client.xrange(gate.USAGE)[0][1] == {b"worker": WORKER.encode(), b"seq": b"1", b"event": EVENT}


def test_settling_twice_changes_nothing(ready: Gate) -> None:
    ready.admit("a", 600)
    ready.settle(1, "a", 250)
    assert ready.settle(1, "a", 250) == gate.Duplicate(1)
    assert ready.spent() == 250
    assert ready.client.xlen(gate.USAGE) == 1


def test_settling_out_of_order_says_where_to_begin(ready: Gate) -> None:
    ready.admit("a", 600)
    assert ready.settle(3, "a", 250) == gate.Gap(0)
    assert ready.spent() == 600


def test_nothing_is_settled_while_redis_is_being_built(ready: Gate) -> None:
    ready.client.delete(gate.EPOCH)
    assert ready.settle(1, "a", 250) == gate.NotReady("no_epoch")
    assert ready.client.xlen(gate.USAGE) == 0


def test_a_cost_above_the_hold_is_posted_in_full(ready: Gate) -> None:
    ready.admit("a", 900)
    assert ready.settle(1, "a", 1_200) == gate.Settled(900)
    assert ready.spent() == 1_200
    assert ready.admit("b", 0) == gate.OverBudget(0, -200)


def test_a_hold_lost_with_redis_is_settled_at_its_whole_cost_and_frees_no_slot(ready: Gate) -> None:
    ready.admit("other", 10, limits=[at_once(5)])
    assert ready.settle(1, "lost", 250, slots=[SLOT]) == gate.Settled(0)
    assert ready.spent() == 260
    assert ready.client.get(SLOT) == b"1"


def test_tokens_charged_and_not_used_are_given_back(ready: Gate) -> None:
    tokens = rate("t", 1_000, metric="tokens")
    ready.admit("a", 1, limits=[tokens], units=900)
    assert isinstance(ready.admit("b", 1, limits=[tokens], units=900), gate.Limited)
    ready.settle(1, "a", 1, corrections=[(tokens.key, tokens.cost_ns(50) - tokens.cost_ns(900))])
    assert isinstance(ready.admit("b", 1, limits=[tokens], units=900), gate.Admitted)


# Restore and reap


def restore(
    ready: Gate, attempt_id: str, held: int, slots: Sequence[str] = (), *, worker: str = "", fence: int | None = None
) -> object:
    argument = gate.encode_restore(
        by=ready.worker,
        fence=ready.fence if fence is None else fence,
        worker=worker or ready.worker,
        attempt_id=attempt_id,
        held_nanos=held,
        budgets=(TEAM, KEY),
        running_keys=slots,
        hold=gate.hold_value((TEAM, KEY), slots, EVENT),
    )
    return gate.decode_restore(ready.ask(gate.RESTORE, argument))


def test_a_restored_hold_is_as_if_it_had_never_gone(ready: Gate) -> None:
    ready.admit("a", 600, limits=[at_once(5)])
    before = ready.client.hgetall(gate.holds_key(WORKER))
    assert restore(ready, "a", 600, [SLOT]) == gate.Present()
    ready.client.delete(gate.holds_key(WORKER), TEAM.key, KEY.key, SLOT)
    assert restore(ready, "a", 600, [SLOT]) == gate.Restored()
    assert ready.client.hgetall(gate.holds_key(WORKER)) == before
    assert (ready.spent(), ready.client.get(SLOT)) == (600, b"1")


def test_what_a_hold_was_extended_by_is_restored_too(ready: Gate) -> None:
    ready.admit("a", 600, limits=[at_once(5)])
    assert restore(ready, "a", 650, [SLOT]) == gate.Restored()
    assert restore(ready, "a", 650, [SLOT]) == gate.Present()
    assert restore(ready, "a", 600, [SLOT]) == gate.Present()
    assert (ready.spent(), ready.client.get(SLOT)) == (650, b"1")
    assert ready.settle(1, "a", 100, slots=[SLOT]) == gate.Settled(650)
    assert ready.spent() == 100


def test_a_hold_is_restored_even_past_the_cap(ready: Gate) -> None:
    ready.admit("a", 900)
    assert restore(ready, "b", 600) == gate.Restored()
    assert ready.spent() == 1_500


def test_nothing_is_restored_while_redis_is_being_built(ready: Gate) -> None:
    ready.client.delete(gate.EPOCH)
    assert restore(ready, "a", 600) == gate.NotReady("no_epoch")


def test_the_living_are_not_reaped_and_a_lapsed_lease_is(ready: Gate) -> None:
    ready.admit("a", 600)
    assert ready.reap() == gate.Alive()
    ready.beat(lease_ms=1)
    time.sleep(0.01)
    assert ready.admit("b", 1) == gate.NotReady("no_lease")
    assert ready.reap() == gate.Reaped(1, 0)
    assert ready.reap() == gate.Reaped(0, 0)


def test_proof_of_death_does_not_wait_for_the_lease_and_ends_it(ready: Gate) -> None:
    ready.admit("a", 600)
    assert ready.reap(is_dead=True) == gate.Reaped(1, 0)
    assert ready.admit("b", 1) == gate.NotReady("no_lease")
    assert ready.beat() == gate.NotReady("no_lease")


def test_reaping_posts_what_may_be_billed_and_gives_back_what_was_never_sent(ready: Gate) -> None:
    event = encode_event(
        UsageEvent(
            attempt_id="a",
            request_id="r",
            admitted_at_us=1,
            team_id="t",
            project_id="p",
            virtual_key_id="k",
            alias="x|y",
            provider="p",
            model="m",
            deployment="d",
            request_model="m",
        )
    )
    slot = at_once(5)
    ready.admit("dispatched", 600, limits=[slot], event=event)
    ready.admit("never sent", 300, limits=[slot], event=event)
    assert ready.reap(is_dead=True, voided=["never sent", "unknown"]) == gate.Reaped(1, 1)
    assert ready.spent() == 600
    assert ready.client.exists(SLOT, gate.holds_key(WORKER)) == 0
    entries = [fields for _, fields in ready.client.xrange(gate.USAGE)]
    assert {(entry[b"state"], entry[b"cost_nanos"], entry[b"seq"]) for entry in entries} == {
        (b"suspense", b"600", b"0"),
        (b"voided", b"0", b"0"),
    }
    assert all(msgspec.json.decode(entry[b"event"])["alias"] == "x|y" for entry in entries)


def test_a_late_settle_corrects_what_is_in_suspense(ready: Gate) -> None:
    ready.admit("a", 600, limits=[at_once(5)])
    ready.reap(is_dead=True)
    ready.join()
    assert restore(ready, "a", 600) == gate.Present()
    assert ready.settle(1, "a", 250, slots=[SLOT]) == gate.Settled(600)
    assert ready.spent() == 250
    assert ready.client.exists(gate.SUSPENSE, SLOT) == 0


# Heartbeat


def test_a_beat_tells_all_that_a_worker_must_know(ready: Gate) -> None:
    ready.client.hset(gate.VERSIONS, mapping={"snapshot": 7, "keys": 8, "kills": 9})
    ready.client.hset(gate.INGESTED, WORKER, 4)
    ready.settle(1, "a", 1)
    beat = ready.beat()
    assert beat == gate.Beat("1", beat.time_us, 7, 8, 9, 1, 4, False, frozenset({WORKER}))
    assert abs(beat.time_us / 1e6 - time.time()) < 60
    assert ready.client.hget(gate.WORKERS, WORKER) == b'{"pid":1}'
    assert 0 < ready.client.pttl(gate.lease_key(WORKER)) <= 60_000


def test_whoever_has_no_lease_beats_in_vain(ready: Gate) -> None:
    ready.client.delete(gate.lease_key(WORKER))
    assert ready.beat() == gate.NotReady("no_lease")
    assert not ready.client.exists(gate.lease_key(WORKER))
    ready.join()
    assert isinstance(ready.beat(), gate.Beat)


# An old connection that is late


def everything(client: redis.Redis) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


def test_what_comes_late_from_a_connection_that_was_given_up_changes_nothing(ready: Gate) -> None:
    ready.admit("a", 300)
    ready.join()
    ready.settle(1, "a", 100)  # It gave up waiting, and has settled.
    before = everything(ready.client)
    old = ready.fence - 1
    assert ready.admit("b", 100, fence=old) == gate.NotReady("no_lease")
    assert extend(ready, "a", 100, fence=old) == gate.NotReady("no_lease")
    assert restore(ready, "a", 300, fence=old) == gate.NotReady("no_lease")
    assert ready.beat(fence=old) == gate.NotReady("no_lease")
    assert ready.beat(fence=old, join=gate.Join(RUN_ID, ())) == gate.NotReady("no_lease")
    assert ready.beat(join=gate.Join(RUN_ID, ())) == gate.NotReady("no_lease")
    assert everything(ready.client) == before
    assert ready.admit("b", 100) == gate.Admitted(100, (), ())


def test_whoever_takes_over_restores_under_a_lease_of_its_own(ready: Gate) -> None:
    assert restore(ready, "a", 300, worker="dead") == gate.Restored()
    assert ready.client.hkeys(gate.holds_key("dead")) == [b"a"]
    ready.join()
    assert restore(ready, "b", 300, worker="dead", fence=ready.fence - 1) == gate.NotReady("no_lease")


# A server that began anew

OTHER_RUN_ID = "b" * 40
OPENING = gate.NotReady("opening")


def open_workers(ready: Gate, *names: str) -> list[Gate]:
    """Workers that are in step, while the gate is open."""
    workers = [Gate(ready.client, name) for name in names]
    for worker in workers:
        worker.join()
        assert not worker.beat().is_opening
    return workers


def test_nothing_is_held_before_all_who_live_have_put_back_what_they_hold(ready: Gate) -> None:
    (other,) = open_workers(ready, "worker-2")
    other.admit("b", 700)
    ready.client.delete(TEAM.key, gate.holds_key("worker-2"))  # A tail that was lost.
    assert ready.join(OTHER_RUN_ID).is_opening
    assert ready.beat().is_opening
    assert ready.admit("a", 1) == OPENING
    assert other.join(OTHER_RUN_ID).is_opening
    assert restore(other, "b", 700) == gate.Restored()
    assert extend(other, "b", 1) == OPENING
    assert other.beat(is_in_step=False).is_opening
    assert not other.beat().is_opening
    assert ready.admit("a", 400) == gate.OverBudget(0, 300)
    assert ready.admit("a", 300) == gate.Admitted(300, (), ())
    assert not ready.client.exists(gate.OPENING, gate.AWAITED)


def test_settling_does_not_wait_for_anybody(ready: Gate) -> None:
    open_workers(ready, "worker-2")
    ready.admit("a", 300)
    ready.join(OTHER_RUN_ID)
    assert ready.settle(1, "a", 100) == gate.Settled(300)
    assert ready.admit("b", 1) == OPENING


def test_who_was_alive_is_known_to_those_who_come_back_when_redis_has_forgotten(ready: Gate) -> None:
    (other,) = open_workers(ready, "worker-2")
    known = ready.beat().living
    assert known == {WORKER, "worker-2"}
    ready.client.flushall()
    ready.client.set(gate.EPOCH, "2")
    ready.join(RUN_ID, sorted(known))  # The same server, without its data.
    assert ready.beat().is_opening
    assert ready.admit("a", 1) == OPENING
    other.join(RUN_ID)
    assert not other.beat().is_opening
    assert ready.admit("a", 1) == gate.Admitted(1, (), ())


def test_whom_nobody_knew_before_is_not_waited_for(ready: Gate) -> None:
    ready.client.flushall()
    ready.client.set(gate.EPOCH, "2")
    first, second = Gate(ready.client, "worker-3"), Gate(ready.client, "worker-4")
    first.join()
    second.join()
    assert not first.beat().is_opening
    assert second.admit("a", 1) == gate.Admitted(1, (), ())


def test_whoever_never_comes_back_is_waited_for_as_long_as_its_lease(ready: Gate) -> None:
    open_workers(ready, "worker-2")
    ready.join(OTHER_RUN_ID, lease_ms=50_000)
    assert 0 < ready.client.pttl(gate.OPENING) <= 50_000
    ready.beat()
    assert ready.admit("a", 1) == OPENING
    ready.client.pexpire(gate.OPENING, 1)
    while ready.client.exists(gate.OPENING):
        time.sleep(0.001)
    assert ready.admit("a", 1) == gate.Admitted(1, (), ())
    assert not ready.beat().is_opening


def test_the_wait_begins_when_there_is_an_epoch(ready: Gate) -> None:
    open_workers(ready, "worker-2")
    ready.client.delete(gate.EPOCH)
    ready.join(OTHER_RUN_ID)
    ready.client.pexpire(gate.OPENING, 30_000)
    assert ready.beat(is_in_step=False).is_opening
    assert ready.client.pttl(gate.OPENING) > 30_000
    ready.client.set(gate.EPOCH, "2")
    ready.client.pexpire(gate.OPENING, 30_000)
    assert ready.beat().is_opening
    assert ready.client.pttl(gate.OPENING) <= 30_000


def test_the_dead_are_waited_for_until_somebody_has_taken_over(ready: Gate) -> None:
    (dead,) = open_workers(ready, "worker-2")
    ready.join(OTHER_RUN_ID, ["worker-2"])
    assert ready.beat().is_opening
    assert restore(ready, "b", 700, worker=dead.worker) == gate.Restored()
    assert dead.reap(is_dead=True) == gate.Reaped(1, 0)
    assert not ready.beat().is_opening
    # Its journal is still there when the next one comes, and says nothing new.
    late = Gate(ready.client, "worker-3")
    assert not late.join(OTHER_RUN_ID, ["worker-2"]).is_opening


def test_whom_somebody_has_taken_over_from_is_not_waited_for_again(ready: Gate) -> None:
    dead, _ = open_workers(ready, "worker-2", "worker-3")
    ready.join(OTHER_RUN_ID)
    dead.reap(is_dead=True)
    Gate(ready.client, "worker-4").join(OTHER_RUN_ID, ["worker-2"])
    assert ready.client.hgetall(gate.AWAITED) == {WORKER.encode(): b"0", b"worker-2": b"1", b"worker-3": b"0"}


def test_reaping_by_the_clock_ends_no_wait(ready: Gate) -> None:
    """The last beat of a worker may be among what was lost: by its own clock it still has a lease."""
    (other,) = open_workers(ready, "worker-2")
    ready.join(OTHER_RUN_ID)
    ready.client.delete(gate.lease_key("worker-2"))
    assert other.reap() == gate.Reaped(0, 0)
    assert ready.beat().is_opening


def test_another_connection_to_the_same_server_closes_nothing(ready: Gate) -> None:
    open_workers(ready, "worker-2")
    assert not ready.join().is_opening
    assert ready.admit("a", 1) == gate.Admitted(1, (), ())


def test_the_first_beat_of_an_empty_redis(ready: Gate) -> None:
    ready.client.flushall()
    assert ready.beat() == gate.NotReady("no_lease")
    beat = ready.join()
    assert beat == gate.Beat("", beat.time_us, 0, 0, 0, 0, 0, True, frozenset({WORKER}))


# The wire format


def test_what_is_kept_with_a_hold() -> None:
    strange = gate.BudgetCounter("tg:spend:a|b:0", 1, True, 5)
    assert gate.hold_value([strange], [SLOT], EVENT) == (
        b'{"budgets":["tg:spend:a\\u007cb:0"],"ends":[5],"running":["tg:running:slots"]}|{"attempt_id":"a"}'
    )
    assert gate.hold_value([], [], EVENT) == b'{"budgets":[],"ends":[],"running":[]}|{"attempt_id":"a"}'


def test_budgets_packed_once_say_the_same_as_rows() -> None:
    rows = [TEAM, SOFT]
    assert gate.hold_value(gate.BudgetCounters(rows), [SLOT], EVENT) == gate.hold_value(rows, [SLOT], EVENT)
    packed, plain = (
        gate.encode_extend(worker="w", fence=1, attempt_id="a", add_nanos=1, kill_fields=(), budgets=budgets)
        for budgets in (gate.BudgetCounters(rows), rows)
    )
    assert packed == plain
    assert gate.BudgetCounters(rows)[1] == SOFT


def test_the_argument_of_a_settle_is_what_old_journals_hold() -> None:
    """Journals outlive releases: changing these bytes needs a way to read the old ones."""
    argument = gate.encode_settle(
        worker="w",
        seq=1,
        attempt_id="a",
        cost_nanos=2,
        budgets=[gate.BudgetCounter("k", 3, True, 4)],
        corrections=[("t", -6)],
        running_keys=["r"],
        event=b"{}",
    )
    assert argument == b"\x9b\xa1w\x01\xa1a\x02\x91\xa1k\x91\x04\x91\xa1t\x90\x91\xfa\x91\xa1r\xa2{}"


def test_the_tokens_that_an_old_journal_gives_back_are_of_a_minute(ready: Gate) -> None:
    """Its settles say (key, tokens per minute, tokens) of each limit."""
    tokens = rate("t", 1_000, metric="tokens")
    ready.admit("a", 1, limits=[tokens], units=900)
    argument = (WORKER, 1, "a", 1, [], [], [tokens.key], [1_000], [-900], [], "{}")
    assert gate.decode_settle(ready.ask(gate.SETTLE, msgspec.msgpack.encode(argument))) == gate.Settled(1)
    assert ready.client.get(tokens.key) is None


@pytest.mark.parametrize("lease", [(), (7,)])
def test_a_hold_comes_back_from_what_it_was_admitted_with(lease: tuple[int, ...]) -> None:
    """Journals outlive releases: those of old have no number of the lease."""
    argument = msgspec.msgpack.encode(
        ("w", *lease, "a", ["global"], [], [], [], ["r"], [3], ["k"], [3], [True], [4], 9, 8, "{}|{}")
    )
    assert gate.restore_of_admit(argument, 2, 0, by="other", fence=5) == gate.encode_restore(
        by="other",
        fence=5,
        worker="w",
        attempt_id="a",
        held_nanos=2,
        budgets=[gate.BudgetCounter("k", 3, True, 4)],
        running_keys=["r"],
        hold=b"{}|{}",
    )


def test_the_argument_of_an_admit_is_columns() -> None:
    argument = gate.encode_admit(
        worker="w",
        fence=5,
        attempt_id="a",
        kill_fields=["global"],
        checks=gate.LimitChecks([rate("l", 60), at_once(3)]),
        costs_ns=[7],
        budgets=[TEAM, SOFT],
        full_nanos=9,
        tranche_nanos=8,
        hold=b"{}|{}",
    )
    assert msgspec.msgpack.decode(argument) == [
        "w", 5, "a", ["global"],
        ["tg:limit:l"], [MINUTE_NS], [7],
        [SLOT], [3],
        [TEAM.key, SOFT.key], [CAP_NANOS, 10], [True, False], [END_S, END_S],
        9, 8, "{}|{}",
    ]  # fmt: skip


def test_what_few_budgets_say_makes_no_other_argument_longer() -> None:
    carry = gate.Carry("tg:spend:b:0", 100, 50, False)
    counter = gate.BudgetCounter("tg:spend:b:1", 100, False, END_S, gate.TOKENS, True, carry)
    argument = gate.encode_admit(
        worker="w",
        fence=5,
        attempt_id="a",
        kill_fields=[],
        checks=gate.LimitChecks([rate("l", 60, is_observed=True)]),
        costs_ns=[7],
        budgets=[TEAM, counter],
        full_nanos=9,
        tranche_nanos=8,
        full_tokens=7,
        tranche_tokens=6,
        hold=b"{}|{}",
    )
    assert msgspec.msgpack.decode(argument)[16:] == [
        [gate.USD, gate.TOKENS], 7, 6, [0], [["carry", 1, "tg:spend:b:0", 100, 50, False], ["observe", 1]],
    ]  # fmt: skip


def test_an_answer_of_another_version_is_an_error() -> None:
    decoders = (gate.decode_heartbeat, gate.decode_admit, gate.decode_extend)
    for decode in (*decoders, gate.decode_settle, gate.decode_restore, gate.decode_reap):
        with pytest.raises(gate.UnknownAnswer):
            decode([b"what"])


# All at once

CLIENTS = 200
WORKERS = 4
CONNECTIONS = 32
POT = gate.BudgetCounter(gate.spend_key("pot", 0), 10_000_000, True, END_S)
FULL_NANOS = 100_000
TRANCHE_NANOS = 1_000


class Crowd:
    """Clients of a few workers, at it until nothing more can be had."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.ask = client.evalsha
        self.client = client
        self.order = [asyncio.Lock() for _ in range(WORKERS)]
        self.seqs = [0] * WORKERS
        self.held = 0
        self.posted = 0
        self.refused = 0
        self.largest = 0
        self.dice = random.Random(2026)

    async def spend_all(self, number: int) -> None:
        turn = 0
        while await self.request(number % WORKERS, f"{number}-{turn}"):
            turn += 1

    async def request(self, place: int, attempt_id: str) -> bool:
        """Whether it makes sense to go on. What a request costs is not known before: it is extended tranche by tranche."""
        admission = gate.encode_admit(
            worker=f"w{place}",
            fence=1,
            attempt_id=attempt_id,
            kill_fields=(),
            budgets=[POT],
            full_nanos=FULL_NANOS,
            tranche_nanos=TRANCHE_NANOS,
            hold=gate.hold_value([POT], [], EVENT),
        )
        answer = gate.decode_admit(await self.ask(gate.ADMIT.sha1, 0, admission))
        if not isinstance(answer, gate.Admitted):
            assert isinstance(answer, gate.OverBudget)
            self.refused += 1
            await asyncio.sleep(0.005)
            return self.held > 0
        self.held += 1
        held, wanted = answer.held_nanos, self.dice.randrange(FULL_NANOS)
        while held < wanted:
            extension = gate.encode_extend(
                worker=f"w{place}",
                fence=1,
                attempt_id=attempt_id,
                add_nanos=TRANCHE_NANOS,
                kill_fields=(),
                budgets=[POT],
            )
            extended = gate.decode_extend(await self.ask(gate.EXTEND.sha1, 0, extension))
            if not isinstance(extended, gate.Extended):
                break
            held = extended.held_nanos
        await self.settle(place, attempt_id, min(held, wanted))
        self.held -= 1
        return True

    async def settle(self, place: int, attempt_id: str, cost: int) -> None:
        async with self.order[place]:
            self.seqs[place] += 1
            argument = gate.encode_settle(
                worker=f"w{place}",
                seq=self.seqs[place],
                attempt_id=attempt_id,
                cost_nanos=cost,
                budgets=[POT],
                event=EVENT,
            )
            answer = gate.decode_settle(await self.ask(gate.SETTLE.sha1, 0, argument))
            assert isinstance(answer, gate.Settled)
            self.posted += cost

    async def watch(self) -> None:
        while self.held or not self.posted:
            self.largest = max(self.largest, int(await self.client.get(POT.key) or 0))
            await asyncio.sleep(0)


async def test_two_hundred_clients_spend_a_hard_budget_to_its_end_and_never_pass_it(
    ready: Gate, redis_url: str
) -> None:
    for place in range(WORKERS):
        Gate(ready.client, f"w{place}").join()
    pool = redis.asyncio.BlockingConnectionPool.from_url(redis_url, max_connections=CONNECTIONS, timeout=None)
    async with redis.asyncio.Redis.from_pool(pool) as client:
        crowd = Crowd(client)
        await asyncio.gather(crowd.watch(), *(crowd.spend_all(number) for number in range(CLIENTS)))
    assert crowd.largest <= POT.cap
    assert ready.spent(POT) == crowd.posted <= POT.cap
    assert crowd.posted >= 0.97 * POT.cap
    assert crowd.refused > 0
    assert ready.client.xlen(gate.USAGE) == sum(crowd.seqs)


@pytest.mark.parametrize("unit", [gate.USD, gate.TOKENS])
def test_what_was_admitted_can_be_restored_from_its_own_argument(unit):
    budgets = [gate.BudgetCounter("tg:spend:b:0", 100, True, 3600, unit)]
    checks = gate.LimitChecks([rate("r", 60), at_once(5)])
    hold = gate.hold_value(budgets, checks.running_keys, b'{"attempt_id":"a"}')
    admitted = gate.encode_admit(
        worker="w",
        fence=5,
        attempt_id="a",
        kill_fields=["global"],
        checks=checks,
        costs_ns=[1],
        budgets=budgets,
        full_nanos=50,
        tranche_nanos=50,
        hold=hold,
    )
    assert gate.restore_of_admit(admitted, 40, 30, by="x", fence=9) == gate.encode_restore(
        by="x",
        fence=9,
        worker="w",
        attempt_id="a",
        held_nanos=40,
        held_tokens=30,
        budgets=budgets,
        running_keys=checks.running_keys,
        hold=hold,
    )


# Room under a cap


def waiting(worker: str, attempt_id: str, *, since_us: int, need: int) -> Call:
    """The first of a worker's line asks whether it is its turn."""
    argument = gate.encode_line(worker=worker, attempt_id=attempt_id, counter=TEAM, since_us=since_us, need=need)
    return Call(gate.LINE, argument, gate.decode_line)


def test_it_is_the_turn_of_who_waits_longest_whichever_worker_it_waits_in(ready: Gate) -> None:
    later, longest = waiting("w1", "later", since_us=20, need=300), waiting("w2", "longest", since_us=10, need=300)
    ready.admit("a", 900)
    first, second, _, third, fourth = ready.together(later, longest, ready.settling(1, "a", 500), later, longest)
    assert first == second == gate.Turn(False, 100)
    assert (third, fourth) == (gate.Turn(False, 500), gate.Turn(True, 500))


def test_where_others_wait_a_newcomer_is_not_admitted_and_whose_turn_it_is_is(ready: Gate) -> None:
    longest, newcomer = waiting(WORKER, "longest", since_us=10, need=300), ready.admitting("newcomer", 300)
    ready.admit("a", 900)
    _, _, *answers = ready.together(
        longest,
        ready.settling(1, "a", 500),
        newcomer,
        longest,
        newcomer,
        ready.admitting("longest", 300),
        waiting("w2", "next", since_us=20, need=200),
    )
    assert answers == [
        gate.OverBudget(0, 500),
        gate.Turn(True, 500),
        gate.OverBudget(0, 500),
        gate.Admitted(300, (), ()),
        gate.Turn(True, 200),  # Who was admitted waits no more.
    ]


def test_who_needs_much_less_need_not_wait_for_what_is_too_little_for_others(ready: Gate) -> None:
    ready.admit("a", 500)
    answers = ready.together(
        waiting("w1", "large", since_us=10, need=600),
        waiting("w2", "hardly smaller", since_us=20, need=400),
        waiting("w3", "small", since_us=30, need=300),
        ready.admitting("small", 300),
    )
    assert answers == [
        gate.Turn(False, 500),
        gate.Turn(False, 500),
        gate.Turn(True, 500),
        gate.Admitted(300, (), ()),
    ]


async def test_workers_stand_in_line_by_the_rule_by_which_requests_do_within_one(ready: Gate) -> None:
    for needs in itertools.product((1, 2, 3, 4, 7), repeat=3):
        for left in range(8):
            line = Line(left)
            for since, need in enumerate(needs):
                place = Place(Room(_never, time.time), "", {gate.USD: need})
                place.rank, place.need = since, need
                line.enter(place)
            ready.client.delete(f"tg:line:{TEAM.key}")
            ready.client.set(TEAM.key, CAP_NANOS - left)
            all_wait = [
                waiting(f"w{since}", f"a{since}", since_us=since, need=need) for since, need in enumerate(needs)
            ]
            said = ready.together(*all_wait, *all_wait)[len(needs) :]  # First all are known, then each is told.
            expected = [gate.Turn(line.next.rank == since and need <= left, left) for since, need in enumerate(needs)]
            assert said == expected, (needs, left)


async def _never(*_: object) -> gate.Turn:
    raise AssertionError("nobody waits here")


def test_who_has_not_asked_for_a_while_waits_no_more(ready: Gate) -> None:
    ready.client.hset(f"tg:line:{TEAM.key}", "of a dead worker", "10 300 1000000")
    assert ready.together(waiting("w1", "living", since_us=20, need=300)) == [gate.Turn(True, CAP_NANOS)]


def test_a_line_is_gone_soon_after_the_last_has_asked(ready: Gate) -> None:
    with ready.client.pipeline() as transaction:
        transaction.evalsha(gate.LINE.sha1, 0, waiting("w1", "a", since_us=10, need=2_000).argument)
        transaction.pttl(f"tg:line:{TEAM.key}")
        assert 0 < transaction.execute()[1] <= 500


def test_where_room_is_ample_nobody_is_asked_to_wait(ready: Gate) -> None:
    large = waiting("w1", "large", since_us=10, need=2_000)
    assert ready.together(large, ready.admitting("newcomer", 1))[1] == gate.Admitted(1, (), ())


def test_what_others_hold_in_a_counter_is_found_and_ones_own_is_not(ready: Gate) -> None:
    def is_held(counter: gate.BudgetCounter, attempt_id: str) -> bool:
        argument = gate.encode_held(counter_key=counter.key, attempt_id=attempt_id)
        return gate.decode_held(ready.ask(gate.HELD, argument))

    ready.admit("a", 100)
    assert is_held(TEAM, "b")
    assert not is_held(TEAM, "a")
    assert not is_held(SOFT, "b")
    assert not is_held(TEAM._replace(key=TEAM.key[:-1]), "b"), "nor in one whose name only begins like it"
    ready.settle(1, "a", 50)
    assert not is_held(TEAM, "b")
