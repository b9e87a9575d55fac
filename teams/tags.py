"""Tags: parse what a client sends, merge with defaults, name what is missing. No database, no Django."""

import functools
import re
from collections.abc import Iterable, Mapping

TAGS_MAX = 32
TAG_KEY_LENGTH_MAX = 64
TAG_VALUE_LENGTH_MAX = 256

_KEY = re.compile(r"[A-Za-z0-9_.\-/]{1,64}")


class InvalidTags(ValueError):
    """The message says what is wrong and how to write it."""


@functools.lru_cache(maxsize=4096)  # An application sends the same few again and again.
def parse_header(header: str) -> Mapping[str, str]:
    """`feature=search,customer=acme` → a mapping, not to be changed. Raises `InvalidTags`."""
    tags: dict[str, str] = {}
    for part in header.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidTags(f"x-tollgate-tags: {part.strip()[:80]!r} is not key=value")
        tags[key.strip()] = value.strip()
    return check(tags)


def from_metadata(metadata: object) -> dict[str, str]:
    """Tags of the body's `metadata` object; its scalar values become strings. Raises `InvalidTags`."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidTags("metadata must be an object of strings")
    return check({str(key): _text(key, value) for key, value in metadata.items()})


def check(tags: dict[str, str]) -> dict[str, str]:
    """The tags themselves when every key and value is well-formed. Raises `InvalidTags`."""
    if len(tags) > TAGS_MAX:
        raise InvalidTags(f"{len(tags)} tags, at most {TAGS_MAX}")
    for key, value in tags.items():
        if not _KEY.fullmatch(key):
            raise InvalidTags(f"tag key {key[:80]!r}: 1 to {TAG_KEY_LENGTH_MAX} of letters, digits, '_', '-', '.', '/'")
        if len(value) > TAG_VALUE_LENGTH_MAX:
            raise InvalidTags(f"the value of tag {key!r} is longer than {TAG_VALUE_LENGTH_MAX} characters")
        if not value.isprintable():
            raise InvalidTags(f"the value of tag {key!r} holds a control character")
    return tags


def merge(*sources: Mapping[str, str]) -> dict[str, str]:
    """Later sources win: project defaults, key defaults, metadata, header."""
    merged: dict[str, str] = {}
    for source in sources:
        if source:
            merged.update(source)
    return merged


def sources(
    project: Mapping[str, str], key: Mapping[str, str], body: Mapping[str, str], header: Mapping[str, str]
) -> dict[str, str]:
    """Where each merged tag comes from: `project`, `key` or `body`. What the header says, which wins, is left out."""
    if not (project or key or body):
        return {}
    said = {**dict.fromkeys(project, "project"), **dict.fromkeys(key, "key"), **dict.fromkeys(body, "body")}
    return {name: source for name, source in said.items() if name not in header} if header else said


def missing(required: Iterable[str], tags: Mapping[str, str]) -> list[str]:
    return [key for key in required if not tags.get(key)]


def _text(key: object, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise InvalidTags(f"metadata.{key} must be a string")
