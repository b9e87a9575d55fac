"""OpenAI's responses, both sides: requests read and written, answers and streams, and real traffic of ten providers."""

import base64
import itertools
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from audit.records import Usage
from proxy.dialects.openai_responses import RESPONSES as DIALECT
from proxy.dialects.openai_responses import STORED_TOKENS_MAX, TOOL_CALLS_MAX
from proxy.errors import BudgetExceeded, InvalidRequest
from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
    REFUSAL,
    STOP,
    TOOL_CALLS,
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
    Done,
    Failed,
    Finished,
    Media,
    MediaDone,
    Message,
    Opaque,
    OpaqueDone,
    OutputFormat,
    Prompt,
    ProviderError,
    Reasoning,
    Refusal,
    RefusalDelta,
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
    unwrap_signature,
    wrap_signature,
)
from proxy.providers.openai_responses import OPEN_RESPONSES
from proxy.providers.openai_responses import RESPONSES as API
from proxy.providers.openai_responses_answers import answer_id_of
from proxy.providers.provider import EventMeter
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.sse import SSEParser

PROVIDER = Provider(slug="openai", api="openai", base_url="https://api.openai.com/v1")
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="openai", model="m", upstream_model="gpt-5-mini", max_output_tokens=777
)
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"

_event_adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def _call(**fields: Any):
    body = json.dumps({"model": "demo", **fields}).encode()
    return DIALECT.describe(body, b"application/json", {})


def _prompt(**fields: Any) -> Prompt:
    return DIALECT.read_prompt(_call(**fields))


def _request(prompt: Prompt, lost: list[str] | None = None, *, model: str = "gpt-5-mini", api=API) -> dict[str, Any]:
    deployment = msgspec.structs.replace(DEPLOYMENT, upstream_model=model)
    lost = lost if lost is not None else []
    return json.loads(api.write_request(prompt, _call(input="x"), deployment, PROVIDER, lost).body)


def _frame(event: dict[str, Any]) -> Frame:
    data = json.dumps(event).encode()
    return Frame(b"data: " + data + b"\n\n", data, b"")


def _read(*events: dict[str, Any]) -> list[Any]:
    reader = API.stream_reader()
    return [each for event in events for each in reader.read(_frame(event))]


def _told(written: bytes) -> list[dict[str, Any]]:
    frames = SSEParser().feed(written)
    assert b"".join(frame.raw for frame in frames) == written
    told = [json.loads(frame.data) for frame in frames]
    assert [frame.event.decode() for frame in frames] == [event["type"] for event in told]
    return told


def _written(*events: Any, **fields: Any) -> list[dict[str, Any]]:
    writer = DIALECT.stream_writer(_call(**{"input": "x", **fields}))
    return _told(b"".join(writer.write([event]) for event in events) + writer.finish())


# Described


def test_what_the_call_wants_is_described():
    call = _call(input="hi", stream=True, max_output_tokens=50, metadata={"team": "a"})
    assert (call.alias, call.is_stream, call.output_tokens_max, call.metadata) == ("demo", True, 50, {"team": "a"})
    assert (call.operation, call.capability, call.tool_calls_max) == ("chat", "chat", 0)
    assert call.input_tokens_max < 1_000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tools": [{"type": "function", "name": "f"}]}, 0),
        ({"tools": [{"type": "web_search"}]}, TOOL_CALLS_MAX),
        ({"tools": [{"type": "web_search"}], "max_tool_calls": 3}, 3),
        ({"tools": [{"type": "function", "name": "f"}], "max_tool_calls": 3}, 0),
    ],
)
def test_the_providers_own_tools_are_bounded(fields, expected):
    assert _call(input="x", **fields).tool_calls_max == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "x", "previous_response_id": "resp_1"},
        {"input": "x", "conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ],
)
def test_what_the_provider_keeps_counts_as_a_whole_context(fields):
    assert _call(**fields).input_tokens_max > STORED_TOKENS_MAX


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"tools": "none"}, "tools"),
    ],
)
def test_a_wrong_field_is_named_at_once(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        _call(**fields)
    assert caught.value.param == param


# The same dialect on both sides


def test_only_model_and_cap_change_on_the_way():
    body = b'{"zz": [1,  2], "model":"demo", "temperature":0.10, "input":"\\u00e9", "stream":true}'
    sent = API.pass_request(DIALECT.describe(body, b"", {}), DEPLOYMENT, PROVIDER)
    assert sent.target == b"/responses"
    assert json.loads(sent.body) == {**json.loads(body), "model": "gpt-5-mini", "max_output_tokens": 777}
    for untouched in (b"[1,  2]", b"0.10", b'"\\u00e9"'):
        assert untouched in sent.body
    capped = API.pass_request(_call(input="x", max_output_tokens=5), DEPLOYMENT, PROVIDER)
    assert json.loads(capped.body)["max_output_tokens"] == 5


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_an_answer_still_being_made_has_its_status_and_no_usage(status):
    body = json.dumps({"id": "resp_1", "object": "response", "status": status, "output": [], "usage": None}).encode()
    measured = API.measure(body)
    assert (measured.usage, measured.finish_reason, measured.has_error) == (None, status, False)
    assert answer_id_of(body) == "resp_1"


def test_a_failed_answer_is_an_error():
    body = b'{"status":"failed","output":[],"error":{"code":"server_error","message":"oh"}}'
    assert API.measure(body).has_error
    error = API.read_error(200, body)
    assert (error.message, error.code) == ("oh", "server_error")


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"output": 7}', b'{"id": "\xff"}', b'{"id":' + b"[" * 5000])
def test_what_is_no_answer_is_refused(body):
    with pytest.raises(msgspec.DecodeError):
        API.read_answer(body)
    assert answer_id_of(body) == ""


# Usage


def _usage(usage: Any, output: list[Any] | None = None, **response: Any) -> Usage | None:
    return API.measure(json.dumps({"usage": usage, "output": output or [], **response}).encode()).usage


def test_usage_is_counted_as_the_provider_bills_it():
    usage = {
        "input_tokens": 100,
        "input_tokens_details": {
            "cached_tokens": 40,
            "cache_write_tokens": 30,
            "cache_write_tokens_details": {"ttl_12h_tokens": 20, "ttl_30m_tokens": 10},
        },
        "output_tokens": 50,
        "output_tokens_details": {"reasoning_tokens": 20},
        "total_tokens": 150,
    }
    assert _usage(usage) == Usage(
        input_tokens=100,
        cache_read_input_tokens=40,
        cache_write_input_tokens=30,
        cache_write_1h_input_tokens=20,
        output_tokens=50,
        reasoning_tokens=20,
    )


def test_reasoning_beside_the_output_is_counted():
    usage = _usage({"input_tokens": 10, "output_tokens": 5, "total_tokens": 45})
    assert usage is not None
    assert usage.output_tokens == 35


@pytest.mark.parametrize("usage", [None, 7, {"input_tokens": -1}, {"input_tokens": "many"}, {"input_tokens": 10**12}])
def test_counts_that_nobody_can_mean_are_not_believed(usage):
    assert _usage(usage) is None


@pytest.mark.parametrize(
    ("output", "more", "expected"),
    [
        ([{"type": "web_search_call", "action": {"type": "search"}}], {}, 1),
        ([{"type": "web_search_call", "action": {"type": "open_page"}}], {}, 0),
        ([{"type": "web_search_call"}] * 3, {"tool_usage": {"web_search": {"num_requests": 2}}}, 2),
        ([{"type": kind} for kind in ("file_search_call", "code_interpreter_call", "image_generation_call")], {}, 3),
        ([{"type": "function_call"}, {"type": "mcp_call"}, {"type": []}], {}, 0),
    ],
)
def test_runs_of_built_in_tools_are_counted(output, more, expected):
    usage = _usage({"input_tokens": 1, "output_tokens": 1}, output, **more)
    assert usage is not None
    assert usage.tool_calls == expected


def test_the_tokens_of_images_made_by_a_tool_are_counted_in_place_of_its_runs():
    image_gen = {
        "input_tokens": 50,
        "input_tokens_details": {"image_tokens": 30, "text_tokens": 20},
        "output_tokens": 1000,
        "output_tokens_details": {"image_tokens": 900, "text_tokens": 100},
    }
    tool_usage = {"image_gen": image_gen, "web_search": {"num_requests": 0}}
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    assert _usage(usage, [{"type": "image_generation_call"}], tool_usage=tool_usage) == Usage(
        input_tokens=60, output_tokens=1005, input_image_tokens=30, output_image_tokens=900
    )


# Request → prompt


def test_a_conversation_of_items_is_read_as_turns():
    prompt = _prompt(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Dev."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA", "status": "completed"},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": "commentary",
             "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
            {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c2", "name": "g", "input": "free"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "custom_tool_call_output", "call_id": "c2",
             "output": [{"type": "input_text", "text": "t"},
                        {"type": "input_image", "image_url": "data:image/png;base64,QUJD", "detail": "low"}]},
            {"role": "user", "content": "Thanks"},
        ],
    )  # fmt: skip
    assert prompt.lost == []
    assert prompt.messages == [
        Message(role="system", parts=[Text(text="Be brief.")]),
        Message(role="developer", parts=[Text(text="Dev.")]),
        Message(role="user", parts=[Text(text="Hi")]),
        Message(
            role="assistant",
            parts=[
                Thinking(signature="gAAA", origin="openai", thinking_id="rs_1", path="input.2"),
                Text(text="Let me see."),
                ToolCall(call_id="c1", name="f", arguments='{"a": 1}', path="input.4"),
                ToolCall(call_id="c2", name="g", arguments="free", is_custom=True, path="input.5"),
            ],
        ),
        Message(
            role="user",
            parts=[
                ToolResult(call_id="c1", content=(Text(text="1"),), path="input.6"),
                ToolResult(
                    call_id="c2",
                    is_custom=True,
                    path="input.7",
                    content=(
                        Text(text="t"),
                        Media(kind="image", media_type="image/png", data="QUJD", detail="low", path="input.7.output.1"),
                    ),
                ),
            ],
        ),
        Message(role="user", parts=[Text(text="Thanks")]),
    ]


def test_files_images_and_audio_are_read_with_their_sources():
    content = [
        {"type": "input_image", "image_url": "https://x/y.png"},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"},
        {"type": "input_file", "file_url": "https://x/a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
    ]
    prompt = _prompt(input=[{"role": "user", "content": content}])
    path = "input.0.content"
    assert prompt.messages[0].parts == [
        Media(kind="image", url="https://x/y.png", path=f"{path}.0"),
        Media(kind="image", file_id="file-1", path=f"{path}.1"),
        Media(kind="document", name="a.pdf", media_type="application/pdf", data="QUJD", path=f"{path}.2"),
        Media(kind="document", url="https://x/a.pdf", path=f"{path}.3"),
        Media(kind="audio", media_type="audio/mpeg", data="QUJD", path=f"{path}.4"),
    ]
    assert prompt.lost == []


def test_parameters_are_read():
    prompt = _prompt(
        input="x",
        max_output_tokens=9,
        temperature=0.5,
        top_p=1,
        top_logprobs=3,
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
              "verbosity": "low"},
        reasoning={"effort": "high", "summary": "auto"},
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
        tools=[
            {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False},
            {"type": "custom", "name": "g", "format": {"type": "text"}},
        ],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
        safety_identifier="u1",
        service_tier="flex",
        metadata={"k": "v"},
        prompt_cache_key="pk",
        store=False,
    )  # fmt: skip
    expected = Prompt(
        messages=[Message(role="user", parts=[Text(text="x")])],
        max_output_tokens=9,
        temperature=0.5,
        top_p=1,
        logprobs=True,
        top_logprobs=3,
        parallel_tool_calls=False,
        output_format=OutputFormat(schema={"type": "object"}, name="n", is_strict=True),
        verbosity="low",
        reasoning=Reasoning(is_on=True, effort="high", summary="auto"),
        tools=[
            Tool(name="f", description="d", parameters={"type": "object"}, is_strict=False, path="tools.0"),
            Tool(name="g", is_custom=True, format={"type": "text"}, path="tools.1"),
        ],
        tool_choice=ToolChoice(mode="required", allowed=("f",)),
        user="u1",
        service_tier="flex",
        metadata={"k": "v"},
        prompt_cache_key="pk",
        store=False,
        names=prompt.names,
    )
    assert prompt == expected


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"previous_response_id": "resp_1"}, ["previous_response_id"]),
        ({"conversation": {"id": "conv_1"}}, ["conversation"]),
        ({"prompt": {"id": "pmpt_1"}}, ["prompt"]),
        ({"background": True}, ["background"]),
        ({"truncation": "auto"}, ["truncation"]),
        ({"prompt_cache_retention": "24h"}, ["prompt_cache_retention"]),
        ({"reasoning": {"context": "all_turns", "mode": "pro"}}, ["reasoning.context", "reasoning.mode"]),
        ({"stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"include": ["something.new", 5]}, ["include.0", "include.1"]),
        ({"tools": [{"type": "web_search"}]}, ["tools.0"]),
        ({"tools": [{"type": "mcp", "server_label": "s"}]}, ["tools.0"]),
        ({"tools": [{"type": "function", "name": "f", "defer_loading": True}]}, ["tools.0.defer_loading"]),
        ({"tool_choice": {"type": "web_search"}}, ["tool_choice"]),
        ({"user": "a", "safety_identifier": "b"}, ["user"]),
        ({"something_new": 1}, ["something_new"]),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, ["input.0"]),
        ({"input": [{"id": "msg_1"}]}, ["input.0"]),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, ["input.0"]),
        ({"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]}, ["input.0"]),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, ["input.0"]),
        ({"input": [{"role": "user", "content": [{"type": "new"}]}]}, ["input.0.content.0"]),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "t", "prompt_cache_breakpoint": {"ttl": "12h"}}]}]},
            ["input.0.content.0.prompt_cache_breakpoint.ttl"],
        ),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "", "namespace": "n"}]}, ["input.0.namespace"]),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_named(fields, lost):
    assert _prompt(**{"input": "x", **fields}).lost == lost


@pytest.mark.parametrize(
    "fields",
    [
        {"background": False, "truncation": "disabled", "previous_response_id": None, "max_tool_calls": 5},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"text": {"format": {"type": "text"}}, "top_logprobs": 0, "include": []},
        {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}, "prompt_cache_retention": "in_memory"},
        {"reasoning": {"context": "auto", "mode": "standard"}},
    ],
)
def test_saying_what_holds_anyway_is_no_loss(fields):
    assert _prompt(input="x", **fields).lost == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": 5}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.image_url"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"include": [["x"]], "text": []}, "text"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        _prompt(**{"input": "x", **fields})
    assert caught.value.param == param


# Prompt → request


def test_a_request_comes_out_as_it_was_read():
    """Round trip: what a client of this dialect says reaches a provider of this dialect in its own words."""
    said = {
        "instructions": "Be brief.",
        "input": [
            {"type": "message", "role": "developer", "content": "Dev."},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "Look"},
                {"type": "input_image", "image_url": "data:image/png;base64,QUJD", "detail": "high"},
                {"type": "input_image", "file_id": "file-1"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"},
                {"type": "input_file", "file_url": "https://x/a.pdf"},
            ]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "id": "rs_1",
             "encrypted_content": "gAAA"},
            {"type": "message", "role": "assistant", "content": "Sure."},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "free"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [
                {"type": "input_text", "text": "t"}, {"type": "input_image", "image_url": "https://x/y.png"}]},
        ],
        "tools": [
            {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
            {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
            {"type": "function", "name": "f"}, {"type": "custom", "name": "g"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
                 "verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "max_output_tokens": 9,
        "store": True,
        "user": "u1",
        "temperature": 0.5,
        "top_p": 1,
        "top_logprobs": 3,
        "parallel_tool_calls": False,
        "metadata": {"k": "v"},
        "prompt_cache_key": "pk",
        "service_tier": "flex",
    }  # fmt: skip
    lost: list[str] = []
    written = _request(_prompt(**said), lost)
    assert lost == []
    assert written == {"model": "gpt-5-mini", **said}


def test_nothing_is_stored_and_functions_are_not_strict_unless_somebody_says_so():
    prompt = Prompt(messages=[Message(role="user", parts=[Text(text="x")])], tools=[Tool(name="f")])
    written = _request(prompt)
    assert written["store"] is False
    assert written["tools"][0]["strict"] is False
    assert written["max_output_tokens"] == 777
    assert "instructions" not in written


@pytest.mark.parametrize(
    ("model", "is_asked"), [("gpt-5-mini", True), ("o4-mini", True), ("gpt-4o", False), ("gpt-5-chat-latest", False)]
)
def test_encrypted_reasoning_is_asked_of_models_that_reason(model, is_asked):
    written = _request(Prompt(messages=[Message(role="user", parts=[Text(text="x")])]), model=model)
    assert (written.get("include") == ["reasoning.encrypted_content"]) is is_asked


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        (Reasoning(effort="low"), {"effort": "low"}),
        (Reasoning(is_on=True, budget_tokens=8_000, summary="auto"), {"effort": "medium", "summary": "auto"}),
        (Reasoning(is_on=True, budget_tokens=100_000), {"effort": "max"}),
        (Reasoning(is_on=False), {"effort": "none"}),
        (Reasoning(budget_tokens=0), {"effort": "none"}),
        (Reasoning(is_adaptive=True, summary="omitted"), None),
        (Reasoning(budget_tokens=-1), None),
    ],
)
def test_reasoning_is_an_effort(reasoning, expected):
    prompt = Prompt(messages=[], reasoning=reasoning)
    assert _request(prompt).get("reasoning") == expected


def test_a_model_that_does_not_reason_is_not_told_not_to():
    written = _request(Prompt(messages=[], reasoning=Reasoning(is_on=False)), model="gpt-4o")
    assert "reasoning" not in written
    assert "include" not in written


def test_thinking_of_others_is_lost_by_its_path_and_our_own_is_returned_exactly():
    parts = [
        Thinking(text="t", signature="sig", origin="anthropic", path="messages.0.content.0"),
        Thinking(text="u", path="messages.0.content.1"),
        Thinking(text="Hm", signature="gAAA", origin="openai", thinking_id="rs_1"),
    ]
    prompt = Prompt(messages=[Message(role="assistant", parts=list(parts))])
    lost: list[str] = []
    written = _request(prompt, lost)
    assert lost == ["messages.0.content.0", "messages.0.content.1"]
    assert written["input"] == [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Hm"}],
            "encrypted_content": "gAAA",
        }
    ]
    lost.clear()
    written = _request(prompt, lost, api=OPEN_RESPONSES)
    assert lost == ["messages.0.content.0"]
    assert written["input"][0]["content"] == [{"type": "reasoning_text", "text": "u"}]


def test_cache_marks_are_breakpoints_for_models_that_take_them():
    parts = [Text(text="a", cache="5m"), Text(text="b", cache="1h")]
    prompt = Prompt(messages=[Message(role="user", parts=list(parts))])
    lost: list[str] = []
    marked = _request(prompt, lost, model="gpt-5.6-sol")["input"][0]["content"]
    assert [part.get("prompt_cache_breakpoint") for part in marked] == [
        {"mode": "explicit"},
        {"mode": "explicit", "ttl": "30m"},
    ]
    plain = _request(prompt, lost)["input"][0]["content"]
    assert plain == [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert lost == []
    read_back = _prompt(input=[{"role": "user", "content": marked}]).messages[0].parts
    assert read_back == parts


def test_a_failed_tool_says_so_in_words():
    results = [
        ToolResult(call_id="c1", content=(Text(text="no such file"),), is_error=True),
        ToolResult(call_id="c2", content=(Media(kind="image", url="https://x"),), is_error=True),
    ]
    written = _request(Prompt(messages=[Message(role="user", parts=list(results))]))["input"]
    assert written[0]["output"] == "Error: no such file"
    assert written[1]["output"][0] == {"type": "input_text", "text": "Error:"}


def test_a_result_without_content_is_empty_text():
    written = _request(Prompt(messages=[Message(role="user", parts=[ToolResult(call_id="c1")])]))["input"]
    assert written == [{"type": "function_call_output", "call_id": "c1", "output": ""}]


def test_what_only_openai_can_read_is_shown_raw_and_returned_to_it():
    redacted = Thinking(redacted="gAAA", origin="openai", thinking_id="rs_1")
    whole = DIALECT.write_answer(Answer(choices=[Choice(parts=[redacted])]), _call(input="x"))
    prompt = _prompt(input=json.loads(whole)["output"])
    lost: list[str] = []
    item = {"type": "reasoning", "summary": [], "id": "rs_1", "encrypted_content": "gAAA"}
    assert _request(prompt, lost)["input"] == [item]
    assert _request(Prompt(messages=[Message(role="assistant", parts=[redacted])]), lost)["input"] == [item]
    assert lost == []


def test_what_this_api_has_no_place_for_is_lost():
    prompt = Prompt(
        messages=[
            Message(
                role="user",
                parts=[
                    Media(kind="video", data="QUJD", path="messages.0.content.0"),
                    Media(kind="image", file_id="file_other", path="messages.0.content.1"),
                    Media(kind="document", url="https://x", is_cited=True, context="c", path="messages.0.content.2"),
                ],
            ),
            Message(role="assistant", parts=[ToolCall(call_id="c", name="f", signature="s", path="messages.1.c")]),
        ],
        stop=("x",),
        seed=5,
        top_k=3,
        frequency_penalty=1,
        service_tier="provisioned",
        names={"stop": "stop_sequences"},
    )
    lost: list[str] = []
    _request(prompt, lost)
    assert sorted(lost) == sorted(
        [
            "top_k", "frequency_penalty", "seed", "stop_sequences", "service_tier", "messages.0.content.0",
            "messages.0.content.1", "messages.0.content.2.citations", "messages.0.content.2.context", "messages.1.c.signature",
        ]
    )  # fmt: skip


# Answers and streams


EVENTS = [
    Began(answer_id="msg_1", model="claude", created_at_s=7, service_tier="standard"),
    ThinkingDelta(text="Let me"),
    ThinkingDelta(text=" think."),
    ThinkingDelta(signature="sig", origin="anthropic"),
    ThinkingDelta(redacted="blob", origin="anthropic"),
    TextDelta(text="Hel", logprobs=[TokenLogprob(token="Hel", logprob=-0.5)]),
    TextDelta(text="lo"),
    Cited(citation=Citation(url="https://x", title="X", start=0, end=5)),
    Cited(citation=Citation(file_id="f1", title="a.pdf", start=3)),
    Cited(citation=Citation(cited_text="no place for this", document=0)),
    TextDelta(text="World", begins_part=True),
    RefusalDelta(text="No."),
    ToolCallBegan(index=0, call_id="c1", name="f", signature="gs"),
    ToolCallBegan(index=1, call_id="c2", name="g", is_custom=True),
    ToolCallDelta(index=0, arguments='{"a":'),
    ToolCallDelta(index=1, arguments="free"),
    ToolCallDelta(index=0, arguments="1}"),
    MediaDone(media=Media(kind="image", media_type="image/png", data="QUJD")),
    TextDelta(text="ignored", choice=1),
    OpaqueDone(kind="search", size=5),
    UsageSeen(usage=Usage(input_tokens=10, cache_read_input_tokens=4, output_tokens=5, reasoning_tokens=2)),
    Finished(finish=TOOL_CALLS, finish_detail="tool_use"),
    Done(),
]
ANSWER = Answer(
    answer_id="msg_1",
    model="claude",
    created_at_s=7,
    service_tier="standard",
    choices=[
        Choice(
            finish=TOOL_CALLS,
            logprobs=[TokenLogprob(token="Hel", logprob=-0.5)],
            parts=[
                Thinking(text="Let me think.", signature="sig", origin="anthropic"),
                Thinking(redacted="blob", origin="anthropic"),
                Text(
                    text="Hello",
                    citations=(
                        Citation(url="https://x", title="X", start=0, end=5),
                        Citation(file_id="f1", title="a.pdf", start=3),
                    ),
                ),
                Text(text="World"),
                Refusal(text="No."),
                ToolCall(call_id="c1", name="f", arguments='{"a":1}', signature="gs"),
                ToolCall(call_id="c2", name="g", arguments="free", is_custom=True),
                Media(kind="image", media_type="image/png", data="QUJD"),
                Opaque(kind="search"),
            ],
        )
    ],
    usage=Usage(input_tokens=10, cache_read_input_tokens=4, output_tokens=5, reasoning_tokens=2),
)


def test_a_stream_tells_every_step_and_ends_with_the_answer_written_whole():
    fields = {"temperature": 0.5, "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": None}]}
    told = _written(*EVENTS, **fields)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        _event_adapter.validate_python(event)
    whole = json.loads(DIALECT.write_answer(ANSWER, _call(input="x", **fields)))
    assert told[-1]["response"] == whole
    Response.model_validate(whole)
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert sorted(done, key=whole["output"].index) == whole["output"]
    assert (whole["model"], whole["temperature"], whole["status"]) == ("demo", 0.5, "completed")
    assert whole["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 15,
    }


def test_the_order_of_a_plain_stream_is_openais():
    told = _written(Began(answer_id="a"), TextDelta(text="Hi"), Finished(finish=STOP), Done())
    assert [event["type"] for event in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert told[-1]["response"]["output"][0]["id"] == "msg_a_0"
    assert told[0]["response"]["status"] == "in_progress"


def test_nothing_is_held_back():
    writer = DIALECT.stream_writer(_call(input="x"))
    writer.write([Began(answer_id="a"), TextDelta(text="1")])
    assert b'"delta":"2"' in writer.write([TextDelta(text="2")])


@pytest.mark.parametrize(
    "events",
    [
        [Cited(citation=Citation(url="https://a.example")), TextDelta(text="so")],
        [TextDelta(text="so"), TextDelta(text="", signature="c2ln"), Cited(citation=Citation(url="https://a.example"))],
    ],
)
def test_a_citation_is_told_wherever_it_stands(events):
    writer = DIALECT.stream_writer(_call(input="x"))
    told = writer.write([Began(answer_id="a"), *events, Finished(finish=STOP), Done()]) + writer.finish()
    last = json.loads(told.rpartition(b"\ndata: ")[2])["response"]
    (message,) = [item for item in last["output"] if item["type"] == "message"]
    assert message["content"][0]["text"] == "so"
    assert [note["url"] for note in message["content"][0]["annotations"]] == ["https://a.example"]
    signed = [item["type"] for item in last["output"]]
    assert signed in (["message"], ["message", "reasoning"])


@pytest.mark.parametrize(
    ("finish", "parts", "status", "reason"),
    [
        (STOP, [Text(text="x")], "completed", None),
        (LENGTH, [Text(text="x")], "incomplete", "max_output_tokens"),
        (CONTENT_FILTER, [Text(text="x")], "incomplete", "content_filter"),
        (REFUSAL, [Refusal(text="no")], "completed", None),
        (REFUSAL, [], "incomplete", "content_filter"),
    ],
)
def test_how_it_ended_is_its_status(finish, parts, status, reason):
    answer = Answer(answer_id="a", choices=[Choice(parts=parts, finish=finish)])
    whole = json.loads(DIALECT.write_answer(answer, _call(input="x")))
    assert whole["status"] == status
    assert (whole["incomplete_details"] or {}).get("reason") == reason
    assert [item["status"] for item in whole["output"]] == [status] * len(parts)
    again = API.read_answer(json.dumps(whole).encode()).choices[0]
    assert again.parts == parts
    assert again.finish == (CONTENT_FILTER if reason == "content_filter" else finish)


def test_a_signature_comes_back_unchanged():
    whole = json.loads(DIALECT.write_answer(ANSWER, _call(input="x")))
    prompt = _prompt(input=[item for item in whole["output"] if item["type"] != "image_generation_call"])
    assert prompt.lost == []
    assert [(type(part), getattr(part, "signature", ""), getattr(part, "redacted", "")) for part in prompt.messages[0].parts] == [
        (Thinking, "sig", ""),
        (Thinking, "", "blob"),
        (Text, "", ""),
        (Text, "", ""),
        (Refusal, "", ""),
        (ToolCall, "gs", ""),
        (ToolCall, "", ""),
    ]  # fmt: skip
    assert {part.origin for part in prompt.messages[0].parts if isinstance(part, Thinking)} == {"anthropic"}
    assert unwrap_signature(whole["output"][0]["encrypted_content"]) == ("anthropic", "sig")


@pytest.mark.parametrize(
    "events",
    [
        [TextDelta(text="Hi"), TextDelta(text="", signature="gs")],
        [TextDelta(text="Hi", signature="gs")],
    ],
)
def test_a_signature_of_a_text_comes_back_on_that_text(events):
    told = _written(Began(answer_id="a"), *events, ToolCallBegan(index=0, call_id="c", name="f"), Finished(finish=STOP))
    output = told[-1]["response"]["output"]
    parts = _prompt(input=output).messages[0].parts
    assert parts[:-1] == [Text(text="Hi", signature="gs")]
    assert isinstance(parts[-1], ToolCall)
    assert parts[-1].signature == ""


def test_a_signature_without_its_text_stands_alone():
    item = {"type": "reasoning", "summary": [], "encrypted_content": wrap_signature("gemini.text", "gs")}
    assert _prompt(input=[item]).messages[0].parts == [Text(text="", signature="gs")]


def test_a_failure_in_mid_stream_is_told_once():
    writer = DIALECT.stream_writer(_call(input="x"))
    error = ProviderError(message="overloaded", kind="overloaded_error")
    told = _told(
        writer.write([Began(answer_id="a"), TextDelta(text="Hi"), Failed(error=error), TextDelta(text="more")])
        + writer.finish()
    )
    assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]
    assert (told[-2]["code"], told[-2]["message"]) == ("overloaded_error", "overloaded")
    assert told[-1]["response"]["status"] == "failed"
    assert told[-1]["response"]["error"] == {"code": "overloaded_error", "message": "overloaded"}


def test_our_own_error_is_an_event_that_the_sdk_raises():
    event = _told(DIALECT.render_error_event(BudgetExceeded("over"), "r"))[0]
    assert (event["type"], event["message"], event["code"]) == ("error", "over", "budget_exceeded")
    assert event["error"]["type"] == "rate_limit_error"


def test_a_stream_without_a_beginning_is_still_whole():
    told = _written(TextDelta(text="Hi"))
    assert told[0]["type"] == "response.created"
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == "Hi"
    assert _written()[-1]["response"]["output"] == []


# Streams read


def test_what_came_in_no_delta_is_read_from_the_item():
    message = {
        "type": "message",
        "content": [{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "No"}],
    }
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    events = _read(
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.output_item.added", "output_index": 1, "item": {**call, "arguments": ""}},
        {"type": "response.output_item.done", "output_index": 1, "item": call},
        {"type": "response.output_item.done", "output_index": 2, "item": {**call, "call_id": "c2"}},
        {"type": "response.completed", "response": {"status": "completed", "output": [message, call]}},
    )
    assert events == [
        TextDelta(text="Hi"),
        RefusalDelta(text="No"),
        ToolCallBegan(index=0, call_id="c1", name="f"),
        ToolCallDelta(index=0, arguments="{}"),
        ToolCallBegan(index=1, call_id="c2", name="f"),
        ToolCallDelta(index=1, arguments="{}"),
        Finished(finish=TOOL_CALLS, finish_detail="completed"),
        Done(),
    ]


def test_what_came_in_no_event_is_read_from_the_response():
    message = {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}
    events = _read({"type": "response.completed", "response": {"status": "completed", "output": [message]}})
    assert events[0] == TextDelta(text="Hi")


def test_calls_are_told_apart_by_item_id_where_there_is_no_index():
    call = {"type": "function_call", "name": "f", "arguments": ""}
    events = _read(
        {"type": "response.output_item.added", "item": {**call, "id": "fc_1", "call_id": "c1"}},
        {"type": "response.output_item.added", "item": {**call, "id": "fc_2", "call_id": "c2"}},
        {"type": "response.function_call_arguments.delta", "item_id": "fc_2", "delta": "2"},
        {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": "1"},
        {"type": "response.output_item.done", "item": {**call, "id": "fc_1", "call_id": "c1", "arguments": "1"}},
    )
    assert [(event.index, event.arguments) for event in events if isinstance(event, ToolCallDelta)] == [
        (1, "2"),
        (0, "1"),
    ]


def test_an_error_and_the_failed_response_are_one_failure():
    events = _read(
        {"type": "error", "error": {"type": "server_error", "code": "x", "message": "oh", "param": None}},
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "x", "message": "oh"},
                                                 "usage": {"input_tokens": 3, "output_tokens": 0}}},
    )  # fmt: skip
    assert [type(event) for event in events] == [Failed, UsageSeen]
    assert (events[0].error.message, events[0].error.code) == ("oh", "x")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "x", "message": "oh", "param": None, "sequence_number": 3},
        {"error": {"message": "oh", "code": "x"}},
        {"code": "x", "error": "oh"},
    ],
)
def test_an_error_is_read_in_every_shape(event):
    (failed,) = _read(event)
    assert (failed.error.message, failed.error.code) == ("oh", "x")


@pytest.mark.parametrize(
    "data",
    [
        b"[]", b"7", b"{", b'{"type":5}', b'{"type":"response.output_text.delta","delta":5,"output_index":[]}',
        b'{"type":"response.output_item.done","item":7}', b'{"type":"response.output_item.done","item":{"type":{}}}',
        b'{"type":"response.completed"}', b'{"type":"response.completed","response":{"output":7}}',
        b'{"type":"response.completed","response":{"usage":7,"status":7,"incomplete_details":7,"output":[7,{}]}}',
        b'{"type":"response.failed","response":{"error":7}}', b'{"type":"error"}', b'{"type":"error","error":7}',
        b'{"type":"response.output_text.annotation.added","annotation":7}', b'{"type":"response.created","response":7}',
        b'{"type":"response.function_call_arguments.delta","delta":"x"}', b'\xff{"type":"x"}', b'{"type":"\\ud800"}', b'{"delta":"\xff"}',
        b'{"type":"response.output_item.done","item":{"type":"message","content":[{"type":[]}]}}',
        b'{"type":"response.output_text.delta","delta":"x","logprobs":[{"token":5,"bytes":[{}],"logprob":"x"}]}',
    ],
)  # fmt: skip
def test_no_frame_makes_the_reader_stumble(data):
    reader = API.stream_reader()
    EventMeter(reader).observe(Frame(data, data, b""))
    reader.read(Frame(data, data, b"error"))


def test_output_that_cannot_be_read_is_counted_by_its_length():
    assert _read({"type": "response.code_interpreter_call_code.delta", "delta": "print()"}) == [
        OpaqueDone(kind="response.code_interpreter_call_code.delta", size=7)
    ]
    assert _read({"type": "response.web_search_call.searching"}) == []


def test_paragraphs_of_a_reasoning_are_kept_apart():
    delta = {"type": "response.reasoning_summary_text.delta", "item_id": "rs_1", "output_index": 0}
    events = _read(
        {**delta, "summary_index": 0, "delta": "One"},
        {**delta, "summary_index": 1, "delta": "Two"},
        {"type": "response.output_item.done", "output_index": 0,
         "item": {"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA",
                  "summary": [{"type": "summary_text", "text": "One"}, {"type": "summary_text", "text": "Two"}]}},
    )  # fmt: skip
    assert "".join(event.text for event in events) == "One\n\nTwo"
    assert (events[-1].signature, events[-1].origin, events[-1].thinking_id) == ("gAAA", "openai", "rs_1")


# Real traffic


def _recorded(**wanted: Any) -> list[Any]:
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["api"] == "responses" and all(entry[name] == value for name, value in wanted.items())
    ]


def _exchange(path: Path) -> tuple[dict[str, Any], bytes]:
    exchange = json.loads(path.read_text())
    response = exchange["response"]
    body = response.get("body_text")
    return exchange, body.encode() if body is not None else base64.b64decode(response["body_base64"])


def _assert_usage(usage: Usage | None, told: dict[str, Any] | None) -> None:
    if told is None:
        assert usage is None
        return
    assert usage is not None
    cached = (told.get("input_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (told.get("output_tokens_details") or {}).get("reasoning_tokens") or 0
    assert (usage.input_tokens, usage.output_tokens) == (told["input_tokens"], told["output_tokens"])
    assert (usage.cache_read_input_tokens, usage.reasoning_tokens) == (cached, reasoning)


def _comparable(parts: list[Any]) -> list[Any]:
    """Without what has no counterpart and where an annotation came from. OpenAI encrypts the same reasoning anew each time."""
    kept: list[Any] = []
    for part in parts:
        if isinstance(part, Text):
            if part.text:
                notes = [(note.url, note.file_id, note.title, note.start, note.end) for note in part.citations]
                kept.append((part.text, notes))
        elif isinstance(part, Thinking):
            kept.append((part.text, bool(part.signature), part.thinking_id))
        elif not isinstance(part, Opaque):
            kept.append(part)
    return kept


@pytest.mark.parametrize("path", _recorded(streaming=False, status=200))
def test_a_real_answer_is_read_and_written_again(path):
    exchange, body = _exchange(path)
    told = json.loads(body)
    answer = API.read_answer(body)
    measured = API.measure(body)
    assert answer.usage == measured.usage
    assert not measured.has_error
    _assert_usage(answer.usage, told["usage"])
    assert answer.answer_id == told["id"] == answer_id_of(body)
    choice = answer.choices[0]
    assert sum(isinstance(part, ToolCall) for part in choice.parts) == sum(
        item["type"] == "function_call" for item in told["output"]
    )
    call = _call(**{**exchange["request"]["body"], "model": "demo"})
    written = DIALECT.write_answer(answer, call)
    again = API.read_answer(written).choices[0]
    assert _comparable(again.parts) == _comparable(choice.parts)
    assert again.finish == choice.finish
    assert json.loads(written)["status"] == told["status"]


@pytest.mark.parametrize("cut", [1, 7, 0, -1], ids=["bytes", "sevens", "whole", "random"])
@pytest.mark.parametrize("path", _recorded(streaming=True))
def test_a_real_stream_is_read_and_written_again_at_any_cut(path, cut):
    exchange, body = _exchange(path)
    parser, reader = SSEParser(), API.stream_reader()
    writer = DIALECT.stream_writer(_call(**{**exchange["request"]["body"], "model": "demo"}))
    meter = EventMeter(reader)
    written, events = b"", []
    for chunk in _chunks(body, cut):
        for frame in parser.feed(chunk):
            read = list(reader.read(frame))
            meter.count(read)
            events += read
            written += writer.write(read)
    written += writer.finish()
    assert meter.has_ended
    told = _told(written)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    if meter.has_error:
        assert told[-1]["type"] == "response.failed"
        return
    original = _last_response(body)
    _assert_usage(meter.usage, original["usage"])
    assert told[-1]["type"] == f"response.{original['status']}"
    has_several = (
        body.count(b'"type":"response.created"') > 1
    )  # One recording holds the streams of a whole conversation.
    if original["output"] and not has_several:
        expected = API.read_answer(json.dumps(original).encode())
        again = API.read_answer(json.dumps(told[-1]["response"]).encode())
        assert _comparable(again.choices[0].parts) == _comparable(expected.choices[0].parts)
        assert again.choices[0].finish == expected.choices[0].finish
        assert expected.usage == meter.usage


def _chunks(body: bytes, cut: int) -> list[bytes]:
    if cut == 0:
        return [body]
    if cut > 0:
        return [body[i : i + cut] for i in range(0, len(body), cut)]
    generator = random.Random(len(body))
    edges = sorted({0, len(body), *(generator.randrange(len(body)) for _ in range(40))})
    return [body[start:end] for start, end in itertools.pairwise(edges)]


def _last_response(body: bytes) -> dict[str, Any]:
    events = [json.loads(frame.data) for frame in SSEParser().feed(body) if frame.data[:1] == b"{"]
    return next(event["response"] for event in reversed(events) if "response" in event)


@pytest.mark.parametrize("path", _recorded())
def test_a_real_request_is_read_and_written_again(path):
    # A template brings its model along at the provider; here an alias is always named.
    said = {"model": "demo", **_exchange(path)[0]["request"]["body"]}
    call = DIALECT.describe(json.dumps(said).encode(), b"application/json", {})
    prompt = DIALECT.read_prompt(call)
    lost = list(prompt.lost)
    written = json.loads(API.write_request(prompt, call, DEPLOYMENT, PROVIDER, lost).body)
    strange = ("_call", "_output", "compaction", "tool_search", "web_search", "file_search", "mcp")
    for name in lost:
        value: Any = said
        for step in name.split("."):
            value = value[int(step)] if isinstance(value, list) else value.get(step)
        kind = value.get("type", "") if isinstance(value, dict) else ""
        assert (
            name in ("prompt", "previous_response_id", "moderation", "reasoning.context", "reasoning.mode")
            or any(word in kind for word in strange)
            or name.endswith((".defer_loading", ".namespace"))
            or kind == "reasoning"
        ), name
    if not lost and isinstance(said.get("input"), list):
        again = DIALECT.read_prompt(_call(**{**written, "model": "demo"}))
        assert [(m.role, len(m.parts)) for m in again.messages] == [(m.role, len(m.parts)) for m in prompt.messages]
        assert again.tools == prompt.tools or any(tool.is_strict is None for tool in prompt.tools)


@pytest.mark.parametrize("path", [each for status in (400, 401, 429) for each in _recorded(status=status)])
def test_a_real_error_is_read(path):
    exchange, body = _exchange(path)
    error = API.read_error(exchange["response"]["status"], body)
    told = json.loads(body)["error"]
    assert (error.message, error.kind) == (told["message"], told["type"])
    assert (error.code or None, error.param or None) == (told["code"], told["param"])
