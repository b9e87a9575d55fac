"""Budgets and limits of every scope, through the real gateway; and that nothing reaches a provider past them."""

import contextlib
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from budgets import gate
from proxy.dialects.table import CONVERSE, ENDPOINTS, MODELS, RECEIPT, STORED, Endpoint
from proxy.rules import Rules
from proxy.snapshot import Budget, Increase, Limit, Provider, Threshold
from tests.budgets import observed
from tests.stack import Stack, chat, wait_until

DAY_S = 86_400
NOON_S = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def budget(amount: int, **fields: Any) -> Budget:
    return Budget(**{"budget_id": "b", "name": "b", "window": "day", "amount": amount, **fields})


def limit_of(subject: dict[str, str], **fields: Any) -> Limit:
    return Limit(**{"limit_id": "l", "metric": "requests", "amount": 1, "window_s": 3600, "subject": subject, **fields})


def counter(rule: Budget, at_s: float = NOON_S, **values: str) -> gate.BudgetCounter:
    (found,) = Rules([rule], [], values, {}).in_force(at_s).counters
    return found


# What the gate is asked


def test_each_value_has_a_counter_of_its_own():
    rule = budget(1, subject={"end_user": "*", "tag:customer": "*", "model": "gpt"})
    first, second = (counter(rule, end_user=user, **{"tag:customer": "a:b"}) for user in ("ann", "bob"))
    assert first.key.endswith(":ann:a%3Ab") and second.key.endswith(":bob:a%3Ab")


def test_an_increase_counts_while_it_lasts():
    rules = Rules([budget(100, increases=(Increase(amount=20, from_s=NOON_S + 60, until_s=NOON_S + 120),))], [], {}, {})
    for at_s, cap in ((NOON_S, 100), (NOON_S + 60, 120), (NOON_S + 119, 120), (NOON_S + 120, 100)):
        in_force = rules.in_force(at_s)
        assert in_force.counters[0].cap == cap
        assert at_s < in_force.valid_until_s


def test_a_fixed_range_counts_only_inside_of_it():
    rules = Rules([budget(1, window="fixed", starts_at_s=NOON_S, ends_at_s=NOON_S + 60)], [], {}, {})
    assert [len(rules.in_force(NOON_S + second).counters) for second in (-1, 0, 59, 60)] == [0, 1, 1, 0]


def test_a_blocking_threshold_is_the_cap_of_a_soft_budget_too():
    rule = budget(1_000, mode="soft", thresholds=(Threshold(percent=90, action="block"),))
    assert counter(rule)[1:3] == (900, True)


@pytest.mark.parametrize(("mode", "percent", "cap"), [("hard", 120, 1_000), ("hard", 80, 800), ("soft", 120, 1_200)])
def test_a_hard_amount_is_never_passed_whatever_blocks(mode, percent, cap):
    rule = budget(1_000, mode=mode, rollover=1_000, thresholds=(Threshold(percent=percent, action="block"),))
    assert counter(rule)[1:3] == (cap, True)
    # What the window before left, it left of its cap.
    assert counter(rule).carry.from_cap == cap


def test_what_is_observed_blocks_nothing():
    rule = budget(1_000, mode="observe", thresholds=(Threshold(percent=90, action="block"),))
    assert counter(rule)[1:3] == (1_000, False) and counter(rule).is_observed


def test_a_window_carries_from_the_one_before_whose_counter_outlives_it():
    found = counter(budget(100, rollover=30))
    midnight_s = int(NOON_S - DAY_S / 2)
    assert found.carry == gate.Carry(gate.spend_key("b", midnight_s - DAY_S), 100, 30, False)
    assert found.expire_at_s == midnight_s + 2 * DAY_S
    assert counter(budget(100, rollover=30, starts_at_s=midnight_s - DAY_S)).carry.is_empty_when_absent


# Through the gateway


def ask(stack: Stack, secret: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    with stack.client(secret) as client:
        return client.post("/v1/chat/completions", json=chat(**fields), headers=headers or {})


def publish(stack: Stack, *budgets: Budget, limits: tuple[Limit, ...] = ()) -> str:
    stack.wait_for_version(stack.control.publish(budgets=budgets, limits=limits))
    return stack.control.issue_key()


def of_subject(stack: Stack, *, budgets: tuple[Budget, ...] = (), limits: tuple[Limit, ...] = ()) -> str:
    """A key under these rules. Those that name a key travel with it, all others with the snapshot."""
    stack.control.add_deployment("sim-fast", pool="one")
    rules = {"budgets": budgets, "limits": limits}
    of_key = {name: tuple(rule for rule in of if "key" in rule.subject) for name, of in rules.items()}
    others = {name: tuple(rule for rule in of if "key" not in rule.subject) for name, of in rules.items()}
    stack.wait_for_version(stack.control.publish(**others))
    return stack.control.issue_key(key_id="k", **of_key)


# A subject, and the headers and fields of a call that it is about.
every_subject = pytest.mark.parametrize(
    ("subject", "headers", "fields"),
    [
        ({}, {}, {}),
        ({"team": "00000000-0000-7000-8000-000000000001"}, {}, {}),
        ({"project": "00000000-0000-7000-8000-000000000002"}, {}, {}),
        ({"key": "k"}, {}, {}),
        ({"key": "*"}, {}, {}),
        ({"environment": "prod"}, {}, {}),
        ({"alias": "demo"}, {}, {}),
        ({"model": "model-sim-fast"}, {}, {}),
        ({"provider": "sim"}, {}, {}),
        ({"deployment": "sim-fast"}, {}, {}),
        ({"pool": "one"}, {}, {}),
        ({"pool": "*"}, {}, {}),
        ({"end_user": "ann"}, {"x-tollgate-user": "ann"}, {"user": "bob"}),
        ({"end_user": "*"}, {}, {"user": "bob"}),
        ({"tag:customer": "acme"}, {"x-tollgate-tags": "customer=acme"}, {}),
        ({"project": "00000000-0000-7000-8000-000000000002", "model": "model-sim-fast"}, {}, {}),
        ({"key": "k", "pool": "one"}, {}, {}),
    ],
)


@every_subject
def test_a_budget_of_any_scope_refuses_those_that_it_is_about(stack, subject, headers, fields):
    secret = of_subject(stack, budgets=(budget(1, subject=subject),))
    refusal = ask(stack, secret, headers, **fields)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (429, "budget_exceeded")
    secret = of_subject(stack, budgets=(budget(1, subject={**subject, "tag:feature": "other"}),))
    assert ask(stack, secret, headers, **fields).status_code == 200


@every_subject
def test_a_limit_of_any_scope_refuses_those_that_it_is_about(stack, subject, headers, fields):
    secret = of_subject(stack, limits=(limit_of(subject),))
    assert [ask(stack, secret, headers, **fields).status_code for _ in range(2)] == [200, 429]
    error = ask(stack, secret, headers, **fields).json()["error"]
    assert (error["code"], error["limit_id"]) == ("rate_limit_exceeded", "l")
    secret = of_subject(stack, limits=(limit_of({**subject, "tag:feature": "other"}),))
    assert [ask(stack, secret, headers, **fields).status_code for _ in range(2)] == [200, 200]


def test_a_hard_budget_refuses_at_its_amount_though_it_blocks_above(stack):
    secret = publish(stack, budget(1, unit="requests", thresholds=(Threshold(percent=300, action="block"),)))
    assert [ask(stack, secret).status_code for _ in range(2)] == [200, 429]


def test_what_is_passed_through_is_of_no_deployment_but_of_its_provider_and_pool(stack):
    control = stack.control
    control.providers["sim"] = msgspec.structs.replace(control.providers["sim"], passthrough_hold_nanos=5_000)
    control.deployments["sim-fast"] = msgspec.structs.replace(control.deployments["sim-fast"], pool="its-pool")
    subjects = {
        "one": {"deployment": "sim-fast"},
        "each": {"deployment": "*"},
        "provider": {"provider": "sim"},
        "pool": {"pool": "its-pool"},
    }
    budgets = [budget(10**12, budget_id=name, window="total", subject=subject) for name, subject in subjects.items()]
    limit = Limit(limit_id="l", metric="requests", amount=1, window_s=3600, subject={"deployment": "sim-fast"})
    stack.wait_for_version(control.publish(budgets=budgets, limits=(limit,)))
    with stack.client(control.issue_key(passthrough=("*",))) as client:
        answers = [client.post("/passthrough/sim/chat/completions", json=chat(), timeout=30) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    wait_until(lambda: len(control.events()) == 2 and not control.holds(), "the settles")
    told = {event["deployment"] for event in control.events()}
    assert told == {"passthrough/sim"}
    assert {key.decode() for key in control.redis.scan_iter("tg:spend:*")} == {
        gate.spend_key("each", 0, *told),
        gate.spend_key("provider", 0),
        gate.spend_key("pool", 0),
    }


def test_tokens_and_requests_are_counted_as_the_provider_says(stack):
    units = {unit: budget(1_000_000, budget_id=unit, unit=unit) for unit in ("usd", "tokens", "requests")}
    secret = publish(stack, *units.values())
    answer = ask(stack, secret, content="[[simulate output_tokens=7]]").json()
    wait_until(lambda: len(stack.control.events()) == 1 and not stack.control.holds(), "the settle")
    assert stack.control.spent_nanos("tokens") == answer["usage"]["total_tokens"]
    assert stack.control.spent_nanos("requests") == 1
    assert stack.control.spent_nanos("usd") == stack.control.events()[0]["cost_nanos"]


def test_a_record_names_the_budgets_it_was_counted_in_and_no_others(stack):
    soft = budget(1, budget_id="soft", mode="soft")
    over = budget(1, budget_id="over", window="fixed", starts_at_s=0, ends_at_s=60)
    elsewhere = budget(1, budget_id="elsewhere", subject={"environment": "other"})
    secret = publish(stack, budget(10**12, budget_id="hard"), soft, over, elsewhere)
    assert ask(stack, secret).status_code == 200
    wait_until(lambda: len(stack.control.events()) == 1, "the event")
    assert sorted(stack.control.events()[0]["budget_ids"]) == ["hard", "soft"]


def test_a_nearly_spent_budget_has_a_cheaper_alias_serve_and_says_so(stack):
    stack.control.add_deployment("sim-cheap")
    stack.control.add_alias("cheap", "sim-cheap")
    secret = publish(stack, budget(10**12, thresholds=(Threshold(percent=0, action="downgrade", alias="cheap"),)))
    answer = ask(stack, secret)
    assert (answer.status_code, answer.headers["x-tollgate-downgraded"]) == (200, "from=demo")
    wait_until(lambda: len(stack.control.events()) == 1, "the event")
    (event,) = stack.control.events()
    assert (event["alias"], event["downgraded_from"], event["deployment"]) == ("cheap", "demo", "sim-cheap")
    # A key that may not use it goes on with what it asked for.
    narrow = stack.control.issue_key(aliases=("demo",))
    assert "x-tollgate-downgraded" not in ask(stack, narrow).headers


def to_cheap() -> Budget:
    return budget(10**12, thresholds=(Threshold(percent=0, action="downgrade", alias="cheap"),))


@pytest.mark.parametrize(
    ("provider", "fields"),
    [
        ({"api": "anthropic"}, {"logit_bias": {"1": 2}}),  # What the provider cannot be told.
        ({"api": "anthropic"}, {"stop": 1}),  # What we cannot read, and so not translate.
        ({"api": "openai", "path": "/no-such-api"}, {}),  # What the provider refuses.
    ],
)
def test_what_the_cheaper_alias_cannot_take_goes_on_as_it_was_asked_for(stack, provider, fields):
    control = stack.control
    url = f"{stack.simulator.url}{provider.get('path', '')}"
    control.providers["cheap"] = Provider(slug="cheap", api=provider["api"], base_url=url)
    control.add_deployment("cheap", provider="cheap")
    control.add_alias("cheap", "cheap")
    secret = publish(stack, to_cheap())
    answer = ask(stack, secret, **fields)
    assert (answer.status_code, answer.headers["x-tollgate-deployment"]) == (200, "sim-fast")
    assert "x-tollgate-downgraded" not in answer.headers
    wait_until(lambda: not control.holds() and control.events(), "the settle")
    event = control.events()[-1]
    assert (event["alias"], event.get("downgraded_from", "")) == ("demo", "")


def test_what_nobody_can_take_is_refused_also_past_the_threshold(stack):
    stack.control.add_deployment("sim-cheap")
    stack.control.add_alias("cheap", "sim-cheap")
    refusal = ask(stack, publish(stack, to_cheap()), content="[[simulate error=400]]")
    assert refusal.status_code == 400
    assert "x-tollgate-downgraded" not in refusal.headers


def test_a_request_is_downgraded_on_its_way_and_its_attempts_are_numbered_through(stack):
    """The first deployment fails, and the second's model is nearly spent."""
    control = stack.control
    control.providers["closed"] = Provider(slug="closed", api="openai", base_url="http://127.0.0.1:9/v1")
    control.add_deployment("unreachable", provider="closed")
    control.add_alias("chain", "unreachable", "sim-fast")
    control.add_deployment("sim-cheap")
    control.add_alias("cheap", "sim-cheap")
    nearly = msgspec.structs.replace(to_cheap(), subject={"model": "model-sim-fast"})
    answer = ask(stack, publish(stack, nearly), model="chain")
    assert (answer.status_code, answer.headers["x-tollgate-downgraded"]) == (200, "from=chain")
    wait_until(lambda: len(control.events()) == 2, "the events")
    assert [(event.get("attempt_number", 1), event["deployment"], event["alias"]) for event in control.events()] == [
        (1, "unreachable", "chain"),
        (2, "sim-cheap", "cheap"),
    ]


def test_a_nearly_spent_budget_lets_requests_pass_at_a_rate(stack):
    secret = publish(stack, budget(10**12, thresholds=(Threshold(percent=0, action="throttle", per_minute=1),)))
    assert ask(stack, secret).status_code == 200
    refusal = ask(stack, secret)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (429, "budget_throttled")
    assert 1 <= int(refusal.headers["retry-after"]) <= 60


def test_what_is_observed_passes_and_is_counted(stack):
    limit = Limit(limit_id="l", metric="requests", amount=1, window_s=3600, is_observed=True)
    secret = publish(stack, budget(1, mode="observe"), limits=(limit,))
    assert [ask(stack, secret).status_code for _ in range(3)] == [200, 200, 200]
    assert observed.by_rule(stack.control.redis) == {"l": 2, "b": 3}
    assert "tollgate_observed_refusals_total 5.0" in httpx.get(f"{stack.proxy.url}/metrics").text


def test_a_budget_that_refuses_says_so_for_who_watches(stack):
    publish(stack, budget(1, subject={"end_user": "*"}))
    with stack.client(stack.control.issue_key()) as client:
        for user in ("a:n n", "a:n n", "bob"):
            assert client.post("/v1/chat/completions", json=chat(user=user)).status_code == 429
    wait_until(lambda: stack.control.redis.hlen(gate.REFUSED) == 2, "the refusals")
    told = stack.control.redis.hgetall(gate.REFUSED)
    counters = [gate.read_spend_key(key.decode()) for key in told]
    assert sorted((budget_id, values) for budget_id, _, values in counters) == [("b", ("a:n n",)), ("b", ("bob",))]
    assert list(told.values()) == [b"1", b"1"]


@pytest.mark.parametrize("metric", ["requests", "tokens", "input_tokens", "output_tokens", "spend"])
def test_a_limit_of_any_metric_names_itself_in_its_refusal(stack, metric):
    limit = Limit(limit_id="l", name="slow", metric=metric, amount=1, window_s=3600, subject={"alias": "demo"})
    secret = publish(stack, limits=(limit,))
    assert ask(stack, secret).status_code == 200
    refusal = ask(stack, secret)
    error = refusal.json()["error"]
    assert (refusal.status_code, error["code"], error["limit_name"]) == (429, "rate_limit_exceeded", "slow")
    assert (error["limit_scope"], error["limit_window_s"]) == ("alias", 3600)


# From one deployment to the next


def two_ways(stack: Stack, *more: str) -> None:
    """`demo` goes to `sim-fast`, then to `second` at another provider and under another pool, then to `more`, at that one too."""
    control = stack.control
    control.add_deployment("sim-fast", pool="one")
    control.providers["other"] = Provider(slug="other", api="openai", base_url=f"{control.upstream_url}/v1")
    for name in ("second", *more):
        control.add_deployment(name, provider="other", pool="two")
    control.add_alias("demo", "sim-fast", "second", *more)


def holds_asked_for(stack: Stack, ask_once: Callable[[], Any]) -> int:
    """How often the gate is asked to admit something meanwhile."""
    with stack.control.redis.monitor() as monitor:
        ask_once()
        stack.control.redis.echo("the end")
        commands = itertools.takewhile(
            lambda command: "the end" not in command, (command["command"] for command in monitor.listen())
        )
        return sum(gate.ADMIT.sha1 in command for command in commands)


@pytest.mark.parametrize(
    "subject",
    [
        {"deployment": "sim-fast"},
        {"model": "model-sim-fast"},
        {"provider": "sim"},
        {"pool": "one"},
        {"deployment": "*"},
        {"alias": "demo", "pool": "*"},
    ],
)
@pytest.mark.parametrize("kind", ["budget", "requests", "concurrency", "throttle"])
def test_what_one_deployment_has_no_room_for_goes_to_the_next(stack, subject, kind):
    two_ways(stack)
    once = Threshold(percent=0, action="throttle", per_minute=1)
    rules: dict[str, tuple[tuple[Budget, ...], tuple[Limit, ...]]] = {
        "budget": ((budget(1, unit="requests", window="total", subject=subject),), ()),
        "throttle": ((budget(100, unit="requests", window="total", subject=subject, thresholds=(once,)),), ()),
        "requests": ((), (limit_of(subject),)),
        "concurrency": ((), (limit_of(subject, metric="concurrency"),)),
    }
    budgets, limits = rules[kind]
    secret = publish(stack, *budgets, limits=limits)
    is_at_once = kind == "concurrency"
    with stack.asking(secret, chat(content="[[simulate stall=1]]")) if is_at_once else contextlib.nullcontext():
        if is_at_once:
            wait_until(lambda: stack.control.holds() == 1, "the one that runs")
        else:
            assert ask(stack, secret).headers["x-tollgate-deployment"] == "sim-fast"
        answer = ask(stack, secret)
    assert (answer.status_code, answer.headers["x-tollgate-deployment"]) == (200, "second")
    wait_until(lambda: len(stack.control.events()) == 2, "the events")
    (event,) = (event for event in stack.control.events() if event["deployment"] == "second")
    assert event.get("attempt_number", 1) == 1
    first, second = event["route"]
    assert (first["deployment"], first["is_passed_over"]) == ("sim-fast", True)
    assert first["reason"].startswith("budget 'b'" if budgets else "the ")
    assert (second["deployment"], second["reason"]) == ("second", "position 1")


@pytest.mark.parametrize("subject", [{}, {"alias": "demo"}, {"environment": "prod"}, {"end_user": "*"}])
def test_what_refuses_everywhere_is_asked_once(stack, subject):
    two_ways(stack)
    secret = publish(stack, limits=(limit_of(subject),))
    assert ask(stack, secret, user="ann").status_code == 200
    refusals: list[httpx.Response] = []
    assert holds_asked_for(stack, lambda: refusals.append(ask(stack, secret, user="ann"))) == 1
    assert (refusals[0].status_code, refusals[0].json()["error"]["limit_id"]) == (429, "l")


def test_those_that_share_what_is_full_are_not_asked(stack):
    two_ways(stack, "third")
    control = stack.control
    control.add_deployment("fourth")
    control.add_alias("demo", "second", "third", "fourth")
    secret = publish(stack, limits=(limit_of({"provider": "other"}),))
    assert ask(stack, secret).headers["x-tollgate-deployment"] == "second"
    answers: list[httpx.Response] = []
    assert holds_asked_for(stack, lambda: answers.append(ask(stack, secret))) == 2
    assert answers[0].headers["x-tollgate-deployment"] == "fourth"
    wait_until(lambda: len(control.events()) == 2, "the events")
    assert [said["deployment"] for said in control.events()[-1]["route"] if said.get("is_passed_over")] == [
        "second",
        "third",
    ]


def test_where_all_refuse_the_client_hears_which_refusal_ends_first(stack):
    two_ways(stack, "third")
    spent = budget(0, subject={"deployment": "sim-fast"})
    slow = limit_of({"deployment": "second"}, limit_id="slow", window_s=7200)
    soon = limit_of({"deployment": "third"}, limit_id="soon", window_s=3600)
    secret = publish(stack, spent, limits=(slow, soon))
    assert [ask(stack, secret).headers["x-tollgate-deployment"] for _ in range(2)] == ["second", "third"]
    refusal = ask(stack, secret)
    assert (refusal.status_code, refusal.json()["error"]["limit_id"]) == (429, "soon")
    assert 0 < int(refusal.headers["retry-after"]) <= 3600


def test_what_a_provider_has_said_is_told_before_a_refusal_of_our_own(stack):
    two_ways(stack)
    secret = publish(stack, budget(0, subject={"deployment": "second"}))
    assert ask(stack, secret, content="[[simulate error=503]]").json()["error"]["code"] != "budget_exceeded"


def test_nobody_waits_for_room_where_the_next_deployment_has_some(stack):
    """Each budget has room for one request at a time."""
    two_ways(stack)
    each = budget(1_000_000, subject={"deployment": "*"})
    secret = publish(stack, each)
    with stack.asking(secret, chat(content="[[simulate stall=1]]")):
        wait_until(lambda: stack.control.holds() == 1, "the one that runs")
        lines: list[str] = []
        with stack.control.redis.monitor() as monitor:
            answer = ask(stack, secret)
            stack.control.redis.echo("the end")
            for command in monitor.listen():
                if "the end" in command["command"]:
                    break
                lines += [command["command"]] if gate.LINE.sha1 in command["command"] else []
        assert answer.headers["x-tollgate-deployment"] == "second"
        assert not lines


def test_where_no_deployment_has_room_the_request_waits_for_the_first(stack):
    two_ways(stack)
    secret = publish(stack, budget(1_000_000, subject={"deployment": "*"}))
    slow = "[[simulate latency_ms=2000]]"
    with ThreadPoolExecutor() as threads:
        running = []
        for others in range(2):
            running.append(threads.submit(ask, stack, secret, content=slow))
            wait_until(lambda others=others: stack.control.holds() == others + 1, "the hold")
        answer = ask(stack, secret)
        served = [one.result().headers["x-tollgate-deployment"] for one in running]
    assert served == ["sim-fast", "second"]
    assert (answer.status_code, answer.headers["x-tollgate-deployment"]) == (200, "sim-fast")
    wait_until(lambda: len(stack.control.events()) == 3, "the events")
    request_id = answer.headers["x-request-id"]
    ((first, second),) = (event["route"] for event in stack.control.events() if event["request_id"] == request_id)
    assert (first["reason"], second["is_passed_over"]) == ("position 0", True)


# No way around

# What is answered without any provider. Every other row of the table asks one, and is walked.
OWN_ANSWERS = {MODELS, RECEIPT}
# Whose clients send forms.
FORMS = ("openai.audio.", "openai.images.edits", "openai.images.variations")
PROVIDERS = {"openai": "/v1", "anthropic": "/anthropic/v1", "gemini": "/gemini/v1beta", "cohere": "/cohere"}
PARTS = {"parts": [{"text": "Hello"}]}
BODY = {
    "messages": [{"role": "user", "content": "Hello"}], "input": "Hello", "prompt": "Hello", "max_tokens": 5,
    "query": "Hello", "documents": ["a"], "texts": ["a"], "input_type": "search_document", "voice": "alloy",
    "contents": [{"role": "user", **PARTS}],
}  # fmt: skip
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat("openai")}
# By the kind of what providers keep, where it is made.
MADE_AT = {
    "file": "/v1/files",
    "batch": "/v1/batches",
    "message_batch": "/v1/messages/batches",
    "response": "/v1/responses",
}


def making(client: httpx.Client, kind: str) -> dict[str, Any]:
    match kind:
        case "file":
            return {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", json.dumps(LINE))}}
        case "batch":
            file_id = make(client, "file")
            return {"json": {"input_file_id": file_id, "endpoint": LINE["url"], "completion_window": "24h"}}
        case "message_batch":
            return {"json": {"requests": [{"custom_id": "a", "params": chat("anthropic", max_tokens=5)}]}}
        case _:
            return {"json": {"model": "openai", "input": "Hello"}}


def make(client: httpx.Client, kind: str) -> str:
    """The id of a new thing of that kind."""
    answer = client.post(MADE_AT[kind], **making(client, kind))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def request_of(client: httpx.Client, endpoint: Endpoint) -> httpx.Request:
    """One that a provider answers, about a thing that is there."""
    name, kind = endpoint.dialect.name, getattr(endpoint.dialect, "kind", "")
    alias = next((alias for alias in PROVIDERS if name.startswith(alias)), "openai")
    path = endpoint.path
    for placeholder, value in {"{provider}": "openai", "{path*}": "files/none", "{model*}": alias}.items():
        path = path.replace(placeholder, value)
    if "{id}" in path:
        return client.build_request(endpoint.method, path.replace("{id}", make(client, kind)))
    if kind and endpoint.action == STORED:
        return client.build_request(endpoint.method, path, **making(client, kind))
    if endpoint.method in ("GET", "DELETE"):
        return client.build_request(endpoint.method, path)
    if name.startswith(FORMS):
        files = {"file": ("a.wav", b"RIFF"), "image": ("a.png", b"\x89PNG")}
        return client.build_request(endpoint.method, path, data={"model": alias, "prompt": "a"}, files=files)
    of_google = {"content": PARTS, "requests": [{"model": f"models/{alias}", "content": PARTS}]}
    body = BODY | {"model": alias} | (of_google if name == "gemini.embed" else {})
    return client.build_request(endpoint.method, path, json=body)


def answered(client: httpx.Client, request: httpx.Request, secret: str) -> int:
    headers = {**request.headers, "authorization": f"Bearer {secret}"}
    return client.send(httpx.Request(request.method, request.url, headers=headers, content=request.read())).status_code


def opened(stack: Stack, path: str, secret: str) -> int:
    """The status that opening a session is answered with."""
    url = f"{stack.proxy.url.replace('http', 'ws')}{path}?model=openai"
    try:
        with connect(url, additional_headers={"authorization": f"Bearer {secret}"}) as socket:
            socket.recv(timeout=60)
    except InvalidStatus as refusal:
        return refusal.response.status_code
    return 101


def test_no_endpoint_reaches_a_provider_without_being_admitted(stack):
    """The whole table, row by row: a key that may not make one request gets no byte to any provider, whatever it calls; another
    key of its project does."""
    control = stack.control
    capabilities = tuple({endpoint.dialect.capability for endpoint in ENDPOINTS})
    for name, path in PROVIDERS.items():
        url = f"{stack.simulator.url}{path}"
        control.providers[name] = Provider(slug=name, api=name, base_url=url, passthrough_hold_nanos=1)
        control.add_deployment(name, provider=name, operations=capabilities, context_window=2_000)
        control.add_alias(name, name)
    stack.wait_for_version(control.publish())
    nothing = budget(0, unit="requests", window="total", subject={"key": "k"})
    shut = control.issue_key(passthrough=("*",), key_id="k", budgets=(nothing,))
    free = control.issue_key(passthrough=("*",))

    def received() -> int:
        return sum(entry["event"] == "received" for entry in stack.simulator.entries())

    def is_quiet() -> bool:
        """Nobody asks after batches any more: what has ended is in the ledger, whose part is played here."""
        if applied := control.redis.hgetall(gate.APPLIED):
            control.redis.hset(gate.INGESTED, mapping=applied)
        return not control.redis.exists(gate.JOBS)

    with stack.client(free) as client:
        for endpoint in ENDPOINTS:
            if endpoint.action in OWN_ANSWERS:
                continue
            if endpoint.action == CONVERSE:
                ask_with = partial(opened, stack, endpoint.path)
            else:
                ask_with = partial(answered, client, request_of(client, endpoint))
            wait_until(is_quiet, "the end of all batches")
            before = received()
            assert (ask_with(shut), received() - before) == (429, 0), endpoint
            assert (ask_with(free) != 429, received() > before) == (True, True), endpoint
