"""Run programs: start them, start them again when they die, show their errors, stop them in order.

Knows nothing of Tollgate: what runs, and in which order, is said in `up.py`. One thread, and a look around every
`TICK_S`; the programs write to their log files themselves, so a supervisor that is busy or paused holds up none of them.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from controlplane import processes

TICK_S = 0.05
LOG_BYTES_MAX = 32 * 1024 * 1024
HEALTHY_AFTER_S = 10.0
HURRIED_GRACE_S = 2.0
RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 5.0
DEATHS_AT_START_MAX = 5
ERROR_LINE = re.compile(
    rb"\b(ERROR|CRITICAL|FATAL|PANIC)\b|\"level\": ?\"(error|critical)\"|^[\w.]+(Error|Exception)\b"
)


class StopRequested(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived."""


def _always() -> bool:
    return True


def _nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Program:
    """`prepare` runs before every start and may raise `processes.StartFailed`; `is_ready` must answer within a second or so.

    What `ends` is not started again.
    """

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str] = field(repr=False)
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    prepare: Callable[[], None] = _nothing
    is_ready: Callable[[], bool] = _always
    ends: bool = False


@dataclass
class _Child:
    program: Program
    log: Path
    log_start: int
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    deaths: int = 0
    restart_at: float | None = None
    log_offset: int = 0
    unfinished_line: bytes = field(default=b"", repr=False)


class Supervisor:
    """Within `with`, SIGINT, SIGTERM and SIGHUP raise `StopRequested` from whatever waits. On leaving it, what was started
    is stopped, the last one first; a second signal then shortens the waiting.
    """

    def __init__(self, log_directory: Path, say: Callable[[str], None]) -> None:
        self._log_directory = log_directory
        self._say = say
        self._children: dict[str, _Child] = {}
        self._stop_requests = 0
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Supervisor":
        self._log_directory.mkdir(mode=0o700, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` leaves SIGHUP ignored, and means it; a shell does so with SIGINT for whatever it runs in the background.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._request_stop)
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._children)):
            self.stop(name)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run_once(self, program: Program) -> None:
        """Run `program` to its end. Raises `processes.StartFailed` when that is not a good one."""
        child = self._start(program)
        try:
            while child.process.poll() is None:
                self._tick()
        finally:
            self.stop(program.name)
        if child.process.returncode != 0:
            raise processes.StartFailed(f"{program.name} failed: {_last_words(child)} (the whole story: {child.log})")

    def start(self, *programs: Program) -> None:
        for program in programs:
            self._start(program)

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until everything that was started is ready. Raises `processes.StartFailed` naming what is not."""
        deadline = time.monotonic() + timeout_s
        waiting = list(self._children.values())
        while waiting:
            self._tick()
            child = waiting[0]
            if child.deaths >= DEATHS_AT_START_MAX or time.monotonic() > deadline:
                what = "does not run" if child.deaths else "is not ready"
                raise processes.StartFailed(
                    f"{child.program.name} {what}: {_last_words(child)} (the whole story: {child.log})"
                )
            if child.process.poll() is None and child.program.is_ready():
                waiting.pop(0)

    def watch(self) -> None:
        """Start again what dies, until asked to stop."""
        while True:
            self._tick()

    def stop(self, *names: str) -> None:
        """Stop these programs together, those of them that were started, and wait for their end."""
        children = [self._children.pop(name) for name in names if name in self._children]
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(child.program.stop_signal)
        for child in children:
            self._wait_for_end(child)

    def _wait_for_end(self, child: _Child) -> None:
        waiting_since = time.monotonic()
        while child.process.poll() is None and time.monotonic() - waiting_since < self._patience_s(child.program):
            time.sleep(TICK_S)
        processes.kill_group(child.process)
        self._show_errors(child)

    def _patience_s(self, program: Program) -> float:
        return program.grace_s if self._stop_requests < 2 else min(HURRIED_GRACE_S, program.grace_s)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_requests += 1

    def _tick(self) -> None:
        time.sleep(TICK_S)
        if self._stop_requests:
            raise StopRequested
        for child in self._children.values():
            self._show_errors(child)
            self._revive(child)

    def _start(self, program: Program) -> _Child:
        log = self._log_directory / f"{program.name}.log"
        log.touch(mode=0o600)
        log_start = log.stat().st_size
        child = _Child(program, log, log_start, self._launch(program, log), log_offset=log_start)
        self._children[program.name] = child
        return child

    def _launch(self, program: Program, log: Path) -> subprocess.Popen[bytes]:
        program.prepare()
        with log.open("ab") as output:
            return processes.start(
                program.argv, stop_signal=program.stop_signal, output=output, environ=program.environ
            )

    def _revive(self, child: _Child) -> None:
        if child.program.ends:
            return
        now = time.monotonic()
        if child.restart_at is None and child.process.poll() is not None:
            processes.kill_group(child.process)  # What it started must not meet what its successor starts.
            child.deaths = 1 if now - child.started_at > HEALTHY_AFTER_S else child.deaths + 1
            child.restart_at = now + min(RESTART_DELAY_MAX_S, RESTART_DELAY_MIN_S * 2 ** (child.deaths - 1))
            self._say(f"{child.program.name} ended ({_how(child.process.returncode)}); starting it again")
        if child.restart_at is None or now < child.restart_at:
            return
        try:
            child.process = self._launch(child.program, child.log)
            child.started_at, child.restart_at = now, None
        except processes.StartFailed as error:
            child.restart_at = now + RESTART_DELAY_MAX_S
            self._say(f"{child.program.name} does not start: {error}")

    def _show_errors(self, child: _Child) -> None:
        with contextlib.suppress(FileNotFoundError), child.log.open("rb") as log:  # Somebody may have removed it.
            log.seek(child.log_offset)
            *lines, child.unfinished_line = (child.unfinished_line + log.read()).split(b"\n")
            child.log_offset = log.tell()
            for line in lines:
                if ERROR_LINE.search(line):
                    self._say(f"[{child.program.name}] {line.decode(errors='replace')}")
            if child.log_offset > LOG_BYTES_MAX:
                # Cut in place: the programs append to the open file, wherever its end is.
                shutil.copyfile(child.log, child.log.with_suffix(".log.1"))
                os.truncate(child.log, 0)
                child.log_offset = 0


def _how(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


def _last_words(child: _Child) -> str:
    """The last error it wrote since we started it, or else its last line."""
    with child.log.open("rb") as log:
        log.seek(child.log_start)
        lines = log.read().strip().splitlines()
    errors = [line for line in lines if ERROR_LINE.search(line)]
    return (errors or lines or [b"it said nothing"])[-1].decode(errors="replace").strip()
