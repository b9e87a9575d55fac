"""Waiting for room under a cap: who is next when something is given back to a budget. One event loop, no clock, no Redis."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable

from budgets.gate import BudgetCounter

# Most of what is held is given back soon. Where others' holds fill a cap, a request waits for room: so long from the last time
# that anything was given back, and not longer in all. A running stream waits less: its provider goes on meanwhile.
ROOM_WAIT_S = 3.0
ROOM_WAIT_MAX_S = 15.0
EXTEND_WAIT_S = 0.25
# What other workers give back is not heard of, so it is asked for.
ROOM_POLL_S = 0.1


class Room:
    """Those who wait, by the key of the counter that has refused them, the longest first."""

    def __init__(self) -> None:
        self._given_back_at_s = 0.0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def wait(self, key: str, at_most_s: float, *, is_first: bool = False) -> None:
        """Until something was given back to the counter, or for `at_most_s`; `is_first` goes before all others."""
        queue = self._waiting.setdefault(key, deque())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if is_first:
            queue.appendleft(turn)
        else:
            queue.append(turn)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(at_most_s):
                    await turn
        finally:
            if turn in queue:
                queue.remove(turn)
            if not queue and self._waiting.get(key) is queue:
                del self._waiting[key]

    def has_given_back_since(self, at_s: float) -> bool:
        """Whether anything was given back to a counter that somebody waits for."""
        return self._given_back_at_s >= at_s

    def given_back(self, counters: Iterable[BudgetCounter], now_s: float) -> None:
        """Some of what was held in these is free."""
        if self._waiting:
            if any(counter.key in self._waiting for counter in counters):
                self._given_back_at_s = now_s
            self.next_of(counters)

    def next_of(self, counters: Iterable[BudgetCounter]) -> None:
        """One of those who wait for any of these is next."""
        for counter in counters:
            queue = self._waiting.get(counter.key)
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    break
