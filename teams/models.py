"""Who there is: people, teams, the projects applications live in, and machines that call the API. No state changes here."""

import zoneinfo
from collections.abc import Collection
from typing import Any, ClassVar, Self

from django.contrib.auth.models import AbstractUser
from django.contrib.auth.models import Group as AuthGroup
from django.contrib.auth.models import UserManager as AuthUserManager
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import MEMBER, OWNER, READERS, VIEWER, TeamQuerySet
from teams import scopes, tags

name_validator = RegexValidator(r"\A[^\x00-\x1f\x7f]+\Z", "No control characters.")
tag_key_validator = RegexValidator(r"\A[A-Za-z0-9_.\-/]{1,64}\Z", "1 to 64 of letters, digits, '_', '-', '.', '/'.")


def validate_time_zone(name: str) -> None:
    if name not in zoneinfo.available_timezones():
        raise ValidationError(f"{name!r} is not an IANA time zone, such as Europe/Berlin.")


def validate_tags(value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(part, str) for item in value.items() for part in item):
        raise ValidationError("Tags are an object of strings.")
    try:
        tags.check(value)
    except tags.InvalidTags as error:
        raise ValidationError(str(error)) from error


def validate_scope(scope: str) -> None:
    if scope not in scopes.SCOPES:
        raise ValidationError(f"{scope!r} is not a scope; one of {', '.join(scopes.SCOPES)}.")


class UserQuerySet(models.QuerySet["User"]):
    def for_user(self, viewer: Any, roles: Collection[str] = READERS) -> Self:
        """Oneself, and who shares a team in which the viewer has one of `roles`."""
        if not viewer.is_active:
            return self.none()
        if viewer.sees_all_teams:
            return self.all()
        colleagues = Membership.objects.filter(team_id__in=viewer.team_ids(roles)).values("user_id")
        return self.filter(models.Q(pk=viewer.pk) | models.Q(pk__in=colleagues))


class UserManager(AuthUserManager["User"].from_queryset(UserQuerySet)):  # type: ignore[misc]
    pass


class User(AbstractUser):
    """A person who signs in to the admin."""

    audit_hidden: ClassVar[frozenset[str]] = frozenset({"password"})
    actor_kind: ClassVar[str] = "user"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.EmailField("email address", unique=True)

    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        ordering = ["username"]
        constraints = [models.UniqueConstraint(Lower("email"), name="teams_user_email_any_case")]

    @property
    def sees_all_teams(self) -> bool:
        return self.is_active and (self.is_superuser or self.has_perm("teams.view_all_teams"))

    def team_ids(self, roles: Collection[str] = READERS) -> models.QuerySet[Any, Any]:
        """Ids of the teams in which the user has one of `roles`, as a subquery."""
        return Membership.objects.filter(user_id=self.pk, role__in=roles).values_list("team_id", flat=True)


class Group(AuthGroup):
    """A named set of permissions. `external_id` is what the identity provider knows it by."""

    external_id = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["external_id"], condition=~models.Q(external_id=""), name="teams_group_external_id"
            )
        ]


class TeamRowQuerySet(TeamQuerySet["Team"]):
    team_paths = ("id",)


class Team(models.Model):
    """The owner of projects and money. Budget windows follow the calendar of its time zone."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, validators=[name_validator])
    slug = models.SlugField(max_length=100, unique=True)
    time_zone = models.CharField(
        max_length=64,
        default="UTC",
        validators=[validate_time_zone],
        help_text="IANA name, such as Europe/Berlin. Hours, days and months of budgets begin on its calendar.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = TeamRowQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        permissions = [("view_all_teams", "Can see the data of every team")]

    def __str__(self) -> str:
        return self.name


class Project(models.Model):
    """The unit applications live in: it gives its virtual keys an environment, a cost centre and tags."""

    class Environment(models.TextChoices):
        DEV = "dev", "development"
        STAGING = "staging", "staging"
        PROD = "prod", "production"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    team = models.ForeignKey(Team, models.PROTECT, related_name="projects")
    name = models.CharField(max_length=100, validators=[name_validator])
    slug = models.SlugField(max_length=100)
    environment = models.CharField(max_length=16, choices=Environment, default=Environment.DEV)
    cost_centre = models.CharField(max_length=64, blank=True)
    default_tags = models.JSONField(
        default=dict, blank=True, validators=[validate_tags], help_text='Such as {"feature": "search"}.'
    )
    required_tag_keys = ArrayField(
        models.CharField(max_length=64, validators=[tag_key_validator]),
        default=list,
        blank=True,
        help_text="A request that lacks one of these tags is refused.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = TeamQuerySet["Project"].as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["team", "slug"], name="teams_project_slug")]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A person in a team. Owners and members may change its objects; viewers only look."""

    class Role(models.TextChoices):
        OWNER = OWNER, "owner"
        MEMBER = MEMBER, "member"
        VIEWER = VIEWER, "viewer"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    team = models.ForeignKey(Team, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role, default=Role.VIEWER)

    objects = TeamQuerySet["Membership"].as_manager()

    class Meta:
        ordering = ["team", "user"]
        constraints = [models.UniqueConstraint(fields=["user", "team"], name="teams_membership_once")]

    def __str__(self) -> str:
        return f"{self.user}, {self.role} of {self.team}"


class ServiceAccountQuerySet(TeamQuerySet["ServiceAccount"]):
    pass


class ServiceAccount(models.Model):
    """A machine that calls the management API. Without a team it sees every team; its scopes say what it may do."""

    actor_kind: ClassVar[str] = "service_account"
    is_authenticated: ClassVar[bool] = True
    is_anonymous: ClassVar[bool] = False

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[name_validator])
    team = models.ForeignKey(
        Team,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="service_accounts",
        help_text="Empty means every team.",
    )
    scopes = ArrayField(models.CharField(max_length=64, validators=[validate_scope]), default=list, blank=True)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ServiceAccountQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        beyond = sorted(scopes.BEYOND_A_TEAM.intersection(self.scopes))
        if self.team_id is not None and beyond:
            raise ValidationError({"scopes": f"These reach beyond one team: {', '.join(beyond)}."})

    @property
    def sees_all_teams(self) -> bool:
        return self.is_active and self.team_id is None

    def team_ids(self, roles: Collection[str] = READERS) -> list[Any]:
        return [self.team_id]

    def may(self, scope: str) -> bool:
        return self.is_active and scope in self.scopes


class ApiTokenQuerySet(TeamQuerySet["ApiToken"]):
    team_paths = ("service_account__team_id",)


class ApiToken(models.Model):
    """A bearer token of a service account. Only its SHA-256 is kept."""

    audit_hidden: ClassVar[frozenset[str]] = frozenset({"digest"})

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    service_account = models.ForeignKey(ServiceAccount, models.PROTECT, related_name="tokens")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=32, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        verbose_name = "API token"

    def __str__(self) -> str:
        return f"{self.hint} of {self.service_account}"

    @property
    def is_usable(self) -> bool:
        """Neither revoked nor expired, and its account active."""
        expired = self.expires_at is not None and self.expires_at <= timezone.now()
        return self.revoked_at is None and not expired and self.service_account.is_active
