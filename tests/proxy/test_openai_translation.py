"""Chat completions in neutral words and back: what clients send, what providers shaped like OpenAI answer, in every recording."""

import base64
import importlib
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from audit.records import Usage
from proxy.dialects.dialect import JSON
from proxy.dialects.openai_chat import CHAT
from proxy.errors import InvalidRequest
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
    Opaque,
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
    Tool,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    UsageSeen,
    wrap_signature,
)
from proxy.providers import openai_chat
from proxy.providers.openai_answers import ChatReader
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Api
from proxy.snapshot import Deployment, Provider
from proxy.wire.sse import SSEParser

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="p", model="m", upstream_model="upstream", max_output_tokens=777
)
PROVIDER = Provider(slug="p", api="openai", base_url="https://api.example.com/v1")
NAMES = (
    "openai", "azure", "mistral", "groq", "deepseek", "xai", "openrouter", "together", "perplexity", "vllm", "llamacpp",
    "huggingface", "cerebras", "openai_compatible",
)  # fmt: skip
APIS: dict[str, Api] = {name: importlib.import_module(f"proxy.providers.{name}").PROVIDER.apis[0] for name in NAMES}


def _call(body: dict[str, Any]):
    return CHAT.describe(json.dumps({"model": "alias", **body}).encode(), JSON, {})


def _read(body: dict[str, Any]) -> Prompt:
    return CHAT.read_prompt(_call(body))


def _write(prompt: Prompt, api: str = "openai", **body: Any) -> tuple[dict[str, Any], list[str]]:
    lost = list(prompt.lost)
    outgoing = APIS[api].write_request(prompt, _call({"messages": [], **body}), DEPLOYMENT, PROVIDER, lost)
    return json.loads(outgoing.body), lost


def _user(*parts: Any) -> Prompt:
    return Prompt(messages=[Message(role="user", parts=list(parts))])


def _events(stream: bytes, size: int = 0) -> list[Any]:
    parser, reader = SSEParser(), ChatReader()
    frames = [frame for part in _cut(stream, size or len(stream)) for frame in parser.feed(part)]
    tail = parser.finish()
    return [event for frame in [*frames, *([tail] if tail else [])] for event in reader.read(frame)]


def _chunks(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def _delta(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "c1", "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def _cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


# Requests, read


@pytest.mark.parametrize("api", ["mistral", "vllm", "openai_compatible"])
def test_a_bare_error_in_a_stream_is_called_an_error_and_nothing_else_is_touched(api):
    error = {"object": "error", "message": "full", "type": "server_error", "code": "1500"}
    frames = SSEParser().feed(_chunks(_delta(content='{"object":"error"}'), error))
    assert APIS[api].reframe(frames[0]) == frames[0].raw
    (told,) = SSEParser().feed(APIS[api].reframe(frames[1]))
    assert json.loads(told.data) == {"error": error}


def test_every_role_is_read():
    prompt = _read(
        {
            "messages": [
                {"role": "developer", "content": "d"},
                {"role": "system", "content": [{"type": "text", "text": "s"}]},
                {"role": "user", "content": "u", "name": "bob"},
                {"role": "assistant", "content": None, "refusal": "no"},
            ]
        }
    )
    assert prompt.messages == [
        Message(role="developer", parts=[Text(text="d")]),
        Message(role="system", parts=[Text(text="s")]),
        Message(role="user", parts=[Text(text="u")], name="bob"),
        Message(role="assistant", parts=[Refusal(text="no")]),
    ]
    assert prompt.lost == []


def test_what_litellm_returns_beside_a_message_is_lost_only_where_it_says_something():
    said = {"role": "assistant", "content": "a", "provider_specific_fields": {"refusal": None, "citations": ["c"]}}
    assert _read({"messages": [said]}).lost == ["messages.0.provider_specific_fields.citations"]


def test_results_of_parallel_calls_are_one_message_of_the_user():
    prompt = _read(
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                        {"id": "2", "type": "custom", "custom": {"name": "g", "input": "free"}},
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "one"},
                {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "two"}]},
                {"role": "user", "content": "go on"},
            ]
        }
    )
    calls, results, said = prompt.messages
    assert calls.parts == [
        ToolCall(call_id="1", name="f", arguments='{"a":1}', path="messages.0.tool_calls.0"),
        ToolCall(call_id="2", name="g", arguments="free", is_custom=True, path="messages.0.tool_calls.1"),
    ]
    assert [(part.call_id, part.content) for part in results.parts] == [
        ("1", (Text(text="one"),)),
        ("2", (Text(text="two"),)),
    ]
    assert said.parts == [Text(text="go on")]


@pytest.mark.parametrize(
    ("fields", "name", "told"),
    [
        ({"random_seed": 7}, "seed", "random_seed"),
        ({"functions": [{"name": "f"}]}, "parallel_tool_calls", "functions"),
    ],
)
def test_what_is_lost_is_named_as_the_client_wrote_it(fields, name, told):
    prompt = _read({"messages": [{"role": "user", "content": "hi"}], **fields})
    assert getattr(prompt, name) is not None
    assert prompt.names[name] == told


def test_functions_of_the_older_kind_are_tools_and_come_back_as_such():
    body = {
        "messages": [
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "done"},
        ],
        "functions": [{"name": "f", "parameters": {"type": "object"}}],
        "function_call": {"name": "f"},
    }
    prompt = _read(body)
    call, result = prompt.messages[0].parts[0], prompt.messages[1].parts[0]
    assert call.call_id == result.call_id
    assert prompt.tools == [Tool(name="f", parameters={"type": "object"}, path="functions.0")]
    assert prompt.tool_choice == ToolChoice(mode="tool", name="f")
    answer = Answer(choices=[Choice(parts=[ToolCall(call_id="1", name="f", arguments='{"a":1}')], finish="tool_calls")])
    choice = json.loads(CHAT.write_answer(answer, _call(body)))["choices"][0]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a":1}'}
    assert choice["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    ("part", "media"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            Media(kind="image", media_type="image/png", data="AAAA", detail="low"),
        ),
        ({"type": "image_url", "image_url": "https://x/y.png"}, Media(kind="image", url="https://x/y.png")),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            Media(kind="audio", media_type="audio/mpeg", data="AAAA"),
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
            Media(kind="document", media_type="application/pdf", data="AAAA", name="a.pdf"),
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, Media(kind="document", file_id="file-1")),
        ({"type": "video_url", "video_url": {"url": "https://x"}}, Media(kind="video", url="https://x")),
        (
            {
                "type": "image_url",
                "image_url": {"url": "https://x"},
                "cache_control": {"type": "ephemeral", "ttl": "1h"},
            },
            Media(kind="image", url="https://x", cache="1h"),
        ),
    ],
)
def test_media_are_read(part, media):
    prompt = _read({"messages": [{"role": "user", "content": [part]}]})
    media.path = "messages.0.content.0"
    assert prompt.messages[0].parts == [media]
    assert prompt.lost == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool_choice": "required"}, {"tool_choice": ToolChoice(mode="required")}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": ToolChoice(mode="tool", name="f")},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
                }
            },
            {"tool_choice": ToolChoice(mode="auto", allowed=("f",))},
        ),
        ({"response_format": {"type": "text"}}, {"output_format": None}),
        ({"response_format": {"type": "json_object"}}, {"output_format": OutputFormat()}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
            {"output_format": OutputFormat(name="n", schema={}, is_strict=True)},
        ),
        ({"reasoning_effort": "low"}, {"reasoning": Reasoning(effort="low")}),
        (
            {"reasoning": {"max_tokens": 9, "exclude": True}},
            {"reasoning": Reasoning(budget_tokens=9, summary="omitted")},
        ),
        ({"thinking": {"type": "disabled"}}, {"reasoning": Reasoning(is_on=False)}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"max_tokens": 5}, {"max_output_tokens": 5}),
        ({"safety_identifier": "u"}, {"user": "u"}),
        ({"n": 2, "seed": 1, "top_p": 1}, {"choices": 2, "seed": 1, "top_p": 1}),
    ],
)
def test_parameters_are_read(fields, expected):
    prompt = _read({"messages": [{"role": "user", "content": "x"}], **fields})
    assert {name: getattr(prompt, name) for name in expected} == expected
    assert prompt.lost == []


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"web_search_options": {}}, "web_search_options"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]}, "messages.0.audio"),
        ({"messages": [{"role": "assistant", "content": "x", "prefix": True}]}, "messages.0.prefix"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"something_new": 1}, "something_new"),
    ],
)
def test_what_cannot_be_said_is_named(fields, lost):
    assert _read({"messages": [{"role": "user", "content": "x"}], **fields}).lost == [lost]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [7]}, "messages.0"),
        ({"messages": [{"role": "robot"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.image_url"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls.0.function"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
def test_a_wrong_field_is_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        _read({"messages": [{"role": "user", "content": "x"}], **fields})
    assert caught.value.param == param


# Requests, written


def test_results_are_messages_of_their_own_and_their_images_follow():
    prompt = _user(
        ToolResult(call_id="1", content=(Text(text="see"), Media(kind="image", url="https://x"))),
        ToolResult(call_id="2", content=(Text(text="broken"),), is_error=True),
        Text(text="well?"),
    )
    written, lost = _write(prompt)
    assert lost == []
    assert written["messages"] == [
        {"role": "tool", "tool_call_id": "1", "content": "see"},
        {"role": "tool", "tool_call_id": "2", "content": "Error: broken"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "From the result of 1:"},
                {"type": "image_url", "image_url": {"url": "https://x"}},
                {"type": "text", "text": "well?"},
            ],
        },
    ]


def test_the_cap_is_the_prompts_or_else_the_deployments():
    assert _write(_user(Text(text="x")))[0]["max_completion_tokens"] == 777
    capped = msgspec.structs.replace(_user(Text(text="x")), max_output_tokens=5)
    assert _write(capped)[0]["max_completion_tokens"] == 5
    assert _write(capped, "mistral")[0]["max_tokens"] == 5


@pytest.mark.parametrize(
    ("api", "reasoning", "expected"),
    [
        ("openai", Reasoning(budget_tokens=5_000), {"reasoning_effort": "medium"}),
        ("openai", Reasoning(effort="max"), {"reasoning_effort": "xhigh"}),
        ("openai", Reasoning(is_on=False), {"reasoning_effort": "none"}),
        ("openai", Reasoning(is_on=True, is_adaptive=True), {}),
        ("groq", Reasoning(effort="minimal"), {"reasoning_effort": "low"}),
        ("mistral", Reasoning(effort="low"), {"reasoning_effort": "high"}),
        ("deepseek", Reasoning(effort="xhigh"), {"reasoning_effort": "max", "thinking": {"type": "enabled"}}),
        ("deepseek", Reasoning(is_on=False), {"thinking": {"type": "disabled"}}),
        ("openrouter", Reasoning(budget_tokens=5_000), {"reasoning": {"max_tokens": 5_000}}),
        ("together", Reasoning(effort="none"), {"reasoning": {"enabled": False}}),
    ],
)
def test_reasoning_is_asked_for_in_the_providers_words(api, reasoning, expected):
    written, lost = _write(msgspec.structs.replace(_user(Text(text="x")), reasoning=reasoning), api)
    found = {name: written[name] for name in ("reasoning", "reasoning_effort", "thinking") if name in written}
    assert (found, lost) == (expected, [])


@pytest.mark.parametrize(
    ("api", "part", "field"),
    [
        ("deepseek", Thinking(text="hm", path="p"), {"reasoning_content": "hm"}),
        ("groq", Thinking(text="hm", path="p"), {"reasoning": "hm"}),
        (
            "mistral",
            Thinking(text="hm", path="p"),
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"type": "text", "text": "so"},
                ]
            },
        ),
        (
            "openrouter",
            Thinking(text="hm", signature="sig", origin="anthropic", path="p"),
            {
                "reasoning_details": [
                    {
                        "type": "reasoning.text",
                        "text": "hm",
                        "signature": "sig",
                        "format": "anthropic-claude-v1",
                        "index": 0,
                    }
                ]
            },
        ),
        (
            "openrouter",
            Thinking(signature="enc", origin="openai", thinking_id="rs_1", path="p"),
            {
                "reasoning_details": [
                    {
                        "type": "reasoning.encrypted",
                        "data": "enc",
                        "id": "rs_1",
                        "format": "openai-responses-v1",
                        "index": 0,
                    }
                ]
            },
        ),
    ],
)
def test_thinking_is_returned_where_it_has_a_place(api, part, field):
    prompt = Prompt(messages=[Message(role="assistant", parts=[part, Text(text="so")])])
    written, lost = _write(prompt, api)
    assert lost == []
    assert {name: written["messages"][0][name] for name in field} == field


@pytest.mark.parametrize("api", ["openai", "deepseek"])
def test_signed_thinking_without_a_place_is_named(api):
    thought = Thinking(text="hm", signature="s", origin="anthropic", path="messages.0.content.0")
    prompt = Prompt(messages=[Message(role="assistant", parts=[thought, Text(text="so")])])
    assert _write(prompt, api)[1] == ["messages.0.content.0"]


@pytest.mark.parametrize(
    ("api", "changes", "lost"),
    [
        ("openai", {"top_k": 3}, ["top_k"]),
        ("groq", {"choices": 2, "frequency_penalty": 0.5}, ["frequency_penalty", "choices"]),
        ("deepseek", {"output_format": OutputFormat(schema={})}, ["output_format"]),
        ("mistral", {"user": "u"}, ["user"]),
        ("perplexity", {"tools": [Tool(name="f", path="tools.0")]}, ["tools.0"]),
        ("xai", {"tools": [Tool(name="f", is_custom=True, path="tools.0")]}, ["tools.0"]),
    ],
)
def test_what_a_provider_does_not_take_is_named(api, changes, lost):
    assert _write(msgspec.structs.replace(_user(Text(text="x")), **changes), api)[1] == lost


def test_the_id_of_a_user_is_one_that_openai_takes_and_always_the_same():
    """Claude Code sends one of 150 characters; OpenAI takes 64."""
    long = "user_" + "7" * 145
    (first, lost), (second, _) = (_write(Prompt(messages=[], user=user)) for user in (long, long))
    assert lost == []
    assert len(first["user"]) == 64
    assert first["user"] == second["user"] != _write(Prompt(messages=[], user=long + "8"))[0]["user"]
    assert _write(Prompt(messages=[], user="u" * 64))[0]["user"] == "u" * 64


def test_a_narrowed_choice_of_tools_is_told_by_leaving_the_others_out():
    prompt = msgspec.structs.replace(
        _user(Text(text="x")),
        tools=[Tool(name="f"), Tool(name="g")],
        tool_choice=ToolChoice(mode="required", allowed=("g",)),
    )
    written, _ = _write(prompt, "mistral")
    assert [tool["function"]["name"] for tool in written["tools"]] == ["g"]
    assert written["tool_choice"] == "any"
    assert _write(prompt)[0]["tool_choice"]["type"] == "allowed_tools"


def test_mistral_gets_ids_that_it_takes_the_same_in_call_and_result():
    prompt = Prompt(
        messages=[
            Message(role="assistant", parts=[ToolCall(call_id="toolu_01", name="f")]),
            Message(role="user", parts=[ToolResult(call_id="toolu_01", content=(Text(text="x"),))]),
        ]
    )
    call, result = _write(prompt, "mistral")[0]["messages"]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(result["tool_call_id"]) == 9


def test_openrouter_gets_cache_markers_and_others_cache_anyway():
    prompt = _user(Text(text="x", cache="1h"))
    marked = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert _write(prompt, "openrouter")[0]["messages"][0]["content"] == [marked]
    assert _write(prompt) == ({**_write(prompt)[0], "messages": [{"role": "user", "content": "x"}]}, [])


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, b"/openai/v1/chat/completions"),
        (
            {"url_style": "deployments", "api_version": "2024-12-01-preview"},
            b"/openai/deployments/upstream/chat/completions?api-version=2024-12-01-preview",
        ),
        ({"url_style": "models"}, b"/models/chat/completions?api-version=2024-10-21"),
    ],
)
def test_azure_has_its_addresses(options, target):
    provider = msgspec.structs.replace(PROVIDER, options=options)
    call = _call({"messages": []})
    passed = APIS["azure"].pass_request(call, DEPLOYMENT, provider)
    written = APIS["azure"].write_request(_user(Text(text="x")), call, DEPLOYMENT, provider, [])
    assert (passed.target, written.target) == (target, target)


@pytest.mark.parametrize(
    ("style", "target"),
    [
        ("v1", b"/openai/v1/responses?api-version=preview"),
        ("deployments", b"/openai/responses?api-version=preview"),
    ],
)
def test_azures_responses_name_their_model_in_the_body_alone(style, target):
    provider = msgspec.structs.replace(PROVIDER, options={"url_style": style, "api_version": "preview"})
    api = importlib.import_module("proxy.providers.azure").AzureResponses()
    assert api.write_request(_user(Text(text="x")), _call({"messages": []}), DEPLOYMENT, provider, []).target == target


def test_azure_takes_a_key_or_a_token():
    authorize = importlib.import_module("proxy.providers.azure").PROVIDER.authorize
    outgoing = APIS["azure"].pass_request(_call({"messages": []}), DEPLOYMENT, PROVIDER)
    assert authorize("k3y", PROVIDER).headers(outgoing, "o", b"/", 0.0) == [(b"api-key", b"k3y")]
    token = authorize("eyJh.eyJi.c2ln", PROVIDER).headers(outgoing, "o", b"/", 0.0)
    assert token == [(b"authorization", b"Bearer eyJh.eyJi.c2ln")]


# Signatures


@pytest.mark.parametrize(
    "part",
    [
        Thinking(text="hm", signature="s+/=", origin="anthropic"),
        Thinking(redacted="enc", origin="anthropic"),
        Thinking(text="sum", signature="enc", origin="openai", thinking_id="rs_1"),
        Thinking(text="hm"),
        ToolCall(call_id="1", name="f", signature="sig"),
        Text(text="so", signature="sig"),
    ],
)
def test_a_signature_comes_back_unchanged(part):
    answer = Answer(answer_id="a", choices=[Choice(parts=[part])])
    message = json.loads(CHAT.write_answer(answer, _call({"messages": []})))["choices"][0]["message"]
    back = _read({"messages": [message]}).messages[0].parts[0]
    if hasattr(back, "path"):
        back.path = ""
    assert back == part


def test_a_streamed_signature_comes_back_unchanged():
    writer = CHAT.stream_writer(_call({"messages": []}))
    stream = writer.write(
        [
            Began(answer_id="a"),
            ThinkingDelta(text="h", origin="anthropic"),
            ThinkingDelta(text="m", origin="anthropic"),
            ThinkingDelta(signature="sig", origin="anthropic"),
            ThinkingDelta(redacted="enc", origin="anthropic"),
        ]
    )
    pieces = [
        detail
        for line in stream.split(b"\n\n")[:-1]
        for detail in json.loads(line[6:])["choices"][0]["delta"].get("reasoning_details", ())
    ]
    assert [piece["index"] for piece in pieces] == [0, 0, 0, 1]
    assert pieces[2]["signature"] == wrap_signature("anthropic", "sig")
    assert pieces[3]["data"] == wrap_signature("anthropic", "enc")


# Answers


def test_an_answer_is_written_as_openai_writes_it():
    answer = Answer(
        answer_id="a",
        model="upstream",
        created_at_s=5,
        choices=[
            Choice(
                parts=[
                    Text(text="One. "),
                    Text(text="Two.", citations=(Citation(url="https://x", title="X"), Citation(document=1))),
                    Opaque(kind="search"),
                    ToolCall(call_id="1", name="f", arguments='{"a":1}'),
                ],
                finish="tool_calls",
            )
        ],
        usage=Usage(input_tokens=10, cache_read_input_tokens=4, output_tokens=5, reasoning_tokens=2),
    )
    written = json.loads(CHAT.write_answer(answer, _call({"messages": []})))
    assert written["model"] == "alias"
    assert written["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "One. Two.",
            "refusal": None,
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {"url": "https://x", "title": "X", "start_index": 5, "end_index": 9},
                }
            ],
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert written["usage"]["total_tokens"] == 15
    assert written["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert written["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


@pytest.mark.parametrize(
    ("finish", "parts", "word"),
    [
        ("stop_sequence", [Text(text="x")], "stop"),
        ("length", [Text(text="x")], "length"),
        ("content_filter", [], "content_filter"),
        ("refusal", [], "content_filter"),
        ("refusal", [Refusal(text="no")], "stop"),
        ("pause", [Text(text="x")], "stop"),
    ],
)
def test_a_finish_is_told_in_openais_words(finish, parts, word):
    answer = Answer(choices=[Choice(parts=parts, finish=finish)])
    assert json.loads(CHAT.write_answer(answer, _call({"messages": []})))["choices"][0]["finish_reason"] == word


@pytest.mark.parametrize("wants_usage", [True, False])
def test_a_stream_begins_with_the_role_and_ends_with_done(wants_usage):
    writer = CHAT.stream_writer(
        _call({"messages": [], "stream": True, "stream_options": {"include_usage": wants_usage}})
    )
    stream = writer.write(
        [
            Began(answer_id="a", created_at_s=5),
            TextDelta(text="Hi"),
            RefusalDelta(text="no"),
            ToolCallBegan(index=0, call_id="1", name="f"),
            ToolCallDelta(index=0, arguments="{}"),
            Cited(citation=Citation(url="https://x")),
            UsageSeen(usage=Usage(input_tokens=1, output_tokens=2)),
            Finished(finish="tool_calls"),
            TextDelta(text="other", choice=1),
            Done(),
        ]
    )
    stream += writer.finish()
    lines = stream.decode().split("\n\n")[:-1]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert {chunk["model"] for chunk in chunks} == {"alias"}
    first = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    assert [choice["delta"] for choice in first] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hi"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {"url": "https://x", "title": "", "start_index": 0, "end_index": 2},
                }
            ]
        },
        {},
    ]
    assert [choice["finish_reason"] for choice in first] == [None] * 6 + ["tool_calls"]
    second = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 1]
    assert [choice["finish_reason"] for choice in second] == [None, None, "stop"]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [usage["total_tokens"] for usage in usages] == ([3] if wants_usage else [])


# Odd chunks


def test_calls_are_told_apart_however_they_are_numbered():
    def call(index: Any, call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
        return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}

    same_index = _chunks(
        _delta(tool_calls=[call(0, "a", "f", "{}")]), _delta(tool_calls=[call(0, "b", "g", "{}")], finish_reason="stop")
    )
    no_index = _chunks(
        _delta(tool_calls=[call(None, "a", "f", "{"), call(None, "b", "g", "")]),
        _delta(tool_calls=[call(None, "a", None, "}")]),
        _delta(finish_reason="tool_calls"),
    )
    repeated = _chunks(_delta(tool_calls=[call(0, "a", "f", "{")]), _delta(tool_calls=[call(0, "a", "f", "}")]))
    late_name = _chunks(
        _delta(tool_calls=[call(0, "a", None, None)]), _delta(tool_calls=[call(0, None, "f", {"x": 1})])
    )
    no_id = _chunks(_delta(tool_calls=[call(0, "", "f", "{}")]), _delta(tool_calls=[call(1, None, "g", "{}")]))
    for stream, expected in (
        (same_index, [("a", "f", "{}"), ("b", "g", "{}")]),
        (no_index, [("a", "f", "{}"), ("b", "g", "{}")]),
        (repeated, [("a", "f", "{}")]),
        (late_name, [("a", "f", '{"x":1}')]),
        (no_id, [("call_c1_0", "f", "{}"), ("call_c1_1", "g", "{}")]),
    ):
        events = _events(stream)
        begun = [event for event in events if isinstance(event, ToolCallBegan)]
        arguments = [
            "".join(e.arguments for e in events if isinstance(e, ToolCallDelta) and e.index == b.index) for b in begun
        ]
        assert [(b.call_id, b.name, a) for b, a in zip(begun, arguments, strict=True)] == expected


@pytest.mark.parametrize(
    ("stream", "kind", "status_code"),
    [
        (b'event: error\ndata: {"error":{"message":"x","status_code":400}}\n\n', Failed, 400),
        (_chunks({"object": "error", "message": "x", "code": 400}), Failed, 400),
        (_chunks({"choices": [{"index": 0, "delta": {}, "error": {"message": "x", "code": 502}}]}), Failed, 502),
        (_chunks({"id": "c", "choices": [], "x_groq": {"error": "x"}}), Failed, 0),
        (b'{"error":{"message":"x","type":"server_error"}}\n\n', Failed, 500),
        (_chunks({"choices": 7, "error": "x"}), Failed, 0),
    ],
)
def test_an_error_within_a_stream_is_an_error(stream, kind, status_code):
    (failed,) = [event for event in _events(stream) if isinstance(event, kind)]
    assert (failed.error.message, failed.error.status_code) == ("x", status_code)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["choices", "delta", "content", "tool_calls", "function", "name", "arguments", "id", "index", "usage", "prompt_tokens", "prompt_tokens_details", "error", "reasoning_details", "annotations", "url_citation", "finish_reason", "logprobs", "message", "audio", "images", "x_groq", "extra_content", "custom", "type", "text"]), inner, max_size=6), max_leaves=30))  # fmt: skip
@settings(max_examples=300)
def test_no_chunk_and_no_answer_makes_a_reader_fail(value):
    body = json.dumps(value).encode()
    parser, reader = SSEParser(), ChatReader()
    for frame in parser.feed(b"data: " + body + b"\n\n"):
        reader.read(frame)
    meter = openai_chat.ChatMeter(wants_usage_chunk=False)
    for frame in SSEParser().feed(b"data: " + body + b"\n\n"):
        meter.observe(frame)
    read_error(400, body)
    for read in (openai_chat.CHAT.read_answer, openai_chat.CHAT.measure):
        try:
            read(body)
        except msgspec.DecodeError:
            pass


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"detail":"Invalid API Key"}', ProviderError(message="Invalid API Key")),
        (
            b'{"detail":[{"loc":["body","top_k"],"msg":"Extra inputs are not permitted","type":"extra_forbidden"}]}',
            ProviderError(message="body.top_k: Extra inputs are not permitted"),
        ),
        (
            b'{"object":"error","message":"Rate limit exceeded","type":"rate_limited","code":"1300"}',
            ProviderError(message="Rate limit exceeded", kind="rate_limited", code="1300"),
        ),
        (b'{"code":"bad","error":"It is"}', ProviderError(message="It is", code="bad")),
        (b'{"error":"model not found"}', ProviderError(message="model not found")),
        (
            b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]',
            ProviderError(message="m", kind="INVALID_ARGUMENT", code="400"),
        ),
        (
            b'{"error":{"code":429,"message":"Provider returned error","metadata":{"raw":"slow down"}}}',
            ProviderError(message="Provider returned error: slow down", code="429"),
        ),
        (
            b'{"error":{"message":"Please try again in 1m2.5s.","type":"tokens","param":"p","code":"rate_limit_exceeded"}}',
            ProviderError(
                message="Please try again in 1m2.5s.",
                kind="tokens",
                param="p",
                code="rate_limit_exceeded",
                retry_after_s=63,
            ),
        ),
        (b"<html>", ProviderError(message="the provider answered 418")),
        (b"plain words", ProviderError(message="plain words")),
        (b"", ProviderError(message="the provider answered 418")),
    ],
)
def test_an_error_is_read_in_any_shape(body, expected):
    assert read_error(418, body) == msgspec.structs.replace(expected, status_code=418)


# Real traffic


def _recorded(**wanted: Any) -> list[Any]:
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["api"] == "chat-completions" and all(entry[name] == value for name, value in wanted.items())
    ]


@pytest.mark.parametrize("path", _recorded(status=200, streaming=True))
def test_a_real_stream_says_the_same_at_any_cut(path):
    recording = json.loads(path.read_text())
    stream = base64.b64decode(recording["response"]["body_base64"])
    whole = _events(stream)
    for size in (1, random.Random(len(stream)).randint(2, 99)):
        assert _events(stream, size) == whole
    assert isinstance(whole[0], Began)
    finished = [event.choice for event in whole if isinstance(event, Finished)]
    assert len(finished) == len(set(finished))
    assert finished or any(isinstance(event, Failed) for event in whole)
    begun = [event for event in whole if isinstance(event, ToolCallBegan)]
    assert len(begun) == len({(event.choice, event.index) for event in begun})
    assert len({event.call_id for event in begun}) == (recording["meta"]["tool_calls"] or 0)
    seen = [event.usage for event in whole if isinstance(event, UsageSeen)]
    meter = openai_chat.ChatMeter(wants_usage_chunk=True)
    for frame in SSEParser().feed(stream):
        meter.observe(frame)
    assert (seen[-1] if seen else None) == meter.usage
    writer = CHAT.stream_writer(_call({"messages": [], "stream_options": {"include_usage": True}}))
    again = _events(writer.write(whole) + writer.finish())
    said, said_again = _said(whole), _said(again)
    # An error ends a stream in the gateway's words, not in the writer's.
    has_failed = any(isinstance(event, Failed) for event in whole)
    assert said_again[:6] == said[:6] if has_failed else said_again == said


def _said(events: list[Any]) -> tuple[Any, ...]:
    """What a stream says, however it is cut into pieces."""

    def joined(kind: type, field: str) -> str:
        return "".join(getattr(event, field) for event in events if isinstance(event, kind))

    calls = [(e.call_id, e.name) for e in events if isinstance(e, ToolCallBegan)]
    usages = [e.usage for e in events if isinstance(e, UsageSeen)]
    usage = (
        msgspec.structs.replace(usages[-1], tool_calls=0, searches=0, cache_write_1h_input_tokens=0) if usages else None
    )
    finishes = [e.finish for e in events if isinstance(e, Finished)]
    return (
        joined(TextDelta, "text"),
        joined(ThinkingDelta, "text"),
        joined(RefusalDelta, "text"),
        calls,
        joined(ToolCallDelta, "arguments"),
        usage,
        finishes,
    )


@pytest.mark.parametrize("path", _recorded(status=200))
def test_the_official_sdk_reads_what_is_written_for_it(path):
    response = json.loads(path.read_text())["response"]
    if "body_text" in response:
        answer = openai_chat.CHAT.read_answer(response["body_text"].encode())
        ChatCompletion.model_validate_json(CHAT.write_answer(answer, _call({"messages": []})), strict=True)
        return
    writer = CHAT.stream_writer(_call({"messages": [], "stream_options": {"include_usage": True}}))
    stream = writer.write(_events(base64.b64decode(response["body_base64"]))) + writer.finish()
    for frame in SSEParser().feed(stream)[:-1]:
        ChatCompletionChunk.model_validate_json(frame.data, strict=True)


@pytest.mark.parametrize("path", _recorded(status=200, streaming=False))
def test_a_real_answer_keeps_its_meaning_when_it_is_written_again(path):
    body = json.loads(path.read_text())["response"]["body_text"].encode()
    answer = openai_chat.CHAT.read_answer(body)
    assert answer.usage == openai_chat.CHAT.measure(body).usage
    again = openai_chat.CHAT.read_answer(CHAT.write_answer(answer, _call({"messages": []})))
    for before, after in zip(answer.choices, again.choices, strict=True):
        kept = [part for part in before.parts if not isinstance(part, Opaque)]
        assert [_bare(part) for part in after.parts] == [_bare(part) for part in kept]
        assert (after.finish, after.logprobs) == (before.finish, before.logprobs)


def _bare(part: Any) -> Any:
    if isinstance(part, Text):
        return part.text, [(citation.url, citation.title) for citation in part.citations]
    return part


@pytest.mark.parametrize("path", [path for path in _recorded() if "error-4" in (path.id or "") or not path.id])
def test_a_real_error_is_read(path):
    response = json.loads(path.read_text())["response"]
    error = read_error(response["status"], response["body_text"].encode())
    text = response["body_text"].replace("\\u003c", "<").replace("\\u003e", ">").replace('\\"', '"')
    # OpenRouter's own words, and those of the provider behind it.
    assert all(piece in text for piece in error.message.split("error: "))
    assert error.status_code == response["status"]


# What a recorded request says that is lost when it goes through neutral words to the very same provider.
LOST = {
    "web_search_options", "audio", "modalities", "moderation", "search_settings", "provider", "search_context_size", "seed",
    "parallel_tool_calls", "tools.0",
}  # fmt: skip


@pytest.mark.parametrize("path", _recorded(status=200))
def test_a_real_request_keeps_its_meaning_to_the_same_provider(path):
    recording = json.loads(path.read_text())
    name = recording["meta"]["provider"]
    body = {**recording["request"]["body"], "model": "alias"}
    api = name if name in APIS else "openai_compatible"
    prompt = _read(body)
    written, lost = _write(prompt, api, stream=body.get("stream"))
    if name == "bedrock":
        assert lost == ["messages.0.content.1"]  # Sound, for somebody of whom nothing is known.
        return
    assert set(lost) <= LOST
    again = CHAT.read_prompt(CHAT.describe(json.dumps(written).encode(), JSON, {}))
    assert _normal(again, api) == _normal(prompt, api)


def _normal(prompt: Prompt, api: str) -> Any:
    """Without what a provider is told otherwise on purpose: ids at Mistral, roles, caps, markers, the names of fields."""
    value = msgspec.to_builtins(prompt)
    for name in ("names", "lost", "max_output_tokens", "cache", "reasoning"):
        value.pop(name, None)
    for name in OPTIONAL:
        if name not in APIS[api].carried:
            value.pop(name, None)
    value["tools"] = [{**tool, "path": ""} for tool in value.get("tools", ())]
    return _without_paths(value, api)


OPTIONAL = ("choices", "seed", "parallel_tool_calls", "modalities")


def _without_paths(value: Any, api: str) -> Any:
    if isinstance(value, dict):
        dropped = {"path", *(("call_id",) if api == "mistral" else ()), *(("cache",) if api != "openrouter" else ())}
        return {name: _without_paths(item, api) for name, item in value.items() if name not in dropped}
    return [_without_paths(item, api) for item in value] if isinstance(value, list) else value


# Any prompt

texts = st.text(max_size=20)
words = st.text("abcdefghij_", min_size=1, max_size=8)
parts = st.one_of(
    st.builds(Text, text=texts.filter(bool)),
    st.builds(Media, kind=st.just("image"), url=words.map(lambda word: f"https://{word}")),
    st.builds(
        Media, kind=st.just("image"), media_type=st.just("image/png"), data=words, detail=st.sampled_from(["", "low"])
    ),
    st.builds(Media, kind=st.just("document"), media_type=st.just("application/pdf"), data=words, name=words),
    st.builds(Media, kind=st.just("audio"), media_type=st.just("audio/mpeg"), data=words),
)
calls = st.builds(ToolCall, call_id=words, name=words, arguments=st.just('{"a":1}'), is_custom=st.booleans())
results = st.builds(ToolResult, call_id=words, content=st.tuples(st.builds(Text, text=texts)))
messages = st.one_of(
    st.builds(Message, role=st.sampled_from(["system", "developer"]), parts=st.lists(st.builds(Text, text=texts), min_size=1, max_size=1)),
    st.builds(Message, role=st.just("user"), parts=st.lists(parts, min_size=1, max_size=3), name=st.sampled_from(["", "bob"])),
    st.builds(
        Message,
        role=st.just("assistant"),
        parts=st.tuples(st.lists(st.builds(Text, text=texts.filter(bool)), min_size=1, max_size=2), st.lists(calls, max_size=2)).map(lambda both: [*both[0], *both[1]]),
    ),
)  # fmt: skip
prompts = st.builds(
    Prompt,
    messages=st.lists(messages, min_size=1, max_size=4),
    tools=st.lists(
        st.builds(Tool, name=words, description=texts, parameters=st.none() | st.just({"type": "object"}), is_strict=st.none() | st.booleans()),
        max_size=3,
    ),
    tool_choice=st.none() | st.builds(ToolChoice, mode=st.sampled_from(["auto", "none", "required"])) | st.builds(ToolChoice, mode=st.just("tool"), name=words),
    parallel_tool_calls=st.none() | st.booleans(),
    max_output_tokens=st.integers(1, 99_999),
    temperature=st.none() | st.floats(0, 2),
    seed=st.none() | st.integers(0, 2**31),
    stop=st.lists(texts, max_size=3).map(tuple),
    choices=st.none() | st.integers(1, 9),
    logprobs=st.none() | st.booleans(),
    top_logprobs=st.none() | st.integers(1, 20),
    logit_bias=st.none() | st.dictionaries(words, st.integers(-100, 100), max_size=2),
    output_format=st.none() | st.just(OutputFormat()) | st.builds(OutputFormat, schema=st.just({"type": "object"}), name=words, description=texts, is_strict=st.none() | st.booleans()),
    reasoning=st.none() | st.builds(Reasoning, effort=st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh"])),
    verbosity=st.none() | st.sampled_from(["low", "high"]),
    user=st.none() | words,
    service_tier=st.none() | st.sampled_from(["auto", "default", "flex"]),
    metadata=st.none() | st.dictionaries(words, texts, max_size=2),
    store=st.none() | st.booleans(),
    prompt_cache_key=st.none() | words,
)  # fmt: skip


@given(prompts)
@settings(max_examples=150)
def test_any_prompt_survives_the_way_to_openai_and_back(prompt):
    written, lost = _write(prompt)
    again = CHAT.read_prompt(CHAT.describe(json.dumps(written).encode(), JSON, {}))
    assert (lost, again.lost) == ([], [])
    if not prompt.tools:  # Without tools there is nothing to choose from.
        prompt = msgspec.structs.replace(prompt, tool_choice=None, parallel_tool_calls=None)
    again = msgspec.structs.replace(again, names={})
    assert _without_paths(msgspec.to_builtins(again), "openrouter") == _without_paths(
        msgspec.to_builtins(prompt), "openrouter"
    )


CUSTOM_CALL = {"id": "call_1", "type": "custom", "custom": {"name": "grep", "input": "a|b"}}


@pytest.mark.parametrize(("call", "is_custom"), [(CUSTOM_CALL, True), ({**CUSTOM_CALL, "id": "call_2"}, False)])
def test_a_result_is_of_the_kind_of_its_call(call, is_custom):
    answered = {"role": "tool", "tool_call_id": "call_1", "content": "found"}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    (_, result) = _read({"messages": [said, answered]}).messages
    assert result.parts[0].is_custom is is_custom


def test_a_tool_of_free_text_can_be_chosen_by_name():
    chosen = {"type": "custom", "custom": {"name": "grep"}}
    prompt = _read({"messages": [{"role": "user", "content": "U"}], "tool_choice": chosen})
    assert (prompt.tool_choice, prompt.lost) == (ToolChoice(mode="tool", name="grep"), [])
