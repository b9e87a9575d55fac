"""Recorded requests, answers and streams with a field missing, null or of another kind: read, or refused by name, and never a fault."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from proxy.dialects.dialect import JSON, Call
from proxy.errors import InvalidRequest, RouteUnknown
from proxy.neutral import Answer, Prompt
from proxy.providers.provider import Api
from proxy.providers.table import PROVIDERS
from proxy.wire.frame import Frame
from tests.recordings.corpus import Place, Recording, api_of, parameters, place_of, recordings
from tests.recordings.foreign import DIALECTS, own_call

ROUNDS = 2
# A stream is damaged in so many of its frames.
DAMAGED_FRAMES = 12
MODELS = ("anthropic.claude-opus-4-5-v1:0", "amazon.nova-pro-v1:0", "gpt-5", "gemini-3-pro-preview", "claude-opus-4-5")
OPTIONS = {"project": "a-project", "location": "us-east5", "region": "us-east-1"}
_VALUES: tuple[Any, ...] = (
    None,
    "",
    "x",
    0,
    -1,
    1.5,
    True,
    [],
    {},
    [None],
    {"a": None},
    ["x"],
    [1],
    [{}],
    10**20,
    "\ud800",
)

KNOWN = [recording for recording in recordings() if api_of(recording) is not None]
ASKED = parameters([recording for recording in recordings() if not place_of(recording).is_passthrough])
WHOLE = parameters([recording for recording in KNOWN if not recording.is_stream])
STREAMED = parameters([recording for recording in KNOWN if recording.is_stream])


def damaged(value: Any, draw: random.Random) -> Any:
    """A copy with one to four places changed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    for _ in range(draw.choice((1, 1, 2, 4))):
        if places:
            holder, key = draw.choice(places)
            if draw.random() < 0.3 and isinstance(holder, dict):
                holder.pop(key, None)
            elif isinstance(holder, dict) or key < len(holder):
                holder[key] = draw.choice(_VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _object(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return {}


@pytest.mark.parametrize("recording", ASKED)
def test_a_damaged_request_is_refused_or_read(recording: Recording) -> None:
    place, draw = place_of(recording), random.Random(recording.number)
    for _ in range(ROUNDS):
        body = json.dumps(damaged(json.loads(place.body), draw)).encode()
        try:
            call = place.call.dialect.describe(body, JSON, {**place.call.parameters, "model": "alias"})
            place.api.pass_request(call, place.deployment, place.provider)
            if call.dialect.is_translatable:
                _write_everywhere(call, place, draw.choice(MODELS))
        except (InvalidRequest, RouteUnknown):
            continue


def _write_everywhere(call: Call, place: Place, model: str) -> None:
    prompt = call.dialect.read_prompt(call)
    if not isinstance(prompt, Prompt):
        return
    deployment = msgspec.structs.replace(place.deployment, upstream_model=model)
    for kind in PROVIDERS.values():
        provider = msgspec.structs.replace(place.provider, api=kind.name, base_url="http://h/v1", options=OPTIONS)
        for api in kind.apis:
            if api.capability == "chat" and api.is_translatable and api.serves(deployment, provider):
                lost: list[str] = []
                json.loads(api.write_request(prompt, call, deployment, provider, lost).body)
                assert all(lost)


@pytest.mark.parametrize("recording", WHOLE)
def test_a_damaged_answer_is_read_or_none(recording: Recording) -> None:
    api, draw = api_of(recording), random.Random(recording.number)
    assert api is not None
    found = _object(recording.body)
    for _ in range(ROUNDS):
        body = json.dumps(damaged(found, draw)).encode()
        assert isinstance(api.read_error(recording.status, body).message, str)
        try:
            if not place_of(recording).is_passthrough:
                api.measure(body)
            if api.is_translatable:
                _tell_everywhere(api, body)
        except msgspec.DecodeError:
            continue


def _tell_everywhere(api: Api, body: bytes) -> None:
    answer = api.read_answer(body)
    if isinstance(answer, Answer):
        for foreign in DIALECTS.values():
            json.loads(foreign.dialect.write_answer(answer, foreign.call(is_stream=False)))


@pytest.mark.parametrize("recording", STREAMED)
def test_a_damaged_stream_is_told_as_far_as_it_can_be_read(recording: Recording) -> None:
    api, draw = api_of(recording), random.Random(recording.number)
    assert api is not None
    call = own_call(recording, api) if api.capability == "chat" else place_of(recording).call
    frames = api.frame_parser(call).feed(recording.body)
    chosen = set(draw.sample(range(len(frames)), min(DAMAGED_FRAMES, len(frames))))
    meter = api.stream_meter(call)
    reader = api.stream_reader() if api.is_translatable else None
    writers = [foreign.dialect.stream_writer(foreign.call(is_stream=True)) for foreign in DIALECTS.values()]
    for index, frame in enumerate(frames):
        if index in chosen and frame.data[:1] == b"{":
            data = json.dumps(damaged(json.loads(frame.data), draw)).encode()
            data = data if draw.random() < 0.9 else data[: len(data) // 2]
            given = Frame(frame.raw, data, frame.event)
        else:
            given = frame
        meter.observe(given)
        events = reader.read(given) if reader is not None else []
        for writer in writers:
            writer.write(events)
    for writer in writers:
        writer.finish()
