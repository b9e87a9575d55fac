"""A streamed JSON array: every cut of bytes gives the same frames, and nothing is lost or added."""

import base64
import json
import random
from pathlib import Path

import pytest

from proxy.wire.frame import Frame, StreamMalformed, StreamTooLarge
from proxy.wire.json_array import JSONArrayParser

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"

STREAM = (
    b'[{"text": "a \\"}{[]\\\\", "n": [1, {"x": "]"}]}\r\n,\r\n{"u": "\xc3\xa9 \\ud83d\\ude00"}\n,\r\n'
    b'{\n  "deep": {"er": [[[]]]}\n}\n]\n'
)


def _frames(pieces: list[bytes]) -> list[Frame]:
    parser = JSONArrayParser()
    frames = [frame for piece in pieces for frame in parser.feed(piece)]
    tail = parser.finish()
    return [*frames, tail] if tail is not None else frames


def _values(frames: list[Frame]) -> list[object]:
    return [json.loads(frame.data) for frame in frames if frame.data]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 1000])
def test_a_cut_anywhere_changes_nothing(size):
    frames = _frames([STREAM[at : at + size] for at in range(0, len(STREAM), size)])
    assert b"".join(frame.raw for frame in frames) == STREAM
    assert _values(frames) == json.loads(STREAM)


def test_an_object_is_a_frame_as_soon_as_it_is_closed():
    parser = JSONArrayParser()
    assert parser.feed(b'[{"a": 1}') == [Frame(b'[{"a": 1}', b'{"a": 1}', b"")]
    assert parser.feed(b"\n,\r\n") == []
    assert parser.feed(b'{"b": 2}\n') == [Frame(b'\n,\r\n{"b": 2}', b'{"b": 2}', b"")]
    assert parser.feed(b"]") == [Frame(b"\n]", b"", b"")]
    assert parser.finish() is None


def test_an_error_that_is_no_array_is_read_all_the_same():
    assert _values(_frames([b'{"error": ', b'{"code": 503}}'])) == [{"error": {"code": 503}}]


def test_an_object_that_was_cut_short_is_the_last_frame():
    assert _frames([b'[{"a": 1},{"b"'])[-1] == Frame(b',{"b"', b'{"b"', b"")


def test_what_is_no_array_of_objects_is_refused():
    with pytest.raises(StreamMalformed):
        _frames([b"<!DOCTYPE html>"])


def test_an_object_without_end_is_refused():
    parser = JSONArrayParser(element_bytes_max=100)
    with pytest.raises(StreamTooLarge):
        for _ in range(20):
            parser.feed(b'[{"aaaaaaaaaaaaa":')


@pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings of real traffic are not here")
def test_recorded_arrays_come_out_as_they_went_in():
    entries = json.loads((RECORDINGS / "index.json").read_text())
    streams = [entry["file"] for entry in entries if entry["stream_format"] == "json-array"]
    assert streams
    for file in streams:
        body = base64.b64decode(json.loads((RECORDINGS / file).read_text())["response"]["body_base64"])
        for seed in range(5):
            cuts = sorted(random.Random(seed).sample(range(len(body)), 20))
            frames = _frames([body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)])
            assert b"".join(frame.raw for frame in frames) == body
            assert _values(frames) == json.loads(body)
