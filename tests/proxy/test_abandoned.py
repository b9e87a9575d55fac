"""Clients that leave: a provider that stops is left too; one that bills to the end is read to the end."""

import re
from collections.abc import Iterator

import msgspec
import pytest

from audit.records import Usage
from budgets.pricing import cost_nanos
from proxy.estimate import CALLS_MIN
from proxy.snapshot import Budget
from tests.stack import PRICE, Stack, chat, wait_until

TOKENS = 60
BODY = chat(content=f"[[simulate tokens_per_second=200,output_tokens={TOKENS},runs_on=1]]", max_tokens=100)


@pytest.fixture
def running_on(stack: Stack) -> Stack:
    """A stack whose provider says of itself that it runs on."""
    stack.control.providers["sim"] = msgspec.structs.replace(stack.control.providers["sim"], runs_on=True)
    budget = Budget(budget_id="all", name="all", window="month", amount=10**12)
    stack.wait_for_version(stack.control.publish(budgets=(budget,)))
    return stack


def _calls(stack: Stack) -> list[dict]:
    """What the simulator has received; another's call may still be ending."""
    return [line for line in stack.simulator.entries() if line["event"] == "received"]


def _leave(stack: Stack, body: dict) -> None:
    """As soon as it streams; where it does not, while it is waited for."""
    secret, known = stack.control.issue_key(), len(_calls(stack))
    if not body.get("stream"):
        with stack.asking(secret, body):
            wait_until(lambda: len(_calls(stack)) > known, "the call")
        return
    with stack.client(secret) as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_bytes())


def _settled(stack: Stack) -> dict:
    wait_until(lambda: len(stack.control.events()) == 1, "the usage event")
    return stack.control.events()[0]


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_provider_that_runs_on_is_read_to_its_end_and_paid_what_it_bills(running_on, is_stream):
    _leave(running_on, {**BODY, "stream": is_stream})
    event = _settled(running_on)
    assert event["usage_source"] == "provider"
    assert event["usage"]["output_tokens"] == TOKENS
    input_nanos = event["usage"]["input_tokens"] * PRICE.input_nanos // 1_000_000
    assert event["cost_nanos"] == running_on.control.spent_nanos("all") == input_nanos + TOKENS * 2_000


def test_a_stream_that_is_cut_costs_what_its_provider_may_go_on_to_bill(running_on):
    content = f"[[simulate tokens_per_second=2,output_tokens={TOKENS},runs_on=1]]"
    body = chat(content=content, max_tokens=100, stream=True)
    with (
        running_on.client(running_on.control.issue_key()) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        parts = response.iter_bytes()
        next(parts)
        running_on.control.throw("global")
        assert b"error" in b"".join(parts)
    event = _settled(running_on)
    assert event["usage_source"] == "estimated"
    assert event["usage"]["output_tokens"] == body["max_tokens"]


STOPPING = chat(content="[[simulate tokens_per_second=50,output_tokens=2000]]", max_tokens=2000, stream=True)


def _cut_by_its_client(stack: Stack, parts: Iterator[bytes]) -> None:
    """Leaving the response does it."""


def _cut_by_a_kill_switch(stack: Stack, parts: Iterator[bytes]) -> None:
    stack.control.throw("global")
    assert b"error" in b"".join(parts)


@pytest.mark.parametrize("cut", [_cut_by_its_client, _cut_by_a_kill_switch])
def test_a_stream_that_is_cut_costs_no_less_than_its_provider_bills(stack, cut):
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        for tokens in range(CALLS_MIN):  # So many calls tell what a prompt costs.
            client.post("/v1/chat/completions", json=chat(content=f"[[simulate output_tokens={tokens}]]"))
        with client.stream("POST", "/v1/chat/completions", json=STOPPING) as response:
            parts = response.iter_bytes()
            while b"token" not in next(parts):
                pass
            cut(stack, parts)
    wait_until(lambda: len(stack.control.events()) == CALLS_MIN + 1, "the usage event")
    event = stack.control.events()[-1]
    assert event["usage_source"] == "estimated"

    def bill() -> dict | None:
        lines = (line for line in stack.simulator.entries() if line.get("attempt_id") == event["attempt_id"])
        return next((line["billed"] for line in lines if line["event"] == "ended"), None)

    wait_until(lambda: bill() is not None, "the bill")
    for meter in ("input_tokens", "output_tokens"):
        assert 0 < bill()[meter] <= event["usage"][meter]
    assert event["usage"]["output_tokens"] < 2000
    assert event["cost_nanos"] <= event["held_nanos"]


def test_a_provider_that_bills_more_than_was_held_is_believed_and_counted(stack):
    with stack.client(stack.control.issue_key()) as client:
        body = chat(content="[[simulate usage_factor=1000,output_tokens=10]]", max_tokens=10)
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        event = _settled(stack)
        assert event["usage"]["output_tokens"] == 10_000
        assert event["cost_nanos"] > event["held_nanos"]
        counted = re.compile(r'^tollgate_over_hold_total{worker="[^"]+"} 1.0$', re.MULTILINE)
        wait_until(lambda: counted.search(client.get("/metrics").text) is not None, "the count")
    assert "an attempt cost more than was held for it" in stack.proxy.log


def test_nothing_is_tried_again_for_a_client_that_has_left(running_on):
    running_on.control.add_deployment("second")
    running_on.control.add_alias("twice", "sim-fast", "second")
    running_on.wait_for_version(running_on.control.publish())
    body = chat("twice", "[[simulate latency_ms=6000,error=503]]")
    known = len(_calls(running_on))
    _leave(running_on, body)
    assert _settled(running_on)["error_type"]
    wait_until(lambda: running_on.control.holds() == 0, "the end of all holds")
    assert len(_calls(running_on)) - known == len(running_on.control.events()) == 1


def test_what_is_cut_is_charged_for_its_geography_and_its_cache(stack):
    """The simulator bills what is written to a cache, and has no geographies: of those the record tells."""
    abroad = msgspec.structs.replace(PRICE, input_nanos=1_100_000_000, output_nanos=2_200_000_000)
    stack.control.add_deployment("abroad", price=msgspec.structs.replace(PRICE, in_geo=abroad))
    stack.control.add_alias("abroad", "abroad")
    stack.wait_for_version(stack.control.publish())
    text = {"type": "text", "text": "word " * 1_000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    order = {"type": "text", "text": "[[simulate latency_ms=5000,output_tokens=5,cache_write_1h_tokens=900]]"}
    messages = [{"role": "user", "content": [text]}, {"role": "user", "content": [order]}]
    _leave(stack, {"model": "abroad", "messages": messages, "max_tokens": 5, "inference_geo": "us"})
    event = _settled(stack)
    usage = event["usage"]
    assert (event["usage_source"], usage["inference_geo"]) == ("estimated", "us")
    assert 900 <= usage["cache_write_1h_input_tokens"] == usage["cache_write_input_tokens"] <= usage["input_tokens"]
    assert event["cost_nanos"] == cost_nanos(msgspec.convert(usage, Usage), abroad) <= event["held_nanos"]
