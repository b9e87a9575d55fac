"""Anthropic's messages, as clients speak them and as Anthropic does: what passes, what is read, and what is written."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.records import Usage
from proxy.dialects.anthropic import COUNT_TOKENS, MESSAGES
from proxy.dialects.dialect import LONG_MEDIA_TOKENS_MAX, MEDIA_TOKENS_MAX, TEMPLATE_TOKENS, Call
from proxy.errors import (
    BudgetExceeded,
    CannotCarry,
    GatewayError,
    InvalidRequest,
    Unavailable,
    UpstreamRefused,
    UpstreamStreamFailed,
)
from proxy.neutral import (
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
    Done,
    Event,
    Failed,
    Finished,
    Media,
    Message,
    Opaque,
    OutputFormat,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    UsageSeen,
)
from proxy.providers import anthropic as provider
from proxy.providers import llamacpp, vllm
from proxy.providers.provider import EventMeter
from proxy.snapshot import Alias, Deployment, Provider
from proxy.wire.sse import SSEParser

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
MODEL = "claude-sonnet-4-5-20250929"
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="p", model="m", upstream_model=MODEL, max_output_tokens=777
)
ANTHROPIC = Provider(slug="p", api="anthropic", base_url="https://api.anthropic.com/v1")
HELLO: dict[str, Any] = {"model": "smart", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
SERVER_TOOL = {"type": "web_search_20250305", "name": "web_search"}
TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {}}}


def describe(body: Any = HELLO, **parameters: str) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return MESSAGES.describe(raw, b"application/json", parameters)


def read(**changes: Any) -> Prompt:
    return MESSAGES.read_prompt(describe({**HELLO, **changes}))


def read_blocks(*blocks: Any, role: str = "user") -> tuple[list[Part], list[str]]:
    prompt = read(messages=[{"role": role, "content": list(blocks)}])
    return prompt.messages[-1].parts, prompt.lost


def write(*parts: Part, **choice: Any) -> dict[str, Any]:
    answer = Answer(answer_id="msg_1", choices=[Choice(parts=list(parts), **choice)], usage=Usage(input_tokens=1))
    return json.loads(MESSAGES.write_answer(answer, describe()))


def stream(*events: Event, at_once: bool = True) -> list[dict[str, Any]]:
    writer = MESSAGES.stream_writer(describe())
    told = writer.write(events) if at_once else b"".join(writer.write([event]) for event in events)
    return frames(told + writer.finish())


def frames(told: bytes) -> list[dict[str, Any]]:
    """What is in the stream, in which every event is named as its data says."""
    parsed = SSEParser(event_bytes_max=2**25).feed(told)
    found = [(frame.event.decode(), json.loads(frame.data)) for frame in parsed]
    assert [name for name, _ in found] == [data["type"] for _, data in found]
    assert b"".join(frame.raw for frame in parsed) == told
    return [data for _, data in found]


def blocks_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks as an official SDK puts them together, one after the other and each of them ended."""
    blocks: list[dict[str, Any]] = []
    is_open, partial_json = False, ""
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
            is_open, partial_json = True, ""
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(blocks) - 1
            block, delta = blocks[-1], event["delta"]
            match delta["type"]:
                case "input_json_delta":
                    partial_json += delta["partial_json"]
                case "citations_delta":
                    block.setdefault("citations", []).append(delta["citation"])
                case "signature_delta":
                    block["signature"] = delta["signature"]
                case kind:
                    block[kind.removesuffix("_delta")] += delta[kind.removesuffix("_delta")]
        elif event["type"] == "content_block_stop":
            assert is_open
            is_open = False
            if blocks[-1]["type"] == "tool_use" and partial_json:
                blocks[-1]["input"] = json.loads(partial_json)
    assert not is_open
    return blocks


# Describing


def test_a_call_is_described_by_what_the_body_says() -> None:
    call = describe({**HELLO, "stream": True, "metadata": {"user_id": "x" * 300}}, query="beta=true")
    assert (call.alias, call.is_stream, call.output_tokens_max) == ("smart", True, 100)
    assert call.input_tokens_max == len(call.body) + TEMPLATE_TOKENS
    assert (call.tool_calls_max, call.has_images, call.metadata) == (0, False, None)
    assert call.parameters["query"] == "beta=true"


def test_each_image_and_document_is_bounded_apart() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    pdf = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    call = describe({**HELLO, "messages": [{"role": "user", "content": [image, pdf]}]})
    assert call.input_tokens_max == len(call.body) + TEMPLATE_TOKENS + 2 * MEDIA_TOKENS_MAX + LONG_MEDIA_TOKENS_MAX
    assert call.has_images


@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        ({"tools": [TOOL, {"type": "custom", **TOOL}]}, 0),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}, {"type": "computer_20251124", "name": "computer"}]}, 0),
        ({"tools": [SERVER_TOOL]}, 16),
        ({"tools": [{**SERVER_TOOL, "max_uses": 3}, {"type": "code_execution_20260120", "name": "c"}]}, 19),
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, 16),
    ],
)
def test_how_often_the_provider_may_run_its_own_tools_is_bounded(asked: dict[str, Any], runs: int) -> None:
    call = describe({**HELLO, **asked})
    assert call.tool_calls_max == runs
    assert call.input_tokens_max == len(call.body) + TEMPLATE_TOKENS + runs * MEDIA_TOKENS_MAX


@pytest.mark.parametrize(
    ("changes", "param"),
    [({"model": ""}, "model"), ({"model": 1}, "model"), ({"max_tokens": -1}, "max_tokens"), ({"tools": 1}, "tools")],
)
def test_what_is_wrong_in_a_request_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        describe({**HELLO, **changes})
    assert refused.value.param == param


def test_counting_tokens_is_free() -> None:
    call = COUNT_TOKENS.describe(json.dumps(HELLO).encode(), b"", {"query": "beta=true"})
    assert (call.operation, call.capability, call.is_free, call.output_tokens_max) == ("count_tokens", "chat", True, 0)


# The same dialect on both sides


def test_a_request_passes_byte_for_byte_but_for_its_model() -> None:
    body = (
        b'{"system":[{"type":"text","text":"a\\u00e9","cache_control":{"type":"ephemeral","ttl":"1h"}}],'
        b'"model":"smart","thinking":{"type":"adaptive"}, "context_management" : {"edits":[ ]},"max_tokens":9,'
        b'"messages":[{"role":"user","content":"Hi"}],"metadata":{"user_id":"u"},"of_tomorrow":[1.0,2e3]}'
    )
    call = describe(body, query="beta=true")
    outgoing = provider.MESSAGES.pass_request(call, DEPLOYMENT, ANTHROPIC)
    assert outgoing.target == b"/messages?beta=true"
    assert (b"anthropic-version", b"2023-06-01") in outgoing.headers
    expected = body.replace(b'"smart"', json.dumps(MODEL).encode()).replace(b', "context', b',"context')
    assert outgoing.body == expected.replace(b'" : {', b'":{')


def test_an_output_cap_is_set_where_the_client_set_none() -> None:
    call = describe({name: value for name, value in HELLO.items() if name != "max_tokens"})
    assert json.loads(provider.MESSAGES.pass_request(call, DEPLOYMENT, ANTHROPIC).body)["max_tokens"] == 777


def test_a_count_of_tokens_passes_without_a_cap() -> None:
    body = {name: value for name, value in HELLO.items() if name != "max_tokens"}
    call = COUNT_TOKENS.describe(json.dumps(body).encode(), b"", {})
    outgoing = provider.COUNT_TOKENS.pass_request(call, DEPLOYMENT, ANTHROPIC)
    assert outgoing.target == b"/messages/count_tokens"
    assert json.loads(outgoing.body) == {**body, "model": MODEL}


# Servers of open models


@pytest.mark.parametrize("server", [llamacpp, vllm])
def test_servers_of_open_models_get_anthropics_requests_as_they_are(server: Any) -> None:
    messages, count_tokens = (
        next(api for api in server.PROVIDER.apis if api.name == dialect.name) for dialect in (MESSAGES, COUNT_TOKENS)
    )
    asked = {**HELLO, "thinking": {"type": "enabled", "budget_tokens": 50}, "of_tomorrow": 1}
    sent = messages.pass_request(describe(asked), DEPLOYMENT, ANTHROPIC)
    assert (sent.target, json.loads(sent.body)) == (b"/messages", {**asked, "model": MODEL})
    sent = count_tokens.pass_request(COUNT_TOKENS.describe(json.dumps(HELLO).encode(), b"", {}), DEPLOYMENT, ANTHROPIC)
    assert (sent.target, json.loads(sent.body)) == (b"/messages/count_tokens", {**HELLO, "model": MODEL})


@pytest.mark.parametrize("server", [llamacpp, vllm])
def test_other_clients_are_translated_to_the_chat_of_servers_of_open_models(server: Any) -> None:
    translatable = [api for api in server.PROVIDER.apis if api.capability == "chat" and api.is_translatable]
    assert translatable[0] is server.CHAT


@pytest.mark.parametrize(
    ("start", "delta"),
    [
        # vLLM: input again at the end. llama.cpp: only at the start, without what it had in its cache.
        ({"input_tokens": 30, "output_tokens": 0}, {"input_tokens": 30, "output_tokens": 7}),
        ({"cache_read_input_tokens": 10, "input_tokens": 20, "output_tokens": 0}, {"output_tokens": 7}),
    ],
)
def test_streams_of_servers_of_open_models_are_measured(start: dict[str, int], delta: dict[str, int]) -> None:
    thinking = {"type": "thinking", "thinking": ""}
    said = [
        {"type": "message_start", "message": {"id": "c-1", "content": [], "model": "qwen3", "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": thinking},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "5f0c"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta},
        {"type": "message_stop"},
    ]
    stream = b"".join(
        b"event: %s\ndata: %s\n\n" % (str(each["type"]).encode(), json.dumps(each).encode()) for each in said
    )
    meter = provider.OPEN_MESSAGES.stream_meter(describe({**HELLO, "stream": True}))
    for frame in SSEParser().feed(stream):
        assert meter.observe(frame) is False
    cached = start.get("cache_read_input_tokens", 0)
    assert meter.usage == Usage(input_tokens=30, cache_read_input_tokens=cached, output_tokens=7)
    assert (meter.finish_reason, meter.response_model, meter.is_done) == ("end_turn", "qwen3", True)


# Reading requests


def test_system_prompts_are_read_at_the_start_and_in_the_middle() -> None:
    cached = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    later = {"type": "mid_conv_system", "content": [{"type": "text", "text": "Now in French."}]}
    user = {"role": "user", "content": [later, {"type": "text", "text": "Hi"}]}
    prompt = read(system=[cached], messages=[user, {"role": "system", "content": "And loud."}])
    assert prompt.messages == [
        Message(role="system", parts=[Text(text="Be brief.", cache="1h")]),
        Message(role="system", parts=[Text(text="Now in French.")]),
        Message(role="user", parts=[Text(text="Hi")]),
        Message(role="system", parts=[Text(text="And loud.")]),
    ]
    assert prompt.lost == []


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aQ=="}},
            Media(kind="image", media_type="image/png", data="aQ==", path="messages.0.content.0"),
        ),
        (
            {"type": "image", "source": {"type": "url", "url": "https://x/y"}, "cache_control": {"type": "ephemeral"}},
            Media(kind="image", url="https://x/y", cache="5m", path="messages.0.content.0"),
        ),
        (
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "Grass is green."},
                "title": "Facts",
                "context": "Of trust",
                "citations": {"enabled": True},
            },
            Media(
                kind="document",
                media_type="text/plain",
                text="Grass is green.",
                name="Facts",
                context="Of trust",
                is_cited=True,
                path="messages.0.content.0",
            ),
        ),
        (
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
            },
            Media(kind="document", media_type="text/plain", text="a\n\nb", path="messages.0.content.0"),
        ),
        (
            {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
            Media(kind="document", file_id="file_1", path="messages.0.content.0"),
        ),
        (
            {
                "type": "search_result",
                "source": "https://x",
                "title": "X",
                "content": [{"type": "text", "text": "found"}],
                "citations": {"enabled": False},
            },
            Media(
                kind="document",
                media_type="text/plain",
                text="found",
                name="X",
                context="https://x",
                path="messages.0.content.0",
            ),
        ),
        (
            {
                "type": "tool_result",
                "tool_use_id": "t1",
                "is_error": True,
                "content": [
                    {"type": "text", "text": "no"},
                    {"type": "image", "source": {"type": "url", "url": "https://x"}},
                ],
            },
            ToolResult(
                call_id="t1",
                content=(
                    Text(text="no"),
                    Media(kind="image", url="https://x", path="messages.0.content.0.content.1"),
                ),
                is_error=True,
                path="messages.0.content.0",
            ),
        ),
        (
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1.0, "a": []}, "caller": {"type": "direct"}},
            ToolCall(call_id="t1", name="f", arguments='{"b":1.0,"a":[]}', path="messages.0.content.0"),
        ),
    ],
)
def test_a_block_is_read(block: dict[str, Any], part: Part) -> None:
    assert read_blocks(block) == ([part], [])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "container_upload", "file_id": "file_1"},
        {"type": "compaction", "content": "What was."},
        {"type": "of_tomorrow"},
    ],
)
def test_what_only_anthropic_understands_is_named(block: dict[str, Any]) -> None:
    assert read_blocks({"type": "text", "text": "Hi"}, block) == ([Text(text="Hi")], ["messages.0.content.1"])


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"container": "c", "inference_geo": "eu"}, ["container", "inference_geo"]),
        ({"speed": "fast"}, ["speed"]),
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, ["mcp_servers"]),
        ({"tools": [SERVER_TOOL, TOOL]}, ["tools.0"]),
        ({"tools": [{**TOOL, "defer_loading": True, "input_examples": [{}]}]}, ["tools.0.defer_loading", "tools.0.input_examples"]),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, ["context_management.edits.0"]),
        ({"output_config": {"task_budget": {"type": "tokens", "total": 1}}}, ["output_config.task_budget"]),
        ({"metadata": {"user_id": "u", "team": "t"}}, ["metadata.team"]),
        ({"max_tokens": 0}, ["max_tokens"]),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_named(changes: dict[str, Any], lost: list[str]) -> None:
    assert sorted(read(**changes).lost) == lost


@pytest.mark.parametrize(
    "changes",
    [
        {"speed": "standard", "mcp_servers": [], "container": None, "stream": True},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"tools": [{**TOOL, "type": "custom", "defer_loading": False, "eager_input_streaming": True}]},
        {"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "scope": "global"}}]},
    ],
)
def test_what_holds_anyway_is_no_loss(changes: dict[str, Any]) -> None:
    assert read(**changes).lost == []


@pytest.mark.parametrize(
    ("changes", "reasoning", "name"),
    [
        ({}, None, "output_config.effort"),
        ({"output_config": {"effort": "high"}}, Reasoning(effort="high"), "output_config.effort"),
        ({"thinking": {"type": "disabled"}}, Reasoning(is_on=False), "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, Reasoning(is_on=True, budget_tokens=2048), "thinking"),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "low"}},
            Reasoning(is_on=True, is_adaptive=True, effort="low", summary="omitted"),
            "thinking",
        ),
        (
            {"thinking": {"type": "adaptive", "display": "summarized"}},
            Reasoning(is_on=True, is_adaptive=True, summary="auto"),
            "thinking",
        ),
    ],
)  # fmt: skip
def test_thinking_is_asked_for(changes: dict[str, Any], reasoning: Reasoning | None, name: str) -> None:
    prompt = read(**changes)
    assert (prompt.reasoning, prompt.names["reasoning"], prompt.lost) == (reasoning, name, [])


@pytest.mark.parametrize(
    ("choice", "read_choice", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(mode="auto"), None),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice(mode="required"), False),
        ({"type": "tool", "name": "f", "disable_parallel_tool_use": False}, ToolChoice(mode="tool", name="f"), True),
        ({"type": "none"}, ToolChoice(mode="none"), None),
    ],
)
def test_a_tool_is_chosen(choice: dict[str, Any], read_choice: ToolChoice, parallel: bool | None) -> None:
    prompt = read(tools=[{**TOOL, "strict": True, "cache_control": {"type": "ephemeral"}}], tool_choice=choice)
    tool = Tool(name="f", parameters=TOOL["input_schema"], is_strict=True, cache="5m", path="tools.0")
    assert (prompt.tools, prompt.tool_choice, prompt.parallel_tool_calls) == ([tool], read_choice, parallel)


@pytest.mark.parametrize("at_top", [True, False])
def test_a_schema_for_the_output_is_read_where_it_stands_and_where_it_stood(at_top: bool) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    prompt = read(output_format=wanted) if at_top else read(output_config={"format": wanted})
    assert prompt.output_format == OutputFormat(schema={"type": "object"}, is_strict=True)
    assert prompt.names["output_format"] == ("output_format" if at_top else "output_config.format")


def test_parameters_are_read() -> None:
    prompt = read(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        service_tier="standard_only",
        cache_control={"type": "ephemeral", "ttl": "1h"},
    )
    assert (prompt.temperature, prompt.top_p, prompt.top_k, prompt.stop) == (0.5, 0.9, 5, ("END",))
    assert (prompt.user, prompt.service_tier, prompt.cache, prompt.lost) == ("u", "standard_only", "1h", [])


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_a_field_that_is_wrong_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(**changes)
    assert refused.value.param == param


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_BLOCKS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking", "search_result",
             "mid_conv_system", "compaction"]
        )
    },
    optional={
        name: _JSON | st.sampled_from([{"type": "text", "data": "x"}, [{"type": "text", "text": "a", "citations": [{}]}], {}])
        for name in ("text", "source", "content", "input", "id", "name", "tool_use_id", "thinking", "data", "citations",
                     "cache_control", "title", "signature", "caller", "is_error")
    },
)  # fmt: skip


@settings(max_examples=150)
@given(
    _BLOCKS,
    st.dictionaries(
        st.sampled_from(
            ["system", "tools", "tool_choice", "thinking", "output_config", "output_format", "metadata", "stop_sequences",
             "cache_control", "context_management", "temperature", "top_k", "service_tier", "mcp_servers", "speed"]
        ),
        _JSON,
    ),
)  # fmt: skip
def test_whatever_a_client_sends_is_read_or_refused(block: dict[str, Any], changes: dict[str, Any]) -> None:
    body = {**HELLO, **changes, "messages": [{"role": "user", "content": [block]}]}
    try:
        MESSAGES.read_prompt(describe(body))
    except InvalidRequest as error:
        assert error.param is None or isinstance(error.param, str)


# Signatures


THOUGHTS = [
    Thinking(text="hm", signature="c2ln", origin="anthropic"),
    Thinking(redacted="cmVk", origin="anthropic"),
    Thinking(text="hm", signature="gAAA", origin="openai", thinking_id="rs_1"),
    Thinking(signature="gAAA", origin="openai"),
    Thinking(redacted="enc", origin="openai", thinking_id="rs_2"),
    Thinking(text="hm", signature="Z2Vt", origin="gemini"),
    Thinking(text="only text"),
]


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("is_stream", [False, True])
def test_thinking_comes_back_unchanged(thought: Thinking, is_stream: bool) -> None:
    if is_stream:
        told = {"origin": thought.origin, "thinking_id": thought.thinking_id}
        deltas = [ThinkingDelta(text=character, **told) for character in thought.text]
        if thought.signature or thought.redacted:
            deltas.append(ThinkingDelta(signature=thought.signature, redacted=thought.redacted, **told))
        shown = blocks_of(stream(Began(), *deltas, TextDelta(text="So."), Finished(finish="stop"), Done()))
    else:
        shown = write(thought, Text(text="So."))["content"]
    parts, lost = read_blocks(*shown, role="assistant")
    back = parts[0]
    assert isinstance(back, Thinking)
    back.path = ""
    assert (parts, lost) == ([thought, Text(text="So.")], [])


def test_anthropics_own_signatures_are_shown_as_they_are() -> None:
    assert write(THOUGHTS[0], THOUGHTS[1])["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "cmVk"},
    ]


SIGNED: list[Part] = [
    Text(text="Let me see.", signature="c2ln"),
    ToolCall(call_id="c1", name="f", arguments='{"a":1}', signature="Z2Vt"),
    ToolCall(call_id="c2", name="g", arguments="{}"),
]


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_gemini_signed_comes_back_on_the_same_part(is_stream: bool) -> None:
    if is_stream:
        shown = blocks_of(
            stream(
                Began(),
                TextDelta(text="Let me see.", signature="c2ln"),
                ToolCallBegan(index=0, call_id="c1", name="f", signature="Z2Vt"),
                ToolCallDelta(index=0, arguments='{"a":1}'),
                ToolCallBegan(index=1, call_id="c2", name="g"),
                ToolCallDelta(index=1, arguments="{}"),
            )
        )
    else:
        shown = write(*SIGNED)["content"]
    assert [block["type"] for block in shown] == [
        "redacted_thinking",
        "text",
        "redacted_thinking",
        "tool_use",
        "tool_use",
    ]
    parts, lost = read_blocks(*shown, role="assistant")
    for part in parts:
        if isinstance(part, ToolCall):
            part.path = ""
    assert (parts, lost) == (SIGNED, [])


CALLED = (ToolCallBegan(index=0, call_id="c1", name="f"), ToolCallDelta(index=0, arguments="{}"))


@pytest.mark.parametrize(
    "events",
    [
        (TextDelta(text="Yes."), TextDelta(text="", signature="c2ln"), *CALLED),
        (*CALLED, TextDelta(text="", signature="c2ln")),
    ],
)
def test_a_signature_that_stands_alone_stays_alone(events: tuple[Event, ...]) -> None:
    parts, _ = read_blocks(*blocks_of(stream(Began(), *events, Finished(finish="tool_calls"))), role="assistant")
    assert Text(text="", signature="c2ln") in parts
    assert not any(isinstance(part, ToolCall) and part.signature for part in parts)


@pytest.mark.parametrize("pieces", [("Yes", "."), ("Yes.", "")])
def test_an_answer_in_words_ends_with_them_and_not_with_their_signature(pieces: tuple[str, str]) -> None:
    """Claude Code prints the last block."""
    said = (TextDelta(text=pieces[0]), TextDelta(text=pieces[1], signature="c2ln"))
    assert blocks_of(stream(Began(), *said, Finished(finish="stop"))) == [{"type": "text", "text": "Yes."}]


# Writing answers


def test_an_answer_is_named_as_the_client_asked() -> None:
    answer = Answer(
        answer_id="chatcmpl-1",
        model="gpt-x",
        service_tier="default",
        choices=[Choice(parts=[Text(text="Hi"), Opaque(kind="search")], finish="stop", finish_detail="stop")],
        usage=Usage(
            input_tokens=100,
            cache_read_input_tokens=60,
            cache_write_input_tokens=30,
            cache_write_1h_input_tokens=20,
            output_tokens=9,
            reasoning_tokens=4,
            tool_calls=5,
            searches=2,
        ),
    )
    assert json.loads(MESSAGES.write_answer(answer, describe())) == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "smart",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 30,
            "cache_read_input_tokens": 60,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 4},
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
            "service_tier": "standard",
        },
    }


@pytest.mark.parametrize(
    ("finish", "stop_reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("refusal", "refusal"),
        ("pause", "pause_turn"),
        ("stop_sequence", "stop_sequence"),
    ],
)
def test_why_it_stopped_is_told_in_anthropics_words(finish: str, stop_reason: str) -> None:
    whole = write(Text(text="a"), finish=finish, stop_sequence="END" if finish == "stop_sequence" else None)
    last = stream(TextDelta(text="a"), Finished(finish=finish, stop_sequence=whole["stop_sequence"]))[-2]
    assert whole["stop_reason"] == last["delta"]["stop_reason"] == stop_reason
    assert whole["stop_sequence"] == last["delta"]["stop_sequence"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
    ],
)
def test_arguments_are_an_object(arguments: str, shown: dict[str, Any]) -> None:
    assert write(ToolCall(call_id="c", name="f", arguments=arguments))["content"] == [
        {"type": "tool_use", "id": "c", "name": "f", "input": shown}
    ]


OWN_CITATION = {"type": "char_location", "cited_text": "green", "document_index": 0, "start_char_index": 3}


@pytest.mark.parametrize(
    ("citation", "shown"),
    [
        (Citation(source=OWN_CITATION), OWN_CITATION),
        (
            Citation(url="https://x", title="X", cited_text="x", source={"start_index": 0}),
            {
                "type": "web_search_result_location",
                "url": "https://x",
                "title": "X",
                "encrypted_index": "",
                "cited_text": "x",
            },
        ),
        (
            Citation(document=1, title="Facts", cited_text="green"),
            {
                "type": "char_location",
                "cited_text": "green",
                "document_index": 1,
                "document_title": "Facts",
                "start_char_index": 0,
                "end_char_index": 5,
                "file_id": None,
            },
        ),
    ],
)
def test_a_citation_is_shown_whole_and_in_a_stream(citation: Citation, shown: dict[str, Any]) -> None:
    expected = [{"type": "text", "text": "Green.", "citations": [shown]}]
    assert write(Text(text="Green.", citations=(citation,)))["content"] == expected
    assert blocks_of(stream(TextDelta(text="Green."), Cited(citation=citation))) == expected


def test_a_refusal_is_told_as_text() -> None:
    expected = [{"type": "text", "text": "I cannot."}]
    assert write(Refusal(text="I cannot."), finish="refusal")["content"] == expected
    assert blocks_of(stream(RefusalDelta(text="I "), RefusalDelta(text="cannot."))) == expected


# Writing streams


def test_a_stream_is_one_message_of_blocks() -> None:
    events: list[Event] = [
        Began(answer_id="msg_1", model="gpt-x"),
        ThinkingDelta(text="hm"),
        TextDelta(text="Hello"),
        TextDelta(text=" there"),
        TextDelta(text="Again", begins_part=True),
        ToolCallBegan(index=0, call_id="c1", name="f"),
        ToolCallDelta(index=0, arguments='{"a"'),
        ToolCallDelta(index=0, arguments=":1}"),
        Finished(finish="tool_calls"),
        UsageSeen(usage=Usage(input_tokens=7, cache_read_input_tokens=2, output_tokens=3)),
        Done(),
    ]
    told = stream(*events, at_once=False)
    assert told[0]["type"] == "message_start"
    assert told[0]["message"]["model"] == "smart"
    assert told[0]["message"]["usage"]["input_tokens"] == 0
    assert blocks_of(told) == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Hello there"},
        {"type": "text", "text": "Again"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
    ]
    assert [event["type"] for event in told[-2:]] == ["message_delta", "message_stop"]
    assert told[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert told[-2]["usage"]["input_tokens"] == 5
    assert told[-2]["usage"]["output_tokens"] == 3


def test_usage_that_is_known_at_the_start_is_told_at_the_start() -> None:
    told = stream(Began(), UsageSeen(usage=Usage(input_tokens=7, output_tokens=1)))
    assert told[0]["message"]["usage"]["input_tokens"] == 7


def test_each_event_is_told_at_once() -> None:
    writer = MESSAGES.stream_writer(describe())
    assert b'"message_start"' in writer.write([Began()])
    assert b'"text":"Hel"' in writer.write([TextDelta(text="Hel")])
    assert b'"text":"lo"' in writer.write([TextDelta(text="lo")])
    assert b'"name":"f"' in writer.write([ToolCallBegan(index=0, call_id="c", name="f")])
    assert b'"partial_json":"{"' in writer.write([ToolCallDelta(index=0, arguments="{")])


def test_calls_that_come_at_once_are_told_one_after_the_other() -> None:
    told = stream(
        ToolCallBegan(index=0, call_id="c0", name="f"),
        ToolCallBegan(index=1, call_id="c1", name="g"),
        ToolCallDelta(index=1, arguments='{"b":'),
        ToolCallDelta(index=0, arguments='{"a":0'),
        ToolCallDelta(index=1, arguments="1}"),
        ToolCallDelta(index=0, arguments="}"),
        ToolCallBegan(index=2, call_id="c2", name="h"),
        Finished(finish="tool_calls"),
        at_once=False,
    )
    assert [(block["id"], block["input"]) for block in blocks_of(told)] == [
        ("c0", {"a": 0}),
        ("c1", {"b": 1}),
        ("c2", {}),
    ]


@pytest.mark.parametrize("events", [[], [Began()], [UsageSeen(usage=Usage(input_tokens=3))]])
def test_a_stream_without_anything_is_still_a_message(events: list[Event]) -> None:
    told = stream(*events)
    assert [event["type"] for event in told] == ["message_start", "message_delta", "message_stop"]
    assert told[1]["delta"]["stop_reason"] == "end_turn"


_TEXT = st.text(min_size=0, max_size=4)
_EVENTS = st.lists(
    st.builds(TextDelta, text=_TEXT, begins_part=st.booleans(), signature=st.sampled_from(["", "", "c2ln"]))
    | st.builds(ThinkingDelta, text=_TEXT, signature=st.sampled_from(["", "s"]), redacted=st.sampled_from(["", "r"]))
    | st.builds(RefusalDelta, text=_TEXT)
    | st.builds(Cited, citation=st.just(Citation(url="https://x")))
    | st.builds(ToolCallBegan, index=st.integers(0, 3), call_id=_TEXT, name=_TEXT)
    | st.builds(ToolCallDelta, index=st.integers(0, 3), arguments=st.sampled_from(["{}", "", '{"a":1}']))
    | st.builds(Finished, finish=st.sampled_from(["stop", "length"])),
    max_size=12,
)


@settings(max_examples=150)
@given(_EVENTS)
def test_whatever_comes_the_blocks_stand_one_after_the_other(events: list[Event]) -> None:
    writer = MESSAGES.stream_writer(describe())
    told = frames(writer.write(events) + writer.finish())
    open_block = -1
    for event in told:
        if event["type"] == "content_block_start":
            assert open_block < 0
            open_block = event["index"]
        elif event["type"].startswith("content_block"):
            assert event["index"] == open_block
            if event["type"] == "content_block_stop":
                open_block = -1
    assert open_block < 0


# Errors and models


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("no", param="max_tokens"), "invalid_request_error"),
        (CannotCarry(["container"], "openai"), "invalid_request_error"),
        (BudgetExceeded("over"), "rate_limit_error"),
        (Unavailable("down"), "overloaded_error"),
        (UpstreamRefused(529, "busy", kind="", code="", param="", body=None, headers=[]), "overloaded_error"),
        (UpstreamRefused(404, "no", kind="", code="", param="", body=None, headers=[]), "not_found_error"),
        (UpstreamStreamFailed("broke", code="overloaded_error"), "overloaded_error"),
        (UpstreamStreamFailed("broke", code=""), "api_error"),
    ],
)  # fmt: skip
def test_an_error_is_told_in_anthropics_words(error: GatewayError, kind: str) -> None:
    told = json.loads(MESSAGES.render_error(error, "req-1"))
    assert (told["type"], told["request_id"], told["error"]["type"]) == ("error", "req-1", kind)
    assert told["error"]["message"] == error.message
    assert told["error"].get("param") == error.param
    assert frames(MESSAGES.render_error_event(error, "req-1")) == [told]


def test_models_are_listed_in_anthropics_shape() -> None:
    aliases = [Alias(name="smart", targets=(), created_at_s=0), Alias(name="fast", targets=(), created_at_s=86_400)]
    told = json.loads(MESSAGES.render_models(aliases, {}))
    assert (told["first_id"], told["last_id"], told["has_more"]) == ("smart", "fast", False)
    model = {"type": "model", "id": "fast", "display_name": "fast", "created_at": "1970-01-02T00:00:00Z"}
    assert told["data"][1] == model
    assert json.loads(MESSAGES.render_models(aliases[1:], {"model": "fast"})) == model
    assert json.loads(MESSAGES.render_models([], {})) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


# From the dialect to the provider


def translate(**changes: Any) -> tuple[dict[str, Any], list[str]]:
    call = describe({**HELLO, **changes})
    prompt = MESSAGES.read_prompt(call)
    lost = list(prompt.lost)
    return json.loads(provider.MESSAGES.write_request(prompt, call, DEPLOYMENT, ANTHROPIC, lost).body), lost


@pytest.mark.parametrize(
    ("model", "asked", "sent", "lost"),
    [
        ("claude-sonnet-4-0", {"temperature": 1, "top_p": 0.95}, {"temperature": 1, "top_p": 0.95}, []),
        # As Gemini's command line asks.
        ("claude-sonnet-4-5", {"temperature": 1, "top_p": 0.95, "top_k": 64}, {"top_p": 0.95, "top_k": 64}, []),
        ("claude-sonnet-4-5", {"temperature": 0.2, "top_p": 1}, {"temperature": 0.2}, []),
        ("claude-sonnet-4-5", {"temperature": 0.2, "top_p": 0.5}, {"temperature": 0.2}, ["top_p"]),
        ("claude-opus-4-7", {"temperature": 1, "top_p": 1}, {}, []),
        ("claude-opus-4-7", {"temperature": 0.2, "top_p": 0.5, "top_k": 3}, {}, ["temperature", "top_p", "top_k"]),
        ("claude-opus-4-7", {"temperature": 0.2, "thinking": {"type": "adaptive"}}, {}, ["temperature"]),
    ],
)
def test_a_model_is_sampled_only_by_what_it_takes(
    model: str, asked: dict[str, Any], sent: dict[str, Any], lost: list[str]
) -> None:
    call = describe({**HELLO, **asked})
    named: list[str] = []
    deployment = msgspec.structs.replace(DEPLOYMENT, upstream_model=model)
    outgoing = provider.MESSAGES.write_request(MESSAGES.read_prompt(call), call, deployment, ANTHROPIC, named)
    body = json.loads(outgoing.body)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k") if name in body} == sent
    assert named == lost


def test_a_request_keeps_its_meaning_on_its_way_through_neutral_words() -> None:
    asked: dict[str, Any] = {
        "max_tokens": 5000,
        "system": [
            {"type": "text", "text": "One.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            {"type": "text", "text": "Two."},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aQ=="}},
                    {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}, "title": "Y"},
                    {"type": "text", "text": "What is it?", "cache_control": {"type": "ephemeral"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "cmVk"},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
                    {"type": "tool_use", "id": "toolu_2", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_2",
                        "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}],
                    },
                ],
            },
        ],
        "tools": [{**TOOL, "description": "Does.", "strict": True, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "output_config": {
            "format": {
                "type": "json_schema",
                "schema": {"type": "object", "properties": {}, "additionalProperties": False},
            }
        },
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "stream": True,
    }
    assert translate(**asked) == ({**HELLO, **asked, "model": MODEL}, [])


def _recordings() -> list[Any]:
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param({}, id="none", marks=pytest.mark.skip(reason=f"the recordings are not at {RECORDINGS}"))]
    listed = [item for item in json.loads(index.read_text()) if item["api"] == "messages"]
    return [pytest.param(json.loads((RECORDINGS / item["file"]).read_text()), id=item["id"]) for item in listed]


RECORDED = _recordings()


def _of(recorded: list[Any], field: str) -> list[Any]:
    """Those that succeeded, and have such a body."""

    def fits(recording: dict[str, Any]) -> bool:
        return not recording or (recording["response"]["status"] < 400 and field in recording["response"])

    return [item for item in recorded if fits(item.values[0])]


def _known(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that every dialect has, without what only says how Anthropic came to them."""
    return [
        ({"signature": ""} if block["type"] == "thinking" else {})
        | {name: value for name, value in block.items() if name != "caller" and value is not None}
        for block in blocks
        if block["type"] in ("text", "tool_use", "thinking", "redacted_thinking")
        and not (block["type"] == "text" and not block["text"])
    ]


@pytest.mark.parametrize("recording", RECORDED)
def test_a_recorded_request_is_read(recording: dict[str, Any]) -> None:
    body = {"model": "smart", **recording["request"]["body"]}
    if "messages" not in body or "output_format" in body:
        pytest.skip("this request stands in for one that was not kept, or was refused for its format")
    prompt = MESSAGES.read_prompt(describe(body))
    assert all(path.split(".")[0] in body for path in prompt.lost)
    said = [message for message in prompt.messages if message.role != "system"]
    assert len(said) == sum(message["role"] != "system" for message in body["messages"])


@pytest.mark.parametrize("recording", _of(RECORDED, "body_text"))
def test_a_recorded_answer_says_the_same_to_a_client(recording: dict[str, Any]) -> None:
    body = recording["response"]["body_text"].encode()
    recorded = json.loads(body)
    measured = provider.MESSAGES.measure(body)
    answer = provider.MESSAGES.read_answer(body)
    told = json.loads(MESSAGES.write_answer(answer, describe()))
    assert told["content"] == _known(recorded["content"])
    assert (told["id"], told["stop_reason"]) == (recorded["id"], recorded["stop_reason"])
    assert measured.usage == answer.usage
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        assert told["usage"][name] == recorded["usage"].get(name, 0)


def _events(raw: bytes, size: int = 0, seed: int = 0) -> tuple[list[Event], list[bytes]]:
    """What is read, and what is told, of a stream in pieces of `size`; whole for 0, at random places for -1."""
    parser, reader = provider.MESSAGES.frame_parser(describe()), provider.MESSAGES.stream_reader()
    writer = MESSAGES.stream_writer(describe())
    places = random.Random(seed)
    events: list[Event] = []
    told: list[bytes] = []
    start = 0
    while start < len(raw):
        end = start + (size if size > 0 else places.randint(1, 400) if size < 0 else len(raw))
        for frame in parser.feed(raw[start:end]):
            found = reader.read(frame)
            events += found
            told.append(writer.write(found))
        start = end
    told.append(writer.finish())
    return events, told


@pytest.mark.parametrize("recording", _of(RECORDED, "body_base64"))
def test_a_recorded_stream_says_the_same_to_a_client_wherever_it_is_cut(recording: dict[str, Any]) -> None:
    raw = base64.b64decode(recording["response"]["body_base64"])
    events, told = _events(raw)
    for size in (1, 7, -1):
        assert _events(raw, size) == (events, told)
    recorded, shown = frames(raw), frames(b"".join(told))
    if any(isinstance(event, Failed) for event in events):
        return  # The gateway tells of it.
    assert _known(blocks_of(shown)) == _known(blocks_of(recorded))
    (last,) = [event for event in recorded if event["type"] == "message_delta"]
    assert shown[-2]["delta"]["stop_reason"] == last["delta"]["stop_reason"]
    assert shown[-2]["usage"]["output_tokens"] == last["usage"]["output_tokens"]


@pytest.mark.parametrize("recording", _of(RECORDED, "body_base64"))
def test_a_recorded_stream_passes_with_its_usage_counted(recording: dict[str, Any]) -> None:
    raw = base64.b64decode(recording["response"]["body_base64"])
    meter = EventMeter(provider.MESSAGES.stream_reader())
    assert not any(meter.observe(frame) for frame in SSEParser().feed(raw))
    assert meter.has_ended
    start = next(event for event in frames(raw) if event["type"] == "message_start")["message"]
    assert meter.response_model == start["model"]
    known = meter.usage_so_far
    assert known is not None
    told = start["usage"]
    assert known.input_tokens >= told["input_tokens"] + told["cache_read_input_tokens"]
    assert (meter.usage is None) == meter.has_error
