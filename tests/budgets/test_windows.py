from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.windows import FOREVER_S, window_bounds

HOUR_S = 3600
ZONES = sorted(available_timezones())
FROM_S = int(datetime(2015, 1, 1, tzinfo=UTC).timestamp())
TO_S = int(datetime(2040, 1, 1, tzinfo=UTC).timestamp())


def at(text: str, time_zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(time_zone), fold=fold).timestamp())


@pytest.mark.parametrize(
    ("window", "time_zone", "moment", "start", "end"),
    [
        ("hour", "UTC", "2026-11-21 10:59:59", "2026-11-21 10:00", "2026-11-21 11:00"),
        ("hour", "Asia/Kolkata", "2026-11-21 10:10", "2026-11-21 10:00", "2026-11-21 11:00"),
        ("hour", "Asia/Kathmandu", "2026-11-21 00:00", "2026-11-21 00:00", "2026-11-21 01:00"),
        ("day", "UTC", "2026-11-21 00:00", "2026-11-21", "2026-11-22"),
        ("day", "America/New_York", "2026-11-21 23:59:59", "2026-11-21", "2026-11-22"),
        ("day", "Pacific/Kiritimati", "2026-12-31 12:00", "2026-12-31", "2027-01-01"),
        ("month", "UTC", "2026-01-31 23:59:59", "2026-01-01", "2026-02-01"),
        ("month", "UTC", "2028-02-29 12:00", "2028-02-01", "2028-03-01"),
        ("month", "Europe/Paris", "2026-12-31 23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "Asia/Tokyo", "2026-03-01 00:00", "2026-03-01", "2026-04-01"),
        ("week", "UTC", "2026-11-21 12:00", "2026-11-16", "2026-11-23"),
        ("week", "Europe/Berlin", "2026-10-25 23:59:59", "2026-10-19", "2026-10-26"),  # Has an hour more.
        ("week", "Asia/Tokyo", "2027-01-01 00:00", "2026-12-28", "2027-01-04"),
        ("quarter", "UTC", "2026-11-21 12:00", "2026-10-01", "2027-01-01"),
        ("quarter", "America/New_York", "2026-03-31 23:59:59", "2026-01-01", "2026-04-01"),
        ("year", "UTC", "2026-12-31 23:59:59", "2026-01-01", "2027-01-01"),
    ],
)
def test_a_window_begins_and_ends_on_the_calendar_of_its_zone(window, time_zone, moment, start, end):
    assert window_bounds(window, time_zone, at(moment, time_zone)) == (at(start, time_zone), at(end, time_zone))


@pytest.mark.parametrize(
    ("time_zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Asia/Beirut", "2026-03-29", 23),  # The clock skips midnight: the day begins at 01:00.
        ("America/Havana", "2026-11-01", 25),  # Midnight comes twice: the day begins with the first.
        ("UTC", "2026-03-29", 24),
    ],
)
def test_a_day_is_as_long_as_the_clock_makes_it(time_zone, day, hours):
    noon = at(f"{day} 12:00", time_zone)
    start, end = window_bounds("day", time_zone, noon)
    assert (end - start) / HOUR_S == hours
    assert window_bounds("day", time_zone, start) == window_bounds("day", time_zone, end - 1) == (start, end)
    assert window_bounds("day", time_zone, end)[0] == end
    assert window_bounds("day", time_zone, start - 1)[1] == start


def test_the_hour_that_comes_twice_is_two_windows():
    first = window_bounds("hour", "Europe/Berlin", at("2026-10-25 02:30", "Europe/Berlin", fold=0))
    second = window_bounds("hour", "Europe/Berlin", at("2026-10-25 02:30", "Europe/Berlin", fold=1))
    assert first[1] == second[0]
    assert second[1] - second[0] == HOUR_S


def test_half_an_hour_of_clock_change_shortens_the_last_hour_of_the_day():
    start, end = window_bounds("day", "Australia/Lord_Howe", at("2026-04-05 12:00", "Australia/Lord_Howe"))
    last = window_bounds("hour", "Australia/Lord_Howe", end - 1)
    assert last == (end - HOUR_S // 2, end)
    assert window_bounds("hour", "Australia/Lord_Howe", start) == (start, start + HOUR_S)


@pytest.mark.parametrize(
    ("window", "fiscal_month", "moment", "start", "end"),
    [
        ("year", 4, "2026-03-31 23:59:59", "2025-04-01", "2026-04-01"),
        ("year", 4, "2026-04-01 00:00", "2026-04-01", "2027-04-01"),
        ("year", 12, "2026-11-21 12:00", "2025-12-01", "2026-12-01"),
        ("quarter", 2, "2026-01-31 12:00", "2025-11-01", "2026-02-01"),
        ("quarter", 2, "2026-02-01 00:00", "2026-02-01", "2026-05-01"),
        ("quarter", 12, "2026-12-01 00:00", "2026-12-01", "2027-03-01"),
        ("month", 7, "2026-02-01 00:00", "2026-02-01", "2026-03-01"),
    ],
)
def test_years_and_quarters_begin_with_the_fiscal_month(window, fiscal_month, moment, start, end):
    zone = "Europe/London"
    bounds = window_bounds(window, zone, at(moment, zone), fiscal_month=fiscal_month)
    assert bounds == (at(start, zone), at(end, zone))


def test_what_is_not_on_the_calendar_is_one_window():
    assert window_bounds("total", "Asia/Tokyo", 0) == window_bounds("total", "UTC", TO_S) == (0, FOREVER_S)
    assert window_bounds("fixed", "UTC", 50, starts_at_s=100.0, ends_at_s=200.0) == (100, 200)
    assert window_bounds("fixed", "UTC", 50, starts_at_s=100.0) == (100, FOREVER_S)


@given(
    st.sampled_from(("hour", "day", "week", "month", "quarter", "year")),
    st.sampled_from(ZONES),
    st.integers(FROM_S, TO_S),
    st.integers(1, 12),
)
def test_windows_cover_all_time_once(window, time_zone, moment, fiscal_month):
    def bounds(at_s):
        return window_bounds(window, time_zone, at_s, fiscal_month=fiscal_month)

    start, end = bounds(moment)
    assert start <= moment < end
    assert bounds(start) == bounds(end - 1) == (start, end)
    assert bounds(start - 1)[1] == start
    assert bounds(end)[0] == end


def test_a_fraction_of_a_second_belongs_to_its_second():
    end = at("2026-11-21 11:00")
    assert window_bounds("hour", "UTC", end - 0.001) == (end - HOUR_S, end)
    assert window_bounds("hour", "UTC", end + 0.001) == (end, end + HOUR_S)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="unknown window 'decade'"):
        window_bounds("decade", "UTC", 0)
    with pytest.raises(KeyError):
        window_bounds("day", "Europe/Atlantis", 0)
