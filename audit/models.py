"""What was changed, and what was used: two append-only tables. Knows no other package; ids of theirs are plain values.

The database itself refuses to change either (see the migrations), whoever asks.
"""

from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import EveryTeamQuerySet, TeamQuerySet
from audit.records import METERED


class Versioned(models.Model):
    """A row whose copies elsewhere may only move forward: each write counts `version` up, under the row's lock."""

    version = models.BigIntegerField(default=1, editable=False)

    class Meta:
        abstract = True


class AuditEntryQuerySet(EveryTeamQuerySet["AuditEntry"]):
    def about(self, obj: models.Model) -> Self:
        return self.filter(object_type=obj._meta.label_lower, object_id=str(obj.pk))


class AuditEntry(models.Model):
    """One change: who, from where, what, before and after, and why. `before` is null for a creation, `after` for a removal."""

    class ActorKind(models.TextChoices):
        USER = "user", "user"
        SERVICE_ACCOUNT = "service_account", "service account"
        SYSTEM = "system", "system"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(default=timezone.now, editable=False)
    actor_kind = models.CharField(max_length=16, choices=ActorKind)
    actor_id = models.CharField(max_length=64, blank=True)
    actor_name = models.CharField(max_length=200)
    ip = models.GenericIPAddressField("IP address", null=True, blank=True)
    action = models.CharField(max_length=64)
    object_type = models.CharField(max_length=100)
    object_id = models.CharField(max_length=64, blank=True)
    object_name = models.CharField(max_length=300, blank=True)
    before = models.JSONField(null=True, blank=True)
    after = models.JSONField(null=True, blank=True)
    reason = models.TextField(blank=True)

    objects = AuditEntryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "audit entries"
        ordering = ["-id"]
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["object_type", "object_id", "-id"], name="audit_entry_object"),
            models.Index(fields=["actor_id", "-id"], name="audit_entry_actor"),
            models.Index(fields=["action", "-id"], name="audit_entry_action"),
            models.Index(fields=["-at"], name="audit_entry_at"),
        ]

    def __str__(self) -> str:
        return f"{self.actor_name} {self.action} {self.object_type} {self.object_name}"


class UsageRecordQuerySet(TeamQuerySet["UsageRecord"]):
    def metered(self) -> Self:
        """Posted attempts whose usage is known, and so what they cost at any price; not those that used nothing, or whose cost
        an invoice has said."""
        return self.filter(state=UsageRecord.State.POSTED, adjusts=None, usage_source__in=METERED)


class UsageRecord(models.Model):
    """The ledger: one row per attempt, the fields of `audit.records.UsageEvent`. Partitioned by month of `admitted_at`.

    In the database the primary key is `(attempt_id, admitted_at)`, as native partitions demand.
    """

    class State(models.TextChoices):
        POSTED = "posted", "posted"
        VOIDED = "voided", "voided"
        SUSPENSE = "suspense", "in suspense"

    class Kind(models.TextChoices):
        ATTEMPT = "attempt", "attempt"
        CACHE_HIT = "cache_hit", "cache hit"
        SHADOW = "shadow", "shadow call"

    attempt_id = models.UUIDField(primary_key=True, editable=False)
    request_id = models.UUIDField()
    kind = models.CharField(choices=Kind, default=Kind.ATTEMPT, db_default=Kind.ATTEMPT)
    attempt_number = models.PositiveSmallIntegerField(default=1)
    admitted_at = models.DateTimeField()
    team_id = models.UUIDField()
    project_id = models.UUIDField()
    virtual_key_id = models.UUIDField()
    environment = models.CharField(blank=True, default="")
    end_user = models.CharField(blank=True, default="", db_default="")
    alias = models.CharField()
    downgraded_from = models.CharField(blank=True, default="", db_default="")
    provider = models.CharField()
    model = models.CharField()
    deployment = models.CharField()
    pool = models.CharField("credential pool", blank=True, default="", db_default="")
    operation = models.CharField(default="chat")
    request_model = models.CharField()
    response_model = models.CharField(blank=True, default="")
    upstream_id = models.CharField("id at the provider", blank=True, default="", db_default="")
    is_stream = models.BooleanField(default=False)
    state = models.CharField(choices=State, default=State.POSTED)
    status_code = models.PositiveSmallIntegerField(default=0)
    error_type = models.CharField(blank=True, default="")
    finish_reason = models.CharField(blank=True, default="")
    input_tokens = models.BigIntegerField(default=0)
    cache_read_input_tokens = models.BigIntegerField(default=0)
    cache_write_input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0)
    # The database knows their default too: an ingest of the release before writes rows without them.
    cache_write_1h_input_tokens = models.BigIntegerField(default=0, db_default=0)
    input_audio_tokens = models.BigIntegerField(default=0, db_default=0)
    input_image_tokens = models.BigIntegerField(default=0, db_default=0)
    output_audio_tokens = models.BigIntegerField(default=0, db_default=0)
    output_image_tokens = models.BigIntegerField(default=0, db_default=0)
    tool_calls = models.BigIntegerField(default=0, db_default=0)
    units = models.BigIntegerField(default=0, db_default=0)
    searches = models.BigIntegerField(default=0, db_default=0)
    batch_requests = models.BigIntegerField(default=0, db_default=0)
    service_tier = models.CharField(blank=True, default="", db_default="")
    inference_geo = models.CharField(blank=True, default="", db_default="")
    usage_source = models.CharField(default="none")
    cost_usd = models.DecimalField(max_digits=20, decimal_places=9, default=0)
    held_usd = models.DecimalField(max_digits=20, decimal_places=9, default=0)
    saved_usd = models.DecimalField(max_digits=20, decimal_places=9, default=0, db_default=0)
    price_id = models.UUIDField(null=True, blank=True)
    terms = models.JSONField(
        "terms of the price", default=dict, blank=True, db_default=models.Value({}, models.JSONField())
    )
    currency_cost = models.DecimalField(
        "cost in the provider's currency", max_digits=20, decimal_places=9, null=True, blank=True
    )
    adjusts = models.UUIDField("corrects the cost of", null=True, blank=True)
    latency_ms = models.PositiveIntegerField(default=0)
    first_token_ms = models.PositiveIntegerField(default=0)
    kill_switch_id = models.UUIDField(null=True, blank=True)
    tags = models.JSONField(default=dict, blank=True)
    tag_sources = models.JSONField(default=dict, blank=True, db_default=models.Value({}, models.JSONField()))
    route = models.JSONField(default=list, blank=True, db_default=models.Value([], models.JSONField()))
    budget_ids = ArrayField(models.UUIDField(), verbose_name="counted in", default=list, blank=True, db_default=[])
    ingested_at = models.DateTimeField(db_default=Now(), editable=False)
    resolved_at = models.DateTimeField(null=True, blank=True)

    objects = UsageRecordQuerySet.as_manager()

    class Meta:
        ordering = ["-admitted_at", "-attempt_id"]
        default_permissions = ("view",)
        indexes = [
            models.Index(fields=["-admitted_at", "-attempt_id"], name="audit_usage_at"),
            models.Index(fields=["team_id", "-admitted_at"], name="audit_usage_team"),
            models.Index(fields=["project_id", "-admitted_at"], name="audit_usage_project"),
            models.Index(fields=["virtual_key_id", "-admitted_at"], name="audit_usage_key"),
            models.Index(fields=["request_id"], name="audit_usage_request"),
            models.Index(fields=["admitted_at"], name="audit_usage_suspense", condition=models.Q(state="suspense")),
            models.Index(fields=["admitted_at"], name="audit_usage_voided", condition=models.Q(state="voided")),
            models.Index(fields=["adjusts"], name="audit_usage_adjusts", condition=models.Q(adjusts__isnull=False)),
            GinIndex(fields=["tags"], name="audit_usage_tags", opclasses=["jsonb_path_ops"]),
        ]

    def __str__(self) -> str:
        return f"{self.model} {self.attempt_id}"
