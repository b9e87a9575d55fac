"""The requests that run now, and how to cut one: by a kill switch, a lost lease, a client that left, a shutdown. No I/O."""

import asyncio
from collections.abc import Iterator

from proxy.errors import ClientGone, GatewayError, TrafficHalted


class LiveRequest:
    """One client request while it is served. Cutting it cancels its task, which then settles and tells the client why."""

    __slots__ = (
        "_task",
        "attempts",
        "cut_by",
        "is_client_gone",
        "is_stream",
        "kill_fields",
        "may_have_been_billed",
        "runs_on",
    )

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self._task = task
        # How many were admitted.
        self.attempts = 0
        self.cut_by: GatewayError | None = None
        self.kill_fields: tuple[str, ...] = ()
        self.is_stream = False
        self.is_client_gone = False
        # Its provider bills it to the end, with or without us: then we want to hear how much that is.
        self.runs_on = False
        # By any of its attempts, once that has ended.
        self.may_have_been_billed = False

    def cut(self, error: GatewayError) -> None:
        """The first reason counts."""
        if self.cut_by is None:
            self.cut_by = error
            self._task.cancel(error)

    def client_gone(self) -> None:
        self.is_client_gone = True
        if not self.runs_on:
            self.cut(ClientGone("the client left"))


class LiveRequests:
    """A plain set: a kill looks through all of them, which takes a millisecond for 5,000, and a request pays nothing for it."""

    def __init__(self) -> None:
        self._live: set[LiveRequest] = set()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._live))

    def add(self, live: LiveRequest) -> None:
        self._live.add(live)

    def remove(self, live: LiveRequest) -> None:
        self._live.discard(live)

    def streams(self) -> int:
        return sum(1 for live in self._live if live.is_stream)

    def cut_matching(self, field: str, error: GatewayError) -> int:
        """Cut every request that carries this kill flag field; returns how many."""
        matching = [live for live in self if field in live.kill_fields and live.cut_by is None]
        for live in matching:
            live.cut(error)
        return len(matching)

    def any_cut_by_kill(self, kill_switch_id: str) -> bool:
        return any(
            isinstance(live.cut_by, TrafficHalted) and live.cut_by.kill_switch_id == kill_switch_id
            for live in self._live
        )

    def cut_all(self, error: GatewayError) -> int:
        everyone = [live for live in self if live.cut_by is None]
        for live in everyone:
            live.cut(error)
        return len(everyone)
