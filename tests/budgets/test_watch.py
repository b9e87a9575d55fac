"""Watching: real counters in Redis become alerts, once each, and are over when they are."""

import datetime
import threading
import uuid
from decimal import Decimal

import pytest
from django.db import connection
from django.utils import timezone

from audit.records import CREDENTIAL_REFUSED, UsageEvent
from budgets import alert_services, gate, services, watch
from budgets.alert_models import Alert, Delivery
from budgets.ledger_models import Drift
from budgets.models import Budget, Increase, Threshold
from budgets.spend import rows_of
from keys.redis import redis_client
from routing.price_models import ExchangeRateFeed
from tests import factories

pytestmark = pytest.mark.django_db

USD = 10**9
NOON = datetime.datetime(2026, 11, 18, 12, 0, tzinfo=datetime.UTC)


@pytest.fixture
def client(redis_url):
    client = redis_client()
    client.set(gate.EPOCH, "an epoch")
    return client


def spend(client, budget, amount, *each, at=NOON):
    """What the gate would have counted by now."""
    (row,) = rows_of(Budget.objects.filter(pk=budget.pk))
    client.set(gate.spend_key(str(budget.pk), row.bounds(at.timestamp())[0], *each), amount)


def refuse(client, budget, left, *each):
    """As a worker says it."""
    (row,) = rows_of(Budget.objects.filter(pk=budget.pk))
    client.hset(gate.REFUSED, gate.spend_key(str(budget.pk), row.bounds(NOON.timestamp())[0], *each), left)


def event_of(key, **values):
    fields = {
        "attempt_id": str(uuid.uuid4()),
        "request_id": str(uuid.uuid4()),
        "admitted_at_us": int(NOON.timestamp()) * 1_000_000,
        "team_id": str(key.project.team_id),
        "project_id": str(key.project_id),
        "virtual_key_id": str(key.pk),
        "alias": "fast",
        "provider": "openai",
        "model": "small",
        "deployment": "small-eu",
        "request_model": "small-2026",
        "status_code": 200,
        "usage_source": "provider",
        "cost_nanos": 1,
        "latency_ms": 1,
    }
    return UsageEvent(**fields | values)


def percents(**of):
    return list(
        Alert.objects.open().filter(kind="threshold", **of).order_by("percent").values_list("percent", flat=True)
    )


def test_each_threshold_that_is_crossed_is_told_once(client):
    budget = factories.BudgetFactory(name="Search", amount=100)
    factories.ThresholdFactory(budget=budget, percent=50)
    factories.ThresholdFactory(budget=budget, percent=80)
    spend(client, budget, 79 * USD)
    watch.watch(client, NOON)
    assert percents() == [50]
    spend(client, budget, 85 * USD)
    for minute in range(3):
        watch.watch(client, NOON + datetime.timedelta(minutes=minute))
    assert percents() == [50, 80]
    alert = Alert.objects.get(percent=80)
    assert alert.title == "Search: 80 % of 100 USD" and alert.team_id == budget.team_id
    assert alert.text.startswith(
        "85 USD of 100 USD are spent or held; the window ends on Tuesday 2026-12-01 00:00 (UTC)."
    )


@pytest.mark.parametrize(
    ("mode", "words"), [("hard", "is refused"), ("soft", "the budget is soft"), ("observe", "only observes")]
)
def test_the_whole_of_a_budget_is_told_without_a_threshold(client, mode, words):
    budget = factories.BudgetFactory(mode=mode, unit="tokens", amount=1_000)
    spend(client, budget, 1_000)
    watch.watch(client, NOON)
    alert = Alert.objects.get()
    assert (alert.percent, alert.severity) == (100, "critical") and words in alert.text
    assert "1,000 tokens of 1,000 tokens" in alert.text


@pytest.mark.parametrize(("mode", "percent"), [("hard", 80), ("soft", 120)])
def test_a_share_that_blocks_is_told_when_nothing_more_fits(client, mode, percent):
    budget = factories.BudgetFactory(mode=mode, amount=100)
    factories.ThresholdFactory(budget=budget, percent=percent, action=Threshold.Action.BLOCK)
    spend(client, budget, percent * USD - 1)
    watch.watch(client, NOON)
    alert = Alert.objects.get(percent=percent)
    assert alert.severity == "critical" and "is refused. From here on: block." in alert.text
    assert not Alert.objects.filter(text__contains="Nothing is refused").exists()


def test_an_alert_says_what_happens_from_there_on(client):
    budget = factories.BudgetFactory(amount=100)
    factories.ThresholdFactory(budget=budget, percent=60, action=Threshold.Action.THROTTLE, per_minute=10)
    spend(client, budget, 60 * USD)
    watch.watch(client, NOON)
    assert "throttle to 10 requests per minute" in Alert.objects.get().text


def test_raising_the_cap_ends_it_and_crossing_the_new_one_tells_again(client):
    budget = factories.BudgetFactory(amount=100)
    spend(client, budget, 100 * USD)
    watch.watch(client, NOON)
    Increase.objects.create(
        budget=budget,
        amount=100,
        starts_at=NOON,
        ends_at=NOON + datetime.timedelta(days=1),
        reason="launch",
        state="approved",
        decided_by="user:1",
        decided_at=NOON,
    )
    watch.watch(client, NOON)
    alert = Alert.objects.get()
    assert alert.status == "recovered" and alert.recovery == "100 USD of 200 USD are spent or held now."
    spend(client, budget, 200 * USD)
    watch.watch(client, NOON)
    alert.refresh_from_db()
    assert (alert.status, alert.occurrence) == ("open", 2)
    assert Alert.objects.count() == 1


@pytest.mark.parametrize(
    ("mode", "block_at", "used", "percent"), [("hard", None, 60, 100), ("hard", 80, 60, 80), ("soft", 80, 0, 80)]
)
def test_a_budget_that_refuses_is_told_however_much_is_left(client, mode, block_at, used, percent):
    budget = factories.BudgetFactory(name="Search", amount=100, mode=mode)
    if block_at:
        factories.ThresholdFactory(budget=budget, percent=block_at, action=Threshold.Action.BLOCK)
    spend(client, budget, used * USD)
    watch.watch(client, NOON)
    assert not percents()
    refuse(client, budget, 20 * USD)
    assert watch.watch_touched(client, NOON) == 1
    alert = Alert.objects.get()
    assert (alert.percent, alert.severity, alert.title) == (percent, "critical", "Search: requests are refused")
    assert "20 USD were left" in alert.text
    assert not client.exists(gate.REFUSED)


def test_a_refusal_is_told_until_clearly_more_is_left_than_then(client):
    budget = factories.BudgetFactory(amount=100)
    spend(client, budget, 80 * USD)
    for _ in range(2):
        refuse(client, budget, 20 * USD)
        watch.watch_touched(client, NOON)
        watch.watch(client, NOON)
    assert Alert.objects.get().occurrence == 1 and percents() == [100]
    spend(client, budget, 75 * USD)
    watch.watch(client, NOON)
    assert not percents()


def test_each_value_that_is_refused_is_told_of_apart(client):
    budget = factories.BudgetFactory(name="Each user", amount=10, scope="global", each=["end_user"])
    spend(client, budget, 9 * USD, "a:n n")
    refuse(client, budget, 1 * USD, "a:n n")
    watch.watch_touched(client, NOON)
    alert = Alert.objects.get()
    assert alert.counter == ["a:n n"] and alert.title == "Each user (a:n n): requests are refused"


def test_a_refusal_of_a_window_or_a_budget_that_is_gone_is_not_told(client):
    budget = factories.BudgetFactory(amount=100, window="day")
    refuse(client, budget, 20 * USD)
    client.hset(gate.REFUSED, gate.spend_key(str(uuid.uuid4()), 0), 1)
    client.hset(gate.REFUSED, gate.spend_key(str(budget.pk), 0, "what it once counted apart"), 1)
    watch.watch_touched(client, NOON + datetime.timedelta(days=1))
    assert not Alert.objects.exists() and not client.exists(gate.REFUSED)


def test_what_is_held_and_given_back_does_not_tell_twice(client):
    budget = factories.BudgetFactory(amount=100, mode="soft")
    for used in (100, 98, 100, 97, 100):
        spend(client, budget, used * USD)
        watch.watch(client, NOON)
    assert Alert.objects.get().occurrence == 1 and percents() == [100]


def test_the_end_of_the_window_ends_its_alerts_and_the_next_one_has_its_own(client):
    budget = factories.BudgetFactory(amount=100, window="day")
    spend(client, budget, 100 * USD)
    watch.watch(client, NOON)
    tomorrow = NOON + datetime.timedelta(days=1)
    watch.watch(client, tomorrow)
    assert Alert.objects.get().recovery == "The window has ended, and another has begun."
    spend(client, budget, 100 * USD, at=tomorrow)
    watch.watch(client, tomorrow)
    assert Alert.objects.count() == 2 and percents() == [100]


def test_a_budget_that_is_gone_has_no_open_alert(client):
    budget = factories.BudgetFactory(amount=100)
    spend(client, budget, 100 * USD)
    watch.watch(client, NOON)
    budget.delete()
    watch.watch(client, NOON)
    assert Alert.objects.get().status == "recovered"


def test_a_budget_that_will_not_last_says_when_it_runs_out(client):
    budget = factories.BudgetFactory(name="Search", amount=100, window="day", time_zone="Europe/Berlin")
    start = NOON - datetime.timedelta(hours=6)
    for quarter in range(9):
        spend(client, budget, (20 + quarter * 5) * USD)
        watch.watch(client, start + datetime.timedelta(minutes=15 * quarter))
    forecast = Alert.objects.get(kind="forecast")
    # 60 of 100 are gone at 9:00 in Berlin, and 20 go in an hour.
    assert forecast.title == "Search: runs out on Wednesday 2026-11-18 11:00 (Europe/Berlin)"
    assert not percents()
    for hour in range(3, 6):
        watch.watch(client, start + datetime.timedelta(hours=hour))
    forecast.refresh_from_db()
    assert forecast.status == "recovered"  # Nothing was spent since.


def test_nothing_is_said_of_counters_while_redis_is_rebuilt(client):
    budget = factories.BudgetFactory(amount=100)
    spend(client, budget, 100 * USD)
    watch.watch(client, NOON)
    client.flushall()
    watch.watch(client, NOON)
    assert percents() == [100]


def test_every_value_of_a_counter_has_alerts_of_its_own(client):
    key = factories.VirtualKeyFactory()
    budget = factories.BudgetFactory(name="Each user", amount=10, scope="global", each=["end_user"])
    watch.note(client, [event_of(key, end_user="ann"), event_of(key, end_user="bob"), event_of(key, end_user="")])
    spend(client, budget, 10 * USD, "ann")
    spend(client, budget, 3 * USD, "bob")
    assert watch.watch_touched(client, NOON) == 3
    alert = Alert.objects.get()
    assert alert.counter == ["ann"] and alert.title == "Each user (ann): 100 % of 10 USD"
    spend(client, budget, 1 * USD, "ann")
    watch.watch(client, NOON)
    assert not Alert.objects.open().exists()


def test_each_team_hears_of_its_own_counter(client):
    key = factories.VirtualKeyFactory()
    budget = factories.BudgetFactory(amount=10, scope="global", each=["team"])
    watch.note(client, [event_of(key)])
    spend(client, budget, 10 * USD, str(key.project.team_id))
    watch.watch_touched(client, NOON)
    assert Alert.objects.get().team_id == key.project.team_id


def test_the_budget_of_a_key_is_looked_at_when_the_key_is_used(client):
    used, other = factories.VirtualKeyFactory(), factories.VirtualKeyFactory()
    for key in (used, other):
        spend(client, factories.BudgetFactory(amount=10, scope="key", virtual_key=key), 10 * USD)
    watch.note(client, [event_of(used)])
    watch.watch_touched(client, NOON)
    assert Alert.objects.get().team_id == used.project.team_id
    assert not client.exists(watch.TOUCHED)


def test_one_looks_at_a_time(client, django_db_blocker):
    looks = []

    def look():
        with django_db_blocker.unblock():
            try:
                watch.watch(client, NOON)
            except watch.Taken:
                looks.append("taken")
            connection.close()

    with watch._alone("budgets.watch"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert looks == ["taken"]


@pytest.mark.django_db(transaction=True)
def test_two_who_find_the_same_at_once_tell_it_once():
    channel = factories.ChannelFactory()
    findings = [
        alert_services.Finding(
            "threshold", uuid.UUID(int=number), (), 80, NOON, None, None, "warning", f"budget {number}", "80 %"
        )
        for number in range(50)
    ]
    start, opened = threading.Barrier(4), []

    def open_all():
        start.wait()
        opened.append(len(alert_services.open_alerts(findings, now=NOON)))
        connection.close()

    threads = [threading.Thread(target=open_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4 and sum(opened) == 50
    assert Alert.objects.count() == 50
    assert Delivery.objects.filter(channel=channel, event="opened").count() == 50


def test_old_suspense_is_told_until_it_has_drained(client):
    now = timezone.now()
    old = now - datetime.timedelta(hours=2)
    record = factories.UsageRecordFactory(state="suspense", admitted_at=old, cost_usd=Decimal("1.5"))
    batch = factories.UsageRecordFactory(state="suspense", admitted_at=old)
    factories.UsageRecordFactory(state="suspense", admitted_at=now)
    client.zadd(gate.JOBS, {str(batch.attempt_id): 0})
    watch.watch(client, now)
    alert = Alert.objects.get()
    assert (alert.kind, alert.title) == ("suspense", "1 attempt in suspense") and "1.50 USD" in alert.text
    type(record).objects.filter(pk=record.pk).update(state="posted")
    watch.watch(client, now)
    alert.refresh_from_db()
    assert alert.status == "recovered"


def test_how_old_suspense_may_get_is_a_setting(client, settings):
    now = timezone.now()
    factories.UsageRecordFactory(state="suspense", admitted_at=now - datetime.timedelta(minutes=10))
    watch.watch(client, now)
    assert not Alert.objects.exists()
    settings.TOLLGATE_SUSPENSE_ALERT_S = 300
    watch.watch(client, now)
    assert Alert.objects.get().title == "1 attempt in suspense"


def test_drift_is_told_until_it_is_gone(client):
    drift = Drift.objects.create(kind="counters", what="tg:spend:x:0", unit="usd", expected=1, found=2)
    watch.watch(client, NOON)
    watch.watch(client, NOON)
    assert Alert.objects.get().severity == "critical"
    Drift.objects.filter(pk=drift.pk).update(closed_at=NOON)
    watch.watch(client, NOON)
    assert Alert.objects.get().status == "recovered"


@pytest.mark.parametrize("scope", ["global", "team", "project", "key"])
def test_a_kill_switch_is_told_to_whom_it_stops_until_it_is_lifted(client, scope):
    key = factories.VirtualKeyFactory()
    targets = {"global": "", "team": key.project.team_id, "project": key.project_id, "key": key.pk}
    switch = factories.KillSwitchFactory(scope=scope, target=str(targets[scope]), reason="leaked")
    watch.watch(client, NOON)
    alert = Alert.objects.get()
    assert alert.team_id == (None if scope == "global" else key.project.team_id) and "leaked" in alert.text
    type(switch).objects.update(lifted_at=NOON)
    watch.watch(client, NOON)
    assert Alert.objects.get().recovery == "It is lifted."


def test_an_increase_that_is_asked_for_is_told_to_the_team_until_it_is_decided(client):
    now = timezone.now()
    project = factories.ProjectFactory()
    budget = factories.BudgetFactory(name="Search", scope="project", team=None, project=project)
    mine, other = factories.ChannelFactory(team=project.team), factories.ChannelFactory()
    first = factories.IncreaseFactory(budget=budget, amount=50, requested_by_name="alice", reason="the launch")
    second = factories.IncreaseFactory(budget=budget)
    for _ in range(2):
        watch.watch(client, now)
    assert {alert.about_id for alert in Alert.objects.open()} == {first.pk, second.pk}
    alert = Alert.objects.get(about_id=first.pk)
    assert (alert.kind, alert.severity, alert.team_id) == ("increase", "info", project.team_id)
    assert alert.title == "alice asks for 50 USD more: Search" and "the launch" in alert.text
    assert (mine.deliveries.count(), other.deliveries.count()) == (2, 0)
    services.reject_increase(first, actor=factories.ACTOR, reason="next month")
    watch.watch(client, second.ends_at)
    assert not Alert.objects.open().exists()


@pytest.mark.parametrize("taken", [101, 200, 201])
def test_credentials_that_a_provider_refuses_are_told_until_it_takes_them(client, taken):
    now = timezone.now()
    pool = factories.CredentialPoolFactory(name="openai-eu")
    refused = {"pool": str(pool.pk), "status_code": 502, "error_type": CREDENTIAL_REFUSED}
    factories.UsageRecordFactory.create_batch(2, **refused)
    watch.watch(client, now)
    assert not Alert.objects.exists()
    factories.UsageRecordFactory(**refused)
    watch.watch(client, now)
    assert Alert.objects.get().title == "Credentials refused: openai-eu"
    watch.watch(client, now + datetime.timedelta(hours=1))
    assert Alert.objects.open().exists()  # That nobody asks says nothing.
    factories.UsageRecordFactory(pool=str(pool.pk), status_code=taken)
    watch.watch(client, now)
    assert not Alert.objects.open().exists()


def test_a_feed_that_fails_or_is_stale_is_told_until_it_is_fetched_again(client):
    feed = factories.ExchangeRateFeedFactory(name="ECB", problem="it answered 503")
    watch.watch(client, NOON)
    alert = Alert.objects.get()
    assert (alert.title, alert.team_id) == ("Exchange rates not fetched: ECB", None) and "503" in alert.text
    ExchangeRateFeed.objects.update(problem="")
    rate = factories.ExchangeRateFactory(source="ECB", effective_from=NOON - datetime.timedelta(days=6))
    watch.watch(client, NOON)
    assert not Alert.objects.open().exists()
    watch.watch(client, NOON + datetime.timedelta(days=2))
    assert rate.effective_from.strftime("%Y-%m-%d") in Alert.objects.open().get().text
    ExchangeRateFeed.objects.filter(pk=feed.pk).update(is_active=False)
    watch.watch(client, NOON + datetime.timedelta(days=2))
    assert not Alert.objects.open().exists()
