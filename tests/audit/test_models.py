"""The database itself keeps both tables append-only: whoever asks, however."""

import datetime
import uuid

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from audit import services
from audit.ids import uuid7
from audit.models import AuditEntry, UsageRecord
from tests import factories

pytestmark = pytest.mark.django_db


def refused(statement, *parameters):
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def partitions():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_usagerecord'::regclass"
        )
        return sorted(name for (name,) in cursor.fetchall())


@pytest.fixture
def truncate_is_refused():
    """Tests may switch the refusal off, to empty tables between them; it is on wherever Tollgate runs."""
    with connection.cursor() as cursor:
        for table in ["audit_auditentry", "audit_usagerecord", *partitions()]:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER append_only_truncate")


def test_an_audit_entry_is_never_changed_nor_removed():
    with transaction.atomic():
        entry = services.record(factories.ACTOR, "try", object_type="nothing")
    refused("UPDATE audit_auditentry SET reason = 'x'")
    refused("DELETE FROM audit_auditentry")
    with pytest.raises(IntegrityError), transaction.atomic():
        AuditEntry.objects.filter(pk=entry.pk).delete()
    with pytest.raises(IntegrityError), transaction.atomic():
        entry.save()
    assert AuditEntry.objects.get(pk=entry.pk).reason == ""


def test_no_table_is_truncated(truncate_is_refused):
    refused("TRUNCATE audit_auditentry")
    refused("TRUNCATE audit_usagerecord")
    for partition in partitions():
        refused(f"TRUNCATE {partition}")


def test_a_usage_record_is_never_removed_nor_changed():
    record = factories.UsageRecordFactory()
    partition = f"audit_usagerecord_{record.admitted_at:%Y_%m}"
    assert partition in partitions()
    for table in ("audit_usagerecord", partition):
        refused(f"DELETE FROM {table} WHERE attempt_id = %s", record.pk)
        refused(f"UPDATE {table} SET cost_usd = 0 WHERE attempt_id = %s", record.pk)
        refused(f"UPDATE {table} SET state = 'suspense' WHERE attempt_id = %s", record.pk)


@pytest.mark.parametrize("state", ["posted", "voided"])
def test_a_record_in_suspense_is_resolved_once(state):
    record = factories.UsageRecordFactory(state="suspense", cost_usd=5)
    UsageRecord.objects.filter(pk=record.pk).update(state=state, cost_usd=1, resolved_at=timezone.now())
    assert UsageRecord.objects.get(pk=record.pk).cost_usd == 1
    refused("UPDATE audit_usagerecord SET cost_usd = 2 WHERE attempt_id = %s", record.pk)
    refused("UPDATE audit_usagerecord SET state = 'suspense' WHERE attempt_id = %s", record.pk)


def test_a_record_in_suspense_stays_there_or_is_resolved():
    record = factories.UsageRecordFactory(state="suspense")
    refused("UPDATE audit_usagerecord SET cost_usd = 2 WHERE attempt_id = %s", record.pk)


@pytest.mark.parametrize("column", ["team_id", "project_id", "virtual_key_id", "request_id"])
def test_resolving_a_record_does_not_change_whose_it_is(column):
    record = factories.UsageRecordFactory(state="suspense")
    refused(f"UPDATE audit_usagerecord SET state = 'posted', {column} = %s", uuid.uuid4())
    refused("UPDATE audit_usagerecord SET state = 'posted', held_usd = held_usd + 1")
    refused("UPDATE audit_usagerecord SET state = 'posted', admitted_at = admitted_at + interval '2 months'")
    assert UsageRecord.objects.get(pk=record.pk).state == "suspense"


def test_the_same_attempt_is_recorded_once():
    record = factories.UsageRecordFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        factories.UsageRecordFactory(attempt_id=record.pk, admitted_at=record.admitted_at)


def test_a_record_of_any_time_finds_a_partition():
    factories.UsageRecordFactory(admitted_at=datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC))
    factories.UsageRecordFactory(admitted_at=datetime.datetime(2101, 1, 1, tzinfo=datetime.UTC))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM audit_usagerecord_default")
        assert cursor.fetchone() == (2,)


def test_partitions_are_made_ahead_and_only_once(truncate_is_refused):
    before = partitions()
    made = services.ensure_partitions(months_ahead=6)
    assert len(made) == 3  # Four months were there from the first migration.
    assert services.ensure_partitions(months_ahead=6) == []
    assert set(partitions()) == {*before, *made}
    refused(f"TRUNCATE {made[0]}")


def test_a_month_whose_rows_are_in_the_default_partition_stays_there():
    now = timezone.now()
    ahead = (now.year * 12 + now.month - 1) + 8
    moment = datetime.datetime(ahead // 12, ahead % 12 + 1, 10, tzinfo=datetime.UTC)
    factories.UsageRecordFactory(admitted_at=moment)
    made = services.ensure_partitions(months_ahead=9)
    assert f"audit_usagerecord_{moment:%Y_%m}" not in made
    assert UsageRecord.objects.filter(admitted_at=moment).count() == 1


def test_a_query_of_one_month_reads_one_partition():
    services.ensure_partitions()
    start = timezone.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    plan = UsageRecord.objects.filter(
        admitted_at__gte=start, admitted_at__lt=start + datetime.timedelta(days=20)
    ).explain()
    assert f"audit_usagerecord_{start:%Y_%m}" in plan
    assert plan.count(" on audit_usagerecord_") <= 2  # And the default one, where a statistic cannot rule it out.


def test_ids_grow_with_time():
    made = [uuid7() for _ in range(1000)]
    assert all(one.version == 7 and one.variant == uuid.RFC_4122 for one in made)
    assert [one.int >> 80 for one in made] == sorted(one.int >> 80 for one in made)
    assert len(set(made)) == len(made)
