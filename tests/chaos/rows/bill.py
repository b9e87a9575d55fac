"""The ledger equals the provider's bill, also where clients leave in the middle, in both styles of billing them."""

import asyncio
import random
from collections import Counter
from functools import partial
from typing import NamedTuple

from tests.chaos.books import SIMULATED_CHAT, Row
from tests.chaos.load import ask, chat
from tests.chaos.rig import QUIET_TIMEOUT_S, Measured, Options, Promise, Rig, proxy_port, secret_of
from tests.chaos.witness import Call
from tests.stack import wait_until

CLIENTS = 40
ABORTED = 0.2
OVER_MAX = 0.02
MOST_TOKENS = 60
# What the provider does when its client is gone: it stops and bills what it has made, or goes on and bills it all.
STYLES = {"stops": "", "runs_on": ",runs_on=1"}


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
    statuses = asyncio.run(_drive(proxy_port(tollgate), secret_of(tollgate), calls, style, options.first_seed))
    wait_until(books.is_quiet, "the end of all calls", timeout_s=QUIET_TIMEOUT_S)
    seen = books.witness.look().calls
    rows = {row.attempt_id: row for row in books.rows()}
    missing, doubled = seen.keys() - rows.keys(), len(rows) != len(books.rows())
    found = _compare([(call, rows[attempt_id]) for attempt_id, call in seen.items() if attempt_id in rows])
    assert found.cut > calls * ABORTED / 4, f"too few calls were cut: {found.cut} of {calls}"
    is_exact = not (found.completed or missing or doubled)
    return Measured(
        is_held=is_exact and found.under == 0 and found.over <= OVER_MAX,
        figure=f"completed: {found.completed} differ; cut: {found.under} of {found.cut} under, {found.over:+.1%} in all",
        counts=f"{len(seen):,} calls, {found.cut} cut, {statuses[200]:,} answered whole",
        detail=f"{len(missing)} missing" if missing else "",
    )


def _compare(pairs: list[tuple[Call, Row]]) -> Differences:
    completed = under = cut = billed_cut = charged_cut = 0
    for call, row in pairs:
        bill = call.input_tokens * SIMULATED_CHAT["input"] + call.output_tokens * SIMULATED_CHAT["output"]
        if call.end == "completed":
            is_same = (row.input_tokens, row.output_tokens) == (call.input_tokens, call.output_tokens)
            completed += not (is_same and row.cost_nanos == bill)
        else:
            cut, billed_cut, charged_cut = cut + 1, billed_cut + bill, charged_cut + row.cost_nanos
            under += row.cost_nanos < bill
    return Differences(completed, under, cut, billed_cut, charged_cut)


async def _drive(port: int, secret: str, calls: int, style: str, seed: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    remaining = iter(range(calls))

    async def client(number: int) -> None:
        draw = random.Random(seed * CLIENTS + number)
        for _ in remaining:
            statuses[await _call(port, secret, style, draw)] += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return statuses


async def _call(port: int, secret: str, style: str, draw: random.Random) -> int:
    """A prompt of so many words is as many tokens at the simulator, and for the tokenizer about as many."""
    prompt = "every word of this is one token " * draw.randint(1, 20)
    leaves = draw.random() < ABORTED
    told = f"[[simulate tokens_per_second=200,output_tokens={draw.randint(20, MOST_TOKENS)}{STYLES[style]}]]"
    body = chat(prompt + told, max_tokens=MOST_TOKENS, stream=leaves or draw.random() < 0.5)
    answer = await ask(port, secret, body, leave_after_s=draw.uniform(0.03, 0.2) if leaves else None)
    return answer.status


PROMISES = tuple(
    Promise(
        f"bill_{style}",
        f"The ledger equals the bill of a provider that {style.replace('_', ' ')} when its client leaves",
        "completed calls exact; cut ones never under, at most +2 %",
        partial(run, style=style),
    )
    for style in STYLES
)
