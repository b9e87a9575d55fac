import base64
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.frame import Frame, StreamTooLarge
from proxy.wire.json_lines import JSONLinesParser

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"


def parse(stream: bytes, cuts: list[int]) -> list[Frame]:
    parser = JSONLinesParser()
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    frames = [frame for start, end in pairwise(places) for frame in parser.feed(stream[start:end])]
    last = parser.finish()
    assert parser.finish() is None
    return [*frames, last] if last else frames


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"", []),
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\n\n{"b":2}', [b'{"a":1}', b"", b'{"b":2}']),
        (b'{"a":1}\n{"cut sho', [b'{"a":1}', b'{"cut sho']),
    ],
)
def test_a_line_is_a_frame(stream, data):
    frames = parse(stream, [])
    assert [frame.data for frame in frames] == data
    assert b"".join(frame.raw for frame in frames) == stream


@given(
    st.lists(st.sampled_from([b'{"a":1}', b"\n", b"\r\n", b" ", b"\xc3", b"\xa4"]), max_size=30).map(b"".join),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_a_stream_means_the_same_however_it_is_cut(stream, cuts):
    frames = parse(stream, cuts)
    assert frames == parse(stream, [])
    assert b"".join(frame.raw for frame in frames) == stream


def test_a_line_without_end_is_refused():
    parser = JSONLinesParser(line_bytes_max=10)
    parser.feed(b"12345\n67")
    with pytest.raises(StreamTooLarge):
        parser.feed(b"890123456")


def test_a_long_line_that_comes_whole_is_refused_too():
    with pytest.raises(StreamTooLarge):
        JSONLinesParser(line_bytes_max=10).feed(b"12345678901\n")


def _recorded():
    index = RECORDINGS / "index.json"
    if not index.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    return [
        pytest.param(RECORDINGS / entry["file"], id=entry["id"])
        for entry in json.loads(index.read_text())
        if entry["stream_format"] == "ndjson"
    ]


@pytest.mark.parametrize("path", _recorded())
def test_a_real_stream_passes_byte_for_byte_at_any_cut(path):
    stream = base64.b64decode(json.loads(path.read_text())["response"]["body_base64"])
    frames = parse(stream, [])
    assert parse(stream, list(range(0, len(stream), 7))) == frames
    assert b"".join(frame.raw for frame in frames) == stream
    assert all(isinstance(json.loads(frame.data), dict) for frame in frames if frame.data)
