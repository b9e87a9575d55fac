"""What is read of batches and said of jobs, without a network: lines, bounds, states, addresses."""

import json

import pytest

from audit.records import Usage
from budgets.pricing import Price, batch_price
from proxy.dialects import anthropic_batches, openai_batches, openai_files
from proxy.dialects.stored import check_alike, read_line
from proxy.dialects.table import TABLE
from proxy.errors import InvalidRequest
from proxy.jobs import cost_of
from proxy.providers import anthropic, azure, openai_stored
from proxy.providers.openai_chat import CHAT
from proxy.providers.stored import StoredApi
from proxy.registry import Upstream
from proxy.snapshot import Deployment, Provider
from proxy.stored import _read_lines, _rewrite

PRICE = Price(
    price_id="p", input_nanos=1_000_000_000, output_nanos=2_000_000_000, cache_read_nanos=0, cache_write_nanos=0
)
DEPLOYMENT = Deployment(
    deployment_id="d",
    name="d",
    provider="p",
    model="m",
    upstream_model="up-1",
    max_output_tokens=50,
    context_window=300,
)
PROVIDER = Provider(slug="p", api="openai", base_url="https://api.openai.com/v1")


def _line(**changes) -> bytes:
    body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
    fields = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    return json.dumps(fields).encode()


def _read(text: bytes):
    return read_line(3, text, openai_batches.DIALECTS, "body")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b"[]",
        _line(url="/v1/images/edits"),
        _line(url=7),
        _line(body=None),
        _line(body={"messages": []}),
        _line(body={"model": "fast", "stream": True, "messages": []}),
        _line(url="/v1/responses", body={"model": "fast", "input": "x", "background": True}),
        _line(url="/v1/responses", body={"model": "fast", "input": "x", "previous_response_id": "resp_1"}),
        _line().replace(b'"custom_id"', b'"other"'),
        _line().replace(b'"url"', b'"body"'),
    ],
)
def test_a_line_that_cannot_be_priced_is_refused_by_its_number(text):
    with pytest.raises(InvalidRequest) as refusal:
        _read(text)
    assert refusal.value.param == "line 3"
    assert refusal.value.message.startswith("line 3 of the batch: ")


def test_lines_of_two_models_or_endpoints_are_refused():
    other = _line(body={"model": "slow", "messages": []})
    for second in (other, _line(url="/v1/responses", body={"model": "fast", "input": "x"})):
        with pytest.raises(InvalidRequest) as refusal:
            check_alike(_read_lines(_line() + b"\n" + second))
        assert refusal.value.param == "line 2"
    with pytest.raises(InvalidRequest):
        check_alike([])


def test_a_line_is_rewritten_where_it_must_be_and_nowhere_else():
    texts = (
        '{"custom_id":"a", "method":"POST", "url":"/v1/chat/completions", "x":{"model":"fast"}, '
        '"body":{"model":"fast", "messages":[{"role":"user","content":"\\u00e9 é"}], "new_field":[1.50, 1e3]}}\r\n'
        "\n"
        '{"custom_id":"b","url":"/v1/chat/completions","body":{"max_tokens":7,"n":2,"model":"fast","messages":[]}}'
    )
    lines = _read_lines(texts.encode())
    rewritten, bounds = _rewrite(
        lines, Upstream(DEPLOYMENT, PROVIDER, azure.PROVIDER, []), "body", "/v1/chat/completions"
    )
    assert (
        rewritten[0]
        == (
            '{"custom_id":"a","method":"POST","url":"/v1/chat/completions","x":{"model":"fast"},"body":{"model":"up-1",'
            '"messages":[{"role":"user","content":"\\u00e9 é"}],"new_field":[1.50, 1e3],"max_completion_tokens":50}}'
        ).encode()
    )
    assert b'"model":"up-1"' in rewritten[1] and b'"max_tokens":7' in rewritten[1]
    assert bounds.requests == 2
    assert bounds.output_tokens_max == 50 + 2 * 7
    assert 64 * 2 < bounds.input_tokens_max <= 2 * DEPLOYMENT.context_window


def test_of_a_batch_that_failed_nothing_is_billed_and_of_one_that_expired_what_was_answered():
    api = openai_stored.BATCHES
    assert not api.progress(b'{"id":"batch_1","status":"finalizing"}').is_over
    failed = api.progress(b'{"id":"batch_1","status":"failed","output_file_id":null}')
    assert (failed.is_over, failed.usage, failed.requests) == (True, Usage(), 0)
    expired = api.progress(
        b'{"id":"b","status":"expired","endpoint":"/v1/chat/completions","output_file_id":"file-a/b",'
        b'"request_counts":{"completed":2},"usage":{"input_tokens":0,"output_tokens":0}}'
    )
    assert (expired.usage, expired.results) == (None, "/files/file-a%2Fb/content")
    told = api.progress(
        b'{"id":"b","status":"completed","output_file_id":"f","request_counts":{"completed":2},"usage":{"input_tokens":10,'
        b'"input_tokens_details":{"cached_tokens":4},"output_tokens":6,"output_tokens_details":{"reasoning_tokens":5}}}'
    )
    assert told.usage == Usage(input_tokens=10, cache_read_input_tokens=4, output_tokens=6, reasoning_tokens=5)
    assert told.requests == 2


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (b'{"response":{"status_code":200,"body":{"id":"x"}},"error":null}', b'{"id":"x"}'),
        (b'{"response":{"status_code":400,"body":{"error":{}}},"error":null}', None),
        (b'{"response":null,"error":{"code":"batch_expired"}}', None),
    ],
)
def test_lines_that_failed_cost_nothing(line, body):
    assert openai_stored.BATCHES.line_body(line) == body


@pytest.mark.parametrize(
    ("kind", "is_paid"), [("succeeded", True), ("errored", False), ("canceled", False), ("expired", False)]
)
def test_of_messages_only_those_that_succeeded_are_billed(kind, is_paid):
    api = next(api for api in anthropic.PROVIDER.apis if api.name == "anthropic.batches")
    assert isinstance(api, StoredApi)
    line = b'{"custom_id":"a","result":{"type":"%b","message":{"usage":{}}}}' % kind.encode()
    assert (api.line_body(line) is not None) == is_paid
    over = api.progress(b'{"id":"msgbatch_1","processing_status":"ended","results_url":"https://elsewhere/"}')
    assert (over.results, over.usage) == ("/messages/batches/msgbatch_1/results", None)
    assert not api.progress(b'{"id":"msgbatch_1","processing_status":"canceling"}').is_over


def test_the_results_of_a_batch_of_messages_are_fetched_through_the_gateway():
    api = next(api for api in anthropic.PROVIDER.apis if api.name == "anthropic.batches")
    told = b'{"id":"m","results_url": "https://api.anthropic.com/v1/messages/batches/m/results","x":"https://a/v1/messages/batches/"}'
    assert api.retell(told) == (
        b'{"id":"m","results_url": "/v1/messages/batches/m/results","x":"https://a/v1/messages/batches/"}'
    )
    assert api.retell(b'{"results_url":null}') == b'{"results_url":null}'


@pytest.mark.parametrize(
    ("status", "is_over", "is_billed"),
    [("queued", False, True), ("in_progress", False, True), ("cancelled", True, False), ("failed", True, False)],
)
def test_a_response_in_the_background_says_how_far_it_is(status, is_over, is_billed):
    progress = openai_stored.STORED_RESPONSES.progress(b'{"id":"r","status":"%b","usage":null}' % status.encode())
    assert (progress.is_over, progress.is_billed, progress.usage) == (is_over, is_billed, None)


def test_what_is_paid_by_the_request_is_paid_for_each_that_was_answered():
    price = batch_price(
        Price(**{**{f: getattr(PRICE, f) for f in PRICE.__struct_fields__}, "request_nanos": 100, "batch_percent": 50})
    )
    assert cost_of(Usage(input_tokens=1000, output_tokens=10, batch_requests=3), price, 3) == 500_000 + 10_000 + 150
    assert cost_of(Usage(), price, 0) == 0


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, b"/openai/v1/batches/batch_1/cancel"),
        ({"api_version": "preview"}, b"/openai/v1/batches/batch_1/cancel?api-version=preview"),
        ({"url_style": "deployments"}, b"/openai/batches/batch_1/cancel?api-version=2024-10-21"),
    ],
)
def test_azure_has_batches_at_the_resource_and_not_at_the_deployment(options, target):
    provider = Provider(slug="p", api="azure", base_url="https://x.openai.azure.com", options=options)
    call = openai_batches.CANCEL_BATCH.describe(b"", b"application/json", {"id": "batch_1"})
    api = next(api for api in azure.PROVIDER.apis if api.name == "openai.batches")
    outgoing = api.pass_request(call, DEPLOYMENT, provider)
    assert (outgoing.method, outgoing.target) == (b"POST", target)


def test_an_id_stays_one_segment_of_the_path():
    match = TABLE.find("GET", "/v1/files/..%2F..%2Fmodels/content")
    assert match.endpoint is not None and match.endpoint.dialect is openai_files.READ_CONTENT
    call = openai_files.READ_CONTENT.describe(b"", b"application/json", match.parameters)
    assert openai_stored.FILES.pass_request(call, DEPLOYMENT, PROVIDER).target == b"/files/..%2F..%2Fmodels/content"


def test_a_batch_of_messages_without_requests_is_refused():
    call = anthropic_batches.CREATE_BATCH.describe(b'{"requests":7}', b"application/json", {})
    with pytest.raises(InvalidRequest):
        anthropic_batches.requests_of(call)


def test_chat_keeps_its_name_in_both_tables():
    """A batch's lines are passed on as they are only where the provider speaks their dialect."""
    assert openai_batches.DIALECTS["/v1/chat/completions"].name == CHAT.name
