"""Figures as people read them."""

from decimal import Decimal

import pytest

from controlplane.templatetags import figures


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Decimal("1234.5"), "$1,234.50"),
        (Decimal(0), "$0.00"),
        (Decimal("0.004200000"), "$0.0042"),
        (Decimal("0.000000001"), "<$0.000001"),
        (None, "\u2013"),
    ],
)
def test_money(amount, text):
    assert figures.usd(amount) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (9_999, "9,999"), (12_345, "12.3k"), (3_400_000, "3.4M")])
def test_counts(number, text):
    assert figures.short(number) == text


@pytest.mark.parametrize(("fraction", "text"), [(0.0, "0 %"), (0.0123, "1.2 %"), (0.5, "50 %"), (None, "\u2013")])
def test_shares(fraction, text):
    assert figures.share(fraction) == text.replace(" ", figures.NBSP)


@pytest.mark.parametrize(("fraction", "text"), [(0.1234, "+12 %"), (-0.001, "±0 %"), (-0.5, "-50 %"), (None, "\u2013")])
def test_changes(fraction, text):
    assert figures.change(fraction) == text.replace(" ", figures.NBSP)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(Decimal("0.007460000"), "0.00746"), (Decimal("1E+3"), "1,000.00"), (Decimal("2.500000000"), "2.50")],
)
def test_exact_amounts_keep_every_place(amount, text):
    assert figures.exact(amount) == text
