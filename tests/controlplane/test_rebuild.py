"""Rebuild: an emptied Redis holds again what it held, to the nano, and nobody rebuilds over living traffic."""

import datetime
import functools
import random
import threading
import uuid
from decimal import Decimal

import msgspec
import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from audit.models import AuditEntry, UsageRecord
from audit.records import Usage, UsageEvent, decode_event, encode_event
from budgets import gate, ledger, reap, spend
from budgets.ledger_models import IngestWatermark
from budgets.matching import counter_values
from budgets.models import Budget
from budgets.windows import window_bounds
from controlplane import rebuild, tasks
from keys import services as keys
from keys.kills import decode_flag
from keys.redis import redis_client
from proxy.jobs import decode_job, decode_stored, stored_key
from proxy.snapshot import decode_key, decode_snapshot
from tests import factories
from tests.factories import ACTOR

WINDOWS = [window for window in Budget.Window if window != Budget.Window.FIXED]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("lasting_hour")]


@pytest.fixture
def client(redis_url):
    return redis_client()


class Worker:
    """A worker of the data path, as far as Redis can tell, with what its journal would hold."""

    def __init__(self, client, name="w1"):
        self.client = client
        self.name = name
        self.seq = 0
        self.fence = 0
        self.settles = []
        self.open = {}

    def call(self, script, argument):
        return self.client.eval(script.text, 0, argument)

    def beat(self):
        self.fence += 1
        argument = gate.encode_heartbeat(
            worker=self.name, fence=self.fence, lease_ms=30_000, status=b"{}", is_in_step=True, join=gate.Join("", ())
        )
        return gate.decode_heartbeat(self.call(gate.HEARTBEAT, argument))

    def admit(self, virtual_key, counters, nanos, tokens=0, **said):
        event = UsageEvent(
            attempt_id=str(uuid.uuid4()),
            request_id=str(uuid.uuid4()),
            admitted_at_us=int(timezone.now().timestamp() * 1_000_000),
            team_id=str(virtual_key.project.team_id),
            project_id=str(virtual_key.project_id),
            virtual_key_id=str(virtual_key.pk),
            alias="fast",
            provider="openai",
            model="small",
            deployment="small",
            request_model="small",
        )
        event = msgspec.structs.replace(event, **said)
        hold = gate.hold_value(counters, [], encode_event(event))
        argument = gate.encode_admit(
            worker=self.name,
            fence=self.fence,
            attempt_id=event.attempt_id,
            kill_fields=[],
            budgets=counters,
            full_nanos=nanos,
            tranche_nanos=nanos,
            full_tokens=tokens,
            tranche_tokens=tokens,
            hold=hold,
        )
        assert isinstance(gate.decode_admit(self.call(gate.ADMIT, argument)), gate.Admitted)
        self.open[event.attempt_id] = (event, counters, nanos, hold)
        return event

    def settle(self, event, nanos):
        self.seq += 1
        event = msgspec.structs.replace(event, cost_nanos=nanos)
        _, counters, _, _ = self.open.pop(event.attempt_id)
        argument = gate.encode_settle(
            worker=self.name,
            seq=self.seq,
            attempt_id=event.attempt_id,
            cost_nanos=nanos,
            tokens=event.usage.input_tokens + event.usage.output_tokens,
            requests=1,
            budgets=counters,
            event=encode_event(event),
        )
        self.settles.append((self.seq, argument))
        assert isinstance(gate.decode_settle(self.call(gate.SETTLE, argument)), gate.Settled)

    def suspend(self, event):
        """The provider goes on with it, under the name of `upstream_id`."""
        self.seq += 1
        _, counters, nanos, _ = self.open.pop(event.attempt_id)
        event = msgspec.structs.replace(event, state="suspense", cost_nanos=nanos, held_nanos=nanos)
        argument = gate.encode_settle(
            worker=self.name,
            seq=self.seq,
            attempt_id=event.attempt_id,
            cost_nanos=nanos,
            budgets=counters,
            event=encode_event(event),
            kept_hold=gate.hold_value(counters, [], encode_event(event), job={"kind": "batch"}),
        )
        assert isinstance(gate.decode_settle(self.call(gate.SETTLE, argument)), gate.Settled)

    def settle_late(self, hold, nanos):
        self.seq += 1
        event = msgspec.structs.replace(decode_event(hold.event), state="posted", cost_nanos=nanos)
        argument = gate.encode_settle(
            worker=self.name,
            seq=self.seq,
            attempt_id=event.attempt_id,
            cost_nanos=nanos,
            budgets=hold.budgets,
            event=encode_event(event),
            is_late=True,
        )
        assert isinstance(gate.decode_settle(self.call(gate.SETTLE, argument)), gate.Settled)

    def catch_up(self):
        """What a worker does when it hears of a new epoch."""
        applied_seq = self.beat().applied_seq
        for attempt_id, (_, counters, nanos, hold) in self.open.items():
            argument = gate.encode_restore(
                by=self.name,
                fence=self.fence,
                worker=self.name,
                attempt_id=attempt_id,
                held_nanos=nanos,
                budgets=counters,
                hold=hold,
            )
            self.call(gate.RESTORE, argument)
        for seq, argument in self.settles:
            if seq > applied_seq:
                assert isinstance(gate.decode_settle(self.call(gate.SETTLE, argument)), gate.Settled)


def counters_of(*budgets):
    now_s = timezone.now().timestamp()
    counters = []
    for budget in budgets:
        start_s, end_s = window_bounds(budget.window, "Asia/Kolkata", now_s)
        counters.append(gate.BudgetCounter(gate.spend_key(str(budget.pk), start_s), 10**15, True, end_s))
    return counters


def spent_counters(client):
    return {name: int(client.get(name)) for name in client.scan_iter(match="tg:spend:*")}


@pytest.fixture
def virtual_key():
    return factories.VirtualKeyFactory(project__team__time_zone="Asia/Kolkata")


@pytest.fixture
def budgets(virtual_key):
    """One of each window and scope."""
    project, team = virtual_key.project, virtual_key.project.team
    subjects = ({"scope": "team", "team": team}, {"scope": "project", "project": project})
    subjects += ({"scope": "key", "virtual_key": virtual_key},)
    return [
        factories.BudgetFactory(window=window, **({"team": None} | subject))
        for window in WINDOWS
        for subject in subjects
    ]


# What comes back


def test_an_empty_redis_gets_everything_and_the_epoch(client, virtual_key):
    revoked = factories.VirtualKeyFactory(revoked_at=timezone.now())
    switch = factories.KillSwitchFactory(scope="team", target=str(virtual_key.project.team_id))
    factories.KillSwitchFactory(scope="model", target="lifted", lifted_at=timezone.now())
    IngestWatermark.objects.create(worker="w1", seq=41)
    assert rebuild.rebuild_redis() is True
    assert client.exists(gate.EPOCH)
    assert decode_key(client.hget(gate.KEYS, virtual_key.digest)).key_id == str(virtual_key.pk)
    assert decode_key(client.hget(gate.KEYS, revoked.digest)).is_revoked
    assert str(virtual_key.project_id) in decode_snapshot(client.get(gate.SNAPSHOT)).projects
    assert {name: decode_flag(body) for name, body in client.hgetall(gate.KILLS).items()} == {
        switch.flag.field.encode(): switch.flag
    }
    beat = Worker(client).beat()
    assert (beat.applied_seq, beat.ingested_seq) == (41, 41)
    assert beat.snapshot_version > 0 and beat.keys_version > 0 and beat.kills_version > 0


def test_a_redis_with_its_epoch_is_left_alone(client):
    client.set(gate.EPOCH, "here")
    assert rebuild.rebuild_redis() is False
    assert client.dbsize() == 1


def test_the_watch_rebuilds_within_its_beat(client, virtual_key):
    tasks.watch_epoch()
    assert client.hlen(gate.KEYS) == 1
    client.flushall()
    tasks.watch_epoch()
    assert client.hlen(gate.KEYS) == 1 and client.exists(gate.EPOCH)


def test_a_flag_thrown_into_an_empty_redis_stays(client):
    flag = keys.halt("model", "small", reason="a drill")
    rebuild.rebuild_redis()
    assert decode_flag(client.hget(gate.KILLS, "model:small")) == flag


def test_every_key_of_many_batches_is_there(client, monkeypatch):
    monkeypatch.setattr("controlplane.compiler.KEYS_PER_BATCH", 3)
    digests = {key.digest.encode() for key in factories.VirtualKeyFactory.create_batch(8)}
    client.hset(gate.KEYS, "left over", "{}")
    rebuild.rebuild_redis()
    assert set(client.hkeys(gate.KEYS)) == digests
    assert list(client.scan_iter(match=f"{rebuild.KEYS_IN_PROGRESS}*")) == []


# Money


def test_counters_are_the_same_to_the_nano_after_redis_was_lost(client, virtual_key, budgets):
    rebuild.rebuild_redis()
    counters = counters_of(*budgets)
    workers = [Worker(client, f"w{n}") for n in range(3)]
    draw = random.Random(7)
    for worker in workers:
        worker.beat()
    for n in range(120):
        worker = draw.choice(workers)
        event = worker.admit(virtual_key, counters, draw.randrange(1, 10**6))
        if draw.random() < 0.9:
            worker.settle(event, draw.randrange(10**6))
        if n in (30, 80):
            ledger.ingest(client)
    lost = workers.pop()
    client.hset(gate.WORKERS, lost.name, "{}")
    client.delete(gate.lease_key(lost.name))
    reap.reap_lost_workers(client)
    ledger.ingest(client)
    for worker in workers:  # Not in PostgreSQL when Redis goes, only in the journals.
        worker.settle(worker.admit(virtual_key, counters, 500), 123)
    before = spent_counters(client)
    assert len(before) == 3 * len(WINDOWS)

    client.flushall()
    rebuild.rebuild_redis()
    for worker in workers:
        worker.catch_up()
    assert spent_counters(client) == before
    ledger.ingest(client)
    posted = sum(record.cost_usd for record in UsageRecord.objects.all())
    held = sum(nanos for worker in workers for _, _, nanos, _ in worker.open.values())
    assert set(before.values()) == {int(posted.scaleb(9)) + held}


def test_a_late_settle_finds_its_suspense_after_redis_was_lost(client, virtual_key, budgets):
    rebuild.rebuild_redis()
    worker = Worker(client)
    worker.beat()
    event = worker.admit(virtual_key, counters_of(*budgets), 9_000)
    client.hset(gate.WORKERS, worker.name, "{}")
    client.delete(gate.lease_key(worker.name))
    reap.reap_lost_workers(client)
    ledger.ingest(client)
    client.flushall()
    rebuild.rebuild_redis()
    assert set(spent_counters(client).values()) == {9_000}
    worker.catch_up()  # Its hold is in suspense, so it is not held twice.
    assert set(spent_counters(client).values()) == {9_000}
    worker.settle(event, 4_000)
    assert set(spent_counters(client).values()) == {4_000}
    ledger.ingest(client)
    assert UsageRecord.objects.get().cost_usd == Decimal("0.000004")


def test_a_job_comes_back_with_its_price_and_its_counters_and_is_settled_by_another(client, virtual_key, budgets):
    price = factories.PriceFactory(batch_percent=50, provider__api="openai")
    deployment = factories.DeploymentFactory(model=price.model, provider=price.provider)
    rebuild.rebuild_redis()
    worker = Worker(client)
    worker.beat()
    said = {
        "operation": "batch",
        "upstream_id": "batch_1",
        "provider": price.provider.slug,
        "deployment": deployment.name,
        "price_id": str(price.pk),
    }
    event = worker.admit(virtual_key, counters_of(*budgets), 9_000, **said)
    worker.suspend(event)
    ledger.ingest(client)
    assert UsageRecord.objects.get().state == UsageRecord.State.SUSPENSE
    client.flushall()
    rebuild.rebuild_redis()
    assert set(spent_counters(client).values()) == {9_000}
    assert client.zrange(gate.JOBS, 0, -1) == [event.attempt_id.encode()]
    hold = gate.decode_kept_hold(client.hget(gate.SUSPENSE, event.attempt_id))
    job = decode_job(hold.job)
    assert (job.kind, job.deployment_id, job.seq) == ("batch", str(deployment.pk), 0)
    assert (job.price.input_nanos, job.price.output_nanos) == (500_000_000, 2_000_000_000)
    assert {(c.key, c.expire_at_s) for c in hold.budgets} == {(c.key, c.expire_at_s) for c in counters_of(*budgets)}
    stored = decode_stored(client.get(stored_key("batch", "batch_1")))
    assert (stored.deployment_id, stored.project_id) == (str(deployment.pk), str(virtual_key.project_id))
    other = Worker(client, "w2")
    other.beat()
    other.settle_late(hold, 4_000)
    other.settle_late(hold, 4_000)  # Whoever comes second changes nothing.
    assert set(spent_counters(client).values()) == {4_000}
    assert not client.exists(gate.JOBS, gate.SUSPENSE)
    ledger.ingest(client)
    record = UsageRecord.objects.get()
    assert (record.state, record.cost_usd, record.upstream_id) == ("posted", Decimal("0.000004"), "batch_1")


def test_a_forced_rebuild_keeps_what_redis_knows_of_a_job(client, virtual_key, budgets):
    rebuild.rebuild_redis()
    worker = Worker(client)
    worker.beat()
    worker.suspend(worker.admit(virtual_key, counters_of(*budgets), 9_000, upstream_id="resp_1"))
    before = client.hgetall(gate.SUSPENSE)
    assert rebuild.rebuild_redis(force=True) is True
    assert client.hgetall(gate.SUSPENSE) == before


def test_a_forced_rebuild_in_use_keeps_holds_and_what_was_not_ingested(client, virtual_key, budgets):
    rebuild.rebuild_redis()
    worker = Worker(client)
    worker.beat()
    counters = counters_of(*budgets)
    worker.settle(worker.admit(virtual_key, counters, 9_000), 4_000)
    event = worker.admit(virtual_key, counters, 700)
    epoch, before = client.get(gate.EPOCH), spent_counters(client)
    client.set("tg:spend:stale:0", 5)
    assert rebuild.rebuild_redis(force=True) is True
    assert client.get(gate.EPOCH) != epoch
    assert spent_counters(client) == before
    worker.catch_up()
    assert spent_counters(client) == before
    worker.settle(event, 500)
    assert set(spent_counters(client).values()) == {4_500}


@pytest.mark.parametrize(
    "time_zone", ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"]
)
def test_windows_that_cut_hours_are_summed_exactly(client, time_zone):
    key = factories.VirtualKeyFactory(project__team__time_zone=time_zone)
    team = key.project.team
    budgets_by_window = {window: factories.BudgetFactory(team=team, window=window) for window in WINDOWS}
    other = factories.BudgetFactory()
    client.set(gate.EPOCH, "an epoch")
    now = datetime.datetime(2026, 11, 20, 18, 20, tzinfo=datetime.UTC)
    draw = random.Random(3)
    events = []
    for n in range(300):
        # From two months back to the next hour; a third of it close to now.
        seconds = draw.uniform(-60 * 86_400, 3_600) if n % 3 else draw.uniform(-7_200, 3_600)
        events.append(
            UsageEvent(
                attempt_id=str(uuid.uuid4()),
                request_id=str(uuid.uuid4()),
                admitted_at_us=int((now.timestamp() + seconds) * 1_000_000),
                team_id=str(team.pk),
                project_id=str(key.project_id),
                virtual_key_id=str(key.pk),
                alias="fast",
                provider="openai",
                model="small",
                deployment="small",
                request_model="small",
                cost_nanos=draw.randrange(10**10),
            )
        )
    for seq, event in enumerate(events, start=1):
        client.xadd(gate.USAGE, {"worker": "w", "seq": seq, "event": encode_event(event)})
    ledger.ingest(client)
    expected = {}
    for window, budget in budgets_by_window.items():
        start_s, end_s = window_bounds(window, time_zone, now.timestamp())
        within = [e.cost_nanos for e in events if start_s * 10**6 <= e.admitted_at_us < end_s * 10**6]
        expected[gate.spend_key(str(budget.pk), start_s)] = (sum(within), end_s + spend.COUNTER_GRACE_S)
    found = spend.spent(now.timestamp())
    assert {counter.key: (counter.amount, counter.expire_at_s) for counter in found} == expected
    assert str(other.pk) not in str(found)


def test_counters_end_with_their_windows(client, virtual_key, budgets):
    rebuild.rebuild_redis()
    worker = Worker(client)
    worker.beat()
    counters = counters_of(*budgets)
    worker.settle(worker.admit(virtual_key, counters, 10), 10)
    ledger.ingest(client)
    client.flushall()
    rebuild.rebuild_redis()
    now_s = client.time()[0]
    for counter in counters:
        expected_s = counter.expire_at_s + spend.COUNTER_GRACE_S - now_s
        assert abs(client.ttl(counter.key) - expected_s) <= 2


# Repair


def test_a_counter_that_drifted_is_moved_back_while_attempts_run(client, virtual_key, budgets):
    rebuild.rebuild_redis()
    worker = Worker(client)
    worker.beat()
    counters = counters_of(*budgets)
    worker.settle(worker.admit(virtual_key, counters, 9_000), 4_000)
    running = worker.admit(virtual_key, counters, 700)
    before = spent_counters(client)
    too_high, too_low, gone = counters[0].key, counters[1].key, counters[2].key
    client.incrby(too_high, 55)
    client.decrby(too_low, 1_000)
    client.delete(gone)

    def meanwhile(_):
        worker.settle(worker.admit(virtual_key, counters, 300), 200)

    drifted = rebuild.drifted_counters(client, sleep=meanwhile)
    assert {d.what: d.found - d.expected for d in drifted} == {too_high: 55, too_low: -1_000, gone: -4_700}
    worker.settle(worker.admit(virtual_key, counters, 300), 100)
    rebuild.repair_counters(client, drifted, actor=ACTOR, reason="a drill")
    assert spent_counters(client) == {name: amount + 300 for name, amount in before.items()}
    assert client.ttl(gone) > 0
    entry = AuditEntry.objects.get(action="rebuild_counters")
    assert entry.before[too_high] - entry.after[too_high] == 55 and entry.reason == "a drill"
    worker.settle(running, 0)
    assert rebuild.drifted_counters(client, sleep=meanwhile) == []


def test_the_command_shows_what_differs_and_then_sets_it_right(client, virtual_key, budgets, monkeypatch, capsys):
    at_once = functools.partial(rebuild.drifted_counters, confirm_s=0)
    monkeypatch.setattr("controlplane.management.commands.rebuild_counters.drifted_counters", at_once)
    with pytest.raises(CommandError, match="being rebuilt"):
        call_command("rebuild_counters")
    rebuild.rebuild_redis()
    (counter, *_) = counters_of(*budgets)
    client.set(counter.key, 1_234_567)
    call_command("rebuild_counters", "--dry-run")
    assert f"{counter.key}: 1,234,567 where 0 is right (+1,234,567 usd)" in capsys.readouterr().out
    assert client.get(counter.key) == b"1234567"
    call_command("rebuild_counters")
    assert "1 counters are set right." in capsys.readouterr().out
    assert client.get(counter.key) == b"0"
    call_command("rebuild_counters")
    assert "Every counter is as the ledger says." in capsys.readouterr().out


def test_counters_of_every_scope_and_unit_come_back(client, virtual_key):
    team, project = virtual_key.project.team, virtual_key.project
    factories.BudgetFactory(team=team, unit="tokens")
    factories.BudgetFactory(team=team, unit="requests", window="week")
    factories.BudgetFactory(team=team, each=["end_user"])
    factories.BudgetFactory(team=None, scope="project", project=project, tags={"customer": "acme"}, window="total")
    factories.BudgetFactory(team=None, scope="global", each=["tag:customer"], unit="tokens")
    rebuild.rebuild_redis()
    worker = Worker(client)
    worker.beat()
    said = {"end_user": "ann", "tags": {"customer": "acme"}, "usage": Usage(input_tokens=30, output_tokens=12)}
    values = {"end_user": "ann", "tag:customer": "acme"}
    counters = []
    for row in spend.rows_of():
        start_s, end_s = row.bounds(timezone.now().timestamp())
        key = gate.spend_key(str(row.pk), start_s, *counter_values(row.subject, values))
        counters.append(gate.BudgetCounter(key, 10**15, True, end_s, gate.UNITS[row.unit]))
    worker.settle(worker.admit(virtual_key, counters, 9_000, tokens=50, **said), 4_000)
    ledger.ingest(client)
    before = spent_counters(client)
    assert sorted(before.values()) == [1, 42, 42, 4_000, 4_000]
    client.flushall()
    rebuild.rebuild_redis()
    assert spent_counters(client) == before


# Two at once


def test_a_rebuilder_that_was_held_up_changes_nothing(client, virtual_key, budgets, monkeypatch):
    really_write_counters = rebuild._write_counters

    def held_up(client):
        client.set(gate.EPOCH, "of somebody who was quicker")
        return really_write_counters(client)

    monkeypatch.setattr(rebuild, "_write_counters", held_up)
    client.set("tg:spend:in-use:0", 5)
    with pytest.raises(redis.WatchError):
        rebuild.rebuild_redis()
    assert client.get(gate.EPOCH) == b"of somebody who was quicker"
    assert spent_counters(client) == {b"tg:spend:in-use:0": 5}


def test_of_several_rebuilders_one_rebuilds(client, virtual_key):
    results = []

    def run():
        results.append(rebuild.rebuild_redis())
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]


def test_the_command_says_what_it_did(client, virtual_key, capsys):
    call_command("rebuild_redis")
    call_command("rebuild_redis")
    call_command("rebuild_redis", force=True)
    call_command("publish_snapshot")
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["Redis is rebuilt.", "Redis has its epoch: nothing to do.", "Redis is rebuilt."]
    assert said[3].endswith("is in force.")
    assert client.hlen(gate.KEYS) == 1
