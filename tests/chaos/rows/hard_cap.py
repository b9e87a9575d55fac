"""A hard cap is never passed: 200 streams on four workers under five nested budgets, looked at after every commit."""

import asyncio
import random
from collections import Counter

from proxy.snapshot import Budget
from tests.chaos.commits import Counters
from tests.chaos.load import ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone
from tests.chaos.witness import Witness
from tests.stack import PRICE, Stack, wait_until

CLIENTS = 200
WORKERS = 4
KEYS = 4
USERS = 8
CALLS_EACH = 4
# A call costs some 200,000 nano-USD: the caps are met before the clients have asked all their calls.
CAP_NANOS = 100_000_000
WINDOWS = ("week", "month", "quarter", "year", "total")
PER_MILLION = 1_000_000


def run(rig: Rig, options: Options) -> Measured:
    redis = rig.redis()
    stack = rig.stack(WORKERS, redis_url=redis.url, TOLLGATE_LEASE_S="30")
    witness = Witness(stack.simulator.journal)
    worst_nanos, worst_seed, commits, statuses = -CAP_NANOS, 0, 0, Counter[int]()
    seeds = options.seeds_of(short=2, full=50)
    progress = rig.progress("seed", len(seeds))
    for seed in seeds:
        witness.forget()
        counters = Counters(redis.directory / "appendonly.aof")
        caps, secrets = _publish(stack, random.Random(seed))
        statuses += asyncio.run(_drive(stack.proxy.port, secrets, seed))
        wait_until(lambda: stack.control.holds() == 0 and witness.is_quiet(), "the end of all calls")
        over = max(_over(counters.read(), caps), _billed(witness) - caps["global"])
        commits += counters.commits
        if over > worst_nanos:
            worst_nanos, worst_seed = over, seed
        progress.reached(seed - seeds[0] + 1, f"{commits:,} commits, {-worst_nanos:,} nano-USD below the nearest cap")
    assert statuses[200] and statuses[429], f"no cap was met: {statuses}"
    return Measured(
        is_held=worst_nanos <= 0,
        figure=f"{max(worst_nanos, 0):,} nano-USD over at {commits:,} commits",
        counts=f"{len(seeds)} seeds, {CLIENTS} clients, {WORKERS} workers, {statuses[200]:,} calls, {statuses[429]:,} refused",
        detail=f"seed {worst_seed} came closest",
    )


def _publish(stack: Stack, draw: random.Random) -> tuple[dict[str, int], list[str]]:
    """Five budgets, one within the other; which of them is met first differs from seed to seed. (caps by name, secrets)"""
    team = {"team": stack.control.team.team_id}
    project = {**team, "project": stack.control.project.project_id}
    # Ids of their own: what the last seed spent is over.
    mark = f"{draw.randrange(10**9):09d}"
    shares = {"global": 1.0, "team": 1.0, "project": 1.0, "user": 0.2, "key": 0.4}
    caps = {name: int(CAP_NANOS * share * draw.uniform(0.7, 1.3)) for name, share in shares.items()}

    def budget(name: str, subject: dict[str, str]) -> Budget:
        window = draw.choice(WINDOWS)
        return Budget(budget_id=f"{name}-{mark}", name=name, subject=subject, window=window, amount=caps[name])

    named = {"global": {}, "team": team, "project": project, "user": {**project, "end_user": "*"}}
    version = stack.control.publish(budgets=tuple(budget(name, subject) for name, subject in named.items()))
    secrets = [stack.control.issue_key(budgets=(budget("key", project),)) for _ in range(KEYS)]
    stack.wait_for_version(version)
    return caps, secrets


async def _drive(port: int, secrets: list[str], seed: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    await asyncio.gather(
        *(_client(port, secrets[n % KEYS], random.Random(seed * CLIENTS + n), statuses) for n in range(CLIENTS))
    )
    return statuses


async def _client(port: int, secret: str, draw: random.Random, statuses: Counter[int]) -> None:
    for _ in range(CALLS_EACH):
        most = draw.randint(8, 200)
        told = f"[[simulate output_tokens={draw.choice((most, draw.randint(1, most)))}]]"
        body = chat(told, max_tokens=most, stream=draw.random() < 0.8, user=f"user-{draw.randrange(USERS)}")
        leaves = draw.random() < 0.1
        answer = await ask(port, secret, body, leave_after_s=draw.uniform(0.01, 0.3) if leaves else None)
        statuses[answer.status] += 1


def _over(counters: Counters, caps: dict[str, int]) -> int:
    """How far the worst counter was above its cap at its worst commit; negative below."""
    highest = {name: value for name, value in counters.highest.items() if name.split(":")[2].split("-")[0] in caps}
    counted = {name.split(":")[2].split("-")[0] for name in highest}
    assert counted == caps.keys(), f"not every budget was counted, only {counted}"
    return max(value - caps[name.split(":")[2].split("-")[0]] for name, value in highest.items())


def _billed(witness: Witness) -> int:
    """What the provider would charge for all calls, by its own journal."""
    return sum(
        -(-(call.input_tokens * PRICE.input_nanos + call.output_tokens * PRICE.output_nanos) // PER_MILLION)
        for call in witness.calls.values()
    )


PROMISE = alone("hard_cap", "A hard cap is never passed", "0 nano-USD over at any commit", run)
