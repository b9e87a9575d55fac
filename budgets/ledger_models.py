"""The ledger summed up by hour and day, how far it has come, whether its copies agree, and what finance resolves by hand.

The records themselves are `audit.models.UsageRecord`.
"""

from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import TeamQuerySet


class Usage(models.Model):
    """The ledger summed up by subject, alias, model and provider. Histograms count requests per bucket."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    team_id = models.UUIDField()
    project_id = models.UUIDField()
    virtual_key_id = models.UUIDField()
    alias = models.CharField()
    model = models.CharField()
    provider = models.CharField()
    requests = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=24, decimal_places=9, default=0)
    # What cache hits would have cost, and what of the cost shadow calls have.
    saved_usd = models.DecimalField(max_digits=24, decimal_places=9, default=0, db_default=0)
    shadow_cost_usd = models.DecimalField(max_digits=24, decimal_places=9, default=0, db_default=0)
    latency_histogram = ArrayField(models.BigIntegerField(), default=list)
    first_token_histogram = ArrayField(models.BigIntegerField(), default=list)

    objects = TeamQuerySet["Usage"].as_manager()

    class Meta:
        abstract = True


class UsageHour(Usage):
    """By the hour (UTC)."""

    hour = models.DateTimeField()

    class Meta:
        ordering = ["-hour"]
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(
                fields=["hour", "team_id", "project_id", "virtual_key_id", "alias", "model", "provider"],
                name="budgets_usagehour_once",
            )
        ]
        indexes = [
            models.Index(fields=["team_id", "hour"], name="budgets_usagehour_team"),
            models.Index(fields=["project_id", "hour"], name="budgets_usagehour_project"),
            models.Index(fields=["virtual_key_id", "hour"], name="budgets_usagehour_key"),
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:00} {self.model}"


class UsageDay(Usage):
    """By the day (UTC): the sum of its hours. Triggers on `UsageHour` write it, and nobody else does."""

    day = models.DateField()

    class Meta:
        ordering = ["-day"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["day", "team_id", "project_id", "virtual_key_id", "alias", "model", "provider"],
                name="budgets_usageday_once",
            )
        ]
        indexes = [
            models.Index(fields=["team_id", "day"], name="budgets_usageday_team"),
            models.Index(fields=["project_id", "day"], name="budgets_usageday_project"),
            models.Index(fields=["virtual_key_id", "day"], name="budgets_usageday_key"),
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.model}"


class UsageTag(models.Model):
    """The ledger summed up by project and one tag. A record with three tags counts in three rows."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    team_id = models.UUIDField()
    project_id = models.UUIDField()
    tag_key = models.CharField()
    tag_value = models.CharField()
    requests = models.BigIntegerField(default=0)
    tokens = models.BigIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=24, decimal_places=9, default=0)

    objects = TeamQuerySet["UsageTag"].as_manager()

    class Meta:
        abstract = True


class UsageTagHour(UsageTag):
    """By the hour (UTC)."""

    hour = models.DateTimeField()

    class Meta:
        ordering = ["-hour"]
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(
                fields=["hour", "team_id", "project_id", "tag_key", "tag_value"], name="budgets_usagetaghour_once"
            )
        ]
        indexes = [models.Index(fields=["tag_key", "hour"], name="budgets_usagetaghour_key")]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:00} {self.tag_key}={self.tag_value}"


class UsageTagDay(UsageTag):
    """By the day (UTC): the sum of its hours. Triggers on `UsageTagHour` write it, and nobody else does."""

    day = models.DateField()

    class Meta:
        ordering = ["-day"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["day", "team_id", "project_id", "tag_key", "tag_value"], name="budgets_usagetagday_once"
            )
        ]
        indexes = [models.Index(fields=["tag_key", "day"], name="budgets_usagetagday_key")]

    def __str__(self) -> str:
        return f"{self.day} {self.tag_key}={self.tag_value}"


class IngestWatermark(models.Model):
    """The last settle of a worker that the ledger holds."""

    worker = models.CharField(max_length=200, primary_key=True)
    seq = models.BigIntegerField(default=0)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.worker} {self.seq}"


class TouchedHour(models.Model):
    """An hour (UTC) whose records have changed since the verifier last compared it with its roll-ups."""

    hour = models.DateTimeField(primary_key=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:00}"


class Verification(models.Model):
    """One run of the verifier, and what it looked at. Those of the last month are kept."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(default=timezone.now, db_index=True)
    took_ms = models.PositiveIntegerField()
    hours = models.PositiveIntegerField(help_text="Hours whose records were compared with their roll-ups.")
    counters = models.PositiveIntegerField(
        null=True, help_text="Counters compared with the ledger; null: Redis was away."
    )
    drifts = models.PositiveIntegerField(help_text="How many differ, after it.")
    # Where the slow sweep over all hours goes on.
    swept_until = models.DateTimeField(null=True)
    # Until then no hours are compared: the last time took long.
    rests_until = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-at"]
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S}: {self.drifts} differ"


class Drift(models.Model):
    """Two copies of the same money that do not agree, from when it was first seen until they agreed again."""

    class Kind(models.TextChoices):
        HOURS = "hours", "roll-up by hour"
        TAG_HOURS = "tag_hours", "roll-up of tags by hour"
        DAYS = "days", "roll-up by day"
        TAG_DAYS = "tag_days", "roll-up of tags by day"
        COUNTERS = "counters", "budget counter"
        SUSPENSE = "suspense", "suspense"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=16, choices=Kind)
    what = models.CharField(help_text="The row or the counter, by its key.")
    unit = models.CharField(max_length=16, help_text="usd (amounts in nano-USD), tokens, requests, errors.")
    expected = models.BigIntegerField(help_text="What follows from the ledger; of a day, from its hours.")
    found = models.BigIntegerField()
    opened_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-opened_at"]
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "what"], condition=models.Q(closed_at__isnull=True), name="budgets_drift_one_open"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"

    @property
    def difference(self) -> int:
        return self.found - self.expected


class SuspenseResolutionQuerySet(TeamQuerySet["SuspenseResolution"]):
    def wanted(self) -> Self:
        """Approved, and not in the ledger yet."""
        return self.filter(is_approved=True, applied_at__isnull=True)


class SuspenseResolution(models.Model):
    """What an attempt in suspense has cost, as the provider's bill says: one person proposes it, another approves."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    attempt_id = models.UUIDField()
    team_id = models.UUIDField()
    cost_usd = models.DecimalField("cost (USD)", max_digits=20, decimal_places=9, validators=[MinValueValidator(0)])
    reason = models.TextField()
    proposed_by_id = models.CharField(max_length=64)
    proposed_by = models.CharField(max_length=200)
    proposed_at = models.DateTimeField(default=timezone.now)
    is_approved = models.BooleanField(null=True, blank=True)
    decided_by_id = models.CharField(max_length=64, blank=True)
    decided_by = models.CharField(max_length=200, blank=True)
    decided_at = models.DateTimeField(null=True, blank=True)
    note = models.TextField(blank=True)
    applied_at = models.DateTimeField(null=True, blank=True)

    objects = SuspenseResolutionQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        # To add is to propose, to change is to decide.
        default_permissions = ("view", "add", "change")
        constraints = [
            models.UniqueConstraint(
                fields=["attempt_id"],
                condition=models.Q(is_approved__isnull=True) | models.Q(is_approved=True),
                name="budgets_suspenseresolution_one",
                violation_error_message="There is a proposal for it already.",
            ),
            models.CheckConstraint(condition=models.Q(cost_usd__gte=0), name="budgets_suspenseresolution_cost"),
            models.CheckConstraint(condition=~models.Q(reason=""), name="budgets_suspenseresolution_reason"),
            models.CheckConstraint(
                condition=models.Q(is_approved__isnull=True)
                | models.Q(is_approved=False)
                | ~models.Q(decided_by_id=models.F("proposed_by_id")),
                name="budgets_suspenseresolution_second_person",
                violation_error_message="Whoever proposed it does not approve it.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.attempt_id}: {self.cost_usd.normalize():f} USD"
