"""Whatever a provider sends: the client's answer ends well, the attempt is settled once, and the worker stays small.

A whole answer is read up to a bound of its own (`proxy/relay.py`), and only then refused: what that takes is told apart.
"""

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import psutil

from controlplane.simulator.directives import Fault
from tests.chaos.load import Answer, ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone
from tests.chaos.witness import Witness
from tests.stack import Stack, wait_until

MIB = 1 << 20
GROWTH_MAX = 64 * MIB
FLOOD_BYTES = 80 * MIB


class Watch:
    """The largest that a process is within the `with`."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.largest = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.01):
            self.largest = max(self.largest, self._process.memory_info().rss)


def run(rig: Rig, options: Options) -> Measured:
    rounds = options.seeds or (1 if options.is_short else 10)
    stack = rig.stack(1, TOLLGATE_LEASE_S="30")
    witness = Witness(stack.simulator.journal)
    sim = stack.control.providers["sim"]
    stack.control.providers["sim"] = msgspec.structs.replace(sim, first_byte_timeout_s=1, idle_timeout_s=1)
    stack.wait_for_version(stack.control.publish())
    secret = stack.control.issue_key()
    worker = psutil.Process(stack.proxy.workers()[0])
    assert asyncio.run(ask(stack.proxy.port, secret, chat())).status == 200
    growths: dict[str, int] = {}
    whole_growth = 0
    badly_ended: list[str] = []
    asked = 1
    progress = rig.progress("round", rounds)
    for number in range(rounds):
        progress.reached(number)
        for fault in Fault:
            before = worker.memory_info().rss
            with Watch(worker) as watch:
                answers = asyncio.run(_ask(stack, secret, _streams(fault)))
            growths[fault] = max(growths.get(fault, 0), watch.largest - before)
            with Watch(worker) as watch:
                answers += asyncio.run(_ask(stack, secret, [_whole(fault)]))
            whole_growth = max(whole_growth, watch.largest - before)
            badly_ended += [fault for answer in answers if not _is_well_ended(answer)]
            asked += len(answers)
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    events = stack.control.events()
    attempts = {event["attempt_id"] for event in events}
    settled_once = len(attempts) == len(events) and witness.look().calls.keys() <= attempts
    assert len(witness.calls) >= asked * 0.9, f"only {len(witness.calls)} of {asked} calls reached the provider"
    largest = max(growths, key=lambda fault: growths[fault])
    return Measured(
        is_held=growths[largest] < GROWTH_MAX and not badly_ended and settled_once and worker.is_running(),
        figure=f"RSS +{growths[largest] / MIB:.0f} MiB at most ({largest}); {len(badly_ended)} ended badly; "
        f"{'each settled once' if settled_once else f'{len(events)} events for {len(witness.calls)} calls'}",
        counts=f"{len(Fault)} kinds, {asked} calls",
        detail=f"whole answers +{whole_growth / MIB:.0f} MiB; ended badly: {sorted(set(badly_ended)) or 'none'}",
    )


def _whole(fault: Fault) -> dict[str, Any]:
    return chat(f"[[simulate {fault}=1,fault_bytes={FLOOD_BYTES}]]")


def _streams(fault: Fault) -> list[dict[str, Any]]:
    """From the first byte, and in the middle."""
    told = f"{fault}=1,fault_bytes={FLOOD_BYTES}"
    return [
        chat(f"[[simulate {told}]]", stream=True),
        chat(f"[[simulate {told},after_tokens=3]]", stream=True),
    ]


async def _ask(stack: Stack, secret: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    return [await ask(stack.proxy.port, secret, body) for body in bodies]


def _is_well_ended(answer: Answer) -> bool:
    """HTTP is whole, and what is in it can be read to its end, which says how it ended."""
    if not answer.is_whole:
        return False
    if "event-stream" not in answer.headers.get("content-type", ""):
        return bool(json.loads(answer.body))
    *events, nothing = answer.body.decode().split("\n\n")
    data = [line for event in events for line in event.split("\n") if line and not line.startswith(":")]
    last = data[-1].removeprefix("data:").strip() if data else ""
    return nothing == "" and all(line.startswith("data:") for line in data) and (last == "[DONE]" or "error" in last)


PROMISE = alone(
    "malformed",
    "Malformed answers harm only their own call",
    "RSS < +64 MiB, each settles, the client's stream ends well-formed",
    run,
)
