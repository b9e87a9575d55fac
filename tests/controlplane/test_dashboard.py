"""The dashboard: what it answers, to whom, and what it lets out as CSV."""

import datetime
import uuid
from decimal import Decimal

import pytest
import redis
import time_machine
from django.conf import settings
from django.contrib.auth.models import Permission
from django.urls import reverse

from audit.models import AuditEntry
from budgets import gate
from budgets.ledger_models import UsageHour, UsageTagHour
from budgets.rollups import HISTOGRAM_BOUNDS_MS
from controlplane.burn import burning
from controlplane.dashboard import FEATURE, Question, Usage, dimension_of
from proxy.metrics import WorkerStatus, encode_status
from tests import factories

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url", "at_noon")]

NOW = datetime.datetime(2026, 3, 20, 12, 30, tzinfo=datetime.UTC)
HOME = "/admin/"


@pytest.fixture
def at_noon():
    with time_machine.travel(NOW, tick=False):
        yield


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


@pytest.fixture
def charlie():
    """An outsider: may see usage, of his own team only."""
    user = factories.UserFactory(username="charlie")
    factories.MembershipFactory(user=user, team__name="Outsiders")
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_usagehour", "view_budget"]))
    return user


def used(key, days_ago=0, hour=10, *, feature="", **values):
    """One row of the hourly roll-up of a virtual key, and of its feature tag."""
    start = (NOW - datetime.timedelta(days=days_ago)).replace(hour=hour, minute=0)
    subject = {"hour": start, "team_id": key.project.team_id, "project_id": key.project_id}
    values = {"requests": 1, "cost_usd": Decimal(1), **values}
    named = {"alias": "chat", "model": "gpt", "provider": "openai", "virtual_key_id": key.pk}
    UsageHour.objects.create(**subject | named | values)
    if feature:
        sums = {"requests": values["requests"], "tokens": 5, "cost_usd": values["cost_usd"]}
        UsageTagHour.objects.create(**subject, tag_key="feature", tag_value=feature, **sums)


def ask(viewer, **parameters):
    return Usage(viewer, Question.parse(parameters, NOW.date()))


def shown(rows):
    return [(row.name, row.cost_usd) for row in rows]


# Answers


@pytest.mark.parametrize(
    ("period", "cost"), [("today", 3), ("yesterday", 4), ("7d", 7), ("month", 7), ("last-month", 8)]
)
def test_spend_is_that_of_the_range(boss, period, cost):
    key = factories.VirtualKeyFactory()
    for days_ago, cost_usd in ((0, 3), (1, 4), (30, 8)):
        used(key, days_ago, cost_usd=Decimal(cost_usd))
    usage = ask(boss, range=period)
    assert usage.total.cost_usd == cost
    assert sum(bucket.cost_usd for bucket in usage.buckets) == cost


def test_a_custom_range_is_inclusive_at_both_ends(boss):
    key = factories.VirtualKeyFactory()
    for days_ago in (5, 4, 3, 2):
        used(key, days_ago)
    usage = ask(boss, range="custom", **{"from": "2026-03-16", "to": "2026-03-17"})
    assert usage.total.cost_usd == 2


def test_spend_is_compared_with_as_much_time_before(boss):
    key = factories.VirtualKeyFactory()
    used(key, 0, 10, cost_usd=Decimal(3))
    used(key, 1, 10, cost_usd=Decimal(2))
    used(key, 1, 20, cost_usd=Decimal(50))  # Yesterday, but later than now.
    question = Question.parse({"range": "today"}, NOW.date())
    compared = Usage(boss, question).compared({"range": (question.period.so_far(NOW), question.period.before(NOW))})
    assert compared["range"] == (3, 2)
    assert compared["range"].change == 0.5


def test_nothing_before_is_no_change(boss):
    key = factories.VirtualKeyFactory()
    used(key)
    question = Question.parse({"range": "today"}, NOW.date())
    spans = {"range": (question.period.so_far(NOW), question.period.before(NOW))}
    assert Usage(boss, question).compared(spans)["range"].change is None


@pytest.mark.parametrize("by", ["team", "project", "model", "provider", "alias", "key"])
def test_every_breakdown_adds_up_to_the_total(boss, by):
    keys = [factories.VirtualKeyFactory() for _ in range(3)]
    for number, key in enumerate(keys, 1):
        used(key, cost_usd=Decimal(number), model=f"m{number}", provider=f"p{number}", alias=f"a{number}")
    usage = ask(boss, by=by)
    rows = usage.breakdown(usage.question.dimension)
    assert [row.cost_usd for row in rows] == [3, 2, 1]
    assert sum(row.cost_usd for row in rows) == usage.total.cost_usd == 6
    assert [round(row.share, 3) for row in rows] == [0.5, 0.333, 0.167]


def test_spend_by_feature_leaves_out_what_has_no_such_tag(boss):
    key = factories.VirtualKeyFactory()
    used(key, 1, 9, feature="search", cost_usd=Decimal(5))
    used(key, 1, 10, feature="chat", cost_usd=Decimal(2))
    used(key, 1, 11, cost_usd=Decimal(1))
    usage = ask(boss, by=FEATURE)
    assert shown(usage.breakdown(dimension_of(FEATURE))) == [("search", 5), ("chat", 2)]
    assert usage.total.cost_usd == 8


def test_a_tag_is_a_filter_too(boss):
    key = factories.VirtualKeyFactory(project__team__name="Research")
    used(key, 1, 9, feature="search", cost_usd=Decimal(5))
    used(key, 1, 10, feature="chat", cost_usd=Decimal(2))
    usage = ask(boss, tag="feature=search")
    assert usage.total.cost_usd == 5
    assert usage.total.errors is None
    assert shown(usage.breakdown(dimension_of("team"))) == [("Research", 5)]


def test_a_filter_that_tags_do_not_know_is_left_out_and_said(client, boss):
    used(factories.VirtualKeyFactory(), 1, feature="search")
    question = Question.parse({"tag": "feature=search", "model": "gpt", "by": "model"}, NOW.date())
    assert (question.model, question.by, question.dropped) == ("", "team", ("model",))
    assert "the filter by model was left out" in client.get(HOME, {"by": FEATURE, "model": "gpt"}).content.decode()


@pytest.mark.parametrize(
    "parameters",
    [
        {"team": "x"},
        {"project": "'; DROP TABLE"},
        {"key": "\x00"},
        {"by": "nonsense"},
        {"by": "tag:"},
        {"tag": "feature"},
        {"range": "custom", "from": "9999-99-99"},
        {"environment": "moon"},
        {"model": "\x00", "tag": "\x00=\x00"},
    ],
)
def test_a_url_that_makes_no_sense_breaks_nothing(client, boss, parameters):
    used(factories.VirtualKeyFactory())
    assert client.get(HOME, parameters).status_code == 200
    assert client.get(reverse("usage-csv"), parameters).status_code == 200


def test_filters_narrow(boss):
    prod = factories.VirtualKeyFactory(project__environment="prod")
    dev = factories.VirtualKeyFactory(project__environment="dev")
    used(prod, cost_usd=Decimal(5), model="gpt", provider="openai", alias="chat")
    used(dev, cost_usd=Decimal(2), model="claude", provider="anthropic", alias="smart")
    for parameters in (
        {"team": str(prod.project.team_id)},
        {"project": str(prod.project_id)},
        {"key": str(prod.pk)},
        {"environment": "prod"},
        {"model": "gpt"},
        {"provider": "openai"},
        {"alias": "chat"},
    ):
        assert ask(boss, **parameters).total.cost_usd == 5, parameters


def test_the_chart_folds_what_is_small_into_others(boss):
    for number in range(10):
        used(factories.VirtualKeyFactory(), 1, cost_usd=Decimal(number + 1))
    usage = ask(boss)
    series = usage.series(usage.breakdown(dimension_of("team")))
    assert len(series) == 8
    assert series[-1].name == "Others"
    assert sum(series[-1].costs_usd) == 1 + 2 + 3
    assert sum(sum(one.costs_usd) for one in series) == usage.total.cost_usd


def test_latency_is_read_from_the_histograms(boss):
    key = factories.VirtualKeyFactory()
    tenth = HISTOGRAM_BOUNDS_MS.index(1024)
    # Histograms end with the last bucket that was needed.
    used(key, 1, 9, latency_histogram=[0] * tenth + [90], first_token_histogram=[10])
    used(key, 1, 10, latency_histogram=[0] * (tenth + 4) + [10])
    latency = ask(boss).latency()
    assert 724 < latency.p50 <= 1024
    assert 2896 < latency.p95 <= 4096
    assert latency.first_token_p95 <= 1


def test_errors_have_a_rate(boss):
    used(factories.VirtualKeyFactory(), requests=8, errors=2)
    assert ask(boss).total.error_rate == 0.25


# Whom it answers


def test_charlie_sees_nothing_of_other_teams(client, charlie):
    secret = factories.VirtualKeyFactory(project__name="Hidden project", project__team__name="Hidden team")
    used(secret, 1, feature="hidden-feature", model="hidden-model")
    factories.BudgetFactory(team=secret.project.team, name="Hidden budget")
    client.force_login(charlie)
    for parameters in ({}, {"team": str(secret.project.team_id)}, {"tag": "feature=hidden-feature"}, {"by": FEATURE}):
        page = client.get(HOME, parameters)
        assert page.status_code == 200
        assert page.context["total"].requests == 0
        text = page.content.decode()
        for name in ("Hidden team", "Hidden project", "hidden-model", "Hidden budget", "Gateway workers"):
            assert name not in text
        export = b"".join(client.get(reverse("usage-csv"), parameters).streaming_content).decode()
        assert len(export.splitlines()) == 1


def test_the_name_of_a_key_is_not_told_to_who_may_not_see_it(client, charlie):
    secret = factories.VirtualKeyFactory(name="hidden-key")
    client.force_login(charlie)
    assert "hidden-key" not in client.get(HOME, {"key": str(secret.pk)}).content.decode()


def test_alice_sees_her_team(client, charlie):
    mine = factories.VirtualKeyFactory(project__team=charlie.memberships.get().team)
    used(mine, cost_usd=Decimal(7))
    client.force_login(charlie)
    assert client.get(HOME).context["total"].cost_usd == 7


def test_without_the_permission_there_is_no_usage(client):
    used(factories.VirtualKeyFactory(project__team__name="Hidden team"))
    client.force_login(factories.UserFactory())
    page = client.get(HOME)
    assert page.status_code == 200
    assert "Hidden team" not in page.content.decode()
    assert client.get(reverse("usage-csv")).status_code == 403


def test_who_is_not_signed_in_is_sent_to_sign_in(client):
    assert client.get(HOME).status_code == 302
    assert client.get(reverse("usage-csv")).status_code == 302


# The page


def test_an_empty_dashboard_says_what_to_do(client, boss):
    page = client.get(HOME).content.decode()
    for text in (
        "Issue a virtual key",
        "Set one",
        "Start the gateway",
        "All times, days and months on this page are UTC",
    ):
        assert text in page


def test_names_are_escaped(client, boss):
    used(factories.VirtualKeyFactory(project__team__name="<script>alert(1)</script>"))
    assert "<script>alert" not in client.get(HOME).content.decode()


def test_no_script_is_inline(client, boss):
    used(factories.VirtualKeyFactory())
    page = client.get(HOME)
    scripts = [tag for tag in page.content.decode().split("<script")[1:] if "src=" not in tag.split(">")[0]]
    assert scripts and all('type="application/json"' in tag for tag in scripts)
    assert "'unsafe-inline'" not in page["Content-Security-Policy"].split("script-src")[1].split(";")[0]


def test_a_row_leads_to_its_records(client, boss):
    key = factories.VirtualKeyFactory()
    used(key, 1, feature="search")
    mine = factories.UsageRecordFactory(
        team_id=key.project.team_id,
        project_id=key.project_id,
        virtual_key_id=key.pk,
        model="gpt",
        provider="openai",
        alias="chat",
        environment=key.project.environment,
        tags={"feature": "search"},
        admitted_at=NOW - datetime.timedelta(days=1),
    )
    factories.UsageRecordFactory(admitted_at=NOW - datetime.timedelta(days=1))
    for name in ("team", "project", "model", "provider", "alias", "key", FEATURE):
        usage = ask(boss, by=name, environment=key.project.environment)
        row = usage.breakdown(usage.question.dimension)[0]
        page = client.get(row.records_url)
        assert [record.pk for record in page.context["cl"].result_list] == [mine.pk], name
    later = factories.UsageRecordFactory(admitted_at=NOW)
    everything = client.get(ask(boss, range="yesterday").question.records_url())
    assert later.pk not in [record.pk for record in everything.context["cl"].result_list]


# CSV


def lines_of(response):
    return b"".join(response.streaming_content).decode().splitlines()


def test_the_table_is_exported(client, boss):
    key = factories.VirtualKeyFactory(project__team__name="Research")
    used(key, requests=4, errors=1, input_tokens=10, output_tokens=5, cost_usd=Decimal("0.123456789"))
    response = client.get(reverse("usage-csv"), {"by": "team"})
    assert response["Content-Type"].startswith("text/csv")
    assert lines_of(response) == [
        "team,id,requests,errors,tokens,cost_usd",
        f"Research,{key.project.team_id},4,1,15,0.123456789",
    ]
    entry = AuditEntry.objects.get(action="export")
    assert (entry.actor_name, entry.object_name) == ("boss", "usage: range=30d&by=team")


def test_the_export_over_time_has_a_line_per_day(client, boss):
    key = factories.VirtualKeyFactory()
    used(key, 2)
    used(key, 1)
    lines = lines_of(client.get(reverse("usage-csv"), {"by": "model", "over_time": "1"}))
    assert lines[0] == "day (UTC),model,id,requests,errors,tokens,cost_usd"
    assert [line.split(",")[0] for line in lines[1:]] == ["2026-03-18T00:00:00+00:00", "2026-03-19T00:00:00+00:00"]


def test_a_name_that_is_a_formula_is_made_inert(client, boss):
    used(factories.VirtualKeyFactory(project__team__name='=HYPERLINK("http://x")'))
    assert lines_of(client.get(reverse("usage-csv")))[1].startswith("\"'=HYPERLINK")


# Budgets


def test_a_budget_burns_down(boss):
    key = factories.VirtualKeyFactory(project__team__time_zone="UTC")
    budget = factories.BudgetFactory(team=key.project.team, amount=Decimal(100), window="month")
    used(key, 1, cost_usd=Decimal(39))
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        start_s = int(datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC).timestamp())
        client.set(gate.EPOCH, "epoch")
        client.set(gate.spend_key(str(budget.pk), start_s), 40 * 10**9)
        (burn,) = burning(boss, Question.parse({}, NOW.date()), client, NOW)
    assert (burn.counter.spent, burn.counter.held, burn.counter.left) == (39, 1, 60)
    assert round(burn.projected, 2) == Decimal("61.93")
    assert (burn.level, burn.runs_out_at) == ("fine", None)


def test_a_budget_that_will_not_last_says_when_it_runs_out(boss):
    key = factories.VirtualKeyFactory(project__team__time_zone="UTC")
    factories.BudgetFactory(team=key.project.team, amount=Decimal(50), window="month")
    used(key, 1, cost_usd=Decimal(39))
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        (burn,) = burning(boss, Question.parse({}, NOW.date()), client, NOW)
    assert burn.level == "tight"
    assert burn.runs_out_at.date() == datetime.date(2026, 3, 26)
    # Nothing is known of what is held: Redis has not been rebuilt.
    assert burn.counter.held is None


def test_budgets_are_shown_while_redis_is_away(boss, redis_server):
    factories.BudgetFactory()
    redis_server.stop()
    with redis.Redis.from_url(redis_server.url) as client:
        (burn,) = burning(boss, Question.parse({}, NOW.date()), client, NOW)
    assert burn.counter.held is None


def test_the_budgets_are_those_of_the_filters(boss):
    mine = factories.ProjectFactory()
    factories.BudgetFactory(team=mine.team, name="of the team")
    factories.BudgetFactory(scope="project", project=mine, name="of the project")
    factories.BudgetFactory(name="of others")

    def names(**parameters):
        with redis.Redis.from_url(settings.REDIS_URL) as client:
            return {burn.budget.name for burn in burning(boss, Question.parse(parameters, NOW.date()), client, NOW)}

    assert names(team=str(mine.team_id)) == {"of the team", "of the project"}
    assert names(project=str(mine.pk)) == {"of the project"}
    assert names() == {"of the team", "of the project", "of others"}
    assert names(key=str(uuid.uuid4())) == set()


# Workers


def report(client, worker, snapshot_version, *, is_live=True):
    status = WorkerStatus(
        worker=worker,
        host="gateway-1",
        pid=4711,
        started_at_s=0,
        at_s=NOW.timestamp(),
        snapshot_version=snapshot_version,
        is_ready=True,
        live_streams=3,
        journal_seq=12,
        ingested_seq=5,
    )
    client.hset(gate.WORKERS, worker, encode_status(status))
    if is_live:
        client.set(gate.lease_key(worker), "1", px=60_000)


def test_the_workers_and_what_they_run_are_shown(client, boss):
    with redis.Redis.from_url(settings.REDIS_URL) as connection:
        connection.hset(gate.VERSIONS, "snapshot", 7)
        report(connection, "one", 7)
        assert "Configuration 7 is in force everywhere" in client.get(HOME).content.decode()
        report(connection, "two", 6)
        assert "not in force everywhere yet" in client.get(HOME).content.decode()
        report(connection, "two", 6, is_live=False)
        connection.delete(gate.lease_key("two"))
    table = client.get(HOME).context["workers"]
    # Who has lost its lease admits nothing, whatever it runs.
    assert table["is_in_force_everywhere"]
    assert [(row["status"].worker, row["is_live"], row["backlog"]) for row in table["rows"]] == [
        ("one", True, 7),
        ("two", False, 7),
    ]
