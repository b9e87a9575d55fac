"""What tokens cost: prices, the true cost of an attempt, the upper bound to hold for it. No database, no Django, no clock."""

import msgspec

from audit.records import Usage

TOKENS_PER_PRICING_UNIT = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Rates in nano-USD per 1,000,000 tokens; `request_nanos`, `tool_call_nanos` and `unit_nanos` in nano-USD each.

    A rate that is None is not set apart: tokens written for an hour cost what written ones do, audio and image tokens what
    any token does. `batch_percent` is what a batch costs of all this.
    """

    price_id: str
    input_nanos: int
    output_nanos: int
    cache_read_nanos: int
    cache_write_nanos: int
    request_nanos: int = 0
    cache_write_1h_nanos: int | None = None
    input_audio_nanos: int | None = None
    input_image_nanos: int | None = None
    output_audio_nanos: int | None = None
    output_image_nanos: int | None = None
    tool_call_nanos: int = 0
    unit_nanos: int = 0
    batch_percent: int = 100


def fixed_price(request_nanos: int) -> Price:
    """So much for a request, whatever it uses."""
    return Price(
        price_id="",
        input_nanos=0,
        output_nanos=0,
        cache_read_nanos=0,
        cache_write_nanos=0,
        request_nanos=request_nanos,
    )


def cost_nanos(usage: Usage, price: Price) -> int:
    """The cost of one attempt in nano-USD, rounded up once, so that two roundings never add up. Never negative.

    Source: FOCUS PricingUnit "1000000 Tokens". Cached and written tokens are part of the input but have rates of their own,
    so they are taken out of it first, and so are audio and image tokens where these have one; reasoning tokens are output.
    """
    cached, written = usage.cache_read_input_tokens, usage.cache_write_input_tokens
    fresh = max(usage.input_tokens - cached - written, 0)
    output = usage.output_tokens
    unrounded = cached * price.cache_read_nanos + written * price.cache_write_nanos
    if usage.has_rare_meters:
        if price.cache_write_1h_nanos is not None:
            unrounded += usage.cache_write_1h_input_tokens * (price.cache_write_1h_nanos - price.cache_write_nanos)
        audio, fresh = _apart(usage.input_audio_tokens, price.input_audio_nanos, fresh)
        image, fresh = _apart(usage.input_image_tokens, price.input_image_nanos, fresh)
        spoken, output = _apart(usage.output_audio_tokens, price.output_audio_nanos, output)
        drawn, output = _apart(usage.output_image_tokens, price.output_image_nanos, output)
        unrounded += audio + image + spoken + drawn
    unrounded += fresh * price.input_nanos + output * price.output_nanos
    each = price.request_nanos + usage.tool_calls * price.tool_call_nanos + usage.units * price.unit_nanos
    # A provider that reports negative counts must not pay into a budget.
    return max(_per_token(unrounded), 0) + max(each, 0)


def _apart(tokens: int, rate_nanos: int | None, among: int) -> tuple[int, int]:
    """(what `tokens` cost at a rate of their own, how many of `among` are left at the common one)."""
    if rate_nanos is None:
        return 0, among
    apart = min(tokens, among)  # What was read from the cache is paid as that.
    return apart * rate_nanos, among - apart


def hold_nanos(
    price: Price,
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
        price.input_nanos, price.cache_read_nanos, price.cache_write_nanos, price.cache_write_1h_nanos or 0
    )
    output_nanos = price.output_nanos
    if has_audio:
        input_nanos = max(input_nanos, price.input_audio_nanos or 0)
        output_nanos = max(output_nanos, price.output_audio_nanos or 0)
    if has_images:
        input_nanos = max(input_nanos, price.input_image_nanos or 0)
        output_nanos = max(output_nanos, price.output_image_nanos or 0)
    return (
        _per_token(input_tokens_max * input_nanos + output_tokens_max * output_nanos)
        + price.request_nanos
        + tool_calls_max * price.tool_call_nanos
        + units_max * price.unit_nanos
    )


def batch_price(price: Price) -> Price:
    """What the same costs in a batch: every rate at `batch_percent`, rounded up."""
    if price.batch_percent == 100:
        return price
    rates = {
        name: -(-value * price.batch_percent // 100)
        for name, value in msgspec.structs.asdict(price).items()
        if name.endswith("_nanos") and value is not None
    }
    return msgspec.structs.replace(price, **rates)


def _per_token(unrounded: int) -> int:
    return -(-unrounded // TOKENS_PER_PRICING_UNIT)
