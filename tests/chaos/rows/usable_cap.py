"""A cap can be spent to its end: 200 agents that ask for 32,000 output tokens each and use 500."""

import asyncio
from dataclasses import dataclass

from proxy.snapshot import Budget
from tests.chaos.load import ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone
from tests.chaos.witness import Witness
from tests.stack import PRICE, Stack, wait_until

AGENTS = 200
WORKERS = 4
ASKED_TOKENS = 32_000
USED_TOKENS = 500
SPENDABLE_MIN = 0.97
FALSE_REFUSALS_MAX = 0.01
BODY = chat(f"[[simulate tokens_per_second=2000,output_tokens={USED_TOKENS}]]", max_tokens=ASKED_TOKENS, stream=True)
# Two words: two tokens, as the simulator counts.
CALL_NANOS = (2 * PRICE.input_nanos + USED_TOKENS * PRICE.output_nanos) // 1_000_000


@dataclass
class Crowd:
    """What an oracle knows that is told the true cost of every call before it is made."""

    cap_nanos: int
    running: int = 0
    done: int = 0
    refused: int = 0
    cut: int = 0
    refused_falsely: int = 0

    def has_room(self) -> bool:
        """For one more, were only true costs held."""
        return (self.running + self.done + 1) * CALL_NANOS <= self.cap_nanos


def run(rig: Rig, options: Options) -> Measured:
    calls = options.calls_of(short=1_000, full=10_000)
    cap_nanos = calls * CALL_NANOS
    stack = rig.stack(WORKERS, TOLLGATE_LEASE_S="30")
    stack.control.add_deployment("sim-fast", max_output_tokens=ASKED_TOKENS, context_window=ASKED_TOKENS * 2)
    budget = Budget(budget_id="cap", name="cap", window="total", amount=cap_nanos)
    stack.wait_for_version(stack.control.publish(budgets=(budget,)))
    crowd = Crowd(cap_nanos)
    asyncio.run(_spend(crowd, stack.proxy.port, stack.control.issue_key()))
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    spent, counted = sum(event["cost_nanos"] for event in stack.control.events()), stack.control.spent_nanos("cap")
    billed = _billed(stack)
    share, false_share = spent / cap_nanos, crowd.refused_falsely / (crowd.done + crowd.refused)
    return Measured(
        is_held=share >= SPENDABLE_MIN
        and false_share <= FALSE_REFUSALS_MAX
        and billed <= spent == counted <= cap_nanos,
        figure=f"{share:.1%} spent, {false_share:.2%} refused falsely",
        counts=f"{crowd.done:,} calls by {AGENTS} agents, {WORKERS} workers",
        detail=f"{crowd.refused} refusals ({crowd.cut} in the stream), {crowd.refused_falsely} of them with room for the call; {counted - spent:+,} nano-USD counted, {billed - spent:+,} billed",
    )


def _billed(stack: Stack) -> int:
    """What the provider would charge, by its own journal; whole nano-USD, as the prices are."""
    witness = Witness(stack.simulator.journal)
    wait_until(witness.is_quiet, "the end of all calls")
    return sum(
        (call.input_tokens * PRICE.input_nanos + call.output_tokens * PRICE.output_nanos) // 1_000_000
        for call in witness.calls.values()
    )


async def _spend(crowd: Crowd, port: int, secret: str) -> None:
    """Each agent goes on until it is refused; when all are, one alone spends what is left."""
    await asyncio.gather(*(_agent(crowd, port, secret) for _ in range(AGENTS)))
    await _agent(crowd, port, secret)


async def _agent(crowd: Crowd, port: int, secret: str) -> None:
    while await _is_served(crowd, port, secret):
        pass


async def _is_served(crowd: Crowd, port: int, secret: str) -> bool:
    """A stream that is cut because the cap has no room for its next tranche is refused too, only later."""
    had_room = crowd.has_room()
    crowd.running += 1
    answer = await ask(port, secret, BODY)
    crowd.running -= 1
    assert answer.status in (200, 429), answer
    is_served = answer.status == 200 and b"[DONE]" in answer.body
    crowd.done += is_served
    crowd.cut += answer.status == 200 and not is_served
    crowd.refused += not is_served
    crowd.refused_falsely += had_room and not is_served
    return is_served


PROMISE = alone("usable_cap", "A cap can be spent to its end", "≥ 97 % spendable, false refusals ≤ 1 %", run)
