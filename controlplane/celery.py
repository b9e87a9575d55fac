"""The Celery application: `celery -A controlplane worker`, `celery -A controlplane beat`. Tasks live in the apps' `tasks.py`."""

import logging
import os
from typing import Any

import django
from celery import Celery
from celery.signals import beat_init, worker_init
from celery.worker import consumer
from celery.worker.state import maybe_shutdown
from django.core.exceptions import ImproperlyConfigured

from controlplane import watchdog
from controlplane.checks import refuse_weak_settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

log = logging.getLogger(__name__)


class Consumer(consumer.Consumer):
    """Celery's own, but that it outlives a broker that dies in the middle of a task, and that it looks sooner whether it is back: the
    broker is the gate too, which stays closed until a task has rebuilt it. Two seconds between the first looks, as Celery has
    it, would be most of the outage."""

    task_consumer: Any

    def ensure_connected(self, conn: Any) -> Any:
        def report(error: Exception, wait_s: float) -> None:
            log.warning("the broker cannot be reached: %s; trying again in %.1f s", error, wait_s)

        conn.ensure_connection(report, interval_start=0.2, interval_step=0.1, interval_max=2.0, callback=maybe_shutdown)
        self.first_connection_attempt = False
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        # A channel whose connection is lost cannot give back what it had fetched, and the whole worker would end of the attempt.
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)


app = Celery("tollgate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.worker_consumer = Consumer
app.autodiscover_tasks()
watchdog.watch(app)


@worker_init.connect
@beat_init.connect
def refuse_to_start(**kwargs: Any) -> None:
    django.setup()
    try:
        refuse_weak_settings()
    except ImproperlyConfigured as error:
        # Celery logs any exception of a listener but this, and goes on; its standard error is a logger by now.
        os.write(2, f"{error}\n".encode())
        raise SystemExit(1) from error
