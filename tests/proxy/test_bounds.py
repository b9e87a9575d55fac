"""What a request can cost is bounded before it is sent: nothing that a client writes makes it dearer than what is held."""

import contextlib
import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from budgets.pricing import fixed_price
from proxy.describe import Described
from proxy.dialects import anthropic, cohere_chat, cohere_embed, gemini, passthrough
from proxy.dialects.dialect import MEDIA_TOKENS_MAX, TEMPLATE_TOKENS, Call
from proxy.dialects.openai_chat import CHAT
from proxy.dialects.openai_completions import COMPLETIONS
from proxy.dialects.openai_responses import RESPONSES
from proxy.errors import InvalidRequest, Unbounded
from proxy.holds import input_tokens_max
from proxy.prepare import prepare
from proxy.providers.table import PROVIDERS
from proxy.registry import Upstream
from proxy.snapshot import Alias, Deployment, Provider
from tests.proxy.test_multipart import TYPE, form

CHAT_BODY = {"model": "demo", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}


def prepared(kind, dialect, body, *, is_lenient=False):
    provider = Provider(slug="p", api=kind, base_url="http://127.0.0.1", options={"project": "p", "location": "l"})
    deployment = Deployment(
        deployment_id="d", name="d", provider="p", model="m", upstream_model="claude-1", price=fixed_price(1)
    )
    alias = Alias(name="demo", targets=(), is_lenient=is_lenient)
    subject = SimpleNamespace(registry=SimpleNamespace(snapshot=SimpleNamespace(aliases={"demo": alias})))
    call = dialect.describe(json.dumps(body).encode(), b"application/json", {})
    described = Described("r", subject, call, {})
    return prepare(described, Upstream(deployment, provider, PROVIDERS[kind], []), 1)


@pytest.mark.parametrize(
    ("kind", "dialect", "field", "value"),
    [
        ("openrouter", CHAT, "models", ["dear/model"]),
        ("openrouter", CHAT, "preset", "dear"),
        ("openrouter", RESPONSES, "models", ["dear/model"]),
        ("groq", CHAT, "compound_custom", {"models": {"answering_model": "dear"}}),
        ("xai", CHAT, "deferred", True),
        ("vllm", CHAT, "chat_template", "{% for i in range(99999) %}a{% endfor %}"),
        ("llamacpp", CHAT, "n_predict", 9999),
        ("llamacpp", COMPLETIONS, "n_predict", 9999),
        ("openai_compatible", CHAT, "fallbacks", ["dear"]),
        ("azure", CHAT, "data_sources", [{"type": "azure_search"}]),
        ("anthropic", anthropic.MESSAGES, "fallbacks", [{"model": "dear"}]),
        ("vertex", anthropic.MESSAGES, "fallbacks", [{"model": "dear"}]),
        ("bedrock", anthropic.MESSAGES, "fallbacks", [{"model": "dear"}]),
    ],
)
def test_a_field_that_the_price_does_not_bound_is_refused_by_name(kind, dialect, field, value):
    body = {"prompt": "Hi", "input": "Hi", **CHAT_BODY, field: value}
    with pytest.raises(Unbounded) as refused:
        prepared(kind, dialect, body)
    assert refused.value.param == field


def test_a_lenient_alias_lets_it_fall():
    ready = prepared("openrouter", CHAT, {**CHAT_BODY, "models": ["dear"]}, is_lenient=True)
    assert ready.dropped == ("models",)
    assert "models" not in json.loads(ready.outgoing.body)


@pytest.mark.parametrize("value", [None, [], ""])
def test_an_empty_value_asks_for_nothing(value):
    ready = prepared("openrouter", CHAT, {**CHAT_BODY, "models": value})
    assert json.loads(ready.outgoing.body)["models"] == value


# Longer bodies are looked through without what is said in them.
LONG_TEXT = "a" * 5000
TURNS = {
    "messages": {"role": "user", "content": LONG_TEXT},
    "contents": {"parts": [{"text": LONG_TEXT}]},
    "input": {"role": "user", "content": [{"type": "input_text", "text": LONG_TEXT}]},
}


def lengthened(body):
    return {name: [*value, TURNS[name]] if name in TURNS else value for name, value in body.items()}


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
ESCAPES = {"image_url": "image\\u005furl", "application/pdf": "application\\/pdf", "fileData": "file\\u0044ata"}


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": [IMAGE]}]}),
        (cohere_chat.CHAT, {"model": "m", "messages": [{"role": "user", "content": [IMAGE]}]}),
        (cohere_embed.EMBED, {"model": "m", "inputs": [{"content": [IMAGE]}]}),
        (
            anthropic.MESSAGES,
            {
                "model": "m",
                "messages": [{"content": [{"type": "document", "source": {"media_type": "application/pdf"}}]}],
            },
        ),
        (gemini.GENERATE, {"contents": [{"parts": [{"fileData": {"fileUri": "https://example.com/a"}}]}]}),
        (gemini.GENERATE, {"contents": {"parts": {"fileData": {"fileUri": "https://example.com/a"}}}}),
    ],
)
@pytest.mark.parametrize("is_long", [False, True])
def test_no_escape_hides_media_from_the_bound(dialect, body, is_long):
    if is_long:
        body = lengthened(body) if isinstance(body.get("contents"), list | None) else {**body, "x": LONG_TEXT}
    plain = json.dumps(body)
    hidden = plain
    for mark, escaped in ESCAPES.items():
        hidden = hidden.replace(mark, escaped)
    assert hidden != plain
    described = [dialect.describe(text.encode(), b"application/json", {"model": "m"}) for text in (plain, hidden)]
    assert described[0].input_tokens_max > MEDIA_TOKENS_MAX
    assert described[1].input_tokens_max > described[0].input_tokens_max - TEMPLATE_TOKENS
    assert described[1].has_images == described[0].has_images


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (CHAT, {"model": "m", "messages": [TURNS["messages"], {"role": "tool", "content": [IMAGE]}]}),
        (CHAT, {"model": "m", "messages": [TURNS["messages"], {"content": [{"text": [IMAGE]}]}]}),
        (CHAT, {"model": "m", "messages": [TURNS["messages"], {"image_url": "https://example.com/a.png"}]}),
        (CHAT, {"model": "m", "messages": [TURNS["messages"], [IMAGE]]}),
        (
            anthropic.MESSAGES,
            {
                "model": "m",
                "messages": [
                    {"content": [{"type": "tool_result", "content": [{"type": "image"}]}, {"type": "text"}]},
                    TURNS["messages"],
                ],
            },
        ),
        (RESPONSES, {"model": "m", "input": [TURNS["input"], {"content": [{"type": "input_image"}]}]}),
        (gemini.GENERATE, {"contents": [TURNS["contents"], {"parts": [{"inlineData": {"mimeType": "image/png"}}]}]}),
    ],
)
def test_media_among_long_texts_is_held(dialect, body):
    described = dialect.describe(json.dumps(body).encode(), b"application/json", {"model": "m"})
    assert described.input_tokens_max > MEDIA_TOKENS_MAX
    assert described.has_images


@pytest.mark.parametrize(
    ("dialect", "name"),
    [(CHAT, "messages"), (anthropic.MESSAGES, "messages"), (gemini.GENERATE, "contents"), (RESPONSES, "input")],
)
def test_what_is_only_said_about_media_is_not_held(dialect, name):
    body = json.dumps({"model": "m", name: [TURNS[name]]}).replace("aa", "image_url")
    described = dialect.describe(body.encode(), b"application/json", {"model": "m"})
    assert described.input_tokens_max == len(body) + TEMPLATE_TOKENS
    assert not described.has_images


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (CHAT, {"model": "m", "messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}),
        (
            anthropic.MESSAGES,
            {"model": "m", "messages": [{"content": [{"type": "document", "source": {"type": "url", "url": "h"}}]}]},
        ),
        (RESPONSES, {"model": "m", "input": [{"content": [{"type": "input_file", "file_id": "file-1"}]}]}),
        (gemini.GENERATE, {"contents": [{"parts": [{"inlineData": {"mimeType": "application/pdf", "data": ""}}]}]}),
    ],
)
def test_only_the_context_bounds_a_document(dialect, body):
    call = dialect.describe(json.dumps(body).encode(), b"application/json", {"model": "m"})
    assert call.input_tokens_max > 1_000_000


def test_a_stored_prompt_may_bring_tools():
    call = RESPONSES.describe(b'{"model":"m","prompt":{"id":"pmpt_1"}}', b"application/json", {})
    assert call.tool_calls_max > 0


def test_a_prediction_is_billed_beyond_the_cap():
    body = {**CHAT_BODY, "prediction": {"type": "content", "content": "a" * 1000}}
    assert CHAT.describe(json.dumps(body).encode(), b"application/json", {}).output_tokens_max > 1000


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        (
            anthropic.MESSAGES,
            {"model": "m", "tools": [{"type": "advisor_20260301", "name": "advisor", "model": "dear"}]},
            "tools.0.model",
        ),
        (
            gemini.GENERATE,
            {"generation_config": {"routingConfig": {"manualMode": {"modelName": "dear"}}}},
            "generationConfig.routingConfig",
        ),
    ],
)
def test_no_other_model_is_called_on_the_way(dialect, body, param):
    with pytest.raises(InvalidRequest) as refused:
        dialect.describe(json.dumps(body).encode(), b"application/json", {"model": "m"})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("call", "tokens"),
    [
        ({"capability": "chat", "input_tokens_max": 900}, 100),
        ({"capability": "chat", "input_tokens_max": 900, "tool_calls_max": 2}, 300),
        ({"capability": "embeddings", "input_tokens_max": 900}, 900),
    ],
)
def test_a_context_bounds_one_run_of_a_chat_and_nothing_else(call, tokens):
    described = Call(dialect=CHAT, operation="", alias="", body=b"", **call)
    deployment = Deployment(
        deployment_id="d", name="d", provider="p", model="m", upstream_model="m", context_window=100
    )
    assert input_tokens_max(described, deployment) == tokens


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ({"anthropic-beta": "files-api-2025-04-14, context-1m-2025-08-07"}, {}),
        ({}, {"anthropic_beta": ["context-1m-2025-08-07"]}),
    ],
)
def test_a_longer_context_that_is_asked_for_is_held(said, more):
    body = json.dumps({**CHAT_BODY, "max_tokens": 5, "messages": "x" * 300_000, **more}).encode()
    call = anthropic.MESSAGES.describe(body, b"application/json", said)
    deployment = Deployment(
        deployment_id="d", name="d", provider="p", model="m", upstream_model="m", context_window=200_000
    )
    assert input_tokens_max(call, deployment) > 300_000
    usual = anthropic.MESSAGES.describe(json.dumps({**CHAT_BODY, "pad": "x" * 300_000}).encode(), b"", {})
    assert input_tokens_max(usual, deployment) == 200_000


@pytest.mark.parametrize("query", ["beta=true&key=x", "beta=true#", "x=y", "beta=\xff"])
def test_only_the_known_query_crosses_to_anthropic(query):
    api = PROVIDERS["anthropic"].apis[0]
    deployment = Deployment(deployment_id="d", name="d", provider="p", model="m", upstream_model="m")
    provider = Provider(slug="p", api="anthropic", base_url="http://127.0.0.1")
    body = json.dumps(CHAT_BODY).encode()
    for said, target in ((query, b"/messages"), ("beta=true", b"/messages?beta=true")):
        call = anthropic.MESSAGES.describe(body, b"application/json", {"query": said})
        assert api.pass_request(call, deployment, provider).target == target


@pytest.mark.parametrize(
    ("body", "content_type", "path"),
    [
        (b' \n{"model":"dear"}', b"application/json", "chat/completions"),
        (form(("model", None, b"dear")), TYPE, "audio/transcriptions"),
        (b"{}", b"application/json", "v1beta/models/dear:generateContent"),
        (b"{}", b"application/json", "model/dear%3A0/converse"),
        (b"{}", b"application/json", "openai/deployments/dear/chat/completions"),
    ],
)
def test_a_call_that_is_passed_through_is_halted_with_its_model(body, content_type, path):
    call = passthrough.METHODS["POST"].describe(body, content_type, {"provider": "p", "path": path})
    assert call.parameters["model"].removesuffix(":0") == "dear"


@pytest.mark.parametrize("path", ["..;/admin", "a/%252e%252e/b", "a/..%5cb"])
def test_no_path_leads_out_of_the_base_url(path):
    with pytest.raises(InvalidRequest):
        passthrough.METHODS["POST"].describe(b"", b"", {"provider": "p", "path": path})


def _messages(count):
    return {"model": "m", "messages": [{"role": "user", "content": "x"}] * count}


def _tool_calls(count):
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(count)]
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": "x"} for i in range(count)]
    return {"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}, *results]}


def _function_calls(count):
    calls = [{"functionCall": {"name": "f"}}] * count
    results = [{"functionResponse": {"name": "f", "response": {}}}] * count
    return {"contents": [{"role": "model", "parts": calls}, {"role": "user", "parts": results}]}


@contextlib.contextmanager
def _counted_lines():
    """Counts the lines of Python that run within the `with`, each time that they do: the same number on any machine."""
    events = Counter()

    def trace(_frame, event, _argument):
        events[event] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield events
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(
    ("kind", "dialect", "body_of"),
    [("anthropic", CHAT, _messages), ("ollama", CHAT, _tool_calls), ("openai", gemini.GENERATE, _function_calls)],
)
def test_a_request_takes_longer_as_it_is_longer_and_no_more(kind, dialect, body_of):
    deployment = Deployment(deployment_id="d", name="d", provider="p", model="m", upstream_model="m")
    provider = Provider(slug="p", api=kind, base_url="http://127.0.0.1")
    api = Upstream(deployment, provider, PROVIDERS[kind], []).api_for(dialect, "chat")

    def lines_run(count: int) -> int:
        call = dialect.describe(json.dumps(body_of(count)).encode(), b"application/json", {"model": "m"})
        with _counted_lines() as lines:
            api.write_request(dialect.read_prompt(call), call, deployment, provider, [])
        return lines["line"]

    # Twice as long, twice as many. Were anything looked through again for each part, it would be four times as many.
    assert lines_run(800) < 2.5 * lines_run(400)
