"""How far a long experiment has come, said now and then."""

import time
from collections.abc import Callable

INTERVAL_S = 10.0


class Progress:
    """Says `kill 37 of 200, about 4 min left`, every ten seconds at most. `what` is what is counted, in the singular."""

    def __init__(self, say: Callable[[str], None], what: str, total: int) -> None:
        self._say, self._what, self._total = say, what, total
        self._began_at_s = self._said_at_s = time.monotonic()

    def reached(self, done: int, told: str = "") -> None:
        """`done` of them are over; `told` is what was found meanwhile."""
        now_s = time.monotonic()
        if now_s - self._said_at_s < INTERVAL_S or not 0 < done < self._total:
            return
        self._said_at_s = now_s
        left_s = (now_s - self._began_at_s) / done * (self._total - done)
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        self._say(f"{self._what} {done:,} of {self._total:,}, about {left} left{f'; {told}' if told else ''}")
