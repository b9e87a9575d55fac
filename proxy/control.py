"""The worker's ear: snapshot, virtual keys and kill switches by push and by poll, and the lease that says it still hears.

Push is a hint, the versions polled with each heartbeat are the truth. A worker that has not been heard for its lease
admits nothing and cuts its streams.
"""

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import msgspec
import structlog

from budgets import gate
from keys.kills import KillFlag, decode_flag
from proxy.admission import Admission
from proxy.ask import ask, call
from proxy.authenticate import KeyCache
from proxy.clock import Clock
from proxy.errors import LeaseLost, Unavailable
from proxy.journal import Orphan, adopt, recorded_workers
from proxy.live import LiveRequests
from proxy.metrics import Counts, WorkerStatus, encode_status
from proxy.registry import OpenSealed, Registry
from proxy.replay import take_over
from proxy.route import halted
from proxy.snapshot import decode_snapshot
from proxy.wire.redis import RedisPipeline, RedisReplyError

log = structlog.get_logger()

BEAT_INTERVAL_S = 1.0
LAPSE_CHECK_INTERVAL_S = 0.25
ADOPT_INTERVAL_S = 2.0
# Half of a trip is how far off the clock may be: one that took longer (this process was paused) says nothing.
CLOCK_TRIP_S_MAX = 0.5
ACK_EXPIRES_S = 7 * 24 * 3600
CUT_WAIT_S = 1.0
ACK_POLL_S = 0.002
ACK_WAIT_S = 5.0
SNAPSHOT_FILE = "snapshot.json"
_RUN_ID = re.compile(rb"run_id:(\w+)")


class Push(msgspec.Struct):
    """One message of `tg:push`."""

    kind: str
    version: int = 0
    keys_version: int = 0
    digest: str = ""
    field: str = ""
    flag: KillFlag | None = None


_decode_push = msgspec.json.Decoder(Push).decode


class Control:
    def __init__(
        self,
        *,
        redis: RedisPipeline,
        admission: Admission,
        keys: KeyCache,
        live: LiveRequests,
        clock: Clock,
        counts: Counts,
        data_dir: Path,
        open_sealed: OpenSealed,
    ) -> None:
        self.registry: Registry | None = None
        self.kills: dict[str, KillFlag] = {}
        self._redis = redis
        self._admission = admission
        self._keys = keys
        self._live = live
        self._clock = clock
        self._counts = counts
        self._snapshot_path = data_dir / SNAPSHOT_FILE
        self._open_sealed = open_sealed
        self._refused_version = 0
        self._keys_version = -1
        self._kills_version = -1
        self._epoch = ""
        self._run_id = ""
        # (the server's run id, its number for our last connection)
        self._last_connection: tuple[str, int] | None = None
        # The workers that were alive when last heard.
        self._living: frozenset[str] = frozenset()
        self.ingested_seq = 0
        self._started_at_s = time.time()
        self._adopted: list[tuple[Orphan, bytes]] = []
        self._keeping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # Life

    def load_last_good(self) -> None:
        """The snapshot kept on disk, so that a worker can start while everything else is down."""
        try:
            body = self._snapshot_path.read_bytes()
        except FileNotFoundError:
            return
        self._swap(body)

    def start(self) -> None:
        self._spawn(self._forever(self._beat_and_keep_house, BEAT_INTERVAL_S))
        self._spawn(self._forever(self._check_lapse, LAPSE_CHECK_INTERVAL_S))
        # Apart from the beat: a long journal to replay must not cost this worker its own lease.
        self._spawn(self._forever(self._adopt_orphans, ADOPT_INTERVAL_S))

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leave_orphans()
        with contextlib.suppress(Unavailable):
            await self._leave()

    async def _leave(self) -> None:
        """Hear once more, after the settles on their way; then nobody is to wait for us. Raises `Unavailable`."""
        await self.beat()
        if self._admission.is_in_step and not self._admission.journal.open_attempts():
            argument = gate.encode_reap(worker=self._admission.worker, is_dead=True, void_attempt_ids=())
            await ask(self._redis, gate.REAP, argument)

    async def connected(self, _redis: RedisPipeline) -> None:
        """After each connect of the command connection: hear everything anew before anything is admitted."""
        self._admission.fall_out_of_step()
        self._epoch = ""
        self._run_id = await self._ask_run_id()
        await self._end_last_connection()
        await self._join()

    async def _ask_run_id(self) -> str:
        try:
            found = _RUN_ID.search(await self._redis.call(b"INFO", b"server"))
        except RedisReplyError as error:
            log.warning("this Redis user may not ask which server it is: a failover is not noticed", reason=str(error))
            return ""
        return found[1].decode() if found else ""

    async def _end_last_connection(self) -> None:
        """At the server's side too: what we gave up may still be on its way there (a slow network)."""
        try:
            number = await self._redis.call(b"CLIENT", b"ID")
            # Another server numbers its connections anew, and has heard nothing of ours.
            if self._last_connection is not None and self._last_connection[0] == self._run_id:
                await self._redis.call(b"CLIENT", b"KILL", b"ID", self._last_connection[1])
            self._last_connection = self._run_id, number
        except RedisReplyError as error:
            log.warning("this Redis user may not end our last connection", reason=str(error))

    async def resubscribed(self) -> None:
        """After each connect of the push connection: what was pushed in between is lost, so look."""
        self._keys.clear()
        with contextlib.suppress(Unavailable):
            await self.beat()

    # Hearing

    async def beat(self) -> None:
        """Renew the lease and follow the versions. Raises `Unavailable`."""
        if not await self._tell():
            # It ran out, or Redis has lost it.
            await self._join()

    async def _join(self) -> None:
        """Begin a new lease: what was said under the last one, and comes late, is not heard. Raises `Unavailable`."""
        self._admission.begin_lease()
        recorded = recorded_workers(self._admission.journal.directory)
        await self._tell(gate.Join(self._run_id, sorted(self._living | recorded)))

    async def _tell(self, join: gate.Join | None = None) -> bool:
        """One beat; false where the lease is not ours (any more). Raises `Unavailable`."""
        asked_at_s, wall_s = self._clock.monotonic_s(), time.time()
        argument = gate.encode_heartbeat(
            worker=self._admission.worker,
            fence=self._admission.fence,
            lease_ms=int(self._admission.lease_s * 1000),
            status=encode_status(self.status()),
            is_in_step=self._admission.is_in_step,
            join=join,
        )
        beat = gate.decode_heartbeat(await ask(self._redis, gate.HEARTBEAT, argument))
        if isinstance(beat, gate.NotReady):
            return False
        if self._clock.monotonic_s() - asked_at_s < CLOCK_TRIP_S_MAX:
            self._clock.correct(beat.time_us, (wall_s + time.time()) / 2)
        await self._check_lapse()  # A lease that lapsed while we asked does not come back to life unnoticed.
        self._admission.lease_until_s = asked_at_s + self._admission.lease_s
        self.ingested_seq = beat.ingested_seq
        # Until the gate is open, some of those who were alive have yet to come.
        self._living = self._living | beat.living if beat.is_opening or not beat.epoch else beat.living
        if not beat.epoch:
            self._admission.fall_out_of_step()
            return True
        await self._follow(beat)
        if beat.epoch != self._epoch or not self._admission.is_in_step:
            # What was written for the dead may be gone with another server: it is written again.
            self._leave_orphans()
            await self._admission.catch_up(beat.applied_seq)
            self._epoch = beat.epoch
            if beat.is_opening:
                self._spawn(self._help_to_open())
                return await self._tell()
        return True

    async def _follow(self, beat: gate.Beat) -> None:
        is_other_server = beat.epoch != self._epoch
        if is_other_server or beat.keys_version > self._keys_version:
            self._keys.clear()
            self._keys_version = beat.keys_version
        if is_other_server or beat.kills_version != self._kills_version:
            await self._load_kills(beat.kills_version)
        current = self.registry.version if self.registry else -1
        if beat.snapshot_version not in (current, self._refused_version):
            await self._load_snapshot(beat.snapshot_version)

    def pushed(self, body: bytes) -> None:
        """One message of the push channel; nonsense is logged and left."""
        try:
            push = _decode_push(body)
        except msgspec.DecodeError:
            log.error("push message is not readable")
            return
        if push.kind == "key":
            self._keys.forget(push.digest)
            # Only the next version in line: after a gap the poll clears the cache.
            if push.keys_version == self._keys_version + 1:
                self._keys_version = push.keys_version
        elif push.kind == "snapshot":
            self._spawn(self._load_snapshot(push.version))
        elif push.kind == "kill" and push.flag is not None:
            self._throw(push.flag)
        elif push.kind == "lift":
            self.kills.pop(push.field, None)

    async def _load_snapshot(self, version: int) -> None:
        body = await call(self._redis, b"GET", gate.SNAPSHOT)
        if not isinstance(body, bytes) or not self._swap(body):
            self._refused_version = version  # Asking for it again, each second, would not make it better.
            return
        async with self._keeping:
            await asyncio.to_thread(self._keep, body)

    def _swap(self, body: bytes) -> bool:
        """Decode, check, compile, then swap. A bad snapshot is refused and the last good one serves on."""
        try:
            registry = Registry(decode_snapshot(body), self._open_sealed)
        except ValueError as error:  # msgspec's errors are ValueErrors too.
            log.error("snapshot refused", reason=str(error))
            return False
        if self.registry is not None and registry.version < self.registry.version and self._epoch:
            return False
        self.registry = registry
        log.info("snapshot in force", version=registry.version)
        return True

    def _keep(self, body: bytes) -> None:
        temporary = self._snapshot_path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # A full disk costs the next cold start, not this one.
            temporary.write_bytes(body)
            temporary.chmod(0o600)
            temporary.replace(self._snapshot_path)

    # Kill switches

    async def _load_kills(self, version: int) -> None:
        values = await call(self._redis, b"HVALS", gate.KILLS)
        flags = {flag.field: flag for flag in map(decode_flag, values or ())}
        new = [flag for field, flag in flags.items() if self.kills.get(field) != flag]
        self.kills = flags
        self._kills_version = version
        for flag in new:
            self._throw(flag)

    def _throw(self, flag: KillFlag) -> None:
        """Cut what the flag covers, at once, and acknowledge when it has ended."""
        began_at_s = self._clock.monotonic_s()
        self.kills[flag.field] = flag
        cut = self._live.cut_matching(flag.field, halted(flag))
        self._counts.streams_cut += cut
        self._spawn(self._acknowledge(flag, cut, began_at_s))

    async def _acknowledge(self, flag: KillFlag, cut: int, began_at_s: float) -> None:
        deadline_s = began_at_s + CUT_WAIT_S
        # Polled: an event to wait for would cost every request, and a kill is rare.
        while self._live.any_cut_by_kill(flag.kill_switch_id) and self._clock.monotonic_s() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(ACK_POLL_S)
        elapsed_ms = round((self._clock.monotonic_s() - began_at_s) * 1000)
        ack = msgspec.json.encode({"streams_cut": cut, "elapsed_ms": elapsed_ms, "at_s": self._clock.now_s()})
        key = gate.kill_acks_key(flag.kill_switch_id)
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(ACK_WAIT_S):
                await self._redis.wait_until_ready()
            # A worker that hears of it twice, by push and by poll, answers once.
            await call(self._redis, b"HSETNX", key, self._admission.worker, ack)
            await call(self._redis, b"EXPIRE", key, ACK_EXPIRES_S)

    # Keeping house

    async def _beat_and_keep_house(self) -> None:
        if not self._redis.is_ready:
            return
        await self.beat()
        await self._admission.tell_refused()
        self._admission.journal.forget(self.ingested_seq)
        await asyncio.to_thread(self._admission.journal.sync)

    async def _adopt_orphans(self) -> None:
        """Finish what dead workers of this host left; their files go once PostgreSQL has what they hold."""
        if not self._admission.is_ready:
            return
        journal = self._admission.journal
        for orphan in adopt(journal.directory, journal.worker):
            with contextlib.ExitStack() as until_taken_over:
                until_taken_over.callback(orphan.release)
                last_entry = await take_over(
                    self._redis, orphan, by=self._admission.worker, fence=self._admission.fence
                )
                until_taken_over.pop_all()
            self._adopted.append((orphan, last_entry))
        for orphan, last_entry in list(self._adopted):
            waiting = await call(self._redis, b"XRANGE", gate.USAGE, b"-", last_entry, b"COUNT", 1)
            if not waiting and (orphan, last_entry) in self._adopted:
                self._adopted.remove((orphan, last_entry))
                orphan.remove()

    async def _help_to_open(self) -> None:
        """The dead are waited for too."""
        log.info("this Redis began anew: nothing is admitted before all who may hold something are back")
        await self._redis.wait_until_ready()
        await self._adopt_orphans()
        await self.beat()

    def _leave_orphans(self) -> None:
        """Whoever looks for orphans next finds them, and takes them over from the start."""
        for orphan, _ in self._adopted:
            orphan.release()
        self._adopted.clear()

    async def _check_lapse(self) -> None:
        if not self._admission.has_lease and len(self._live):
            self._live.cut_all(LeaseLost("this worker lost its lease; the request was stopped"))

    def status(self) -> WorkerStatus:
        return WorkerStatus(
            worker=self._admission.worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at_s=self._started_at_s,
            at_s=self._clock.now_s(),
            snapshot_version=self.registry.version if self.registry else 0,
            kills_version=self._kills_version,
            is_ready=self._admission.is_ready,
            live_requests=len(self._live),
            live_streams=self._live.streams(),
            rss_bytes=_rss_bytes(),
            tasks=len(asyncio.all_tasks()),
            journal_seq=self._admission.journal.seq,
            ingested_seq=self.ingested_seq,
            counts=self._counts,
        )

    # Tasks

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._logged(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _logged(self, coroutine: Coroutine[None, None, None]) -> None:
        try:
            await coroutine
        except Unavailable as error:
            log.warning("control step put off", reason=error.message)

    async def _forever(self, step: Callable[[], Coroutine[None, None, None]], interval_s: float) -> None:
        while True:
            try:
                await step()
            except Unavailable as error:
                log.warning("control step put off", step=step.__name__, reason=error.message)
            except Exception:
                log.exception("control step failed", step=step.__name__)
            await asyncio.sleep(interval_s)


def _rss_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
