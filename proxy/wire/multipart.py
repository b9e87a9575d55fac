"""A multipart/form-data body: where its parts are, so that one can be read or replaced and the rest stays as it was sent.

No I/O. Only what RFC 7578 needs: parts between boundary lines, each with a `Content-Disposition` that names it. Parsers
disagree on anything else (two boundaries, line feeds alone, names said twice or in another way): such a form is refused, so
that the provider reads the fields that are read here.
"""

import re
from typing import NamedTuple

PARTS_MAX = 128
HEAD_BYTES_MAX = 4096

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*(?:;\s*charset="?[\w-]+"?\s*)?;\s*boundary=(?:"([^"\\\r\n]{1,70})"|([^\s"\\;,]{1,70}))\s*'
    rb'(?:;\s*charset="?[\w-]+"?\s*)?',
    re.IGNORECASE,
)
_HEAD_LINE = re.compile(rb"\r\n([\w-]+):[ \t]*([^\r\n]*)")
# A name holds no quote and no backslash: it is read in one way only. A file's name may be anything, in either of its ways.
_DISPOSITION = re.compile(
    rb'form-data;[ \t]*name="([^"\\\r\n]*)"(?:;[ \t]*filename="((?:[^"\\\r\n]|\\.)*)")?(;[ \t]*filename\*=[^\s;"]*)?',
    re.IGNORECASE,
)


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
    found = _BOUNDARY.fullmatch(content_type)
    if found is None:
        raise MalformedForm("its content type does not name one boundary, and nothing else")
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
    if body.count(delimiter) != len(parts) + 1:
        raise MalformedForm("its boundary stands within a part, or after the end")
    return parts


def _part(head: bytes, start: int, end: int) -> FormPart:
    lines = list(_HEAD_LINE.finditer(head))
    dispositions = [line.group(2) for line in lines if line.group(1).lower() == b"content-disposition"]
    said = _DISPOSITION.fullmatch(dispositions[0]) if len(dispositions) == 1 else None
    if said is None or sum(len(line.group()) for line in lines) != len(head) or start > end + 2:
        raise MalformedForm("a part of it has no name, or not one alone")
    name, file_name, wide_name = said.groups()
    if file_name is None and wide_name is not None:
        file_name = wide_name.partition(b"=")[2]
    told = file_name.decode("utf-8", "replace") if file_name is not None else None
    return FormPart(name.decode("utf-8", "replace"), told, start, max(start, end))


def field(parts: list[FormPart], body: bytes, name: str) -> str | None:
    """The text of a field; None where there is none. Raises `MalformedForm` when it comes twice, or as a file: some read that
    as the field, too."""
    named = [part for part in parts if part.name == name]
    if len(named) > 1 or any(part.file_name is not None for part in named):
        raise MalformedForm(f"it gives `{name}` twice, or as a file")
    return body[named[0].start : named[0].end].decode("utf-8", "replace") if named else None


def replace_field(parts: list[FormPart], body: bytes, name: str, value: str) -> bytes:
    """The body with the text of one field changed; every other byte as it was."""
    for part in parts:
        if part.name == name and part.file_name is None:
            return body[: part.start] + value.encode() + body[part.end :]
    return body
