"""A real Celery worker whose broker dies."""

import os
import subprocess
import sys

import pytest

from tests.controlplane.busy_worker import app, work
from tests.stack import wait_until

DEATHS = 2


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def worker(redis_server, monkeypatch, log):
    monkeypatch.setitem(os.environ, "REDIS_URL", redis_server.url)
    argv = ["celery", "-A", "tests.controlplane.busy_worker", "worker", "--concurrency", "2", "--loglevel", "INFO"]
    with (
        log.open("wb") as output,
        subprocess.Popen([sys.executable, "-m", *argv], stdout=output, stderr=output) as worker,
    ):
        try:
            wait_until(lambda: b" ready." in log.read_bytes(), "the worker", log)
            yield worker
        finally:
            worker.terminate()


def send(redis_server, path, seconds):
    with app.connection_for_write(redis_server.url.replace("unix://", "redis+socket://", 1)) as connection:
        work.apply_async((str(path), seconds), connection=connection)


def test_a_worker_outlives_the_deaths_of_its_broker_in_the_middle_of_a_task(worker, redis_server, log, tmp_path):
    for number in range(DEATHS):
        running, after = tmp_path / f"running-{number}", tmp_path / f"after-{number}"
        send(redis_server, running, 2)
        wait_until(running.with_suffix(".begun").exists, "the task", log)
        redis_server.kill()
        wait_until(running.exists, "its end", log)
        redis_server.start()
        send(redis_server, after, 0)
        wait_until(after.exists, "the next task", log)
        assert worker.poll() is None, log.read_text()
