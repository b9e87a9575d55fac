"""What the provider simulator keeps between two requests: responses, files, batches."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from controlplane.simulator.store import ENTRIES_MAX, Kept, Store
from tests.controlplane.test_simulator import KEY, Simulator

WORK = {"x-simulate": "work_ms=150"}
# Nothing here waits for what takes so long.
LONG_WORK = {"x-simulate": "work_ms=3600000"}


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator") / "journal.jsonl")
    simulator.client.headers["x-api-key"] = KEY
    yield simulator
    assert simulator.stop() == 0


@pytest.fixture
def sdk(simulator: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def wait_for(find: Callable[[], Any], status: str, field: str = "status") -> Any:
    deadline = time.monotonic() + 60
    while (found := find())[field] != status:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


# Responses


def test_a_response_is_kept_and_deleted(simulator):
    asked = {"model": "sim", "input": "hello"}
    answer = simulator.client.post("/v1/responses", json=asked).json()
    path = f"/v1/responses/{answer['id']}"
    assert simulator.client.get(path).json() == answer
    assert simulator.client.post("/v1/responses", json=asked | {"previous_response_id": answer["id"]}).is_success
    assert simulator.client.delete(path).json()["deleted"]
    assert simulator.client.get(path).status_code == 404
    refused = simulator.client.post("/v1/responses", json=asked | {"previous_response_id": answer["id"]})
    assert refused.json()["error"]["code"] == "previous_response_not_found"


def test_a_response_that_is_not_to_be_stored_is_not(simulator):
    answer = simulator.client.post("/v1/responses", json={"model": "sim", "input": "hello", "store": False}).json()
    assert simulator.client.get(f"/v1/responses/{answer['id']}").status_code == 404


def test_a_response_in_the_background_is_queued_then_completed_and_billed_once(simulator):
    asked = {"model": "sim", "input": "hello", "background": True}
    name = simulator.client.post("/v1/responses", json=asked, headers=LONG_WORK).json()["id"]
    assert simulator.client.get(f"/v1/responses/{name}").json()["status"] == "queued"
    headers = WORK | {"x-client-request-id": "background"}
    queued = simulator.client.post("/v1/responses", json=asked, headers=headers).json()
    assert (queued["status"], queued["output"], queued["usage"]) == ("queued", [], None)
    done = wait_for(lambda: simulator.client.get(f"/v1/responses/{queued['id']}").json(), "completed")
    assert done["usage"]["output_tokens"] == 16
    ended = simulator.ended("background")
    assert (ended["usage"], ended["billed"]["output_tokens"]) == (None, 16)


def test_a_response_in_the_background_is_cancelled_unless_it_is_done(simulator):
    asked = {"model": "sim", "input": "hello", "background": True}
    name = simulator.client.post("/v1/responses", json=asked, headers=LONG_WORK).json()["id"]
    assert simulator.client.post(f"/v1/responses/{name}/cancel").json()["status"] == "cancelled"
    assert simulator.client.get(f"/v1/responses/{name}").json()["status"] == "cancelled"
    asked["background"] = False
    name = simulator.client.post("/v1/responses", json=asked).json()["id"]
    assert simulator.client.post(f"/v1/responses/{name}/cancel").status_code == 400


# Files


def test_a_file_is_uploaded_listed_read_and_deleted(sdk):
    content = b'{"a": 1}\r\n\r\n--not the boundary\r\n'
    file = sdk.files.create(file=("a.jsonl", content), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("a.jsonl", len(content), "batch")
    assert file.id in [item.id for item in sdk.files.list(purpose="batch")]
    assert sdk.files.content(file.id).read() == content
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)


# Batches


def line(custom_id: str, content: str) -> str:
    body = {"model": "sim-fast", "messages": [{"role": "user", "content": content}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_a_batch_answers_every_line_and_accounts_for_each(simulator, sdk):
    lines = [line("good", "hello [[simulate output_tokens=3]]"), line("bad", "[[simulate error=400]]")]
    file = sdk.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert sdk.batches.retrieve(sdk.batches.create(**asked, extra_headers=LONG_WORK).id).status == "in_progress"
    batch = sdk.batches.create(**asked, extra_headers=WORK)
    assert batch.status == "validating"
    done = wait_for(lambda: sdk.batches.retrieve(batch.id).model_dump(), "completed")
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    good = json.loads(sdk.files.content(done["output_file_id"]).read())
    assert good["custom_id"] == "good"
    assert good["response"]["body"]["usage"]["completion_tokens"] == 3
    bad = json.loads(sdk.files.content(done["error_file_id"]).read())
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 400)
    ended = [entry for entry in simulator.lines() if entry["event"] == "ended" and entry.get("batch") == batch.id]
    assert [entry["billed"]["output_tokens"] for entry in ended] == [3, 0]
    assert batch.id in [item.id for item in sdk.batches.list()]


def test_a_batch_is_cancelled_once(sdk):
    file = sdk.files.create(file=("in.jsonl", line("a", "hello").encode()), purpose="batch")
    batch = sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_headers=LONG_WORK
    )
    assert sdk.batches.cancel(batch.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        sdk.batches.cancel(batch.id)


def test_a_batch_of_nonsense_fails(sdk):
    file = sdk.files.create(file=("in.jsonl", b"nonsense"), purpose="batch")
    headers = {"x-simulate": "work_ms=0"}
    batch = sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_headers=headers
    )
    assert sdk.batches.retrieve(batch.id).status == "failed"


def test_a_batch_of_a_file_that_is_not_there_is_refused(sdk):
    with pytest.raises(openai.BadRequestError):
        sdk.batches.create(input_file_id="file-x", endpoint="/v1/chat/completions", completion_window="24h")


def test_azures_batches_are_answered_too(simulator):
    url, headers = f"{simulator.url}/azure/openai/v1", {"api-key": KEY}
    with openai.OpenAI(base_url=url, api_key="unused", default_headers=headers) as client:
        file = client.files.create(file=("in.jsonl", line("a", "hello").encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_headers=WORK
        )
        done = wait_for(lambda: client.batches.retrieve(batch.id).model_dump(), "completed")
    assert done["request_counts"]["completed"] == 1


def test_a_batch_of_messages_answers_every_line_and_accounts_for_each(simulator):
    def params(content: str) -> dict[str, Any]:
        return {"model": "sim", "max_tokens": 3, "messages": [{"role": "user", "content": content}]}

    requests = [{"custom_id": "good", "params": params("hello")}, {"custom_id": "bad", "params": {}}]
    path = "/anthropic/v1/messages/batches"
    batch = simulator.client.post(path, json={"requests": requests}, headers=LONG_WORK).json()
    assert simulator.client.get(f"{path}/{batch['id']}").json()["processing_status"] == "in_progress"
    assert simulator.client.get(f"{path}/{batch['id']}/results").status_code == 404
    batch = simulator.client.post(path, json={"requests": requests}, headers=WORK).json()
    assert batch["processing_status"] == "in_progress"
    done = wait_for(lambda: simulator.client.get(f"{path}/{batch['id']}").json(), "ended", "processing_status")
    assert done["request_counts"] == {"processing": 0, "succeeded": 1, "errored": 1, "canceled": 0, "expired": 0}
    results = [json.loads(text) for text in simulator.client.get(done["results_url"]).text.splitlines()]
    assert [result["result"]["type"] for result in results] == ["succeeded", "errored"]
    assert results[0]["result"]["message"]["usage"]["output_tokens"] == 3
    ended = [entry for entry in simulator.lines() if entry["event"] == "ended" and entry.get("batch") == batch["id"]]
    assert [entry["billed"]["output_tokens"] for entry in ended] == [3, 0]
    assert batch["id"] in [item["id"] for item in simulator.client.get(path).json()["data"]]


def test_a_batch_of_messages_is_cancelled(simulator):
    message = {"role": "user", "content": "hello"}
    requests = [{"custom_id": "a", "params": {"model": "sim", "max_tokens": 3, "messages": [message]}}]
    path = "/anthropic/v1/messages/batches"
    name = simulator.client.post(path, json={"requests": requests}, headers=LONG_WORK).json()["id"]
    cancelled = simulator.client.post(f"{path}/{name}/cancel").json()
    assert (cancelled["processing_status"], cancelled["request_counts"]["canceled"]) == ("ended", 1)
    assert json.loads(simulator.client.get(cancelled["results_url"]).text)["result"] == {"type": "canceled"}


# The bound


def test_the_oldest_goes_when_there_is_too_much():
    store = Store()
    for number in range(ENTRIES_MAX + 1):
        store.keep(str(number), Kept("file", {}))
    assert store.find("file", "0") is None
    assert store.find("file", "1") is not None
    assert store.find("batch", "1") is None
    store.keep("big", Kept("file", {}, bytes(1)))
    store.keep("huge", Kept("file", {}, bytes(256 << 20)))
    assert store.find("file", "big") is None
    assert [kept.content[:1] for kept in store.all("file")] == [b"\0"]
