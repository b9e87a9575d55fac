"""A day is the sum of its hours, whatever is done to those."""

import datetime
import uuid
from decimal import Decimal

import pytest
from django.db import connection
from django.db.models import F

from budgets.ledger_models import UsageDay, UsageHour, UsageTagDay, UsageTagHour

pytestmark = pytest.mark.django_db

DAY = datetime.date(2026, 3, 1)
SUBJECT = {name: uuid.uuid4() for name in ("team_id", "project_id", "virtual_key_id")}


def hour(number, **values):
    start = datetime.datetime(2026, 3, 1, number, tzinfo=datetime.UTC)
    named = {"alias": "chat", "model": "gpt", "provider": "openai", **SUBJECT}
    return UsageHour(hour=start, **named | values)


def test_hours_add_up_to_their_day():
    UsageHour.objects.bulk_create(
        [
            hour(0, requests=1, cost_usd=Decimal("0.000000001"), latency_histogram=[1]),
            hour(23, requests=2, errors=1, cost_usd=Decimal("0.5"), latency_histogram=[0, 1, 1]),
            hour(5, model="other", requests=7),
        ]
    )
    day = UsageDay.objects.get(model="gpt")
    assert (day.day, day.requests, day.errors, day.cost_usd) == (DAY, 3, 1, Decimal("0.500000001"))
    assert day.latency_histogram == [1, 1, 1]
    assert day.first_token_histogram == []
    assert UsageDay.objects.get(model="other").requests == 7


def test_a_day_follows_what_its_hours_become():
    row = hour(3, requests=2, cost_usd=Decimal("1"), latency_histogram=[2])
    row.save()
    UsageHour.objects.update(requests=F("requests") + 3, cost_usd=Decimal("0.25"), latency_histogram=[2, 0, 1])
    day = UsageDay.objects.get()
    assert (day.requests, day.cost_usd, day.latency_histogram) == (5, Decimal("0.25"), [2, 0, 1])
    UsageHour.objects.all().delete()
    day.refresh_from_db()
    assert (day.requests, day.cost_usd, day.latency_histogram) == (0, Decimal(0), [0, 0, 0])


def test_an_hour_written_again_on_conflict_counts_once_more():
    statement = (
        "INSERT INTO budgets_usagetaghour AS total (id, hour, team_id, project_id, tag_key, tag_value, requests, tokens,"
        " cost_usd) VALUES (gen_random_uuid(), %s, %s, %s, 'feature', 'search', 1, 10, 0.5)"
        " ON CONFLICT (hour, team_id, project_id, tag_key, tag_value) DO UPDATE SET requests = total.requests + 1"
    )
    start = datetime.datetime(2026, 3, 1, 4, tzinfo=datetime.UTC)
    with connection.cursor() as cursor:
        for _ in range(2):
            cursor.execute(statement, [start, SUBJECT["team_id"], SUBJECT["project_id"]])
    assert UsageTagHour.objects.get().requests == 2
    day = UsageTagDay.objects.get()
    assert (day.day, day.requests, day.tokens, day.cost_usd) == (DAY, 2, 10, Decimal("0.5"))


def test_hours_emptied_empty_the_days():
    hour(3, requests=2).save()
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE budgets_usagehour")
    assert not UsageDay.objects.exists()
