"""A Celery worker with a task that says when it is done: `celery -A tests.controlplane.busy_worker worker`."""

import time
from pathlib import Path

from controlplane.celery import app


@app.task(name="tests.work")
def work(path: str, seconds: float) -> None:
    Path(path).with_suffix(".begun").touch()
    time.sleep(seconds)
    Path(path).touch()
