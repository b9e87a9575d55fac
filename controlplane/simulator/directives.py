"""What the simulator is told to do with a request: the knobs, their notation, and which of them wins. No I/O.

A directive is `name=value`; several stand in one text, apart by commas, ampersands or blanks; a bare name means `name=1`.
"""

import functools
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from controlplane.simulator.words import spaced_json

_JSON = json.JSONDecoder()
_RESOLVED_MAX = 4096
_MESSAGE_DIRECTIVE = re.compile(r"\[\[simulate\s+(.*?)\]\]", re.DOTALL)
_SEPARATOR = re.compile(r"[,&\s]+")
_ARGUMENTS = re.compile(r"(?:^|[,&\s])args=(?=\{)")

Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=3_600_000)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

# What a model's name alone brings along; every other name brings nothing, and is answered too.
PROFILES: Mapping[str, Mapping[str, Any]] = {
    "sim-fast": {},
    "sim-slow": {"latency_ms": 200, "tokens_per_second": 20, "output_tokens": 400},
    "sim-embedding": {},
}


class Fault(StrEnum):
    """Ways in which an answer goes wrong other than by an honest error status."""

    STALL = "stall"
    RESET = "reset"
    TRUNCATE = "truncate"
    BAD_JSON = "bad_json"
    ERROR_EVENT = "error_event"
    ENDLESS_LINE = "endless_line"
    EMPTY_LINES = "empty_lines"
    EMPTY_EVENTS = "empty_events"
    COMMENTS = "comments"
    BAD_CHUNKING = "bad_chunking"
    BAD_LENGTH = "bad_length"
    BAD_STATUS_LINE = "bad_status_line"
    ENDLESS_HEAD = "endless_head"
    HUGE_BODY = "huge_body"
    GZIP_BOMB = "gzip_bomb"


_FAULT_NAMES = frozenset(Fault)


class Like(StrEnum):
    """Whose ways the chat completions have. A model whose name begins so brings them along."""

    MISTRAL = "mistral"
    GROQ = "groq"
    DEEPSEEK = "deepseek"
    PERPLEXITY = "perplexity"
    OPENROUTER = "openrouter"
    XAI = "xai"
    AZURE = "azure"


_LIKES = tuple(Like)


class Directives(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`docs/simulator.md` says what each does. A text writes a fault as a directive of its own name: `stall=1`."""

    latency_ms: Milliseconds = 0
    first_token_ms: Milliseconds = 0
    tokens_per_second: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0
    output_tokens: Tokens = 16
    reasoning_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    tool_call: bool = False
    tool: str = ""
    args: str = ""
    like: Like | None = None
    work_ms: Milliseconds = 500
    runs_on: bool = False
    no_usage: bool = False
    usage_factor: Annotated[float, msgspec.Meta(ge=-1_000_000, le=1_000_000)] = 1
    no_done: bool = False
    split_utf8: bool = False
    error: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 1
    requests_left: Tokens | None = None
    limit_reset_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 60
    echo_key: bool = False
    error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    fault: Fault | None = None
    after_tokens: Tokens | None = None
    fault_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)] = 256 << 20

    def calm(self) -> "Directives":
        """The same without what goes wrong."""
        return msgspec.structs.replace(self, error=None, fault=None)


class BadDirective(ValueError):
    """A directive that does not exist, or a value that it cannot have. The message may be shown to whoever sent it."""


class Settings:
    """The directives that hold for every request, until its model, its messages or its header say otherwise."""

    def __init__(self, initial: Mapping[str, Any]) -> None:
        """Raises `BadDirective`."""
        self._initial = _fold(initial)
        self._current: dict[str, Any] = {}
        self.resolve = functools.lru_cache(_RESOLVED_MAX)(self._resolve)
        self.reset()

    def reset(self) -> None:
        self._apply(self._initial)

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change the named ones; None takes one back to its default. All, or on `BadDirective` none."""
        changed = self._current | _fold(changes)
        self._apply({name: value for name, value in changed.items() if value is not None})

    def as_directives(self) -> Directives:
        return _convert(self._current)

    def _apply(self, values: Mapping[str, Any]) -> None:
        _convert(values)
        self._current = dict(values)
        self.resolve.cache_clear()

    def _resolve(self, model: str, in_message: str, in_header: str) -> Directives:
        """The later wins: settings, the model's profile, the model's name after `?`, the messages, the header."""
        name, _, in_name = model.partition("?")
        profile = PROFILES.get(name, {})
        like = next((like for like in _LIKES if name.startswith(like)), None)
        ways = {} if like is None else {"like": like}
        told = {**profile, **ways, **parse(in_name), **parse(in_message), **parse(in_header)}
        directives = _convert({**self._current, **told})
        if directives.error_rate is not None and directives.error is None and directives.fault is None:
            return msgspec.structs.replace(directives, error=500)
        return directives


def parse(text: str) -> dict[str, Any]:
    """`stall, after_tokens=3` → `{"fault": "stall", "after_tokens": "3"}`. Values are checked when all are together."""
    text, arguments = _take_arguments(text)
    values: dict[str, Any] = {"args": arguments} if arguments else {}
    for item in _SEPARATOR.split(text):
        if item:
            name, has_value, value = item.partition("=")
            values.update(_fold({name: value if has_value else "1"}))
    return values


def _take_arguments(text: str) -> tuple[str, str]:
    """(the text without them, the JSON object after `args=`, in which blanks and commas stand for themselves)."""
    match = _ARGUMENTS.search(text)
    if match is None:
        return text, ""
    try:
        value, end = _JSON.raw_decode(text, match.end())
        arguments = spaced_json(value)
    except (ValueError, RecursionError):
        raise BadDirective("args is a JSON object") from None
    return text[: match.start()] + " " + text[end:], arguments


def find_in_message(text: str) -> str:
    """The directives between `[[simulate` and the next `]]`, the first time that they occur; else nothing."""
    if "[[simulate" not in text:
        return ""
    match = _MESSAGE_DIRECTIVE.search(text)
    return match[1] if match else ""


def _fold(values: Mapping[str, Any]) -> dict[str, Any]:
    """The name of a fault, as a flag of its own, becomes the value of `fault`."""
    folded: dict[str, Any] = {}
    for name, value in values.items():
        if name in _FAULT_NAMES:
            folded["fault"] = name if _is_set(name, value) else None
        else:
            folded[name] = value
    return folded


def _is_set(name: str, value: object) -> bool:
    try:
        return msgspec.convert(value, bool, strict=False)
    except msgspec.ValidationError:
        raise BadDirective(f"{name} is a flag: 1 or 0") from None


def _convert(values: Mapping[str, Any]) -> Directives:
    try:
        return msgspec.convert(values, Directives, strict=False)
    except msgspec.ValidationError as error:
        raise BadDirective(str(error)) from None
