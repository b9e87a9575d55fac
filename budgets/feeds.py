"""Fetching exchange rates: one request with bounds to each, to the feed's own address and nowhere else."""

import logging
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial

import httpx
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from audit.actors import Actor
from budgets.alert_models import Alert, Severity
from budgets.alert_services import Finding
from budgets.deadline import done_within
from budgets.egress import only_public
from routing import exchange_rates, services
from routing.addresses import InvalidAddress, check_base_url
from routing.price_models import ExchangeRate, ExchangeRateFeed

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
# Of all feeds together.
DEADLINE_S = 30.0
# Banks publish no rates on holidays.
STALE = timedelta(days=7)


class FeedFailed(Exception):
    """The message is for the page: what went wrong, without the URL."""


def fetch_due(*, actor: Actor, deadline_s: float = DEADLINE_S) -> int:
    """Every active feed that is due; how many rates were added. What one feed lacks does not stop the others."""
    feeds = services.claim_feeds(timezone.now())
    answers = done_within(deadline_s, {feed: partial(_get, feed) for feed in feeds})
    added = 0
    for feed in feeds:
        try:
            if feed not in answers:
                raise FeedFailed("the answer took too long")
            added += _take(feed, answers[feed].result(), actor)
        except FeedFailed as error:
            log.warning("the feed %s was not taken: %s", feed, error)
            services.fail_feed(feed, str(error))
    return added


def failing(now: datetime) -> list[Finding]:
    """The active feeds that were not taken the last time, or answer nothing newer than `STALE` ago."""
    newest = ExchangeRate.objects.filter(source=OuterRef("name")).order_by("-effective_from").values("effective_from")
    active = ExchangeRateFeed.objects.filter(is_active=True).annotate(newest_from=Subquery(newest[:1]))
    return [
        Finding(
            kind=Alert.Kind.FEED,
            about_id=feed.pk,
            counter=(),
            percent=0,
            window_start=None,
            window_end=None,
            team_id=None,
            severity=Severity.WARNING,
            title=f"Exchange rates not fetched: {feed.name}",
            text=(
                f"{feed.problem or 'It answers, and nothing new'}. Its newest rate is"
                f" {f'from {feed.newest_from:%Y-%m-%d}' if feed.newest_from else 'still to come'}; costs are told in US dollars"
                " at the rates in force."
            ),
        )
        for feed in active
        if feed.problem or (feed.newest_from is not None and feed.newest_from < now - STALE)
    ]


def _take(feed: ExchangeRateFeed, body: bytes, actor: Actor) -> int:
    try:
        return len(services.take_feed(feed, body, timezone.now(), actor=actor))
    except exchange_rates.InvalidRates as error:
        raise FeedFailed(str(error)) from error


def _get(feed: ExchangeRateFeed) -> bytes:
    """httpx follows no redirect, which would lead past the check of the address. Runs in a thread of its own."""
    body = b""
    try:
        check_base_url(feed.url, may_be_private=feed.may_be_private)
        with _bounded(feed), httpx.stream("GET", feed.url, timeout=TIMEOUT_S, trust_env=False) as answer:
            if answer.status_code != httpx.codes.OK:
                raise FeedFailed(f"it answered {answer.status_code}")
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > exchange_rates.BYTES_MAX:
                    raise FeedFailed(f"it answers with more than {exchange_rates.BYTES_MAX:,} bytes")
    except InvalidAddress as error:
        raise FeedFailed(str(error)) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise FeedFailed(type(error).__name__) from error
    return body


def _bounded(feed: ExchangeRateFeed) -> AbstractContextManager[None]:
    """To the internet, unless the feed is inside."""
    return nullcontext() if feed.may_be_private else only_public()
