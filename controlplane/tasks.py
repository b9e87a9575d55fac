"""Celery's face of publishing and of the workers' list. What is not to be had now is left for the next beat."""

import logging

import redis
from celery import shared_task
from django.db import InterfaceError, OperationalError

from controlplane import publish, rebuild, workers
from keys import services as keys
from keys.redis import redis_client

log = logging.getLogger(__name__)

UNAVAILABLE = (redis.RedisError, OperationalError, InterfaceError, publish.Superseded)


@shared_task(name="controlplane.watch_epoch")
def watch_epoch() -> None:
    """Rebuild a Redis that was emptied, and publish what could not be published when it was changed."""
    try:
        if not rebuild.rebuild_redis():
            publish.publish_pending()
    except UNAVAILABLE as error:
        log.warning("Redis is not brought up to date yet: %s", error or type(error).__name__)


@shared_task(name="controlplane.record_unrecorded_kills")
def record_unrecorded_kills() -> None:
    try:
        recorded = keys.record_unrecorded_kills()
    except UNAVAILABLE as error:
        log.warning("kill switches are not on record yet: %s", error)
        return
    if recorded:
        log.info("%d kill switches that PostgreSQL had missed are on record", recorded)


@shared_task(name="controlplane.sweep_workers")
def sweep_workers() -> None:
    try:
        workers.sweep(redis_client())
    except redis.RedisError as error:
        log.warning("sweeping is put off: %s", error)
