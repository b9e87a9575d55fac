"""A JSON array that is streamed element by element: bytes in, one frame for each object out, every byte accounted for. No I/O.

Google's APIs stream so unless they are asked for server-sent events: `[{…}\\n,\\r\\n{…}\\n]`. Only the objects' bounds are
found here; whether they are good JSON shows where they are decoded.
"""

import re

from proxy.wire.frame import Frame, StreamMalformed, StreamTooLarge

# Generated images come as base64 within one element.
ELEMENT_BYTES_MAX = 32 * 1024 * 1024

_BETWEEN = re.compile(rb"[\s,\[\]]*")
_STRUCTURE = re.compile(rb'["{}\[\]]')
_STRING_STOP = re.compile(rb'["\\]')
_QUOTE, _OPENING = ord('"'), b"{["


class JSONArrayParser:
    """One stream. `raw` holds what stands before the object too; what closes the array is a frame without data."""

    def __init__(self, element_bytes_max: int = ELEMENT_BYTES_MAX) -> None:
        self.element_bytes_max = element_bytes_max
        self._pending = bytearray()
        # Where to read on, and where the open object began; both within what is pending.
        self._at = 0
        self._object_at = 0
        self._depth = 0
        self._is_in_string = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """The objects that `chunk` completes. Raises `StreamTooLarge` or `StreamMalformed`."""
        text = self._pending
        text += chunk
        frames: list[Frame] = []
        start, at = 0, self._at
        while at < len(text):
            if not self._depth:
                at = self._skip_to_object(text, at)
            elif self._is_in_string:
                at = self._skip_in_string(text, at)
            else:
                at = self._skip_in_object(text, at)
                if not self._depth:
                    self._check_bound(at - start)
                    frames.append(Frame(bytes(text[start:at]), bytes(text[self._object_at : at]), b""))
                    start = at
        if not self._depth and b"]" in text[start:]:
            frames.append(Frame(bytes(text[start:]), b"", b""))
            start = len(text)
        del text[:start]
        self._at = at - start
        self._object_at -= start
        self._check_bound(len(text))
        return frames

    def finish(self) -> Frame | None:
        """The stream has ended: what is pending, as a frame that was cut short."""
        raw = bytes(self._pending)
        self._pending.clear()
        self._at = 0
        return Frame(raw, raw[self._object_at :] if self._depth else b"", b"") if raw else None

    def _skip_to_object(self, text: bytearray, at: int) -> int:
        found = _BETWEEN.match(text, at)
        assert found is not None, "it matches nothing, too"
        at = found.end()
        if at == len(text):
            return at
        if text[at] != _OPENING[0]:
            raise StreamMalformed("the stream is no array of objects")
        self._object_at = at
        self._depth = 1
        return at + 1

    def _skip_in_string(self, text: bytearray, at: int) -> int:
        found = _STRING_STOP.search(text, at)
        if found is None:
            return len(text)
        if text[found.start()] == _QUOTE:
            self._is_in_string = False
            return found.end()
        return found.end() + 1  # What is escaped may come with the next chunk, and is passed over all the same.

    def _skip_in_object(self, text: bytearray, at: int) -> int:
        found = _STRUCTURE.search(text, at)
        if found is None:
            return len(text)
        byte = text[found.start()]
        if byte == _QUOTE:
            self._is_in_string = True
        elif byte in _OPENING:
            self._depth += 1
        else:
            self._depth -= 1
        return found.end()

    def _check_bound(self, element_bytes: int) -> None:
        if element_bytes > self.element_bytes_max:
            raise StreamTooLarge(f"an element of the stream has more than {self.element_bytes_max} bytes")
