"""A whole Tollgate, as `make run` starts it, on ports and in a directory of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.stack import REDIS_TIMEOUT_S, ROOT, free_port

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 120.0
# What the tests have set for themselves is not what a user has set.
TEST_SETTINGS = ("DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE", "PYTHONPATH")


class Tollgate:
    """`manage.py up` with its data directory. `output` is what it has printed so far."""

    def __init__(self, data_dir: Path, **environ: str) -> None:
        self.data_dir = data_dir
        own = {name: value for name, value in os.environ.items() if name not in TEST_SETTINGS}
        self.environ = {name: value for name, value in own.items() if not name.startswith("TOLLGATE_")}
        self.environ |= {
            "TOLLGATE_DATA_DIR": str(data_dir),
            "TOLLGATE_ADMIN_PORT": str(free_port()),
            "TOLLGATE_PROXY_PORT": str(free_port()),
            "TOLLGATE_REDIS_TIMEOUT_S": REDIS_TIMEOUT_S,
            **environ,
        }
        self._printed = data_dir.with_name(f"{data_dir.name}.out")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        return self._printed.read_text()

    @property
    def facts(self) -> dict[str, str]:
        """What `demo.json` says."""
        return json.loads((self.data_dir / "demo.json").read_text())

    @property
    def admin_root(self) -> str:
        return f"http://127.0.0.1:{self.environ['TOLLGATE_ADMIN_PORT']}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        return self._process

    def run(self, timeout_s: float = START_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """For a start that is refused: run it to its end."""
        command = [sys.executable, "manage.py", "up"]
        return subprocess.run(
            command, cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def start(self, *command: str) -> None:
        """Start it, by another command perhaps, and wait until it says that it runs."""
        with self._printed.open("wb") as printed:
            self._process = subprocess.Popen(
                command or [sys.executable, "manage.py", "up"],
                cwd=ROOT,
                env=self.environ,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Tollgate runs." not in self.output:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it did not start:\n{self.output}\n{self.logs()}")
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """As `kill -9` of `up` itself."""
        self.process.kill()
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """Everything that `up` has started, directly or not."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def program(self, name: str) -> psutil.Process:
        """The process of one of its programs: proxy, admin, worker, beat, simulator, redis, postgres."""
        # A program that names itself does so a moment after its start: either name will do.
        marks = {
            "proxy": ("proxy/gunicorn.conf.py", "tollgate-proxy"),
            "admin": ("controlplane.wsgi",),
            "worker": (" worker ",),
            "beat": (" beat ",),
            "simulator": ("controlplane.simulator",),
            "redis": ("redis-server",),
            "postgres": ("pginstall18/bin/postgres",),
        }
        direct = psutil.Process(self.process.pid).children()
        return next(c for c in direct if any(mark in " ".join([*c.cmdline(), ""]) for mark in marks[name]))

    def logs(self) -> str:
        files = sorted((self.data_dir / "logs").glob("*.log"))
        return "\n".join(f"==> {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


@pytest.fixture(scope="session")
def make_tollgate() -> Iterator[Callable[..., Tollgate]]:
    """Call to get a Tollgate that does not run yet, with an empty data directory; environment variables as keywords."""
    made: list[Tollgate] = []
    directories: list[Path] = []

    def make(**environ: str) -> Tollgate:
        directories.append(Path(tempfile.mkdtemp(prefix="tg-e2e-")))
        made.append(Tollgate(directories[-1] / "var", **environ))
        return made[-1]

    yield make
    for tollgate in made:
        if tollgate._process is not None:
            tollgate.stop()
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def tollgate(make_tollgate: Callable[..., Tollgate]) -> Tollgate:
    """A Tollgate that runs, shared by the tests of this process: leave it as you found it."""
    running = make_tollgate()
    running.start()
    return running
