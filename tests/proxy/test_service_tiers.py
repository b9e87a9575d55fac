"""What a request may be billed at, by what it asks for; and what answers say that they were."""

import json
from types import SimpleNamespace

import msgspec
import pytest

from budgets.pricing import Price, ceiling, fixed_price, hold_nanos, scaled
from proxy.describe import Described
from proxy.dialects import anthropic, gemini
from proxy.dialects.openai_chat import CHAT
from proxy.dialects.openai_responses import RESPONSES
from proxy.errors import Unbounded
from proxy.prepare import prepare
from proxy.providers import anthropic_answers, gemini_answers, openai_chat, openai_responses_answers
from proxy.providers.table import PROVIDERS
from proxy.registry import Upstream
from proxy.service_tiers import Asked, asked
from proxy.snapshot import Alias, Deployment, Provider
from proxy.wire.frame import Frame

STANDARD = Price(
    price_id="p",
    input_nanos=2_000_000_000,
    output_nanos=8_000_000_000,
    cache_read_nanos=200_000_000,
    cache_write_nanos=2_500_000_000,
)
TIERED = msgspec.structs.replace(
    STANDARD,
    tiers={"priority": scaled(STANDARD, 200), "fast": scaled(STANDARD, 600), "flex": scaled(STANDARD, 50)},
    in_geo=msgspec.structs.replace(STANDARD, input_nanos=2_200_000_000, output_nanos=8_800_000_000),
)
BODY = {"model": "demo", "max_tokens": 1_000, "messages": [{"role": "user", "content": "Hi"}]}


def deployment(price, auto_tier=""):
    return Deployment(
        deployment_id="d", name="d", provider="p", model="m", upstream_model="m-1", price=price, auto_tier=auto_tier
    )


def fields(**values):
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in values.items()}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ()),
        ({"service_tier": "auto"}, ()),
        ({"service_tier": None}, ()),
        ({"service_tier": "default"}, ()),
        ({"service_tier": "standard_only"}, ()),
        ({"service_tier": "priority"}, ("priority",)),
        ({"serviceTier": "PRIORITY"}, ("priority",)),
        ({"service_tier": "flex"}, ("flex",)),
        ({"speed": "fast"}, ("fast",)),
        ({"speed": "standard"}, ()),
        ({"service_tier": "priority", "speed": "fast"}, ("priority", "fast")),
    ],
)
def test_the_tiers_that_a_request_may_be_billed_at(said, expected):
    assert asked(fields(**said), deployment(TIERED)).tiers == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ("priority",)),
        ({"service_tier": "auto"}, ("priority",)),
        ({"speed": "fast"}, ("fast", "priority")),
        ({"service_tier": "default"}, ()),
        ({"service_tier": "flex"}, ("flex",)),
    ],
)
def test_what_names_no_tier_may_get_the_one_that_the_project_is_set_to(said, expected):
    assert asked(fields(**said), deployment(TIERED, "priority")).tiers == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, True),
        ({"inference_geo": "us"}, True),
        ({"inference_geo": "global"}, False),
        ({"inference_geo": None}, True),
    ],
)
def test_a_workspace_may_be_set_to_a_geography_unless_the_request_says_otherwise(said, expected):
    assert asked(fields(**said), deployment(TIERED)).may_be_in_geo is expected


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"service_tier": "priority"}, "service_tier"),
        ({"service_tier": "ultrafast"}, "service_tier"),
        ({"serviceTier": "PRIORITY"}, "serviceTier"),
        ({"service_tier": {"type": "priority"}}, "service_tier"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
    ],
)
def test_a_dearer_tier_that_has_no_price_is_not_bounded(said, field):
    assert asked(fields(**said), deployment(STANDARD)).unbounded == (field,)
    assert asked(fields(**said), deployment(fixed_price(1))) == Asked()


@pytest.mark.parametrize("word", ["flex", "scale", "batch"])
def test_a_tier_that_is_never_dearer_needs_no_price(word):
    assert asked(fields(service_tier=word), deployment(STANDARD)) == Asked()


def prepared(kind, dialect, body, price=STANDARD, *, is_lenient=False):
    provider = Provider(slug="p", api=kind, base_url="http://127.0.0.1")
    alias = Alias(name="demo", targets=(), is_lenient=is_lenient)
    subject = SimpleNamespace(registry=SimpleNamespace(snapshot=SimpleNamespace(aliases={"demo": alias})))
    call = dialect.describe(json.dumps(body).encode(), b"application/json", {})
    return prepare(Described("r", subject, call, {}), Upstream(deployment(price), provider, PROVIDERS[kind], []), 1)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_tier_without_a_price_is_refused_or_falls(kind):
    body = BODY | {"service_tier": "priority"}
    with pytest.raises(Unbounded) as refused:
        prepared(kind, CHAT, body)
    assert refused.value.param == "service_tier"
    ready = prepared(kind, CHAT, body, is_lenient=True)
    assert ready.dropped == ("service_tier",) and b"priority" not in ready.outgoing.body


def test_a_priced_tier_is_passed_on_and_its_rates_bound_it():
    dear = prepared("openai", CHAT, BODY | {"service_tier": "priority"}, TIERED)
    assert json.loads(dear.outgoing.body)["service_tier"] == "priority"
    rates = ceiling(TIERED, 10, service_tiers=dear.service_tiers, may_be_in_geo=dear.may_be_in_geo)
    assert hold_nanos(rates, 0, 1_000) == hold_nanos(TIERED.tiers["priority"], 0, 1_000)
    assert prepared("openai", CHAT, BODY).service_tiers == ()


# Answers

USAGE = {"prompt_tokens": 3, "completion_tokens": 4}


def test_chats_of_openai_say_it_beside_their_usage():
    whole = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": USAGE}
    assert (
        openai_chat.measure(json.dumps(whole | {"service_tier": "priority"}).encode()).usage.service_tier == "priority"
    )
    assert openai_chat.measure(json.dumps(whole | {"service_tier": "default"}).encode()).usage.service_tier == ""
    meter = openai_chat.ChatMeter(False)
    for chunk in ({"service_tier": "flex", "choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": USAGE}):
        meter.observe(Frame(raw=b"", event=b"", data=json.dumps(chunk).encode()))
    assert meter.usage_so_far.service_tier == "flex"


def test_responses_of_openai_say_it_of_the_response():
    body = {"id": "r", "service_tier": "priority", "output": [], "usage": {"input_tokens": 1, "output_tokens": 2}}
    assert openai_responses_answers.measure(json.dumps(body).encode()).usage.service_tier == "priority"


@pytest.mark.parametrize(
    ("said", "tier", "geo"),
    [
        ({"service_tier": "standard", "inference_geo": "global"}, "", ""),
        ({"service_tier": "standard", "speed": "fast", "inference_geo": "us"}, "fast", "us"),
        ({"service_tier": "batch", "inference_geo": "not_available"}, "batch", ""),
    ],
)
def test_anthropic_says_tier_speed_and_geography_within_its_usage(said, tier, geo):
    body = {"type": "message", "content": [], "usage": {"input_tokens": 1, "output_tokens": 2, **said}}
    usage = anthropic_answers.measure(json.dumps(body).encode()).usage
    assert (usage.service_tier, usage.inference_geo) == (tier, geo)


@pytest.mark.parametrize(
    ("said", "tier"),
    [
        ({"serviceTier": "priority"}, "priority"),
        ({"serviceTier": "standard"}, ""),
        ({"trafficType": "ON_DEMAND_FLEX"}, "flex"),
        ({"trafficType": "ON_DEMAND"}, ""),
    ],
)
def test_gemini_says_a_tier_and_vertex_a_kind_of_traffic(said, tier):
    body = {"usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2, **said}}
    assert gemini_answers.measure(json.dumps(body).encode()).usage.service_tier == tier


def test_a_dialect_that_names_its_tier_otherwise_is_read_too():
    body = {"contents": [{"parts": [{"text": "Hi"}]}], "serviceTier": "PRIORITY"}
    call = gemini.GENERATE.describe(json.dumps(body).encode(), b"application/json", {"model": "demo"})
    assert asked(call.fields, deployment(TIERED)).tiers == ("priority",)
    call = anthropic.MESSAGES.describe(json.dumps(BODY | {"speed": "fast"}).encode(), b"application/json", {})
    assert asked(call.fields, deployment(TIERED)).tiers == ("fast",)
    call = RESPONSES.describe(b'{"model":"demo","input":"Hi","service_tier":"flex"}', b"application/json", {})
    assert asked(call.fields, deployment(TIERED)).tiers == ("flex",)
