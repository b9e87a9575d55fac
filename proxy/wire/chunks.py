"""No framing at all: the bytes of an answer that has no events, such as audio, as they come. No I/O."""

from proxy.wire.frame import Frame


class Chunks:
    """Each chunk is a frame without data: nothing of it is read, so nothing needs to be held back."""

    def feed(self, chunk: bytes) -> list[Frame]:
        return [Frame(chunk, b"", b"")]

    def finish(self) -> Frame | None:
        return None
