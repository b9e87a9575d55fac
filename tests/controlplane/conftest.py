"""Celery as it really runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from controlplane.celery import app
from tests.stack import wait_until


@pytest.fixture
def make_celery_worker(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Call with the module of an application, and options, to get a worker that is ready. Its log is `celery.log` of `tmp_path`."""
    monkeypatch.setitem(os.environ, "REDIS_URL", redis_server.url)
    log = tmp_path / "celery.log"
    workers: list[subprocess.Popen[bytes]] = []

    def make(module: str, *options: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "celery", "-A", module, "worker", "--loglevel", "INFO", *options]
        with log.open("wb") as output:
            workers.append(subprocess.Popen(argv, stdout=output, stderr=output))
        wait_until(lambda: b" ready." in log.read_bytes(), "the worker", log)
        return workers[-1]

    yield make
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.fixture
def connect_to_broker(redis_server: Any) -> Callable[[], Connection]:
    """Call for a connection to the worker's broker."""
    return lambda: app.connection_for_write(redis_server.url.replace("unix://", "redis+socket://", 1))
