"""OpenAI's protocol, both sides: what is described, what is sent on, what is read from real answers."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit.records import Usage
from proxy.dialects.dialect import JSON, Call, Dialect
from proxy.dialects.openai_chat import CHAT
from proxy.dialects.openai_completions import COMPLETIONS
from proxy.dialects.openai_embeddings import EMBEDDINGS
from proxy.errors import BudgetExceeded, InvalidRequest
from proxy.providers import openai_chat, openai_completions, openai_embeddings
from proxy.providers.mistral import PROVIDER as MISTRAL
from proxy.providers.openai_chat import ChatMeter, measure
from proxy.snapshot import Deployment, Provider
from proxy.wire.sse import SSEParser

PROVIDER = Provider(slug="openai", api="openai", base_url="https://api.openai.com/v1")
DEPLOYMENT = Deployment(
    deployment_id="d", name="d", provider="openai", model="m", upstream_model="gpt-5-mini", max_output_tokens=777
)
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"


APIS = {CHAT: openai_chat.CHAT, EMBEDDINGS: openai_embeddings.EMBEDDINGS, COMPLETIONS: openai_completions.COMPLETIONS}


def _describe(body: bytes, dialect: Dialect = CHAT) -> Call:
    return dialect.describe(body, JSON, {})


def _sent(call: Call, provider: Provider = PROVIDER) -> bytes:
    return APIS[call.dialect].pass_request(call, DEPLOYMENT, provider).body


# Requests


def test_only_what_must_change_changes():
    body = b'{"z": [1,  2], "model":"demo", "temperature":0.10, "big": 123456789012345678901234567890, "max_tokens": 5}'
    sent = _sent(_describe(body))
    assert json.loads(sent) == {**json.loads(body), "model": "gpt-5-mini"}
    assert list(json.loads(sent)) == list(json.loads(body))
    for untouched in (b"[1,  2]", b"0.10", b"123456789012345678901234567890"):
        assert untouched in sent


def test_the_next_attempt_does_not_inherit_the_cap_of_the_one_before():
    call = _describe(b'{"model":"demo","messages":[]}')
    _sent(call, msgspec.structs.replace(PROVIDER, output_cap_field="max_tokens"))
    sent = json.loads(_sent(call, msgspec.structs.replace(PROVIDER, output_cap_field="other_cap")))
    assert "other_cap" in sent
    assert "max_tokens" not in sent


def test_an_output_cap_is_put_in_where_there_is_none():
    sent = json.loads(_sent(_describe(b'{"model":"demo","messages":[]}')))
    assert sent["max_completion_tokens"] == 777
    capped = json.loads(_sent(_describe(b'{"model":"demo","max_tokens":3}')))
    assert "max_completion_tokens" not in capped


@pytest.mark.parametrize("options", ["", ',"stream_options":null', ',"stream_options":{"include_obfuscation":false}'])
def test_usage_is_asked_for_where_the_client_did_not(options):
    call = _describe(b'{"model":"demo","stream":true%s}' % options.encode())
    sent = json.loads(_sent(call))
    assert not call.wants_usage_chunk
    assert sent["stream_options"]["include_usage"] is True
    assert sent["stream_options"].get("include_obfuscation", False) is False


def test_embeddings_get_neither_cap_nor_stream_options():
    sent = json.loads(_sent(_describe(b'{"model":"demo","input":"x"}', EMBEDDINGS)))
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


def test_a_field_that_a_provider_calls_otherwise_is_renamed_in_its_place():
    call = _describe(b'{"model":"demo","max_completion_tokens":5,"seed":7,"x":1}')
    sent = MISTRAL.apis[0].pass_request(call, DEPLOYMENT, PROVIDER).body
    assert sent == b'{"model":"gpt-5-mini","max_tokens":5,"random_seed":7,"x":1}'


def test_a_provider_that_reports_usage_unasked_is_not_asked():
    call = _describe(b'{"model":"demo","max_tokens":5,"stream":true}')
    assert b"stream_options" not in MISTRAL.apis[0].pass_request(call, DEPLOYMENT, PROVIDER).body


@pytest.mark.parametrize(
    ("fields", "tool_calls_max"),
    [
        (b'"tools":[{"type":"function","function":{"name":"f"}},{"function":{"name":"g"}}]', 0),
        (b'"tools":[{"type":"openrouter:web_search"}]', 16),
        (b'"web_search_options":{}', 16),
    ],
)
def test_what_the_provider_runs_itself_is_bounded(fields, tool_calls_max):
    assert _describe(b'{"model":"m",%s}' % fields).tool_calls_max == tool_calls_max


# Legacy completions


@pytest.mark.parametrize(
    ("body", "output_tokens_max", "choices"),
    [
        (b'{"model":"m","prompt":"x"}', 16, 1),
        (b'{"model":"m","prompt":"x","max_tokens":0}', 0, 1),
        (b'{"model":"m","prompt":["x","y"],"n":2,"best_of":5,"max_tokens":7}', 7, 10),
        (b'{"model":"m","prompt":[1,2,3]}', 16, 1),
        (b'{"model":"m","prompt":[[1,2],[3]]}', 16, 2),
    ],
)
def test_a_completion_is_bounded_by_what_is_made_not_what_is_shown(body, output_tokens_max, choices):
    call = _describe(body, COMPLETIONS)
    assert (call.output_tokens_max, call.choices) == (output_tokens_max, choices)


def test_an_echoed_prompt_is_part_of_the_bound():
    call = _describe(b'{"model":"m","prompt":"x","echo":true}', COMPLETIONS)
    assert call.output_tokens_max == 16 + call.input_tokens_max


@pytest.mark.parametrize(
    ("fields", "param"), [(b'"n":0', "n"), (b'"best_of":129', "best_of"), (b'"max_tokens":-1', "max_tokens")]
)
def test_a_wrong_field_of_a_completion_is_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        _describe(b'{"model":"m",%s}' % fields, COMPLETIONS)
    assert caught.value.param == param


def test_a_completion_gets_the_cap_that_it_would_have_had_and_says_its_usage():
    sent = json.loads(_sent(_describe(b'{"model":"demo","prompt":"x","stream":true}', COMPLETIONS)))
    assert sent == {
        "model": "gpt-5-mini",
        "prompt": "x",
        "stream": True,
        "max_tokens": 16,
        "stream_options": {"include_usage": True},
    }


# Errors


def test_an_error_has_openais_shape_and_our_details():
    error = BudgetExceeded("over", details={"budget": "b", "left_usd": "0.10"})
    body = json.loads(CHAT.render_error(error, "r"))["error"]
    assert body == {
        "message": "over",
        "type": "rate_limit_error",
        "param": None,
        "code": "budget_exceeded",
        "budget": "b",
        "left_usd": "0.10",
    }
    assert CHAT.render_error_event(error, "r").startswith(b'data: {"error":')
    assert CHAT.render_error_event(error, "r").endswith(b"\n\n")


# Answers


def test_reasoning_that_stands_beside_the_output_is_counted():
    answer = measure(
        b'{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":45,"completion_tokens_details":{"reasoning_tokens":30}}}'
    )
    assert answer.usage == Usage(input_tokens=10, output_tokens=35, reasoning_tokens=30)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # Mistral leaves audio out of the prompt's tokens; xAI bills sources, Perplexity searches, OpenRouter both ways.
        (
            '"prompt_tokens":11,"completion_tokens":15,"total_tokens":401,"prompt_tokens_details":{"audio_tokens":375,"cached_tokens":9}',
            Usage(input_tokens=386, output_tokens=15, input_audio_tokens=375, cache_read_input_tokens=9),
        ),
        (
            '"prompt_tokens":11,"completion_tokens":15,"total_tokens":401,"prompt_audio_seconds":5',
            Usage(input_tokens=386, output_tokens=15, input_audio_tokens=375),
        ),
        (
            '"prompt_tokens":40,"completion_tokens":8,"total_tokens":48,"prompt_tokens_details":{"audio_tokens":30,"image_tokens":2},"completion_tokens_details":{"audio_tokens":5}',
            Usage(
                input_tokens=40,
                output_tokens=8,
                input_audio_tokens=30,
                input_image_tokens=2,
                output_audio_tokens=5,
            ),
        ),
        (
            '"prompt_tokens":404,"completion_tokens":48,"total_tokens":452,"prompt_cache_hit_tokens":384',
            Usage(input_tokens=404, output_tokens=48, cache_read_input_tokens=384),
        ),
        (
            '"prompt_tokens":254,"completion_tokens":93,"total_tokens":347,"num_cached_tokens":48',
            Usage(input_tokens=254, output_tokens=93, cache_read_input_tokens=48),
        ),
        (
            '"prompt_tokens":9,"completion_tokens":1,"cache_read_input_tokens":100,"cache_creation_input_tokens":20,"cache_creation":{"ephemeral_1h_input_tokens":5}',
            Usage(
                input_tokens=129,
                output_tokens=1,
                cache_read_input_tokens=100,
                cache_write_input_tokens=20,
                cache_write_1h_input_tokens=5,
            ),
        ),
        (
            '"prompt_tokens":9,"completion_tokens":1,"num_search_queries":3',
            Usage(input_tokens=9, output_tokens=1, tool_calls=3, searches=3),
        ),
        (
            '"prompt_tokens":9,"completion_tokens":1,"server_tool_use_details":{"web_search_requests":1}',
            Usage(input_tokens=9, output_tokens=1, tool_calls=1, searches=1),
        ),
    ],
)
def test_usage_that_is_counted_otherwise_is_read_in_our_meaning(usage, expected):
    assert measure(b'{"choices":[],"usage":{%s}}' % usage.encode()).usage == expected


def test_a_citation_of_the_web_tells_of_a_search():
    answer = (
        b'{"choices":[{"message":{"annotations":[{"type":"url_citation","url_citation":{"url":"https://x"}}]}}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    )
    assert measure(answer).usage == Usage(input_tokens=3, output_tokens=4, tool_calls=1, searches=1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"x"}}',
        b'{"object":"error","message":"x"}',
        b'{"choices":[{"error":{"code":502,"message":"x"},"finish_reason":"error"}]}',
    ],
)
def test_an_error_in_a_good_answer_is_noticed(body):
    assert measure(body).has_error


def test_an_answer_without_usage_says_so():
    assert measure(b'{"choices":[{"finish_reason":"stop"}]}').usage is None


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"usage": 7}'])
def test_an_answer_of_another_shape_is_refused(body):
    with pytest.raises(msgspec.DecodeError):
        measure(body)


def test_a_meter_counts_visible_output_and_knows_the_usage_chunk():
    meter = ChatMeter(wants_usage_chunk=False)
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
    meter = ChatMeter(wants_usage_chunk=False)
    for event in SSEParser().feed(b'data: {"error":{"message":"overloaded"}}\n\n'):
        meter.observe(event)
    assert meter.has_error


# Real traffic


def _recorded(streamed: bool) -> list[Any]:
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["api"] == "chat-completions" and entry["status"] == 200 and entry["streaming"] is streamed
    ]


def _expected(usage: dict[str, Any]) -> tuple[int, int, int]:
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or usage.get("num_cached_tokens") or 0
    prompt = usage["prompt_tokens"]
    if (details.get("audio_tokens") or 0) > prompt:
        prompt += details["audio_tokens"]
    if cached > prompt:
        prompt += cached  # Grok on Azure: only what is fresh is in `prompt_tokens`.
    return prompt, max(usage.get("completion_tokens") or 0, (usage.get("total_tokens") or 0) - prompt), cached


@pytest.mark.parametrize("path", _recorded(streamed=False))
def test_the_usage_of_a_real_answer_is_read_as_the_provider_wrote_it(path):
    body = json.loads(path.read_text())["response"]["body_text"]
    usage = json.loads(body).get("usage")
    answer = measure(body.encode())
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
        parser, meter, passed = SSEParser(), ChatMeter(wants_usage_chunk=False), b""
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
