"""A real Celery worker whose broker dies."""

import pytest

from tests.controlplane.busy_worker import work
from tests.stack import wait_until

DEATHS = 2


@pytest.fixture
def worker(make_celery_worker):
    return make_celery_worker("tests.controlplane.busy_worker", "--concurrency", "2")


def test_a_worker_outlives_the_deaths_of_its_broker_in_the_middle_of_a_task(
    worker, redis_server, connect_to_broker, tmp_path
):
    def send(path, seconds):
        with connect_to_broker() as broker:
            work.apply_async((str(path), seconds), connection=broker)

    log = tmp_path / "celery.log"
    for number in range(DEATHS):
        running, after = tmp_path / f"running-{number}", tmp_path / f"after-{number}"
        send(running, 2)
        wait_until(running.with_suffix(".begun").exists, "the task", log)
        redis_server.kill()
        wait_until(running.exists, "its end", log)
        redis_server.start()
        send(after, 0)
        wait_until(after.exists, "the next task", log)
        assert worker.poll() is None, log.read_text()
