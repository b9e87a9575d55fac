"""The kill switch page: who may stop what, what is in force, who acknowledged it."""

import re
import uuid

import msgspec
import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import Permission
from django.db import OperationalError
from django.db import connection as database
from django.test import Client
from django.urls import reverse

from audit.models import AuditEntry
from audit.records import UsageEvent, encode_event
from budgets import gate
from keys import redis as flags
from keys.models import KillSwitch
from keys.redis import UNRECORDED
from proxy.metrics import WorkerStatus, encode_status
from tests import factories

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

PAGE = "/admin/kill-switch/"


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


@pytest.fixture
def connection():
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        yield client


def person(*permissions, sees_all=False):
    user = factories.UserFactory()
    names = [*permissions, *(["view_all_teams"] if sees_all else [])]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    return user


def security(**options):
    return person("view_killswitch", "add_killswitch", "change_killswitch", **options)


def throw(client, scope="global", target="", reason="a drill"):
    form = {"scope": scope, "target": target, "reason": reason}
    return client.post(reverse("kill-switch-throw"), form, follow=True)


def alive(connection, worker="one", holds=()):
    status = WorkerStatus(
        worker=worker, host="gateway-1", pid=4711, started_at_s=0, at_s=0, snapshot_version=1, is_ready=True
    )
    connection.hset(gate.WORKERS, worker, encode_status(status))
    connection.set(gate.lease_key(worker), "1", px=60_000)
    for hold in holds:
        connection.hset(gate.holds_key(worker), hold.attempt_id, b"1000|" + gate.hold_value([], [], encode_event(hold)))


def hold(key, **values):
    named = {"alias": "chat", "provider": "openai", "model": "gpt", "deployment": "d", "request_model": "gpt"}
    return UsageEvent(
        attempt_id=str(uuid.uuid4()),
        request_id=str(uuid.uuid4()),
        admitted_at_us=1,
        team_id=str(key.project.team_id),
        project_id=str(key.project_id),
        virtual_key_id=str(key.pk),
        **named | values,
    )


def in_redis(connection):
    return {flag.field for flag in flags.flags(connection)}


# Throwing


def test_a_thrown_switch_is_in_force_on_record_and_audited(client, boss, connection):
    team = factories.TeamFactory(name="Research")
    page = throw(client, "team", str(team.pk), "runaway agent")
    switch = KillSwitch.objects.get()
    assert page.redirect_chain == [(reverse("kill-switch-thrown", args=[switch.pk]), 302)]
    assert in_redis(connection) == {f"team:{team.pk}"}
    assert (switch.thrown_by, switch.reason) == ("boss", "runaway agent")
    entry = AuditEntry.objects.get(action="throw")
    assert (entry.actor_name, entry.reason, entry.ip) == ("boss", "runaway agent", "127.0.0.1")
    text = page.content.decode()
    assert "team: Research" in text and "runaway agent" in text


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_reason_is_required(client, boss, connection, reason):
    assert "Say why" in throw(client, reason=reason).content.decode()
    assert not in_redis(connection)


@pytest.mark.parametrize(
    ("scope", "target"), [("team", ""), ("team", "Research"), ("global", "everything"), ("key", "tg-1234")]
)
def test_a_target_that_would_stop_nothing_is_refused(client, boss, connection, scope, target):
    assert throw(client, scope, target).status_code == 200
    assert not in_redis(connection)


def test_an_unknown_scope_is_refused(client, boss):
    assert throw(client, "universe").status_code == 403


def test_thrown_twice_it_is_one_switch(client, boss):
    throw(client)
    assert "a drill" in throw(client, reason="again").content.decode()
    assert KillSwitch.objects.count() == 1


def test_it_is_thrown_while_the_database_cannot_write_it_down(client, boss, connection):
    """Somebody holds the lock of the same scope: PostgreSQL gives up waiting, Redis has the flag."""
    page = _throw_while_locked(client)
    assert in_redis(connection) == {"global"}
    assert connection.llen(UNRECORDED) == 1
    text = page.content.decode()
    assert "will be put on record" in text
    assert "not on record yet" in text


def _throw_while_locked(client):
    def refuse(execute, sql, params, many, context):
        if "pg_advisory_xact_lock" in sql:
            raise OperationalError("canceling statement due to lock timeout")
        return execute(sql, params, many, context)

    with database.execute_wrapper(refuse):
        return throw(client)


def test_while_redis_is_away_it_says_so(client, boss, monkeypatch, redis_server):
    redis_server.stop()
    with redis.Redis.from_url(redis_server.url) as away:
        monkeypatch.setattr("keys.redis.redis_client", lambda: away)
        monkeypatch.setattr("controlplane.views.redis_client", lambda: away)
        text = throw(client).content.decode()
    assert "is not certain" in text
    assert "Redis does not answer" in text
    assert not KillSwitch.objects.exists()


def test_a_forged_form_is_refused(boss, connection):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(boss)
    assert throw(strict).status_code == 403
    assert not in_redis(connection)


# Who may


def test_who_lacks_the_permission_is_refused(client, connection):
    client.force_login(person("view_killswitch"))
    assert throw(client).status_code == 403
    page = client.get(PAGE)
    assert page.status_code == 200
    assert "data-scope=" not in page.content.decode()
    assert not in_redis(connection)


def test_charlie_stops_only_what_is_his(client, connection):
    charlie = security()
    mine = factories.MembershipFactory(user=charlie, role="member").team
    theirs = factories.VirtualKeyFactory()
    client.force_login(charlie)
    refused = [
        ("global", ""),
        ("model", "gpt"),
        ("provider", "openai"),
        ("team", str(theirs.project.team_id)),
        ("project", str(theirs.project_id)),
        ("key", str(theirs.pk)),
    ]
    for scope, target in refused:
        assert throw(client, scope, target).status_code == 403, scope
        assert client.get(reverse("kill-switch-reach"), {"scope": scope, "target": target}).status_code == 403, scope
    assert not in_redis(connection)
    throw(client, "team", str(mine.pk))
    assert in_redis(connection) == {f"team:{mine.pk}"}
    assert set(re.findall(r'data-scope="(\w+)"', client.get(PAGE).content.decode())) == {"team", "project", "key"}


def test_charlie_sees_no_switch_of_other_teams(client, boss):
    theirs = factories.TeamFactory(name="Hidden team")
    throw(client, "team", str(theirs.pk), "hidden reason")
    switch = KillSwitch.objects.get()
    client.force_login(security())
    text = (
        client.get(PAGE).content.decode() + client.get(reverse("kill-switch-thrown", args=[switch.pk])).content.decode()
    )
    assert "Hidden team" not in text and "hidden reason" not in text
    assert client.get(reverse("kill-switch-acks", args=[switch.pk])).status_code == 403
    lifted = client.post(reverse("kill-switch-lift", args=[switch.pk]), {"reason": "x"})
    assert lifted.status_code == 403
    assert KillSwitch.objects.active().exists()


def test_who_is_not_signed_in_is_sent_to_sign_in(client):
    for name in ("kill-switch", "kill-switch-targets", "kill-switch-reach"):
        assert client.get(reverse(name)).status_code == 302
    assert client.post(reverse("kill-switch-throw")).status_code == 302


def test_the_red_button_is_on_every_page_of_who_may_press_it(client, boss):
    for path in ("/admin/", "/admin/teams/team/", "/admin/teams/team/add/", PAGE):
        assert 'id="kill-switch-link"' in client.get(path).content.decode(), path
    client.force_login(person("view_team"))
    assert 'id="kill-switch-link"' not in client.get("/admin/").content.decode()


# Choosing


def test_targets_are_searched_among_ones_own(client):
    charlie = security()
    mine = factories.ProjectFactory(name="Search", team__name="Mine")
    factories.MembershipFactory(user=charlie, role="owner", team=mine.team)
    key = factories.VirtualKeyFactory(project=mine, name="search-api")
    factories.VirtualKeyFactory(name="search-elsewhere")
    client.force_login(charlie)

    def found(scope, text=""):
        answer = client.get(reverse("kill-switch-targets"), {"scope": scope, "q": text}).json()
        return [target["value"] for target in answer["targets"]]

    assert found("team") == [str(mine.team_id)]
    assert found("project", "sea") == [str(mine.pk)]
    assert found("key", "SEARCH") == [str(key.pk)]
    assert found("key", key.hint[-4:]) == [str(key.pk)]
    assert found("key", str(key.pk)) == [str(key.pk)]
    assert found("key", "elsewhere") == found("model") == found("provider") == found("nonsense") == []


def test_models_and_providers_are_found_by_name(client, boss):
    factories.ModelFactory(name="gpt-4.1")
    factories.ProviderFactory(slug="openai", name="OpenAI")
    for scope, text, value in (("model", "4.1", "gpt-4.1"), ("provider", "open", "openai")):
        answer = client.get(reverse("kill-switch-targets"), {"scope": scope, "q": text}).json()
        assert [target["value"] for target in answer["targets"]] == [value]


def test_what_would_stop_is_counted_from_what_is_in_flight(client, boss, connection):
    one, two = factories.VirtualKeyFactory(), factories.VirtualKeyFactory()
    alive(connection, "one", [hold(one), hold(one, model="claude"), hold(two)])
    alive(connection, "two", [hold(two, provider="anthropic")])

    def live(scope, target=""):
        return client.get(reverse("kill-switch-reach"), {"scope": scope, "target": target}).json()

    assert live("global") == {"live_requests": 4, "workers": 2}
    for scope, target, number in [
        ("team", one.project.team_id, 2),
        ("project", two.project_id, 2),
        ("key", one.pk, 2),
        ("model", "claude", 1),
        ("provider", "openai", 3),
    ]:
        assert live(scope, target)["live_requests"] == number, scope
    assert "error" in live("team", "nobody")


# After


def test_the_page_tells_who_has_acknowledged(client, boss, connection):
    alive(connection, "one")
    alive(connection, "two")
    throw(client)
    switch = KillSwitch.objects.get()
    asked = reverse("kill-switch-acks", args=[switch.pk])
    assert client.get(asked).json() | {"workers": None} == {
        "workers": None,
        "acknowledged": 0,
        "expected": 2,
        "streams_cut": 0,
        "elapsed_ms": None,
        "is_complete": False,
    }
    for worker, cut, elapsed_ms in (("one", 12, 41), ("two", 5, 17)):
        ack = msgspec.json.encode({"streams_cut": cut, "elapsed_ms": elapsed_ms, "at_s": 1.0})
        connection.hset(gate.kill_acks_key(str(switch.pk)), worker, ack)
    answer = client.get(asked).json()
    assert (answer["acknowledged"], answer["expected"], answer["streams_cut"], answer["elapsed_ms"]) == (2, 2, 17, 41)
    assert answer["is_complete"]
    assert answer["workers"][0] == {
        "worker": "one",
        "host": "gateway-1, process 4711",
        "is_live": True,
        "streams_cut": 12,
        "elapsed_ms": 41,
    }


def test_lifting_lets_traffic_flow_and_keeps_the_history(client, boss, connection):
    throw(client, reason="a drill")
    switch = KillSwitch.objects.get()
    lift = reverse("kill-switch-lift", args=[switch.pk])
    assert "Say why" in client.post(lift, {"reason": " "}, follow=True).content.decode()
    assert in_redis(connection) == {"global"}
    page = client.post(lift, {"reason": "drill over"}, follow=True).content.decode()
    assert not in_redis(connection)
    assert "Nothing is halted" in page and "drill over" in page
    switch.refresh_from_db()
    assert (switch.lifted_by, switch.lift_reason) == ("boss", "drill over")
    assert AuditEntry.objects.filter(action="lift", reason="drill over").exists()


def test_a_switch_on_record_only_is_called_so(client, boss, connection):
    throw(client)
    connection.delete(flags.KILLS)
    assert "on record, but not in Redis" in client.get(PAGE).content.decode()


def test_lifting_by_get_does_nothing(client, boss, connection):
    throw(client)
    assert client.get(reverse("kill-switch-lift", args=[KillSwitch.objects.get().pk])).status_code == 405
    assert in_redis(connection) == {"global"}


def test_a_switch_that_never_was_is_told_so(client, boss):
    assert client.get(reverse("kill-switch-thrown", args=[uuid.uuid4()])).status_code == 404
