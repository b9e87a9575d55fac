import base64
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.event_stream import EventStreamParser
from proxy.wire.frame import Frame, StreamMalformed, StreamTooLarge

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings"


def text(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value.encode())) + value.encode()


def message(payload: bytes, headers: bytes = b"") -> bytes:
    prelude = struct.pack(">II", len(headers) + len(payload) + 16, len(headers))
    prelude += struct.pack(">I", crc32(prelude))
    whole = prelude + headers + payload
    return whole + struct.pack(">I", crc32(whole))


def parse(stream: bytes, cuts: list[int] | None = None) -> list[Frame]:
    parser = EventStreamParser()
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts or [])})
    frames = [frame for start, end in pairwise(places) for frame in parser.feed(stream[start:end])]
    last = parser.finish()
    return [*frames, last] if last else frames


EVENT = text(":message-type", "event") + text(":event-type", "contentBlockDelta")
STREAM = message(b'{"a":1}', EVENT) + message(b"", EVENT) + message(b'{"b":2}', EVENT)


def test_an_event_is_its_type_and_its_payload() -> None:
    assert [(frame.event, frame.data) for frame in parse(STREAM)] == [
        (b"contentBlockDelta", b'{"a":1}'),
        (b"contentBlockDelta", b""),
        (b"contentBlockDelta", b'{"b":2}'),
    ]


def test_an_exception_is_told_from_an_event() -> None:
    headers = text(":exception-type", "throttlingException") + text(":message-type", "exception")
    (frame,) = parse(message(b'{"message":"slow down"}', headers))
    assert frame == Frame(frame.raw, b'{"message":"slow down"}', b"exception:throttlingException")


def test_an_error_that_has_only_headers_says_its_message() -> None:
    headers = text(":message-type", "error") + text(":error-code", "InternalError") + text(":error-message", 'a "b"')
    (frame,) = parse(message(b"", headers))
    assert frame.event == b"exception:InternalError"
    assert json.loads(frame.data) == {"message": 'a "b"'}


def test_headers_of_every_type_are_passed_over() -> None:
    others = b"".join(
        bytes([1]) + b"x" + bytes([kind]) + value
        for kind, value in (
            (0, b""),
            (1, b""),
            (2, b"\1"),
            (3, b"\0\1"),
            (4, bytes(4)),
            (5, bytes(8)),
            (6, b"\0\3abc"),
            (8, bytes(8)),
            (9, bytes(16)),
        )
    )
    (frame,) = parse(message(b"{}", others + EVENT))
    assert frame.event == b"contentBlockDelta"


@given(st.lists(st.integers(min_value=0, max_value=1_000), max_size=12))
def test_any_cut_gives_the_same_frames(cuts: list[int]) -> None:
    frames = parse(STREAM, cuts)
    assert frames == parse(STREAM)
    assert b"".join(frame.raw for frame in frames) == STREAM


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=300))
def test_bytes_that_are_no_message_are_refused_or_pending(noise: bytes, cut: int) -> None:
    parser = EventStreamParser()
    try:
        frames = [*parser.feed(noise[:cut]), *parser.feed(noise[cut:])]
    except (StreamMalformed, StreamTooLarge):
        return
    last = parser.finish()
    assert b"".join(frame.raw for frame in [*frames, *([last] if last else [])]) == noise


def test_what_was_cut_short_says_nothing() -> None:
    *whole, last = parse(STREAM[:-5])
    assert len(whole) == 2
    assert (last.data, last.event) == (b"", b"")
    assert last.raw == STREAM[len(whole[0].raw) + len(whole[1].raw) : -5]


@pytest.mark.parametrize("at", range(len(message(b'{"a":1}', EVENT))))
def test_any_byte_that_is_wrong_is_noticed(at: int) -> None:
    broken = bytearray(message(b'{"a":1}', EVENT))
    broken[at] ^= 0x10
    with pytest.raises(StreamMalformed):
        parse(bytes(broken))


@pytest.mark.parametrize(
    "headers",
    [
        b"\x09",
        b"\x01x",
        b"\x01x\x07",
        b"\x01x\x07\x00",
        b"\x01x\x07\x00\x09ab",
        b"\x01x\x0a",
        b"\x01x\x05\x00",
        b"\xff",
    ],
)
def test_headers_that_cannot_be_are_malformed(headers: bytes) -> None:
    with pytest.raises(StreamMalformed):
        parse(message(b"", headers))


def test_a_message_shorter_than_its_parts_is_malformed() -> None:
    prelude = struct.pack(">II", 20, 8)
    with pytest.raises(StreamMalformed):
        parse(prelude + struct.pack(">I", crc32(prelude)) + bytes(8))


def test_a_message_is_bounded_before_it_has_come() -> None:
    whole = message(bytes(100))
    with pytest.raises(StreamTooLarge):
        EventStreamParser(message_bytes_max=100).feed(whole[:12])
    prelude = struct.pack(">II", 300_000, 200_000)
    with pytest.raises(StreamTooLarge):
        EventStreamParser().feed(prelude + struct.pack(">I", crc32(prelude)))


def recorded() -> list[Any]:
    if not RECORDINGS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the recordings of real traffic are not here"))]
    index = json.loads((RECORDINGS / "index.json").read_text())
    streams = [entry for entry in index if entry["stream_format"] == "aws-eventstream"]
    return [pytest.param(RECORDINGS / entry["file"], id=entry["id"]) for entry in streams]


@pytest.mark.parametrize("path", recorded())
def test_a_recorded_stream_is_read_to_its_last_byte(path: Path) -> None:
    stream = base64.b64decode(json.loads(path.read_bytes())["response"]["body_base64"])
    frames = parse(stream)
    assert b"".join(frame.raw for frame in frames) == stream
    assert all(frame.event and json.loads(frame.data) for frame in frames)
    assert parse(stream, list(range(0, len(stream), 7))) == frames
