"""Pages of alerts and channels: an address goes in and never comes out; what people say to an alert is on record."""

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse

from audit.models import AuditEntry
from budgets import alert_services
from budgets.alert_models import Channel, Delivery, Mute
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db

SECRET = "TIiajkdnlazkcOXrIdevi7FQ"
SLACK = f"https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/{SECRET}"
HOOK = "https://alerts.example.com/hook"


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


@pytest.fixture
def alice(client):
    """Owns a team, and may do all that there is to do with alerts and channels."""
    user = factories.UserFactory(username="alice")
    user.user_permissions.set(Permission.objects.filter(content_type__model__in=("alert", "channel", "delivery")))
    user.team = factories.MembershipFactory(user=user, role="owner").team
    client.force_login(user)
    return user


def url(name, *args):
    return reverse(f"admin:budgets_{name}", args=args)


def form(**fields):
    return {"name": "ops", "kind": "slack", "address": SLACK, "least_severity": "info", "is_active": "on", **fields}


def added(page):
    assert page.status_code in (200, 302), page.content
    if page.status_code == 200 and "adminform" in page.context:
        pytest.fail(str(page.context["adminform"].form.errors))
    return Channel.objects.get()


def test_an_address_goes_in_and_never_comes_out(client, boss):
    channel = added(client.post(url("channel_add"), form()))
    assert alert_services.reveal_destination(channel).address == SLACK
    for page in ("channel_changelist", "channel_change"):
        args = [channel.pk] if page == "channel_change" else []
        assert SECRET not in client.get(url(page, *args)).content.decode()
    client.post(url("channel_change", channel.pk), form(name="chat", address=""))
    channel.refresh_from_db()
    assert channel.name == "chat" and alert_services.reveal_destination(channel).address == SLACK


def test_the_signing_secret_of_a_webhook_is_shown_once(client, boss):
    page = client.post(url("channel_add"), form(kind="webhook", address=HOOK))
    channel = Channel.objects.get()
    secret = alert_services.reveal_destination(channel).signing_secret
    assert secret in page.content.decode() and "no-store" in page["Cache-Control"]
    assert secret not in client.get(url("channel_change", channel.pk)).content.decode()
    renew = url("channel_renew_signing_secret", channel.pk)
    page = client.post(renew, {"confirmed": "yes", "reason": "leaked"})
    renewed = alert_services.reveal_destination(channel.__class__.objects.get()).signing_secret
    assert renewed in page.content.decode() and renewed != secret


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"address": ""}, "Paste the address"),
        ({"address": HOOK}, "no address of slack"),
        ({"kind": "webhook", "address": "http://127.0.0.1/hook"}, "private network"),
    ],
)
def test_an_address_that_is_none_is_refused_in_words(client, boss, fields, words):
    page = client.post(url("channel_add"), form(**fields), follow=True)
    assert words in page.content.decode() and not Channel.objects.exists()


def test_an_administrator_allows_a_private_address(client, boss):
    client.post(url("channel_add"), form(kind="webhook", address="http://127.0.0.1/hook", may_be_private="on"))
    assert Channel.objects.get().may_be_private


def test_an_owner_makes_channels_of_the_own_team_only(client, alice):
    client.post(url("channel_add"), form())
    client.post(url("channel_add"), form(team=str(factories.TeamFactory().pk)))
    assert not Channel.objects.exists()
    hook = form(team=str(alice.team.pk), kind="webhook", address="http://127.0.0.1/hook", may_be_private="on")
    client.post(url("channel_add"), hook)
    assert not Channel.objects.exists()
    assert added(client.post(url("channel_add"), form(team=str(alice.team.pk)))).team == alice.team


def test_a_new_address_by_an_owner_is_a_public_one(client, alice):
    channel = Channel(name="relay", kind="webhook", team=alice.team, may_be_private=True)
    alert_services.add_channel(channel, "http://10.0.0.1/hook", actor=ACTOR)
    fields = form(team=str(alice.team.pk), kind="webhook", may_be_private="on")
    client.post(url("channel_change", channel.pk), fields | {"address": "http://10.0.0.2/hook"})
    assert alert_services.reveal_destination(Channel.objects.get()).address == "http://10.0.0.1/hook"
    client.post(url("channel_change", channel.pk), fields | {"address": HOOK})
    changed = Channel.objects.get()
    assert alert_services.reveal_destination(changed).address == HOOK and not changed.may_be_private


def test_a_test_is_fired_by_who_may_change_the_channel(client, alice):
    own, other = factories.ChannelFactory(team=alice.team), factories.ChannelFactory(team=factories.TeamFactory())
    assert client.get(url("channel_test", own.pk)).status_code == 403
    assert client.post(url("channel_test", other.pk)).status_code == 403
    page = client.post(url("channel_test", own.pk), follow=True)
    assert "A test is on its way" in page.content.decode() and 'id="tg-deliveries"' in page.content.decode()
    assert Delivery.objects.get().channel == own
    assert AuditEntry.objects.get(action="test").actor_name == "alice"


def test_an_alert_is_acknowledged_with_a_note(client, alice):
    alert = factories.AlertFactory(team_id=alice.team.pk)
    client.post(url("alert_acknowledge", alert.pk), {"confirmed": "yes", "reason": "raising it tomorrow"})
    alert.refresh_from_db()
    assert (alert.status, alert.note, alert.acknowledged_by) == ("acknowledged", "raising it tomorrow", "alice")


def test_an_alert_is_muted_for_a_while(client, alice):
    alert = factories.AlertFactory(team_id=alice.team.pk)
    assert "Be quiet for" in client.get(url("alert_mute", alert.pk)).content.decode()
    client.post(url("alert_mute", alert.pk), {"length": "a day", "reason": ""})
    assert Mute.objects.get().about_id == alert.about_id
    client.post(url("alert_mute", alert.pk), {"length": "a century"})
    assert AuditEntry.objects.filter(action="mute").count() == 1


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("threshold", factories.BudgetFactory),
        ("kill_switch", factories.KillSwitchFactory),
        ("increase", factories.IncreaseFactory),
        ("credential", factories.CredentialPoolFactory),
    ],
)
def test_an_alert_leads_to_the_page_of_what_it_is_about(client, boss, kind, make):
    subject = make()
    alert = factories.AlertFactory(kind=kind, about_id=subject.pk)
    assert "What it is about" in client.get(url("alert_change", alert.pk)).content.decode()
    page = client.get(url("alert_open_subject", alert.pk), follow=True)
    assert page.status_code == 200 and str(subject.pk) in page.redirect_chain[-1][0]


def test_the_alerts_of_others_are_neither_seen_nor_answered(client, alice):
    alert = factories.AlertFactory(title="their secret launch", team_id=factories.TeamFactory().pk)
    factories.AlertFactory(title="the gateway's own")
    assert "secret launch" not in client.get(url("alert_changelist")).content.decode()
    assert "gateway's own" not in client.get(url("alert_changelist")).content.decode()
    for act in ("acknowledge", "mute"):
        answer = client.post(url(f"alert_{act}", alert.pk), {"confirmed": "yes", "reason": "x", "length": "a day"})
        assert answer.status_code in (302, 403)
    alert.refresh_from_db()
    assert alert.status == "open" and not Mute.objects.exists()


@pytest.mark.parametrize(("status", "title"), [("open", "new"), ("acknowledged", "seen"), ("recovered", "over")])
def test_the_list_is_filtered_by_status(client, boss, status, title):
    from_now = {"opened_at": "2026-11-20T12:00:00Z"}
    factories.AlertFactory(title="alert-new")
    factories.AlertFactory(title="alert-seen", acknowledged_at=from_now["opened_at"])
    factories.AlertFactory(title="alert-over", recovered_at=from_now["opened_at"])
    page = client.get(url("alert_changelist"), {"status": status}).content.decode()
    assert [name for name in ("new", "seen", "over") if f"alert-{name}" in page] == [title]


def test_the_page_says_when_nobody_would_hear(client, boss):
    assert "Nobody is told of any alert" in client.get(url("alert_changelist")).content.decode()
    channel = factories.ChannelFactory(team=factories.TeamFactory())
    assert "Some alerts are told to nobody" in client.get(url("alert_changelist")).content.decode()
    Channel.objects.filter(pk=channel.pk).update(team=None)
    assert "tg-hint" not in client.get(url("alert_changelist")).content.decode()
    factories.DeliveryFactory(state="dead")
    assert "could not be sent and was given up" in client.get(url("alert_changelist")).content.decode()


def test_what_was_given_up_is_tried_again(client, boss):
    delivery = factories.DeliveryFactory(state="dead", tries=12, last_error="answered 503")
    picked = {"action": "try_again_selected", "_selected_action": [str(delivery.pk)], "select_across": "0"}
    client.post(url("delivery_changelist"), picked | {"confirmed": "yes", "reason": "mended"})
    delivery.refresh_from_db()
    assert (delivery.state, delivery.tries) == ("waiting", 0)
