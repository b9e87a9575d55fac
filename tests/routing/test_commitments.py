from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from routing.commitments import Commitment

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spent", "days", "percent", "expected", "shortfall"),
    [
        ("0", 0, 0, "0", "1000"),
        ("300", 10, 30, "900", "100"),
        ("999.999", 29, 99, "1034.48", "0"),
        ("1000", 30, 100, "1000", "0"),
        ("50", 0, 5, "50", "950"),
    ],
)
def test_what_will_be_missing_follows_from_the_pace_so_far(spent, days, percent, expected, shortfall):
    now = START + timedelta(days=days)
    commitment = Commitment(Decimal(1_000), Decimal(spent), START, START + timedelta(days=30), now)
    assert (commitment.percent, commitment.expected_usd, commitment.shortfall_usd) == (
        percent,
        Decimal(expected),
        Decimal(shortfall),
    )


def test_it_is_told_in_a_line():
    commitment = Commitment(Decimal(1_000), Decimal(300), START, START + timedelta(days=30), START + timedelta(days=10))
    assert str(commitment) == "300.00 of 1,000.00 USD (30 %); 100.00 USD short at this pace"
