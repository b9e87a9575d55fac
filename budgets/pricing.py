"""What tokens cost: prices, the true cost of an attempt, the upper bound to hold for it. No database, no Django, no clock."""

import msgspec

from audit.records import Usage

TOKENS_PER_PRICING_UNIT = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Rates in nano-USD per 1,000,000 tokens, `request_nanos` in nano-USD per request."""

    price_id: str
    input_nanos: int
    output_nanos: int
    cache_read_nanos: int
    cache_write_nanos: int
    request_nanos: int = 0


def cost_nanos(usage: Usage, price: Price) -> int:
    """The cost of one attempt in nano-USD, rounded up once, so that two roundings never add up. Never negative.

    Source: FOCUS PricingUnit "1000000 Tokens". Cached and written tokens are part of the input but have rates of their own,
    so they are taken out of it first; reasoning tokens are output.
    """
    cached, written = usage.cache_read_input_tokens, usage.cache_write_input_tokens
    fresh = max(usage.input_tokens - cached - written, 0)
    unrounded = (
        fresh * price.input_nanos
        + cached * price.cache_read_nanos
        + written * price.cache_write_nanos
        + usage.output_tokens * price.output_nanos
    )
    # A provider that reports negative tokens must not pay into a budget.
    return max(_per_token(unrounded), 0) + price.request_nanos


def hold_nanos(price: Price, input_tokens_max: int, output_tokens_max: int) -> int:
    """The most that an attempt within these bounds can cost, in nano-USD: every input token at its dearest rate."""
    dearest_input_nanos = max(price.input_nanos, price.cache_read_nanos, price.cache_write_nanos)
    return (
        _per_token(input_tokens_max * dearest_input_nanos + output_tokens_max * price.output_nanos)
        + price.request_nanos
    )


def _per_token(unrounded: int) -> int:
    return -(-unrounded // TOKENS_PER_PRICING_UNIT)
