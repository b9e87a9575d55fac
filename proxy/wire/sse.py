"""Server-sent events: bytes in, events out, and every byte accounted for. No I/O, no idea of what the data says.

The raw bytes of all events, and then those still pending, are exactly the bytes that were fed: a stream that needs no
change is relayed as it came. Lines end in `\\n`, `\\r\\n` or `\\r`, as the standard of the event stream allows.
"""

import re

from proxy.wire.frame import Frame, StreamTooLarge

EVENT_BYTES_MAX = 1024 * 1024
EVENT_LINES_MAX = 16_384

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# The end of a line that is not empty, then an empty line. It begins with a literal, so that text is passed over quickly.
_EVENT_END = re.compile(rb"\n(?<=[^\r\n]\n)(?:\n|\r\n?)|\r(?<=[^\r\n]\r)(?:\n(?:\n|\r\n?)|\r\n?)")
# What a pattern that straddles two chunks may have in the first: a byte, `\r\n`, `\r`.
_STRADDLED_BYTES = 4
_CARRIAGE_RETURN = 0x0D


class SSEParser:
    """One stream. `raw` holds the empty line that ends the event, and those before it; a block of comments is a frame without
    data and event. After `StreamTooLarge` the stream is lost: nothing more may be fed."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX, event_lines_max: int = EVENT_LINES_MAX) -> None:
        self.event_bytes_max = event_bytes_max
        self.event_lines_max = event_lines_max
        self._pending = bytearray()
        # Ends of lines in what is pending, each kind by itself: the two of a `\r\n` may come apart.
        self._newlines = 0
        self._returns = 0
        self._is_first = True

    def feed(self, chunk: bytes) -> list[Frame]:
        """The events that `chunk` completes. Raises `StreamTooLarge`."""
        # Nearly every chunk is one event of one data line, or several such.
        if (
            not self._pending
            and chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\r") < 0
            and len(chunk) <= self.event_bytes_max
        ):
            self._is_first = False
            if chunk.find(b"\n") == len(chunk) - 2:
                return [Frame(chunk, chunk[6:-2], b"")]
            if chunk.count(b"\n") == 2 * chunk.count(b"\n\ndata: ") + 2:
                return [Frame(part + b"\n\n", part[6:], b"") for part in chunk[:-2].split(b"\n\n")]
        return self._feed_slowly(chunk)

    def pending(self) -> bytes:
        """What belongs to no event yet."""
        return bytes(self._pending)

    def finish(self) -> Frame | None:
        """The stream has ended: what is pending, as an event. The last one may lack its empty line, or be cut short."""
        raw = bytes(self._pending)
        self._pending.clear()
        self._newlines = self._returns = 0
        return self._parse(raw) if raw else None

    def _feed_slowly(self, chunk: bytes) -> list[Frame]:
        search_from = max(0, len(self._pending) - _STRADDLED_BYTES)
        text: bytes | bytearray = chunk
        if self._pending:
            self._pending += chunk
            text = self._pending
        events: list[Frame] = []
        start = 0
        while (found := _EVENT_END.search(text, search_from)) is not None:
            end = found.end()
            if end == len(text) and text[-1] == _CARRIAGE_RETURN:
                break  # The `\n` of this `\r` may come with the next chunk.
            raw = bytes(text[start:end])
            self._check_bounds(len(raw), raw.count(b"\n"), raw.count(b"\r"))
            events.append(self._parse(raw))
            start = search_from = end
        fed: bytes | bytearray = chunk
        if start or text is chunk:
            fed = self._pending = bytearray(text[start:])
            self._newlines = self._returns = 0
        self._newlines += fed.count(b"\n")
        self._returns += fed.count(b"\r")
        self._check_bounds(len(self._pending), self._newlines, self._returns)
        return events

    def _check_bounds(self, event_bytes: int, newlines: int, returns: int) -> None:
        if event_bytes > self.event_bytes_max:
            raise StreamTooLarge(f"an event of the stream has more than {self.event_bytes_max} bytes")
        if max(newlines, returns) > self.event_lines_max:
            raise StreamTooLarge(f"an event of the stream has more than {self.event_lines_max} lines")

    def _parse(self, raw: bytes) -> Frame:
        text = raw
        if self._is_first:
            self._is_first = False
            text = raw.removeprefix(_BYTE_ORDER_MARK)
        data: list[bytes] = []
        event = b""
        for line in text.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                event = value.removeprefix(b" ")
        return Frame(raw, data[0] if len(data) == 1 else b"\n".join(data), event)
