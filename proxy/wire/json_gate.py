"""What a JSON body may be: one object with one meaning. No dialect, no field names, no I/O.

Parsers disagree on repeated keys, broken UTF-8, lone surrogates and NaN: what one of them checks, another may read
otherwise. Such a body is refused as a whole, so that whatever passes means the same here and at the provider.
"""

from typing import Any

import msgspec

DEPTH_MAX = 64
# Values in a body, bounded from above by its commas and brackets: 400,000 empty arrays fit into 1.2 MB, and into
# a hundred times that in memory. Embeddings of 300,000 tokens pass.
VALUES_MAX = 400_000
# A smaller body cannot hold too many values to matter.
COUNTED_FROM_BYTES = 256 * 1024
SCALARS = frozenset({int, float, bool, type(None)})
ESCAPED_BACKSLASH = rb"\\"
# The other way to write a quote within a string.
QUOTE_BY_NUMBER = rb"\u0022"

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_values = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class MalformedBody(ValueError):
    """The reason is for the client, and holds nothing of the body."""


def parse_object(body: bytes) -> dict[str, msgspec.Raw]:
    """The top level's fields in their order, each value as the very bytes that were checked.

    Raises `MalformedBody` unless `body` is one JSON object, in UTF-8, without a repeated key or a lone surrogate at any
    depth, without NaN and Infinity, whose numbers fit (a float's range; 4,300 digits) and whose depth is `DEPTH_MAX` or less.
    """
    if len(body) >= COUNTED_FROM_BYTES and _values_at_most(body) > VALUES_MAX:
        raise MalformedBody(f"it holds more than {VALUES_MAX} values")
    try:
        values = _decode_values(body)
        fields = _decode_fields(body)
    except UnicodeDecodeError as error:
        raise MalformedBody("it is not UTF-8") from error
    except RecursionError as error:
        raise MalformedBody(f"it is nested deeper than {DEPTH_MAX} levels") from error
    except msgspec.DecodeError as error:
        raise MalformedBody(str(error)) from error
    if _repeats_a_key(body, _strings(values)):
        raise MalformedBody("an object in it repeats a key")
    return fields


def is_object(body: bytes) -> bool:
    """Whether it is a JSON object at all; nothing more is checked."""
    try:
        _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def dump_object(fields: dict[str, msgspec.Raw]) -> bytes:
    """The inverse of `parse_object`: keeps the order, and every value byte for byte."""
    return _encode(fields)


def _values_at_most(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{") + 1


def _strings(values: dict[str, Any]) -> list[str]:
    """Every string in what was decoded, keys included. Raises `MalformedBody` when it is too deep."""
    strings: list[str] = []
    level: list[Any] = [values]
    for _ in range(DEPTH_MAX):
        deeper: list[Any] = []
        for container in level:
            if type(container) is dict:
                strings += container
                inside = container.values()
            elif SCALARS.issuperset(map(type, container)):
                continue  # Token ids by the thousand.
            else:
                inside = container
            for value in inside:
                kind = type(value)
                if kind is str:
                    strings.append(value)
                elif kind is dict or kind is list:
                    deeper.append(value)
        if not deeper:
            return strings
        level = deeper
    raise MalformedBody(f"it is nested deeper than {DEPTH_MAX} levels")


def _repeats_a_key(body: bytes, strings: list[str]) -> bool:
    """Whether valid JSON `body` holds a string, so a key, that is missing in what was decoded from it.

    Only strings have quotes: one on each side, and those within. A key that was read over took its quotes with it.
    """
    written, decoded = body.count(b'"'), 2 * len(strings)
    if b"\\" in body:
        quotes_within = "".join(strings).count('"')
        decoded += quotes_within
        if quotes_within and QUOTE_BY_NUMBER in body:
            written += body.replace(ESCAPED_BACKSLASH, b"").count(QUOTE_BY_NUMBER)
    return written != decoded
