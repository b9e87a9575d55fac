import base64
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.records import Usage
from proxy.dialects.dialect import Call, Dialect
from proxy.dialects.openai_chat import CHAT as CHAT_COMPLETIONS
from proxy.neutral import (
    Began,
    Choice,
    Citation,
    Cited,
    Done,
    Event,
    Failed,
    Finished,
    Media,
    MediaDone,
    Message,
    OpaqueDone,
    OutputFormat,
    Part,
    Prompt,
    Reasoning,
    Refusal,
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
from proxy.providers.bedrock import PROVIDER, MantleChat, MantleResponses, authorize
from proxy.providers.bedrock_chunks import ClaudeChunks, as_server_sent
from proxy.providers.bedrock_converse import Converse, family_of
from proxy.providers.bedrock_messages import BedrockMessages
from proxy.providers.provider import EventMeter, Outgoing
from proxy.snapshot import Deployment, Provider
from proxy.wire.event_stream import EventStreamParser
from proxy.wire.frame import Frame, StreamMalformed
from proxy.wire.json_gate import parse_object
from proxy.wire.sse import SSEParser

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA = "us.amazon.nova-2-lite-v1:0"
CONVERSE = Converse()
AMAZON = Provider(
    slug="bedrock",
    api="bedrock",
    base_url="https://bedrock-runtime.us-east-1.amazonaws.com",
    options={"region": "us-east-1"},
)


def deployment(upstream_model: str = CLAUDE, model: str = "m") -> Deployment:
    return Deployment(
        deployment_id="1",
        name="d",
        provider="bedrock",
        model=model,
        upstream_model=upstream_model,
        max_output_tokens=4096,
    )


def call(**changes: Any) -> Call:
    asked: dict[str, Any] = {
        "dialect": Dialect(),
        "operation": "chat",
        "capability": "chat",
        "alias": "a",
        "body": b"{}",
        "input_tokens_max": 1,
    }
    return Call(**(asked | changes))


def write(
    prompt: Prompt, upstream_model: str = CLAUDE, *, is_stream: bool = False
) -> tuple[dict[str, Any], list[str], Outgoing]:
    lost: list[str] = []
    before = msgspec.json.encode(prompt)
    outgoing = CONVERSE.write_request(prompt, call(is_stream=is_stream), deployment(upstream_model), AMAZON, lost)
    assert msgspec.json.encode(prompt) == before
    return json.loads(outgoing.body), lost, outgoing


def asking(*parts: Part, **parameters: Any) -> Prompt:
    return Prompt(messages=[Message(role="user", parts=list(parts) or [Text(text="Hi")])], **parameters)


def blocks(*parts: Part, upstream_model: str = CLAUDE) -> tuple[list[dict[str, Any]], list[str]]:
    body, lost, _ = write(asking(*parts), upstream_model)
    return (body["messages"][0]["content"] if body["messages"] else []), lost


def event(kind: str, data: Any) -> Frame:
    return Frame(b"", json.dumps(data).encode(), kind.encode())


def told(*frames: Frame) -> list[Event]:
    reader = CONVERSE.stream_reader()
    return [said for frame in frames for said in reader.read(frame)]


# Requests


@pytest.mark.parametrize(
    ("upstream_model", "is_stream", "target"),
    [
        ("us.anthropic.claude-sonnet-4-6", False, b"/model/us.anthropic.claude-sonnet-4-6/converse"),
        ("amazon.nova-lite-v1:0", True, b"/model/amazon.nova-lite-v1%3A0/converse-stream"),
        (
            "arn:aws:bedrock:us-east-1:0:application-inference-profile/1a",
            False,
            b"/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A0%3Aapplication-inference-profile%2F1a/converse",
        ),
    ],
)
def test_the_model_is_one_segment_of_the_path(upstream_model: str, is_stream: bool, target: bytes) -> None:
    assert write(asking(), upstream_model, is_stream=is_stream)[2].target == target


@pytest.mark.parametrize(
    ("upstream_model", "model", "family"),
    [
        (CLAUDE, "m", "claude"),
        ("arn:aws:bedrock:us-east-1:0:application-inference-profile/1a", "claude-sonnet-4-6", "claude"),
        (NOVA, "m", "nova"),
        ("openai.gpt-oss-120b-1:0", "m", "gpt"),
        ("meta.llama3-8b-instruct-v1:0", "m", ""),
    ],
)
def test_the_family_is_read_from_the_models_names(upstream_model: str, model: str, family: str) -> None:
    assert family_of(deployment(upstream_model, model)) == family


def test_messages_take_turns_and_the_system_prompt_stands_apart() -> None:
    prompt = Prompt(
        messages=[
            Message(role="system", parts=[Text(text="A", cache="1h")]),
            Message(role="user", parts=[Text(text="B")]),
            Message(role="user", parts=[Text(text="C", cache="5m")]),
            Message(role="assistant", parts=[Text(text="")]),
            Message(role="developer", parts=[Text(text="D")]),
            Message(role="user", parts=[Text(text="E")]),
            Message(role="assistant", parts=[Refusal(text="F")]),
        ]
    )
    body, lost, _ = write(prompt)
    assert lost == []
    assert body["system"] == [{"text": "A"}, {"cachePoint": {"type": "default", "ttl": "1h"}}, {"text": "D"}]
    assert body["messages"] == [
        {"role": "user", "content": [{"text": "B"}, {"text": "C"}, {"cachePoint": {"type": "default"}}, {"text": "E"}]},
        {"role": "assistant", "content": [{"text": "F"}]},
    ]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            Media(kind="image", media_type="image/jpeg", data="QQ==", detail="auto"),
            {"image": {"format": "jpeg", "source": {"bytes": "QQ=="}}},
        ),
        (
            Media(kind="image", media_type="image/png", url="s3://bucket/cat.png"),
            {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://bucket/cat.png"}}}},
        ),
        (
            Media(kind="document", media_type="application/pdf", data="QQ==", name="my  report_1.pdf"),
            {"document": {"format": "pdf", "name": "my report-1-pdf", "source": {"bytes": "QQ=="}}},
        ),
        (
            Media(kind="document", text="T", context="C", is_cited=True),
            {
                "document": {
                    "format": "txt",
                    "name": "Document",
                    "source": {"text": "T"},
                    "context": "C",
                    "citations": {"enabled": True},
                }
            },
        ),
        (
            Media(kind="audio", media_type="audio/mpeg", data="QQ=="),
            {"audio": {"format": "mp3", "source": {"bytes": "QQ=="}}},
        ),
        (
            Media(kind="video", media_type="video/mp4", data="QQ=="),
            {"video": {"format": "mp4", "source": {"bytes": "QQ=="}}},
        ),
        (
            ToolCall(call_id="call_1", name="f", arguments='{"b": 1, "a": [2.50]}'),
            {"toolUse": {"toolUseId": "call_1", "name": "f", "input": {"b": 1, "a": [2.5]}}},
        ),
        (
            ToolCall(call_id="call_1", name="f", arguments=""),
            {"toolUse": {"toolUseId": "call_1", "name": "f", "input": {}}},
        ),
        (
            ToolResult(
                call_id="call_1",
                content=(Text(text="T"), Media(kind="image", media_type="image/png", data="QQ==")),
                is_error=True,
            ),
            {
                "toolResult": {
                    "toolUseId": "call_1",
                    "content": [{"text": "T"}, {"image": {"format": "png", "source": {"bytes": "QQ=="}}}],
                    "status": "error",
                }
            },
        ),
        (
            Thinking(text="hm", signature="c2ln", origin="anthropic"),
            {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "c2ln"}}},
        ),
        (Thinking(redacted="cmVk", origin="anthropic"), {"reasoningContent": {"redactedContent": "cmVk"}}),
    ],
)
def test_a_part_is_written_in_converses_words(part: Part, expected: dict[str, Any]) -> None:
    assert blocks(part) == ([expected], [])


@pytest.mark.parametrize(
    "part",
    [
        Media(kind="image", media_type="image/png", url="https://example.com/cat.png", path="p"),
        Media(kind="image", media_type="image/bmp", data="QQ==", path="p"),
        Media(kind="document", file_id="file_1", path="p"),
        ToolCall(call_id="1", name="f", arguments="free text", path="p"),
        ToolCall(call_id="1", name="f", arguments="[1]", path="p"),
        ToolCall(call_id="1", name="f", arguments="free text", is_custom=True, path="p"),
        ToolResult(call_id="1", is_custom=True, path="p"),
        Thinking(text="hm", path="p"),
        Thinking(text="hm", signature="s", origin="gemini", path="p"),
        Thinking(text="hm", signature="s", origin="openai", path="p"),
    ],
)
def test_what_has_no_place_is_named_by_its_path(part: Part) -> None:
    assert blocks(part) == ([], ["p"])


def test_what_only_a_part_of_is_lost_is_named_too() -> None:
    image = Media(kind="image", media_type="image/png", data="QQ==", detail="high", path="p")
    inner = ToolResult(call_id="1", content=(Media(kind="audio", data="QQ==", path="q"),), path="r")
    foreign = ToolCall(call_id="1", name="f", signature="s", path="t")
    written, lost = blocks(image, inner, foreign, Text(text="T", signature="s"))
    assert len(written) == 4
    assert lost == ["p.detail", "q", "t.signature", "messages.0.signature"]


def test_a_marker_within_a_result_stands_at_its_end() -> None:
    written, _ = blocks(ToolResult(call_id="1", content=(Text(text="T", cache="1h"),)), Text(text="U"))
    assert written[1] == {"cachePoint": {"type": "default", "ttl": "1h"}}


def test_unsigned_thinking_goes_to_families_that_sign_nothing() -> None:
    expected = {"reasoningContent": {"reasoningText": {"text": "hm"}}}
    assert blocks(Thinking(text="hm"), upstream_model="openai.gpt-oss-120b-1:0") == ([expected], [])


def test_documents_never_share_a_name() -> None:
    written, _ = blocks(*(Media(kind="document", text="T", name="a.b") for _ in range(3)))
    assert [block["document"]["name"] for block in written] == ["a-b", "a-b (2)", "a-b (3)"]


def test_an_id_that_bedrock_refuses_gets_another_on_both_sides() -> None:
    call_id = "call|" + "x" * 100
    written, _ = blocks(ToolCall(call_id=call_id, name="f"), ToolResult(call_id=call_id))
    assert written[0]["toolUse"]["toolUseId"] == written[1]["toolResult"]["toolUseId"] != call_id
    assert len(written[0]["toolUse"]["toolUseId"]) <= 64


def test_sampling_and_the_output_cap_stand_in_the_inference_config() -> None:
    asked = asking(max_output_tokens=5, temperature=0, top_p=0.5, stop=("a", "b"))
    body, lost, _ = write(asked, NOVA)
    assert body["inferenceConfig"] == {"maxTokens": 5, "temperature": 0, "topP": 0.5, "stopSequences": ["a", "b"]}
    body, lost_at_claude, _ = write(asked)
    assert body["inferenceConfig"] == {"maxTokens": 5, "temperature": 0, "stopSequences": ["a", "b"]}
    assert (lost, lost_at_claude) == ([], ["top_p"])  # This model takes one of them.
    assert body["additionalModelResponseFieldPaths"] == ["/stop_sequence"]
    assert write(asking())[0]["inferenceConfig"] == {"maxTokens": 4096}
    assert lost == []


@pytest.mark.parametrize(
    ("upstream_model", "reasoning", "expected"),
    [
        (CLAUDE, Reasoning(budget_tokens=2000), {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
        (CLAUDE, Reasoning(effort="low"), {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        (CLAUDE, Reasoning(effort="max"), {"thinking": {"type": "enabled", "budget_tokens": 4095}}),
        (CLAUDE, Reasoning(is_on=False), {"thinking": {"type": "disabled"}}),
        (
            "us.anthropic.claude-sonnet-5",
            Reasoning(budget_tokens=9000),
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        (
            "us.anthropic.claude-sonnet-4-6",
            Reasoning(budget_tokens=2000),
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        ),
        (
            "us.anthropic.claude-sonnet-4-6",
            Reasoning(effort="high", summary="omitted"),
            {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "high"}},
        ),
        (NOVA, Reasoning(effort="low"), {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}}),
        (NOVA, Reasoning(budget_tokens=5000), {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}}),
        (NOVA, Reasoning(effort="none"), {"reasoningConfig": {"type": "disabled"}}),
        ("openai.gpt-oss-120b-1:0", Reasoning(effort="xhigh"), {"reasoning_effort": "high"}),
        ("openai.gpt-oss-120b-1:0", Reasoning(is_on=True), {"reasoning_effort": "medium"}),
    ],
)
def test_each_family_is_told_to_reason_in_its_own_words(
    upstream_model: str, reasoning: Reasoning, expected: dict[str, Any]
) -> None:
    body, lost, _ = write(asking(reasoning=reasoning), upstream_model)
    assert (body["additionalModelRequestFields"], lost) == (expected, [])


@pytest.mark.parametrize(
    ("upstream_model", "parameters"),
    [
        ("meta.llama3-8b-instruct-v1:0", {"reasoning": Reasoning(effort="low")}),
        (NOVA, {"reasoning": Reasoning(effort="high")}),
        (CLAUDE, {"reasoning": Reasoning(effort="low"), "max_output_tokens": 1000}),
        ("openai.gpt-oss-120b-1:0", {"reasoning": Reasoning(is_on=False)}),
        ("meta.llama3-8b-instruct-v1:0", {"top_k": 3}),
        (CLAUDE, {"seed": 1}),
        (CLAUDE, {"output_format": OutputFormat()}),
        (CLAUDE, {"service_tier": "scale"}),
        (CLAUDE, {"user": "ä"}),
        (NOVA, {"parallel_tool_calls": False, "tools": [Tool(name="f")]}),
    ],
)
def test_a_parameter_without_a_place_is_lost_by_the_clients_own_name(
    upstream_model: str, parameters: dict[str, Any]
) -> None:
    names = {name: f"my_{name}" for name in parameters}
    assert write(asking(names=names, **parameters), upstream_model)[1] == [f"my_{next(iter(parameters))}"]


@pytest.mark.parametrize(
    ("upstream_model", "expected"),
    [
        (CLAUDE, {"top_k": 3}),
        (NOVA, {"inferenceConfig": {"topK": 3}}),
        ("mistral.mistral-7b-instruct-v0:2", {"top_k": 3}),
        ("cohere.command-r-v1:0", {"k": 3}),
    ],
)
def test_top_k_has_a_name_in_each_family(upstream_model: str, expected: dict[str, Any]) -> None:
    body, lost, _ = write(asking(top_k=3), upstream_model)
    assert (body["additionalModelRequestFields"], lost) == (expected, [])


TOOLS = [Tool(name="f", description="F", parameters={"type": "object"}, is_strict=True, cache="5m"), Tool(name="g")]
SPECS = [
    {"toolSpec": {"name": "f", "description": "F", "inputSchema": {"json": {"type": "object"}}, "strict": True}},
    {"cachePoint": {"type": "default"}},
    {"toolSpec": {"name": "g", "inputSchema": {"json": {"type": "object", "properties": {}}}}},
]


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        (None, {"tools": SPECS}),
        (ToolChoice(mode="auto"), {"tools": SPECS}),
        (ToolChoice(mode="required"), {"tools": SPECS, "toolChoice": {"any": {}}}),
        (ToolChoice(mode="tool", name="g"), {"tools": SPECS, "toolChoice": {"tool": {"name": "g"}}}),
        (ToolChoice(mode="required", allowed=("g",)), {"tools": SPECS[2:], "toolChoice": {"any": {}}}),
    ],
)
def test_tools_and_the_choice_among_them_are_written(choice: ToolChoice | None, config: dict[str, Any]) -> None:
    body, lost, _ = write(asking(tools=TOOLS, tool_choice=choice))
    assert (body["toolConfig"], lost) == (config, [])


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (ToolChoice(mode="none"), None, {"type": "none"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolChoice(mode="required"), False, {"type": "any", "disable_parallel_tool_use": True}),
        (ToolChoice(mode="tool", name="f"), False, {"type": "tool", "name": "f", "disable_parallel_tool_use": True}),
    ],
)
def test_claude_is_told_its_choice_in_its_own_words_where_converse_has_none(
    choice: ToolChoice | None, parallel: bool | None, expected: dict[str, Any]
) -> None:
    body, lost, _ = write(asking(tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel))
    assert (body["additionalModelRequestFields"], body["toolConfig"], lost) == (
        {"tool_choice": expected},
        {"tools": SPECS},
        [],
    )


def test_no_tools_are_offered_to_others_that_shall_use_none() -> None:
    none = ToolChoice(mode="none")
    body, lost, _ = write(asking(tools=TOOLS, tool_choice=none), NOVA)
    assert ("toolConfig" not in body, lost) == (True, [])
    assert write(asking(ToolCall(call_id="1", name="f"), tools=TOOLS, tool_choice=none), NOVA)[1] == ["tool_choice"]


def test_a_custom_tool_is_lost() -> None:
    custom = Tool(name="f", is_custom=True, path="tools.0")
    body, lost, _ = write(asking(tools=[custom]))
    assert ("toolConfig" in body, lost) == (False, ["tools.0"])


def test_structured_output_is_a_schema_as_text() -> None:
    wanted = OutputFormat(schema={"type": "object"}, name="N", description="D", is_strict=True)
    body, lost, _ = write(asking(output_format=wanted))
    schema = {"schema": '{"type":"object"}', "name": "N", "description": "D"}
    assert body["outputConfig"] == {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}
    assert lost == []


def test_the_user_and_the_metadata_go_to_the_log_of_invocations() -> None:
    body, lost, _ = write(asking(user="u-1", metadata={"team": "a b", "ü": "x"}, service_tier="flex"))
    assert body["requestMetadata"] == {"team": "a b", "user_id": "u-1"}
    assert body["serviceTier"] == {"type": "flex"}
    assert lost == ["metadata.ü"]


def test_automatic_caching_marks_the_last_message() -> None:
    body, lost, _ = write(asking(cache="5m"))
    assert body["messages"][-1]["content"] == [{"text": "Hi"}, {"cachePoint": {"type": "default"}}]
    assert lost == []


@pytest.mark.parametrize(
    ("upstream_model", "marks"),
    [
        (CLAUDE, ["system", "messages", "toolConfig"]),
        (NOVA, ["system", "messages"]),
        ("openai.gpt-oss-120b-1:0", []),
    ],
)
def test_markers_go_to_models_that_know_them(upstream_model: str, marks: list[str]) -> None:
    marked = [Text(text="A", cache="5m")]
    messages = [Message(role="system", parts=[*marked]), Message(role="user", parts=[*marked])]
    body, lost, _ = write(Prompt(messages=messages, tools=TOOLS), upstream_model)
    assert [name for name in ("system", "messages", "toolConfig") if "cachePoint" in str(body[name])] == marks
    assert lost == []


def test_what_says_nothing_is_left_out() -> None:
    empty = [Text(text=""), Thinking(), ToolResult(call_id="1", content=(Text(text=""),))]
    assert blocks(*empty) == ([{"toolResult": {"toolUseId": "1", "content": []}}], [])


# Answers


def test_an_answer_of_every_kind_of_block_is_read() -> None:
    content = [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "cmVk"}},
        {"text": "T"},
        {"citationsContent": {"content": [{"text": "C"}], "citations": [
            {"title": "t", "sourceContent": [{"text": "s"}], "location": {"documentChar": {"documentIndex": 2}}},
            {"location": {"web": {"url": "https://example.com"}}},
        ]}},
        {"toolUse": {"toolUseId": "1", "name": "f", "input": {"a": 1}}},
        {"image": {"format": "png", "source": {"bytes": "QQ=="}}},
    ]  # fmt: skip
    answer = CONVERSE.read_answer(
        json.dumps(
            {
                "output": {"message": {"role": "assistant", "content": content}},
                "stopReason": "stop_sequence",
                "additionalModelResponseFields": {"stop_sequence": "END"},
                "serviceTier": {"type": "flex"},
                "trace": {"promptRouter": {"invokedModelId": "anthropic.claude"}},
            }
        ).encode()
    )
    first, second, text, cited, tool_call, image = answer.choices[0].parts
    assert first == Thinking(text="hm", signature="c2ln", origin="anthropic")
    assert second == Thinking(redacted="cmVk", origin="anthropic")
    assert text == Text(text="T")
    assert isinstance(cited, Text) and cited.text == "C"
    assert [(c.title, c.cited_text, c.document, c.url) for c in cited.citations] == [
        ("t", "s", 2, ""),
        ("", "", -1, "https://example.com"),
    ]
    assert tool_call == ToolCall(call_id="1", name="f", arguments='{"a": 1}')
    assert image == Media(kind="image", media_type="image/png", data="QQ==")
    assert (answer.choices[0].finish, answer.choices[0].stop_sequence) == ("stop_sequence", "END")
    assert (answer.service_tier, answer.model, answer.usage) == ("flex", "anthropic.claude", None)


def test_cached_tokens_are_part_of_the_input() -> None:
    usage = {
        "inputTokens": 5,
        "outputTokens": 7,
        "totalTokens": 999,
        "cacheReadInputTokens": 100,
        "cacheWriteInputTokens": 60,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 40}, {"ttl": "5m", "inputTokens": 20}],
    }
    (said, done) = told(event("metadata", {"usage": usage, "metrics": {"latencyMs": 1}, "p": "abc"}))
    assert said == UsageSeen(
        usage=Usage(
            input_tokens=165,
            cache_read_input_tokens=100,
            cache_write_input_tokens=60,
            cache_write_1h_input_tokens=40,
            output_tokens=7,
        )
    )
    assert done == Done()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"output":null}', b'{"output":{"message":{"content":[{"text":1}]}}}', b"\xff", b"[" * 9999],
)
def test_what_is_no_answer_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        CONVERSE.read_answer(body)


# Streams


def test_a_stream_is_told_event_by_event() -> None:
    def delta(index: int, delta: Any) -> Frame:
        return event("contentBlockDelta", {"contentBlockIndex": index, "delta": delta, "p": "abcdef"})

    use = {"toolUseId": "1", "name": "f"}
    events = told(
        event("messageStart", {"role": "assistant"}),
        delta(0, {"reasoningContent": {"text": "hm"}}),
        delta(0, {"reasoningContent": {"signature": "c2ln"}}),
        delta(1, {"text": "A"}),
        delta(1, {"text": ""}),
        delta(2, {"text": "B"}),
        delta(2, {"citation": {"title": "t", "sourceContent": [{"text": "s"}]}}),
        event("contentBlockStart", {"contentBlockIndex": 3, "start": {"toolUse": use}}),
        delta(3, {"toolUse": {"input": ""}}),
        delta(3, {"toolUse": {"input": '{"a"'}}),
        event("contentBlockStart", {"contentBlockIndex": 4, "start": {"toolUse": {**use, "toolUseId": "2"}}}),
        delta(3, {"toolUse": {"input": ":1}"}}),
        event("contentBlockStop", {"contentBlockIndex": 3}),
        event("contentBlockStop", {"contentBlockIndex": 4}),
        event("contentBlockStart", {"contentBlockIndex": 5, "start": {"image": {"format": "webp"}}}),
        delta(5, {"image": {"source": {"bytes": base64.b64encode(b"im").decode()}}}),
        delta(5, {"image": {"source": {"bytes": base64.b64encode(b"age").decode()}}}),
        event("contentBlockStop", {"contentBlockIndex": 5}),
        event("messageStop", {"stopReason": "tool_use"}),
    )
    assert events == [
        Began(),
        ThinkingDelta(text="hm", origin="anthropic"),
        ThinkingDelta(signature="c2ln", origin="anthropic"),
        TextDelta(text="A"),
        TextDelta(text="B", begins_part=True),
        Cited(citation=Citation(title="t", cited_text="s", source={"title": "t", "sourceContent": [{"text": "s"}]})),
        ToolCallBegan(index=0, call_id="1", name="f"),
        ToolCallDelta(index=0, arguments='{"a"'),
        ToolCallBegan(index=1, call_id="2", name="f"),
        ToolCallDelta(index=0, arguments=":1}"),
        ToolCallDelta(index=1, arguments="{}"),
        MediaDone(media=Media(kind="image", media_type="image/webp", data=base64.b64encode(b"image").decode())),
        Finished(finish="tool_calls", finish_detail="tool_use"),
    ]


@pytest.mark.parametrize(
    ("exception", "status_code"),
    [("throttlingException", 429), ("modelStreamErrorException", 424), ("validationException", 400), ("newOne", 500)],
)
def test_an_exception_ends_the_stream(exception: str, status_code: int) -> None:
    (failed,) = told(event(f"exception:{exception}", {"message": "no"}))
    assert isinstance(failed, Failed)
    assert (failed.error.message, failed.error.kind, failed.error.status_code) == ("no", exception, status_code)


def test_what_bedrocks_own_tools_do_counts_as_output_and_is_nobodys_call() -> None:
    use = {"toolUse": {"toolUseId": "1", "name": "nova_code_interpreter", "type": "server_tool_use"}}
    events = told(
        event("contentBlockStart", {"contentBlockIndex": 0, "start": use}),
        event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": "{}"}}}),
        event("contentBlockStop", {"contentBlockIndex": 0}),
        event("contentBlockStart", {"contentBlockIndex": 1, "start": {"toolResult": {"toolUseId": "1"}}}),
        event("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolResult": [{"json": {}}]}}),
    )
    assert [type(said) for said in events] == [OpaqueDone] * 4


any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(
            ["delta", "start", "text", "toolUse", "input", "image", "source", "bytes", "citation", "contentBlockIndex",
             "reasoningContent", "usage", "inputTokens", "cacheDetails", "stopReason", "message", "location"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip
kinds = st.sampled_from(
    ["contentBlockDelta", "contentBlockStart", "contentBlockStop", "messageStart", "messageStop", "metadata", "new", "",
     "exception:x"]
)  # fmt: skip


@given(st.lists(st.tuples(kinds, any_json), max_size=5))
def test_whatever_a_stream_brings_its_reader_never_raises(frames: list[tuple[str, Any]]) -> None:
    told(*(event(kind, data) for kind, data in frames))


# Errors


@pytest.mark.parametrize(
    ("status_code", "body", "message", "kind"),
    [
        (400, b'{"message":"bad"}', "bad", "ValidationException"),
        (429, b'{"message":"Too many tokens"}', "Too many tokens", "ThrottlingException"),
        (403, b'{"Message":"User is not authorized"}', "User is not authorized", "AccessDeniedException"),
        (400, b'{"__type":"com.amazon#SerializationException"}', "no message", "SerializationException"),
        (424, b'{"message":"m","originalStatusCode":500}', "m", "ModelErrorException"),
        (502, b"<html>", "no message", ""),
        (500, b'{"message":1}', "no message", "InternalServerException"),
    ],
)
def test_an_error_says_its_message_and_which_it_is(status_code: int, body: bytes, message: str, kind: str) -> None:
    error = CONVERSE.read_error(status_code, body)
    assert (error.message, error.kind, error.status_code) == (message, kind, status_code)


# Authorization


def test_an_api_key_is_a_bearer_token() -> None:
    headers = authorize("bedrock-api-key-abc", AMAZON).headers(Outgoing(b"/", b""), "h", b"/", 0)
    assert headers == [(b"authorization", b"Bearer bedrock-api-key-abc")]


def test_an_access_key_signs_for_the_region() -> None:
    secret = json.dumps({"access_key_id": "AKID", "secret_access_key": "s3cret", "session_token": "t0ken"})
    authorizer = authorize(secret, AMAZON)
    headers = dict(authorizer.headers(Outgoing(b"/", b""), "h", b"/", 1_440_938_160))
    assert headers[b"authorization"].startswith(
        b"AWS4-HMAC-SHA256 Credential=AKID/20150830/us-east-1/bedrock/aws4_request, "
        b"SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, Signature="
    )
    assert headers[b"x-amz-security-token"] == b"t0ken"
    assert list(authorizer.secrets) == [b"AKID", b"s3cret", b"t0ken"]


@pytest.mark.parametrize(
    ("secret", "options"),
    [
        ('{"access_key_id": "AKID"}', {"region": "us-east-1"}),
        ('{"access_key_id": "AKID", "secret_access_key": "s\\nt"}', {"region": "us-east-1"}),
        ("{s3cret", {"region": "us-east-1"}),
        ('{"access_key_id": "AKID", "secret_access_key": "s3cret"}', {}),
        ("schlüssel", {"region": "us-east-1"}),
    ],
)
def test_a_secret_that_cannot_be_one_is_refused(secret: str, options: dict[str, str]) -> None:
    with pytest.raises(ValueError) as refusal:
        authorize(secret, msgspec.structs.replace(AMAZON, options=options))
    assert "s3cret" not in str(refusal.value)


# Claude's own stream, in Amazon's messages


def header(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()


def message(payload: Any, kind: str, value: str) -> bytes:
    headers, body = header(kind, value), json.dumps(payload).encode()
    prelude = struct.pack(">II", len(headers) + len(body) + 16, len(headers))
    prelude += struct.pack(">I", crc32(prelude))
    return prelude + headers + body + struct.pack(">I", crc32(prelude + headers + body))


def chunk(data: bytes) -> bytes:
    return message({"bytes": base64.b64encode(data).decode(), "p": "abc"}, ":event-type", "chunk")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (chunk(b'{"type":"ping", "x": 1}'), b'event: ping\ndata: {"type":"ping", "x": 1}\n\n'),
        (chunk(b'{"type":\r\n"ping"}'), b'event: ping\ndata: {"type":  "ping"}\n\n'),
        (chunk(b'{"type":"a\\nb"}'), b'event: \ndata: {"type":"a\\nb"}\n\n'),
        (chunk(b""), b""),
        (message({}, ":event-type", "initial-response"), b""),
        (
            message({"message": "slow down"}, ":exception-type", "throttlingException"),
            b'event: error\ndata: {"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}\n\n',
        ),
    ],
)
def test_a_chunk_is_shown_as_anthropic_would_send_it(sent: bytes, expected: bytes) -> None:
    (frame,) = ClaudeChunks().feed(sent)
    assert frame.raw == sent
    assert as_server_sent(frame) == expected


@pytest.mark.parametrize("payload", [{}, {"bytes": 1}, {"bytes": "%"}, []])
def test_a_chunk_that_holds_nothing_is_malformed(payload: Any) -> None:
    with pytest.raises(StreamMalformed):
        ClaudeChunks().feed(message(payload, ":event-type", "chunk"))


MESSAGES = BedrockMessages()


def asked(body: bytes, **changes: Any) -> Call:
    return call(body=body, fields=parse_object(body), **({"output_tokens_max": 9} | changes))


def test_a_message_loses_its_model_and_gains_a_version_and_nothing_else_changes() -> None:
    body = b'{"model":"a","new":{"x": 1.50},"stream":true,"max_tokens":9,"messages":[ ]}'
    outgoing = MESSAGES.pass_request(asked(body, is_stream=True), deployment(), AMAZON)
    version = b'"anthropic_version":"bedrock-2023-05-31"'
    assert outgoing.body == b'{"new":{"x": 1.50},"max_tokens":9,"messages":[ ],' + version + b"}"
    assert outgoing.target == (b"/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/invoke-with-response-stream")


def test_a_message_without_an_output_cap_gets_one() -> None:
    outgoing = MESSAGES.pass_request(asked(b'{"model":"a"}', output_tokens_max=None), deployment(), AMAZON)
    assert json.loads(outgoing.body)["max_tokens"] == 4096
    assert outgoing.target.endswith(b"/invoke")


@pytest.mark.parametrize(
    ("header", "body", "betas"),
    [
        ("a, b", b"{}", ["a", "b"]),
        ("a", b'{"anthropic_beta":["b"]}', ["b"]),
        ("", b'{"anthropic_beta":["b"]}', ["b"]),
        ("", b"{}", None),
    ],
)
def test_betas_of_the_header_stand_in_the_body(header: str, body: bytes, betas: list[str] | None) -> None:
    outgoing = MESSAGES.pass_request(
        asked(body, parameters={"anthropic-beta": header} if header else {}), deployment(), AMAZON
    )
    assert json.loads(outgoing.body).get("anthropic_beta") == betas


def test_messages_are_for_claude_alone() -> None:
    assert MESSAGES.serves(deployment(CLAUDE), AMAZON)
    assert not MESSAGES.serves(deployment(NOVA), AMAZON)
    assert MESSAGES.stream_type(call(), b"application/vnd.amazon.eventstream").startswith(b"text/event-stream")


# The mantle endpoint


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("https://bedrock-runtime.us-east-1.amazonaws.com", ["bedrock.converse", "anthropic.messages"]),
        ("https://bedrock-mantle.us-east-1.api.aws/v1", ["openai.chat", "openai.responses"]),
        ("https://bedrock-mantle.us-east-1.api.aws/openai/v1", ["openai.responses"]),
    ],
)
def test_which_apis_there_are_depends_on_the_endpoint(base_url: str, expected: list[str]) -> None:
    provider = msgspec.structs.replace(AMAZON, base_url=base_url)
    served = [api.name for api in PROVIDER.apis if api.serves(deployment(CLAUDE), provider)]
    assert served == expected


def test_mantle_has_a_service_of_its_own_to_sign_for() -> None:
    mantle = msgspec.structs.replace(AMAZON, base_url="https://bedrock-mantle.us-east-1.api.aws/v1")
    secret = json.dumps({"access_key_id": "AKID", "secret_access_key": "s3cret"})
    headers = dict(authorize(secret, mantle).headers(Outgoing(b"/", b""), "h", b"/", 0))
    assert b"/us-east-1/bedrock-mantle/aws4_request" in headers[b"authorization"]


# Real traffic


def recorded(*apis: str) -> list[Any]:
    if not RECORDINGS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    index = json.loads((RECORDINGS / "index.json").read_text())
    found = [entry for entry in index if entry["provider"] == "bedrock" and entry["api"] in apis]
    return [pytest.param(RECORDINGS / entry["file"], id=entry["id"]) for entry in found]


def read_parts(content: list[dict[str, Any]]) -> list[Part]:
    """What a real client wrote, in neutral words. Raises `KeyError` for what these cannot say."""
    parts: list[Part] = []
    for block in content:
        ((kind, value),) = block.items()
        if kind == "text":
            parts.append(Text(text=value))
        elif kind == "cachePoint":
            parts[-1] = msgspec.structs.replace(parts[-1], cache=value.get("ttl", "5m"))
        elif kind == "image":
            parts.append(Media(kind="image", media_type=f"image/{value['format']}", data=value["source"]["bytes"]))
        elif kind == "document":
            media_type = {"txt": "text/plain"}[value["format"]]
            data = value["source"]["bytes"]
            parts.append(Media(kind="document", media_type=media_type, data=data, name=value["name"]))
        elif kind == "toolUse":
            arguments = json.dumps(value["input"])
            parts.append(ToolCall(call_id=value["toolUseId"], name=value["name"], arguments=arguments))
        elif kind == "toolResult":
            inner = tuple(read_parts(value["content"]))
            parts.append(ToolResult(call_id=value["toolUseId"], content=inner))
        else:
            raise KeyError(kind)
    return parts


def read_request(body: dict[str, Any]) -> Prompt:
    if body.keys() & {"guardrailConfig"}:
        raise KeyError
    tools: list[Tool] = []
    for tool in body.get("toolConfig", {}).get("tools", ()):
        if "cachePoint" in tool:
            tools[-1].cache = "5m"
        else:
            spec = tool["toolSpec"]
            schema = spec["inputSchema"]["json"]
            tools.append(Tool(name=spec["name"], description=spec.get("description", ""), parameters=schema))
    inference = body.get("inferenceConfig", {})
    wanted = None
    if "outputConfig" in body:
        schema = body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
        wanted = OutputFormat(**{**schema, "schema": json.loads(schema["schema"])})
    system = read_parts(body.get("system", []))
    reasoning = None
    for name, value in body.get("additionalModelRequestFields", {}).items():
        if name == "thinking":
            reasoning = Reasoning(budget_tokens=value["budget_tokens"])
        else:
            reasoning = Reasoning(effort=value if name == "reasoning_effort" else value["maxReasoningEffort"])
    return Prompt(
        messages=[
            *([Message(role="system", parts=system)] if system else []),
            *(Message(role=message["role"], parts=read_parts(message["content"])) for message in body["messages"]),
        ],
        tools=tools,
        max_output_tokens=inference.get("maxTokens"),
        temperature=inference.get("temperature"),
        top_p=inference.get("topP"),
        stop=tuple(inference.get("stopSequences", ())),
        output_format=wanted,
        reasoning=reasoning,
    )


def as_it_would_be_written(body: dict[str, Any]) -> dict[str, Any]:
    """But for what holds anyway, and for the output cap that is always there."""
    body = {name: value for name, value in body.items() if value != []}
    inference = {"maxTokens": 4096} | body.get("inferenceConfig", {})
    body["inferenceConfig"] = {name: value for name, value in inference.items() if value != []}
    if body.get("toolConfig", {}).get("toolChoice") == {"auto": {}}:
        del body["toolConfig"]["toolChoice"]
    if "outputConfig" in body:
        schema = body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
        schema["schema"] = json.dumps(json.loads(schema["schema"]), separators=(",", ":"))
    for message in body["messages"]:
        for block in message["content"]:
            if block.get("toolResult", {}).get("status") == "success":
                del block["toolResult"]["status"]
    return body


@pytest.mark.parametrize("path", recorded("converse"))
def test_what_is_written_is_what_a_real_client_sent(path: Path) -> None:
    request = json.loads(path.read_bytes())["request"]
    body = request["body"]
    try:
        prompt = read_request(body)
    except KeyError:
        return  # Guardrails, citations of an earlier turn, results as JSON: no other dialect says them.
    model = unquote(request["path"].split("/")[2])
    written, lost, outgoing = write(prompt, model, is_stream=request["path"].endswith("-stream"))
    written.pop("additionalModelResponseFieldPaths", None)
    assert unquote(outgoing.target.decode()) == unquote(request["path"])
    assert (written, lost) == (as_it_would_be_written(body), [])


@pytest.mark.parametrize("path", recorded("converse"))
def test_a_recorded_answer_is_read_whole(path: Path) -> None:
    recording = json.loads(path.read_bytes())
    response, meta = recording["response"], recording["meta"]
    if response["status"] >= 400:
        error = CONVERSE.read_error(response["status"], response["body_text"].encode())
        assert error.message == json.loads(response["body_text"])["message"]
    elif meta["streaming"]:
        check_stream(base64.b64decode(response["body_base64"]), meta)
    else:
        answer = CONVERSE.read_answer(response["body_text"].encode())
        (choice,) = answer.choices
        check_usage(answer.usage, meta)
        assert choice.finish_detail == meta["finish"][0]
        assert len([part for part in choice.parts if isinstance(part, ToolCall)]) == meta["tool_calls"]
        assert bool(meta["reasoning"]) == any(isinstance(part, Thinking) for part in choice.parts)
        said = json.loads(response["body_text"])["output"]["message"]["content"]
        assert texts_of(choice) == "".join(texts(said))


def check_stream(stream: bytes, meta: dict[str, Any]) -> None:
    reader = CONVERSE.stream_reader()
    meter = EventMeter(reader)
    events = [said for frame in EventStreamParser().feed(stream) for said in reader.read(frame)]
    meter.count(events)
    check_usage(meter.usage, meta)
    assert (meter.finish_reason, meter.is_done) == (meta["finish"][0], True)
    began = {said.index: "" for said in events if isinstance(said, ToolCallBegan)}
    for said in events:
        if isinstance(said, ToolCallDelta):
            began[said.index] += said.arguments
    assert all(type(json.loads(arguments)) is dict for arguments in began.values())
    assert meter.output_bytes > 0


def check_usage(usage: Usage | None, meta: dict[str, Any]) -> None:
    said = meta["usage"][-1]
    assert usage is not None
    assert usage.input_tokens + usage.output_tokens == said["totalTokens"]
    assert usage.output_tokens == said["outputTokens"]
    assert usage.cache_read_input_tokens == said.get("cacheReadInputTokens", 0)
    assert usage.cache_write_input_tokens == said.get("cacheWriteInputTokens", 0)


def texts_of(choice: Choice) -> str:
    return "".join(part.text for part in choice.parts if isinstance(part, Text))


def texts(content: list[dict[str, Any]]) -> list[str]:
    cited = [block.get("citationsContent", {"content": [block]})["content"][0] for block in content]
    return [block["text"] for block in cited if "text" in block]


@pytest.mark.parametrize("path", recorded("invoke"))
def test_a_recorded_stream_of_claude_is_shown_as_server_sent_events(path: Path) -> None:
    recording = json.loads(path.read_bytes())
    if "body_base64" not in recording["response"] or "anthropic" not in recording["meta"]["model"]:
        return
    stream = base64.b64decode(recording["response"]["body_base64"])
    inner = [base64.b64decode(json.loads(frame.data)["bytes"]) for frame in EventStreamParser().feed(stream)]
    shown = SSEParser().feed(b"".join(map(as_server_sent, ClaudeChunks().feed(stream))))
    assert [frame.data for frame in shown] == inner
    assert [frame.event.decode() for frame in shown] == [json.loads(data)["type"] for data in inner]
    meter = MESSAGES.stream_meter(call(is_stream=True))
    for frame in ClaudeChunks().feed(stream):
        assert not meter.observe(frame)
    (said,) = [event["usage"] for event in map(json.loads, inner) if event["type"] == "message_delta"]
    assert meter.usage is not None
    assert meter.usage.output_tokens == said["output_tokens"]
    assert (meter.finish_reason, meter.is_done) == (recording["meta"]["finish"][0], True)


@pytest.mark.parametrize("path", recorded("invoke"))
def test_a_recorded_answer_of_claude_is_measured(path: Path) -> None:
    recording = json.loads(path.read_bytes())
    response, request = recording["response"], recording["request"]
    if "anthropic_version" not in request["body"] or "body_text" not in response:
        return
    body = response["body_text"].encode()
    if response["status"] >= 400:
        assert MESSAGES.read_error(response["status"], body).message == json.loads(body)["message"]
        return
    usage = MESSAGES.measure(body).usage
    assert usage is not None
    said = json.loads(body)["usage"]
    assert usage.input_tokens == said["input_tokens"] + said["cache_read_input_tokens"]
    assert usage.output_tokens == said["output_tokens"]


def test_an_exception_in_claudes_stream_is_an_error_of_the_stream() -> None:
    meter = MESSAGES.stream_meter(call(is_stream=True))
    sent = message({"message": "slow down"}, ":exception-type", "throttlingException")
    meter.observe(ClaudeChunks().feed(sent)[0])
    assert meter.has_error


@pytest.mark.parametrize("path", recorded("invoke"))
def test_a_recorded_request_to_claude_is_what_a_message_becomes(path: Path) -> None:
    recording = json.loads(path.read_bytes())
    request, body = recording["request"], recording["request"]["body"]
    if "anthropic_version" not in body:
        return
    message = {"model": "a", **body, "stream": recording["meta"]["streaming"]}
    del message["anthropic_version"]
    model = unquote(request["path"].split("/")[2])
    is_stream = request["path"].endswith("stream")
    outgoing = MESSAGES.pass_request(
        asked(json.dumps(message).encode(), is_stream=is_stream), deployment(model), AMAZON
    )
    assert json.loads(outgoing.body) == body
    assert unquote(outgoing.target.decode()) == unquote(request["path"])


@pytest.mark.parametrize("path", recorded("chat-completions", "responses"))
def test_a_recorded_answer_of_the_mantle_endpoint_is_measured(path: Path) -> None:
    recording = json.loads(path.read_bytes())
    meta = recording["meta"]
    api = MantleChat() if meta["api"] == "chat-completions" else MantleResponses()
    if meta["streaming"]:
        meter = api.stream_meter(call(is_stream=True))
        for frame in SSEParser().feed(base64.b64decode(recording["response"]["body_base64"])):
            meter.observe(frame)
        usage = meter.usage
    else:
        usage = api.measure(recording["response"]["body_text"].encode()).usage
    assert usage is not None
    assert usage.input_tokens + usage.output_tokens == meta["usage"][-1]["total_tokens"]


@pytest.mark.parametrize(("signed", "origin"), [("c2ln", "anthropic"), ("", "")])
def test_streamed_reasoning_comes_back_from_a_client_of_chat_completions_as_it_was_said(
    signed: str, origin: str
) -> None:
    events = told(
        event("messageStart", {"role": "assistant"}),
        event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "h"}}}),
        event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "m"}}}),
        *(
            [event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"signature": signed}}})]
            if signed
            else []
        ),
        event("messageStop", {"stopReason": "end_turn"}),
    )
    asked = CHAT_COMPLETIONS.describe(
        b'{"model":"m","messages":[{"role":"user","content":"U"}]}', b"application/json", {}
    )
    lines = CHAT_COMPLETIONS.stream_writer(asked).write(events).split(b"\n\n")[:-1]
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
    details = [detail for each in deltas for detail in each.get("reasoning_details", ())]
    # As OpenRouter's clients put the pieces of one index together.
    whole = {name: "".join(detail.get(name, "") for detail in details) for name in ("text", "signature")}
    message = {"role": "assistant", "content": "A", "reasoning_details": [{**details[0], **whole}]}
    body = json.dumps({"model": "m", "messages": [message]}).encode()
    prompt = CHAT_COMPLETIONS.read_prompt(CHAT_COMPLETIONS.describe(body, b"application/json", {}))
    thought = prompt.messages[0].parts[0]
    assert isinstance(thought, Thinking)
    assert (thought.text, thought.signature, thought.origin) == ("hm", signed, origin)
