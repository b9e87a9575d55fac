"""Celery's face of the ledger and of the holds. What PostgreSQL or Redis does not answer is left for the next beat."""

import logging
from collections.abc import Callable
from datetime import datetime

import redis
from celery import shared_task
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from audit.actors import Actor
from budgets import feeds, ledger, notify, price_book, reap, rerate, suspense, verifier, watch
from keys.redis import redis_client
from routing import catalogue, services

log = logging.getLogger(__name__)

PRICE_BOOK = Actor.system("price book")


@shared_task(name="budgets.ingest_usage")
def ingest_usage() -> None:
    try:
        ledger.ingest(redis_client())
    except ledger.Taken:
        pass  # Two beats, or a long run: the other one goes on.
    except (redis.RedisError, OperationalError, InterfaceError) as error:
        log.warning("ingest is put off: %s", error)


@shared_task(name="budgets.resolve_suspense")
def resolve_suspense() -> None:
    try:
        suspense.apply_approved(redis_client())
    except (redis.RedisError, OperationalError, InterfaceError) as error:
        log.warning("resolutions are put off: %s", error)


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


@shared_task(name="budgets.watch")
def watch_everything() -> None:
    _watch(watch.watch)


@shared_task(name="budgets.watch_touched")
def watch_touched() -> None:
    _watch(watch.watch_touched)


def _watch(look: Callable[[redis.Redis, datetime], object]) -> None:
    try:
        look(redis_client(), timezone.now())
    except watch.Taken:
        pass
    except (redis.RedisError, OperationalError, InterfaceError) as error:
        log.warning("watching is put off: %s", error)


@shared_task(name="budgets.deliver_alerts")
def deliver_alerts() -> None:
    try:
        notify.deliver()
    except (OperationalError, InterfaceError) as error:
        log.warning("notices are put off: %s", error)


@shared_task(name="budgets.follow_contracts")
def follow_contracts() -> None:
    try:
        price_book.follow_contracts(timezone.now(), actor=PRICE_BOOK)
    except (OperationalError, InterfaceError) as error:
        log.warning("contracts are followed later: %s", error)


@shared_task(name="budgets.apply_rerates")
def apply_rerates() -> None:
    try:
        rerate.apply_approved(actor=PRICE_BOOK)
    except (OperationalError, InterfaceError) as error:
        log.warning("a re-rate goes on later: %s", error)


@shared_task(name="budgets.fetch_exchange_rates")
def fetch_exchange_rates() -> None:
    try:
        feeds.fetch_due(actor=PRICE_BOOK)
    except (OperationalError, InterfaceError) as error:
        log.warning("exchange rates are fetched later: %s", error)


@shared_task(name="budgets.propose_prices")
def propose_prices() -> None:
    """Only proposed: a person decides."""
    try:
        services.propose_prices(
            services.compare_with_catalogue(timezone.now()), source=catalogue.source(), actor=PRICE_BOOK
        )
    except (OperationalError, InterfaceError) as error:
        log.warning("the catalogue is compared later: %s", error)
