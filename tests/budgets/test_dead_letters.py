"""What could not be in the ledger is seen, and comes in when the cause is gone."""

from decimal import Decimal

import pytest
from django.core.management import call_command
from django.db import connection

from audit.models import AuditEntry, UsageRecord
from audit.records import encode_event
from budgets import gate, ledger
from keys.redis import redis_client
from tests.budgets.test_ingest import Worker, make_event

pytestmark = pytest.mark.django_db


@pytest.fixture
def client(redis_url):
    client = redis_client()
    client.set(gate.EPOCH, "an epoch")
    return client


def refuse_and_allow_again(client, event):
    """As a damaged table would."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audit_usagerecord ADD CONSTRAINT no_alias CHECK (alias <> 'fast')")
        Worker(client).settle(event)
        ledger.ingest(client)
        cursor.execute("ALTER TABLE audit_usagerecord DROP CONSTRAINT no_alias")


def test_what_was_put_aside_is_taken_in_when_the_cause_is_gone(client, capsys):
    event = make_event(cost_nanos=37)
    refuse_and_allow_again(client, event)
    assert client.xlen(ledger.DEAD_LETTERS) == 1 and not UsageRecord.objects.exists()
    call_command("replay_dead_letters", "--dry-run")
    told = capsys.readouterr().out
    assert "no_alias" in told and event.attempt_id in told and "1 events wait" in told
    assert client.xlen(ledger.DEAD_LETTERS) == 1
    call_command("replay_dead_letters", reason="the constraint is gone")
    assert client.xlen(ledger.DEAD_LETTERS) == 0
    ledger.ingest(client)
    assert UsageRecord.objects.get().cost_usd == Decimal("0.000000037")
    assert AuditEntry.objects.get(action="replay").reason == "the constraint is gone"


def test_what_still_cannot_be_comes_back_as_it_came(client):
    client.xadd(gate.USAGE, {"worker": "w", "seq": "9", "event": b"nonsense \xff"})
    ledger.ingest(client)
    ((_, before),) = client.xrange(ledger.DEAD_LETTERS)
    call_command("replay_dead_letters")
    ledger.ingest(client)
    ((_, after),) = client.xrange(ledger.DEAD_LETTERS)
    assert after == before


def test_more_than_one_command_holds_are_all_replayed(client):
    good = {"worker": "w", "seq": "0", "event": encode_event(make_event(cost_nanos=41)), "reason": "a mistake of ours"}
    for _ in range(ledger.CHUNK_ENTRIES + 1):
        client.xadd(ledger.DEAD_LETTERS, good)
    call_command("replay_dead_letters")
    assert client.xlen(ledger.DEAD_LETTERS) == 0
    assert client.xlen(gate.USAGE) == ledger.CHUNK_ENTRIES + 1
    ledger.ingest(client)
    assert UsageRecord.objects.count() == 1


def test_where_there_is_nothing_it_says_so(client, capsys):
    call_command("replay_dead_letters")
    assert "There are none" in capsys.readouterr().out
    assert not AuditEntry.objects.exists()
