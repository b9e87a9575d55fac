"""What providers say of their own rate limits is read, shared between workers, and kept to."""

import json
import math
from collections.abc import Callable, Iterator

import httpx
import pytest

from keys.vault import parse_master_keys, seal
from proxy.headroom import CHANNEL, WAIT_S_MAX, Headroom, Left, parse_wait_s, read, retry_after_s
from proxy.snapshot import Credential
from tests.recordings import corpus
from tests.stack import VAULT_KEY, Simulator, Stack, chat, wait_until

NOW_S = 1_760_000_000.0
CHAT = "/v1/chat/completions"
WORKERS = 4


@pytest.fixture
def simulate(simulator: Simulator) -> Iterator[Callable[..., None]]:
    """What the provider does with every request from here on."""
    with httpx.Client(base_url=simulator.url) as control:
        yield lambda **directives: control.post("/_control", json=directives).raise_for_status()
        control.delete("/_control")


def _wait_for_all_workers(stack: Stack) -> None:
    """Whoever hears of nothing yet learns it by a call of its own."""
    wait_until(lambda: stack.control.redis.pubsub_numsub(CHANNEL) == [(CHANNEL.encode(), WORKERS)], "all workers")


def _calls(stack: Stack, since: int = 0) -> list[dict]:
    return [entry for entry in stack.simulator.entries()[since:] if entry["event"] == "received"]


def _error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def _post(stack: Stack, secret: str, body: dict | None = None, path: str = CHAT) -> httpx.Response:
    with stack.client(secret) as client:  # A connection of its own: any worker may take it.
        return client.post(path, json=body or chat())


# Reading


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0),
        (b"1.5", 1.5),
        (b"12ms", 0.012),
        (b"6m0s", 360),
        (b"14m24s", 864),
        (b"7.66s", 7.66),
        (b"1h0m1s", 3601),
        (b"1760000007", 7),
        (b"1760000007500", 7.5),
        (b"2025-10-09T08:53:27Z", 7),
        (b"2025-10-09T08:53:13Z", 0),
        (b"Thu, 09 Oct 2025 08:53:27 GMT", 7),
        (b"", None),
        (b"soon", None),
        (b"-1", None),
        (b"nan", None),
        (b"9" * 400, None),
    ],
)
def test_a_wait_is_read_however_it_is_written(value, seconds):
    assert parse_wait_s(value, NOW_S) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "left"),
    [
        (  # OpenAI's own example: one request of sixty a minute is back after a second.
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
            },
            Left("requests", 59, 60, 1, 1),
        ),
        (
            {
                "x-ratelimit-limit-tokens": "12000",
                "x-ratelimit-remaining-tokens": "11994",
                "x-ratelimit-reset-tokens": "30ms",
            },
            Left("tokens", 11994, 12000, 0.03, pytest.approx(200)),
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2025-10-09T08:54:20Z",
            },
            Left("requests", 0, 50, 60, pytest.approx(50 / 60)),
        ),
        (
            {
                "anthropic-ratelimit-input-tokens-limit": "40000",
                "anthropic-ratelimit-input-tokens-remaining": "39000",
                "anthropic-ratelimit-input-tokens-reset": "2025-10-09T08:53:25Z",
            },
            Left("tokens", 39000, 40000, 5, 200),
        ),
        (
            {
                "anthropic-ratelimit-output-tokens-limit": "8000",
                "anthropic-ratelimit-output-tokens-remaining": "0",
                "anthropic-ratelimit-output-tokens-reset": "2025-10-09T08:54:20Z",
            },
            Left("output_tokens", 0, 8000, 60, pytest.approx(8000 / 60)),
        ),
        (
            {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-remaining-req-minute": "3"},
            Left("requests", 3, 60, None),
        ),
        ({"ratelimitbysize-remaining": "307190", "ratelimitbysize-reset": "46"}, Left("tokens", 307190, None, 46)),
        ({"x-ratelimit-limit": "2", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}, Left("requests", 0, 2, 1)),
        ({"x-ratelimit-remaining-requests": "scrubbed"}, None),
        ({"x-ratelimit-remaining-requests": "-1"}, None),
        ({"x-ratelimit-limit-requests": "60"}, None),
    ],
)
def test_what_is_left_is_read_from_each_providers_headers(headers, left):
    found = read({name.encode(): value.encode() for name, value in headers.items()}, NOW_S)
    assert found == ([] if left is None else [left])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({b"retry-after": b"39"}, 39), ({b"retry-after": b"2", b"retry-after-ms": b"1250"}, 1.25), ({}, 0)],
)
def test_a_refusal_says_when_to_come_again(headers, seconds):
    assert retry_after_s(headers, NOW_S) == seconds


# The rule


@pytest.mark.parametrize(
    ("left", "tokens", "age_s", "wait_s"),
    [
        (Left("requests", 1, 60, 10), 0, 0, 0),
        (Left("requests", 0, 60, 10), 0, 0, 10),
        (Left("requests", 0, 60, 10), 0, 4, 6),
        (Left("requests", 0, 60, 10), 0, 10, 0),
        (Left("requests", 0, 60, 60, per_s=1), 0, 0, 1),
        (Left("requests", 0, 60, 60, per_s=1), 0, 0.75, 0.25),
        (Left("requests", 0, 60, 60, per_s=1), 0, 1, 0),
        (Left("requests", 0, None, None), 0, 0, 5),
        (Left("requests", 0, 1000, 86_400), 0, 0, WAIT_S_MAX),
        (Left("tokens", 500, 10_000, 30), 600, 0, 30),
        (Left("tokens", 500, 10_000, 30), 400, 0, 0),
        # How long an answer gets nobody knows: surely a token.
        (Left("output_tokens", 1, 8_000, 30), 100_000, 0, 0),
        (Left("output_tokens", 0, 8_000, 30), 0, 0, 30),
        (Left("output_tokens", 0, 8_000, 60, per_s=8_000 / 60), 100_000, 0, 60 / 8_000),
        (Left("tokens", 500, 1_000, 30), 1_000_000, 0, 0),  # More than ever fits is the provider's to refuse.
    ],
)
def test_a_deployment_waits_until_its_provider_has_room(left, tokens, age_s, wait_s):
    room = Headroom()
    room.see([left], at_s=100)
    assert room.wait_s(tokens, 100 + age_s) == pytest.approx(wait_s)


def test_requests_of_this_worker_count_until_the_provider_speaks_again():
    room = Headroom()
    room.see([Left("requests", 2, 60, 10)], at_s=100)
    room.take(tokens=0)
    assert room.wait_s(0, 100) == 0
    room.take(tokens=0)
    assert room.wait_s(0, 100) == 10
    room.see([Left("requests", 1, 60, 10)], at_s=101)
    assert room.wait_s(0, 101) == 0


def test_each_request_of_this_worker_makes_at_least_a_token():
    room = Headroom()
    room.see([Left("output_tokens", 2, 8_000, 10)], at_s=100)
    for _ in range(2):
        assert room.wait_s(100_000, 100) == 0
        room.take(tokens=100_000)
    assert room.wait_s(0, 100) == 10


# Through running workers


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_what_one_worker_hears_all_of_them_keep_to_until_the_reset(make_stack, simulate, api):
    stack = make_stack(workers=WORKERS)
    if api == "anthropic":
        known = stack.control.providers["sim"]
        stack.control.providers["sim"] = known.__class__(
            slug="sim", api=api, base_url=f"{stack.simulator.url}/anthropic/v1"
        )
        stack.wait_for_version(stack.control.publish())
    secret, since = stack.control.issue_key(), len(stack.simulator.entries())
    _wait_for_all_workers(stack)
    simulate(requests_left=0, limit_reset_s=4)
    # One client, as quick as can be, with a connection for each call: all are made before the reset.
    with stack.client(secret, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        answers = [client.post(CHAT, json=chat()) for _ in range(40)]
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(served) + len(refused) == len(answers)
    assert len(served) == len(_calls(stack, since)) <= WORKERS
    assert {answer.json()["error"]["code"] for answer in refused} == {"provider_limit_reached"}
    assert {int(answer.headers["retry-after"]) for answer in refused} <= set(range(1, 5))
    simulate(requests_left=None)
    wait_until(lambda: _post(stack, secret).status_code == 200, "the reset")
    assert len(_calls(stack, since)) == len(served) + 1


def test_a_refusals_retry_after_is_kept_to_by_all_workers(make_stack):
    stack = make_stack(workers=WORKERS)
    secret, since = stack.control.issue_key(), len(stack.simulator.entries())
    _wait_for_all_workers(stack)
    refused = _post(stack, secret, chat(content="[[simulate error=429,retry_after_s=30]]"))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    answers = [_post(stack, secret) for _ in range(20)]
    assert len(_calls(stack, since)) <= WORKERS
    assert _error(answers[-1]) == (429, "provider_limit_reached")
    assert 0 < int(answers[-1].headers["retry-after"]) <= 30


def test_a_route_goes_past_a_deployment_without_headroom(stack, simulate):
    stack.control.add_deployment("sim-other", upstream_model="sim-other")
    stack.control.add_alias("demo", "sim-fast", "sim-other")
    stack.wait_for_version(stack.control.publish())
    secret, since = stack.control.issue_key(), len(stack.simulator.entries())
    _post(stack, secret, chat(content="[[simulate requests_left=0]]"))
    answer = _post(stack, secret)
    assert (answer.status_code, answer.headers["x-tollgate-deployment"]) == (200, "sim-other")
    assert [call["model"] for call in _calls(stack, since)] == ["sim-fast", "sim-other"]
    wait_until(lambda: len(stack.control.events()) == 2, "the usage events")
    reasons = {candidate["deployment"]: candidate["reason"] for candidate in stack.control.events()[1]["route"]}
    assert reasons == {"sim-other": "position 1", "sim-fast": "no headroom"}


def test_of_several_credentials_one_with_headroom_is_used(stack):
    keys = parse_master_keys(VAULT_KEY)
    pool = tuple(Credential(credential_id=name, sealed=seal(f"sk-{name}", name, keys)) for name in ("one", "two"))
    stack.control.add_deployment("sim-fast", credentials=pool)
    stack.wait_for_version(stack.control.publish())
    secret, since = stack.control.issue_key(), len(stack.simulator.entries())
    _post(stack, secret, chat(content="[[simulate requests_left=0]]"))
    assert [_post(stack, secret).status_code for _ in range(4)] == [200] * 4
    first, *others = (call["key_digest"] for call in _calls(stack, since))
    assert len(set(others)) == 1
    assert first not in others


# What was recorded of real providers


@pytest.mark.skipif(not corpus.DIRECTORY.is_dir(), reason=corpus.ABSENT)
@pytest.mark.parametrize(
    "provider", ["openai", "anthropic", "azure", "groq", "mistral", "xai", "together", "huggingface"]
)
def test_the_headers_of_real_providers_are_understood(provider):
    told = []
    for path in (corpus.DIRECTORY / provider).rglob("*.json"):
        headers = json.loads(path.read_text())["response"]["headers"]
        told += read({name.encode(): value.encode() for name, value in headers}, NOW_S)
    assert told
    assert all(left.remaining >= 0 and math.isfinite(left.per_s) for left in told)
    assert any(left.unit == "output_tokens" for left in told) == (provider == "anthropic")
