"""Room under a cap: where others' holds fill it, requests stand in line until something is given back. One event loop.

Each worker has a line of its own for each counter that refuses, and the gate keeps the line of the workers, by their first. Nobody
is told when something is given back: the first of a line asks, the more often the more moves.
"""

import asyncio
import contextlib
from bisect import insort
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Self

from budgets.gate import AMPLE_PARTS, MUCH_LESS, BudgetCounter, OverBudget, Turn

# Most of what is held is given back soon. A request waits so long from the last time that anything moved in the budget that
# refuses it, and not longer in all. A running stream waits less: its provider goes on meanwhile.
ROOM_WAIT_S = 3.0
ROOM_WAIT_MAX_S = 30.0
EXTEND_WAIT_S = 0.25
# A line asks again after a tenth of the time in which nothing has moved, within bounds.
ASK_EVERY_S_MIN = 0.01
ASK_EVERY_S_MAX = 0.1
# Who would stand further back would hardly get room in time.
LINE_MAX = 1_000
# So many spent budgets are remembered.
SPENT_MAX = 10_000

# Asks the gate whose turn it is: of a counter, on behalf of one that waits since so long (Unix seconds) and needs so much.
AskTurn = Callable[[str, BudgetCounter, float, int], Awaitable[Turn]]


class Room:
    """The lines of a worker, by the key of the counter."""

    def __init__(self, ask_turn: AskTurn, now_s: Callable[[], float]) -> None:
        self.ask_turn = ask_turn
        self.now_s = now_s
        self.lines: dict[str, Line] = {}
        # What was left of those that were found spent. While it is the same, nobody need ask.
        self._spent: dict[str, int] = {}

    def refusal(self, counters: Sequence[BudgetCounter], needs: Mapping[int, int]) -> OverBudget | None:
        """Of a newcomer that `needs` so much of each unit: where others wait, it stands in line before it asks."""
        for index, counter in enumerate(counters):
            line = self.lines.get(counter.key)
            if line is not None and needs[counter.unit] * AMPLE_PARTS > line.left:
                return OverBudget(index, line.left)
        return None

    def is_spent(self, key: str, left: int) -> bool:
        return self._spent.get(key) == left

    def note_spent(self, key: str, left: int) -> None:
        if len(self._spent) >= SPENT_MAX:
            self._spent.clear()
        self._spent[key] = left


class Line:
    """Those who wait for one counter. `left` is what it was last seen to have left, `moved_at_s` when that was last another."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.moved_at_s = _now_s()
        self._places: list[Place] = []
        self._asks_at_s = 0.0

    @property
    def is_empty(self) -> bool:
        return not self._places

    @property
    def is_full(self) -> bool:
        return len(self._places) >= LINE_MAX

    @property
    def next(self) -> "Place":
        """Who asks: the first, unless what is left is too little for it and would do for somebody who needs much less."""
        first = self._places[0]
        if self.left < first.need:
            for place in self._places:
                if place.need <= self.left and place.need * MUCH_LESS <= first.need:
                    return place
        return first

    def enter(self, place: "Place") -> None:
        insort(self._places, place, key=lambda other: other.rank)
        if self.next is place:
            self._asks_at_s = 0.0

    def leave(self, place: "Place", *, may_be_room: bool) -> None:
        self._places.remove(place)
        if may_be_room:
            self._asks_at_s, self.moved_at_s = 0.0, _now_s()
        if self._places:
            self.next.woken.set()

    def note(self, left: int) -> None:
        if left != self.left:
            self.left, self.moved_at_s = left, _now_s()
            self.next.woken.set()

    def asks_in_s(self, place: "Place") -> float:
        """How long `place` has nothing to do, unless it is woken; 0: it is to ask now."""
        return max(self._asks_at_s - _now_s(), 0.0) if self.next is place else ROOM_WAIT_MAX_S

    def asked(self) -> None:
        now_s = _now_s()
        self._asks_at_s = now_s + min(max((now_s - self.moved_at_s) / 10, ASK_EVERY_S_MIN), ASK_EVERY_S_MAX)


class Place:
    """A place in line, within `with`; `needs` is how much of each unit. Streams that run stand before all others."""

    def __init__(self, room: Room, attempt_id: str, needs: Mapping[int, int], *, is_running: bool = False) -> None:
        self._room = room
        self._attempt_id = attempt_id
        self._needs = needs
        self._is_running = is_running
        self._since_s = _now_s()
        self.rank = 0.0 if is_running else room.now_s()
        self._key = ""
        self._has_waited_in_vain = False
        self.need = 0
        self.woken = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(may_be_room=not self._has_waited_in_vain)

    async def turn(self, counter: BudgetCounter, left: int) -> bool:
        """That counter has refused it, with so much `left`: wait until it may ask again. False: it has waited long enough."""
        line = self._room.lines.get(counter.key)
        if line is not None and line.is_full and self._key != counter.key:
            return False
        line = self._stand_in_line(counter, left)
        line.note(left)
        while (patience_s := self._patience_s(line)) > 0:
            if asks_in_s := line.asks_in_s(self):
                self.woken.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(patience_s, asks_in_s)):
                        await self.woken.wait()
            else:
                line.asked()
                if await self._is_its_turn(counter, line):
                    return True
        self._has_waited_in_vain = True
        return False

    async def _is_its_turn(self, counter: BudgetCounter, line: Line) -> bool:
        if self._is_running:
            return True
        turn = await self._room.ask_turn(self._attempt_id, counter, self.rank, self.need)
        line.note(turn.left)
        return turn.is_yours

    def _patience_s(self, line: Line) -> float:
        if self._is_running:
            return self._since_s + EXTEND_WAIT_S - _now_s()
        until_s = max(self._since_s, line.moved_at_s) + ROOM_WAIT_S
        return min(until_s, self._since_s + ROOM_WAIT_MAX_S) - _now_s()

    def _stand_in_line(self, counter: BudgetCounter, left: int) -> Line:
        """Where another counter refuses than before, the line is another one; how long it has waited counts there too."""
        if self._key != counter.key:
            self._leave(may_be_room=True)
            self._key, self.need = counter.key, self._needs[counter.unit]
            self._room.lines.setdefault(counter.key, Line(left)).enter(self)
        return self._room.lines[counter.key]

    def _leave(self, *, may_be_room: bool) -> None:
        if self._key:
            line = self._room.lines[self._key]
            line.leave(self, may_be_room=may_be_room)
            if line.is_empty:
                del self._room.lines[self._key]


def _now_s() -> float:
    return asyncio.get_running_loop().time()
