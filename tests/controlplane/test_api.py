"""The REST API as a whole: who gets in, what they may do, how errors are said; for every endpoint that the router knows."""

import datetime
import json
import os
import uuid

import pytest
import redis
import schemathesis
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.db import OperationalError, close_old_connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from controlplane.api import router
from controlplane.wsgi import application
from keys import redis as flags
from teams.models import ApiToken
from tests import factories
from tests.api import (
    EVERY_SCOPE,
    assert_problem,
    client_of,
    client_with,
    patch,
    post,
    results,
    token_of,
    url,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

RESOURCES = {prefix: view for prefix, view, _ in router.registry}
# What belongs to a team, and how a row of one is made.
OF_A_TEAM = {
    "teams": lambda team: team,
    "projects": lambda team: factories.ProjectFactory(team=team),
    "service-accounts": lambda team: factories.ServiceAccountFactory(team=team),
    "api-tokens": lambda team: factories.ApiTokenFactory(service_account__team=team),
    "virtual-keys": lambda team: factories.VirtualKeyFactory(project__team=team),
    "budgets": lambda team: factories.BudgetFactory(team=team),
    "limits": lambda team: factories.LimitFactory(team=team),
    "increases": lambda team: factories.IncreaseFactory(budget__team=team),
    "alerts": lambda team: factories.AlertFactory(team_id=team.pk),
    "alert-channels": lambda team: factories.ChannelFactory(team=team),
    "alert-deliveries": lambda team: factories.DeliveryFactory(alert__team_id=team.pk),
    "usage-records": lambda team: factories.UsageRecordFactory(team_id=team.pk),
    "kill-switches": lambda team: factories.KillSwitchFactory(scope="team", target=str(team.pk)),
}
SHARED = {
    "providers": factories.ProviderFactory,
    "models": factories.ModelFactory,
    "prices": factories.PriceFactory,
    "exchange-rates": factories.ExchangeRateFactory,
    "exchange-rate-feeds": factories.ExchangeRateFeedFactory,
    "contracts": factories.ContractFactory,
    "price-proposals": factories.PriceProposalFactory,
    "deployments": factories.DeploymentFactory,
    "model-aliases": factories.ModelAliasFactory,
}
# What tells of every team, to who sees them all; its scope may be a team's.
OF_EVERY_TEAM = {"rerates": factories.RerateFactory}
BEYOND_TEAMS = {"credential-pools", "upstream-credentials", "audit-entries", "workers"}
SUMS = {"usage"}
# Read one by one, and not listed: `test_receipt_api.py`.
BY_REQUEST = {"receipts"}
LISTED = RESOURCES.keys() - BY_REQUEST


def operations(view):
    """(method, has an id, name of the action) of everything a view answers."""
    detail = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}
    for method, action in {"get": "list", "post": "create"}.items():
        if hasattr(view, action) and method in view.http_method_names:
            yield method, False, ""
    for method, action in detail.items():
        if hasattr(view, action) and method in view.http_method_names:
            yield method, True, ""
    for action in view.get_extra_actions():
        for method in action.mapping:
            yield method, True, action.url_path


EVERYTHING = [
    pytest.param(
        prefix, *operation, id=f"{operation[0]} {prefix}{' one' if operation[1] else ''} {operation[2]}".strip()
    )
    for prefix, view in RESOURCES.items()
    for operation in operations(view)
]
WRITES = [parameter for parameter in EVERYTHING if parameter.values[1] != "get"]


def send(client, method, prefix, pk=None, act="", body=None):
    path = url(prefix, pk, act)
    if method == "get":
        return client.get(path)
    return getattr(client, method)(path, body or {}, content_type="application/json")


def test_every_endpoint_is_sorted_by_whose_it_is():
    """A new endpoint is put into one of these, and so gets its tests."""
    assert set(RESOURCES) == set(OF_A_TEAM) | set(SHARED) | set(OF_EVERY_TEAM) | BEYOND_TEAMS | SUMS | BY_REQUEST


# Nobody


@pytest.mark.parametrize(("prefix", "method", "is_detail", "act"), EVERYTHING)
def test_nobody_gets_in_without_a_token(client, prefix, method, is_detail, act):
    answer = send(client, method, prefix, uuid.uuid4() if is_detail else None, act)
    assert_problem(answer, 401)
    assert answer["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("prefix", "method", "is_detail", "act"), EVERYTHING)
def test_a_token_without_scopes_opens_nothing(prefix, method, is_detail, act):
    client = client_of(factories.ServiceAccountFactory(scopes=[]))
    assert_problem(send(client, method, prefix, uuid.uuid4() if is_detail else None, act), 403, "needs the scope")


@pytest.mark.parametrize(("prefix", "method", "is_detail", "act"), WRITES)
def test_who_may_only_read_writes_nothing(prefix, method, is_detail, act):
    client = client_with(*[scope for scope in EVERY_SCOPE if scope.endswith(":read")])
    assert_problem(send(client, method, prefix, uuid.uuid4() if is_detail else None, act), 403, ":write")


# Charlie, who is of another team


@pytest.fixture
def charlie():
    return client_with(team=factories.TeamFactory(name="Charlie's"))


@pytest.mark.parametrize("prefix", OF_A_TEAM)
def test_charlie_sees_no_row_of_another_team(charlie, prefix):
    row = OF_A_TEAM[prefix](factories.TeamFactory())
    assert str(row.pk) not in charlie.get(url(prefix)).content.decode()
    assert str(row.pk) in client_with().get(url(prefix)).content.decode()


@pytest.mark.parametrize(
    ("prefix", "method", "is_detail", "act"),
    [parameter for parameter in EVERYTHING if parameter.values[2] and parameter.values[0] in OF_A_TEAM],
)
def test_a_row_of_another_team_does_not_exist_for_charlie(charlie, prefix, method, is_detail, act):
    row = OF_A_TEAM[prefix](factories.TeamFactory())
    assert_problem(send(charlie, method, prefix, row.pk, act), 404)
    row.refresh_from_db()


@pytest.mark.parametrize(
    ("prefix", "method", "is_detail", "act"), [p for p in EVERYTHING if p.values[0] in BEYOND_TEAMS]
)
def test_what_belongs_to_no_team_is_refused_to_an_account_of_one(charlie, prefix, method, is_detail, act):
    assert_problem(send(charlie, method, prefix, uuid.uuid4() if is_detail else None, act), 403)


@pytest.mark.parametrize(("prefix", "method", "is_detail", "act"), [p for p in WRITES if p.values[0] in SHARED])
def test_charlie_looks_at_what_is_shared_and_changes_none_of_it(charlie, prefix, method, is_detail, act):
    row = SHARED[prefix]()
    assert charlie.get(url(prefix, row.pk)).status_code == 200
    assert_problem(send(charlie, method, prefix, row.pk if is_detail else None, act), 403)


@pytest.mark.parametrize("prefix", OF_EVERY_TEAM)
def test_what_tells_of_every_team_is_not_told_to_an_account_of_one(charlie, prefix):
    row = OF_EVERY_TEAM[prefix]()
    assert results(charlie.get(url(prefix))) == []
    for method, is_detail, act in operations(RESOURCES[prefix]):
        if is_detail or method != "get":
            answer = send(charlie, method, prefix, row.pk if is_detail else None, act)
            assert_problem(answer, 404 if method == "get" else 403)
    assert str(row.pk) in client_with().get(url(prefix)).content.decode()


def test_charlie_adds_nothing_to_another_team(charlie):
    key = factories.VirtualKeyFactory()
    project, team = key.project, key.project.team
    account = factories.ServiceAccountFactory(team=team)
    bodies = {
        "projects": {"team": team.pk, "name": "x", "slug": "x"},
        "service-accounts": {"name": "x", "team": team.pk},
        "api-tokens": {"service_account": account.pk},
        "virtual-keys": {"project": project.pk, "name": "x"},
        "budgets": {"name": "x", "virtual_key": key.pk, "amount": "1"},
        "limits": {"project": project.pk, "metric": "requests", "amount": 1},
    }
    for prefix, body in bodies.items():
        assert_problem(post(charlie, url(prefix), body), 400, "does not exist")
    for scope, target in (("team", team), ("project", project), ("key", key)):
        body = {"scope": scope, "target": str(target.pk), "reason": "mine now"}
        assert_problem(post(charlie, url("kill-switches"), body), 403)
        assert_problem(post(charlie, url("kill-switches"), body | {"target": target.name}), 400, "of yours")
    for scope, target in (("global", ""), ("model", "gpt"), ("provider", "openai")):
        answer = post(charlie, url("kill-switches"), {"scope": scope, "target": target, "reason": "all mine"})
        assert answer.status_code in (400, 403)
    assert not flags.flags(flags.redis_client())


def test_charlie_makes_no_team_and_no_account_that_sees_every_team(charlie):
    assert_problem(post(charlie, url("teams"), {"name": "x", "slug": "x"}), 403)
    assert_problem(post(charlie, url("service-accounts"), {"name": "x"}), 403)


# Tokens


def test_a_token_that_is_revoked_expired_unknown_or_of_an_inactive_account_is_refused():
    now = timezone.now()
    account = factories.ServiceAccountFactory(scopes=EVERY_SCOPE)
    inactive = factories.ServiceAccountFactory(scopes=EVERY_SCOPE, is_active=False)
    clients = [
        client_of(account, revoked_at=now),
        client_of(account, expires_at=now - datetime.timedelta(seconds=1)),
        client_of(inactive),
        Client(headers={"Authorization": "Bearer tgapi-unknown"}),
        Client(headers={"Authorization": "Bearer tg-a-virtual-key"}),
        Client(headers={"Authorization": "Bearer "}),
        Client(headers={"Authorization": "Bearer tgapi-\udc80".encode("utf-8", "surrogateescape").decode("latin-1")}),
        Client(headers={"Authorization": "Basic dXNlcjpwYXNz"}),
    ]
    for client in clients:
        assert_problem(client.get(url("teams")), 401)


def test_the_last_use_of_a_token_is_noted_at_most_once_a_minute(django_assert_num_queries):
    client = client_with("teams:read")
    client.get(url("teams"))
    first = ApiToken.objects.get().last_used_at
    assert first is not None
    with django_assert_num_queries(2):  # The token, the teams.
        client.get(url("teams"))
    assert ApiToken.objects.get().last_used_at == first
    ApiToken.objects.update(last_used_at=first - datetime.timedelta(minutes=2))
    client.get(url("teams"))
    assert ApiToken.objects.get().last_used_at > first


def test_a_refused_token_is_not_repeated_in_answer_or_log(caplog):
    secret = f"{token_of(factories.ServiceAccountFactory())}x"
    answer = Client(headers={"Authorization": f"Bearer {secret}"}).get(url("teams"))
    assert secret not in answer.content.decode() + caplog.text


# People


@pytest.fixture
def alice():
    """Member of one team, viewer of another, with the permissions to work on projects."""
    user = factories.UserFactory(username="alice")
    user.user_permissions.set(Permission.objects.filter(codename__endswith="_project"))
    return user


def signed_in(user, **options):
    client = Client(**options)
    client.force_login(user)
    return client


def test_a_person_needs_the_models_permission_and_the_role_in_the_team(alice):
    own, other = (factories.MembershipFactory(user=alice, role=role).team for role in ("member", "viewer"))
    projects = [factories.ProjectFactory(team=team) for team in (own, other, factories.TeamFactory())]
    client = signed_in(alice)
    assert {row["id"] for row in results(client.get(url("projects")))} == {str(row.pk) for row in projects[:2]}
    assert_problem(client.get(url("virtual-keys")), 403)
    answers = [patch(client, url("projects", row.pk), {"name": "new"}) for row in projects]
    assert [answer.status_code for answer in answers] == [200, 403, 404]


def test_a_person_who_is_no_staff_is_refused(alice):
    alice.is_staff = False
    alice.save()
    assert_problem(signed_in(alice).get(url("projects")), 403)


def test_a_write_of_a_session_needs_its_csrf_token(alice):
    team = factories.MembershipFactory(user=alice).team
    client = signed_in(alice, enforce_csrf_checks=True)
    assert_problem(post(client, url("projects"), {"team": team.pk, "name": "x", "slug": "x"}), 403, "CSRF")


def test_a_superuser_may_do_all_of_it():
    client = signed_in(factories.UserFactory(is_superuser=True))
    for prefix in LISTED:
        assert client.get(url(prefix)).status_code == 200


# Errors


def test_an_unknown_path_is_a_problem_in_json_for_every_method():
    client = client_with()
    for method in ("get", "post", "put", "delete", "options"):
        assert_problem(getattr(client, method)("/api/v1/nothing/"), 404)
    assert_problem(client.get(url("teams", "not-an-id")), 404)


def test_a_method_that_there_is_not_is_said_so():
    team = factories.TeamFactory()
    client = client_with()
    for answer in (client.put(url("teams", team.pk)), client.options(url("teams")), client.delete(url("teams"))):
        assert_problem(answer, 405)
        assert "GET" in answer["Allow"]


def test_every_field_that_is_wrong_is_named():
    problem = assert_problem(post(client_with(), url("teams"), {"slug": "no blanks", "time_zone": "Mars"}), 400)
    assert set(problem["errors"]) == {"name", "slug", "time_zone"}
    problem = assert_problem(post(client_with(), url("model-aliases"), {"name": "x", "targets": [{"weight": 0}]}), 400)
    assert set(problem["errors"]) == {"targets.0.deployment", "targets.0.weight"}


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ("{", "application/json", 400),
        ("[]", "application/json", 400),
        ("a=b", "application/x-www-form-urlencoded", 415),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body, content_type, status):
    assert_problem(client_with().post(url("teams"), body, content_type=content_type), status)


def test_fields_and_filters_that_are_not_known_are_refused():
    body = {"name": "x", "slug": "x", "created_at": "2020-01-01T00:00:00Z", "tiem_zone": "UTC"}
    problem = assert_problem(post(client_with(), url("teams"), body), 400)
    assert set(problem["errors"]) == {"created_at", "tiem_zone"}
    problem = assert_problem(client_with().get(url("projects"), {"taem": uuid.uuid4()}), 400)
    assert set(problem["errors"]) == {"taem"}


def test_a_moment_that_the_database_does_not_know_is_refused():
    assert_problem(client_with().get(url("prices"), {"in_force_from": "1155-08-28T07:00:49+18:59"}), 400)


def test_what_is_still_in_use_is_a_conflict():
    project = factories.ProjectFactory()
    assert_problem(client_with().delete(url("teams", project.team.pk)), 409, "projects")


def test_a_redis_that_does_not_answer_is_said_and_nothing_is_halted(monkeypatch):
    nowhere = redis.Redis(unix_socket_path="/nowhere/redis.sock")
    monkeypatch.setattr(flags, "redis_client", lambda: nowhere)
    answer = post(client_with(), url("kill-switches"), {"scope": "global", "reason": "a drill"})
    assert_problem(answer, 503, "Redis")
    assert answer["Retry-After"]


def test_what_nobody_expected_is_logged_and_not_told(monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("teams.api.TeamView.get_queryset", fail)
    client = client_with()
    client.raise_request_exception = False
    assert "a secret of ours" not in json.dumps(assert_problem(client.get(url("teams")), 500))
    assert "a secret of ours" in caplog.text


def test_a_database_that_does_not_answer_is_said(monkeypatch):
    def fail(*_, **__):
        raise OperationalError("connection to 10.0.0.7 refused")

    client = client_with()
    monkeypatch.setattr("teams.api.TeamView.get_queryset", fail)
    assert "10.0.0.7" not in json.dumps(assert_problem(client.get(url("teams")), 503))


def test_answers_are_kept_by_nobody_on_the_way():
    assert client_with().get(url("teams"))["Cache-Control"] == "no-store"
    assert Client().get(url("teams"))["Cache-Control"] == "no-store"


# Lists


def test_a_list_is_read_page_by_page_and_each_row_once():
    teams = {str(factories.TeamFactory().pk) for _ in range(7)}
    client, seen, path = client_with(), [], url("teams") + "?page_size=3"
    while path:
        page = client.get(path).json()
        assert len(page["results"]) <= 3
        seen += [row["id"] for row in page["results"]]
        path = page["next"]
    assert len(seen) == 7 and set(seen) == teams
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("size", ["0", "-1", "201", "x", "1e2", "٣", ""])
def test_a_page_has_a_bound(size):
    assert_problem(client_with().get(url("teams"), {"page_size": size}), 400, "page_size")


def test_a_cursor_that_is_none_is_refused():
    for cursor in ("x", "cD14", "bz0xMDAwMDAwMDAwMA=="):
        assert client_with().get(url("teams"), {"cursor": cursor}).status_code in (200, 400, 404)
    assert_problem(client_with().get(url("teams"), {"cursor": "cD14"}), 400)


def test_a_list_asks_as_many_questions_for_many_rows_as_for_one(django_assert_max_num_queries):
    for row in (*OF_A_TEAM.items(), *((prefix, lambda _, make=make: make()) for prefix, make in SHARED.items())):
        prefix, make = row
        for _ in range(1 if prefix == "exchange-rates" else 5):
            made = make(factories.TeamFactory())
            if prefix == "model-aliases":
                factories.AliasTargetFactory(alias=made)
        client = client_with()
        client.get(url(prefix))
        with django_assert_max_num_queries(4):
            client.get(url(prefix))


# Schema and documentation


def test_the_schema_has_no_gaps(tmp_path):
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yml"))


def test_the_schema_is_open_and_names_every_endpoint(client):
    schema = client.get(reverse("api-schema"), headers={"Accept": "application/json"}).json()
    assert {url(prefix) for prefix in LISTED} <= set(schema["paths"])
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert {"401", "403", "503"} <= set(operation["responses"]), (method, path)
            # What is asked with words may be asked wrongly; what is only named may not be there.
            says_more = method != "get" or any(found["in"] == "query" for found in operation.get("parameters", ()))
            assert ("400" in operation["responses"]) is says_more, (method, path)


def test_the_documentation_loads_nothing_from_elsewhere(client):
    page = client.get(reverse("api-docs"))
    text = page.content.decode()
    assert page.status_code == 200
    assert "http://" not in text.replace("http://testserver", "") and "https://" not in text
    assert "<script>" not in text
    assert "script-src 'self'" in page["Content-Security-Policy"].split("; ")


# Whatever the schema allows, and what it does not

EXAMPLES = int(os.environ.get("TOLLGATE_TEST_API_EXAMPLES", "5"))  # For each operation.
openapi = schemathesis.openapi.from_wsgi("/api/schema/?format=json", application)


@pytest.fixture
def inhabited(redis_url):
    """A token that may do everything, where there is something of each kind."""
    team = factories.TeamFactory()
    for make in OF_A_TEAM.values():
        make(team)
    for make in SHARED.values():
        make()
    secret = token_of(factories.ServiceAccountFactory(scopes=EVERY_SCOPE))
    # The end of a request would close the connection, and with it the test's transaction.
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield secret
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@openapi.parametrize()
@settings(
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_api_keeps_to_its_schema(case, inhabited):
    # A body may be well-formed and still name a row that is not there: that is a 400 too.
    excluded = [positive_data_acceptance]
    case.call_and_validate(headers={"Authorization": f"Bearer {inhabited}"}, excluded_checks=excluded)
