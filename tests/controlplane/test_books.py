"""The pages of the ledger and the control plane's metrics, for who may see all, some, and Charlie, who may see nothing here."""

import datetime
import re
import uuid
from decimal import Decimal

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone

from budgets import ledger
from budgets.ledger_models import Drift, SuspenseResolution, Verification
from keys.redis import redis_client
from tests import factories
from tests.api import client_with

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


@pytest.fixture
def alice(client):
    """Owner of a team, with every permission of these pages."""
    user = factories.UserFactory(username="alice")
    user.user_permissions.set(
        Permission.objects.filter(
            codename__in=(
                "view_usagerecord",
                "view_verification",
                "add_suspenseresolution",
                "change_suspenseresolution",
            )
        )
    )
    client.force_login(user)
    return user


@pytest.fixture
def team(alice):
    return factories.MembershipFactory(user=alice, role="owner").team


def suspended(**fields):
    return factories.UsageRecordFactory(**{"state": "suspense", "cost_usd": Decimal("0.5"), **fields})


# Receipts


def test_the_receipt_of_a_request_shows_its_attempts_and_where_its_tags_came_from(client, boss):
    price = factories.PriceFactory(input=2, output=8)
    request_id = uuid.uuid4()
    fields = {"request_id": request_id, "tags": {"feature": "<search>"}, "tag_sources": {"feature": "key"}}
    route = [{"deployment": "first", "reason": "position 0"}, {"deployment": "second", "reason": "position 1"}]
    factories.UsageRecordFactory(**fields, route=route, deployment="first", status_code=529, error_type="529")
    factories.UsageRecordFactory(
        **fields, route=route, deployment="second", attempt_number=2, price_id=price.pk, input_tokens=750
    )
    page = client.get(reverse("receipt", args=[request_id])).content.decode()
    for text in ("&lt;search&gt;", "the key's default", "position 1", "529", "0.0015", "Attempt 2: second"):
        assert text in page, text
    assert "<search>" not in page


def test_another_teams_receipt_is_not_there(client, alice, team):
    own, other = factories.UsageRecordFactory(team_id=team.pk), factories.UsageRecordFactory()
    assert client.get(reverse("receipt", args=[own.request_id])).status_code == 200
    assert client.get(reverse("receipt", args=[other.request_id])).status_code == 404


# The books


def test_the_books_say_that_they_close_and_when_that_was_seen(client, boss):
    Verification.objects.create(took_ms=3, hours=1, counters=2, drifts=0)
    page = client.get(reverse("books")).content.decode()
    assert re.search(r"The books close: 0 drift, \d+ s ago\.", page)


def test_the_books_name_what_differs(client, boss):
    Verification.objects.create(took_ms=3, hours=1, counters=None, drifts=1)
    Drift.objects.create(kind="counters", what="tg:spend:b:0", unit="usd", expected=1_000, found=1_500)
    page = client.get(reverse("books")).content.decode()
    for text in ("The books do not close", "tg:spend:b:0", "500", "counters were not compared"):
        assert text in page, text


def test_a_verifier_that_does_not_run_is_told(client, boss):
    assert "has not run yet" in client.get(reverse("books")).content.decode()
    Verification.objects.create(
        at=timezone.now() - datetime.timedelta(minutes=10), took_ms=3, hours=1, counters=2, drifts=0
    )
    assert "The verifier is late" in client.get(reverse("books")).content.decode()


def test_the_books_are_of_every_team(client, alice, team):
    assert client.get(reverse("books")).status_code == 403


# In suspense


def test_a_team_sees_what_is_in_suspense_of_its_own(client, alice, team):
    own, other = suspended(team_id=team.pk), suspended()
    page = client.get(reverse("suspense")).content.decode()
    assert str(own.pk) in page
    assert str(other.pk) not in page
    assert "1 attempts hold 0.50 USD" in page
    assert client.get(reverse("suspense-resolve", args=[other.pk])).status_code == 404
    assert client.post(reverse("suspense-resolve", args=[other.pk]), {"cost_usd": 0, "reason": "x"}).status_code == 404


def test_one_proposes_and_another_approves(client, alice, team):
    record = suspended(team_id=team.pk)
    page = reverse("suspense-resolve", args=[record.pk])
    client.post(page, {"cost_usd": "0.25", "reason": "invoice 4711"})
    resolution = SuspenseResolution.objects.get()
    decide = reverse("suspense-decide", args=[resolution.pk])
    assert "Approve</button>" not in client.get(page).content.decode()
    client.post(decide, {"is_approved": "yes", "note": "mine"})
    resolution.refresh_from_db()
    assert resolution.is_approved is None

    bob = factories.UserFactory(username="bob")
    factories.MembershipFactory(user=bob, team=team, role="owner")
    bob.user_permissions.set(Permission.objects.filter(codename__in=("view_usagerecord", "change_suspenseresolution")))
    client.force_login(bob)
    assert "Approve</button>" in client.get(page).content.decode()
    client.post(decide, {"is_approved": "yes", "note": "seen"})
    resolution.refresh_from_db()
    assert (resolution.is_approved, resolution.decided_by, resolution.cost_usd) == (True, "bob", Decimal("0.25"))


def test_what_is_wrong_with_a_proposal_is_said(client, alice, team):
    record = suspended(team_id=team.pk)
    for wrong in (
        {"cost_usd": "-1", "reason": "x"},
        {"cost_usd": "1", "reason": ""},
        {"cost_usd": "NaN", "reason": "x"},
    ):
        assert "tg-bad" in client.post(reverse("suspense-resolve", args=[record.pk]), wrong).content.decode()
    assert not SuspenseResolution.objects.exists()


def test_who_may_only_look_proposes_and_decides_nothing(client, alice, team):
    record = suspended(team_id=team.pk)
    resolution = SuspenseResolution.objects.create(
        attempt_id=record.pk, team_id=team.pk, cost_usd=0, reason="x", proposed_by_id="somebody", proposed_by="Somebody"
    )
    viewer = factories.UserFactory()
    factories.MembershipFactory(user=viewer, team=team, role="viewer")
    viewer.user_permissions.set(alice.user_permissions.all())
    client.force_login(viewer)
    assert client.get(reverse("suspense-resolve", args=[record.pk])).status_code == 200
    wanted = {"cost_usd": "0", "reason": "x"}
    assert client.post(reverse("suspense-resolve", args=[record.pk]), wanted).status_code == 403
    for word in ("yes", "no"):
        decision = {"is_approved": word, "note": "x"}
        assert client.post(reverse("suspense-decide", args=[resolution.pk]), decision).status_code == 403


def test_charlie_sees_none_of_it(client):
    charlie = factories.UserFactory()
    factories.MembershipFactory(user=charlie)
    client.force_login(charlie)
    record = suspended()
    for page in (
        reverse("receipt", args=[record.request_id]),
        reverse("books"),
        reverse("suspense"),
        reverse("suspense-resolve", args=[record.pk]),
    ):
        assert client.get(page).status_code == 403


# Metrics


def metrics_of(client):
    lines = client.get("/metrics").content.decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_drift_and_suspense_are_metrics(redis_url):
    Drift.objects.create(kind="counters", what="a", unit="usd", expected=1_000, found=1_500)
    Drift.objects.create(kind="counters", what="b", unit="usd", expected=700, found=0)
    Drift.objects.create(kind="days", what="c", unit="requests", expected=7, found=8)
    Drift.objects.create(kind="hours", what="d", unit="usd", expected=1, found=2, closed_at=timezone.now())
    Verification.objects.create(took_ms=3, hours=1, counters=2, drifts=3)
    suspended(admitted_at=timezone.now() - datetime.timedelta(hours=1))
    found = metrics_of(client_with("usage:read"))
    assert found['tollgate_drift_nanos{kind="counters"}'] == "1200.0"
    assert found['tollgate_drift_nanos{kind="hours"}'] == "0.0"
    assert found['tollgate_drifts{kind="days"}'] == "1.0"
    assert 0 <= float(found["tollgate_verified_age_seconds"]) < 60
    assert 3_600 <= float(found["tollgate_suspense_oldest_seconds"]) < 3_700
    assert (found["tollgate_suspense_records"], found["tollgate_suspense_nanos"]) == ("1.0", "5e+08")
    assert found["tollgate_usage_waiting"] == "0.0"


def test_events_that_could_not_be_stored_or_not_as_they_came_are_metrics(redis_url):
    client = redis_client()
    client.xadd(ledger.DEAD_LETTERS, {"event": "nonsense", "reason": "it is none"})
    client.hset(ledger.MENDED, "latency_ms", 3)
    found = metrics_of(client_with("usage:read"))
    assert found["tollgate_usage_dead"] == "1.0"
    assert found['tollgate_usage_mended_total{field="latency_ms"}'] == "3.0"


def test_open_alerts_and_notices_that_were_given_up_are_metrics(redis_url):
    factories.AlertFactory(severity="critical")
    factories.AlertFactory(severity="critical", recovered_at=timezone.now())
    factories.DeliveryFactory(state="dead")
    factories.DeliveryFactory(state="sent")
    found = metrics_of(client_with("usage:read"))
    assert found['tollgate_alerts_open{severity="critical"}'] == "3.0"
    assert found['tollgate_alert_notices{state="dead"}'] == "1.0"
    assert found['tollgate_alert_notices{state="waiting"}'] == "0.0"


def test_metrics_are_for_who_may_see_the_usage_of_every_team(client):
    assert client.get("/metrics").status_code == 401
    assert client_with("teams:read").get("/metrics").status_code == 403
    assert client_with("usage:read", team=factories.TeamFactory()).get("/metrics").status_code == 403
