"""Vertex AI: where its models are called, how embeddings are asked for, and how a service account's key is exchanged."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from audit.records import Usage
from proxy.dialects.anthropic import COUNT_TOKENS as ANTHROPIC_COUNT_TOKENS
from proxy.dialects.anthropic import MESSAGES
from proxy.dialects.gemini import COUNT_TOKENS, EMBED, GENERATE, STREAM
from proxy.neutral import Embedding, Media, Message, Prompt, Text
from proxy.providers import vertex
from proxy.providers.provider import Api, Outgoing
from proxy.snapshot import Deployment, Provider

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
PROVIDER = Provider(
    slug="v",
    api="vertex",
    base_url="https://us-east5-aiplatform.googleapis.com/v1",
    options={"project": "p1", "location": "us-east5"},
)
HELLO = b'{"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}'
MODELS = b"/projects/p1/locations/us-east5/publishers/google/models/"
NOW_S = 1_700_000_000.0


def _deployment(model: str) -> Deployment:
    return Deployment(deployment_id="d", name="d", provider="v", model="m", upstream_model=model, max_output_tokens=777)


GEMINI = _deployment("gemini-2.5-flash")


def _api(name: str, model: str) -> Api:
    """As the registry chooses it."""
    return next(api for api in vertex.PROVIDER.apis if api.name == name and api.serves(_deployment(model), PROVIDER))


def _call(method: str = "generateContent", query: str = ""):
    return GENERATE.describe(HELLO, b"", {"model": "demo", "method": method, "query": query})


def _ask(**parameters: Any) -> Prompt:
    return Prompt(messages=[Message(role="user", parts=[Text(text="Hello")])], **parameters)


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("gemini-2.5-flash", MODELS + b"gemini-2.5-flash"),
        ("publishers/google/models/gemini-x", MODELS + b"gemini-x"),
        ("projects/9/locations/eu/endpoints/5", b"/projects/9/locations/eu/endpoints/5"),
    ],
)
def test_a_model_is_called_in_its_project_and_location(model, target):
    api = _api("gemini.generate", model)
    outgoing = api.pass_request(_call(), _deployment(model), PROVIDER)
    assert outgoing.target == target + b":generateContent"
    stream = STREAM.describe(HELLO, b"", {"model": "demo", "query": "alt=sse"})
    assert api.pass_request(stream, _deployment(model), PROVIDER).target == target + b":streamGenerateContent?alt=sse"


def test_a_body_that_names_the_model_names_the_same():
    body = b'{"model": "models/demo", "contents": []}'
    call = GENERATE.describe(body, b"", {"model": "demo", "method": "generateContent"})
    outgoing = _api("gemini.generate", "gemini-x").pass_request(call, _deployment("gemini-x"), PROVIDER)
    assert json.loads(outgoing.body)["model"] == (MODELS + b"gemini-x").decode()[1:]


def test_metadata_are_labels_where_they_can_be():
    api = _api("gemini.generate", "gemini-2.5-flash")
    lost: list[str] = []
    outgoing = api.write_request(_ask(metadata={"team": "a-1"}), _call(), GEMINI, PROVIDER, lost)
    assert (json.loads(outgoing.body)["labels"], lost) == ({"team": "a-1"}, [])
    outgoing = api.write_request(_ask(metadata={"Team": "a b"}), _call(), GEMINI, PROVIDER, lost)
    assert ("labels" in json.loads(outgoing.body), lost) == (False, ["metadata"])


def test_a_service_tier_is_asked_for_in_a_header():
    lost: list[str] = []
    api = _api("gemini.generate", "gemini-2.5-flash")
    outgoing = api.write_request(_ask(service_tier="flex"), _call(), GEMINI, PROVIDER, lost)
    assert (outgoing.headers, lost) == (((b"x-vertex-ai-llm-shared-request-type", b"flex"),), [])
    assert "serviceTier" not in json.loads(outgoing.body)


def test_what_is_to_be_counted_stands_at_the_top():
    body = b'{"generateContentRequest": {"model": "models/demo", "contents": [1.0]}}'
    call = COUNT_TOKENS.describe(body, b"", {"model": "demo"})
    outgoing = _api("gemini.count_tokens", "gemini-x").pass_request(call, _deployment("gemini-x"), PROVIDER)
    assert outgoing.target == MODELS + b"gemini-x:countTokens"
    assert json.loads(outgoing.body) == {"model": (MODELS + b"gemini-x").decode()[1:], "contents": [1.0]}


# Embeddings


def _embed_call():
    return EMBED.describe(b'{"content": {"parts": [{"text": "a"}]}}', b"", {"model": "demo"})


def test_texts_are_embedded_by_predictions():
    api = _api("vertex.predict", "text-embedding-005")
    lost: list[str] = []
    prompt = Embedding(inputs=["a", "b", [1, 2]], task="query", title="t", dimensions=3)
    outgoing = api.write_request(prompt, _embed_call(), _deployment("text-embedding-005"), PROVIDER, lost)
    assert outgoing.target == MODELS + b"text-embedding-005:predict"
    assert lost == ["input"]
    options = {"task_type": "RETRIEVAL_QUERY", "title": "t"}
    assert json.loads(outgoing.body) == {
        "instances": [{"content": "a", **options}, {"content": "b", **options}],
        "parameters": {"autoTruncate": False, "outputDimensionality": 3},
    }


def test_predictions_are_read():
    body = json.dumps(
        {
            "predictions": [
                {"embeddings": {"values": [1, 2], "statistics": {"token_count": 4, "truncated": False}}},
                {"embeddings": {"values": [3, 4], "statistics": {"token_count": 5.0}}},
            ]
        }
    ).encode()
    api = _api("vertex.predict", "text-embedding-005")
    answer = api.read_answer(body)
    assert (answer.vectors, answer.usage) == ([[1, 2], [3, 4]], Usage(input_tokens=9))
    assert api.measure(body).usage == Usage(input_tokens=9)
    with pytest.raises(msgspec.DecodeError):
        api.read_answer(b'{"error": {"code": 400}}')


def test_later_models_embed_one_content_at_a_time():
    model = "gemini-embedding-2"
    api = _api("vertex.embed_content", model)
    lost: list[str] = []
    image = Media(kind="image", data="AA==", media_type="image/png")
    outgoing = api.write_request(Embedding(inputs=[image]), _embed_call(), _deployment(model), PROVIDER, lost)
    assert outgoing.target == MODELS + b"gemini-embedding-2:embedContent"
    parts = [{"inlineData": {"mimeType": "image/png", "data": "AA=="}}]
    assert (json.loads(outgoing.body), lost) == ({"content": {"parts": parts}}, [])
    api.write_request(Embedding(inputs=["a", "b"]), _embed_call(), _deployment(model), PROVIDER, lost)
    assert lost == ["input"]
    assert api.read_answer(b'{"embedding": {"values": [1]}}').vectors == [[1.0]]


@pytest.mark.parametrize(
    ("model", "name"),
    [("text-embedding-005", "vertex.predict"), ("gemini-embedding-001", "vertex.predict"),
     ("gemini-embedding-2-preview", "vertex.embed_content")],
)  # fmt: skip
def test_each_embedding_model_is_called_its_own_way(model, name):
    serving = [
        api.name
        for api in vertex.PROVIDER.apis
        if api.capability == "embeddings" and api.serves(_deployment(model), PROVIDER)
    ]
    assert serving == [name]


@pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings of real traffic are not here")
def test_a_recorded_prediction_is_read():
    recording = json.loads((RECORDINGS / "vertex" / "vertex-predict-plain-935f93.json").read_text())
    answer = _api("vertex.predict", "text-embedding-004").read_answer(recording["response"]["body_text"].encode())
    assert (len(answer.vectors[0]), answer.usage) == (768, Usage(input_tokens=10))


# Claude

CLAUDE = _deployment("claude-sonnet-4-5@20250929")
ANTHROPIC_MODELS = b"/projects/p1/locations/us-east5/publishers/anthropic/models/"
ASKED = (
    b'{"model": "demo", "stream": true, "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}], "x": 1.0}'
)


def _claude_call(body: bytes = ASKED):
    return MESSAGES.describe(body, b"", {})


@pytest.mark.parametrize(("is_stream", "method"), [(True, b"streamRawPredict"), (False, b"rawPredict")])
def test_claude_is_called_with_the_model_in_the_path(is_stream, method):
    api = _api("anthropic.messages", CLAUDE.upstream_model)
    body = ASKED if is_stream else ASKED.replace(b"true", b"false")
    outgoing = api.pass_request(_claude_call(body), CLAUDE, PROVIDER)
    assert outgoing.target == ANTHROPIC_MODELS + b"claude-sonnet-4-5@20250929:" + method
    assert not any(name == b"anthropic-version" for name, _ in outgoing.headers)
    sent = json.loads(outgoing.body)
    assert sent.get("stream", False) is is_stream
    assert (sent["anthropic_version"], "model" in sent, b'"x":1.0' in outgoing.body) == (
        "vertex-2023-10-16",
        False,
        True,
    )


def test_claude_is_called_from_other_dialects():
    api = _api("anthropic.messages", CLAUDE.upstream_model)
    lost: list[str] = []
    outgoing = api.write_request(_ask(), _call("streamGenerateContent", "alt=sse"), CLAUDE, PROVIDER, lost)
    sent = json.loads(outgoing.body)
    assert (sent["stream"], sent["anthropic_version"], sent["max_tokens"], lost) == (True, "vertex-2023-10-16", 777, [])
    assert outgoing.target.endswith(b":streamRawPredict")


def test_claudes_tokens_are_counted_on_one_path():
    call = ANTHROPIC_COUNT_TOKENS.describe(b'{"model": "demo", "messages": []}', b"", {})
    outgoing = _api("anthropic.count_tokens", CLAUDE.upstream_model).pass_request(call, CLAUDE, PROVIDER)
    assert outgoing.target == ANTHROPIC_MODELS + b"count-tokens:rawPredict"
    sent = json.loads(outgoing.body)
    assert sent == {"model": CLAUDE.upstream_model, "messages": [], "anthropic_version": "vertex-2023-10-16"}


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "claude-sonnet-4-5@20250929"])
def test_the_models_name_decides_whose_api_it_is(model):
    chats = [
        api.name
        for api in vertex.PROVIDER.apis
        if api.capability == "chat" and api.serves(_deployment(model), PROVIDER)
    ]
    maker = "anthropic.messages" if "claude" in model else "gemini.generate"
    assert chats[0] == maker


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        (
            b'{"type": "error", "error": {"type": "invalid_request_error", "message": "bad"}}',
            "bad",
            "invalid_request_error",
        ),
        (
            b'[{"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}}]',
            "quota",
            "RESOURCE_EXHAUSTED",
        ),
    ],
)
def test_errors_come_from_anthropic_or_from_google(body, message, kind):
    error = _api("anthropic.messages", CLAUDE.upstream_model).read_error(429, body)
    assert (error.message, error.kind) == (message, kind)


@pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings of real traffic are not here")
def test_recorded_answers_of_claude_are_read():
    api = _api("anthropic.messages", CLAUDE.upstream_model)
    recording = json.loads((RECORDINGS / "vertex" / "vertex-messages-tools-45a7e7.json").read_text())
    answer = api.read_answer(recording["response"]["body_text"].encode())
    assert answer.usage == Usage(input_tokens=394, output_tokens=68)
    recording = json.loads((RECORDINGS / "vertex" / "vertex-messages-stream-tools-13e6e9.json").read_text())
    meter, parser = api.stream_meter(_claude_call()), api.frame_parser(_claude_call())
    for frame in parser.feed(base64.b64decode(recording["response"]["body_base64"])):
        meter.observe(frame)
    assert meter.has_ended
    assert meter.usage is not None
    assert meter.usage.input_tokens == 394


# Credentials


@pytest.fixture(scope="module")
def private_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def secret(private_key):
    pem = private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "client_email": "tollgate@p1.iam.gserviceaccount.com",
            "private_key": pem.decode(),
            "private_key_id": "k1",
            "token_uri": "https://evil.example/token",
        }
    )


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_service_account_signs_for_a_token(private_key, secret):
    authorizer = vertex.authorize(secret, PROVIDER)
    wanted = authorizer.token_request(NOW_S)
    assert wanted is not None
    base_url, outgoing = wanted
    assert (base_url, outgoing.target) == ("https://oauth2.googleapis.com", b"/token")
    assert outgoing.content_type == b"application/x-www-form-urlencoded"
    form = {name: values[0] for name, values in parse_qs(outgoing.body.decode()).items()}
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    signed, _, signature = form["assertion"].rpartition(".")
    private_key.public_key().verify(_unpadded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    header, claims = (json.loads(_unpadded(part)) for part in signed.split("."))
    assert header == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
    assert claims == {
        "iss": "tollgate@p1.iam.gserviceaccount.com",
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": "https://oauth2.googleapis.com/token",
        "iat": 1_700_000_000,
        "exp": 1_700_003_600,
    }


def test_a_token_is_kept_until_five_minutes_before_it_expires(secret):
    authorizer = vertex.authorize(secret, PROVIDER)
    authorizer.token_answered(200, b'{"access_token": "ya29.t", "expires_in": 3599, "token_type": "Bearer"}', NOW_S)
    assert authorizer.headers(Outgoing(b"/", b""), "x", b"/", NOW_S) == [(b"authorization", b"Bearer ya29.t")]
    assert list(authorizer.secrets) == [b"ya29.t"]
    assert authorizer.token_request(NOW_S + 3598 - 300) is None
    assert authorizer.token_request(NOW_S + 3600 - 300) is not None


def test_a_token_comes_from_where_the_provider_says_and_never_from_the_secret(secret):
    elsewhere = msgspec.structs.replace(
        PROVIDER, options={**PROVIDER.options, "token_url": "http://127.0.0.1:9/oauth/token"}
    )
    wanted = vertex.authorize(secret, elsewhere).token_request(NOW_S)
    assert wanted is not None
    assert (wanted[0], wanted[1].target) == ("http://127.0.0.1:9", b"/oauth/token")
    assert b"evil" not in wanted[1].body


@pytest.mark.parametrize(
    ("status_code", "body"),
    [
        (400, b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}'),
        (200, b'{"id_token": "x"}'),
        (200, b'{"access_token": "a\\r\\nx: y"}'),
        (200, b"<html>"),
    ],
)
def test_an_answer_without_a_token_is_an_error(secret, status_code, body):
    with pytest.raises(ValueError, match="no access token"):
        vertex.authorize(secret, PROVIDER).token_answered(status_code, body, NOW_S)


@pytest.mark.parametrize(
    ("credential", "header"),
    [
        ("AIzaSyKey", (b"x-goog-api-key", b"AIzaSyKey")),
        ("AQ.Ab8R", (b"x-goog-api-key", b"AQ.Ab8R")),
        ("ya29.token", (b"authorization", b"Bearer ya29.token")),
    ],
)
def test_a_key_or_a_token_is_sent_as_it_is(credential, header):
    authorizer = vertex.authorize(credential, PROVIDER)
    assert authorizer.token_request(NOW_S) is None
    assert authorizer.headers(Outgoing(b"/", b""), "x", b"/", NOW_S) == [header]


@pytest.mark.parametrize(
    "credential",
    ["{", "{}", '{"client_email": "a", "private_key": "no PEM"}', '{"client_email": 1, "private_key": "x"}'],
)
def test_what_is_no_service_accounts_key_is_refused(credential):
    with pytest.raises(ValueError, match="key"):
        vertex.authorize(credential, PROVIDER)
