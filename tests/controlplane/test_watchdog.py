"""The watchdog of a real Celery worker over a real Redis."""

import os
import subprocess
import sys
import time

import pytest

from controlplane import watchdog
from tests.controlplane.stuck_worker import app, hang
from tests.stack import wait_until


@pytest.fixture
def worker(redis_server, monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "REDIS_URL", redis_server.url)
    log = tmp_path / "log"
    argv = ["celery", "-A", "tests.controlplane.stuck_worker", "worker", "--pool", "solo", "--loglevel", "INFO"]
    with (
        log.open("wb") as output,
        subprocess.Popen([sys.executable, "-m", *argv], stdout=output, stderr=output) as worker,
    ):
        try:
            wait_until(lambda: b" ready." in log.read_bytes(), "the worker", log)
            yield worker
        finally:
            worker.kill()


@pytest.fixture
def broker(redis_server):
    with app.connection_for_write(redis_server.url.replace("unix://", "redis+socket://", 1)) as connection:
        yield connection


def test_a_worker_that_takes_no_more_tasks_ends(worker, broker):
    for _ in range(2):
        hang.apply_async(connection=broker)
    assert worker.wait(timeout=60) == watchdog.STUCK


def test_a_worker_for_whom_there_is_nothing_to_take_lives_on(worker, broker):
    hang.apply_async(connection=broker)
    time.sleep(6 * app.conf.task_time_limit)
    assert worker.poll() is None
