"""Fetching exchange rates: one request with bounds, to the feed's own address and nowhere else."""

import logging
from contextlib import AbstractContextManager, nullcontext

import httpx
from django.utils import timezone

from audit.actors import Actor
from budgets.egress import only_public
from routing import exchange_rates, services
from routing.addresses import InvalidAddress, check_base_url
from routing.price_models import ExchangeRateFeed

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0


class FeedFailed(Exception):
    """The message is for the page: what went wrong, without the URL."""


def fetch_all(*, actor: Actor) -> int:
    """Every active feed; how many rates were added. What one feed lacks does not stop the next."""
    added = 0
    for feed in ExchangeRateFeed.objects.filter(is_active=True):
        try:
            added += fetch(feed, actor=actor)
        except FeedFailed as error:
            log.warning("the feed %s was not taken: %s", feed, error)
            services.fail_feed(feed, str(error))
    return added


def fetch(feed: ExchangeRateFeed, *, actor: Actor) -> int:
    """Raises `FeedFailed`."""
    try:
        body = _get(feed)
        return len(services.take_feed(feed, body, timezone.now(), actor=actor))
    except (exchange_rates.InvalidRates, InvalidAddress) as error:
        raise FeedFailed(str(error)) from error


def _get(feed: ExchangeRateFeed) -> bytes:
    """httpx follows no redirect, which would lead past the check of the address."""
    check_base_url(feed.url, may_be_private=feed.may_be_private)
    body = b""
    try:
        with _bounded(feed), httpx.stream("GET", feed.url, timeout=TIMEOUT_S, trust_env=False) as answer:
            if answer.status_code != httpx.codes.OK:
                raise FeedFailed(f"it answered {answer.status_code}")
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > exchange_rates.BYTES_MAX:
                    raise FeedFailed(f"it answers with more than {exchange_rates.BYTES_MAX:,} bytes")
    except (httpx.HTTPError, OSError) as error:
        raise FeedFailed(type(error).__name__) from error
    return body


def _bounded(feed: ExchangeRateFeed) -> AbstractContextManager[None]:
    """To the internet, unless the feed is inside."""
    return nullcontext() if feed.may_be_private else only_public()
