"""How often a request falls back on a deployment that fails too."""

import pytest

from proxy.retries import SAVED_MAX, Retries


def _fail(retries: Retries, deployment_id: str, times: int) -> None:
    for _ in range(times):
        retries.failed(deployment_id)


def _granted(retries: Retries, requests: int) -> int:
    """Of so many requests, those that may fall back on `b`, which then fails them."""
    granted = 0
    for _ in range(requests):
        retries.begin()
        if retries.may_try("b"):
            granted += 1
            retries.failed("b")
    return granted


def test_everybody_may_fall_back_on_a_deployment_that_answers():
    retries = Retries()
    _fail(retries, "a", 1_000)
    for _ in range(1_000):
        retries.begin()
        assert retries.may_try("b")
        retries.answered("b")


def test_when_everything_fails_a_tenth_of_the_requests_falls_back():
    retries = Retries()
    assert _granted(retries, 1_000) == pytest.approx(100 + SAVED_MAX + 5, abs=1)


def test_a_single_failure_costs_nothing():
    retries = Retries()
    retries.failed("b")
    assert all(retries.may_try("b") for _ in range(100))


def test_a_deployment_that_is_back_is_fallen_back_on_by_everybody_again():
    retries = Retries()
    _granted(retries, 200)
    for _ in range(10):
        retries.answered("b")
    assert all(retries.may_try("b") for _ in range(100))


def test_what_is_saved_in_good_times_is_bounded():
    retries = Retries()
    for _ in range(10_000):
        retries.begin()
    _fail(retries, "b", 10)
    assert sum(retries.may_try("b") for _ in range(100)) == SAVED_MAX
