"""Pages of models and prices: prices are added only, and the parts of an alias are recorded one by one."""

from datetime import UTC, timedelta
from decimal import Decimal

import pytest
from django.contrib.auth.models import Permission
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse
from django.utils import timezone

from audit.models import AuditEntry
from routing.models import Model, ModelAlias, Provider
from routing.price_models import Contract, ContractStanding, ExchangeRate, ExchangeRateFeed, Price
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


def url(name, *args):
    return reverse(f"admin:routing_{name}", args=args)


def test_a_price_is_added_and_then_only_shown(client):
    model, provider = factories.ModelFactory(), factories.ProviderFactory(currency="EUR")
    form = {
        "model": str(model.pk),
        "provider": str(provider.pk),
        "effective_from_0": "2026-11-01",
        "effective_from_1": "00:00:00",
        "input": "1.25",
        "cached_input": "0.125",
        "cache_write": "1.25",
        "output": "10",
        "per_request": "0",
        "output_audio": "20",
        "per_tool_call": "",
        "batch_percent": "50",
        "geo_percent": "110",
        "tiers-TOTAL_FORMS": "1",
        "tiers-INITIAL_FORMS": "0",
        "tiers-0-service_tier": "priority",
        "tiers-0-above_input_tokens": "0",
        "tiers-0-percent": "200",
        "tiers-0-output": "25",
    }
    page = client.post(url("price_add"), form | {"reason": "new contract"})
    assert page.status_code == 302, page.context["adminform"].form.errors
    price = Price.objects.get()
    assert AuditEntry.objects.get(object_id=price.pk).after["input"] == "1.25"
    tier = price.tiers.get()
    assert (tier.service_tier, tier.percent, tier.output, tier.input) == ("priority", 200, 25, None)
    assert (price.output_audio, price.output_image, price.batch_percent) == (20, None, 50)
    assert (price.per_tool_call, price.per_unit) == (0, 0)
    assert client.post(url("price_change", price.pk), form | {"input": "0"}).status_code == 403
    assert client.get(url("price_delete", price.pk)).status_code == 403
    assert "EUR" in client.get(url("price_changelist")).content.decode()


def test_a_model_is_edited_without_its_name(client):
    model = factories.ModelFactory(name="gpt")
    form = {"operations": ["chat", "embeddings"], "context_window": "1000", "max_output_tokens": "10", "name": "other"}
    page = client.post(url("model_change", model.pk), form)
    assert page.status_code == 302, page.context["adminform"].form.errors
    stored = Model.objects.get()
    assert (stored.name, stored.operations, stored.is_active) == ("gpt", ["chat", "embeddings"], False)


def test_an_alias_is_made_with_its_targets(client):
    deployment = factories.DeploymentFactory()
    form = {
        "name": "fast",
        "description": "",
        "is_active": "on",
        "targets-TOTAL_FORMS": 1,
        "targets-INITIAL_FORMS": 0,
        "targets-0-deployment": str(deployment.pk),
        "targets-0-position": "0",
        "targets-0-weight": "3",
        "reason": "for everybody",
    }
    page = client.post(url("modelalias_add"), form)
    assert page.status_code == 302, page.context["adminform"].form.errors
    assert ModelAlias.objects.get().targets.get().weight == 3
    assert set(AuditEntry.objects.values_list("object_type", "reason")) == {
        ("routing.modelalias", "for everybody"),
        ("routing.aliastarget", "for everybody"),
    }


def test_a_pool_of_another_provider_is_refused_in_the_form(client):
    pool = factories.CredentialPoolFactory(provider="mistral")
    model, provider = factories.ModelFactory(), factories.ProviderFactory(slug="openai")
    form = {"name": "d", "model": str(model.pk), "provider": str(provider.pk), "upstream_model": "x"}
    page = client.post(url("deployment_add"), form | {"pool": str(pool.pk), "is_active": "on"})
    assert page.status_code == 200 and "belong to mistral" in page.content.decode()


def provider_form(**fields):
    return {
        "name": "X",
        "slug": "x",
        "api": "openai",
        "base_url": "",
        "options": "{}",
        "currency": "USD",
        "output_cap_field": "",
        "passthrough_hold": "",
        "connect_timeout_s": "5",
        "first_byte_timeout_s": "120",
        "idle_timeout_s": "60",
        "is_active": "on",
        **fields,
    }


def test_a_provider_that_everybody_knows_is_made_without_an_address(client):
    assert client.post(url("provider_add"), provider_form(api="anthropic", options="")).status_code == 302
    provider = Provider.objects.get()
    assert (provider.base_url, provider.options) == ("https://api.anthropic.com/v1", {})
    assert provider.passthrough_hold is None
    page = client.post(url("provider_change", provider.pk), provider_form(api="anthropic", passthrough_hold="0.5"))
    assert page.status_code == 302 and Provider.objects.get().passthrough_hold == Decimal("0.5")


@pytest.mark.parametrize(
    ("fields", "wrong", "words"),
    [
        ({"api": "azure"}, "base_url", "such as https://RESOURCE.openai.azure.com"),
        ({"api": "bedrock", "base_url": "https://bedrock-runtime.eu.example.com"}, "options", "needs region"),
        ({"options": '{"region": "eu"}'}, "options", "has no option"),
        ({"options": "region=eu"}, "options", "valid JSON"),
        ({"api": "telepathy"}, "api", "valid choice"),
    ],
)
def test_what_is_wrong_with_a_provider_is_said_at_its_field(client, fields, wrong, words):
    page = client.post(url("provider_add"), provider_form(**fields))
    assert page.status_code == 200 and words in str(page.context["adminform"].form.errors[wrong])


def test_an_alias_says_that_it_is_lenient(client):
    alias = factories.ModelAliasFactory()
    form = {"name": alias.name, "is_lenient": "on", "targets-TOTAL_FORMS": 0, "targets-INITIAL_FORMS": 0}
    assert client.post(url("modelalias_change", alias.pk), form).status_code == 302
    assert ModelAlias.objects.get().is_lenient
    assert "x-tollgate-dropped" in client.get(url("modelalias_change", alias.pk)).content.decode()


def test_a_url_with_a_password_is_refused_and_not_logged(client, caplog):
    page = client.post(url("provider_add"), provider_form(base_url="https://user:canary@api.example.com"))
    assert page.status_code == 200 and page.context["adminform"].form.errors["base_url"]
    assert "canary" not in caplog.text


def test_a_contract_is_added_with_its_discounts_and_then_only_shown(client):
    provider = factories.ProviderFactory()
    form = {
        "name": "Framework 2026",
        "provider": str(provider.pk),
        "effective_from_0": "2026-11-01",
        "effective_from_1": "00:00:00",
        "discount_percent": "5",
        "commitment_usd": "10000",
        "tiers-TOTAL_FORMS": "1",
        "tiers-INITIAL_FORMS": "0",
        "tiers-0-from_usd": "50000",
        "tiers-0-discount_percent": "12.5",
    }
    page = client.post(url("contract_add"), form)
    assert page.status_code == 302, page.context["adminform"].form.errors
    contract = Contract.objects.get()
    assert [(tier.from_usd, tier.discount_percent) for tier in contract.tiers.all()] == [(50_000, Decimal("12.5"))]
    assert client.post(url("contract_change", contract.pk), form | {"name": "Other"}).status_code == 403
    assert "Framework 2026" in client.get(url("contract_changelist")).content.decode()


def test_exchange_rates_are_imported_from_a_file_once(client):
    def send(text):
        file = SimpleUploadedFile("rates.csv", text.encode())
        return client.post(url("exchangerate_import_csv"), {"file": file, "reason": "month end"})

    text = "currency,usd_per_unit,effective_from\nEUR,1.0812,2026-11-01\nGBP,1.27,2026-11-01\n"
    assert send(text).status_code == send(text).status_code == 302
    assert sorted(ExchangeRate.objects.values_list("currency", "usd_per_unit", "source")) == [
        ("EUR", Decimal("1.0812"), "rates.csv"),
        ("GBP", Decimal("1.27"), "rates.csv"),
    ]
    page = send("currency,usd_per_unit\nEUR,much\n")
    assert page.status_code == 200 and "line 2" in page.content.decode()


def test_an_exchange_rate_feed_must_be_on_the_internet_unless_it_is_said(client):
    form = {"name": "ECB", "url": "https://10.0.0.1/rates.csv", "is_active": "on"}
    assert client.post(url("exchangeratefeed_add"), form).status_code == 200
    assert client.post(url("exchangeratefeed_add"), form | {"may_be_private": "on"}).status_code == 302


def test_a_feed_is_fetched_anew_when_it_is_changed_and_by_its_button(client):
    later = timezone.now() + timedelta(days=1)
    feed = factories.ExchangeRateFeedFactory(due_at=later)
    page = url("exchangeratefeed_change", feed.pk)
    assert "Fetch now" in client.get(page).content.decode()

    def is_due():
        feed.refresh_from_db()
        return feed.due_at <= timezone.now()

    assert client.post(url("exchangeratefeed_fetch", feed.pk), {"confirmed": "yes", "reason": "x"}).status_code == 302
    assert is_due()
    ExchangeRateFeed.objects.update(due_at=later)
    form = {"name": feed.name, "url": "https://rates.example/other.csv", "is_active": "on"}
    assert client.post(page, form).status_code == 302 and is_due()
    ExchangeRateFeed.objects.update(is_active=False)
    assert "Fetch now" not in client.get(page).content.decode()


def test_a_commitment_is_shown_to_who_sees_every_team(client):
    contract = factories.ContractFactory(commitment_usd=1_000)
    month = timezone.now().astimezone(UTC).date().replace(day=1)
    ContractStanding.objects.create(contract=contract, month=month, spent_usd=Decimal(123))
    pages = [url("contract_changelist"), url("contract_change", contract.pk)]
    assert all("123.00 of 1,000.00 USD (12 %)" in client.get(page).content.decode() for page in pages)
    clerk = factories.UserFactory()
    clerk.user_permissions.set(Permission.objects.filter(codename="view_contract"))
    client.force_login(clerk)
    for page in pages:
        shown = client.get(page)
        assert shown.status_code == 200 and "123.00" not in shown.content.decode()
