"""The worked examples of the FOCUS specification that are about the price of tokens, a discount, a commitment or another currency, as
our prices reckon them.

Source: FOCUS_Spec, specification/appendix, working draft after version 1.4: `ai_model_billing_examples` (commit cf8259a, a5694a5,
9f66908), `ai_prompt_caching_examples` (commit 18e5b61), `saas_examples/spend_agreements` (table of scenario A2: commit 02645d2) and
`saas_examples/virtual_currency_pricing_model`, "Consumption Currency Pricing Model" (commit 051e4bf; tables: 21b4b33, 4a76f48). What
a cache costs for being kept (its scenario B, USD 6.00) is no part of any request, and so of no record; neither is a purchase, nor the
fee for what was not used of a commitment.
"""

from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from audit.actors import Actor
from audit.records import Usage
from budgets.price_book import Book
from budgets.pricing import Price, cost_nanos, currency_cost_nanos
from routing import services
from tests import factories

ACTOR = Actor.system("test")
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


# With a contract. A unit is a server hour, an execution or an operation.


def in_force(
    currency: str = "USD", usd_per_unit: str = "1", contract: dict[str, Any] | None = None, **rates: str
) -> Price:
    """`rates` are list prices in the currency."""
    deployment = factories.DeploymentFactory(provider__currency=currency)
    amounts = {name: Decimal(amount) for name, amount in {"input": "0", "output": "0", **rates}.items()}
    services.set_price(deployment.model, deployment.provider, actor=ACTOR, **amounts)
    if currency != "USD":
        services.set_exchange_rate(currency, Decimal(usd_per_unit), actor=ACTOR)
    if contract is not None:
        services.add_contract(deployment.provider, "agreement", actor=ACTOR, **contract)
    found = Book(timezone.now()).price(deployment)
    assert found is not None
    return found


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("usage", "list_cost_usd", "effective_cost_usd"),
    [
        (Usage(input_tokens=5_000_000), 25.0, 20.0),
        (Usage(output_tokens=1_500_000), 37.5, 30.0),
    ],
)
def test_drawdown_via_prepayment_costs_a_fifth_less(usage, list_cost_usd, effective_cost_usd):
    """The commitment of USD 500,000 is bought apart; its benefit of 20 % is in what the usage costs."""
    commitment = {"discount_percent": Decimal(20), "commitment_usd": Decimal(500_000)}
    rates = {"input": "5", "output": "25"}
    assert cost_nanos(usage, in_force(**rates)) == round(list_cost_usd * USD)
    assert cost_nanos(usage, in_force(**rates, contract=commitment)) == round(effective_cost_usd * USD)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("server_hours", "list_cost_usd", "contracted_cost_usd"), [(4, 60, 48), (10, 150, 120), (5, 75, 60)]
)
def test_spend_agreements_scenario_a2_costs_what_was_contracted(server_hours, list_cost_usd, contracted_cost_usd):
    """USD 12 instead of 15, at least USD 60 a month. The first month's fee of 12 for what was not used is on the invoice."""
    agreement = {"discount_percent": Decimal(20), "commitment_usd": Decimal(60)}
    usage = Usage(units=server_hours)
    assert cost_nanos(usage, in_force(per_unit="15")) == list_cost_usd * USD
    assert cost_nanos(usage, in_force(per_unit="15", contract=agreement)) == contracted_cost_usd * USD


# Executions of the Q widget and of the Z widget, operations of Workflow: how many, and how many of the provider's own tokens one is.
CONSUMED = [(245, "1", 245), (5, "2", 10), (120, "3", 360)]


@pytest.mark.django_db
@pytest.mark.parametrize(("quantity", "unit_price", "cost_in_currency"), CONSUMED)
def test_consumption_currency_scenario_a2_is_reckoned_in_the_currency_and_told_in_usd(
    quantity, unit_price, cost_in_currency
):
    """At USD 2 a token: 490, 20 and 720."""
    charged, usage = in_force("TKN", "2", per_unit=unit_price), Usage(units=quantity)
    assert currency_cost_nanos(usage, charged) == cost_in_currency * USD
    assert cost_nanos(usage, charged) == cost_in_currency * 2 * USD


@pytest.mark.django_db
@pytest.mark.parametrize(("quantity", "unit_price", "cost_in_currency"), CONSUMED)
@pytest.mark.parametrize(("usd_per_unit", "discount"), [("1", 0), ("2", 50)])
def test_consumption_currency_scenario_b2_costs_half(quantity, unit_price, cost_in_currency, usd_per_unit, discount):
    """Tokens bought at USD 1 each: 245, 10 and 360. It is the same to say so as the exchange rate, or as a discount on the list price."""
    contract = {"discount_percent": Decimal(discount)}
    charged = in_force("TKN", usd_per_unit, contract, per_unit=unit_price)
    assert cost_nanos(Usage(units=quantity), charged) == cost_in_currency * USD


@pytest.mark.django_db
def test_consumption_currency_scenario_b3_has_a_rate_of_its_own():
    """2 tokens for an operation instead of 3: a price that was agreed upon, of 240 tokens, at USD 1 each."""
    assert cost_nanos(Usage(units=120), in_force("TKN", "1", per_unit="2")) == 240 * USD
