"""Calls to servers of other people, all at once and under one deadline."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Name = TypeVar("Name")
Answer = TypeVar("Answer")


def done_within(deadline_s: float, calls: Mapping[Name, Callable[[], Answer]]) -> dict[Name, Future[Answer]]:
    """Make each call in a thread of its own; those that have ended within `deadline_s` seconds.

    A server that answers a byte at a time keeps within every timeout, and would keep the others waiting.
    """
    callers = ThreadPoolExecutor(max(1, len(calls)))
    called = {callers.submit(call): name for name, call in calls.items()}
    done, _ = wait(called, timeout=deadline_s)
    # Whoever is not done is left to itself: its thread ends when the server does.
    callers.shutdown(wait=False)
    return {called[future]: future for future in done}
