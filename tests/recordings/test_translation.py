"""Every recorded answer through every other dialect and back again: what it says and what it used stays the same."""

import pytest

from tests.recordings.corpus import Recording, api_of, parameters, recordings
from tests.recordings.exceptions import TRANSLATION, reason_of
from tests.recordings.foreign import DIALECTS, api_name, events_of, is_chat, own_call
from tests.recordings.limits import LIMITS, as_told
from tests.recordings.meaning import Meaning, of_answer, of_events
from tests.recordings.upstream import pieces

CHATS = [recording for recording in recordings() if is_chat(recording) and recording.status == 200]
WHOLE = parameters([found for found in CHATS if not found.is_stream and reason_of(found, TRANSLATION) is None])
STREAMED = parameters([recording for recording in CHATS if recording.is_stream])


def _others(recording: Recording) -> list[str]:
    """The dialects that are not its own."""
    return [name for name in DIALECTS if name != api_name(recording)]


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


@pytest.mark.parametrize("recording", WHOLE)
def test_an_answer_keeps_its_meaning_in_every_dialect(recording: Recording) -> None:
    api = api_of(recording)
    assert api is not None
    answer = api.read_answer(recording.body)
    for dialect in _others(recording):
        foreign, limits = DIALECTS[dialect], LIMITS[dialect]
        written = foreign.dialect.write_answer(answer, foreign.call(is_stream=False))
        again = as_told(of_answer(foreign.api.read_answer(written)), limits)
        assert again == as_told(of_answer(answer), limits), dialect


@pytest.mark.parametrize("recording", STREAMED)
def test_a_stream_keeps_its_meaning_in_every_dialect(recording: Recording) -> None:
    api = api_of(recording)
    assert api is not None
    parser, reader = api.frame_parser(own_call(recording, api)), api.stream_reader()
    steps = [reader.read(frame) for frame in parser.feed(recording.body)]
    said = of_events(event for events in steps for event in events)
    if said.error:
        return  # Told as an error: the stream has no other end.
    for dialect in _others(recording):
        foreign, limits = DIALECTS[dialect], LIMITS[dialect]
        call = foreign.call(is_stream=True)
        writer = foreign.dialect.stream_writer(call)
        told = b"".join(writer.write(events) for events in steps) + writer.finish()
        parsed = events_of(foreign.api, foreign.api.frame_parser(call), [told])
        again, expected = as_told(of_events(parsed), limits), as_told(said, limits)
        for before, after in zip(expected.choices, again.choices, strict=True):
            if not before.finish:
                after.finish = ""  # The recording breaks off.
            if dialect == "anthropic.messages" and not before.calls and not after.signatures:
                # Of words that were told already: Gemini can do without it.
                before.signatures = [signed for signed in before.signatures if signed[0] != "gemini"]
        assert again == expected, dialect
