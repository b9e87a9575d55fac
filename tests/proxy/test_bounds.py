"""What a request can cost is bounded before it is sent: nothing that a client writes makes it dearer than what is held."""

import json
from types import SimpleNamespace

import pytest

from budgets.pricing import fixed_price
from proxy.describe import Described
from proxy.dialects import anthropic
from proxy.dialects.openai_chat import CHAT
from proxy.dialects.openai_completions import COMPLETIONS
from proxy.dialects.openai_responses import RESPONSES
from proxy.errors import Unbounded
from proxy.prepare import prepare
from proxy.providers.table import PROVIDERS
from proxy.registry import Upstream
from proxy.snapshot import Alias, Deployment, Provider

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
