"""WebSocket, as far as a simulator needs it (RFC 6455): the handshake's answer, frames, messages. Pure."""

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MESSAGE_BYTES_MAX = 16 << 20
NORMAL, PROTOCOL_ERROR, TOO_BIG = 1000, 1002, 1009
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION = 0


class BadFrame(Exception):
    """The client breaks the protocol. `code` is what the closing frame says."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Message(NamedTuple):
    opcode: int
    payload: bytes


def handshake(key: bytes, protocol: bytes) -> bytes:
    """The headers that accept the request with this `Sec-WebSocket-Key`."""
    accepted = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 (the RFC has it so)
    chosen = b"sec-websocket-protocol: %b\r\n" % protocol if protocol else b""
    return b"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: %b\r\n%b" % (accepted, chosen)


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole message. A server does not mask."""
    length = len(payload)
    if length < 126:
        return struct.pack(">BB", 0x80 | opcode, length) + payload
    if length < 1 << 16:
        return struct.pack(">BBH", 0x80 | opcode, 126, length) + payload
    return struct.pack(">BBQ", 0x80 | opcode, 127, length) + payload


def text_frame(payload: bytes) -> bytes:
    return frame(TEXT, payload)


def close_frame(code: int) -> bytes:
    return frame(CLOSE, struct.pack(">H", code))


class Reader:
    """Bytes in, messages out: the parts of one are put together, and what comes between them comes first."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._opcode = 0
        self._parts = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Raises `BadFrame`."""
        self._received += data
        while (message := self._next()) is not None:
            opcode, is_final, payload = message
            if opcode >= CLOSE:
                if not is_final or len(payload) > 125:
                    raise BadFrame(PROTOCOL_ERROR)
                yield Message(opcode, payload)
                continue
            if (opcode == _CONTINUATION) != bool(self._opcode) or opcode > BINARY:
                raise BadFrame(PROTOCOL_ERROR)
            self._opcode = self._opcode or opcode
            self._parts += payload
            if len(self._parts) > MESSAGE_BYTES_MAX:
                raise BadFrame(TOO_BIG)
            if is_final:
                whole, self._parts = bytes(self._parts), bytearray()
                opcode, self._opcode = self._opcode, 0
                yield Message(opcode, whole)

    def _next(self) -> tuple[int, bool, bytes] | None:
        """(opcode, whether it is the last part, the payload), once the frame is there."""
        received = self._received
        if len(received) < 2:
            return None
        first, second = received[0], received[1]
        if first & 0x70 or not second & 0x80:  # No extensions, and a client masks.
            raise BadFrame(PROTOCOL_ERROR)
        length, begin = second & 0x7F, 2
        if length >= 126:
            form = ">H" if length == 126 else ">Q"
            begin += struct.calcsize(form)
            if len(received) < begin:
                return None
            (length,) = struct.unpack_from(form, received, 2)
        if length > MESSAGE_BYTES_MAX:
            raise BadFrame(TOO_BIG)
        end = begin + 4 + length
        if len(received) < end:
            return None
        payload = _unmask(bytes(received[begin + 4 : end]), bytes(received[begin : begin + 4]))
        del received[:end]
        return first & 0x0F, bool(first & 0x80), payload


def _unmask(payload: bytes, mask: bytes) -> bytes:
    """XOR with the mask over and over; as one number, because that is fast."""
    length = len(payload)
    over = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload) ^ int.from_bytes(over)).to_bytes(length)
