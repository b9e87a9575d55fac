"""The ledger equals the provider's bill, also where clients leave in the middle, in both styles of billing them."""

import asyncio
import random
from functools import partial
from typing import NamedTuple

import httpx

from tests.chaos.books import SIMULATED_CHAT, Row
from tests.chaos.load import Answer, ask, chat
from tests.chaos.progress import Progress
from tests.chaos.rig import Measured, Options, Rig, alone, change, proxy_port, secret_of
from tests.chaos.witness import Call

CLIENTS = 100
ABORTED = 0.2
OVER_MAX = 0.02
TOKENS_PER_SECOND = 100
MOST_TOKENS = 400
# What the provider does when its client is gone: it stops and bills what it has made, or goes on and bills it all.
SAY_THAT_IT_RUNS_ON = """
from audit import services as audit
from audit.actors import Actor
from routing.models import Provider
provider = Provider.objects.get(slug="simulator")
audit.change(provider, values={"runs_on": True}, actor=Actor.system("chaos"))
"""
STYLES = {"stops": False, "runs_on": True}


class Differences(NamedTuple):
    """Money in nano-USD. `completed` are the calls that differ at all, `under` the cut ones below the bill."""

    completed: int
    under: int
    cut: int
    billed_cut: int
    charged_cut: int

    @property
    def over(self) -> float:
        return self.charged_cut / self.billed_cut - 1 if self.billed_cut else 0.0


def run(rig: Rig, options: Options, *, style: str) -> Measured:
    calls = options.calls_of(short=300, full=10_000)
    tollgate = rig.tollgate()
    books = rig.books(tollgate)
    if STYLES[style]:
        change(books, SAY_THAT_IT_RUNS_ON)
    # Not in the prompts: those are counted.
    manner = {"tokens_per_second": TOKENS_PER_SECOND, "output_tokens": MOST_TOKENS, "runs_on": STYLES[style]}
    simulator = tollgate.facts["simulator_url"].removesuffix("/v1")
    httpx.post(f"{simulator}/_control", json=manner).raise_for_status()
    progress = rig.progress("call", calls)
    whole = asyncio.run(_drive(proxy_port(tollgate), secret_of(tollgate), calls, options.first_seed, progress))
    faults, seen = books.close_books(), books.witness.calls
    rows = {row.attempt_id: row for row in books.rows()}
    found = _compare([(call, rows[attempt_id]) for attempt_id, call in seen.items() if attempt_id in rows], whole)
    assert found.cut > calls * ABORTED / 4, f"too few calls were cut: {found.cut} of {calls}"
    return Measured(
        is_held=not (faults or found.completed or found.under) and found.over <= OVER_MAX,
        figure=f"completed: {found.completed} differ; cut: {found.under} of {found.cut} under, {found.over:+.1%} in all",
        counts=f"{len(seen):,} calls, {found.cut} cut",
        detail="; ".join(faults[:5]),
    )


def _compare(pairs: list[tuple[Call, Row]], whole: set[str]) -> Differences:
    """`whole` are the requests whose clients have got all of their answer."""
    completed = under = cut = billed_cut = charged_cut = 0
    for call, row in pairs:
        bill = call.input_tokens * SIMULATED_CHAT["input"] + call.output_tokens * SIMULATED_CHAT["output"]
        if row.request_id in whole:
            is_same = (row.input_tokens, row.output_tokens) == (call.input_tokens, call.output_tokens)
            completed += not (is_same and row.cost_nanos == bill)
        else:
            cut, billed_cut, charged_cut = cut + 1, billed_cut + bill, charged_cut + row.cost_nanos
            under += row.cost_nanos < bill
    return Differences(completed, under, cut, billed_cut, charged_cut)


async def _drive(port: int, secret: str, calls: int, seed: int, progress: Progress) -> set[str]:
    """The ids of the requests that were answered whole."""
    whole: set[str] = set()
    remaining = iter(range(calls))

    async def client(number: int) -> None:
        draw = random.Random(seed * CLIENTS + number)
        for begun in remaining:
            progress.reached(begun)
            answer = await _call(port, secret, draw)
            if answer.is_whole and answer.status == 200:
                whole.add(answer.headers["x-request-id"])

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return whole


async def _call(port: int, secret: str, draw: random.Random) -> Answer:
    """A prompt of so many words is as many tokens at the simulator, and for a tokenizer of English about as many."""
    prompt = " ".join(["every word of this is one token"] * draw.randint(5, 50))
    leaves = draw.random() < ABORTED
    body = chat(prompt, max_tokens=draw.randint(50, MOST_TOKENS), stream=leaves or draw.random() < 0.5)
    seconds = body["max_tokens"] / TOKENS_PER_SECOND
    return await ask(port, secret, body, leave_after_s=draw.uniform(0.1, seconds) if leaves else None)


PROMISES = tuple(
    alone(
        f"bill_{style}",
        f"The ledger equals the bill of a provider that {style.replace('_', ' ')} when its client leaves",
        "completed calls exact; cut ones never under, at most +2 %",
        partial(run, style=style),
    )
    for style in STYLES
)
