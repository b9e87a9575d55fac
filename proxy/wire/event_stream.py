"""Amazon's event stream (`application/vnd.amazon.eventstream`): bytes in, frames out, every byte accounted for. No I/O.

A message is a prelude (its length, its headers' length, a CRC32 of both), headers, a payload, and a CRC32 of it all; numbers
are big-endian. Source: "Event stream encoding" of the Smithy and the Amazon Transcribe documentation.
"""

import struct
from zlib import crc32

import msgspec

from proxy.wire.frame import Frame, StreamMalformed, StreamTooLarge

# The specification's own bound is 24 MB; the largest that was seen is a delta of an image.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
HEADERS_BYTES_MAX = 128 * 1024

EXCEPTION = b"exception:"

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_LENGTH = struct.Struct(">H")
_MESSAGE_BYTES_MIN = _PRELUDE.size + _CRC.size
# The size of a value by its type; bytes and text bring theirs along.
_VALUE_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTES, _TEXT = 6, 7


class EventStreamParser:
    """One stream. A frame's `event` is its `:event-type`, and `exception:` with the type where the stream reports a failure;
    `data` is the payload. What cannot be checked to be whole is `StreamMalformed`."""

    def __init__(self, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.message_bytes_max = message_bytes_max
        self._pending = bytearray()
        # Of the message that is pending, where its prelude has come.
        self._length = 0

    def feed(self, chunk: bytes) -> list[Frame]:
        """The messages that `chunk` completes. Raises `StreamTooLarge` or `StreamMalformed`."""
        if self._pending:
            self._pending += chunk
            if len(self._pending) < (self._length or _PRELUDE.size):
                return []
            chunk = bytes(self._pending)
            self._pending.clear()
        frames: list[Frame] = []
        start = 0
        self._length = 0
        while len(chunk) - start >= _PRELUDE.size:
            headers_end, length = self._read_prelude(chunk, start)
            if len(chunk) - start < length:
                self._length = length
                break
            frames.append(_parse(chunk[start : start + length], headers_end))
            start += length
        self._pending += chunk[start:]
        return frames

    def finish(self) -> Frame | None:
        """The stream has ended: a message that was cut short, as a frame that says nothing."""
        raw = bytes(self._pending)
        self._pending.clear()
        self._length = 0
        return Frame(raw, b"", b"") if raw else None

    def _read_prelude(self, text: bytes, start: int) -> tuple[int, int]:
        """(where its headers end, how long it is) of the message that begins at `start`."""
        length, headers_length, checksum = _PRELUDE.unpack_from(text, start)
        if crc32(text[start : start + _PRELUDE.size - _CRC.size]) != checksum:
            raise StreamMalformed("the prelude of a message does not match its checksum")
        if length > self.message_bytes_max or headers_length > HEADERS_BYTES_MAX:
            raise StreamTooLarge(f"a message of the stream has more than {self.message_bytes_max} bytes")
        if length < _MESSAGE_BYTES_MIN + headers_length:
            raise StreamMalformed("a message is shorter than its parts")
        return _PRELUDE.size + headers_length, length


def _parse(raw: bytes, headers_end: int) -> Frame:
    payload_end = len(raw) - _CRC.size
    (checksum,) = _CRC.unpack_from(raw, payload_end)
    if crc32(raw[:payload_end]) != checksum:
        raise StreamMalformed("a message does not match its checksum")
    headers = _texts(raw, headers_end)
    payload = raw[headers_end:payload_end]
    exception = headers.get(b":exception-type")
    if exception is not None:
        return Frame(raw, payload, EXCEPTION + exception)
    if headers.get(b":message-type") == b"error":
        # A failure that the service did not model has no payload: its headers say it all.
        message = {"message": headers.get(b":error-message", b"").decode("utf-8", "replace")}
        return Frame(raw, msgspec.json.encode(message), EXCEPTION + headers.get(b":error-code", b""))
    return Frame(raw, payload, headers.get(b":event-type", b""))


def _texts(raw: bytes, end: int) -> dict[bytes, bytes]:
    """The headers that are text, or bytes; the others are passed over. Raises `StreamMalformed`."""
    headers: dict[bytes, bytes] = {}
    at = _PRELUDE.size
    try:
        while at < end:
            value_at = at + 1 + raw[at]
            name, kind = raw[at + 1 : value_at], raw[value_at]
            value_at += 1
            if kind in (_TEXT, _BYTES):
                (length,) = _LENGTH.unpack_from(raw, value_at)
                value_at += _LENGTH.size
                headers[name] = raw[value_at : value_at + length]
            else:
                length = _VALUE_BYTES[kind]
            at = value_at + length
    except (IndexError, KeyError, struct.error) as error:
        raise StreamMalformed("the headers of a message cannot be read") from error
    if at != end:
        raise StreamMalformed("the headers of a message end elsewhere than they say")
    return headers
