"""No hold is stranded: whichever workers are killed, the money that they held is free or in suspense soon after."""

import random
import time
from collections.abc import Sequence
from functools import partial

import redis

from budgets import gate
from proxy.snapshot import Budget
from tests.chaos.load import Load
from tests.chaos.rig import LEASE_S, Measured, Options, Rig, alone, kill_process, waited, worker_pids
from tests.stack import wait_until

WORKERS = 4
BOUND_S = LEASE_S + 5.0
END_TIMEOUT_S = 120.0


def run(rig: Rig, options: Options) -> Measured:
    kills = options.kills_of(short=4, full=200)
    draw = random.Random(options.first_seed)
    stack = rig.stack(WORKERS)
    budget = Budget(budget_id="all", name="all", window="total", amount=10**15)
    stack.wait_for_version(stack.control.publish(budgets=(budget,)))
    client, slowest_s, stranded, held = stack.control.redis, 0.0, 0, 0
    with Load(stack.proxy.port, stack.control.issue_key(), seed=options.first_seed) as load:
        killed, progress = 0, rig.progress("kill", kills)
        while killed < kills:
            wait_until(lambda: len(worker_pids(client)) >= WORKERS, "the workers")
            time.sleep(draw.uniform(0.2, 0.8))
            # One, or some, or all at once: then nobody is left who could clear up before the next start.
            names = worker_pids(client)
            victims = draw.sample(sorted(names), draw.randint(1, min(len(names), kills - killed)))
            for name in victims:
                kill_process(names[name])
                killed += 1
            held += sum(client.hlen(gate.holds_key(name)) for name in victims)
            took_s = waited(partial(_hold_nothing, client, victims), BOUND_S)
            stranded += took_s is None
            slowest_s = max(slowest_s, BOUND_S if took_s is None else took_s)
            progress.reached(killed, f"the slowest holds were free after {slowest_s:.1f} s")
    assert load.answered and held, f"nothing was held when workers died: {load.statuses}"
    waited(lambda: stack.control.holds() == 0, END_TIMEOUT_S)
    left = stack.control.holds()
    recorded = sum(
        int(event.get("cost_nanos", 0)) for event in stack.control.events() if event.get("state") != "voided"
    )
    counted = stack.control.spent_nanos("all")
    is_exact = not left and counted == recorded
    return Measured(
        is_held=is_exact and not stranded,
        is_only_late=is_exact and stranded > 0,
        figure=f"{max(stranded, left)} after {BOUND_S:.0f} s; the slowest was free after {slowest_s:.1f} s",
        counts=f"{killed} kills with {held} holds",
        detail="" if counted == recorded else f"counted {counted:,}, recorded {recorded:,} nano-USD",
    )


def _hold_nothing(client: redis.Redis, workers: Sequence[str]) -> bool:
    return not client.exists(*map(gate.holds_key, workers))


PROMISE = alone("stranded", "No hold is stranded by `kill -9` of workers", "0 after the lease + 5 s", run)
