"""The price book read: which price is in force where and when, what becomes of its rates, and a record reckoned again from it.

A region's uplift, a contract's discount and free quotas are folded into the rates here, so that the data path only multiplies.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db.models import F, Sum

from audit.actors import Actor
from audit.records import LIST_TERMS, PriceTerms, UsageEvent
from budgets.ledger_models import UsageDay
from budgets.pricing import BATCH, LongContext, Price, Tier, batch_price, cost_nanos, fixed_price
from routing import models as routing
from routing import price_models, services

log = logging.getLogger(__name__)

NANO_DIGITS = 9
USD = "USD"
BASIS_POINTS = 10_000

# Exact for the product of the largest price, exchange rate and percentages that the models allow.
_exact = Context(prec=64)

_TOKEN_RATES: Mapping[str, str] = {
    "input": "input_nanos",
    "output": "output_nanos",
    "cached_input": "cache_read_nanos",
    "cache_write": "cache_write_nanos",
    "cache_write_1h": "cache_write_1h_nanos",
    "reasoning": "reasoning_nanos",
    "input_audio": "input_audio_nanos",
    "input_image": "input_image_nanos",
    "output_audio": "output_audio_nanos",
    "output_image": "output_image_nanos",
}
_EACH_RATES: Mapping[str, str] = {"per_request": "request_nanos", "per_unit": "unit_nanos"}
_TOOL_RATES: Mapping[str, str] = {"per_tool_call": "tool_call_nanos", "per_search": "search_nanos"}
_RATES = {**_TOKEN_RATES, **_EACH_RATES, **_TOOL_RATES}

Amounts = Mapping[str, Decimal | None]


def nanos(amount: Decimal, factor: Decimal = Decimal(1)) -> int:
    """`amount` times `factor` in billionths, rounded up: what is held and charged is never below the price."""
    exact = _exact.scaleb(_exact.multiply(amount, factor), NANO_DIGITS)
    return int(exact.to_integral_value(ROUND_CEILING))


# What is in force


class Book:
    """Everything that was entered, as it is in force at one moment."""

    def __init__(self, now: datetime) -> None:
        self._month = date(now.year, now.month, 1)
        self._prices = {
            (price.model_id, price.provider_id, price.deployment_id): price
            for price in price_models.Price.objects.in_force(now)
        }
        self._usd_per_unit = {USD: Decimal(1)} | dict(
            price_models.ExchangeRate.objects.filter(effective_from__lte=now)
            .order_by("currency", "-effective_from")
            .distinct("currency")
            .values_list("currency", "usd_per_unit")
        )
        self._contracts = {(contract.provider_id, contract.model_id): contract for contract in contracts_in_force(now)}
        self._standings = {
            standing.contract_id: standing
            for standing in price_models.ContractStanding.objects.filter(month=self._month)
        }

    def row(self, model_id: UUID, provider_id: UUID, deployment_id: UUID | None = None) -> price_models.Price | None:
        of_deployment = self._prices.get((model_id, provider_id, deployment_id)) if deployment_id else None
        return of_deployment or self._prices.get((model_id, provider_id, None))

    def price(self, deployment: routing.Deployment) -> Price | None:
        """As the data path is to reckon at this deployment. None where there is no price, or no rate for its currency."""
        row = self.row(deployment.model_id, deployment.provider_id, deployment.pk)
        currency = deployment.provider.currency
        usd_per_unit = self._usd_per_unit.get(currency)
        if row is None or usd_per_unit is None:
            if row is not None:
                log.warning("no exchange rate for %s: %s is unpriced", currency, deployment)
            hold = deployment.unpriced_hold
            return None if hold is None else fixed_price(nanos(hold))
        terms = PriceTerms(
            currency=currency,
            usd_per_unit_nanos=nanos(usd_per_unit),
            uplift_basis_points=_basis_points(deployment.uplift_percent),
        )
        contract = self._contracts.get((deployment.provider_id, deployment.model_id))
        contract = contract or self._contracts.get((deployment.provider_id, None))
        if contract is None:
            return compiled(row, terms)
        given, certain = _given(contract, self._standings.get(contract.pk))
        return compiled(row, _with(terms, given), ceiling=None if given == certain else _with(terms, certain))


def follow_contracts(now: datetime, *, actor: Actor) -> list[price_models.ContractStanding]:
    """Note what each contract gives after the use of the month so far; those whose gift has changed, and is published with that."""
    month = date(now.year, now.month, 1)
    changed = []
    for contract in contracts_in_force(now):
        used = UsageDay.objects.filter(
            provider=contract.provider.slug, day__gte=max(month, contract.effective_from.astimezone(UTC).date())
        )
        if contract.model is not None:
            used = used.filter(model=contract.model.name)
        sums = used.aggregate(
            spent_usd=Sum("cost_usd", default=Decimal(0)),
            tokens=Sum(F("input_tokens") + F("output_tokens"), default=0),
            requests=Sum("requests", default=0),
        )
        standing = services.follow_contract(contract, month, **sums, actor=actor)
        if standing is not None:
            changed.append(standing)
    return changed


class Given(NamedTuple):
    """What a contract gives at a moment."""

    contract_id: str
    discount_percent: Decimal
    has_free_tokens: bool = False
    has_free_requests: bool = False


def contracts_in_force(now: datetime) -> Iterable[price_models.Contract]:
    contracts = price_models.Contract.objects.in_force(now)
    return contracts.select_related("provider", "model").prefetch_related("tiers")


def _given(contract: price_models.Contract, standing: price_models.ContractStanding | None) -> tuple[Given, Given]:
    """(what it gives now, what it gives whatever happens next)."""
    discounts = [contract.discount_percent, *(tier.discount_percent for tier in contract.tiers.all())]
    certain = Given(str(contract.pk), min(discounts))
    if standing is None:
        return certain, certain
    now = Given(str(contract.pk), standing.discount_percent, standing.has_free_tokens, standing.has_free_requests)
    return now, certain


def _with(terms: PriceTerms, given: Given) -> PriceTerms:
    return msgspec.structs.replace(
        terms,
        discount_basis_points=_basis_points(given.discount_percent),
        contract_id=given.contract_id,
        has_free_tokens=given.has_free_tokens,
        has_free_requests=given.has_free_requests,
    )


def _basis_points(percent: Decimal) -> int:
    return int(percent * 100)


# One price, reckoned out


def compiled(
    row: price_models.Price,
    terms: PriceTerms = LIST_TERMS,
    *,
    ceiling: PriceTerms | None = None,
    tiers: Sequence[price_models.PriceTier] | None = None,
) -> Price:
    """The price's rates under these terms; `ceiling` are those to hold by, where they may be dearer in a moment. `tiers` are the
    row's own where it is in the book."""
    tiers = list(row.tiers.all()) if tiers is None else tiers
    in_geo = None if row.geo_percent == 100 else _price(row, tiers, terms, Decimal(row.geo_percent) / 100)
    price = _price(row, tiers, terms, Decimal(1))
    dearest = None if ceiling is None else compiled(row, ceiling, tiers=tiers)
    return msgspec.structs.replace(price, in_geo=in_geo, ceiling=dearest)


def _price(row: price_models.Price, tiers: Sequence[price_models.PriceTier], terms: PriceTerms, geo: Decimal) -> Price:
    base: Amounts = {name: getattr(row, name) for name in _RATES}
    long_contexts, others = _tiers(tiers, base, terms, geo)
    return Price(
        price_id=str(row.pk),
        tiers=others,
        batch_percent=row.batch_percent,
        terms=terms,
        long_contexts=long_contexts,
        **_nanos_of(base, terms, geo),
    )


def _tiers(
    rows: Sequence[price_models.PriceTier], base: Amounts, terms: PriceTerms, geo: Decimal
) -> tuple[tuple[LongContext, ...], dict[str, Tier]]:
    """(long contexts of the standard tier, the other tiers)."""
    standard: dict[int, Amounts] = {}
    others: dict[str, dict[int, Amounts]] = {}
    percents: dict[str, Decimal] = {}
    for tier in rows:
        percent = Decimal(tier.percent) / 100
        own: Amounts = {name: getattr(tier, name) for name in _RATES}
        amounts: Amounts = {name: _of(base[name], percent) if own[name] is None else own[name] for name in _RATES}
        lengths = standard if not tier.service_tier else others.setdefault(tier.service_tier, {})
        lengths[tier.above_input_tokens] = amounts
        if tier.service_tier and not tier.above_input_tokens and not any(own.values()):
            percents[tier.service_tier] = percent
    for name, lengths in others.items():
        if name in percents:  # A percentage of everything is one of long contexts too.
            for above, amounts in standard.items():
                lengths.setdefault(above, {rate: _of(amount, percents[name]) for rate, amount in amounts.items()})
    tiers = {
        name: Tier(long_contexts=_long_contexts(lengths, terms, geo), **_nanos_of(lengths.get(0, base), terms, geo))
        for name, lengths in others.items()
    }
    return _long_contexts(standard, terms, geo), tiers


def _of(amount: Decimal | None, factor: Decimal) -> Decimal | None:
    return None if amount is None else amount * factor


def _long_contexts(lengths: Mapping[int, Amounts], terms: PriceTerms, geo: Decimal) -> tuple[LongContext, ...]:
    return tuple(
        LongContext(above_tokens=above, **_nanos_of(lengths[above], terms, geo)) for above in sorted(lengths) if above
    )


def _nanos_of(amounts: Amounts, terms: PriceTerms, geo: Decimal) -> dict[str, Any]:
    discount = 1 - Decimal(terms.discount_basis_points) / BASIS_POINTS
    uplift = 1 + Decimal(terms.uplift_basis_points) / BASIS_POINTS
    tokens = Decimal(0) if terms.has_free_tokens or terms.has_free_requests else discount * uplift * geo
    each = Decimal(0) if terms.has_free_requests else discount * uplift
    rates: dict[str, Any] = {"usd_per_unit_nanos": terms.usd_per_unit_nanos}
    for fields, factor in ((_TOKEN_RATES, tokens), (_EACH_RATES, each), (_TOOL_RATES, discount)):
        for name, field in fields.items():
            amount = amounts[name]
            rates[field] = None if amount is None else nanos(amount, factor)
    return rates


# A record, reckoned again


def recomputed_nanos(event: UsageEvent, row: price_models.Price) -> int:
    """What the record costs at a price of the book, under its own terms: at its own price, what it did cost."""
    return cost_again_nanos(event, compiled(row, event.terms))


def cost_again_nanos(event: UsageEvent, price: Price) -> int:
    if event.usage_source == "none":
        return 0
    if event.operation == BATCH:
        return cost_nanos(event.usage, batch_price(price)) if event.usage.batch_requests else 0
    return cost_nanos(event.usage, price)


def usd(cost_nanos: int) -> Decimal:
    return Decimal(cost_nanos).scaleb(-NANO_DIGITS)
