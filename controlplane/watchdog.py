"""A Celery worker that takes nothing although something waits ends itself, so that whoever keeps it running starts it again.

Release after release Celery has had ways to come back from a lost broker and never to consume again (celery/celery#8030, #9054,
#10205). Without it nothing reaches the ledger, and nothing else would end it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery
from celery.signals import task_received, task_revoked, worker_ready

from keys.redis import redis_client

log = logging.getLogger(__name__)

STUCK = 70  # EX_SOFTWARE of sysexits.h
LOOKS = 10


class Watchdog:
    """A thread of its own: what hangs must not hang it. `patience_s` is longer than any task may take, so that a worker all of whose
    processes are busy is left alone."""

    def __init__(self, is_waiting: Callable[[], bool], patience_s: float) -> None:
        self._is_waiting = is_waiting
        self._patience_s = patience_s
        # Counted, not timed: who was paused gets its time all the same.
        self._looks_in_vain = 0

    def start(self) -> None:
        task_received.connect(self._take)
        # What has expired is taken too.
        task_revoked.connect(self._take)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _take(self, **_: Any) -> None:
        self._looks_in_vain = 0

    def _watch(self) -> None:
        while self._looks_in_vain < LOOKS:
            time.sleep(self._patience_s / LOOKS)
            self._looks_in_vain = self._looks_in_vain + 1 if self._is_waiting() else 0
        log.critical("tasks wait, and none was taken for %.0f s: ending, to be started again", self._patience_s)
        # Whatever hangs would not hear of anything gentler. What was not finished is asked for again.
        os._exit(STUCK)


def watch(app: Celery) -> None:
    """Over each worker of `app`, from when it is ready."""

    @worker_ready.connect(weak=False)
    def start(**_: Any) -> None:
        Watchdog(lambda: _is_waiting(app), 2 * app.conf.task_time_limit).start()


def _is_waiting(app: Celery) -> bool:
    """Whether the queue has tasks, as far as Redis can be asked."""
    queue = app.conf.broker_transport_options["global_keyprefix"] + app.conf.task_default_queue
    try:
        return bool(redis_client().llen(queue))
    except redis.RedisError:
        return False
