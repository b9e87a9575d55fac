"""Sends what waits in the outbox: each notice by its channel, again and later where it fails, until it is sent or given up.

A notice is claimed in one transaction, sent outside of any, and its outcome written in another. A process that dies in between
leaves it to be sent again a minute later: it may arrive twice, and is never lost.
"""

import logging
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import httpx
import msgspec
from apprise import NotifyType
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from budgets import webhooks
from budgets.alert_models import Alert, Delivery, Severity
from budgets.alert_services import reveal_destination
from budgets.alerts import TRIES_MAX, wait_s
from budgets.channels import WEBHOOK, Destination, complaints, open_service, scrub
from budgets.deadline import done_within
from budgets.egress import only_public
from keys.vault import VaultError
from routing.addresses import InvalidAddress

log = logging.getLogger(__name__)

# As many as are sent at once, each in a thread.
BATCH = 16
# Longer than any sending takes: nobody else takes up a notice meanwhile.
CLAIM = timedelta(seconds=60)
TIMEOUT_S = 10.0
# Of a batch.
DEADLINE_S = 30.0
RUN_S = 15.0
NOTIFY_TYPES = {
    Severity.INFO: NotifyType.INFO,
    Severity.WARNING: NotifyType.WARNING,
    Severity.CRITICAL: NotifyType.FAILURE,
}


class Notice(NamedTuple):
    """What is sent, told in words and in fields. Notices of the same `incident` tell of its beginning and of its end."""

    kind: NotifyType
    title: str
    text: str
    message_id: str
    incident: str
    body: bytes


class Sending(NamedTuple):
    channel_kind: str
    destination: Destination
    may_be_private: bool
    notice: Notice


class NotSent(Exception):
    """Why a notice could not be sent, in words that tell nothing of where to."""


def deliver(*, run_s: float = RUN_S) -> None:
    """Send all that is due, or what `run_s` suffice for; nothing where somebody else is at it."""
    until_s = time.monotonic() + run_s
    with connection.cursor() as cursor:
        # One at a time: what hangs here hangs in one of few processes, and the others have a ledger to write.
        cursor.execute("SELECT pg_try_advisory_lock(hashtext('budgets.notify'))")
        if not cursor.fetchone()[0]:
            return
        try:
            while deliver_due() and time.monotonic() < until_s:
                pass
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtext('budgets.notify'))")


def deliver_due(*, fraction: Callable[[], float] = random.random, deadline_s: float = DEADLINE_S) -> int:
    """Send what is due, a batch of it; how many notices were tried."""
    claimed = _claim(timezone.now())
    sending: dict[Delivery, Callable[[], str]] = {}
    for delivery in claimed:
        try:
            sending[delivery] = partial(_send, _prepare(delivery))
        except NotSent as error:
            _write_outcome(delivery, str(error), fraction)
    done = done_within(deadline_s, sending)
    for delivery in sending:
        outcome = done[delivery].result() if delivery in done else "the answer took too long"
        _write_outcome(delivery, outcome, fraction)
    return len(claimed)


def _claim(now: datetime) -> list[Delivery]:
    with transaction.atomic():
        waiting = Delivery.objects.filter(state=Delivery.State.WAITING)
        # What begins an incident after its end would begin one that nothing ends.
        begins = waiting.filter(
            event=Delivery.Event.OPENED,
            alert=OuterRef("alert"),
            occurrence=OuterRef("occurrence"),
            channel=OuterRef("channel"),
        )
        is_early = Q(event=Delivery.Event.RECOVERED) & Exists(begins)
        due = waiting.filter(due_at__lte=now).exclude(is_early).order_by("due_at", "id")
        locked = due.select_for_update(skip_locked=True, of=("self",)).select_related("channel", "alert")
        claimed = list(locked[:BATCH])
        for delivery in claimed:
            delivery.tries += 1
            delivery.due_at = now + CLAIM
        Delivery.objects.bulk_update(claimed, ["tries", "due_at"])
    return claimed


def _prepare(delivery: Delivery) -> Sending:
    """Raises `NotSent`."""
    channel = delivery.channel
    if channel is None or not channel.is_active:
        raise NotSent("the channel is gone or switched off")
    try:
        destination = reveal_destination(channel)
    except VaultError as error:
        raise NotSent(str(error)) from error
    notice = _test_notice(delivery) if delivery.alert is None else _notice(delivery, delivery.alert)
    return Sending(channel.kind, destination, channel.may_be_private, notice)


def _notice(delivery: Delivery, alert: Alert) -> Notice:
    is_over = delivery.event == Delivery.Event.RECOVERED
    text = alert.recovery if is_over else alert.text
    link = f"{settings.TOLLGATE_ADMIN_URL}/budgets/alert/{alert.pk}/change/" if settings.TOLLGATE_ADMIN_URL else ""
    data = {
        "alert_id": alert.pk,
        "occurrence": delivery.occurrence,
        "kind": alert.kind,
        "severity": alert.severity,
        "title": alert.title,
        "text": text,
        "team_id": alert.team_id,
        "about_id": alert.about_id,
        "counter": alert.counter,
        "percent": alert.percent,
        "window_start": alert.window_start,
        "window_end": alert.window_end,
        "opened_at": alert.opened_at,
        "recovered_at": alert.recovered_at,
        "link": link,
    }
    return Notice(
        NotifyType.SUCCESS if is_over else NOTIFY_TYPES[Severity(alert.severity)],
        f"Recovered: {alert.title}" if is_over else alert.title,
        f"{text}\n{link}" if link else text,
        str(delivery.pk),
        f"{alert.pk}/{delivery.occurrence}",
        _body(delivery, data),
    )


def _test_notice(delivery: Delivery) -> Notice:
    title, text = "Tollgate: a test", f"This is a test of the channel {delivery.channel_name}. Nothing is wrong."
    message_id = str(delivery.pk)
    return Notice(NotifyType.INFO, title, text, message_id, message_id, _body(delivery, {"title": title, "text": text}))


def _body(delivery: Delivery, data: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"type": f"alert.{delivery.event}", "timestamp": delivery.created_at, "data": data})


def _send(sending: Sending) -> str:
    """What went wrong, or nothing. Runs in a thread of its own."""
    try:
        with nullcontext() if sending.may_be_private else only_public():
            if sending.channel_kind == WEBHOOK:
                _post(sending.destination, sending.notice)
            else:
                _tell(sending.channel_kind, sending.destination, sending.notice)
    except NotSent as error:
        return scrub(str(error), sending.destination)
    # Other people's code for other people's services: whatever it raises must not keep the other notices back.
    except Exception as error:
        return f"unexpected {type(error).__name__}"
    return ""


def _post(destination: Destination, notice: Notice) -> None:
    now_s = int(timezone.now().timestamp())
    signature = webhooks.sign(destination.signing_secret, message_id=notice.message_id, at_s=now_s, body=notice.body)
    headers = {"content-type": "application/json", "user-agent": "Tollgate", **signature}
    # Without the environment's proxies: the connection is to be one to the address that was checked.
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client:
        try:
            # The answer's body is nobody's business, and may have no end.
            with client.stream("POST", destination.address, content=notice.body, headers=headers) as answer:
                status_code = answer.status_code
        except httpx.HTTPError as error:
            raise NotSent(f"{type(error).__name__}: {error}") from error
    if not 200 <= status_code < 300:
        raise NotSent(f"answered {status_code}")


def _tell(kind: str, destination: Destination, notice: Notice) -> None:
    with complaints() as said:
        try:
            is_sent = open_service(kind, destination.address, notice.incident).notify(
                body=notice.text, title=notice.title, notify_type=notice.kind
            )
        except InvalidAddress as error:
            raise NotSent(str(error)) from error
    if not is_sent:
        raise NotSent("; ".join(said) or "it was not taken")


def _write_outcome(delivery: Delivery, error: str, fraction: Callable[[], float]) -> None:
    """`error` is empty where it was sent. What is told to nobody in the end is an error of ours."""
    now = timezone.now()
    values: dict[str, Any]
    if not error:
        values = {"state": Delivery.State.SENT, "ended_at": now, "last_error": ""}
    elif delivery.tries < TRIES_MAX and delivery.event != Delivery.Event.TEST:
        values = {"due_at": now + timedelta(seconds=wait_s(delivery.tries, fraction())), "last_error": error}
    else:
        values = {"state": Delivery.State.DEAD, "ended_at": now, "last_error": error}
        log.error("notice %s to %s is given up: %s", delivery.pk, delivery.channel_name, error)
    Delivery.objects.filter(pk=delivery.pk, state=Delivery.State.WAITING).update(**values)
