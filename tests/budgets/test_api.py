"""Budgets, limits and sums of usage through the API."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from audit.models import AuditEntry
from audit.records import Usage, UsageEvent
from budgets import ledger_rows
from budgets.models import Budget
from budgets.rollups import Rollups
from tests import factories
from tests.api import assert_problem, client_with, patch, post, results, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


@pytest.mark.parametrize(("field", "scope"), [("team", "team"), ("project", "project"), ("virtual_key", "key")])
def test_a_budget_is_for_what_is_named(field, scope):
    key = factories.VirtualKeyFactory()
    subject = {"team": key.project.team, "project": key.project, "virtual_key": key}[field]
    body = {"name": "cap", field: str(subject.pk), "window": "day", "amount": "12.5", "reason": "pilot"}
    answer = post(client_with(team=key.project.team), url("budgets"), body)
    assert answer.status_code == 201
    assert (answer.json()["scope"], answer.json()["amount"]) == (scope, "12.5")
    assert AuditEntry.objects.get(object_type="budgets.budget").reason == "pilot"


def test_a_budget_is_of_one_owner_and_keeps_its_subject():
    project = factories.ProjectFactory()
    both = {"team": str(project.team.pk), "project": str(project.pk)}
    assert_problem(post(client_with(), url("budgets"), {"name": "cap", "amount": "1", **both}), 400, "at most one")
    budget = factories.BudgetFactory()
    narrower = ({"environment": "prod"}, {"end_user": "ann"}, {"tags": {"a": "b"}}, {"each": ["end_user"]})
    for body in ({"team": str(project.team.pk)}, {"project": str(project.pk)}, {"scope": "project"}, *narrower):
        assert_problem(patch(client_with(), url("budgets", budget.pk), body), 400)


def test_a_budget_of_a_key_is_changed_and_removed_with_the_keys_version():
    key = factories.VirtualKeyFactory()
    budget = factories.BudgetFactory(scope="key", team=None, virtual_key=key)
    client = client_with("budgets:read", "budgets:write")
    assert patch(client, url("budgets", budget.pk), {"amount": "1"}).json()["amount"] == "1"
    assert client.delete(url("budgets", budget.pk)).status_code == 204
    key.refresh_from_db()
    assert (key.version, Budget.objects.count()) == (3, 0)


def test_a_second_limit_of_the_same_metric_is_refused():
    limit = factories.LimitFactory()
    body = {"team": str(limit.team.pk), "metric": "requests", "amount": 1}
    assert_problem(post(client_with(), url("limits"), body), 400, "such a limit already")


def test_the_rules_within_a_team_are_found_together():
    key = factories.VirtualKeyFactory()
    budgets = [
        factories.BudgetFactory(team=key.project.team),
        factories.BudgetFactory(scope="project", team=None, project=key.project),
        factories.BudgetFactory(scope="key", team=None, virtual_key=key),
    ]
    factories.BudgetFactory()
    found = results(client_with().get(url("budgets"), {"of_team": key.project.team.pk}))
    assert {row["id"] for row in found} == {str(budget.pk) for budget in budgets}


# Usage

NOON = datetime(2026, 10, 31, 12, tzinfo=UTC)
SPAN = {"start": "2026-10-31", "end": "2026-11-02"}


def spend(at=NOON, *, team=None, nanos=1, tags=None, **fields):
    """One attempt, in the roll-ups."""
    team_id = str(team.pk) if team else str(uuid.uuid4())
    event = UsageEvent(
        attempt_id=str(uuid.uuid4()),
        request_id=str(uuid.uuid4()),
        admitted_at_us=int(at.timestamp() * 1_000_000),
        team_id=team_id,
        project_id=fields.pop("project_id", team_id),
        virtual_key_id=team_id,
        alias="fast",
        provider="acme",
        deployment="acme/m",
        request_model="m",
        cost_nanos=nanos,
        usage=Usage(input_tokens=10, output_tokens=5, cache_read_input_tokens=4),
        tags=tags or {},
        **{"model": "m", "status_code": 200} | fields,
    )
    rollups = Rollups()
    rollups.add(event)
    ledger_rows.add_hours(rollups.hours)
    ledger_rows.add_tags(rollups.tags)


def asked(client=None, **parameters):
    return results((client or client_with("usage:read")).get(url("usage"), SPAN | parameters))


def test_the_sum_of_all_is_one_row_also_of_nothing():
    assert [row["cost_usd"] for row in asked()] == ["0.000000000"]
    spend()
    spend(status_code=500)
    assert asked() == [
        {
            "requests": 2,
            "errors": 1,
            "tokens": 30,
            "input_tokens": 20,
            "output_tokens": 10,
            "cached_tokens": 8,
            "cost_usd": "0.000000002",
        }
    ]


def test_sums_are_exact_to_the_nano():
    for nanos in (10**18 + 1, 1, 3):  # A float would lose these.
        spend(nanos=nanos)
    assert asked()[0]["cost_usd"] == "1000000000.000000005"


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("hour", ["2026-10-31T12:00:00Z", "2026-10-31T23:00:00Z", "2026-11-01T00:00:00Z"]),
        ("day", ["2026-10-31", "2026-11-01"]),
        ("month", ["2026-10-01", "2026-11-01"]),
    ],
)
def test_usage_by_time(unit, values):
    for at in (NOON, NOON + timedelta(hours=11, minutes=59), NOON + timedelta(hours=12)):
        spend(at)
    assert [row[unit] for row in asked(group_by=unit)] == values
    # The same from the hours as from the days.
    assert [row[unit] for row in asked(group_by=unit, start="2026-10-31T01:00:00Z")] == values


def test_the_end_is_exclusive_and_the_start_is_not():
    spend(NOON)
    spend(NOON + timedelta(hours=1))
    rows = asked(start=NOON.isoformat(), end=(NOON + timedelta(hours=1)).isoformat())
    assert rows[0]["requests"] == 1


def test_what_a_team_spent_by_feature():
    team, other = factories.TeamFactory(), factories.TeamFactory()
    spend(team=team, nanos=2, tags={"feature": "search", "customer": "acme"})
    spend(team=team, nanos=3, tags={"feature": "chat"})
    spend(team=other, nanos=5, tags={"feature": "chat"})
    rows = asked(team=str(team.pk), group_by="tag:feature")
    assert [(row["tag"], row["cost_usd"], row["errors"]) for row in rows] == [
        ("chat", "0.000000003", None),
        ("search", "0.000000002", None),
    ]
    rows = asked(tag="feature=chat", group_by="team,month")
    assert {row["team"]: row["cost_usd"] for row in rows} == {
        str(team.pk): "0.000000003",
        str(other.pk): "0.000000005",
    }


def test_an_account_of_a_team_sums_up_that_team_only():
    team, other = factories.TeamFactory(), factories.TeamFactory()
    spend(team=team, nanos=2, tags={"feature": "chat"})
    spend(team=other, nanos=5, tags={"feature": "chat"})
    charlie = client_with(team=team)
    for parameters in (
        {},
        {"group_by": "team"},
        {"group_by": "model"},
        {"group_by": "tag:feature"},
        {"tag": "feature=chat"},
    ):
        assert [row["cost_usd"] for row in asked(charlie, **parameters)] == ["0.000000002"]
    assert asked(charlie, team=str(other.pk))[0]["requests"] == 0


def test_groups_come_page_by_page_in_order_and_each_once():
    for model in "abc":
        for hour in range(3):
            spend(NOON + timedelta(hours=hour), model=model)
    client, seen = client_with(), []
    path = f"{url('usage')}?start=2026-10-31&end=2026-11-01&group_by=model,hour&page_size=2"
    while path:
        page = client.get(path).json()
        seen += [(row["model"], row["hour"]) for row in page["results"]]
        path = page["next"]
    assert seen == [(model, f"2026-10-31T{12 + hour}:00:00Z") for model in "abc" for hour in range(3)]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": "tag"}, "group_by"),
        ({"group_by": "tag:"}, "group_by"),
        ({"group_by": "tag:a,tag:b"}, "group_by"),
        ({"group_by": "team,team"}, "group_by"),
        ({"group_by": "day,month"}, "group_by"),
        ({"group_by": "model,tag:a"}, "group_by"),
        ({"group_by": "tag:a", "model": "m"}, "model"),
        ({"group_by": "tag:a", "tag": "b=c"}, "tag"),
        ({"tag": "a"}, "tag"),
        ({"start": "yesterday"}, "start"),
        ({"start": "2026-10-31T00:30:00Z"}, "start"),
        ({"start": "0001-01-01"}, "start"),
        ({"start": "2026-11-02"}, "end"),
        ({"start": "2026-01-01", "group_by": "hour"}, "start"),
        ({"team": "x"}, "team"),
        ({"taem": "x"}, "taem"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "bnVsbA=="}, "cursor"),
        ({"group_by": "day", "cursor": "WzFd"}, "cursor"),
        ({"group_by": "day", "cursor": "WyJ4Il0="}, "cursor"),
        ({"page_size": "0"}, "page_size"),
        ({"page_size": "201"}, "page_size"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(parameters, field):
    problem = assert_problem(client_with().get(url("usage"), SPAN | parameters), 400)
    assert set(problem["errors"]) == {field}
