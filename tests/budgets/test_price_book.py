import datetime
from decimal import Decimal

import pytest
from django.utils import timezone

from audit.actors import Actor
from audit.records import LIST_TERMS, PriceTerms, Usage, UsageEvent
from budgets import price_book
from budgets.ledger import event_of
from budgets.ledger_models import UsageDay
from budgets.price_book import Book, compiled, recomputed_nanos
from budgets.pricing import ceiling, cost_nanos, currency_cost_nanos, hold_nanos
from routing import services
from routing.price_models import Contract
from tests import factories

pytestmark = pytest.mark.django_db

ACTOR = Actor.system("test")
MILLION = Usage(input_tokens=1_000_000)


@pytest.fixture
def deployment():
    return factories.DeploymentFactory()


def priced(at, input="2", *, days=1, **fields):
    """A price in force since so many days."""
    return services.set_price(
        at.model,
        at.provider,
        actor=ACTOR,
        input=Decimal(input),
        output=Decimal(8),
        effective_from=timezone.now() - datetime.timedelta(days=days),
        **fields,
    )


def in_force(deployment):
    deployment.refresh_from_db()
    return Book(timezone.now()).price(deployment)


def test_a_price_of_the_deployment_comes_before_that_of_the_model(deployment):
    priced(deployment, "2")
    own = priced(deployment, "3", days=5, deployment=deployment)
    elsewhere = factories.DeploymentFactory(model=deployment.model, provider=deployment.provider)
    assert in_force(deployment).price_id == str(own.pk)
    assert in_force(elsewhere).input_nanos == 2_000_000_000


def test_of_two_prices_from_the_same_moment_the_later_entered_is_in_force(deployment):
    at = timezone.now() - datetime.timedelta(hours=1)
    for amount in ("20", "2"):
        services.set_price(
            deployment.model,
            deployment.provider,
            actor=ACTOR,
            input=Decimal(amount),
            output=Decimal(1),
            effective_from=at,
        )
    assert in_force(deployment).input_nanos == 2_000_000_000


def test_a_region_costs_more_on_everything_but_tools(deployment):
    priced(deployment, per_request=Decimal("0.01"), per_tool_call=Decimal("0.01"), per_unit=Decimal("0.02"))
    deployment.uplift_percent = Decimal(10)
    deployment.save()
    price = in_force(deployment)
    assert (price.input_nanos, price.output_nanos) == (2_200_000_000, 8_800_000_000)
    assert (price.request_nanos, price.unit_nanos, price.tool_call_nanos) == (11_000_000, 22_000_000, 10_000_000)
    assert price.terms.uplift_basis_points == 1_000


def test_a_geography_costs_more_tokens_and_only_where_it_was_asked_for(deployment):
    priced(deployment, geo_percent=110, per_search=Decimal("0.01"))
    price = in_force(deployment)
    usage = Usage(input_tokens=1_000_000, tool_calls=1, searches=1, inference_geo="us")
    assert cost_nanos(usage, price) == 2_200_000_000 + 10_000_000
    assert cost_nanos(MILLION, price) == 2_000_000_000
    bound = ceiling(price, 1_000_000, may_be_in_geo=True)
    assert hold_nanos(bound, 1_000_000, 0, tool_calls_max=1) == 2_200_000_000 + 10_000_000


def test_a_percentage_of_a_tier_holds_for_long_contexts_too(deployment):
    tiers = [
        services.Tier(above_input_tokens=200_000, rates={"input": Decimal(4), "output": Decimal(12)}),
        services.Tier("flex", percent=50),
        services.Tier("priority", rates={"input": Decimal(5)}),
    ]
    priced(deployment, tiers=tiers)
    price = in_force(deployment)
    long = Usage(input_tokens=200_001)
    assert cost_nanos(Usage(input_tokens=200_000), price) == 400_000_000
    assert cost_nanos(long, price) == 800_004_000
    assert cost_nanos(Usage(input_tokens=200_001, service_tier="flex"), price) == 400_002_000
    assert cost_nanos(Usage(input_tokens=200_001, service_tier="priority"), price) == 1_000_005_000
    assert cost_nanos(Usage(input_tokens=200_001, service_tier="unheard-of"), price) == 800_004_000


def test_money_of_another_currency_is_reckoned_in_it_and_told_in_usd(deployment):
    deployment.provider.currency = "EUR"
    deployment.provider.save()
    priced(deployment)
    assert in_force(deployment) is None
    services.set_exchange_rate("EUR", Decimal("1.1"), actor=ACTOR)
    price = in_force(deployment)
    assert currency_cost_nanos(MILLION, price) == 2_000_000_000
    assert cost_nanos(MILLION, price) == hold_nanos(price, 1_000_000, 0) == 2_200_000_000


def test_a_deployment_without_a_price_holds_what_an_administrator_has_set(deployment):
    assert in_force(deployment) is None
    deployment.unpriced_hold = Decimal("0.05")
    deployment.save()
    price = in_force(deployment)
    assert cost_nanos(MILLION, price) == hold_nanos(price, 10**6, 10**6) == 50_000_000


# Contracts


def used(deployment, usd, tokens=0, requests=0, *, day=None):
    UsageDay.objects.create(
        **{
            name: factories.UsageRecordFactory.build().attempt_id
            for name in ("team_id", "project_id", "virtual_key_id")
        },
        day=day or timezone.now().astimezone(datetime.UTC).date(),
        alias="a",
        model=deployment.model.name,
        provider=deployment.provider.slug,
        cost_usd=Decimal(usd),
        input_tokens=tokens,
        requests=requests,
    )


def contract(deployment, **fields):
    return services.add_contract(
        deployment.provider,
        "framework",
        actor=ACTOR,
        effective_from=timezone.now() - datetime.timedelta(days=100),
        **fields,
    )


def test_a_discount_is_in_the_rates(deployment):
    priced(deployment)
    contract(deployment, discount_percent=Decimal("12.5"))
    price = in_force(deployment)
    assert price.input_nanos == 1_750_000_000 and price.ceiling is None
    assert price.terms.discount_basis_points == 1_250


def test_a_discount_by_volume_begins_when_the_month_has_come_so_far(deployment):
    priced(deployment)
    contract(deployment, discounts={Decimal(100): Decimal(10), Decimal(1_000): Decimal(20)})
    used(deployment, "99")
    price_book.follow_contracts(timezone.now(), actor=ACTOR)
    assert in_force(deployment).input_nanos == 2_000_000_000
    used(deployment, "1")
    assert len(price_book.follow_contracts(timezone.now(), actor=ACTOR)) == 1
    assert price_book.follow_contracts(timezone.now(), actor=ACTOR) == []
    price = in_force(deployment)
    assert price.input_nanos == 1_800_000_000
    assert hold_nanos(ceiling(price, 1_000_000), 1_000_000, 0) == 2_000_000_000


def test_a_free_quota_costs_nothing_until_it_is_used_up_and_is_held_all_the_same(deployment):
    priced(deployment, per_tool_call=Decimal("0.01"))
    contract(deployment, free_tokens=1_000)
    used(deployment, "0", tokens=999)
    price_book.follow_contracts(timezone.now(), actor=ACTOR)
    price = in_force(deployment)
    assert cost_nanos(Usage(input_tokens=500, tool_calls=1), price) == 10_000_000
    assert hold_nanos(ceiling(price, 1_000_000), 1_000_000, 0) == 2_000_000_000
    used(deployment, "0", tokens=1)
    price_book.follow_contracts(timezone.now(), actor=ACTOR)
    assert cost_nanos(MILLION, in_force(deployment)) == 2_000_000_000


def test_the_contract_of_a_model_comes_before_that_of_all_and_ends(deployment):
    priced(deployment)
    contract(deployment, discount_percent=Decimal(10))
    own = contract(deployment, discount_percent=Decimal(50), model=deployment.model)
    assert in_force(deployment).terms.contract_id == str(own.pk)
    Contract.objects.filter(pk=own.pk).update(effective_until=timezone.now())
    assert in_force(deployment).input_nanos == 1_800_000_000


MID_MONTH = datetime.datetime(2026, 11, 16, tzinfo=datetime.UTC)


def committed(deployment, **fields):
    return services.add_contract(
        deployment.provider,
        "framework",
        actor=ACTOR,
        **{"effective_from": MID_MONTH - datetime.timedelta(days=100), "commitment_usd": Decimal(1_000), **fields},
    )


def test_a_commitment_is_followed_from_the_roll_ups_of_its_month(deployment):
    row = committed(deployment)
    used(deployment, "800", day=MID_MONTH.date().replace(month=10))
    used(deployment, "100", day=MID_MONTH.date().replace(day=2))
    price_book.follow_contracts(MID_MONTH, actor=ACTOR)
    used(deployment, "200", day=MID_MONTH.date().replace(day=3))
    assert price_book.follow_contracts(MID_MONTH, actor=ACTOR) == []
    commitment = row.commitment(MID_MONTH)
    assert (commitment.spent_usd, commitment.expected_usd, commitment.shortfall_usd) == (300, 600, 400)
    assert (commitment.starts_at.day, commitment.ends_at.isoformat()) == (1, "2026-12-01T00:00:00+00:00")
    assert row.commitment(MID_MONTH.replace(month=12)).spent_usd == 0


def test_a_contract_that_is_superseded_or_over_commits_to_nothing(deployment):
    old = committed(deployment)
    new = committed(deployment, effective_from=MID_MONTH - datetime.timedelta(days=5))
    of_model = committed(deployment, model=deployment.model, effective_until=MID_MONTH)
    assert old.commitment(MID_MONTH) is None and of_model.commitment(MID_MONTH) is None
    assert new.commitment(MID_MONTH).starts_at == new.effective_from
    assert of_model.commitment(MID_MONTH - datetime.timedelta(days=1)).ends_at == MID_MONTH
    assert committed(deployment, commitment_usd=None).commitment(MID_MONTH) is None


# A record alone says what it cost


@pytest.mark.parametrize("operation", ["chat", "batch"])
@pytest.mark.parametrize(
    "terms",
    [
        LIST_TERMS,
        PriceTerms(uplift_basis_points=1_000, discount_basis_points=333),
        PriceTerms(currency="EUR", usd_per_unit_nanos=1_083_333_333, discount_basis_points=2_500),
        PriceTerms(has_free_tokens=True, contract_id="c"),
    ],
)
@pytest.mark.parametrize("service_tier", ["", "priority"])
def test_a_record_reckoned_again_from_its_row_costs_what_it_did(operation, terms, service_tier):
    """From the columns as PostgreSQL keeps them."""
    price = factories.PriceFactory(
        input=Decimal("1.234567"), output=Decimal("7.7"), reasoning=Decimal("9.1"), per_request=Decimal("0.000001"),
        per_search=Decimal("0.01"), geo_percent=110, batch_percent=47,
    )  # fmt: skip
    price.tiers.create(service_tier="priority", percent=213)
    price.tiers.create(above_input_tokens=500, input=Decimal("2.5"), output=Decimal(11))
    usage = Usage(
        input_tokens=1_037,
        cache_read_input_tokens=300,
        cache_write_input_tokens=111,
        output_tokens=777,
        reasoning_tokens=55,
        tool_calls=3,
        searches=2,
        batch_requests=2 if operation == "batch" else 0,
        service_tier=service_tier,
        inference_geo="us",
    )
    whole = compiled(price, terms)
    reckoned = price_book.batch_price(whole) if operation == "batch" else whole
    cost = cost_nanos(usage, reckoned)
    record = factories.UsageRecordFactory(
        price_id=price.pk,
        operation=operation,
        usage_source="provider",
        cost_usd=price_book.usd(cost),
        terms={name: getattr(terms, name) for name in terms.__struct_fields__},
        **{name: getattr(usage, name) for name in usage.__struct_fields__},
    )
    record.refresh_from_db()
    event: UsageEvent = event_of(record)
    assert cost > 0
    assert recomputed_nanos(event, price) == event.cost_nanos == cost
