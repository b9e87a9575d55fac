"""What an experiment takes: real processes in directories of their own, and everything gone at its end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import redis

from budgets import gate
from controlplane import embedded
from proxy.config import Config
from proxy.metrics import decode_status
from tests.chaos.books import Books
from tests.chaos.faults import FaultProxy
from tests.chaos.progress import Progress
from tests.e2e.conftest import Tollgate
from tests.stack import ROOT, ControlPlane, Process, Proxy, Simulator, Stack, free_port, wait_until

LEASE_S = 3
# How long Redis is waited for is as in production here: it is what some promises are about.
SETTINGS = {"TOLLGATE_LEASE_S": str(LEASE_S), "TOLLGATE_REDIS_TIMEOUT_S": str(Config.redis_timeout_s)}


class CannotRun(Exception):
    """This machine does not permit the experiment. The message says what is missing."""


class Measured(NamedTuple):
    """What an experiment found. `counts` says how much was run, `detail` what went wrong, for whoever looks into it.

    `is_only_late`: whatever was counted is as promised, and only the time that it took is not. A machine that is busy with
    something else does that too.
    """

    is_held: bool
    figure: str
    counts: str
    detail: str = ""
    is_only_late: bool = False


@dataclass(frozen=True)
class Options:
    """How much is run: `is_short` for each change, else the figures that are promised. What is set goes before either."""

    is_short: bool = False
    first_seed: int = 1
    seeds: int | None = None
    kills: int | None = None
    calls: int | None = None

    def seeds_of(self, *, short: int, full: int) -> range:
        count = self.seeds or (short if self.is_short else full)
        return range(self.first_seed, self.first_seed + count)

    def kills_of(self, *, short: int, full: int) -> int:
        return self.kills or (short if self.is_short else full)

    def calls_of(self, *, short: int, full: int) -> int:
        return self.calls or (short if self.is_short else full)


# Tries the promises of these names; what it found by name.
Run = Callable[["Rig", Options, Sequence[str]], Mapping[str, Measured]]


class Promise(NamedTuple):
    """One line of the scorecard. `name` is what `--only` takes. Promises that have the same `run` are tried together."""

    name: str
    text: str
    wanted: str
    run: Run


def alone(name: str, text: str, wanted: str, run: "Callable[[Rig, Options], Measured]") -> Promise:
    """A promise that is tried by itself."""
    return Promise(name, text, wanted, lambda rig, options, _: {name: run(rig, options)})


class Server:
    """An embedded server that an experiment kills, pauses and starts again on the same data. Its files are in `directory`."""

    def __init__(self, server: embedded.Redis | embedded.Postgres, *arguments: str) -> None:
        self.url = server.url
        self.directory = server.directory
        self.server = server
        self._arguments = arguments
        self.process: Process | None = None

    def start(self) -> None:
        if self.process is not None:
            self.process.stop()
        self.server.prepare()
        argv = [*self.server.argv, *self._arguments]
        self.process = Process(argv, dict(os.environ), self.directory.with_suffix(".log"))
        wait_until(self.server.is_ready, self.server.name, self.process.log)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.process.wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.process.poll() is None:
            self.resume()
            self.process.process.send_signal(self.server.stop_signal)
            self.process.stop()

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.process.pid, number)


class Rig:
    """Makes what is asked for; on leaving the `with`, the last made goes first."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._leaving = contextlib.ExitStack()
        self._simulator: Simulator | None = None

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def progress(self, what: str, total: int) -> Progress:
        return Progress(self.say, what, total)

    def directory(self) -> Path:
        """Of a short name: the path of a Unix socket has room in it. Others may pass through it."""
        directory = Path(tempfile.mkdtemp(prefix="tg-"))
        directory.chmod(0o711)
        self._leaving.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def small_disk(self, path: Path, megabytes: int) -> Path:
        """A file system of its own at `path`. Raises `CannotRun` where nothing may be mounted."""
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", str(path)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            raise CannotRun("a small tmpfs cannot be mounted here")
        self._leaving.callback(subprocess.run, ["umount", "--lazy", str(path)], check=False)
        return path

    def fault_proxy(self, target: str | int) -> FaultProxy:
        proxy = FaultProxy(target)
        self._leaving.callback(proxy.close)
        return proxy

    def redis(self, directory: Path | None = None, *arguments: str) -> Server:
        return self._started(Server(embedded.Redis((directory or self.directory()) / "redis"), *arguments))

    def postgres(self, directory: Path | None = None) -> Server:
        return self._started(Server(embedded.Postgres((directory or self.directory()) / "postgres")))

    def _started(self, server: Server) -> Server:
        self._leaving.callback(server.stop)
        server.start()
        return server

    @property
    def simulator(self) -> Simulator:
        if self._simulator is None:
            self._simulator = Simulator(self.directory(), free_port())
            self._leaving.callback(self._simulator.process.stop)
        return self._simulator

    def stack(self, workers: int = 1, *, redis_url: str = "", control_url: str = "", **environ: str) -> Stack:
        """The data path alone, its configuration written by hand. `redis_url` is what the proxy uses, perhaps by way of a
        fault proxy; `control_url` leads to the same server."""
        redis_url = redis_url or self.redis().url
        control = ControlPlane(control_url or redis_url, self.simulator.url)
        self._leaving.callback(control.redis.close)
        # Whatever is in the counters' history is read from the append-only file.
        control.redis.config_set("auto-aof-rewrite-percentage", "0")
        control.publish()
        control.open()
        proxy = Proxy(self.directory(), redis_url, free_port(), workers, **{**SETTINGS, **environ})
        self._leaving.callback(proxy.process.stop)
        proxy.wait_ready()
        return Stack(self.simulator, control, proxy)

    def tollgate(self, data_dir: Path | None = None, **environ: str) -> Tollgate:
        """All of it, as `manage.py up` starts it."""
        directory = data_dir or self.directory() / "var"
        tollgate = Tollgate(directory, **{**SETTINGS, "TOLLGATE_PROXY_WORKERS": "2", **environ})
        self._leaving.callback(_stop, tollgate)
        tollgate.start()
        return tollgate

    def books(self, tollgate: Tollgate) -> Books:
        books = Books(tollgate.data_dir, tollgate.environ)
        self._leaving.callback(books.close)
        return books


def _stop(tollgate: Tollgate) -> None:
    with contextlib.suppress(AssertionError):  # It was not started.
        tollgate.stop()


def proxy_port(tollgate: Tollgate) -> int:
    return int(tollgate.environ["TOLLGATE_PROXY_PORT"])


def secret_of(tollgate: Tollgate) -> str:
    return tollgate.facts["virtual_key"]


def worker_pids(client: redis.Redis) -> dict[str, int]:
    """The workers that have a lease: name to process id."""
    statuses = [decode_status(body) for body in client.hvals(gate.WORKERS)]
    return {status.worker: status.pid for status in statuses if client.exists(gate.lease_key(status.worker))}


def change(books: Books, code: str) -> None:
    """Have the control plane change something, as `manage.py shell` does it, and wait until the workers know."""
    before = books.redis.hget(gate.VERSIONS, "snapshot")
    command = [sys.executable, "manage.py", "shell", "--command", code]
    subprocess.run(command, cwd=ROOT, env=books.environ, check=True, capture_output=True)
    wait_until(lambda: books.redis.hget(gate.VERSIONS, "snapshot") != before, "the new snapshot")
    version = int(books.redis.hget(gate.VERSIONS, "snapshot") or 0)

    def is_in_force() -> bool:
        statuses = [decode_status(body) for body in books.redis.hvals(gate.WORKERS)]
        return all(status.snapshot_version >= version for status in statuses)

    wait_until(is_in_force, "the workers")


def kill_process(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()


def waited(condition: Callable[[], bool], timeout_s: float) -> float | None:
    """Seconds until `condition` held; None when it did not in time."""
    began_at_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_at_s > timeout_s:
            return None
        time.sleep(0.02)
    return time.monotonic() - began_at_s
