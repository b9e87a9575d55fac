"""Budgets, limits and sums of usage through the API."""

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone

from audit.models import AuditEntry
from audit.records import Usage, UsageEvent
from budgets import gate, ledger_rows
from budgets.counters import observed_since, would_have_refused
from budgets.models import Budget
from budgets.rollups import Rollups
from budgets.windows import window_bounds
from keys.redis import redis_client
from tests import factories
from tests.api import assert_problem, client_with, patch, post, results, url

DAY_S = 86_400

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


def test_a_budget_of_any_subject_goes_in_and_comes_out():
    project, model = factories.ProjectFactory(), factories.ModelFactory(name="small")
    body = {
        "name": "cap",
        "project": str(project.pk),
        "model": str(model.pk),
        "tags": {"customer": "acme"},
        "each": ["end_user"],
        "window": "quarter",
        "fiscal_month": 4,
        "unit": "tokens",
        "amount": "5000000",
        "mode": "observe",
        "rollover": "10",
        "thresholds": [{"percent": 80}, {"percent": 90, "action": "throttle", "per_minute": 30}],
    }
    answer = post(client_with(team=project.team), url("budgets"), body)
    assert answer.status_code == 201, answer.content
    said = answer.json()
    thresholds = [(row["percent"], row["action"], row["per_minute"]) for row in said.pop("thresholds")]
    assert thresholds == [(80, "alert", None), (90, "throttle", 30)]
    assert {name: said[name] for name in body if name != "thresholds"} == {
        name: value for name, value in body.items() if name != "thresholds"
    }
    assert [row["id"] for row in results(client_with().get(url("budgets"), {"tag": "customer=acme"}))] == [said["id"]]


def test_thresholds_are_set_as_a_whole():
    budget = factories.ThresholdFactory(percent=50).budget
    factories.ThresholdFactory(budget=budget, percent=80)
    body = {"thresholds": [{"percent": 80}, {"percent": 100, "action": "block"}]}
    said = patch(client_with(), url("budgets", budget.pk), body).json()["thresholds"]
    assert [(row["percent"], row["action"]) for row in said] == [(80, "alert"), (100, "block")]
    assert patch(client_with(), url("budgets", budget.pk), {"name": "new"}).json()["thresholds"] == said
    for wrong in ({"percent": 1, "colour": 1}, {"action": "alert"}, {"percent": 1, "action": "throttle"}):
        assert_problem(patch(client_with(), url("budgets", budget.pk), {"thresholds": [wrong]}), 400)


@pytest.mark.parametrize(("resource", "fields"), [("budgets", {"name": "x"}), ("limits", {"metric": "requests"})])
def test_what_is_for_everybody_is_set_by_who_sees_every_team(resource, fields):
    model = factories.ModelFactory()
    body = fields | {"amount": "1", "model": str(model.pk)}
    charlie = client_with(team=factories.TeamFactory())
    assert_problem(post(charlie, url(resource), body), 403, "every team")
    answer = post(client_with(), url(resource), body)
    assert (answer.status_code, answer.json()["scope"]) == (201, "global")
    assert_problem(charlie.get(url(resource, answer.json()["id"])), 404)


# Spend


def test_the_spend_of_a_budget_is_told_by_counter():
    budget = factories.BudgetFactory(amount=Decimal(2), each=["model"], window="day", mode="observe")
    now = timezone.now()
    for model, nanos in (("small", 10**9), ("large", 3 * 10**9)):
        spend(now, team=budget.team, nanos=nanos, model=model)
    spend(now - timedelta(days=1), team=budget.team, nanos=5)
    redis = redis_client()
    (start_s, _) = window_bounds("day", "UTC", now.timestamp())
    redis.set(gate.EPOCH, "epoch")
    redis.set(gate.spend_key(str(budget.pk), start_s, "small"), 10**9 + 500)
    client = client_with("budgets:read")
    said = client.get(url("budgets", budget.pk, "spend")).json()
    assert (said["unit"], said["amount"], said["increased_by"], said["is_cut"]) == ("usd", "2", "0", False)
    large, small = said["counters"]
    assert large | {"left": "0", "spent": "3", "each": {"model": "large"}} == large
    assert (small["spent"], small["held"], small["left"]) == ("1", "0.0000005", "0.9999995")
    yesterday = client.get(url("budgets", budget.pk, "spend"), {"at": (now - timedelta(days=1)).isoformat()}).json()
    assert [row["spent"] for row in yesterday["counters"]] == ["0.000000005"]
    assert yesterday["window_end"] == said["window_start"]
    for at in ("soon", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        assert_problem(client.get(url("budgets", budget.pk, "spend"), {"at": at}), 400)


def test_the_last_seven_days_are_those_of_utc_with_the_present_one():
    rule, last_moment = factories.LimitFactory(is_observed=True), datetime(2026, 11, 21, 23, 59, 59, tzinfo=UTC)
    assert observed_since(last_moment) == datetime(2026, 11, 15, tzinfo=UTC)
    for day, count in ((14, 1_000), (15, 200), (21, 12), (22, 1_000)):
        redis_client().hset(
            gate.observed_key(int(datetime(2026, 11, day, tzinfo=UTC).timestamp())), str(rule.pk), count
        )
    assert would_have_refused([rule], last_moment, redis_client()) == {rule.pk: 212}


@pytest.mark.parametrize("resource", ["budgets", "limits"])
def test_what_a_rule_would_have_refused_is_told_of_seven_days(resource):
    observing = {"budgets": {"mode": "observe"}, "limits": {"is_observed": True}}[resource]
    factory = {"budgets": factories.BudgetFactory, "limits": factories.LimitFactory}[resource]
    rule, enforced = factory(**observing), factory()
    client, redis = client_with("budgets:read"), redis_client()
    since = datetime.fromisoformat(client.get(url(resource, rule.pk, "observed")).json()["since"])
    # Midnight may come meanwhile.
    for day, count in ((-1, 1_000), (1, 200), (5, 12)):
        redis.hset(gate.observed_key(int(since.timestamp()) + day * DAY_S), str(rule.pk), count)
    assert client.get(url(resource, rule.pk, "observed")).json()["requests"] == 212
    assert client.get(url(resource, enforced.pk, "observed")).json()["requests"] is None
    assert_problem(client_with(team=factories.TeamFactory()).get(url(resource, rule.pk, "observed")), 404)


def test_the_spend_of_a_total_has_no_end_and_is_told_while_redis_is_empty():
    budget = factories.BudgetFactory(window="total", unit="requests", amount=Decimal(10))
    factories.IncreaseFactory(budget=budget, amount=Decimal(5), state="approved", decided_by="x", decided_at=NOON)
    said = client_with().get(url("budgets", budget.pk, "spend")).json()
    (counter,) = said["counters"]
    assert said["window_end"] is None and said["increased_by"] == "5"
    assert (counter["spent"], counter["held"], counter["left"]) == ("0", None, "15")


@pytest.mark.parametrize(("mode", "percent", "left"), [("hard", 80, "8"), ("hard", 120, "10"), ("soft", 120, "12")])
def test_what_is_left_is_left_of_what_blocks(mode, percent, left):
    budget = factories.BudgetFactory(amount=Decimal(10), mode=mode)
    factories.ThresholdFactory(budget=budget, percent=percent, action="block")
    (counter,) = client_with().get(url("budgets", budget.pk, "spend")).json()["counters"]
    assert counter["left"] == left


def test_a_share_above_the_whole_blocks_no_hard_budget():
    body = {"thresholds": [{"percent": 120, "action": "block"}]}
    hard, soft = factories.BudgetFactory(), factories.BudgetFactory(mode="soft")
    assert_problem(patch(client_with(), url("budgets", hard.pk), body), 400, "at its amount")
    assert patch(client_with(), url("budgets", soft.pk), body).status_code == 200
    assert patch(client_with(), url("budgets", hard.pk), body | {"mode": "soft"}).status_code == 200


# Increases


def increase_body(budget, **fields):
    ends_at = (timezone.now() + timedelta(days=2)).isoformat()
    return {"budget": str(budget.pk), "amount": "5", "ends_at": ends_at, "reason": "launch"} | fields


def test_an_increase_is_asked_for_approved_by_another_and_ended():
    budget = factories.BudgetFactory()
    ann, bob = client_with(), client_with()
    said = post(ann, url("increases"), increase_body(budget)).json()
    assert (said["state"], said["amount"], said["decided_at"]) == ("requested", "5", None)
    assert_problem(post(ann, url("increases", said["id"], "approve")), 400, "Somebody else")
    said = post(bob, url("increases", said["id"], "approve"), {"reason": "fine"}).json()
    assert (said["state"], said["note"]) == ("approved", "fine")
    assert_problem(post(bob, url("increases", said["id"], "reject")), 400, "already")
    assert post(bob, url("increases", said["id"], "end"), {"reason": "over"}).status_code == 204
    assert_problem(post(bob, url("increases", said["id"], "end")), 400, "not in force")


def test_who_may_change_a_budget_grants_at_once():
    budget = factories.BudgetFactory()
    body = increase_body(budget)
    del body["budget"]
    answer = post(client_with(), url("budgets", budget.pk, "grant"), body)
    assert (answer.status_code, answer.json()["state"]) == (201, "approved")
    assert_problem(post(client_with(), url("budgets", budget.pk, "grant"), body | {"amount": "0"}), 400)


def test_a_viewer_asks_and_decides_nothing():
    bob = factories.UserFactory(username="bob")
    codenames = ["view_budget", "view_increase", "change_budget", "decide_increase"]
    bob.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    team = factories.MembershipFactory(user=bob, role="viewer").team
    budget, foreign = factories.BudgetFactory(team=team), factories.BudgetFactory()
    client = Client()
    client.force_login(bob)
    assert post(client, url("increases"), increase_body(budget)).status_code == 201
    assert_problem(post(client, url("increases"), increase_body(foreign)), 400, "does not exist")
    others = factories.IncreaseFactory(budget=budget)
    assert_problem(post(client, url("increases", others.pk, "approve")), 403)
    body = increase_body(budget)
    del body["budget"]
    assert_problem(post(client, url("budgets", budget.pk, "grant"), body), 403)
    others.refresh_from_db()
    assert others.state == "requested"


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
            "saved_usd": "0.000000000",
            "shadow_cost_usd": "0.000000000",
        }
    ]


def test_what_was_saved_and_what_shadows_cost_is_told_of_everything_but_tags():
    spend(kind="shadow", nanos=5, tags={"a": "b"})
    spend(kind="cache_hit", nanos=0, saved_nanos=7)
    (row,) = asked()
    assert (row["cost_usd"], row["saved_usd"], row["shadow_cost_usd"]) == ("0.000000005", "0.000000007", "0.000000005")
    (row,) = asked(tag="a=b")
    assert (row["cost_usd"], row["saved_usd"], row["shadow_cost_usd"]) == ("0.000000005", None, None)


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
