"""The Lua of the gate against its model: any order of steps gives the same answers and leaves the same counters.

Two things are checked besides, which hold of the money itself and not of how we wrote it: no hard budget is ever passed, and
every counter is the sum of what was posted and what is held.
"""

from collections import defaultdict
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
from tests.budgets.gate_model import Event, GateModel, Hold

WORKERS = ("worker-a", "worker-b")
END_S = 4_000_000_000
WINDOWS = (3_999_990_000, 3_999_993_600)
CAPS = {"team": (900, True), "project": (500, True), "key": (2**60, True), "soft": (100, False)}
# All that happens to a limit is a multiple of ten seconds, so the milliseconds that a test really takes change no answer.
TICK_US = 10_000_000
LIMITS = (
    gate.LimitCheck("rpm", gate.rate_key("rpm", "team", "t"), 6, 1),
    gate.LimitCheck("tpm", gate.rate_key("tpm", "project", "p"), 6, 2),
    gate.LimitCheck("tpm", gate.rate_key("tpm", "key", "k"), 3, 4),  # More than its minute: never fits.
    gate.LimitCheck("running", gate.running_key("team", "t"), 4, 1),
    gate.LimitCheck("running", gate.running_key("key", "k"), 2, 1),
)
KILL_FIELDS = ("global", "team:t", "model:gpt")


NAMES = st.sampled_from(
    (frozenset(CAPS), frozenset({"team", "project"}), frozenset({"soft", "team"}), frozenset({"key"}), frozenset())
)
ADMISSIONS = st.fixed_dictionaries(
    {
        "worker": st.sampled_from(WORKERS),
        "names": NAMES,
        "chosen": st.just([]) | st.lists(st.sampled_from(LIMITS), unique=True, max_size=4),
        "kill_fields": st.just([]) | st.lists(st.sampled_from(KILL_FIELDS), unique=True),
        "full": st.integers(0, 400),
        "tranche": st.integers(0, 200),
    }
)


class CapPassed(AssertionError):
    pass


@dataclass
class Attempt:
    """What the worker knows of an attempt. `truth_nanos` is what it has cost or may still cost."""

    worker: str
    attempt_id: str
    hold: Hold
    tpm: tuple[tuple[str, int], ...]
    truth_nanos: int
    is_settled: bool = False
    is_voided: bool = False
    # The provider goes on with it; it is resolved by a late settle.
    is_job: bool = False
    is_running: bool = False


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
        self.ledger: dict[str, int] = {}
        self.suspense_rows: set[str] = set()
        self.watermark: dict[str, int] = defaultdict(int)
        self.window = WINDOWS[0]

    # Talking to Redis

    def call(self, script: gate.Script, argument: bytes) -> list[object]:
        return self.client.evalsha(self.scripts[script.name], 0, argument)

    def compare(self, answer: object, expected: object) -> None:
        if self.is_compared:
            assert without_ms(answer) == without_ms(expected)
            assert all(0 <= want - got < 5_000 for got, want in zip(ms(answer), ms(expected), strict=True))

    def unsettled(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if not attempt.is_settled]

    def counters(self, names: frozenset[str]) -> tuple[gate.BudgetCounter, ...]:
        return tuple(
            gate.BudgetCounter(gate.spend_key(name, self.window), cap, is_hard, END_S)
            for name, (cap, is_hard) in CAPS.items()
            if name in names
        )

    # Steps

    @initialize()
    def everything_is_ready(self) -> None:
        self.redis_is_built()
        for worker in WORKERS:
            self.beat(worker)

    @rule(burst=st.lists(ADMISSIONS, min_size=1, max_size=4))
    def a_burst_of_requests(self, burst):
        for admission in burst:
            self.admit(**admission)

    def admit(self, worker, names, chosen, kill_fields, full, tranche):
        attempt_id = f"attempt-{len(self.attempts)}"
        counters, tranche = self.counters(names), min(full, tranche)
        slots = tuple(check.key for check in chosen if check.kind == "running")
        event = b'{"attempt_id":"%s","tags":{"a":"b|c"}}' % attempt_id.encode()
        argument = gate.encode_admit(
            worker=worker,
            attempt_id=attempt_id,
            kill_fields=kill_fields,
            limits=chosen,
            budgets=counters,
            full_nanos=full,
            tranche_nanos=tranche,
            hold=gate.hold_value(counters, slots, event),
        )
        before = dump(self.client)
        answer = gate.decode_admit(self.call(gate.ADMIT, argument))
        self.compare(answer, self.model.admit(worker, attempt_id, kill_fields, chosen, counters, full, tranche, event))
        if isinstance(answer, gate.Admitted):
            hold = Hold(answer.held_nanos, counters, slots, event)
            tpm = tuple((check.key, check.per_minute) for check in chosen if check.kind == "tpm")
            self.attempts[attempt_id] = Attempt(worker, attempt_id, hold, tpm, answer.held_nanos)
        else:
            assert dump(self.client) == before, "a refusal changes nothing"

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), adds=st.lists(st.integers(0, 200), min_size=1, max_size=3))
    def streams_run_on(self, data, adds):
        for add in adds:
            attempt = data.draw(st.sampled_from(self.unsettled() or list(self.attempts.values())))
            self.extend(attempt, add, data.draw(st.just([]) | st.just(["global"])))

    def extend(self, attempt, add, kill_fields):
        argument = gate.encode_extend(
            worker=attempt.worker,
            attempt_id=attempt.attempt_id,
            add_nanos=add,
            kill_fields=kill_fields,
            budgets=attempt.hold.counters,
        )
        before = dump(self.client)
        answer = gate.decode_extend(self.call(gate.EXTEND, argument))
        self.compare(
            answer, self.model.extend(attempt.worker, attempt.attempt_id, add, kill_fields, attempt.hold.counters)
        )
        if isinstance(answer, gate.Extended):
            attempt.hold = attempt.hold.grown(add)
            attempt.truth_nanos = answer.held_nanos
            assert answer.held_nanos == attempt.hold.nanos
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
            "budgets": attempt.hold.counters,
            "tpm": tuple((key, per_minute, delta) for key, per_minute in attempt.tpm),
            "running_keys": attempt.hold.running_keys,
            "event": attempt.hold.event,
        }
        attempt.is_settled, attempt.truth_nanos = True, int(step["cost_nanos"])
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
            "budgets": attempt.hold.counters,
            "tpm": (),
            "running_keys": attempt.hold.running_keys,
            "event": event,
            "kept_hold": gate.hold_value(attempt.hold.counters, (), event, job={"a": "b|c"}),
        }
        attempt.is_settled = attempt.is_job = attempt.is_running = True
        attempt.truth_nanos = attempt.hold.nanos
        journal.append(step)
        assert isinstance(self.send_settle(step), gate.Settled)

    def jobs_in_the_ledger(self) -> list[Attempt]:
        """A job is only resolved once the ledger has its row: then it is never forgotten which one it was."""
        return [self.attempts[name] for name in sorted(self.suspense_rows) if self.attempts[name].is_running]

    @precondition(lambda self: self.jobs_in_the_ledger())
    @rule(data=st.data(), share=st.sampled_from((0, 0.3, 1)), workers=st.permutations(WORKERS), twice=st.booleans())
    def a_job_ends(self, data, share, workers, twice):
        """Whichever worker sees it first settles it; another that sees it too changes nothing."""
        attempt = data.draw(st.sampled_from(self.jobs_in_the_ledger()))
        kept = gate.decode_kept_hold(self.client.hget(gate.SUSPENSE, attempt.attempt_id))
        assert kept.held_nanos == attempt.hold.nanos
        attempt.truth_nanos = int(attempt.hold.nanos * share)
        attempt.is_running = False
        for worker in workers[: 2 if twice else 1]:
            step = {
                "worker": worker,
                "seq": len(self.journal[worker]) + 1,
                "attempt_id": attempt.attempt_id,
                "cost_nanos": attempt.truth_nanos,
                "budgets": kept.budgets,
                "tpm": (),
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
        names = ("worker", "seq", "attempt_id", "cost_nanos", "budgets", "tpm", "running_keys", "event")
        seq = len(self.journal[attempt.worker]) + ahead
        step = (attempt.worker, seq, attempt.attempt_id, 7, attempt.hold.counters, (), (), b"{}")
        assert isinstance(self.send_settle(dict(zip(names, step, strict=True))), gate.Gap)
        if not attempt.is_settled and not attempt.is_voided:
            assert isinstance(self.restore(attempt), gate.Present)
        reap = gate.encode_reap(worker=worker, is_dead=False, void_attempt_ids=())
        assert gate.decode_reap(self.call(gate.REAP, reap)) == gate.Alive()
        self.client.delete(gate.EPOCH)
        self.model.has_epoch = False
        self.admit(worker, frozenset(CAPS), [], [], 0, 0)
        self.extend(attempt, 1, [])
        self.restore(attempt)
        assert gate.decode_reap(self.call(gate.REAP, reap)) == gate.NotReady("no_epoch")
        self.redis_is_built()
        assert dump(self.client) == before

    @rule(worker=st.sampled_from(WORKERS))
    def beat(self, worker):
        was_alive = worker in self.model.leases
        beat = gate.decode_heartbeat(
            self.call(gate.HEARTBEAT, gate.encode_heartbeat(worker=worker, lease_ms=600_000, status=b"{}"))
        )
        self.model.leases.add(worker)
        assert beat.lease_was_alive == was_alive
        assert beat.epoch == "1"
        assert beat.applied_seq == self.model.applied[worker]
        assert beat.ingested_seq == self.watermark[worker]

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def the_lease_runs_out_and_the_holds_are_reaped(self, worker, data):
        self.client.delete(gate.lease_key(worker))
        self.model.leases.discard(worker)
        self.admit(worker, frozenset(CAPS), [], [], 0, 0)
        self.reap(worker, False, data)
        self.beat(worker)

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def the_worker_is_known_to_be_dead(self, worker, data):
        self.reap(worker, True, data)
        self.beat(worker)

    def reap(self, worker, is_dead, data):
        held = sorted(self.model.holds[worker])
        voided = data.draw(st.lists(st.sampled_from(held), unique=True)) if held else []
        argument = gate.encode_reap(worker=worker, is_dead=is_dead, void_attempt_ids=voided)
        answer = gate.decode_reap(self.call(gate.REAP, argument))
        self.compare(answer, self.model.reap(worker, is_dead, voided))
        for attempt_id in voided:
            self.attempts[attempt_id].is_voided = True
            self.attempts[attempt_id].truth_nanos = 0

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
            arrival_us = self.client.get(key)
            if arrival_us is not None:
                self.client.set(key, int(arrival_us) - ticks * TICK_US, keepttl=True)

    @rule()
    def ingest(self):
        """Move the stream into the ledger: the last word on an attempt counts, and what is settled stays settled."""
        for entry_id, fields in self.client.xrange(gate.USAGE):
            attempt_id = msgspec.json.decode(fields[b"event"])["attempt_id"]
            worker, seq = fields[b"worker"].decode(), int(fields[b"seq"])
            if seq and msgspec.json.decode(fields[b"event"]).get("state") == "suspense":
                self.ledger[attempt_id] = msgspec.json.decode(fields[b"event"])["cost_nanos"]
                self.suspense_rows.add(attempt_id)
                self.watermark[worker] = seq
                self.client.hset(gate.INGESTED, worker, seq)
            elif seq:
                self.ledger[attempt_id] = self.attempts[attempt_id].truth_nanos
                self.suspense_rows.discard(attempt_id)
                self.watermark[worker] = seq
                self.client.hset(gate.INGESTED, worker, seq)
            elif attempt_id not in self.ledger:
                self.ledger[attempt_id] = int(fields[b"cost_nanos"])
                if fields[b"state"] == b"suspense":
                    self.suspense_rows.add(attempt_id)
            self.client.xdel(gate.USAGE, entry_id)
        self.model.stream.clear()

    @rule()
    def redis_comes_back_empty(self):
        """Rebuilt from the ledger; then each worker beats, restores its open holds and replays what the ledger lacks."""
        self.client.flushall()
        kills = self.model.kills
        self.model = GateModel(now_us=self.model.now_us, kills=kills)
        for name, flag in kills.items():
            self.client.hset(gate.KILLS, name, flag)
        for attempt_id, nanos in self.ledger.items():
            for counter in self.attempts[attempt_id].hold.counters:
                self.client.incrby(counter.key, nanos)
                self.client.expireat(counter.key, END_S)
                self.model.spent[counter.key] += nanos
        for attempt_id in self.suspense_rows:
            attempt = self.attempts[attempt_id]
            hold = gate.hold_value(attempt.hold.counters, (), attempt.hold.event)
            self.client.hset(gate.SUSPENSE, attempt_id, b"%d|%b" % (self.ledger[attempt_id], hold))
            self.model.suspense[attempt_id] = self.ledger[attempt_id]
            if attempt.is_job:
                self.client.zadd(gate.JOBS, {attempt_id: 0})
                self.model.jobs.add(attempt_id)
        for worker, seq in self.watermark.items():
            self.client.hset(gate.APPLIED, worker, seq)
            self.client.hset(gate.INGESTED, worker, seq)
            self.model.applied[worker] = seq
        self.redis_is_built()
        for worker in WORKERS:
            self.beat(worker)
        for attempt in self.attempts.values():
            if not attempt.is_settled and not attempt.is_voided:
                self.restore(attempt)
        for worker in WORKERS:
            for step in self.journal[worker][self.watermark[worker] :]:
                assert isinstance(self.send_settle(step), gate.Settled)

    def restore(self, attempt: Attempt) -> object:
        argument = gate.encode_restore(
            worker=attempt.worker,
            attempt_id=attempt.attempt_id,
            held_nanos=attempt.hold.nanos,
            budgets=attempt.hold.counters,
            running_keys=attempt.hold.running_keys,
            hold=gate.hold_value(attempt.hold.counters, attempt.hold.running_keys, attempt.hold.event),
        )
        answer = gate.decode_restore(self.call(gate.RESTORE, argument))
        self.compare(answer, self.model.restore(attempt.worker, attempt.attempt_id, attempt.hold))
        return answer

    def redis_is_built(self) -> None:
        self.client.set(gate.EPOCH, "1")
        self.model.has_epoch = True

    # What is always true

    @invariant()
    def no_hard_budget_is_passed(self):
        for counter in self.all_counters():
            if counter.is_hard and int(self.client.get(counter.key) or 0) > counter.cap_nanos:
                raise CapPassed(counter.key)

    @invariant()
    def every_counter_is_the_sum_of_what_was_posted_and_what_is_held(self):
        for counter in self.all_counters():
            truth = sum(a.truth_nanos for a in self.attempts.values() if counter in a.hold.counters)
            assert int(self.client.get(counter.key) or 0) == truth, counter.key

    @invariant()
    def redis_is_as_the_model_says(self):
        if self.is_compared:
            compare_state(self.client, self.model)

    def all_counters(self) -> list[gate.BudgetCounter]:
        return [
            gate.BudgetCounter(gate.spend_key(name, window), cap, is_hard, END_S)
            for window in WINDOWS
            for name, (cap, is_hard) in CAPS.items()
        ]


HASHES = (gate.SUSPENSE, gate.APPLIED, gate.INGESTED, gate.KILLS, gate.WORKERS, *map(gate.holds_key, WORKERS))


def dump(client: redis.Redis) -> list[object]:
    """All that is in Redis, to be compared."""
    strings = sorted({key.decode() for key in client.keys("tg:*")} - {*HASHES, gate.USAGE, gate.JOBS})
    with client.pipeline(transaction=False) as pipe:
        for key in strings:
            pipe.get(key)
        for key in HASHES:
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
        case gate.Limited(retry_after_ms=retry_after_ms):
            return (retry_after_ms,)
    return ()


def without_ms(answer: object) -> object:
    match answer:
        case gate.Admitted(held_nanos=held_nanos, remaining=remaining):
            return gate.Admitted, held_nanos, remaining
        case gate.Limited(index=index, remaining=remaining):
            return gate.Limited, index, remaining
        case gate.OverBudget(left_nanos=left_nanos) if left_nanos > 2**53:
            raise AssertionError("no step here comes near that cap")
    return answer


def compare_state(client: redis.Redis, model: GateModel) -> None:
    def integers(prefix: str) -> dict[str, int]:
        keys = client.keys(f"{prefix}*")
        return {key.decode(): int(value) for key, value in zip(keys, client.mget(keys), strict=True)} if keys else {}

    spent = integers("tg:spend:")
    assert {key: nanos for key, nanos in spent.items() if nanos} == {k: n for k, n in model.spent.items() if n}
    assert integers("tg:running:") == {key: count for key, count in model.running.items() if count}
    assert all(client.ttl(key) > 0 for key in spent)
    for worker in WORKERS:
        held = {key.decode(): value for key, value in client.hgetall(gate.holds_key(worker)).items()}
        assert held == {attempt_id: hold.text() for attempt_id, hold in model.holds[worker].items()}
    in_suspense = {key.decode(): int(value.split(b"|")[0]) for key, value in client.hgetall(gate.SUSPENSE).items()}
    assert in_suspense == model.suspense
    assert {name.decode() for name in client.zrange(gate.JOBS, 0, -1)} == model.jobs
    applied = {key.decode(): int(value) for key, value in client.hgetall(gate.APPLIED).items() if value != b"0"}
    assert applied == {worker: seq for worker, seq in model.applied.items() if seq}
    assert sorted(stream(client), key=repr) == sorted(model.stream, key=repr)
    now_s, now_us = client.time()
    for key, arrival_us in integers("tg:limit:").items():
        expected_us = max(model.arrivals_us.get(key, 0) - model.now_us, 0)
        assert expected_us - TICK_US < max(arrival_us - now_s * 1_000_000 - now_us, 0) <= expected_us


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


def test_the_scripts_do_what_the_model_says(redis_url: str) -> None:
    run_state_machine_as_test(
        machine(redis_url),
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.mark.parametrize(
    ("script", "right", "wrong", "noticed"),
    [
        ("admit", "if tranche_nanos > left_nanos then", "if tranche_nanos > left_nanos + 100 then", CapPassed),
        ("extend", "if tranche_nanos > left_nanos then", "if false then", CapPassed),
        ("settle", "if seq <= applied_seq then", "if false then", AssertionError),
        ("settle", "cost_nanos - held_nanos", "cost_nanos", AssertionError),
        ("reap", "add_to_counters(head.budgets, head.ends, -held_nanos)", "", AssertionError),
        ("restore", "add_to_counters(keys, ends, held_nanos)", "", AssertionError),
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
                derandomize=True,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=(Phase.generate,),
                verbosity=Verbosity.quiet,
                report_multiple_bugs=False,
            ),
        )
