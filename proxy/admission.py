"""ADMIT, EXTEND and SETTLE: the data path's only talk with the gate, and the journal that makes it safe to interrupt.

An `Attempt` is one upstream call with a hold. Settling never waits: it is journaled and sent; what Redis did not confirm is
replayed from the journal in order, which is idempotent because a worker's settles are numbered.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog

from audit.records import Usage, UsageEvent, encode_event
from budgets import gate
from budgets.pricing import cost_nanos, currency_cost_nanos
from keys.kills import decode_flag
from proxy import holds
from proxy.ask import ask, call, send
from proxy.attempt import Attempt, Outcome, is_counted_in
from proxy.clock import Clock
from proxy.errors import (
    Exceeded,
    GatewayError,
    LeaseLost,
    TrafficHalted,
    Unavailable,
    UnpricedModel,
)
from proxy.estimate import BYTES_PER_TOKEN
from proxy.jobs import Job, price_of
from proxy.journal import Dispatched, Journal, JournalUnwritable, Settled
from proxy.learning import Learning
from proxy.prepare import Prepared
from proxy.refusals import budget_exceeded, limit_exceeded, throttled
from proxy.replay import JournalTooShort, have_rebuilt, replay, restore
from proxy.room import ASK_EVERY_S_MAX, EXTEND_WAIT_S, Place, Room
from proxy.route import Turn, may_use
from proxy.wire.redis import RedisError, RedisPipeline

log = structlog.get_logger()

# What a request is taken to answer with, for the token limit, where the client set no cap. Corrected at settle.
ASSUMED_OUTPUT_TOKENS = 256
OPENING = gate.NotReady("opening")
# So many counters that have refused are told at a time.
REFUSED_MAX = 1_000


class Downgrade(Exception):
    """A budget asks for a cheaper alias instead. Nothing is held."""

    def __init__(self, alias: str) -> None:
        super().__init__(alias)
        self.alias = alias


class Admission:
    def __init__(self, *, worker: str, redis: RedisPipeline, journal: Journal, clock: Clock, lease_s: float) -> None:
        self.worker = worker
        self.clock = clock
        self.journal = journal
        self.lease_until_s = 0.0
        self.lease_s = lease_s
        # The number of the lease: what we sent before our last join, and comes late, is not under it.
        self.fence = 0
        self._redis = redis
        # Settles go straight to Redis only while everything before them is known to be there.
        self._is_in_step = False
        self._catching_up = asyncio.Lock()
        # Where Redis was when a rebuild was asked for.
        self._too_far_back_seq: int | None = None
        self._outbox: list[Settled] = []
        # What was left of counters that have refused requests, until it is told.
        self._refused: dict[str, int] = {}
        self._room = Room(self._ask_turn, clock.now_s)
        self._learning = Learning()

    @property
    def is_ready(self) -> bool:
        return self._is_in_step and self._redis.is_ready and self.has_lease

    @property
    def has_lease(self) -> bool:
        return self.clock.monotonic_s() < self.lease_until_s

    # Admit and extend

    async def admit(self, prepared: Prepared, *, may_downgrade: bool = False, others: Sequence[Turn] = ()) -> Attempt:
        """Hold the money for one attempt, journal it, and return it. Raises a GatewayError, or `Downgrade` where the caller can
        take another alias; then nothing is held. Nobody waits for room who may have some with one of the `others`."""
        if not self.is_ready:
            raise Unavailable("the gateway cannot admit requests now")
        deployment = prepared.upstream.deployment
        if deployment.price is None:
            raise UnpricedModel(
                f"`{deployment.model}` has no price at {deployment.provider}: an administrator must set one"
            )
        attempt = Attempt(prepared, deployment.price, self.clock.now_s(), self.clock.monotonic_s())
        call, counters, checks = attempt.described.call, attempt.counters, attempt.rules.checks
        heard, said = attempt.input_tokens_max, attempt.output_tokens_max
        tranche = attempt.tranche_tokens = self._learning.tranche_tokens(attempt)
        attempt.full_nanos, tranche_nanos = holds.money(prepared, attempt.price, heard, said, tranche)
        full_tokens, tranche_tokens = holds.tokens(call, heard, said, tranche) if counters.units else (0, 0)
        attempt.costs_ns = _limit_costs(attempt)
        attempt.admit_argument = gate.encode_admit(
            worker=self.worker,
            fence=self.fence,
            attempt_id=attempt.attempt_id,
            kill_fields=attempt.kill_fields,
            checks=checks,
            costs_ns=attempt.costs_ns,
            budgets=counters,
            downgrades=_open_downgrades(attempt) if may_downgrade and counters.downgrades else (),
            full_nanos=attempt.full_nanos,
            tranche_nanos=tranche_nanos,
            full_tokens=full_tokens,
            tranche_tokens=tranche_tokens,
            hold=gate.hold_value(counters, checks.running_keys, encode_event(attempt.event)),
        )
        needs = {gate.USD: tranche_nanos, gate.TOKENS: tranche_tokens, gate.REQUESTS: 1}
        refusal = self._room.refusal(counters, needs) if self._room.lines else None
        answer = refusal or gate.decode_admit(await self._ask_for_hold(attempt))
        if isinstance(answer, gate.OverBudget) and not (others and self.avoiding(counters[answer.index].key, others)):
            answer = await self._ask_in_line(attempt, needs, answer)
        if isinstance(answer, gate.Downgraded):
            raise Downgrade(answer.alias)
        if not isinstance(answer, gate.Admitted):
            raise self._refusal(answer, attempt)
        attempt.held_nanos = answer.held_nanos
        attempt.held_tokens = answer.held_tokens
        attempt.free = answer.free
        attempt.reset_ms = answer.reset_ms
        attempt.covered_tokens = said if attempt.held_nanos >= attempt.full_nanos else tranche
        attempt.dispatched_at_s = self.clock.monotonic_s()
        try:
            self._check_may_dispatch()
            self._journal_dispatch(attempt)
        except GatewayError as error:
            self.settle(attempt, Outcome(may_have_been_billed=False, error_type=error.error_type))
            raise
        return attempt

    def avoiding(self, counter_key: str, turns: Sequence[Turn]) -> list[Turn]:
        """Those that would not count in that counter."""
        now_s = self.clock.now_s()
        return [turn for turn in turns if not is_counted_in(counter_key, *turn, now_s)]

    async def extend(self, attempt: Attempt, output_tokens: int) -> None:
        """Grow the hold so that it covers `output_tokens` more. Raises a GatewayError when the cap has no room."""
        add_nanos = holds.more_output(attempt.prepared, attempt.price, attempt.input_tokens_max, output_tokens)
        await self.extend_by(attempt, add_nanos, output_tokens)
        attempt.covered_tokens += output_tokens

    async def extend_by(self, attempt: Attempt, add_nanos: int, add_tokens: int) -> None:
        """Grow the hold. Raises a GatewayError when the cap has no room."""
        answer = await self._ask_for_more(attempt, add_nanos, add_tokens)
        until_s = self.clock.monotonic_s() + EXTEND_WAIT_S
        while answer == OPENING and self.clock.monotonic_s() < until_s:
            await asyncio.sleep(ASK_EVERY_S_MAX)
            answer = await self._ask_for_more(attempt, add_nanos, add_tokens)
        if isinstance(answer, gate.OverBudget):
            counters, needs = attempt.counters, {gate.USD: add_nanos, gate.TOKENS: add_tokens, gate.REQUESTS: 0}
            with Place(self._room, attempt.attempt_id, needs, is_running=True) as place:
                while isinstance(answer, gate.OverBudget) and await place.turn(counters[answer.index], answer.left):
                    answer = await self._ask_for_more(attempt, add_nanos, add_tokens)
        if not isinstance(answer, gate.Extended):
            raise self._refusal(answer, attempt)
        attempt.held_nanos = answer.held_nanos
        attempt.held_tokens = answer.held_tokens
        self._journal_dispatch(attempt)

    async def _ask_for_more(self, attempt: Attempt, add_nanos: int, add_tokens: int) -> gate.ExtendAnswer:
        argument = gate.encode_extend(
            worker=self.worker,
            fence=self.fence,
            attempt_id=attempt.attempt_id,
            add_nanos=add_nanos,
            add_tokens=add_tokens,
            kill_fields=attempt.kill_fields,
            budgets=attempt.counters,
        )
        return gate.decode_extend(await ask(self._redis, gate.EXTEND, argument))

    # Settle

    def settle(self, attempt: Attempt, outcome: Outcome) -> int:
        """Replace the hold by the true cost and write the usage record. Returns the cost in nano-USD. Never waits, and does
        nothing the second time."""
        if attempt.is_settled:
            return attempt.event.cost_nanos
        attempt.is_settled = True
        goes_on = _goes_on(attempt, outcome)
        event = attempt.event = self._settled_event(attempt, outcome)
        kept_hold = b""
        if goes_on:
            # Whatever it costs is not known yet: it stays in suspense at what is held.
            event = attempt.event = msgspec.structs.replace(
                event,
                state="suspense",
                usage=Usage(),
                usage_source="none",
                cost_nanos=attempt.held_nanos,
                currency_cost_nanos=None,
            )
            job = _job(attempt, self.worker, self.journal.seq + 1)
            kept_hold = gate.hold_value(attempt.counters, (), encode_event(event), job=job)
        argument = gate.encode_settle(
            worker=self.worker,
            seq=self.journal.seq + 1,
            attempt_id=attempt.attempt_id,
            cost_nanos=event.cost_nanos,
            tokens=attempt.held_tokens if goes_on else _tokens(event),
            requests=0 if event.state == "voided" else 1,
            budgets=attempt.counters,
            corrections=attempt.rules.corrections(
                attempt.costs_ns, event.usage.input_tokens, event.usage.output_tokens, event.cost_nanos
            ),
            running_keys=attempt.rules.checks.running_keys,
            event=encode_event(event),
            kept_hold=kept_hold,
        )
        self._enter(attempt.attempt_id, argument)
        self._learning.note(attempt, outcome, self.clock.monotonic_s())
        return event.cost_nanos

    def settle_late(self, event: UsageEvent, budgets: Sequence[gate.BudgetCounter]) -> None:
        """Say what an attempt in suspense has cost. Never waits; whoever says it first is believed."""
        argument = gate.encode_settle(
            worker=self.worker,
            seq=self.journal.seq + 1,
            attempt_id=event.attempt_id,
            cost_nanos=event.cost_nanos,
            tokens=_tokens(event),
            requests=1,
            budgets=budgets,
            event=encode_event(event),
            is_late=True,
        )
        self._enter(event.attempt_id, argument)

    # Room under a cap

    async def _ask_in_line(
        self, attempt: Attempt, needs: Mapping[int, int], refusal: gate.OverBudget
    ) -> gate.AdmitAnswer:
        """Most of what is held is given back soon: ask again, when it is its turn."""
        counters = attempt.counters
        answer: gate.AdmitAnswer = refusal
        if await self._is_spent(attempt, needs, refusal):
            return refusal
        with Place(self._room, attempt.attempt_id, needs) as place:
            while isinstance(answer, gate.OverBudget) and await place.turn(counters[answer.index], answer.left):
                answer = gate.decode_admit(await self._ask_for_hold(attempt))
        return answer

    async def _is_spent(self, attempt: Attempt, needs: Mapping[int, int], refusal: gate.OverBudget) -> bool:
        """Whether it is not only held: nobody else holds anything in the budget."""
        counter, left = attempt.counters[refusal.index], refusal.left
        if counter.key in self._room.lines or needs[counter.unit] <= left:
            return False  # Others wait, so they know.
        if not self._room.is_spent(counter.key, left):
            argument = gate.encode_held(counter_key=counter.key, attempt_id=attempt.attempt_id)
            if gate.decode_held(await ask(self._redis, gate.HELD, argument)):
                return False
            self._room.note_spent(counter.key, left)
        return True

    async def _ask_turn(self, attempt_id: str, counter: gate.BudgetCounter, since_s: float, need: int) -> gate.Turn:
        since_us = int(since_s * 1_000_000)
        argument = gate.encode_line(
            worker=self.worker, attempt_id=attempt_id, counter=counter, since_us=since_us, need=need
        )
        return gate.decode_line(await ask(self._redis, gate.LINE, argument))

    def _enter(self, attempt_id: str, argument: bytes) -> None:
        entry = Settled(self.journal.seq + 1, attempt_id, argument)
        self.journal.settle(entry)
        self._outbox.append(entry)
        if len(self._outbox) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _settled_event(self, attempt: Attempt, outcome: Outcome) -> UsageEvent:
        price = attempt.price
        now_s = self.clock.monotonic_s()
        usage, source = outcome.usage, "provider"
        if usage is None:
            usage, source = self._learning.usage_of(attempt, outcome, now_s), "estimated"
        is_billable = attempt.is_dispatched and outcome.may_have_been_billed and not attempt.described.call.is_free
        if not is_billable:
            usage, source = Usage(), "none"
        return msgspec.structs.replace(
            attempt.event,
            state="posted" if attempt.is_dispatched else "voided",
            status_code=outcome.status_code,
            error_type=outcome.error_type,
            finish_reason=outcome.finish_reason,
            response_model=outcome.response_model,
            upstream_id=outcome.upstream_id,
            usage=usage,
            usage_source=source,
            cost_nanos=cost_nanos(usage, price) if is_billable else 0,
            currency_cost_nanos=currency_cost_nanos(usage, price) if is_billable else None,
            held_nanos=attempt.held_nanos,
            latency_ms=round((now_s - attempt.started_at_s) * 1000),
            first_token_ms=round((attempt.first_token_at_s - attempt.started_at_s) * 1000)
            if attempt.first_token_at_s
            else 0,
            kill_switch_id=outcome.kill_switch_id,
        )

    def _flush(self) -> None:
        """The settles of one turn of the event loop: to the journal in one write, and only then to Redis. The other way
        round, a worker that dies in between would leave an attempt that looks as if it still ran."""
        self.journal.flush()
        entries, self._outbox = self._outbox, []
        for entry in entries:
            if self._is_in_step:
                self._send(entry)

    def _send(self, entry: Settled) -> None:
        try:
            future = send(self._redis, gate.SETTLE, entry.settle)
        except Unavailable:
            self._is_in_step = False
            return
        future.add_done_callback(self._confirm)

    def _confirm(self, future: "asyncio.Future[list[Any]]") -> None:
        if future.cancelled() or future.exception() is not None:
            # Whether it was applied is not known; the next connection asks and replays.
            self._is_in_step = False
        elif not isinstance(gate.decode_settle(future.result()), gate.Settled | gate.Duplicate):
            self._is_in_step = False

    async def tell_refused(self) -> None:
        """Which counters have refused requests since the last time. Raises `Unavailable`."""
        refused, self._refused = self._refused, {}
        if refused and await call(self._redis, b"HLEN", gate.REFUSED) < gate.REFUSED_MAX:
            told: list[str | int] = []
            for counter_key, left in refused.items():
                told += (counter_key, left)
            await call(self._redis, b"HSET", gate.REFUSED, *told)

    # Catching up after Redis came back

    async def catch_up(self, applied_seq: int) -> None:
        """Bring Redis to where this worker's journal is: missing holds first, then settles after `applied_seq`."""
        async with self._catching_up:
            self._is_in_step = False
            for entry in self.journal.open_attempts():
                await restore(self._redis, entry, by=self.worker, fence=self.fence)
            while applied_seq < self.journal.seq:
                self.journal.flush()  # What Redis has, the file has: also of the settles of this very turn of the loop.
                try:
                    applied_seq = await replay(self._redis, list(self.journal.settled_after(applied_seq)), applied_seq)
                except JournalTooShort:
                    # Once: were it of no use, the other workers would be closed again and again.
                    if applied_seq != self._too_far_back_seq:
                        self._too_far_back_seq = applied_seq
                        await have_rebuilt(self._redis)
                    raise
            # No await since the last look at the journal: what is settled from here on goes straight to Redis.
            self._is_in_step = True

    def begin_lease(self) -> None:
        """Before a join."""
        self._is_in_step = False
        self.fence += 1

    @property
    def is_in_step(self) -> bool:
        return self._is_in_step

    def fall_out_of_step(self) -> None:
        self._is_in_step = False

    # Talking to the gate

    async def _ask_for_hold(self, attempt: Attempt) -> list[Any]:
        """When the answer is not known (Redis is lost, the client leaves) there may be a hold all the same: settling the
        attempt as voided gives back whatever there is, since it reaches Redis after the question."""
        try:
            return await send(self._redis, gate.ADMIT, attempt.admit_argument)
        except asyncio.CancelledError:
            self.settle(attempt, Outcome(may_have_been_billed=False, error_type="client_gone"))
            raise
        except RedisError as error:
            self.settle(attempt, Outcome(may_have_been_billed=False, error_type="service_unavailable"))
            raise Unavailable("the gate did not answer") from error

    def _check_may_dispatch(self) -> None:
        """A worker that was paused while it waited for the answer may have been taken for dead since."""
        if not self.has_lease:
            raise LeaseLost("this worker is rejoining")

    def _journal_dispatch(self, attempt: Attempt) -> None:
        try:
            self.journal.dispatch(
                Dispatched(attempt.attempt_id, attempt.held_nanos, attempt.admit_argument, attempt.held_tokens)
            )
        except JournalUnwritable as error:
            raise Unavailable("the worker's journal cannot be written", retry_after_s=5) from error

    def _refusal(self, answer: object, attempt: Attempt) -> GatewayError:
        match answer:
            case gate.Halted(flag=body):
                flag = decode_flag(body)
                return TrafficHalted(flag.reason, kill_switch_id=flag.kill_switch_id, scope=flag.scope)
            case gate.Limited(index=index, free=free, retry_after_ms=retry_after_ms):
                return _of(attempt.rules.checks[index].key, limit_exceeded(attempt.rules, index, free, retry_after_ms))
            case gate.Throttled(index=index, retry_after_ms=retry_after_ms):
                budget = attempt.rules.in_force(self.clock.now_s()).budgets[index]
                return _of(attempt.counters[index].key, throttled(budget, retry_after_ms))
            case gate.OverBudget(index=index, left=left):
                if len(self._refused) < REFUSED_MAX:
                    self._refused[attempt.counters[index].key] = left
                now_s = self.clock.now_s()
                budget = attempt.rules.in_force(now_s).budgets[index]
                return _of(attempt.counters[index].key, budget_exceeded(budget, left, now_s))
            case gate.NotReady(reason="opening"):
                return Unavailable("what other workers hold is being counted")
            case gate.NotReady(reason="no_lease"):
                self._is_in_step = False
                return LeaseLost("this worker is rejoining")
            case _:
                self._is_in_step = False
                return Unavailable("the gate is being rebuilt")


def _of(counter_key: str, error: Exceeded) -> Exceeded:
    error.counter_key = counter_key
    return error


def _goes_on(attempt: Attempt, outcome: Outcome) -> bool:
    """Whether the provider goes on with it, or may: it was sent, and nothing has said how it ended."""
    call = attempt.described.call
    outlives = call.is_background or call.batch_requests > 0
    return outlives and attempt.is_dispatched and outcome.may_have_been_billed and outcome.usage is None


def _job(attempt: Attempt, worker: str, seq: int) -> Job:
    call = attempt.described.call
    return Job(
        kind=call.kept_kind,
        deployment_id=attempt.upstream.deployment.deployment_id,
        price=price_of(call, attempt.price),
        credential_id=attempt.credential_id,
        worker=worker,
        seq=seq,
    )


def _limit_costs(attempt: Attempt) -> list[int]:
    """What the attempt takes of its rates: of tokens its likely ones, of money its hold, corrected at settle."""
    call = attempt.described.call
    said = (ASSUMED_OUTPUT_TOKENS if call.output_tokens_max is None else call.output_tokens_max) * call.choices
    # Of a session nobody knows what will be said.
    heard = 0 if call.is_session else attempt.input_tokens_max // BYTES_PER_TOKEN
    return attempt.rules.costs_ns(heard, said, attempt.full_nanos)


def _tokens(event: UsageEvent) -> int:
    return event.usage.input_tokens + event.usage.output_tokens


def _open_downgrades(attempt: Attempt) -> list[tuple[int, gate.Downgrade]]:
    """Those to an alias that is another, that there is, and that the key may use."""
    key, aliases, asked = attempt.subject.key, attempt.subject.registry.snapshot.aliases, attempt.described.call.alias
    return [
        (i, downgrade)
        for i, downgrade in attempt.counters.downgrades
        if downgrade.alias != asked and downgrade.alias in aliases and may_use(key, downgrade.alias)
    ]
