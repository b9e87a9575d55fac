"""The verifier: where copies of the same money do not agree, it names the one that was broken; and nothing else."""

import datetime
import threading
from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from audit.models import AuditEntry, UsageRecord
from budgets import gate, ledger, tasks, verifier
from budgets.ledger_models import Drift, TouchedHour, UsageDay, UsageHour, UsageTagDay, UsageTagHour, Verification
from keys.redis import redis_client
from tests import factories
from tests.budgets.worker import Worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("lasting_hour")]


@pytest.fixture
def client(redis_url):
    client = redis_client()
    client.set(gate.EPOCH, "an epoch")
    return client


@pytest.fixture
def key():
    return factories.VirtualKeyFactory()


@pytest.fixture
def budget(key):
    return factories.BudgetFactory(scope="key", team=None, virtual_key=key)


@pytest.fixture
def worker(client, key, budget):
    return Worker(client, key)


def verify(client, **options):
    return verifier.verify(client, sleep=lambda _: None, **{"may_rest": False} | options)


def open_drifts():
    return [(drift.kind, drift.unit, drift.difference) for drift in Drift.objects.filter(closed_at=None)]


def run_sql(sql, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def test_books_close_whatever_is_under_way(client, worker):
    """Something in the ledger, in the stream, running, and in suspense."""
    worker.spend(1_000)
    ledger.ingest(client)
    lost = worker.admit(70)
    worker.die_and_come_back()
    worker.spend(500)
    worker.admit(9_000)
    run = verify(client)
    assert (run.drifts, run.counters, open_drifts()) == (0, 1, [])
    assert str(UsageRecord.objects.get(state="suspense").attempt_id) == lost.attempt_id
    assert not AuditEntry.objects.filter(object_type="budgets.drift").exists()


def test_the_books_of_every_unit_close_and_those_of_each_value(client, worker, key):
    budgets = [
        factories.BudgetFactory(scope="project", team=None, project=key.project, unit="tokens", amount=10**9),
        factories.BudgetFactory(scope="global", team=None, unit="requests", amount=10**6, window="day"),
        factories.BudgetFactory(scope="global", team=None, each=["tag:feature"], window="week"),
        factories.BudgetFactory(team=key.project.team, window="month", rollover=50),
    ]
    worker.spend(1_000)
    worker.admit(70)
    worker.die_and_come_back()
    worker.admit(9_000)
    assert (verify(client).drifts, verify(client).counters) == (0, 1 + len(budgets))
    for name in client.keys("tg:spend:*"):
        client.incrby(name, 1)
    assert verify(client).drifts == 1 + len(budgets)
    assert {unit for _, unit, _ in open_drifts()} == {"usd", "tokens", "requests"}


def break_a_counter(client):
    (name,) = client.keys("tg:spend:*")
    client.incrby(name, 5)


def break_suspense(client):
    ((attempt_id, value),) = client.hgetall(gate.SUSPENSE).items()
    client.hset(gate.SUSPENSE, attempt_id, b"42" + value[value.index(b"|") :])


def forget_suspense(client):
    client.delete(gate.SUSPENSE)


def break_an_hour(client):
    run_sql("ALTER TABLE budgets_usagehour DISABLE TRIGGER days_update")
    UsageHour.objects.update(cost_usd=Decimal("1"))
    run_sql("ALTER TABLE budgets_usagehour ENABLE TRIGGER days_update")


def miscount_an_hour(client):
    UsageHour.objects.update(requests=7)


def break_a_tag(client):
    UsageTagHour.objects.update(tag_value="somebody else's")


def break_a_day(client):
    UsageDay.objects.update(cost_usd=0)


def lose_a_tags_day(client):
    UsageTagDay.objects.all().delete()


def break_a_record(client):
    """As only a superuser of the database can."""
    run_sql("ALTER TABLE audit_usagerecord DISABLE TRIGGER append_only_update")
    UsageRecord.objects.filter(state="posted").update(cost_usd=Decimal("0.000002"))
    run_sql("ALTER TABLE audit_usagerecord ENABLE TRIGGER append_only_update")


def lose_a_record(client):
    run_sql("ALTER TABLE audit_usagerecord DISABLE TRIGGER append_only")
    UsageRecord.objects.filter(state="posted").delete()
    run_sql("ALTER TABLE audit_usagerecord ENABLE TRIGGER append_only")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (break_a_counter, {("counters", "usd", 5)}),
        (break_suspense, {("suspense", "usd", -28)}),
        (forget_suspense, {("suspense", "usd", -70)}),
        (break_an_hour, {("hours", "usd", 10**9 - 1_070), ("days", "usd", 1_070 - 10**9)}),
        (miscount_an_hour, {("hours", "requests", 5)}),
        (break_a_tag, {("tag_hours", "usd", -1_070), ("tag_hours", "usd", 1_070)}),
        # Whoever counts the counter anew counts days.
        (break_a_day, {("days", "usd", -1_070), ("counters", "usd", 1_070)}),
        (lose_a_tags_day, {("tag_days", "usd", -1_070)}),
        (break_a_record, {("hours", "usd", -1_000), ("tag_hours", "usd", -1_000)}),
        (lose_a_record, {("hours", "usd", 1_000), ("tag_hours", "usd", 1_000)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_broken_by_hand_is_named(client, worker, harm, named):
    worker.spend(1_000)
    worker.admit(70)
    worker.die_and_come_back()
    assert verify(client).drifts == 0
    harm(client)
    run = verify(client)
    assert set(open_drifts()) == named
    assert run.drifts == len(named)
    entries = AuditEntry.objects.filter(object_type="budgets.drift", action="open")
    assert len(entries) == len(named)


@pytest.mark.parametrize(("column", "expected"), [("saved_usd", 7), ("shadow_cost_usd", 1_000)])
def test_what_was_saved_and_what_shadows_cost_is_verified_too(client, worker, column, expected):
    worker.spend(1_000, kind="shadow", saved_nanos=7)
    assert verify(client).drifts == 0
    UsageHour.objects.update(**{column: 0})
    verify(client)
    assert open_drifts() == [("hours", "usd", -expected)]


def test_drift_that_is_repaired_is_closed_and_one_that_stays_is_told_once(client, worker):
    worker.spend(1_000)
    (counter,) = client.keys("tg:spend:*")
    client.incrby(counter, 5)
    for _ in range(2):
        assert verify(client).drifts == 1
    client.decrby(counter, 5)
    assert verify(client).drifts == 0
    assert [(entry.action, entry.actor_name) for entry in AuditEntry.objects.filter(object_type="budgets.drift")] == [
        ("close", "verifier"),
        ("open", "verifier"),
    ]
    assert Drift.objects.get().what == counter.decode()


def test_a_difference_that_is_gone_a_moment_later_is_none(client, worker):
    worker.spend(1_000)
    (counter,) = client.keys("tg:spend:*")
    client.incrby(counter, 5)
    assert verifier.verify(client, sleep=lambda _: client.decrby(counter, 5)).drifts == 0


def test_only_hours_that_changed_are_compared_at_once_and_the_others_come_round(client, worker):
    now = datetime.datetime.now(datetime.UTC)
    for days in range(3):
        worker.spend(1_000, at=now - datetime.timedelta(days=days))
    ledger.ingest(client)
    assert TouchedHour.objects.count() == 3
    assert verify(client, sweep_s=0).hours == 3
    assert verify(client, sweep_s=0).hours == 0
    UsageTagHour.objects.filter(hour__lt=now - datetime.timedelta(days=1, hours=2)).update(cost_usd=9)
    assert verify(client, sweep_s=0).drifts == 0
    runs = [verify(client, sweep_s=600), verify(client, sweep_s=600)]
    assert [run.hours for run in runs] == [49, 49]
    assert open_drifts() == [("tag_hours", "usd", 9 * 10**9 - 1_000)]


def test_after_a_run_that_took_long_hours_rest_and_counters_do_not(client, worker, monkeypatch):
    monkeypatch.setattr(verifier, "REST", 10**6)
    worker.spend(1_000)
    assert verify(client, may_rest=True).hours == 1
    worker.spend(1_000)
    (counter,) = client.keys("tg:spend:*")
    client.incrby(counter, 5)
    break_a_tag(client)
    resting = verify(client, may_rest=True)
    assert (resting.hours, resting.counters, open_drifts()) == (0, 1, [("counters", "usd", 5)])
    client.decrby(counter, 5)
    assert verify(client, may_rest=True).drifts == 0
    # Who asks by hand is told, and what was put off is not forgotten.
    assert verify(client).hours == 1
    assert {kind for kind, _, _ in open_drifts()} == {"tag_hours"}


def test_hours_are_compared_again_when_the_rest_is_over(client, worker, monkeypatch):
    monkeypatch.setattr(verifier, "REST", 0)
    worker.spend(1_000)
    assert [verify(client, may_rest=True).hours for _ in range(2)] == [1, 1]


def test_where_redis_is_away_the_ledger_is_verified_all_the_same(client, worker):
    worker.spend(1_000)
    ledger.ingest(client)
    client.delete(gate.EPOCH)
    break_a_day(client)
    run = verify(client)
    assert (run.counters, run.drifts) == (None, 1)


def test_two_verifiers_do_not_run_at_once(client, worker):
    worker.spend(1_000)
    client.incrby(client.keys("tg:spend:*")[0], 5)
    refused = []

    def run_another(_):
        other = threading.Thread(target=verify_elsewhere, args=(client, refused))
        other.start()
        other.join()

    verifier.verify(client, sleep=run_another)
    assert refused == [True]


def verify_elsewhere(client, refused):
    try:
        verify(client)
    except verifier.Taken:
        refused.append(True)
    finally:
        connection.close()


def test_the_task_verifies(client, worker):
    worker.spend(1_000)
    tasks.verify()
    assert Verification.objects.get().drifts == 0


def test_the_command_says_what_it_found_and_fails_where_something_differs(client, worker, capsys):
    worker.spend(1_000)
    call_command("verify")
    assert "The books close" in capsys.readouterr().out
    (counter,) = client.keys("tg:spend:*")
    client.incrby(counter, 5)
    with pytest.raises(CommandError, match="1 of them does not agree"):
        call_command("verify")
    assert counter.decode() in capsys.readouterr().out
