"""Clients that leave, a hundred thousand times, at every moment of a call: nothing of them stays."""

import asyncio
import random
from typing import Any

import psutil

from tests.chaos.load import ask, chat
from tests.chaos.rig import Measured, Options, Promise, Rig, waited
from tests.chaos.witness import Witness
from tests.stack import Stack

CLIENTS = 20
BODIES = (
    chat("[[simulate tokens_per_second=500,output_tokens=100]]", max_tokens=100, stream=True),
    chat("[[simulate first_token_ms=20,tokens_per_second=1000,output_tokens=50]]", max_tokens=100, stream=True),
    chat("[[simulate latency_ms=50]]", max_tokens=100),
)
SETTLE_S = 10.0


def run(rig: Rig, options: Options) -> Measured:
    calls = options.calls_of(short=1_000, full=100_000)
    stack = rig.stack(1)
    secret = stack.control.issue_key()
    worker = psutil.Process(stack.proxy.workers()[0])
    asyncio.run(_drive(stack, secret, 200, options.first_seed))  # What is kept for good is there after the first calls.
    before = _kept(stack, worker)
    asyncio.run(_drive(stack, secret, calls, options.first_seed + 1))
    after = _kept(stack, worker)
    leaked = {name: after[name] - before[name] for name in before if name != "MiB"}
    witness = Witness(stack.simulator.journal).look()
    assert len(witness.calls) > calls / 4, f"only {len(witness.calls)} calls reached the provider"
    unsettled = witness.calls.keys() - {event["attempt_id"] for event in stack.control.events()}
    return Measured(
        is_held=not any(count > 0 for count in leaked.values()) and not unsettled,
        figure=", ".join(f"{count:+d} {name}" for name, count in leaked.items()) + f", {len(unsettled)} unsettled",
        counts=f"{calls:,} cancelled calls, {len(witness.calls):,} of them reached the provider",
        detail=f"RSS {before['MiB']} → {after['MiB']} MiB",
    )


async def _drive(stack: Stack, secret: str, calls: int, seed: int) -> None:
    remaining = iter(range(calls))

    async def client(number: int) -> None:
        draw = random.Random(seed * CLIENTS + number)
        for _ in remaining:
            # By the clock, which on a busy machine is mostly before the call has gone out; or in the middle of the answer.
            when: dict[str, Any] = draw.choice(
                ({"leave_after_s": draw.uniform(0, 0.1)}, {"leave_after_bytes": draw.randint(1, 4_000)})
            )
            await ask(stack.proxy.port, secret, draw.choice(BODIES), **when)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


def _kept(stack: Stack, worker: psutil.Process) -> dict[str, int]:
    """What the worker has, once nothing runs any more; connections that wait for the next call are closed by then."""
    waited(lambda: stack.control.holds() == 0, SETTLE_S)
    upstream = int(stack.simulator.url.rsplit(":", 1)[1])

    def connections() -> int:
        return sum(1 for c in worker.net_connections("tcp") if c.status == "ESTABLISHED" and c.raddr.port != upstream)

    waited(lambda: connections() == 0, SETTLE_S)
    pooled = sum(1 for c in worker.net_connections("tcp") if c.status == "ESTABLISHED")
    return {
        "descriptors": worker.num_fds() - pooled,
        "connections": connections(),
        # Those kept for the next calls are no more than ever ran at once.
        "upstream connections": max(pooled - CLIENTS, 0),
        "threads": worker.num_threads(),
        "holds": stack.control.holds(),
        "MiB": worker.memory_info().rss >> 20,
    }


PROMISE = Promise(
    "cancelled",
    "Cancelled requests leave nothing behind",
    "0 leaked connections, tasks, descriptors, holds after 100,000",
    run,
)
