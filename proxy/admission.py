"""ADMIT, EXTEND and SETTLE: the data path's only talk with the gate, and the journal that makes it safe to interrupt.

An `Attempt` is one upstream call with a hold. Settling never waits: it is journaled and sent; what Redis did not confirm is
replayed from the journal in order, which is idempotent because a worker's settles are numbered.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any

import msgspec
import structlog

from audit.records import LIST_TERMS, Usage, UsageEvent, encode_event
from budgets import gate
from budgets.pricing import Price, Rates, ceiling, cost_nanos, currency_cost_nanos, hold_nanos
from keys.kills import decode_flag
from proxy.ask import ask, call, send
from proxy.authenticate import Subject
from proxy.clock import Clock
from proxy.describe import Described
from proxy.dialects.dialect import Call
from proxy.errors import (
    GatewayError,
    LeaseLost,
    TrafficHalted,
    Unavailable,
    UnpricedModel,
)
from proxy.estimate import BYTES_PER_TOKEN, FORGETTING, Experience, Seen, pace_of
from proxy.ids import new_id
from proxy.jobs import Job, price_of, rates_of_all
from proxy.journal import Dispatched, Journal, JournalUnwritable, Orphan, Settled
from proxy.prepare import Prepared
from proxy.providers.provider import Kept
from proxy.refusals import budget_exceeded, limit_exceeded, throttled
from proxy.registry import Upstream
from proxy.room import Room
from proxy.route import may_use
from proxy.rules import Rules
from proxy.snapshot import Deployment
from proxy.wire.redis import RedisError, RedisPipeline

log = structlog.get_logger()

TRANCHE_TOKENS = 1024
# The provider is some way ahead of what we have read: ask for the next tranche while half of this one is left.
EXTEND_AHEAD_TOKENS = TRANCHE_TOKENS // 2
# Output that never shows as text: end-of-turn tokens, the frame around tool calls.
HIDDEN_OUTPUT_TOKENS = 64
# What a request is taken to answer with, for the token limit, where the client set no cap. Corrected at settle.
ASSUMED_OUTPUT_TOKENS = 256
REPLAY_BATCH = 500
# Most of what is held is given back soon. Where others' holds fill a cap, a request waits for room: so long from the last time
# that anything was given back, and not longer in all. A running stream waits less: its provider goes on meanwhile.
ROOM_WAIT_S = 3.0
ROOM_WAIT_MAX_S = 15.0
EXTEND_WAIT_S = 0.25
# What other workers give back is not heard of, so it is asked for.
ROOM_POLL_S = 0.1
# What a stream is taken to need of a deployment that nobody has had an answer from. Too little, and streams that have begun would
# keep each other from their ends; too much, and others wait for what is not used.
FIRST_NEEDED_TOKENS = 4096
NO_COUNTERS = gate.BudgetCounters()


class Downgrade(Exception):
    """A budget asks for a cheaper alias instead. Nothing is held."""

    def __init__(self, alias: str) -> None:
        super().__init__(alias)
        self.alias = alias


class Attempt:
    """One upstream call under a hold. Money in nano-USD, moments in seconds of the monotonic clock."""

    __slots__ = (
        "admit_argument",
        "attempt_id",
        "costs_ns",
        "counters",
        "covered_tokens",
        "credential_id",
        "described",
        "dispatched_at_s",
        "event",
        "first_token_at_s",
        "free",
        "full_nanos",
        "held_nanos",
        "held_tokens",
        "is_dispatched",
        "is_settled",
        "prepared",
        "remember",
        "reset_ms",
        "rules",
        "started_at_s",
        "subject",
        "tranche_tokens",
        "upstream",
    )

    def __init__(self, prepared: Prepared, event: UsageEvent, started_at_s: float) -> None:
        self.attempt_id = event.attempt_id
        self.prepared = prepared
        self.described = prepared.described
        self.subject: Subject = prepared.described.subject
        self.upstream = prepared.upstream
        self.rules: Rules = self.subject.rules(partial(_value_in, self.described, self.upstream))
        self.event = event
        self.started_at_s = started_at_s
        self.first_token_at_s: float | None = None
        self.full_nanos = 0
        # How many tokens of output the first hold covers, where it is not the whole.
        self.tranche_tokens = 0
        # As many are held for now.
        self.covered_tokens = 0
        # Money is held from here on, and it goes out at once.
        self.dispatched_at_s = started_at_s
        self.held_nanos = 0
        self.held_tokens = 0
        self.counters = NO_COUNTERS
        self.costs_ns: list[int] = []
        self.admit_argument = b""
        self.free: Sequence[int] = ()
        self.reset_ms: Sequence[int] = ()
        self.is_dispatched = False
        self.is_settled = False
        self.credential_id = ""
        # Takes note of what the provider keeps, and whose it is.
        self.remember: Callable[[Attempt, Sequence[Kept]], None] | None = None

    @property
    def kill_fields(self) -> tuple[str, ...]:
        return self.subject.kill_fields + self.upstream.kill_fields

    def dispatched(self) -> None:
        """From here on the provider may charge for it."""
        self.is_dispatched = True


class Outcome(msgspec.Struct, kw_only=True):
    """How an attempt ended. `usage` None: the provider did not say, so it is estimated from what was seen and from what it
    had said by then (`usage_so_far`)."""

    usage: Usage | None = None
    usage_so_far: Usage | None = None
    output_chunks: int = 0
    output_bytes: int = 0
    # As `estimate.Seen` has them.
    shown_s: float = 0.0
    in_flight_s: float | None = None
    may_have_been_billed: bool = True
    status_code: int = 0
    error_type: str = ""
    finish_reason: str = ""
    response_model: str = ""
    kill_switch_id: str = ""
    upstream_id: str = ""


class Admission:
    def __init__(self, *, worker: str, redis: RedisPipeline, journal: Journal, clock: Clock, lease_s: float) -> None:
        self.worker = worker
        self.clock = clock
        self.journal = journal
        self.lease_until_s = 0.0
        self.lease_s = lease_s
        self._redis = redis
        # Settles go straight to Redis only while everything before them is known to be there.
        self._is_in_step = False
        self._catching_up = asyncio.Lock()
        self._outbox: list[Settled] = []
        self._room = Room()
        # By deployment, what streams have lately needed their holds to cover, in tokens of output.
        self._needed_tokens: dict[str, float] = {}
        self._experience: defaultdict[str, Experience] = defaultdict(Experience)

    @property
    def is_ready(self) -> bool:
        return self._is_in_step and self._redis.is_ready and self.has_lease

    @property
    def has_lease(self) -> bool:
        return self.clock.monotonic_s() < self.lease_until_s

    # Admit and extend

    async def admit(self, prepared: Prepared, *, may_downgrade: bool = False) -> Attempt:
        """Hold the money for one attempt, journal it, and return it. Raises a GatewayError, or `Downgrade` where the caller can
        take another alias; then nothing is held."""
        if not self.is_ready:
            raise Unavailable("the gateway cannot admit requests now")
        deployment = prepared.upstream.deployment
        if deployment.price is None:
            raise UnpricedModel(
                f"`{deployment.model}` has no price at {deployment.provider}: an administrator must set one"
            )
        now_s = self.clock.now_s()
        attempt = Attempt(prepared, _event(prepared, now_s), self.clock.monotonic_s())
        rules = attempt.rules
        attempt.counters = rules.in_force(now_s).counters
        counters = attempt.counters
        attempt.tranche_tokens = self._tranche_tokens(prepared)
        attempt.full_nanos, tranche_nanos = _hold_sizes(prepared, attempt.tranche_tokens)
        full_tokens, tranche_tokens = _token_sizes(prepared, attempt.tranche_tokens) if counters.units else (0, 0)
        attempt.costs_ns = _limit_costs(attempt)
        attempt.admit_argument = gate.encode_admit(
            worker=self.worker,
            attempt_id=attempt.attempt_id,
            kill_fields=attempt.kill_fields,
            checks=rules.checks,
            costs_ns=attempt.costs_ns,
            budgets=counters,
            downgrades=_open_downgrades(attempt) if may_downgrade and counters.downgrades else (),
            full_nanos=attempt.full_nanos,
            tranche_nanos=tranche_nanos,
            full_tokens=full_tokens,
            tranche_tokens=tranche_tokens,
            hold=gate.hold_value(counters, rules.checks.running_keys, encode_event(attempt.event)),
        )
        answer = gate.decode_admit(await self._ask_for_hold(attempt))
        if isinstance(answer, gate.OverBudget):
            answer = await self._ask_when_there_is_room(attempt, answer)
        if isinstance(answer, gate.Downgraded):
            raise Downgrade(answer.alias)
        if not isinstance(answer, gate.Admitted):
            raise self._refusal(answer, attempt)
        attempt.held_nanos = answer.held_nanos
        attempt.held_tokens = answer.held_tokens
        attempt.free = answer.free
        attempt.reset_ms = answer.reset_ms
        is_whole = attempt.held_nanos >= attempt.full_nanos
        attempt.covered_tokens = (
            output_tokens_max(prepared.described, prepared.upstream) if is_whole else attempt.tranche_tokens
        )
        attempt.dispatched_at_s = self.clock.monotonic_s()
        try:
            self._check_may_dispatch()
            self._journal_dispatch(attempt)
        except GatewayError as error:
            self.settle(attempt, Outcome(may_have_been_billed=False, error_type=error.error_type))
            raise
        return attempt

    async def extend(self, attempt: Attempt, output_tokens: int) -> None:
        """Grow the hold so that it covers `output_tokens` more. Raises a GatewayError when the cap has no room."""
        price = attempt.upstream.deployment.price
        assert price is not None, "an attempt is only admitted with a price"
        input_tokens = input_tokens_max(attempt.described.call, attempt.upstream.deployment)
        add_nanos = hold_nanos(_ceiling(price, attempt.prepared, input_tokens), 0, output_tokens)
        await self.extend_by(attempt, add_nanos, output_tokens)
        attempt.covered_tokens += output_tokens

    async def extend_by(self, attempt: Attempt, add_nanos: int, add_tokens: int) -> None:
        """Grow the hold. Raises a GatewayError when the cap has no room."""
        argument = gate.encode_extend(
            worker=self.worker,
            attempt_id=attempt.attempt_id,
            add_nanos=add_nanos,
            add_tokens=add_tokens,
            kill_fields=attempt.kill_fields,
            budgets=attempt.counters,
        )
        answer = gate.decode_extend(await ask(self._redis, gate.EXTEND, argument))
        until_s = self.clock.monotonic_s() + EXTEND_WAIT_S
        while (
            isinstance(answer, gate.OverBudget)
            and (left_s := until_s - self.clock.monotonic_s()) > 0
            and self._do_others_hold(attempt, answer)
        ):
            await self._room.wait(attempt.counters[answer.index].key, min(left_s, ROOM_POLL_S), is_first=True)
            answer = gate.decode_extend(await ask(self._redis, gate.EXTEND, argument))
        if not isinstance(answer, gate.Extended):
            raise self._refusal(answer, attempt)
        attempt.held_nanos = answer.held_nanos
        attempt.held_tokens = answer.held_tokens
        self._journal_dispatch(attempt)

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
            corrections=_corrections(attempt, event),
            running_keys=attempt.rules.checks.running_keys,
            event=encode_event(event),
            kept_hold=kept_hold,
        )
        self._enter(attempt.attempt_id, argument)
        if attempt.held_nanos > event.cost_nanos:
            self._room.given_back(attempt.counters, self.clock.monotonic_s())
        self._learn(attempt, outcome)
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

    async def _ask_when_there_is_room(self, attempt: Attempt, refusal: gate.OverBudget) -> gate.AdmitAnswer:
        answer: gate.AdmitAnswer = refusal
        asked_at_s = self.clock.monotonic_s()
        until_s, at_most_s = asked_at_s + ROOM_WAIT_S, asked_at_s + ROOM_WAIT_MAX_S
        if not self._do_others_hold(attempt, refusal):
            return refusal  # It is spent.
        while isinstance(answer, gate.OverBudget) and (left_s := until_s - self.clock.monotonic_s()) > 0:
            await self._room.wait(attempt.counters[answer.index].key, min(left_s, ROOM_POLL_S))
            if self._room.has_given_back_since(asked_at_s):
                asked_at_s = self.clock.monotonic_s()
                until_s = min(asked_at_s + ROOM_WAIT_S, at_most_s)
            answer = gate.decode_admit(await self._ask_for_hold(attempt))
        if isinstance(answer, gate.Admitted):
            self._room.next_of(attempt.counters)  # There may be room for more than this one.
        return answer

    def _do_others_hold(self, attempt: Attempt, refusal: gate.OverBudget) -> bool:
        """Whether other attempts of this worker hold anything in the budget that has refused."""
        key = attempt.counters[refusal.index].key.encode()
        others = (entry for entry in self.journal.open_attempts() if entry.attempt_id != attempt.attempt_id)
        return any(key in entry.admit for entry in others)

    def _tranche_tokens(self, prepared: Prepared) -> int:
        """How many tokens of output are held at first where room is tight: all where output can hide, or nothing streams, else
        as many as streams of the deployment have lately needed, so that few have to ask for more."""
        call, deployment = prepared.described.call, prepared.upstream.deployment
        most = output_tokens_max(prepared.described, prepared.upstream)
        # What is made in the background goes on, also where a tranche is refused; a session asks by the answer.
        is_safe = call.is_stream and deployment.output_is_visible
        if not is_safe or call.is_background or call.is_session or call.batch_requests:
            return most
        lately = int(self._needed_tokens.get(deployment.deployment_id, FIRST_NEEDED_TOKENS))
        return min(most, max(TRANCHE_TOKENS, lately) * call.choices)

    def _learn(self, attempt: Attempt, outcome: Outcome) -> None:
        """What holds and estimates of the deployment's next calls go by."""
        call, deployment_id = attempt.described.call, attempt.upstream.deployment.deployment_id
        if call.is_stream:
            needed = needed_tokens(outcome.output_bytes, outcome.output_chunks, outcome.shown_s) / call.choices
            lately = self._needed_tokens.get(deployment_id, 0.0)
            self._needed_tokens[deployment_id] = max(needed, lately * FORGETTING)
        is_like_others = call.capability == "chat" and not (
            call.is_session or call.is_background or call.batch_requests
        )
        if is_like_others and outcome.usage is not None and not call.is_free:
            asked = input_tokens_max(call, attempt.upstream.deployment)
            seen = self._seen(attempt, outcome)
            self._experience[deployment_id].note(outcome.usage, asked, seen, is_stream=call.is_stream)

    def _seen(self, attempt: Attempt, outcome: Outcome) -> Seen:
        return Seen(
            chunks=outcome.output_chunks,
            output_bytes=outcome.output_bytes,
            shown_s=outcome.shown_s,
            running_s=self.clock.monotonic_s() - attempt.dispatched_at_s,
            in_flight_s=outcome.in_flight_s,
        )

    def _estimate(self, attempt: Attempt, outcome: Outcome) -> Usage:
        """Of a call whose usage never came."""
        call, upstream, known = attempt.described.call, attempt.upstream, outcome.usage_so_far
        if call.is_session:
            return known or Usage()  # Its meter has estimated what was not told.
        experience = self._experience[upstream.deployment.deployment_id]
        most = output_tokens_max(attempt.described, upstream)
        # We were cut off, and a provider that runs on may do so to the end.
        output = (
            most
            if upstream.provider.runs_on
            else experience.output_tokens(
                self._seen(attempt, outcome),
                is_visible=upstream.deployment.output_is_visible,
                held=attempt.covered_tokens,
                most=most,
            )
        )
        if known is not None:
            return msgspec.structs.replace(known, output_tokens=max(output, known.output_tokens))
        tiers = attempt.prepared.service_tiers
        return Usage(
            input_tokens=experience.input_tokens(input_tokens_max(call, upstream.deployment)),
            output_tokens=output,
            units=call.units_max,
            service_tier=tiers[0] if tiers else "",
        )

    def _enter(self, attempt_id: str, argument: bytes) -> None:
        entry = Settled(self.journal.seq + 1, attempt_id, argument)
        self.journal.settle(entry)
        self._outbox.append(entry)
        if len(self._outbox) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _settled_event(self, attempt: Attempt, outcome: Outcome) -> UsageEvent:
        price = attempt.upstream.deployment.price
        assert price is not None, "an attempt is only admitted with a price"
        now_s = self.clock.monotonic_s()
        usage, source = outcome.usage, "provider"
        if usage is None:
            usage, source = self._estimate(attempt, outcome), "estimated"
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

    # Catching up after Redis came back, and taking over from the dead

    async def catch_up(self, applied_seq: int) -> None:
        """Bring Redis to where this worker's journal is: missing holds first, then settles after `applied_seq`."""
        async with self._catching_up:
            self._is_in_step = False
            for entry in self.journal.open_attempts():
                await self._restore(entry)
            while applied_seq < self.journal.seq:
                self.journal.flush()  # What Redis has, the file has: also of the settles of this very turn of the loop.
                applied_seq = await self._replay(list(self.journal.settled_after(applied_seq)), applied_seq)
            # No await since the last look at the journal: what is settled from here on goes straight to Redis.
            self._is_in_step = True

    @property
    def is_in_step(self) -> bool:
        return self._is_in_step

    def fall_out_of_step(self) -> None:
        self._is_in_step = False

    async def take_over(self, orphan: Orphan) -> bytes:
        """Finish what a dead worker of this host left: its settles, then its open holds. Returns the last id of the usage
        stream: once all up to it is ingested, the journal is not needed. Raises `Unavailable` half way; doing it again
        does no harm."""
        open_attempts, settles = await asyncio.to_thread(_sort_out, orphan)
        applied = await call(self._redis, b"HGET", gate.APPLIED, orphan.worker)
        applied_seq = int(applied or 0)
        for entry in open_attempts.values():
            await self._restore(entry)
        unapplied = [entry for entry in settles if entry.seq > applied_seq]
        while unapplied:
            applied_seq = await self._replay(unapplied, applied_seq)
            unapplied = [entry for entry in unapplied if entry.seq > applied_seq]
        # Every hold that is not in the journal was never dispatched.
        held = await call(self._redis, b"HKEYS", gate.holds_key(orphan.worker))
        undispatched = [name.decode() for name in held if name.decode() not in open_attempts]
        argument = gate.encode_reap(worker=orphan.worker, is_dead=True, void_attempt_ids=undispatched)
        if isinstance(gate.decode_reap(await ask(self._redis, gate.REAP, argument)), gate.NotReady):
            raise Unavailable("the gate is being rebuilt")
        log.info(
            "took over from a dead worker",
            dead_worker=orphan.worker,
            settled=len(settles),
            open_attempts=len(open_attempts),
            voided=len(undispatched),
        )
        newest = await call(self._redis, b"XREVRANGE", gate.USAGE, b"+", b"-", b"COUNT", 1)
        return newest[0][0] if newest else b"0"

    async def _restore(self, entry: Dispatched) -> None:
        argument = gate.restore_of_admit(entry.admit, entry.held_nanos, entry.held_tokens)
        if isinstance(gate.decode_restore(await ask(self._redis, gate.RESTORE, argument)), gate.NotReady):
            raise Unavailable("the gate is being rebuilt")

    async def _replay(self, entries: list[Settled], applied_seq: int) -> int:
        """Send settles in order; returns the last applied sequence number. Raises `Unavailable`."""
        if not entries or entries[0].seq > applied_seq + 1:
            # Redis came back as it was long ago. Asking again would not help, and nothing is admitted on wrong counters.
            log.error("the journal does not reach back to where Redis is", applied_seq=applied_seq)
            raise Unavailable("the gate is behind this worker's journal")
        for start in range(0, len(entries), REPLAY_BATCH):
            batch = entries[start : start + REPLAY_BATCH]
            # Futures, not tasks: while a connection is made ready it serves only the task that does so.
            futures = [send(self._redis, gate.SETTLE, entry.settle) for entry in batch]
            try:
                answers = await asyncio.gather(*futures)
            except RedisError as error:
                raise Unavailable("the gate did not answer") from error
            for entry, answer in zip(batch, answers, strict=True):
                decoded = gate.decode_settle(answer)
                if isinstance(decoded, gate.Gap):
                    # Redis is further back than it said: another server. Start again from where it is.
                    return decoded.applied_seq
                if isinstance(decoded, gate.NotReady):
                    raise Unavailable("the gate is being rebuilt")
                applied_seq = entry.seq
        return applied_seq

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
                return limit_exceeded(attempt.rules, index, free, retry_after_ms)
            case gate.Throttled(index=index, retry_after_ms=retry_after_ms):
                return throttled(attempt.rules.in_force(self.clock.now_s()).budgets[index], retry_after_ms)
            case gate.OverBudget(index=index, left=left):
                now_s = self.clock.now_s()
                return budget_exceeded(attempt.rules.in_force(now_s).budgets[index], left, now_s)
            case gate.NotReady(reason="no_lease"):
                self.lease_until_s = 0.0
                return LeaseLost("this worker is rejoining")
            case _:
                self._is_in_step = False
                return Unavailable("the gate is being rebuilt")


def _sort_out(orphan: Orphan) -> tuple[dict[str, Dispatched], list[Settled]]:
    """(attempts that were dispatched and never settled, settles in order). Blocks on the disk."""
    open_attempts: dict[str, Dispatched] = {}
    settles: list[Settled] = []
    for entry in orphan.entries():
        if isinstance(entry, Dispatched):
            open_attempts[entry.attempt_id] = entry
        else:
            open_attempts.pop(entry.attempt_id, None)
            settles.append(entry)
    return open_attempts, settles


def _goes_on(attempt: Attempt, outcome: Outcome) -> bool:
    """Whether the provider goes on with it, or may: it was sent, and nothing has said how it ended."""
    call = attempt.described.call
    outlives = call.is_background or call.batch_requests > 0
    return outlives and attempt.is_dispatched and outcome.may_have_been_billed and outcome.usage is None


def _job(attempt: Attempt, worker: str, seq: int) -> Job:
    call, deployment = attempt.described.call, attempt.upstream.deployment
    assert deployment.price is not None, "an attempt is only admitted with a price"
    return Job(
        kind=call.kept_kind,
        deployment_id=deployment.deployment_id,
        price=price_of(call, deployment.price),
        credential_id=attempt.credential_id,
        worker=worker,
        seq=seq,
    )


def _event(prepared: Prepared, now_s: float) -> UsageEvent:
    described, deployment = prepared.described, prepared.upstream.deployment
    subject = described.subject
    return UsageEvent(
        attempt_id=new_id(),
        request_id=described.request_id,
        attempt_number=prepared.attempt_number,
        admitted_at_us=int(now_s * 1_000_000),
        team_id=subject.team.team_id,
        project_id=subject.project.project_id,
        virtual_key_id=subject.key.key_id,
        environment=subject.project.environment,
        end_user=described.end_user,
        alias=described.call.alias,
        downgraded_from=described.downgraded_from,
        provider=deployment.provider,
        model=deployment.model,
        deployment=deployment.name,
        pool=deployment.pool,
        operation=described.call.operation,
        request_model=deployment.upstream_model,
        is_stream=described.call.is_stream,
        price_id=deployment.price.price_id if deployment.price else "",
        terms=deployment.price.terms if deployment.price else LIST_TERMS,
        tags=described.tags,
        tag_sources=described.tag_sources,
        route=described.candidates,
    )


def needed_tokens(output_bytes: int, output_chunks: int, shown_s: float) -> int:
    """How many tokens of output the hold of a stream is to cover that has come so far: its bytes bound them from above, and the
    provider is some way ahead of what we have read; a fast one goes far (a token a chunk, for all we know) while its
    stream waits for room."""
    meanwhile = ceil(pace_of(output_chunks, shown_s) * (EXTEND_WAIT_S + ROOM_POLL_S))
    return HIDDEN_OUTPUT_TOKENS + max(output_bytes + EXTEND_AHEAD_TOKENS, output_chunks + meanwhile)


def _hold_sizes(prepared: Prepared, tranche_tokens: int) -> tuple[int, int]:
    """(the whole worst case, with `tranche_tokens` of output only) in nano-USD."""
    described, deployment = prepared.described, prepared.upstream.deployment
    call = described.call
    assert deployment.price is not None
    input_tokens = input_tokens_max(call, deployment)
    output_tokens = output_tokens_max(described, prepared.upstream)
    if call.is_free:
        return 0, 0
    if call.batch_requests:
        rates = _ceiling(price_of(call, deployment.price), prepared, call.input_tokens_max)
        full = _hold(rates_of_all(rates, call.batch_requests), call, call.input_tokens_max, output_tokens)
        return full, full
    rates = _ceiling(deployment.price, prepared, input_tokens)
    full = _hold(rates, call, input_tokens, output_tokens)
    return full, full if tranche_tokens == output_tokens else _hold(rates, call, input_tokens, tranche_tokens)


def _token_sizes(prepared: Prepared, tranche_tokens: int) -> tuple[int, int]:
    """As `_hold_sizes`, in tokens."""
    call, deployment = prepared.described.call, prepared.upstream.deployment
    if call.is_free:
        return 0, 0
    # The requests of a batch have a context each.
    input_tokens = call.input_tokens_max if call.batch_requests else input_tokens_max(call, deployment)
    output_tokens = output_tokens_max(prepared.described, prepared.upstream)
    return input_tokens + output_tokens, input_tokens + tranche_tokens


def _ceiling(price: Price, prepared: Prepared, input_tokens: int) -> Rates:
    """The dearest rates that this attempt may be billed at."""
    return ceiling(price, input_tokens, service_tiers=prepared.service_tiers, may_be_in_geo=prepared.may_be_in_geo)


def _hold(rates: Rates, call: Call, input_tokens: int, output_tokens: int) -> int:
    return hold_nanos(
        rates,
        input_tokens,
        output_tokens,
        units_max=call.units_max,
        tool_calls_max=call.tool_calls_max,
        has_audio=call.has_audio,
        has_images=call.has_images,
    )


def input_tokens_max(call: Call, deployment: Deployment) -> int:
    """What the provider may bill as input at most. A chat fits into a context, and into one more for each run of the provider's
    own tools, whose findings it reads with all that was there before; other calls hold many inputs."""
    if call.capability != "chat" and not call.is_session:
        return call.input_tokens_max
    context_tokens = max(deployment.context_window, call.context_tokens, 1)
    return min(call.input_tokens_max, context_tokens * (1 + call.tool_calls_max))


def output_tokens_max(described: Described, upstream: Upstream) -> int:
    """What the provider may bill as output at most."""
    call = described.call
    most = upstream.deployment.max_output_tokens if call.output_tokens_max is None else call.output_tokens_max
    return most * call.choices


def _limit_costs(attempt: Attempt) -> list[int]:
    """What the attempt takes of each of its rates, in their nanoseconds. Of tokens its likely ones, of money its hold, corrected at
    settle; and the whole burst at most, so that no request is too large for ever."""
    rules = attempt.rules
    if not rules.estimated:
        return rules.costs_of_one
    call, costs = attempt.described.call, list(rules.costs_of_one)
    output = (ASSUMED_OUTPUT_TOKENS if call.output_tokens_max is None else call.output_tokens_max) * call.choices
    # Of a session nobody knows what will be said.
    heard = 0 if call.is_session else input_tokens_max(call, attempt.upstream.deployment) // BYTES_PER_TOKEN
    for index, check, metric in rules.estimated:
        costs[index] = min(check.cost_ns(_metered(metric, heard, output, attempt.full_nanos)), check.capacity)
    return costs


def _corrections(attempt: Attempt, event: UsageEvent) -> list[tuple[str, int]]:
    usage, nanos, taken_ns = event.usage, event.cost_nanos, attempt.costs_ns
    heard, said = usage.input_tokens, usage.output_tokens
    return [
        (check.key, check.cost_ns(_metered(metric, heard, said, nanos)) - taken_ns[index])
        for index, check, metric in attempt.rules.estimated
    ]


def _metered(metric: str, input_tokens: int, output_tokens: int, nanos: int) -> int:
    match metric:
        case "input_tokens":
            return input_tokens
        case "output_tokens":
            return output_tokens
        case "tokens":
            return input_tokens + output_tokens
        case _:
            return nanos


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


def _value_in(described: Described, upstream: Upstream, dimension: str) -> str:
    """Of a call, as subjects of rules name it (`budgets.matching`)."""
    deployment = upstream.deployment
    match dimension:
        case "end_user":
            return described.end_user
        case "alias":
            return described.call.alias
        case "model":
            return deployment.model
        case "provider":
            return deployment.provider
        case "deployment":
            return deployment.deployment_id
        case "pool":
            return deployment.pool
        case _:
            return described.tags.get(dimension.removeprefix("tag:"), "")
