"""Clients that leave, a hundred thousand times, at every moment of a call: nothing of them stays."""

import asyncio
import random
import time
from typing import Any

import psutil

from audit.records import decode_event
from budgets import gate
from proxy.control import BEAT_INTERVAL_S
from proxy.metrics import decode_status
from tests.chaos.load import ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone, waited
from tests.chaos.witness import Witness
from tests.stack import Stack

CLIENTS = 40
FIRST = 200
# After so many calls the ledger takes what there is: until then it stays in the worker's journal, as it must.
BETWEEN_INGESTS = 5_000
BODIES = (
    chat("[[simulate tokens_per_second=500,output_tokens=100]]", max_tokens=100, stream=True),
    chat("[[simulate first_token_ms=20,tokens_per_second=1000,output_tokens=50]]", max_tokens=100, stream=True),
    chat("[[simulate latency_ms=50]]", max_tokens=100),
)
SETTLE_S = 15.0


def run(rig: Rig, options: Options) -> Measured:
    calls = options.calls_of(short=1_000, full=100_000)
    stack = rig.stack(1)
    secret, draw = stack.control.issue_key(), random.Random(options.first_seed)
    worker = psutil.Process(stack.proxy.workers()[0])
    asyncio.run(_drive(stack, secret, FIRST, draw))  # What is kept for good is there after the first calls.
    settled = _ingest(stack)
    waited(lambda: _is_idle(_kept(stack, worker)), SETTLE_S)
    time.sleep(2 * BEAT_INTERVAL_S)  # Tasks are told with the beat.
    before, small_mib = _kept(stack, worker), worker.memory_info().rss >> 20
    progress = rig.progress("call", calls)
    for begun in range(0, calls, BETWEEN_INGESTS):
        asyncio.run(_drive(stack, secret, min(BETWEEN_INGESTS, calls - begun), draw))
        settled |= _ingest(stack)
        progress.reached(begun + BETWEEN_INGESTS)
    waited(lambda: not any(_leaked(before, _kept(stack, worker)).values()), SETTLE_S)
    leaked = _leaked(before, _kept(stack, worker))
    reached = Witness(stack.simulator.journal).look().calls.keys()
    assert len(reached) > calls / 4, f"only {len(reached)} calls reached the provider"
    unsettled = reached - (settled | _ingest(stack))
    return Measured(
        is_held=not any(leaked.values()) and not unsettled,
        figure=", ".join(f"+{count} {name}" for name, count in leaked.items()) + f", {len(unsettled)} unsettled",
        counts=f"{calls:,} cancelled calls, {len(reached):,} of them reached the provider",
        detail=f"RSS {small_mib} → {worker.memory_info().rss >> 20} MiB",
    )


async def _drive(stack: Stack, secret: str, calls: int, draw: random.Random) -> None:
    remaining = iter(range(calls))

    async def client() -> None:
        for _ in remaining:
            # By the clock, which on a busy machine is mostly before the call has gone out; or in the middle of the answer.
            when: dict[str, Any] = draw.choice(
                ({"leave_after_s": draw.uniform(0, 0.1)}, {"leave_after_bytes": draw.randint(1, 4_000)})
            )
            await ask(stack.proxy.port, secret, draw.choice(BODIES), **when)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def _ingest(stack: Stack) -> set[str]:
    """The attempts that have been settled since: they leave the stream, and with the worker's next beat its journal."""
    client, settled = stack.control.redis, set[str]()
    for entry_id, fields in client.xrange(gate.USAGE):
        settled.add(decode_event(fields[b"event"]).attempt_id)
        client.hset(gate.INGESTED, fields[b"worker"], fields[b"seq"])
        client.xdel(gate.USAGE, entry_id)
    return settled


def _kept(stack: Stack, worker: psutil.Process) -> dict[str, int]:
    """What the worker has, but for the connections to the provider that it keeps for the next calls: they are no more than
    ever ran at once."""
    upstream = int(stack.simulator.url.rsplit(":", 1)[1])
    established = [c for c in worker.net_connections("tcp") if c.status == "ESTABLISHED"]
    pooled = sum(c.raddr.port == upstream for c in established)
    (status,) = (decode_status(body) for body in stack.control.redis.hvals(gate.WORKERS))
    return {
        "connections": len(established) - pooled + max(pooled - CLIENTS, 0),
        "tasks": status.tasks,
        "descriptors": worker.num_fds() - pooled,
        "threads": worker.num_threads(),
        "holds": stack.control.holds(),
    }


def _is_idle(kept: dict[str, int]) -> bool:
    return not kept["connections"] and not kept["holds"]


def _leaked(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: max(after[name] - before[name], 0) for name in before}


PROMISE = alone(
    "cancelled",
    "Cancelled requests leave nothing behind",
    "0 leaked connections, tasks, descriptors, holds after 100,000",
    run,
)
