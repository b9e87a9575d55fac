"""Providers, models, prices, deployments and aliases through the API."""

from datetime import UTC, timedelta

import pytest
from django.utils import timezone

from audit.models import AuditEntry
from routing.models import AliasTarget, ModelAlias
from routing.price_models import ContractStanding, ExchangeRateFeed, Price
from tests import factories
from tests.api import assert_problem, client_with, patch, post, results, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


def test_everything_a_request_needs_is_made_through_the_api():
    client = client_with("routing:read", "routing:write", "credentials:write")

    def made(resource, **body):
        answer = post(client, url(resource), body)
        assert answer.status_code == 201, answer.content
        return answer.json()["id"]

    provider = made("providers", slug="acme", name="Acme", base_url="https://api.acme.example/v1")
    model = made("models", name="acme-1", operations=["chat"])
    made("prices", model=model, provider=provider, input="0.15", output="0.60")
    pool = made("credential-pools", name="acme", provider="acme")
    deployment = made(
        "deployments", name="acme/acme-1", model=model, provider=provider, pool=pool, upstream_model="acme-1"
    )
    made("exchange-rates", currency="EUR", usd_per_unit="1.08")
    alias = made("model-aliases", name="fast", targets=[{"deployment": deployment}])
    assert client.get(url("model-aliases", alias)).json()["targets"] == [
        {"deployment": deployment, "position": 0, "weight": 1}
    ]
    price = client.get(url("prices")).json()["results"][0]
    assert (price["input"], price["cached_input"], price["cache_write"]) == ("0.150000000",) * 3


def test_a_provider_of_any_kind_is_made_and_told_what_it_must_know():
    client = client_with()
    body = {
        "slug": "bedrock",
        "name": "Bedrock",
        "api": "bedrock",
        "base_url": "https://bedrock-runtime.eu-central-1.amazonaws.com",
        "options": {"region": "eu-central-1"},
        "passthrough_hold": "0.25",
    }
    made = post(client, url("providers"), body).json()
    assert (made["options"], made["passthrough_hold"]) == ({"region": "eu-central-1"}, "0.250000000")
    assert set(assert_problem(patch(client, url("providers", made["id"]), {"options": {}}), 400)["errors"]) == {
        "options"
    }
    public = post(client, url("providers"), {"slug": "gemini", "name": "Gemini", "api": "gemini"}).json()
    assert public["base_url"] == "https://generativelanguage.googleapis.com/v1beta"


def test_rates_of_every_meter_are_set_and_those_that_are_not_are_null():
    model, provider = factories.ModelFactory(), factories.ProviderFactory()
    body = {
        "model": str(model.pk),
        "provider": str(provider.pk),
        "input": "1",
        "output": "2",
        "cache_write_1h": "2",
        "input_audio": "40",
        "per_tool_call": "0.01",
        "per_unit": "0.04",
        "batch_percent": 50,
    }
    price = post(client_with(), url("prices"), body).json()
    assert (price["cache_write_1h"], price["input_audio"], price["input_image"]) == (
        "2.000000000",
        "40.000000000",
        None,
    )
    assert (price["per_tool_call"], price["per_unit"], price["batch_percent"]) == ("0.010000000", "0.040000000", 50)


def test_a_model_does_what_it_is_said_to_do():
    operations = ["images", "speech", "transcription", "rerank", "realtime", "batch", "moderations", "completions"]
    answer = post(client_with(), url("models"), {"name": "all", "operations": operations})
    assert answer.json()["operations"] == operations


def test_an_alias_is_lenient_where_that_is_said():
    alias = factories.ModelAliasFactory()
    assert patch(client_with(), url("model-aliases", alias.pk), {"is_lenient": True}).json()["is_lenient"] is True


def test_targets_are_set_as_a_whole_and_left_alone_when_not_named():
    alias = factories.ModelAliasFactory()
    kept, dropped = (factories.AliasTargetFactory(alias=alias) for _ in range(2))
    added = factories.DeploymentFactory()
    client = client_with()
    patch(client, url("model-aliases", alias.pk), {"description": "for all"})
    assert alias.targets.count() == 2
    targets = [{"deployment": str(kept.deployment.pk), "weight": 9}, {"deployment": str(added.pk), "position": 1}]
    answer = patch(client, url("model-aliases", alias.pk), {"targets": targets, "reason": "cheaper"})
    assert [(row["deployment"], row["weight"]) for row in answer.json()["targets"]] == [
        (str(kept.deployment.pk), 9),
        (str(added.pk), 1),
    ]
    assert not AliasTarget.objects.filter(pk=dropped.pk).exists()
    assert set(AuditEntry.objects.filter(reason="cheaper").values_list("action", flat=True)) == {
        "create",
        "change",
        "delete",
    }


def test_an_alias_with_one_deployment_twice_is_not_made_at_all():
    deployment = str(factories.DeploymentFactory().pk)
    body = {"name": "twice", "targets": [{"deployment": deployment}, {"deployment": deployment}]}
    assert_problem(post(client_with(), url("model-aliases"), body), 400)
    assert not ModelAlias.objects.exists() and not AuditEntry.objects.exists()


def test_a_price_is_not_edited_or_removed():
    price = factories.PriceFactory()
    for answer in (
        patch(client_with(), url("prices", price.pk), {"input": "0"}),
        client_with().delete(url("prices", price.pk)),
    ):
        assert_problem(answer, 405)
    assert Price.objects.exists()


@pytest.mark.parametrize("amount", ["-1", "NaN", "1e400", "0.0000000001", 10**12])
def test_a_price_that_is_none_is_refused(amount):
    model, provider = factories.ModelFactory(), factories.ProviderFactory()
    body = {"model": str(model.pk), "provider": str(provider.pk), "input": amount, "output": "1"}
    assert set(assert_problem(post(client_with(), url("prices"), body), 400)["errors"]) == {"input"}


@pytest.mark.parametrize("base_url", ["http://api.example.com", "https://127.0.0.1/v1", "https://u:p@example.com/v1"])
def test_an_address_where_nothing_may_be_sent_is_refused(base_url):
    body = {"slug": "x", "name": "X", "base_url": base_url}
    answer = post(client_with(), url("providers"), body)
    assert set(assert_problem(answer, 400)["errors"]) == {"base_url"}
    assert base_url not in answer.json()["detail"]


@pytest.mark.parametrize("timeout", [0, -1, 10**400, 1e308])
def test_patience_has_bounds(timeout):
    provider = factories.ProviderFactory()
    assert_problem(patch(client_with(), url("providers", provider.pk), {"idle_timeout_s": timeout}), 400)


def test_deployments_are_found_by_model_and_provider():
    deployment = factories.DeploymentFactory()
    factories.DeploymentFactory(is_active=False)
    client = client_with("routing:read")
    for filters in ({"model": deployment.model.pk}, {"provider": deployment.provider.pk}, {"is_active": "true"}):
        assert [row["id"] for row in results(client.get(url("deployments"), filters))] == [str(deployment.pk)]


def test_a_feed_is_fetched_when_somebody_asks():
    later = timezone.now() + timedelta(days=1)
    feed = factories.ExchangeRateFeedFactory(due_at=later)
    answer = post(client_with(), url("exchange-rate-feeds", feed.pk, "fetch"), {"reason": "a new provider"})
    assert answer.status_code == 202 and answer.json()["id"] == str(feed.pk)
    feed.refresh_from_db()
    assert feed.due_at <= timezone.now() and AuditEntry.objects.get(action="fetch").reason == "a new provider"
    ExchangeRateFeed.objects.update(due_at=later, is_active=False)
    assert_problem(post(client_with(), url("exchange-rate-feeds", feed.pk, "fetch")), 400)
    assert patch(client_with(), url("exchange-rate-feeds", feed.pk), {"is_active": True}).status_code == 200
    feed.refresh_from_db()
    assert feed.due_at <= timezone.now()


def test_a_commitment_tells_what_every_team_has_spent_and_so_only_to_who_sees_them():
    contract = factories.ContractFactory(commitment_usd=1_000)
    month = timezone.now().astimezone(UTC).date().replace(day=1)
    ContractStanding.objects.create(contract=contract, month=month, spent_usd=123)
    answer = client_with().get(url("contracts", contract.pk, "commitment")).json()
    assert (answer["amount_usd"], answer["spent_usd"]) == ("1000.00", "123.000000000")
    assert answer.keys() == {"starts_at", "ends_at", "amount_usd", "spent_usd", "expected_usd", "shortfall_usd"}
    of_a_team = client_with("routing:read", team=factories.TeamFactory())
    assert_problem(of_a_team.get(url("contracts", contract.pk, "commitment")), 403, "all teams")
    free = factories.ContractFactory()
    assert_problem(client_with().get(url("contracts", free.pk, "commitment")), 404, "nothing")
