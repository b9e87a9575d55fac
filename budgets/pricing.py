"""What tokens cost: prices, the true cost of an attempt, the upper bound to hold for it. No database, no Django, no clock.

Rates are in billionths ("nanos") of the provider's currency, so that its own bill is met to the nano; what it is in USD is
reckoned once, from the sum. What a contract, a region or a geography does to rates is in them already when they come here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from audit.records import LIST_TERMS, PriceTerms, Usage

TOKENS_PER_PRICING_UNIT = 1_000_000
NANOS_PER_UNIT = 1_000_000_000
BATCH = "batch"


class Rates(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Per 1,000,000 tokens; `request_nanos`, `tool_call_nanos`, `search_nanos` and `unit_nanos` each.

    A rate that is None is not set apart: tokens written for an hour cost what written ones do, a search what any tool does,
    reasoning, audio and image tokens what any token does.
    """

    input_nanos: int
    output_nanos: int
    cache_read_nanos: int
    cache_write_nanos: int
    request_nanos: int = 0
    cache_write_1h_nanos: int | None = None
    reasoning_nanos: int | None = None
    input_audio_nanos: int | None = None
    input_image_nanos: int | None = None
    output_audio_nanos: int | None = None
    output_image_nanos: int | None = None
    tool_call_nanos: int = 0
    search_nanos: int | None = None
    unit_nanos: int = 0
    usd_per_unit_nanos: int = NANOS_PER_UNIT


class LongContext(Rates, frozen=True, kw_only=True, omit_defaults=True):
    """The rates of a whole request whose input is more than so many tokens."""

    above_tokens: int


class Tier(Rates, frozen=True, kw_only=True, omit_defaults=True):
    """The rates of one service tier; `long_contexts` by `above_tokens`, ascending."""

    long_contexts: tuple[LongContext, ...] = ()


class Price(Tier, frozen=True, kw_only=True, omit_defaults=True):
    """The rates of the standard tier, and all that may take their place.

    `tiers` are by the word that stands in `Usage.service_tier`. `in_geo` is this price for what is served in a geography that was
    asked for. `ceiling` is this price without what the contract gives for the moment and may not give in the next. Where no tier
    "batch" is set apart, a batch costs `batch_percent` of all this.
    """

    price_id: str
    tiers: dict[str, Tier] = {}
    in_geo: "Price | None" = None
    ceiling: "Price | None" = None
    batch_percent: int = 100
    terms: PriceTerms = LIST_TERMS


def fixed_price(request_nanos: int) -> Price:
    """So much for a request, whatever it uses, in USD."""
    return Price(
        price_id="",
        input_nanos=0,
        output_nanos=0,
        cache_read_nanos=0,
        cache_write_nanos=0,
        request_nanos=request_nanos,
    )


# The true cost


def cost_nanos(usage: Usage, price: Price) -> int:
    """The cost of one attempt in nano-USD, rounded up once, so that two roundings never add up. Never negative.

    Source: FOCUS PricingUnit "1000000 Tokens". Cached and written tokens are part of the input but have rates of their own,
    so they are taken out of it first, and so are audio and image tokens where these have one; reasoning tokens are output.
    """
    has_one_way = not (price.tiers or price.long_contexts or price.in_geo)
    cost = _amount_nanos(usage, price if has_one_way else rates_for(usage, price))
    per_unit = price.usd_per_unit_nanos
    return cost if per_unit == NANOS_PER_UNIT else -(-cost * per_unit // NANOS_PER_UNIT)


def currency_cost_nanos(usage: Usage, price: Price) -> int | None:
    """The same in billionths of the provider's currency; None where that is the USD."""
    return None if price.usd_per_unit_nanos == NANOS_PER_UNIT else _amount_nanos(usage, rates_for(usage, price))


def rates_for(usage: Usage, price: Price) -> Rates:
    """Those that the usage is billed at: of the geography, then the tier, then the length. A tier without rates of its own is
    billed as the standard one; the requests of a batch have all the same length, as far as its usage tells."""
    if usage.inference_geo and price.in_geo is not None:
        price = price.in_geo
    tier: Tier = price.tiers.get(usage.service_tier, price) if usage.service_tier else price
    rates: Rates = tier
    for longer in tier.long_contexts:
        if usage.input_tokens > longer.above_tokens * (usage.batch_requests or 1):
            rates = longer
    return rates


def _amount_nanos(usage: Usage, rates: Rates) -> int:
    cached, written = usage.cache_read_input_tokens, usage.cache_write_input_tokens
    fresh = max(usage.input_tokens - cached - written, 0)
    output = usage.output_tokens
    unrounded = cached * rates.cache_read_nanos + written * rates.cache_write_nanos
    if rates.cache_write_1h_nanos is not None:
        hour = min(usage.cache_write_1h_input_tokens, written)
        unrounded += hour * (rates.cache_write_1h_nanos - rates.cache_write_nanos)
    if rates.input_audio_nanos is not None:
        audio = min(usage.input_audio_tokens, fresh)  # What was read from the cache is paid as that.
        fresh -= audio
        unrounded += audio * rates.input_audio_nanos
    if rates.input_image_nanos is not None:
        image = min(usage.input_image_tokens, fresh)
        fresh -= image
        unrounded += image * rates.input_image_nanos
    if rates.output_audio_nanos is not None:
        spoken = min(usage.output_audio_tokens, output)
        output -= spoken
        unrounded += spoken * rates.output_audio_nanos
    if rates.output_image_nanos is not None:
        drawn = min(usage.output_image_tokens, output)
        output -= drawn
        unrounded += drawn * rates.output_image_nanos
    if rates.reasoning_nanos is not None:
        thought = min(usage.reasoning_tokens, output)
        output -= thought
        unrounded += thought * rates.reasoning_nanos
    unrounded += fresh * rates.input_nanos + output * rates.output_nanos
    each = rates.request_nanos * (usage.batch_requests or 1)
    if usage.tool_calls:
        searches = 0 if rates.search_nanos is None else min(usage.searches, usage.tool_calls)
        each += (usage.tool_calls - searches) * rates.tool_call_nanos + searches * (rates.search_nanos or 0)
    if usage.units:
        each += usage.units * rates.unit_nanos
    # A provider that reports negative counts must not pay into a budget.
    return max(_per_token(unrounded), 0) + max(each, 0)


# The most that it can cost


def ceiling(
    price: Price, input_tokens_max: int, *, service_tiers: Iterable[str] = (), may_be_in_geo: bool = False
) -> Rates:
    """The dearest rates, each by itself, that a request of at most so much input may be billed at: in the standard tier, in one
    of `service_tiers`, or in a geography that it asks for."""
    if price.ceiling is not None:
        price = price.ceiling
    if not (price.long_contexts or service_tiers or may_be_in_geo):
        return price
    prices = [price] if not may_be_in_geo or price.in_geo is None else [price, price.in_geo]
    tiers: list[Tier] = [*prices]
    for name in service_tiers:
        tiers += [one.tiers[name] for one in prices if name in one.tiers]
    rates: list[Rates] = [*tiers]
    for tier in tiers:
        rates += [longer for longer in tier.long_contexts if input_tokens_max > longer.above_tokens]
    return price if len(rates) == 1 else _dearest(rates)


def hold_nanos(
    rates: Rates,
    input_tokens_max: int,
    output_tokens_max: int,
    *,
    units_max: int = 0,
    tool_calls_max: int = 0,
    has_audio: bool = False,
    has_images: bool = False,
) -> int:
    """The most that an attempt within these bounds can cost, in nano-USD: every token at its dearest rate."""
    input_nanos = max(
        rates.input_nanos, rates.cache_read_nanos, rates.cache_write_nanos, rates.cache_write_1h_nanos or 0
    )
    output_nanos = rates.output_nanos
    if rates.reasoning_nanos is not None:
        output_nanos = max(output_nanos, rates.reasoning_nanos)
    if has_audio:
        input_nanos = max(input_nanos, rates.input_audio_nanos or 0)
        output_nanos = max(output_nanos, rates.output_audio_nanos or 0)
    if has_images:
        input_nanos = max(input_nanos, rates.input_image_nanos or 0)
        output_nanos = max(output_nanos, rates.output_image_nanos or 0)
    amount = _per_token(input_tokens_max * input_nanos + output_tokens_max * output_nanos) + rates.request_nanos
    if tool_calls_max:
        amount += tool_calls_max * max(rates.tool_call_nanos, rates.search_nanos or 0)
    if units_max:
        amount += units_max * rates.unit_nanos
    per_unit = rates.usd_per_unit_nanos
    return amount if per_unit == NANOS_PER_UNIT else -(-amount * per_unit // NANOS_PER_UNIT)


# One price made of another


def batch_price(price: Price) -> Price:
    """What the same costs in a batch: the tier of that name, else every rate at `batch_percent`, rounded up. Whatever tier the
    answers of a batch name, they are billed as this."""
    tier = price.tiers.get(BATCH)
    if tier is None:
        tier = price if price.batch_percent == 100 else scaled(price, price.batch_percent)
    return msgspec.structs.replace(
        price,
        **_rates(tier),
        long_contexts=tier.long_contexts,
        tiers={},
        in_geo=price.in_geo and batch_price(price.in_geo),
        ceiling=price.ceiling and batch_price(price.ceiling),
        batch_percent=100,
    )


def scaled(tier: Tier, percent: int) -> Tier:
    """Every rate of a tier at so many percent, rounded up."""
    long_contexts = tuple(
        LongContext(above_tokens=longer.above_tokens, **_rates(longer, percent)) for longer in tier.long_contexts
    )
    return Tier(long_contexts=long_contexts, **_rates(tier, percent))


_RATE_NAMES = tuple(name for name in Rates.__struct_fields__ if name != "usd_per_unit_nanos")


def _rates(rates: Rates, percent: int = 100) -> dict[str, Any]:
    scaled_up = {
        name: None if (nanos := getattr(rates, name)) is None else -(-nanos * percent // 100) for name in _RATE_NAMES
    }
    return scaled_up | {"usd_per_unit_nanos": rates.usd_per_unit_nanos}


def _dearest(many: Sequence[Rates]) -> Rates:
    """Each rate as the dearest has it. None is below all: what is not set apart is bounded by the common rate."""
    values = {
        name: max((nanos for rates in many if (nanos := getattr(rates, name)) is not None), default=None)
        for name in _RATE_NAMES
    }
    return msgspec.structs.replace(many[0], **values)


def _per_token(unrounded: int) -> int:
    return -(-unrounded // TOKENS_PER_PRICING_UNIT)
