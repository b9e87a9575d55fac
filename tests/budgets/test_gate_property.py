"""The Lua of the gate against its model: any order of steps gives the same answers and leaves the same counters.

Two things are checked besides, which hold of the money itself and not of how we wrote it: no hard budget is ever passed, and
every counter is the sum of what was posted and what is held.
"""

import copy
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from budgets import gate
from tests.budgets import observed
from tests.budgets.gate_model import Amounts, Event, GateModel, Hold

WORKERS = ("worker-a", "worker-b")
END_S = 4_000_000_000
WINDOWS = (3_999_990_000, 3_999_993_600)
# All that happens to a limit is a multiple of a thousand seconds, so what a test really takes changes no answer.
TICK_US = 1_000_000_000
TICK_NS = TICK_US * 1000
ROLLED_MOST = 200


def _budgets(window: int) -> dict[str, gate.BudgetCounter]:
    """Budgets of every kind, in one window of theirs."""

    def counter(name: str, cap: int, is_hard: bool = True, **more: object) -> gate.BudgetCounter:
        return gate.BudgetCounter(gate.spend_key(name, window), cap, is_hard, END_S, **more)

    slow = gate.Throttle(100, f"tg:limit:slow:{window}", TICK_NS, 6 * TICK_NS)
    carry = None if window == WINDOWS[0] else gate.Carry(gate.spend_key("rolling", WINDOWS[0]), 300, ROLLED_MOST, True)
    return {
        "team": counter("team", 900),
        "project": counter("project", 500),
        "key": counter("key", 2**60),
        "soft": counter("soft", 100, False),
        "tokens": counter("tokens", 400, unit=gate.TOKENS),
        "requests": counter("requests", 6, unit=gate.REQUESTS),
        "observed": counter("observed", 80, False, is_observed=True),
        "slowed": counter("slowed", 800, throttles=(slow,)),
        "cheaper": counter("cheaper", 800, downgrades=(gate.Downgrade(300, "cheap"),)),
        "rolling": counter("rolling", 300, carry=carry),
    }


BUDGETS = {window: _budgets(window) for window in WINDOWS}
COUNTERS = [counter for counters in BUDGETS.values() for counter in counters.values()]


def _rate(name: str, amount: int, **more: object) -> gate.LimitCheck:
    """Of six ticks' worth: each unit takes a whole number of them."""
    return gate.LimitCheck(gate.rate_key(name), amount, 6 * TICK_NS, 6 * TICK_NS, **more)


def _at_once(name: str, most: int, **more: object) -> gate.LimitCheck:
    return gate.LimitCheck(gate.running_key(name), most, 0, most, **more)


# What one attempt takes of each.
LIMITS = {
    _rate("requests", 6): 1,
    _rate("tokens", 6): 2,
    _rate("narrow", 3): 4,  # More than its window holds: never fits.
    _rate("observed", 2, is_observed=True): 1,
    _at_once("team", 4): 1,
    _at_once("key", 2): 1,
    _at_once("observed", 1, is_observed=True): 1,
}
KILL_FIELDS = ("global", "team:t", "model:gpt")


NAMES = st.sampled_from(
    (
        frozenset(BUDGETS[WINDOWS[0]]),
        frozenset({"team", "project"}),
        frozenset({"soft", "team", "tokens"}),
        frozenset({"key", "observed"}),
        frozenset({"rolling"}),
        frozenset({"rolling", "tokens", "requests"}),
        frozenset({"slowed", "cheaper"}),
        frozenset(),
    )
)
ADMISSIONS = st.fixed_dictionaries(
    {
        "worker": st.sampled_from(WORKERS),
        "names": NAMES,
        "chosen": st.just([]) | st.lists(st.sampled_from(list(LIMITS)), unique=True, max_size=4),
        "kill_fields": st.just([]) | st.lists(st.sampled_from(KILL_FIELDS), unique=True),
        "full": st.tuples(st.integers(0, 400), st.integers(0, 200)),
        "tranche": st.tuples(st.integers(0, 200), st.integers(0, 100)),
        "may_downgrade": st.booleans(),
    }
)


class CapPassed(AssertionError):
    pass


@dataclass
class Attempt:
    """What the worker knows of an attempt. `truth` is what it has cost or may still cost."""

    worker: str
    attempt_id: str
    hold: Hold
    rates: tuple[str, ...]
    truth: Amounts
    is_settled: bool = False
    is_voided: bool = False
    # The provider goes on with it; it is resolved by a late settle.
    is_job: bool = False
    is_running: bool = False
    # Of the settle that made it a job.
    seq: int = 0


class GateMachine(RuleBasedStateMachine):
    client: redis.Redis
    scripts: dict[str, str]
    is_compared = True

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.model = GateModel()
        self.attempts: dict[str, Attempt] = {}
        self.journal: dict[str, list[dict[str, object]]] = defaultdict(list)
        self.ledger: dict[str, Amounts] = {}
        self.suspense_rows: set[str] = set()
        self.watermark: dict[str, int] = defaultdict(int)
        self.window = WINDOWS[0]
        self.fences = dict.fromkeys(WORKERS, 0)
        self.servers = 0
        self.moment: tuple[dict[bytes, tuple[bytes, int]], GateModel] | None = None

    # Talking to Redis

    def call(self, script: gate.Script, argument: bytes) -> list[object]:
        return self.client.evalsha(self.scripts[script.name], 0, argument)

    def compare(self, answer: object, expected: object, checks: Sequence[gate.LimitCheck] = ()) -> None:
        if self.is_compared:
            assert without_time(answer, checks) == without_time(expected, checks)
            assert all(0 <= want - got < TICK_US / 2_000 for got, want in zip(ms(answer), ms(expected), strict=True))

    def unsettled(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if not attempt.is_settled]

    def counters(self, names: frozenset[str]) -> tuple[gate.BudgetCounter, ...]:
        return tuple(counter for name, counter in BUDGETS[self.window].items() if name in names)

    # Steps

    @initialize()
    def everything_is_ready(self) -> None:
        self.redis_is_built()
        for worker in WORKERS:
            self.join(worker, known=())
            self.beat(worker)

    @rule(burst=st.lists(ADMISSIONS, min_size=1, max_size=4))
    def a_burst_of_requests(self, burst):
        for admission in burst:
            self.admit(**admission)

    def admit(self, worker, names, chosen, kill_fields, full, tranche, may_downgrade=False, fence=None):
        """Under an old `fence` it is one that was given up before it came: nobody will settle it any more."""
        attempt_id = f"attempt-{len(self.attempts)}" if fence is None else "given up"
        fence = self.fences[worker] if fence is None else fence
        counters = gate.BudgetCounters(self.counters(names))
        if not counters.units:  # Tokens are told only where a budget counts them.
            full, tranche = (full[0], 0), (tranche[0], 0)
        full, tranche = (*full, 1), (min(full[0], tranche[0]), min(full[1], tranche[1]), 1)
        checks = gate.LimitChecks(sorted(chosen, key=lambda check: not check.window_ns))
        costs_ns = [check.cost_ns(LIMITS[check]) for check in checks[: checks.rates]]
        downgrades = counters.downgrades if may_downgrade else []
        event = b'{"attempt_id":"%s","tags":{"a":"b|c"}}' % attempt_id.encode()
        argument = gate.encode_admit(
            worker=worker,
            fence=fence,
            attempt_id=attempt_id,
            kill_fields=kill_fields,
            checks=checks,
            costs_ns=costs_ns,
            budgets=counters,
            downgrades=downgrades,
            full_nanos=full[0],
            tranche_nanos=tranche[0],
            full_tokens=full[1],
            tranche_tokens=tranche[1],
            hold=gate.hold_value(counters, checks.running_keys, event),
        )
        before = dump(self.client)
        answer = gate.decode_admit(self.call(gate.ADMIT, argument))
        expected = self.model.admit(
            worker, fence, attempt_id, kill_fields, checks, costs_ns, counters, downgrades, full, tranche, event
        )
        self.compare(answer, expected, checks)
        if isinstance(answer, gate.Admitted) and attempt_id != "given up":
            hold = Hold(answer.held_nanos, answer.held_tokens, tuple(counters), tuple(checks.running_keys), event)
            rates = tuple(check.key for check in checks if check.window_ns)
            self.attempts[attempt_id] = Attempt(worker, attempt_id, hold, rates, hold.amounts)
        elif not isinstance(answer, gate.Admitted):
            assert dump(self.client) == before, "a refusal changes nothing"

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), adds=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), min_size=1, max_size=3))
    def streams_run_on(self, data, adds):
        for add in adds:
            attempt = data.draw(st.sampled_from(self.unsettled() or list(self.attempts.values())))
            self.extend(attempt, add, data.draw(st.just([]) | st.just(["global"])))

    def extend(self, attempt, add, kill_fields, fence=None):
        fence = self.fences[attempt.worker] if fence is None else fence
        if not gate.BudgetCounters(attempt.hold.counters).units:
            add = add[0], 0
        argument = gate.encode_extend(
            worker=attempt.worker,
            fence=fence,
            attempt_id=attempt.attempt_id,
            add_nanos=add[0],
            add_tokens=add[1],
            kill_fields=kill_fields,
            budgets=attempt.hold.counters,
        )
        before = dump(self.client)
        answer = gate.decode_extend(self.call(gate.EXTEND, argument))
        self.compare(
            answer,
            self.model.extend(attempt.worker, fence, attempt.attempt_id, (*add, 0), kill_fields, attempt.hold.counters),
        )
        if isinstance(answer, gate.Extended):
            attempt.hold = attempt.hold.grown(*add)
            attempt.truth = attempt.hold.amounts
            assert answer == gate.Extended(attempt.hold.nanos, attempt.hold.tokens)
        else:
            assert dump(self.client) == before, "a refusal changes nothing"

    @precondition(lambda self: self.unsettled())
    @rule(data=st.data(), count=st.integers(1, 3), share=st.sampled_from((0, 0.3, 1)), delta=st.integers(-3, 3))
    def attempts_end(self, data, count, share, delta):
        for _ in range(min(count, len(self.unsettled()))):
            self.settle(data.draw(st.sampled_from(self.unsettled())), share, delta)

    def settle(self, attempt, share, delta):
        journal = self.journal[attempt.worker]
        step = {
            "worker": attempt.worker,
            "seq": len(journal) + 1,
            "attempt_id": attempt.attempt_id,
            # What was voided was never dispatched, so it cost nothing.
            "cost_nanos": 0 if attempt.is_voided else int(attempt.hold.nanos * share),
            "tokens": 0 if attempt.is_voided else int(attempt.hold.tokens * share),
            "requests": 0 if attempt.is_voided else 1,
            "budgets": attempt.hold.counters,
            "corrections": tuple((key, delta * TICK_NS) for key in attempt.rates),
            "running_keys": attempt.hold.running_keys,
            "event": attempt.hold.event,
        }
        attempt.is_settled, attempt.truth = True, (step["cost_nanos"], step["tokens"], step["requests"])
        journal.append(step)
        assert isinstance(self.send_settle(step), gate.Settled)

    @precondition(lambda self: any(not attempt.is_voided for attempt in self.unsettled()))
    @rule(data=st.data())
    def the_provider_goes_on_after_the_answer(self, data):
        """A batch was accepted: in suspense at what is held, until it is known what it cost."""
        attempt = data.draw(st.sampled_from([attempt for attempt in self.unsettled() if not attempt.is_voided]))
        event = attempt.hold.event.replace(b"}}", b'},"state":"suspense","cost_nanos":%d}' % attempt.hold.nanos)
        journal = self.journal[attempt.worker]
        step = {
            "worker": attempt.worker,
            "seq": len(journal) + 1,
            "attempt_id": attempt.attempt_id,
            "cost_nanos": attempt.hold.nanos,
            "tokens": attempt.hold.tokens,
            "requests": 1,
            "budgets": attempt.hold.counters,
            "corrections": (),
            "running_keys": attempt.hold.running_keys,
            "event": event,
            "kept_hold": gate.hold_value(attempt.hold.counters, (), event, job={"a": "b|c"}),
        }
        attempt.is_settled = attempt.is_job = attempt.is_running = True
        attempt.seq = step["seq"]
        attempt.truth = attempt.hold.amounts
        journal.append(step)
        assert isinstance(self.send_settle(step), gate.Settled)

    def jobs_in_the_ledger(self) -> list[Attempt]:
        """A job is only resolved once the ledger has its own settle, as `Follower` sees to: the row of an attempt that was reaped
        before is not enough, since after a lost Redis the two settles could come back in the wrong order."""
        suspended = (self.attempts[name] for name in sorted(self.suspense_rows))
        return [job for job in suspended if job.is_running and job.seq <= self.watermark[job.worker]]

    @precondition(lambda self: self.jobs_in_the_ledger())
    @rule(data=st.data(), share=st.sampled_from((0, 0.3, 1)), workers=st.permutations(WORKERS), twice=st.booleans())
    def a_job_ends(self, data, share, workers, twice):
        """Whichever worker sees it first settles it; another that sees it too changes nothing."""
        self.moment = None
        attempt = data.draw(st.sampled_from(self.jobs_in_the_ledger()))
        kept = gate.decode_kept_hold(self.client.hget(gate.SUSPENSE, attempt.attempt_id))
        assert kept.held_nanos == attempt.hold.nanos
        attempt.truth = int(attempt.hold.nanos * share), int(attempt.hold.tokens * share), 1
        attempt.is_running = False
        for worker in workers[: 2 if twice else 1]:
            step = {
                "worker": worker,
                "seq": len(self.journal[worker]) + 1,
                "attempt_id": attempt.attempt_id,
                "cost_nanos": attempt.truth[0],
                "tokens": attempt.truth[1],
                "requests": 1,
                "budgets": kept.budgets,
                "corrections": (),
                "running_keys": (),
                "event": attempt.hold.event,
                "kept_hold": b"",
                "is_late": True,
            }
            self.journal[worker].append(step)
            before = dump_money(self.client)
            assert isinstance(self.send_settle(step), gate.Settled)
            if worker != workers[0]:
                assert dump_money(self.client) == before, "the second changes nothing"

    def send_settle(self, step):
        answer = gate.decode_settle(self.call(gate.SETTLE, gate.encode_settle(**step)))
        self.compare(answer, self.model.settle(*step.values()))
        return answer

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), worker=st.sampled_from(WORKERS), ahead=st.integers(2, 4))
    def what_must_change_nothing(self, data, worker, ahead):
        attempt = data.draw(st.sampled_from(list(self.attempts.values())))
        before = dump(self.client)
        for step in self.journal[worker]:
            assert isinstance(self.send_settle(step), gate.Duplicate)
        step = {
            "worker": attempt.worker,
            "seq": len(self.journal[attempt.worker]) + ahead,
            "attempt_id": attempt.attempt_id,
            "cost_nanos": 7,
            "tokens": 7,
            "requests": 1,
            "budgets": attempt.hold.counters,
            "corrections": (),
            "running_keys": (),
            "event": b"{}",
        }
        assert isinstance(self.send_settle(step), gate.Gap)
        if not attempt.is_settled and not attempt.is_voided:
            assert isinstance(self.restore(attempt), gate.Present)
        reap = gate.encode_reap(worker=worker, is_dead=False, void_attempt_ids=())
        assert gate.decode_reap(self.call(gate.REAP, reap)) == gate.Alive()
        self.client.delete(gate.EPOCH)
        self.model.has_epoch = False
        self.admit(worker, frozenset(BUDGETS[WINDOWS[0]]), [], [], (0, 0), (0, 0))
        self.extend(attempt, (1, 1), [])
        self.restore(attempt)
        assert gate.decode_reap(self.call(gate.REAP, reap)) == gate.NotReady("no_epoch")
        self.redis_is_built()
        assert dump(self.client) == before

    @rule(worker=st.sampled_from(WORKERS))
    def beat(self, worker):
        beat = self.tell(worker, self.fences[worker], is_in_step=True)
        assert beat.epoch == "1"
        assert beat.applied_seq == self.model.applied[worker]
        assert beat.ingested_seq <= self.watermark[worker]
        assert beat.living == self.model.leases.keys()

    def join(self, worker, known=WORKERS):
        self.fences[worker] += 1
        assert isinstance(self.tell(worker, self.fences[worker], known=known), gate.Beat)

    def tell(self, worker, fence, *, is_in_step=False, known=None):
        """One beat; the first of a connection when it says whom it knows."""
        join = None if known is None else gate.Join(f"server-{self.servers}", known)
        argument = gate.encode_heartbeat(
            worker=worker, fence=fence, lease_ms=600_000, status=b"{}", is_in_step=is_in_step, join=join
        )
        answer = gate.decode_heartbeat(self.call(gate.HEARTBEAT, argument))
        refusal = self.model.beat(worker, fence, is_in_step, join)
        if self.is_compared:
            assert (answer if isinstance(answer, gate.NotReady) else None) == refusal
            assert refusal or answer.is_opening == (self.model.awaited is not None)
        return answer

    @rule(worker=st.sampled_from(WORKERS), late=st.lists(ADMISSIONS, min_size=1, max_size=2))
    def the_worker_connects_again_and_the_old_connection_is_late(self, worker, late):
        old = self.fences[worker]
        self.join(worker)
        before = dump(self.client)
        for admission in late:
            self.admit(**admission | {"worker": worker}, fence=old)
        for attempt in [attempt for attempt in self.attempts.values() if attempt.worker == worker]:
            self.restore(attempt, fence=old)
            self.extend(attempt, (1, 1), [], fence=old)
        self.tell(worker, old, is_in_step=True)
        self.tell(worker, old, known=WORKERS)
        assert dump(self.client) == before
        self.beat(worker)

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def the_lease_runs_out_and_the_holds_are_reaped(self, worker, data):
        self.client.delete(gate.lease_key(worker))
        self.model.leases.pop(worker)
        self.admit(worker, frozenset(BUDGETS[WINDOWS[0]]), [], [], (0, 0), (0, 0))
        self.reap(worker, False, data)
        self.join(worker)
        self.beat(worker)

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def the_worker_is_known_to_be_dead(self, worker, data):
        self.reap(worker, True, data)
        self.join(worker)
        self.beat(worker)

    def reap(self, worker, is_dead, data):
        self.moment = None
        held = sorted(self.model.holds[worker])
        voided = data.draw(st.lists(st.sampled_from(held), unique=True)) if held else []
        argument = gate.encode_reap(worker=worker, is_dead=is_dead, void_attempt_ids=voided)
        answer = gate.decode_reap(self.call(gate.REAP, argument))
        self.compare(answer, self.model.reap(worker, is_dead, voided))
        for attempt_id in voided:
            self.attempts[attempt_id].is_voided = True
            self.attempts[attempt_id].truth = (0, 0, 0)

    @rule(name=st.sampled_from(KILL_FIELDS))
    def throw_or_lift_a_kill_switch(self, name):
        if name in self.model.kills:
            self.client.hdel(gate.KILLS, name)
            del self.model.kills[name]
        else:
            self.model.kills[name] = b'{"reason":"because of %s"}' % name.encode()
            self.client.hset(gate.KILLS, name, self.model.kills[name])

    @rule(ticks=st.integers(1, 7), window=st.sampled_from(WINDOWS))
    def time_passes(self, ticks, window):
        """Seen from a limit, time passes when its arrival comes nearer; seen from a budget, when another window is asked for."""
        self.window = window
        self.model.now_us += ticks * TICK_US
        for key in self.client.keys("tg:limit:*"):
            state = self.client.get(key)
            if state is not None:
                ahead_ns, written_at_us = state.split()
                self.client.set(key, b"%b %d" % (ahead_ns, int(written_at_us) - ticks * TICK_US), keepttl=True)

    @rule()
    def ingest(self):
        """Move the stream into the ledger: the last word on an attempt counts, and what is settled stays settled."""
        for entry_id, fields in self.client.xrange(gate.USAGE):
            attempt_id = msgspec.json.decode(fields[b"event"])["attempt_id"]
            worker, seq = fields[b"worker"].decode(), int(fields[b"seq"])
            if seq and msgspec.json.decode(fields[b"event"]).get("state") == "suspense":
                self.ledger[attempt_id] = self.attempts[attempt_id].hold.amounts
                self.suspense_rows.add(attempt_id)
                self.watermark[worker] = seq
                self.client.hset(gate.INGESTED, worker, seq)
            elif seq:
                self.ledger[attempt_id] = self.attempts[attempt_id].truth
                self.suspense_rows.discard(attempt_id)
                self.watermark[worker] = seq
                self.client.hset(gate.INGESTED, worker, seq)
            elif attempt_id not in self.ledger:
                is_void = fields[b"state"] == b"voided"
                self.ledger[attempt_id] = (0, 0, 0) if is_void else self.attempts[attempt_id].hold.amounts
                assert self.ledger[attempt_id][0] == int(fields[b"cost_nanos"])
                if fields[b"state"] == b"suspense":
                    self.suspense_rows.add(attempt_id)
            self.client.xdel(gate.USAGE, entry_id)
        self.model.stream.clear()

    @rule(order=st.permutations(WORKERS), burst=st.lists(ADMISSIONS, max_size=2))
    def redis_comes_back_empty(self, order, burst):
        """Rebuilt from the ledger; then the workers come back."""
        self.moment = None
        self.client.flushall()
        kills = self.model.kills
        self.model = GateModel(now_us=self.model.now_us, kills=kills)
        for name, flag in kills.items():
            self.client.hset(gate.KILLS, name, flag)
        for attempt_id, amounts in self.ledger.items():
            for counter in self.attempts[attempt_id].hold.counters:
                if amounts[counter.unit - 1]:
                    self.put(counter.key, amounts[counter.unit - 1])
        self.carry_again()
        for attempt_id in self.suspense_rows:
            attempt = self.attempts[attempt_id]
            hold = gate.hold_value(attempt.hold.counters, (), attempt.hold.event)
            nanos, tokens, _ = self.ledger[attempt_id]
            self.client.hset(gate.SUSPENSE, attempt_id, b"%d,%d|%b" % (nanos, tokens, hold))
            self.model.suspense[attempt_id] = self.ledger[attempt_id]
            if attempt.is_job:
                self.client.zadd(gate.JOBS, {attempt_id: 0})
                self.model.jobs.add(attempt_id)
        for worker, seq in self.watermark.items():
            self.client.hset(gate.APPLIED, worker, seq)
            self.client.hset(gate.INGESTED, worker, seq)
            self.model.applied[worker] = seq
        self.redis_is_built()
        self.workers_come_back(order, burst)

    def workers_come_back(self, order, burst):
        """One after the other: each restores its open holds and replays what Redis lacks. Meanwhile requests go on."""
        for worker in order:
            self.join(worker)
            for attempt in self.unsettled():
                if attempt.worker == worker and not attempt.is_voided:
                    self.restore(attempt)
            for step in self.journal[worker][self.model.applied[worker] :]:
                assert isinstance(self.send_settle(step), gate.Settled)
            self.beat(worker)
            for admission in burst:
                self.admit(**admission)

    @rule()
    def a_replica_is_as_far(self):
        """As it could not be had again from the ledger: without what was reaped, carried or resolved since."""
        keys = list(self.client.scan_iter())
        self.moment = {key: (self.client.dump(key), self.client.pttl(key)) for key in keys}, copy.deepcopy(self.model)

    def is_replica_of_use(self):
        rolled = BUDGETS[WINDOWS[1]]["rolling"].key
        return self.moment is not None and (rolled in self.moment[1].spent) == (rolled in self.model.spent)

    @precondition(is_replica_of_use)
    @rule(order=st.permutations(WORKERS), burst=st.lists(ADMISSIONS, max_size=2), add=st.integers(0, 50))
    def redis_fails_over_to_the_replica(self, order, burst, add):
        """It lacks what came since, and is another server."""
        for attempt in self.unsettled()[:2]:
            self.extend(attempt, (add, add), [])
        values, model = self.moment
        self.client.flushall()
        for key, (value, ttl_ms) in values.items():
            self.client.restore(key, max(ttl_ms, 0), value)
        self.model = copy.deepcopy(model)
        self.servers += 1
        self.workers_come_back(order, burst)

    def put(self, key: str, amount: int) -> None:
        self.client.incrby(key, amount)
        self.client.expireat(key, END_S)
        self.model.spent[key] = self.model.spent.get(key, 0) + amount

    def carry_again(self) -> None:
        """What the second window may have taken along from the first, which is not in the ledger: what is left of that one, less
        what is still running in it."""
        first, second = (BUDGETS[window]["rolling"] for window in WINDOWS)
        if any(second in attempt.hold.counters for attempt in self.attempts.values()):
            left = first.cap - sum(a.truth[0] for a in self.attempts.values() if first in a.hold.counters)
            carried = max(min(left, ROLLED_MOST), 0)
            self.put(first.key, carried)
            self.put(second.key, -carried)

    def restore(self, attempt: Attempt, fence: int | None = None) -> object:
        fence = self.fences[attempt.worker] if fence is None else fence
        argument = gate.encode_restore(
            by=attempt.worker,
            fence=fence,
            worker=attempt.worker,
            attempt_id=attempt.attempt_id,
            held_nanos=attempt.hold.nanos,
            held_tokens=attempt.hold.tokens,
            budgets=attempt.hold.counters,
            running_keys=attempt.hold.running_keys,
            hold=gate.hold_value(attempt.hold.counters, attempt.hold.running_keys, attempt.hold.event),
        )
        answer = gate.decode_restore(self.call(gate.RESTORE, argument))
        self.compare(answer, self.model.restore(attempt.worker, fence, attempt.attempt_id, attempt.hold))
        return answer

    def redis_is_built(self) -> None:
        self.client.set(gate.EPOCH, "1")
        self.model.has_epoch = True

    # What is always true

    @invariant()
    def no_hard_budget_is_passed(self):
        for counter, spent in self.spent().items():
            if counter.is_hard and spent > counter.cap:
                raise CapPassed(counter.key)

    @invariant()
    def every_counter_is_the_sum_of_what_was_posted_and_what_is_held(self):
        spent = self.spent()
        # What moves from one window to the next is in their sum.
        rolling = [BUDGETS[window]["rolling"] for window in WINDOWS]
        for counter in spent:
            if counter not in rolling:
                assert spent[counter] == self.truth(counter), counter.key
        truth = sum(map(self.truth, rolling))
        assert sum(spent[counter] for counter in rolling) == truth
        if truth > 2 * rolling[0].cap:
            raise CapPassed(rolling[0].key)

    def spent(self) -> dict[gate.BudgetCounter, int]:
        amounts = self.client.mget([counter.key for counter in COUNTERS])
        return {counter: int(amount or 0) for counter, amount in zip(COUNTERS, amounts, strict=True)}

    def truth(self, counter: gate.BudgetCounter) -> int:
        return sum(a.truth[counter.unit - 1] for a in self.attempts.values() if counter in a.hold.counters)

    @invariant()
    def redis_is_as_the_model_says(self):
        if self.is_compared:
            compare_state(self.client, self.model)


HASHES = (
    gate.SUSPENSE,
    gate.APPLIED,
    gate.INGESTED,
    gate.KILLS,
    gate.WORKERS,
    gate.AWAITED,
    *map(gate.holds_key, WORKERS),
)


def dump(client: redis.Redis) -> list[object]:
    """All that is in Redis, to be compared."""
    hashes = sorted({*HASHES, *observed.days(client)})
    strings = sorted({key.decode() for key in client.keys("tg:*")} - {*hashes, gate.USAGE, gate.JOBS})
    with client.pipeline(transaction=False) as pipe:
        for key in strings:
            pipe.get(key)
        for key in hashes:
            pipe.hgetall(key)
        pipe.xrange(gate.USAGE)
        pipe.zrange(gate.JOBS, 0, -1)
        return [strings, *pipe.execute()]


def dump_money(client: redis.Redis) -> list[object]:
    """All that says what was spent."""
    spent = sorted(client.keys("tg:spend:*"))
    return [client.mget(spent) if spent else [], client.hgetall(gate.SUSPENSE), client.xrange(gate.USAGE)]


def ms(answer: object) -> tuple[int, ...]:
    """The parts of an answer that shrink while real time goes on."""
    match answer:
        case gate.Admitted(reset_ms=reset_ms):
            return reset_ms
        case gate.Limited(retry_after_ms=retry_after_ms) | gate.Throttled(retry_after_ms=retry_after_ms):
            return (retry_after_ms,)
    return ()


def without_time(answer: object, checks: Sequence[gate.LimitCheck]) -> object:
    """What has flowed back meanwhile is less than a tick."""
    match answer:
        case gate.Admitted(held_nanos=held_nanos, held_tokens=held_tokens, free=free):
            return gate.Admitted, held_nanos, held_tokens, tuple(map(_free, checks, free))
        case gate.Limited(index=index, free=free):
            return gate.Limited, index, _free(checks[index], free)
        case gate.Throttled(index=index):
            return gate.Throttled, index
        case gate.OverBudget(left=left) if left > 2**53:
            raise AssertionError("no step here comes near that cap")
    return answer


def _free(check: gate.LimitCheck, free: int) -> int:
    return free // TICK_NS if check.window_ns else free


def compare_state(client: redis.Redis, model: GateModel) -> None:
    def integers(prefix: str) -> dict[str, int]:
        keys = client.keys(f"{prefix}*")
        return {key.decode(): int(value) for key, value in zip(keys, client.mget(keys), strict=True)} if keys else {}

    spent = integers("tg:spend:")
    assert spent == model.spent
    assert integers("tg:running:") == {key: count for key, count in model.running.items() if count}
    assert all(client.ttl(key) > 0 for key in spent)
    for worker in WORKERS:
        held = {key.decode(): value for key, value in client.hgetall(gate.holds_key(worker)).items()}
        assert held == {attempt_id: hold.text() for attempt_id, hold in model.holds[worker].items()}
    suspense = {key.decode(): gate.decode_kept_hold(value) for key, value in client.hgetall(gate.SUSPENSE).items()}
    assert {name: hold.held_nanos for name, hold in suspense.items()} == {n: a[0] for n, a in model.suspense.items()}
    for name, hold in suspense.items():
        assert hold.held_tokens == model.suspense[name][1] or all(c.unit == gate.USD for c in hold.budgets)
    assert observed.by_rule(client) == model.observed
    assert int(client.get(gate.OBSERVED_TOTAL) or 0) == sum(model.observed.values())
    assert {name.decode() for name in client.zrange(gate.JOBS, 0, -1)} == model.jobs
    applied = {key.decode(): int(value) for key, value in client.hgetall(gate.APPLIED).items() if value != b"0"}
    assert applied == {worker: seq for worker, seq in model.applied.items() if seq}
    assert sorted(stream(client), key=repr) == sorted(model.stream, key=repr)
    now_s, now_us = client.time()
    for key in client.keys("tg:limit:*"):
        found, expected = client.get(key), model.ahead.get(key.decode())
        if found is not None:
            ahead_ns, written_at_us = map(int, found.split())
            ahead_now_ns = ahead_ns - (now_s * 1_000_000 + now_us - written_at_us) * 1000
            expected_ns = expected.ahead_ns - (model.now_us - expected.written_at_us) * 1000 if expected else 0
            assert max(expected_ns, 0) - TICK_NS < max(ahead_now_ns, 0) <= max(expected_ns, 0)


def stream(client: redis.Redis) -> list[Event]:
    return [
        Event(
            fields[b"worker"].decode(),
            int(fields[b"seq"]),
            fields[b"event"],
            fields.get(b"state", b"").decode(),
            int(fields[b"cost_nanos"]) if b"cost_nanos" in fields else None,
        )
        for _, fields in client.xrange(gate.USAGE)
    ]


def machine(redis_url: str, *, mutations: dict[str, tuple[str, str]] | None = None, compared: bool = True):
    """The state machine over a real Redis; `mutations` replaces text in a script by name."""
    connected = redis.Redis.from_url(redis_url)
    texts = {script.name: script.text for script in gate.SCRIPTS}
    for name, (right, wrong) in (mutations or {}).items():
        assert right in texts[name]
        texts[name] = texts[name].replace(right, wrong)

    class Machine(GateMachine):
        client = connected
        scripts = {name: connected.script_load(text) for name, text in texts.items()}
        is_compared = compared

    return Machine


# The long run is by hand: TOLLGATE_GATE_EXAMPLES=25000 is a million steps.
EXAMPLES = int(os.environ.get("TOLLGATE_GATE_EXAMPLES", "60"))


def test_the_scripts_do_what_the_model_says(redis_url: str) -> None:
    run_state_machine_as_test(
        machine(redis_url),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_an_observed_limit_that_a_settle_has_passed_stays_passed(redis_url: str) -> None:
    """Found by the long search after 72,000 steps: the model forgot what was above the limit."""
    steps = machine(redis_url)()
    steps.everything_is_ready()
    only_observed = [check for check in LIMITS if check.is_observed and check.window_ns]
    for _ in ("fills half of it", "fills it"):
        steps.admit(WORKERS[0], frozenset(), only_observed, [], (0, 0), (0, 0))
    steps.settle(steps.attempts["attempt-0"], share=0, delta=1)
    steps.admit(WORKERS[0], frozenset(), only_observed, [], (0, 0), (0, 0))
    steps.redis_is_as_the_model_says()


@pytest.mark.parametrize(
    ("script", "right", "wrong", "noticed"),
    [
        ("admit", "if tranche[unit] > left then", "if tranche[unit] > left + 100 then", CapPassed),
        ("extend", "if tranche[unit] > left then", "if false then", CapPassed),
        ("settle", "if seq <= applied_seq then", "if false then", AssertionError),
        ("settle", "cost[NANOS] - held[NANOS]", "cost[NANOS]", AssertionError),
        ("settle", "cost[TOKENS] - held[TOKENS]", "cost[TOKENS]", AssertionError),
        ("reap", "-held[REQUESTS]", "0", AssertionError),
        ("restore", "add_to_counters(keys, ends, units, missing)", "", AssertionError),
        ("restore", "if stored then", "if stored then return {'present'} elseif stored then", AssertionError),
        ("restore", "if tonumber(state[2]) ~= fence then", "if not state[2] then", AssertionError),
        ("admit", "if tonumber(state[2]) ~= fence then", "if not state[2] then", AssertionError),
        ("admit", "if state[3] then", "if false then", CapPassed),
        ("heartbeat", "if number and number >= fence then", "if false then", AssertionError),
        ("admit", "call('INCRBY', from_key, string.format('%d', carried))", "0", AssertionError),
    ],
)
def test_the_invariants_alone_notice_a_broken_script(
    redis_url: str, script: str, right: str, wrong: str, noticed: type[AssertionError]
) -> None:
    """Without asking the model: what is true of the money is enough."""
    broken = machine(redis_url, mutations={script: (right, wrong)}, compared=False)
    with pytest.raises(noticed):
        run_state_machine_as_test(
            broken,
            settings=settings(
                max_examples=300,
                stateful_step_count=40,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=(Phase.generate,),
                verbosity=Verbosity.quiet,
                report_multiple_bugs=False,
            ),
        )
