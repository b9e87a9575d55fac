"""A Celery worker that takes no more tasks while it has one: `celery -A tests.controlplane.stuck_worker worker --pool solo`."""

import time

from controlplane.celery import app

app.conf.task_time_limit = 0.5  # Nobody enforces it in a pool without processes.


@app.task(name="tests.hang")
def hang() -> None:
    time.sleep(3600)
