"""What the ledger says was spent of a budget: every dimension, unit and window; and what one window leaves to the next."""

import datetime
import uuid
from decimal import Decimal

import msgspec
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit.models import UsageRecord
from audit.records import Usage, UsageEvent, encode_event
from budgets import gate, ledger, spend
from budgets.models import Budget
from keys.redis import redis_client
from tests import factories

pytestmark = pytest.mark.django_db

NOW = datetime.datetime(2026, 11, 20, 18, 20, tzinfo=datetime.UTC)
AT_S = NOW.timestamp()


@pytest.fixture
def key():
    return factories.VirtualKeyFactory(project__environment="prod")


@pytest.fixture
def deployment():
    return factories.DeploymentFactory(
        name="east",
        model__name="small",
        provider__slug="openai",
        pool=factories.CredentialPoolFactory(provider="openai"),
    )


@pytest.fixture
def used(redis_url, key, deployment):
    """Call it with what differs of an attempt; what was used is in the ledger then."""
    client = redis_client()

    def use(nanos=1_000, *, at=NOW, **said):
        event = UsageEvent(
            attempt_id=str(uuid.uuid4()),
            request_id=str(uuid.uuid4()),
            admitted_at_us=int(at.timestamp() * 1_000_000),
            team_id=str(key.project.team_id),
            project_id=str(key.project_id),
            virtual_key_id=str(key.pk),
            environment="prod",
            alias="fast",
            provider="openai",
            model="small",
            deployment="east",
            pool=str(deployment.pool_id),
            request_model="small",
            cost_nanos=nanos,
            usage=Usage(input_tokens=7, output_tokens=3),
        )
        event = msgspec.structs.replace(event, **said)
        client.xadd(gate.USAGE, {"worker": "w", "seq": 0, "event": encode_event(event)})
        ledger.ingest(client)

    return use


def amounts(budget, at_s=AT_S):
    """By the values of each."""
    return {item.each: item.amount for item in spend.spent(at_s, Budget.objects.filter(pk=budget.pk))}


def subject(dimension, key, deployment):
    return {
        "everybody": {"scope": "global"},
        "team": {"scope": "team", "team": key.project.team},
        "project": {"scope": "project", "project": key.project},
        "key": {"scope": "key", "virtual_key": key},
        "environment": {"scope": "global", "environment": "prod"},
        "end user": {"scope": "global", "end_user": "ann"},
        "tag": {"scope": "global", "tags": {"customer": "acme"}},
        "two tags": {"scope": "global", "tags": {"customer": "acme", "feature": "search"}},
        "alias": {"scope": "global", "alias": factories.ModelAliasFactory(name="fast")},
        "model": {"scope": "global", "model": deployment.model},
        "provider": {"scope": "global", "provider": deployment.provider},
        "deployment": {"scope": "global", "deployment": deployment},
        "pool": {"scope": "global", "pool": deployment.pool},
        "project and model": {"scope": "project", "project": key.project, "model": deployment.model},
        "team and tag": {"scope": "team", "team": key.project.team, "tags": {"customer": "acme"}},
        "key and tag": {"scope": "key", "virtual_key": key, "tags": {"customer": "acme"}},
    }[dimension]


SUBJECTS = (
    "everybody", "team", "project", "key", "environment", "end user", "tag", "two tags", "alias", "model", "provider",
    "deployment", "pool", "project and model", "team and tag", "key and tag",
)  # fmt: skip
OTHER = {
    "team": {"team_id": str(uuid.uuid4())},
    "project": {"project_id": str(uuid.uuid4())},
    "key": {"virtual_key_id": str(uuid.uuid4())},
    "environment": {"environment": "dev"},
    "end user": {"end_user": "bob"},
    "tag": {"tags": {"customer": "globex"}},
    "tags": {"tags": {"customer": "acme", "feature": "chat"}},
    "alias": {"alias": "slow"},
    "model": {"model": "large"},
    "provider": {"provider": "groq"},
    "deployment": {"deployment": "west"},
    "pool": {"pool": str(uuid.uuid4())},
}


@pytest.mark.parametrize("dimension", SUBJECTS)
def test_a_budget_counts_what_its_subject_names_and_nothing_else(dimension, key, deployment, used):
    own = {"end_user": "ann", "tags": {"customer": "acme", "feature": "search"}}
    used(5, **own)
    used(8, **own, at=NOW - datetime.timedelta(hours=3))
    named = {
        "tag": {"tag"},
        "two tags": {"tag", "tags"},
        "project and model": {"project", "model"},
        "team and tag": {"team", "tag"},
        "key and tag": {"key", "tag"},
    }.get(dimension, {dimension})
    counted = 13
    for other, said in OTHER.items():
        used(100, **own | said)
        counted += 0 if other in named else 100
    budget = factories.BudgetFactory(**{"team": None} | subject(dimension, key, deployment))
    assert amounts(budget) == {(): counted}


@pytest.mark.parametrize("unit", ["usd", "tokens", "requests"])
@pytest.mark.parametrize("dimension", ["team", "tag", "environment"])
@pytest.mark.parametrize("window", [window.value for window in Budget.Window])
def test_every_unit_is_counted_in_every_window(unit, dimension, window, key, deployment, used):
    dates = {"starts_at": NOW - datetime.timedelta(days=40), "ends_at": NOW + datetime.timedelta(minutes=5)}
    fields = subject(dimension, key, deployment) | {"unit": unit, "window": window, "fiscal_month": 11}
    budget = factories.BudgetFactory(**{"team": None} | fields | (dates if window == "fixed" else {}))
    (row,) = spend.rows_of()
    start_s, end_s = row.bounds(AT_S)
    moments = [start_s, start_s - 1, start_s + 1, end_s - 1, end_s, AT_S, AT_S - 3 * 86_400, AT_S - 50 * 86_400]
    within = [moment for moment in moments if 0 <= moment < 4e9]
    for moment in within:
        at = datetime.datetime.fromtimestamp(moment, datetime.UTC)
        used(11, at=at, tags={"customer": "acme"})
        used(0, at=at, tags={"customer": "acme"}, state="voided", usage=Usage())
    number = sum(start_s <= moment < end_s for moment in within)
    assert number and amounts(budget) == {(): number * {"usd": 11, "tokens": 10, "requests": 1}[unit]}


def test_each_value_has_a_counter_of_its_own_and_what_has_none_is_in_none(key, deployment, used):
    budget = factories.BudgetFactory(team=key.project.team, each=["end_user", "tag:customer"])
    used(1, end_user="ann", tags={"customer": "acme"})
    used(2, end_user="ann", tags={"customer": "acme"}, at=NOW - datetime.timedelta(days=2))
    used(4, end_user="bob:1", tags={"customer": "acme"})
    used(8, tags={"customer": "acme"})
    used(16, end_user="ann")
    assert amounts(budget) == {("ann", "acme"): 3, ("bob:1", "acme"): 4}


@pytest.mark.parametrize(
    ("dimension", "value"),
    [("project", lambda key, _: str(key.project_id)), ("model", lambda *_: "small"),
     ("deployment", lambda _, deployment: str(deployment.pk)), ("tag:customer", lambda *_: "acme")],
)  # fmt: skip
def test_counters_have_the_names_that_the_gate_gives_them(dimension, value, key, deployment, used):
    budget = factories.BudgetFactory(team=key.project.team, each=[dimension], window="total")
    used(3, tags={"customer": "acme"})
    (counter,) = spend.spent(AT_S)
    assert counter.key == gate.spend_key(str(budget.pk), 0, value(key, deployment))


def test_what_is_passed_through_is_of_no_deployment_and_has_a_counter_of_its_own(key, deployment, used):
    one = factories.BudgetFactory(scope="global", team=None, deployment=deployment)
    each = factories.BudgetFactory(team=key.project.team, each=["deployment"], window="total")
    used(3, deployment="passthrough/openai")
    assert amounts(one) == {} and amounts(each) == {("passthrough/openai",): 3}
    values = spend.dimensions_of(UsageRecord.objects.get())
    assert [counter.key for counter in spend.counters_of(values, AT_S)] == [
        gate.spend_key(str(each.pk), 0, "passthrough/openai")
    ]


def test_many_budgets_of_a_kind_are_one_question(key, used):
    used()
    for _ in range(20):
        factories.BudgetFactory(team=key.project.team, window="day")
        factories.BudgetFactory(scope="project", team=None, project=key.project, window="day")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert len(spend.spent(AT_S)) == 40
    assert len(queries) == 3


# What a window leaves


def months_ago(number):
    return NOW.replace(month=NOW.month - number)


@pytest.mark.parametrize(
    ("spent_by_month", "rolled_over"),
    [
        ([40], 30),  # 30 came from before, 90 are left, and 30 is the most that is rolled over.
        ([0], 30),
        ([110], 20),
        ([130], 0),
        ([140], 0),  # It was soft, or corrected.
        ([120, 110], 0),  # 10 are left of the first, so the second had 110.
        ([115, 110], 5),
        ([0, 80, 120], 10),
    ],
)
def test_what_is_left_is_rolled_over(key, used, spent_by_month, rolled_over):
    budget = factories.BudgetFactory(
        team=key.project.team, amount=Decimal(100), rollover=Decimal(30), rolls_over_since=months_ago(9)
    )
    for number, dollars in enumerate(reversed(spent_by_month), start=1):
        if dollars:
            used(dollars * 10**9, at=months_ago(number))
    used(5 * 10**9)
    now, before = (
        item for item in sorted(spend.spent(AT_S), key=lambda item: -item.start_s) if item.budget_id == budget.pk
    )
    assert (now.spent, now.rolled_over) == (5 * 10**9, rolled_over * 10**9)
    assert now.amount == (5 - rolled_over) * 10**9
    assert before.rolled_on == now.rolled_over
    # Whatever is moved, the two windows together hold what was spent in them, and what the first of them got.
    assert now.amount + before.amount == now.spent + before.spent - before.rolled_over
    assert before.expire_at_s == now.end_s + spend.COUNTER_GRACE_S


@pytest.mark.parametrize(
    ("mode", "percent", "rolled_over"), [("hard", 80, 10), ("hard", 120, 30), ("soft", 120, 50), ("observe", 80, 30)]
)
def test_a_window_leaves_what_is_left_of_its_cap(key, used, mode, percent, rolled_over):
    budget = factories.BudgetFactory(
        team=key.project.team, amount=Decimal(100), rollover=Decimal(90), rolls_over_since=months_ago(1), mode=mode
    )
    factories.ThresholdFactory(budget=budget, percent=percent, action="block")
    used(70 * 10**9, at=months_ago(1))
    used(1)
    now, _ = sorted(spend.spent(AT_S), key=lambda item: -item.start_s)
    assert now.rolled_over == rolled_over * 10**9


def test_what_was_left_before_a_budget_rolled_over_stays_there(key, used):
    factories.BudgetFactory(team=key.project.team, rollover=Decimal(30), rolls_over_since=NOW)
    used(1, at=months_ago(1))
    used(1)
    assert [item.rolled_over for item in spend.spent(AT_S)] == [0, 0]


def test_an_increase_is_part_of_what_a_window_leaves(key, used):
    budget = factories.BudgetFactory(
        team=key.project.team, amount=Decimal(100), rollover=Decimal(50), rolls_over_since=months_ago(9)
    )
    factories.IncreaseFactory(
        budget=budget, amount=Decimal(20), state="approved", decided_by="user:x", decided_at=NOW,
        starts_at=months_ago(2), ends_at=NOW,
    )  # fmt: skip
    used(150 * 10**9, at=months_ago(1))  # 50 came from before.
    used(1)
    now, _ = sorted(spend.spent(AT_S), key=lambda item: -item.start_s)
    assert now.rolled_over == 20 * 10**9
