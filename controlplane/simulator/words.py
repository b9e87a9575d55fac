"""What answers say: prose, JSON, vectors, a picture, a sound. The same every time. Pure; no shape of any provider.

A token is what stands between two blanks, of the output as of the input, whether it is prose or JSON.
"""

import base64
import binascii
import functools
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

_TEXTS_MAX = 64
_AXES_MAX = 16
_VECTORS_MAX = 256
_SCHEMA_DEPTH_MAX = 12
DIMENSIONS = 256

_PLAIN_TEXT = "Every word of this answer is one token so that whoever reads along can count what it costs"
# Two, three and four bytes a character.
_WIDE_TEXT = "żółw größer naïve 日本語 трава 한국어 🙂 ελιά"

encode = msgspec.json.Encoder().encode


def count_tokens(text: str) -> int:
    """Anybody can count that again, and no text has more tokens than bytes plus one."""
    return text.count(" ") + 1


def escaped(text: str) -> bytes:
    """As it stands in JSON, without its quotes."""
    return encode(text)[1:-1]


# Prose and JSON, a token at a time


def word(position: int, *, is_wide: bool = False) -> bytes:
    """The visible text of one token, JSON-escaped, without its quotes."""
    words = _WIDE if is_wide else _PLAIN
    return words[position % len(words)] if position else words[0][1:]


@functools.lru_cache(_TEXTS_MAX)
def text(tokens: int, *, is_wide: bool = False) -> bytes:
    return b"".join(word(position, is_wide=is_wide) for position in range(tokens))


_PLAIN = [escaped(f" {word}") for word in _PLAIN_TEXT.split()]
_WIDE = [escaped(f" {word}") for word in _WIDE_TEXT.split()]


class Saying(Protocol):
    """Something to be said in `tokens` pieces, each of them JSON-escaped."""

    tokens: int

    def piece(self, position: int) -> bytes: ...

    def whole(self) -> bytes: ...


class Prose:
    """As many words as are wanted."""

    __slots__ = ("_is_wide", "tokens")

    def __init__(self, tokens: int, *, is_wide: bool = False) -> None:
        self.tokens = tokens
        self._is_wide = is_wide

    def piece(self, position: int) -> bytes:
        return word(position, is_wide=self._is_wide)

    def whole(self) -> bytes:
        return text(self.tokens, is_wide=self._is_wide)


class Argument(Prose):
    """The same words as a tool's arguments: `{"words":"…"}`, however many there are."""

    __slots__ = ()

    def piece(self, position: int) -> bytes:
        opened = b'{\\"words\\":\\"' if position == 0 else b""
        closed = b'\\"}' if position == self.tokens - 1 else b""
        return opened + super().piece(position) + closed

    def whole(self) -> bytes:
        return b'{\\"words\\":\\"%b\\"}' % super().whole() if self.tokens else b""


class Given:
    """A text that is told beforehand, at most `tokens_max` of its words."""

    __slots__ = ("_pieces", "tokens")

    def __init__(self, given: str, tokens_max: int) -> None:
        first, *others = given.split(" ")
        self._pieces = [escaped(first), *(escaped(f" {other}") for other in others)][:tokens_max]
        self.tokens = len(self._pieces)

    def piece(self, position: int) -> bytes:
        return self._pieces[position]

    def whole(self) -> bytes:
        return b"".join(self._pieces)


def as_object(saying: Saying) -> bytes:
    """The arguments of a tool as JSON, where a shape has them as an object; `{}` where they were cut short."""
    said = msgspec.json.decode(b'"%b"' % saying.whole(), type=str).encode()
    try:
        msgspec.json.decode(said)
    except msgspec.DecodeError:
        return b"{}"
    return said


def spaced_json(value: object) -> str:
    """With a blank after each comma and colon, so that it has tokens."""
    if isinstance(value, dict):
        items = (f"{encode(str(name)).decode()}: {spaced_json(item)}" for name, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spaced_json, value)) + "]"
    return encode(value).decode()


# What fits a schema

_SAMPLES: Mapping[str, Any] = {
    "string": "word",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "null": None,
}
_FORMATS = {
    "date": "2026-01-31",
    "time": "12:30:00Z",
    "date-time": "2026-01-31T12:30:00Z",
    "email": "word@example.com",
    "uuid": "00000000-0000-4000-8000-000000000001",
    "uri": "https://example.com/word",
}


def fitting(schema: object) -> Any:
    """A small value that fits the simplest JSON schemas (Gemini's too, whose types are in capitals)."""
    return _fit(schema, schema, 0)


def _fit(schema: object, root: object, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH_MAX:
        return {} if depth == 0 else None
    if isinstance(schema.get("$ref"), str):
        return _fit(_follow(schema["$ref"], root), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if isinstance(schema.get(choice), list) and schema[choice]:
            return _fit(schema[choice][0], root, depth + 1)
    if isinstance(schema.get("allOf"), list) and schema["allOf"]:
        return _fit_all(schema["allOf"], root, depth)
    kind = _kind(schema)
    if kind == "object":
        properties = schema.get("properties")
        named = properties.items() if isinstance(properties, dict) else ()
        return {name: _fit(inner, root, depth + 1) for name, inner in named}
    if kind == "array":
        count = schema.get("minItems")
        inner = _fit(schema.get("items", {"type": "string"}), root, depth + 1)
        return [inner] * (count if isinstance(count, int) and 0 < count < 100 else 1)
    return _fit_plain(schema, kind)


def _fit_all(schemas: Sequence[object], root: object, depth: int) -> Any:
    fits = [_fit(schema, root, depth + 1) for schema in schemas]
    objects = [fit for fit in fits if isinstance(fit, dict)]
    return {name: value for fit in objects for name, value in fit.items()} if objects else fits[0]


def _fit_plain(schema: Mapping[str, Any], kind: str) -> Any:
    lowest = schema.get("minimum")
    if kind in ("integer", "number") and isinstance(lowest, int | float):
        return lowest
    if kind != "string":
        return _SAMPLES.get(kind)
    sample = _FORMATS.get(str(schema.get("format")), _SAMPLES["string"])
    shortest, longest = schema.get("minLength"), schema.get("maxLength")
    sample = sample.ljust(min(shortest, 10_000), "x") if isinstance(shortest, int) else sample
    return sample[:longest] if isinstance(longest, int) and longest >= 0 else sample


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "null")
    if isinstance(kind, str):
        return kind.lower()
    return "array" if "items" in schema else "object"


def _follow(reference: str, root: object) -> object:
    """Within the same schema: `#/$defs/Name`."""
    place = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
    return place


# Vectors


def place(item: str | list[int]) -> int:
    """Every text has a vector of its own, as far as checksums go."""
    return zlib.crc32(item.encode(errors="surrogatepass") if isinstance(item, str) else encode(item))


@functools.lru_cache(_AXES_MAX)
def _axis(dimensions: int) -> list[float]:
    """A vector of length one. Every text gets it turned by as many places as its checksum says."""
    raw = [((position * 7919) % 1009 - 504) or 1 for position in range(dimensions)]
    length = sum(value * value for value in raw) ** 0.5
    return [round(value / length, 8) for value in raw]


@functools.lru_cache(_VECTORS_MAX)
def vector_json(dimensions: int, turn: int) -> bytes:
    axis = _axis(dimensions)
    return encode(axis[turn:] + axis[:turn])


@functools.lru_cache(_VECTORS_MAX)
def vector_base64(dimensions: int, turn: int) -> bytes:
    axis = _axis(dimensions)
    return b'"%b"' % base64.b64encode(struct.pack(f"<{dimensions}f", *axis[turn:], *axis[:turn]))


# A picture, a sound


def _png_part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", binascii.crc32(kind + content))


@functools.lru_cache(1)
def picture() -> bytes:
    """A PNG of 16 times 16 grey pixels."""
    rows = b"".join(b"\0" + bytes(range(0, 256, 16)) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_part(kind, content) for kind, content in parts)


@functools.lru_cache(_TEXTS_MAX)
def sound(milliseconds: int) -> bytes:
    """A WAV of a square wave: 8,000 samples a second, a byte each."""
    samples = (b"\x60" * 10 + b"\xa0" * 10) * (milliseconds * 8 // 20)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8_000, 8_000, 1, 8)
    content = b"WAVE" + form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI", b"RIFF", len(content)) + content
