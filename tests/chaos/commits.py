"""Every value that a counter ever had: Redis's append-only file, replayed commit by commit.

What a script writes is in the file as one transaction, so nothing between two commits could be seen by anybody either.
"""

from collections.abc import Iterator
from pathlib import Path

SPENT, RUNNING = b"tg:spend:", b"tg:running:"


class Counters:
    """`highest` of each counter with that prefix at the end of any commit, from the end of the file as it was when this was made."""

    def __init__(self, file: Path, prefix: bytes = SPENT) -> None:
        self._file = file
        self._prefix = prefix
        self._offset = file.stat().st_size
        self._now: dict[str, int] = {}
        self.highest: dict[str, int] = {}
        self.commits = 0

    def read(self) -> "Counters":
        with self._file.open("rb") as file:
            file.seek(self._offset)
            body = file.read()
        self._offset += len(body)
        pending: list[list[bytes]] | None = None
        for command in commands(body):
            word = command[0].upper()
            if word == b"MULTI":
                pending = []
            elif word == b"EXEC":
                self._commit(pending or [])
                pending = None
            elif pending is not None:
                pending.append(command)
            else:
                self._commit([command])
        return self

    def _commit(self, commands: list[list[bytes]]) -> None:
        touched = set()
        for word, *arguments in commands:
            if arguments and arguments[0].startswith(self._prefix) and self._apply(word.upper(), arguments):
                touched.add(arguments[0].decode())
        self.commits += bool(touched)
        for name in touched:
            self.highest[name] = max(self.highest.get(name, 0), self._now[name])

    def _apply(self, word: bytes, arguments: list[bytes]) -> bool:
        """Whether the value is another one now."""
        name = arguments[0].decode()
        if word in (b"INCRBY", b"DECRBY", b"INCR", b"DECR"):
            amount = int(arguments[1]) if len(arguments) > 1 else 1
            self._now[name] = self._now.get(name, 0) + (amount if word.startswith(b"INCR") else -amount)
        elif word == b"SET":
            self._now[name] = int(arguments[1])
        elif word in (b"DEL", b"UNLINK"):
            self._now[name] = 0
        elif word in (b"EXPIREAT", b"PEXPIREAT", b"PEXPIRE", b"EXPIRE", b"PERSIST"):
            return False
        else:
            raise AssertionError(f"a counter is written by {word.decode()}, which this reader does not know")
        return True


def commands(body: bytes) -> Iterator[list[bytes]]:
    """Arrays of bulk strings; a torn tail ends it."""
    at = 0
    while at < len(body):
        end = body.find(b"\r\n", at)
        if end < 0:
            return
        count, at, command = int(body[at + 1 : end]), end + 2, []
        for _ in range(count):
            end = body.find(b"\r\n", at)
            if end < 0:
                return
            length = int(body[at + 1 : end])
            if len(body) < end + 4 + length:
                return
            command.append(body[end + 2 : end + 2 + length])
            at = end + 4 + length
        yield command
