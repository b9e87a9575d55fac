"""How often a request falls back on a deployment that fails too."""

import asyncio

import pytest

from proxy.retries import REQUESTS_PER_RETRY, RETRIES_SAVED_MAX, Retries


async def _answer(retries: Retries, deployment_id: str, times: int = 1) -> None:
    for _ in range(times):
        retries.answered(deployment_id)


async def _fail(retries: Retries, deployment_id: str, times: int) -> None:
    for _ in range(times):
        retries.failed(deployment_id)


async def _granted(retries: Retries, requests: int) -> int:
    """Of so many requests, those that may fall back on `b`, which then fails them."""
    granted = 0
    for _ in range(requests):
        retries.begin()
        if await retries.may_try("b"):
            granted += 1
            retries.failed("b")
    return granted


async def _fall_back(retries: Retries, *, answers: bool, took_s: float = 0.01) -> bool:
    """One request that falls back on `b`: whether it might."""
    retries.begin()
    may = await retries.may_try("b")
    if may:
        await asyncio.sleep(took_s)
        (retries.answered if answers else retries.failed)("b")
    return may


async def test_everybody_may_fall_back_on_a_deployment_that_answers():
    retries = Retries()
    await _fail(retries, "a", 1_000)
    for _ in range(1_000):
        assert await _fall_back(retries, answers=True, took_s=0)


@pytest.mark.parametrize("requests", [1, 4, 9, 50, 1_000])
async def test_of_what_fails_all_the_time_there_are_no_more_retries_than_promised(requests):
    assert await _granted(Retries(), requests) == 1 + requests // REQUESTS_PER_RETRY


async def test_all_at_once_fall_back_on_a_deployment_that_nobody_knew_and_that_answers():
    retries = Retries()
    assert all(await asyncio.gather(*(_fall_back(retries, answers=True) for _ in range(50))))


async def test_all_at_once_do_not_fall_back_on_a_deployment_that_nobody_knew_and_that_fails():
    retries = Retries()
    granted = await asyncio.gather(*(_fall_back(retries, answers=False) for _ in range(50)))
    assert sum(granted) == 1 + 50 // REQUESTS_PER_RETRY


async def test_a_trial_that_ends_without_news_keeps_nobody_waiting():
    retries = Retries()
    trial = asyncio.create_task(_fall_back(retries, answers=True, took_s=60))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(retries.may_try("b"))
    await asyncio.sleep(0)
    trial.cancel()
    assert not await waiting


async def test_a_deployment_that_only_takes_its_time_is_fallen_back_on():
    retries = Retries()
    trial = asyncio.create_task(_fall_back(retries, answers=True, took_s=60))
    await asyncio.sleep(0)
    assert await retries.may_try("b")
    trial.cancel()


async def test_a_single_failure_costs_nothing():
    retries = Retries()
    await _answer(retries, "b")
    retries.failed("b")
    assert all([await retries.may_try("b") for _ in range(100)])


async def test_a_deployment_that_is_back_is_fallen_back_on_by_everybody_again():
    retries = Retries()
    await _granted(retries, 200)
    await _answer(retries, "b", 10)
    assert all([await retries.may_try("b") for _ in range(100)])


async def test_what_is_saved_in_good_times_is_bounded():
    retries = Retries()
    for _ in range(10_000):
        retries.begin()
    await _fail(retries, "b", 10)
    assert sum([await retries.may_try("b") for _ in range(100)]) == RETRIES_SAVED_MAX
