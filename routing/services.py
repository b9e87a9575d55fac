"""Writes about providers, models, prices, deployments and aliases. Each is one transaction; each row has its audit entry.

Raise ValidationError when a field or constraint refuses. Plain edits go through `audit.services.change` and `remove`.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from django.db import transaction
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from keys.models import CredentialPool
from routing.models import AliasTarget, Deployment, ExchangeRate, Model, ModelAlias, Operation, Price, Provider


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
    input_audio: Decimal | None = None,
    input_image: Decimal | None = None,
    output_audio: Decimal | None = None,
    output_image: Decimal | None = None,
    per_request: Decimal = Decimal(0),
    per_tool_call: Decimal = Decimal(0),
    per_unit: Decimal = Decimal(0),
    batch_percent: int = 100,
    effective_from: datetime | None = None,
    reason: str = "",
) -> Price:
    """The price from `effective_from` (now) on, in the provider's currency per 1,000,000 tokens.

    Cached input and cache writes cost as input where nothing else is said; what else is None is not set apart.
    """
    price = Price(
        model=model,
        provider=provider,
        effective_from=effective_from or timezone.now(),
        input=input,
        output=output,
        cached_input=input if cached_input is None else cached_input,
        cache_write=input if cache_write is None else cache_write,
        cache_write_1h=cache_write_1h,
        input_audio=input_audio,
        input_image=input_image,
        output_audio=output_audio,
        output_image=output_image,
        per_request=per_request,
        per_tool_call=per_tool_call,
        per_unit=per_unit,
        batch_percent=batch_percent,
    )
    audit.create(price, actor=actor, reason=reason)
    return price


def set_exchange_rate(
    currency: str, usd_per_unit: Decimal, *, actor: Actor, effective_from: datetime | None = None, reason: str = ""
) -> ExchangeRate:
    rate = ExchangeRate(currency=currency, usd_per_unit=usd_per_unit, effective_from=effective_from or timezone.now())
    audit.create(rate, actor=actor, reason=reason)
    return rate


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
) -> Deployment:
    deployment = Deployment(
        name=name,
        model=model,
        provider=provider,
        upstream_model=upstream_model,
        pool=pool,
        region=region,
        max_output_tokens=max_output_tokens,
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
