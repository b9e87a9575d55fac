"""Alerts and channels through the API."""

import datetime

import pytest
from django.utils import timezone

from audit.models import AuditEntry
from budgets import alert_services
from budgets.alert_models import Channel, Delivery, Mute
from tests import factories
from tests.api import assert_problem, client_with, patch, post, results, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

HOOK = "https://alerts.example.com/hook"


def body(**fields):
    return {"name": "ops", "kind": "webhook", "address": HOOK, **fields}


def test_the_signing_secret_is_said_once_and_the_address_never():
    client = client_with()
    answer = post(client, url("alert-channels"), body())
    channel = Channel.objects.get()
    destination = alert_services.reveal_destination(channel)
    assert answer.status_code == 201 and answer.json()["signing_secret"] == destination.signing_secret
    assert destination.address == HOOK and "address" not in answer.json()
    for row in (results(client.get(url("alert-channels")))[0], client.get(url("alert-channels", channel.pk)).json()):
        assert not {"address", "signing_secret", "sealed"} & set(row)
    renewed = post(client, url("alert-channels", channel.pk, "renew-signing-secret"), {"reason": "leaked"}).json()
    assert renewed["signing_secret"] == alert_services.reveal_destination(Channel.objects.get()).signing_secret
    assert renewed["signing_secret"] != destination.signing_secret


def test_an_address_is_changed_without_the_rest():
    client = client_with()
    channel = Channel.objects.get(pk=post(client, url("alert-channels"), body()).json()["id"])
    assert patch(client, url("alert-channels", channel.pk), {"address": f"{HOOK}/2"}).status_code == 200
    assert alert_services.reveal_destination(Channel.objects.get()).address == f"{HOOK}/2"
    refused = patch(client, url("alert-channels", channel.pk), {"address": "http://127.0.0.1/"})
    assert_problem(refused, 400)
    assert refused.json()["errors"]["address"] and "127.0.0.1" not in refused.content.decode()


def test_an_account_of_a_team_makes_channels_of_that_team_only():
    team = factories.TeamFactory()
    client = client_with(team=team)
    assert_problem(post(client, url("alert-channels"), body()), 403)
    assert_problem(post(client, url("alert-channels"), body(team=str(factories.TeamFactory().pk))), 400)
    private = body(team=str(team.pk), address="http://127.0.0.1/", may_be_private=True)
    assert_problem(post(client, url("alert-channels"), private), 403)
    assert post(client, url("alert-channels"), body(team=str(team.pk))).status_code == 201


def test_a_test_leaves_a_notice_to_look_at():
    channel = factories.ChannelFactory()
    client = client_with("alerts:read", "alerts:write")
    answer = post(client, url("alert-channels", channel.pk, "test"))
    assert answer.status_code == 202
    assert client.get(url("alert-deliveries", answer.json()["id"])).json()["state"] == "waiting"
    assert Delivery.objects.get().event == "test"


def test_an_alert_is_acknowledged_and_muted():
    alert = factories.AlertFactory()
    client = client_with("alerts:read", "alerts:write")
    assert_problem(post(client, url("alerts", alert.pk, "acknowledge")), 400)
    answer = post(client, url("alerts", alert.pk, "acknowledge"), {"note": "on it"})
    assert (answer.json()["status"], answer.json()["note"]) == ("acknowledged", "on it")
    assert_problem(post(client, url("alerts", alert.pk, "acknowledge"), {"note": "me too"}), 400)
    until = timezone.now() + datetime.timedelta(hours=1)
    muted = post(client, url("alerts", alert.pk, "mute"), {"until": until.isoformat(), "reason": "known"})
    assert muted.json()["about_id"] == str(alert.about_id) and Mute.objects.get().until == until
    assert AuditEntry.objects.get(action="mute").reason == "known"


@pytest.mark.parametrize("status", ["open", "acknowledged", "recovered"])
def test_alerts_are_filtered_by_status(status):
    now = timezone.now()
    rows = {
        "open": factories.AlertFactory(),
        "acknowledged": factories.AlertFactory(acknowledged_at=now),
        "recovered": factories.AlertFactory(acknowledged_at=now, recovered_at=now),
    }
    found = results(client_with("alerts:read").get(url("alerts"), {"status": status}))
    assert [(row["id"], row["status"]) for row in found] == [(str(rows[status].pk), status)]


def test_reading_alerts_is_not_writing_them():
    alert = factories.AlertFactory()
    assert_problem(post(client_with("alerts:read"), url("alerts", alert.pk, "acknowledge"), {"note": "x"}), 403)
