"""Every recorded chat through a running gateway for a client of another dialect: what it says, what it used, how it fails."""

from typing import Any

import msgspec
import pytest

from proxy.neutral import Embedded, Ranked
from tests.recordings.billed import recorded_usage
from tests.recordings.corpus import Recording, api_of, parameters, place_of, recordings, served_apis
from tests.recordings.exceptions import TRANSLATION, USAGE, reason_of
from tests.recordings.foreign import DIALECTS, Foreign, api_name, events_of, is_chat, is_translated, own_call
from tests.recordings.gateway import RecordedGateway, Replay
from tests.recordings.limits import LIMITS, as_told
from tests.recordings.meaning import Meaning, of_answer, of_events


def _reaches(recording: Recording) -> bool:
    """Whether a request that has to be translated goes to the API that was recorded: a provider's others are for clients of
    their own dialect."""
    if recording.meta["stream_format"] == "json-array":
        return False  # Asked for by a client that did not ask for server-sent events, as the gateway always does.
    served = [api for api in served_apis(recording) if api.capability == "chat" and api.is_translatable]
    return is_chat(recording) and served[0].name == api_name(recording)


CHATS = [recording for recording in recordings() if _reaches(recording)]
ANSWERED = parameters([recording for recording in CHATS if recording.status == 200])
REFUSED = parameters([recording for recording in CHATS if recording.status >= 400])
OTHERS = parameters(
    [
        found
        for found in recordings()
        if is_translated(found) and not is_chat(found) and found.status == 200 and place_of(found).is_passthrough
    ]
)
PATHS = {"openai.chat": "/v1/chat/completions", "anthropic.messages": "/v1/messages", "cohere.chat": "/v2/chat"}


def _client_of(recording: Recording) -> Foreign:
    spoken = {api.name for api in served_apis(recording)}
    return next(DIALECTS[name] for name in PATHS if name not in spoken)


def _call(gateway: RecordedGateway, recording: Recording) -> Replay:
    client = _client_of(recording)
    body: dict[str, Any] = {**client.body, "model": gateway.places[recording.number].name}
    if recording.is_stream:
        body["stream"] = True
    else:
        body.pop("stream_options", None)
    return gateway.translate(recording, PATHS[client.dialect.name], body)


@pytest.mark.parametrize("recording", ANSWERED)
def test_a_recorded_answer_reaches_clients_of_another_dialect(recording: Recording, gateway: RecordedGateway) -> None:
    client, api = _client_of(recording), api_of(recording)
    assert api is not None
    replay = _call(gateway, recording)
    assert replay.response.status_code == 200, replay.response.text
    own = own_call(recording, api)
    if recording.is_stream:
        expected = of_events(events_of(api, type(api.frame_parser(own))(), [recording.body]))
        told = of_events(events_of(client.api, client.api.frame_parser(client.call(True)), [replay.response.content]))
    else:
        expected = of_answer(api.read_answer(recording.body))
        told = of_answer(client.api.read_answer(replay.response.content))
    _check_told(recording, told, expected, client)
    _check_ledger(recording, replay)


def _check_told(recording: Recording, told: Meaning, expected: Meaning, client: Foreign) -> None:
    if expected.error:
        assert told.error.endswith(expected.error)
        return
    if reason_of(recording, TRANSLATION) is not None:
        return
    limits = LIMITS[client.dialect.name]
    expected, told = as_told(expected, limits), as_told(told, limits)
    if all(said.finish for said in expected.choices):
        assert told == expected
    else:
        assert told.error, "a stream that breaks off ends with an error"


def _check_ledger(recording: Recording, replay: Replay) -> None:
    event, expected = replay.event, recorded_usage(recording)
    assert event is not None
    if reason_of(recording, USAGE) is None and event["usage_source"] == "provider":
        booked = dict(event.get("usage", {}))
        for name in ("tool_calls", "searches", "service_tier", "inference_geo"):
            booked.pop(name, None)
        assert booked == msgspec.to_builtins(expected)
    else:
        assert expected is None or recording.meta["error"] == "in-stream"


@pytest.mark.parametrize("recording", OTHERS)
def test_recorded_vectors_and_ranks_reach_clients_of_another_dialect(
    recording: Recording, gateway: RecordedGateway
) -> None:
    api = api_of(recording)
    assert api is not None
    name, expected = gateway.places[recording.number].name, api.read_answer(recording.body)
    if isinstance(expected, Embedded):
        body = {"model": name, "texts": ["Hello"], "input_type": "search_query", "embedding_types": ["float"]}
        replay = gateway.translate(recording, "/v2/embed", body)
        assert replay.response.json()["embeddings"]["float"] == expected.vectors
    else:
        assert isinstance(expected, Ranked)
        body = {"model": name, "query": "Who?", "documents": ["a", "b", "c"]}
        replay = gateway.translate(recording, "/v2/rerank", body)
        told = [(item["index"], item["relevance_score"]) for item in replay.response.json()["results"]]
        assert told == expected.results
    _check_ledger(recording, replay)


@pytest.mark.parametrize("recording", REFUSED)
def test_a_recorded_refusal_reaches_clients_of_another_dialect(recording: Recording, gateway: RecordedGateway) -> None:
    client, api = _client_of(recording), api_of(recording)
    assert api is not None
    response = _call(gateway, recording).response
    error = api.read_error(recording.status, recording.body)
    told = client.api.read_error(response.status_code, response.content)
    if {recording.status, error.status_code} & {401, 403}:
        assert response.status_code == 502
        assert "credential" in told.message
        return
    assert response.status_code == (recording.status if recording.status < 500 else 502)
    assert error.message and error.message in told.message
    retry_after = recording.header("retry-after") or str(error.retry_after_s or "")
    assert response.headers.get("retry-after", "") == retry_after
