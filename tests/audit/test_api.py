"""The ledger and the record of changes through the API: to be read, by whom they concern, and never written."""

import datetime
from decimal import Decimal

import pytest
from django.utils import timezone

from audit.records import Usage
from tests import factories
from tests.api import assert_problem, client_with, post, results, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


@pytest.mark.parametrize("resource", ["audit-entries", "usage-records"])
def test_neither_is_written(resource):
    client = client_with()
    record = factories.UsageRecordFactory()
    for answer in (post(client, url(resource)), client.delete(url(resource, record.pk)), client.put(url(resource))):
        assert_problem(answer, 405)


def test_a_usage_record_says_all_that_the_ledger_knows():
    # A number of its own for each count, and a word of its own for what is told in words.
    meters = {name: type(getattr(Usage(), name))(number) for number, name in enumerate(Usage.__struct_fields__)}
    record = factories.UsageRecordFactory(cost_usd=Decimal("0.000000001"), tags={"feature": "search"}, **meters)
    row = client_with("usage:read").get(url("usage-records", record.pk)).json()
    assert row["cost_usd"] == "0.000000001"
    assert row["tags"] == {"feature": "search"}
    assert {name: row[name] for name in meters} == meters
    assert row["attempt_id"] == str(record.pk)


def test_records_are_found_by_time_subject_and_tag():
    now = timezone.now()
    wanted = factories.UsageRecordFactory(
        admitted_at=now - datetime.timedelta(hours=2), tags={"feature": "search", "customer": "acme"}, model="gpt"
    )
    factories.UsageRecordFactory(admitted_at=now - datetime.timedelta(hours=4), tags={"feature": "chat"})
    client = client_with()
    hours_ago = {hours: (now - datetime.timedelta(hours=hours)).isoformat() for hours in (1, 3)}
    for filters in (
        {"start": hours_ago[3], "end": hours_ago[1]},
        {"team": wanted.team_id},
        {"project": wanted.project_id},
        {"virtual_key": wanted.virtual_key_id},
        {"request_id": wanted.request_id},
        {"model": "gpt"},
        {"tag": "feature=search"},
    ):
        assert [row["attempt_id"] for row in results(client.get(url("usage-records"), filters))] == [str(wanted.pk)]


def test_the_ledger_is_read_page_by_page_also_where_moments_coincide():
    at = timezone.now()
    records = {str(factories.UsageRecordFactory(admitted_at=at).pk) for _ in range(5)}
    client, seen, path = client_with(), [], url("usage-records") + "?page_size=2"
    while path:
        page = client.get(path).json()
        seen += [row["attempt_id"] for row in page["results"]]
        path = page["next"]
    assert sorted(seen) == sorted(records)


def test_what_was_changed_is_found_by_object():
    client = client_with()
    team = post(client, url("teams"), {"name": "Search", "slug": "search", "reason": "new"}).json()
    (entry,) = results(client.get(url("audit-entries"), {"object_type": "teams.team", "object_id": team["id"]}))
    assert (entry["action"], entry["reason"], entry["before"], entry["after"]["slug"]) == (
        "create",
        "new",
        None,
        "search",
    )
    assert client.get(url("audit-entries", entry["id"])).json() == entry
