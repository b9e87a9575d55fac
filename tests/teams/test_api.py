"""Teams, projects and service accounts through the API: what is written, what goes on record, and who hands out what."""

import pytest
from django.contrib.auth.models import Permission

from audit.models import AuditEntry
from teams.models import Project, ServiceAccount, Team
from tests import factories
from tests.api import EVERY_SCOPE, assert_problem, client_of, client_with, patch, post, results, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


def test_a_team_is_made_changed_and_removed_and_each_goes_on_record():
    account = factories.ServiceAccountFactory(name="terraform", scopes=["teams:read", "teams:write"])
    client = client_of(account)
    made = post(client, url("teams"), {"name": "Search", "slug": "search", "reason": "new product"})
    assert made.status_code == 201
    pk = made.json()["id"]
    assert made.json()["time_zone"] == "UTC" and "reason" not in made.json()
    assert patch(client, url("teams", pk), {"time_zone": "Asia/Kolkata", "reason": "moved"}).json()["slug"] == "search"
    assert client.delete(url("teams", pk), headers={"X-Audit-Reason": "merged"}).status_code == 204
    assert not Team.objects.exists()
    entries = list(AuditEntry.objects.filter(object_id=pk).order_by("id"))
    assert [(entry.action, entry.reason) for entry in entries] == [
        ("create", "new product"),
        ("change", "moved"),
        ("delete", "merged"),
    ]
    assert {(entry.actor_kind, entry.actor_id, entry.actor_name) for entry in entries} == {
        ("service_account", str(account.pk), "terraform")
    }
    assert {entry.ip for entry in entries} == {"127.0.0.1"}
    assert (entries[1].before["time_zone"], entries[1].after["time_zone"]) == ("UTC", "Asia/Kolkata")


def test_the_reason_in_the_body_comes_before_the_header():
    body = {"name": "Search", "slug": "search", "reason": "body"}
    post(client_with(), url("teams"), body, **{"X-Audit-Reason": "header"})
    assert AuditEntry.objects.get(object_type="teams.team").reason == "body"


def test_a_reason_has_a_bound():
    body = {"name": "Search", "slug": "search"}
    problem = assert_problem(post(client_with(), url("teams"), body, **{"X-Audit-Reason": "x" * 2_001}), 400)
    assert set(problem["errors"]) == {"reason"}
    assert not Team.objects.exists()


def test_a_project_keeps_what_is_not_said():
    project = factories.ProjectFactory(cost_centre="CC-1", required_tag_keys=["feature"])
    answer = patch(client_with(), url("projects", project.pk), {"environment": "prod"})
    assert (answer.json()["environment"], answer.json()["cost_centre"]) == ("prod", "CC-1")
    assert Project.objects.get().required_tag_keys == ["feature"]


def test_a_project_made_by_an_account_of_its_team():
    team = factories.TeamFactory()
    body = {"team": str(team.pk), "name": "Chatbot", "slug": "chatbot", "default_tags": {"feature": "search"}}
    answer = post(client_with(team=team), url("projects"), body)
    assert answer.status_code == 201
    assert answer.json()["default_tags"] == {"feature": "search"}


@pytest.mark.parametrize("tags", [{"a b": "x"}, {"a": "x" * 257}, {"a": "\x00"}, {"a": "\ud800"}, [], "x"])
def test_tags_that_are_none_are_refused(tags):
    project = factories.ProjectFactory()
    assert_problem(patch(client_with(), url("projects", project.pk), {"default_tags": tags}), 400, "default_tags")


def test_projects_are_found_by_team():
    project = factories.ProjectFactory()
    factories.ProjectFactory()
    assert [row["id"] for row in results(client_with().get(url("projects"), {"team": project.team.pk}))] == [
        str(project.pk)
    ]


# Who hands out what


def test_an_account_hands_out_the_scopes_it_holds_and_no_others():
    client = client_with("service_accounts:write", "keys:read")
    assert post(client, url("service-accounts"), {"name": "a", "scopes": ["keys:read"]}).status_code == 201
    for scope in ("keys:write", "service_accounts:read"):
        assert_problem(post(client, url("service-accounts"), {"name": "b", "scopes": [scope]}), 403, "more than you")


def test_an_account_does_not_touch_one_that_may_do_more():
    stronger = factories.ServiceAccountFactory(scopes=EVERY_SCOPE)
    client = client_with("service_accounts:read", "service_accounts:write")
    for body in ({"scopes": []}, {"is_active": False}, {"name": "weak"}):
        assert_problem(patch(client, url("service-accounts", stronger.pk), body), 403)
    assert_problem(client.delete(url("service-accounts", stronger.pk)), 403)
    assert_problem(post(client, url("api-tokens"), {"service_account": str(stronger.pk)}), 403)
    token = factories.ApiTokenFactory(service_account=stronger)
    assert_problem(post(client, url("api-tokens", token.pk, "revoke"), {"reason": "mine"}), 403)
    assert ServiceAccount.objects.get(pk=stronger.pk).scopes == EVERY_SCOPE


def test_an_account_of_a_team_does_not_make_itself_one_of_every_team():
    team = factories.TeamFactory()
    account = factories.ServiceAccountFactory(team=team, scopes=["service_accounts:read", "service_accounts:write"])
    client = client_of(account)
    assert_problem(patch(client, url("service-accounts", account.pk), {"team": None}), 403)
    assert_problem(patch(client, url("service-accounts", account.pk), {"team": ""}), 400)
    assert_problem(patch(client, url("service-accounts", account.pk), {"scopes": ["keys:write"]}), 403)
    assert ServiceAccount.objects.get(pk=account.pk).team == team


def test_scopes_beyond_a_team_are_refused_to_an_account_of_one():
    body = {"name": "a", "team": str(factories.TeamFactory().pk), "scopes": ["credentials:read"]}
    assert_problem(post(client_with(), url("service-accounts"), body), 400, "beyond one team")


def test_a_person_who_is_no_superuser_hands_out_no_scopes(client):
    person = factories.UserFactory()
    person.user_permissions.set(Permission.objects.filter(codename__endswith="_serviceaccount"))
    team = factories.MembershipFactory(user=person).team
    client.force_login(person)
    body = {"name": "a", "team": str(team.pk)}
    assert_problem(post(client, url("service-accounts"), body | {"scopes": ["keys:read"]}), 403)
    assert post(client, url("service-accounts"), body).status_code == 201


def test_accounts_are_found_by_scope():
    factories.ServiceAccountFactory(scopes=["keys:read"])
    found = factories.ServiceAccountFactory(scopes=["keys:write", "teams:read"])
    rows = results(client_with("service_accounts:read").get(url("service-accounts"), {"scope": "keys:write"}))
    assert [row["id"] for row in rows] == [str(found.pk)]
