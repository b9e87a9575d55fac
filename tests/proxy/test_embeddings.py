"""Embeddings across dialects: OpenAI's clients and providers."""

import base64
import json
import struct
from pathlib import Path

import msgspec
import pytest

from audit.records import Usage
from proxy.dialects.openai_embeddings import EMBEDDINGS as DIALECT
from proxy.errors import InvalidRequest
from proxy.neutral import Embedded, Embedding, Media
from proxy.providers.openai_embeddings import EMBEDDINGS as API
from proxy.providers.voyage import VoyageEmbeddings
from proxy.snapshot import Deployment, Provider

PROVIDER = Provider(slug="p", api="openai", base_url="https://example.com/v1")
DEPLOYMENT = Deployment(deployment_id="d", name="d", provider="p", model="m", upstream_model="embed-1")
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"


def read(**body):
    call = DIALECT.describe(json.dumps({"model": "demo", **body}).encode(), b"application/json", {})
    call.prompt = DIALECT.read_prompt(call)
    return call


def write(prompt: Embedding) -> tuple[dict, list[str]]:
    lost: list[str] = []
    outgoing = API.write_request(prompt, read(input="x"), DEPLOYMENT, PROVIDER, lost)
    assert outgoing.target == b"/embeddings"
    return json.loads(outgoing.body), lost


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_an_input_is_a_text_or_tokens_or_a_list_of_either(given, inputs):
    prompt = read(input=given).prompt
    assert prompt.inputs == inputs
    assert write(prompt)[0]["input"] == inputs


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a", 5]}, "input.1"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": "many"}, "dimensions"),
    ],
)
def test_a_wrong_field_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        read(**body)
    assert caught.value.param == param


def test_everything_that_openai_knows_is_carried():
    prompt = read(input="a", dimensions=256, user="u", encoding_format="base64").prompt
    assert prompt.lost == []
    assert write(prompt) == (
        {"model": "embed-1", "input": ["a"], "encoding_format": "float", "dimensions": 256, "user": "u"},
        [],
    )


def test_what_nobody_knows_is_named():
    assert read(input="a", input_type="poetry", fancy=1, dimensions=None).prompt.lost == ["input_type", "fancy"]


def test_an_image_and_a_title_are_named_where_there_is_no_place_for_them():
    prompt = Embedding(inputs=["a", Media(kind="image", url="https://x", path="inputs.1")], title="t", task="query")
    body, lost = write(prompt)
    assert body["input"] == ["a"]
    assert lost == ["title", "inputs.1"]


def test_floats_are_packed_for_a_client_that_wants_base64():
    call = read(input=["a", "b"], encoding_format="base64")
    answer = Embedded(vectors=[[0.5, -1.0], [0.25, 2.0]], model="embed-1", usage=Usage(input_tokens=7))
    written = json.loads(DIALECT.write_answer(answer, call))
    assert [struct.unpack("<2f", base64.b64decode(item["embedding"])) for item in written["data"]] == [
        (0.5, -1.0),
        (0.25, 2.0),
    ]
    assert [item["index"] for item in written["data"]] == [0, 1]
    assert (written["model"], written["usage"]) == ("demo", {"prompt_tokens": 7, "total_tokens": 7})


def test_vectors_are_read_in_the_order_of_the_inputs_and_from_base64_too():
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    body = {
        "data": [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [1, 2]}],
        "usage": {"total_tokens": 3},
    }
    answer = API.read_answer(json.dumps(body).encode())
    assert answer.vectors == [[1.0, 2.0], [0.5, -1.0]]
    assert answer.usage == Usage(input_tokens=3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":null}',
        b'{"data":[{"embedding":"not base64!"}]}',
        b'{"data":[{"embedding":"QUJD"}]}',
        b'{"data":[{"embedding":[1]}],"model":"\xff"}',
    ],
)
def test_an_answer_of_another_shape_is_refused(body):
    with pytest.raises(msgspec.DecodeError):
        API.read_answer(body)


def test_the_same_dialect_changes_the_model_alone():
    body = b'{"z":[1,  2], "model":"demo","input":"a","encoding_format":"base64"}'
    call = DIALECT.describe(body, b"application/json", {})
    sent = API.pass_request(call, DEPLOYMENT, PROVIDER).body
    assert sent == b'{"z":[1,  2],"model":"embed-1","input":"a","encoding_format":"base64"}'


def test_voyage_has_its_own_words_for_dimensions_and_takes_no_word_for_floats():
    call = read(input="a", dimensions=256, encoding_format="float", truncation=True)
    sent = json.loads(VoyageEmbeddings().pass_request(call, DEPLOYMENT, PROVIDER).body)
    assert sent == {"model": "embed-1", "input": "a", "output_dimension": 256, "truncation": True}
    prompt = Embedding(inputs=["a", [1]], task="query", dimensions=256, user="u")
    lost: list[str] = []
    sent = json.loads(VoyageEmbeddings().write_request(prompt, call, DEPLOYMENT, PROVIDER, lost).body)
    assert sent == {
        "model": "embed-1",
        "input": ["a"],
        "truncation": False,
        "input_type": "query",
        "output_dimension": 256,
    }
    assert lost == ["user", "input"]


def _recorded(is_good: bool):
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["api"] == "embeddings" and (entry["status"] == 200) is is_good
    ]


@pytest.mark.parametrize("path", _recorded(is_good=True))
def test_a_real_exchange_is_read_whole(path):
    recording = json.loads(path.read_text())
    body = recording["response"]["body_text"]
    answer = API.read_answer(body.encode())
    expected = json.loads(body)
    assert len(answer.vectors) == len(expected["data"])
    if isinstance(expected["data"][0]["embedding"], list):
        assert answer.vectors == [item["embedding"] for item in expected["data"]]
    assert API.measure(body.encode()).usage == answer.usage == Usage(input_tokens=expected["usage"]["prompt_tokens"])
    asked = read(**recording["request"]["body"]).prompt
    assert asked.lost == []
    assert write(asked)[1] == []


@pytest.mark.parametrize("path", _recorded(is_good=False))
def test_a_real_error_keeps_its_message(path):
    response = json.loads(path.read_text())["response"]
    error = API.read_error(response["status"], response["body_text"].encode())
    assert error.message in response["body_text"].replace("\\'", "'")
    assert len(error.message) > 10
    assert error.status_code == response["status"]
