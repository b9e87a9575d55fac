"""Every recorded answer through every other dialect and back again: what it says and what it used stays the same."""

from typing import Any

import pytest

from tests.recordings.corpus import ABSENT, Recording, api_of, parameters, recordings
from tests.recordings.exceptions import TRANSLATION, reason_of
from tests.recordings.foreign import DIALECTS, api_name, events_of, is_chat, own_call
from tests.recordings.limits import LIMITS, as_told
from tests.recordings.meaning import Meaning, of_answer, of_events
from tests.recordings.upstream import pieces

CHATS = [recording for recording in recordings() if is_chat(recording) and recording.status == 200]
STREAMED = parameters([recording for recording in CHATS if recording.is_stream])


def _across(is_stream: bool) -> list[Any]:
    """Each recording with each dialect that is not its own."""
    return [
        pytest.param(recording, dialect, id=f"{recording.recording_id}-{dialect}")
        for recording in CHATS
        if recording.is_stream == is_stream and reason_of(recording, TRANSLATION) is None
        for dialect in DIALECTS
        if api_name(recording) != dialect
    ] or [pytest.param(None, "", marks=pytest.mark.skip(reason=ABSENT), id="absent")]


def _read_stream(recording: Recording, cut) -> Meaning:
    api = api_of(recording)
    assert api is not None
    return of_events(events_of(api, api.frame_parser(own_call(recording, api)), cut))


@pytest.mark.parametrize("recording", STREAMED)
def test_a_stream_says_the_same_at_any_cut(recording: Recording) -> None:
    body, seed = recording.body, recording.number
    whole = _read_stream(recording, [body])
    assert _read_stream(recording, pieces(body, seed)) == whole
    assert _read_stream(recording, (body[at : at + 7] for at in range(0, len(body), 7))) == whole
    assert _read_stream(recording, (body[at : at + 1] for at in range(len(body)))) == whole


@pytest.mark.parametrize(("recording", "dialect"), _across(is_stream=False))
def test_an_answer_keeps_its_meaning_in_a_foreign_dialect(recording: Recording, dialect: str) -> None:
    api, foreign = api_of(recording), DIALECTS[dialect]
    assert api is not None
    answer = api.read_answer(recording.body)
    written = foreign.dialect.write_answer(answer, foreign.call(is_stream=False))
    expected = as_told(of_answer(answer), LIMITS[dialect])
    assert as_told(of_answer(foreign.api.read_answer(written)), LIMITS[dialect]) == expected


@pytest.mark.parametrize(("recording", "dialect"), _across(is_stream=True))
def test_a_stream_keeps_its_meaning_in_a_foreign_dialect(recording: Recording, dialect: str) -> None:
    api, foreign = api_of(recording), DIALECTS[dialect]
    assert api is not None
    call = foreign.call(is_stream=True)
    parser, reader, writer = (
        api.frame_parser(own_call(recording, api)),
        api.stream_reader(),
        foreign.dialect.stream_writer(call),
    )
    told, events = b"", []
    for frame in parser.feed(recording.body):
        read = reader.read(frame)
        events += read
        told += writer.write(read)
    told += writer.finish()
    expected = of_events(events)
    if expected.error:
        return  # Told as an error: the stream has no other end.
    expected = as_told(expected, LIMITS[dialect])
    parsed = events_of(foreign.api, foreign.api.frame_parser(call), [told])
    again = as_told(of_events(parsed), LIMITS[dialect])
    for said, read in zip(expected.choices, again.choices, strict=True):
        if not said.finish:
            read.finish = ""  # The recording breaks off.
    assert again == expected
