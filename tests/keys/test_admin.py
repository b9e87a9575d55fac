"""The pages of keys, credentials and kill switches: secrets shown once or never, reasons asked, lists that stay fast."""

import datetime
import json

import pytest
import redis
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from audit.models import AuditEntry
from keys import redis as flags
from keys import services
from keys.models import KillSwitch, UpstreamCredential, VirtualKey
from keys.tokens import digest
from tests import factories
from tests.factories import ACTOR
from tests.keys.test_credentials import KEY_FILE

pytestmark = pytest.mark.django_db

KEYS = 50_000  # Enough for the planner to have a choice; 400,000 make the same plans, and take a minute to insert.


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


@pytest.fixture
def alice(client):
    """A member of one team, with the permission to work on keys."""
    user = factories.UserFactory(username="alice")
    user.user_permissions.set(Permission.objects.filter(content_type__app_label__in=["keys", "teams", "budgets"]))
    user.user_permissions.remove(Permission.objects.get(codename="view_all_teams"))
    client.force_login(user)
    return user


def url(name, *args):
    return reverse(f"admin:keys_{name}", args=args)


def key_form(project, **fields):
    named = {"name": "chatbot", "aliases": "fast,cheap", "passthrough": "", "default_tags": "{}"}
    return {"project": str(project.pk), **named, **fields}


def secret_in(page):
    found = [word for word in page.content.decode().split('"') if word.startswith("tg-") and len(word) == 35]
    assert len(found) == 1
    return found[0]


# Virtual keys


def test_a_new_keys_secret_is_shown_once(client, boss):
    page = client.post(url("virtualkey_add"), key_form(factories.ProjectFactory(), reason="for the chatbot"))
    secret = secret_in(page)
    key = VirtualKey.objects.get()
    assert key.digest == digest(secret) and key.aliases == ["fast", "cheap"]
    assert "no-store" in page["Cache-Control"]
    entry = AuditEntry.objects.get(action="issue")
    assert (entry.actor_name, entry.ip, entry.reason) == ("boss", "127.0.0.1", "for the chatbot")
    for again in [url("virtualkey_change", key.pk), url("virtualkey_changelist"), url("virtualkey_history", key.pk)]:
        assert secret not in client.get(again).content.decode()
    assert secret not in str(dict(client.session))


def test_saving_a_key_unchanged_changes_nothing(client, boss):
    key = factories.VirtualKeyFactory(aliases=["fast", "cheap"], name="chatbot")
    client.post(url("virtualkey_change", key.pk), key_form(key.project))
    assert VirtualKey.objects.get().version == 1 and not AuditEntry.objects.exists()


def test_a_key_may_pass_through_to_the_providers_it_names(client, boss):
    key = factories.VirtualKeyFactory()
    assert key.passthrough == []
    client.post(url("virtualkey_change", key.pk), key_form(key.project, passthrough="openai,anthropic"))
    assert VirtualKey.objects.get().passthrough == ["openai", "anthropic"]


def test_an_edit_is_recorded_with_its_reason(client, boss):
    key = factories.VirtualKeyFactory(aliases=["fast"], name="chatbot")
    page = client.post(url("virtualkey_change", key.pk), key_form(key.project, reason="it grew"))
    assert page.status_code == 302
    entry = AuditEntry.objects.get()
    assert (entry.before["aliases"], entry.after["aliases"], entry.reason) == (["fast"], ["fast", "cheap"], "it grew")
    history = client.get(url("virtualkey_history", key.pk)).content.decode()
    assert "it grew" in history and "cheap" in history


def test_revoking_asks_why_first(client, boss):
    key = factories.VirtualKeyFactory()
    asked = client.get(url("virtualkey_revoke", key.pk))
    assert asked.status_code == 200 and "for good" in asked.content.decode()
    assert client.post(url("virtualkey_revoke", key.pk), {"confirmed": "yes", "reason": " "}).status_code == 200
    assert VirtualKey.objects.get().revoked_at is None
    client.post(url("virtualkey_revoke", key.pk), {"confirmed": "yes", "reason": "leaked"})
    assert VirtualKey.objects.get().revoked_at is not None
    assert AuditEntry.objects.get(action="revoke").reason == "leaked"


def test_a_get_changes_nothing(client, boss):
    key = factories.VirtualKeyFactory()
    for verb in ("pause", "resume", "rotate", "revoke"):
        client.get(url(f"virtualkey_{verb}", key.pk), {"confirmed": "yes", "reason": "a link in a mail"})
    assert not AuditEntry.objects.exists()


def test_rotating_shows_the_new_secret_once(client, boss):
    key = factories.VirtualKeyFactory()
    page = client.post(url("virtualkey_rotate", key.pk), {"confirmed": "yes", "reason": "yearly"})
    assert VirtualKey.objects.get().digest == digest(secret_in(page)) != key.digest


def test_selected_keys_are_revoked_all_or_none(client, boss):
    keys = factories.VirtualKeyFactory.create_batch(3)
    form = {"action": "revoke_selected", "_selected_action": [str(key.pk) for key in keys]}
    asked = client.post(url("virtualkey_changelist"), form)
    assert asked.status_code == 200 and VirtualKey.objects.filter(revoked_at=None).count() == 3
    client.post(url("virtualkey_changelist"), form | {"confirmed": "yes", "reason": "a breach"})
    assert not VirtualKey.objects.filter(revoked_at=None).exists()
    assert AuditEntry.objects.filter(action="revoke", reason="a breach").count() == 3


def test_a_key_in_use_by_a_budget_is_not_deleted(client, boss):
    key = factories.BudgetFactory(scope="key", virtual_key=factories.VirtualKeyFactory()).virtual_key
    page = client.post(url("virtualkey_delete", key.pk), {"confirmed": "yes", "reason": "gone"})
    assert "Still in use by" in page.content.decode() and VirtualKey.objects.exists()


def test_deleting_asks_why_and_is_recorded(client, boss):
    key = factories.VirtualKeyFactory()
    assert client.get(url("virtualkey_delete", key.pk)).status_code == 200
    client.post(url("virtualkey_delete", key.pk), {"confirmed": "yes", "reason": "a test"})
    assert not VirtualKey.objects.exists()
    assert AuditEntry.objects.get(action="delete").before["digest"] == key.digest


def test_a_key_is_found_by_name_hint_and_digest(client, boss):
    key = factories.VirtualKeyFactory(name="Chatbot", secret="tg-" + "a" * 28 + "Zx9_")
    factories.VirtualKeyFactory.create_batch(3)
    for term in ["chat", "Zx9_", "tg-…Zx9_", key.digest[:8], key.digest]:
        page = client.get(url("virtualkey_changelist"), {"q": term})
        assert [row.pk for row in page.context["cl"].result_list] == [key.pk], term


@pytest.mark.parametrize("status", ["active", "paused", "revoked", "expired"])
def test_keys_are_filtered_by_the_status_they_show(client, boss, status):
    now = timezone.now()
    factories.VirtualKeyFactory(name="active", expires_at=now + datetime.timedelta(days=1))
    factories.VirtualKeyFactory(name="paused", paused_at=now)
    factories.VirtualKeyFactory(name="revoked", paused_at=now, revoked_at=now)
    factories.VirtualKeyFactory(name="expired", paused_at=now, expires_at=now)
    page = client.get(url("virtualkey_changelist"), {"status": status})
    assert [(row.name, row.status) for row in page.context["cl"].result_list] == [(status, status)]


def test_a_viewer_looks_and_does_not_touch(client, alice):
    key = factories.VirtualKeyFactory()
    factories.MembershipFactory(user=alice, team=key.project.team, role="viewer")
    page = client.get(url("virtualkey_change", key.pk))
    assert page.status_code == 200 and 'name="_save"' not in page.content.decode()
    assert client.post(url("virtualkey_change", key.pk), key_form(key.project)).status_code == 403
    assert client.post(url("virtualkey_revoke", key.pk), {"confirmed": "yes", "reason": "x"}).status_code == 403
    form = {"action": "revoke_selected", "_selected_action": [str(key.pk)], "confirmed": "yes", "reason": "x"}
    assert client.post(url("virtualkey_changelist"), form).status_code == 403
    assert VirtualKey.objects.get().revoked_at is None and not AuditEntry.objects.exists()


def test_a_member_issues_keys_in_the_own_team_only(client, alice):
    own, other = factories.ProjectFactory(), factories.ProjectFactory()
    factories.MembershipFactory(user=alice, team=own.team, role="member")
    refused = client.post(url("virtualkey_add"), key_form(other))
    assert refused.status_code == 200 and not VirtualKey.objects.exists()
    client.post(url("virtualkey_add"), key_form(own))
    assert VirtualKey.objects.get().project == own


def test_the_choice_of_a_project_shows_the_own_ones_only(client, alice):
    own, other = factories.ProjectFactory(name="own"), factories.ProjectFactory(name="other")
    factories.MembershipFactory(user=alice, team=own.team)
    query = {"app_label": "keys", "model_name": "virtualkey", "field_name": "project", "term": ""}
    offered = client.get(reverse("admin:autocomplete"), query).json()["results"]
    assert [choice["text"] for choice in offered] == [own.name] and other.name not in str(offered)


def test_charlie_revokes_nothing(client, alice):
    key = factories.VirtualKeyFactory()
    factories.MembershipFactory(user=alice, role="owner")
    for verb in ("pause", "resume", "rotate", "revoke"):
        page = client.post(url(f"virtualkey_{verb}", key.pk), {"confirmed": "yes", "reason": "x"})
        assert page.status_code == 403
    form = {"action": "revoke_selected", "_selected_action": [str(key.pk)], "confirmed": "yes", "reason": "x"}
    client.post(url("virtualkey_changelist"), form)
    assert VirtualKey.objects.get().revoked_at is None and not AuditEntry.objects.exists()


# Very many of them


@pytest.fixture
def many_keys():
    project = factories.ProjectFactory()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO keys_virtualkey
                (id, version, project_id, name, digest, hint, aliases, default_tags, created_at, created_by)
            SELECT gen_random_uuid(), 1, %s, 'key ' || n, encode(sha256(n::text::bytea), 'hex'),
                   'tg-…' || substr(md5(n::text), 1, 4), '{*}', '{}', now(), 'test'
            FROM generate_series(1, %s) n
            """,
            [project.pk, KEYS],
        )
        cursor.execute("ANALYZE keys_virtualkey")
    return project


def statements(client, **query):
    with CaptureQueriesContext(connection) as captured:
        page = client.get(url("virtualkey_changelist"), query)
    assert page.status_code == 200
    return page, [query["sql"] for query in captured if "keys_virtualkey" in query["sql"]]


def test_lists_of_very_many_keys_count_none_and_read_an_index(client, boss, many_keys):
    digest_prefix = VirtualKey.objects.get(name="key 7").digest[:10]
    for query in [{}, {"p": "3"}, {"q": "key 77777"}, {"q": digest_prefix}, {"q": "ab1f"}, {"status": "active"}]:
        page, read = statements(client, **query)
        for sql in read:
            if sql.startswith("EXPLAIN"):
                continue
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {sql}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
            assert "Seq Scan on keys_virtualkey" not in plan, (query, sql, plan)
        if "q" not in query:
            assert not any("COUNT(" in sql for sql in read)
            assert abs(page.context["cl"].result_count - KEYS) < KEYS / 5
            assert len(page.context["cl"].result_list) == 50

    alice = factories.UserFactory(username="alice")
    alice.user_permissions.set(Permission.objects.filter(codename="view_virtualkey"))
    own = factories.VirtualKeyFactory()
    factories.MembershipFactory(user=alice, team=own.project.team)
    client.force_login(alice)
    page, _ = statements(client)
    assert [row.pk for row in page.context["cl"].result_list] == [own.pk]


# Credentials


def credential_form(pool, **fields):
    return {"pool": str(pool.pk), "name": "main", "is_active": "on", "secret": "sk-canary-0123456789", **fields}


def test_a_credential_goes_in_and_never_comes_out(client, boss):
    pool = factories.CredentialPoolFactory()
    client.post(url("upstreamcredential_add"), credential_form(pool))
    credential = UpstreamCredential.objects.get()
    assert services.reveal_credential(credential).reveal() == "sk-canary-0123456789"
    for page in [
        url("upstreamcredential_change", credential.pk),
        url("upstreamcredential_changelist"),
        url("upstreamcredential_history", credential.pk),
    ]:
        shown = client.get(page).content.decode()
        assert "canary" not in shown and credential.sealed not in shown


def test_an_empty_secret_keeps_the_present_one(client, boss):
    credential = services.add_credential(factories.CredentialPoolFactory(), "main", "sk-first-0123", actor=ACTOR)
    form = credential_form(credential.pool, name="renamed", secret="")
    client.post(url("upstreamcredential_change", credential.pk), form)
    credential.refresh_from_db()
    assert credential.name == "renamed" and services.reveal_credential(credential).reveal() == "sk-first-0123"
    client.post(url("upstreamcredential_change", credential.pk), form | {"secret": "sk-second-0123"})
    credential.refresh_from_db()
    assert services.reveal_credential(credential).reveal() == "sk-second-0123"


def test_a_key_file_of_many_lines_is_taken_whole(client, boss):
    key_file = json.dumps(KEY_FILE, indent=2)
    page = client.get(url("upstreamcredential_add")).content.decode()
    assert '<textarea name="secret"' in page
    client.post(url("upstreamcredential_add"), credential_form(factories.CredentialPoolFactory(), secret=key_file))
    credential = UpstreamCredential.objects.get()
    assert json.loads(services.reveal_credential(credential).reveal()) == KEY_FILE
    assert credential.fingerprint == "4b5a"


def test_half_a_key_file_is_refused_at_its_field(client, boss):
    form = credential_form(
        factories.CredentialPoolFactory(), secret='{"type": "service_account", "private_key": "canary'
    )
    page = client.post(url("upstreamcredential_add"), form)
    assert "paste all of it" in str(page.context["adminform"].form.errors["secret"])
    assert "canary" not in page.content.decode()


def test_a_refused_credential_is_not_sent_back(client, boss):
    page = client.post(url("upstreamcredential_add"), credential_form(factories.CredentialPoolFactory(), name=""))
    assert page.status_code == 200 and "canary" not in page.content.decode()
    assert not UpstreamCredential.objects.exists()


def test_an_exported_list_holds_no_sealed_text(client, boss):
    credential = services.add_credential(factories.CredentialPoolFactory(), "=cmd()", "sk-first-0123", actor=ACTOR)
    form = {"action": "export_csv", "_selected_action": [str(credential.pk)]}
    response = client.post(url("upstreamcredential_changelist"), form)
    text = b"".join(response.streaming_content).decode()
    assert "v1." not in text and "'=cmd()" in text


# Tokens, kill switches


def test_a_new_tokens_secret_is_shown_once(client, boss):
    account = factories.ServiceAccountFactory()
    page = client.post(reverse("admin:teams_apitoken_add"), {"service_account": str(account.pk)})
    assert page.content.decode().count("tgapi-") >= 1
    token = account.tokens.get()
    assert "tgapi-…" + token.hint[-4:] == token.hint
    assert client.get(reverse("admin:teams_apitoken_delete", args=[token.pk])).status_code == 403


def test_a_kill_is_thrown_and_lifted_in_the_admin(client, boss, redis_url):
    page = client.post(url("killswitch_add"), {"scope": "global", "target": "", "reason": "leak"})
    assert page.status_code == 302, page.context["adminform"].form.errors
    switch = KillSwitch.objects.get()
    assert switch.thrown_by == "boss" and flags.flags(flags.redis_client()) == [switch.flag]
    client.post(url("killswitch_lift", switch.pk), {"confirmed": "yes", "reason": "over"})
    assert not flags.flags(flags.redis_client()) and not KillSwitch.objects.get().is_active
    assert client.get(url("killswitch_delete", switch.pk)).status_code == 403


def test_a_kill_of_nothing_is_refused_in_the_form(client, boss, redis_url):
    page = client.post(url("killswitch_add"), {"scope": "team", "target": "Research", "reason": "leak"})
    assert page.status_code == 200 and "names an id of that team" in page.content.decode()
    assert not flags.flags(flags.redis_client())


def test_while_redis_is_away_a_kill_says_that_it_was_not_thrown(client, boss, monkeypatch):
    monkeypatch.setattr(flags, "redis_client", lambda: redis.Redis.from_url("unix:///nowhere.sock"))
    page = client.post(url("killswitch_add"), {"scope": "global", "target": "", "reason": "leak"}, follow=True)
    assert "Redis does not answer" in page.content.decode() and not KillSwitch.objects.exists()
    factories.KillSwitchFactory()
    switch = KillSwitch.objects.get()
    page = client.post(url("killswitch_lift", switch.pk), {"confirmed": "yes", "reason": "over"})
    assert "Redis does not answer" in page.content.decode() and KillSwitch.objects.get().is_active


def test_alice_halts_her_team_and_lifts_no_global_switch(client, alice, redis_url):
    team = factories.MembershipFactory(user=alice, role="owner").team
    factories.KillSwitchFactory()
    switch = KillSwitch.objects.get()
    client.post(url("killswitch_add"), {"scope": "global", "target": "", "reason": "leak"})
    client.post(url("killswitch_add"), {"scope": "provider", "target": "openai", "reason": "leak"})
    assert KillSwitch.objects.count() == 1
    assert client.post(url("killswitch_lift", switch.pk), {"confirmed": "yes", "reason": "x"}).status_code == 403
    client.post(url("killswitch_add"), {"scope": "team", "target": str(team.pk), "reason": "leak"})
    assert KillSwitch.objects.filter(scope="team", thrown_by="alice").exists()
