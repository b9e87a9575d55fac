from datetime import UTC, datetime
from decimal import Decimal

import pytest

from routing.exchange_rates import InvalidRates, Rate, read

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
FIRST = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("currency,usd_per_unit\nEUR,1.08\n", [Rate("EUR", Decimal("1.08"), NOW)]),
        ("\ufeffusd_per_unit,currency,effective_from\n1.08, eur ,2026-11-01\n", [Rate("EUR", Decimal("1.08"), FIRST)]),
        ("currency,usd_per_unit,effective_from\nEUR,1,2026-11-01T00:00:00Z\n", [Rate("EUR", Decimal(1), FIRST)]),
        (
            '{"base":"USD","date":"2026-11-01","rates":{"EUR":0.8,"JPY":160}}',
            [Rate("EUR", Decimal("1.25"), FIRST), Rate("JPY", Decimal("0.00625"), FIRST)],
        ),
        (
            '{"base":"EUR","date":"2026-11-01","rates":{"USD":1.25,"GBP":0.5}}',
            [Rate("EUR", Decimal("1.25"), FIRST), Rate("GBP", Decimal("2.5"), FIRST)],
        ),
    ],
)
def test_rates_are_read_as_usd_per_unit(text, expected):
    assert read(text.encode(), NOW) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("EUR,1.08\n", "first line"),
        ("currency,usd_per_unit\nEUR,one\n", "line 2"),
        ("currency,usd_per_unit\nEUR,0\n", "not a rate"),
        ("currency,usd_per_unit\nEUR,NaN\n", "not a rate"),
        ("currency,usd_per_unit\nEUR,-1\n", "not a rate"),
        ("currency,usd_per_unit\nUSD,1\n", "is not USD"),
        ("currency,usd_per_unit\nEURO,1\n", "three letters"),
        ("currency,usd_per_unit,effective_from\nEUR,1,soon\n", "line 2"),
        ('{"base":"EUR","rates":{"GBP":0.5}}', "lack USD"),
        ('{"base":"USD","rates":{"EUR":0}}', "EUR: not a rate"),
        ('{"base":"USD","rates":{"IRR":4200000000000}}', "too small"),
        ('{"rates":', "truncated"),
    ],
)
def test_what_is_no_rate_is_refused_with_its_place(text, reason):
    with pytest.raises(InvalidRates, match=reason):
        read(text.encode(), NOW)


def test_a_file_has_a_bound():
    with pytest.raises(InvalidRates, match="bytes"):
        read(b"x" * (1024 * 1024 + 1), NOW)
