"""Cohere's chat on both sides: what is read from its clients and its answers, what is written to them."""

import base64
import json
from pathlib import Path

import msgspec
import pytest

from audit.records import Usage
from proxy.dialects.cohere_chat import CHAT
from proxy.errors import BudgetExceeded, InvalidRequest
from proxy.neutral import (
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
    Done,
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
from proxy.providers.cohere_chat import CHAT as API
from proxy.providers.provider import EventMeter
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.sse import SSEParser

PROVIDER = Provider(slug="cohere", api="cohere", base_url="https://api.cohere.com")
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="cohere", model="m", upstream_model="command-a", max_output_tokens=777
)
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def read(**body):
    call = CHAT.describe(json.dumps({"model": "demo", **body}).encode(), b"application/json", {})
    call.prompt = CHAT.read_prompt(call)
    return call


def ask(*messages: Message, **parameters) -> Prompt:
    return Prompt(messages=list(messages) or [Message(role="user", parts=[Text(text="hi")])], **parameters)


def write(prompt: Prompt, *, is_stream: bool = False) -> tuple[dict, list[str]]:
    lost: list[str] = []
    call = read(messages=[{"role": "user", "content": "hi"}], stream=is_stream)
    outgoing = API.write_request(prompt, call, DEPLOYMENT, PROVIDER, lost)
    assert outgoing.target == b"/v2/chat"
    return json.loads(outgoing.body), lost


def frame(value: object) -> Frame:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Frame(data, data, b"")


# To Cohere


def test_a_conversation_is_written_with_its_tools():
    prompt = ask(
        Message(role="system", parts=[Text(text="be brief")]),
        Message(
            role="user",
            parts=[
                Text(text="look"),
                Media(kind="image", media_type="image/png", data="AAAA", detail="low"),
                Media(kind="image", url="https://x/y.png"),
            ],
        ),
        Message(
            role="assistant",
            parts=[Thinking(text="first the weather"), ToolCall(call_id="c1", name="get", arguments='{"city":"Bern"}')],
        ),
        Message(role="user", parts=[ToolResult(call_id="c1", content=(Text(text="sunny"),)), Text(text="and?")]),
        Message(role="developer", parts=[Text(text="in German")]),
        tools=[Tool(name="get", description="the weather", parameters=SCHEMA)],
    )
    body, lost = write(prompt)
    assert lost == []
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            ],
        },
        {
            "role": "assistant",
            "tool_plan": "first the weather",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city":"Bern"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "user", "content": "and?"},
        {"role": "system", "content": "in German"},
    ]
    assert body["tools"] == [
        {"type": "function", "function": {"name": "get", "description": "the weather", "parameters": SCHEMA}}
    ]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("command-a", 777, False)


def test_every_parameter_has_its_place():
    prompt = ask(
        max_output_tokens=5,
        temperature=0,
        top_p=0.5,
        top_k=3,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        seed=7,
        stop=("END",),
        logprobs=True,
        output_format=OutputFormat(schema=SCHEMA, name="city", description="a city"),
        reasoning=Reasoning(effort="low"),
        cache="5m",
        prompt_cache_key="k",
    )
    body, lost = write(prompt, is_stream=True)
    assert lost == []
    del body["messages"]
    assert body == {
        "model": "command-a",
        "max_tokens": 5,
        "stream": True,
        "temperature": 0,
        "p": 0.5,
        "k": 3,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "seed": 7,
        "logprobs": True,
        "stop_sequences": ["END"],
        "response_format": {"type": "json_object", "json_schema": {**SCHEMA, "description": "a city"}},
        "thinking": {"type": "enabled", "token_budget": 2048},
    }


def test_all_of_the_probability_is_the_most_that_cohere_takes():
    assert write(ask(top_p=1))[0]["p"] == 0.99


@pytest.mark.parametrize(
    ("reasoning", "thinking"),
    [
        (Reasoning(is_on=False), {"type": "disabled"}),
        (Reasoning(effort="none"), {"type": "disabled"}),
        (Reasoning(is_on=True), {"type": "enabled"}),
        (Reasoning(budget_tokens=99), {"type": "enabled", "token_budget": 99}),
        (Reasoning(summary="auto"), None),
    ],
)
def test_reasoning_is_a_budget(reasoning, thinking):
    assert write(ask(reasoning=reasoning))[0].get("thinking") == thinking


@pytest.mark.parametrize(
    ("choice", "word", "names"),
    [
        (ToolChoice(mode="auto"), None, ["a", "b"]),
        (ToolChoice(mode="none"), "NONE", ["a", "b"]),
        (ToolChoice(mode="required"), "REQUIRED", ["a", "b"]),
        (ToolChoice(mode="tool", name="b"), "REQUIRED", ["b"]),
        (ToolChoice(mode="required", allowed=("a",)), "REQUIRED", ["a"]),
    ],
)
def test_a_choice_among_tools_is_the_choice_of_those_alone(choice, word, names):
    body, lost = write(ask(tools=[Tool(name="a"), Tool(name="b")], tool_choice=choice))
    assert body.get("tool_choice") == word
    assert [tool["function"]["name"] for tool in body["tools"]] == names
    assert lost == []


def test_strict_tools_are_strict_together():
    strict = Tool(name="a", is_strict=True, path="tools.0")
    assert write(ask(tools=[strict]))[0]["strict_tools"] is True
    body, lost = write(ask(tools=[strict, Tool(name="b")]))
    assert "strict_tools" not in body
    assert lost == ["tools.0"]


def test_documents_to_cite_go_where_cohere_cites_from():
    cited = Media(kind="document", text="The sky is green.", name="Sky", is_cited=True)
    plain = Media(kind="document", text="It is warm.", name="Air")
    body, lost = write(ask(Message(role="user", parts=[cited, plain, Text(text="why?")])))
    assert body["documents"] == [{"id": "doc:0", "data": {"title": "Sky", "text": "The sky is green."}}]
    assert [block["text"] for block in body["messages"][0]["content"]] == ["Air\n\nIt is warm.", "why?"]
    assert lost == []


def test_a_failed_tool_says_so():
    result = ToolResult(call_id="c", content=(Text(text="no such city"),), is_error=True)
    body, _ = write(ask(Message(role="user", parts=[result])))
    document = {"type": "document", "document": {"data": {"error": "no such city"}}}
    assert body["messages"] == [{"role": "tool", "tool_call_id": "c", "content": [document]}]


def test_what_cohere_has_no_place_for_is_named():
    prompt = ask(
        Message(
            role="user",
            name="bob",
            parts=[
                Media(kind="document", data="AAAA", media_type="application/pdf", path="messages.0.content.0"),
                Media(kind="audio", data="AAAA", path="messages.0.content.1"),
            ],
        ),
        Message(
            role="assistant",
            parts=[
                Thinking(text="hm", signature="s", origin="anthropic", path="messages.1.content.0"),
                Thinking(redacted="r", origin="anthropic", path="messages.1.content.1"),
                ToolCall(call_id="c", name="t", signature="g", path="messages.1.content.2"),
            ],
        ),
        choices=2,
        user="u",
        top_logprobs=3,
        parallel_tool_calls=False,
        names={"choices": "n"},
    )
    _, lost = write(prompt)
    assert sorted(lost) == [
        "messages.0.content.0",
        "messages.0.content.1",
        "messages.0.name",
        "messages.1.content.0",
        "messages.1.content.1",
        "messages.1.content.2",
        "n",
        "parallel_tool_calls",
        "top_logprobs",
        "user",
    ]


# From Cohere


def test_usage_is_what_is_billed():
    usage = {
        "billed_units": {"input_tokens": 267.0, "output_tokens": 52},
        "tokens": {"input_tokens": 34, "output_tokens": 56, "reasoning_tokens": 20, "image_tokens": 259},
        "cached_tokens": 576,
    }
    body = json.dumps({"message": {}, "finish_reason": "MAX_TOKENS", "usage": usage}).encode()
    expected = Usage(input_tokens=267, output_tokens=52, reasoning_tokens=20, input_image_tokens=259)
    assert API.measure(body).usage == expected
    assert API.read_answer(body).usage == expected
    assert API.read_answer(body).choices[0].finish == "length"


@pytest.mark.parametrize("usage", [{}, {"billed_units": {}}, {"billed_units": {"input_tokens": -5}}, None])
def test_usage_that_cannot_be_is_none(usage):
    body = json.dumps({"message": {}, "finish_reason": "COMPLETE", "usage": usage}).encode()
    assert API.measure(body).usage is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"message":null}', b'{"message":{"content":[{"text":"\xff"}]}}'])
def test_an_answer_of_another_shape_is_refused(body):
    with pytest.raises(msgspec.DecodeError):
        API.read_answer(body)


def test_an_answer_that_ended_in_an_error_has_one():
    assert API.measure(b'{"id":"x","message":{},"finish_reason":"ERROR"}').has_error


def events_of(*values: object) -> list:
    reader = API.stream_reader()
    return [event for value in values for event in reader.read(frame(value))]


def test_a_tool_without_parameters_is_called_with_an_empty_object():
    started = {"message": {"tool_calls": {"id": "c", "function": {"name": "now", "arguments": ""}}}}
    null = {"message": {"tool_calls": {"function": {"arguments": "null"}}}}
    events = events_of(
        {"type": "tool-call-start", "index": 0, "delta": started},
        {"type": "tool-call-delta", "index": 0, "delta": null},
        {"type": "tool-call-end", "index": 0},
    )
    assert events == [ToolCallBegan(index=0, call_id="c", name="now"), ToolCallDelta(index=0, arguments="{}")]


def test_an_error_within_a_stream_fails_it():
    end = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "invalid tool generation"}}
    (event,) = events_of(end)
    assert isinstance(event, Failed)
    assert event.error.message == "invalid tool generation"
    (event,) = events_of({"id": "x", "message": "internal server error"})
    assert isinstance(event, Failed)
    assert event.error.message == "internal server error"


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"[]",
        b'"text"',
        b"{}",
        b'{"type":5}',
        b'{"type":"debug","prompt":"x"}',
        b'{"type":"content-delta"}',
        b'{"type":"content-delta","delta":{"message":{"content":7}}}',
        b'{"type":"tool-call-start","delta":{"message":{"tool_calls":[]}}}',
        b'{"type":"tool-plan-delta","delta":null}',
        b'{"type":"citation-start","delta":{"message":{"citations":{"sources":["x"]}}}}',
        b'{"type":"message-end","delta":"x"}',
        b'{"type":"content-delta","delta":{"message":{"content":{"text":"\xff"}}}}',
        b'{"type":"content-delta","delta":' + b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_counted_and_no_more(data):
    (event,) = API.stream_reader().read(frame(data))
    assert isinstance(event, OpaqueDone)
    assert event.size == len(data)


def test_an_end_with_strange_usage_is_still_an_end():
    end = {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": {"billed_units": "many"}}}
    assert events_of(end) == [Finished(finish="stop", finish_detail="COMPLETE"), Done()]


def test_logprobs_are_read():
    delta = {
        "message": {"content": {"text": "Hi"}},
        "logprobs": {"text": "Hi", "token_ids": [1, 2], "logprobs": [-0.5, -1]},
    }
    (event,) = events_of({"type": "content-delta", "index": 0, "delta": delta})
    assert event.logprobs == [TokenLogprob(token="Hi", logprob=-0.5), TokenLogprob(token="", logprob=-1.0)]


# Cohere's clients


def test_a_client_is_read_whole():
    call = read(
        messages=[
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                ],
            },
            {
                "role": "assistant",
                "tool_plan": "plan",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "get", "arguments": "{}"}},
                    {"id": "c2", "type": "function", "function": {"name": "get", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {
                "role": "tool",
                "tool_call_id": "c2",
                "content": [{"type": "document", "document": {"id": "1", "data": {"text": "rain", "at": "9"}}}],
            },
        ],
        tools=[{"type": "function", "function": {"name": "get", "description": "d", "parameters": SCHEMA}}],
        strict_tools=True,
        tool_choice="REQUIRED",
        max_tokens=5,
        stop_sequences=["END"],
        temperature=0.3,
        seed=1,
        p=0.9,
        k=2,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logprobs=True,
        response_format={"type": "json_object", "json_schema": SCHEMA},
        thinking={"type": "enabled", "token_budget": 99},
        safety_mode="CONTEXTUAL",
        stream=True,
    )
    prompt = call.prompt
    assert call.is_stream
    assert call.has_images
    assert prompt.lost == []
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    text, inline, linked = prompt.messages[1].parts
    assert (text.text, inline.media_type, inline.data, inline.detail) == ("look", "image/png", "AAAA", "low")
    assert linked.url == "https://x/y.png"
    assert [type(part) for part in prompt.messages[2].parts] == [Thinking, ToolCall, ToolCall]
    assert [result.content[0].text for result in prompt.messages[3].parts] == ["sunny", '{"text":"rain","at":"9"}']
    assert prompt.tools[0].is_strict
    assert prompt.tool_choice == ToolChoice(mode="required")
    assert prompt.output_format == OutputFormat(schema=SCHEMA)
    assert prompt.reasoning == Reasoning(is_on=True, budget_tokens=99)
    assert (prompt.max_output_tokens, prompt.stop, prompt.top_p, prompt.top_k) == (5, ("END",), 0.9, 2)


def test_documents_stand_before_the_last_question():
    prompt = read(
        messages=[{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
        documents=[
            "plain",
            {"id": "d1", "data": {"title": "Sky", "snippet": "green", "year": "1"}},
            {"data": {"a": "b"}},
        ],
    ).prompt
    first, second, third, text = prompt.messages[1].parts
    assert (first.text, first.is_cited, text.text) == ("plain", True, "two")
    assert (second.name, second.text, second.context) == ("Sky", "green", '{"year":"1"}')
    assert third.text == '{"a":"b"}'


def test_citations_name_the_documents_as_the_client_did():
    call = read(messages=[{"role": "user", "content": "q"}], documents=[{"id": "sky", "data": "The sky is green."}])
    cited = Text(
        text="It is green.", citations=(Citation(cited_text="The sky is green.", document=0, start=6, end=11),)
    )
    answer = Answer(answer_id="a", choices=[Choice(parts=[cited])], usage=Usage(input_tokens=3, output_tokens=4))
    written = json.loads(CHAT.write_answer(answer, call))
    assert written["message"]["citations"] == [
        {
            "start": 6,
            "end": 11,
            "text": "green",
            "content_index": 0,
            "type": "TEXT_CONTENT",
            "sources": [{"type": "document", "id": "sky", "document": {"id": "sky", "text": "The sky is green."}}],
        }
    ]
    assert written["finish_reason"] == "COMPLETE"
    assert written["usage"]["billed_units"] == {"input_tokens": 3, "output_tokens": 4}


def test_a_signature_comes_back_unchanged():
    parts = [
        Thinking(text="hm", signature="sig==", origin="anthropic"),
        Thinking(redacted="enc", origin="anthropic"),
        Text(text="hi"),
        ToolCall(call_id="c", name="t", arguments="{}", signature="gem"),
    ]
    call = read(messages=[{"role": "user", "content": "q"}])
    message = json.loads(CHAT.write_answer(Answer(choices=[Choice(parts=parts)]), call))["message"]
    returned = read(messages=[{"role": "user", "content": "q"}, message]).prompt
    thought, redacted, _, called = returned.messages[1].parts
    assert (thought.text, thought.signature, thought.origin) == ("hm", "sig==", "anthropic")
    assert (redacted.redacted, redacted.origin) == ("enc", "anthropic")
    assert called.signature == "gem"
    assert returned.lost == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
            "messages.0.content.0.image_url.url",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages.0.tool_calls.0.function"),
        ({"messages": [{"role": "user", "content": "x"}], "tool_choice": "MAYBE"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "x"}], "documents": [5]}, "documents.0"),
        ({"messages": [{"role": "user", "content": "x"}], "stop_sequences": [5]}, "stop_sequences.0"),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x"}], "stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_field_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        read(**body)
    assert caught.value.param == param


def test_what_only_cohere_knows_is_named():
    prompt = read(
        messages=[{"role": "user", "content": [{"type": "video", "video": "x"}], "mood": "x"}],
        safety_mode="STRICT",
        priority=3,
        connectors=[{"id": "web-search"}],
    ).prompt
    assert prompt.lost == ["messages.0.content.0.type", "messages.0.mood", "safety_mode", "priority", "connectors"]


def written_events(stream: bytes) -> list[dict]:
    frames = SSEParser().feed(stream)
    assert frames[-1].data == b"[DONE]"
    events = [json.loads(frame.data) for frame in frames[:-1]]
    assert [frame.event.decode() for frame in frames[:-1]] == [event["type"] for event in events]
    return events


def test_a_stream_opens_and_closes_its_blocks():
    writer = CHAT.stream_writer(read(messages=[{"role": "user", "content": "q"}]))
    stream = writer.write(
        [
            Began(answer_id="a"),
            ThinkingDelta(text="hm"),
            TextDelta(text="Hel"),
            TextDelta(text="lo"),
            Cited(citation=Citation(url="https://x", title="X")),
            TextDelta(text="again", begins_part=True),
            ToolCallBegan(index=0, call_id="c0", name="t"),
            ToolCallDelta(index=0, arguments="{}"),
            ToolCallBegan(index=1, call_id="c1", name="t"),
            TextDelta(text="another choice", choice=1),
            Finished(finish="tool_calls"),
            UsageSeen(usage=Usage(input_tokens=1, output_tokens=2)),
        ]
    )
    events = written_events(stream + writer.finish())
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message-start", None),
        ("content-start", 0),
        ("content-delta", 0),
        ("content-end", 0),
        ("content-start", 1),
        ("content-delta", 1),
        ("content-delta", 1),
        ("citation-start", 0),
        ("citation-end", 0),
        ("content-end", 1),
        ("content-start", 2),
        ("content-delta", 2),
        ("content-end", 2),
        ("tool-call-start", 0),
        ("tool-call-delta", 0),
        ("tool-call-end", 0),
        ("tool-call-start", 1),
        ("tool-call-end", 1),
        ("message-end", None),
    ]
    assert events[-1]["delta"]["finish_reason"] == "TOOL_CALL"
    assert events[-1]["delta"]["usage"]["billed_units"] == {"input_tokens": 1, "output_tokens": 2}


def test_an_error_has_coheres_shape():
    error = BudgetExceeded("over", details={"budget": "b"})
    assert json.loads(CHAT.render_error(error, "r1")) == {
        "id": "r1",
        "message": "over",
        "code": "budget_exceeded",
        "budget": "b",
    }
    (event,) = SSEParser().feed(CHAT.render_error_event(error, "r1"))
    (failed,) = API.stream_reader().read(event)
    assert isinstance(failed, Failed)
    assert failed.error.message == "over"


# The same dialect


def test_only_what_must_change_changes():
    body = b'{"z": [1,  2], "model":"demo", "temperature":0.10, "messages":[{"role":"user","content":"x"}]}'
    sent = API.pass_request(CHAT.describe(body, b"application/json", {}), DEPLOYMENT, PROVIDER)
    assert json.loads(sent.body) == {**json.loads(body), "model": "command-a", "max_tokens": 777}
    assert b"[1,  2]" in sent.body
    assert b"0.10" in sent.body
    capped = CHAT.describe(b'{"model":"demo","max_tokens":3}', b"application/json", {})
    assert json.loads(API.pass_request(capped, DEPLOYMENT, PROVIDER).body)["max_tokens"] == 3


# Real traffic


def _recorded(*, is_good: bool, is_stream: bool = False):
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["provider"] == "cohere"
        and entry["api"] == "chat-v2"
        and (entry["status"] == 200) is is_good
        and entry["streaming"] is is_stream
    ]


@pytest.mark.parametrize("path", _recorded(is_good=True) + _recorded(is_good=True, is_stream=True))
def test_a_real_request_is_read_and_written_again(path):
    body = json.loads(path.read_text())["request"]["body"]
    call = read(**body)
    assert call.prompt.lost == []
    sent, lost = write(call.prompt)
    assert lost == []
    assert len(sent["messages"]) == len(body["messages"])
    assert sent.get("tools") == body.get("tools")
    for name in ("temperature", "seed", "thinking", "tool_choice", "p", "k"):
        assert sent.get(name) == body.get(name)


@pytest.mark.parametrize("path", _recorded(is_good=True))
def test_a_real_answer_is_read_and_written_again(path):
    recording = json.loads(path.read_text())
    body = recording["response"]["body_text"]
    answer, expected = API.read_answer(body.encode()), json.loads(body)
    billed = expected["usage"]["billed_units"]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (billed["input_tokens"], billed["output_tokens"])
    assert API.measure(body.encode()).usage == answer.usage
    written = json.loads(CHAT.write_answer(answer, read(messages=[{"role": "user", "content": "q"}])))
    assert (written["id"], written["finish_reason"]) == (expected["id"], expected["finish_reason"])
    assert written["usage"]["billed_units"] == billed
    texts = [block["text"] for block in expected["message"].get("content", ()) if block["type"] == "text"]
    assert [block["text"] for block in written["message"].get("content", ()) if block["type"] == "text"] == texts
    calls = [call["id"] for call in expected["message"].get("tool_calls", ())]
    assert [call["id"] for call in written["message"].get("tool_calls", ())] == calls
    assert len(written["message"].get("citations", ())) == len(expected["message"].get("citations", ()))


@pytest.mark.parametrize("path", _recorded(is_good=True, is_stream=True))
def test_a_real_stream_is_translated_whole_at_any_cut(path):
    stream = base64.b64decode(json.loads(path.read_text())["response"]["body_base64"])
    translated = set()
    for size in (1, 100, len(stream)):
        parser, meter = SSEParser(), EventMeter(API.stream_reader())
        writer = CHAT.stream_writer(read(messages=[{"role": "user", "content": "q"}]))
        out, reader = b"", API.stream_reader()
        for start in range(0, len(stream), size):
            for each in parser.feed(stream[start : start + size]):
                meter.observe(each)
                events = reader.read(each)
                assert not any(isinstance(event, OpaqueDone) for event in events)
                out += writer.write(events)
        translated.add(out + writer.finish())
        assert meter.has_ended
    assert len(translated) == 1
    if not meter.has_error:
        assert meter.usage is not None
        source = "".join(_texts(SSEParser().feed(stream)))
        assert "".join(_texts(SSEParser().feed(translated.pop()))) == source


def _texts(frames: list[Frame]) -> list[str]:
    events = [event for reader in [API.stream_reader()] for each in frames for event in reader.read(each)]
    return [event.text for event in events if isinstance(event, TextDelta | ThinkingDelta)]


@pytest.mark.parametrize("path", _recorded(is_good=False))
def test_a_real_error_keeps_its_message(path):
    response = json.loads(path.read_text())["response"]
    error = API.read_error(response["status"], response["body_text"].encode())
    assert error.message == json.loads(response["body_text"])["message"]
    assert error.status_code == response["status"]
