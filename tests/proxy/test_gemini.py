"""Gemini, both sides: what is described and passed on, what crosses to and from other dialects, what real answers say."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit.records import Usage
from proxy.dialects.gemini import ARRAY, COUNT_TOKENS, EMBED, GENERATE, STREAM
from proxy.dialects.gemini_prompts import json_schema
from proxy.errors import BudgetExceeded, InvalidRequest, LimitExceeded, RouteUnknown
from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
    STOP,
    TOOL_CALLS,
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
    Done,
    Embedded,
    Embedding,
    Failed,
    Finished,
    Media,
    MediaDone,
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
from proxy.providers import gemini as provider
from proxy.providers.provider import EventMeter
from proxy.snapshot import Alias, Deployment, Provider
from proxy.wire.frame import Frame

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
needs_recordings = pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings of real traffic are not here")
PROVIDER = Provider(slug="g", api="gemini", base_url="https://generativelanguage.googleapis.com/v1beta")
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="g", model="m", upstream_model="gemini-2.5-flash", max_output_tokens=777
)
GEMINI_3 = msgspec.structs.replace(DEPLOYMENT, upstream_model="gemini-3-pro-preview")
HELLO = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}


def _call(body: Any, *, method: str = "generateContent", query: str = ""):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return GENERATE.describe(raw, b"application/json", {"model": "demo", "method": method, "query": query})


def _read(body: Any) -> Prompt:
    return GENERATE.read_prompt(_call(body))


def _parts(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"contents": [{"role": role, "parts": list(parts)}]}


def _write(prompt: Prompt, deployment: Deployment = DEPLOYMENT, *, is_stream: bool = False):
    method = "streamGenerateContent" if is_stream else "generateContent"
    lost: list[str] = []
    call = _call(HELLO, method=method, query="alt=sse")
    outgoing = provider.GENERATE.write_request(prompt, call, deployment, PROVIDER, lost)
    return outgoing, json.loads(outgoing.body), lost


def _ask(*parts: Any, **parameters: Any) -> Prompt:
    return Prompt(messages=[Message(role="user", parts=list(parts) or [Text(text="Hello")])], **parameters)


def _frame(value: Any) -> Frame:
    data = json.dumps(value).encode()
    return Frame(b"data: " + data + b"\r\n\r\n", data, b"")


def _stream(*answers: Any) -> list[Any]:
    reader = provider.GENERATE.stream_reader()
    return [event for answer in answers for event in reader.read(_frame(answer))]


def _said(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, **more}], "responseId": "r1"}


# The same dialect on both sides


def test_only_what_must_change_changes():
    body = (
        b'{"z": [1,  2], "contents":[{"parts":[{"text":"a","new": 1.0}]}], "model":"models/demo",'
        b' "generationConfig": {"topK":  3, "maxOutputTokens": 5}}'
    )
    outgoing = provider.GENERATE.pass_request(_call(body), DEPLOYMENT, PROVIDER)
    assert outgoing.target == b"/models/gemini-2.5-flash:generateContent"
    assert json.loads(outgoing.body) == {**json.loads(body), "model": "models/gemini-2.5-flash"}
    assert list(json.loads(outgoing.body)) == list(json.loads(body))
    for untouched in (b"[1,  2]", b'"new": 1.0', b'{"topK":  3, "maxOutputTokens": 5}'):
        assert untouched in outgoing.body


@pytest.mark.parametrize(
    ("config", "sent"),
    [
        (None, {"generationConfig": {"maxOutputTokens": 777}}),
        ({"generationConfig": None}, {"generationConfig": {"maxOutputTokens": 777}}),
        ({"generationConfig": {"topK": 1}}, {"generationConfig": {"topK": 1, "maxOutputTokens": 777}}),
        ({"generation_config": {"top_k": 1}}, {"generation_config": {"top_k": 1, "maxOutputTokens": 777}}),
        (
            {"generation_config": {"max_output_tokens": None}},
            {"generation_config": {"max_output_tokens": 777}},
        ),
        ({"generation_config": {"max_output_tokens": 9}}, {"generation_config": {"max_output_tokens": 9}}),
    ],
)
def test_an_answer_without_a_cap_is_capped(config, sent):
    outgoing = provider.GENERATE.pass_request(_call({**HELLO, **(config or {})}), DEPLOYMENT, PROVIDER)
    assert json.loads(outgoing.body) == {**HELLO, **sent}


@pytest.mark.parametrize(
    ("query", "sent", "writes"),
    [
        ("alt=sse", b"?alt=sse", STREAM),
        ("key=secret&alt=sse", b"?alt=sse", STREAM),
        ("", b"", ARRAY),
        ("%24alt=json%3Benum-encoding%3Dint&key=secret", b"?$alt=json;enum-encoding=int", ARRAY),
    ],
)
def test_how_a_stream_is_written_is_asked_of_the_provider_too_and_no_key_crosses(query, sent, writes):
    call = STREAM.describe(json.dumps(HELLO).encode(), b"", {"model": "demo", "query": query})
    outgoing = provider.GENERATE.pass_request(call, DEPLOYMENT, PROVIDER)
    assert outgoing.target == b"/models/gemini-2.5-flash:streamGenerateContent" + sent
    assert call.is_stream
    is_array = writes is ARRAY
    assert isinstance(call.dialect, type(ARRAY)) is is_array
    assert call.dialect.name == GENERATE.name
    assert (b"json" in call.dialect.stream_type(call)) is is_array
    assert (type(provider.GENERATE.frame_parser(call)).__name__ == "JSONArrayParser") is is_array


def test_an_answer_in_a_form_nobody_can_read_along_is_refused():
    with pytest.raises(InvalidRequest) as refused:
        _call(HELLO, method="streamGenerateContent", query="alt=proto")
    assert refused.value.param == "alt"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            HELLO,
            {"output_tokens_max": None, "choices": 1, "tool_calls_max": 0, "has_images": False, "has_audio": False},
        ),
        ({"generationConfig": {"maxOutputTokens": 5, "candidateCount": 3}}, {"output_tokens_max": 5, "choices": 3}),
        ({"generation_config": {"max_output_tokens": 5, "candidate_count": 3}}, {"output_tokens_max": 5, "choices": 3}),
        ({"generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 9}}, {"output_tokens_max": 9}),
        ({"tools": [{"googleSearch": {}}]}, {"tool_calls_max": 16}),
        ({"tools": [{"functionDeclarations": [], "code_execution": {}}]}, {"tool_calls_max": 16}),
        ({"tools": [{"function_declarations": [], "googleSearch": None}]}, {"tool_calls_max": 0}),
        (_parts({"inlineData": {"mimeType": "image/png", "data": ""}}), {"has_images": True, "has_audio": False}),
        (_parts({"inline_data": {"mime_type": "audio/wav", "data": ""}}), {"has_audio": True}),
        ({"generationConfig": {"responseModalities": ["AUDIO"]}}, {"has_audio": True}),
        ({"labels": {"team": "a"}}, {"metadata": {"team": "a"}}),
    ],
)
def test_what_bounds_a_call_is_described(body, expected):
    call = _call(body)
    assert {name: getattr(call, name) for name in expected} == expected


def test_what_does_not_show_in_bytes_is_bounded_apart():
    plain = _call(HELLO).input_tokens_max
    assert _call(_parts({"fileData": {"fileUri": "https://x/y.png"}})).input_tokens_max > plain + 30_000
    assert _call({**HELLO, "cachedContent": "cachedContents/1"}).input_tokens_max > plain + 1_000_000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"generationConfig": {"maxOutputTokens": 0}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"candidateCount": 99}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"maxOutputTokens": "many"}}, "generationConfig.maxOutputTokens"),
        ({"tools": 1}, "tools"),
    ],
)
def test_a_call_that_cannot_be_bounded_is_refused_by_name(body, param):
    with pytest.raises(InvalidRequest) as refused:
        _call(body)
    assert refused.value.param == param


def test_a_path_without_a_model_is_refused():
    with pytest.raises(InvalidRequest):
        GENERATE.describe(b"{}", b"", {"model": ""})


# What clients ask


def test_both_spellings_mean_the_same():
    camel = {
        "systemInstruction": {"parts": [{"text": "Be brief"}]},
        "contents": [
            {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "AA=="}}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a_b": 1}}, "thoughtSignature": "AAAA"}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": "x"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"type": "object"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "stopSequences": ["x"], "topP": 0.5, "responseMimeType": "application/json",
            "thinkingConfig": {"thinkingBudget": 5},
        },
    }  # fmt: skip
    snake = json.loads(
        json.dumps(camel)
        .replace("systemInstruction", "system_instruction").replace("inlineData", "inline_data")
        .replace("mimeType", "mime_type").replace("functionCall\"", "function_call\"")
        .replace("thoughtSignature", "thought_signature").replace("functionResponse", "function_response")
        .replace("functionDeclarations", "function_declarations").replace("parametersJsonSchema", "parameters_json_schema")
        .replace("toolConfig", "tool_config").replace("functionCallingConfig", "function_calling_config")
        .replace("allowedFunctionNames", "allowed_function_names").replace("generationConfig", "generation_config")
        .replace("stopSequences", "stop_sequences").replace("topP", "top_p").replace("responseMimeType", "response_mime_type")
        .replace("thinkingConfig", "thinking_config").replace("thinkingBudget", "thinking_budget")
    )  # fmt: skip
    one, other = _read(camel), _read(snake)
    assert one.lost == other.lost == []
    for prompt in (one, other):
        for message in prompt.messages:
            for part in message.parts:
                if hasattr(part, "path"):
                    part.path = ""
        for tool in prompt.tools:
            tool.path = ""
    assert one == other


def test_a_field_in_both_spellings_is_refused():
    with pytest.raises(InvalidRequest):
        _read({**HELLO, "generationConfig": {"topP": 1, "top_p": 1}})


def test_calls_without_ids_are_answered_in_their_order():
    prompt = _read(
        {
            "contents": [
                {"role": "model", "parts": [{"functionCall": {"name": name}} for name in ("f", "g", "f")]},
                {"role": "user", "parts": [{"functionResponse": {"name": name}} for name in ("f", "f", "g")]},
                {"role": "model", "parts": [{"functionCall": {"name": "f"}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f"}}]},
            ]
        }
    )
    ids = [[part.call_id for part in message.parts] for message in prompt.messages]
    assert ids == [["call_0", "call_1", "call_2"], ["call_0", "call_2", "call_1"], ["call_3"], ["call_3"]]


@pytest.mark.parametrize(
    ("response", "text", "is_error"),
    [
        ({"output": "done"}, "done", False),
        ({"result": {"a": 1}}, '{"a":1}', False),
        ({"error": "gone"}, "gone", True),
        ({"temperature": 20, "unit": "C"}, '{"temperature":20,"unit":"C"}', False),
    ],
)
def test_what_a_tool_said_is_text(response, text, is_error):
    part = _read(_parts({"functionResponse": {"id": "c", "name": "f", "response": response}})).messages[0].parts[0]
    assert (part.call_id, part.name, part.content, part.is_error) == ("c", "f", (Text(text=text),), is_error)


def test_media_within_a_tools_result_come_along():
    body = {
        "functionResponse": {
            "id": "c",
            "name": "f",
            "parts": [{"inlineData": {"mimeType": "image/png", "data": "A_-="}}],
        }
    }
    result = _read(_parts(body)).messages[0].parts[0]
    assert (result.content[0].kind, result.content[0].data) == ("image", "A/+=")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"inlineData": {"mimeType": "application/pdf", "data": "AA=="}}, {"kind": "document", "data": "AA=="}),
        ({"inlineData": {"mimeType": "audio/wav", "data": "AA=="}}, {"kind": "audio"}),
        ({"fileData": {"fileUri": "https://example.com/a.png"}}, {"kind": "image", "url": "https://example.com/a.png"}),
        ({"fileData": {"fileUri": "https://youtu.be/x"}}, {"kind": "video", "url": "https://youtu.be/x"}),
        ({"fileData": {"fileUri": "gs://b/a.pdf", "mimeType": "application/pdf"}}, {"file_id": "gs://b/a.pdf", "url": ""}),
        (
            {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/x", "mimeType": "image/png"}},
            {"kind": "image", "file_id": "https://generativelanguage.googleapis.com/v1beta/files/x", "url": ""},
        ),
    ],
)  # fmt: skip
def test_media_are_read(part, expected):
    media = _read(_parts(part)).messages[0].parts[0]
    assert isinstance(media, Media)
    assert {name: getattr(media, name) for name in expected} == expected
    assert media.path.startswith("contents.0.parts.0.")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"mode": "AUTO"}, ToolChoice(mode="auto")),
        ({"mode": 2}, ToolChoice(mode="required")),
        ({"mode": "ANY", "allowedFunctionNames": ["f"]}, ToolChoice(mode="tool", name="f")),
        ({"mode": "any", "allowedFunctionNames": ["f", "g"]}, ToolChoice(mode="required", allowed=("f", "g"))),
        ({"mode": "NONE"}, ToolChoice(mode="none")),
    ],
)
def test_tool_modes_are_read(config, expected):
    assert _read({**HELLO, "toolConfig": {"functionCallingConfig": config}}).tool_choice == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"thinkingBudget": 0}, Reasoning(is_on=False)),
        ({"thinkingBudget": -1, "includeThoughts": True}, Reasoning(is_adaptive=True, summary="auto")),
        ({"thinkingBudget": 512, "includeThoughts": False}, Reasoning(budget_tokens=512, summary="omitted")),
        ({"thinkingLevel": "high"}, Reasoning(effort="high")),
        ({"thinkingLevel": 1}, Reasoning(effort="low")),
    ],
)
def test_thinking_is_read(config, expected):
    assert _read({**HELLO, "generationConfig": {"thinkingConfig": config}}).reasoning == expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "STRING", "nullable": True, "enum": ["a"], "format": "enum"}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"type": 6, "properties": {"type": {"type": "INTEGER"}}}, {"type": "object", "properties": {"type": {"type": "integer"}}}),
        ({"type": "ARRAY", "items": {"type": "NUMBER"}, "minItems": "2"}, {"type": "array", "items": {"type": "number"}, "minItems": 2}),
        ({"any_of": [{"type": "NULL"}, {"type": "BOOLEAN"}]}, {"anyOf": [{"type": "null"}, {"type": "boolean"}]}),
    ],
)  # fmt: skip
def test_an_openapi_schema_becomes_json_schema(schema, expected):
    assert json_schema(schema) == expected


@pytest.mark.parametrize(
    "returned",
    [
        {"responseJsonSchema": {"type": "string"}},
        {"response": {"type": "STRING"}},
        {"response_json_schema": {"type": "string"}},
    ],
)
def test_what_a_function_returns_is_told_in_words(returned):
    prompt = _read({**HELLO, "tools": [{"functionDeclarations": [{"name": "f", "description": "d", **returned}]}]})
    assert prompt.lost == []
    assert prompt.tools[0].description == 'd\n\nReturns JSON of this schema: {"type":"string"}'


def test_properties_come_in_the_order_that_is_asked_for():
    schema = json_schema({"properties": {"a": {}, "b": {}, "c": {}}, "propertyOrdering": ["c", "a", ["b"]]})
    assert list(schema["properties"]) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("body", "lost"),
    [
        ({"cachedContent": "cachedContents/1"}, ["cachedContent"]),
        ({"safetySettings": [{"category": 7, "threshold": "BLOCK_ONLY_HIGH"}]}, ["safetySettings"]),
        ({"safety_settings": [{"category": 7, "threshold": "BLOCK_ONLY_HIGH"}]}, ["safety_settings"]),
        ({"safetySettings": [{"category": 7, "threshold": "BLOCK_NONE"}]}, []),
        ({"safetySettings": [{"category": 7, "threshold": []}]}, ["safetySettings"]),
        ({"tools": [{"googleSearch": {}, "codeExecution": None}]}, ["tools.0.googleSearch"]),
        ({"tools": [{"url_context": {}}]}, ["tools.0.url_context"]),
        ({"generationConfig": {"speechConfig": {"voice": 1}}}, ["generationConfig.speechConfig"]),
        ({"generationConfig": {"enableEnhancedCivicAnswers": False}, "toolConfig": None}, []),
        ({"toolConfig": {"functionCallingConfig": {"mode": "VALIDATED"}}}, ["toolConfig.functionCallingConfig.mode"]),
        (
            {"contents": [{"parts": [{"text": "a", "videoMetadata": {"fps": 1}}, {"executableCode": {"code": "1"}}]}]},
            ["contents.0.parts.0.videoMetadata", "contents.0.parts.1.executableCode"],
        ),
    ],
)
def test_what_only_gemini_can_do_is_lost_by_its_path(body, lost):
    assert _read({**HELLO, **body}).lost == lost


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"contents": [{"role": "system", "parts": []}]}, "contents.0.role"),
        ({"contents": [1]}, "contents.0"),
        ({"contents": [{"parts": [{"functionCall": {}}]}]}, "contents.0.parts.0.functionCall.name"),
        ({"generationConfig": {"temperature": "hot"}}, "generationConfig.temperature"),
        ({"generationConfig": {"stopSequences": [1]}}, "generationConfig.stopSequences"),
        ({"safetySettings": [1]}, "safetySettings.0"),
        ({"tools": [{"functionDeclarations": [{}]}]}, "tools.0.functionDeclarations.0.name"),
    ],
)
def test_what_is_wrong_is_named(body, param):
    with pytest.raises(InvalidRequest) as refused:
        _read(body)
    assert refused.value.param == param


# Signatures


@pytest.mark.parametrize(
    "thinking",
    [
        Thinking(text="why", signature="SIG/+=", origin="anthropic"),
        Thinking(redacted="blob", origin="anthropic"),
        Thinking(text="sum", signature="enc", origin="openai", thinking_id="rs_1"),
        Thinking(text="own", signature="QUJD", origin="gemini"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_signature_comes_back_unchanged(thinking, is_stream):
    call = _call(HELLO, method="streamGenerateContent", query="alt=sse")
    if is_stream:
        writer = STREAM.stream_writer(call)
        sent = writer.write([Began(answer_id="a")])
        for piece in thinking.text:
            sent += writer.write([ThinkingDelta(text=piece, origin=thinking.origin, thinking_id=thinking.thinking_id)])
        closing = msgspec.structs.asdict(thinking) | {"text": ""}
        del closing["path"]
        sent += writer.write([ThinkingDelta(**closing), TextDelta(text="so")]) + writer.finish()
        chunks = [json.loads(line[6:]) for line in sent.split(b"\r\n\r\n") if line]
        parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]
    else:
        answer = Answer(choices=[Choice(parts=[thinking, Text(text="so")])])
        parts = json.loads(GENERATE.write_answer(answer, call))["candidates"][0]["content"]["parts"]
    for part in parts:
        base64.b64decode(part.get("thoughtSignature", ""), validate=True)
    back = _read(_parts(*parts, role="model")).messages[0].parts
    back[0].path = ""
    assert back == [thinking, Text(text="so")]


def test_thoughts_of_nobodys_are_shown_to_those_who_asked():
    answer = Answer(choices=[Choice(parts=[Thinking(text="hm"), Text(text="so")])])
    silent, asking = _call(HELLO), _call(HELLO)
    silent.prompt = _read(HELLO)
    asking.prompt = _read({**HELLO, "generationConfig": {"thinkingConfig": {"includeThoughts": True}}})
    shown = [
        json.loads(GENERATE.write_answer(answer, call))["candidates"][0]["content"]["parts"]
        for call in (silent, asking)
    ]
    assert shown == [[{"text": "so"}], [{"text": "hm", "thought": True}, {"text": "so"}]]


def test_geminis_signatures_are_returned_on_their_parts():
    said = [
        Text(text="", signature="c2ln"),
        ToolCall(call_id="c1", name="f", signature="c2lnMg=="),
        ToolCall(call_id="c2", name="g"),
        Thinking(text="t", signature="c2lnMw==", origin="gemini"),
    ]
    _, body, lost = _write(Prompt(messages=[Message(role="assistant", parts=said)]), GEMINI_3)
    assert lost == []
    assert [part.get("thoughtSignature") for part in body["contents"][0]["parts"]] == [
        "c2ln",
        "c2lnMg==",
        None,
        "c2lnMw==",
    ]


def test_a_foreign_call_is_marked_as_such_where_models_insist_on_signatures():
    said = [ToolCall(call_id="c1", name="f"), ToolCall(call_id="c2", name="g")]
    prompt = Prompt(messages=[Message(role="assistant", parts=said)])
    signatures = [
        [part.get("thoughtSignature") for part in _write(prompt, deployment)[1]["contents"][0]["parts"]]
        for deployment in (GEMINI_3, DEPLOYMENT)
    ]
    assert signatures == [["skip_thought_signature_validator", None], [None, None]]


@pytest.mark.parametrize("mark", ["skip_thought_signature_validator", "context_engineering_is_the_way_to_go"])
def test_the_mark_of_a_foreign_call_is_no_signature(mark):
    for signature in (mark, base64.b64encode(mark.encode()).decode()):
        part = {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": signature}
        prompt = _read({"contents": [{"role": "model", "parts": [part]}]})
        assert prompt.messages[0].parts[0].signature == ""
        assert prompt.lost == []


def test_foreign_thinking_is_lost_by_its_path_and_unsigned_goes_along():
    said = [Thinking(text="a", signature="s", origin="anthropic", path="messages.1.content.0"), Thinking(text="b")]
    _, body, lost = _write(Prompt(messages=[Message(role="assistant", parts=said)]))
    assert lost == ["messages.1.content.0"]
    assert body["contents"][0]["parts"] == [{"text": "b", "thought": True}]


# What the provider is asked


def test_a_whole_conversation_is_written():
    prompt = Prompt(
        messages=[
            Message(role="system", parts=[Text(text="Be brief", cache="5m")]),
            Message(role="user", parts=[Text(text="Weather?")]),
            Message(role="developer", parts=[Text(text="In Celsius")]),
            Message(role="user", parts=[Media(kind="image", data="AA==", media_type="image/png")]),
            Message(role="assistant", parts=[ToolCall(call_id="c1", name="f", arguments='{"a": 1.0}')]),
            Message(role="user", parts=[ToolResult(call_id="c1", content=(Text(text="20"),)), Text(text="And?")]),
        ],
        tools=[Tool(name="f", description="d", parameters={"type": "object", "additionalProperties": False})],
        max_output_tokens=5,
    )
    outgoing, body, lost = _write(prompt)
    assert lost == []
    assert outgoing.target == b"/models/gemini-2.5-flash:generateContent"
    assert b'{"a": 1.0}' in outgoing.body
    assert body == {
        "contents": [
            {
                "role": "user",
                "parts": [{"text": "Weather?"}, {"inlineData": {"mimeType": "image/png", "data": "AA=="}}],
            },
            {"role": "model", "parts": [{"functionCall": {"id": "c1", "name": "f", "args": {"a": 1.0}}}]},
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "c1", "name": "f", "response": {"output": "20"}}},
                    {"text": "And?"},
                ],
            },
        ],
        "systemInstruction": {"parts": [{"text": "Be brief"}, {"text": "In Celsius"}]},
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "f",
                        "description": "d",
                        "parametersJsonSchema": {"type": "object", "additionalProperties": False},
                    }
                ]
            }
        ],
        "generationConfig": {"maxOutputTokens": 5},
    }


def test_a_stream_is_asked_for_as_events():
    assert _write(_ask(), is_stream=True)[0].target == b"/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


def test_a_result_with_an_image_and_an_error():
    result = ToolResult(
        call_id="c", name="f", content=(Text(text="no"), Media(kind="image", data="AA==")), is_error=True
    )
    image = {"inlineData": {"mimeType": "image/jpeg", "data": "AA=="}}
    response = {"id": "c", "name": "f", "response": {"error": "no"}}
    assert _write(_ask(result))[1]["contents"][0]["parts"] == [{"functionResponse": response}, image]
    assert _write(_ask(result), GEMINI_3)[1]["contents"][0]["parts"] == [
        {"functionResponse": {**response, "parts": [image]}}
    ]


@pytest.mark.parametrize(
    ("media", "parts"),
    [
        (
            Media(kind="image", url="https://x/a.png?b"),
            [{"fileData": {"mimeType": "image/png", "fileUri": "https://x/a.png?b"}}],
        ),
        (
            Media(kind="document", data="AA==", name="a.pdf", context="a report"),
            [{"text": "a.pdf\na report"}, {"inlineData": {"mimeType": "application/pdf", "data": "AA=="}}],
        ),
        (Media(kind="document", text="hi"), [{"inlineData": {"mimeType": "text/plain", "data": "aGk="}}]),
        (
            Media(kind="audio", data="AA==", media_type="audio/wav"),
            [{"inlineData": {"mimeType": "audio/wav", "data": "AA=="}}],
        ),
        (
            Media(kind="video", file_id="gs://b/v.mp4"),
            [{"fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/v.mp4"}}],
        ),
    ],
)
def test_media_are_written(media, parts):
    assert _write(_ask(media))[1]["contents"][0]["parts"] == parts


@pytest.mark.parametrize(
    ("parameters", "config"),
    [
        ({}, {"maxOutputTokens": 777}),
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 7, "stop": ("a", "b"), "choices": 2},
            {"temperature": 0, "topP": 0.5, "topK": 3, "seed": 7, "stopSequences": ["a", "b"], "candidateCount": 2},
        ),
        ({"frequency_penalty": 0.5, "presence_penalty": -1}, {"frequencyPenalty": 0.5, "presencePenalty": -1}),
        ({"logprobs": True, "top_logprobs": 4}, {"responseLogprobs": True, "logprobs": 4}),
        ({"logprobs": True, "top_logprobs": 0}, {"responseLogprobs": True}),
        ({"output_format": OutputFormat()}, {"responseMimeType": "application/json"}),
        (
            {"output_format": OutputFormat(schema={"type": "object"}, description="d")},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object", "description": "d"}},
        ),
        ({"modalities": ("image",)}, {"responseModalities": ["TEXT", "IMAGE"]}),
        ({"reasoning": Reasoning(budget_tokens=2000)}, {"thinkingConfig": {"thinkingBudget": 2000, "includeThoughts": True}}),
        ({"reasoning": Reasoning(effort="low")}, {"thinkingConfig": {"thinkingBudget": 2048}}),
        ({"reasoning": Reasoning(effort="max", summary="auto")}, {"thinkingConfig": {"thinkingBudget": 24576, "includeThoughts": True}}),
        ({"reasoning": Reasoning(effort="none")}, {"thinkingConfig": {"thinkingBudget": 0}}),
        ({"reasoning": Reasoning(is_on=False)}, {"thinkingConfig": {"thinkingBudget": 0}}),
        ({"reasoning": Reasoning(is_adaptive=True, summary="omitted")}, {"thinkingConfig": {"thinkingBudget": -1, "includeThoughts": False}}),
    ],
)  # fmt: skip
def test_parameters_are_written(parameters, config):
    _, body, lost = _write(_ask(**parameters))
    assert lost == []
    assert body["generationConfig"] == {"maxOutputTokens": 777, **config}


@pytest.mark.parametrize(
    ("reasoning", "level"),
    [
        (Reasoning(effort="medium"), "medium"),
        (Reasoning(effort="xhigh"), "high"),
        (Reasoning(effort="none"), "low"),
        (Reasoning(budget_tokens=3000), "medium"),
        (Reasoning(budget_tokens=1024), "low"),
    ],
)
def test_models_that_think_by_level_get_one(reasoning, level):
    assert (
        _write(_ask(reasoning=reasoning), GEMINI_3)[1]["generationConfig"]["thinkingConfig"]["thinkingLevel"] == level
    )


@pytest.mark.parametrize(
    ("choice", "is_strict", "config"),
    [
        (None, None, None),
        (None, True, {"mode": "VALIDATED"}),
        (ToolChoice(mode="auto"), None, {"mode": "AUTO"}),
        (ToolChoice(mode="auto", allowed=("f",)), None, {"mode": "VALIDATED", "allowedFunctionNames": ["f"]}),
        (ToolChoice(mode="none"), None, {"mode": "NONE"}),
        (ToolChoice(mode="required", allowed=("f",)), True, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
        (ToolChoice(mode="tool", name="f"), None, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
    ],
)
def test_tool_choices_are_written(choice, is_strict, config):
    _, body, lost = _write(_ask(tools=[Tool(name="f", is_strict=is_strict)], tool_choice=choice))
    assert lost == []
    assert body.get("toolConfig", {}).get("functionCallingConfig") == config


def test_how_closely_to_look_is_said_for_all_media_at_once():
    low, high = (Media(kind="image", data="AA==", detail=detail, path=detail) for detail in ("low", "high"))
    assert _write(_ask(low))[1]["generationConfig"]["mediaResolution"] == "MEDIA_RESOLUTION_LOW"
    assert _write(_ask(low, high))[2] == ["low.detail", "high.detail"]


@pytest.mark.parametrize(
    ("prompt", "lost"),
    [
        (_ask(user="u", metadata={"a": "b"}, names={"user": "metadata.user_id"}), ["metadata.user_id", "metadata"]),
        (_ask(parallel_tool_calls=False, logit_bias={"1": 2.0}), ["parallel_tool_calls", "logit_bias"]),
        (_ask(parallel_tool_calls=True, store=False, service_tier="auto", prompt_cache_key="k", cache="5m"), []),
        (_ask(service_tier="scale"), ["service_tier"]),
        (Prompt(messages=[Message(role="user", parts=[Text(text="a")], name="bob")]), ["messages.0.name"]),
        (_ask(seed=2**40), ["seed"]),
        (_ask(tools=[Tool(name="f", is_custom=True, path="tools.0")]), ["tools.0"]),
        (_ask(Media(kind="document", file_id="file-1", path="messages.0.content.0")), ["messages.0.content.0"]),
        (_ask(Media(kind="document", data="AA==", is_cited=True, path="p")), ["p.citations"]),
        (_ask(ToolCall(call_id="c", name="f", arguments="[1]", path="p")), ["p.arguments"]),
    ],
)
def test_what_gemini_cannot_be_told_is_lost_by_name(prompt, lost):
    assert _write(prompt)[2] == lost


def test_a_service_tier_is_asked_for():
    assert _write(_ask(service_tier="flex"))[1]["serviceTier"] == "flex"


def test_a_prompt_is_not_changed_by_being_written():
    prompt = _ask(Text(text="a"), ToolResult(call_id="c", content=(Media(kind="image", data="AA=="),)), stop=("x",))
    before = msgspec.json.encode(prompt)
    _write(prompt)
    assert msgspec.json.encode(prompt) == before


# What the provider answers


def test_an_answer_is_read():
    body = {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"text": "hm", "thought": True},
                        {"text": "Hi", "thoughtSignature": "c2ln"},
                        {"functionCall": {"name": "f", "args": {"a": 1.0}}, "thoughtSignature": "c2lnMg=="},
                        {"functionCall": {"id": "own", "name": "g"}},
                        {"executableCode": {"code": "1"}},
                        {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
                    ],
                },
                "finishReason": "STOP",
            }
        ],
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
        "createTime": "2026-02-15T07:50:39.884152Z",
    }
    answer = provider.GENERATE.read_answer(json.dumps(body).encode())
    assert (answer.answer_id, answer.model, answer.created_at_s) == ("r1", "gemini-2.5-flash", 1771141839)
    choice = answer.choices[0]
    assert (choice.finish, choice.finish_detail) == (TOOL_CALLS, "STOP")
    assert choice.parts[:4] == [
        Thinking(text="hm", origin="gemini"),
        Text(text="Hi", signature="c2ln"),
        ToolCall(call_id="call_r1_0", name="f", arguments='{"a": 1.0}', signature="c2lnMg=="),
        ToolCall(call_id="own", name="g", arguments="{}"),
    ]
    assert [type(part).__name__ for part in choice.parts[4:]] == ["Opaque", "Media"]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", STOP), (1, STOP), ("MAX_TOKENS", LENGTH), (2, LENGTH), ("SAFETY", CONTENT_FILTER), (8, CONTENT_FILTER),
        ("RECITATION", CONTENT_FILTER), ("MALFORMED_FUNCTION_CALL", STOP), ("NEW_ONE", STOP), (99, STOP),
    ],
)  # fmt: skip
def test_finish_reasons_are_read(reason, finish):
    body = json.dumps({"candidates": [{"finishReason": reason}]}).encode()
    assert provider.GENERATE.read_answer(body).choices[0].finish == finish


def test_a_blocked_prompt_is_a_filtered_answer():
    body = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
    choice = provider.GENERATE.read_answer(json.dumps(body).encode()).choices[0]
    assert (choice.parts, choice.finish, choice.finish_detail) == ([], CONTENT_FILTER, "SAFETY")
    assert _stream(body) == [
        Began(), Finished(finish=CONTENT_FILTER, finish_detail="SAFETY"), UsageSeen(usage=Usage(input_tokens=4)),
    ]  # fmt: skip


def test_usage_is_counted_as_it_is_billed():
    counts = {
        "promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 20, "thoughtsTokenCount": 30,
        "toolUsePromptTokenCount": 7,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 60}, {"modality": "AUDIO", "tokenCount": 30}, {"modality": 2, "tokenCount": 10}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 15}],
    }  # fmt: skip
    measured = provider.GENERATE.measure(json.dumps({"usageMetadata": counts, "modelVersion": "m"}).encode())
    assert measured.usage == Usage(
        input_tokens=107, cache_read_input_tokens=40, output_tokens=50, reasoning_tokens=30, input_audio_tokens=30,
        input_image_tokens=10, output_image_tokens=15,
    )  # fmt: skip


@pytest.mark.parametrize(("model", "billed"), [("gemini-2.5-flash", 1), ("gemini-3-pro", 2)])
def test_searches_are_billed_by_prompt_or_by_query(model, billed):
    grounding = {"webSearchQueries": ["a", "b", "", "a"]}
    body = {
        "candidates": [{"groundingMetadata": grounding}],
        "modelVersion": model,
        "usageMetadata": {"promptTokenCount": 1},
    }
    assert provider.GENERATE.measure(json.dumps(body).encode()).usage.tool_calls == billed
    first, second = {**body, "candidates": []}, {**body, "usageMetadata": None}
    assert [event.usage.tool_calls for event in _stream(first, second) if isinstance(event, UsageSeen)] == [0, billed]


def test_citations_count_characters():
    text = "Grüße. Ruby 3 is out."
    start, end = len("Grüße. ".encode()), len(text.encode())
    grounding = {
        "groundingChunks": [{"web": {"uri": "https://r", "title": "Ruby"}}, {"retrievedContext": {"title": "Doc", "text": "cited"}}],
        "groundingSupports": [
            {"segment": {"startIndex": start, "endIndex": end, "text": text[7:]}, "groundingChunkIndices": [0, 1, 9]},
        ],
    }  # fmt: skip
    expected = (
        Citation(url="https://r", title="Ruby", start=7, end=21),
        Citation(title="Doc", cited_text="cited", start=7, end=21),
    )
    body = _said({"text": text}, groundingMetadata=grounding, finishReason="STOP")
    assert provider.GENERATE.read_answer(json.dumps(body).encode()).choices[0].parts[0].citations == expected
    events = _stream(_said({"text": text[:4]}), _said({"text": text[4:]}, groundingMetadata=grounding), body)
    assert tuple(event.citation for event in events if isinstance(event, Cited)) == expected


def test_logprobs_are_read_and_written():
    logprobs = {
        "chosenCandidates": [{"token": "Hi", "logProbability": -0.5}],
        "topCandidates": [
            {"candidates": [{"token": "Hi", "logProbability": -0.5}, {"token": "Ho", "logProbability": -2.0}]}
        ],
    }
    body = json.dumps(_said({"text": "Hi"}, logprobsResult=logprobs)).encode()
    answer = provider.GENERATE.read_answer(body)
    top = (TokenLogprob(token="Hi", logprob=-0.5), TokenLogprob(token="Ho", logprob=-2.0))
    assert answer.choices[0].logprobs == [TokenLogprob(token="Hi", logprob=-0.5, bytes=[72, 105], top=top)]
    assert json.loads(GENERATE.write_answer(answer, _call(HELLO)))["candidates"][0]["logprobsResult"] == logprobs


def test_arguments_that_come_in_pieces_are_one_object():
    def piece(**call: Any) -> dict[str, Any]:
        return _said({"functionCall": call})

    events = _stream(
        piece(name="f", willContinue=True),
        piece(
            partialArgs=[{"jsonPath": "$.a.list[0].x", "stringValue": 'q"', "willContinue": True}], willContinue=True
        ),
        piece(partialArgs=[{"jsonPath": "$.a.list[0].x", "stringValue": "ü"}], willContinue=True),
        piece(partialArgs=[{"jsonPath": "$.a.list[0].y", "numberValue": 2}], willContinue=True),
        piece(partialArgs=[{"jsonPath": "$.a.list[1].x", "boolValue": False}], willContinue=True),
        piece(partialArgs=[{"jsonPath": "$.a.b", "nullValue": "NULL_VALUE"}, {"jsonPath": "$.c", "numberValue": 1.5}]),
        piece(name="none"),
        _said(finishReason="STOP"),
    )
    calls = [event for event in events if isinstance(event, ToolCallBegan)]
    assert [(call.index, call.name, call.call_id) for call in calls] == [
        (0, "f", "call_r1_0"),
        (1, "none", "call_r1_1"),
    ]
    arguments = ["".join(e.arguments for e in events if isinstance(e, ToolCallDelta) and e.index == i) for i in (0, 1)]
    assert json.loads(arguments[0]) == {"a": {"list": [{"x": 'q"ü', "y": 2}, {"x": False}], "b": None}, "c": 1.5}
    assert arguments[1] == "{}"
    assert events[-1] == Finished(finish=TOOL_CALLS, finish_detail="STOP")


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}\r\n\r\n',
        b'{\n  "error": {\n    "code": 503,\n    "message": "overloaded",\n "status": "UNAVAILABLE"\n  }\n}\n',
    ],
)
def test_an_error_inside_a_stream_ends_it(raw):
    parser = provider.GENERATE.frame_parser(_call(HELLO, method="streamGenerateContent", query="alt=sse"))
    frames = [*parser.feed(b'data: {"candidates": []}\r\n\r\n' + raw), parser.finish()]
    reader = provider.GENERATE.stream_reader()
    events = [event for frame in frames if frame for event in reader.read(frame)]
    assert isinstance(events[-1], Failed)
    assert (events[-1].error.message, events[-1].error.kind) == ("overloaded", "UNAVAILABLE")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[DONE]",
        b"{",
        b'"x"',
        b"\xff",
        b"[" * 5000,
        b'{"candidates": 1}',
        b'{"usageMetadata": {"promptTokenCount": -1}}',
    ],
)
def test_a_stream_is_read_whatever_comes(data):
    for event in provider.GENERATE.stream_reader().read(Frame(data, data, b"")):
        assert isinstance(event, OpaqueDone | Began)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"candidates": 1}', b'{"error": {"code": 500}}', b"\xff\xfe", b"[" * 5000]
)
def test_what_is_no_answer_is_a_decode_error(body):
    with pytest.raises(msgspec.DecodeError):
        provider.GENERATE.read_answer(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'[{"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED", "details": '
            b'[{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "13.2s"}]}}]',
            {"message": "slow", "kind": "RESOURCE_EXHAUSTED", "retry_after_s": 14, "status_code": 400},
        ),
        (
            b'{"error": {"message": "bad", "status": "INVALID_ARGUMENT", "details": '
            b'[{"reason": "API_KEY_INVALID"}, {"fieldViolations": [{"field": "contents"}]}]}}',
            {"message": "bad", "code": "API_KEY_INVALID", "param": "contents", "status_code": 401},
        ),
        (b"<!DOCTYPE html>", {"message": "no message", "status_code": 400}),
        (b'{"error": "text"}', {"message": "text"}),
        (b'{"error": {"message": 5, "details": [1, {"fieldViolations": [1]}]}}', {"message": "no message"}),
        (b"\xff", {"message": "no message"}),
    ],
)
def test_errors_are_read_in_any_shape(body, expected):
    error = provider.GENERATE.read_error(400, body)
    assert {name: getattr(error, name) for name in expected} == expected


# What clients are answered


def test_an_answer_is_written():
    answer = Answer(
        answer_id="a1",
        model="other",
        choices=[
            Choice(
                parts=[Text(text="Hi"), ToolCall(call_id="c", name="f", arguments='{"a": 1.0}')],
                finish=TOOL_CALLS,
            ),
            Choice(parts=[Text(text="Ho")], finish=LENGTH),
        ],
        usage=Usage(
            input_tokens=10, cache_read_input_tokens=4, output_tokens=9, reasoning_tokens=5, input_audio_tokens=2
        ),
    )
    body = json.loads(GENERATE.write_answer(answer, _call(HELLO)))
    assert body == {
        "candidates": [
            {
                "content": {
                    "parts": [{"text": "Hi"}, {"functionCall": {"id": "c", "name": "f", "args": {"a": 1.0}}}],
                    "role": "model",
                },
                "finishReason": "STOP",
                "index": 0,
            },
            {"content": {"parts": [{"text": "Ho"}], "role": "model"}, "finishReason": "MAX_TOKENS", "index": 1},
        ],
        "usageMetadata": {
            "promptTokenCount": 10,
            "candidatesTokenCount": 4,
            "totalTokenCount": 19,
            "cachedContentTokenCount": 4,
            "thoughtsTokenCount": 5,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}, {"modality": "AUDIO", "tokenCount": 2}],
        },
        "modelVersion": "demo",
        "responseId": "a1",
    }


def test_a_call_whose_arguments_are_no_object_is_not_told_as_one():
    answer = Answer(choices=[Choice(parts=[ToolCall(call_id="c", name="f", arguments='{"a": ')], finish=TOOL_CALLS)])
    candidate = json.loads(GENERATE.write_answer(answer, _call(HELLO)))["candidates"][0]
    assert (candidate["content"]["parts"], candidate["finishReason"]) == ([], "MALFORMED_FUNCTION_CALL")


def test_citations_are_written_in_bytes():
    text = Text(
        text="Grüße. Ja.",
        citations=(Citation(url="https://r", title="R", start=7, end=10), Citation(title="D", cited_text="c")),
    )
    body = json.loads(GENERATE.write_answer(Answer(choices=[Choice(parts=[text])]), _call(HELLO)))
    assert body["candidates"][0]["groundingMetadata"] == {
        "groundingChunks": [
            {"web": {"uri": "https://r", "title": "R"}},
            {"retrievedContext": {"title": "D", "text": "c"}},
        ],
        "groundingSupports": [
            {"segment": {"startIndex": 9, "endIndex": 12, "text": "Ja."}, "groundingChunkIndices": [0]},
            {"segment": {"startIndex": 0, "endIndex": 12, "text": "Grüße. Ja."}, "groundingChunkIndices": [1]},
        ],
    }


EVENTS = [
    [Began(answer_id="a1")],
    [TextDelta(text="Hel")],
    [TextDelta(text="lo"), MediaDone(media=Media(kind="image", media_type="image/png", data="AA=="))],
    [ToolCallBegan(index=0, call_id="c0", name="f"), ToolCallDelta(index=0, arguments='{"a"')],
    [ToolCallDelta(index=0, arguments=": 1}")],
    [ToolCallBegan(index=1, call_id="c1", name="g")],
    [Finished(finish=TOOL_CALLS)],
    [UsageSeen(usage=Usage(input_tokens=3, output_tokens=4)), Done()],
]


def test_a_stream_is_written_event_by_event():
    call = _call(HELLO, method="streamGenerateContent", query="alt=sse")
    writer = STREAM.stream_writer(call)
    told = [writer.write(events) for events in EVENTS] + [writer.finish()]
    assert [bool(piece) for piece in told] == [False, True, True, False, False, True, True, False, True]
    chunks = [json.loads(piece[6:-4]) for piece in told if piece]
    assert [chunk["candidates"][0]["content"]["parts"] for chunk in chunks] == [
        [{"text": "Hel"}],
        [{"text": "lo"}, {"inlineData": {"mimeType": "image/png", "data": "AA=="}}],
        [{"functionCall": {"id": "c0", "name": "f", "args": {"a": 1}}}],
        [{"functionCall": {"id": "c1", "name": "g", "args": {}}}],
        [],
    ]
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    assert chunks[-1]["usageMetadata"]["totalTokenCount"] == 7
    assert all(chunk["modelVersion"] == "demo" and chunk["responseId"] == "a1" for chunk in chunks)


def test_a_stream_without_events_is_a_json_array():
    call = _call(HELLO, method="streamGenerateContent")
    writer = call.dialect.stream_writer(call)
    told = b"".join([writer.write(events) for events in EVENTS]) + writer.finish()
    assert len(json.loads(told)) == 5
    cut = ARRAY.stream_writer(call).write(EVENTS[1]) + ARRAY.render_error_event(BudgetExceeded("all spent"), "req")
    assert json.loads(cut)[-1]["error"]["code"] == 429


def test_calls_that_come_interleaved_are_put_together():
    call = _call(HELLO, method="streamGenerateContent", query="alt=sse")
    writer = STREAM.stream_writer(call)
    told = writer.write(
        [
            ToolCallBegan(index=0, call_id="c0", name="f"),
            ToolCallBegan(index=1, call_id="c1", name="g"),
            ToolCallDelta(index=1, arguments='{"b":2}'),
            ToolCallDelta(index=0, arguments='{"a":1}'),
            Finished(finish=TOOL_CALLS),
        ]
    )
    parts = json.loads(told[6:-4])["candidates"][0]["content"]["parts"]
    assert [(part["functionCall"]["id"], part["functionCall"]["args"]) for part in parts] == [
        ("c0", {"a": 1}),
        ("c1", {"b": 2}),
    ]


def test_arguments_on_several_lines_stay_on_the_line_of_their_event():
    writer = STREAM.stream_writer(_call(HELLO, method="streamGenerateContent", query="alt=sse"))
    written = '{\n    "a": "b\\nc"\r\n}'
    told = writer.write(
        [
            ToolCallBegan(index=0, call_id="c", name="f"),
            ToolCallDelta(index=0, arguments=written),
            Finished(finish=TOOL_CALLS),
        ]
    )
    frame = told.splitlines()[0]
    (part,) = json.loads(frame.removeprefix(b"data: "))["candidates"][0]["content"]["parts"]
    assert part["functionCall"]["args"] == {"a": "b\nc"}


def test_errors_are_told_as_google_tells_them():
    error = json.loads(GENERATE.render_error(LimitExceeded("slow down", retry_after_s=7), "req-1"))["error"]
    assert (error["code"], error["message"], error["status"]) == (429, "slow down", "RESOURCE_EXHAUSTED")
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
    assert details["ErrorInfo"]["reason"] == "RATE_LIMIT_EXCEEDED"
    assert details["RequestInfo"]["requestId"] == "req-1"
    assert details["RetryInfo"]["retryDelay"] == "7s"
    assert "error" in json.loads(GENERATE.render_error_event(BudgetExceeded("all spent"), "req-1"))
    named = json.loads(GENERATE.render_error(InvalidRequest("bad", param="contents"), "r"))["error"]
    assert (named["status"], named["details"][2]["fieldViolations"][0]["field"]) == ("INVALID_ARGUMENT", "contents")


def test_models_are_listed_as_google_lists_them():
    aliases = [Alias(name="demo", targets=()), Alias(name="other", targets=())]
    models = json.loads(GENERATE.render_models(aliases, {}))["models"]
    assert [model["name"] for model in models] == ["models/demo", "models/other"]
    assert json.loads(GENERATE.render_models(aliases[:1], {"model": "demo"}))["name"] == "models/demo"


# Counting tokens, embeddings


def test_tokens_are_counted_for_the_model_that_is_called():
    body = {"generateContentRequest": {"model": "models/demo", "contents": []}}
    call = COUNT_TOKENS.describe(json.dumps(body).encode(), b"", {"model": "demo"})
    assert call.is_free
    outgoing = provider.COUNT_TOKENS.pass_request(call, DEPLOYMENT, PROVIDER)
    assert outgoing.target == b"/models/gemini-2.5-flash:countTokens"
    assert json.loads(outgoing.body)["generateContentRequest"]["model"] == "models/gemini-2.5-flash"
    assert not provider.COUNT_TOKENS.measure(b'{"totalTokens": 11}').has_error


def _embed(body: Any):
    return EMBED.describe(json.dumps(body).encode(), b"", {"model": "demo"})


def test_every_request_of_a_batch_names_the_model_that_is_called():
    body = {"requests": [{"model": "models/demo", "content": {"parts": [{"text": "a"}]}}, {"content": {}}]}
    outgoing = provider.EMBED.pass_request(_embed(body), DEPLOYMENT, PROVIDER)
    assert outgoing.target == b"/models/gemini-2.5-flash:batchEmbedContents"
    assert [request.get("model") for request in json.loads(outgoing.body)["requests"]] == [
        "models/gemini-2.5-flash",
        None,
    ]


def test_embeddings_are_read_and_written():
    request = {
        "content": {"parts": [{"text": "a"}, {"text": "b"}]},
        "taskType": "RETRIEVAL_QUERY",
        "outputDimensionality": 3,
    }
    call = _embed(request)
    prompt = EMBED.read_prompt(call)
    assert (prompt.inputs, prompt.task, prompt.dimensions, prompt.lost) == (["a\nb"], "query", 3, [])
    answer = Embedded(vectors=[[0.5, 1.0]], usage=Usage(input_tokens=2))
    assert json.loads(EMBED.write_answer(answer, call)) == {
        "embedding": {"values": [0.5, 1.0]},
        "usageMetadata": {"promptTokenCount": 2},
    }
    batch = _embed({"requests": [request, {**request, "taskType": "CLUSTERING"}]})
    prompt = EMBED.read_prompt(batch)
    assert (prompt.inputs, prompt.lost) == (["a\nb", "a\nb"], ["requests.1.taskType"])
    assert json.loads(EMBED.write_answer(answer, batch))["embeddings"] == [{"values": [0.5, 1.0]}]


def test_embeddings_of_other_dialects_are_asked_for_in_a_batch():
    lost: list[str] = []
    prompt = Embedding(
        inputs=["a", Media(kind="image", data="AA=="), [1, 2]], task="document", title="t", dimensions=3, user="u"
    )
    outgoing = provider.EMBED.write_request(prompt, _embed({"content": {}}), DEPLOYMENT, PROVIDER, lost)
    assert lost == ["user", "input"]
    options = {
        "model": "models/gemini-2.5-flash",
        "taskType": "RETRIEVAL_DOCUMENT",
        "title": "t",
        "outputDimensionality": 3,
    }
    assert json.loads(outgoing.body)["requests"] == [
        {"content": {"parts": [{"text": "a"}]}, **options},
        {"content": {"parts": [{"inlineData": {"mimeType": "image/jpeg", "data": "AA=="}}]}, **options},
    ]
    read = provider.EMBED.read_answer(b'{"embeddings": [{"values": [1, 2]}], "usageMetadata": {"promptTokenCount": 4}}')
    assert (read.vectors, read.usage) == ([[1.0, 2.0]], Usage(input_tokens=4))


@pytest.mark.parametrize("body", [{"requests": 1}, {"requests": []}, {"requests": [1]}, {}, {"content": 1}])
def test_a_request_for_embeddings_that_is_none_is_refused(body):
    with pytest.raises(InvalidRequest):
        EMBED.read_prompt(_embed(body))


def test_a_method_that_nobody_serves_is_unknown():
    with pytest.raises(RouteUnknown):
        EMBED.describe(b"{}", b"", {"model": "demo", "method": "predictLongRunning"})


# Real traffic


def _recorded(kind: str) -> list[Any]:
    if not RECORDINGS.exists():
        return []
    entries = json.loads((RECORDINGS / "index.json").read_text())
    return [
        pytest.param(entry["file"], id=entry["id"])
        for entry in entries
        if entry["provider"] in ("gemini", "vertex") and entry["api"] == kind
    ]


def _exchange(file: str):
    recording = json.loads((RECORDINGS / file).read_text())
    request, response = recording["request"], recording["response"]
    model, _, method = request["path"].rpartition("/")[2].partition(":")
    raw = json.dumps(request["body"]).encode()
    parameters = {"model": model, "method": method, "query": request["query"]}
    body = base64.b64decode(response["body_base64"]) if "body_base64" in response else response["body_text"].encode()
    return GENERATE.describe(raw, b"application/json", parameters), response["status"], body, "body_base64" in response


def _frames(call: Any, body: bytes, seed: int) -> list[Frame]:
    cuts = sorted(random.Random(seed).sample(range(1, len(body)), min(12, len(body) - 1)))
    parser = provider.GENERATE.frame_parser(call)
    frames = [f for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) for f in parser.feed(body[a:b])]
    tail = parser.finish()
    return [*frames, tail] if tail is not None else frames


@needs_recordings
@pytest.mark.parametrize("file", _recorded("generate-content"))
def test_recorded_requests_pass_and_are_read(file):
    call, *_ = _exchange(file)
    outgoing = provider.GENERATE.pass_request(call, DEPLOYMENT, PROVIDER)
    sent, given = json.loads(outgoing.body), json.loads(call.body)
    for body in (sent, given):
        body.pop("model", None)
        for name in ("generationConfig", "generation_config"):
            config = body.get(name) or {}
            config.pop("maxOutputTokens", None)
            body.pop(name, None) if not config else body.update({name: config})
    assert sent == given
    prompt = call.dialect.read_prompt(call)
    built_in = ("Search", "_search", "urlContext", "url_context", "odeExecution", "code_execution")
    prompt.lost = [name for name in prompt.lost if not (name.startswith("tools.") and name.endswith(built_in))]
    allowed = ("safetySettings", "cachedContent")
    assert all(name.startswith(allowed) for name in prompt.lost), prompt.lost
    lost: list[str] = []
    provider.GENERATE.write_request(prompt, call, GEMINI_3, PROVIDER, lost)
    assert set(lost) <= {"labels"}


def _with_runs(usage, recorded):
    """Told again, an answer does not show how often was searched, nor where it was served."""
    return usage and msgspec.structs.replace(
        usage, tool_calls=recorded.tool_calls, searches=recorded.searches, service_tier=recorded.service_tier
    )


@needs_recordings
@pytest.mark.parametrize("file", _recorded("generate-content"))
def test_recorded_answers_are_read_and_told_again_with_the_same_numbers(file):
    call, status, body, is_stream = _exchange(file)
    if status >= 400:
        error = provider.GENERATE.read_error(status, body)
        assert error.message and (error.kind or body.startswith(b"<"))
        return
    if not is_stream:
        measured, answer = provider.GENERATE.measure(body), provider.GENERATE.read_answer(body)
        assert answer.usage == measured.usage
        again = provider.GENERATE.read_answer(call.dialect.write_answer(answer, call))
        again_usage = _with_runs(again.usage, answer.usage)
        assert (again_usage, again.choices[0].finish) == (answer.usage, answer.choices[0].finish)
        return
    frames = _frames(call, body, 1)
    assert b"".join(frame.raw for frame in frames) == body
    meter, reader = EventMeter(provider.GENERATE.stream_reader()), provider.GENERATE.stream_reader()
    call.prompt = _read({**HELLO, "generationConfig": {"thinkingConfig": {"includeThoughts": True}}})
    writer = call.dialect.stream_writer(call)
    told = b""
    for frame in frames:
        meter.observe(frame)
        told += writer.write(reader.read(frame))
    assert meter.has_ended and meter.output_bytes
    if meter.has_error:
        return
    told += writer.finish()
    again = EventMeter(provider.GENERATE.stream_reader())
    for frame in _frames(call, told, 2):
        again.observe(frame)
    if meter.usage is not None:
        assert _with_runs(again.usage, meter.usage) == meter.usage
    texts = [
        [
            (type(event), getattr(event, "text", ""), getattr(event, "arguments", ""))
            for frame in some
            for event in source.read(frame)
            if isinstance(event, TextDelta | ThinkingDelta | ToolCallDelta)
        ]
        for source, some in ((provider.GENERATE.stream_reader(), frames), (provider.GENERATE.stream_reader(), _frames(call, told, 3)))
    ]  # fmt: skip
    assert _joined(texts[0]) == _joined(texts[1])


def _joined(events: list[Any]) -> dict[Any, str]:
    joined: dict[Any, str] = {}
    for kind, text, arguments in events:
        joined[kind] = joined.get(kind, "") + text + "".join(arguments.split())
    return joined


def test_broken_text_in_arguments_does_not_break_the_stream():
    data = b'{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"a": "\xff"}}}]}}]}'
    events = provider.GENERATE.stream_reader().read(Frame(data, data, b""))
    assert isinstance(events[-1], ToolCallDelta | OpaqueDone)
