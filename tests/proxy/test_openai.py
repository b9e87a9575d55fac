"""OpenAI's protocol, both sides: what is described, what is sent on, what is read from real answers."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit.records import Usage
from proxy.dialects.openai import CHAT, EMBEDDINGS, describe, render_error, render_error_event
from proxy.errors import BudgetExceeded, InvalidRequest
from proxy.providers.openai import StreamMeter, build_body, read_answer
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import parse_object
from proxy.wire.sse import SSEParser

PROVIDER = Provider(slug="openai", api="openai", base_url="https://api.openai.com/v1")
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="openai", model="m", upstream_model="gpt-5-mini", max_output_tokens=777
)
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"


def _describe(body: bytes, operation: str = CHAT):
    return describe(operation, parse_object(body), body)


# Requests


def test_only_what_must_change_changes():
    body = b'{"z": [1,  2], "model":"demo", "temperature":0.10, "big": 123456789012345678901234567890, "max_tokens": 5}'
    sent = build_body(_describe(body), DEPLOYMENT, PROVIDER)
    assert json.loads(sent) == {**json.loads(body), "model": "gpt-5-mini"}
    assert list(json.loads(sent)) == list(json.loads(body))
    for untouched in (b"[1,  2]", b"0.10", b"123456789012345678901234567890"):
        assert untouched in sent


def test_the_next_attempt_does_not_inherit_the_cap_of_the_one_before():
    call = _describe(b'{"model":"demo","messages":[]}')
    build_body(call, DEPLOYMENT, msgspec.structs.replace(PROVIDER, output_cap_field="max_tokens"))
    sent = json.loads(build_body(call, DEPLOYMENT, msgspec.structs.replace(PROVIDER, output_cap_field="other_cap")))
    assert "other_cap" in sent
    assert "max_tokens" not in sent


def test_an_output_cap_is_put_in_where_there_is_none():
    sent = json.loads(build_body(_describe(b'{"model":"demo","messages":[]}'), DEPLOYMENT, PROVIDER))
    assert sent["max_completion_tokens"] == 777
    capped = json.loads(build_body(_describe(b'{"model":"demo","max_tokens":3}'), DEPLOYMENT, PROVIDER))
    assert "max_completion_tokens" not in capped


@pytest.mark.parametrize("options", ["", ',"stream_options":null', ',"stream_options":{"include_obfuscation":false}'])
def test_usage_is_asked_for_where_the_client_did_not(options):
    call = _describe(b'{"model":"demo","stream":true%s}' % options.encode())
    sent = json.loads(build_body(call, DEPLOYMENT, PROVIDER))
    assert not call.wants_usage_chunk
    assert sent["stream_options"]["include_usage"] is True
    assert sent["stream_options"].get("include_obfuscation", False) is False


def test_embeddings_get_neither_cap_nor_stream_options():
    sent = json.loads(build_body(_describe(b'{"model":"demo","input":"x"}', EMBEDDINGS), DEPLOYMENT, PROVIDER))
    assert sent == {"model": "gpt-5-mini", "input": "x"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages":[]}', "model"),
        (b'{"model":5}', "model"),
        (b'{"model":""}', "model"),
        (b'{"model":"m","max_tokens":"many"}', "max_tokens"),
        (b'{"model":"m","n":0}', "n"),
        (b'{"model":"m","stream":"yes"}', "stream"),
    ],
)
def test_a_wrong_field_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        _describe(body)
    assert caught.value.param == param


def test_the_input_bound_counts_bytes_and_media_apart():
    text = _describe(b'{"model":"m","messages":[{"content":"' + b"x" * 1000 + b'"}]}')
    assert text.input_tokens_max >= 1000
    image = _describe(b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}')
    assert image.input_tokens_max > 30_000


# Errors


def test_an_error_has_openais_shape_and_our_details():
    error = BudgetExceeded("over", details={"budget": "b", "left_usd": "0.10"})
    body = json.loads(render_error(error))["error"]
    assert body == {
        "message": "over",
        "type": "rate_limit_error",
        "param": None,
        "code": "budget_exceeded",
        "budget": "b",
        "left_usd": "0.10",
    }
    assert render_error_event(error).startswith(b'data: {"error":')
    assert render_error_event(error).endswith(b"\n\n")


# Answers


def test_reasoning_that_stands_beside_the_output_is_counted():
    answer = read_answer(
        b'{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":45,"completion_tokens_details":{"reasoning_tokens":30}}}'
    )
    assert answer.usage == Usage(input_tokens=10, output_tokens=35, reasoning_tokens=30)


def test_an_answer_without_usage_says_so():
    assert read_answer(b'{"choices":[{"finish_reason":"stop"}]}').usage is None


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"usage": 7}'])
def test_an_answer_of_another_shape_is_refused(body):
    with pytest.raises(msgspec.DecodeError):
        read_answer(body)


def test_a_meter_counts_visible_output_and_knows_the_usage_chunk():
    meter = StreamMeter()
    parser = SSEParser()
    stream = (
        b'data: {"model":"m-1","choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}\n\n'
        b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\n'
        b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'
        b"data: [DONE]\n\n"
    )
    withheld = [meter.observe(event) for event in parser.feed(stream)]
    assert withheld == [False, False, False, False, False, True, False]
    assert (meter.output_chunks, meter.output_bytes) == (3, len("Hello") + len("hm") + len('[{"index":0}]'))
    assert (meter.usage, meter.finish_reason, meter.response_model) == (
        Usage(input_tokens=3, output_tokens=4),
        "stop",
        "m-1",
    )
    assert meter.is_done


def test_an_error_in_a_stream_is_noticed():
    meter = StreamMeter()
    for event in SSEParser().feed(b'data: {"error":{"message":"overloaded"}}\n\n'):
        meter.observe(event)
    assert meter.has_error


# Real traffic


def _recorded(streamed: bool) -> list[Any]:
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    speak_openai = {"openai", "azure", "groq", "together", "deepseek", "openrouter", "vllm", "cerebras"}
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["api"] == "chat-completions"
        and entry["provider"] in speak_openai
        and entry["status"] == 200
        and entry["streaming"] is streamed
    ]


def _expected(usage: dict[str, Any]) -> tuple[int, int, int]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    prompt = usage["prompt_tokens"]
    return prompt, max(usage.get("completion_tokens") or 0, (usage.get("total_tokens") or 0) - prompt), cached


@pytest.mark.parametrize("path", _recorded(streamed=False))
def test_the_usage_of_a_real_answer_is_read_as_the_provider_wrote_it(path):
    body = json.loads(path.read_text())["response"]["body_text"]
    usage = json.loads(body).get("usage")
    answer = read_answer(body.encode())
    if usage is None:
        assert answer.usage is None
        return
    assert answer.usage is not None
    read = answer.usage
    assert (read.input_tokens, read.output_tokens, read.cache_read_input_tokens) == _expected(usage)


@pytest.mark.parametrize("path", _recorded(streamed=True))
def test_a_real_stream_passes_byte_for_byte_and_is_read_at_any_cut(path):
    recording = json.loads(path.read_text())
    stream = base64.b64decode(recording["response"]["body_base64"])
    usages = []
    for size in (1, 7, len(stream), 0):
        parser, meter, passed = SSEParser(), StreamMeter(), b""
        for part in _cut(stream, size):
            for event in parser.feed(part):
                meter.observe(event)
                passed += event.raw
        tail = parser.finish()
        if tail is not None:
            meter.observe(tail)
            passed += tail.raw
        assert passed == stream
        usages.append((meter.usage, meter.finish_reason, meter.output_chunks))
    assert len(set(usages)) == 1
    recorded = recording["meta"].get("usage")
    if recorded and "prompt_tokens" in recorded[-1]:
        assert usages[0][0] is not None
        assert (
            usages[0][0].input_tokens,
            usages[0][0].output_tokens,
            usages[0][0].cache_read_input_tokens,
        ) == _expected(recorded[-1])


def _cut(stream: bytes, size: int) -> list[bytes]:
    if size:
        return [stream[i : i + size] for i in range(0, len(stream), size)]
    draw = random.Random(len(stream))
    places = sorted(draw.sample(range(len(stream)), min(20, len(stream) // 2)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
