"""Writes about providers, models, prices, deployments and aliases. Each is one transaction; each row has its audit entry.

Raise ValidationError when a field or constraint refuses. Plain edits go through `audit.services.change` and `remove`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from keys.models import CredentialPool
from routing import catalogue, exchange_rates
from routing.models import AliasTarget, Deployment, Model, ModelAlias, Operation, Provider
from routing.price_models import (
    Contract,
    ContractStanding,
    ContractTier,
    ExchangeRate,
    ExchangeRateFeed,
    Price,
    PriceProposal,
    PriceTier,
    Rerate,
)

FEED_EVERY = timedelta(days=1)
# After one that failed.
FEED_AGAIN = timedelta(hours=1)


class Target(NamedTuple):
    deployment: Deployment
    position: int = 0
    weight: int = 1


def create_provider(slug: str, name: str, base_url: str, *, actor: Actor, reason: str = "", **fields: Any) -> Provider:
    """`fields` are the optional ones of `Provider`, such as `api`, `options`, `may_be_private` and the timeouts. Where
    `base_url` is empty, the provider is where everybody finds its API."""
    provider = Provider(slug=slug, name=name, base_url=base_url, **fields)
    audit.create(provider, actor=actor, reason=reason)
    return provider


def create_model(
    name: str,
    *,
    actor: Actor,
    publisher: str = "",
    operations: Sequence[str] = (Operation.CHAT,),
    context_window: int = 128_000,
    max_output_tokens: int = 4_096,
    output_is_visible: bool = False,
    reason: str = "",
) -> Model:
    model = Model(
        name=name,
        publisher=publisher,
        operations=list(operations),
        context_window=context_window,
        max_output_tokens=max_output_tokens,
        output_is_visible=output_is_visible,
    )
    audit.create(model, actor=actor, reason=reason)
    return model


class Tier(NamedTuple):
    """Rates of a price in another service tier, or above a length of input. `rates` by the names of `PRICE_RATES`; what is not
    among them is `percent` of the price's own."""

    service_tier: str = ""
    above_input_tokens: int = 0
    percent: int = 100
    rates: Mapping[str, Decimal] = {}


def set_price(
    model: Model,
    provider: Provider,
    *,
    actor: Actor,
    input: Decimal,
    output: Decimal,
    cached_input: Decimal | None = None,
    cache_write: Decimal | None = None,
    cache_write_1h: Decimal | None = None,
    reasoning: Decimal | None = None,
    input_audio: Decimal | None = None,
    input_image: Decimal | None = None,
    output_audio: Decimal | None = None,
    output_image: Decimal | None = None,
    per_request: Decimal = Decimal(0),
    per_tool_call: Decimal = Decimal(0),
    per_search: Decimal | None = None,
    per_unit: Decimal = Decimal(0),
    batch_percent: int = 100,
    geo_percent: int = 100,
    deployment: Deployment | None = None,
    tiers: Iterable[Tier] = (),
    effective_from: datetime | None = None,
    reason: str = "",
) -> Price:
    """The price from `effective_from` (now) on, in the provider's currency per 1,000,000 tokens.

    Cached input and cache writes cost as input where nothing else is said; what else is None is not set apart.
    """
    price = Price(
        model=model,
        provider=provider,
        deployment=deployment,
        effective_from=effective_from or timezone.now(),
        input=input,
        output=output,
        cached_input=input if cached_input is None else cached_input,
        cache_write=input if cache_write is None else cache_write,
        cache_write_1h=cache_write_1h,
        reasoning=reasoning,
        input_audio=input_audio,
        input_image=input_image,
        output_audio=output_audio,
        output_image=output_image,
        per_request=per_request,
        per_tool_call=per_tool_call,
        per_search=per_search,
        per_unit=per_unit,
        batch_percent=batch_percent,
        geo_percent=geo_percent,
    )
    with transaction.atomic():
        audit.create(price, actor=actor, reason=reason)
        for tier in tiers:
            row = PriceTier(
                price=price,
                service_tier=tier.service_tier,
                above_input_tokens=tier.above_input_tokens,
                percent=tier.percent,
                **tier.rates,
            )
            audit.create(row, actor=actor, reason=reason)
    return price


def set_exchange_rate(
    currency: str,
    usd_per_unit: Decimal,
    *,
    actor: Actor,
    effective_from: datetime | None = None,
    source: str = "",
    reason: str = "",
) -> ExchangeRate:
    rate = ExchangeRate(
        currency=currency, usd_per_unit=usd_per_unit, effective_from=effective_from or timezone.now(), source=source
    )
    audit.create(rate, actor=actor, reason=reason)
    return rate


def import_exchange_rates(
    rates: Iterable[exchange_rates.Rate], *, source: str, actor: Actor, reason: str = ""
) -> list[ExchangeRate]:
    """Those that are not there yet, all or none. What stands for a currency and moment stays as it is."""
    with transaction.atomic():
        return [
            set_exchange_rate(
                rate.currency,
                rate.usd_per_unit,
                effective_from=rate.effective_from,
                source=source,
                actor=actor,
                reason=reason,
            )
            for rate in rates
            if not ExchangeRate.objects.filter(currency=rate.currency, effective_from=rate.effective_from).exists()
        ]


def change_feed(feed: ExchangeRateFeed, *, actor: Actor, values: Mapping[str, Any], reason: str = "") -> None:
    """As it is now it is fetched at once."""
    audit.change(feed, actor=actor, reason=reason, values={**values, "due_at": timezone.now()})


def fetch_feed_now(feed: ExchangeRateFeed, *, actor: Actor, reason: str = "") -> None:
    """Have it fetched within seconds, and not when its day is over. Raises ValidationError for one that is switched off."""
    with transaction.atomic():
        if not ExchangeRateFeed.objects.select_for_update().get(pk=feed.pk).is_active:
            raise ValidationError("It is switched off.")
        audit.change(feed, actor=actor, action="fetch", reason=reason, values={"due_at": timezone.now()})


def claim_feeds(now: datetime) -> list[ExchangeRateFeed]:
    """Those that are due, for who fetches them now; whatever becomes of that, nobody else does within the hour."""
    with transaction.atomic():
        due = ExchangeRateFeed.objects.filter(is_active=True, due_at__lte=now)
        claimed = list(due.select_for_update(skip_locked=True))
        for feed in claimed:
            feed.due_at = now + FEED_AGAIN
        ExchangeRateFeed.objects.bulk_update(claimed, ["due_at"])
    return claimed


def take_feed(feed: ExchangeRateFeed, body: bytes, now: datetime, *, actor: Actor) -> list[ExchangeRate]:
    """What a feed has answered, for the currencies that a provider here has. Raises `exchange_rates.InvalidRates`."""
    wanted = set(Provider.objects.values_list("currency", flat=True))
    rates = [rate for rate in exchange_rates.read(body, now) if rate.currency in wanted]
    with transaction.atomic():
        row = ExchangeRateFeed.objects.filter(pk=feed.pk)
        row.update(fetched_at=now, problem="")
        # Unless somebody has asked for it meanwhile.
        row.filter(due_at=feed.due_at).update(due_at=now + FEED_EVERY)
        return import_exchange_rates(rates, source=feed.name, actor=actor, reason=f"from the feed {feed.name}")


def fail_feed(feed: ExchangeRateFeed, problem: str) -> None:
    """No entry in the audit: nothing was changed but what the page says of the last attempt."""
    ExchangeRateFeed.objects.filter(pk=feed.pk).update(problem=problem[:300])


def add_contract(
    provider: Provider,
    name: str,
    *,
    actor: Actor,
    discounts: Mapping[Decimal, Decimal] | None = None,
    reason: str = "",
    **fields: Any,
) -> Contract:
    """`fields` are those of `Contract`; `discounts` are percentages by the month's spend in USD from which they hold."""
    contract = Contract(provider=provider, name=name, **fields)
    with transaction.atomic():
        audit.create(contract, actor=actor, reason=reason)
        for from_usd, percent in sorted((discounts or {}).items()):
            row = ContractTier(contract=contract, from_usd=from_usd, discount_percent=percent)
            audit.create(row, actor=actor, reason=reason)
    return contract


def follow_contract(
    contract: Contract, month: date, *, spent_usd: Decimal, tokens: int, requests: int, actor: Actor
) -> ContractStanding | None:
    """Note what the contract gives after so much use of the month; None where that is what was noted already."""
    discount = contract.discount_percent
    for tier in sorted(contract.tiers.all(), key=lambda tier: tier.from_usd):
        if spent_usd >= tier.from_usd:
            discount = tier.discount_percent
    gives: dict[str, Any] = {
        "discount_percent": discount,
        "has_free_tokens": contract.free_tokens is not None and tokens < contract.free_tokens,
        "has_free_requests": contract.free_requests is not None and requests < contract.free_requests,
    }
    used = {"spent_usd": spent_usd, "tokens": tokens, "requests": requests}
    reason = "the month's use of the contract"
    with transaction.atomic():
        standing = ContractStanding.objects.select_for_update().filter(contract=contract, month=month).first()
        if standing is None:
            standing = ContractStanding(contract=contract, month=month, **gives, **used)
            audit.create(standing, actor=actor, reason=reason)
            return standing
        if all(getattr(standing, name) == value for name, value in gives.items()):
            # No entry in the audit: of what the contract says nothing has changed.
            ContractStanding.objects.filter(pk=standing.pk).update(**used)
            return None
        audit.change(standing, actor=actor, reason=reason, values=gives | used)
    return standing


# What the catalogue proposes


def compare_with_catalogue(now: datetime) -> list[catalogue.Proposed]:
    """What the catalogue says otherwise of each model that is deployed at a provider whose prices are in USD, as the catalogue's
    are. Prices of a single deployment were negotiated, and are left alone."""
    in_force = {
        (price.model_id, price.provider_id): price for price in Price.objects.filter(deployment=None).in_force(now)
    }
    sold: dict[tuple[UUID, UUID], catalogue.Sold] = {}
    deployments = Deployment.objects.filter(is_active=True, provider__currency=catalogue.CURRENCY)
    for deployment in deployments.select_related("provider").order_by("created_at"):
        where = deployment.model_id, deployment.provider_id
        price = in_force.get(where)
        sold.setdefault(
            where,
            catalogue.Sold(
                model_id=deployment.model_id,
                provider_id=deployment.provider_id,
                upstream_model=deployment.upstream_model,
                api=deployment.provider.api,
                base_url=deployment.provider.base_url,
                current=None if price is None else catalogue.rates_of(price),
            ),
        )
    return catalogue.propose(sold.values(), now)


def propose_prices(proposed: Iterable[catalogue.Proposed], *, source: str, actor: Actor) -> list[PriceProposal]:
    """One open proposal per model and provider: a newer one takes its place, and the same again is not proposed again."""
    proposals = []
    with transaction.atomic():
        for one in proposed:
            same = PriceProposal.objects.filter(model_id=one.model_id, provider_id=one.provider_id)
            last = same.order_by("-created_at").first()
            if last is not None and last.rates == one.rates and last.state != PriceProposal.State.APPROVED:
                continue  # It is open, or somebody has said no to just that.
            for old in same.filter(state=PriceProposal.State.PROPOSED):
                audit.change(old, actor=actor, values={"state": PriceProposal.State.OUTDATED})
            proposal = PriceProposal(
                source=source,
                model_id=one.model_id,
                provider_id=one.provider_id,
                effective_from=one.effective_from,
                rates=one.rates,
                differences=one.differences,
                remarks=one.remarks,
            )
            audit.create(proposal, actor=actor, reason=f"proposed by {source}")
            proposals.append(proposal)
    return proposals


def approve_proposal(proposal: PriceProposal, *, actor: Actor, reason: str = "") -> Price:
    """Its price, in force from the moment that it says, and not before now. Raises ValidationError when it was decided already."""
    with transaction.atomic():
        locked = _open(proposal)
        rates = catalogue.amounts(locked.rates)
        price = set_price(
            locked.model,
            locked.provider,
            effective_from=max(locked.effective_from, timezone.now()),
            tiers=[Tier(**tier) for tier in catalogue.tiers(locked.rates)],
            actor=actor,
            reason=reason or f"as {locked.source} proposes",
            **rates,
        )
        _decide(proposal, PriceProposal.State.APPROVED, actor, reason, price=price)
    return price


def reject_proposal(proposal: PriceProposal, *, actor: Actor, reason: str = "") -> None:
    with transaction.atomic():
        _open(proposal)
        _decide(proposal, PriceProposal.State.REJECTED, actor, reason)


def _open(proposal: PriceProposal) -> PriceProposal:
    locked = (
        PriceProposal.objects.select_for_update(of=("self",)).select_related("model", "provider").get(pk=proposal.pk)
    )
    if locked.state != PriceProposal.State.PROPOSED:
        raise ValidationError(f"{locked}: this was {locked.state} already.")
    return locked


def _decide(proposal: PriceProposal, state: PriceProposal.State, actor: Actor, reason: str, **values: Any) -> None:
    audit.change(
        proposal,
        actor=actor,
        action=state.value,
        reason=reason,
        values={"state": state, "decided_by": actor.name[:200], "decided_at": timezone.now(), **values},
    )


# Reckoning a past period again


def ask_for_rerate(
    provider: Provider, starts_at: datetime, ends_at: datetime, *, actor: Actor, **fields: Any
) -> Rerate:
    """`fields` are the optional ones of `Rerate`, and its `note`."""
    rerate = Rerate(
        provider=provider,
        starts_at=starts_at,
        ends_at=ends_at,
        asked_by=actor.name[:200],
        asked_by_id=actor.id,
        **fields,
    )
    audit.create(rerate, actor=actor, action="ask", reason=rerate.note)
    return rerate


def decide_rerate(rerate: Rerate, *, is_approved: bool, actor: Actor, reason: str = "") -> None:
    """By somebody else than asked for it. Raises ValidationError."""
    with transaction.atomic():
        locked = Rerate.objects.select_for_update(of=("self",)).get(pk=rerate.pk)
        if locked.state != Rerate.State.PROPOSED:
            raise ValidationError(f"{locked}: this was {locked.state} already.")
        if is_approved and actor.id == locked.asked_by_id:
            raise ValidationError("Who asked for it cannot approve it.")
        state = Rerate.State.APPROVED if is_approved else Rerate.State.REJECTED
        audit.change(
            rerate,
            actor=actor,
            action="approve" if is_approved else "reject",
            reason=reason,
            values={"state": state, "decided_by": actor.name[:200]},
        )


def create_deployment(
    name: str,
    model: Model,
    provider: Provider,
    upstream_model: str,
    *,
    actor: Actor,
    pool: CredentialPool | None = None,
    region: str = "",
    max_output_tokens: int | None = None,
    reason: str = "",
    **fields: Any,
) -> Deployment:
    """`fields` are the optional ones of `Deployment` about money: `uplift_percent`, `auto_tier`, `unpriced_hold`."""
    deployment = Deployment(
        name=name,
        model=model,
        provider=provider,
        upstream_model=upstream_model,
        pool=pool,
        region=region,
        max_output_tokens=max_output_tokens,
        **fields,
    )
    audit.create(deployment, actor=actor, reason=reason)
    return deployment


def create_alias(
    name: str,
    targets: Iterable[Target],
    *,
    actor: Actor,
    description: str = "",
    is_lenient: bool = False,
    reason: str = "",
) -> ModelAlias:
    with transaction.atomic():
        alias = ModelAlias(name=name, description=description, is_lenient=is_lenient)
        audit.create(alias, actor=actor, reason=reason)
        set_targets(alias, targets, actor=actor, reason=reason)
    return alias


def set_targets(alias: ModelAlias, targets: Iterable[Target], *, actor: Actor, reason: str = "") -> None:
    """Make these the alias's targets, and no others."""
    with transaction.atomic():
        present = {target.deployment_id: target for target in alias.targets.select_for_update()}
        for target in targets:
            row = present.pop(target.deployment.pk, None)
            values = {"position": target.position, "weight": target.weight}
            if row is None:
                audit.create(
                    AliasTarget(alias=alias, deployment=target.deployment, **values), actor=actor, reason=reason
                )
            else:
                audit.change(row, actor=actor, reason=reason, values=values)
        for row in present.values():
            audit.remove(row, actor=actor, reason=reason)
