import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.records import Usage
from budgets.pricing import Price, cost_nanos, hold_nanos

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
