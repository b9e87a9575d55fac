"""What a price would have cost: the last days' use at other rates, by team. One aggregate of the ledger, whatever it holds.

Sums are priced, not records, so it is right to the rounding of each request: less than a nano-USD for each.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from django.db.models import Case, Count, F, IntegerField, Sum, Value, When
from django.db.models.functions import Greatest

from audit.models import UsageRecord
from audit.records import PriceTerms, Usage
from budgets.price_book import compiled, usd
from budgets.pricing import BATCH, Price, batch_price, cost_nanos
from routing import catalogue, price_models
from teams.models import Team

DAYS = 30
_METERS = [name for name in Usage.__struct_fields__ if name not in ("service_tier", "inference_geo")]


@dataclass(frozen=True)
class Change:
    """What a team paid, and what it would have paid."""

    team: str
    before_usd: Decimal
    after_usd: Decimal

    @property
    def difference_usd(self) -> Decimal:
        return self.after_usd - self.before_usd

    @property
    def difference_text(self) -> str:
        """Such as +1,204.00."""
        return f"{self.difference_usd:+,.2f}"


@dataclass(frozen=True)
class Impact:
    days: int
    requests: int
    teams: tuple[Change, ...]

    @property
    def total(self) -> Change:
        before = sum((change.before_usd for change in self.teams), Decimal(0))
        return Change("all", before, sum((change.after_usd for change in self.teams), Decimal(0)))


def impact_of_proposal(viewer: Any, proposal: price_models.PriceProposal, now: datetime) -> Impact:
    row = price_models.Price(
        model=proposal.model,
        provider=proposal.provider,
        effective_from=proposal.effective_from,
        **catalogue.amounts(proposal.rates),
    )
    tiers = [
        price_models.PriceTier(
            service_tier=tier["service_tier"],
            above_input_tokens=tier["above_input_tokens"],
            percent=tier["percent"],
            **tier["rates"],
        )
        for tier in catalogue.tiers(proposal.rates)
    ]
    return impact_of(viewer, row, tiers, now)


def impact_of(
    viewer: Any, row: price_models.Price, tiers: Sequence[price_models.PriceTier], now: datetime, *, days: int = DAYS
) -> Impact:
    """Of a price, in the book or not yet, on its model at its provider, but for the deployments that have a price of their own
    when it begins (or on its deployment): what the teams that the viewer sees have used."""
    metered = UsageRecord.objects.for_user(viewer).metered()
    records = metered.filter(
        model=row.model.name,
        provider=row.provider.slug,
        admitted_at__gte=now - timedelta(days=days),
        admitted_at__lt=now,
    )
    if row.deployment is not None:
        records = records.filter(deployment=row.deployment.name)
    else:
        # Their own price comes first there, whatever the model's is.
        priced_apart = price_models.Price.objects.filter(
            model=row.model, provider=row.provider, effective_from__lte=max(row.effective_from, now)
        ).exclude(deployment=None)
        records = records.exclude(deployment__in=priced_apart.values("deployment__name"))
    lengths = {tier.above_input_tokens for tier in tiers if tier.above_input_tokens}
    prices: dict[bytes, Price] = {}
    before: defaultdict[UUID, Decimal] = defaultdict(Decimal)
    after: defaultdict[UUID, int] = defaultdict(int)
    requests = 0
    for group in groups(records, lengths):
        terms = msgspec.json.encode(group["terms"])
        if terms not in prices:
            prices[terms] = compiled(row, msgspec.convert(group["terms"], PriceTerms), tiers=tiers)
        price = prices[terms]
        before[group["team_id"]] += group["cost"]
        after[group["team_id"]] += cost_nanos(
            usage_of(group), batch_price(price) if group["operation"] == BATCH else price
        )
        requests += group["records"]
    names = dict(Team.objects.filter(pk__in=before).values_list("pk", "name"))
    changes = [Change(names.get(pk, str(pk)), before[pk], usd(after[pk])) for pk in before]
    return Impact(days, requests, tuple(sorted(changes, key=lambda change: -abs(change.difference_usd))))


def groups(records: Any, lengths: Iterable[int], *more: str) -> Any:
    """Sums of what is billed at the same rates: also the length of the input is on the same side of each of `lengths`. `more` are
    further columns to keep apart."""
    each = F("input_tokens") / Greatest(F("batch_requests"), Value(1))
    length = Case(
        *(When(each__gt=above, then=Value(above)) for above in sorted(lengths, reverse=True)),
        default=Value(0),
        output_field=IntegerField(),
    )
    return (
        records.annotate(each=each)
        .annotate(length=length)
        .order_by()
        .values("team_id", "service_tier", "inference_geo", "operation", "terms", "length", *more)
        .annotate(
            records=Count("attempt_id"),
            answered=Sum(Greatest(F("batch_requests"), Value(1))),
            cost=Sum("cost_usd"),
            **{f"sum_{name}": Sum(name) for name in _METERS if name != "batch_requests"},
        )
    )


def usage_of(group: Mapping[str, Any]) -> Usage:
    """As if all of the group had been one batch: so many requests, each as long as their mean."""
    meters = {name: int(group[f"sum_{name}"]) for name in _METERS if name != "batch_requests"}
    return Usage(
        **meters,
        batch_requests=int(group["answered"]),
        service_tier=group["service_tier"],
        inference_geo=group["inference_geo"],
    )
