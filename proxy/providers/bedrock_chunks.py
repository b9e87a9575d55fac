"""Bedrock's InvokeModel streams a model's own events, each in base64 within a message of Amazon's. Pure; no I/O."""

import msgspec

from proxy.providers.bedrock_answers import read_exception
from proxy.wire.event_stream import EXCEPTION, EventStreamParser
from proxy.wire.frame import Frame, StreamMalformed
from proxy.wire.json_shape import Shape

_encode = msgspec.json.Encoder().encode
# Anthropic's word for what the status code of an exception says.
_ERROR_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class _Chunk(msgspec.Struct):
    bytes: bytes


class _Kind(msgspec.Struct):
    type: str = ""


_chunks = Shape(_Chunk)
_kinds = Shape(_Kind)


class ClaudeChunks(EventStreamParser):
    """`data` and `event` of a frame are those of Anthropic's event, as its own stream has them; `raw` is Amazon's message.
    An exception becomes Anthropic's `error`."""

    def feed(self, chunk: bytes) -> list[Frame]:
        return [_unwrapped(frame) for frame in super().feed(chunk)]


def as_server_sent(frame: Frame) -> bytes:
    """The frame as Anthropic itself sends it."""
    if not frame.data:
        return b""
    # White space between values may hold line breaks; a line of data may not.
    data = frame.data.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"event: %b\ndata: %b\n\n" % (frame.event, data)


def _unwrapped(frame: Frame) -> Frame:
    if frame.event.startswith(EXCEPTION):
        error = read_exception(frame)
        kind = _ERROR_TYPES.get(error.status_code, "api_error")
        data = _encode({"type": "error", "error": {"type": kind, "message": error.message}})
        return Frame(frame.raw, data, b"error")
    if frame.event != b"chunk":
        return Frame(frame.raw, b"", b"")
    chunk = _chunks.find(frame.data)
    if chunk is None:
        raise StreamMalformed("a chunk of the stream holds no bytes")
    return Frame(frame.raw, chunk.bytes, _event_of(chunk.bytes))


def _event_of(data: bytes) -> bytes:
    """Anthropic names an event by its type; b"" where it has none that could be a name."""
    found = _kinds.find(data)
    return found.type.encode() if found is not None and found.type.isidentifier() else b""
