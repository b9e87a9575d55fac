"""Channels and alerts: whose alerts go where, what is sealed and recorded, who may let a channel into a private network."""

import base64
import datetime
import uuid

import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.utils import timezone

from audit.models import AuditEntry
from budgets import alert_services
from budgets.alert_models import Alert, Channel, Delivery
from keys.services import rewrap_rows
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db

SECRET = "TIiajkdnlazkcOXrIdevi7FQ"
SLACK = f"https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/{SECRET}"


def finding(**values):
    fields = {
        "kind": "threshold",
        "about_id": uuid.uuid4(),
        "counter": (),
        "percent": 80,
        "window_start": timezone.now(),
        "window_end": None,
        "team_id": None,
        "severity": "warning",
        "title": "80 %",
        "text": "80 % are spent.",
    }
    return alert_services.Finding(**fields | values)


def opened_to():
    return set(Delivery.objects.filter(event="opened").values_list("channel_name", flat=True))


@pytest.fixture
def channels():
    """Of two teams and of nobody."""
    teams = [factories.TeamFactory() for _ in range(3)]
    factories.ChannelFactory(name="first", team=teams[0])
    factories.ChannelFactory(name="second", team=teams[1])
    factories.ChannelFactory(name="everybody's")
    return teams


def test_the_alerts_of_a_team_go_to_its_own_channels(channels):
    alert_services.open_alerts([finding(team_id=channels[0].pk)], now=timezone.now())
    assert opened_to() == {"first"}


def test_what_concerns_no_team_goes_to_the_channels_of_no_team(channels):
    alert_services.open_alerts([finding()], now=timezone.now())
    assert opened_to() == {"everybody's"}


def test_the_alerts_of_a_team_without_a_channel_are_not_lost(channels):
    Channel.objects.filter(name="second").update(is_active=False)
    alert_services.open_alerts([finding(team_id=team.pk) for team in channels[1:]], now=timezone.now())
    assert opened_to() == {"everybody's"} and Delivery.objects.count() == 2


@pytest.mark.parametrize(
    ("least", "severity", "is_sent"),
    [("info", "warning", True), ("warning", "warning", True), ("critical", "warning", False)],
)
def test_a_channel_gets_nothing_below_its_severity(least, severity, is_sent):
    factories.ChannelFactory(name="pager", least_severity=least)
    alert_services.open_alerts([finding(severity=severity)], now=timezone.now())
    assert (opened_to() == {"pager"}) is is_sent


def test_what_is_muted_is_opened_and_not_told():
    factories.ChannelFactory()
    about, now = uuid.uuid4(), timezone.now()
    alert = factories.AlertFactory(about_id=about)
    alert_services.mute(alert, now + datetime.timedelta(hours=1), actor=ACTOR, reason="known")
    assert len(alert_services.open_alerts([finding(about_id=about)], now=now)) == 1
    assert not Delivery.objects.exists()
    later = now + datetime.timedelta(hours=2)
    alert_services.open_alerts([finding(about_id=about, percent=100)], now=later)
    assert Delivery.objects.count() == 1
    assert AuditEntry.objects.get(action="mute").reason == "known"


def test_muting_is_ended_by_muting_until_now():
    factories.ChannelFactory()
    alert = factories.AlertFactory()
    now = timezone.now()
    alert_services.mute(alert, now + datetime.timedelta(hours=1), actor=ACTOR)
    alert_services.mute(alert, now, actor=ACTOR)
    alert_services.open_alerts([finding(about_id=alert.about_id)], now=now)
    assert Delivery.objects.count() == 1


def test_an_alert_is_acknowledged_once_with_a_note():
    alert = factories.AlertFactory()
    with pytest.raises(ValidationError):
        alert_services.acknowledge(alert, actor=ACTOR, note=" ")
    alert_services.acknowledge(alert, actor=ACTOR, note="raising the cap tomorrow")
    alert.refresh_from_db()
    assert (alert.status, alert.acknowledged_by, alert.note) == ("acknowledged", "test", "raising the cap tomorrow")
    with pytest.raises(ValidationError):
        alert_services.acknowledge(alert, actor=ACTOR, note="me too")
    assert AuditEntry.objects.get(action="acknowledge").reason == "raising the cap tomorrow"


def test_an_address_is_sealed_and_stands_nowhere_else():
    channel = Channel(name="ops", kind="slack")
    assert alert_services.add_channel(channel, SLACK, actor=ACTOR) is None
    alert_services.change_channel(channel, actor=ACTOR, values={"name": "ops2"}, address=SLACK.replace("T1J", "T2J"))
    assert alert_services.reveal_destination(channel).address == SLACK.replace("T1J", "T2J")
    assert SECRET not in channel.sealed
    entries = [str(entry.before) + str(entry.after) for entry in AuditEntry.objects.all()]
    assert len(entries) == 2 and not any(SECRET in entry or channel.sealed in entry for entry in entries)


def test_a_channel_keeps_its_address_and_its_kind():
    channel = Channel(name="ops", kind="slack")
    alert_services.add_channel(channel, SLACK, actor=ACTOR)
    alert_services.change_channel(channel, actor=ACTOR, values={"name": "chat"})
    assert alert_services.reveal_destination(channel).address == SLACK
    with pytest.raises(ValidationError):
        alert_services.change_channel(channel, actor=ACTOR, values={"kind": "webhook"})


def test_what_was_allowed_is_asked_again_when_it_is_forbidden():
    channel = Channel(name="relay", kind="webhook", may_be_private=True)
    alert_services.add_channel(channel, "http://10.0.0.1/hook", actor=ACTOR)
    with pytest.raises(ValidationError, match="private network"):
        alert_services.change_channel(channel, actor=ACTOR, values={"may_be_private": False})


def test_only_who_sees_all_teams_lets_a_channel_into_a_private_network():
    owner = factories.UserFactory()
    team = factories.MembershipFactory(user=owner, role="owner").team
    boss = factories.UserFactory(is_superuser=True)
    for values in ({"team": None}, {"team": team, "may_be_private": True}):
        assert alert_services.bounded(boss, values, is_readdressed=True) == values
        with pytest.raises(PermissionDenied):
            alert_services.bounded(owner, values, is_readdressed=False)


def test_a_channel_that_may_be_private_is_not_turned_to_another_private_place():
    owner = factories.UserFactory()
    assert alert_services.bounded(owner, {}, is_readdressed=True) == {"may_be_private": False}
    assert alert_services.bounded(owner, {}, is_readdressed=False) == {}


def test_channels_follow_to_a_new_vault_key(settings):
    channel = Channel(name="ops", kind="slack")
    alert_services.add_channel(channel, SLACK, actor=ACTOR)
    new = base64.b64encode(b"another key for tests: 32 bytes.").decode()
    settings.TOLLGATE_VAULT_KEY = f"{new},{settings.TOLLGATE_VAULT_KEY}"
    assert rewrap_rows(Channel.objects.all(), actor=ACTOR) == 1
    assert rewrap_rows(Channel.objects.all(), actor=ACTOR) == 0
    settings.TOLLGATE_VAULT_KEY = new
    channel.refresh_from_db()
    assert alert_services.reveal_destination(channel).address == SLACK


def test_only_a_webhook_has_a_signing_secret():
    channel = Channel(name="ops", kind="slack")
    alert_services.add_channel(channel, SLACK, actor=ACTOR)
    with pytest.raises(ValidationError):
        alert_services.renew_signing_secret(channel, actor=ACTOR, reason="")


def test_what_recovered_opens_again_in_its_window_and_is_told_again():
    factories.ChannelFactory()
    found = finding()
    for number in range(1, 4):
        (alert,) = alert_services.open_alerts([found], now=timezone.now())
        assert alert_services.open_alerts([found], now=timezone.now()) == []
        assert alert.occurrence == number
        alert_services.recover_alerts({alert.pk: "over"}, now=timezone.now())
    assert Alert.objects.count() == 1
    assert Delivery.objects.filter(event="opened").count() == Delivery.objects.filter(event="recovered").count() == 3
