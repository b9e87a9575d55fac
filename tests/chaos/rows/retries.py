"""A provider that fails is not hammered: retries are a fifth of what runs at most, and none after the first byte."""

import asyncio
import time
from collections import Counter

import httpx

from tests.chaos.load import ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone
from tests.chaos.witness import Witness
from tests.stack import Stack, wait_until

CLIENTS = 50
DEPLOYMENTS = ("first", "second", "third")
RETRIES_MAX = 0.2
BLACKOUTS = {"503": {"error": 503}, "429": {"error": 429}, "reset": {"reset": 1}}
BROKEN_STREAM = chat("[[simulate reset,after_tokens=3]]", model="thrice", stream=True)


def run(rig: Rig, options: Options) -> Measured:
    seconds = 10.0 if options.is_short else 20.0
    stack = rig.stack(1)
    for name in DEPLOYMENTS:
        stack.control.add_deployment(name)
    stack.control.add_alias("thrice", *DEPLOYMENTS)
    stack.wait_for_version(stack.control.publish())
    secret, witness = stack.control.issue_key(), Witness(stack.simulator.journal)
    # First: after a blackout of 429s the deployments rest for a while.
    streams = asyncio.run(_broken_streams(stack, secret))
    wait_until(witness.is_quiet, "the end of all streams")
    repeated = len(witness.look().calls) - streams
    shares: dict[str, float] = {}
    for name, directives in BLACKOUTS.items():
        httpx.post(f"{stack.simulator.url}/_control", json={**directives, "latency_ms": 50}).raise_for_status()
        witness.forget()
        asked = asyncio.run(_drive(stack, secret, seconds))
        wait_until(witness.is_quiet, "the end of all calls")
        shares[name] = len(witness.calls) / asked - 1
    worst = max(shares, key=lambda name: shares[name])
    return Measured(
        is_held=shares[worst] <= RETRIES_MAX and repeated == 0,
        figure=f"{shares[worst]:.0%} more calls than requests in the worst blackout ({worst}); {repeated} after the first byte",
        counts=f"{CLIENTS} clients, {len(DEPLOYMENTS)} deployments, {seconds:.0f} s each of {', '.join(shares)}",
    )


async def _drive(stack: Stack, secret: str, seconds: float) -> int:
    """How many requests were made."""
    statuses: Counter[int] = Counter()
    until_s = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < until_s:
            answer = await ask(stack.proxy.port, secret, chat(model="thrice", max_tokens=8))
            statuses[answer.status] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    assert not statuses[200], f"the provider was not away: {statuses}"
    return statuses.total()


async def _broken_streams(stack: Stack, secret: str) -> int:
    answers = await asyncio.gather(*(ask(stack.proxy.port, secret, BROKEN_STREAM) for _ in range(CLIENTS)))
    assert all(answer.status == 200 and b"error" in answer.body for answer in answers), answers[0]
    return len(answers)


PROMISE = alone(
    "retries", "A provider that fails is not hammered", "retries ≤ 20 % of active, 0 after the first byte", run
)
