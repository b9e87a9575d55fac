"""A limit is exact over four workers: asked for several times as much, they let through what it says, no more and no less."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from proxy.snapshot import Limit
from tests.chaos.commits import commands
from tests.chaos.load import ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone
from tests.chaos.witness import Witness
from tests.stack import wait_until

WORKERS = 4
CLIENTS = 40
PAUSE_S = 0.05
PER_S = 100
BURST = 50
FALSE_DENIALS_MAX = 0.001
LIMIT = Limit(limit_id="exact", name="exact", metric="requests", amount=PER_S, window_s=1, burst=BURST)


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
    stack.wait_for_version(stack.control.publish(limits=(LIMIT,)))
    crowd, witness = Crowd(), Witness(stack.simulator.journal)
    asyncio.run(_drive(crowd, stack.proxy.port, stack.control.issue_key(), seconds))
    wait_until(lambda: stack.control.holds() == 0 and witness.is_quiet(), "the end of all calls")
    taken_at_s = _taken_at_s(redis.directory / "appendonly.aof")
    above = max(_above(taken_at_s), len(witness.calls) - len(taken_at_s))
    # What could have been let through until the last that was not: one of it may not have come together yet.
    missing = max(int(BURST + PER_S * (crowd.last_denied_at_s - taken_at_s[0])) - len(taken_at_s), 0)
    assert crowd.denied > crowd.passed, f"the limit was hardly met: {crowd}"
    return Measured(
        is_held=above == 0 and crowd.others == 0 and missing <= FALSE_DENIALS_MAX * crowd.denied,
        figure=f"{above} above burst + rate x time; {missing / crowd.denied:.2%} refused falsely at most",
        counts=f"{crowd.passed:,} calls let through and {crowd.denied:,} refused in {seconds:.0f} s, {WORKERS} workers",
        detail=f"{len(witness.calls):,} at the provider, {missing} fewer than could have been; {crowd.others} answered otherwise",
    )


def _taken_at_s(file: Path) -> list[float]:
    """When each request took its part, by Redis's clock: what it wrote says so."""
    prefix = f"tg:limit:{LIMIT.limit_id}".encode()
    writes = (command for command in commands(file.read_bytes()) if command[0].upper() == b"SET")
    return [int(value.split()[1]) / 1_000_000 for _, key, value, *_ in writes if key.startswith(prefix)]


def _above(taken_at_s: list[float]) -> int:
    """How many of them would not have passed a bucket of the burst that fills at the rate."""
    level, before_s, above = float(BURST), taken_at_s[0], 0
    for at_s in taken_at_s:
        level = min(level + (at_s - before_s) * PER_S, BURST) - 1
        before_s = at_s
        if level < -1e-6:
            above += 1
            level += 1
    return above


async def _drive(crowd: Crowd, port: int, secret: str, seconds: float) -> None:
    until_s = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < until_s:
            asked_at_s = time.time()
            answer = await ask(port, secret, chat("[[simulate output_tokens=4]]", max_tokens=4))
            if answer.status == 429:
                crowd.denied += 1
                crowd.last_denied_at_s = max(crowd.last_denied_at_s, asked_at_s)
            elif answer.status == 200:
                crowd.passed += 1
            else:
                crowd.others += 1
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


PROMISE = alone(
    "limits",
    "A limit is exact over four workers",
    "0 let through above burst + rate x time; false refusals ≤ 0.1 %",
    run,
)
