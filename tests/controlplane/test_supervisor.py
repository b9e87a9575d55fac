"""The supervisor, with real processes that die, hang, hide children, and complain."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from controlplane.processes import StartFailed
from controlplane.supervisor import Program, StopRequested, Supervisor

SLEEPER = "import time; time.sleep(60)"
DEAF = """
    import signal, time
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
    print("deaf", flush=True)
    time.sleep(3600)
"""
PARENT = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("child", child.pid, flush=True)
    time.sleep(60)
"""


def program(name, code, **options):
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    return Program(name=name, argv=argv, environ={"PATH": os.environ["PATH"]}, **options)


@pytest.fixture
def said():
    return []


@pytest.fixture
def supervisor(tmp_path, said):
    with Supervisor(tmp_path / "logs", said.append) as supervisor:
        yield supervisor


def wait_until(condition, timeout_s=60.0, between=lambda: time.sleep(0.01)):
    deadline = time.monotonic() + timeout_s
    while not (outcome := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        between()
    return outcome


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def log_lines(tmp_path, name):
    path = tmp_path / "logs" / f"{name}.log"
    return path.read_text().splitlines() if path.exists() else []


def look_around(supervisor):
    """What `watch` does, once, without the test's having to send itself a signal."""
    supervisor._tick()


def test_a_program_that_dies_is_started_again(supervisor, tmp_path, said):
    supervisor.start(program("fragile", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
    first = int(wait_until(lambda: log_lines(tmp_path, "fragile"))[0])
    os.kill(first, signal.SIGKILL)
    lines = wait_until(
        lambda: len(log_lines(tmp_path, "fragile")) == 2 and log_lines(tmp_path, "fragile"),
        between=lambda: look_around(supervisor),
    )
    assert int(lines[1]) != first
    assert said == ["fragile ended (SIGKILL); starting it again"]


def test_what_a_dead_program_had_started_does_not_meet_its_successor(supervisor, tmp_path):
    supervisor.start(program("parent", PARENT))
    child = int(wait_until(lambda: log_lines(tmp_path, "parent"))[0].split()[1])
    os.kill(supervisor._children["parent"].process.pid, signal.SIGKILL)
    wait_until(lambda: len(log_lines(tmp_path, "parent")) == 2, between=lambda: look_around(supervisor))
    wait_until(lambda: not is_running(child))


def test_a_program_that_keeps_dying_fails_the_start_with_its_last_words(supervisor):
    supervisor.start(
        program("broken", "print('first'); print('no such table'); raise SystemExit(3)", is_ready=lambda: False)
    )
    with pytest.raises(StartFailed, match="broken does not run: no such table"):
        supervisor.wait_ready(timeout_s=60)


def test_a_program_that_is_never_ready_fails_the_start(supervisor):
    supervisor.start(program("slow", SLEEPER, is_ready=lambda: False))
    with pytest.raises(StartFailed, match="slow is not ready"):
        supervisor.wait_ready(timeout_s=0.3)


def test_a_failed_preparation_is_told_in_one_line(supervisor):
    with pytest.raises(StartFailed, match=r"^migrate failed: it went wrong \(the whole story: .*migrate\.log\)$"):
        supervisor.run_once(program("migrate", "print('it went wrong'); raise SystemExit(1)", ends=True))


def test_errors_reach_the_terminal_and_the_rest_stays_in_the_log(supervisor, tmp_path, said):
    code = "import sys; print('INFO fine'); print('ERROR something broke'); sys.stdout.flush(); import time; time.sleep(60)"
    supervisor.start(program("noisy", code))
    wait_until(lambda: said, between=lambda: look_around(supervisor))
    assert said == ["[noisy] ERROR something broke"]
    assert "INFO fine" in log_lines(tmp_path, "noisy")


def test_programs_stop_in_the_opposite_order_of_their_start(tmp_path):
    mark = "import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('ended', time.time())))"
    with Supervisor(tmp_path / "logs", print) as supervisor:
        for name in ("first", "second", "third"):
            supervisor.start(program(name, f"{mark}\nprint('up', flush=True)\ntime.sleep(60)"))
        wait_until(lambda: all(log_lines(tmp_path, name) for name in ("first", "second", "third")))
    ended_at = [float(log_lines(tmp_path, name)[1].split()[1]) for name in ("first", "second", "third")]
    assert ended_at == sorted(ended_at, reverse=True)


def test_a_program_that_will_not_stop_is_killed_after_its_grace(tmp_path):
    with Supervisor(tmp_path / "logs", print) as supervisor:
        supervisor.start(program("deaf", DEAF, grace_s=5))
        deaf = supervisor._children["deaf"].process
        wait_until(lambda: log_lines(tmp_path, "deaf"))
    assert deaf.returncode == -signal.SIGKILL
    assert log_lines(tmp_path, "deaf") == ["deaf", "asked"]


def test_nothing_outlives_the_supervisor_also_not_grandchildren(tmp_path):
    with Supervisor(tmp_path / "logs", print) as supervisor:
        supervisor.start(program("parent", PARENT, grace_s=0.5))
        grandchild = int(wait_until(lambda: log_lines(tmp_path, "parent"))[0].split()[1])
        assert is_running(grandchild)
    wait_until(lambda: not is_running(grandchild))


def test_a_signal_asks_for_the_end(supervisor):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopRequested):
        supervisor.watch()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells children of their parent's death")
def test_programs_end_when_their_supervisor_is_killed(tmp_path):
    code = f"""
        import sys
        from pathlib import Path
        from controlplane.supervisor import Program, Supervisor
        with Supervisor(Path({str(tmp_path / "logs")!r}), print) as supervisor:
            supervisor.start(Program(name="child", argv=[sys.executable, "-c", {SLEEPER!r}], environ={{}}))
            print(supervisor._children["child"].process.pid, flush=True)
            supervisor.watch()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as owner:
        child = int(owner.stdout.readline())
        assert is_running(child)
        owner.kill()
    wait_until(lambda: not is_running(child))


def test_a_log_that_grew_too_long_is_cut_while_it_is_written(supervisor, tmp_path, monkeypatch):
    monkeypatch.setattr("controlplane.supervisor.LOG_BYTES_MAX", 1_000)
    supervisor.start(program("chatty", "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.001)"))
    earlier = tmp_path / "logs" / "chatty.log.1"
    wait_until(earlier.exists, between=lambda: look_around(supervisor))
    wait_until(lambda: log_lines(tmp_path, "chatty"))
    assert (tmp_path / "logs" / "chatty.log").stat().st_size < 100_000
