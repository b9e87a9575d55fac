"""Amazon's event streams: binary frames with checksums. Pure.

A frame is: length of all, length of the headers, CRC-32 of these two; the headers; the payload; CRC-32 of all before. A header is
the length of its name, the name, 7 for a string, the length of the value, the value.
"""

import functools
import struct
import zlib

_KINDS_MAX = 64
_BLOCK = b" " * (1 << 20)
_MAX_LENGTH = (1 << 32) - 1


def frame(kind: bytes, payload: bytes, *, is_exception: bool = False) -> bytes:
    headers = _headers(kind, is_exception)
    prelude = _prelude(len(headers), len(payload))
    content = prelude + headers + payload
    return content + struct.pack(">I", zlib.crc32(content))


def padded_frame(kind: bytes, before: bytes, blanks: int, after: bytes) -> tuple[bytes, bytes]:
    """The bytes before and after so many blanks in the payload."""
    headers = _headers(kind, False)
    opened = _prelude(len(headers), len(before) + blanks + len(after)) + headers + before
    checksum = zlib.crc32(opened)
    for _ in range(blanks // len(_BLOCK)):
        checksum = zlib.crc32(_BLOCK, checksum)
    checksum = zlib.crc32(after, zlib.crc32(_BLOCK[: blanks % len(_BLOCK)], checksum))
    return opened, after + struct.pack(">I", checksum)


def _prelude(headers_bytes: int, payload_bytes: int) -> bytes:
    # A frame of more than 4 GiB cannot tell its length; one that is so huge is asked for as a fault.
    lengths = struct.pack(">II", min(16 + headers_bytes + payload_bytes, _MAX_LENGTH), headers_bytes)
    return lengths + struct.pack(">I", zlib.crc32(lengths))


@functools.lru_cache(_KINDS_MAX)
def _headers(kind: bytes, is_exception: bool) -> bytes:
    message = b"exception" if is_exception else b"event"
    named = ((b":%b-type" % message, kind), (b":content-type", b"application/json"), (b":message-type", message))
    return b"".join(
        struct.pack(">B", len(name)) + name + struct.pack(">BH", 7, len(value)) + value for name, value in named
    )
