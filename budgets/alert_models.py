"""Alerts, the channels they go out by, and the outbox of their notices. What is worth an alert is in `alerts.py`."""

from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import TeamQuerySet
from teams.models import Team, name_validator


class Severity(models.TextChoices):
    INFO = "info", "info"
    WARNING = "warning", "warning"
    CRITICAL = "critical", "critical"


class ChannelQuerySet(TeamQuerySet["Channel"]):
    def of(self, team_id: object) -> Self:
        """The channels that a team's alerts go to: its own; where it has none, those of no team, so that somebody hears."""
        active = self.filter(is_active=True)
        own = active.filter(team_id=team_id)
        return own if team_id is not None and own.exists() else active.filter(team=None)


class Channel(models.Model):
    """Where alerts go. With a team it is that team's; without one it is the administrators'."""

    audit_hidden: ClassVar[frozenset[str]] = frozenset({"sealed"})

    class Kind(models.TextChoices):
        SLACK = "slack", "Slack"
        TEAMS = "teams", "Microsoft Teams"
        DISCORD = "discord", "Discord"
        PAGERDUTY = "pagerduty", "PagerDuty"
        MAIL = "mail", "mail"
        WEBHOOK = "webhook", "signed webhook"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, validators=[name_validator])
    team = models.ForeignKey(
        Team,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="channels",
        help_text="Its alerts come here. Empty: what concerns no team, and the alerts of teams that have no channel.",
    )
    kind = models.CharField(max_length=16, choices=Kind)
    sealed = models.TextField(editable=False)
    least_severity = models.CharField(
        max_length=16, choices=Severity, default=Severity.INFO, help_text="Less is not sent here."
    )
    may_be_private = models.BooleanField(
        "may be on a private network",
        default=False,
        help_text="Lets it connect to private and loopback addresses, such as a mail relay. For administrators.",
    )
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ChannelQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["team", "name"],
                nulls_distinct=False,
                name="budgets_channel_name",
                violation_error_message="There is a channel of this name already.",
            )
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self._state.adding:
            return
        stored = Channel.objects.only("kind").get(pk=self.pk)
        if stored.kind != self.kind:
            raise ValidationError({"kind": "A channel stays of its kind: add another."})

    def takes(self, severity: str) -> bool:
        return Severity.values.index(severity) >= Severity.values.index(self.least_severity)


class AlertQuerySet(TeamQuerySet["Alert"]):
    def open(self) -> Self:
        """Also those that somebody has acknowledged."""
        return self.filter(recovered_at__isnull=True)

    def of_status(self, status: str) -> Self:
        if status == Alert.Status.RECOVERED:
            return self.filter(recovered_at__isnull=False)
        return self.open().filter(acknowledged_at__isnull=status == Alert.Status.OPEN)


class Alert(models.Model):
    """Something that somebody should know, from when it was so until it was over.

    `about_id` is the id of what it is about (the budget, the kill switch, …), `counter` which of a budget's counters: the
    values of its subject that have a counter each. A budget's alerts belong to a window; the others have none.
    """

    class Kind(models.TextChoices):
        THRESHOLD = "threshold", "budget threshold"
        FORECAST = "forecast", "budget runs out"
        SUSPENSE = "suspense", "old suspense"
        DRIFT = "drift", "drift"
        KILL_SWITCH = "kill_switch", "kill switch"
        CREDENTIAL = "credential", "credential refused"
        INCREASE = "increase", "increase asked for"
        FEED = "feed", "exchange rates not fetched"

    class Status(models.TextChoices):
        OPEN = "open", "open"
        ACKNOWLEDGED = "acknowledged", "acknowledged"
        RECOVERED = "recovered", "recovered"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=16, choices=Kind)
    team_id = models.UUIDField(null=True, blank=True)
    about_id = models.UUIDField()
    counter = ArrayField(models.CharField(), default=list, blank=True)
    percent = models.PositiveIntegerField(default=0)
    window_start = models.DateTimeField(null=True, blank=True)
    window_end = models.DateTimeField(null=True, blank=True)
    severity = models.CharField(max_length=16, choices=Severity)
    title = models.CharField()
    text = models.TextField()
    # How often it has opened: what recovered may come back within its window.
    occurrence = models.PositiveIntegerField(default=1)
    opened_at = models.DateTimeField(default=timezone.now)
    recovered_at = models.DateTimeField(null=True, blank=True)
    recovery = models.CharField(blank=True)
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    acknowledged_by = models.CharField(max_length=200, blank=True)
    note = models.TextField(blank=True)

    objects = AlertQuerySet.as_manager()

    class Meta:
        ordering = ["-opened_at"]
        # To change is to acknowledge or to mute.
        default_permissions = ("view", "change")
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "about_id", "counter", "percent", "window_start"],
                condition=models.Q(window_start__isnull=False),
                name="budgets_alert_once_a_window",
            ),
            models.UniqueConstraint(
                fields=["kind", "about_id"],
                condition=models.Q(window_start__isnull=True, recovered_at__isnull=True),
                name="budgets_alert_one_open",
            ),
        ]
        indexes = [
            models.Index(fields=["kind"], condition=models.Q(recovered_at__isnull=True), name="budgets_alert_open"),
            models.Index(fields=["team_id", "-opened_at"], name="budgets_alert_team"),
            models.Index(fields=["-opened_at"], name="budgets_alert_opened"),
        ]

    def __str__(self) -> str:
        return self.title

    @property
    def status(self) -> str:
        if self.recovered_at is not None:
            return self.Status.RECOVERED.value
        return (self.Status.OPEN if self.acknowledged_at is None else self.Status.ACKNOWLEDGED).value


class Mute(models.Model):
    """Until then nobody is told of alerts about this one; they are opened and shown as ever."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    about_id = models.UUIDField(unique=True)
    team_id = models.UUIDField(null=True)
    until = models.DateTimeField()

    objects = TeamQuerySet["Mute"].as_manager()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.about_id} until {self.until:%Y-%m-%d %H:%M}"


class DeliveryQuerySet(TeamQuerySet["Delivery"]):
    team_paths = ("channel__team_id", "alert__team_id")


class Delivery(models.Model):
    """One notice for one channel: the outbox. Written with what it tells of, sent after, and tried until it is sent or dead."""

    class Event(models.TextChoices):
        OPENED = "opened", "opened"
        RECOVERED = "recovered", "recovered"
        TEST = "test", "test"

    class State(models.TextChoices):
        WAITING = "waiting", "waiting"
        SENT = "sent", "sent"
        DEAD = "dead", "given up"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    channel = models.ForeignKey(Channel, models.SET_NULL, null=True, blank=True, related_name="deliveries")
    channel_name = models.CharField(max_length=100)
    alert = models.ForeignKey(Alert, models.CASCADE, null=True, blank=True, related_name="deliveries")
    occurrence = models.PositiveIntegerField(default=1)
    event = models.CharField(max_length=16, choices=Event)
    state = models.CharField(max_length=16, choices=State, default=State.WAITING)
    tries = models.PositiveSmallIntegerField(default=0)
    due_at = models.DateTimeField(default=timezone.now)
    last_error = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "deliveries"
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(
                fields=["channel", "alert", "event", "occurrence"],
                condition=models.Q(alert__isnull=False),
                name="budgets_delivery_once",
            )
        ]
        indexes = [
            models.Index(fields=["due_at"], condition=models.Q(state="waiting"), name="budgets_delivery_due"),
            models.Index(fields=["state"], condition=models.Q(state="dead"), name="budgets_delivery_dead"),
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.channel_name}"
