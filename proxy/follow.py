"""Following jobs to their end: the providers are asked how far they are, and what is over is settled at what it has used.

`tg:jobs` has each job and when it is to be looked at next; one worker at a time takes what is due. Should two look at the
same one, the first to settle it is believed and the second changes nothing.
"""

import asyncio

import msgspec
import structlog

from audit.records import Usage, UsageEvent, UsageSource, decode_event
from budgets import gate
from budgets.pricing import currency_cost_nanos
from proxy.admission import Admission
from proxy.ask import call
from proxy.call import fetch
from proxy.clock import Clock
from proxy.control import Control
from proxy.dialects import anthropic_batches, openai_batches
from proxy.dialects.anthropic import MESSAGES
from proxy.dialects.dialect import BATCH, MESSAGE_BATCH, RESPONSE, Dialect
from proxy.dialects.openai_stored_responses import READ_RESPONSE
from proxy.errors import Unavailable, UpstreamFailed
from proxy.jobs import Job, cost_of, decode_job
from proxy.metrics import Counts
from proxy.providers.provider import Api
from proxy.providers.stored import Progress, StoredApi
from proxy.registry import Upstream
from proxy.wire import http1
from proxy.wire.frame import StreamTooLarge
from proxy.wire.json_lines import JSONLinesParser
from proxy.wire.redis import RedisPipeline

log = structlog.get_logger()

TURN = "tg:jobs:turn"
TURN_INTERVAL_S = 1.0
JOBS_PER_TURN = 64
JOBS_AT_ONCE = 8
# Nobody else looks at a job for so long, and while its results are read, which may take a while.
CLAIM_S = 30
READING_CLAIM_S = 900
# The older a job, the longer it takes: it is looked at after a twentieth of its age.
AGE_PARTS = 20
CHECK_MIN_S = 1.0
CHECK_MAX_S = 300.0
# A job that was made anew from the ledger does not say which credential it is under: each has its turn meanwhile.
UNKNOWN_AFTER_S = 24 * 3600
STATE_BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 64 * 1024 * 1024
BYTES_PER_TOKEN = 4

_DIALECTS: dict[str, Dialect] = {
    BATCH: openai_batches.READ_BATCH,
    MESSAGE_BATCH: anthropic_batches.READ_BATCH,
    RESPONSE: READ_RESPONSE,
}


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has used, all its requests together."""

    progress: Progress
    usage: Usage
    requests: int
    source: UsageSource


class Follower:
    def __init__(
        self,
        *,
        redis: RedisPipeline,
        admission: Admission,
        control: Control,
        pool: http1.UpstreamPool,
        clock: Clock,
        counts: Counts,
    ) -> None:
        self._redis = redis
        self._admission = admission
        self._control = control
        self._pool = pool
        self._clock = clock
        self._counts = counts
        self._at_once = asyncio.Semaphore(JOBS_AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._forever())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _forever(self) -> None:
        while True:
            try:
                await self._take_turn()
            except Unavailable as error:
                log.warning("jobs are not looked at", reason=error.message)
            except Exception:
                log.exception("looking at jobs failed")
            await asyncio.sleep(TURN_INTERVAL_S)

    async def _take_turn(self) -> None:
        if not self._admission.is_ready or self._control.registry is None:
            return
        turn_ms = int(TURN_INTERVAL_S * 1000)
        if await call(self._redis, b"SET", TURN, self._admission.worker, b"NX", b"PX", turn_ms) is None:
            return
        now_s = int(self._clock.now_s())
        due = await call(self._redis, b"ZRANGEBYSCORE", gate.JOBS, 0, now_s, b"LIMIT", 0, JOBS_PER_TURN)
        if not due:
            return
        claims = [part for attempt_id in due for part in (now_s + CLAIM_S, attempt_id)]
        await call(self._redis, b"ZADD", gate.JOBS, b"XX", *claims)
        await asyncio.gather(*(self._look_safely(attempt_id.decode()) for attempt_id in due))

    async def hurry(self, attempt_id: str) -> None:
        """It may be over: look at it soon. Raises `Unavailable`."""
        await call(self._redis, b"ZADD", gate.JOBS, b"XX", 0, attempt_id)

    async def _look_safely(self, attempt_id: str) -> None:
        """One that cannot be followed must not hold up the others."""
        try:
            async with self._at_once:
                await self.look(attempt_id)
        except Unavailable as error:
            log.warning("a job was not looked at", attempt_id=attempt_id, reason=error.message)
        except Exception:
            log.exception("looking at a job failed", attempt_id=attempt_id)

    async def look(self, attempt_id: str) -> None:
        """Settle the job if it is over; nothing where there is none. Raises `Unavailable`."""
        value = await call(self._redis, b"HGET", gate.SUSPENSE, attempt_id)
        if value is None:
            await self._drop(attempt_id)  # Somebody has settled it.
            return
        try:
            hold = gate.decode_kept_hold(value)
            job, event = decode_job(hold.job), decode_event(hold.event)
        except ValueError:  # msgspec's errors are ValueErrors too.
            await self._lose(attempt_id, "it cannot be read")
            return
        if not event.upstream_id:
            await self._lose(attempt_id, "the provider never said what it is called")
            return
        if not await self._is_in_ledger(job):
            await self._look_again(event, CHECK_MIN_S)
            return
        registry = self._control.registry
        upstream = registry.upstreams.get(job.deployment_id) if registry is not None else None
        dialect = _DIALECTS.get(job.kind)
        api = upstream.api_for(dialect, dialect.capability) if upstream is not None and dialect is not None else None
        if upstream is None or not isinstance(api, StoredApi):
            log.error("a job's deployment is gone", attempt_id=attempt_id, deployment_id=job.deployment_id)
            await self._look_again(event, CHECK_MAX_S)
            return
        try:
            ended = await self._ask(upstream, api, job, event)
        except (UpstreamFailed, http1.UpstreamFailure, msgspec.DecodeError, StreamTooLarge) as error:
            log.warning("a job's provider does not say how far it is", attempt_id=attempt_id, reason=str(error))
            await self._look_again(event)
            return
        if ended is not None:
            self._settle(event, job, hold, ended)

    async def _is_in_ledger(self, job: Job) -> bool:
        """Until then it is not settled: were Redis lost in between, the two settles could come back in the wrong order."""
        if not job.seq:
            return True
        ingested = await call(self._redis, b"HGET", gate.INGESTED, job.worker)
        return ingested is not None and int(ingested) >= job.seq

    async def _ask(self, upstream: Upstream, api: StoredApi, job: Job, event: UsageEvent) -> Ended | None:
        """None where it is not over, or cannot be known: it is looked at later, or never again."""
        outgoing = api.read(api.path_of(event.upstream_id), upstream.deployment, upstream.provider)
        response = await fetch(self._pool, upstream, outgoing, self._clock, job.credential_id)
        try:
            if response.status == 404 and (job.credential_id or self._age_s(event) > UNKNOWN_AFTER_S):
                await self._lose(event.attempt_id, "the provider no longer knows it")
                return None
            if response.status != 200:
                raise _unexpected(response.status)
            progress = api.progress(await response.read(STATE_BYTES_MAX))
        finally:
            response.close()
        if not progress.is_over:
            await self._look_again(event)
            return None
        if progress.usage is not None:
            return Ended(progress=progress, usage=progress.usage, requests=progress.requests, source="provider")
        if not progress.is_billed:
            return Ended(progress=progress, usage=Usage(), requests=0, source="none")
        if not progress.results:
            await self._lose(event.attempt_id, "the provider does not say what it has used")
            return None
        await self._look_again(event, READING_CLAIM_S)
        return await self._add_up(upstream, api, job, progress)

    async def _add_up(self, upstream: Upstream, api: StoredApi, job: Job, progress: Progress) -> Ended:
        """The usage of each request that was answered, as its line of the results says."""
        measuring = _measuring_api(upstream, job, progress)
        outgoing = api.read(progress.results, upstream.deployment, upstream.provider)
        response = await fetch(self._pool, upstream, outgoing, self._clock, job.credential_id)
        sum_up = _Sum(api, measuring)
        parser = JSONLinesParser(LINE_BYTES_MAX)
        try:
            if response.status != 200:
                raise _unexpected(response.status)
            while chunk := await response.next_chunk():
                for frame in parser.feed(chunk):
                    sum_up.add(frame.data)
                await asyncio.sleep(0)  # Other requests go on.
        finally:
            response.close()
        last = parser.finish()
        if last is not None:
            sum_up.add(last.data)
        return Ended(progress=progress, usage=sum_up.usage, requests=sum_up.requests, source=sum_up.source)

    def _settle(self, event: UsageEvent, job: Job, hold: gate.KeptHold, ended: Ended) -> None:
        usage = ended.usage
        if job.kind in (BATCH, MESSAGE_BATCH):
            usage = msgspec.structs.replace(usage, batch_requests=ended.requests)
        settled = msgspec.structs.replace(
            event,
            state="posted",
            status_code=200,
            error_type="",
            finish_reason=ended.progress.status,
            response_model=ended.progress.response_model or event.response_model,
            usage=usage,
            usage_source=ended.source,
            cost_nanos=cost_of(usage, job.price, ended.requests),
            currency_cost_nanos=currency_cost_nanos(usage, job.price) if ended.requests else None,
        )
        self._admission.settle_late(settled, hold.budgets)
        self._counts.attempt_settled(settled.usage.input_tokens, settled.usage.output_tokens, settled.cost_nanos)
        if settled.cost_nanos > settled.held_nanos:
            self._counts.over_hold += 1
            log.warning(
                "a job cost more than was held for it",
                deployment=settled.deployment,
                attempt_id=event.attempt_id,
                cost_nanos=settled.cost_nanos,
                held_nanos=settled.held_nanos,
            )
        log.info(
            "a job is settled", attempt_id=event.attempt_id, upstream_id=event.upstream_id, requests=ended.requests
        )

    def _age_s(self, event: UsageEvent) -> float:
        return max(self._clock.now_s() - event.admitted_at_us / 1e6, 0.0)

    async def _look_again(self, event: UsageEvent, after_s: float | None = None) -> None:
        if after_s is None:
            after_s = min(max(self._age_s(event) / AGE_PARTS, CHECK_MIN_S), CHECK_MAX_S)
        await call(self._redis, b"ZADD", gate.JOBS, b"XX", int(self._clock.now_s() + after_s), event.attempt_id)

    async def _lose(self, attempt_id: str, reason: str) -> None:
        """It stays in suspense, at what was held, for somebody to look at."""
        log.error("a job stays in suspense", attempt_id=attempt_id, reason=reason)
        self._counts.jobs_lost += 1
        await self._drop(attempt_id)

    async def _drop(self, attempt_id: str) -> None:
        await call(self._redis, b"ZREM", gate.JOBS, attempt_id)


class _Sum:
    """Of the lines of a batch's results. One that says no usage is estimated by its length."""

    def __init__(self, api: StoredApi, measuring: Api) -> None:
        self._api = api
        self._measuring = measuring
        self.usage = Usage()
        self.requests = 0
        self.source: UsageSource = "provider"

    def add(self, line: bytes) -> None:
        """Raises `msgspec.DecodeError` for a line that is not of the API's shape."""
        body = self._api.line_body(line) if line else None
        if body is None:
            return
        self.requests += 1
        usage = self._measuring.measure(body).usage
        if usage is None:
            usage, self.source = Usage(output_tokens=len(body) // BYTES_PER_TOKEN), "estimated"
        self.usage += usage


def _measuring_api(upstream: Upstream, job: Job, progress: Progress) -> Api:
    """What reads one answer of a batch. Raises `msgspec.DecodeError` where the batch calls what nobody knows."""
    dialect = MESSAGES if job.kind == MESSAGE_BATCH else openai_batches.DIALECTS.get(progress.endpoint)
    api = upstream.api_for(dialect, dialect.capability) if dialect is not None else None
    if api is None:
        raise msgspec.DecodeError("the batch calls an endpoint that is not known")
    return api


def _unexpected(status_code: int) -> UpstreamFailed:
    return UpstreamFailed(f"the provider answered {status_code}", may_have_been_billed=False)
