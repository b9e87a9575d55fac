"""What a provider keeps between two requests: responses, files, batches. In memory, and bounded: the oldest go first."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

ENTRIES_MAX = 10_000
BYTES_MAX = 256 << 20


class Kept(NamedTuple):
    """`facts` is the object as the provider shows it, `content` the bytes of a file; `due_s` is when it will be ready, on
    the clock of the event loop."""

    kind: str
    facts: dict[str, Any]
    content: bytes = b""
    due_s: float = 0.0


class Store:
    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def keep(self, name: str, kept: Kept) -> None:
        self.drop(name)
        self._kept[name] = kept
        self._bytes += len(kept.content)
        while len(self._kept) > ENTRIES_MAX or self._bytes > BYTES_MAX:
            self.drop(next(iter(self._kept)))

    def find(self, kind: str, name: str) -> Kept | None:
        kept = self._kept.get(name)
        return kept if kept is not None and kept.kind == kind else None

    def drop(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._bytes -= len(kept.content)

    def all(self, kind: str) -> Iterator[Kept]:
        """The newest first."""
        return (kept for kept in reversed(self._kept.values()) if kept.kind == kind)
