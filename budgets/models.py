"""What may be spent and how fast. The rules are in the pure modules beside this one."""

from decimal import Decimal
from typing import Any, Self

from django.contrib.postgres.expressions import ArraySubquery
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Coalesce, Floor, NullIf
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import TeamQuerySet
from budgets.alert_models import Alert, Channel, Delivery, Mute  # noqa: F401 Django looks for models here.
from budgets.caps import WHOLE_PERCENT
from budgets.ledger_models import (  # noqa: F401
    Drift,
    IngestWatermark,
    SuspenseResolution,
    TouchedHour,
    UsageDay,
    UsageHour,
    UsageTagDay,
    UsageTagHour,
    Verification,
)
from budgets.matching import EACH
from keys.models import CredentialPool, VirtualKey
from routing.models import Deployment, Model, ModelAlias, Provider
from teams.models import Project, Team, name_validator, tag_key_validator, validate_tags, validate_time_zone

SUBJECT_TEAMS = ("team_id", "project__team_id", "virtual_key__project__team_id")
SUBJECT_TAGS_MAX = 4
END_USER_LENGTH_MAX = 200
TAG = "tag:"
# What the gate counts exactly: below a billion dollars, and up to 2^53 tokens or requests.
USD_MAX = Decimal("999999999.999999999")
COUNT_MAX = 2**53
WINDOW_S_MAX = 31 * 86_400
PERCENT_MAX = 1_000
THRESHOLDS_MAX = 20

# The fields of a subject by their dimensions, as the data path has them.
SUBJECT_FIELDS: dict[str, str] = {
    "team": "team",
    "project": "project",
    "key": "virtual_key",
    "environment": "environment",
    "end_user": "end_user",
    "alias": "alias",
    "model": "model",
    "provider": "provider",
    "deployment": "deployment",
    "pool": "pool",
}
# At most one of them says whose the rule is: a project is of one team, a virtual key of one project.
OWNERS: dict[str, str] = {"team": "team", "project": "project", "key": "virtual_key"}
DIMENSION_LABELS: dict[str, str] = {
    "team": "team",
    "project": "project",
    "key": "virtual key",
    "environment": "environment",
    "end_user": "end user",
    "alias": "model alias",
    "model": "model",
    "provider": "provider",
    "deployment": "deployment",
    "pool": "credential pool",
}


# What `SubjectRule.subject` reads, for lists.
SUBJECT_RELATED = ("team", "project", "virtual_key", "alias", "model", "provider", "deployment", "pool")


class Scope(models.TextChoices):
    """Whose a rule is."""

    GLOBAL = "global", "everybody"
    TEAM = "team", "team"
    PROJECT = "project", "project"
    KEY = "key", "virtual key"


def _owner_of_scope() -> models.Q:
    """The one owner that the scope names is set, and no other."""
    condition = models.Q()
    for scope in Scope:
        named = OWNERS.get(scope)
        condition |= models.Q(scope=scope, **{f"{field}__isnull": field != named for field in OWNERS.values()})
    return condition


def validate_each(dimension: str) -> None:
    if dimension.startswith(TAG):
        tag_key_validator(dimension.removeprefix(TAG))
    elif dimension not in SUBJECT_FIELDS:
        raise ValidationError(f"{dimension!r} is no dimension: one of {', '.join(SUBJECT_FIELDS)}, or {TAG}NAME.")


class SubjectRuleQuerySet(TeamQuerySet[Any]):
    team_paths = SUBJECT_TEAMS

    def with_subject(self) -> Self:
        """With what `subject_of` reads besides the columns: names are what the data path knows aliases and models by."""
        return self.annotate(
            alias_name=models.F("alias__name"),
            model_name=models.F("model__name"),
            provider_slug=models.F("provider__slug"),
        )


SUBJECT_COLUMNS = (
    "team_id",
    "project_id",
    "virtual_key_id",
    "environment",
    "end_user",
    "alias_name",
    "model_name",
    "provider_slug",
    "deployment_id",
    "pool_id",
    "tags",
    "each",
)


def subject_of(row: Any) -> dict[str, str]:
    """The subject as the data path has it (`budgets.matching`), of a rule or a row of `with_subject`."""
    values = (
        row.team_id,
        row.project_id,
        row.virtual_key_id,
        row.environment,
        row.end_user,
        row.alias_name,
        row.model_name,
        row.provider_slug,
        row.deployment_id,
        row.pool_id,
    )
    subject = {dimension: str(value) for dimension, value in zip(SUBJECT_FIELDS, values, strict=True) if value}
    subject |= {f"{TAG}{name}": value for name, value in row.tags.items()}
    return subject | dict.fromkeys(row.each, EACH)


class SubjectRule(models.Model):
    """A rule for what its subject names. What is left empty matches everything; of several, all must match.

    At most one of team, project and virtual key says whose it is. A rule of nobody's is for everybody, and only who sees every
    team sees it. Of each dimension in `each`, every value has a counter of its own.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    scope = models.CharField(max_length=16, choices=Scope)
    team = models.ForeignKey(Team, models.PROTECT, null=True, blank=True)
    project = models.ForeignKey(Project, models.PROTECT, null=True, blank=True)
    virtual_key = models.ForeignKey(VirtualKey, models.PROTECT, null=True, blank=True)
    environment = models.CharField(max_length=16, choices=Project.Environment, blank=True, default="", db_default="")
    end_user = models.CharField(
        max_length=END_USER_LENGTH_MAX,
        blank=True,
        default="",
        db_default="",
        validators=[name_validator],
        help_text="As applications name them: OpenAI's user, Anthropic's metadata.user_id, or the header x-tollgate-user.",
    )
    tags = models.JSONField(
        default=dict,
        db_default={},
        blank=True,
        validators=[validate_tags],
        help_text='Requests that carry all of these, such as {"customer": "acme"}.',
    )
    alias = models.ForeignKey(ModelAlias, models.PROTECT, null=True, blank=True, verbose_name="model alias")
    model = models.ForeignKey(Model, models.PROTECT, null=True, blank=True)
    provider = models.ForeignKey(Provider, models.PROTECT, null=True, blank=True)
    deployment = models.ForeignKey(Deployment, models.PROTECT, null=True, blank=True)
    pool = models.ForeignKey(CredentialPool, models.PROTECT, null=True, blank=True, verbose_name="credential pool")
    each = ArrayField(
        models.CharField(max_length=80, validators=[validate_each]),
        default=list,
        db_default=[],
        blank=True,
        help_text=(
            "Each of these has the whole amount to itself, such as end_user: every end user may spend it. Separated by commas:"
            f" {', '.join(SUBJECT_FIELDS)}, or {TAG}NAME."
        ),
    )
    is_active = models.BooleanField("active", default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        abstract = True

    @property
    def owner(self) -> Team | Project | VirtualKey | None:
        """Whose it is; None where it is everybody's."""
        return self.team or self.project or self.virtual_key

    @property
    def subject(self) -> str:
        """For people: `Search · gpt-4o, each end user`."""
        named = [str(value) for field in SUBJECT_FIELDS.values() if (value := getattr(self, field))]
        named += [f"{name}={value}" for name, value in self.tags.items()]
        each = ["each " + dimension_label(dimension) for dimension in self.each]
        return ", ".join([" · ".join(named)] * bool(named) + each) or "everybody"

    def own_scope(self) -> Scope:
        return next((Scope(name) for name, field in OWNERS.items() if getattr(self, f"{field}_id")), Scope.GLOBAL)

    def clean(self) -> None:
        if [field for field in OWNERS.values() if getattr(self, f"{field}_id")] != list(
            filter(None, [OWNERS.get(self.scope)])
        ):
            raise ValidationError(
                "Name at most one of team, project and virtual key: a project is of one team already."
            )
        if not isinstance(self.tags, dict) or len(self.tags) > SUBJECT_TAGS_MAX:
            raise ValidationError({"tags": f"At most {SUBJECT_TAGS_MAX} tags."})
        if EACH in (self.end_user, *self.tags.values()):
            raise ValidationError(f"{EACH!r} is no value: name what is to be counted apart under “each”.")
        self._check_each()
        if not self._state.adding:
            stored = type(self)._base_manager.get(pk=self.pk)
            # Its counters, and what was spent, belong to the subject.
            changed = [name for name in SUBJECT_ATTRIBUTES if getattr(stored, name) != getattr(self, name)]
            if changed:
                raise ValidationError("The subject stays: deactivate this one and add another.")

    def _check_each(self) -> None:
        named = {dimension for dimension, field in SUBJECT_FIELDS.items() if getattr(self, field)}
        named |= {f"{TAG}{name}" for name in self.tags}
        # A project is of one team, a virtual key of one project: there is one of each.
        named |= {"key": {"team", "project", "environment"}, "project": {"team", "environment"}}.get(self.scope, set())
        twice = sorted(set(self.each) & named) or sorted(name for name in self.each if self.each.count(name) > 1)
        if twice:
            raise ValidationError({"each": f"There is only one {dimension_label(twice[0])} in it: leave it out here."})
        self.each = sorted(self.each)


SUBJECT_ATTRIBUTES = (
    *(f"{field}_id" for field in SUBJECT_FIELDS.values() if field not in ("environment", "end_user")),
    "environment",
    "end_user",
    "tags",
    "each",
)


def dimension_label(dimension: str) -> str:
    return f"tag {dimension.removeprefix(TAG)}" if dimension.startswith(TAG) else DIMENSION_LABELS[dimension]


class BudgetQuerySet(SubjectRuleQuerySet):
    def with_zone(self) -> Self:
        """With `zone`, the time zone of their windows: their own, else their team's, else UTC."""
        return self.annotate(
            zone=Coalesce(
                NullIf("time_zone", models.Value("")),
                "team__time_zone",
                "project__team__time_zone",
                "virtual_key__project__team__time_zone",
                models.Value("UTC"),
            )
        )

    def with_blocking(self) -> Self:
        """With `blocking`, the percentages of their thresholds that block."""
        blocking = Threshold.objects.filter(budget=models.OuterRef("pk"), action=Threshold.Action.BLOCK)
        return self.annotate(blocking=ArraySubquery(blocking.order_by("percent").values("percent")))


class Budget(SubjectRule):
    """At most this much in each window. A hard one is never passed; a soft one reports; one that observes counts what a hard one
    would have refused."""

    class Window(models.TextChoices):
        HOUR = "hour", "hour"
        DAY = "day", "day"
        WEEK = "week", "week"
        MONTH = "month", "month"
        QUARTER = "quarter", "quarter"
        YEAR = "year", "year"
        TOTAL = "total", "in total"
        FIXED = "fixed", "fixed dates"

    class Unit(models.TextChoices):
        USD = "usd", "US dollars"
        TOKENS = "tokens", "tokens"
        REQUESTS = "requests", "requests"

    class Mode(models.TextChoices):
        HARD = "hard", "hard: refuses what would pass it"
        SOFT = "soft", "soft: only reports"
        OBSERVE = "observe", "observe: counts what a hard one would have refused"

    name = models.CharField(max_length=100, validators=[name_validator])
    window = models.CharField(
        max_length=8,
        choices=Window,
        default=Window.MONTH,
        help_text="When it begins anew. Weeks begin on Monday; “in total” never begins anew.",
    )
    starts_at = models.DateTimeField("from", null=True, blank=True, help_text="Fixed dates only; UTC.")
    ends_at = models.DateTimeField("until", null=True, blank=True, help_text="Fixed dates only; UTC, exclusive.")
    time_zone = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        validators=[validate_time_zone],
        help_text="IANA name, such as Europe/Berlin. Empty: the team's, else UTC.",
    )
    fiscal_month = models.PositiveSmallIntegerField(
        "fiscal year begins in month",
        default=1,
        db_default=1,
        validators=[MinValueValidator(1), MaxValueValidator(12)],
        help_text="1 is January. Quarters and years begin with it.",
    )
    unit = models.CharField(max_length=8, choices=Unit, default=Unit.USD, db_default=Unit.USD)
    # The column has the name of when money was the only unit: the release before still reads it.
    amount = models.DecimalField(
        max_digits=24,
        decimal_places=9,
        validators=[MinValueValidator(0)],
        db_column="amount_usd",
        help_text="In US dollars, tokens (input and output) or requests, as the unit says.",
    )
    mode = models.CharField(max_length=8, choices=Mode, default=Mode.HARD, db_default=Mode.HARD)
    rollover = models.DecimalField(
        "roll-over",
        max_digits=24,
        decimal_places=9,
        default=0,
        db_default=0,
        validators=[MinValueValidator(0)],
        help_text="At most so much of what a window leaves is added to the next; 0: nothing is.",
    )

    rolls_over_since = models.DateTimeField(null=True, editable=False)

    objects = BudgetQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        default_related_name = "budgets"
        constraints = [
            models.CheckConstraint(condition=_owner_of_scope(), name="budgets_budget_subject"),
            models.CheckConstraint(condition=models.Q(amount__gte=0), name="budgets_budget_amount"),
            models.CheckConstraint(
                condition=models.Q(unit="usd") | models.Q(amount=Floor("amount"), rollover=Floor("rollover")),
                name="budgets_budget_whole",
                violation_error_message="Tokens and requests are whole numbers.",
            ),
            models.CheckConstraint(
                condition=models.Q(
                    window="fixed", starts_at__isnull=False, ends_at__isnull=False, ends_at__gt=models.F("starts_at")
                )
                | ~models.Q(window="fixed") & models.Q(starts_at__isnull=True, ends_at__isnull=True),
                name="budgets_budget_dates",
                violation_error_message="Fixed dates have a beginning and a later end; other windows have neither.",
            ),
            models.CheckConstraint(
                condition=models.Q(rollover=0) | models.Q(rollover__gt=0) & ~models.Q(window__in=("total", "fixed")),
                name="budgets_budget_rollover",
                violation_error_message="Nothing follows such a window that could get what is left.",
            ),
            models.CheckConstraint(
                condition=models.Q(fiscal_month__gte=1, fiscal_month__lte=12), name="budgets_budget_fiscal_month"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name}: {self.amount_text} {self.window_text}"

    @property
    def is_observed(self) -> bool:
        return self.mode == self.Mode.OBSERVE

    @property
    def amount_text(self) -> str:
        return amount_text(self.amount, self.unit)

    @property
    def window_text(self) -> str:
        """`per month`, `in total`, `from 2026-01-01 until 2026-02-01`."""
        if self.starts_at is not None and self.ends_at is not None:
            return f"from {self.starts_at:%Y-%m-%d} until {self.ends_at:%Y-%m-%d}"
        return "in total" if self.window == self.Window.TOTAL else f"per {self.window}"

    def clean(self) -> None:
        super().clean()
        _check_amount("amount", self.amount, is_money=self.unit == self.Unit.USD)
        _check_amount("rollover", self.rollover, is_money=self.unit == self.Unit.USD)
        if not self.rollover:
            self.rolls_over_since = None
        elif self.rolls_over_since is None:
            # Before, its counters were not kept long enough to tell what they left.
            self.rolls_over_since = timezone.now()
        if not self._state.adding:
            stored = Budget.objects.get(pk=self.pk)
            # What its counters hold is of this unit.
            if stored.unit != self.unit:
                raise ValidationError({"unit": "The unit stays: deactivate this one and add another."})


def amount_text(amount: Decimal, unit: str) -> str:
    """`1,000 USD`, `12.50 USD`, `5,000,000 tokens`."""
    if unit != Budget.Unit.USD:
        return f"{amount:,.0f} {unit}"
    places = max(2, -int(amount.normalize().as_tuple().exponent)) if amount % 1 else 0
    return f"{amount:,.{places}f} USD"


def _check_amount(field: str, amount: Decimal | None, *, is_money: bool) -> None:
    # A form may have left it open; that is said apart.
    if amount is not None and amount > (USD_MAX if is_money else COUNT_MAX):
        raise ValidationError(
            {field: "That is more than can be counted: below a billion dollars, or 2^53 of anything else."}
        )


class Threshold(models.Model):
    """What happens from a share of a budget's amount on. Alerts tell somebody; the others act on the requests that come."""

    class Action(models.TextChoices):
        ALERT = "alert", "alert"
        THROTTLE = "throttle", "throttle"
        DOWNGRADE = "downgrade", "downgrade to a cheaper alias"
        BLOCK = "block", "block"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    budget = models.ForeignKey(Budget, models.CASCADE, related_name="thresholds")
    percent = models.PositiveSmallIntegerField(
        validators=[MinValueValidator(1), MaxValueValidator(PERCENT_MAX)],
        help_text="Of the amount that is spent or held.",
    )
    action = models.CharField(max_length=16, choices=Action, default=Action.ALERT)
    per_minute = models.PositiveIntegerField(
        "requests per minute",
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Throttle: so many requests pass in a minute.",
    )
    alias = models.ForeignKey(
        ModelAlias,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        verbose_name="cheaper alias",
        help_text="Downgrade: what answers instead.",
    )

    class Meta:
        ordering = ["budget", "percent"]
        constraints = [
            models.UniqueConstraint(fields=["budget", "percent", "action"], name="budgets_threshold_once"),
            models.CheckConstraint(
                condition=models.Q(percent__gte=1, percent__lte=PERCENT_MAX), name="budgets_threshold_percent"
            ),
            models.CheckConstraint(
                condition=models.Q(action="throttle", per_minute__isnull=False, per_minute__gte=1, alias__isnull=True)
                | models.Q(action="downgrade", per_minute__isnull=True, alias__isnull=False)
                | models.Q(action__in=("alert", "block"), per_minute__isnull=True, alias__isnull=True),
                name="budgets_threshold_action",
                violation_error_message="Throttling takes requests per minute, a downgrade the cheaper alias, and neither the other.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.effect} at {self.percent} %"

    def clean(self) -> None:
        is_above = self.percent is not None and self.percent > WHOLE_PERCENT
        if is_above and self.action == self.Action.BLOCK and self.budget.mode == Budget.Mode.HARD:
            raise ValidationError(
                {
                    "percent": "A hard budget blocks at its amount: it is never passed. Make it soft to block above 100 %."
                }
            )

    @property
    def effect(self) -> str:
        match self.action:
            case self.Action.THROTTLE:
                return f"throttle to {self.per_minute:,} requests per minute"
            case self.Action.DOWNGRADE:
                return f"downgrade to {self.alias}"
            case _:
                return str(self.get_action_display())


class IncreaseQuerySet(TeamQuerySet["Increase"]):
    team_paths = tuple(f"budget__{path}" for path in SUBJECT_TEAMS)

    def in_force(self, now: Any) -> Self:
        """Approved, and not over at `now`."""
        return self.filter(state=Increase.State.APPROVED, ends_at__gt=now)

    def undecided(self, now: Any) -> Self:
        """Asked for, and not over at `now`."""
        return self.filter(state=Increase.State.REQUESTED, ends_at__gt=now)


class Increase(models.Model):
    """Added to a budget's amount for a while: granted by who may change the budget, or asked for, and approved by somebody else."""

    class State(models.TextChoices):
        REQUESTED = "requested", "requested"
        APPROVED = "approved", "approved"
        REJECTED = "rejected", "rejected"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    budget = models.ForeignKey(Budget, models.CASCADE, related_name="increases")
    amount = models.DecimalField(
        max_digits=24,
        decimal_places=9,
        validators=[MinValueValidator(Decimal("0.000000001"))],
        help_text="On top of the budget's amount, in its unit.",
    )
    starts_at = models.DateTimeField("from", default=timezone.now, help_text="UTC.")
    ends_at = models.DateTimeField("until", help_text="UTC, exclusive. It ends by itself.")
    reason = models.TextField(max_length=2_000, help_text="What it is for; whoever decides reads it.")
    state = models.CharField(max_length=16, choices=State, default=State.REQUESTED, editable=False)
    # `kind:id` of the actor; empty where nobody asked and it was granted at once.
    requested_by = models.CharField(max_length=100, blank=True, editable=False)
    requested_by_name = models.CharField("asked by", max_length=200, blank=True, editable=False)
    decided_by = models.CharField(max_length=100, blank=True, editable=False)
    decided_by_name = models.CharField("decided by", max_length=200, blank=True, editable=False)
    decided_at = models.DateTimeField("decided", null=True, blank=True, editable=False)
    note = models.TextField(blank=True, editable=False)
    created_at = models.DateTimeField("asked", default=timezone.now, editable=False)

    objects = IncreaseQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        permissions = [("decide_increase", "Can approve or reject increases that others ask for")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(ends_at__gt=models.F("starts_at")),
                name="budgets_increase_dates",
                violation_error_message="It ends after it begins.",
            ),
            models.CheckConstraint(condition=models.Q(amount__gt=0), name="budgets_increase_amount"),
            models.CheckConstraint(
                condition=models.Q(state="requested", decided_by="", decided_at__isnull=True)
                | models.Q(state__in=("approved", "rejected"), decided_at__isnull=False) & ~models.Q(decided_by=""),
                name="budgets_increase_decided",
            ),
            models.CheckConstraint(
                condition=models.Q(requested_by="") | ~models.Q(decided_by=models.F("requested_by")),
                name="budgets_increase_two_people",
                violation_error_message="Somebody else decides on what you ask for.",
            ),
        ]

    def __str__(self) -> str:
        return f"{amount_text(self.amount, self.budget.unit)} more for {self.budget.name} until {self.ends_at:%Y-%m-%d %H:%M}"

    def clean(self) -> None:
        is_money = self.budget.unit == Budget.Unit.USD
        _check_amount("amount", self.amount, is_money=is_money)
        if not is_money and self.amount is not None and self.amount % 1:
            raise ValidationError({"amount": "Tokens and requests are whole numbers."})


class Limit(SubjectRule):
    """At most this much in any stretch of so many seconds, or so many requests at once."""

    class Metric(models.TextChoices):
        REQUESTS = "requests", "requests"
        TOKENS = "tokens", "tokens, input and output"
        INPUT_TOKENS = "input_tokens", "input tokens"
        OUTPUT_TOKENS = "output_tokens", "output tokens"
        SPEND = "spend", "spend in US dollars"
        CONCURRENCY = "concurrency", "requests at once"

    name = models.CharField(max_length=100, blank=True, default="", db_default="", validators=[name_validator])
    metric = models.CharField(max_length=16, choices=Metric)
    amount = models.DecimalField(max_digits=24, decimal_places=9, validators=[MinValueValidator(0)])
    window_s = models.PositiveIntegerField(
        "per so many seconds",
        default=60,
        db_default=60,
        validators=[MinValueValidator(1), MaxValueValidator(WINDOW_S_MAX)],
        help_text="60 is per minute, 3600 per hour, 86400 per day. Of no meaning for requests at once.",
    )
    burst = models.DecimalField(
        max_digits=24,
        decimal_places=9,
        null=True,
        blank=True,
        validators=[MinValueValidator(Decimal("0.000000001"))],
        help_text="So much of it at once; empty: all of it.",
    )
    is_observed = models.BooleanField(
        "only observed",
        default=False,
        db_default=False,
        help_text="Refuses nothing, and counts what it would have refused.",
    )

    objects = SubjectRuleQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        default_related_name = "limits"
        constraints = [
            models.CheckConstraint(condition=_owner_of_scope(), name="budgets_limit_subject"),
            models.CheckConstraint(condition=models.Q(amount__gte=0), name="budgets_limit_amount"),
            models.CheckConstraint(
                condition=models.Q(metric="spend")
                | models.Q(amount=Floor("amount")) & (models.Q(burst__isnull=True) | models.Q(burst=Floor("burst"))),
                name="budgets_limit_whole",
                violation_error_message="Only spend has fractions.",
            ),
            models.CheckConstraint(
                condition=models.Q(window_s__gte=1, window_s__lte=WINDOW_S_MAX), name="budgets_limit_window"
            ),
            models.UniqueConstraint(
                fields=["scope", *SUBJECT_FIELDS.values(), "tags", "each", "metric", "window_s", "is_observed"],
                nulls_distinct=False,
                name="budgets_limit_once",
                violation_error_message="There is such a limit already: change that one.",
            ),
        ]

    def __str__(self) -> str:
        return self.name or self.amount_text

    @property
    def amount_text(self) -> str:
        """`600 requests per minute`, `5 requests at once`."""
        if self.metric == self.Metric.SPEND:
            return f"{amount_text(self.amount, Budget.Unit.USD)} {self.per}"
        if self.metric == self.Metric.CONCURRENCY:
            return f"{self.amount:,.0f} requests at once"
        return f"{self.amount:,.0f} {self.metric.replace('_', ' ')} {self.per}"

    @property
    def per(self) -> str:
        named = {1: "second", 60: "minute", 3_600: "hour", 86_400: "day"}.get(self.window_s)
        return f"per {named}" if named else f"in {self.window_s:,} seconds"

    def clean(self) -> None:
        super().clean()
        is_money = self.metric == self.Metric.SPEND
        _check_amount("amount", self.amount, is_money=is_money)
        _check_amount("burst", self.burst, is_money=is_money)
