"""When to alert: thresholds, forecasts and the waits between tries, as tables."""

import datetime

import pytest

from budgets import alerts

DAY_S = 86_400
THURSDAY_14_S = datetime.datetime(2026, 11, 26, 13, 0, tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    ("used", "amount", "percents", "refuses_at", "expected"),
    [
        (79, 100, {50, 80}, None, [50]),
        (80, 100, {50, 80}, None, [50, 80]),
        (99, 100, {80}, None, [80]),
        (99, 100, {80}, 100, [80, 100]),  # What fits last leaves something: a hard one is as good as full.
        (98, 100, set(), 100, []),
        (792, 1_000, {80}, 80, [80]),  # So is one that blocks before.
        (791, 1_000, {80}, 80, []),
        (1_188, 1_000, {120}, 120, [100, 120]),
        (100, 100, set(), None, [100]),
        (150, 100, {120, 200}, None, [100, 120]),
        (0, 0, {50}, 100, []),
        (1, 0, {50}, 100, [50, 100]),
        (-5, 100, {50}, None, []),  # More was rolled over than is spent.
    ],
)
def test_a_threshold_is_crossed_when_its_share_is_reached(used, amount, percents, refuses_at, expected):
    assert alerts.crossed(used, amount, percents, refuses_at=refuses_at) == expected


@pytest.mark.parametrize(("left", "still"), [(20, True), (60, True), (69, True), (70, False), (100, False)])
def test_what_was_refused_still_is_until_clearly_more_is_left(left, still):
    assert alerts.still_refuses(left, 20, 1_000) is still


@pytest.mark.parametrize(("used", "is_behind"), [(80, False), (76, False), (75, False), (74, True), (0, True)])
def test_a_threshold_is_behind_only_by_a_margin(used, is_behind):
    assert alerts.is_behind(used, 100, 80) is is_behind


def looked(amounts_by_hour, half_life=3_600.0):
    """The pace after one look an hour."""
    pace = None
    for hour, used in enumerate(amounts_by_hour):
        pace = alerts.moved(pace, used, hour * 3_600.0, half_life)
    return pace


def test_a_steady_pace_runs_out_when_what_is_left_is_spent():
    pace = looked([0, 10, 20, 30])
    assert alerts.runs_out_at_s(pace, 100, 3_600.0) == pytest.approx(10 * 3_600)


def test_what_was_spent_lately_counts_most():
    steady, faster = looked([0, 10, 20, 30]), looked([0, 0, 0, 30])
    assert alerts.runs_out_at_s(faster, 100, 3_600.0) < alerts.runs_out_at_s(steady, 100, 3_600.0)


def test_what_is_held_and_given_back_is_no_pace():
    assert alerts.runs_out_at_s(looked([0, 50, 0, 50, 0]), 100, 3_600.0) is None


@pytest.mark.parametrize("amounts", [[50], [5, 50]])
def test_there_is_no_forecast_from_too_little(amounts):
    assert alerts.runs_out_at_s(looked(amounts, half_life=7_200.0), 100, 7_200.0) is None


def test_nothing_spent_never_runs_out():
    assert alerts.runs_out_at_s(looked([20, 20, 20]), 100, 3_600.0) is None


def test_looking_twice_at_one_moment_changes_nothing():
    pace = looked([0, 10])
    assert alerts.moved(pace, 90, pace.at_s, 3_600.0) == pace


@pytest.mark.parametrize(
    ("at_s", "end_s", "expected"),
    [
        (5 * DAY_S, 10 * DAY_S, True),
        (9.6 * DAY_S, 10 * DAY_S, None),  # Half a day before the end: as likely as not.
        (10 * DAY_S, 10 * DAY_S, False),
        (None, 10 * DAY_S, False),
        (12 * DAY_S, 100_000_000_000, True),
        (60 * DAY_S, 100_000_000_000, False),  # Of all time: not soon.
    ],
)
def test_a_budget_runs_out_when_it_does_so_well_before_its_window_ends(at_s, end_s, expected):
    assert alerts.runs_out(at_s, 0, end_s) is expected


@pytest.mark.parametrize(
    ("length_s", "half_life"), [(3_600, 150), (DAY_S, 3_600), (30 * DAY_S, 30 * 3_600), (100_000_000_000, 7 * DAY_S)]
)
def test_a_longer_window_forgets_more_slowly(length_s, half_life):
    assert alerts.half_life_s(0, length_s) == half_life


def test_each_wait_is_about_twice_the_one_before_and_none_longer_than_an_hour():
    longest = [alerts.wait_s(tries, 1.0) for tries in range(1, alerts.TRIES_MAX)]
    assert longest[:4] == [10, 20, 40, 80] and longest[-1] == 3_600
    assert [alerts.wait_s(tries, 0.0) for tries in range(1, alerts.TRIES_MAX)] == [wait / 2 for wait in longest]


def test_a_moment_is_said_in_the_zone_of_the_budget():
    assert alerts.moment_text(THURSDAY_14_S, "Europe/Berlin") == "Thursday 2026-11-26 14:00 (Europe/Berlin)"
