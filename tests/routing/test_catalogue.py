import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.utils import timezone
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

from audit.actors import Actor
from audit.models import AuditEntry
from routing import catalogue, services
from routing.catalogue import Sold, differ, propose, rates_at
from routing.price_models import Price, PriceProposal
from tests import factories

ACTOR = Actor.system("test")
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def listed(prices, variants=None):
    return ModelInfo(id="m", match=None, prices=prices, price_variants=variants)


def d(text):
    return Decimal(text)


def test_a_listed_price_is_told_in_the_fields_of_ours():
    price = ModelPrice(
        input_mtok=TieredPrices(base=d("2"), tiers=[Tier(start=200_000, price=d("4"))]),
        output_mtok=TieredPrices(base=d("12"), tiers=[Tier(start=200_000, price=d("18"))]),
        cache_read_mtok=d("0.2"),
        cache_audio_read_mtok=d("0.3"),
        web_searches_kcount=d("14"),
        cache_storage_mtok_hours=d("1"),
    )
    variants = [
        PriceVariant(when={"processing": "batch"}, prices=ModelPrice(input_mtok=d("1"), output_mtok=d("6"))),
        PriceVariant(when={"service_tier": "default"}, prices=ModelPrice(input_mtok=d("99"))),
        PriceVariant(when={"route": "eu"}, prices=ModelPrice(input_mtok=d("3"))),
    ]
    rates, remarks = rates_at(listed(price, variants), NOW)
    assert (rates["input"], rates["output"], rates["cached_input"], rates["per_search"]) == ("2", "12", "0.2", "0.014")
    assert rates["per_tool_call"] == "0.014"
    assert [(tier["service_tier"], tier["above_input_tokens"]) for tier in rates["tiers"]] == [
        ("", 200_000),
        ("batch", 0),
    ]
    assert rates["tiers"][0]["rates"]["input"] == "4" and rates["tiers"][1]["rates"] == {"input": "1", "output": "6"}
    assert len(remarks) == 3 and "cache_audio_read_mtok" in remarks[0]


def test_a_price_by_the_time_of_day_is_the_standard_one_all_day():
    constraint = TimeOfDateConstraint(
        start_time=datetime(2026, 1, 1, 0).time(), end_time=datetime(2026, 1, 1, 23).time()
    )
    cheap = ConditionalPrice(constraint, prices=ModelPrice(input_mtok=d("1"), output_mtok=d("1")))
    dear = ConditionalPrice(None, prices=ModelPrice(input_mtok=d("2"), output_mtok=d("2")))
    rates, remarks = rates_at(listed([dear, cheap]), NOW)
    assert rates["input"] == "2" and "time of day" in remarks[0]


def sold(current=None, upstream_model="claude-opus-4-6"):
    return Sold(uuid.uuid4(), uuid.uuid4(), upstream_model, "anthropic", "https://api.anthropic.com/v1", current)


def test_what_is_the_same_is_not_proposed():
    (first,) = propose([sold()], NOW)
    assert first.rates["input"] == "5" and first.effective_from == NOW
    assert propose([sold(first.rates)], NOW) == []
    assert propose([sold(upstream_model="nobody-knows-it")], NOW) == []


def test_what_differs_is_named_with_before_and_after():
    (first,) = propose([sold()], NOW)
    mine = first.rates | {"input": "4.5", "geo_percent": 110}
    (one,) = propose([sold(mine)], NOW)
    assert one.differences == [["input", "4.5", "5"]]
    assert one.rates["geo_percent"] == 110


def test_a_change_to_come_is_proposed_for_its_day(monkeypatch):
    later = StartDateConstraint((NOW + timedelta(days=3)).date())
    info = listed(
        [
            ConditionalPrice(None, prices=ModelPrice(input_mtok=d("2"), output_mtok=d("2"))),
            ConditionalPrice(later, prices=ModelPrice(input_mtok=d("1"), output_mtok=d("2"))),
        ]
    )
    monkeypatch.setattr(catalogue, "find", lambda *where: info)
    today, _ = rates_at(info, NOW)
    (one,) = propose([sold(today)], NOW)
    assert one.effective_from == NOW + timedelta(days=3)
    assert ["input", "2", "1"] in one.differences


# Proposals in the book


@pytest.fixture
def deployment():
    provider = factories.ProviderFactory(api="anthropic", base_url="https://api.anthropic.com/v1")
    return factories.DeploymentFactory(provider=provider, upstream_model="claude-opus-4-6")


def proposals():
    proposed = services.compare_with_catalogue(timezone.now())
    return services.propose_prices(proposed, source=catalogue.source(), actor=ACTOR)


@pytest.mark.django_db
def test_a_proposal_is_in_force_only_when_it_is_approved(deployment):
    (proposal,) = proposals()
    assert not Price.objects.exists()
    price = services.approve_proposal(proposal, actor=ACTOR, reason="checked")
    assert (price.input, price.effective_from <= timezone.now()) == (5, True)
    proposal.refresh_from_db()
    assert (proposal.state, proposal.price_id) == ("approved", price.pk)
    assert services.compare_with_catalogue(timezone.now()) == []
    stored = Price.objects.prefetch_related("tiers").get()
    assert differ(catalogue.rates_of(stored), proposal.rates) == []
    with pytest.raises(ValidationError, match="approved already"):
        services.reject_proposal(proposal, actor=ACTOR)


@pytest.mark.django_db
def test_what_was_rejected_is_not_proposed_again_until_it_changes(deployment):
    (proposal,) = proposals()
    assert proposals() == []
    services.reject_proposal(proposal, actor=ACTOR, reason="our contract says otherwise")
    assert proposals() == [] and not Price.objects.exists()
    assert AuditEntry.objects.filter(action="rejected", reason__contains="contract").exists()


@pytest.mark.django_db
def test_a_newer_proposal_takes_the_place_of_the_open_one(deployment):
    proposals()
    services.set_price(deployment.model, deployment.provider, actor=ACTOR, input=d("5"), output=d("20"))
    (old,) = PriceProposal.objects.all()
    newer = services.propose_prices(
        [p._replace(rates=p.rates | {"per_unit": "1"}) for p in services.compare_with_catalogue(timezone.now())],
        source="another",
        actor=ACTOR,
    )
    old.refresh_from_db()
    assert (old.state, len(newer)) == ("outdated", 1)


@pytest.mark.django_db
def test_providers_of_another_currency_and_prices_of_one_deployment_are_left_alone(deployment):
    deployment.provider.currency = "EUR"
    deployment.provider.save()
    assert proposals() == []


@pytest.mark.django_db
def test_the_command_says_what_it_proposes(deployment):
    out = StringIO()
    call_command("propose_prices", stdout=out)
    assert "input: none → 5" in out.getvalue() and PriceProposal.objects.count() == 1
    assert not Price.objects.exists()
