from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.wire.frame import Frame, StreamTooLarge
from proxy.wire.sse import SSEParser


def parse(stream: bytes, cuts: list[int] | None = None) -> list[Frame]:
    parser = SSEParser()
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts or [])})
    events = [event for start, end in pairwise(places) for event in parser.feed(stream[start:end])]
    last = parser.finish()
    assert parser.pending() == b""
    return [*events, last] if last else events


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"", []),
        (b'data: {"a": 1}\n\n', [(b'{"a": 1}', b"")]),
        (b"data: a\n\ndata: b\n\n", [(b"a", b""), (b"b", b"")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"a", b""), (b"b", b"")]),
        (b"data: a\r\rdata: b\r\r", [(b"a", b""), (b"b", b"")]),
        (b"data: a\r\n\ndata: b\n\r\n", [(b"a", b""), (b"b", b"")]),
        (b"data:a\n\n", [(b"a", b"")]),
        (b"data:  a \n\n", [(b" a ", b"")]),
        (b"data: a\ndata: b\ndata\n\n", [(b"a\nb\n", b"")]),
        (b"data\n\n", [(b"", b"")]),
        (b"event: error\ndata: {}\n\n", [(b"{}", b"error")]),
        (b"event:error\r\ndata:{}\r\n\r\n", [(b"{}", b"error")]),
        (b"id: 7\nretry: 10\nunknown: x\ndata: a\n\n", [(b"a", b"")]),
        (b": comment\n\n", [(b"", b"")]),
        (b": comment\ndata: a\n\n", [(b"a", b"")]),
        (b"\n\n\r\n\rdata: a\n\n\n\n", [(b"a", b""), (b"", b"")]),
        (b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [(b"a", b""), (b"b", b"")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(b"a", b""), (b"", b"")]),
        (b"data: a:b\n\n", [(b"a:b", b"")]),
        (b"data: \xc3\xa4\x00\x85\x0b\x0c\n\n", [(b"\xc3\xa4\x00\x85\x0b\x0c", b"")]),
        (b"data: a\n\ndata: [DONE]\n", [(b"a", b""), (b"[DONE]", b"")]),
        (b"data: a\n\ndata: cut sho", [(b"a", b""), (b"cut sho", b"")]),
        (b"datax: a\n data: b\n\n", [(b"", b"")]),
    ],
)
def test_streams_mean_what_the_standard_says(stream: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    events = parse(stream)
    assert [(event.data, event.event) for event in events] == expected
    assert b"".join(event.raw for event in events) == stream


lines = st.sampled_from(
    [
        b"data: a",
        b"data: b\n",
        b"data:",
        b"data",
        b"event: e",
        b": c",
        b"",
        b"",
        b"x",
        b"\xef\xbb\xbf",
        b"data: \xc3\xa4",
    ]
)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
streams = st.lists(st.tuples(lines, ends).map(b"".join), max_size=30).map(b"".join) | st.binary(max_size=60)


@given(streams, st.lists(st.integers(0, 1000), max_size=20))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", list(range(30)))
@example(b"\n" * 10, list(range(10)))
def test_any_cut_gives_the_same_events_and_every_byte(stream: bytes, cuts: list[int]) -> None:
    events = parse(stream, cuts)
    assert events == parse(stream)
    assert b"".join(event.raw for event in events) == stream


def test_an_event_is_given_out_with_its_last_byte() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.pending() == b"data: a\n"
    assert parser.feed(b"\n") == [Frame(b"data: a\n\n", b"a", b"")]
    assert parser.pending() == b""


def test_a_carriage_return_waits_for_the_byte_after_it() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\r\n\r") == []
    assert parser.feed(b"\n") == [Frame(b"data: a\r\n\r\n", b"a", b"")]


def test_a_chunk_of_one_event_is_not_copied() -> None:
    chunk = b'data: {"choices": []}\n\n'
    assert SSEParser().feed(chunk)[0].raw is chunk


@pytest.mark.parametrize("piece", [b"data: xxxxxxxxxx", b"\n", b"\r", b"\r\n", b"data:\n", b": c\n", b"\x00"])
def test_an_endless_event_is_refused_and_memory_stays_bounded(piece: bytes) -> None:
    parser = SSEParser(event_bytes_max=10_000, event_lines_max=1_000)
    with pytest.raises(StreamTooLarge):
        for _ in range(20_000):
            parser.feed(piece)
            assert len(parser.pending()) <= 10_000


@pytest.mark.parametrize("cut", [0, 5_000, 10_001])
def test_an_event_past_the_bound_is_refused_wherever_it_is_cut(cut: int) -> None:
    event = b"data: " + b"x" * 10_000 + b"\n\n"
    parser = SSEParser(event_bytes_max=10_000)
    with pytest.raises(StreamTooLarge):
        for part in (event[:cut], event[cut:]):
            parser.feed(part)


def test_an_event_of_too_many_lines_is_refused_in_one_chunk_too() -> None:
    with pytest.raises(StreamTooLarge):
        SSEParser(event_lines_max=100).feed(b"data:\n" * 101 + b"\n")


def test_lines_are_counted_alike_wherever_they_are_cut() -> None:
    event = b"data:\r\n" * 4 + b"\r\n"
    parser = SSEParser(event_lines_max=5)
    assert [frame.raw for byte in event for frame in parser.feed(bytes([byte]))] == [event]


def test_a_large_event_in_many_small_chunks_takes_linear_time() -> None:
    parser = SSEParser()
    for _ in range(1_000_000):
        parser.feed(b"x")
    assert len(parser.feed(b"\n\n")) == 1
