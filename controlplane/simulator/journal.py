"""The simulator's own account of what it received, sent and would bill: JSON lines, each in the file before the answer
is on the wire. What the lines mean is in `docs/simulator.md`.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


class JournalFailed(Exception):
    """A line could not be written. A witness that cannot write is no witness: the process ends."""


class Bill(msgspec.Struct, frozen=True):
    """What a provider would charge for. `input_tokens` includes the cached and written ones, `output_tokens` the reasoning
    ones. What is unset is nothing, and not in the line.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    written_tokens: int | msgspec.UnsetType = msgspec.UNSET
    written_1h_tokens: int | msgspec.UnsetType = msgspec.UNSET
    units: int | msgspec.UnsetType = msgspec.UNSET


_BILLED = [(name, f"billed_{name}") for name in Bill.__struct_fields__]


class Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Moments are Unix microseconds."""

    at_us: int = msgspec.field(default_factory=lambda: time.time_ns() // 1000)


class Started(Line, frozen=True, kw_only=True, tag="started"):
    pid: int
    settings: Any


class Controlled(Line, frozen=True, kw_only=True, tag="controlled"):
    settings: Any


class Received(Line, frozen=True, kw_only=True, tag="received"):
    """`attempt_id` is the `x-client-request-id` header; `key_digest` begins the SHA-256 of the credential; `batch` is the
    batch that a request was a line of."""

    call: str
    attempt_id: str
    method: str
    path: str
    model: str = ""
    stream: bool = False
    key_digest: str = ""
    body_bytes: int = 0
    input_tokens: int = 0
    batch: str | msgspec.UnsetType = msgspec.UNSET


class Progress(Line, frozen=True, kw_only=True, tag="progress"):
    """`output_tokens` have been generated, `tokens_sent` of them are visible and on the wire."""

    call: str
    attempt_id: str
    output_tokens: int
    tokens_sent: int


class Ended(Line, frozen=True, kw_only=True, tag="ended"):
    """`end` is completed, refused (an error status), client_gone, fault or stopped; `fault` is what was injected.

    `usage` is what the client was told, word for word; None where it was told nothing.
    """

    call: str
    attempt_id: str
    end: str
    status: int
    fault: str = ""
    output_tokens: int = 0
    tokens_sent: int = 0
    usage: msgspec.Raw | None = None
    billed: Bill = Bill()
    batch: str | msgspec.UnsetType = msgspec.UNSET


class Stopped(Line, frozen=True, kw_only=True, tag="stopped"):
    pass


class Journal:
    """Appends to a file, or to nothing, and keeps the sums."""

    def __init__(self, path: Path | None) -> None:
        """Raises `OSError` where the file cannot be opened."""
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._received = 0
        self._totals: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._faults: Counter[str] = Counter()

    def write(self, line: Line) -> None:
        """One `write` for a line, so that no line is lost or mixed with another when a process is killed."""
        if self._file is None:
            return
        entry = _encode(line) + b"\n"
        try:
            written = os.write(self._file, entry)
        except OSError as error:
            raise JournalFailed(f"the journal cannot be written: {error.strerror}") from error
        if written != len(entry):
            raise JournalFailed("the journal cannot be written: the disk took a part of a line")

    def received(self, line: Received) -> None:
        self._received += 1
        self.write(line)

    def ended(self, line: Ended) -> None:
        self._ends[line.end] += 1
        self._statuses[line.status] += 1
        if line.fault:
            self._faults[line.fault] += 1
        self._totals["tokens_sent"] += line.tokens_sent
        for name, total in _BILLED:
            value = getattr(line.billed, name)
            if value is not msgspec.UNSET:
                self._totals[total] += value
        self.write(line)

    def summary(self) -> dict[str, Any]:
        """Sums since the process began."""
        return {
            "received": self._received,
            "running": self._received - self._ends.total(),
            "ends": self._ends,
            "statuses": {str(status): count for status, count in self._statuses.items()},
            "faults": self._faults,
            **self._totals,
        }
