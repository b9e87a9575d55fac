"""What a measurement needs: Redis, the static upstream, the proxy with everything on, each on its core, all gone at the end."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from budgets import gate
from controlplane import embedded, processes
from keys import tokens
from proxy.metrics import decode_status
from proxy.snapshot import Budget, KeyRecord, Limit, encode
from tests.stack import ControlPlane, Process, Proxy, free_port, wait_until

PROXY_CORE = 0
OTHER_CORE = 1 if (os.cpu_count() or 1) > 1 else 0
TRIM_EVERY_S = 0.5
AMPLE_NANOS = 9_000_000 * 10**9
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Rig:
    def __init__(self, directory: Path, redis_url: str, workers: int = 1) -> None:
        self.directory = directory
        self.redis = redis.Redis.from_url(redis_url)
        self.upstream_port = free_port()
        argv = [sys.executable, "-m", "bench.upstream", str(self.upstream_port)]
        self._upstream = Process(argv, dict(os.environ), directory / "upstream.log")
        pin(self._upstream.process.pid, OTHER_CORE)
        self.control = ControlPlane(redis_url, f"http://127.0.0.1:{self.upstream_port}")
        self.secrets = self._configure()
        self.proxy = Proxy(directory, redis_url, free_port(), workers)
        wait_until(lambda: self._ready_workers() == workers, "the workers", self.proxy.process.log)
        if workers == 1:
            for pid in self.workers():
                pin(pid, PROXY_CORE)

    def workers(self) -> list[int]:
        return self.proxy.workers()

    def _ready_workers(self) -> int:
        return sum(decode_status(body).is_ready for body in self.redis.hvals(gate.WORKERS))

    def _configure(self) -> tuple[str, ...]:
        """Everything on: tags demanded, every limit set, eight budgets over team, project and key."""
        subjects = {"team": self.control.team.team_id, "project": self.control.project.project_id}
        self.control.publish(
            budgets=tuple(
                _budget(f"{scope}-{window}", {scope: subject_id}, window)
                for scope, subject_id in subjects.items()
                for window in ("hour", "day", "month")
            ),
            limits=tuple(
                Limit(limit_id=f"team-{metric}", subject={"team": subjects["team"]}, metric=metric, amount=amount)
                for metric, amount in (("requests", 10**8), ("tokens", 10**12), ("concurrency", 100_000))
            ),
            project={"required_tags": ("feature",)},
        )
        secrets = self.issue(100)
        self.control.open()
        return secrets

    def issue(self, count: int) -> tuple[str, ...]:
        """So many virtual keys, each with budgets and limits of its own; in bulk, as a rebuild would write them."""
        minted = [tokens.mint() for _ in range(count)]
        pipeline = self.redis.pipeline(transaction=False)
        for number, token in enumerate(minted):
            pipeline.hset(gate.KEYS, token.digest, encode(self._record(number, token.digest)))
            if number % 5_000 == 4_999:
                pipeline.execute()
        pipeline.execute()
        return tuple(token.secret for token in minted)

    def _record(self, number: int, digest: str) -> KeyRecord:
        key_id = f"00000000-0000-7000-8000-{digest[:12]}"
        subject = {"key": key_id}
        return KeyRecord(
            key_id=key_id,
            version=1,
            name="bench",
            project_id=self.control.project.project_id,
            aliases=("demo",),
            budgets=tuple(_budget(f"key-{window}-{number}", subject, window) for window in ("day", "month")),
            limits=(Limit(limit_id=f"key-{number}", subject=subject, metric="concurrency", amount=1_000),),
        )

    def resident_bytes(self) -> int:
        """Of the fattest worker."""
        return max(_resident_bytes(pid) for pid in self.workers())

    def cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in self.workers())

    def close(self) -> None:
        self.proxy.process.stop()
        self._upstream.stop()
        self.control.redis.close()
        self.redis.close()


def _budget(budget_id: str, subject: dict[str, str], window: str) -> Budget:
    return Budget(budget_id=budget_id, name=budget_id, subject=subject, window=window, amount=AMPLE_NANOS)


@contextlib.contextmanager
def rig(workers: int = 1) -> Iterator[Rig]:
    directory = Path(tempfile.mkdtemp(prefix="tg-bench-"))
    server = embedded.Redis(directory / "redis")
    server.prepare()
    with (directory / "redis.log").open("ab") as log:
        process = processes.start(server.argv, stop_signal=server.stop_signal, output=log)
    pin(process.pid, OTHER_CORE)
    wait_until(server.is_ready, "Redis")
    stop = threading.Event()
    made: Rig | None = None
    try:
        made = Rig(directory, server.url, workers)
        threading.Thread(target=_ingest_nothing, args=(server.url, stop), daemon=True).start()
        yield made
    finally:
        stop.set()
        if made is not None:
            made.close()
        processes.kill_group(process)
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def server(argv: list[str], port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another server to compare with, its processes on the proxy's core."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(PROXY_CORE), *argv],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(lambda: is_listening(port), argv[0], Path(log.name), timeout_s=120)
            yield process
        finally:
            processes.kill_group(process)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def pin(pid: int, core: int) -> None:
    """Every thread of the process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), {core})


def _ingest_nothing(url: str, stop: threading.Event) -> None:
    """In the place of ingest: empties the stream and publishes the watermarks, so that journals and memory stay small."""
    with redis.Redis.from_url(url) as client:
        while not stop.wait(TRIM_EVERY_S):
            try:
                applied = client.hgetall(gate.APPLIED)
                client.xtrim(gate.USAGE, maxlen=0, approximate=False)
                if applied:
                    client.hset(gate.INGESTED, mapping=applied)
            except redis.RedisError:
                time.sleep(TRIM_EVERY_S)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S
