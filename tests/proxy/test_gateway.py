"""The data path as an application meets it: real workers, a real Redis, a provider that is real enough."""

import json
import threading
import time

import httpx
import pytest

from budgets.windows import window_bounds
from keys.tokens import digest
from proxy.snapshot import Budget, Credential, Limit, Threshold
from tests.stack import UPSTREAM_SECRET, Stack, chat, wait_until


def _budget(amount: int, **changes) -> Budget:
    subject = {"team": "00000000-0000-7000-8000-000000000001"}
    fields = {"budget_id": "b1", "name": "Research monthly", "subject": subject, "window": "month"}
    return Budget(**{**fields, "amount": amount, **changes})


def _limit(metric: str, amount: int, **changes) -> Limit:
    return Limit(limit_id=f"l-{metric}", metric=metric, amount=amount, **changes)


def _error(response: httpx.Response) -> dict:
    return response.json()["error"]


def _events(stack: Stack, count: int) -> list[dict]:
    wait_until(lambda: len(stack.control.events()) >= count, f"{count} usage events")
    return stack.control.events()


# Answers


def test_a_chat_is_answered_metered_and_settled(stack):
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        response = client.post("/v1/chat/completions", json=chat(max_tokens=10))
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    cost_nanos = usage["prompt_tokens"] * 1000 + usage["completion_tokens"] * 2000
    assert response.headers["x-tollgate-cost-usd"] == f"0.{cost_nanos:09d}"
    assert response.headers["x-tollgate-deployment"] == "sim-fast"
    assert response.headers["x-request-id"]
    (event,) = _events(stack, 1)
    assert event["cost_nanos"] == cost_nanos
    assert event["request_id"] == response.headers["x-request-id"]
    assert (event["alias"], event["provider"], event["model"]) == ("demo", "sim", "model-sim-fast")
    assert event["usage_source"] == "provider"
    assert stack.control.holds() == 0


def test_a_stream_passes_chunk_by_chunk_and_its_usage_chunk_is_withheld(stack):
    secret = stack.control.issue_key()
    with (
        stack.client(secret) as client,
        client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        events = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert response.status_code == 200
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert all(chunk["choices"] for chunk in chunks)
    (event,) = _events(stack, 1)
    assert event["is_stream"]
    assert event["usage"]["output_tokens"] > 0
    assert event["usage_source"] == "provider"
    assert event["first_token_ms"] <= event["latency_ms"]


def test_the_usage_chunk_reaches_a_client_that_asked_for_it(stack):
    secret = stack.control.issue_key()
    body = chat(stream=True, stream_options={"include_usage": True})
    with stack.client(secret) as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_embeddings_are_answered_and_metered(stack):
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        response = client.post("/v1/embeddings", json={"model": "demo", "input": ["one", "two"]})
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 2
    (event,) = _events(stack, 1)
    assert event["operation"] == "embeddings"


def test_models_are_the_aliases_that_the_key_may_use(stack):
    stack.control.add_alias("other", "sim-fast")
    stack.wait_for_version(stack.control.publish())
    with stack.client(stack.control.issue_key(aliases=("other",))) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["other"]


# Refusals


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"is_revoked": True}, "key_revoked"),
        ({"is_paused": True}, "key_paused"),
        ({"expires_at_s": 1.0}, "key_expired"),
    ],
)
def test_a_key_that_may_not_is_refused(stack, changes, code):
    with stack.client(stack.control.issue_key(**changes)) as client:
        response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 401
    assert _error(response)["code"] == code


def test_an_unknown_key_and_no_key_are_refused(stack):
    with stack.client("tg-nobody") as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 401
    with stack.client() as client:
        response = client.post("/v1/chat/completions", json=chat())
    assert (response.status_code, _error(response)["code"]) == (401, "missing_api_key")


def test_an_alias_that_is_not_allowed_and_one_that_is_unknown_are_refused(stack):
    with stack.client(stack.control.issue_key(aliases=())) as client:
        response = client.post("/v1/chat/completions", json=chat())
        assert (response.status_code, _error(response)["code"]) == (403, "alias_not_allowed")
        response = client.post("/v1/chat/completions", json=chat("nothing"))
        assert (response.status_code, _error(response)["code"]) == (404, "model_not_found")


def test_a_model_without_a_price_is_refused(stack):
    stack.control.add_deployment("free", price=None)
    stack.control.add_alias("free", "free")
    stack.wait_for_version(stack.control.publish())
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", json=chat("free"))
    assert (response.status_code, _error(response)["code"]) == (403, "model_not_priced")


def test_a_spent_budget_refuses_and_says_which_and_until_when(stack):
    stack.wait_for_version(stack.control.publish(budgets=(_budget(1_000_000),)))
    with stack.client(stack.control.issue_key()) as client:
        assert client.post("/v1/chat/completions", json=chat(max_tokens=10)).status_code == 200
        response = client.post("/v1/chat/completions", json=chat(max_tokens=10_000))
    assert response.status_code == 429
    assert response.headers["x-should-retry"] == "false"
    error = _error(response)
    assert error["code"] == "budget_exceeded"
    assert (error["budget"], error["window"], error["scope"]) == ("Research monthly", "month", "team")
    assert error["resets_at"] == window_bounds("month", "UTC", time.time())[1]
    (event,) = _events(stack, 1)
    assert stack.control.spent_nanos("b1") == event["cost_nanos"]
    assert int(error["left_usd"].replace(".", "").ljust(10, "0")) == 1_000_000 - event["cost_nanos"]


def test_a_share_that_blocks_is_what_the_refusal_speaks_of(stack):
    rule = _budget(100_000_000_000, thresholds=(Threshold(percent=80, action="block"),))
    stack.wait_for_version(stack.control.publish(budgets=(rule,)))
    with stack.client(stack.control.issue_key()) as client:
        assert client.post("/v1/chat/completions", json=chat(max_tokens=10)).status_code == 200
        _events(stack, 1)
        (counter,) = stack.control.redis.scan_iter("tg:spend:b1:*")
        stack.control.redis.set(counter, 80_000_000_000)
        error = _error(client.post("/v1/chat/completions", json=chat()))
    assert (error["amount_usd"], error["cap_percent"], error["cap_usd"], error["left_usd"]) == (
        "100.00",
        80,
        "80.00",
        "0.00",
    )
    assert "($80.00 per month, 80 % of $100.00) has $0.00 left" in error["message"]


def test_a_soft_budget_counts_and_lets_pass(stack):
    stack.wait_for_version(stack.control.publish(budgets=(_budget(1, mode="soft"),)))
    with stack.client(stack.control.issue_key()) as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
    _events(stack, 1)
    assert stack.control.spent_nanos("b1") > 1


def test_requests_over_the_limit_are_told_when_to_come_back(stack):
    secret = stack.control.issue_key(limits=(_limit("requests", 2),))
    with stack.client(secret) as client:
        responses = [client.post("/v1/chat/completions", json=chat()) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert responses[0].headers["x-ratelimit-limit-requests"] == "2"
    assert responses[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert _error(responses[2])["code"] == "rate_limit_exceeded"
    assert 1 <= int(responses[2].headers["retry-after"]) <= 60


def test_a_limit_of_nothing_is_not_to_be_waited_out(stack):
    with stack.client(stack.control.issue_key(limits=(_limit("requests", 0),))) as client:
        response = client.post("/v1/chat/completions", json=chat())
    assert (response.status_code, _error(response)["code"]) == (429, "rate_limit_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


def test_concurrency_is_limited_and_slots_come_back(stack):
    secret = stack.control.issue_key(limits=(_limit("concurrency", 1),))
    body = chat(content="[[simulate tokens_per_second=10,output_tokens=2000]]", stream=True)
    with stack.client(secret) as client, client.stream("POST", "/v1/chat/completions", json=body) as running:
        assert running.status_code == 200
        with stack.client(secret) as second:
            assert second.post("/v1/chat/completions", json=chat()).status_code == 429
    with stack.client(secret) as client:
        wait_until(lambda: client.post("/v1/chat/completions", json=chat()).status_code == 200, "a free slot")


def test_required_tags_are_demanded_by_name_and_stored(stack):
    changes = {"required_tags": ("feature", "customer"), "default_tags": {"feature": "none"}}
    stack.wait_for_version(stack.control.publish(project=changes))
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", json=chat())
        assert (response.status_code, _error(response)["code"]) == (400, "missing_tags")
        assert _error(response)["missing"] == ["customer"]
        headers = {"x-tollgate-tags": "feature=search"}
        body = chat(metadata={"customer": "acme", "feature": "body"})
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    (event,) = _events(stack, 1)
    assert event["tags"] == {"feature": "search", "customer": "acme"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"model": "demo", "model": "other"}',
        b'{"model": "demo", "messages": [], "temperature": NaN}',
        b'{"messages": []}',
        b'{"model": 7}',
        b'{"model": "demo", "max_tokens": -1}',
        b'{"model": "demo", "x": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"model": "demo\xff"}',
    ],
)
def test_a_malformed_body_is_refused_and_nothing_is_called(stack, body):
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400, response.text
    assert _error(response)["type"] == "invalid_request_error"
    assert stack.control.events() == []


def test_wrong_paths_and_methods_are_told_apart(stack):
    with stack.client() as client:
        assert client.get("/v2/nothing").status_code == 404
        assert client.get("/v1/chat/completions").status_code == 405


# Upstream failures


def test_a_deployment_without_credentials_is_called_without_one(stack):
    stack.control.add_deployment("own", credentials=())
    stack.control.add_alias("own", "own")
    stack.wait_for_version(stack.control.publish())
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", json=chat("own"))
    assert response.status_code == 502  # The simulator demands a key, and was sent none.
    assert stack.simulator.entries()[-1]["status"] == 401


def test_a_deployment_whose_credentials_cannot_be_opened_is_not_called(stack):
    sealed = Credential(credential_id="other", sealed="v1.nonsense")
    stack.control.add_deployment("locked", credentials=(sealed,))
    stack.control.add_alias("locked", "locked")
    stack.wait_for_version(stack.control.publish())
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", json=chat("locked"))
    assert (response.status_code, _error(response)["code"]) == (503, "service_unavailable")


@pytest.mark.parametrize(
    ("directive", "status_code"),
    [("error=500", 502), ("error=529", 502), ("error=429", 429), ("error=400", 400), ("error=401", 502)],
)
def test_a_refusal_of_the_provider_is_told_and_costs_nothing(stack, directive, status_code):
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", json=chat(content=f"[[simulate {directive}]]"))
    assert response.status_code == status_code, response.text
    assert UPSTREAM_SECRET not in response.text
    (event,) = _events(stack, 1)
    assert event.get("cost_nanos", 0) == 0
    assert event["error_type"]


def test_a_provider_that_is_not_there_is_502_and_the_hold_is_voided(stack):
    stack.control.providers["gone"] = stack.control.providers["sim"].__class__(
        slug="gone", api="openai", base_url="http://127.0.0.1:9/v1"
    )
    stack.control.add_deployment("gone", provider="gone")
    stack.control.add_alias("gone", "gone")
    stack.wait_for_version(stack.control.publish())
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", json=chat("gone"))
    assert (response.status_code, _error(response)["code"]) == (502, "upstream_unreachable")
    (event,) = _events(stack, 1)
    assert event["state"] == "voided"


def test_the_next_deployment_is_tried_before_the_first_byte(stack):
    stack.control.providers["gone"] = stack.control.providers["sim"].__class__(
        slug="gone", api="openai", base_url="http://127.0.0.1:9/v1"
    )
    stack.control.add_deployment("gone", provider="gone")
    stack.control.add_alias("chain", "gone", "sim-fast")
    stack.wait_for_version(stack.control.publish())
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/chat/completions", json=chat("chain"))
    assert response.status_code == 200
    assert response.headers["x-tollgate-deployment"] == "sim-fast"
    first, second = _events(stack, 2)
    assert (first["state"], first.get("attempt_number", 1)) == ("voided", 1)
    assert (second["attempt_number"], second["request_id"]) == (2, first["request_id"])


def test_a_stream_that_the_provider_breaks_ends_with_an_error_event(stack):
    body = chat(content="[[simulate truncate=1,after_tokens=3]]", stream=True)
    with (
        stack.client(stack.control.issue_key()) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = [line for line in response.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"].startswith("upstream")
    (event,) = _events(stack, 1)
    assert event["usage_source"] == "estimated"
    assert event["cost_nanos"] > 0


def test_a_client_that_leaves_closes_the_upstream_and_pays_what_was_used(stack):
    body = chat(content="[[simulate tokens_per_second=20,output_tokens=200]]", stream=True)
    with (
        stack.client(stack.control.issue_key()) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = filter(None, response.iter_lines())  # Dropping it would close the response.
        for _ in range(10):
            next(lines)
    (event,) = _events(stack, 1)
    assert event["error_type"] == "client_gone"
    assert 5 <= event["usage"]["output_tokens"] < 200
    wait_until(
        lambda: any(
            "gone" in json.dumps(entry) and event["attempt_id"] in json.dumps(entry)
            for entry in stack.simulator.entries()
        ),
        "the simulator to notice",
    )
    assert stack.control.holds() == 0


# Kill switches


@pytest.mark.parametrize("scope", ["global", "team", "project", "key", "model", "provider"])
def test_a_kill_switch_halts_new_requests_at_once_until_it_is_lifted(stack, scope):
    secret = stack.control.issue_key(key_id="the-key")
    targets = {
        "global": "",
        "team": stack.control.team.team_id,
        "project": stack.control.project.project_id,
        "key": "the-key",
        "model": "model-sim-fast",
        "provider": "sim",
    }
    with stack.client(secret) as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
        flag = stack.control.throw(scope, targets[scope], "leaked key")
        response = client.post("/v1/chat/completions", json=chat())
        assert (response.status_code, _error(response)["code"]) == (403, "traffic_halted")
        assert _error(response)["reason"] == "leaked key"
        stack.control.lift(flag)
        wait_until(lambda: client.post("/v1/chat/completions", json=chat()).status_code == 200, "traffic")


def test_a_kill_switch_cuts_live_streams_with_a_last_event_and_is_acknowledged(make_stack):
    stack = make_stack(workers=2)
    secret = stack.control.issue_key()
    body = chat(content="[[simulate tokens_per_second=20,output_tokens=400]]", stream=True)
    streams: list[list[str]] = [[] for _ in range(8)]

    def listen(lines: list[str]) -> None:
        with stack.client(secret) as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines.extend(filter(None, response.iter_lines()))

    threads = [threading.Thread(target=listen, args=(lines,)) for lines in streams]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(streams), "eight streams")
    flag = stack.control.throw("team", stack.control.team.team_id, "too expensive")
    for thread in threads:
        thread.join()
    assert {json.loads(lines[-1].removeprefix("data: "))["error"]["code"] for lines in streams} == {"traffic_halted"}
    acks = stack.control.redis.hgetall(f"tg:kill:acks:{flag.kill_switch_id}")
    wait_until(
        lambda: len(stack.control.redis.hgetall(f"tg:kill:acks:{flag.kill_switch_id}")) == 2, "two acknowledgements"
    )
    acks = [json.loads(ack) for ack in stack.control.redis.hvals(f"tg:kill:acks:{flag.kill_switch_id}")]
    assert sum(ack["streams_cut"] for ack in acks) == 8
    events = _events(stack, 8)
    assert {event["kill_switch_id"] for event in events} == {flag.kill_switch_id}
    assert stack.control.holds() == 0


# Configuration


def test_a_change_is_in_force_as_soon_as_it_is_pushed(stack):
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        assert client.post("/v1/chat/completions", json=chat("new")).status_code == 404
        stack.control.add_alias("new", "sim-fast")
        stack.control.is_only_pushed = True
        stack.control.publish()
        wait_until(lambda: client.post("/v1/chat/completions", json=chat("new")).status_code == 200, "the alias")


def test_a_revoked_key_is_refused_as_soon_as_it_is_pushed(stack):
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
        stack.control.is_only_pushed = True
        stack.control.set_key(digest(secret), is_revoked=True)
        wait_until(lambda: client.post("/v1/chat/completions", json=chat()).status_code == 401, "the refusal")


@pytest.mark.parametrize("body", [b"nonsense", b'{"schema_version": 99, "version": 9, "published_at_s": 0}'])
def test_a_bad_snapshot_is_refused_and_the_last_good_one_serves_on(stack, body):
    secret = stack.control.issue_key()
    stack.control.version = 9
    stack.control.publish_raw(body)
    wait_until(lambda: "snapshot refused" in stack.proxy.log, "the refusal")
    with stack.client(secret) as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


# Small answers


def test_health_readiness_and_metrics(stack):
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        client.post("/v1/chat/completions", json=chat())
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
        metrics = client.get("/metrics").text
    assert 'tollgate_requests_total{status_code="200"' in metrics or "tollgate_requests_total{worker=" in metrics
    assert "tollgate_request_duration_seconds_bucket" in metrics
    assert "tollgate_tasks{worker=" in metrics
    assert secret not in metrics


def test_no_secret_reaches_the_log(stack):
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        client.post("/v1/chat/completions", json=chat())
        client.post("/v1/chat/completions", json=chat(content="[[simulate error=401]]"))
        client.post("/v1/chat/completions", content=b"nonsense")
    assert secret not in stack.proxy.log
    assert UPSTREAM_SECRET not in stack.proxy.log
