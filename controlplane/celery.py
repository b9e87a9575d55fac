"""The Celery application: `celery -A controlplane worker`, `celery -A controlplane beat`. Tasks live in the apps' `tasks.py`."""

import os
from typing import Any

import django
from celery import Celery
from celery.signals import beat_init, worker_init
from django.core.exceptions import ImproperlyConfigured

from controlplane.checks import refuse_weak_settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

app = Celery("tollgate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


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
