"""Writes about channels and alerts. What people do is one transaction with one audit entry; what the gateway itself opens and
recovers is on record as the alert, with the notices it goes out by in the same transaction.

Raise ValidationError.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from budgets.alert_models import Alert, Channel, Delivery, Mute, Severity
from budgets.channels import (
    WEBHOOK,
    Destination,
    check_address,
    decode_destination,
    encode_destination,
    keeps_incidents,
)
from budgets.webhooks import SECRET_BYTES, encode_secret
from keys.services import master_keys
from keys.vault import Secret, open_sealed, seal
from routing.addresses import InvalidAddress

ROWS_PER_STATEMENT = 1_000


# Channels


def add_channel(channel: Channel, address: str, *, actor: Actor, reason: str = "") -> Secret | None:
    """Seal the address into a new, unsaved channel, and insert it. The signing secret of a webhook, to be shown once."""
    destination = Destination(address.strip(), _signing_secret() if channel.kind == WEBHOOK else "")
    _seal(channel, destination, may_be_private=channel.may_be_private)
    audit.create(channel, actor=actor, reason=reason)
    return Secret(destination.signing_secret) if destination.signing_secret else None


def change_channel(
    channel: Channel, *, actor: Actor, values: Mapping[str, Any], address: str = "", reason: str = ""
) -> None:
    """Without an address it keeps the one it has. What is allowed is asked anew of either."""
    with transaction.atomic():
        present = reveal_destination(Channel.objects.select_for_update(of=("self",)).get(pk=channel.pk))
        destination = Destination(address.strip() or present.address, present.signing_secret)
        changed = dict(values)
        _check(channel.kind, destination, may_be_private=changed.get("may_be_private", channel.may_be_private))
        if destination != present:
            changed["sealed"] = _sealed(channel, destination)
        audit.change(channel, actor=actor, reason=reason, values=changed)


def renew_signing_secret(channel: Channel, *, actor: Actor, reason: str) -> Secret:
    """A new one, to be shown once; what is sent from now on is signed with it alone."""
    with transaction.atomic():
        stored = Channel.objects.select_for_update(of=("self",)).get(pk=channel.pk)
        if stored.kind != WEBHOOK:
            raise ValidationError("Only a webhook is signed.")
        destination = Destination(reveal_destination(stored).address, _signing_secret())
        values = {"sealed": _sealed(channel, destination)}
        audit.change(channel, actor=actor, reason=reason, action="renew signing secret", values=values)
    return Secret(destination.signing_secret)


def bounded(viewer: Any, values: Mapping[str, Any], *, is_readdressed: bool) -> dict[str, Any]:
    """The values that this user or service account may write. Who does not see all teams makes no channel of no team, lets none
    into private networks, and sends none that is allowed there to another place. Raises PermissionDenied."""
    if viewer.sees_all_teams:
        return dict(values)
    if "team" in values and values["team"] is None:
        raise PermissionDenied("A channel of no team gets what concerns nobody's: name your team.")
    if values.get("may_be_private"):
        raise PermissionDenied("Only who sees all teams lets a channel into a private network.")
    return {**values, "may_be_private": False} if is_readdressed else dict(values)


def reveal_destination(channel: Channel) -> Destination:
    """For who sends there. Raises `keys.vault.VaultError`."""
    return decode_destination(open_sealed(channel.sealed, str(channel.pk), master_keys()).reveal())


def fire_test(channel: Channel, *, actor: Actor, reason: str = "") -> Delivery:
    """A notice that says it is a test, by the way that alerts take. What became of it is in the returned row."""
    with transaction.atomic():
        delivery = Delivery.objects.create(channel=channel, channel_name=channel.name, event=Delivery.Event.TEST)
        audit.record(actor, "test", channel, reason=reason)
    return delivery


def try_again(delivery: Delivery, *, actor: Actor, reason: str = "") -> None:
    """Put a notice that was given up back into the queue."""
    with transaction.atomic():
        stored = Delivery.objects.select_for_update(of=("self",)).get(pk=delivery.pk)
        if stored.state != Delivery.State.DEAD:
            raise ValidationError("Only what was given up is tried again.")
        values = {"state": Delivery.State.WAITING, "tries": 0, "due_at": timezone.now(), "ended_at": None}
        audit.change(delivery, actor=actor, reason=reason, action="try again", values=values)


def _check(kind: str, destination: Destination, *, may_be_private: bool) -> None:
    try:
        check_address(kind, destination.address, may_be_private=may_be_private)
    except InvalidAddress as error:
        raise ValidationError({"address": str(error)}) from error


def _seal(channel: Channel, destination: Destination, *, may_be_private: bool) -> None:
    _check(channel.kind, destination, may_be_private=may_be_private)
    channel.sealed = _sealed(channel, destination)


def _sealed(channel: Channel, destination: Destination) -> str:
    return seal(encode_destination(destination), str(channel.pk), master_keys())


def _signing_secret() -> str:
    return encode_secret(secrets.token_bytes(SECRET_BYTES))


# What people say to alerts


def acknowledge(alert: Alert, *, actor: Actor, note: str) -> None:
    """Somebody has seen it, and says what comes of it. The first who did stays on it."""
    if not note.strip():
        raise ValidationError({"note": "Say what comes of it: it goes on record."})
    with transaction.atomic():
        if Alert.objects.select_for_update().get(pk=alert.pk).acknowledged_at is not None:
            raise ValidationError("It is acknowledged already.")
        values = {"acknowledged_at": timezone.now(), "acknowledged_by": actor.name[:200], "note": note.strip()}
        audit.change(alert, actor=actor, reason=note, action="acknowledge", values=values)


def mute(alert: Alert, until: datetime, *, actor: Actor, reason: str = "") -> Mute:
    """Tell nobody of alerts about what this one is about. A moment that has passed ends it."""
    with transaction.atomic():
        muted, _ = Mute.objects.update_or_create(
            about_id=alert.about_id, defaults={"team_id": alert.team_id, "until": until}
        )
        audit.record(actor, "mute", alert, after={"until": until.isoformat()}, reason=reason)
    return muted


# What the gateway finds


class Finding(NamedTuple):
    """What is worth an alert, with the words for it. The first five tell one alert from another."""

    kind: str
    about_id: UUID
    counter: tuple[str, ...]
    percent: int
    window_start: datetime | None
    window_end: datetime | None
    team_id: UUID | None
    severity: Severity
    title: str
    text: str

    @property
    def identity(self) -> tuple[object, ...]:
        return self[:5]


def identity(alert: Alert) -> tuple[object, ...]:
    """As `Finding.identity`."""
    return alert.kind, alert.about_id, tuple(alert.counter), alert.percent, alert.window_start


def open_alerts(findings: Collection[Finding], *, now: datetime) -> list[Alert]:
    """Open an alert for each that has none, and again where one of the same window has recovered; the alerts that were opened.

    The constraints of the database decide who was first: of two that find the same, one opens it.
    """
    if not findings:
        return []
    # In one order, so that two who open the same wait for each other and not in a ring.
    rows = sorted((_row(finding, now) for finding in findings), key=lambda alert: repr(identity(alert)))
    with transaction.atomic():
        Alert.objects.bulk_create(rows, ignore_conflicts=True, batch_size=ROWS_PER_STATEMENT)
        new = set(Alert.objects.filter(pk__in=[row.pk for row in rows]).values_list("pk", flat=True))
        opened = [row for row in rows if row.pk in new]
        opened += _reopen([row for row in rows if row.pk not in new and row.window_start is not None], now)
        _notify(opened, Delivery.Event.OPENED, now)
    return opened


def recover_alerts(recoveries: Mapping[UUID, str], *, now: datetime) -> int:
    """It is over, and why, by the ids of the alerts; how many were open. Who was told that they opened is told."""
    by_words: dict[str, list[UUID]] = {}
    for alert_id, words in recoveries.items():
        by_words.setdefault(words, []).append(alert_id)
    with transaction.atomic():
        rows = list(Alert.objects.open().filter(pk__in=list(recoveries)).order_by("pk").select_for_update())
        still_open = {row.pk for row in rows}
        for words, alert_ids in by_words.items():
            chosen = still_open.intersection(alert_ids)
            Alert.objects.filter(pk__in=chosen).update(recovered_at=now, recovery=words)
        _notify(rows, Delivery.Event.RECOVERED, now)
    return len(rows)


def _row(finding: Finding, now: datetime) -> Alert:
    return Alert(**finding._asdict() | {"counter": list(finding.counter)}, opened_at=now)


def _reopen(rows: Iterable[Alert], now: datetime) -> list[Alert]:
    """Rows whose like is there and has recovered: that one is open again, with the words of now."""
    reopened = []
    for row in rows:
        same = Alert.objects.filter(
            kind=row.kind,
            about_id=row.about_id,
            counter=row.counter,
            percent=row.percent,
            window_start=row.window_start,
            recovered_at__isnull=False,
        )
        if same.update(
            recovered_at=None,
            recovery="",
            acknowledged_at=None,
            acknowledged_by="",
            note="",
            occurrence=F("occurrence") + 1,
            opened_at=now,
            severity=row.severity,
            text=row.text,
            title=row.title,
        ):
            reopened.append(Alert.objects.get(**{name: getattr(row, name) for name in IDENTITY}))
    return reopened


IDENTITY = ("kind", "about_id", "counter", "percent", "window_start")


def _notify(alerts: Collection[Alert], event: str, now: datetime) -> None:
    """Put a notice for each channel of each alert into the outbox. Of what is muted, only incidents that are open are ended."""
    if not alerts:
        return
    muted = set(
        Mute.objects.filter(about_id__in={alert.about_id for alert in alerts}, until__gt=now).values_list(
            "about_id", flat=True
        )
    )
    told = _told(alerts) if event == Delivery.Event.RECOVERED else None
    channels: dict[UUID | None, list[Channel]] = {}
    notices = []
    for alert in alerts:
        if alert.team_id not in channels:
            channels[alert.team_id] = list(Channel.objects.of(alert.team_id))
        is_muted = alert.about_id in muted
        notices += [
            Delivery(
                channel=channel,
                channel_name=channel.name,
                alert=alert,
                occurrence=alert.occurrence,
                event=event,
                due_at=now,
            )
            for channel in channels[alert.team_id]
            if channel.takes(alert.severity)
            and (told is None or (alert.pk, alert.occurrence, channel.pk) in told)
            and not (is_muted and (told is None or not keeps_incidents(channel.kind)))
        ]
    Delivery.objects.bulk_create(notices, ignore_conflicts=True, batch_size=ROWS_PER_STATEMENT)


def _told(alerts: Iterable[Alert]) -> set[tuple[Any, ...]]:
    opened = Delivery.objects.filter(alert__in=[alert.pk for alert in alerts], event=Delivery.Event.OPENED)
    return set(opened.values_list("alert_id", "occurrence", "channel_id"))
