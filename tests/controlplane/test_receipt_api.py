"""Receipts by the API: for accounts and users by their rights, for a virtual key those of its project, and for nobody else."""

import datetime
import time
import uuid
from decimal import Decimal

import pytest
from django.test import Client
from django.urls import reverse

from audit.models import UsageRecord
from audit.records import Usage
from proxy.ids import new_id
from tests import factories
from tests.api import client_with, url

pytestmark = pytest.mark.django_db

SECRET = "tg-a virtual key of the tests"


@pytest.fixture
def key():
    return factories.VirtualKeyFactory(name="web", secret=SECRET)


@pytest.fixture
def request_id(key):
    """Two attempts: one deployment failed, the next answered."""
    price = factories.PriceFactory(input=2, cached_input=Decimal("0.5"), output=8)
    project = key.project
    fields = {
        "request_id": uuid.UUID(new_id()),
        "team_id": project.team_id,
        "project_id": project.pk,
        "virtual_key_id": key.pk,
        "tags": {"feature": "search", "tier": "gold", "team": "x", "customer": "acme"},
        "tag_sources": {"tier": "key", "team": "project", "customer": "body"},
        "route": [
            {"deployment": "first", "reason": "position 0"},
            {"deployment": "second", "reason": "position 1"},
            {"deployment": "third", "reason": "position 2"},
            {"deployment": "resting", "reason": "paused", "is_passed_over": True},
        ],
    }
    factories.UsageRecordFactory(
        **fields,
        deployment="first",
        attempt_number=1,
        status_code=529,
        error_type="529",
        input_tokens=0,
        output_tokens=0,
        cost_usd=0,
        latency_ms=300,
    )
    factories.UsageRecordFactory(
        **fields,
        deployment="second",
        attempt_number=2,
        price_id=price.pk,
        input_tokens=1_000,
        cache_read_input_tokens=400,
        output_tokens=100,
        cost_usd=Decimal("0.0022"),
        held_usd=Decimal("0.01"),
        latency_ms=900,
    )
    return fields["request_id"]


def bearer(secret):
    return Client(headers={"Authorization": f"Bearer {secret}"})


def test_a_receipt_tells_the_whole_story_of_a_request(request_id, key):
    body = bearer(SECRET).get(url("receipts", request_id)).json()
    assert body["cost_usd"] == "0.002200000"
    assert body["cache_saving_usd"] == "0.000600000"  # 400 tokens at $0.5 in place of $2 a million.
    assert body["virtual_key"] == {"id": str(key.pk), "name": "web"}
    assert {tag["key"]: tag["source"] for tag in body["tags"]} == {
        "feature": "header",
        "tier": "key",
        "team": "project",
        "customer": "body",
    }
    assert [(step["deployment"], step["outcome"], step["reason"]) for step in body["route"]] == [
        ("first", "failed", "position 0"),
        ("second", "answered", "position 1"),
        ("third", "not tried", "position 2"),
        ("resting", "passed over", "paused"),
    ]
    failed, answered = body["attempts"]
    assert (failed["status_code"], failed["cost_usd"], failed["lines"]) == (529, "0.000000000", [])
    assert (answered["held_usd"], answered["cost_usd"]) == ("0.010000000", "0.002200000")
    assert [(line["what"], line["number"], line["rate"], line["amount"]) for line in answered["lines"]] == [
        ("Input", 600, "2", "0.0012"),
        ("Input read from the provider's cache", 400, "0.5", "0.0002"),
        ("Output", 100, "8", "0.0008"),
    ]
    meters = {name: answered[name] for name in Usage.__struct_fields__}
    assert {name: value for name, value in meters.items() if value} == {
        "input_tokens": 1_000,
        "cache_read_input_tokens": 400,
        "output_tokens": 100,
    }
    assert (body["alias"], body["downgraded_from"]) == ("alias", "")


def test_a_receipt_says_which_alias_was_asked_for(key):
    record = factories.UsageRecordFactory(project_id=key.project_id, alias="cheap", downgraded_from="dear")
    body = bearer(SECRET).get(url("receipts", record.request_id)).json()
    assert (body["alias"], body["downgraded_from"]) == ("cheap", "dear")


def test_a_later_correction_is_in_the_sum_and_is_no_attempt(request_id):
    attempt = UsageRecord.objects.get(request_id=request_id, attempt_number=2)
    correction = factories.UsageRecordFactory(
        request_id=request_id, project_id=attempt.project_id, adjusts=attempt.pk, cost_usd=Decimal("-0.0002")
    )
    body = bearer(SECRET).get(url("receipts", request_id)).json()
    assert (len(body["attempts"]), body["corrections_usd"], body["cost_usd"]) == (2, "-0.000200000", "0.002000000")
    (told,) = body["corrections"]
    assert (told["adjusts"], told["cost_usd"]) == (str(attempt.pk), "-0.000200000")
    correction.refresh_from_db()
    assert datetime.datetime.fromisoformat(told["ingested_at"]) == correction.ingested_at


def test_a_shadow_call_is_paid_for_and_answers_nobody(request_id):
    answered = UsageRecord.objects.get(request_id=request_id, attempt_number=2)
    factories.UsageRecordFactory(
        request_id=request_id,
        project_id=answered.project_id,
        kind="shadow",
        attempt_number=3,
        deployment="rival",
        alias="rival",
        cost_usd=Decimal("0.001"),
    )
    body = bearer(SECRET).get(url("receipts", request_id)).json()
    assert [attempt["kind"] for attempt in body["attempts"]] == ["attempt", "attempt", "shadow"]
    assert (body["cost_usd"], body["alias"]) == ("0.003200000", "alias")
    assert "rival" not in [step["deployment"] for step in body["route"]]


def test_a_cache_hit_costs_nothing_and_says_what_it_saved(key, client):
    price = factories.PriceFactory(input=2, output=8, per_request=1)
    record = factories.UsageRecordFactory(
        project_id=key.project_id,
        kind="cache_hit",
        price_id=price.pk,
        cost_usd=0,
        saved_usd=Decimal("0.0022"),
        usage_source="none",
        input_tokens=0,
        output_tokens=0,
    )
    body = bearer(SECRET).get(url("receipts", record.request_id)).json()
    assert (body["cost_usd"], body["saved_usd"]) == ("0.000000000", "0.002200000")
    (hit,) = body["attempts"]
    assert (hit["kind"], hit["saved_usd"], hit["lines"]) == ("cache_hit", "0.002200000", [])
    client.force_login(factories.UserFactory(is_superuser=True))
    for page in (
        reverse("receipt", args=[record.request_id]),
        reverse("admin:audit_usagerecord_change", args=[record.pk]),
    ):
        shown = client.get(page).content.decode()
        assert "Answered from the gateway" in shown and "0.0022" in shown


def test_a_receipt_names_the_budgets_that_paid(key, client):
    budget = factories.BudgetFactory(name="Search, this month")
    record = factories.UsageRecordFactory(
        project_id=key.project_id,
        budget_ids=[budget.pk, uuid.UUID(int=9)],
        held_usd=Decimal("0.75"),
        cost_usd=Decimal("0.25"),
    )
    (attempt,) = bearer(SECRET).get(url("receipts", record.request_id)).json()["attempts"]
    paid = {"unit": "usd", "held": "0.750000000", "counted": "0.250000000"}
    assert attempt["budgets"] == [
        {"id": str(budget.pk), "name": "Search, this month"} | paid,
        {"id": str(uuid.UUID(int=9)), "name": ""} | paid,
    ]
    client.force_login(factories.UserFactory(is_superuser=True))
    page = client.get(reverse("receipt", args=[record.request_id])).content.decode()
    assert "Search, this month" in page and "removed since" in page and "0.75" in page


def test_what_is_in_suspense_is_not_settled(key):
    record = factories.UsageRecordFactory(project_id=key.project_id, state="suspense")
    assert bearer(SECRET).get(url("receipts", record.request_id)).json()["is_settled"] is False


def test_a_key_sees_its_own_projects_requests_and_no_others(request_id, key):
    sibling = factories.VirtualKeyFactory(project=key.project, secret="tg-sibling")
    neighbour = factories.ProjectFactory(team=key.project.team)
    factories.VirtualKeyFactory(project=neighbour, secret="tg-neighbour")
    assert bearer("tg-sibling").get(url("receipts", request_id)).status_code == 200
    assert sibling.project_id == key.project_id
    seen = bearer("tg-neighbour").get(url("receipts", request_id))
    unknown = bearer("tg-neighbour").get(url("receipts", new_id()))
    # Whether there is such a request in another project is not to be told from that there is none.
    assert (seen.status_code, unknown.status_code) == (202, 202)
    assert seen.json()["detail"] == unknown.json()["detail"]


def test_a_request_that_may_still_run_is_told_from_one_that_is_long_gone(key):
    young, old = new_id(), f"{int(time.time() - 3600) * 1000:012x}".join(("", new_id().replace("-", "")[12:]))
    answer = bearer(SECRET).get(url("receipts", young))
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")
    assert bearer(SECRET).get(url("receipts", uuid.UUID(old))).status_code == 404
    assert bearer(SECRET).get(url("receipts", uuid.uuid4())).status_code == 404


@pytest.mark.parametrize("change", [{"paused_at": "2026-01-01T00:00Z"}, {"expires_at": "2026-01-01T00:00Z"}])
def test_a_key_that_may_not_call_may_not_ask(request_id, key, change):
    type(key).objects.filter(pk=key.pk).update(**change)
    assert bearer(SECRET).get(url("receipts", request_id)).status_code == 401


@pytest.mark.parametrize("secret", ["tg-unknown", "", "x" * 5_000])
def test_an_unknown_key_is_refused(request_id, secret):
    assert bearer(secret).get(url("receipts", request_id)).status_code == 401


@pytest.mark.parametrize("path", ["usage-records", "teams", "virtual-keys", "usage", "audit-entries"])
def test_a_virtual_key_opens_nothing_else(key, path):
    assert bearer(SECRET).get(url(path)).status_code == 401


def test_accounts_see_the_receipts_of_their_team(request_id, key):
    assert client_with("usage:read").get(url("receipts", request_id)).status_code == 200
    assert client_with("usage:read", team=key.project.team).get(url("receipts", request_id)).status_code == 200
    stranger = client_with("usage:read", team=factories.TeamFactory())
    assert stranger.get(url("receipts", request_id)).status_code == 202
    assert client_with("teams:read").get(url("receipts", request_id)).status_code == 403
