"""Ingest: from the stream that the real scripts write into the real ledger. Crashes at each step lose and double nothing."""

import datetime
import json
import logging
import random
import threading
import uuid
from decimal import Decimal

import msgspec
import pytest
import redis
from django.db import OperationalError, connection

from audit.ids import uuid7
from audit.models import UsageRecord
from audit.records import PriceTerms, Usage, UsageEvent, encode_event, read_event
from budgets import gate, ledger, reap
from budgets.ledger_models import IngestWatermark, UsageDay, UsageHour, UsageTagHour
from budgets.rollups import HISTOGRAM_BOUNDS_MS, percentile_ms
from keys.redis import redis_client

pytestmark = pytest.mark.django_db

TEAM, PROJECT, KEY = (str(uuid.uuid4()) for _ in range(3))
NOON = datetime.datetime(2026, 11, 20, 12, 0, tzinfo=datetime.UTC)
BUDGET = gate.BudgetCounter("tg:spend:b:0", 10**12, True, 4_000_000_000)


@pytest.fixture
def client(redis_url):
    client = redis_client()
    client.set(gate.EPOCH, "an epoch")
    return client


def make_event(**values):
    fields = {
        "attempt_id": str(uuid.uuid4()),
        "request_id": str(uuid.uuid4()),
        "admitted_at_us": int(NOON.timestamp()) * 1_000_000 + 123_457,
        "team_id": TEAM,
        "project_id": PROJECT,
        "virtual_key_id": KEY,
        "alias": "fast",
        "provider": "openai",
        "model": "small",
        "deployment": "small-eu",
        "request_model": "small-2026",
        "status_code": 200,
        "usage": Usage(input_tokens=100, cache_read_input_tokens=40, output_tokens=20, reasoning_tokens=5),
        "usage_source": "provider",
        "cost_nanos": 1_234_567_890_123,
        "latency_ms": 900,
        "first_token_ms": 80,
        "tags": {"feature": "search", "customer": "acme"},
    }
    return UsageEvent(**fields | values)


class Worker:
    """What a worker sends, through the real scripts."""

    def __init__(self, client, name="w1"):
        self.client = client
        self.name = name
        self.seq = 0
        self.fence = 0

    def beat(self, lease_ms=30_000):
        self.fence += 1
        argument = gate.encode_heartbeat(
            worker=self.name, fence=self.fence, lease_ms=lease_ms, status=b"{}", is_in_step=True, join=gate.Join("", ())
        )
        return gate.decode_heartbeat(self.client.eval(gate.HEARTBEAT.text, 0, argument))

    def admit(self, event, nanos):
        hold = gate.hold_value([BUDGET], [], encode_event(event))
        argument = gate.encode_admit(
            worker=self.name,
            fence=self.fence,
            attempt_id=event.attempt_id,
            kill_fields=[],
            budgets=[BUDGET],
            full_nanos=nanos,
            tranche_nanos=nanos,
            hold=hold,
        )
        assert isinstance(gate.decode_admit(self.client.eval(gate.ADMIT.text, 0, argument)), gate.Admitted)

    def settle(self, event):
        self.seq += 1
        argument = gate.encode_settle(
            worker=self.name,
            seq=self.seq,
            attempt_id=event.attempt_id,
            cost_nanos=event.cost_nanos,
            budgets=[BUDGET],
            event=encode_event(event),
        )
        assert isinstance(gate.decode_settle(self.client.eval(gate.SETTLE.text, 0, argument)), gate.Settled)

    def die(self):
        self.client.delete(gate.lease_key(self.name))


def spent(client):
    return int(client.get(BUDGET.key) or 0)


def totals():
    """What the ledger and each roll-up say was spent and counted: three ways to the same sum."""
    records = UsageRecord.objects.all()
    hours = UsageHour.objects.all()
    features = UsageTagHour.objects.filter(tag_key="feature")
    return (
        (len(records), sum(row.cost_usd for row in records)),
        (sum(row.requests for row in hours), sum(row.cost_usd for row in hours)),
        (sum(row.requests for row in features), sum(row.cost_usd for row in features)),
    )


def assert_taken_in(count, cost_nanos):
    expected = (count, Decimal(cost_nanos).scaleb(-9))
    assert totals() == (expected, expected, expected)


# Rows


def test_every_field_of_an_event_is_in_its_row(client):
    event = make_event(
        attempt_number=2,
        kind="shadow",
        saved_nanos=3_000_000_001,
        environment="prod",
        response_model="small-2026-11",
        is_stream=True,
        error_type="upstream_timeout",
        finish_reason="length",
        held_nanos=2_000_000_000_001,
        price_id=str(uuid.uuid4()),
        kill_switch_id=str(uuid.uuid4()),
        operation="count_tokens",
        usage=Usage(*range(1, len(Usage().counts) + 1), service_tier="priority", inference_geo="us"),
        terms=PriceTerms(
            currency="EUR",
            usd_per_unit_nanos=1_100_000_000,
            uplift_basis_points=1_000,
            discount_basis_points=1_250,
            contract_id=str(uuid.uuid4()),
            has_free_tokens=True,
        ),
        currency_cost_nanos=1_122_334_455_667,
        adjusts=str(uuid.uuid4()),
        budget_ids=(str(uuid.uuid4()), str(uuid.uuid4())),
    )
    Worker(client).settle(event)
    assert ledger.ingest(client) == 1
    row = UsageRecord.objects.get()
    assert row.admitted_at == NOON + datetime.timedelta(microseconds=123_457)
    assert row.cost_usd == Decimal("1234.567890123") and row.held_usd == Decimal("2000.000000001")
    assert row.tags == {"feature": "search", "customer": "acme"}
    assert ledger.event_of(row) == event


def test_what_an_event_leaves_out_has_its_default(client):
    event = UsageEvent(
        **dict.fromkeys(("alias", "provider", "model", "deployment", "request_model"), "x"),
        **{name: str(uuid.uuid4()) for name in ("attempt_id", "request_id", "team_id", "project_id", "virtual_key_id")},
        admitted_at_us=1_795_000_000_000_000,
    )
    Worker(client).settle(event)
    ledger.ingest(client)
    assert ledger.event_of(UsageRecord.objects.get()) == event


def test_the_stream_is_empty_and_the_worker_knows_what_is_kept(client):
    worker = Worker(client)
    worker.beat()
    for _ in range(3):
        worker.settle(make_event())
    assert ledger.ingest(client) == 3
    assert client.xlen(gate.USAGE) == 0
    assert worker.beat().ingested_seq == 3
    assert IngestWatermark.objects.get().seq == 3


def test_a_watermark_never_goes_back(client):
    IngestWatermark.objects.create(worker="w1", seq=10)
    Worker(client).settle(make_event())
    ledger.ingest(client)
    assert IngestWatermark.objects.get().seq == 10
    assert client.hget(gate.INGESTED, "w1") == b"10"


def test_more_than_one_batch_is_taken_in_at_once(client, monkeypatch):
    monkeypatch.setattr(ledger, "BATCH_ENTRIES", 4)
    monkeypatch.setattr(ledger, "CHUNK_ENTRIES", 2)
    worker = Worker(client)
    for _ in range(10):
        worker.settle(make_event(cost_nanos=3))
    assert ledger.ingest(client) == 10
    assert_taken_in(10, 30)


def test_a_long_stream_does_not_hold_the_process_for_ever(client, monkeypatch):
    monkeypatch.setattr(ledger, "BATCH_ENTRIES", 2)
    monkeypatch.setattr(ledger, "CHUNK_ENTRIES", 2)
    worker = Worker(client)
    for _ in range(6):
        worker.settle(make_event())
    assert ledger.ingest(client, run_s=0) == 2
    assert ledger.ingest(client) == 4


# Roll-ups


def test_the_roll_ups_say_what_the_rows_say(client):
    worker = Worker(client)
    worker.settle(make_event())
    worker.settle(make_event(status_code=429, error_type="rate_limit", cost_nanos=0, usage=Usage(), latency_ms=3))
    worker.settle(make_event(admitted_at_us=int(NOON.timestamp() + 3600) * 1_000_000))
    ledger.ingest(client)
    first, second = UsageHour.objects.order_by("hour")
    assert (first.hour, second.hour) == (NOON, NOON + datetime.timedelta(hours=1))
    assert (first.requests, first.errors) == (2, 1)
    assert (first.input_tokens, first.cached_tokens, first.output_tokens) == (100, 40, 20)
    assert first.cost_usd == second.cost_usd == Decimal("1234.567890123")
    assert sum(first.latency_histogram) == 2 and sum(second.first_token_histogram) == 1
    assert 640 <= percentile_ms(second.latency_histogram, 0.5) <= 1024
    search = UsageTagHour.objects.get(hour=NOON, tag_key="feature")
    assert (search.tag_value, search.requests, search.tokens) == ("search", 2, 120)


def test_what_a_cache_hit_saved_and_what_a_shadow_call_cost_is_told_apart(client):
    worker = Worker(client)
    worker.settle(make_event(cost_nanos=100))
    worker.settle(make_event(kind="shadow", cost_nanos=40))
    worker.settle(make_event(kind="cache_hit", cost_nanos=0, saved_nanos=90, usage=Usage(), usage_source="none"))
    ledger.ingest(client)
    assert_taken_in(3, 140)
    for total in (UsageHour.objects.get(), UsageDay.objects.get()):
        assert (total.cost_usd, total.saved_usd, total.shadow_cost_usd) == (
            Decimal("0.000000140"),
            Decimal("0.000000090"),
            Decimal("0.000000040"),
        )
    assert list(UsageRecord.objects.order_by("kind").values_list("kind", "saved_usd")) == [
        ("attempt", 0),
        ("cache_hit", Decimal("0.000000090")),
        ("shadow", 0),
    ]


def test_a_shadow_call_in_suspense_is_told_apart_at_what_it_cost_in_the_end(client):
    event = make_event(kind="shadow", cost_nanos=0, usage=Usage(), latency_ms=0)
    worker = dead_worker(client, event, 5_000)
    reap.reap_lost_workers(client)
    ledger.ingest(client)
    assert UsageHour.objects.get().shadow_cost_usd == Decimal("0.000005")
    worker.settle(msgspec.structs.replace(event, cost_nanos=3_000))
    ledger.ingest(client)
    total = UsageHour.objects.get()
    assert (total.cost_usd, total.shadow_cost_usd) == (Decimal("0.000003"), Decimal("0.000003"))
    assert UsageRecord.objects.get().kind == "shadow"


def test_an_event_of_the_release_before_is_an_attempt(client):
    event = json.loads(encode_event(make_event()))
    assert "kind" not in event and "saved_nanos" not in event
    client.xadd(gate.USAGE, {"worker": "w1", "seq": "1", "event": json.dumps(event)})
    ledger.ingest(client)
    row = UsageRecord.objects.get()
    assert (row.kind, row.saved_usd) == ("attempt", 0)


def test_later_batches_add_to_the_rows_that_are_there(client):
    worker = Worker(client)
    for _ in range(3):
        worker.settle(make_event(latency_ms=5, first_token_ms=0))
        ledger.ingest(client)
    row = UsageHour.objects.get()
    assert row.requests == 3 and sum(row.latency_histogram) == 3 and sum(row.first_token_histogram) == 0
    assert UsageTagHour.objects.count() == 2


@pytest.mark.parametrize(
    ("latencies_ms", "share", "low", "high"),
    [([100] * 10, 0.5, 90, 128), ([1] * 99 + [60_000], 0.5, 0, 1), ([1] * 98 + [60_000] * 2, 0.99, 46_000, 66_000)],
)
def test_a_percentile_lies_in_the_right_bucket(latencies_ms, share, low, high):
    histogram = [0] * (len(HISTOGRAM_BOUNDS_MS) + 1)
    for latency_ms in latencies_ms:
        bucket = next((i for i, bound in enumerate(HISTOGRAM_BOUNDS_MS) if latency_ms <= bound), len(histogram) - 1)
        histogram[bucket] += 1
    assert low <= percentile_ms(histogram, share) <= high


def test_there_is_no_percentile_of_nothing():
    assert percentile_ms([], 0.5) is None


# Twice, and crashes


def test_an_event_that_comes_twice_is_counted_once(client):
    event = make_event(cost_nanos=7)
    Worker(client, "before").settle(event)
    ledger.ingest(client)
    Worker(client, "again").settle(event)  # As replayed from a journal.
    Worker(client, "twice").settle(event)
    assert ledger.ingest(client) == 2
    assert_taken_in(1, 7)


class CrashAfterCommit(redis.Redis):
    """Dies when the ledger has the events and the stream still has them too."""

    def pipeline(self, *args, **options):
        raise KeyboardInterrupt


@pytest.mark.django_db(transaction=True)
def test_a_crash_after_the_commit_doubles_nothing(client, redis_url):
    worker = Worker(client)
    for _ in range(5):
        worker.settle(make_event(cost_nanos=11))
    crashing = CrashAfterCommit.from_url(redis_url)
    with pytest.raises(KeyboardInterrupt):
        ledger.ingest(crashing)
    crashing.close()
    assert client.xlen(gate.USAGE) == 5 and UsageRecord.objects.count() == 5
    worker.settle(make_event(cost_nanos=11))
    ledger.ingest(client)
    assert_taken_in(6, 66)
    assert client.xlen(gate.USAGE) == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "table", ["audit_usagerecord", "budgets_usagehour", "budgets_usagetaghour", "budgets_ingestwatermark"]
)
def test_a_connection_that_breaks_at_any_step_loses_and_doubles_nothing(client, table):
    worker = Worker(client)
    for _ in range(5):
        worker.settle(make_event(cost_nanos=13))
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END$$;"
            f"CREATE TRIGGER die AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION die()"
        )
    try:
        with pytest.raises(OperationalError):
            ledger.ingest(client)
    finally:
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TRIGGER die ON {table}; DROP FUNCTION die")
    assert client.xlen(gate.USAGE) == 5
    assert_taken_in(0, 0)
    ledger.ingest(client)
    assert_taken_in(5, 65)


@pytest.mark.django_db(transaction=True)
def test_only_one_ingests_at_a_time(client):
    Worker(client).settle(make_event(cost_nanos=17))
    is_locked, may_end = threading.Event(), threading.Event()

    def hold_the_lock():
        with connection.cursor() as cursor:
            cursor.execute("BEGIN; SELECT pg_advisory_xact_lock(hashtext('budgets.ingest'))")
            is_locked.set()
            may_end.wait(10)
            cursor.execute("COMMIT")
        connection.close()

    other = threading.Thread(target=hold_the_lock)
    other.start()
    is_locked.wait(10)
    with pytest.raises(ledger.Taken):
        ledger.ingest(client)
    may_end.set()
    other.join()
    ledger.ingest(client)
    assert_taken_in(1, 17)


# Suspense


def dead_worker(client, event, held_nanos):
    worker = Worker(client, "dead")
    client.hset(gate.WORKERS, worker.name, "{}")
    worker.beat()
    worker.admit(event, held_nanos)
    worker.die()
    return worker


def test_what_a_dead_worker_held_is_in_suspense_at_its_held_amount(client):
    event = make_event(usage=Usage(), cost_nanos=0, status_code=0, latency_ms=0)
    dead_worker(client, event, 5_000)
    assert reap.reap_lost_workers(client) == 1
    ledger.ingest(client)
    row = UsageRecord.objects.get()
    assert row.state == "suspense" and row.cost_usd == row.held_usd == Decimal("0.000005")
    assert_taken_in(1, 5_000)
    assert spent(client) == 5_000


def test_a_living_worker_is_not_reaped(client):
    worker = Worker(client)
    worker.beat()
    worker.admit(make_event(), 5_000)
    assert reap.reap_lost_workers(client) == 0
    assert client.hlen(gate.holds_key("w1")) == 1


@pytest.mark.parametrize("comes_in_the_same_batch", [True, False])
def test_a_late_settle_resolves_suspense_once(client, comes_in_the_same_batch):
    event = make_event(cost_nanos=0, usage=Usage(), latency_ms=0)
    worker = dead_worker(client, event, 5_000)
    reap.reap_lost_workers(client)
    if not comes_in_the_same_batch:
        ledger.ingest(client)
    final = msgspec.structs.replace(event, cost_nanos=3_000, usage=Usage(input_tokens=9, input_audio_tokens=4, units=2))
    worker.settle(final)
    ledger.ingest(client)
    row = UsageRecord.objects.get()
    assert row.state == "posted" and row.cost_usd == Decimal("0.000003") and row.input_tokens == 9
    assert (row.input_audio_tokens, row.units) == (4, 2)
    assert (row.resolved_at is None) == comes_in_the_same_batch
    assert_taken_in(1, 3_000)
    assert spent(client) == 3_000
    # And never again, whatever comes.
    Worker(client, "again").settle(msgspec.structs.replace(event, cost_nanos=1))
    ledger.ingest(client)
    assert_taken_in(1, 3_000)


def test_what_was_never_dispatched_is_voided(client):
    event = make_event(cost_nanos=0, usage=Usage())
    dead_worker(client, event, 5_000)
    argument = gate.encode_reap(worker="dead", is_dead=True, void_attempt_ids=[event.attempt_id])
    client.eval(gate.REAP.text, 0, argument)
    ledger.ingest(client)
    assert UsageRecord.objects.get().state == "voided"
    assert_taken_in(1, 0)
    assert spent(client) == 0


# What cannot be in the ledger


@pytest.mark.parametrize(
    "fields",
    [
        {"worker": "w", "seq": "9"},
        {"worker": "w", "seq": "9", "event": "nonsense"},
        {"worker": "w", "seq": "9", "event": "{}"},
        {"worker": "w", "seq": "nine", "event": encode_event(make_event())},
        {"worker": "w", "seq": "9", "event": encode_event(make_event(attempt_id="not an id"))},
        {"worker": "w", "seq": "9", "event": encode_event(make_event(team_id="not an id"))},
        {"worker": "w", "seq": "9", "event": encode_event(make_event(cost_nanos=10**30))},
        {"worker": "w", "seq": "9", "event": encode_event(make_event(cost_nanos="a lot"))},
        {"worker": "w", "seq": "9", "event": encode_event(make_event(state="lost"))},
        {"worker": "w", "seq": "9", "event": encode_event(make_event(adjusts="not an id"))},
        {"worker": "w", "seq": "0", "event": encode_event(make_event()), "state": "lost", "cost_nanos": "1"},
        {"worker": "w", "seq": "0", "event": encode_event(make_event()), "state": "posted"},
        {b"\xff": b"\xff"},
    ],
)
def test_a_malformed_entry_is_put_aside_and_blocks_nothing(client, fields, caplog):
    good = [make_event(cost_nanos=19) for _ in range(3)]
    worker = Worker(client)
    worker.settle(good[0])
    client.xadd(gate.USAGE, fields)
    worker.settle(good[1])
    worker.settle(good[2])
    with caplog.at_level(logging.ERROR):
        assert ledger.ingest(client) == 4
    assert_taken_in(3, 57)
    assert client.xlen(gate.USAGE) == 0
    ((_, dead),) = client.xrange(ledger.DEAD_LETTERS)
    assert dead.pop(b"reason")
    encoded = {
        (k if isinstance(k, bytes) else k.encode()): (v if isinstance(v, bytes) else v.encode())
        for k, v in fields.items()
    }
    assert dead == encoded
    assert "put aside" in caplog.text
    assert worker.beat().ingested_seq == 3


def test_a_nul_from_a_provider_costs_no_record(client):
    Worker(client).settle(make_event(finish_reason="st\x00op", tags={"feature": "a\x00b"}, cost_nanos=23))
    ledger.ingest(client)
    assert UsageRecord.objects.get().finish_reason == "st\ufffdop"
    assert_taken_in(1, 23)


# What cannot be, and is no money

MONEY = ("attempt_id", "team_id", "project_id", "virtual_key_id", "state", "cost_nanos", "adjusts")
SIDE_FIELDS = [name for name in UsageEvent.__struct_fields__ if name not in MONEY]
# Not to be made shorter: an index has room for so many bytes of it.
LONG = "".join(random.Random(4).choices("abcdefghijklmnopqrstuvwxyzäöüß漢字", k=30_000))


@pytest.mark.parametrize(
    "silly",
    [-1, -(2**62), 2**62, 10**30, 1.5, True, None, "", LONG, "not an id", [], [{}], {}, {"a": 1, LONG: LONG}],
    ids=lambda silly: str(silly)[:20],
)
def test_money_is_never_lost_for_a_side_field_that_cannot_be(client, silly):
    """Twice, so that what is mended can also be added up."""
    for _ in range(2):
        event = make_event(attempt_id=str(uuid7()), cost_nanos=29)
        event = json.loads(encode_event(event)) | dict.fromkeys(SIDE_FIELDS, silly)
        client.xadd(gate.USAGE, {"worker": "w1", "seq": "0", "event": json.dumps(event)})
    assert ledger.ingest(client) == 2
    assert client.xlen(ledger.DEAD_LETTERS) == 0
    # With tags that cannot be, it is not told apart by them.
    records, hours, _ = totals()
    assert records == hours == (2, Decimal("0.000000058"))
    for record in UsageRecord.objects.all():
        read_event(encode_event(ledger.event_of(record)))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"latency_ms": -5}, {"latency_ms": 0}),
        ({"first_token_ms": 10**12}, {"first_token_ms": 2**31 - 1}),
        ({"status_code": 99_999}, {"status_code": 999}),
        ({"finish_reason": "x" * 300}, {"finish_reason": "x" * 200}),
        ({"request_id": "not an id"}, {"request_id": uuid.UUID(int=7)}),
        ({"price_id": "not an id"}, {"price_id": None}),
        ({"usage": {"input_tokens": 3, "output_tokens": -1}}, {"input_tokens": 3, "output_tokens": 0}),
        ({"usage_source": "the weather"}, {"usage_source": "none"}),
        ({"terms": {"currency": "EUR", "usd_per_unit_nanos": 0}}, {"terms": {}}),
        ({"tags": {"feature": "x" * 300, "size": 5}}, {"tags": {"feature": "x" * 256, "size": ""}}),
    ],
)
def test_what_cannot_be_is_cut_to_what_can(client, said, kept):
    event = json.loads(encode_event(make_event(attempt_id=str(uuid.UUID(int=7)), cost_nanos=31))) | said
    client.xadd(gate.USAGE, {"worker": "w1", "seq": "0", "event": json.dumps(event)})
    ledger.ingest(client)
    row = UsageRecord.objects.get()
    assert {name: getattr(row, name) for name in kept} == kept
    assert row.cost_usd == Decimal("0.000000031")
    assert client.hgetall(ledger.MENDED) == {name.encode(): b"1" for name in said}


def test_a_moment_that_cannot_be_is_the_one_in_the_attempts_id(client):
    """And always the same: an event that comes again is known."""
    made_ms = f"{int(NOON.timestamp() * 1000):012x}"
    event = make_event(attempt_id=f"{made_ms[:8]}-{made_ms[8:]}-7000-8000-000000000000", admitted_at_us=2**60)
    for worker in ("before", "again"):
        Worker(client, worker).settle(event)
        ledger.ingest(client)
    assert UsageRecord.objects.get().admitted_at == NOON


def test_each_kind_of_silliness_is_told_once(client, caplog):
    worker = Worker(client)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            worker.settle(make_event(latency_ms=-5))
            worker.settle(make_event(latency_ms=-6))
            ledger.ingest(client)
    assert caplog.text.count("latency_ms") == 1
    assert client.hgetall(ledger.MENDED) == {b"latency_ms": b"4"}
