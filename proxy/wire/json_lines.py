"""JSON lines: bytes in, one frame for each line out, and every byte accounted for. No I/O, no idea of what the JSON says."""

from proxy.wire.frame import Frame, StreamTooLarge

LINE_BYTES_MAX = 1024 * 1024


class JSONLinesParser:
    """One stream. `raw` holds the line with its end (`\\n` or `\\r\\n`); an empty line is a frame without data."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self.line_bytes_max = line_bytes_max
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        """The lines that `chunk` completes. Raises `StreamTooLarge`."""
        frames: list[Frame] = []
        start = 0
        # Only the new bytes are searched: what is pending holds no end of a line.
        while (end := chunk.find(b"\n", start) + 1) > 0:
            raw = chunk[start:end]
            if self._pending:
                raw = bytes(self._pending) + raw
                self._pending.clear()
            self._check_bound(len(raw))
            frames.append(_frame(raw))
            start = end
        self._pending += chunk[start:]
        self._check_bound(len(self._pending))
        return frames

    def finish(self) -> Frame | None:
        """The stream has ended: what is pending, as a frame. The last line may lack its end, or be cut short."""
        raw = bytes(self._pending)
        self._pending.clear()
        return _frame(raw) if raw else None

    def _check_bound(self, line_bytes: int) -> None:
        if line_bytes > self.line_bytes_max:
            raise StreamTooLarge(f"a line of the stream has more than {self.line_bytes_max} bytes")


def _frame(raw: bytes) -> Frame:
    return Frame(raw, raw.strip(), b"")
