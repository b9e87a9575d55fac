"""The watchdog of a real Celery worker over a real Redis."""

import time

import pytest

from controlplane import watchdog
from tests.controlplane.stuck_worker import app, hang


@pytest.fixture
def worker(make_celery_worker):
    return make_celery_worker("tests.controlplane.stuck_worker", "--pool", "solo")


@pytest.fixture
def broker(connect_to_broker):
    with connect_to_broker() as connection:
        yield connection


def test_a_worker_that_takes_no_more_tasks_ends(worker, broker):
    for _ in range(2):
        hang.apply_async(connection=broker)
    assert worker.wait(timeout=60) == watchdog.STUCK


def test_a_worker_for_whom_there_is_nothing_to_take_lives_on(worker, broker):
    hang.apply_async(connection=broker)
    time.sleep(6 * app.conf.task_time_limit)
    assert worker.poll() is None
