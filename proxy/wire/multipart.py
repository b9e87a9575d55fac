"""A multipart/form-data body: where its parts are, so that one can be read or replaced and the rest stays as it was sent.

No I/O. Only what RFC 7578 needs: parts between boundary lines, each with a `Content-Disposition` that names it.
"""

import re
from typing import NamedTuple

PARTS_MAX = 128
HEAD_BYTES_MAX = 4096

_BOUNDARY = re.compile(rb'boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"\r\n]*)"', re.IGNORECASE)
_FILE_NAME = re.compile(rb'[;\s]filename\*?="?([^"\r\n]*)"?', re.IGNORECASE)


class MalformedForm(ValueError):
    """The reason is for the client, and holds nothing of the body."""


class FormPart(NamedTuple):
    """`start` and `end` are where its value lies in the body."""

    name: str
    file_name: str | None
    start: int
    end: int


def parse_form(body: bytes, content_type: bytes) -> list[FormPart]:
    """The parts in their order. Raises `MalformedForm`."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise MalformedForm("its content type names no boundary")
    delimiter = b"--" + (found.group(1) or found.group(2))
    if not body.startswith(delimiter):
        raise MalformedForm("it does not begin with its boundary")
    parts: list[FormPart] = []
    position = len(delimiter)
    while body[position : position + 2] != b"--":
        if body[position : position + 2] != b"\r\n" or len(parts) >= PARTS_MAX:
            raise MalformedForm(f"its boundaries are broken, or it has more than {PARTS_MAX} parts")
        head_end = body.find(b"\r\n\r\n", position, position + HEAD_BYTES_MAX)
        value_end = body.find(b"\r\n" + delimiter, head_end + 2) if head_end >= 0 else -1
        if value_end < 0:
            raise MalformedForm("a part of it has no end")
        parts.append(_part(body[position:head_end], head_end + 4, value_end))
        position = value_end + 2 + len(delimiter)
    return parts


def _part(head: bytes, start: int, end: int) -> FormPart:
    name, file_name = _NAME.search(head), _FILE_NAME.search(head)
    if name is None or start > end + 2:
        raise MalformedForm("a part of it has no name")
    told = file_name.group(1).decode("utf-8", "replace") if file_name is not None else None
    return FormPart(name.group(1).decode("utf-8", "replace"), told, start, max(start, end))


def field(parts: list[FormPart], body: bytes, name: str) -> str | None:
    """The text of a field that is no file; None where there is none. Raises `MalformedForm` when it comes twice."""
    values = [body[part.start : part.end] for part in parts if part.name == name and part.file_name is None]
    if len(values) > 1:
        raise MalformedForm(f"it gives `{name}` twice")
    return values[0].decode("utf-8", "replace") if values else None


def replace_field(parts: list[FormPart], body: bytes, name: str, value: str) -> bytes:
    """The body with the text of one field changed; every other byte as it was."""
    for part in parts:
        if part.name == name:
            return body[: part.start] + value.encode() + body[part.end :]
    return body
