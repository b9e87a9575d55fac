"""The provider simulator in every provider's shape: what is answered, counted, refused and broken, over real sockets."""

import base64
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from tests.controlplane.test_simulator import KEY, Simulator, wait_until

SIGNED = (
    "AWS4-HMAC-SHA256 Credential=AKIASIMULATED/20260101/us-east-1/bedrock/aws4_request, "
    f"SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
)


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator") / "journal.jsonl")
    simulator.client.headers.pop("authorization")
    yield simulator
    assert simulator.stop() == 0


class Shape(NamedTuple):
    """How one shape is asked, and where its answers keep what matters. `{}` in a path is the model."""

    name: str
    key: dict[str, str]
    path: str
    stream_path: str
    schema: dict[str, Any]  # What asks for JSON.

    def body(self, content: str, *, stream: bool, tools: bool = False, result: bool = False) -> dict[str, Any]:
        return BODIES[self.name](content, stream, tools, result)


def _openai(content: str, stream: bool, tools: bool, result: bool) -> dict[str, Any]:
    messages: list[Any] = [{"role": "user", "content": content}]
    if result:
        messages.append({"role": "tool", "tool_call_id": "1", "content": "42"})
    body: dict[str, Any] = {"model": "sim-fast", "messages": messages, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if tools:
        body["tools"] = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    return body


def _cohere(content: str, stream: bool, tools: bool, result: bool) -> dict[str, Any]:
    body = _openai(content, stream, tools, result)
    body.pop("stream_options", None)
    return body


def _responses(content: str, stream: bool, tools: bool, result: bool) -> dict[str, Any]:
    items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": content}]}]
    if result:
        items.append({"type": "function_call_output", "call_id": "1", "output": "42"})
    body: dict[str, Any] = {"model": "sim-fast", "input": items, "stream": stream}
    if tools:
        body["tools"] = [{"type": "function", "name": "look_up", "parameters": {}}]
    return body


def _anthropic(content: str, stream: bool, tools: bool, result: bool) -> dict[str, Any]:
    messages: list[Any] = [{"role": "user", "content": content}]
    if result:
        messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "42"}]})
    body: dict[str, Any] = {"model": "sim-fast", "max_tokens": 4096, "messages": messages, "stream": stream}
    if tools:
        body["tools"] = [{"name": "look_up", "input_schema": {}}]
    return body


def _raw_anthropic(content: str, stream: bool, tools: bool, result: bool) -> dict[str, Any]:
    body = _anthropic(content, stream, tools, result) | {"anthropic_version": "x"}
    del body["model"], body["stream"]
    return body


def _gemini(content: str, stream: bool, tools: bool, result: bool) -> dict[str, Any]:
    contents: list[Any] = [{"role": "user", "parts": [{"text": content}]}]
    if result:
        response = {"name": "look_up", "response": {"is": 42}}
        contents.append({"role": "user", "parts": [{"functionResponse": response}]})
    body: dict[str, Any] = {"contents": contents}
    if tools:
        body["tools"] = [{"functionDeclarations": [{"name": "look_up"}]}]
    return body


def _bedrock(content: str, stream: bool, tools: bool, result: bool) -> dict[str, Any]:
    messages: list[Any] = [{"role": "user", "content": [{"text": content}]}]
    if result:
        told = {"toolUseId": "1", "content": [{"text": "42"}]}
        messages.append({"role": "user", "content": [{"toolResult": told}]})
    body: dict[str, Any] = {"messages": messages}
    if tools:
        body["toolConfig"] = {"tools": [{"toolSpec": {"name": "look_up"}}]}
    return body


BODIES = {
    "chat": _openai,
    "azure": _openai,
    "responses": _responses,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "gemini array": _gemini,
    "vertex": _gemini,
    "vertex anthropic": _raw_anthropic,
    "converse": _bedrock,
    "invoke": _raw_anthropic,
    "invoke nova": _bedrock,
    "cohere": _cohere,
    "ollama": _cohere,
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city", "days"],
}
FITTING = {"city": "word", "days": [1]}
BEARER = {"authorization": f"Bearer {KEY}"}
_FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
_ANTHROPIC_FORM = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
_GEMINI_FORM = {"generationConfig": {"responseMimeType": "application/json", "responseSchema": SCHEMA}}
_BEDROCK_FORM = {
    "outputConfig": {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": json.dumps(SCHEMA)}}}}
}
_VERTEX = "/vertex/v1/projects/p/locations/l/publishers"
SHAPES = [
    Shape("chat", BEARER, "/v1/chat/completions", "/v1/chat/completions", _FORM),
    Shape("responses", BEARER, "/v1/responses", "/v1/responses",
          {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}),
    Shape("azure", {"api-key": KEY}, *["/azure/openai/deployments/sim-fast/chat/completions?api-version=1"] * 2, _FORM),
    Shape("anthropic", {"x-api-key": KEY}, "/anthropic/v1/messages", "/anthropic/v1/messages", _ANTHROPIC_FORM),
    Shape("gemini", {"x-goog-api-key": KEY}, "/gemini/v1beta/models/sim-fast:generateContent",
          "/gemini/v1beta/models/sim-fast:streamGenerateContent?alt=sse", _GEMINI_FORM),
    Shape("gemini array", {"x-goog-api-key": KEY}, "/gemini/v1beta/models/sim-fast:generateContent",
          "/gemini/v1beta/models/sim-fast:streamGenerateContent", _GEMINI_FORM),
    Shape("vertex", BEARER, f"{_VERTEX}/google/models/sim-fast:generateContent",
          f"{_VERTEX}/google/models/sim-fast:streamGenerateContent?alt=sse", _GEMINI_FORM),
    Shape("vertex anthropic", BEARER, f"{_VERTEX}/anthropic/models/sim-fast:rawPredict",
          f"{_VERTEX}/anthropic/models/sim-fast:streamRawPredict", _ANTHROPIC_FORM),
    Shape("converse", {"authorization": SIGNED}, "/bedrock/model/sim-fast/converse",
          "/bedrock/model/sim-fast/converse-stream", _BEDROCK_FORM),
    Shape("invoke", BEARER, "/bedrock/model/sim-fast/invoke",
          "/bedrock/model/sim-fast/invoke-with-response-stream", _ANTHROPIC_FORM),
    Shape("invoke nova", BEARER, "/bedrock/model/sim-fast/invoke",
          "/bedrock/model/sim-fast/invoke-with-response-stream", _BEDROCK_FORM),
    Shape("cohere", BEARER, "/cohere/v2/chat", "/cohere/v2/chat",
          {"response_format": {"type": "json_object", "json_schema": SCHEMA}}),
    Shape("ollama", BEARER, "/ollama/api/chat", "/ollama/api/chat", {"format": SCHEMA}),
]  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


class Told(NamedTuple):
    """What an answer says, in no provider's words."""

    text: str
    thought: str
    tool: str
    arguments: Any
    usage: dict[str, Any]
    signature: str = ""


def ask(simulator: Simulator, shape: Shape, content: str, *, stream: bool, **options: Any) -> Any:
    fields = options.pop("fields", {})
    headers = shape.key | options.pop("headers", {})
    body = shape.body(content, stream=stream, **options) | fields
    return simulator.client.post(shape.stream_path if stream else shape.path, json=body, headers=headers)


def tell(shape: Shape, response: Any, *, stream: bool) -> Told:
    assert response.status_code == 200, response.text
    kind = {"azure": "chat", "vertex": "gemini", "vertex anthropic": "anthropic", "gemini array": "gemini"}
    kind |= {"invoke": "anthropic", "invoke nova": "converse"}
    name = kind.get(shape.name, shape.name)
    if not stream:
        return WHOLE[name](response.json())
    return STREAMED[name](read_events(shape, response))


def read_events(shape: Shape, response: Any) -> list[Any]:
    if shape.name == "gemini array":
        return response.json()
    if shape.name == "ollama":
        return [json.loads(line) for line in response.text.splitlines()]
    if shape.name in ("converse", "invoke", "invoke nova"):
        events = []
        for headers, payload in read_frames(response.content):
            content = json.loads(payload)
            if "bytes" in content:
                events.append(json.loads(base64.b64decode(content["bytes"])))
            else:
                content.pop("p", None)
                events.append({headers[":event-type"]: content})
        return events
    ending = "\r\n\r\n" if shape.name in ("gemini", "vertex") else "\n\n"
    events = []
    for event in response.text.removesuffix(ending).split(ending):
        (data,) = re.findall(r"^data: (.*?)\r?$", event, re.MULTILINE)
        named = re.findall(r"^event: (.*)$", event, re.MULTILINE)
        if data == "[DONE]":
            continue
        events.append(json.loads(data))
        assert not named or named == [events[-1]["type"]]
    return events


def read_frames(content: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
    while content:
        length, headers_length, checksum = struct.unpack(">III", content[:12])
        assert zlib.crc32(content[:8]) == checksum
        assert zlib.crc32(content[: length - 4]) == struct.unpack(">I", content[length - 4 : length])[0]
        raw, headers = content[12 : 12 + headers_length], {}
        while raw:
            name, raw = raw[1 : 1 + raw[0]], raw[1 + raw[0] :]
            kind, value_length = struct.unpack(">BH", raw[:3])
            assert kind == 7
            headers[name.decode()], raw = raw[3 : 3 + value_length].decode(), raw[3 + value_length :]
        yield headers, content[12 + headers_length : length - 4]
        content = content[length:]


def _whole_chat(answer: Any) -> Told:
    message = answer["choices"][0]["message"]
    (call,) = message.get("tool_calls") or [{"function": {"name": "", "arguments": "null"}}]
    function = call["function"]
    return Told(message["content"] or "", "", function["name"], json.loads(function["arguments"]), answer["usage"])


def _streamed_chat(events: list[Any]) -> Told:
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    name = "".join(call.get("name", "") for call in calls)
    arguments = json.loads("".join(call["arguments"] for call in calls) or "null")
    text = "".join(delta.get("content") or "" for delta in deltas)
    return Told(text, "", name, arguments, events[-1]["usage"])


def _whole_responses(answer: Any) -> Told:
    *_, item = answer["output"]
    if item["type"] == "function_call":
        return Told("", "", item["name"], json.loads(item["arguments"]), answer["usage"])
    return Told(item["content"][0]["text"], "", "", None, answer["usage"])


def _streamed_responses(events: list[Any]) -> Told:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    told = _whole_responses(events[-1]["response"])
    deltas = "".join(event["delta"] for event in events if event["type"].endswith(".delta"))
    assert (json.loads(deltas) if told.tool else deltas) == (told.arguments if told.tool else told.text)
    return told


def _blocks(blocks: list[Any], usage: Any) -> Told:
    told: dict[str, Any] = {"text": "", "thought": "", "tool": "", "arguments": None, "signature": ""}
    for block in blocks:
        match block["type"]:
            case "thinking":
                told |= {"thought": block["thinking"], "signature": block["signature"]}
            case "text":
                told["text"] = block["text"]
            case "tool_use":
                told |= {"tool": block["name"], "arguments": block["input"]}
    return Told(usage=usage, **told)


def _whole_anthropic(answer: Any) -> Told:
    return _blocks(answer["content"], answer["usage"])


def _streamed_anthropic(events: list[Any]) -> Told:
    blocks: list[Any] = []
    usage = events[0]["message"]["usage"]
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"] | {"partial": ""})
            case "content_block_delta":
                for field, value in event["delta"].items():
                    if field == "partial_json":
                        blocks[-1]["partial"] += value
                    elif field != "type":
                        blocks[-1][field] += value
            case "content_block_stop" if blocks[-1]["type"] == "tool_use":
                blocks[-1]["input"] = json.loads(blocks[-1]["partial"])
            case "message_delta":
                usage = usage | event["usage"]
    assert events[-1]["type"] == "message_stop"
    return _blocks(blocks, usage)


def _whole_gemini(answer: Any) -> Told:
    return _streamed_gemini([answer])


def _streamed_gemini(events: list[Any]) -> Told:
    parts = [part for event in events for part in event["candidates"][0]["content"].get("parts", ())]
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"
    text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
    thought = "".join(part["text"] for part in parts if part.get("thought"))
    (call,) = [part["functionCall"] for part in parts if "functionCall" in part] or [{"name": "", "args": None}]
    signature = "".join(part.get("thoughtSignature", "") for part in parts)
    return Told(text, thought, call["name"], call["args"], events[-1]["usageMetadata"], signature)


def _whole_converse(answer: Any) -> Told:
    blocks = []
    for block in answer["output"]["message"]["content"]:
        if "reasoningContent" in block:
            thought = block["reasoningContent"]["reasoningText"]
            blocks.append({"type": "thinking", "thinking": thought["text"], "signature": thought["signature"]})
        elif "toolUse" in block:
            blocks.append({"type": "tool_use"} | block["toolUse"])
        else:
            blocks.append({"type": "text"} | block)
    return _blocks(blocks, answer["usage"])


def _streamed_converse(events: list[Any]) -> Told:
    said = {"text": "", "thought": "", "tool": "", "arguments": "", "signature": ""}
    for event in events:
        start = event.get("contentBlockStart", {}).get("start", {})
        said["tool"] += start.get("toolUse", {}).get("name", "")
        delta = event.get("contentBlockDelta", {}).get("delta", {})
        said["text"] += delta.get("text", "")
        said["arguments"] += delta.get("toolUse", {}).get("input", "")
        said["thought"] += delta.get("reasoningContent", {}).get("text", "")
        said["signature"] += delta.get("reasoningContent", {}).get("signature", "")
    return Told(
        said["text"], said["thought"], said["tool"], json.loads(said["arguments"] or "null"),
        events[-1]["metadata"]["usage"], said["signature"],
    )  # fmt: skip


def _whole_cohere(answer: Any) -> Told:
    message = answer["message"]
    (call,) = message.get("tool_calls") or [{"function": {"name": "", "arguments": "null"}}]
    parts = message.get("content", [])
    text = "".join(part.get("text", "") for part in parts)
    thought = "".join(part.get("thinking", "") for part in parts)
    function = call["function"]
    return Told(text, thought, function["name"], json.loads(function["arguments"]), answer["usage"])


def _streamed_cohere(events: list[Any]) -> Told:
    said = {"text": "", "thinking": "", "name": "", "arguments": ""}
    for event in events:
        message = event.get("delta", {}).get("message", {})
        for part in (message.get("content"), (message.get("tool_calls") or {}) and message["tool_calls"]["function"]):
            if isinstance(part, dict):
                for field in said:
                    said[field] += part.get(field, "")
    arguments = json.loads(said["arguments"] or "null")
    return Told(said["text"], said["thinking"], said["name"], arguments, events[-1]["delta"]["usage"])


def _whole_ollama(answer: Any) -> Told:
    return _streamed_ollama([answer])


def _streamed_ollama(events: list[Any]) -> Told:
    messages = [event["message"] for event in events]
    (call,) = [call for message in messages for call in message.get("tool_calls", ())] or [{"function": {}}]
    text = "".join(message["content"] for message in messages)
    thought = "".join(message.get("thinking", "") for message in messages)
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    function = call["function"]
    usage = {name: value for name, value in events[-1].items() if "eval" in name}
    return Told(text, thought, function.get("name", ""), function.get("arguments"), usage)


WHOLE = {
    "chat": _whole_chat,
    "responses": _whole_responses,
    "anthropic": _whole_anthropic,
    "gemini": _whole_gemini,
    "converse": _whole_converse,
    "cohere": _whole_cohere,
    "ollama": _whole_ollama,
}
STREAMED = {
    "chat": _streamed_chat,
    "responses": _streamed_responses,
    "anthropic": _streamed_anthropic,
    "gemini": _streamed_gemini,
    "converse": _streamed_converse,
    "cohere": _streamed_cohere,
    "ollama": _streamed_ollama,
}
_HIDES_REASONING = ("chat", "azure", "responses")


# What every shape does


@every_shape
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_as_many_words_as_tokens_and_is_journaled(simulator, shape, stream):
    attempt = f"plain {shape.name} {stream}"
    content = "one two three [[simulate reasoning_tokens=3,output_tokens=5]]"
    headers = {"x-client-request-id": attempt}
    told = tell(shape, ask(simulator, shape, content, stream=stream, headers=headers), stream=stream)
    assert told.text == "Every word of this answer"
    assert told.thought == ("" if shape.name in _HIDES_REASONING else "Every word of")
    ended = simulator.ended(attempt)
    assert ended["billed"] == {"input_tokens": 5, "cached_tokens": 0, "output_tokens": 8}
    assert ended["tokens_sent"] == (5 if shape.name in _HIDES_REASONING else 8)
    assert ended["usage"].items() <= told.usage.items()


@every_shape
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_with_the_arguments_asked_for(simulator, shape, stream):
    content = 'call [[simulate tool=look_up args={"city": "New York", "days": [1, 2], "in": {"a": null}}]]'
    told = tell(shape, ask(simulator, shape, content, stream=stream, tools=True), stream=stream)
    assert (told.text, told.tool) == ("", "look_up")
    assert told.arguments == {"city": "New York", "days": [1, 2], "in": {"a": None}}


@every_shape
@pytest.mark.parametrize("stream", [False, True])
def test_a_tools_result_is_answered_with_text(simulator, shape, stream):
    content = "call [[simulate tool=look_up,output_tokens=2]]"
    told = tell(shape, ask(simulator, shape, content, stream=stream, tools=True, result=True), stream=stream)
    assert (told.text, told.tool) == ("Every word", "")


@every_shape
@pytest.mark.parametrize("stream", [False, True])
def test_what_asks_for_json_gets_some_that_fits(simulator, shape, stream):
    told = tell(shape, ask(simulator, shape, "json", stream=stream, fields=shape.schema), stream=stream)
    assert json.loads(told.text) == FITTING


@every_shape
def test_a_tool_that_is_not_offered_is_no_directive(simulator, shape):
    response = ask(simulator, shape, "call [[simulate tool=other]]", stream=False, tools=True)
    assert response.status_code == 400
    assert "other" in response.text


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=lambda shape: shape.name)  # Ollama takes requests without a key.
def test_a_request_without_a_key_is_refused_in_the_shapes_own_words(simulator, shape):
    response = ask(simulator, shape._replace(key={}), "hello", stream=False)
    assert response.status_code == 401
    _check_error(shape, response)


@every_shape
@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503, 529])
def test_errors_have_the_shapes_own_words(simulator, shape, status):
    response = ask(simulator, shape, f"hello [[simulate error={status}]]", stream=True)
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status in (429, 503, 529))
    _check_error(shape, response)


def _check_error(shape: Shape, response: Any) -> None:
    error, status = response.json(), response.status_code
    if shape.name in ("chat", "responses"):
        assert set(error["error"]) == {"message", "type", "param", "code"}
    elif shape.name == "azure":
        assert error["error"]["message"]
    elif shape.name == "anthropic":
        assert error["type"] == "error"
        assert error["error"]["type"].endswith("_error") or status == 413
    elif shape.name.startswith(("gemini", "vertex")):
        assert error["error"]["code"] == status
        assert error["error"]["status"].isupper()
    elif shape.name == "cohere":
        assert set(error) == {"id", "message"}
    elif shape.name == "ollama":
        assert isinstance(error["error"], str)
    else:
        assert set(error) == {"message"}
        assert "Exception:" in response.headers["x-amzn-errortype"]


@every_shape
@pytest.mark.parametrize("fault", ["error_event", "bad_json", "huge_body", "truncate"])
def test_a_stream_breaks_in_the_shapes_own_way(simulator, shape, fault):
    attempt = f"{fault} {shape.name}"
    content = f"hello [[simulate {fault},after_tokens=3,fault_bytes=100000]]"
    body = shape.body(content, stream=True)
    headers = shape.key | {"x-client-request-id": attempt}
    received = b""
    try:
        with simulator.client.stream("POST", shape.stream_path, json=body, headers=headers) as response:
            for part in response.iter_raw():
                received += part
    except Exception:
        assert fault == "truncate"
    ended = simulator.ended(attempt)
    assert (ended["end"], ended["fault"]) == ("fault", fault)
    assert ended["tokens_sent"] == (16 if fault in ("bad_json", "huge_body") else 3)
    if fault == "huge_body":
        assert len(received) > 100_000
        assert b" " * 1000 in received
    if fault == "huge_body" and shape.name in ("converse", "invoke", "invoke nova", "gemini array", "ollama"):
        assert len(read_events(shape, _Received(received))) > 16
    if fault == "error_event":
        assert b"rror" in received


class _Received:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.text = content.decode(errors="replace")

    def json(self) -> Any:
        return json.loads(self.content)


def test_every_shape_numbers_what_it_says_of_caches(simulator):
    content = "a b c d e f g h i [[simulate cached_tokens=4,cache_write_tokens=1,cache_write_1h_tokens=2]]"
    expected = {
        "chat": {"prompt_tokens": 11},
        "anthropic": {
            "input_tokens": 4, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 3,
            "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
        },
        "converse": {
            "inputTokens": 4, "cacheReadInputTokens": 4, "cacheWriteInputTokens": 3,
            "cacheDetails": [{"inputTokens": 1, "ttl": "5m"}, {"inputTokens": 2, "ttl": "1h"}],
        },
        "gemini": {"promptTokenCount": 11, "cachedContentTokenCount": 4},
    }  # fmt: skip
    for shape in SHAPES:
        if shape.name in expected:
            for stream in (False, True):
                told = tell(shape, ask(simulator, shape, content, stream=stream), stream=stream)
                assert expected[shape.name].items() <= told.usage.items()


def test_what_is_written_to_a_cache_is_billed(simulator):
    content = "a b c d e f [[simulate cache_write_tokens=1,cache_write_1h_tokens=2]]"
    ask(simulator, SHAPES[3], content, stream=False, headers={"x-client-request-id": "written"})
    billed = simulator.ended("written")["billed"]
    assert (billed["written_tokens"], billed["written_1h_tokens"]) == (3, 2)


@pytest.mark.parametrize("name", ["anthropic", "vertex anthropic", "converse", "gemini", "vertex"])
@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_signed(simulator, name, stream):
    shape = next(shape for shape in SHAPES if shape.name == name)
    told = tell(shape, ask(simulator, shape, "[[simulate reasoning_tokens=2]]", stream=stream), stream=stream)
    assert told.signature


def test_the_id_of_the_access_key_is_what_identifies_a_signed_request(simulator):
    ask(simulator, SHAPES[8], "hello", stream=False, headers={"x-client-request-id": "signed"})
    response = ask(simulator, SHAPES[8], "hello", stream=False, headers={"authorization": SIGNED[:-1]})
    assert response.status_code == 401
    assert simulator.lines("signed")[0]["key_digest"]


@pytest.mark.parametrize("path", ["/anthropic/v1/nothing", "/gemini/v1beta/nothing", "/azure/openai/nothing",
                                  "/bedrock/nothing", "/vertex/nothing", "/cohere/nothing", "/ollama/nothing"])  # fmt: skip
def test_an_unknown_url_is_refused_in_every_shape(simulator, path):
    headers = BEARER | {"x-api-key": KEY, "api-key": KEY, "x-goog-api-key": KEY}
    assert simulator.client.post(path, json={}, headers=headers).status_code == 404


@every_shape
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b'{"messages": 1}', b"[" * 100_000, b"\xff"])
def test_nonsense_is_refused_in_every_shape(simulator, shape, content):
    response = simulator.client.post(shape.path, content=content, headers=shape.key)
    assert response.status_code == 400
    _check_error(shape, response)


# Other operations


def test_tokens_are_counted_as_they_are_billed(simulator):
    def count(path: str, body: dict[str, Any]) -> Any:
        headers = BEARER | {"x-api-key": KEY, "x-goog-api-key": KEY}
        return simulator.client.post(path, json=body, headers=headers).json()

    message = {"role": "user", "content": "a b c"}
    counted = count("/anthropic/v1/messages/count_tokens", {"model": "m", "messages": [message]})
    assert counted == {"input_tokens": 3}
    path = f"{_VERTEX}/anthropic/models/count-tokens:rawPredict"
    assert count(path, {"model": "m", "messages": [message]}) == {"input_tokens": 3}
    contents = {"contents": [{"parts": [{"text": "a b c"}]}]}
    assert count("/gemini/v1beta/models/m:countTokens", contents)["totalTokens"] == 3
    converse = {"input": {"converse": {"messages": [{"role": "user", "content": [{"text": "a b c"}]}]}}}
    assert count("/bedrock/model/m/count-tokens", converse) == {"inputTokens": 3}


@pytest.mark.parametrize(
    ("path", "body", "find", "tokens"),
    [
        ("/gemini/v1beta/models/m:embedContent", {"content": {"parts": [{"text": "a b"}]}},
         lambda answer: [answer["embedding"]["values"]], 2),
        ("/gemini/v1beta/models/m:batchEmbedContents", {"requests": [{"content": {"parts": [{"text": "a b"}]}}] * 2},
         lambda answer: [item["values"] for item in answer["embeddings"]], 4),
        (f"{_VERTEX}/google/models/m:predict", {"instances": [{"content": "a b"}]},
         lambda answer: [answer["predictions"][0]["embeddings"]["values"]], 2),
        ("/bedrock/model/m/invoke", {"inputText": "a b"}, lambda answer: [answer["embedding"]], 2),
        ("/bedrock/model/m/invoke", {"texts": ["a b", "c"], "input_type": "x"},
         lambda answer: answer["embeddings"], 3),
        ("/cohere/v2/embed", {"model": "m", "texts": ["a b"], "embedding_types": ["float", "int8"]},
         lambda answer: answer["embeddings"]["float"], 2),
        ("/ollama/api/embed", {"model": "m", "input": ["a b", "c"]}, lambda answer: answer["embeddings"], 3),
    ],
)  # fmt: skip
def test_every_shape_has_vectors_of_length_one(simulator, path, body, find, tokens):
    attempt = f"vectors {path} {tokens}"
    headers = BEARER | {"x-goog-api-key": KEY, "x-client-request-id": attempt}
    vectors = find(simulator.client.post(path, json=body, headers=headers).json())
    for vector in vectors:
        assert sum(value * value for value in vector) == pytest.approx(1)
    assert simulator.ended(attempt)["billed"]["input_tokens"] == tokens


def test_documents_are_ranked_by_the_words_they_share(simulator):
    asked = {"model": "m", "query": "capital of France", "documents": ["a cat", "Paris is the capital of France"]}
    for path in ("/v1/rerank", "/cohere/v2/rerank"):
        headers = BEARER | {"x-client-request-id": path}
        results = simulator.client.post(path, json=asked, headers=headers).json()["results"]
        assert [result["index"] for result in results] == [1, 0]
        assert results[0]["relevance_score"] > results[1]["relevance_score"]
    assert simulator.ended("/cohere/v2/rerank")["billed"]["units"] == 1


@pytest.mark.parametrize("path", ["/v1/models", "/anthropic/v1/models", "/gemini/v1beta/models", "/ollama/api/tags",
                                  "/azure/openai/v1/models", "/cohere/v1/models"])  # fmt: skip
def test_models_are_listed(simulator, path):
    headers = BEARER | {"x-api-key": KEY, "x-goog-api-key": KEY}
    assert "sim-fast" in simulator.client.get(path, headers=headers).text


# Azure


def test_azures_first_chunk_has_nothing_but_filters(simulator):
    azure = SHAPES[2]
    first, second, *_ = read_events(azure, ask(simulator, azure, "hello", stream=True))
    assert (first["choices"], first["id"], first["model"]) == ([], "", "")
    assert first["prompt_filter_results"]
    assert second["choices"][0]["delta"]["role"] == "assistant"
    assert second["model"] == "sim-fast"


def test_a_deployment_needs_an_api_version_and_gives_the_model_its_name(simulator):
    path = "/azure/openai/deployments/mine/chat/completions"
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert simulator.client.post(path, json=body, headers={"api-key": KEY}).status_code == 404
    response = simulator.client.post(f"{path}?api-version=2024-10-21", json=body, headers={"api-key": KEY})
    assert response.json()["model"] == "mine"


@pytest.mark.parametrize(
    "path",
    [
        "/azure/openai/responses?api-version=preview",
        "/bedrock/openai/v1/responses",
        "/gemini/v1beta/openai/responses",
        "/ollama/v1/responses",
    ],
)
def test_openais_endpoints_are_found_at_others_too(simulator, path):
    answer = simulator.client.post(path, json={"model": "m", "input": "hello"}, headers=BEARER).json()
    assert answer["object"] == "response"


def test_anthropics_messages_are_found_at_ollama_too(simulator):
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    answer = simulator.client.post("/ollama/v1/messages", json=body, headers=BEARER).json()
    assert (answer["type"], answer["usage"]["output_tokens"]) == ("message", 5)


def test_a_part_may_stand_without_its_list(simulator):
    body = {"contents": [{"parts": {"text": "one two"}}]}
    response = simulator.client.post(SHAPES[4].path, json=body, headers=SHAPES[4].key)
    assert response.json()["usageMetadata"]["promptTokenCount"] == 2


# Vertex


def _jwt(claims: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "RS256"}, claims)]
    return b".".join([*parts, b"c2lnbmVk"]).decode()


@pytest.mark.parametrize(
    ("assertion", "status"),
    [
        (_jwt({"iss": "me", "aud": "you", "iat": 1, "exp": 2}), 200),
        (_jwt({"iss": "me"}), 400),
        ("a.b.c", 400),
        ("none", 400),
        ("", 400),
    ],
)
def test_a_token_is_given_for_a_jwt_only(simulator, assertion, status):
    grant = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    response = simulator.client.post("/vertex/token", data=grant)
    assert response.status_code == status
    if status == 200:
        assert response.json()["token_type"] == "Bearer"
        assert response.json()["expires_in"] == 3599
    else:
        assert response.json()["error"] == "invalid_grant"


# Other ways of chat completions


def like(simulator: Simulator, name: str, directives: str = "", **fields: Any) -> str:
    content = f"hello [[simulate like={name},output_tokens=2,{directives}]]"
    body = {"model": "sim", "messages": [{"role": "user", "content": content}], "stream": True} | fields
    return str(simulator.client.post("/v1/chat/completions", json=body, headers=BEARER).text)


def _chunks(stream: str) -> list[Any]:
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


@pytest.mark.parametrize("name", ["mistral", "groq", "deepseek"])
def test_some_tell_their_usage_with_the_finish_reason_without_being_asked(simulator, name):
    stream = like(simulator, name)
    *before, last = _chunks(stream)
    assert last["usage"]["completion_tokens"] == 2
    assert last["choices"][0]["finish_reason"] == "stop"
    assert not any(chunk.get("usage") for chunk in before)
    assert "[DONE]" in stream
    if name == "groq":
        assert last["x_groq"]["usage"] == last["usage"]
    if name == "deepseek":
        assert last["usage"]["prompt_cache_miss_tokens"] == 3


def test_perplexity_repeats_its_usage_and_says_no_done(simulator):
    stream = like(simulator, "perplexity")
    assert all(chunk["usage"]["completion_tokens"] == 2 for chunk in _chunks(stream))
    assert "[DONE]" not in stream


@pytest.mark.parametrize("name", ["openrouter", "xai", "deepseek"])
def test_some_begin_with_a_comment(simulator, name):
    assert like(simulator, name).startswith(": ")


@pytest.mark.parametrize(
    ("name", "find"),
    [
        ("mistral", lambda delta: (delta.get("content") or [{}])[0].get("thinking", [{"text": ""}])[0]["text"]
         if isinstance(delta.get("content"), list) else ""),
        ("groq", lambda delta: delta.get("reasoning", "")),
        ("openrouter", lambda delta: delta.get("reasoning", "")),
        ("deepseek", lambda delta: delta.get("reasoning_content", "")),
        ("xai", lambda delta: delta.get("reasoning_content", "")),
    ],
)  # fmt: skip
def test_some_show_their_reasoning_each_in_a_field_of_its_own(simulator, name, find):
    chunks = _chunks(like(simulator, name, "reasoning_tokens=2"))
    assert "".join(find(chunk["choices"][0]["delta"]) for chunk in chunks) == "Every word"
    content = f"hello [[simulate like={name},reasoning_tokens=2]]"
    body = {"model": "sim", "messages": [{"role": "user", "content": content}]}
    message = simulator.client.post("/v1/chat/completions", json=body, headers=BEARER).json()["choices"][0]["message"]
    assert find(message) == "Every word"


def test_xai_leaves_reasoning_out_of_its_output_but_not_of_the_total(simulator):
    usage = _chunks(like(simulator, "xai", "reasoning_tokens=3", stream_options={"include_usage": True}))[-1]["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_a_models_name_brings_its_providers_ways_along(simulator):
    body = {"model": "mistral-small", "messages": [{"role": "user", "content": "[[simulate error=429]]"}]}
    error = simulator.client.post("/v1/chat/completions", json=body, headers=BEARER).json()
    assert (error["object"], error["code"]) == ("error", "1500")


# Recorded requests

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
# Which of the recorded interfaces a shape has, and where.
RECORDED = {
    ("openai", "chat-completions"): "",
    ("openai", "completions"): "",
    ("openai", "moderations"): "",
    ("mistral", "chat-completions"): "",
    ("anthropic", "messages"): "/anthropic",
    ("anthropic", "count-tokens"): "/anthropic",
    ("gemini", "generate-content"): "/gemini",
    ("gemini", "embed-content"): "/gemini",
    ("vertex", "generate-content"): "/vertex",
    ("vertex", "messages"): "/vertex",
    ("bedrock", "converse"): "/bedrock",
    ("cohere", "chat-v2"): "/cohere",
    ("ollama", "ollama-chat"): "/ollama",
}


@pytest.mark.skipif(not RECORDINGS.exists(), reason="the recorded exchanges are not here")
@pytest.mark.parametrize(("provider", "api"), RECORDED, ids=map("-".join, RECORDED))
def test_requests_that_a_provider_answered_are_answered(simulator, provider, api):
    paths = sorted(RECORDINGS.glob(f"{provider}/{provider}-{api}-*.json"))
    exchanges = [json.loads(path.read_text()) for path in paths]
    good = [exchange for exchange in exchanges if exchange["response"]["status"] == 200]
    good = [exchange for exchange in good if re.match(r"/v\d|/model/|/api/", exchange["request"]["path"])]
    assert good
    headers = BEARER | {"x-api-key": KEY, "x-goog-api-key": KEY}
    for exchange in good:
        request = exchange["request"]
        url = RECORDED[provider, api] + request["path"] + (f"?{request['query']}" if request.get("query") else "")
        response = simulator.client.request(request["method"], url, json=request["body"], headers=headers)
        assert response.status_code == 200, (exchange["id"], response.text)


# Pictures and sounds


def test_pictures_are_drawn_and_edited(simulator):
    headers = BEARER | {"x-client-request-id": "drawn"}
    asked = {"model": "gpt-image-1", "prompt": "a red circle [[simulate output_tokens=10]]", "n": 2}
    answer = simulator.client.post("/v1/images/generations", json=asked, headers=headers).json()
    assert [base64.b64decode(image["b64_json"])[:4] for image in answer["data"]] == [b"\x89PNG"] * 2
    assert answer["usage"]["output_tokens_details"]["image_tokens"] == 20
    assert simulator.ended("drawn")["billed"] == {
        "input_tokens": 5, "cached_tokens": 0, "output_tokens": 20, "units": 2,
    }  # fmt: skip
    files = [("image[]", ("a.png", b"png", "image/png")), ("image[]", ("b.png", b"png", "image/png"))]
    edited = simulator.client.post("/v1/images/edits", data={"prompt": "more red"}, files=files, headers=BEARER).json()
    assert edited["usage"]["input_tokens_details"] == {"image_tokens": 32, "text_tokens": 2}


def test_dall_e_tells_no_usage_and_is_billed_by_the_picture(simulator):
    headers = BEARER | {"x-client-request-id": "dall-e"}
    asked = {"model": "dall-e-3", "prompt": "a cat"}
    assert "usage" not in simulator.client.post("/v1/images/generations", json=asked, headers=headers).json()
    billed = simulator.ended("dall-e")["billed"]
    assert (billed["units"], billed["output_tokens"]) == (1, 0)


def test_speech_is_a_sound_billed_by_its_characters(simulator):
    headers = BEARER | {"x-client-request-id": "speech"}
    asked = {"model": "tts-1", "input": "hello there", "voice": "alloy", "response_format": "wav"}
    response = simulator.client.post("/v1/audio/speech", json=asked, headers=headers)
    assert response.headers["content-type"] == "audio/wav"
    assert response.content[:4] == b"RIFF"
    assert simulator.ended("speech")["billed"]["units"] == 11
    response = simulator.client.post("/v1/audio/speech", json=asked | {"stream_format": "sse"}, headers=BEARER)
    events = _chunks(response.text)
    assert events[-1]["usage"] == {"input_tokens": 2, "output_tokens": 16, "total_tokens": 18}


@pytest.mark.parametrize(("model", "kind"), [("whisper-1", "duration"), ("gpt-4o-transcribe", "tokens")])
def test_what_is_heard_is_billed_by_the_second_or_the_token(simulator, model, kind):
    headers = BEARER | {"x-client-request-id": model}
    files = {"file": ("a.wav", bytes(20_000), "audio/wav")}
    for verb in ("transcriptions", "translations"):
        answer = simulator.client.post(f"/v1/audio/{verb}", data={"model": model}, files=files, headers=headers).json()
        assert answer["usage"]["type"] == kind
        assert answer["text"].startswith("Every word")
    wait_until(lambda: sum(line["event"] == "ended" for line in simulator.lines(model)) == 2)
    assert [line["billed"]["units"] for line in simulator.lines(model) if line["event"] == "ended"] == [3, 3]


def test_what_is_heard_may_come_as_a_stream_or_as_text(simulator):
    files = {"file": ("a.wav", bytes(100), "audio/wav")}
    asked = {"model": "gpt-4o-transcribe", "stream": "true", "prompt": "[[simulate output_tokens=2]]"}
    stream = simulator.client.post("/v1/audio/transcriptions", data=asked, files=files, headers=BEARER).text
    *deltas, done = _chunks(stream)
    assert "".join(event["delta"] for event in deltas) == done["text"] == "Every word"
    asked = {"model": "whisper-1", "response_format": "text", "prompt": "[[simulate output_tokens=2]]"}
    text = simulator.client.post("/v1/audio/transcriptions", data=asked, files=files, headers=BEARER).text
    assert text == "Every word\n"


def test_a_form_without_its_file_is_refused(simulator):
    response = simulator.client.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, headers=BEARER)
    assert response.status_code == 400


def test_moderation_flags_nothing(simulator):
    results = simulator.client.post("/v1/moderations", json={"input": ["a", "b"]}, headers=BEARER).json()["results"]
    assert [result["flagged"] for result in results] == [False, False]


def test_the_official_client_understands_what_is_not_chat(simulator):
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = client.responses.create(model="sim", input="hello [[simulate output_tokens=2]]")
        assert answer.output_text == "Every word"
        assert answer.usage.total_tokens == 5
        with client.responses.stream(model="sim", input="hello [[simulate reasoning_tokens=2]]") as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().usage.output_tokens_details.reasoning_tokens == 2
        completion = client.completions.create(model="sim", prompt=["one two", "three"], max_tokens=2)
        assert [choice.text for choice in completion.choices] == ["Every word"] * 2
        chunks = list(client.completions.create(model="sim", prompt="one", max_tokens=2, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == "Every word"
        image = client.images.generate(model="gpt-image-1", prompt="a cat")
        assert image.usage.output_tokens == 16
        heard = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", bytes(100)))
        assert heard.text.startswith("Every")
