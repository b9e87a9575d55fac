"""Where a request can go: providers, models, what they cost, deployments, and the aliases clients ask for."""

from decimal import Decimal
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import SharedQuerySet
from keys.models import CredentialPool
from routing.addresses import InvalidAddress, check_base_url
from routing.apis import APIS, MAX_COMPLETION_TOKENS, MAX_TOKENS, InvalidOptions, check_options

model_name_validator = RegexValidator(
    r"\A[A-Za-z0-9][A-Za-z0-9_.:/@\-]*\Z", "Letters, digits and _ . : / @ -, beginning with a letter or digit."
)
currency_validator = RegexValidator(r"\A[A-Z]{3}\Z", "Three capital letters, such as USD (ISO 4217).")
not_negative = MinValueValidator(0)

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


class ProviderQuerySet(SharedQuerySet["Provider"]):
    pass


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
    connect_timeout_s = models.FloatField(default=5.0, validators=[MinValueValidator(0.1)])
    first_byte_timeout_s = models.FloatField(default=120.0, validators=[MinValueValidator(0.1)])
    idle_timeout_s = models.FloatField(default=60.0, validators=[MinValueValidator(0.1)])
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ProviderQuerySet.as_manager()

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


class ModelQuerySet(SharedQuerySet["Model"]):
    pass


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

    objects = ModelQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if not self._state.adding:
            stored = Model.objects.values_list("name", flat=True).get(pk=self.pk)
            if stored != self.name:
                raise ValidationError({"name": "A model keeps its name: records of its spend name it so."})


PRICE_RATES = (
    "input",
    "output",
    "cached_input",
    "cache_write",
    "cache_write_1h",
    "input_audio",
    "input_image",
    "output_audio",
    "output_image",
    "per_request",
    "per_tool_call",
    "per_unit",
)


def _rate_apart(verbose_name: str, help_text: str) -> "models.DecimalField[Any, Any]":
    return models.DecimalField(
        verbose_name,
        max_digits=18,
        decimal_places=9,
        null=True,
        blank=True,
        validators=[not_negative],
        help_text=help_text,
    )


class PriceQuerySet(SharedQuerySet["Price"]):
    pass


class Price(models.Model):
    """What a model costs at a provider from a moment on, in the provider's currency per 1,000,000 tokens.

    A rate that is null is not set apart: such tokens cost what the others do. Never edited: a new row supersedes it, so
    that every record can still show the price it was reckoned at.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    model = models.ForeignKey(Model, models.PROTECT, related_name="prices")
    provider = models.ForeignKey(Provider, models.PROTECT, related_name="prices")
    effective_from = models.DateTimeField(default=timezone.now)
    input = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    output = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    cached_input = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    cache_write = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    cache_write_1h = _rate_apart("cache write for an hour", "Empty: as cache writes.")
    input_audio = _rate_apart("audio input", "Empty: as input.")
    input_image = _rate_apart("image input", "Empty: as input.")
    output_audio = _rate_apart("audio output", "Empty: as output.")
    output_image = _rate_apart("image output", "Empty: as output.")
    per_request = models.DecimalField(max_digits=18, decimal_places=9, default=0, validators=[not_negative])
    per_tool_call = models.DecimalField(
        max_digits=18,
        decimal_places=9,
        default=0,
        blank=True,
        validators=[not_negative],
        help_text="Each run of a tool of the provider's own, such as a web search.",
    )
    per_unit = models.DecimalField(
        max_digits=18,
        decimal_places=9,
        default=0,
        blank=True,
        validators=[not_negative],
        help_text="What the operation is billed by besides tokens: an image, a second of audio, a character, a search unit.",
    )
    batch_percent = models.PositiveSmallIntegerField(
        default=100,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="What a batch costs of all this, in percent.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = PriceQuerySet.as_manager()

    class Meta:
        ordering = ["-effective_from"]
        constraints = [
            models.UniqueConstraint(fields=["model", "provider", "effective_from"], name="routing_price_once"),
            models.CheckConstraint(
                condition=models.Q(**dict.fromkeys((f"{name}__gte" for name in PRICE_RATES), 0)),
                name="routing_price_not_negative",
            ),
            models.CheckConstraint(
                condition=models.Q(batch_percent__gte=1, batch_percent__lte=100), name="routing_price_batch_percent"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} at {self.provider} from {self.effective_from:%Y-%m-%d %H:%M}"

    def clean(self) -> None:
        if not self._state.adding:
            raise ValidationError("A price is never edited: add the new one, from the moment it is in force.")
        self.per_tool_call, self.per_unit = self.per_tool_call or Decimal(0), self.per_unit or Decimal(0)
        self.batch_percent = 100 if self.batch_percent is None else self.batch_percent


class ExchangeRateQuerySet(SharedQuerySet["ExchangeRate"]):
    pass


class ExchangeRate(models.Model):
    """What one unit of a currency is worth in USD from a moment on. USD itself needs none."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    currency = models.CharField(max_length=3, validators=[currency_validator])
    usd_per_unit = models.DecimalField(max_digits=18, decimal_places=9, validators=[MinValueValidator(0)])
    effective_from = models.DateTimeField(default=timezone.now)

    objects = ExchangeRateQuerySet.as_manager()

    class Meta:
        ordering = ["currency", "-effective_from"]
        constraints = [
            models.UniqueConstraint(fields=["currency", "effective_from"], name="routing_exchangerate_once"),
            models.CheckConstraint(condition=models.Q(usd_per_unit__gt=0), name="routing_exchangerate_positive"),
            models.CheckConstraint(condition=~models.Q(currency="USD"), name="routing_exchangerate_not_usd"),
        ]

    def __str__(self) -> str:
        return f"1 {self.currency} = {self.usd_per_unit.normalize():f} USD"

    def clean(self) -> None:
        if not self._state.adding:
            raise ValidationError("A rate is never edited: add the new one, from the moment it is in force.")


class DeploymentQuerySet(SharedQuerySet["Deployment"]):
    pass


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
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = DeploymentQuerySet.as_manager()

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


class ModelAliasQuerySet(SharedQuerySet["ModelAlias"]):
    pass


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

    objects = ModelAliasQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "model aliases"

    def __str__(self) -> str:
        return self.name


class AliasTargetQuerySet(SharedQuerySet["AliasTarget"]):
    pass


class AliasTarget(models.Model):
    """One deployment of an alias: tried by position, sharing the load of its position by weight."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    alias = models.ForeignKey(ModelAlias, models.CASCADE, related_name="targets")
    deployment = models.ForeignKey(Deployment, models.PROTECT, related_name="alias_targets")
    position = models.PositiveSmallIntegerField(default=0, help_text="0 is tried first.")
    weight = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])

    objects = AliasTargetQuerySet.as_manager()

    class Meta:
        ordering = ["alias", "position", "-weight"]
        constraints = [
            models.UniqueConstraint(fields=["alias", "deployment"], name="routing_aliastarget_once"),
            models.CheckConstraint(condition=models.Q(weight__gte=1), name="routing_aliastarget_weight"),
        ]

    def __str__(self) -> str:
        return f"{self.alias} → {self.deployment}"
