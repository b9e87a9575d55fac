"""The provider simulator on a WebSocket: the protocol, the events of a session, what of it is accounted for."""

import base64
import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.simulator.websocket import (
    MESSAGE_BYTES_MAX,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    BadFrame,
    Reader,
    frame,
)
from tests.controlplane.test_simulator import KEY, TIMEOUT_S, Simulator, read_all, wait_until


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator") / "journal.jsonl")
    yield simulator
    assert simulator.stop() == 0


def masked(opcode: int, payload: bytes, *, is_final: bool = True) -> bytes:
    mask, length = os.urandom(4), len(payload)
    head = struct.pack(">B", (0x80 if is_final else 0) | opcode)
    if length < 126:
        head += struct.pack(">B", 0x80 | length)
    elif length < 1 << 16:
        head += struct.pack(">BH", 0x80 | 126, length)
    else:
        head += struct.pack(">BQ", 0x80 | 127, length)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


class Client:
    """A WebSocket of the test's own, so that two mistakes do not cancel out."""

    def __init__(self, simulator: Simulator, attempt_id: str = "", path: str = "/v1/realtime?model=sim-fast") -> None:
        self.socket = socket.create_connection(("127.0.0.1", simulator.port), TIMEOUT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1", "host: test", "connection: Upgrade", "upgrade: websocket",
            "sec-websocket-version: 13", f"sec-websocket-key: {key}", "sec-websocket-protocol: realtime, other",
            f"authorization: Bearer {KEY}", f"x-client-request-id: {attempt_id}", "", "",
        ]  # fmt: skip
        self.socket.sendall("\r\n".join(lines).encode())
        self.received = b""
        while b"\r\n\r\n" not in self.received:
            self.received += self.socket.recv(1 << 16)
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        self.head = head.decode()
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        self.accept = base64.b64encode(digest).decode()

    def send(self, **event: Any) -> None:
        self.socket.sendall(masked(TEXT, json.dumps(event).encode()))

    def frame(self) -> tuple[int, bytes]:
        first, length = self._take(2)
        if length == 126:
            (length,) = struct.unpack(">H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._take(8))
        return first & 0x0F, self._take(length)

    def _take(self, length: int) -> bytes:
        while len(self.received) < length:
            part = self.socket.recv(1 << 16)
            assert part
            self.received += part
        taken, self.received = self.received[:length], self.received[length:]
        return taken

    def event(self) -> Any:
        opcode, payload = self.frame()
        assert opcode == TEXT
        return json.loads(payload)

    def until(self, kind: str) -> list[Any]:
        events = [self.event()]
        while events[-1]["type"] != kind:
            events.append(self.event())
        return events

    def say(self, text: str) -> None:
        content = [{"type": "input_text", "text": text}]
        self.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
        self.until("conversation.item.done")

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def client(simulator: Simulator, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(simulator, request.node.name)
    assert client.event()["type"] == "session.created"
    yield client
    client.close()


def test_the_handshake_is_accepted_as_the_rfc_has_it(client):
    assert client.head.startswith("HTTP/1.1 101 ")
    assert f"sec-websocket-accept: {client.accept}" in client.head
    assert "sec-websocket-protocol: realtime" in client.head


@pytest.mark.parametrize("path", ["/azure/openai/v1/realtime?model=m", "/azure/openai/realtime?deployment=m"])
def test_azure_has_it_too(simulator, path):
    client = Client(simulator, path=path)
    assert client.event()["session"]["model"] == "m"
    client.close()


def test_a_response_is_said_word_by_word_and_tells_its_usage(client, simulator, request):
    client.say("one two [[simulate output_tokens=3]]")
    client.send(type="response.create")
    events = client.until("response.done")
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas == ["Every", " word", " of"]
    response = events[-1]["response"]
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == "Every word of"
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (4, 3)
    entries = [line for line in simulator.lines(request.node.name) if line["event"] == "ended"]
    assert [(entry["status"], entry["billed"]["output_tokens"]) for entry in entries] == [(200, 3)]
    assert entries[0]["usage"] == response["usage"]


def test_everything_that_was_said_is_input_of_the_next_response(client):
    client.say("one two [[simulate output_tokens=3]]")
    for input_tokens in (4, 4 + 3):
        client.send(type="response.create")
        assert client.until("response.done")[-1]["response"]["usage"]["input_tokens"] == input_tokens


def test_sounds_are_heard_and_answered(client):
    client.send(type="session.update", session={"output_modalities": ["audio"]})
    assert client.event()["session"]["output_modalities"] == ["audio"]
    client.send(type="input_audio_buffer.append", audio=base64.b64encode(bytes(48_000)).decode())
    client.send(type="input_audio_buffer.commit")
    client.until("conversation.item.done")
    client.send(type="response.create", response={"max_output_tokens": 2})
    events = client.until("response.done")
    assert sum(event["type"] == "response.output_audio.delta" for event in events) == 2
    usage = events[-1]["response"]["usage"]
    assert usage["input_token_details"]["audio_tokens"] == 10
    assert usage["output_token_details"] == {"text_tokens": 0, "audio_tokens": 2}
    assert events[-1]["response"]["status"] == "incomplete"


def test_a_tool_is_called_and_its_result_answered(client):
    client.send(type="session.update", session={"tools": [{"type": "function", "name": "look_up"}]})
    client.event()
    client.say('call [[simulate tool=look_up args={"city": "Rome"}]]')
    client.send(type="response.create")
    (call,) = client.until("response.done")[-1]["response"]["output"]
    assert (call["name"], json.loads(call["arguments"])) == ("look_up", {"city": "Rome"})
    item = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
    client.send(type="conversation.item.create", item=item)
    client.until("conversation.item.done")
    client.send(type="response.create")
    assert client.until("response.done")[-1]["response"]["output"][0]["type"] == "message"


def test_a_response_that_is_cancelled_is_billed_what_was_generated(client, simulator, request):
    client.say("slowly [[simulate tokens_per_second=50,output_tokens=1000]]")
    client.send(type="response.create")
    client.until("response.output_text.delta")
    client.send(type="response.cancel")
    response = client.until("response.done")[-1]["response"]
    assert response["status"] == "cancelled"
    ended = simulator.ended(request.node.name)
    assert ended["end"] == "cancelled"
    assert 0 < ended["billed"]["output_tokens"] == response["usage"]["output_tokens"] < 100


@pytest.mark.parametrize(
    ("directives", "message"), [("error=500", "error while processing"), ("eror=1", "eror"), ("error_event", "error")]
)
def test_errors_are_events_and_the_session_goes_on(client, directives, message):
    client.say(f"hello [[simulate {directives}]]")
    client.send(type="response.create")
    assert message in client.until("error")[-1]["error"]["message"]
    client.send(type="nonsense")
    assert client.event()["type"] == "error"


@pytest.mark.parametrize(("fault", "end"), [("truncate", "closed"), ("reset", "reset"), ("stall", "silent")])
def test_a_session_breaks_as_it_is_told(client, simulator, request, fault, end):
    client.say(f"hello [[simulate {fault},after_tokens=2]]")
    client.send(type="response.create")
    wait_until(lambda: sum(line["event"] == "received" for line in simulator.lines(request.node.name)) == 2)
    assert read_all(client.socket, 0.5 if end == "silent" else TIMEOUT_S)[1] == end
    wait_until(lambda: sum(line["event"] == "ended" for line in simulator.lines(request.node.name)) == 2)
    (entry,) = [line for line in simulator.lines(request.node.name) if line.get("status") == 200]
    assert (entry["fault"], entry["end"]) == (fault, "client_gone" if fault == "stall" else "fault")
    assert entry["billed"]["output_tokens"] == 2


def test_events_that_come_while_it_speaks_wait_for_their_turn(client):
    client.say("hello [[simulate tokens_per_second=100,output_tokens=5]]")
    for _ in range(3):
        client.send(type="response.create")
    for _ in range(3):
        client.until("response.done")


def test_a_ping_is_answered_and_a_close_too(client, simulator, request):
    client.socket.sendall(masked(9, b"are you there"))
    assert client.frame() == (10, b"are you there")
    client.socket.sendall(masked(8, struct.pack(">H", 1000)))
    assert client.frame() == (8, struct.pack(">H", 1000))
    ended = simulator.ended(request.node.name)
    assert (ended["end"], ended["status"], ended["billed"]["input_tokens"]) == ("completed", 101, 0)


def test_a_frame_that_is_not_masked_ends_the_session(client):
    client.socket.sendall(frame(TEXT, b"{}"))
    assert client.frame() == (8, struct.pack(">H", PROTOCOL_ERROR))


@pytest.mark.parametrize("path", ["/v1/realtime?model=m", "/v1/realtime"])
def test_what_is_no_handshake_is_refused(simulator, path):
    assert simulator.client.get(path).status_code == 400


def test_a_handshake_without_a_model_is_refused(simulator):
    client = Client(simulator, path="/v1/realtime")
    assert client.head.startswith("HTTP/1.1 400 ")
    client.close()


def test_a_session_that_is_left_is_noticed(simulator):
    client = Client(simulator, "left")
    client.event()
    client.close()
    assert simulator.ended("left")["end"] == "client_gone"


# Frames


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_message_is_read_however_it_is_cut(length, step):
    if step == 1 and length > 1000:
        length = 1000
    payload = os.urandom(length)
    data, reader, messages = masked(TEXT, payload), Reader(), []
    for place in range(0, len(data), step):
        messages += reader.feed(data[place : place + step])
    assert messages == [(TEXT, payload)]


def test_the_parts_of_a_message_are_put_together_around_a_ping():
    data = masked(TEXT, b"one ", is_final=False) + masked(9, b"?") + masked(0, b"two")
    assert list(Reader().feed(data)) == [(9, b"?"), (TEXT, b"one two")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(0, b"no beginning"), PROTOCOL_ERROR),
        (masked(TEXT, b"a", is_final=False) + masked(TEXT, b"b"), PROTOCOL_ERROR),
        (masked(9, b"a", is_final=False), PROTOCOL_ERROR),
        (masked(9, bytes(126)), PROTOCOL_ERROR),
        (masked(3, b"a"), PROTOCOL_ERROR),
        (b"\xf1\x80", PROTOCOL_ERROR),
        (struct.pack(">BBQ", 0x81, 0xFF, MESSAGE_BYTES_MAX + 1), TOO_BIG),
    ],
    ids=["no beginning", "two beginnings", "ping in parts", "long ping", "unknown kind", "extension", "too long"],
)
def test_what_breaks_the_protocol_is_refused(data, code):
    with pytest.raises(BadFrame) as bad:
        list(Reader().feed(data))
    assert bad.value.code == code


def test_a_long_message_is_unmasked_whole():
    payload = bytes(range(256)) * (1 << 12)
    assert list(Reader().feed(masked(TEXT, payload))) == [(TEXT, payload)]
