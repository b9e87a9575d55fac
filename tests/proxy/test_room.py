"""Lines before counters that are full: who asks the gate next. The gate is a counter in this file."""

import asyncio

from budgets import gate
from proxy import room
from proxy.room import Place, Room

COUNTER = gate.BudgetCounter("tg:spend:cap:0", 1_000, True, 2_000_000_000)
OTHER = COUNTER._replace(key="tg:spend:other:0")


class Cap:
    """What is left of a budget, and who has got some of it, in order."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.got: list[str] = []
        self.room = Room(self.ask_turn, lambda: asyncio.get_running_loop().time())

    async def ask_turn(self, _attempt_id: str, _counter: gate.BudgetCounter, _since_s: float, need: int) -> gate.Turn:
        return gate.Turn(need <= self.left, self.left)

    async def take(
        self, name: str, need: int, *, is_running: bool = False, counter: gate.BudgetCounter = COUNTER
    ) -> bool:
        """As admitting does it: ask in turn until there is room."""
        with Place(self.room, name, {gate.USD: need}, is_running=is_running) as place:
            while await place.turn(counter, self.left):
                if need <= self.left:
                    self.left -= need
                    self.got.append(name)
                    return True
        return False

    async def waiting(self, *names_and_needs: tuple[str, int]) -> list["asyncio.Task[bool]"]:
        tasks = []
        for name, need in names_and_needs:
            tasks.append(asyncio.create_task(self.take(name, need)))
            await asyncio.sleep(0)
        return tasks


async def test_who_came_first_is_served_first():
    cap = Cap(left=0)
    tasks = await cap.waiting(("a", 10), ("b", 10), ("c", 10))
    cap.left = 30
    assert await asyncio.gather(*tasks) == [True, True, True]
    assert cap.got == ["a", "b", "c"]
    assert not cap.room.lines, "nobody waits, so there is no line"


async def test_a_newcomer_stands_behind_those_who_wait():
    cap = Cap(left=5)
    assert cap.room.refusal((OTHER, COUNTER), {gate.USD: 10}) is None
    tasks = await cap.waiting(("a", 10))
    assert cap.room.refusal((OTHER, COUNTER), {gate.USD: 10}) == gate.OverBudget(1, 5)
    assert cap.room.refusal((OTHER, COUNTER), {gate.USD: 0}) is None, "for whom there is room in abundance"
    cap.left = 10
    await asyncio.gather(*tasks)


async def test_who_needs_much_less_passes_and_who_needs_hardly_less_does_not():
    cap = Cap(left=6)
    tasks = await cap.waiting(("large", 10), ("hardly smaller", 6), ("small", 5))
    await tasks[2]
    assert cap.got == ["small"]
    cap.left = 16
    await asyncio.gather(*tasks)
    assert cap.got == ["small", "large", "hardly smaller"]


async def test_a_stream_that_runs_goes_before_all_others():
    cap = Cap(left=0)
    tasks = await cap.waiting(("a", 10))
    running = asyncio.create_task(cap.take("running", 10, is_running=True))
    await asyncio.sleep(0)
    cap.left = 20
    await asyncio.gather(*tasks, running)
    assert cap.got == ["running", "a"]


async def test_a_stream_that_runs_does_not_wait_for_long():
    assert not await Cap(left=0).take("running", 10, is_running=True)


async def test_a_line_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(room, "LINE_MAX", 2)
    cap = Cap(left=0)
    tasks = await cap.waiting(("a", 10), ("b", 10), ("c", 10))
    assert not await tasks[2]
    cap.left = 20
    await asyncio.gather(*tasks[:2])
    assert cap.got == ["a", "b"]


async def test_whoever_gives_up_makes_way():
    cap = Cap(left=0)
    tasks = await cap.waiting(("a", 10), ("b", 10))
    tasks[0].cancel()
    cap.left = 10
    assert await tasks[1]
    assert cap.got == ["b"]


async def test_whom_another_counter_refuses_goes_on_waiting_there():
    cap = Cap(left=0)
    with Place(cap.room, "a", {gate.USD: 10}, is_running=True) as place:
        await place.turn(COUNTER, 0)
        await place.turn(OTHER, 0)
        assert list(cap.room.lines) == [OTHER.key]
    assert not cap.room.lines


async def test_a_budget_is_known_to_be_spent_until_something_moves():
    waiting = Cap(left=0).room
    waiting.note_spent(COUNTER.key, 7)
    assert waiting.is_spent(COUNTER.key, 7)
    assert not waiting.is_spent(COUNTER.key, 8)
    assert not waiting.is_spent(OTHER.key, 7)
