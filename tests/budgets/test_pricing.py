import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.records import Usage
from budgets.pricing import LongContext, Price, Tier, batch_price, ceiling, cost_nanos, hold_nanos, rates_for, scaled

# $5 in, $15 out, $0.50 read from the cache, $6.25 written to it, per million tokens.
PRICE = Price(
    price_id="p",
    input_nanos=5_000_000_000,
    output_nanos=15_000_000_000,
    cache_read_nanos=500_000_000,
    cache_write_nanos=6_250_000_000,
)
CENT_PER_REQUEST = Price(
    price_id="r", input_nanos=0, output_nanos=0, cache_read_nanos=0, cache_write_nanos=0, request_nanos=10_000_000
)


def priced(nanos_per_million: int) -> Price:
    return Price(price_id="x", input_nanos=nanos_per_million, output_nanos=1, cache_read_nanos=1, cache_write_nanos=1)


@pytest.mark.parametrize(
    ("unit_price_nanos", "expected_nanos"),
    [
        (5_000_000_000, 5_000),
        (12_500_000, 13),  # $0.0125 per million tokens is 12.5 nanos for one.
        (1, 1),
        (0, 0),
    ],
)
def test_one_token_costs_a_whole_number_of_nanos(unit_price_nanos, expected_nanos):
    assert cost_nanos(Usage(input_tokens=1), priced(unit_price_nanos)) == expected_nanos


@pytest.mark.parametrize(
    ("usage", "expected_nanos"),
    [
        (Usage(), 0),
        (Usage(input_tokens=1000, output_tokens=100), 5_000_000 + 1_500_000),
        (Usage(input_tokens=1000, cache_read_input_tokens=800), 1_000_000 + 400_000),
        (
            Usage(input_tokens=1000, cache_read_input_tokens=300, cache_write_input_tokens=500),
            1_000_000 + 150_000 + 3_125_000,
        ),
        (Usage(output_tokens=100, reasoning_tokens=90), 1_500_000),
        (Usage(input_tokens=10, cache_read_input_tokens=10, cache_write_input_tokens=10), 5_000 + 62_500),
    ],
)
def test_each_kind_of_token_is_paid_once_at_its_own_rate(usage, expected_nanos):
    assert cost_nanos(usage, PRICE) == expected_nanos


def test_the_parts_of_a_request_are_rounded_up_together():
    third = Price(price_id="t", input_nanos=300_000, output_nanos=300_000, cache_read_nanos=0, cache_write_nanos=0)
    assert cost_nanos(Usage(input_tokens=1, output_tokens=1), third) == 1  # 0.3 + 0.3


def test_a_request_has_its_price_even_without_tokens():
    assert cost_nanos(Usage(), CENT_PER_REQUEST) == 10_000_000
    assert hold_nanos(CENT_PER_REQUEST, 0, 0) == 10_000_000


@pytest.mark.parametrize(
    "usage", [Usage(input_tokens=-5), Usage(output_tokens=-(10**9)), Usage(cache_read_input_tokens=-1)]
)
def test_a_cost_is_never_negative(usage):
    assert cost_nanos(usage, PRICE) >= 0


rates = st.integers(0, 10**12)
tokens = st.integers(0, 10**7)


@given(rates, rates, rates, rates, rates, st.tuples(tokens, tokens, tokens, tokens))
def test_the_hold_covers_every_cost_within_its_bounds(input_rate, output_rate, read_rate, write_rate, request, counts):
    price = Price(
        price_id="p",
        input_nanos=input_rate,
        output_nanos=output_rate,
        cache_read_nanos=read_rate,
        cache_write_nanos=write_rate,
        request_nanos=request,
    )
    fresh, read, written, output = counts
    usage = Usage(
        input_tokens=fresh + read + written,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        output_tokens=output,
    )
    assert cost_nanos(usage, price) <= hold_nanos(price, usage.input_tokens, output)


# Tiers, long contexts, geographies: whatever the answer says it was, the hold covers it.


def _rates(draw, **more):
    apart = st.none() | rates
    return {
        "input_nanos": draw(rates),
        "output_nanos": draw(rates),
        "cache_read_nanos": draw(rates),
        "cache_write_nanos": draw(rates),
        "cache_write_1h_nanos": draw(apart),
        "reasoning_nanos": draw(apart),
        "input_audio_nanos": draw(apart),
        "output_image_nanos": draw(apart),
        "request_nanos": draw(rates),
        "tool_call_nanos": draw(rates),
        "search_nanos": draw(apart),
        "unit_nanos": draw(rates),
        "usd_per_unit_nanos": 1_083_333_333,
    } | more  # fmt: skip


@st.composite
def prices(draw, depth=1):
    lengths = st.lists(st.integers(0, 1_000), max_size=2, unique=True)

    def longer():
        return tuple(LongContext(**_rates(draw, above_tokens=above)) for above in sorted(draw(lengths)))

    tiers = {name: Tier(**_rates(draw, long_contexts=longer())) for name in draw(st.sets(st.sampled_from(TIERS)))}
    return Price(
        **_rates(draw, price_id="p", long_contexts=longer(), tiers=tiers, batch_percent=draw(st.integers(1, 100))),
        in_geo=draw(prices(depth=0)) if depth and draw(st.booleans()) else None,
        ceiling=None,
    )


TIERS = ("flex", "priority", "batch")
counts = st.integers(0, 600)


@given(prices(), st.sampled_from(("", *TIERS, "unheard-of")), st.booleans(), st.tuples(*[counts] * 10))
def test_the_hold_covers_every_tier_length_and_geography_that_was_asked_for(price, tier, is_in_geo, numbers):
    fresh, read, written, hour, audio, output, reasoning, image, tools, searches = numbers
    usage = Usage(
        input_tokens=fresh + read + written,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        cache_write_1h_input_tokens=hour,
        input_audio_tokens=audio,
        output_tokens=output,
        reasoning_tokens=reasoning,
        output_image_tokens=image,
        tool_calls=tools,
        searches=searches,
        units=3,
        service_tier=tier,
        inference_geo="us" if is_in_geo else "",
    )
    bound = ceiling(price, usage.input_tokens, service_tiers=(tier,), may_be_in_geo=is_in_geo)
    held = hold_nanos(
        bound, usage.input_tokens, output, units_max=3, tool_calls_max=tools, has_audio=True, has_images=True
    )
    assert 0 <= cost_nanos(usage, price) <= held


@given(prices(), counts, st.integers(1, 9))
def test_a_batch_is_billed_as_one_whatever_tier_its_answers_name(price, tokens, requests):
    usage = Usage(input_tokens=tokens * requests, output_tokens=5, batch_requests=requests)
    whole = batch_price(price)
    named = {cost_nanos(Usage(**{**_fields(usage), "service_tier": name}), whole) for name in ("", *TIERS)}
    assert len(named) == 1


def _fields(usage):
    return {name: getattr(usage, name) for name in usage.__struct_fields__}


def test_a_long_context_decides_for_the_whole_request():
    longer = LongContext(
        above_tokens=200_000,
        input_nanos=10_000_000_000,
        output_nanos=37_500_000_000,
        cache_read_nanos=1,
        cache_write_nanos=1,
    )
    price = Price(**{**_of(PRICE), "long_contexts": (longer,)})
    assert cost_nanos(Usage(input_tokens=200_000), price) == 1_000_000_000
    assert cost_nanos(Usage(input_tokens=200_001), price) == 2_000_010_000
    assert rates_for(Usage(input_tokens=900_000, batch_requests=9), price) is price


def _of(price):
    return {name: getattr(price, name) for name in price.__struct_fields__}


def test_a_tier_at_a_percentage_is_rounded_up_rate_by_rate():
    assert scaled(priced(3), 50).input_nanos == 2
