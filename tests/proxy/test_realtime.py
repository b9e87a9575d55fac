"""OpenAI's Realtime through the gateway, over real sockets: metered exactly, within the cap, cut when it must be."""

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import openai
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from budgets.pricing import hold_nanos
from proxy import snapshot
from proxy.snapshot import Budget, Limit
from proxy.wire.websocket import MESSAGE_BYTES_MAX
from tests.stack import PRICE, UPSTREAM_SECRET, Stack, free_port, wait_until

RECEIVE_TIMEOUT_S = 60
CONTEXT = 1_000
OUTPUT_MAX = 100
# What one answer may cost at most.
BOUND_NANOS = hold_nanos(PRICE, CONTEXT, OUTPUT_MAX)


@pytest.fixture
def voice(stack: Stack) -> Stack:
    publish_voice(stack)
    return stack


def publish_voice(stack: Stack, **changes: Any) -> None:
    limits = {"context_window": CONTEXT, "max_output_tokens": OUTPUT_MAX}
    stack.control.add_deployment("voice", operations=("realtime",), **{**limits, **changes.pop("deployment", {})})
    stack.control.add_alias("voice", "voice")
    stack.wait_for_version(stack.control.publish(**changes))


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def budget(amount: int) -> Budget:
    return Budget(budget_id="b1", name="all", window="month", amount=amount)


class Talk:
    """A client's session."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, **event: Any) -> None:
        self.socket.send(json.dumps(event))

    def receive(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=RECEIVE_TIMEOUT_S))

    def until(self, kind: str) -> dict[str, Any]:
        while (event := self.receive())["type"] != kind:
            assert event["type"] != "error", event
        return event

    def say(self, text: str) -> None:
        self.send(type="conversation.item.create", item=message(text))

    def ask(self, text: str, **response: Any) -> dict[str, Any]:
        """The `response.done` of the answer."""
        self.say(text)
        self.send(type="response.create", response=response)
        return self.until("response.done")["response"]

    def last_words(self) -> tuple[dict[str, Any], int]:
        """(the last event, the code of the closing)."""
        event: dict[str, Any] = {}
        try:
            while True:
                event = self.receive()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, "closed without a word"
            return event, closed.rcvd.code


@contextlib.contextmanager
def session(stack: Stack, secret: str | None, model: str = "voice", **options: Any) -> Iterator[Talk]:
    url = f"{stack.proxy.url.replace('http', 'ws')}/v1/realtime?model={model}"
    headers = options.pop("additional_headers", {}) | ({"authorization": f"Bearer {secret}"} if secret else {})
    with connect(url, additional_headers=headers, max_size=None, compression=None, **options) as socket:
        yield Talk(socket)


def refusal(stack: Stack, secret: str, **options: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught, session(stack, secret, **options):
        pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]


def only_event(stack: Stack) -> dict[str, Any]:
    wait_until(lambda: stack.control.holds() == 0, "the end of the hold")
    wait_until(lambda: bool(stack.control.events()), "the event")
    (event,) = stack.control.events()
    return event


def billed_tokens(stack: Stack, attempt_id: str) -> tuple[int, int]:
    """What the provider would charge for the session, by its own journal: (input, output)."""
    bills = [e["billed"] for e in stack.simulator.entries() if e["event"] == "ended" and e["attempt_id"] == attempt_id]
    return sum(bill["input_tokens"] for bill in bills), sum(bill["output_tokens"] for bill in bills)


def test_a_session_is_one_record_of_exactly_what_all_its_answers_used(voice):
    with session(voice, voice.control.issue_key(), subprotocols=["realtime"]) as talk:
        assert talk.socket.subprotocol == "realtime"
        assert talk.socket.response.headers["x-tollgate-deployment"] == "voice"
        assert talk.until("session.created")["session"]["model"] == "sim-fast"
        answers = [talk.ask(f"[[simulate output_tokens={tokens}]] Hello") for tokens in (7, 20, 30)]
    event = only_event(voice)
    used = [answer["usage"] for answer in answers]
    assert [usage["output_tokens"] for usage in used] == [7, 20, 30]
    assert event["usage"]["input_tokens"] == sum(usage["input_tokens"] for usage in used)
    assert event["usage"]["output_tokens"] == 57
    assert billed_tokens(voice, event["attempt_id"]) == (event["usage"]["input_tokens"], 57)
    assert event["cost_nanos"] == event["usage"]["input_tokens"] * 1_000 + 57 * 2_000
    assert (event["operation"], event["usage_source"], event["status_code"]) == ("realtime", "provider", 101)
    assert (event["alias"], event["request_model"], event["response_model"]) == ("voice", "sim-fast", "sim-fast")
    assert event.get("error_type", "") == ""
    assert event["finish_reason"] == "completed"
    assert event["is_stream"]


async def test_the_official_sdk_connects_unmodified(voice):
    client = openai.AsyncOpenAI(api_key=voice.control.issue_key(), base_url=f"{voice.proxy.url}/v1")
    async with client, client.realtime.connect(model="voice") as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        content = [{"type": "input_text", "text": "[[simulate output_tokens=5]] Hello"}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        text = ""
        async for event in connection:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                break
    assert event.response.status == "completed"
    assert len(text.split()) == 5
    recorded = await asyncio.to_thread(only_event, voice)
    assert recorded["usage"]["output_tokens"] == event.response.usage.output_tokens == 5


def test_a_browser_puts_its_key_into_a_subprotocol(voice):
    secret = voice.control.issue_key()
    offered = ["realtime", f"openai-insecure-api-key.{secret}", "openai-beta.realtime-v1"]
    with session(voice, None, subprotocols=offered, origin="https://shop.example") as talk:
        assert talk.socket.subprotocol == "realtime"
        assert talk.ask("Hello")["status"] == "completed"
    assert only_event(voice)["usage"]["output_tokens"] == 16


def test_whoever_may_not_is_told_so_before_the_upgrade(voice):
    assert refusal(voice, voice.control.issue_key(), model="nobody")[0] == 404
    assert refusal(voice, "tg-unknown")[0] == 401
    assert refusal(voice, voice.control.issue_key(aliases=("demo",)))[0] == 403
    assert refusal(voice, voice.control.issue_key(), model="")[0] == 400
    status_code, error = refusal(voice, voice.control.issue_key(), model="demo")
    assert (status_code, error["code"]) == (400, "operation_not_supported")
    assert voice.control.events() == []


def test_a_budget_without_room_for_one_answer_refuses_before_the_upgrade(voice):
    poor = voice.control.issue_key(budgets=(budget(BOUND_NANOS - 1),))
    status_code, error = refusal(voice, poor)
    assert (status_code, error["code"]) == (429, "budget_exceeded")
    assert voice.control.holds() == 0


def test_realtime_without_a_websocket_is_refused(voice):
    with voice.client(voice.control.issue_key()) as client:
        answer = client.get("/v1/realtime?model=voice")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "websocket_required")


def test_a_provider_that_cannot_be_reached_is_passed_over_before_the_upgrade(voice):
    voice.control.providers["void"] = voice.control.providers["sim"].__class__(
        slug="void", api="openai", base_url="http://127.0.0.1:1/v1"
    )
    voice.control.add_deployment("void", provider="void", operations=("realtime",))
    voice.control.add_alias("both", "void", "voice")
    voice.wait_for_version(voice.control.publish())
    with session(voice, voice.control.issue_key(), model="both") as talk:
        assert talk.ask("Hello")["status"] == "completed"
    wait_until(lambda: len(voice.control.events()) == 2, "both events")
    assert [event.get("state", "posted") for event in voice.control.events()] == ["voided", "posted"]


def test_the_cap_is_spent_to_its_end_by_many_answers_and_never_passed(stack):
    cap_nanos = 4 * BOUND_NANOS
    publish_voice(stack, budgets=(budget(cap_nanos),))
    answers = 0
    with session(stack, stack.control.issue_key()) as talk:
        said = message("[[simulate output_tokens=90]] Hello")
        last: dict[str, Any] = {}
        while True:
            # Each reads this alone: the simulator's window has no end.
            talk.send(type="response.create", response={"conversation": "none", "input": [said]})
            while (last := talk.receive())["type"] not in ("response.done", "error"):
                pass
            assert stack.control.spent_nanos("b1") <= cap_nanos
            if last["type"] == "error":
                break
            answers += 1
        _, code = talk.last_words()
    assert (last["error"]["code"], last["error"]["type"], code) == ("budget_exceeded", "rate_limit_error", 1008)
    event = only_event(stack)
    assert answers > 5
    assert stack.control.spent_nanos("b1") == event["cost_nanos"]
    assert cap_nanos - BOUND_NANOS < event["cost_nanos"] <= cap_nanos
    assert billed_tokens(stack, event["attempt_id"])[1] == event["usage"]["output_tokens"] == 90 * answers
    assert (event["error_type"], event["usage_source"]) == ("budget_exceeded", "provider")


def test_a_kill_switch_cuts_a_live_session_in_the_middle_of_an_answer(voice):
    with session(voice, voice.control.issue_key()) as talk:
        talk.say("[[simulate tokens_per_second=5,output_tokens=90]] Hello")
        talk.send(type="response.create")
        for _ in range(5):
            talk.until("response.output_text.delta")
        flag = voice.control.throw("model", "model-voice")
        error, code = talk.last_words()
    assert (error["error"]["code"], error["error"]["kill_switch_id"], code) == (
        "traffic_halted",
        flag.kill_switch_id,
        1008,
    )
    event = only_event(voice)
    assert (event["error_type"], event["kill_switch_id"]) == ("traffic_halted", flag.kill_switch_id)
    assert event["usage_source"] == "estimated"
    assert 5 <= event["usage"]["output_tokens"] < 90
    assert 0 < event["usage"]["input_tokens"] <= CONTEXT
    assert event["cost_nanos"] <= event["held_nanos"]

    def is_left() -> bool:
        ended = [entry for entry in voice.simulator.entries() if entry["event"] == "ended"]
        return (event["attempt_id"], "client_gone") in [(entry["attempt_id"], entry["end"]) for entry in ended]

    wait_until(is_left, "the end upstream")


def test_a_client_that_leaves_in_the_middle_ends_the_session_upstream_and_pays(voice):
    with session(voice, voice.control.issue_key()) as talk:
        talk.ask("[[simulate output_tokens=10]] Hello")
        talk.say("[[simulate tokens_per_second=5,output_tokens=90]] Hello")
        talk.send(type="response.create")
        talk.until("response.output_text.delta")
        talk.socket.socket.shutdown(2)
        event = only_event(voice)
    assert event["error_type"] == "client_gone"
    assert event["usage_source"] == "estimated"
    assert 10 < event["usage"]["output_tokens"] < 90


def test_a_client_that_says_goodbye_between_answers_owes_what_was_counted(voice):
    with session(voice, voice.control.issue_key()) as talk:
        talk.ask("Hello")
        talk.socket.close(4000, "enough")
    event = only_event(voice)
    assert (event.get("error_type", ""), event["usage_source"]) == ("", "provider")


def test_a_session_in_which_nothing_is_asked_costs_nothing(voice):
    with session(voice, voice.control.issue_key()) as talk:
        talk.until("session.created")
    event = only_event(voice)
    assert event.get("cost_nanos", 0) == 0
    assert event["usage_source"] == "provider"


def test_a_stopping_worker_says_so_and_settles(make_stack):
    stack = make_stack(TOLLGATE_GRACE_S="0")
    publish_voice(stack)
    with session(stack, stack.control.issue_key()) as talk:
        talk.ask("Hello")
        stack.proxy.process.process.terminate()
        error, code = talk.last_words()
    assert (error["error"]["code"], code) == ("service_unavailable", 1011)
    stack.proxy.process.process.wait(20)
    assert only_event(stack)["error_type"] == "shutdown"


def test_a_worker_paused_past_its_lease_stops_its_sessions(make_stack):
    stack = make_stack(TOLLGATE_LEASE_S="5")
    publish_voice(stack)
    worker = psutil.Process(stack.proxy.workers()[0])
    with session(stack, stack.control.issue_key()) as talk:
        talk.ask("Hello")
        worker.suspend()
        wait_until(lambda: stack.control.leases() == 0, "the end of the lease")
        worker.resume()
        error, code = talk.last_words()
    assert (error["error"]["code"], code) == ("worker_lease_lost", 1011)
    assert only_event(stack)["error_type"] == "worker_lease_lost"


def test_a_session_whose_worker_dies_is_one_record_in_suspense_at_what_was_held(make_stack):
    stack = make_stack(workers=2)
    publish_voice(stack, budgets=(budget(10**12),))
    with session(stack, stack.control.issue_key()) as talk:
        talk.ask("Hello")
        talk.send(type="response.create")  # The hold grows by what the first answer has used.
        talk.until("response.done")
        (holder,) = stack.control.redis.scan_iter("tg:holds:*")
        os.kill(int(holder.decode().rsplit("-", 2)[1]), signal.SIGKILL)
        wait_until(lambda: stack.control.holds() == 0, "the take-over")
    (event,) = stack.control.events()
    assert (event["state"], int(event["cost_nanos"])) == ("suspense", stack.control.spent_nanos("b1"))
    assert int(event["cost_nanos"]) > BOUND_NANOS


def test_the_limit_of_sessions_at_once_counts_them_while_they_last(voice):
    secret = voice.control.issue_key(limits=(Limit(limit_id="l1", metric="concurrency", amount=1),))
    with session(voice, secret) as talk:
        talk.until("session.created")
        assert refusal(voice, secret)[0] == 429
    only_event(voice)
    with session(voice, secret) as talk:
        talk.until("session.created")


# A provider whose every byte the test decides


class Provider:
    """What one connection to it brought, and what it does then."""

    def __init__(self, script: Callable[[ServerConnection], None]) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.received: list[str | bytes] = []
        self.closed: tuple[int, str] | None = None

    def __call__(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.requests.append(socket.request)
        try:
            self.script(socket)
            for message in socket:
                self.received.append(message)
        except ConnectionClosed:
            pass
        if socket.protocol.close_rcvd is not None:
            self.closed = (socket.protocol.close_rcvd.code, socket.protocol.close_rcvd.reason)


def _last(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return offered[-1] if offered else None


@pytest.fixture
def make_provider(stack: Stack) -> Iterator[Callable[..., Provider]]:
    """The deployment `own` is at a provider that runs the script."""
    servers: list[Server] = []

    def make(script: Callable[[ServerConnection], None] = lambda _: None, **provider: Any) -> Provider:
        made = Provider(script)
        port = free_port()
        server = serve(made, "127.0.0.1", port, select_subprotocol=_last, max_size=None)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        known = {"slug": "own", "api": "openai", "base_url": f"http://127.0.0.1:{port}/v1"}
        stack.control.providers["own"] = snapshot.Provider(**{**known, **provider})
        stack.control.add_deployment(
            "own", provider="own", operations=("realtime",), upstream_model="gpt realtime", context_window=CONTEXT
        )
        stack.control.add_alias("own", "own")
        stack.wait_for_version(stack.control.publish())
        return made

    yield make
    for server in servers:
        server.shutdown()


def test_messages_pass_untouched_both_ways_text_and_binary_in_one_frame_or_many(stack, make_provider):
    odd = ['{ "type" :\t"what.is.this", "x":[1.0,  2e3]}', "no json at all", b"\x00\xff\x80", "", "ä" * 70_000]

    def script(socket: ServerConnection) -> None:
        for message in odd:
            socket.send(message)
        socket.send(["in", "", "parts"])

    provider = make_provider(script)
    with session(stack, stack.control.issue_key(), model="own") as talk:
        assert [talk.socket.recv(timeout=RECEIVE_TIMEOUT_S) for _ in odd] == odd
        assert talk.socket.recv(timeout=RECEIVE_TIMEOUT_S) == "inparts"
        for message in odd:
            talk.socket.send(message)
        talk.socket.send([b"a", b"b"])
        assert talk.socket.ping().wait(RECEIVE_TIMEOUT_S)
        wait_until(lambda: len(provider.received) == len(odd) + 1, "all messages")
    assert provider.received == [*odd, b"ab"]
    assert only_event(stack).get("cost_nanos", 0) == 0


def test_the_provider_is_asked_at_its_own_address_with_its_own_key_and_name(stack, make_provider):
    provider = make_provider()
    secret = stack.control.issue_key()
    offered = ["realtime", f"openai-insecure-api-key.{secret}", "openai-organization.acme", "openai-beta.realtime-v1"]
    headers = {"openai-beta": "realtime=v1", "x-secret": "mine", "openai-safety-identifier": "u1"}
    with session(stack, None, model="own&tracing=auto", subprotocols=offered, additional_headers=headers) as talk:
        assert talk.socket.subprotocol == "openai-beta.realtime-v1"
        wait_until(lambda: bool(provider.requests), "the session")
    (request,) = provider.requests
    assert request.path == "/v1/realtime?model=gpt+realtime&tracing=auto"
    assert request.headers["authorization"] == f"Bearer {UPSTREAM_SECRET}"
    assert request.headers["sec-websocket-protocol"] == "realtime, openai-beta.realtime-v1"
    assert request.headers["openai-beta"] == "realtime=v1"
    assert request.headers["openai-safety-identifier"] == "u1"
    assert "x-secret" not in request.headers
    assert secret not in str(request.headers)
    assert request.headers["x-client-request-id"] == only_event(stack)["attempt_id"]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, "/openai/v1/realtime?model=gpt+realtime"),
        (
            {"url_style": "deployments", "api_version": "2025-08-28"},
            "/openai/realtime?api-version=2025-08-28&deployment=gpt+realtime",
        ),
    ],
)
def test_azure_is_asked_at_azures_address(stack, make_provider, options, path):
    provider = make_provider(api="azure", options=options)
    base_url = stack.control.providers["own"].base_url.removesuffix("/v1")
    stack.control.providers["own"] = snapshot.Provider(slug="own", api="azure", base_url=base_url, options=options)
    stack.wait_for_version(stack.control.publish())
    with session(stack, stack.control.issue_key(), model="own"):
        wait_until(lambda: bool(provider.requests), "the session")
    (request,) = provider.requests
    assert (request.path, request.headers["api-key"]) == (path, UPSTREAM_SECRET)


def test_a_model_named_in_the_session_is_called_as_the_provider_calls_it(stack, make_provider):
    provider = make_provider()
    transcription = '{"input":{"transcription":{"model":%s,"language":"de"}}}'
    said = '{"type": "session.update","session":{"z":1.50,"model":"own","audio":' + transcription % '"own"' + "}}"
    kept = '{"type": "session.update", "session": {"audio": ' + transcription % '"whisper-1"' + "}}"
    with session(stack, stack.control.issue_key(), model="own") as talk:
        talk.socket.send(said)
        talk.socket.send(kept)
        wait_until(lambda: len(provider.received) == 2, "both messages")
    first, second = provider.received
    expected = said.replace('"own"', '"gpt realtime"')
    assert json.loads(first) == json.loads(expected)
    assert list(json.loads(first)["session"]) == ["z", "model", "audio"]
    assert "1.50" in first
    assert second == kept


@pytest.mark.parametrize(
    ("code", "error_type"),
    [(1000, ""), (1001, ""), (1011, "upstream_protocol_error"), (4001, "upstream_protocol_error")],
)
def test_a_provider_that_closes_closes_the_client_in_its_own_words(stack, make_provider, code, error_type):
    make_provider(lambda socket: socket.close(code, "that was all"))
    with session(stack, stack.control.issue_key(), model="own") as talk, pytest.raises(ConnectionClosed) as closed:
        talk.socket.recv(timeout=RECEIVE_TIMEOUT_S)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "that was all")
    assert only_event(stack).get("error_type", "") == error_type


def test_a_client_that_closes_closes_the_provider_in_its_own_words(stack, make_provider):
    provider = make_provider()
    with session(stack, stack.control.issue_key(), model="own") as talk:
        talk.socket.close(4000, "enough")
    wait_until(lambda: provider.closed == (4000, "enough"), "the closing")


def test_a_provider_that_is_lost_is_told_as_an_error_and_what_ran_is_estimated(stack, make_provider):
    def script(socket: ServerConnection) -> None:
        socket.recv()
        socket.send('{"type":"response.created","response":{"id":"r1"}}')
        socket.send('{"type":"response.output_text.delta","response_id":"r1","delta":"Hello"}')
        socket.socket.shutdown(2)

    make_provider(script)
    with session(stack, stack.control.issue_key(), model="own") as talk:
        talk.send(type="response.create")
        error, code = talk.last_words()
    assert (error["error"]["code"], error["error"]["type"], code) == ("upstream_protocol_error", "server_error", 1011)
    event = only_event(stack)
    assert (event["error_type"], event["usage_source"]) == ("upstream_protocol_error", "estimated")
    assert event["usage"]["output_tokens"] == 2
    assert 0 < event["usage"]["input_tokens"] < CONTEXT


@pytest.mark.parametrize(
    ("status_code", "answered"), [(400, 400), (404, 404), (429, 429), (401, 502), (500, 502), (302, 502)]
)
def test_a_handshake_that_the_provider_refuses_is_its_refusal(stack, make_provider, status_code, answered):
    body = json.dumps({"error": {"message": "Not like this.", "type": "invalid_request_error", "code": "odd"}})
    make_provider()
    refusing = free_port()
    server = serve(
        lambda _: None,
        "127.0.0.1",
        refusing,
        process_request=lambda socket, _: socket.respond(HTTPStatus(status_code), body),
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.control.providers["own"] = snapshot.Provider(
        slug="own", api="openai", base_url=f"http://127.0.0.1:{refusing}/v1"
    )
    stack.wait_for_version(stack.control.publish())
    try:
        told, error = refusal(stack, stack.control.issue_key(), model="own")
    finally:
        server.shutdown()
    assert told == answered
    if answered < 500:
        assert (error["message"], error["code"]) == ("Not like this.", "odd")
    event = only_event(stack)
    assert (event.get("state", "posted"), event.get("cost_nanos", 0)) == ("voided", 0)


def test_a_message_past_the_bound_ends_the_session(stack, make_provider):
    make_provider()
    with session(stack, stack.control.issue_key(), model="own") as talk:
        with pytest.raises(ConnectionClosed) as closed:
            talk.socket.send(b"x" * (MESSAGE_BYTES_MAX + 1))
            talk.socket.recv(timeout=RECEIVE_TIMEOUT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
    only_event(stack)


def test_a_provider_faster_than_its_client_is_held_back(stack, make_provider):
    sent: list[int] = []

    def script(socket: ServerConnection) -> None:
        for number in range(400):
            socket.send(b"x" * 256 * 1024)
            sent.append(number)

    make_provider(script)
    with session(stack, stack.control.issue_key(), model="own", max_queue=1) as talk:
        time.sleep(1.5)
        assert len(sent) < 200
        for _ in range(400):
            talk.socket.recv(timeout=RECEIVE_TIMEOUT_S)
    assert only_event(stack).get("error_type", "") == ""


def test_a_session_is_cut_when_the_provider_answers_by_itself_past_the_cap(stack, make_provider):
    """Nobody asks here: each answer is only paid for when it is there."""

    def script(socket: ServerConnection) -> None:
        session = {"model": "m", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
        socket.send(json.dumps({"type": "session.created", "session": session}))
        socket.recv()
        for number in range(50):
            response = {"id": f"r{number}", "status": "completed", "usage": {"input_tokens": 900, "output_tokens": 100}}
            socket.send(json.dumps({"type": "response.created", "response": {"id": f"r{number}"}}))
            socket.send(json.dumps({"type": "response.done", "response": response}))
            time.sleep(0.05)

    make_provider(script)
    cap_nanos = 10 * 1_100_000 + 2 * 1_762_000
    secret = stack.control.issue_key(budgets=(budget(cap_nanos),))
    with session(stack, secret, model="own") as talk:
        talk.send(type="input_audio_buffer.append", audio="AAAA")
        error, code = talk.last_words()
    assert (error["error"]["code"], code) == ("budget_exceeded", 1008)
    event = only_event(stack)
    assert event["cost_nanos"] <= cap_nanos
    assert event["cost_nanos"] > cap_nanos - 3 * 1_762_000
