"""What outlives its request, as an application meets it: files, batches, stored and background responses, and what they cost.

The ledger's part is played by the test: a job is settled only once the ledger has its row, and here nobody ingests.
"""

import json
import os
import signal
import time

import httpx
import openai
import pytest

from budgets import gate
from budgets.pricing import batch_price
from proxy.snapshot import Budget, Project, Provider
from tests.stack import PRICE, Stack, wait_until

BUDGET = Budget(budget_id="b1", name="Research monthly", window="month", amount=10**12)
BATCH_PRICE = PRICE.__class__(**{**{f: getattr(PRICE, f) for f in PRICE.__struct_fields__}, "batch_percent": 50})
OTHER_PROJECT = "00000000-0000-7000-8000-000000000099"


@pytest.fixture
def stack(make_stack) -> Stack:
    """A stack with OpenAI and Anthropic, at half the price in a batch, under a budget that counts."""
    stack = make_stack()
    control = stack.control
    control.providers["claude"] = Provider(
        slug="claude", api="anthropic", base_url=f"{stack.simulator.url}/anthropic/v1"
    )
    control.add_deployment("sim-fast", price=BATCH_PRICE, context_window=2_000)
    control.add_deployment("sim-claude", provider="claude", price=BATCH_PRICE, context_window=2_000)
    control.add_alias("claude", "sim-claude")
    stack.wait_for_version(control.publish(budgets=(BUDGET,)))
    yield stack
    httpx.delete(f"{stack.simulator.url}/_control")


def takes(stack: Stack, work_ms: int) -> None:
    """How long a batch, or a response in the background, takes from now on."""
    httpx.post(f"{stack.simulator.url}/_control", json={"work_ms": work_ms}).raise_for_status()


def ingest(stack: Stack) -> None:
    """As if the ledger had all that was settled."""
    applied = stack.control.redis.hgetall(gate.APPLIED)
    if applied:
        stack.control.redis.hset(gate.INGESTED, mapping=applied)


def line(number: int, model: str = "demo", content: str = "one two three", **body) -> dict:
    asked = {"model": model, "messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": asked}


def upload(client: httpx.Client, lines: list[dict], purpose: str = "batch") -> httpx.Response:
    content = b"\n".join(json.dumps(one).encode() for one in lines)
    return client.post("/v1/files", data={"purpose": purpose}, files={"file": ("lines.jsonl", content)})


def make_batch(client: httpx.Client, file_id: str) -> httpx.Response:
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.post("/v1/batches", json=body)


def last_event(stack: Stack, attempt_id: str) -> dict:
    return [event for event in stack.control.events() if event["attempt_id"] == attempt_id][-1]


def job_event(stack: Stack) -> dict:
    """Of the one attempt that went into suspense, as it went."""
    (event,) = [event for event in stack.control.events() if event.get("state") == "suspense"]
    return event


def wait_for_end(stack: Stack, attempt_id: str) -> dict:
    ingest(stack)
    wait_until(lambda: last_event(stack, attempt_id).get("state", "posted") == "posted", "the end of the job")
    return last_event(stack, attempt_id)


def billed(stack: Stack, batch_id: str) -> list[dict]:
    """What the provider's own books say of a batch, request by request."""
    lines = [entry for entry in stack.simulator.entries() if entry["event"] == "ended"]
    return [entry["billed"] for entry in lines if entry.get("batch") == batch_id]


def expected_nanos(bills: list[dict]) -> int:
    price = batch_price(BATCH_PRICE)
    inputs = sum(bill["input_tokens"] for bill in bills) * price.input_nanos
    return -(-(inputs + sum(bill["output_tokens"] for bill in bills) * price.output_nanos) // 10**6)


# Batches


def test_a_batch_is_held_when_made_and_billed_at_batch_price_when_it_ends(stack):
    takes(stack, 1500)
    with stack.client(stack.control.issue_key()) as client:
        file = upload(client, [line(1), line(2, content="one"), line(3, content="[[simulate error=500]]")])
        assert file.status_code == 200, file.text
        batch = make_batch(client, file.json()["id"])
        assert batch.status_code == 200, batch.text
        batch_id = batch.json()["id"]
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
        held = job_event(stack)
        assert (held["upstream_id"], held["operation"]) == (batch_id, "batch")
        assert stack.control.holds() == 0
        # Three inputs of their bytes, three outputs of 256 tokens that were put in as a cap, at half the price.
        assert held["cost_nanos"] == stack.control.spent_nanos("b1") > 3 * 256 * 1000
        ended = wait_for_end(stack, held["attempt_id"])
        shown = client.get(f"/v1/batches/{batch_id}").json()
        assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 2)
        output = client.get(f"/v1/files/{shown['output_file_id']}/content")
        assert {json.loads(text)["custom_id"] for text in output.text.splitlines()} == {"n1", "n2"}
        assert client.get(f"/v1/files/{shown['error_file_id']}/content").status_code == 200
    bills = billed(stack, batch_id)
    assert len(bills) == 3
    assert ended["cost_nanos"] == expected_nanos(bills) == stack.control.spent_nanos("b1")
    assert ended["usage"]["output_tokens"] == sum(bill["output_tokens"] for bill in bills)
    assert ended["usage_source"] == "provider"
    assert not stack.control.redis.exists(gate.JOBS, gate.SUSPENSE)


def test_a_batch_file_names_the_alias_and_the_provider_gets_its_own_name_and_a_cap(stack):
    with stack.client(stack.control.issue_key()) as client:
        lines = [line(1, temperature=0.5), line(2, max_completion_tokens=7)]
        file_id = upload(client, lines).json()["id"]
        sent = [json.loads(text) for text in client.get(f"/v1/files/{file_id}/content").text.splitlines()]
    assert [one["custom_id"] for one in sent] == ["n1", "n2"]
    assert [one["body"]["model"] for one in sent] == ["sim-fast", "sim-fast"]
    assert [one["body"]["max_completion_tokens"] for one in sent] == [256, 7]
    assert sent[0]["body"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"url": "/v1/other"}, "line 2"),
        ({"body": {"messages": []}}, "line 2"),
        ({"body": {"model": "claude", "messages": [{"role": "user", "content": "x"}]}}, "line 2"),
        ({"body": {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": True}}, "line 2"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(stack, wrong, told):
    with stack.client(stack.control.issue_key()) as client:
        response = upload(client, [line(1), {**line(2), **wrong}])
    assert response.status_code == 400, response.text
    assert told in response.json()["error"]["message"]


def test_a_budget_too_small_for_all_its_lines_refuses_a_batch(stack):
    small = Budget(budget_id="b1", name="small", window="month", amount=500_000)
    stack.wait_for_version(stack.control.publish(budgets=(small,)))
    with stack.client(stack.control.issue_key()) as client:
        file_id = upload(client, [line(number) for number in range(3)]).json()["id"]
        response = make_batch(client, file_id)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "budget_exceeded")
    assert not stack.control.redis.exists(gate.JOBS)


def test_a_kill_switch_stops_a_batch_from_being_made(stack):
    with stack.client(stack.control.issue_key()) as client:
        file_id = upload(client, [line(1)]).json()["id"]
        flag = stack.control.throw("model", "model-sim-fast")
        response = make_batch(client, file_id)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "traffic_halted")
        stack.control.lift(flag)
        wait_until(lambda: make_batch(client, file_id).status_code == 200, "the lift")


def test_another_project_sees_none_of_it(stack):
    stack.control.project, own = (
        Project(project_id=OTHER_PROJECT, team_id=stack.control.team.team_id, name="Other"),
        stack.control.project,
    )
    other_key = stack.control.issue_key()
    stack.control.project = own
    _publish_both(stack)
    with stack.client(stack.control.issue_key()) as client, stack.client(other_key) as other:
        file_id = upload(client, [line(1)]).json()["id"]
        batch_id = make_batch(client, file_id).json()["id"]
        answered = client.post("/v1/responses", json={"model": "demo", "input": "hello"}).json()["id"]
        for path in (
            f"/v1/files/{file_id}",
            f"/v1/files/{file_id}/content",
            f"/v1/batches/{batch_id}",
            f"/v1/responses/{answered}",
        ):
            assert client.get(path).status_code == 200, path
            assert other.get(path).status_code == 404, path
        assert other.delete(f"/v1/files/{file_id}").status_code == 404
        assert other.post(f"/v1/batches/{batch_id}/cancel").status_code == 404
        assert make_batch(other, file_id).status_code == 404
        follow_up = {"model": "demo", "input": "and?", "previous_response_id": answered}
        assert client.post("/v1/responses", json=follow_up).status_code == 200
        refused = other.post("/v1/responses", json=follow_up)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
        asked = [{"type": "text", "text": "What is in it?"}, {"type": "file", "file": {"file_id": file_id}}]
        about = {"model": "demo", "messages": [{"role": "user", "content": asked}], "max_tokens": 5}
        assert client.post("/v1/chat/completions", json=about).status_code == 200
        assert other.post("/v1/chat/completions", json=about).status_code == 404
        for path, upstream_id in (("/v1/files", file_id), ("/v1/batches", batch_id)):
            assert [one["id"] for one in client.get(path).json()["data"]] == [upstream_id]
            assert other.get(path).json()["data"] == []


def _publish_both(stack: Stack) -> None:
    """The snapshot with a second project, which the stack alone does not write."""
    stack.control.publish()
    snapshot = json.loads(stack.control.redis.get(gate.SNAPSHOT))
    project = {"project_id": OTHER_PROJECT, "team_id": stack.control.team.team_id, "name": "Other"}
    snapshot["projects"][OTHER_PROJECT] = project
    stack.control.version += 1
    snapshot["version"] = stack.control.version
    stack.control.publish_raw(json.dumps(snapshot).encode())
    stack.wait_for_version(stack.control.version)


def test_a_cancelled_batch_is_settled_at_what_it_has_used(stack):
    takes(stack, 60_000)
    with stack.client(stack.control.issue_key()) as client:
        batch_id = make_batch(client, upload(client, [line(1)]).json()["id"]).json()["id"]
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
        held = job_event(stack)
        assert client.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelled"
    ended = wait_for_end(stack, held["attempt_id"])
    assert (ended.get("cost_nanos", 0), ended["finish_reason"]) == (0, "cancelled")
    assert stack.control.spent_nanos("b1") == 0


def test_a_batch_outlives_the_worker_that_made_it(stack):
    takes(stack, 3000)
    with stack.client(stack.control.issue_key()) as client:
        batch_id = make_batch(client, upload(client, [line(1)]).json()["id"]).json()["id"]
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
        held = job_event(stack)
        (worker,) = stack.proxy.workers()
        os.kill(worker, signal.SIGKILL)
        ended = wait_for_end(stack, held["attempt_id"])
    assert ended["cost_nanos"] == expected_nanos(billed(stack, batch_id)) == stack.control.spent_nanos("b1")
    assert [event["attempt_id"] for event in stack.control.events()].count(held["attempt_id"]) == 2


def test_a_job_is_not_settled_before_the_ledger_has_it(stack):
    takes(stack, 0)
    with stack.client(stack.control.issue_key()) as client:
        make_batch(client, upload(client, [line(1)]).json()["id"])
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
    held = job_event(stack)
    time.sleep(2.5)
    assert last_event(stack, held["attempt_id"])["state"] == "suspense"
    assert wait_for_end(stack, held["attempt_id"])["usage"]["output_tokens"] > 0


def test_a_job_that_the_provider_no_longer_knows_stays_in_suspense(stack):
    takes(stack, 60_000)
    with stack.client(stack.control.issue_key()) as client:
        response = client.post("/v1/responses", json={"model": "demo", "input": "hello", "background": True})
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
        held = job_event(stack)
        assert client.delete(f"/v1/responses/{response.json()['id']}").status_code == 200
        ingest(stack)
        wait_until(lambda: not stack.control.redis.exists(gate.JOBS), "the end of the search")
        assert "tollgate_jobs_lost_total" in client.get("/metrics").text
    assert stack.control.spent_nanos("b1") == held["cost_nanos"]
    assert stack.control.redis.hexists(gate.SUSPENSE, held["attempt_id"])


def test_the_official_client_makes_finds_and_cancels_what_is_its_own(stack):
    takes(stack, 60_000)
    secret = stack.control.issue_key()
    with openai.OpenAI(api_key=secret, base_url=f"{stack.proxy.url}/v1", max_retries=0) as client:
        content = b"\n".join(json.dumps(line(number)).encode() for number in range(3))
        file = client.files.create(file=("lines.jsonl", content), purpose="batch")
        made = {
            client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
            for _ in range(3)
        }
        assert {batch.id for batch in client.batches.list()} == made
        assert [stored.id for stored in client.files.list(purpose="batch")] == [file.id]
        for batch_id in made:
            assert client.batches.cancel(batch_id).status == "cancelled"
            assert client.batches.retrieve(batch_id).id == batch_id
        response = client.responses.create(model="demo", input="hello", background=True)
        assert client.responses.retrieve(response.id).status == "queued"
        assert client.responses.cancel(response.id).status == "cancelled"
        assert len(client.files.content(file.id).read().splitlines()) == 3
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)


# Responses


def test_a_response_in_the_background_is_metered_when_it_ends(stack):
    takes(stack, 1500)
    with stack.client(stack.control.issue_key()) as client:
        asked = {"model": "demo", "input": "one two three", "background": True}
        response = client.post("/v1/responses", json=asked)
        assert (response.status_code, response.json()["status"]) == (200, "queued")
        assert "x-tollgate-cost-usd" not in response.headers
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
        held = job_event(stack)
        assert held["upstream_id"] == response.json()["id"]
        ended = wait_for_end(stack, held["attempt_id"])
        shown = client.get(f"/v1/responses/{response.json()['id']}").json()
    usage = shown["usage"]
    assert shown["status"] == ended["finish_reason"] == "completed"
    assert ended["cost_nanos"] == usage["input_tokens"] * 1000 + usage["output_tokens"] * 2000
    assert stack.control.spent_nanos("b1") == ended["cost_nanos"]


def test_a_background_stream_that_its_client_leaves_is_metered_when_it_ends(stack):
    takes(stack, 500)
    said = "[[simulate tokens_per_second=20,output_tokens=30,runs_on=1]]"
    asked = {"model": "demo", "input": said, "background": True, "stream": True}
    with (
        stack.client(stack.control.issue_key()) as client,
        client.stream("POST", "/v1/responses", json=asked) as response,
    ):
        next(response.iter_lines())
    wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
    held = job_event(stack)
    assert held["upstream_id"].startswith("resp_")
    assert held["cost_nanos"] == stack.control.spent_nanos("b1")


def test_a_stored_response_is_read_and_deleted(stack):
    with stack.client(stack.control.issue_key()) as client:
        answered = client.post("/v1/responses", json={"model": "demo", "input": "hello"}).json()["id"]
        path = f"/v1/responses/{answered}"
        assert client.get(path).json()["id"] == answered
        assert client.get(f"{path}/input_items").json()["object"] == "list"
        assert client.delete(path).json()["deleted"]
        assert client.get(path).status_code == 404
        kept = client.post("/v1/responses", json={"model": "demo", "input": "hello", "store": False}).json()["id"]
        assert client.get(f"/v1/responses/{kept}").status_code == 404


# Files


def test_a_file_for_no_model_goes_to_the_model_that_a_header_names(stack):
    with stack.client(stack.control.issue_key()) as client:
        file = client.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("a.txt", b"hello")})
        assert file.status_code == 200, file.text
        assert client.get(f"/v1/files/{file.json()['id']}/content").text == "hello"
        refused = client.post(
            "/v1/files",
            data={"purpose": "user_data"},
            files={"file": ("a.txt", b"hello")},
            headers={"x-tollgate-model": "claude"},
        )
        assert refused.status_code == 400
        assert client.delete(f"/v1/files/{file.json()['id']}").json()["deleted"]
        assert client.get(f"/v1/files/{file.json()['id']}").status_code == 404


def test_what_costs_nothing_needs_no_tags_and_a_batch_has_them_in_its_metadata(stack):
    stack.wait_for_version(stack.control.publish(project={"required_tags": ("feature",)}))
    with stack.client(stack.control.issue_key()) as client:
        file_id = upload(client, [line(1)]).json()["id"]
        assert client.get(f"/v1/files/{file_id}").status_code == 200
        refused = make_batch(client, file_id)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "missing_tags")
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json={**body, "metadata": {"feature": "search"}})
        assert batch.status_code == 200, batch.text
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
        assert job_event(stack)["tags"] == {"feature": "search"}


# Anthropic


def test_a_batch_of_messages_is_billed_by_the_lines_of_its_results(stack):
    takes(stack, 1000)
    headers = {"anthropic-version": "2023-06-01"}
    asked = [
        {
            "custom_id": f"n{number}",
            "params": {"model": "claude", "max_tokens": 20, "messages": [{"role": "user", "content": "one two"}]},
        }
        for number in range(2)
    ]
    with stack.client(stack.control.issue_key()) as client:
        client.headers.update(headers)
        batch = client.post("/v1/messages/batches", json={"requests": asked})
        assert batch.status_code == 200, batch.text
        batch_id = batch.json()["id"]
        wait_until(lambda: bool(stack.control.redis.hlen(gate.SUSPENSE)), "the job")
        ended = wait_for_end(stack, job_event(stack)["attempt_id"])
        results = client.get(f"/v1/messages/batches/{batch_id}/results")
        assert len(results.text.splitlines()) == 2
        assert [one["id"] for one in client.get("/v1/messages/batches").json()["data"]] == [batch_id]
        assert client.delete(f"/v1/messages/batches/{batch_id}").json()["type"] == "message_batch_deleted"
        assert client.get(f"/v1/messages/batches/{batch_id}").json()["error"]["type"] == "not_found_error"
    bills = billed(stack, batch_id)
    assert len(bills) == 2
    assert ended["cost_nanos"] == expected_nanos(bills) == stack.control.spent_nanos("b1")
