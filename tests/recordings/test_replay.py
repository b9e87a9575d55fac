"""Every recording through a running gateway, in its own dialect: nothing changes but what has to, and the books are right."""

import json
import re
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
import pytest

from proxy.wire.json_gate import is_object
from tests.recordings.billed import recorded_usage
from tests.recordings.corpus import MAX_OUTPUT_TOKENS, Place, Recording, is_asked_usage, parameters, recordings
from tests.recordings.exceptions import BODY, REFUSED, USAGE, reason_of
from tests.recordings.gateway import RecordedGateway, Replay

SERVED = parameters(list(recordings()))
# Streams whose client asked for their usage.
ASKING = parameters(
    [
        found
        for found in recordings()
        if found.is_stream and found.api == "chat-completions" and is_asked_usage(found.request["body"])
    ]
)
# Where an answer without a cap gets one.
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "generationConfig", "generation_config")
# What the gateway may add to a request that passes, or change in it.
_NAMING = ("generateContentRequest", "requests")
_CHANGED = ("model", "stream_options", "anthropic_version", "anthropic_beta", "stream", *_CAPS)


@pytest.mark.parametrize("recording", SERVED)
def test_a_recorded_exchange_passes_as_it_was(recording: Recording, gateway: RecordedGateway) -> None:
    replay = gateway.replay(recording)
    if reason_of(recording, REFUSED) is not None:
        assert (replay.response.status_code, replay.received) == (400, None)
        return
    assert replay.received is not None, replay.response.text
    _check_sent(recording, replay)
    _check_told(recording, replay)
    _check_ledger(recording, replay)


@pytest.mark.parametrize("recording", ASKING)
def test_usage_that_only_the_gateway_asked_for_is_booked_and_not_shown(
    recording: Recording, gateway: RecordedGateway
) -> None:
    place = gateway.places[recording.number]
    body = {name: value for name, value in json.loads(place.body).items() if name != "stream_options"}
    replay = gateway.replay(recording, json.dumps(body).encode())
    assert replay.received is not None
    assert is_asked_usage(json.loads(replay.received.body)) or not place.api.asks_for_usage
    assert replay.response.content == _without_usage(recording.body)
    _check_ledger(recording, replay)


def _check_sent(recording: Recording, replay: Replay) -> None:
    """Upstream got the client's own bytes at the recorded address."""
    received, place = replay.received, replay.place
    assert received is not None
    assert received.method == recording.request["method"]
    assert _path_of(received.target) == _path_of(f"/{place.provider.base_url.split('/')[3]}{recording.target}")
    if place.is_passthrough:
        assert received.body == place.body
        return
    sent, given = msgspec.json.decode(received.body, type=dict[str, msgspec.Raw]), place.call.fields
    added = [name for name in sent if name not in given]
    assert set(added) <= set(_CHANGED)
    renamed = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
    for name, value in given.items():
        if name in _NAMING and name in sent:
            assert _unnamed(sent[name]) == _unnamed(value)
        elif name in sent and name not in _CHANGED:
            assert bytes(sent[name]) == bytes(value), name
        elif name not in sent:
            assert name in ("model", "stream") or renamed.get(name) in sent, f"{name} was not sent"
    recorded = recording.request["body"]
    if "model" in sent:
        assert json.loads(bytes(sent["model"])).removeprefix("models/") == place.deployment.upstream_model
    for name in ("anthropic_version", "stream"):
        if name in recorded and name in sent:
            assert json.loads(bytes(sent[name])) == recorded[name]
    for name in _CAPS:
        if name in recorded and (name in sent or renamed.get(name) in sent):
            said = json.loads(bytes(sent.get(name) or sent[renamed[name]]))
            assert said in (recorded[name], _capped(recorded[name]))
    if "stream_options" in sent:
        options = json.loads(bytes(sent["stream_options"]))
        assert options == {**(recorded.get("stream_options") or {}), "include_usage": True}


def _capped(value: Any) -> Any:
    return {**value, "maxOutputTokens": MAX_OUTPUT_TOKENS} if isinstance(value, dict) else value


def _unnamed(value: msgspec.Raw) -> Any:
    """Without the models in it, which are the path's."""
    decoded = json.loads(bytes(value))
    for request in decoded if isinstance(decoded, list) else [decoded]:
        request.pop("model", None)
    return decoded


def _path_of(target: str) -> tuple[str, set[tuple[str, str]]]:
    """Percent-encoding undone, and without the key of the client, which never crosses."""
    path, _, query = target.partition("?")
    return unquote(path), {(name, value) for name, value in parse_qsl(query) if name not in ("key", "beta")}


def _check_told(recording: Recording, replay: Replay) -> None:
    """The client got the recorded bytes, or, where the provider failed, the gateway's words for it."""
    response, status = replay.response, recording.status
    reason = reason_of(recording, BODY)
    if reason is not None:
        return
    # Gemini says with a 400 that a key is wrong: whoever holds the gateway's own credential is not told of it.
    is_refused_key = b"API_KEY_INVALID" in recording.body and not replay.place.is_passthrough
    if status in (401, 403) or status >= 500 or is_refused_key:
        assert response.status_code == 502
        return
    if status >= 400 and (replay.place.api.has_own_errors or not is_object(recording.body)):
        assert response.status_code == status
        assert "error" in response.json()
        return
    assert response.status_code == status, response.text
    if recording.header("retry-after"):
        assert response.headers["retry-after"] == recording.header("retry-after")
    body, expected = response.content, recording.body
    if recording.meta["stream_format"] == "aws-eventstream" and not replay.place.is_passthrough:
        expected = _reframed(replay.place, expected)
    elif recording.is_stream and replay.place.api.name == "openai.chat":
        expected = expected if is_asked_usage(recording.request["body"]) else _without_usage(expected)
    assert body == expected
    if status == 200:
        content_type = response.headers["content-type"]
        assert content_type == recording.header("content-type") or recording.api == "invoke"


def _reframed(place: Place, stream: bytes) -> bytes:
    parser = place.api.frame_parser(place.call)
    return b"".join(place.api.reframe(frame) for frame in parser.feed(stream))


def _without_usage(stream: bytes) -> bytes:
    """Without the chunk that says nothing else."""
    kept = b""
    for event in re.findall(rb".*?(?:\r?\n\r?\n|\Z)", stream, re.DOTALL):
        data = event.removeprefix(b"data: ").strip()
        chunk = json.loads(data) if data.startswith(b"{") else {}
        if chunk.get("choices") != [] or not chunk.get("usage"):
            kept += event
    return kept


def _check_ledger(recording: Recording, replay: Replay) -> None:
    event = replay.event
    assert event is not None
    if recording.status >= 400 or replay.place.is_passthrough:
        return
    expected = recorded_usage(recording)
    if reason_of(recording, USAGE) is not None or replay.place.call.is_free:
        return
    if recording.meta["error"] == "in-stream" and event["usage_source"] == "estimated":
        # The provider did not come to its last word; what it had said of the prompt counts.
        assert expected is None or event["usage"]["input_tokens"] == expected.input_tokens
        return
    if expected is None:
        assert event["usage_source"] != "provider" or event["usage"] == {}, event
        return
    booked = dict(event.get("usage", {}))
    tool_calls = booked.pop("tool_calls", 0)
    for name in ("searches", "service_tier", "inference_geo"):
        booked.pop(name, None)
    assert event["usage_source"] == "provider"
    assert booked == msgspec.to_builtins(expected)
    features = recording.meta["features"]
    if b'"executed_tools":[{' in recording.body.replace(b" ", b""):
        assert tool_calls > 0
    elif "server-tools" not in features and "citations" not in features:
        assert tool_calls == 0
