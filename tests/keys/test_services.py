"""Keys, credentials and kill switches: what each verb does, what it leaves on record, and what it never shows."""

import json
import logging
import threading
import uuid

import pytest
import redis as redis_client_library
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from audit.models import AuditEntry
from keys import redis as flags
from keys import services
from keys.kills import decode_flag
from keys.models import KillSwitch, UpstreamCredential, VirtualKey
from keys.tokens import digest
from tests import factories
from tests.factories import ACTOR
from tests.stack import wait_until

pytestmark = pytest.mark.django_db

NEW_MASTER_KEY = "bmV3IG1hc3RlciBrZXkgZm9yIHRoZSB0ZXN0czogMzI="


@pytest.fixture
def client(redis_url):
    return flags.redis_client()


def actions():
    return list(AuditEntry.objects.order_by("id").values_list("action", flat=True))


# Virtual keys


def test_an_issued_key_is_known_by_its_digest_alone():
    issued = services.issue_virtual_key(factories.ProjectFactory(), "chatbot", actor=ACTOR, aliases=["fast"])
    secret = issued.secret.reveal()
    stored = VirtualKey.objects.get()
    assert stored.digest == digest(secret) and stored.hint.endswith(secret[-4:]) and stored.created_by == "test"
    row = json.dumps({name: str(value) for name, value in VirtualKey.objects.values().get().items()})
    entry = AuditEntry.objects.get(action="issue")
    for text in (row, json.dumps(entry.after), repr(issued)):
        assert secret not in text


def test_a_key_without_aliases_may_call_nothing():
    assert services.issue_virtual_key(factories.ProjectFactory(), "x", actor=ACTOR).virtual_key.aliases == []


def test_a_key_is_paused_and_resumed():
    key = factories.VirtualKeyFactory()
    services.pause_virtual_key(key, actor=ACTOR, reason="holiday")
    assert VirtualKey.objects.get().status == "paused"
    since = VirtualKey.objects.get().paused_at
    services.pause_virtual_key(key, actor=ACTOR)
    assert VirtualKey.objects.get().paused_at == since
    services.resume_virtual_key(key, actor=ACTOR)
    assert VirtualKey.objects.get().status == "active"
    assert actions() == ["pause", "resume"]


def test_a_revoked_key_never_comes_back():
    key = factories.VirtualKeyFactory()
    services.revoke_virtual_key(key, actor=ACTOR, reason="leaked")
    services.revoke_virtual_key(key, actor=ACTOR, reason="leaked again")
    services.resume_virtual_key(key, actor=ACTOR)
    assert VirtualKey.objects.get().status == "revoked" and actions() == ["revoke"]
    with pytest.raises(ValidationError, match="stays revoked"):
        services.audit.change(key, actor=ACTOR, values={"revoked_at": None})


def test_revoking_and_rotating_want_a_reason():
    key = factories.VirtualKeyFactory()
    for verb in (services.revoke_virtual_key, services.rotate_virtual_key):
        with pytest.raises(ValidationError, match="Say why"):
            verb(key, actor=ACTOR, reason="  ")
    assert actions() == [] and VirtualKey.objects.get().digest == key.digest


def test_a_rotated_key_has_another_secret_and_a_higher_version():
    key = factories.VirtualKeyFactory()
    old = key.digest
    issued = services.rotate_virtual_key(key, actor=ACTOR, reason="yearly")
    stored = VirtualKey.objects.get()
    assert stored.digest == digest(issued.secret.reveal()) != old
    assert stored.version == 2
    entry = AuditEntry.objects.get()
    assert (entry.before["digest"], entry.after["digest"]) == (old, stored.digest)


def test_a_key_stays_in_its_project():
    with pytest.raises(ValidationError, match="stays in its project"):
        services.audit.change(
            factories.VirtualKeyFactory(), actor=ACTOR, values={"project": factories.ProjectFactory()}
        )


# Tokens of the API


def test_a_token_is_issued_once_and_revoked_for_good():
    issued = services.issue_api_token(factories.ServiceAccountFactory(), actor=ACTOR)
    token = issued.api_token
    assert issued.secret.reveal().startswith("tgapi-") and token.digest == digest(issued.secret.reveal())
    assert token.is_usable
    services.revoke_api_token(token, actor=ACTOR, reason="left")
    assert not token.is_usable
    assert issued.secret.reveal() not in str(list(AuditEntry.objects.values()))
    assert token.digest not in str(list(AuditEntry.objects.values()))


# The vault


def test_a_credential_is_sealed_and_opens_for_its_own_row_only():
    pool = factories.CredentialPoolFactory()
    one = services.add_credential(pool, "one", "sk-canary-0123456789", actor=ACTOR)
    other = services.add_credential(pool, "other", "sk-another-0123456789", actor=ACTOR)
    assert services.reveal_credential(one).reveal() == "sk-canary-0123456789"
    other.sealed = one.sealed
    with pytest.raises(ValueError, match="another record"):
        services.reveal_credential(other)


def test_no_trace_of_a_credential_is_left_in_the_database():
    pool = factories.CredentialPoolFactory()
    credential = services.add_credential(pool, "one", "sk-canary-0123456789", actor=ACTOR)
    services.replace_credential_secret(credential, "sk-canary-9876543210", actor=ACTOR)
    rows = str(list(AuditEntry.objects.values())) + str(list(UpstreamCredential.objects.values()))
    assert "canary" not in rows
    assert AuditEntry.objects.get(action="replace secret").after["sealed"] == "[redacted, changed]"
    assert UpstreamCredential.objects.get().fingerprint == "3210"


@pytest.mark.parametrize("secret", ["", "short", "sk-with a blank", "sk-ümlaut-0123", "sk-line\nbreak-0123"])
def test_what_can_be_no_credential_is_refused_without_being_repeated(secret):
    with pytest.raises(ValidationError) as refused:
        services.add_credential(factories.CredentialPoolFactory(), "one", secret, actor=ACTOR)
    assert not secret or secret not in str(refused.value)


def test_a_new_master_key_takes_over_without_the_secrets_changing(settings):
    credential = services.add_credential(factories.CredentialPoolFactory(), "one", "sk-0123456789", actor=ACTOR)
    settings.TOLLGATE_VAULT_KEY = f"{NEW_MASTER_KEY},{settings.TOLLGATE_VAULT_KEY}"
    assert services.rewrap_rows(UpstreamCredential.objects.all(), actor=ACTOR) == 1
    assert services.rewrap_rows(UpstreamCredential.objects.all(), actor=ACTOR) == 0
    settings.TOLLGATE_VAULT_KEY = NEW_MASTER_KEY
    credential.refresh_from_db()
    assert services.reveal_credential(credential).reveal() == "sk-0123456789"


@pytest.mark.django_db(transaction=True)
def test_a_secret_that_is_replaced_while_it_is_rewrapped_stays_replaced(settings):
    credential = services.add_credential(factories.CredentialPoolFactory(), "one", "sk-0123456789", actor=ACTOR)
    settings.TOLLGATE_VAULT_KEY = f"{NEW_MASTER_KEY},{settings.TOLLGATE_VAULT_KEY}"
    with transaction.atomic():
        services.replace_credential_secret(credential, "sk-9876543210", actor=ACTOR)
        rewrapping = threading.Thread(target=_rewrap)
        rewrapping.start()
        wait_until(_is_somebody_waiting_for_a_row, "the one who rewraps")
    rewrapping.join()
    credential.refresh_from_db()
    assert services.reveal_credential(credential).reveal() == "sk-9876543210"


def _rewrap():
    services.rewrap_rows(UpstreamCredential.objects.all(), actor=ACTOR)
    connection.close()


def _is_somebody_waiting_for_a_row():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0] > 0


def test_the_command_rewraps_what_is_sealed_wherever_it_is(settings, capsys):
    credential = services.add_credential(factories.CredentialPoolFactory(), "one", "sk-0123456789", actor=ACTOR)
    settings.TOLLGATE_VAULT_KEY = f"{NEW_MASTER_KEY},{settings.TOLLGATE_VAULT_KEY}"
    call_command("rewrap_secrets")
    assert "upstream credentials: 1 sealed anew" in capsys.readouterr().out
    settings.TOLLGATE_VAULT_KEY = NEW_MASTER_KEY
    credential.refresh_from_db()
    assert services.reveal_credential(credential).reveal() == "sk-0123456789"


def test_the_command_says_what_to_do_when_the_old_master_key_is_gone(settings):
    services.add_credential(factories.CredentialPoolFactory(), "one", "sk-0123456789", actor=ACTOR)
    settings.TOLLGATE_VAULT_KEY = NEW_MASTER_KEY
    with pytest.raises(CommandError, match="Put the key back"):
        call_command("rewrap_secrets")


def test_a_secret_stays_with_its_provider():
    credential = services.add_credential(
        factories.CredentialPoolFactory(provider="openai"), "one", "sk-0123456789", actor=ACTOR
    )
    with pytest.raises(ValidationError, match="belongs to openai"):
        services.audit.change(
            credential, actor=ACTOR, values={"pool": factories.CredentialPoolFactory(provider="elsewhere")}
        )
    pool = UpstreamCredential.objects.get().pool
    with pytest.raises(ValidationError, match="keeps its provider"):
        services.audit.change(pool, actor=ACTOR, values={"provider": "elsewhere"})


# Kill switches


def test_a_kill_is_in_redis_and_on_record(client):
    team = factories.TeamFactory()
    listener = client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe("tg:push")
    listener.get_message(timeout=30)
    switch = services.throw_kill_switch("team", str(team.pk), reason="leak", actor=ACTOR)
    flag = decode_flag(client.hget("tg:kills", f"team:{team.pk}"))
    assert flag == KillSwitch.objects.get().flag and flag.kill_switch_id == str(switch.pk)
    assert client.hget("tg:versions", "kills") == b"1"
    message = json.loads(listener.get_message(timeout=30)["data"])
    assert (message["kind"], message["version"], message["flag"]["reason"]) == ("kill", 1, "leak")
    assert AuditEntry.objects.get(action="throw").reason == "leak"
    listener.close()


def test_a_kill_thrown_twice_is_one(client):
    one = services.throw_kill_switch("model", "gpt", reason="first", actor=ACTOR)
    two = services.throw_kill_switch("model", "gpt", reason="second", actor=ACTOR)
    assert one.pk == two.pk and two.reason == "first" and KillSwitch.objects.count() == 1


def test_a_kill_whose_flag_redis_lost_is_put_back(client):
    one = services.throw_kill_switch("model", "gpt", reason="first", actor=ACTOR)
    client.flushall()
    two = services.throw_kill_switch("model", "gpt", reason="second", actor=ACTOR)
    assert one.pk == two.pk
    assert flags.flags(client) == [one.flag]


def test_a_lifted_kill_lets_traffic_flow_and_stays_on_record(client):
    switch = services.throw_kill_switch("global", reason="drill", actor=ACTOR)
    services.lift_kill_switch(switch, reason="over", actor=ACTOR)
    assert not client.exists("tg:kills") and not switch.is_active
    assert (switch.lifted_by, switch.lift_reason) == ("test", "over")
    assert actions() == ["throw", "lift"]
    again = services.throw_kill_switch("global", reason="drill", actor=ACTOR)
    assert again.pk != switch.pk
    services.lift_kill_switch(switch, reason="a late click", actor=ACTOR)
    assert [flag.kill_switch_id for flag in flags.flags(client)] == [str(again.pk)]


@pytest.mark.parametrize(
    ("scope", "target"),
    [
        ("team", "Research"),
        ("team", ""),
        ("key", "tg-x"),
        ("model", ""),
        ("global", "x"),
        ("planet", "x"),
        ("planet", ""),
    ],
)
def test_a_kill_that_would_stop_nothing_is_refused(client, scope, target):
    with pytest.raises(ValidationError):
        services.throw_kill_switch(scope, target, reason="leak", actor=ACTOR)
    assert not client.exists("tg:kills")


def test_an_id_is_spelled_as_the_data_path_spells_it(client):
    team = uuid.uuid4()
    services.throw_kill_switch("team", f" {str(team).upper()} ", reason="leak", actor=ACTOR)
    assert client.hkeys("tg:kills") == [f"team:{team}".encode()]


def test_a_kill_wants_a_reason(client):
    with pytest.raises(ValidationError, match="Say why"):
        services.throw_kill_switch("global", reason=" ", actor=ACTOR)
    assert not client.exists("tg:kills")


def test_a_kill_that_could_not_be_thrown_is_not_on_record(settings, monkeypatch):
    nowhere = redis_client_library.Redis.from_url("unix:///nowhere.sock")
    monkeypatch.setattr(flags, "redis_client", lambda: nowhere)
    with pytest.raises(redis_client_library.ConnectionError):
        services.throw_kill_switch("global", reason="leak", actor=ACTOR)
    assert not KillSwitch.objects.exists()


def test_a_lift_that_redis_did_not_take_leaves_the_switch_thrown(client, monkeypatch):
    switch = services.throw_kill_switch("global", reason="leak", actor=ACTOR)
    nowhere = redis_client_library.Redis.from_url("unix:///nowhere.sock")
    monkeypatch.setattr(flags, "redis_client", lambda: nowhere)
    with pytest.raises(redis_client_library.ConnectionError):
        services.lift_kill_switch(switch, reason="over", actor=ACTOR)
    assert KillSwitch.objects.get().is_active and "lift" not in actions()


@pytest.mark.django_db(transaction=True)
def test_without_postgresql_a_kill_works_and_is_recorded_later(client, postgres_away):
    with postgres_away():
        thrown = services.throw_kill_switch("model", "gpt", reason="leak", actor=ACTOR)
        assert [flag.kill_switch_id for flag in flags.flags(client)] == [str(thrown.pk)]
    assert services.record_unrecorded_kills() == 1
    assert KillSwitch.objects.get().flag == thrown.flag
    with postgres_away():
        services.lift_flag(thrown.flag, reason="over", actor=ACTOR)
        assert not flags.flags(client)
    assert services.record_unrecorded_kills() == 1
    assert services.record_unrecorded_kills() == 0
    switch = KillSwitch.objects.get()
    assert not switch.is_active and switch.lift_reason == "over"
    assert actions() == ["throw", "lift"]


@pytest.mark.django_db(transaction=True)
def test_two_people_who_throw_at_once_throw_one(client):
    thrown = []

    def throw():
        thrown.append(services.throw_kill_switch("global", reason="leak", actor=ACTOR).pk)
        connection.close()

    threads = [threading.Thread(target=throw) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(thrown)) == 1 and len(thrown) == 6 and KillSwitch.objects.count() == 1


@pytest.mark.parametrize("scope", ["global", "model", "provider"])
def test_who_sees_one_team_halts_no_others(scope):
    alice, own, other = factories.UserFactory(), factories.TeamFactory(), factories.TeamFactory()
    factories.MembershipFactory(user=alice, team=own, role="owner")
    viewer = factories.MembershipFactory(team=own, role="viewer").user
    assert services.may_halt(alice, "team", str(own.pk))
    assert not services.may_halt(alice, "team", str(other.pk))
    assert not services.may_halt(alice, scope, "x")
    assert not services.may_halt(viewer, "team", str(own.pk))
    assert services.may_halt(factories.UserFactory(is_superuser=True), scope, "x")


def test_no_secret_is_logged(client, caplog):
    with caplog.at_level(logging.DEBUG):
        issued = services.issue_virtual_key(factories.ProjectFactory(), "x", actor=ACTOR)
        services.add_credential(factories.CredentialPoolFactory(), "one", "sk-canary-0123456789", actor=ACTOR)
    logged = "".join(record.getMessage() for record in caplog.records)
    assert issued.secret.reveal() not in logged and "canary" not in logged
