"""Reranking: Cohere's clients, and providers that bill search units or tokens."""

import json
from pathlib import Path

import msgspec
import pytest

from audit.records import Usage
from proxy.dialects.cohere_rerank import RERANK, RERANK_V1
from proxy.errors import InvalidRequest
from proxy.neutral import Ranked
from proxy.providers import cohere_rerank, llamacpp, openai_compatible, rerank, together, vllm
from proxy.providers.voyage import VoyageRerank
from proxy.snapshot import Deployment, Provider

PROVIDER = Provider(slug="p", api="cohere", base_url="https://example.com")
DEPLOYMENT = Deployment(deployment_id="d", name="d", provider="p", model="m", upstream_model="rerank-1")
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"
APIS = [cohere_rerank.RERANK, rerank.RERANK, VoyageRerank()]


def read(dialect=RERANK, **body):
    call = dialect.describe(json.dumps({"model": "demo", **body}).encode(), b"application/json", {})
    call.prompt = dialect.read_prompt(call)
    return call


@pytest.mark.parametrize(("api", "top_field"), list(zip(APIS, ["top_n", "top_n", "top_k"], strict=True)))
def test_a_request_is_written_for_each_provider(api, top_field):
    call = read(query="q", documents=["a", "b"], top_n=1)
    lost: list[str] = []
    sent = json.loads(api.write_request(call.prompt, call, DEPLOYMENT, PROVIDER, lost).body)
    assert sent == {"model": "rerank-1", "query": "q", "documents": ["a", "b"], top_field: 1}
    assert lost == []


def test_search_units_are_bounded_by_the_documents_and_their_length():
    assert read(query="q", documents=["a"]).units_max == 1
    assert read(query="q", documents=["a"] * 101).units_max == 2
    assert read(query="q", documents=["a" * 50_000]).units_max == 2


def test_tokens_are_bounded_with_the_query_once_for_each_document():
    call = read(query="q" * 1000, documents=["a"] * 10)
    assert call.input_tokens_max > 10 * 1000
    assert call.output_tokens_max == 0


def test_documents_come_back_where_they_are_asked_for():
    call = read(RERANK_V1, query="q", documents=[{"text": "a"}, "b"], return_documents=True)
    answer = Ranked(results=[(1, 0.9), (0, 0.1)], answer_id="r", usage=Usage(units=1))
    assert json.loads(RERANK_V1.write_answer(answer, call)) == {
        "id": "r",
        "results": [
            {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
            {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
        ],
        "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
    }


def test_usage_in_tokens_is_shown_as_tokens():
    call = read(query="q", documents=["a"])
    written = json.loads(RERANK.write_answer(Ranked(results=[(0, 1.0)], usage=Usage(input_tokens=43)), call))
    assert written["meta"] == {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 43}}


def test_what_nobody_else_knows_is_named():
    prompt = read(RERANK_V1, query="q", documents=[{"text": "a", "title": "t"}], rank_fields=["title"]).prompt
    assert prompt.lost == ["documents.0.title", "rank_fields"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": [5]}, "documents.0"),
        ({"query": "q", "documents": [{}]}, "documents.0.text"),
        ({"query": "q", "documents": ["a"], "top_n": "all"}, "top_n"),
    ],
)
def test_a_wrong_field_is_named(body, param):
    with pytest.raises(InvalidRequest) as caught:
        read(**body)
    assert caught.value.param == param


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"results":null}', b'{"results":[{"index":0}]}', b'{"id":"\xff"}']
)
def test_an_answer_of_another_shape_is_refused(api, body):
    with pytest.raises(msgspec.DecodeError):
        api.read_answer(body)


def test_what_llama_cpp_leaves_in_the_order_of_the_documents_is_sorted():
    body = (
        b'{"results":[{"index":0,"relevance_score":-3.5},{"index":1,"relevance_score":2}],"usage":{"total_tokens":9}}'
    )
    assert rerank.RERANK.read_answer(body).results == [(1, 2), (0, -3.5)]
    assert rerank.RERANK.measure(body).usage == Usage(input_tokens=9)


@pytest.mark.parametrize("api", [cohere_rerank.RERANK, cohere_rerank.RERANK_V1, rerank.RERANK])
def test_the_same_dialect_changes_the_model_alone(api):
    body = b'{"query":"q","model":"demo","documents":[{"text":"a",  "x":1}],"unknown":1.0}'
    call = RERANK_V1.describe(body, b"application/json", {})
    sent = api.pass_request(call, DEPLOYMENT, PROVIDER).body
    assert sent == body.replace(b"demo", b"rerank-1")


@pytest.mark.parametrize("provider", [llamacpp, openai_compatible, together, vllm])
def test_servers_of_open_models_rerank(provider):
    assert rerank.RERANK in provider.PROVIDER.apis


def _recorded():
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    apis = {"cohere": cohere_rerank.RERANK, "voyage": VoyageRerank(), "llamacpp": rerank.RERANK}
    return [
        pytest.param(RECORDINGS / entry["file"], apis[entry["provider"]], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["api"] == "rerank"
    ]


@pytest.mark.parametrize(("path", "api"), _recorded())
def test_a_real_exchange_is_read_whole(path, api):
    response = json.loads(path.read_text())["response"]
    body = response["body_text"].encode()
    if response["status"] != 200:
        assert api.read_error(response["status"], body).message == json.loads(body)["error"]["message"]
        return
    expected = json.loads(body)
    results = expected.get("results") or expected["data"]
    answer = api.read_answer(body)
    assert answer.results == [(result["index"], result["relevance_score"]) for result in results]
    assert answer.usage == api.measure(body).usage
    assert answer.usage in (Usage(units=1), Usage(input_tokens=43))
