"""Keys, credentials and tokens through the API: each secret is answered once, or never."""

import pytest

from audit.models import AuditEntry
from keys import services
from keys.models import UpstreamCredential, VirtualKey
from keys.tokens import digest
from teams.models import ApiToken
from tests import factories
from tests.api import assert_problem, client_with, patch, post, results, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

SECRET = "sk-the-providers-own-secret-7Qx9"


def test_a_new_keys_secret_is_answered_once():
    project = factories.ProjectFactory()
    client = client_with(team=project.team)
    body = {"project": str(project.pk), "name": "chatbot", "aliases": ["fast"], "passthrough": ["openai"]}
    body["default_tags"] = {"feature": "search"}
    answer = post(client, url("virtual-keys"), body)
    assert answer.status_code == 201 and answer["Cache-Control"] == "no-store"
    secret, key = answer.json()["secret"], VirtualKey.objects.get()
    assert key.digest == digest(secret) and (key.aliases, key.passthrough) == (["fast"], ["openai"])
    for again in (client.get(url("virtual-keys")), client.get(url("virtual-keys", key.pk))):
        assert again.status_code == 200
        assert secret not in again.content.decode() and key.digest not in again.content.decode()
    assert secret not in str(list(AuditEntry.objects.values()))


def test_a_key_is_paused_resumed_rotated_and_revoked():
    key = factories.VirtualKeyFactory()
    client = client_with("keys:read", "keys:write")
    assert post(client, url("virtual-keys", key.pk, "pause")).json()["status"] == "paused"
    assert post(client, url("virtual-keys", key.pk, "resume"), {"reason": "back"}).json()["status"] == "active"
    rotated = post(client, url("virtual-keys", key.pk, "rotate"), {"reason": "leaked"}).json()
    assert digest(rotated["secret"]) == VirtualKey.objects.get().digest != key.digest
    assert rotated["hint"] == VirtualKey.objects.get().hint
    answer = post(client, url("virtual-keys", key.pk, "revoke"), None, **{"X-Audit-Reason": "gone"})
    assert answer.json()["status"] == "revoked" and answer.json()["revoked_at"]
    entries = AuditEntry.objects.filter(object_id=str(key.pk)).order_by("id")
    assert [(entry.action, entry.reason) for entry in entries] == [
        ("pause", ""),
        ("resume", "back"),
        ("rotate", "leaked"),
        ("revoke", "gone"),
    ]


@pytest.mark.parametrize("act", ["rotate", "revoke"])
def test_what_hurts_needs_a_reason(act):
    key = factories.VirtualKeyFactory()
    problem = assert_problem(post(client_with(), url("virtual-keys", key.pk, act)), 400)
    assert set(problem["errors"]) == {"reason"}
    assert VirtualKey.objects.get().status == "active"


@pytest.mark.parametrize("body", [{"revoked_at": None}, {"digest": "0" * 64}, {"hint": "x"}, {"created_by": "root"}])
def test_the_state_of_a_key_is_not_written_as_a_field(body):
    key = factories.VirtualKeyFactory()
    assert_problem(patch(client_with(), url("virtual-keys", key.pk), body), 400, "not a field")


def test_a_key_stays_in_its_project_and_is_not_deleted():
    key = factories.VirtualKeyFactory()
    elsewhere = factories.ProjectFactory()
    assert_problem(patch(client_with(), url("virtual-keys", key.pk), {"project": str(elsewhere.pk)}), 400, "stays")
    assert_problem(client_with().delete(url("virtual-keys", key.pk)), 405)


def test_keys_are_found_by_name_team_and_state():
    key = factories.VirtualKeyFactory(name="Chatbot")
    factories.VirtualKeyFactory(name="other")
    client = client_with()
    for filters in ({"name": "chat"}, {"team": key.project.team.pk}, {"project": key.project.pk}, {"hint": key.hint}):
        assert [row["id"] for row in results(client.get(url("virtual-keys"), filters))] == [str(key.pk)]
    services.revoke_virtual_key(key, actor=factories.ACTOR, reason="a test")
    for is_revoked in ("true", "false"):
        names = [row["name"] for row in results(client.get(url("virtual-keys"), {"is_revoked": is_revoked}))]
        assert names == (["Chatbot"] if is_revoked == "true" else ["other"])


# The vault


def test_a_credential_goes_in_and_never_comes_out():
    pool = factories.CredentialPoolFactory()
    client = client_with("credentials:read", "credentials:write")
    answer = post(client, url("upstream-credentials"), {"pool": str(pool.pk), "name": "main", "secret": SECRET})
    assert answer.status_code == 201 and answer.json()["fingerprint"] == SECRET[-4:]
    credential = UpstreamCredential.objects.get()
    assert services.reveal_credential(credential).reveal() == SECRET
    pages = [answer, client.get(url("upstream-credentials")), client.get(url("upstream-credentials", credential.pk))]
    for page in pages:
        assert SECRET not in page.content.decode() and credential.sealed not in page.content.decode()
    assert SECRET not in str(list(AuditEntry.objects.values()))


def test_a_credentials_secret_is_replaced_with_its_other_fields_or_alone():
    pool = factories.CredentialPoolFactory()
    credential = services.add_credential(pool, "main", SECRET, actor=factories.ACTOR)
    client = client_with()
    assert patch(client, url("upstream-credentials", credential.pk), {"name": "first"}).status_code == 200
    assert services.reveal_credential(UpstreamCredential.objects.get()).reveal() == SECRET
    answer = patch(client, url("upstream-credentials", credential.pk), {"secret": f"{SECRET}-new", "is_active": False})
    assert answer.json()["is_active"] is False and answer.json()["name"] == "first"
    assert services.reveal_credential(UpstreamCredential.objects.get()).reveal() == f"{SECRET}-new"


def test_a_secret_that_can_be_none_is_refused_and_not_repeated():
    pool = factories.CredentialPoolFactory()
    for secret in ("short", "two words of it", "ключ-к-провайдеру"):
        answer = post(client_with(), url("upstream-credentials"), {"pool": str(pool.pk), "name": "x", "secret": secret})
        assert_problem(answer, 400)
        assert secret not in answer.content.decode()
    assert not UpstreamCredential.objects.exists()


def test_a_secret_does_not_move_to_another_provider():
    credential = services.add_credential(factories.CredentialPoolFactory(), "main", SECRET, actor=factories.ACTOR)
    elsewhere = factories.CredentialPoolFactory(provider="attacker")
    answer = patch(client_with(), url("upstream-credentials", credential.pk), {"pool": str(elsewhere.pk)})
    assert_problem(answer, 400, "belongs to")


# Tokens of this API


def test_a_tokens_secret_is_answered_once_and_opens_the_api():
    account = factories.ServiceAccountFactory(scopes=["teams:read"])
    issuer = client_with("service_accounts:read", "service_accounts:write", "teams:read")
    answer = post(issuer, url("api-tokens"), {"service_account": str(account.pk)})
    assert answer.status_code == 201
    secret = answer.json()["secret"]
    headers = {"Authorization": f"Bearer {secret}"}
    assert issuer.get(url("teams"), headers=headers).status_code == 200
    token = ApiToken.objects.get(service_account=account)
    for again in (issuer.get(url("api-tokens")), issuer.get(url("api-tokens", token.pk))):
        assert secret not in again.content.decode() and token.digest not in again.content.decode()
    revoked = post(issuer, url("api-tokens", token.pk, "revoke"), {"reason": "gone"})
    assert revoked.json()["revoked_at"]
    assert_problem(issuer.get(url("teams"), headers=headers), 401)
