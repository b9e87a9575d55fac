"""Whatever a provider sends, the client gets an end it can read, the attempt is settled once, and the worker lives."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from audit.records import CREDENTIAL_REFUSED
from controlplane.simulator.directives import Fault
from keys.vault import parse_master_keys, seal
from proxy.snapshot import Budget, Credential, Provider
from tests.stack import UPSTREAM_SECRET, VAULT_KEY, Stack, chat, wait_until

MIB = 1024 * 1024
# More than a worker reads of one answer, and more than it keeps of a stream.
LONG_BYTES = 80 * MIB
FLOOD_BYTES = 8 * MIB
LONG_FAULTS = {Fault.HUGE_BODY, Fault.ENDLESS_LINE, Fault.ENDLESS_HEAD}
RSS_GROWTH_BYTES_MAX = 160 * MIB
# Of these the client may get the whole answer: what is wrong about them is harmless, or is told by the provider itself.
HARMLESS_WHOLE = {Fault.BAD_LENGTH}
HARMLESS_IN_STREAM = {Fault.BAD_JSON, Fault.BAD_LENGTH, Fault.ERROR_EVENT}
EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
CHUNK = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
USAGE = b'"usage":{"prompt_tokens":5,"completion_tokens":7}'
ANSWER = b'{"model":"m","choices":[{"index":0,"message":{"content":"Hello"},"finish_reason":"stop"}],%b}'


def _json(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n") -> bytes:
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


class RawProvider:
    """Answers every request with the same bytes, and hangs up."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._read_request(connection)
                with contextlib.suppress(ConnectionError):  # It need not read all of it.
                    connection.sendall(self._answer)

    def _read_request(self, connection: socket.socket) -> None:
        head, _, body = b"", b"", b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        head, _, body = head.partition(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        missing = int(length.split(b":")[1]) - len(body)
        while missing > 0:
            missing -= len(connection.recv(65536))


@pytest.fixture
def answering(stack: Stack) -> Iterator[Callable[[bytes], Stack]]:
    """Call it with the bytes that the provider behind the alias `raw` is to answer."""
    providers: list[RawProvider] = []

    def make(answer: bytes) -> Stack:
        providers.append(RawProvider(answer))
        known = stack.control.providers["sim"]
        stack.control.providers["raw"] = known.__class__(slug="raw", api="openai", base_url=providers[-1].url)
        stack.control.add_deployment("raw", provider="raw")
        stack.control.add_alias("raw", "raw")
        stack.wait_for_version(stack.control.publish())
        return stack

    yield make
    for provider in providers:
        provider.close()


def _ask(stack: Stack, body: dict) -> httpx.Response:
    with stack.client(stack.control.issue_key()) as client:
        return client.post("/v1/chat/completions", json=body)


def _data(response: httpx.Response) -> list[str]:
    """The data of a stream's events; every line is one that an official SDK can read."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == "", "the last event is not complete"
    lines = [line for block in blocks for line in block.split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data:") for line in lines), lines
    return [line.removeprefix("data:").strip() for line in lines]


def _settled(stack: Stack, attempts: int = 1) -> list[dict]:
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    wait_until(lambda: len(stack.control.events()) >= attempts, "the usage events")
    events = stack.control.events()
    assert len({event["attempt_id"] for event in events}) == len(events) == attempts
    return events


def _assert_ended_with_an_error(response: httpx.Response) -> None:
    if response.status_code == 200:
        assert json.loads(_data(response)[-1])["error"]["message"]
    else:
        assert response.status_code in (502, 504), response.text
        assert response.json()["error"]["message"]


@pytest.mark.parametrize("fault", list(Fault))
def test_a_malformed_answer_is_told_settled_once_and_survived(make_stack, fault):
    stack = make_stack()
    sim = stack.control.providers["sim"]
    stack.control.providers["sim"] = sim.__class__(
        slug="sim", api="openai", base_url=sim.base_url, first_byte_timeout_s=1, idle_timeout_s=1
    )
    budget = Budget(budget_id="b1", name="all", window="month", amount=10**12)
    stack.wait_for_version(stack.control.publish(budgets=(budget,)))
    worker = psutil.Process(stack.proxy.workers()[0])
    rss_before = worker.memory_info().rss
    directives = f"{fault}=1,fault_bytes={LONG_BYTES if fault in LONG_FAULTS else FLOOD_BYTES}"
    variants = [(False, directives), (True, directives), (True, f"{directives},after_tokens=3")]
    for is_stream, told in variants:
        response = _ask(stack, chat(content=f"[[simulate {told}]]", stream=is_stream))
        is_harmless = fault in (HARMLESS_IN_STREAM if is_stream else HARMLESS_WHOLE)
        if not is_harmless or response.status_code != 200:
            _assert_ended_with_an_error(response)
        elif is_stream:
            assert _data(response)
    events = _settled(stack, len(variants))
    assert stack.control.spent_nanos("b1") == sum(event.get("cost_nanos", 0) for event in events)
    assert all(event.get("cost_nanos", 0) <= event["held_nanos"] for event in events), events
    assert worker.is_running()
    assert worker.memory_info().rss - rss_before < RSS_GROWTH_BYTES_MAX
    stack.control.providers["sim"] = sim  # A good answer may be late.
    stack.wait_for_version(stack.control.publish())
    assert _ask(stack, chat()).status_code == 200


@pytest.mark.parametrize(
    "rest",
    [
        b'data: {"choices":[{"delta":{"cont',
        b'data: {"choices":[{"delta":{"content":"cut"}}]}\n',
        b"",
    ],
)
def test_a_stream_cut_inside_an_event_ends_with_an_event_that_can_be_read(answering, rest):
    stack = answering(EVENT_STREAM + CHUNK + rest)
    response = _ask(stack, chat("raw", stream=True))
    assert json.loads(_data(response)[-1])["error"]["code"] == "upstream_protocol_error"
    assert _settled(stack)[0]["usage_source"] == "estimated"


def test_a_last_event_without_its_empty_line_still_ends_the_stream_well(answering):
    stack = answering(EVENT_STREAM + CHUNK + b"data: [DONE]\n")
    response = _ask(stack, chat("raw", stream=True))
    assert response.text.rstrip().endswith("data: [DONE]")
    assert "error" not in response.text


@pytest.mark.parametrize(
    "answer",
    [
        _json(ANSWER % USAGE),
        _json(b'{"error":{"message":"no","code":"x"}}'),
        _json(b""),
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b",
        EVENT_STREAM,
    ],
)
def test_an_answer_that_is_no_stream_is_a_bad_gateway_where_a_stream_was_asked_for(answering, answer):
    stack = answering(answer)
    _assert_ended_with_an_error(_ask(stack, chat("raw", stream=True)))
    assert _settled(stack)[0]["error_type"]


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("status", [204, 301, 302, 307])
def test_neither_a_redirect_nor_an_empty_answer_crosses(answering, status, is_stream):
    head = b"HTTP/1.1 %d Perhaps\r\nlocation: http://127.0.0.1:9/elsewhere\r\n" % status
    stack = answering(head + b"content-length: 0\r\n\r\n" if status != 204 else head + b"\r\n")
    response = _ask(stack, chat("raw", stream=is_stream))
    assert response.status_code == 502, response.text
    assert "elsewhere" not in response.text + str(response.headers)
    _settled(stack)


def test_an_error_inside_a_200_is_a_bad_gateway(answering):
    stack = answering(_json(b'{"error":{"message":"overloaded","type":"server_error"}}'))
    response = _ask(stack, chat("raw"))
    assert response.status_code == 502
    assert _settled(stack)[0]["error_type"]


@pytest.mark.parametrize(
    "usage",
    [
        b'"usage":{"prompt_tokens":-5,"completion_tokens":-7}',
        b'"usage":{"prompt_tokens":5,"completion_tokens":-7}',
        b'"usage":{"prompt_tokens":1000000000000000000000000,"completion_tokens":1}',
        b'"usage":{"prompt_tokens":9000000000000000000,"completion_tokens":9000000000000000000}',
        b'"usage":{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":-50}}',
        b'"usage":null',
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
def test_usage_that_cannot_be_is_not_believed(answering, usage, is_stream):
    end = (
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: {"choices":[],%b}\n\ndata: [DONE]\n\n'
        % usage
    )
    stack = answering(EVENT_STREAM + CHUNK + end if is_stream else _json(ANSWER % usage))
    response = _ask(stack, chat("raw", stream=is_stream))
    assert response.status_code == 200, response.text
    (event,) = _settled(stack)
    assert event["usage_source"] == "estimated"
    assert 0 < event["cost_nanos"] <= event["held_nanos"]


def test_what_a_provider_says_of_itself_is_stored_within_bounds(answering):
    long = b"x" * 100_000
    stack = answering(_json(b'{"model":"%b","choices":[{"finish_reason":"%b"}],%b}' % (long, long, USAGE)))
    assert _ask(stack, chat("raw")).status_code == 200
    assert len(json.dumps(_settled(stack)[0])) < 5_000


@pytest.mark.parametrize("status", [400, 404, 429, 500])
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_refusal_that_quotes_the_gateways_credential_does_not_cross(stack, status, is_stream):
    told = f"[[simulate error={status},echo_key=1]]"
    response = _ask(stack, chat(content=told, stream=is_stream))
    assert response.status_code == (status if status < 500 else 502)
    assert UPSTREAM_SECRET not in response.text
    assert response.json()["error"]["message"]


def _assert_says_refused_in_the_ledger_alone(stack: Stack, response: httpx.Response) -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_protocol_error")
    (event,) = _settled(stack)
    assert (event["error_type"], event["status_code"]) == (CREDENTIAL_REFUSED, 502)
    assert event.get("cost_nanos", 0) == 0


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_credential_that_the_provider_refuses_is_named_in_the_ledger_alone(stack, status, is_stream):
    response = _ask(stack, chat(content=f"[[simulate error={status}]]", stream=is_stream))
    _assert_says_refused_in_the_ledger_alone(stack, response)


def test_a_credential_that_no_token_is_given_for_is_named_so_too(answering):
    refusal = b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}'
    stack = answering(_json(refusal, b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"))
    token_url = f"{stack.control.providers['raw'].base_url}/token"
    options = {"project": "p1", "location": "us-east5", "token_url": token_url}
    base_url = f"{stack.control.upstream_url}/vertex/v1"
    stack.control.providers["raw"] = Provider(slug="raw", api="vertex", base_url=base_url, options=options)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = json.dumps({"client_email": "tollgate@p1.iam.gserviceaccount.com", "private_key": key.decode()})
    sealed = seal(account, "account", parse_master_keys(VAULT_KEY))
    credential = Credential(credential_id="account", sealed=sealed)
    stack.control.add_deployment("raw", provider="raw", upstream_model="gemini-2.5-flash", credentials=(credential,))
    stack.wait_for_version(stack.control.publish())
    _assert_says_refused_in_the_ledger_alone(stack, _ask(stack, chat("raw")))


def test_a_provider_that_answers_without_end_is_left_in_the_end(answering):
    keep_alive = b": %b\n\n" % (b"still here " * 1000)
    stack = answering(EVENT_STREAM + keep_alive * (LONG_BYTES // len(keep_alive)))
    response = _ask(stack, chat("raw", stream=True))
    assert len(response.content) < LONG_BYTES
    assert json.loads(_data(response)[-1])["error"]["code"] == "upstream_protocol_error"
    _settled(stack)
    assert len(stack.proxy.workers()) == 1
