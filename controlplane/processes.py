"""Child processes that never outlive us: start one in a group of its own, kill the whole group.

What to start, and when to start it again, is the supervisor's business.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import IO

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class StartFailed(Exception):
    """A program does not run. The message is one line, for the operator."""


def start(
    argv: Sequence[str], *, stop_signal: signal.Signals, output: IO[bytes], environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `argv` with both of its outputs in `output`. Raises `OSError` where it cannot be started.

    The child leads a process group of its own, so that Ctrl-C in the terminal reaches us alone and we decide the order.
    It gets `stop_signal` from the kernel when our calling thread ends, also by `kill -9` (Linux).
    """
    return subprocess.Popen(  # noqa: S603 (our own programs, no shell)
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environ,
        process_group=0,
        preexec_fn=partial(_die_with_parent, os.getpid(), stop_signal),  # noqa: PLW1509 (one call into libc)
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` and everything it started, also what has outlived it, and wait for `process`."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _die_with_parent(parent_pid: int, stop_signal: signal.Signals) -> None:
    if sys.platform != "linux":
        return
    _libc.prctl(_PR_SET_PDEATHSIG, stop_signal)
    if os.getppid() != parent_pid:  # It died before we asked.
        os._exit(1)
