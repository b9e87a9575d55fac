"""The price book: prices, exchange rates, contracts, what the catalogue proposes, and past periods reckoned again."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from audit.ids import uuid7
from audit.querysets import EveryTeamQuerySet, SharedQuerySet
from routing.addresses import InvalidAddress, check_base_url
from routing.commitments import Commitment

currency_validator = RegexValidator(r"\A[A-Z]{3}\Z", "Three capital letters, such as USD (ISO 4217).")
not_negative = MinValueValidator(0)

PRICE_RATES = (
    "input",
    "output",
    "cached_input",
    "cache_write",
    "cache_write_1h",
    "reasoning",
    "input_audio",
    "input_image",
    "output_audio",
    "output_image",
    "per_request",
    "per_tool_call",
    "per_search",
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


class AppendOnly(models.Model):
    """Rows that are never edited: a new one supersedes the old, so that what was reckoned by it can still be shown."""

    class Meta:
        abstract = True

    def clean(self) -> None:
        if not self._state.adding:
            name = self._meta.verbose_name
            raise ValidationError(f"This {name} is never edited: add the new one, from the moment it is in force.")


class PriceQuerySet(SharedQuerySet["Price"]):
    def in_force(self, moment: datetime) -> Self:
        """The one of each model, provider and deployment, as the book says today that it was at the moment; with its tiers."""
        reached = self.filter(effective_from__lte=moment)
        newest = reached.order_by(
            "model_id", "provider_id", "deployment_id", "-effective_from", "-created_at", "-pk"
        ).distinct("model_id", "provider_id", "deployment_id")
        return newest.prefetch_related("tiers")


class Price(AppendOnly):
    """What a model costs at a provider, or at one deployment there, from a moment on, in the provider's currency per 1,000,000
    tokens.

    A rate that is null is not set apart: such tokens cost what the others do. Of two from the same moment the later entered
    is in force: that is how a mistake is put right.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    model = models.ForeignKey("Model", models.PROTECT, related_name="prices")
    provider = models.ForeignKey("Provider", models.PROTECT, related_name="prices")
    deployment = models.ForeignKey(
        "Deployment",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="prices",
        help_text="Only for this deployment, and there before any other price. Empty: for every deployment of the model.",
    )
    effective_from = models.DateTimeField(default=timezone.now)
    input = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    output = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    cached_input = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    cache_write = models.DecimalField(max_digits=18, decimal_places=9, validators=[not_negative])
    cache_write_1h = _rate_apart("cache write for an hour", "Empty: as cache writes.")
    reasoning = _rate_apart("reasoning", "Empty: as output.")
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
    per_search = _rate_apart("per search", "Each search of the web. Empty: as a run of any tool.")
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
    geo_percent = models.PositiveSmallIntegerField(
        "in a geography, percent",
        default=100,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(1_000)],
        help_text="What tokens cost that a request wants processed in one geography (Anthropic's inference_geo).",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = PriceQuerySet.as_manager()

    class Meta:
        ordering = ["-effective_from"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(**dict.fromkeys((f"{name}__gte" for name in PRICE_RATES), 0)),
                name="routing_price_not_negative",
            ),
            models.CheckConstraint(
                condition=models.Q(batch_percent__gte=1, batch_percent__lte=100), name="routing_price_batch_percent"
            ),
            models.CheckConstraint(
                condition=models.Q(geo_percent__gte=1, geo_percent__lte=1_000), name="routing_price_geo_percent"
            ),
        ]
        indexes = [models.Index(fields=["model", "provider", "-effective_from"], name="routing_price_in_force")]

    def __str__(self) -> str:
        where = self.deployment.name if self.deployment is not None else str(self.provider)
        return f"{self.model} at {where} from {self.effective_from:%Y-%m-%d %H:%M}"

    def clean(self) -> None:
        super().clean()
        self.per_tool_call, self.per_unit = self.per_tool_call or Decimal(0), self.per_unit or Decimal(0)
        self.batch_percent = 100 if self.batch_percent is None else self.batch_percent
        self.geo_percent = 100 if self.geo_percent is None else self.geo_percent
        deployment = self.deployment
        if deployment is not None and (deployment.model_id, deployment.provider_id) != (
            self.model_id,
            self.provider_id,
        ):
            raise ValidationError({"deployment": "This deployment is of another model, or at another provider."})


class PriceTier(AppendOnly):
    """Rates that take the place of a price's: in a service tier, above a length of input, or both.

    `percent` is of the price's own rates; a rate that is given stands for itself. Made with its price.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    price = models.ForeignKey(Price, models.PROTECT, related_name="tiers")
    service_tier = models.SlugField(
        max_length=64, blank=True, help_text="batch, flex, priority, fast, … as the provider calls it. Empty: standard."
    )
    above_input_tokens = models.PositiveIntegerField(
        default=0, help_text="For the whole of a request with more input than that. 0: of any length."
    )
    percent = models.PositiveSmallIntegerField(
        default=100, validators=[MaxValueValidator(10_000)], help_text="Of the price's rates, where no other is given."
    )
    input = _rate_apart("input", "")
    output = _rate_apart("output", "")
    cached_input = _rate_apart("cached input", "")
    cache_write = _rate_apart("cache write", "")
    cache_write_1h = _rate_apart("cache write for an hour", "")
    reasoning = _rate_apart("reasoning", "")
    input_audio = _rate_apart("audio input", "")
    input_image = _rate_apart("image input", "")
    output_audio = _rate_apart("audio output", "")
    output_image = _rate_apart("image output", "")
    per_request = _rate_apart("per request", "")
    per_tool_call = _rate_apart("per tool call", "")
    per_search = _rate_apart("per search", "")
    per_unit = _rate_apart("per unit", "")

    objects = SharedQuerySet["PriceTier"].as_manager()

    class Meta:
        ordering = ["service_tier", "above_input_tokens"]
        constraints = [
            models.UniqueConstraint(
                fields=["price", "service_tier", "above_input_tokens"], name="routing_pricetier_once"
            ),
            models.CheckConstraint(
                condition=~models.Q(service_tier="", above_input_tokens=0), name="routing_pricetier_is_another"
            ),
            models.CheckConstraint(
                condition=models.Q(
                    *(models.Q(**{f"{name}__isnull": True}) | models.Q(**{f"{name}__gte": 0}) for name in PRICE_RATES)
                ),
                name="routing_pricetier_not_negative",
            ),
        ]

    def __str__(self) -> str:
        tier = self.service_tier or "standard"
        return f"{tier} above {self.above_input_tokens:,} tokens" if self.above_input_tokens else tier


class ExchangeRate(AppendOnly):
    """What one unit of a currency is worth in USD from a moment on. USD itself needs none."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    currency = models.CharField(max_length=3, validators=[currency_validator])
    usd_per_unit = models.DecimalField(max_digits=18, decimal_places=9, validators=[MinValueValidator(0)])
    effective_from = models.DateTimeField(default=timezone.now)
    source = models.CharField(max_length=200, blank=True, default="", editable=False)

    objects = SharedQuerySet["ExchangeRate"].as_manager()

    class Meta:
        ordering = ["currency", "-effective_from"]
        constraints = [
            models.UniqueConstraint(fields=["currency", "effective_from"], name="routing_exchangerate_once"),
            models.CheckConstraint(condition=models.Q(usd_per_unit__gt=0), name="routing_exchangerate_positive"),
            models.CheckConstraint(condition=~models.Q(currency="USD"), name="routing_exchangerate_not_usd"),
        ]

    def __str__(self) -> str:
        return f"1 {self.currency} = {self.usd_per_unit.normalize():f} USD"


class ExchangeRateFeed(models.Model):
    """Where exchange rates are fetched from, once a day and when somebody asks: CSV as it is imported, or JSON with a base and
    rates."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True)
    url = models.CharField(
        "URL",
        max_length=500,
        help_text=(
            "Answers CSV (currency,usd_per_unit,effective_from) or JSON: {base, date, rates}. Only currencies that a"
            " provider here has are taken."
        ),
    )
    may_be_private = models.BooleanField("is on a private network", default=False)
    is_active = models.BooleanField(default=True)
    fetched_at = models.DateTimeField(null=True, blank=True, editable=False)
    due_at = models.DateTimeField("next fetch", default=timezone.now, db_default=Now(), editable=False)
    problem = models.CharField(max_length=300, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["ExchangeRateFeed"].as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        try:
            check_base_url(self.url, may_be_private=self.may_be_private)
        except InvalidAddress as error:
            raise ValidationError({"url": str(error)}) from error


def _percent(help_text: str = "") -> "models.DecimalField[Any, Any]":
    return models.DecimalField(
        max_digits=5,
        decimal_places=2,
        default=0,
        validators=[not_negative, MaxValueValidator(100)],
        help_text=help_text,
    )


class ContractQuerySet(SharedQuerySet["Contract"]):
    def in_force(self, moment: datetime) -> Self:
        """The one of each provider and model: of those that have begun and not ended, the last."""
        begun = self.filter(effective_from__lte=moment).exclude(effective_until__lte=moment)
        return begun.order_by("provider_id", "model_id", "-effective_from", "-created_at").distinct(
            "provider_id", "model_id"
        )


class Contract(AppendOnly):
    """What was negotiated with a provider, for one of its models or for all: discounts, free quotas, a commitment.

    That of a model comes before that of all.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100)
    provider = models.ForeignKey("Provider", models.PROTECT, related_name="contracts")
    model = models.ForeignKey(
        "Model",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="contracts",
        help_text="Empty: all of the provider's.",
    )
    effective_from = models.DateTimeField(default=timezone.now)
    effective_until = models.DateTimeField(null=True, blank=True, help_text="Empty: until another supersedes it.")
    discount_percent = _percent("Off every rate, from the month's first cent.")
    commitment_usd = models.DecimalField(
        "monthly commitment (USD)",
        max_digits=18,
        decimal_places=2,
        null=True,
        blank=True,
        validators=[not_negative],
        help_text="Paid also where less was used: the shortfall is on the invoice, not in the cost of requests.",
    )
    free_tokens = models.PositiveBigIntegerField(
        "free tokens a month", null=True, blank=True, help_text="Input and output together."
    )
    free_requests = models.PositiveBigIntegerField("free requests a month", null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ContractQuerySet.as_manager()

    class Meta:
        ordering = ["-effective_from"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(discount_percent__gte=0, discount_percent__lte=100),
                name="routing_contract_discount",
            ),
            models.CheckConstraint(
                condition=models.Q(effective_until__isnull=True)
                | models.Q(effective_until__gt=models.F("effective_from")),
                name="routing_contract_period",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def commitment(self, now: datetime) -> Commitment | None:
        """Of the month (UTC), as far as the contract is in force in it; None where it is not, or commits to nothing."""
        if self.commitment_usd is None:
            return None
        in_force = Contract.objects.in_force(now).filter(provider=self.provider_id, model=self.model_id).first()
        if in_force != self:
            return None
        month = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = (month + timedelta(days=31)).replace(day=1)
        spent = (standing.spent_usd for standing in self.standings.all() if standing.month == month.date())
        return Commitment(
            amount_usd=self.commitment_usd,
            spent_usd=next(spent, Decimal(0)),
            starts_at=max(month, self.effective_from),
            ends_at=min(following, self.effective_until or following),
            now=now,
        )


class ContractTier(AppendOnly):
    """Another discount once so much was spent in the month (UTC)."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    contract = models.ForeignKey(Contract, models.PROTECT, related_name="tiers")
    from_usd = models.DecimalField(
        "from a spend of (USD)", max_digits=18, decimal_places=2, validators=[MinValueValidator(Decimal("0.01"))]
    )
    discount_percent = _percent()

    objects = SharedQuerySet["ContractTier"].as_manager()

    class Meta:
        ordering = ["from_usd"]
        constraints = [
            models.UniqueConstraint(fields=["contract", "from_usd"], name="routing_contracttier_once"),
            models.CheckConstraint(
                condition=models.Q(discount_percent__gte=0, discount_percent__lte=100),
                name="routing_contracttier_discount",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.discount_percent} % from {self.from_usd} USD"


class ContractStanding(models.Model):
    """How far a month has come with a contract, followed each minute, and so what it gives at the moment."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    contract = models.ForeignKey(Contract, models.PROTECT, related_name="standings")
    month = models.DateField(help_text="Its first day (UTC).")
    discount_percent = _percent()
    has_free_tokens = models.BooleanField(default=False)
    has_free_requests = models.BooleanField(default=False)
    spent_usd = models.DecimalField(max_digits=24, decimal_places=9, default=0)
    tokens = models.BigIntegerField(default=0)
    requests = models.BigIntegerField(default=0)

    objects = EveryTeamQuerySet["ContractStanding"].as_manager()

    class Meta:
        ordering = ["-month"]
        default_permissions = ("view",)
        constraints = [models.UniqueConstraint(fields=["contract", "month"], name="routing_contractstanding_once")]

    def __str__(self) -> str:
        return f"{self.contract} in {self.month:%Y-%m}"


class PriceProposal(models.Model):
    """A price that somebody else's list says, to be approved or rejected by a person. Nothing of it is in force before."""

    class State(models.TextChoices):
        PROPOSED = "proposed", "proposed"
        APPROVED = "approved", "approved"
        REJECTED = "rejected", "rejected"
        OUTDATED = "outdated", "outdated"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    source = models.CharField(max_length=200)
    model = models.ForeignKey("Model", models.PROTECT, related_name="proposals")
    provider = models.ForeignKey("Provider", models.PROTECT, related_name="proposals")
    effective_from = models.DateTimeField()
    # Fields of `Price`, amounts as text; `tiers` is a list of those of `PriceTier`.
    rates = models.JSONField()
    differences = models.JSONField(help_text="[what, before, after]; before is null where there is no price yet.")
    remarks = models.JSONField(default=list, blank=True, help_text="What the list says and no price here can.")
    state = models.CharField(max_length=16, choices=State, default=State.PROPOSED)
    price = models.OneToOneField(Price, models.PROTECT, null=True, blank=True, related_name="proposal")
    decided_by = models.CharField(max_length=200, blank=True, default="")
    decided_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = SharedQuerySet["PriceProposal"].as_manager()

    class Meta:
        ordering = ["-created_at", "provider", "model"]
        constraints = [
            models.UniqueConstraint(
                fields=["model", "provider"],
                condition=models.Q(state="proposed"),
                name="routing_priceproposal_one_open",
            )
        ]

    def __str__(self) -> str:
        return f"{self.model} at {self.provider}"


class Rerate(models.Model):
    """A past period reckoned again: asked for by one, approved by another, then written as entries that correct others."""

    class State(models.TextChoices):
        PROPOSED = "proposed", "proposed"
        APPROVED = "approved", "approved"
        REJECTED = "rejected", "rejected"
        APPLIED = "applied", "applied"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    starts_at = models.DateTimeField("from")
    ends_at = models.DateTimeField("until", help_text="Exclusive.")
    provider = models.ForeignKey("Provider", models.PROTECT, related_name="rerates")
    model = models.ForeignKey("Model", models.PROTECT, null=True, blank=True, help_text="Empty: all of the provider's.")
    price = models.ForeignKey(
        Price,
        models.PROTECT,
        null=True,
        blank=True,
        help_text="Empty: the price that the book says today was in force at each record's moment.",
    )
    discount_percent = models.DecimalField(
        "discount (percent)",
        max_digits=5,
        decimal_places=2,
        null=True,
        blank=True,
        validators=[not_negative, MaxValueValidator(100)],
        help_text="What the invoice gave. Empty: as each record has it.",
    )
    usd_per_unit = models.DecimalField(
        "exchange rate (USD per unit)",
        max_digits=18,
        decimal_places=9,
        null=True,
        blank=True,
        validators=[MinValueValidator(Decimal("0.000000001"))],
        help_text="That of the invoice. Empty: as each record has it.",
    )
    note = models.CharField(max_length=300, help_text="Why: the invoice, or the mistake.")
    state = models.CharField(max_length=16, choices=State, default=State.PROPOSED, editable=False)
    asked_by = models.CharField(max_length=200, editable=False)
    asked_by_id = models.CharField(max_length=64, editable=False)
    decided_by = models.CharField(max_length=200, blank=True, default="", editable=False)
    applied_at = models.DateTimeField(null=True, blank=True, editable=False)
    records = models.BigIntegerField(default=0, editable=False)
    before_usd = models.DecimalField(max_digits=24, decimal_places=9, default=0, editable=False)
    after_usd = models.DecimalField(max_digits=24, decimal_places=9, default=0, editable=False)
    # Once applied: by model and by team id, [before, after] in USD as text.
    sums = models.JSONField(default=dict, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = EveryTeamQuerySet["Rerate"].as_manager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "re-rate"
        constraints = [
            models.CheckConstraint(condition=models.Q(ends_at__gt=models.F("starts_at")), name="routing_rerate_period")
        ]

    def __str__(self) -> str:
        return f"{self.provider} {self.starts_at:%Y-%m-%d} to {self.ends_at:%Y-%m-%d}"

    def clean(self) -> None:
        price: Any = self.price
        if price is not None and (price.provider_id, price.model_id) != (self.provider_id, self.model_id):
            raise ValidationError({"price": "This price is of another provider or model: name its model too."})
