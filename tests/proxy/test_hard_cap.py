"""A hard cap is never passed: 200 clients at once on four workers, counted at the provider's side."""

import asyncio
import json
from collections import Counter

import httpx

from proxy.dialects.dialect import TEMPLATE_TOKENS
from proxy.snapshot import Budget
from tests.stack import PRICE, Stack, chat, wait_until

CLIENTS = 200
REQUESTS_EACH = 6
CAP_NANOS = 12_000_000
# A stream of 30 tokens that asked for up to 200; every fourth client asks without streaming.
BODY = chat(content="[[simulate output_tokens=30]]", max_tokens=200)


def _billed_nanos(stack: Stack, attempts: set[str]) -> int:
    """What the provider would charge, by its own journal."""
    bills = [
        entry["billed"]
        for entry in stack.simulator.entries()
        if entry["event"] == "ended" and entry["attempt_id"] in attempts
    ]
    per_million = 1_000_000
    return sum(
        (bill["input_tokens"] * PRICE.input_nanos + bill["output_tokens"] * PRICE.output_nanos) // per_million
        for bill in bills
    )


async def _client(url: str, secret: str, number: int, statuses: Counter[int]) -> None:
    body = {**BODY, "stream": number % 4 != 0}
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {secret}"}, timeout=60) as client:
        for _ in range(REQUESTS_EACH):
            response = await client.post("/v1/chat/completions", json=body)
            statuses[response.status_code] += 1


def test_two_hundred_clients_on_four_workers_spend_to_the_cap_and_not_past_it(make_stack):
    stack = make_stack(workers=4)
    hourly = {"window": "hour", "amount": CAP_NANOS}
    budgets = [
        Budget(budget_id=f"{scope}-{window}", name=f"{scope} {window}", subject=subject, **{**hourly, "window": window})
        for scope, subject in (
            ("team", {"team": stack.control.team.team_id}),
            ("project", {"project": stack.control.project.project_id}),
        )
        for window in ("hour", "day", "month")
    ]
    stack.wait_for_version(stack.control.publish(budgets=tuple(budgets)))
    secret = stack.control.issue_key(budgets=(Budget(budget_id="key-hour", name="key hour", **hourly),))
    statuses: Counter[int] = Counter()

    async def drive() -> None:
        await asyncio.gather(*(_client(stack.proxy.url, secret, number, statuses) for number in range(CLIENTS)))

    asyncio.run(drive())
    with stack.client(secret) as client:  # What the crowd could not hold at once, one client spends to the end.
        while (response := client.post("/v1/chat/completions", json=BODY)).status_code == 200:
            statuses[200] += 1
    assert response.json()["error"]["code"] == "budget_exceeded"
    assert set(statuses) == {200, 429}, statuses
    assert statuses[200] > 0
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    events = stack.control.events()
    assert len(events) == statuses[200]
    cost = sum(event["cost_nanos"] for event in events)
    counters = {budget.budget_id: stack.control.spent_nanos(budget.budget_id) for budget in budgets}
    assert set(counters.values()) == {cost}, "every scope and window counts the same"
    assert cost <= CAP_NANOS
    billed = _billed_nanos(stack, {event["attempt_id"] for event in events})
    assert billed == cost, json.dumps(counters)
    # What is left is less than one request might have cost: bytes bound its input, its cap the output.
    worst_nanos = (len(json.dumps(BODY)) + TEMPLATE_TOKENS) * 1_250 + 200 * 2_000
    assert CAP_NANOS - cost < worst_nanos


LONG_OUTPUT_TOKENS = 32_000
LONG_CAP_NANOS = 400_000_000
# Each asks for 32,000 tokens and gets 500.
LONG = chat(content="[[simulate output_tokens=500,tokens_per_second=2000]]", max_tokens=LONG_OUTPUT_TOKENS, stream=True)


async def _agent(client: httpx.AsyncClient, answers: Counter[str], calls: int) -> None:
    """At it until the budget is spent: so many calls fit into it."""
    while True:
        response = await client.post("/v1/chat/completions", json=LONG)
        if response.status_code == 200:
            answers["cut" if '"error"' in response.text else "answered"] += 1
        else:
            assert response.json()["error"]["code"] == "budget_exceeded"
            if answers["answered"] >= 0.97 * calls:
                return


def test_two_hundred_agents_that_ask_for_much_and_use_little_spend_a_cap_to_its_end(make_stack):
    """What they ask for is 32 times the cap at once: their holds must not keep each other out."""
    stack = make_stack(workers=2)
    stack.control.add_deployment("sim-fast", max_output_tokens=LONG_OUTPUT_TOKENS)
    budget = Budget(budget_id="cap", name="cap", window="month", amount=LONG_CAP_NANOS)
    stack.wait_for_version(stack.control.publish(budgets=(budget,)))
    answers: Counter[str] = Counter()
    calls = LONG_CAP_NANOS // (500 * 2_000 + 2 * 1_000)  # A word is a token of the simulator's.

    async def drive() -> None:
        limits = httpx.Limits(max_connections=CLIENTS)
        headers = {"authorization": f"Bearer {stack.control.issue_key()}"}
        async with httpx.AsyncClient(base_url=stack.proxy.url, headers=headers, limits=limits, timeout=120) as client:
            await asyncio.gather(*(_agent(client, answers, calls) for _ in range(CLIENTS)))

    asyncio.run(drive())
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    billed = _billed_nanos(stack, {event["attempt_id"] for event in stack.control.events()})
    assert 0.97 * LONG_CAP_NANOS <= stack.control.spent_nanos("cap") == billed <= LONG_CAP_NANOS
    assert answers == {"answered": len(stack.control.events())}, "nobody who has begun is cut"
