"""Ollama's own chat and embeddings: what is written to it, what is read from its lines."""

import base64
import json
from pathlib import Path

import msgspec
import pytest

from audit.records import Usage
from proxy.dialects.cohere_chat import CHAT as COHERE_CHAT
from proxy.dialects.openai_embeddings import EMBEDDINGS as OPENAI_EMBEDDINGS
from proxy.neutral import (
    Began,
    Done,
    Embedding,
    Failed,
    Finished,
    Media,
    Message,
    OpaqueDone,
    OutputFormat,
    Prompt,
    Reasoning,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    UsageSeen,
)
from proxy.providers.ollama import CHAT, EMBED
from proxy.providers.ollama import PROVIDER as OLLAMA
from proxy.providers.provider import EventMeter
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.json_lines import JSONLinesParser

PROVIDER = Provider(slug="ollama", api="ollama", base_url="http://localhost:11434")
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="ollama", model="m", upstream_model="qwen3", max_output_tokens=777
)
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def ask(*messages: Message, **parameters) -> Prompt:
    return Prompt(messages=list(messages) or [Message(role="user", parts=[Text(text="hi")])], **parameters)


def write(prompt: Prompt, *, is_stream: bool = False) -> tuple[dict, list[str]]:
    lost: list[str] = []
    body = json.dumps({"model": "demo", "messages": [], "stream": is_stream}).encode()
    call = COHERE_CHAT.describe(body, b"application/json", {})
    outgoing = CHAT.write_request(prompt, call, DEPLOYMENT, PROVIDER, lost)
    assert outgoing.target == b"/api/chat"
    return json.loads(outgoing.body), lost


def events_of(*lines: object) -> list:
    reader = CHAT.stream_reader()
    stream = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    return [event for frame in JSONLinesParser().feed(stream) for event in reader.read(frame)]


def test_a_conversation_is_written_with_its_tools():
    prompt = ask(
        Message(role="developer", parts=[Text(text="be brief")]),
        Message(
            role="user",
            parts=[Text(text="look"), Media(kind="image", media_type="image/png", data="AAAA"), Text(text="here")],
        ),
        Message(
            role="assistant",
            parts=[
                Thinking(text="hm"),
                Text(text="so"),
                ToolCall(call_id="c1", name="get", arguments='{"city": "Bern"}'),
            ],
        ),
        Message(role="user", parts=[ToolResult(call_id="c1", content=(Text(text="sunny"),)), Text(text="and?")]),
        tools=[Tool(name="get", description="the weather", parameters=SCHEMA)],
        tool_choice=ToolChoice(mode="auto"),
    )
    body, lost = write(prompt)
    assert lost == []
    assert body == {
        "model": "qwen3",
        "stream": False,
        "options": {"num_predict": 777},
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "look\n\nhere", "images": ["AAAA"]},
            {
                "role": "assistant",
                "content": "so",
                "thinking": "hm",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "get", "arguments": {"city": "Bern"}}}
                ],
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "c1", "tool_name": "get"},
            {"role": "user", "content": "and?"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "get", "description": "the weather", "parameters": SCHEMA}}
        ],
    }


def test_every_parameter_has_its_place():
    prompt = ask(
        max_output_tokens=5,
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        repetition_penalty=1.1,
        seed=7,
        stop=("END",),
        logprobs=True,
        top_logprobs=2,
        output_format=OutputFormat(schema=SCHEMA, name="city"),
        reasoning=Reasoning(effort="xhigh"),
        cache="5m",
    )
    body, lost = write(prompt, is_stream=True)
    assert lost == []
    assert body["options"] == {
        "num_predict": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "repeat_penalty": 1.1,
        "seed": 7,
        "stop": ["END"],
    }
    assert (body["format"], body["think"], body["stream"]) == (SCHEMA, "high", True)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert write(ask(output_format=OutputFormat()))[0]["format"] == "json"


@pytest.mark.parametrize(
    ("reasoning", "think"),
    [
        (Reasoning(is_on=False), False),
        (Reasoning(effort="none"), False),
        (Reasoning(is_on=True), True),
        (Reasoning(is_adaptive=True), True),
        (Reasoning(effort="minimal"), "low"),
        (Reasoning(budget_tokens=8_000), "medium"),
        (Reasoning(budget_tokens=100_000), "high"),
        (Reasoning(summary="auto"), None),
    ],
)
def test_reasoning_is_a_level(reasoning, think):
    assert write(ask(reasoning=reasoning))[0].get("think") == think


def test_a_choice_of_tools_is_told_by_the_tools_that_are_sent():
    tools = [Tool(name="a"), Tool(name="b")]
    assert "tools" not in write(ask(tools=tools, tool_choice=ToolChoice(mode="none")))[0]
    body, lost = write(ask(tools=tools, tool_choice=ToolChoice(mode="auto", allowed=("b",))))
    assert [tool["function"]["name"] for tool in body["tools"]] == ["b"]
    assert lost == []
    assert write(ask(tools=tools, tool_choice=ToolChoice(mode="required")))[1] == ["tool_choice"]


def test_a_failed_tool_says_so():
    result = ToolResult(call_id="c", content=(Text(text="no such city"),), is_error=True)
    (message,) = write(ask(Message(role="user", parts=[result])))[0]["messages"]
    assert message == {"role": "tool", "content": "The tool failed:\n\nno such city", "tool_call_id": "c"}


def test_what_ollama_has_no_place_for_is_named():
    prompt = ask(
        Message(role="user", name="bob", parts=[Media(kind="image", url="https://x", path="messages.0.content.0")]),
        Message(
            role="assistant",
            parts=[
                Thinking(text="hm", signature="s", origin="anthropic", path="messages.1.content.0"),
                ToolCall(call_id="c", name="t", arguments="[1]", path="messages.1.content.1"),
                ToolCall(call_id="c", name="t", is_custom=True, path="messages.1.content.2"),
            ],
        ),
        tools=[Tool(name="a", is_strict=True, path="tools.0")],
        choices=2,
        logit_bias={"5": 1.0},
        user="u",
    )
    _, lost = write(prompt)
    assert sorted(lost) == [
        "choices",
        "logit_bias",
        "messages.0.content.0",
        "messages.0.name",
        "messages.1.content.0",
        "messages.1.content.1",
        "messages.1.content.2",
        "tools.0",
        "user",
    ]


def test_a_stream_is_read_line_by_line():
    head = {"model": "qwen3", "created_at": "2025-05-07T01:16:23.653756921Z"}
    call = {"function": {"name": "get", "arguments": {"city": "Bern"}}}
    logprob = {"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Ho", "logprob": -1.0}]}
    events = events_of(
        {**head, "message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {**head, "message": {"role": "assistant", "content": "Hi"}, "logprobs": [logprob], "done": False},
        {**head, "message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False},
        {
            **head,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 3,
            "eval_count": 4,
        },
    )
    answer_id = "ollama-20250507011623653756921"
    assert events == [
        Began(answer_id=answer_id, model="qwen3", created_at_s=1_746_580_583),
        ThinkingDelta(text="hm"),
        TextDelta(
            text="Hi",
            logprobs=[TokenLogprob(token="Hi", logprob=-0.5, top=(TokenLogprob(token="Ho", logprob=-1.0),))],
        ),
        ToolCallBegan(index=0, call_id=f"call_{answer_id}_0", name="get"),
        ToolCallDelta(index=0, arguments='{"city": "Bern"}'),
        UsageSeen(usage=Usage(input_tokens=3, output_tokens=4)),
        Finished(finish="tool_calls", finish_detail="stop"),
        Done(),
    ]


def test_an_error_within_a_stream_fails_it():
    (event,) = events_of({"error": "an error was encountered while running the model"})
    assert isinstance(event, Failed)
    assert event.error.message == "an error was encountered while running the model"


@pytest.mark.parametrize(
    "line", [b"<html>", b"[]", b'{"message":"text"}', b'{"message":{"content":5}}', b'{"model":"\xff"}', b"[" * 100_000]
)
def test_what_cannot_be_read_is_counted_and_no_more(line):
    assert events_of(line) == [OpaqueDone(kind="", size=len(line))]


@pytest.mark.parametrize(
    "line", [b"{}", b'{"created_at":"soon","message":null}', b'{"created_at":"0001-01-01T00:00:00Z"}']
)
def test_a_line_without_much_in_it_is_read(line):
    (event,) = events_of(line)
    assert isinstance(event, Began)
    assert event.created_at_s == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"message":5}', b'{"message":{"content":"\xff"}}'])
def test_an_answer_of_another_shape_is_refused(body):
    with pytest.raises(msgspec.DecodeError):
        CHAT.read_answer(body)


@pytest.mark.parametrize(
    ("arguments", "text"), [('{"a":1}', '{"a":1}'), ("null", "{}"), ('"{\\"a\\":1}"', '{"a":1}'), ('""', "{}")]
)
def test_arguments_are_the_text_of_an_object(arguments, text):
    head = '{"message":{"tool_calls":[{"function":{"name":"t","arguments":'
    body = head + arguments + '}}]},"done_reason":"stop"}'
    (choice,) = CHAT.read_answer(body.encode()).choices
    assert choice.parts == [ToolCall(call_id="call_ollama-_0", name="t", arguments=text)]
    assert choice.finish == "tool_calls"


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"prompt_eval_count": 3, "eval_count": 4}, Usage(input_tokens=3, output_tokens=4)),
        ({"eval_count": 4}, Usage(output_tokens=4)),
        ({}, None),
        ({"prompt_eval_count": -1, "eval_count": 4}, None),
    ],
)
def test_usage_is_the_counts_of_the_last_line(counts, usage):
    body = json.dumps({"message": {"content": "x"}, **counts}).encode()
    assert CHAT.measure(body).usage == usage
    assert CHAT.read_answer(body).usage == usage


# Embeddings


def test_embeddings_are_asked_for_and_told():
    call = OPENAI_EMBEDDINGS.describe(b'{"model":"demo","input":["a","b"],"dimensions":64}', b"", {})
    call.prompt = OPENAI_EMBEDDINGS.read_prompt(call)
    lost: list[str] = []
    outgoing = EMBED.write_request(call.prompt, call, DEPLOYMENT, PROVIDER, lost)
    assert outgoing.target == b"/api/embed"
    assert json.loads(outgoing.body) == {"model": "qwen3", "input": ["a", "b"], "truncate": False, "dimensions": 64}
    assert lost == []
    answer = EMBED.read_answer(b'{"model":"nomic","embeddings":[[0.5],[1]],"prompt_eval_count":2}')
    written = json.loads(OPENAI_EMBEDDINGS.write_answer(answer, call))
    assert [item["embedding"] for item in written["data"]] == [[0.5], [1.0]]
    assert (written["model"], written["usage"]) == ("demo", {"prompt_tokens": 2, "total_tokens": 2})


def test_tokens_and_images_are_named():
    image = Media(kind="image", url="https://x", path="images.0")
    call = OPENAI_EMBEDDINGS.describe(b'{"model":"demo"}', b"", {})
    lost: list[str] = []
    EMBED.write_request(Embedding(inputs=["a", [1, 2], image], user="u"), call, DEPLOYMENT, PROVIDER, lost)
    assert lost == ["user", "input", "images.0"]


# APIs of others


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("openai.chat", b"/v1/chat/completions"),
        ("openai.responses", b"/v1/responses"),
        ("openai.completions", b"/v1/completions"),
        ("openai.embeddings", b"/v1/embeddings"),
        ("anthropic.messages", b"/v1/messages"),
    ],
)
def test_clients_of_others_are_passed_to_the_paths_of_theirs(name, target):
    (api,) = [api for api in OLLAMA.apis if api.name == name]
    body = b'{"model":"demo","max_tokens":5,"max_output_tokens":5}'
    call = msgspec.structs.replace(COHERE_CHAT.describe(body, b"", {}), is_stream=False)
    sent = api.pass_request(call, DEPLOYMENT, PROVIDER)
    assert sent.target == target
    assert json.loads(sent.body)["model"] == "qwen3"


@pytest.mark.parametrize(("capability", "api"), [("chat", CHAT), ("embeddings", EMBED)])
def test_other_clients_are_translated_to_ollamas_own_apis(capability, api):
    translatable = [each for each in OLLAMA.apis if each.capability == capability and each.is_translatable]
    assert translatable[0] is api


# Real traffic


def _recorded(api: str, *, is_stream: bool = False):
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["provider"] == "ollama" and entry["api"] == api and entry["streaming"] is is_stream
    ]


@pytest.mark.parametrize("path", _recorded("ollama-chat"))
def test_a_real_answer_is_read_whole(path):
    response = json.loads(path.read_text())["response"]
    body = response["body_text"].encode()
    if response["status"] != 200:
        assert CHAT.read_error(response["status"], body).message == json.loads(body)["error"]
        return
    expected, answer = json.loads(body), CHAT.read_answer(body)
    message, parts = expected["message"], answer.choices[0].parts
    assert "".join(part.text for part in parts if isinstance(part, Text)) == message["content"]
    assert "".join(part.text for part in parts if isinstance(part, Thinking)) == message.get("thinking", "")
    calls = [part for part in parts if isinstance(part, ToolCall)]
    assert [json.loads(call.arguments) for call in calls] == [
        call["function"]["arguments"] for call in message.get("tool_calls", ())
    ]
    usage = Usage(input_tokens=expected["prompt_eval_count"], output_tokens=expected["eval_count"])
    assert answer.usage == CHAT.measure(body).usage == usage


@pytest.mark.parametrize("path", _recorded("ollama-chat", is_stream=True))
def test_a_real_stream_is_read_whole_at_any_cut(path):
    stream = base64.b64decode(json.loads(path.read_text())["response"]["body_base64"])
    lines = [json.loads(line) for line in stream.splitlines() if line]
    seen = []
    for size in (1, 100, len(stream)):
        parser, reader, meter = JSONLinesParser(), CHAT.stream_reader(), EventMeter(CHAT.stream_reader())
        frames = [each for at in range(0, len(stream), size) for each in parser.feed(stream[at : at + size])]
        seen.append([event for each in frames for event in reader.read(each)])
        for each in frames:
            meter.observe(each)
    assert seen[0] == seen[1] == seen[2]
    events = seen[0]
    assert not any(isinstance(event, OpaqueDone | Failed) for event in events)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text == "".join(line["message"]["content"] for line in lines)
    usage = Usage(input_tokens=lines[-1]["prompt_eval_count"], output_tokens=lines[-1]["eval_count"])
    assert (meter.usage, meter.is_done, meter.response_model) == (usage, True, lines[-1]["model"])


@pytest.mark.parametrize("path", _recorded("messages"))
def test_a_real_message_is_read_whole_and_its_reasoning_is_nobodys(path):
    (api,) = [api for api in OLLAMA.apis if api.name == "anthropic.messages"]
    body = json.loads(path.read_text())["response"]["body_text"]
    (block,) = json.loads(body)["content"]
    (choice,) = api.read_answer(body.encode()).choices
    assert (choice.parts, choice.finish) == ([Thinking(text=block["thinking"])], "length")
    measured = api.measure(body.encode())
    assert (measured.usage, measured.response_model) == (Usage(input_tokens=68, output_tokens=16), "gpt-oss:20b")


@pytest.mark.parametrize("path", _recorded("ollama-embed"))
def test_real_embeddings_are_read_whole(path):
    body = json.loads(path.read_text())["response"]["body_text"]
    answer = EMBED.read_answer(body.encode())
    assert answer.vectors == json.loads(body)["embeddings"]
    assert (
        answer.usage == EMBED.measure(body.encode()).usage == Usage(input_tokens=json.loads(body)["prompt_eval_count"])
    )


def test_an_empty_line_says_nothing():
    assert CHAT.stream_reader().read(Frame(b"\n", b"", b"")) == ()
