"""A request repeated under its `Idempotency-Key`: one call, one record, and the same answer for everybody who asks."""

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest

from proxy.idempotency import KEPT_S, fingerprint
from proxy.receive import Request
from tests.stack import Stack, chat, wait_until

CHAT = "/v1/chat/completions"
SLOW = "[[simulate tokens_per_second=40,output_tokens=20]]"

RACERS = 20


@pytest.fixture
def calls(simulator) -> Iterator[list[dict]]:
    """The calls that reach the provider from here on, in a list that is filled when it is looked at."""
    before = len(simulator.entries())

    class Calls(list):
        def __len__(self) -> int:
            return sum(entry["event"] == "received" for entry in simulator.entries()[before:])

    return Calls()


def _post(stack: Stack, secret: str, idempotency_key: str, body: dict, path: str = CHAT) -> httpx.Response:
    with stack.client(secret) as client:
        return client.post(path, json=body, headers={"idempotency-key": idempotency_key})


def _code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def _entries(stack: Stack) -> list[bytes]:
    return list(stack.control.redis.scan_iter("tg:idempotency:*"))


def _wait_for_an_answer(stack: Stack, secret: str, idempotency_key: str, body: dict) -> httpx.Response:
    answers: list[httpx.Response] = []

    def is_there() -> bool:
        answers.append(_post(stack, secret, idempotency_key, body))
        return _code(answers[-1]) != (409, "idempotency_key_in_use") if answers[-1].status_code >= 400 else True

    wait_until(is_there, "the answer")
    return answers[-1]


@contextmanager
def _running(stack: Stack, secret: str, idempotency_key: str, body: dict) -> Iterator[None]:
    """While the first request is being answered by the provider."""
    with stack.client(secret) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, CHAT, json=body, headers={"idempotency-key": idempotency_key})
        wait_until(lambda: stack.control.holds() > 0, "the call")
        yield
        asked.exception()


# Replays


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_repeated_request_gets_the_same_bytes_without_a_call_or_a_record(stack, calls, is_stream):
    secret, body = stack.control.issue_key(), chat(stream=is_stream)
    first, second = (_post(stack, secret, "order-1", body) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    told = ("content-type", "x-request-id", "x-tollgate-deployment", "x-tollgate-cost-usd", "cache-control")
    assert [first.headers.get(name) for name in told] == [second.headers.get(name) for name in told]
    assert "x-tollgate-replayed" not in first.headers
    assert second.headers["x-tollgate-replayed"] == "true"
    wait_until(lambda: stack.control.events() != [], "the usage event")
    assert (len(calls), len(stack.control.events())) == (1, 1)


def test_another_body_under_the_same_key_is_refused(stack, calls):
    secret = stack.control.issue_key()
    first = _post(stack, secret, "order-1", chat())
    second = _post(stack, secret, "order-1", chat(content="Something else"))
    assert _code(second) == (422, "idempotency_key_reused")
    assert second.headers["x-should-retry"] == "false"
    assert second.json()["error"]["first_request_id"] == first.headers["x-request-id"]
    assert len(calls) == 1


def test_each_virtual_key_has_idempotency_keys_of_its_own(stack, calls):
    for secret in (stack.control.issue_key(), stack.control.issue_key()):
        assert "x-tollgate-replayed" not in _post(stack, secret, "order-1", chat()).headers
    assert len(calls) == 2


def test_twenty_racing_retries_on_two_workers_make_one_call(make_stack, calls):
    stack = make_stack(workers=2)
    secret, body = stack.control.issue_key(), chat(content="[[simulate latency_ms=300]]")

    async def retry(client: httpx.AsyncClient) -> httpx.Response:
        while True:
            response = await client.post(CHAT, json=body, headers={"idempotency-key": "race"})
            if response.status_code != 409:
                return response
            assert _code(response) == (409, "idempotency_key_in_use")
            assert response.headers["retry-after"] == "1"
            await asyncio.sleep(0.05)

    async def race() -> list[httpx.Response]:
        headers, limits = {"authorization": f"Bearer {secret}"}, httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=stack.proxy.url, headers=headers, limits=limits, timeout=20) as client:
            return await asyncio.gather(*(retry(client) for _ in range(RACERS)))

    answers = asyncio.run(race())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("x-tollgate-replayed" not in answer.headers for answer in answers) == 1
    assert len(calls) == 1


def test_an_sdk_that_repeats_a_call_in_flight_ends_up_with_its_answer(stack, calls):
    secret = stack.control.issue_key()

    def complete() -> str:
        with openai.OpenAI(api_key=secret, base_url=f"{stack.proxy.url}/v1", max_retries=5) as client:
            asked = chat(content="[[simulate latency_ms=300]]")
            return client.chat.completions.create(**asked, extra_headers={"Idempotency-Key": "sdk"}).id

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(complete), pool.submit(complete)
        assert first.result() == second.result()
    assert len(calls) == 1


def test_a_kept_answer_is_sealed_and_goes_after_a_day(stack):
    secret = stack.control.issue_key()
    answer = _post(stack, secret, "a key nobody else may see", chat(content="the question"))
    (name,) = _entries(stack)
    value = stack.control.redis.get(name)
    said = answer.json()["choices"][0]["message"]["content"].encode()
    assert said not in value
    assert b"the question" not in value
    assert b"nobody else" not in name + value
    assert KEPT_S - 60 < stack.control.redis.ttl(name) <= KEPT_S


def test_a_kill_switch_stops_replays_too(stack):
    secret = stack.control.issue_key()
    assert _post(stack, secret, "order-1", chat()).status_code == 200
    flag = stack.control.throw("team", stack.control.team.team_id)
    wait_until(lambda: _post(stack, secret, "order-1", chat()).status_code == 403, "the kill")
    stack.control.lift(flag)
    wait_until(lambda: _post(stack, secret, "order-1", chat()).status_code == 200, "its end")


# What is not repeated, and what is


def test_a_refusal_before_any_call_is_not_kept(stack, calls):
    secret = stack.control.issue_key()
    flag = stack.control.throw("model", "model-sim-fast")
    wait_until(lambda: _post(stack, secret, "order-1", chat()).status_code == 403, "the kill")
    stack.control.lift(flag)
    wait_until(lambda: _post(stack, secret, "order-1", chat()).status_code == 200, "its end")
    assert len(calls) == 1


def test_what_a_provider_refused_without_charging_may_be_tried_again(stack, calls):
    secret, body = stack.control.issue_key(), chat(content="[[simulate error=429,retry_after_s=0]]")
    answers = [_post(stack, secret, "order-1", body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [429, 429]
    assert "x-tollgate-replayed" not in answers[1].headers
    assert len(calls) == 2
    assert _entries(stack) == []


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failure_that_may_have_been_charged_for_is_kept(stack, calls, is_stream):
    secret, body = stack.control.issue_key(), chat(content="[[simulate reset=1,after_tokens=3]]", stream=is_stream)
    first, second = (_post(stack, secret, "order-1", body) for _ in range(2))
    assert first.content == second.content
    assert b"upstream" in first.content
    assert second.headers["x-tollgate-replayed"] == "true"
    assert len(calls) == 1
    if not is_stream:
        assert first.status_code == second.status_code == 502
        assert first.headers["x-should-retry"] == second.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_is_too_large_is_not_kept_and_not_asked_for_again(make_stack, calls, is_stream):
    stack = make_stack(TOLLGATE_IDEMPOTENCY_BYTES_MAX="500")
    secret, body = stack.control.issue_key(), chat(content="[[simulate output_tokens=200]]", stream=is_stream)
    first, second = (_post(stack, secret, "order-1", body) for _ in range(2))
    assert (first.status_code, len(first.content) > 500) == (200, True)
    assert _code(second) == (410, "idempotency_answer_not_kept")
    assert second.json()["error"]["first_request_id"] == first.headers["x-request-id"]
    assert len(calls) == 1


def test_a_stream_whose_client_leaves_runs_on_and_waits_for_it(stack, calls):
    secret, body = stack.control.issue_key(), chat(content=SLOW, stream=True)
    headers = {"idempotency-key": "order-1"}
    with stack.client(secret) as client, client.stream("POST", CHAT, json=body, headers=headers) as response:
        seen = next(response.iter_raw())
    answer = _wait_for_an_answer(stack, secret, "order-1", body)
    assert answer.status_code == 200
    assert answer.content.startswith(seen)
    assert answer.text.rstrip().endswith("data: [DONE]")
    (event,) = stack.control.events()
    assert (event["usage"]["output_tokens"], event.get("error_type", "")) == (20, "")
    assert len(calls) == 1


def test_a_client_that_left_before_the_answer_comes_back_for_it(stack, calls):
    secret, body = stack.control.issue_key(), chat(content="[[simulate latency_ms=400]]")
    with stack.asking(secret, body, "idempotency-key: order-1"):
        wait_until(lambda: len(calls) == 1, "the call")
    answer = _wait_for_an_answer(stack, secret, "order-1", body)
    assert (answer.status_code, answer.headers["x-tollgate-replayed"]) == (200, "true")
    assert len(calls) == 1


def test_what_nobody_reads_and_cannot_be_kept_is_cut(make_stack, calls):
    stack = make_stack(TOLLGATE_IDEMPOTENCY_BYTES_MAX="500")
    secret, body = (
        stack.control.issue_key(),
        chat(content="[[simulate tokens_per_second=20,output_tokens=400]]", stream=True),
    )
    headers = {"idempotency-key": "order-1"}
    with stack.client(secret) as client, client.stream("POST", CHAT, json=body, headers=headers) as response:
        next(response.iter_raw())
    answer = _wait_for_an_answer(stack, secret, "order-1", body)
    assert _code(answer) == (410, "idempotency_answer_not_kept")
    (event,) = stack.control.events()
    assert event["error_type"] == "client_gone"
    assert len(calls) == 1


# When things break


def test_after_its_worker_was_killed_the_outcome_is_unknown_and_no_second_call_is_made(make_stack, calls):
    stack = make_stack(workers=2, TOLLGATE_LEASE_S="8")
    secret, body = stack.control.issue_key(), chat(content="[[simulate latency_ms=30000]]")
    with _running(stack, secret, "order-1", body):
        assert _code(_post(stack, secret, "order-1", body)) == (409, "idempotency_key_in_use")
        (holds,) = stack.control.redis.scan_iter("tg:holds:*")
        worker = holds.decode().removeprefix("tg:holds:")
        os.kill(int(worker.rsplit("-", 2)[1]), signal.SIGKILL)
    answer = _wait_for_an_answer(stack, secret, "order-1", body)
    assert _code(answer) == (409, "idempotency_outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"
    wait_until(lambda: stack.control.events() != [], "the record")
    (event,) = stack.control.events()
    assert answer.json()["error"]["first_request_id"] == event["request_id"]
    assert len(calls) == 1


def test_without_redis_there_is_no_call(stack, redis_server, calls):
    secret = stack.control.issue_key()
    assert _post(stack, secret, "order-0", chat()).status_code == 200  # The worker knows the key.
    redis_server.pause()
    try:
        assert _post(stack, secret, "order-1", chat()).status_code == 503
    finally:
        redis_server.resume()
    stack.proxy.wait_ready()
    assert _wait_for_an_answer(stack, secret, "order-1", chat()).status_code == 200
    assert len(calls) == 2


def test_an_answer_that_came_while_redis_was_away_is_kept_when_it_is_back(stack, redis_server, calls):
    secret, body = stack.control.issue_key(), chat(content="[[simulate latency_ms=600]]")
    with _running(stack, secret, "order-1", body):
        redis_server.pause()
        try:
            wait_until(lambda: stack.simulator.entries()[-1]["event"] == "ended", "the provider's answer")
        finally:
            redis_server.resume()
    answer = _wait_for_an_answer(stack, secret, "order-1", body)
    assert (answer.status_code, answer.headers["x-tollgate-replayed"]) == (200, "true")
    assert len(calls) == 1


# The header, and what counts as the same


@pytest.mark.parametrize("idempotency_key", ["", "x" * 256, "caf\u00e9".encode("latin-1")])
def test_a_key_that_is_none_is_refused(stack, calls, idempotency_key):
    answer = _post(stack, stack.control.issue_key(), idempotency_key, chat())
    assert _code(answer) == (400, "invalid_idempotency_key")
    assert len(calls) == 0


def test_only_posts_have_idempotency_keys(stack):
    secret = stack.control.issue_key()
    with stack.client(
        secret,
    ) as client:
        assert client.get("/v1/models", headers={"idempotency-key": "x" * 300}).status_code == 200
    assert _entries(stack) == []


def test_an_upload_that_is_repeated_with_another_boundary_is_the_same(stack, calls):
    secret = stack.control.issue_key()
    stack.control.add_deployment("sim-whisper", upstream_model="whisper-1", operations=("transcription",))
    stack.control.add_alias("whisper", "sim-whisper")
    stack.wait_for_version(stack.control.publish())
    with stack.client(secret) as client:
        answers = [
            client.post(
                "/v1/audio/transcriptions",
                data={"model": "whisper"},
                files={"file": ("a.wav", b"RIFF" + bytes(8_000))},
                headers={"idempotency-key": "upload"},
            )
            for _ in range(2)
        ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[1].headers["x-tollgate-replayed"] == "true"
    assert len(calls) == 1


ASKED = {"path": CHAT, "query": b"", "headers": {b"content-type": b"application/json"}, "body": b"{}"}


def _request(**changes) -> Request:
    asked = {**ASKED, **changes}
    scope = {
        "method": "POST",
        "path": asked["path"],
        "raw_path": asked["path"].encode(),
        "query_string": asked["query"],
        "headers": list(asked["headers"].items()),
    }
    request = Request(scope)
    request.body = asked["body"]
    return request


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({}, True),
        ({"headers": {**ASKED["headers"], b"user-agent": b"other", b"x-stainless-retry-count": b"1"}}, True),
        ({"headers": {**ASKED["headers"], b"x-tollgate-tags": b"a=b"}}, False),
        ({"headers": {**ASKED["headers"], b"openai-beta": b"assistants=v2"}}, False),
        ({"headers": {b"content-type": b"text/plain"}}, False),
        ({"path": "/v1/completions"}, False),
        ({"query": b"a=b"}, False),
        ({"body": b"{ }"}, False),
    ],
)
def test_the_same_request_is_the_same_in_all_that_is_acted_on(changes, is_same):
    first, second = (fingerprint(b"key", request, (b"openai-beta",)) for request in (_request(), _request(**changes)))
    assert (first == second) is is_same
