"""The worked examples of the FOCUS specification that are about the price of tokens, as our prices reckon them.

Source: FOCUS_Spec, specification/appendix, working draft after version 1.4: `ai_model_billing_examples` (commit cf8259a, a5694a5)
and `ai_prompt_caching_examples` (commit 18e5b61). What a cache costs for being kept (its scenario B, USD 6.00) is no part of any
request, and so of no record.
"""

import pytest

from audit.records import Usage
from budgets.pricing import Price, cost_nanos

USD = 1_000_000_000


def price(*, input, output, cache_read=None, cache_write=None):
    """List unit prices in USD per "1000000 Tokens", the PricingUnit of the examples."""
    return Price(
        price_id="sku",
        input_nanos=round(input * USD),
        output_nanos=round(output * USD),
        cache_read_nanos=round((input if cache_read is None else cache_read) * USD),
        cache_write_nanos=round((input if cache_write is None else cache_write) * USD),
    )


ATLAS, MINI = price(input=5, output=25), price(input=0.75, output=4.5)
WRITES_APART = price(input=3, output=15, cache_read=0.3, cache_write=3.75)
WRITES_AS_INPUT = price(input=3, output=15, cache_read=0.3)
CACHED = {
    "input_tokens": 10_500_000,
    "cache_write_input_tokens": 2_000_000,
    "cache_read_input_tokens": 8_000_000,
}


@pytest.mark.parametrize(
    ("usage", "charged", "list_cost_usd"),
    [
        # Per-token AI model API: 8.40 at 5.00 and 2.10 at 25.00.
        (Usage(input_tokens=8_400_000), ATLAS, 42.0),
        (Usage(output_tokens=2_100_000), ATLAS, 52.5),
        # Multi-model usage: each model has rates of its own.
        (Usage(input_tokens=10_000_000, output_tokens=2_000_000), ATLAS, 100.0),
        (Usage(input_tokens=3_000_000, output_tokens=500_000), MINI, 4.5),
        # Prompt caching, scenario A: 1.50 + 7.50 + 2.40 of input; B: 7.50 + 2.40.
        (Usage(**CACHED), WRITES_APART, 11.4),
        (Usage(**CACHED), WRITES_AS_INPUT, 9.9),
        (Usage(**CACHED, output_tokens=1_500_000), WRITES_APART, 33.9),
        # The same without a cache.
        (Usage(input_tokens=10_500_000), WRITES_APART, 31.5),
    ],
)
def test_a_worked_example_costs_what_it_says(usage, charged, list_cost_usd):
    assert cost_nanos(usage, charged) == round(list_cost_usd * USD)
