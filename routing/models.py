"""Where a request can go: providers, models, deployments, and the aliases clients ask for."""

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import SharedQuerySet
from keys.models import CredentialPool
from routing.addresses import InvalidAddress, check_base_url
from routing.apis import APIS, MAX_COMPLETION_TOKENS, MAX_TOKENS, InvalidOptions, check_options
from routing.price_models import (  # noqa: F401 Django looks for models here.
    Contract,
    ContractStanding,
    ContractTier,
    ExchangeRate,
    ExchangeRateFeed,
    Price,
    PriceProposal,
    PriceTier,
    Rerate,
    currency_validator,
    not_negative,
)

model_name_validator = RegexValidator(
    r"\A[A-Za-z0-9][A-Za-z0-9_.:/@\-]*\Z", "Letters, digits and _ . : / @ -, beginning with a letter or digit."
)

_API_CHOICES = [(name, api.label) for name, api in APIS.items()]
_OPTIONS = "; ".join(f"{api.label}: {', '.join(api.options)}" for api in APIS.values() if api.options)


class Operation(models.TextChoices):
    """What a model can be asked to do."""

    CHAT = "chat", "chat"
    COMPLETIONS = "completions", "completions"
    EMBEDDINGS = "embeddings", "embeddings"
    IMAGES = "images", "images"
    SPEECH = "speech", "speech"
    TRANSCRIPTION = "transcription", "transcription"
    MODERATIONS = "moderations", "moderations"
    RERANK = "rerank", "rerank"
    REALTIME = "realtime", "realtime"
    BATCH = "batch", "batch"


def default_operations() -> list[str]:
    return [Operation.CHAT.value]


class Provider(models.Model):
    """A place that serves models: where it is, what it speaks, how long it may take, and its currency."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    slug = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=100)
    api = models.CharField("API", max_length=32, choices=_API_CHOICES, default="openai")
    base_url = models.CharField(
        "base URL",
        max_length=500,
        blank=True,
        help_text=(
            "Empty: the public address of this API. Some have none: write https://RESOURCE.openai.azure.com,"
            " https://LOCATION-aiplatform.googleapis.com/v1, https://bedrock-runtime.REGION.amazonaws.com, or your server's."
        ),
    )
    options = models.JSONField(
        default=dict, blank=True, help_text=f'What else the API must be told, as {{"name": "value"}}. {_OPTIONS}.'
    )
    may_be_private = models.BooleanField(
        "is on a private network",
        default=False,
        help_text="Allows a private or loopback host, and plain http to it. Leave off for every provider on the internet.",
    )
    currency = models.CharField(max_length=3, default="USD", validators=[currency_validator])
    output_cap_field = models.CharField(
        max_length=32,
        blank=True,
        default="",
        choices=[(name, name) for name in (MAX_COMPLETION_TOKENS, MAX_TOKENS)],
        help_text="What a chat calls the cap of its answer, where it is like OpenAI's. Empty: as this API has it.",
    )
    passthrough_hold = models.DecimalField(
        "pass-through hold (USD)",
        max_digits=18,
        decimal_places=9,
        null=True,
        blank=True,
        validators=[not_negative],
        help_text=(
            "Held and charged for a call of any other path of the provider, since nobody knows its price. Empty: such calls"
            " are refused. Virtual keys name the providers they may pass through to."
        ),
    )
    runs_on = models.BooleanField(
        "bills to the end",
        default=False,
        db_default=False,
        help_text=(
            "It finishes, and bills, an answer whose reader has left. The gateway then reads it to the end, and holds all that"
            " it may cost from the start."
        ),
    )
    connect_timeout_s = models.FloatField(default=5.0, validators=[MinValueValidator(0.1)])
    first_byte_timeout_s = models.FloatField(default=120.0, validators=[MinValueValidator(0.1)])
    idle_timeout_s = models.FloatField(default=60.0, validators=[MinValueValidator(0.1)])
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["Provider"].as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self.api in APIS:
            self._clean_address()
        if not self._state.adding:
            stored = Provider.objects.values_list("slug", flat=True).get(pk=self.pk)
            # Pools, kill switches and the ledger name a provider by its slug.
            if stored != self.slug:
                raise ValidationError({"slug": "A provider keeps its slug: records of its spend name it so."})

    def _clean_address(self) -> None:
        """Where it is, and what its API must be told besides."""
        api = APIS[self.api]
        self.base_url, self.options = self.base_url or api.base_url, self.options or {}
        if not self.base_url:
            raise ValidationError({"base_url": f"{api.label} has no address for everybody: such as {api.example}."})
        try:
            check_base_url(self.base_url, may_be_private=self.may_be_private)
        except InvalidAddress as error:
            raise ValidationError({"base_url": str(error)}) from error
        try:
            check_options(api, self.options, may_be_private=self.may_be_private)
        except InvalidOptions as error:
            raise ValidationError({"options": str(error)}) from error


class Model(models.Model):
    """The registry's entry of a model, wherever it is deployed."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[model_name_validator])
    publisher = models.CharField(max_length=100, blank=True)
    operations = ArrayField(models.CharField(max_length=32, choices=Operation), default=default_operations)
    context_window = models.PositiveIntegerField(default=128_000, validators=[MinValueValidator(1)])
    max_output_tokens = models.PositiveIntegerField(default=4_096)
    output_is_visible = models.BooleanField(
        default=False,
        help_text=(
            "Every output token the provider bills also shows in the stream: nothing is thought in secret. Only then is it"
            " safe to hold money for a stream in tranches; leave it off for reasoning models."
        ),
    )
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["Model"].as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if not self._state.adding:
            stored = Model.objects.values_list("name", flat=True).get(pk=self.pk)
            if stored != self.name:
                raise ValidationError({"name": "A model keeps its name: records of its spend name it so."})


class Deployment(models.Model):
    """A model at a provider, in a region, under a pool of credentials."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[model_name_validator])
    model = models.ForeignKey(Model, models.PROTECT, related_name="deployments")
    provider = models.ForeignKey(Provider, models.PROTECT, related_name="deployments")
    pool = models.ForeignKey(
        CredentialPool,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="deployments",
        help_text="Empty where the provider asks for no credential.",
    )
    upstream_model = models.CharField(max_length=200, help_text="What the provider calls the model.")
    region = models.CharField(max_length=64, blank=True)
    max_output_tokens = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: as the model.")
    uplift_percent = models.DecimalField(
        "regional uplift (percent)",
        max_digits=6,
        decimal_places=2,
        default=0,
        validators=[not_negative],
        help_text="What this region costs more than the price says: on everything but runs of the provider's tools.",
    )
    auto_tier = models.SlugField(
        "tier of auto",
        max_length=64,
        blank=True,
        default="",
        help_text="What the provider serves a request at that names no service tier, where its project is set so: priority.",
    )
    unpriced_hold = models.DecimalField(
        "hold without a price (USD)",
        max_digits=18,
        decimal_places=9,
        null=True,
        blank=True,
        validators=[not_negative],
        help_text="Held and charged for each request while no price is in force. Empty: such requests are refused.",
    )
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["Deployment"].as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        pool: Any = self.pool
        if pool is not None and pool.provider != self.provider.slug:
            raise ValidationError(
                {"pool": f"The pool's secrets belong to {pool.provider}, not to {self.provider.slug}."}
            )


class ModelAlias(models.Model):
    """The name a client asks for, and the deployments that may answer."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[model_name_validator])
    description = models.CharField(max_length=300, blank=True)
    is_lenient = models.BooleanField(
        default=False,
        help_text=(
            "What a provider cannot be told is left out and named in x-tollgate-dropped, instead of refusing the request."
        ),
    )
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["ModelAlias"].as_manager()

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "model aliases"

    def __str__(self) -> str:
        return self.name


class AliasTarget(models.Model):
    """One deployment of an alias: tried by position, sharing the load of its position by weight."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    alias = models.ForeignKey(ModelAlias, models.CASCADE, related_name="targets")
    deployment = models.ForeignKey(Deployment, models.PROTECT, related_name="alias_targets")
    position = models.PositiveSmallIntegerField(default=0, help_text="0 is tried first.")
    weight = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])

    objects = SharedQuerySet["AliasTarget"].as_manager()

    class Meta:
        ordering = ["alias", "position", "-weight"]
        constraints = [
            models.UniqueConstraint(fields=["alias", "deployment"], name="routing_aliastarget_once"),
            models.CheckConstraint(condition=models.Q(weight__gte=1), name="routing_aliastarget_weight"),
        ]

    def __str__(self) -> str:
        return f"{self.alias} → {self.deployment}"
