"""What a budget is never passed at."""

import pytest

from budgets import caps


@pytest.mark.parametrize(
    ("mode", "blocking", "is_refusing", "percent"),
    [
        ("hard", [], True, 100),
        ("hard", [80], True, 80),
        ("hard", [95, 80, 120], True, 80),
        ("hard", [120], True, 100),  # A hard one is never passed.
        ("soft", [], False, 100),
        ("soft", [80], True, 80),
        ("soft", [150, 120], True, 120),
        ("observe", [], False, 100),
        ("observe", [80], False, 100),
    ],
)
def test_a_cap_is_the_smallest_share_that_blocks_and_never_more_than_a_hard_amount(
    mode, blocking, is_refusing, percent
):
    assert (caps.refuses(mode, blocking), caps.cap_percent(mode, blocking)) == (is_refusing, percent)


def test_a_share_is_of_whole_units():
    assert caps.share(99, 50) == 49
