"""ADMIT, EXTEND and SETTLE: the data path's only talk with the gate, and the journal that makes it safe to interrupt.

An `Attempt` is one upstream call with a hold. Settling never waits: it is journaled and sent; what Redis did not confirm is
replayed from the journal in order, which is idempotent because a worker's settles are numbered.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from audit.records import LIST_TERMS, Usage, UsageEvent, encode_event
from budgets import gate
from budgets.limits import NEVER_FITS
from budgets.matching import scope_of
from budgets.pricing import Price, Rates, ceiling, cost_nanos, currency_cost_nanos, hold_nanos
from keys.kills import decode_flag
from proxy.ask import ask, call, send
from proxy.authenticate import Subject
from proxy.clock import Clock
from proxy.describe import Described
from proxy.dialects.dialect import Call
from proxy.errors import (
    BudgetExceeded,
    GatewayError,
    LeaseLost,
    LimitExceeded,
    TrafficHalted,
    Unavailable,
    UnpricedModel,
)
from proxy.ids import new_id
from proxy.jobs import Job, price_of, rates_of_all
from proxy.journal import Dispatched, Journal, JournalUnwritable, Orphan, Settled
from proxy.prepare import Prepared
from proxy.providers.provider import Kept
from proxy.registry import Upstream
from proxy.snapshot import Deployment
from proxy.wire.redis import RedisError, RedisPipeline

log = structlog.get_logger()

TRANCHE_TOKENS = 1024
# Output that never shows as text: end-of-turn tokens, the frame around tool calls.
HIDDEN_OUTPUT_TOKENS = 64
BYTES_PER_TOKEN = 4
# What a request is taken to answer with, for the token limit, where the client set no cap. Corrected at settle.
ASSUMED_OUTPUT_TOKENS = 256
REPLAY_BATCH = 500


class Attempt:
    """One upstream call under a hold. Money in nano-USD, moments in seconds of the monotonic clock."""

    __slots__ = (
        "admit_argument",
        "attempt_id",
        "costs",
        "counters",
        "credential_id",
        "described",
        "event",
        "first_token_at_s",
        "full_nanos",
        "held_nanos",
        "is_dispatched",
        "is_settled",
        "prepared",
        "remaining",
        "remember",
        "reset_ms",
        "started_at_s",
        "subject",
        "upstream",
    )

    def __init__(self, prepared: Prepared, event: UsageEvent, started_at_s: float) -> None:
        self.attempt_id = event.attempt_id
        self.prepared = prepared
        self.described = prepared.described
        self.subject: Subject = prepared.described.subject
        self.upstream = prepared.upstream
        self.event = event
        self.started_at_s = started_at_s
        self.first_token_at_s: float | None = None
        self.full_nanos = 0
        self.held_nanos = 0
        self.counters: Sequence[gate.BudgetCounter] = ()
        self.costs: list[int] = []
        self.admit_argument = b""
        self.remaining: Sequence[int] = ()
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

    @property
    def is_ready(self) -> bool:
        return self._is_in_step and self._redis.is_ready and self.has_lease

    @property
    def has_lease(self) -> bool:
        return self.clock.monotonic_s() < self.lease_until_s

    # Admit and extend

    async def admit(self, prepared: Prepared) -> Attempt:
        """Hold the money for one attempt, journal it, and return it. Raises a GatewayError; then nothing is held."""
        if not self.is_ready:
            raise Unavailable("the gateway cannot admit requests now")
        described, upstream = prepared.described, prepared.upstream
        deployment = upstream.deployment
        if deployment.price is None:
            raise UnpricedModel(
                f"`{deployment.model}` has no price at {deployment.provider}: an administrator must set one"
            )
        now_s = self.clock.now_s()
        attempt = Attempt(prepared, _event(prepared, now_s), self.clock.monotonic_s())
        attempt.counters = described.subject.counters(now_s)
        attempt.full_nanos, tranche_nanos = _hold_sizes(prepared)
        attempt.costs = _limit_costs(described, deployment)
        hold = gate.hold_value(attempt.counters, described.subject.running_keys, encode_event(attempt.event))
        attempt.admit_argument = gate.encode_admit(
            worker=self.worker,
            attempt_id=attempt.attempt_id,
            kill_fields=attempt.kill_fields,
            limits=described.subject.limits,
            costs=attempt.costs,
            budgets=attempt.counters,
            full_nanos=attempt.full_nanos,
            tranche_nanos=tranche_nanos,
            hold=hold,
        )
        answer = gate.decode_admit(await self._ask_for_hold(attempt))
        if not isinstance(answer, gate.Admitted):
            raise self._refusal(answer, attempt.subject)
        attempt.held_nanos = answer.held_nanos
        attempt.remaining = answer.remaining
        attempt.reset_ms = answer.reset_ms
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
        await self.extend_by(attempt, hold_nanos(_ceiling(price, attempt.prepared, input_tokens), 0, output_tokens))

    async def extend_by(self, attempt: Attempt, add_nanos: int) -> None:
        """Grow the hold. Raises a GatewayError when the cap has no room."""
        argument = gate.encode_extend(
            worker=self.worker,
            attempt_id=attempt.attempt_id,
            add_nanos=add_nanos,
            kill_fields=attempt.kill_fields,
            budgets=attempt.counters,
        )
        answer = gate.decode_extend(await ask(self._redis, gate.EXTEND, argument))
        if not isinstance(answer, gate.Extended):
            raise self._refusal(answer, attempt.subject)
        attempt.held_nanos = answer.held_nanos
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
        used = event.usage.input_tokens + event.usage.output_tokens
        argument = gate.encode_settle(
            worker=self.worker,
            seq=self.journal.seq + 1,
            attempt_id=attempt.attempt_id,
            cost_nanos=event.cost_nanos,
            budgets=attempt.counters,
            tpm=[(check.key, check.per_minute, used - attempt.costs[i]) for i, check in attempt.subject.token_limits],
            running_keys=attempt.subject.running_keys,
            event=encode_event(event),
            kept_hold=kept_hold,
        )
        self._enter(attempt.attempt_id, argument)
        return event.cost_nanos

    def settle_late(self, event: UsageEvent, budgets: Sequence[gate.BudgetCounter]) -> None:
        """Say what an attempt in suspense has cost. Never waits; whoever says it first is believed."""
        argument = gate.encode_settle(
            worker=self.worker,
            seq=self.journal.seq + 1,
            attempt_id=event.attempt_id,
            cost_nanos=event.cost_nanos,
            budgets=budgets,
            tpm=(),
            running_keys=(),
            event=encode_event(event),
            is_late=True,
        )
        self._enter(event.attempt_id, argument)

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
            usage, source = _estimate(attempt, outcome), "estimated"
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
        argument = gate.restore_of_admit(entry.admit, entry.held_nanos)
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
            self.journal.dispatch(Dispatched(attempt.attempt_id, attempt.held_nanos, attempt.admit_argument))
        except JournalUnwritable as error:
            raise Unavailable("the worker's journal cannot be written", retry_after_s=5) from error

    def _refusal(self, answer: object, subject: Subject) -> GatewayError:
        match answer:
            case gate.Halted(flag=body):
                flag = decode_flag(body)
                return TrafficHalted(flag.reason, kill_switch_id=flag.kill_switch_id, scope=flag.scope)
            case gate.Limited(index=index, remaining=remaining, retry_after_ms=retry_after_ms):
                return _limit_exceeded(subject, index, remaining, retry_after_ms)
            case gate.OverBudget(index=index, left_nanos=left_nanos):
                return _budget_exceeded(subject, index, left_nanos, self.clock.now_s())
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
        alias=described.call.alias,
        provider=deployment.provider,
        model=deployment.model,
        deployment=deployment.name,
        operation=described.call.operation,
        request_model=deployment.upstream_model,
        is_stream=described.call.is_stream,
        price_id=deployment.price.price_id if deployment.price else "",
        terms=deployment.price.terms if deployment.price else LIST_TERMS,
        tags=described.tags,
        tag_sources=described.tag_sources,
        route=described.candidates,
    )


def _hold_sizes(prepared: Prepared) -> tuple[int, int]:
    """(the whole worst case, the first tranche) in nano-USD; equal where output can hide, or nothing streams."""
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
    # What is made in the background goes on, also where a tranche is refused; a session asks by the answer.
    if not (call.is_stream and deployment.output_is_visible) or call.is_background or call.is_session:
        return full, full
    tranche_tokens = min(output_tokens, TRANCHE_TOKENS * call.choices)
    return full, _hold(rates, call, input_tokens, tranche_tokens)


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


def _limit_costs(described: Described, deployment: Deployment) -> list[int]:
    """What the attempt takes of each of its subject's limits. Of a token limit its likely tokens, corrected at settle; and
    the whole minute at most, so that no request is too large for ever."""
    call, subject = described.call, described.subject
    costs = [1] * len(subject.limits)
    if subject.token_limits:
        output = (ASSUMED_OUTPUT_TOKENS if call.output_tokens_max is None else call.output_tokens_max) * call.choices
        # Of a session nobody knows what will be said.
        tokens = output if call.is_session else input_tokens_max(call, deployment) // BYTES_PER_TOKEN + output
        for i, check in subject.token_limits:
            costs[i] = min(tokens, check.per_minute)
    return costs


def _estimate(attempt: Attempt, outcome: Outcome) -> Usage:
    """Tokens of a call whose usage never came: what was seen of the output, and the prompt by its length."""
    seen = max(outcome.output_chunks, -(-outcome.output_bytes // BYTES_PER_TOKEN))
    # Never past what is held: it is the provider that made it longer than it was allowed to.
    output = min(seen, output_tokens_max(attempt.described, attempt.upstream))
    known = outcome.usage_so_far
    if known is not None:
        return msgspec.structs.replace(known, output_tokens=max(output, known.output_tokens))
    call = attempt.described.call
    asked = input_tokens_max(call, attempt.upstream.deployment)
    tiers = attempt.prepared.service_tiers
    return Usage(
        input_tokens=asked // BYTES_PER_TOKEN,
        output_tokens=output,
        units=call.units_max,
        service_tier=tiers[0] if tiers else "",
    )


_KIND_NAMES = {"rpm": "requests per minute", "tpm": "tokens per minute", "running": "requests at once"}


def _limit_exceeded(subject: Subject, index: int, remaining: int, retry_after_ms: int) -> LimitExceeded:
    limit, scope = subject.limits[index], scope_of(subject.limit_rules[index].subject)
    kind = _KIND_NAMES[limit.kind]
    details: dict[str, object] = {"limit": limit.per_minute, "limit_kind": kind, "limit_scope": scope}
    if retry_after_ms == NEVER_FITS:
        return LimitExceeded(
            f"the {scope}'s limit of {limit.per_minute} {kind} never lets this request pass",
            should_retry=False,
            details=details,
        )
    return LimitExceeded(
        f"the {scope}'s limit of {limit.per_minute} {kind} is reached ({remaining} left)",
        retry_after_s=max(1, -(-retry_after_ms // 1000)),
        details=details,
    )


def _budget_exceeded(subject: Subject, index: int, left_nanos: int, now_s: float) -> BudgetExceeded:
    budget, counter = subject.budgets[index], subject.counters(now_s)[index]
    left, scope = max(left_nanos, 0), scope_of(budget.subject)
    return BudgetExceeded(
        f"budget {budget.name!r} of the {scope} (${_usd(budget.amount)} per {budget.window}) "
        f"has ${_usd(left)} left, too little for this request; it resets in {max(0, int(counter.expire_at_s - now_s))} s",
        should_retry=False,
        retry_after_s=None,
        details={
            "budget": budget.name,
            "budget_id": budget.budget_id,
            "scope": scope,
            "window": budget.window,
            "amount_usd": _usd(budget.amount),
            "left_usd": _usd(left),
            "resets_at": int(counter.expire_at_s),
        },
    )


def _usd(nanos: int) -> str:
    """Exact decimal text of nano-USD, at least cents."""
    whole, fraction = divmod(nanos, 1_000_000_000)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{whole}.{digits.ljust(2, '0')}"
