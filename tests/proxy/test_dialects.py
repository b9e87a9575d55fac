"""Every dialect in, every kind of provider out, through a running gateway: what clients see, what the ledger says."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from proxy.snapshot import Provider
from tests.stack import Stack, wait_until

# Each provider at the simulator: its API, where it is found there, what it must be told besides.
PROVIDERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "openai": ("openai", "/v1", {}),
    "azure": ("azure", "/azure", {"url_style": "deployments", "api_version": "2024-10-21"}),
    "anthropic": ("anthropic", "/anthropic/v1", {}),
    "gemini": ("gemini", "/gemini/v1beta", {}),
    "bedrock": ("bedrock", "/bedrock", {"region": "eu-central-1"}),
    "cohere": ("cohere", "/cohere", {}),
    "ollama": ("ollama", "/ollama", {}),
    "mistral": ("mistral", "/v1", {}),
}
PROMPT = "Say hello. [[simulate output_tokens=7 cached_tokens=2]]"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture
def every(make_stack: Callable[..., Stack]) -> Stack:
    """An alias for each provider, named as it; and `lenient-…`, which lets fall what cannot be carried."""
    stack = make_stack()
    control = stack.control
    for slug, (api, path, options) in PROVIDERS.items():
        control.providers[slug] = Provider(
            slug=slug, api=api, base_url=control.upstream_url + path, options=options, output_cap_field="max_tokens"
        )
        # The simulator has the ways of whom a model's name begins with.
        control.add_deployment(f"at-{slug}", provider=slug, upstream_model=f"{slug}-sim")
        control.add_alias(slug, f"at-{slug}")
        control.add_alias(f"lenient-{slug}", f"at-{slug}")
        control.aliases[f"lenient-{slug}"] = msgspec.structs.replace(
            control.aliases[f"lenient-{slug}"], is_lenient=True
        )
    stack.wait_for_version(control.publish())
    return stack


class Client:
    """What an application of each dialect sends, and where its answer, its tokens and its errors stand."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def ask(
        self, dialect: str, model: str, prompt: str = PROMPT, *, stream: bool = False, **more: Any
    ) -> httpx.Response:
        match dialect:
            case "openai.chat":
                path, body = (
                    "/v1/chat/completions",
                    {"messages": [{"role": "user", "content": prompt}], "max_tokens": 50},
                )
            case "openai.responses":
                path, body = "/v1/responses", {"input": prompt, "max_output_tokens": 50}
            case "anthropic":
                path, body = "/v1/messages", {"messages": [{"role": "user", "content": prompt}], "max_tokens": 50}
            case "cohere":
                path, body = "/v2/chat", {"messages": [{"role": "user", "content": prompt}], "max_tokens": 50}
            case _:
                method = "streamGenerateContent?alt=sse" if stream else "generateContent"
                body = {
                    "contents": [{"role": "user", "parts": [{"text": prompt}]}],
                    "generationConfig": {"maxOutputTokens": 50},
                }
                return self._client.post(f"/v1beta/models/{model}:{method}", json={**body, **more})
        if stream and dialect == "openai.chat":
            more = {"stream_options": {"include_usage": True}, **more}
        return self._client.post(path, json={"model": model, **body, **({"stream": True} if stream else {}), **more})


@pytest.fixture
def client(every: Stack) -> Iterator[Client]:
    with every.client(every.control.issue_key()) as client:
        yield Client(client)


def _events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line[5:].strip() for line in response.text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line and line != "[DONE]"]


def _told(dialect: str, response: httpx.Response, *, stream: bool) -> tuple[str, int, int]:
    """(text, input tokens, output tokens) as the dialect's own clients read them."""
    events = _events(response) if stream else [response.json()]
    match dialect:
        case "openai.chat":
            key = "delta" if stream else "message"
            text = "".join(c[key].get("content") or "" for e in events for c in e["choices"])
            usage = events[-1]["usage"]
            return text, usage["prompt_tokens"], usage["completion_tokens"]
        case "openai.responses":
            answer = events[-1]["response"] if stream else events[0]
            text = "".join(part["text"] for item in answer["output"] for part in item["content"])
            return text, answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]
        case "anthropic":
            if stream:
                text = "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")
                usage = {
                    **events[0]["message"]["usage"],
                    **next(e for e in events if e["type"] == "message_delta")["usage"],
                }
            else:
                text, usage = "".join(block["text"] for block in events[0]["content"]), events[0]["usage"]
            cached = usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
            return text, usage["input_tokens"] + cached, usage["output_tokens"]
        case "cohere":
            if stream:
                deltas = [e["delta"]["message"] for e in events if e["type"] == "content-delta"]
                text = "".join(delta["content"]["text"] for delta in deltas)
                usage = events[-1]["delta"]["usage"]
            else:
                text = "".join(block["text"] for block in events[0]["message"]["content"])
                usage = events[0]["usage"]
            return text, usage["billed_units"]["input_tokens"], usage["billed_units"]["output_tokens"]
        case _:
            text = "".join(p["text"] for e in events for p in e["candidates"][0]["content"].get("parts", []))
            usage = events[-1]["usageMetadata"]
            return text, usage["promptTokenCount"], usage["candidatesTokenCount"]


DIALECTS = ("openai.chat", "openai.responses", "anthropic", "gemini", "cohere")


def test_every_dialect_is_answered_by_every_provider_and_the_ledger_says_what_the_client_saw(
    every: Stack, client: Client
) -> None:
    words = None
    wanted = []
    for slug in PROVIDERS:
        for dialect in DIALECTS:
            for stream in (False, True):
                case = f"{dialect} → {slug}{' streamed' if stream else ''}"
                response = client.ask(dialect, slug, stream=stream)
                assert response.status_code == 200, (case, response.text)
                text, input_tokens, output_tokens = _told(dialect, response, stream=stream)
                words = words or text
                assert text == words, case
                assert output_tokens == 7, case
                wanted.append((case, input_tokens, output_tokens))
    wait_until(lambda: len(every.control.events()) >= len(wanted), "the ledger")
    for (case, input_tokens, output_tokens), event in zip(wanted, every.control.events(), strict=True):
        usage = event["usage"]
        assert (event.get("state", "posted"), event["usage_source"]) == ("posted", "provider"), case
        assert (usage["input_tokens"], usage["output_tokens"]) == (input_tokens, output_tokens), (case, usage)
    assert every.control.holds() == 0


def test_what_cannot_be_carried_is_refused_by_its_name_and_costs_nothing(every: Stack, client: Client) -> None:
    response = client.ask("openai.chat", "anthropic", logit_bias={"50": 1}, prediction={"type": "content"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "unsupported_parameter"
    assert sorted(error["unsupported"]) == ["logit_bias", "prediction"]
    assert every.control.events() == []


def test_a_lenient_alias_lets_it_fall_and_says_so(client: Client) -> None:
    for stream in (False, True):
        response = client.ask("openai.chat", "lenient-anthropic", stream=stream, logit_bias={"50": 1}, seed=4)
        assert response.status_code == 200, response.text
        assert response.headers["x-tollgate-dropped"] == "seed, logit_bias"
    assert "x-tollgate-dropped" not in client.ask("openai.chat", "lenient-openai", seed=4).headers


@pytest.mark.parametrize("slug", PROVIDERS)
def test_a_providers_refusal_keeps_its_class_in_every_dialect(every: Stack, client: Client, slug: str) -> None:
    # A deployment for each: one whose provider said to come again in seven seconds is not asked before.
    for dialect in DIALECTS:
        every.control.add_deployment(f"{slug}-{dialect}", provider=slug, upstream_model=f"{slug}-sim")
        every.control.add_alias(f"{slug}-{dialect}", f"{slug}-{dialect}")
    every.wait_for_version(every.control.publish())
    for status_code in (400, 404, 503, 429):
        for dialect in DIALECTS:
            prompt = f"[[simulate error={status_code} retry_after_s=7]]"
            response = client.ask(dialect, f"{slug}-{dialect}", prompt)
            case = (dialect, status_code, response.status_code, response.text)
            assert response.status_code == (status_code if status_code < 500 else 502), case
            error = response.json()
            if status_code in (429, 503) and response.headers.get("retry-after") is not None:
                assert response.headers["retry-after"] == "7", case
            # Each dialect's own place for the message.
            message = error["message"] if dialect == "cohere" and "message" in error else error.get("error", error)
            assert message, case


def test_an_error_inside_a_stream_is_told_in_the_clients_dialect(every: Stack, client: Client) -> None:
    prompt = "[[simulate error_event after_tokens=3]]"
    for slug in PROVIDERS:
        for dialect in DIALECTS:
            response = client.ask(dialect, slug, prompt, stream=True)
            assert response.status_code == 200
            assert "error" in response.text.lower(), (dialect, slug, response.text)
    wait_until(lambda: len(every.control.events()) >= len(PROVIDERS) * len(DIALECTS), "the ledger")
    assert every.control.holds() == 0
    for event in every.control.events():
        assert event["error_type"], event
        assert event["usage"].get("output_tokens", 0) >= 1, (event["provider"], event["usage"], event["error_type"])


def test_a_tool_is_called_and_its_result_taken_across_every_border(every: Stack, client: Client) -> None:
    prompt = '[[simulate tool=weather args={"city":"Bern"}]]'
    tools = [{"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": SCHEMA}}]
    for slug in PROVIDERS:
        response = client.ask("openai.chat", slug, prompt, tools=tools)
        assert response.status_code == 200, (slug, response.text)
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls", slug
        (call,) = choice["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Bern"})
        messages = [
            {"role": "user", "content": "How is it in Bern?"},
            choice["message"],
            {"role": "tool", "tool_call_id": call["id"], "content": "12 degrees"},
        ]
        for message in messages:
            message.pop("reasoning_content", None)  # type: ignore[attr-defined]
        again = client.ask("openai.chat", slug, tools=tools, messages=messages)
        assert again.status_code == 200, (slug, again.text)
        assert again.json()["choices"][0]["message"]["content"], slug


def test_the_next_deployment_may_speak_another_dialect(every: Stack, client: Client) -> None:
    control = every.control
    control.add_deployment("failing", provider="openai", upstream_model="sim?error=503")
    control.add_alias("mixed", "failing", "at-anthropic", "at-gemini")
    every.wait_for_version(control.publish())
    response = client.ask("openai.chat", "mixed")
    assert response.status_code == 200
    assert response.headers["x-tollgate-deployment"] == "at-anthropic"
    # What the second cannot carry goes to nobody, and the first one's failure is told.
    refused = client.ask("openai.chat", "mixed", logit_bias={"5": 1})
    assert refused.status_code == 502


def test_a_count_of_tokens_is_free_and_recorded(every: Stack) -> None:
    body = {"model": "anthropic", "messages": [{"role": "user", "content": "How many?"}]}
    with every.client(every.control.issue_key()) as client:
        response = client.post("/v1/messages/count_tokens", json=body)
    assert response.json()["input_tokens"] > 0
    wait_until(lambda: len(every.control.events()) == 1, "the ledger")
    (event,) = every.control.events()
    assert (event["operation"], event.get("cost_nanos", 0)) == ("count_tokens", 0)


@pytest.mark.parametrize("api", ["llamacpp", "vllm"])
def test_servers_of_open_models_answer_anthropics_clients_themselves(every: Stack, api: str) -> None:
    for name, path in (("server", "/anthropic/v1"), ("older", "/v1")):
        every.control.providers[name] = Provider(slug=name, api=api, base_url=every.control.upstream_url + path)
        every.control.add_deployment(name, provider=name, operations=("chat", "count_tokens"))
        every.control.add_alias(name, name)
    every.wait_for_version(every.control.publish())
    asked = {"max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}], "thinking": {"type": "disabled"}}
    with every.client(every.control.issue_key()) as client:
        answer = client.post("/v1/messages", json={"model": "server", **asked})
        assert (answer.status_code, answer.json()["usage"]["output_tokens"]) == (200, 7)
        counted = client.post("/v1/messages/count_tokens", json={"model": "server", "messages": asked["messages"]})
        assert counted.json()["input_tokens"] > 0
        # Without that path it says so as OpenAI does.
        refused = client.post("/v1/messages", json={"model": "older", **asked})
    assert (refused.status_code, refused.json()["type"], refused.json()["error"]["type"]) == (
        404, "error", "not_found_error",
    )  # fmt: skip


def test_what_passes_through_is_held_and_charged_at_the_fixed_amount(every: Stack) -> None:
    control = every.control
    with every.client(control.issue_key(passthrough=("openai",))) as client:
        body = {"model": "anything", "messages": [{"role": "user", "content": "x"}]}
        assert client.post("/passthrough/openai/chat/completions", json=body).status_code == 403  # No amount is set.
        control.providers["openai"] = msgspec.structs.replace(control.providers["openai"], passthrough_hold_nanos=5_000)
        every.wait_for_version(control.publish())
        answered = client.post("/passthrough/openai/chat/completions", json=body)
        assert answered.status_code == 200, answered.text
        assert answered.headers["x-tollgate-cost-usd"] == "0.000005000"
        assert client.get("/passthrough/openai/models").status_code == 200
        assert client.post("/passthrough/gemini/models/m:generateContent", json={}).status_code == 403
        stream = client.post("/passthrough/openai/chat/completions", json={**body, "stream": True})
        assert stream.text.endswith("data: [DONE]\n\n")
        wait_until(lambda: len(control.events()) == 3, "the ledger")
        assert [(e["operation"], e.get("cost_nanos", 0)) for e in control.events()] == [
            ("passthrough", 5_000),
            ("passthrough", 0),
            ("passthrough", 5_000),
        ]
        control.throw("provider", "openai")
        wait_until(lambda: client.get("/passthrough/openai/models").status_code == 403, "the kill switch")
