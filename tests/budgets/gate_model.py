"""The gate in plain Python: what the scripts must answer and leave behind. The specification that the Lua is held against.

Time stands still between two calls unless the test moves it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from budgets import gate, limits
from budgets.gate import BudgetCounter, LimitCheck

AMPLE_PARTS = 256


# Amounts by unit: (nano-USD, tokens, requests).
Amounts = tuple[int, int, int]


@dataclass(frozen=True)
class Hold:
    nanos: int
    tokens: int
    counters: tuple[BudgetCounter, ...]
    running_keys: tuple[str, ...]
    event: bytes

    @property
    def amounts(self) -> Amounts:
        return self.nanos, self.tokens, 1

    def grown(self, nanos: int, tokens: int) -> "Hold":
        return replace(self, nanos=self.nanos + nanos, tokens=self.tokens + tokens)

    def text(self) -> bytes:
        tokens = b",%d" % self.tokens if gate.BudgetCounters(self.counters).units else b""
        return b"%d%b|%b" % (self.nanos, tokens, gate.hold_value(self.counters, self.running_keys, self.event))


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
    # The number of each worker's lease.
    leases: dict[str, int] = field(default_factory=dict)
    run_id: str = ""
    # While the gate is opening: for whom, and whether it is back.
    awaited: dict[str, bool] | None = None
    kills: dict[str, bytes] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ahead: dict[str, limits.Ahead | None] = field(default_factory=dict)
    observed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    holds: dict[str, dict[str, Hold]] = field(default_factory=lambda: defaultdict(dict))
    suspense: dict[str, Amounts] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    applied: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stream: list[Event] = field(default_factory=list)

    def beat(self, worker: str, fence: int, is_in_step: bool, join: gate.Join | None) -> gate.NotReady | None:
        number = self.leases.get(worker)
        if (number is not None and number >= fence) if join else number != fence:
            return gate.NotReady("no_lease")
        if join and join.run_id != self.run_id:
            self.run_id = join.run_id
            self.awaited = dict.fromkeys(self.leases, False)
        self.leases[worker] = fence
        if self.awaited is not None:
            for name in join.known if join else ():
                self.awaited.setdefault(name, False)
            if is_in_step:
                self.awaited[worker] = True
                if all(self.awaited.values()):
                    self.awaited = None
        return None

    def admit(
        self,
        worker: str,
        fence: int,
        attempt_id: str,
        kill_fields: Sequence[str],
        checks: Sequence[LimitCheck],
        costs_ns: Sequence[int],
        counters: Sequence[BudgetCounter],
        downgrades: Sequence[tuple[int, gate.Downgrade]],
        full: Amounts,
        tranche: Amounts,
        event: bytes,
    ) -> object:
        if refusal := self._not_open(worker, fence) or self._halted(kill_fields):
            return refusal
        taken, would_refuse = [], []
        for index, check in enumerate(checks):
            verdict = self._take(check, costs_ns[index] if check.window_ns else 1)
            if isinstance(verdict, limits.Refused):
                if not check.is_observed:
                    return gate.Limited(index, verdict.free_ns, verdict.retry_after_ms)
                would_refuse.append(check.key)
                verdict = self._taken_all_the_same(check)
            taken.append(verdict)
        spent = [self._spent_with_carry(counter) for counter in counters]
        throttled: dict[str, limits.Ahead] = {}
        for index, counter in enumerate(counters):
            if counter.is_observed and tranche[counter.unit - 1] > counter.cap - spent[index]:
                would_refuse.append(counter.key)
            for throttle in counter.throttles:
                if spent[index] >= throttle.at:
                    verdict = limits.take(
                        self.ahead.get(throttle.key), self.now_us, throttle.capacity_ns, throttle.cost_ns
                    )
                    if isinstance(verdict, limits.Refused):
                        return gate.Throttled(index, verdict.retry_after_ms)
                    throttled[throttle.key] = verdict.ahead
        for index, downgrade in downgrades:
            if spent[index] >= downgrade.at:
                return gate.Downgraded(index, downgrade.alias)
        if refusal := self._over_budget(counters, spent, tranche):
            return refusal
        held = full if self._is_ample(counters, spent, full, tranche) else tranche
        for check, verdict in zip(checks, taken, strict=True):
            if check.window_ns:
                self.ahead[check.key] = verdict.ahead
            else:
                self.running[check.key] += 1
        self.ahead |= throttled
        for index, counter in enumerate(counters):
            self._carry(counter, -spent[index])
        for key in would_refuse:
            self.observed[key.split(":")[2]] += 1
        self._add(counters, held)
        slots = tuple(check.key for check in checks if not check.window_ns)
        self.holds[worker][attempt_id] = Hold(held[0], held[1], tuple(counters), slots, event)
        return gate.Admitted(held[0], tuple(v.free_ns for v in taken), tuple(v.reset_ms for v in taken), held[1])

    def extend(
        self,
        worker: str,
        fence: int,
        attempt_id: str,
        add: Amounts,
        kill_fields: Sequence[str],
        counters: Sequence[BudgetCounter],
    ) -> object:
        if refusal := self._not_open(worker, fence) or self._halted(kill_fields):
            return refusal
        if attempt_id not in self.holds[worker]:
            return gate.NotReady("no_hold")
        if refusal := self._over_budget(counters, [self.spent.get(counter.key, 0) for counter in counters], add):
            return refusal
        self._add(counters, add)
        self.holds[worker][attempt_id] = grown = self.holds[worker][attempt_id].grown(add[0], add[1])
        return gate.Extended(grown.nanos, grown.tokens)

    def settle(
        self,
        worker: str,
        seq: int,
        attempt_id: str,
        cost_nanos: int,
        tokens: int,
        requests: int,
        counters: Sequence[BudgetCounter],
        corrections: Sequence[tuple[str, int]],
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
            held = self.suspense.pop(attempt_id, (0, 0, 0))
        else:
            held = hold.amounts
            self._free(running_keys)
            for key, delta_ns in corrections:
                self.ahead[key] = limits.correct(self.ahead.get(key), self.now_us, delta_ns)
        self._add(counters, (cost_nanos - held[0], tokens - held[1], requests - held[2]))
        if kept_hold:
            self.suspense[attempt_id] = (cost_nanos, tokens, 1)
            self.jobs.add(attempt_id)
        self.stream.append(Event(worker, seq, event))
        self.applied[worker] = seq
        return gate.Settled(held[0])

    def restore(self, worker: str, fence: int, attempt_id: str, hold: Hold) -> object:
        if refusal := self._not_ready(worker, fence):
            return refusal
        if attempt_id in self.suspense:
            return gate.Present()
        stored = self.holds[worker].get(attempt_id)
        if stored is None:
            for key in hold.running_keys:
                self.running[key] += 1
            self._add(hold.counters, hold.amounts)
        else:
            missing = max(hold.nanos - stored.nanos, 0), max(hold.tokens - stored.tokens, 0)
            if missing == (0, 0):
                return gate.Present()
            self._add(hold.counters, (*missing, 0))
            hold = stored.grown(*missing)
        self.holds[worker][attempt_id] = hold
        return gate.Restored()

    def reap(self, worker: str, is_dead: bool, void_attempt_ids: Sequence[str]) -> object:
        if not self.has_epoch:
            return gate.NotReady("no_epoch")
        if worker in self.leases and not is_dead:
            return gate.Alive()
        self.leases.pop(worker, None)
        if is_dead and self.awaited is not None:
            self.awaited[worker] = True
        holds = self.holds.pop(worker, {})
        for attempt_id, hold in holds.items():
            self._free(hold.running_keys)
            if attempt_id in void_attempt_ids:
                self._add(hold.counters, (-hold.nanos, -hold.tokens, -1))
                self.stream.append(Event(worker, 0, hold.event, "voided", 0))
            else:
                self.suspense[attempt_id] = hold.amounts
                self.stream.append(Event(worker, 0, hold.event, "suspense", hold.nanos))
        voided = sum(1 for attempt_id in holds if attempt_id in void_attempt_ids)
        return gate.Reaped(len(holds) - voided, voided)

    # The rules, one by one

    def _not_ready(self, worker: str, fence: int) -> gate.NotReady | None:
        if not self.has_epoch:
            return gate.NotReady("no_epoch")
        return None if self.leases.get(worker) == fence else gate.NotReady("no_lease")

    def _not_open(self, worker: str, fence: int) -> gate.NotReady | None:
        return self._not_ready(worker, fence) or (gate.NotReady("opening") if self.awaited is not None else None)

    def _halted(self, kill_fields: Sequence[str]) -> gate.Halted | None:
        thrown = [self.kills[name] for name in kill_fields if name in self.kills]
        return gate.Halted(thrown[0]) if thrown else None

    def _take(self, check: LimitCheck, cost: int) -> limits.Taken | limits.Refused:
        if check.window_ns:
            return limits.take(self.ahead.get(check.key), self.now_us, check.capacity, cost)
        free = check.capacity - self.running[check.key]
        if free < cost:
            return limits.Refused(0, 1000 if check.capacity else limits.NEVER_FITS)
        return limits.Taken(limits.Ahead(0, 0), free - 1, 0)

    def _taken_all_the_same(self, check: LimitCheck) -> limits.Taken:
        """By one that is only observed: neither more nor less than there was, and a slot that there is not."""
        if not check.window_ns:
            return limits.Taken(limits.Ahead(0, 0), 0, 0)
        before = limits.correct(self.ahead.get(check.key), self.now_us, 0) or limits.Ahead(0, self.now_us)
        return limits.Taken(before, max(check.capacity - before.ahead_ns, 0), before.ahead_ns // 1_000_000)

    def _spent_with_carry(self, counter: BudgetCounter) -> int:
        """What the first of a new window finds: what the last one left is spent below nothing."""
        carry = counter.carry
        if counter.key in self.spent or carry is None:
            return self.spent.get(counter.key, 0)
        if carry.from_key not in self.spent and not carry.is_empty_when_absent:
            return 0
        return -max(min(carry.most, carry.from_cap - self.spent.get(carry.from_key, 0)), 0)

    def _carry(self, counter: BudgetCounter, carried: int) -> None:
        if counter.carry is None or counter.key in self.spent:
            return
        if counter.carry.from_key in self.spent or counter.carry.is_empty_when_absent:
            self.spent[counter.carry.from_key] = self.spent.get(counter.carry.from_key, 0) + carried
            self.spent[counter.key] = -carried

    def _over_budget(
        self, counters: Sequence[BudgetCounter], spent: Sequence[int], wanted: Amounts
    ) -> gate.OverBudget | None:
        for index, counter in enumerate(counters):
            left = counter.cap - spent[index]
            if counter.is_hard and wanted[counter.unit - 1] > left:
                return gate.OverBudget(index, left)
        return None

    def _is_ample(
        self, counters: Sequence[BudgetCounter], spent: Sequence[int], full: Amounts, tranche: Amounts
    ) -> bool:
        for index, counter in enumerate(counters):
            whole, part = full[counter.unit - 1], tranche[counter.unit - 1]
            if counter.is_hard and whole > part and whole * AMPLE_PARTS > counter.cap - spent[index]:
                return False
        return True

    def _add(self, counters: Sequence[BudgetCounter], amounts: Amounts) -> None:
        for counter in counters:
            if amounts[counter.unit - 1]:
                self.spent[counter.key] = self.spent.get(counter.key, 0) + amounts[counter.unit - 1]

    def _free(self, running_keys: Sequence[str]) -> None:
        for key in running_keys:
            self.running[key] -= 1
            assert self.running[key] >= 0, "a slot is freed once"
