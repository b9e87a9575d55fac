"""The gate in plain Python: what the scripts must answer and leave behind. The specification that the Lua is held against.

Time stands still between two calls unless the test moves it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from budgets import gate, limits
from budgets.gate import BudgetCounter, LimitCheck

SUSPENSE = "suspense"


@dataclass(frozen=True)
class Hold:
    nanos: int
    counters: tuple[BudgetCounter, ...]
    running_keys: tuple[str, ...]
    event: bytes

    def grown(self, nanos: int) -> "Hold":
        return Hold(self.nanos + nanos, self.counters, self.running_keys, self.event)

    def text(self) -> bytes:
        return b"%d|%s" % (self.nanos, gate.hold_value(self.counters, self.running_keys, self.event))


@dataclass(frozen=True)
class Event:
    """An entry of the usage stream. `state` and `cost_nanos` are there when they override the event's own."""

    worker: str
    seq: int
    event: bytes
    state: str = ""
    cost_nanos: int | None = None


@dataclass
class GateModel:
    now_us: int = 1_800_000_000_000_000
    has_epoch: bool = False
    leases: set[str] = field(default_factory=set)
    kills: dict[str, bytes] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    running: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    arrivals_us: dict[str, int] = field(default_factory=dict)
    holds: dict[str, dict[str, Hold]] = field(default_factory=lambda: defaultdict(dict))
    suspense: dict[str, int] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    applied: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stream: list[Event] = field(default_factory=list)

    def admit(
        self,
        worker: str,
        attempt_id: str,
        kill_fields: Sequence[str],
        checks: Sequence[LimitCheck],
        counters: Sequence[BudgetCounter],
        full_nanos: int,
        tranche_nanos: int,
        event: bytes,
    ) -> object:
        if refusal := self._not_ready(worker) or self._halted(kill_fields):
            return refusal
        taken = []
        for index, check in enumerate(checks):
            verdict = self._take(check)
            if isinstance(verdict, limits.Refused):
                return gate.Limited(index, verdict.remaining, verdict.retry_after_ms)
            taken.append(verdict)
        for held_nanos in (full_nanos, tranche_nanos):
            refusal = self._over_budget(counters, held_nanos)
            if refusal is None:
                break
        else:
            return refusal
        for check, verdict in zip(checks, taken, strict=True):
            if check.kind == "running":
                self.running[check.key] += 1
            else:
                self.arrivals_us[check.key] = verdict.arrival_us
        self._add(counters, held_nanos)
        slots = tuple(check.key for check in checks if check.kind == "running")
        self.holds[worker][attempt_id] = Hold(held_nanos, tuple(counters), slots, event)
        return gate.Admitted(held_nanos, tuple(v.remaining for v in taken), tuple(v.reset_ms for v in taken))

    def extend(
        self,
        worker: str,
        attempt_id: str,
        add_nanos: int,
        kill_fields: Sequence[str],
        counters: Sequence[BudgetCounter],
    ) -> object:
        if refusal := self._not_ready(worker) or self._halted(kill_fields):
            return refusal
        if attempt_id not in self.holds[worker]:
            return gate.NotReady("no_hold")
        if refusal := self._over_budget(counters, add_nanos):
            return refusal
        self._add(counters, add_nanos)
        self.holds[worker][attempt_id] = grown = self.holds[worker][attempt_id].grown(add_nanos)
        return gate.Extended(grown.nanos)

    def settle(
        self,
        worker: str,
        seq: int,
        attempt_id: str,
        cost_nanos: int,
        counters: Sequence[BudgetCounter],
        tpm: Sequence[tuple[str, int, int]],
        running_keys: Sequence[str],
        event: bytes,
        kept_hold: bytes = b"",
        is_late: bool = False,
    ) -> object:
        if not self.has_epoch:
            return gate.NotReady("no_epoch")
        if seq <= self.applied[worker]:
            return gate.Duplicate(self.applied[worker])
        if seq > self.applied[worker] + 1:
            return gate.Gap(self.applied[worker])
        hold = self.holds[worker].pop(attempt_id, None)
        if is_late:
            self.jobs.discard(attempt_id)
            if attempt_id not in self.suspense:
                self.applied[worker] = seq
                return gate.Settled(0)
        if hold is None:
            held_nanos = self.suspense.pop(attempt_id, 0)
        else:
            held_nanos = hold.nanos
            self._free(running_keys)
            for key, per_minute, delta in tpm:
                corrected = limits.correct(self.arrivals_us.get(key), self.now_us, per_minute, delta)
                self.arrivals_us[key] = corrected or 0
        self._add(counters, cost_nanos - held_nanos)
        if kept_hold:
            self.suspense[attempt_id] = cost_nanos
            self.jobs.add(attempt_id)
        self.stream.append(Event(worker, seq, event))
        self.applied[worker] = seq
        return gate.Settled(held_nanos)

    def restore(self, worker: str, attempt_id: str, hold: Hold) -> object:
        if not self.has_epoch:
            return gate.NotReady("no_epoch")
        if attempt_id in self.holds[worker] or attempt_id in self.suspense:
            return gate.Present()
        for key in hold.running_keys:
            self.running[key] += 1
        self._add(hold.counters, hold.nanos)
        self.holds[worker][attempt_id] = hold
        return gate.Restored()

    def reap(self, worker: str, is_dead: bool, void_attempt_ids: Sequence[str]) -> object:
        if not self.has_epoch:
            return gate.NotReady("no_epoch")
        if worker in self.leases and not is_dead:
            return gate.Alive()
        self.leases.discard(worker)
        holds = self.holds.pop(worker, {})
        for attempt_id, hold in holds.items():
            self._free(hold.running_keys)
            if attempt_id in void_attempt_ids:
                self._add(hold.counters, -hold.nanos)
                self.stream.append(Event(worker, 0, hold.event, "voided", 0))
            else:
                self.suspense[attempt_id] = hold.nanos
                self.stream.append(Event(worker, 0, hold.event, "suspense", hold.nanos))
        voided = sum(1 for attempt_id in holds if attempt_id in void_attempt_ids)
        return gate.Reaped(len(holds) - voided, voided)

    # The rules, one by one

    def _not_ready(self, worker: str) -> gate.NotReady | None:
        if not self.has_epoch:
            return gate.NotReady("no_epoch")
        return None if worker in self.leases else gate.NotReady("no_lease")

    def _halted(self, kill_fields: Sequence[str]) -> gate.Halted | None:
        thrown = [self.kills[name] for name in kill_fields if name in self.kills]
        return gate.Halted(thrown[0]) if thrown else None

    def _take(self, check: LimitCheck) -> limits.Taken | limits.Refused:
        if check.kind != "running":
            return limits.take(self.arrivals_us.get(check.key), self.now_us, check.per_minute, check.cost)
        free = check.per_minute - self.running[check.key]
        if free > 0:
            return limits.Taken(0, free - 1, 0)
        return limits.Refused(0, 1000 if check.per_minute else limits.NEVER_FITS)

    def _over_budget(self, counters: Sequence[BudgetCounter], nanos: int) -> gate.OverBudget | None:
        for index, counter in enumerate(counters):
            left_nanos = counter.cap_nanos - self.spent[counter.key]
            if counter.is_hard and nanos > left_nanos:
                return gate.OverBudget(index, left_nanos)
        return None

    def _add(self, counters: Sequence[BudgetCounter], nanos: int) -> None:
        for counter in counters:
            self.spent[counter.key] += nanos

    def _free(self, running_keys: Sequence[str]) -> None:
        for key in running_keys:
            self.running[key] -= 1
            assert self.running[key] >= 0, "a slot is freed once"
