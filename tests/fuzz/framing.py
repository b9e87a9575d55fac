"""Coverage-guided fuzzing of what takes bytes from outside apart: `make fuzz ARGS=sse`, or `ARGS="sse -max_total_time=60"`.

Each target holds a parser to what `proxy/wire/frame.py` promises, for any bytes at any cut: the raw bytes of its frames, and
then what is pending, are the bytes that were fed; other cuts give the same frames; what is pending is bounded; nothing is
raised but what is declared. Arguments after the target are libFuzzer's; a directory among them keeps what it finds.
"""

import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import atheris

with atheris.instrument_imports(include=["proxy.wire"]):
    from proxy.wire.event_stream import EventStreamParser
    from proxy.wire.frame import Frame, FrameParser, StreamMalformed, StreamTooLarge
    from proxy.wire.json_array import JSONArrayParser
    from proxy.wire.json_gate import MalformedBody, dump_object, parse_object
    from proxy.wire.json_lines import JSONLinesParser
    from proxy.wire.multipart import MalformedForm, field, parse_form, replace_field
    from proxy.wire.sse import SSEParser

# Small, so that inputs reach it.
FRAME_BYTES_MAX = 64
FRAME_LINES_MAX = 8
INPUT_BYTES_MAX = 512


class Read(NamedTuple):
    """What became of a stream: its frames, and the exception that ended it, if any."""

    frames: list[Frame]
    failure: type[Exception] | None


def read(parser: FrameParser, pieces: Sequence[bytes]) -> Read:
    """Checks the law of exact bytes on the way."""
    frames: list[Frame] = []
    fed = b""
    for piece in pieces:
        fed += piece
        try:
            frames += parser.feed(piece)
        except (StreamTooLarge, StreamMalformed) as failure:
            return Read(frames, type(failure))
        passed = sum(len(frame.raw) for frame in frames)
        assert passed <= len(fed), "a frame has bytes that nobody fed"
    tail = parser.finish()
    if tail is not None:
        frames.append(tail)
    assert b"".join(frame.raw for frame in frames) == fed, "the raw bytes are not those that were fed"
    assert parser.finish() is None, "a stream ends once"
    return Read(frames, None)


def cut(data: bytes) -> Iterator[bytes]:
    """The first byte says where to cut the rest, by its bits: every so many bytes, or nearly anywhere."""
    seed = data[0] if data else 0
    rest = data[1:]
    at = 0
    while at < len(rest):
        size = 1 + (seed & 7) if seed < 128 else 1 + (seed * (at + 7) & 31)
        yield rest[at : at + size]
        at += size


def framing(make: Callable[[], FrameParser], *, closes: bool = False) -> Callable[[bytes], None]:
    """Where something `closes` the stream, what comes after it, which says nothing, is cut as it comes."""

    def said(frames: list[Frame]) -> list[Frame] | list[tuple[bytes, bytes]]:
        return [(frame.data, frame.event) for frame in frames if frame.data] if closes else frames

    def check(data: bytes) -> None:
        pieces = list(cut(data))
        stream = b"".join(pieces)
        whole = read(make(), [stream])
        for other in (read(make(), pieces), read(make(), [bytes([byte]) for byte in stream])):
            if closes and StreamTooLarge in (whole.failure, other.failure):
                continue
            assert other.failure == whole.failure, "another cut fails otherwise"
            if whole.failure is None:  # What came before a failure was passed on, as far as it was cut off.
                assert said(other.frames) == said(whole.frames), "another cut gives other frames"

    return check


def messages(data: bytes) -> bytes:
    """A stream with lengths and checksums that are right, mostly: no fuzzer finds a checksum."""
    stream = data[:1]
    at = 1
    while at + 3 <= len(data):
        headers_length, payload_length, damage = data[at] % 40, data[at + 1] % 24, data[at + 2]
        at += 3
        headers, payload = (
            data[at : at + headers_length],
            data[at + headers_length : at + headers_length + payload_length],
        )
        at += headers_length + payload_length
        prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
        message = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
        message += struct.pack(">I", crc32(message))
        if damage > 250:
            message = message[: damage % len(message)] + b"x" + message[damage % len(message) :]
        stream += message
    return stream


def check_messages(data: bytes) -> None:
    _check_messages(messages(data))


_check_messages = framing(lambda: EventStreamParser(FRAME_BYTES_MAX))


def check_form(data: bytes) -> None:
    """The first line is the content type, the rest the body."""
    content_type, _, body = data.partition(b"\n")
    try:
        parts = parse_form(body, content_type)
    except MalformedForm:
        return
    end = 0
    for part in parts:
        assert end <= part.start <= part.end <= len(body), "parts overlap, or lie outside"
        end = part.end
        try:
            value = field(parts, body, part.name)
        except MalformedForm:
            return
        if value is not None:
            assert replace_field(parts, body, part.name, value) == body or "\ufffd" in value


def check_object(data: bytes) -> None:
    try:
        fields = parse_object(data)
    except MalformedBody:
        return
    assert parse_object(dump_object(fields)) == fields, "what was written again reads otherwise"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "sse": framing(lambda: SSEParser(FRAME_BYTES_MAX, FRAME_LINES_MAX)),
    "event_stream": check_messages,
    "json_lines": framing(lambda: JSONLinesParser(FRAME_BYTES_MAX)),
    "json_array": framing(lambda: JSONArrayParser(FRAME_BYTES_MAX), closes=True),
    "multipart": check_form,
    "json_gate": check_object,
}
# Where to begin: what each parser takes, after the byte that says how it is cut.
SEEDS: dict[str, tuple[bytes, ...]] = {
    "sse": (
        b"\x03data: {}\n\n",
        b"\x01\xef\xbb\xbfevent: e\r\ndata: a\r\ndata: b\r\n\r\n: c\r\n\r\n",
        b"\xf3data:a\r\rid: 1\rdata\r\r\n",
    ),
    "event_stream": (
        b"\x03\x14\x04\x00\x0b:event-type\x07\x00\x05chunk{  }",
        b"\x02\x15\x02\x00\x0f:exception-type\x07\x00\x02no{}\x04\x00\xff\x01a\x00\x00",
    ),
    "json_lines": (b"\x02{}\n{}\r\n\n", b"\x05 {} \n{"),
    "json_array": (b'\x02[{"a": "\\"}{["}\n,\r\n{"b": [{}, []]}\n]\n', b"\x01[]"),
    "multipart": (
        b'multipart/form-data; boundary=b\n--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n\r\n--b--\r\n',
    ),
    "json_gate": (b'{"a": [1, 2.5, "\\u0022", null], "b": {"c": true}}', b'{"a":1,"\\u0061":2}'),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: framing.py {'|'.join(TARGETS)} [libFuzzer's options, directories of inputs]")
    target = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="tollgate-fuzz-") as seeds:
        for number, seed in enumerate(SEEDS[target]):
            (Path(seeds) / str(number)).write_bytes(seed)
        # The last option counts: those that are given win.
        options = [f"-max_len={INPUT_BYTES_MAX}", "-timeout=10", *sys.argv[2:]]
        atheris.Setup([sys.argv[0], *options, seeds], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
