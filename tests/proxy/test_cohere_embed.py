"""Cohere's embeddings on both sides."""

import json
from pathlib import Path

import pytest

from audit.records import Usage
from proxy.dialects.cohere_embed import EMBED, EMBED_V1
from proxy.neutral import Embedded
from proxy.providers.cohere_embed import EMBED as API
from proxy.providers.cohere_embed import EMBED_V1 as API_V1
from proxy.snapshot import Deployment, Provider

PROVIDER = Provider(slug="cohere", api="cohere", base_url="https://api.cohere.com")
DEPLOYMENT = Deployment(deployment_id="d", name="d", provider="cohere", model="m", upstream_model="embed-v4.0")
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"


def read(dialect=EMBED, **body):
    call = dialect.describe(json.dumps({"model": "demo", **body}).encode(), b"application/json", {})
    call.prompt = dialect.read_prompt(call)
    return call


def test_embeddings_are_asked_for_and_told():
    call = read(
        EMBED,
        texts=["a", "b"],
        input_type="search_query",
        embedding_types=["float", "base64"],
        output_dimension=256,
        truncate="NONE",
    )
    lost: list[str] = list(call.prompt.lost)
    sent = json.loads(API.write_request(call.prompt, call, DEPLOYMENT, PROVIDER, lost).body)
    assert sent == {
        "model": "embed-v4.0",
        "texts": ["a", "b"],
        "input_type": "search_query",
        "embedding_types": ["float"],
        "output_dimension": 256,
        "truncate": "NONE",
    }
    assert lost == []
    answer = Embedded(vectors=[[0.5], [1.0]], usage=Usage(input_tokens=2))
    assert json.loads(EMBED.write_answer(answer, call)) == {
        "id": "",
        "texts": ["a", "b"],
        "embeddings": {"float": [[0.5], [1.0]], "base64": ["AAAAPw==", "AACAPw=="]},
        "response_type": "embeddings_by_type",
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 2}},
    }


def test_the_first_version_gives_bare_vectors_where_no_type_is_asked_for():
    call = read(EMBED_V1, texts=["a"], input_type="search_document")
    written = json.loads(EMBED_V1.write_answer(Embedded(vectors=[[0.5]]), call))
    assert (written["embeddings"], written["response_type"]) == ([[0.5]], "embeddings_floats")


def test_images_are_embedded():
    call = read(EMBED, images=["data:image/png;base64,AAAA"], input_type="image")
    assert (call.units_max, call.has_images) == (1, True)
    assert call.prompt.lost == []
    sent = json.loads(API.write_request(call.prompt, call, DEPLOYMENT, PROVIDER, []).body)
    assert (sent["images"], sent["input_type"]) == (["data:image/png;base64,AAAA"], "image")
    image = {"type": "image_url", "image_url": {"url": "https://x"}}
    mixed = read(EMBED, inputs=[{"content": [{"type": "text", "text": "a"}]}, {"content": [image]}])
    sent = json.loads(API.write_request(mixed.prompt, mixed, DEPLOYMENT, PROVIDER, []).body)
    assert sent["inputs"] == [{"content": [{"type": "text", "text": "a"}]}, {"content": [image]}]


def test_what_only_cohere_can_embed_is_named():
    both = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    prompt = read(EMBED, inputs=[both], embedding_types=["float", "int8"], truncate="END", max_tokens=5).prompt
    assert prompt.lost == ["embedding_types.1", "truncate", "inputs.0.content", "max_tokens"]


def _recorded(*, is_good: bool):
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["provider"] == "cohere" and entry["api"] == "embed" and (entry["status"] == 200) is is_good
    ]


@pytest.mark.parametrize("path", _recorded(is_good=True))
def test_real_embeddings_are_measured(path):
    recording = json.loads(path.read_text())
    body = recording["response"]["body_text"]
    billed = json.loads(body)["meta"]["billed_units"]
    expected = Usage(input_tokens=billed.get("input_tokens", 0), units=billed.get("images", 0))
    assert API_V1.measure(body.encode()).usage == expected
    if "float" in json.loads(body)["embeddings"]:
        assert API.read_answer(body.encode()).vectors == json.loads(body)["embeddings"]["float"]
    read(EMBED_V1, **recording["request"]["body"])


@pytest.mark.parametrize("path", _recorded(is_good=False))
def test_a_real_error_keeps_its_message(path):
    response = json.loads(path.read_text())["response"]
    error = API.read_error(response["status"], response["body_text"].encode())
    assert (error.message, error.status_code) == (json.loads(response["body_text"])["message"], response["status"])
