"""What every framing of a stream yields, and what it promises. No I/O.

Server-sent events, AWS event streams, JSON lines and a streamed JSON array differ only in how their frames are told apart:
bytes in at any cut, frames out, bounded in bytes and lines. The `raw` of all frames, and then what is pending, are exactly
the bytes that were fed: a stream that needs no change is relayed as it came.
"""

from typing import NamedTuple, Protocol


class StreamTooLarge(Exception):
    """A frame without end, in bytes or in lines."""


class StreamMalformed(Exception):
    """Not frames of this kind: a checksum that is wrong, a length that cannot be."""


class Frame(NamedTuple):
    """`raw` holds everything of the frame. `data` is its JSON, mostly; `event` its kind where the framing has one.
    Comments and paddings are frames without data and event."""

    raw: bytes
    data: bytes
    event: bytes


class FrameParser(Protocol):
    """One stream. After an exception the stream is lost: nothing more may be fed."""

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` completes. Raises `StreamTooLarge` or `StreamMalformed`."""
        ...

    def finish(self) -> Frame | None:
        """The stream has ended: what is pending, as a frame; it may have been cut short."""
        ...
