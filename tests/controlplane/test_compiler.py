"""What is compiled is what the ledger's own reckoning says: the two sides of a counter cannot differ."""

import datetime
import uuid
from decimal import Decimal

import pytest

from audit.records import UsageEvent, encode_event
from budgets import gate, ledger, spend
from budgets.windows import window_bounds
from controlplane import compiler
from keys.redis import redis_client
from proxy.rules import Rules
from tests import factories

pytestmark = pytest.mark.django_db

USD = 10**9
SECOND = datetime.timedelta(seconds=1)
NOW = datetime.datetime(2026, 11, 20, 18, 20, tzinfo=datetime.UTC)


@pytest.mark.parametrize("window", ["hour", "day", "week", "month", "quarter", "year"])
@pytest.mark.parametrize(
    ("starts", "ends", "is_kept", "added"),
    [
        # From the beginning of the window before until the beginning of this one, or with a second more or less at either end.
        (0, 0, True, 20),
        (0, -1, True, 0),
        (-1, 1, True, 20),
        (-2, None, False, 0),  # Over when the window before began.
    ],
)
def test_an_increase_that_is_over_is_part_of_what_its_window_leaves(redis_url, window, starts, ends, is_kept, added):
    start_s, _ = window_bounds(window, "UTC", NOW.timestamp())
    before_s, _ = window_bounds(window, "UTC", start_s - 1)
    before, start = (datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in (before_s, start_s))
    team = factories.TeamFactory(time_zone="UTC")
    budget = factories.BudgetFactory(
        team=team, window=window, amount=Decimal(100), rollover=Decimal(90), rolls_over_since=before
    )
    factories.IncreaseFactory(
        budget=budget, amount=Decimal(20), state="approved", decided_by="user:x", decided_at=before,
        starts_at=before + starts * SECOND, ends_at=before - SECOND if ends is None else start + ends * SECOND,
    )  # fmt: skip
    event = UsageEvent(
        attempt_id=str(uuid.uuid4()),
        request_id=str(uuid.uuid4()),
        admitted_at_us=start_s * 1_000_000 - 1,
        team_id=str(team.pk),
        project_id=str(uuid.uuid4()),
        virtual_key_id=str(uuid.uuid4()),
        cost_nanos=70 * USD,
        **dict.fromkeys(("alias", "provider", "model", "deployment", "request_model"), "x"),
    )
    client = redis_client()
    client.xadd(gate.USAGE, {"worker": "w", "seq": 0, "event": encode_event(event)})
    ledger.ingest(client)

    (compiled,) = compiler.compile_snapshot(1, NOW).budgets
    assert bool(compiled.increases) is is_kept
    (counter,) = Rules([compiled], [], {}, {}).in_force(NOW.timestamp()).counters
    rolled_over = {item.start_s: item.rolled_over for item in spend.spent(NOW.timestamp())}[start_s]
    assert counter.carry.from_cap - 70 * USD == rolled_over == (30 + added) * USD


def test_an_increase_that_is_over_is_of_no_use_where_nothing_is_rolled_over(redis_url):
    factories.IncreaseFactory(
        budget=factories.BudgetFactory(window="year"), state="approved", decided_by="user:x", decided_at=NOW,
        starts_at=NOW - 2 * SECOND, ends_at=NOW,
    )  # fmt: skip
    (compiled,) = compiler.compile_snapshot(1, NOW).budgets
    assert compiled.increases == ()
