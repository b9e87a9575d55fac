"""Celery's face of the ledger and of the holds. What PostgreSQL or Redis does not answer is left for the next beat."""

import logging

import redis
from celery import shared_task
from django.db import InterfaceError, OperationalError

from budgets import ledger, reap, verifier
from keys.redis import redis_client

log = logging.getLogger(__name__)


@shared_task(name="budgets.ingest_usage")
def ingest_usage() -> None:
    try:
        ledger.ingest(redis_client())
    except ledger.Taken:
        pass  # Two beats, or a long run: the other one goes on.
    except (redis.RedisError, OperationalError, InterfaceError) as error:
        log.warning("ingest is put off: %s", error)


@shared_task(name="budgets.verify")
def verify() -> None:
    try:
        verifier.verify(redis_client())
    except verifier.Taken:
        pass
    except (OperationalError, InterfaceError) as error:
        log.warning("verifying is put off: %s", error)


@shared_task(name="budgets.reap_lost_workers")
def reap_lost_workers() -> None:
    try:
        reap.reap_lost_workers(redis_client())
    except redis.RedisError as error:
        log.warning("reaping is put off: %s", error)
