"""What opens doors and what shuts them: virtual keys, the vault's upstream credentials, kill switches."""

from collections.abc import Collection
from typing import Any, ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import OpClass
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Upper
from django.utils import timezone

from audit.ids import uuid7
from audit.models import Versioned
from audit.querysets import READERS, VIEWER, SharedQuerySet, TeamQuerySet
from keys.kills import KillFlag, kill_field
from teams.models import Project, name_validator, validate_tags


class CredentialPool(models.Model):
    """Credentials that stand in for one another at one provider."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[name_validator])
    provider = models.SlugField(max_length=64, help_text="Slug of the provider its secrets are sent to, and no other.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["CredentialPool"].as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        # A secret goes to the provider it was entered for: turning its pool would send it somewhere else.
        if not self._state.adding and self.credentials.exists():
            stored = CredentialPool.objects.values_list("provider", flat=True).get(pk=self.pk)
            if stored != self.provider:
                raise ValidationError({"provider": "A pool that holds credentials keeps its provider: add another."})


class UpstreamCredential(models.Model):
    """A provider's secret, sealed. `fingerprint` is its last four characters (of a JSON object those of its key's id)."""

    audit_hidden: ClassVar[frozenset[str]] = frozenset({"sealed"})

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    pool = models.ForeignKey(CredentialPool, models.PROTECT, related_name="credentials")
    name = models.CharField(max_length=100, validators=[name_validator])
    sealed = models.TextField(editable=False)
    fingerprint = models.CharField(max_length=8, editable=False)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["UpstreamCredential"].as_manager()

    class Meta:
        ordering = ["pool", "name"]
        constraints = [models.UniqueConstraint(fields=["pool", "name"], name="keys_credential_name")]

    def __str__(self) -> str:
        return f"{self.name} (…{self.fingerprint})"

    def clean(self) -> None:
        if self._state.adding:
            return
        before = CredentialPool.objects.get(credentials=self.pk)
        if before.provider != self.pool.provider:
            raise ValidationError(
                {"pool": f"This secret belongs to {before.provider}; the pool is of another provider."}
            )


class VirtualKeyQuerySet(TeamQuerySet["VirtualKey"]):
    team_paths = ("project__team_id",)


class VirtualKey(Versioned):
    """What an application holds. Only the SHA-256 of its secret is kept: of 192 random bits, so it may be shown."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, models.PROTECT, related_name="virtual_keys")
    name = models.CharField(max_length=100, validators=[name_validator])
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=32, editable=False)
    aliases = ArrayField(
        models.CharField(max_length=100),
        default=list,
        blank=True,
        help_text="Model aliases it may call, separated by commas; * means every alias, empty none.",
    )
    passthrough = ArrayField(
        models.CharField(max_length=64),
        default=list,
        db_default=[],  # For keys that the release before still issues.
        blank=True,
        verbose_name="pass-through",
        help_text="Slugs of the providers of which it may call any path, separated by commas; * means all, empty none.",
    )
    default_tags = models.JSONField(default=dict, blank=True, validators=[validate_tags])
    expires_at = models.DateTimeField(null=True, blank=True)
    paused_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.CharField(max_length=200, blank=True, editable=False)

    objects = VirtualKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["project", "-id"], name="keys_virtualkey_project"),
            models.Index(OpClass(Upper("name"), "text_pattern_ops"), name="keys_virtualkey_name"),
            models.Index(fields=["hint"], name="keys_virtualkey_hint"),
            models.Index(fields=["digest"], name="keys_virtualkey_digest_prefix", opclasses=["varchar_pattern_ops"]),
            models.Index(
                fields=["expires_at"],
                name="keys_virtualkey_expiry",
                condition=models.Q(revoked_at__isnull=True, expires_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.hint})"

    def clean(self) -> None:
        if self._state.adding:
            return
        stored = VirtualKey.objects.only("project_id", "revoked_at").get(pk=self.pk)
        # Its spend was counted against its project's budgets: a key that moved would take its history elsewhere.
        if stored.project_id != self.project_id:
            raise ValidationError({"project": "A virtual key stays in its project: issue another there."})
        if stored.revoked_at is not None and self.revoked_at is None:
            raise ValidationError("A revoked virtual key stays revoked: issue another.")

    @property
    def status(self) -> str:
        """`revoked`, `expired`, `paused` or `active`, the first that holds."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= timezone.now():
            return "expired"
        return "active" if self.paused_at is None else "paused"


class KillSwitchQuerySet(models.QuerySet["KillSwitch"]):
    def active(self) -> Self:
        return self.filter(lifted_at__isnull=True)

    def for_user(self, viewer: Any, roles: Collection[str] = READERS) -> Self:
        """Those of the viewer's teams, projects and keys; to look at, also those that stop everybody."""
        if not viewer.is_active:
            return self.none()
        if viewer.sees_all_teams:
            return self.all()
        teams = [str(team) for team in viewer.team_ids(roles)]
        projects = Project.objects.filter(team_id__in=teams)
        halted_keys = list(self.filter(scope="key").values_list("target", flat=True))
        own_keys = VirtualKey.objects.filter(pk__in=halted_keys, project__in=projects)
        visible = models.Q(scope="team", target__in=teams)
        visible |= models.Q(scope="project", target__in=[str(pk) for pk in projects.values_list("pk", flat=True)])
        visible |= models.Q(scope="key", target__in=[str(pk) for pk in own_keys.values_list("pk", flat=True)])
        if VIEWER in roles:
            visible |= models.Q(scope__in=["global", "model", "provider"])
        return self.filter(visible)


class KillSwitch(models.Model):
    """A stop of all traffic in one scope, from `thrown_at` to `lifted_at`. The flag in Redis is what stops it."""

    class Scope(models.TextChoices):
        GLOBAL = "global", "everything"
        TEAM = "team", "team"
        PROJECT = "project", "project"
        KEY = "key", "virtual key"
        MODEL = "model", "model"
        PROVIDER = "provider", "provider"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    scope = models.CharField(max_length=16, choices=Scope)
    target = models.CharField(
        max_length=100, blank=True, help_text="Id of the team, project or key; name of the model; slug of the provider."
    )
    reason = models.TextField()
    thrown_by = models.CharField(max_length=200, editable=False)
    thrown_at = models.DateTimeField(default=timezone.now, editable=False)
    lifted_by = models.CharField(max_length=200, blank=True, editable=False)
    lifted_at = models.DateTimeField(null=True, blank=True, editable=False)
    lift_reason = models.TextField(blank=True, editable=False)

    objects = KillSwitchQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "kill switches"
        constraints = [
            models.UniqueConstraint(
                fields=["scope", "target"],
                condition=models.Q(lifted_at__isnull=True),
                name="keys_killswitch_one_active",
                violation_error_message="This is halted already.",
            ),
            models.CheckConstraint(
                condition=models.Q(scope="global", target="") | (~models.Q(scope="global") & ~models.Q(target="")),
                name="keys_killswitch_target",
                violation_error_message="Every scope but the global one needs a target.",
            ),
            models.CheckConstraint(condition=~models.Q(reason=""), name="keys_killswitch_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.scope}:{self.target}" if self.target else self.scope

    def clean(self) -> None:
        try:
            kill_field(self.scope, self.target)
        except ValueError as error:
            raise ValidationError(str(error)) from error

    @property
    def is_active(self) -> bool:
        return self.lifted_at is None

    @property
    def flag(self) -> KillFlag:
        """What Redis holds while the switch is thrown."""
        return KillFlag(
            kill_switch_id=str(self.pk),
            scope=self.scope,  # type: ignore[arg-type]
            target=self.target,
            reason=self.reason,
            thrown_at_s=self.thrown_at.timestamp(),
        )
