"""Providers, prices, deployments, aliases: what is refused, and what a new row supersedes."""

from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, ProgrammingError

from audit import services as audit
from audit.models import AuditEntry
from routing import services
from routing.models import AliasTarget, Model, Provider
from routing.price_models import Price
from routing.services import Target
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db


def test_a_provider_on_plain_http_is_refused():
    with pytest.raises(ValidationError, match="https"):
        services.create_provider("x", "X", "http://api.example.com", actor=ACTOR)
    services.create_provider("x", "X", "http://127.0.0.1:9/v1", actor=ACTOR, may_be_private=True)
    assert Provider.objects.get().slug == "x"


def test_what_the_ledger_names_keeps_its_name():
    with pytest.raises(ValidationError, match="keeps its slug"):
        audit.change(factories.ProviderFactory(), actor=ACTOR, values={"slug": "other"})
    with pytest.raises(ValidationError, match="keeps its name"):
        audit.change(factories.ModelFactory(), actor=ACTOR, values={"name": "other"})


def test_a_price_is_superseded_never_edited():
    model, provider = factories.ModelFactory(), factories.ProviderFactory()
    first = services.set_price(model, provider, actor=ACTOR, input=Decimal("1.25"), output=Decimal(10))
    assert (first.cached_input, first.cache_write) == (Decimal("1.25"), Decimal("1.25"))
    services.set_price(model, provider, actor=ACTOR, input=Decimal(1), output=Decimal(8), cached_input=Decimal("0.1"))
    assert Price.objects.count() == 2
    with pytest.raises(ValidationError, match="never edited"):
        audit.change(first, actor=ACTOR, values={"input": Decimal(0)})


@pytest.mark.parametrize(
    "rates",
    [
        {"input_audio": Decimal(-1)},
        {"output_image": Decimal("NaN")},
        {"per_unit": Decimal("-0.1")},
        {"batch_percent": 0},
        {"batch_percent": 101},
    ],
)
def test_a_rate_apart_that_is_none_is_refused(rates):
    with pytest.raises(ValidationError):
        services.set_price(
            factories.ModelFactory(),
            factories.ProviderFactory(),
            actor=ACTOR,
            input=Decimal(1),
            output=Decimal(1),
            **rates,
        )


@pytest.mark.parametrize("column", ["input_audio", "per_tool_call", "batch_percent"])
def test_the_database_itself_refuses_a_rate_below_nothing(column):
    price = factories.PriceFactory.build(
        model=factories.ModelFactory(), provider=factories.ProviderFactory(), **{column: -1}
    )
    with pytest.raises(IntegrityError):
        Price.objects.bulk_create([price])


def test_the_database_itself_refuses_to_edit_a_price():
    price = factories.PriceFactory()
    with pytest.raises(ProgrammingError, match="never edited"):
        Price.objects.filter(pk=price.pk).update(input=2)


@pytest.mark.parametrize("amount", ["-0.000000001", "1234567890", "0.0000000001", "NaN"])
def test_a_price_that_is_none_is_refused(amount):
    with pytest.raises(ValidationError):
        services.set_price(
            factories.ModelFactory(), factories.ProviderFactory(), actor=ACTOR, input=Decimal(amount), output=Decimal(1)
        )


@pytest.mark.parametrize(("currency", "rate"), [("eur", "1.1"), ("USD", "1"), ("EUR", "0"), ("EURO", "1")])
def test_a_rate_that_is_none_is_refused(currency, rate):
    with pytest.raises(ValidationError):
        services.set_exchange_rate(currency, Decimal(rate), actor=ACTOR)


def test_a_deployment_sends_no_secret_to_another_provider():
    provider, pool = factories.ProviderFactory(slug="openai"), factories.CredentialPoolFactory(provider="mistral")
    with pytest.raises(ValidationError, match="belong to mistral"):
        services.create_deployment("d", factories.ModelFactory(), provider, "gpt", actor=ACTOR, pool=pool)
    pool = factories.CredentialPoolFactory(provider="openai")
    services.create_deployment("d", factories.ModelFactory(), provider, "gpt", actor=ACTOR, pool=pool)


@pytest.mark.parametrize("name", ["", " gpt", "gpt 4", "gpt\n", "-gpt", "gpt?x=1", "gpt\x00"])
def test_a_model_name_is_plain(name):
    with pytest.raises(ValidationError):
        services.create_model(name, actor=ACTOR)
    assert not Model.objects.exists()


def test_an_operation_there_is_not_is_refused():
    with pytest.raises(ValidationError):
        services.create_model("gpt", actor=ACTOR, operations=["telepathy"])


def test_an_aliass_targets_are_made_so_and_no_other():
    one, two, three = factories.DeploymentFactory.create_batch(3)
    alias = services.create_alias("fast", [Target(one), Target(two, 1)], actor=ACTOR)
    services.set_targets(alias, [Target(two, 0, 5), Target(three, 1)], actor=ACTOR, reason="faster")
    targets = AliasTarget.objects.order_by("position").values_list("deployment", "position", "weight")
    assert list(targets) == [(two.pk, 0, 5), (three.pk, 1, 1)]
    actions = AuditEntry.objects.filter(reason="faster").order_by("id").values_list("action", flat=True)
    assert list(actions) == ["change", "create", "delete"]


def test_a_deployment_is_in_an_alias_once():
    target = factories.AliasTargetFactory()
    with pytest.raises(ValidationError):
        audit.create(AliasTarget(alias=target.alias, deployment=target.deployment), actor=ACTOR)
