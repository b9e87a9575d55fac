"""The journal: a worker's own append-only copy of what it dispatched and settled, until PostgreSQL has it.

Files and framing only; what an entry means is known to `admission.py`. A file is `<worker>.<number>.log`, locked by its owner for
as long as it lives: whoever gets the lock of another worker's file has proof that its owner is dead.

Frame: length and CRC-32 of the payload (little-endian, 4 bytes each), then the payload, a MessagePack `Entry`. A torn tail (the
owner died in the middle of a write) ends the reading; all before it is whole.
"""

import contextlib
import errno
import fcntl
import heapq
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

SEGMENT_BYTES_MAX = 16 * 1024 * 1024

_HEAD = struct.Struct("<II")
_NAME = re.compile(r"(?P<worker>.+)\.(?P<number>\d+)\.log")


class Dispatched(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """About to be sent to a provider. `admit` is the argument it was admitted with, `held_nanos` and `held_tokens` what it holds
    by now."""

    attempt_id: str
    held_nanos: int
    admit: bytes
    held_tokens: int = 0


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """`settle` is the argument of the settle script, `seq` its place in the worker's log, from 1."""

    seq: int
    attempt_id: str
    settle: bytes


Entry = Dispatched | Settled

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class JournalUnwritable(OSError):
    """The disk is full or gone: nothing may be dispatched."""


class Journal:
    """The journal that this worker writes. `dispatch` raises `JournalUnwritable` when the disk refuses it."""

    def __init__(self, directory: Path, worker: str) -> None:
        self.directory = directory
        self.worker = worker
        self.seq = 0
        self._open_attempts: dict[str, Dispatched] = {}
        self._segments: list[_Segment] = []
        self._unwritten: list[Settled] = []
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._roll()

    def dispatch(self, entry: Dispatched) -> None:
        """Before the first byte goes to a provider, and again when the hold grows."""
        self._write(entry)
        self._open_attempts[entry.attempt_id] = entry

    def settle(self, entry: Settled) -> None:
        """Number and remember it: what was spent cannot be refused any more. `flush` puts it into the file."""
        assert entry.seq == self.seq + 1, "a worker's settles are numbered without a gap"
        self.seq = entry.seq
        self._open_attempts.pop(entry.attempt_id, None)
        self._unwritten.append(entry)

    def flush(self) -> None:
        """Write the settles that are only remembered yet. Those that the disk refuses are tried again the next time."""
        if not self._unwritten:
            return
        with contextlib.suppress(JournalUnwritable):
            self._write()

    def open_attempts(self) -> list[Dispatched]:
        return list(self._open_attempts.values())

    def settled_after(self, seq: int) -> Iterator[Settled]:
        written = (read(segment.path) for segment in list(self._segments) if segment.last_seq > seq)
        settles = (e for entries in written for e in entries if isinstance(e, Settled))
        return (e for e in heapq.merge(settles, list(self._unwritten), key=lambda e: e.seq) if e.seq > seq)

    def forget(self, ingested_seq: int) -> None:
        """Drop the segments that PostgreSQL has whole. The one being written stays, and the one before it: a Redis that lost its last
        moments asks for what PostgreSQL has already."""
        while len(self._segments) > 2 and self._segments[0].last_seq <= ingested_seq:
            self._segments.pop(0).remove()
        self._unwritten = [entry for entry in self._unwritten if entry.seq > ingested_seq]

    def sync(self) -> None:
        """To the disk itself. Blocks: call it from a thread."""
        os.fsync(self._segments[-1].descriptor)

    def close(self, ingested_seq: int) -> None:
        """Let go of the files; those that PostgreSQL has whole are removed, the rest is for the next worker on the host."""
        self.flush()
        for segment in self._segments:
            if segment.last_seq <= ingested_seq and not self._open_attempts:
                segment.remove()
            else:
                segment.close()
        self._segments.clear()

    def _write(self, *dispatched: Dispatched) -> None:
        """What was not written yet, and then these."""
        segment = self._segments[-1]
        entries: list[Entry] = [*self._unwritten, *dispatched]
        segment.write(b"".join(map(_frame, entries)))
        if self._unwritten:
            segment.last_seq = self._unwritten[-1].seq
            self._unwritten.clear()
        if segment.size >= SEGMENT_BYTES_MAX:
            # What was written is written: without room for another file this one goes on.
            with contextlib.suppress(JournalUnwritable):
                self._roll()

    def _roll(self) -> None:
        number = self._segments[-1].number + 1 if self._segments else 0
        segment = _Segment(self.directory / f"{self.worker}.{number}.log", number, self.seq)
        try:
            # What still runs moves along, so that the older segments can go.
            segment.write(b"".join(map(_frame, self._open_attempts.values())))
        except JournalUnwritable:
            segment.remove()
            raise
        self._segments.append(segment)


class _Segment:
    """One file, locked before anybody can see it under its name. Raises `JournalUnwritable` when it cannot be made."""

    def __init__(self, path: Path, number: int, last_seq: int) -> None:
        self.path = path
        self.number = number
        self.last_seq = last_seq
        self.size = 0
        self.descriptor = _create_locked(path)

    def write(self, frames: bytes) -> None:
        """All of it or nothing. Raises `JournalUnwritable`."""
        try:
            written = os.write(self.descriptor, frames)
        except OSError as error:
            raise JournalUnwritable(error.errno, "the journal cannot be written") from error
        if written != len(frames):
            # Cut the half frame off again, so that what follows it can be read.
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise JournalUnwritable(errno.ENOSPC, "the journal's disk is full")
        self.size += written

    def close(self) -> None:
        os.close(self.descriptor)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()


class Orphan:
    """The journal of a dead worker on this host, locked by us. `worker` is whose it was."""

    def __init__(self, worker: str, paths: list[Path], descriptors: list[int]) -> None:
        self.worker = worker
        self._paths = paths
        self._descriptors = descriptors

    def entries(self) -> Iterator[Entry]:
        for path in self._paths:
            yield from read(path)

    def remove(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


def adopt(directory: Path, own: str) -> Iterator[Orphan]:
    """Every journal in `directory` whose owner is dead, locked for the caller one by one, as it asks for them."""
    by_worker: dict[str, list[tuple[int, Path]]] = {}
    for path in directory.glob("*.log"):
        match = _NAME.fullmatch(path.name)
        if match and match["worker"] != own:
            by_worker.setdefault(match["worker"], []).append((int(match["number"]), path))
    for worker, paths in by_worker.items():
        orphan = _lock_all(worker, [path for _, path in sorted(paths)])
        if orphan is not None:
            yield orphan


def recorded_workers(directory: Path) -> set[str]:
    """Whose journals in `directory` have anything in them, living or dead."""
    names = ((path, _NAME.fullmatch(path.name)) for path in directory.glob("*.log"))
    return {name["worker"] for path, name in names if name and _size(path)}


def read(path: Path) -> Iterator[Entry]:
    """The whole entries of one file, in order. A file that is gone is empty; a torn or damaged tail ends it."""
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return
    offset = 0
    while offset + _HEAD.size <= len(body):
        length, checksum = _HEAD.unpack_from(body, offset)
        payload = body[offset + _HEAD.size : offset + _HEAD.size + length]
        if len(payload) != length or zlib.crc32(payload) != checksum:
            return
        yield _decode(payload)
        offset += _HEAD.size + length


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _create_locked(path: Path) -> int:
    unseen = path.with_suffix(".new")
    try:
        with contextlib.ExitStack() as until_named:
            descriptor = os.open(unseen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            until_named.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            unseen.rename(path)
            until_named.pop_all()
    except OSError as error:
        raise JournalUnwritable(error.errno, "no file of the journal can be made") from error
    return descriptor


def _frame(entry: Entry) -> bytes:
    payload = _encode(entry)
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def _lock_all(worker: str, paths: list[Path]) -> Orphan | None:
    descriptors: list[int] = []
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        descriptors.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for held in descriptors:
                os.close(held)
            return None
    return Orphan(worker, paths, descriptors)
