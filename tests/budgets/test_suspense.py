"""What is in suspense is resolved by hand: by two people, once, and everywhere at the same moment."""

from decimal import Decimal

import msgspec
import pytest
from django.core.exceptions import ValidationError

from audit.actors import Actor
from audit.models import AuditEntry, UsageRecord
from budgets import gate, ledger, suspense, tasks, verifier
from budgets.ledger_models import SuspenseResolution, UsageHour
from controlplane import rebuild
from keys.redis import redis_client
from tests import factories
from tests.budgets.worker import Worker

pytestmark = pytest.mark.django_db(transaction=True)

ALICE, BOB = Actor("user", "a", "Alice"), Actor("user", "b", "Bob")


@pytest.fixture
def client(redis_url):
    client = redis_client()
    client.set(gate.EPOCH, "an epoch")
    return client


@pytest.fixture
def worker(client):
    key = factories.VirtualKeyFactory()
    factories.BudgetFactory(scope="key", team=None, virtual_key=key)
    factories.BudgetFactory(scope="global", team=None, unit="tokens", amount=10**9)
    return Worker(client, key)


@pytest.fixture
def lost(client, worker):
    """The record of an attempt whose worker died: 70 nano-USD are held."""
    worker.spend(1_000)
    event = worker.admit(70)
    worker.die_and_come_back()
    ledger.ingest(client)
    return UsageRecord.objects.get(attempt_id=event.attempt_id)


def counters(client):
    return sorted(int(client.get(name)) for name in client.keys("tg:spend:*"))


def propose(record, nanos=40, actor=ALICE):
    return suspense.propose(record, Decimal(nanos).scaleb(-9), actor=actor, reason="invoice 4711")


def approve(resolution, actor=BOB):
    suspense.decide(resolution, is_approved=True, actor=actor, note="seen")


def test_an_approved_resolution_corrects_ledger_roll_ups_and_counters(client, lost):
    assert counters(client) == [15 + 500, 1_070]
    approve(propose(lost))
    tasks.resolve_suspense()
    assert counters(client) == [15, 1_040]
    assert not client.exists(gate.SUSPENSE)
    ledger.ingest(client)
    lost.refresh_from_db()
    assert (lost.state, lost.cost_usd, lost.usage_source) == ("posted", Decimal("0.000000040"), "invoice")
    assert sum(row.cost_usd for row in UsageHour.objects.all()) == Decimal("0.000001040")
    tasks.resolve_suspense()
    assert SuspenseResolution.objects.get().applied_at is not None
    assert verifier.verify(client, confirm_s=0).drifts == 0
    entries = AuditEntry.objects.filter(object_type="budgets.suspenseresolution").order_by("id")
    assert [(entry.actor_name, entry.action) for entry in entries] == [
        ("Alice", "propose"),
        ("Bob", "approve"),
        ("suspense", "apply"),
    ]


def test_sending_it_again_and_again_counts_once(client, lost):
    approve(propose(lost))
    for _ in range(3):
        suspense.apply_approved(client)
    ledger.ingest(client)
    assert counters(client) == [15, 1_040]
    assert verifier.verify(client, confirm_s=0).drifts == 0


def test_a_redis_that_was_lost_in_between_hears_of_it_again(client, lost):
    approve(propose(lost))
    suspense.apply_approved(client)
    client.flushall()  # The event was not in the ledger yet.
    assert rebuild.rebuild_redis()
    suspense.apply_approved(client)
    ledger.ingest(client)
    lost.refresh_from_db()
    assert lost.state == "posted"
    assert verifier.verify(client, confirm_s=0).drifts == 0


def test_whoever_proposed_it_does_not_approve_it_and_may_take_it_back(lost):
    resolution = propose(lost)
    with pytest.raises(ValidationError, match="does not approve it"):
        approve(resolution, actor=ALICE)
    resolution.refresh_from_db()
    assert resolution.is_approved is None
    suspense.decide(resolution, is_approved=False, actor=ALICE, note="a slip")
    assert propose(lost, nanos=41).cost_usd == Decimal("0.000000041")


def test_there_is_one_proposal_at_a_time_and_one_decision(lost):
    resolution = propose(lost)
    with pytest.raises(ValidationError, match="a proposal for it already"):
        propose(lost)
    seen_before = SuspenseResolution.objects.get(pk=resolution.pk)
    approve(resolution)
    for row in (resolution, seen_before):
        with pytest.raises(ValidationError, match="decided already"):
            suspense.decide(row, is_approved=False, actor=BOB, note="no")


@pytest.mark.parametrize(("nanos", "reason"), [(-1, "invoice"), (1, "  ")])
def test_nonsense_is_not_proposed(lost, nanos, reason):
    with pytest.raises(ValidationError):
        suspense.propose(lost, Decimal(nanos).scaleb(-9), actor=ALICE, reason=reason)


def test_what_is_not_in_suspense_is_not_resolved():
    with pytest.raises(ValidationError, match="not in suspense"):
        propose(factories.UsageRecordFactory())


def test_what_resolves_by_itself_meanwhile_stays_so(client, worker, lost):
    approve(propose(lost))
    event = msgspec.structs.replace(ledger.event_of(lost), state="posted")
    worker.settle(event, 55)  # Its worker lives after all.
    suspense.apply_approved(client)
    ledger.ingest(client)
    lost.refresh_from_db()
    assert lost.cost_usd == Decimal("0.000000055")
    assert verifier.verify(client, confirm_s=0).drifts == 0
