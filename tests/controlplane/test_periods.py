"""Ranges of time, as tables."""

from datetime import UTC, date, datetime

import pytest

from controlplane.periods import Span, named_period, parse_period

TODAY = date(2026, 3, 31)
NOW = datetime(2026, 3, 31, 14, 20, tzinfo=UTC)


def at(day: str, hour: int = 0) -> datetime:
    return datetime.fromisoformat(f"{day}T{hour:02}:00:00+00:00")


@pytest.mark.parametrize(
    ("name", "first", "last", "unit"),
    [
        ("today", "2026-03-31", "2026-03-31", "hour"),
        ("yesterday", "2026-03-30", "2026-03-30", "hour"),
        ("7d", "2026-03-25", "2026-03-31", "day"),
        ("30d", "2026-03-02", "2026-03-31", "day"),
        ("month", "2026-03-01", "2026-03-31", "day"),
        ("last-month", "2026-02-01", "2026-02-28", "day"),
    ],
)
def test_a_named_range_is_whole_days(name, first, last, unit):
    period = named_period(name, TODAY)
    assert (period.first.isoformat(), period.last.isoformat(), period.unit) == (first, last, unit)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        (("custom", "2026-01-05", "2026-01-09"), "2026-01-05", "2026-01-09"),
        (("custom", "2026-01-09", "2026-01-05"), "2026-01-05", "2026-01-09"),
        (("custom", "yesterday", ""), "2026-03-02", "2026-03-31"),
        (("custom", "0001-01-01", "9999-12-31"), "2026-03-02", "2026-03-31"),
        (("nonsense", "", ""), "2026-03-02", "2026-03-31"),
        (("", "2026-01-05", "2026-01-09"), "2026-03-02", "2026-03-31"),
    ],
)
def test_what_makes_no_sense_is_the_last_thirty_days(asked, first, last):
    period = parse_period(*asked, TODAY)
    assert (period.first.isoformat(), period.last.isoformat()) == (first, last)


@pytest.mark.parametrize(
    ("name", "so_far", "before"),
    [
        ("today", (at("2026-03-31"), at("2026-03-31", 15)), (at("2026-03-30"), at("2026-03-30", 15))),
        ("yesterday", (at("2026-03-30"), at("2026-03-31")), (at("2026-03-29"), at("2026-03-30"))),
        ("7d", (at("2026-03-25"), at("2026-03-31", 15)), (at("2026-03-18"), at("2026-03-24", 15))),
        # February has no 31st: the whole of it is compared with.
        ("month", (at("2026-03-01"), at("2026-03-31", 15)), (at("2026-02-01"), at("2026-03-01"))),
        ("last-month", (at("2026-02-01"), at("2026-03-01")), (at("2026-01-01"), at("2026-02-01"))),
    ],
)
def test_a_period_is_compared_with_as_much_time_before(name, so_far, before):
    period = named_period(name, TODAY)
    assert period.so_far(NOW) == Span(*so_far)
    assert period.before(NOW) == Span(*before)


def test_a_long_range_is_drawn_by_the_month():
    period = parse_period("custom", "2025-11-15", "2026-03-31", TODAY)
    assert period.unit == "month"
    assert [start.date().isoformat() for start in period.buckets] == [
        "2025-11-01",
        "2025-12-01",
        "2026-01-01",
        "2026-02-01",
        "2026-03-01",
    ]


def test_a_day_has_twenty_four_hours():
    assert len(named_period("today", TODAY).buckets) == 24
