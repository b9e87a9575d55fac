"""Limits are exact over four workers: asked for several times as much, they let through what one of requests in a time says, no more
and no less, and run as many of each key at once as another says, never more."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy.snapshot import Limit
from tests.chaos.commits import RUNNING, Counters, commands
from tests.chaos.load import ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone
from tests.chaos.witness import Witness
from tests.stack import Stack, wait_until

WORKERS = 4
CLIENTS = 40
PAUSE_S = 0.05
PER_S = 100
BURST = 50
FALSE_DENIALS_MAX = 0.001
KEYS, AT_ONCE = 2, 5
MICRO = 1_000_000
# Each for an alias of its own, so that the one takes nothing from the other.
RATE = Limit(
    limit_id="rate", name="rate", metric="requests", amount=PER_S, window_s=1, burst=BURST, subject={"alias": "demo"}
)
SLOTS = Limit(
    limit_id="slots", name="slots", metric="concurrency", amount=AT_ONCE, subject={"alias": "slow", "key": "*"}
)
QUICK = chat("[[simulate output_tokens=4]]", max_tokens=4)
SLOW = chat("[[simulate output_tokens=4,latency_ms=100]]", model="slow", max_tokens=4)


@dataclass
class Crowd:
    """What was answered. Moments are Unix seconds: Redis has the clock of this machine."""

    passed: int = 0
    denied: int = 0
    others: int = 0
    last_denied_at_s: float = field(default_factory=time.time)


def run(rig: Rig, options: Options) -> Measured:
    seconds = 8.0 if options.is_short else 30.0
    redis = rig.redis()
    stack = rig.stack(WORKERS, redis_url=redis.url)
    stack.control.add_alias("slow", "sim-fast")
    stack.wait_for_version(stack.control.publish(limits=(RATE, SLOTS)))
    crowd, slow, witness = Crowd(), Crowd(), Witness(stack.simulator.journal)
    file = redis.directory / "appendonly.aof"
    running = Counters(file, RUNNING)
    asyncio.run(_drive(crowd, slow, stack, seconds))
    wait_until(lambda: stack.control.holds() == 0 and witness.is_quiet(), "the end of all calls")
    taken_at_us, at_once = _taken_at_us(file), list(running.read().highest.values())
    above = max(_above(taken_at_us), len(witness.calls) - slow.passed - len(taken_at_us))
    # What could have been let through until the last that was not: one of it may not have come together yet.
    missing = max(int(BURST + PER_S * (crowd.last_denied_at_s - taken_at_us[0] / MICRO)) - len(taken_at_us), 0)
    kept = len(stack.control.redis.keys(f"{RUNNING.decode()}*"))
    others = crowd.others + slow.others
    assert crowd.denied > crowd.passed, f"the limit was hardly met: {crowd}"
    assert slow.denied, f"the limit was never met: {slow}"
    return Measured(
        is_held=above == 0
        and others == 0
        and missing <= FALSE_DENIALS_MAX * crowd.denied
        and at_once == [AT_ONCE] * KEYS
        and kept == 0,
        figure=f"{above} above burst + rate x time; {missing / crowd.denied:.2%} refused falsely at most; "
        f"{max(at_once)} of {AT_ONCE} at once, {kept} slots kept",
        counts=f"{crowd.passed + slow.passed:,} calls let through and {crowd.denied + slow.denied:,} refused in {seconds:.0f} s, "
        f"{WORKERS} workers",
        detail=f"{len(witness.calls):,} at the provider, {missing} fewer than could have been; {others} answered otherwise",
    )


def _taken_at_us(file: Path) -> list[int]:
    """When each request took its part, in microseconds of Redis's clock: what it wrote says so."""
    prefix = f"tg:limit:{RATE.limit_id}".encode()
    writes = (command for command in commands(file.read_bytes()) if command[0].upper() == b"SET")
    return [int(value.split()[1]) for _, key, value, *_ in writes if key.startswith(prefix)]


def _above(taken_at_us: list[int]) -> int:
    """How many of them would not have passed a bucket of the burst that fills at the rate. In millionths of a request, and whole
    numbers: a limit that is met to the microsecond is not passed."""
    level, before_us, above = BURST * MICRO, taken_at_us[0], 0
    for at_us in taken_at_us:
        level = min(level + (at_us - before_us) * PER_S, BURST * MICRO) - MICRO
        before_us = at_us
        if level < 0:
            above += 1
            level += MICRO
    return above


async def _drive(quick: Crowd, slow: Crowd, stack: Stack, seconds: float) -> None:
    until_s = time.monotonic() + seconds

    async def client(crowd: Crowd, secret: str, body: dict[str, Any]) -> None:
        while time.monotonic() < until_s:
            asked_at_s = time.time()
            answer = await ask(stack.proxy.port, secret, body)
            if answer.status == 429:
                crowd.denied += 1
                crowd.last_denied_at_s = max(crowd.last_denied_at_s, asked_at_s)
            elif answer.status == 200:
                crowd.passed += 1
            else:
                crowd.others += 1
            await asyncio.sleep(PAUSE_S)

    secrets = [stack.control.issue_key() for _ in range(KEYS)]
    await asyncio.gather(
        *(client(quick, secrets[0], QUICK) for _ in range(CLIENTS)),
        *(client(slow, secret, SLOW) for secret in secrets for _ in range(CLIENTS // (2 * KEYS))),
    )


PROMISE = alone(
    "limits",
    "Limits are exact over four workers",
    "0 let through above burst + rate x time; false refusals ≤ 0.1 %; never more at once than slots, and all of them used",
    run,
)
