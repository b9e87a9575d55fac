"""The provider simulator, as a process of its own, over real sockets."""

import base64
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

ROOT = Path(__file__).parents[2]
KEY = "sk-a-key-that-must-not-show"
TIMEOUT_S = 60.0


class Simulator:
    def __init__(self, journal: Path, *options: str) -> None:
        self.journal = journal
        argv = [sys.executable, "-m", "controlplane.simulator", "--port", "0", "--journal", str(journal), *options]
        self.process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        assert line[:2] == ["listening", "on"], self.process.communicate(timeout=TIMEOUT_S)
        self.url = line[2]
        self.port = int(self.url.rpartition(":")[2])
        self.client = httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=TIMEOUT_S, trust_env=False
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Also where it has ended already."""
        self.client.close()
        self.process.send_signal(number)
        with self.process:
            return self.process.wait(TIMEOUT_S)

    def ask(self, directives: str = "", *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=chat(directives, **fields), headers=headers)

    def events(self, directives: str = "", **fields: Any) -> list[Any]:
        """The data of the events of a stream; JSON where it is JSON."""
        body = self.ask(directives, stream=True, **fields).text
        data = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
        return [json.loads(item) if item.startswith("{") else item for item in data]

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = self.client.get("/_journal/summary").json()
        return summary

    def lines(self, attempt_id: str = "") -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [entry for entry in entries if not attempt_id or entry.get("attempt_id") == attempt_id]

    def ended(self, attempt_id: str) -> dict[str, Any]:
        """The last line of an attempt, once it is there."""
        wait_until(lambda: any(line["event"] == "ended" for line in self.lines(attempt_id)))
        (line,) = [line for line in self.lines(attempt_id) if line["event"] == "ended"]
        return line


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator") / "journal.jsonl")
    yield simulator
    assert simulator.stop() == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Simulator]]:
    """Starts a simulator for this test alone."""
    started: list[Simulator] = []

    def start(*options: str) -> Simulator:
        started.append(Simulator(tmp_path / "journal.jsonl", *options))
        return started[-1]

    yield start
    for simulator in started:
        simulator.stop(signal.SIGKILL)


def chat(directives: str = "", **fields: Any) -> dict[str, Any]:
    content = f"What is it [[simulate {directives}]]" if directives else "What is it"
    return {"model": "sim-fast", "messages": [{"role": "user", "content": content}]} | fields


def wait_until(is_so: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send_raw(simulator: Simulator, body: dict[str, Any], *headers: str) -> socket.socket:
    """A request on a bare socket."""
    content = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: test", f"authorization: Bearer {KEY}", *headers]
    head = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode()
    connection = socket.create_connection(("127.0.0.1", simulator.port), TIMEOUT_S)
    connection.sendall(head + content)
    return connection


def read_all(connection: socket.socket, silence_s: float = TIMEOUT_S) -> tuple[bytes, str]:
    """Whatever comes, and how it ends: closed, reset or silent."""
    connection.settimeout(silence_s)
    received = bytearray()
    with connection:
        try:
            while part := connection.recv(1 << 16):
                received += part
        except ConnectionResetError:
            return bytes(received), "reset"
        except TimeoutError:
            return bytes(received), "silent"
    return bytes(received), "closed"


def chunks(body: bytes) -> tuple[list[bytes], bytes]:
    """The chunks of a body, each as it was written, and what is left where they end or are none."""
    found = []
    while (size := re.match(rb"([0-9a-f]+)\r\n", body)) and size[1] != b"0":
        end = size.end() + int(size[1], 16)
        found.append(body[size.end() : end])
        body = body[end + 2 :]
    return found, body


def unchunk(body: bytes) -> tuple[bytes, bytes]:
    """What stands in the chunks of a body, and what is left where they end or are none."""
    found, left = chunks(body)
    return b"".join(found), left


def visible_text(events: list[Any]) -> str:
    chunks = [event for event in events if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# Answers


def test_a_whole_answer_counts_a_token_for_every_word(simulator):
    answer = simulator.ask(messages=[{"role": "user", "content": "one two three"}]).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "sim-fast"
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == len(choice["message"]["content"].split()) == 16
    assert usage["total_tokens"] == 19


def test_a_stream_says_the_same_a_token_in_each_chunk(simulator):
    whole = simulator.ask().json()["choices"][0]["message"]["content"]
    events = simulator.events()
    assert visible_text(events) == whole
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(event["object"] == "chat.completion.chunk" for event in events[:-1])
    assert len({event["id"] for event in events[:-1]}) == 1
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1] == "[DONE]"
    assert len(events) == 1 + 16 + 2


def test_the_usage_chunk_comes_only_when_it_is_asked_for(simulator):
    assert not any("usage" in event for event in simulator.events())
    *events, usage, _ = simulator.events(stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_output_cap_is_kept_and_told(simulator, name):
    answer = simulator.ask(**{name: 5}).json()
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    events = simulator.events(**{name: 5})
    assert len(visible_text(events).split()) == 5
    assert events[-2]["choices"][0]["finish_reason"] == "length"


def test_reasoning_counts_as_output_and_within_the_cap_but_is_not_shown(simulator):
    usage = simulator.ask("reasoning_tokens=10,output_tokens=4").json()["usage"]
    assert usage["completion_tokens"] == 14
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 10
    events = simulator.events("reasoning_tokens=10,output_tokens=4", max_tokens=12)
    assert len(visible_text(events).split()) == 2


def test_every_choice_is_generated_and_counted(simulator):
    answer = simulator.ask(n=3).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 48
    events = simulator.events(n=2)
    assert {choice["index"] for event in events[:-1] for choice in event["choices"]} == {0, 1}
    assert len(visible_text(events).split()) == 31  # The two first words stand together.


def test_cached_tokens_are_a_part_of_the_input(simulator):
    assert simulator.ask("cached_tokens=2").json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    answer = simulator.ask("cached_tokens=1000").json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == answer["usage"]["prompt_tokens"]


def test_parts_of_a_message_and_all_messages_are_counted(simulator):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a b c"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None},
    ]
    assert simulator.ask(messages=messages).json()["usage"]["prompt_tokens"] == 5


@pytest.fixture
def sdk(simulator):
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


TOOLS: list[Any] = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def test_the_official_client_understands_answers_streams_and_lists(sdk):
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    answer = sdk.chat.completions.create(model="sim-fast", messages=messages)
    assert answer.usage.total_tokens == 17
    with sdk.chat.completions.create(
        model="sim-fast", messages=messages, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].usage.completion_tokens == 16
    assert "sim-fast" in [model.id for model in sdk.models.list()]


def test_a_tool_call_is_the_same_whole_and_in_a_stream(sdk):
    asked: Any = {"model": "sim?tool_call", "messages": [{"role": "user", "content": "hello"}], "tools": TOOLS}
    answer = sdk.chat.completions.create(**asked)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "look_up"
    assert len(json.loads(call.function.arguments)["words"].split()) == 16
    with sdk.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    assert final.choices[0].message.tool_calls[0].function.name == "look_up"


def test_a_tool_call_without_tools_is_refused(simulator):
    assert simulator.ask("tool_call").json()["error"]["code"] == "bad_directive"


def test_vectors_are_the_same_as_floats_and_as_base64(simulator):
    def embed(**fields):
        return simulator.client.post("/v1/embeddings", json={"model": "sim-embedding", **fields}).json()

    answer = embed(input=["first text", "second"])
    first, second = (item["embedding"] for item in answer["data"])
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert len(first) == 256
    assert first != second
    assert sum(value * value for value in first) == pytest.approx(1)
    assert embed(input="first text")["data"][0]["embedding"] == first
    (item,) = embed(input="first text", encoding_format="base64", dimensions=8)["data"]
    (floats,) = embed(input="first text", encoding_format="float", dimensions=8)["data"]
    assert struct.unpack("<8f", base64.b64decode(item["embedding"])) == pytest.approx(floats["embedding"])
    assert embed(input=[1, 2, 3])["usage"]["prompt_tokens"] == 3
    assert len(embed(input=[[1, 2], [3]])["data"]) == 2


# Refusals


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v2/nothing", b"{}", 404),
        ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/v1/chat/completions", b"nonsense", 400),
        ("POST", "/v1/chat/completions", b'{"model": "sim-fast", "messages": []}', 400),
        ("POST", "/v1/chat/completions", b'{"model": "sim-fast", "messages": [{"role": "user"}], "n": 0}', 400),
        ("POST", "/v1/chat/completions", b'{"model": "\xff", "messages": [{"role": "user"}]}', 400),
        ("POST", "/v1/chat/completions", b'{"model": ' + b"[" * 100_000, 400),
        ("POST", "/v1/embeddings", b'{"model": "sim-embedding"}', 400),
        ("POST", "/v1/embeddings", b'{"model": "sim-embedding", "input": "a", "encoding_format": "hex"}', 400),
    ],
)
def test_what_is_no_good_request_is_refused_as_openai_does(simulator, method, path, content, status):
    response = simulator.client.request(method, path, content=content)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_request_without_a_key_is_refused(simulator):
    response = httpx.post(f"{simulator.url}/v1/chat/completions", json=chat(), trust_env=False)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "directives", ["eror=500", "error=200", "error=x", "latency_ms=-1", "latency_ms=nan", "stall=x"]
)
def test_a_directive_that_would_do_nothing_is_refused(simulator, directives):
    response = simulator.ask(directives)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_directive"


# Directives


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 502, 503, 529])
def test_an_error_is_answered_in_openais_shape_and_costs_nothing(simulator, status):
    response = simulator.ask(f"error={status}", headers={"x-client-request-id": f"error {status}"})
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert ("retry-after" in response.headers) == (status in (429, 503, 529))
    line = simulator.ended(f"error {status}")
    assert (line["end"], line["fault"], line["billed"]["input_tokens"]) == ("refused", "error", 0)


def test_the_nearest_directive_wins(simulator):
    def tokens(model="sim-fast", message="", header=""):
        response = simulator.ask(message, model=model, headers={"x-simulate": header})
        return response.json()["usage"]["completion_tokens"]

    simulator.client.post("/_control", json={"output_tokens": 2})
    try:
        assert tokens() == 2
        assert tokens(model="sim?output_tokens=3") == 3
        assert tokens(model="sim?output_tokens=3", message="output_tokens=4") == 4
        assert tokens(model="sim?output_tokens=3", message="output_tokens=4", header="output_tokens=5") == 5
    finally:
        simulator.client.delete("/_control")
    assert tokens() == 16


def test_a_directive_may_stand_in_any_message(simulator):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "[[simulate output_tokens=3]]"}]},
    ]
    assert simulator.ask(messages=messages).json()["usage"]["completion_tokens"] == 3


def test_settings_change_as_a_whole_or_not_at_all(simulator):
    before = simulator.client.get("/_control").json()
    response = simulator.client.post("/_control", json={"output_tokens": 2, "latency_ms": -1})
    assert response.status_code == 400
    assert simulator.client.get("/_control").json() == before
    try:
        assert simulator.client.post("/_control", json={"stall": True}).json()["fault"] == "stall"
        assert simulator.client.post("/_control", json={"fault": None}).json() == before
    finally:
        simulator.client.delete("/_control")
    assert simulator.client.put("/_control", json={}).status_code == 405


def test_a_model_answers_under_its_name_without_the_directives(simulator):
    assert simulator.ask(model="gpt-x?output_tokens=1").json()["model"] == "gpt-x"


def test_the_same_requests_fail_again_with_the_same_seed(start):
    def statuses(*options):
        simulator = start("--simulate", "error=529,error_rate=0.3", *options)
        return [simulator.ask().status_code for _ in range(60)]

    first, second, other = statuses("--seed", "7"), statuses("--seed", "7"), statuses("--seed", "8")
    assert first == second != other
    assert 5 < first.count(529) < 35


def test_an_error_rate_alone_is_of_errors_500(start):
    simulator = start("--error-rate", "1")
    assert simulator.ask().status_code == 500
    assert simulator.ask("error_rate=0").status_code == 200


def test_the_key_is_quoted_back_only_when_asked_for(simulator):
    assert KEY not in simulator.ask("error=401").text
    assert KEY in simulator.ask("error=401,echo_key").text


def test_latency_and_pace_are_kept(simulator):
    began = time.monotonic()
    body = chat("latency_ms=100,first_token_ms=400,tokens_per_second=20,output_tokens=11", stream=True)
    with simulator.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert time.monotonic() - began >= 0.1
        parts = response.iter_raw()
        next(parts)
        assert time.monotonic() - began >= 0.5
        list(parts)
    assert time.monotonic() - began >= 1
    began = time.monotonic()
    simulator.ask("tokens_per_second=20,output_tokens=11")
    assert time.monotonic() - began >= 0.5


def test_what_is_late_holds_up_nothing_before_it(simulator):
    for directives, parts in (("first_token_ms=600000", 0), ("tokens_per_second=0.01,output_tokens=2", 1)):
        body = chat(directives, stream=True)
        with simulator.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            seen = response.iter_raw()
            assert all(next(seen) for _ in range(parts))


# The journal


def test_the_journal_tells_what_the_client_was_told(simulator):
    answer = simulator.ask(headers={"x-client-request-id": "whole"}).json()
    received, ended = simulator.lines("whole")
    assert received["event"] == "received"
    assert (received["path"], received["model"], received["stream"]) == ("/v1/chat/completions", "sim-fast", False)
    assert received["input_tokens"] == 3
    assert received["call"] == ended["call"] == answer["id"].removeprefix("chatcmpl-")
    assert (ended["end"], ended["status"], ended["tokens_sent"]) == ("completed", 200, 16)
    assert ended["usage"] == answer["usage"]
    assert ended["billed"] == {"input_tokens": 3, "cached_tokens": 0, "output_tokens": 16}


def test_lying_usage_is_journaled_beside_the_truth(simulator):
    simulator.ask("usage_factor=10", headers={"x-client-request-id": "liar"})
    ended = simulator.ended("liar")
    assert ended["usage"]["completion_tokens"] == 160
    assert ended["billed"]["output_tokens"] == 16


def test_usage_that_is_kept_back_is_billed_all_the_same(simulator):
    answer = simulator.ask("no_usage", headers={"x-client-request-id": "silent"})
    assert "usage" not in answer.json()
    ended = simulator.ended("silent")
    assert ended["usage"] is None
    assert ended["billed"]["output_tokens"] == 16
    events = simulator.events("no_usage,no_done", stream_options={"include_usage": True})
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("runs_on", [False, True])
def test_a_client_that_leaves_is_noticed_and_billed_in_both_styles(simulator, runs_on):
    attempt_id = f"leaves {runs_on}"
    directives = f"tokens_per_second=100,output_tokens=1000,runs_on={int(runs_on)}"
    connection = send_raw(simulator, chat(directives, stream=True), f"x-client-request-id: {attempt_id}")
    wait_until(lambda: sum(line["event"] == "progress" for line in simulator.lines(attempt_id)) > 5)
    connection.close()
    ended = simulator.ended(attempt_id)
    assert ended["end"] == "client_gone"
    assert 5 < ended["tokens_sent"] < 1000
    assert ended["billed"]["output_tokens"] == (1000 if runs_on else ended["tokens_sent"])
    assert ended["usage"] is None


def test_a_client_that_does_not_wait_for_a_whole_answer_is_billed_what_was_generated(simulator):
    connection = send_raw(simulator, chat("tokens_per_second=100,output_tokens=1000"), "x-client-request-id: impatient")
    wait_until(
        lambda: simulator.lines("impatient") != [] and simulator.lines("impatient")[-1].get("output_tokens", 0) > 10
    )
    connection.close()
    ended = simulator.ended("impatient")
    assert (ended["end"], ended["status"], ended["tokens_sent"]) == ("client_gone", 0, 0)
    assert 10 < ended["billed"]["output_tokens"] < 1000


def test_kill_9_loses_nothing_that_a_client_has_seen(start):
    simulator = start()
    simulator.ask(headers={"x-client-request-id": "before"})
    body = chat("tokens_per_second=200,output_tokens=1000", stream=True)
    connection = send_raw(simulator, body, "x-client-request-id: during")
    seen = b""
    while seen.count(b"data: ") < 20:
        seen += connection.recv(1 << 16)
    simulator.process.kill()
    while part := connection.recv(1 << 16):
        seen += part
    connection.close()
    assert simulator.lines("before")[-1]["end"] == "completed"
    journaled = max(line["tokens_sent"] for line in simulator.lines("during") if line["event"] == "progress")
    assert journaled >= seen.count(b"data: ") - 1  # Without the first, which has no token.


def test_a_stop_ends_what_is_running_and_says_so(start):
    simulator = start()
    connection = send_raw(simulator, chat("stall", stream=True), "x-client-request-id: stalled")
    wait_until(lambda: bool(simulator.lines("stalled")))
    assert simulator.stop() == 0
    assert read_all(connection) == (b"", "closed")
    assert simulator.lines("stalled")[-1]["end"] == "stopped"
    assert simulator.lines()[-1]["event"] == "stopped"


def test_two_lives_write_one_journal_and_no_call_twice(start):
    for _ in range(2):
        simulator = start()
        simulator.ask()
        simulator.stop(signal.SIGINT)
    lines = simulator.lines()
    assert [line["event"] for line in lines] == ["started", "received", "ended", "stopped"] * 2
    assert len({line["call"] for line in lines if "call" in line}) == 2


def test_the_key_is_in_the_journal_as_a_digest_only(simulator):
    simulator.ask("error=401,echo_key", headers={"x-client-request-id": "key"})
    assert len(simulator.lines("key")[0]["key_digest"]) == 12
    assert KEY not in simulator.journal.read_text()
    assert simulator.journal.stat().st_mode & 0o077 == 0


def test_the_summary_adds_up(start):
    simulator = start()
    simulator.ask()
    simulator.ask("error=500")
    summary = simulator.summary()
    assert (summary["received"], summary["running"]) == (2, 0)
    assert summary["ends"] == {"completed": 1, "refused": 1}
    assert summary["statuses"] == {"200": 1, "500": 1}
    assert summary["billed_output_tokens"] == summary["tokens_sent"] == 16


# Faults


def fault(simulator: Simulator, directives: str, *, stream: bool) -> tuple[bytes, bytes, str, dict[str, Any]]:
    """Head, body and end of a faulty answer, and the last line of the journal about it."""
    attempt_id = f"{directives} {stream} {time.monotonic_ns()}"
    body = chat(f"fault_bytes=200000,{directives}", stream=stream)
    connection = send_raw(simulator, body, f"x-client-request-id: {attempt_id}", "connection: close")
    if "stall" in directives:
        # In one turn of its loop it receives and says what comes before the silence; then it answers others.
        wait_until(lambda: simulator.lines(attempt_id) != [])
        simulator.summary()
        received, end = read_all(connection, silence_s=0.5)
    else:
        received, end = read_all(connection)
    head, _, content = received.partition(b"\r\n\r\n")
    return head, content, end, simulator.ended(attempt_id)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("stall", "reset", "truncate", "bad_json", "error_event", "bad_chunking", "bad_length", "bad_status_line"),
        *("endless_line", "empty_lines", "empty_events", "comments", "endless_head", "huge_body", "gzip_bomb"),
    ],
)
def test_every_fault_happens_and_is_in_the_journal(simulator, name, stream):
    *_, end, line = fault(simulator, f"{name},after_tokens=3", stream=stream)
    assert end == {"stall": "silent", "reset": "reset"}.get(name, "closed")
    assert line["fault"] == name
    assert line["end"] == ("client_gone" if name == "stall" else "fault")
    assert line["billed"]["input_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_rate_may_spare_from_any_fault(simulator, stream):
    _, content, end, line = fault(simulator, "reset,error_rate=0", stream=stream)
    assert (line["end"], line["fault"], end) == ("completed", "", "closed")
    assert content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "end"), [("stall", "silent"), ("reset", "reset")])
def test_a_silent_fault_leaves_no_head_unless_tokens_come_before_it(simulator, name, end, stream):
    assert fault(simulator, name, stream=stream)[:3] == (b"", b"", end)
    head, *_, line = fault(simulator, f"{name},after_tokens=0", stream=stream)
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert line["status"] == 200


@pytest.mark.parametrize("name", ["stall", "reset", "truncate", "error_event", "endless_line", "bad_chunking"])
def test_a_stream_breaks_after_the_tokens_asked_for_and_no_more_are_billed(simulator, name):
    _, content, _, line = fault(simulator, f"{name},after_tokens=3", stream=True)
    assert len(re.findall(rb'"content":"[^"]', content)) == 3
    assert line["tokens_sent"] == line["billed"]["output_tokens"] == 3
    assert b"[DONE]" not in content


def test_a_fault_after_more_tokens_than_there_are_still_happens(simulator):
    _, content, _, line = fault(simulator, "truncate,after_tokens=1000", stream=True)
    assert line["tokens_sent"] == 16
    assert b'finish_reason":"stop' not in content


def test_a_truncated_answer_is_shorter_than_announced(simulator):
    head, content, *_ = fault(simulator, "truncate", stream=False)
    assert len(content) < int(re.search(rb"content-length: (\d+)", head)[1])
    _, content, *_ = fault(simulator, "truncate,after_tokens=2", stream=True)
    assert unchunk(content)[1] == b""


def test_bad_json_is_one_event_of_a_stream_and_the_half_of_a_whole_answer(simulator):
    _, content, *_ = fault(simulator, "bad_json,after_tokens=2", stream=True)
    *events, last = unchunk(content)[0].split(b"\n\n")[:-1]
    broken = [event for event in events if not is_json(event.removeprefix(b"data: "))]
    assert len(broken) == 1
    assert last == b"data: [DONE]"
    head, content, *_ = fault(simulator, "bad_json", stream=False)
    assert len(content) == int(re.search(rb"content-length: (\d+)", head)[1])
    assert not is_json(content)


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_an_error_event_ends_a_good_stream_without_done(simulator):
    _, content, *_ = fault(simulator, "error_event,after_tokens=2", stream=True)
    events, rest = unchunk(content)
    assert json.loads(events.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert rest == b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "junk"),
    [
        ("endless_line", b"a" * 200_000),
        ("empty_lines", b"\n" * 200_000),
        ("empty_events", b"data:\n\n" * 20_000),
        ("comments", b": nothing\n\n" * 10_000),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_junk_comes_by_the_measure_asked_for(simulator, name, junk, stream):
    _, content, *_ = fault(simulator, f"{name},after_tokens=1", stream=stream)
    assert junk in unchunk(content)[0]
    assert len(content) < 250_000


def test_endless_heads_and_bad_status_lines_are_no_http(simulator):
    head, *_ = fault(simulator, "endless_head", stream=True)
    assert len(head) == 200_000 + len("HTTP/1.1 200 OK\r\n")
    assert fault(simulator, "bad_status_line", stream=True)[0] == b"HTTP/9.9 perhaps"


def test_a_bad_chunk_size_is_no_number(simulator):
    for stream in (False, True):
        _, content, *_ = fault(simulator, "bad_chunking,after_tokens=1", stream=stream)
        assert unchunk(content)[1] == b"no size\r\n"


def test_more_comes_than_a_bad_length_announces(simulator):
    for stream in (False, True):
        head, content, *_ = fault(simulator, "bad_length", stream=stream)
        assert len(content) > int(re.search(rb"content-length: (\d+)", head)[1])


def test_a_huge_answer_is_valid_and_huge(simulator):
    head, content, *_ = fault(simulator, "huge_body", stream=False)
    assert len(content) == int(re.search(rb"content-length: (\d+)", head)[1]) > 200_000
    assert json.loads(content)["usage"]["completion_tokens"] == 16
    _, content, *_ = fault(simulator, "huge_body,after_tokens=2", stream=True)
    events = unchunk(content)[0].split(b"\n\n")[:-1]
    assert max(map(len, events)) > 200_000
    assert all(is_json(event.removeprefix(b"data: ")) for event in events[:-1])


def test_a_bomb_of_gzip_is_small_until_it_is_opened(simulator):
    head, content, *_ = fault(simulator, "gzip_bomb,fault_bytes=8000000", stream=False)
    assert b"content-encoding: gzip" in head
    bomb, opened = unchunk(content)[0], 0
    assert len(bomb) < 20_000
    while bomb:
        decompressor = zlib.decompressobj(wbits=31)
        opened += len(decompressor.decompress(bomb))
        bomb = decompressor.unused_data
    assert opened >= 8_000_000


def test_characters_are_split_between_two_chunks(simulator):
    connection = send_raw(simulator, chat("split_utf8,output_tokens=4", stream=True), "connection: close")
    written = chunks(read_all(connection)[0].partition(b"\r\n\r\n")[2])[0]
    with pytest.raises(UnicodeDecodeError):
        [part.decode() for part in written]
    assert "日本語" in b"".join(written).decode()


def test_a_reader_that_stops_reading_costs_no_memory(start):
    simulator = start()
    connection = send_raw(simulator, chat("endless_line,after_tokens=0", stream=True), "x-client-request-id: slow")
    time.sleep(0.5)
    status = Path(f"/proc/{simulator.process.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 100_000
    assert simulator.ask().status_code == 200
    connection.close()
    assert simulator.ended("slow")["end"] == "client_gone"


# The wire


def test_pipelined_requests_are_answered_in_their_order(simulator):
    content = [json.dumps(chat(f"output_tokens={number},tokens_per_second=100")).encode() for number in (3, 1, 2)]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", simulator.port)) as connection:
        for body in content:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        received = b""
        while received.count(b"fp_simulator") < 3:
            received += connection.recv(1 << 16)
    assert re.findall(rb'"completion_tokens":(\d)', received) == [b"3", b"1", b"2"]


def test_what_is_no_http_is_refused_and_the_connection_ends(simulator):
    connection = socket.create_connection(("127.0.0.1", simulator.port), TIMEOUT_S)
    connection.sendall(b"what is this\r\n\r\n")
    received, end = read_all(connection)
    assert received.startswith(b"HTTP/1.1 400 Bad Request")
    assert end == "closed"


def test_a_body_without_measure_is_refused(simulator):
    connection = socket.create_connection(("127.0.0.1", simulator.port), TIMEOUT_S)
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 99999999\r\n\r\n")
    block = b" " * (1 << 20)
    with pytest.raises((ConnectionResetError, BrokenPipeError)), connection:
        for _ in range(95):
            connection.sendall(block)


def test_a_client_may_ask_before_it_sends_its_body(simulator):
    with socket.create_connection(("127.0.0.1", simulator.port), TIMEOUT_S) as connection:
        body = json.dumps(chat()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1024).startswith(b"HTTP/1.1 200 OK")


# The program


def test_it_imports_nothing_of_what_it_witnesses():
    code = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in {"django", "proxy", "budgets", "routing", "keys", "teams", "audit", "redis"}:
            raise ImportError(name)
        if top == "controlplane" and rest and rest.split(".")[0] != "simulator":
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
import controlplane.simulator.__main__
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--simulate", "eror=500"], "eror"),
        (["--latency-ms", "soon"], "latency_ms"),
        (["--journal", "/nowhere/journal.jsonl"], "/nowhere/journal.jsonl"),
        (["--journal", "/dev/full"], "the journal cannot be written"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(options, message):
    argv = [sys.executable, "-m", "controlplane.simulator", "--port", "0", *options]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_port_in_use_is_told(simulator):
    argv = [sys.executable, "-m", "controlplane.simulator", "--port", str(simulator.port)]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 1
    assert "address already in use" in ended.stderr
    assert ended.stderr.count("\n") == 1


@contextmanager
def program(*argv: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that says where it listens, and its URL. Gone at the end, whatever happens."""
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def test_a_journal_that_fails_ends_the_witness(tmp_path):
    """Better no witness than one that has not seen everything."""
    argv = [sys.executable, "-m", "controlplane.simulator", "--port", "0", "--journal", str(tmp_path / "journal.jsonl")]
    with program("prlimit", "--fsize=2000", *argv) as (process, url):
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(headers=headers, trust_env=False) as client, pytest.raises(httpx.TransportError):
            for _ in range(20):
                client.post(f"{url}/v1/chat/completions", json=chat())
        assert "the journal cannot be written" in process.stderr.read()
        assert process.wait(TIMEOUT_S) == 1


def test_the_django_command_is_the_same_program():
    argv = [sys.executable, "manage.py", "simulate_providers", "--port", "0", "--output-tokens", "2"]
    with program(*argv) as (process, url):
        assert httpx.get(f"{url}/_control", trust_env=False).json()["output_tokens"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
