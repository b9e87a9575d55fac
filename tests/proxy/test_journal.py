"""The journal: what was written is read back, whatever the disk and the owner's death did to it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from proxy import journal as journal_module
from proxy.journal import Dispatched, Journal, Settled, adopt, read, recorded_workers


def _settled(seq: int) -> Settled:
    return Settled(seq, f"attempt-{seq}", b"x" * 100)


def _write_and_die(directory: Path, worker: str, settles: int) -> None:
    """A worker of another process that ends without closing anything."""
    program = (
        "import sys; from pathlib import Path; from proxy.journal import *;"
        "journal = Journal(Path(sys.argv[1]), sys.argv[2]);"
        "journal.dispatch(Dispatched('open', 7, b'admit'));"
        "[journal.settle(Settled(seq, f'attempt-{seq}', b'x')) for seq in range(1, int(sys.argv[3]) + 1)];"
        "journal.flush();"
        "import os; os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(directory), worker, str(settles)], check=False)


def test_settles_are_read_back_from_any_place(tmp_path):
    journal = Journal(tmp_path, "alice")
    for seq in range(1, 6):
        journal.settle(_settled(seq))
    assert [entry.seq for entry in journal.settled_after(2)] == [3, 4, 5]
    assert list(journal.settled_after(5)) == []


def test_the_living_and_the_dead_are_named_whose_journals_have_anything_in_them(tmp_path):
    journals = [Journal(tmp_path, name) for name in ("alice", "bob")]
    _write_and_die(tmp_path, "carol", settles=1)
    (tmp_path / "notes.txt").write_text("no journal")
    assert recorded_workers(tmp_path) == {"carol"}
    journals[1].dispatch(Dispatched("open", 7, b"admit"))
    assert recorded_workers(tmp_path) == {"bob", "carol"}


def test_a_gap_in_the_numbers_is_refused(tmp_path):
    journal = Journal(tmp_path, "alice")
    with pytest.raises(AssertionError):
        journal.settle(_settled(2))


def test_an_attempt_is_open_from_dispatch_to_settle(tmp_path):
    journal = Journal(tmp_path, "alice")
    journal.dispatch(Dispatched("attempt-1", 1, b"admit"))
    journal.dispatch(Dispatched("attempt-1", 2, b"admit"))
    assert journal.open_attempts() == [Dispatched("attempt-1", 2, b"admit")]
    journal.settle(_settled(1))
    assert journal.open_attempts() == []


def test_a_segment_goes_when_postgresql_has_it_and_open_attempts_move_along(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES_MAX", 1000)
    journal = Journal(tmp_path, "alice")
    journal.dispatch(Dispatched("running", 7, b"admit"))
    for seq in range(1, 31):
        journal.settle(_settled(seq))
        journal.flush()
    assert len(list(tmp_path.glob("*.log"))) > 2
    journal.forget(30)
    kept = sorted(tmp_path.glob("*.log"), key=lambda path: int(path.suffixes[-2][1:]))
    assert len(kept) == 2
    assert Dispatched("running", 7, b"admit") in list(read(kept[-1]))


def test_a_redis_that_lost_its_last_moments_gets_also_what_postgresql_has(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES_MAX", 1000)
    journal = Journal(tmp_path, "alice")
    seq = 0
    while len(list(tmp_path.glob("*.log"))) < 3:  # It has just begun another file.
        seq += 1
        journal.settle(_settled(seq))
        journal.flush()
    journal.forget(seq)
    assert [entry.seq for entry in journal.settled_after(seq - 3)] == [seq - 2, seq - 1, seq]


def test_a_segment_that_postgresql_lacks_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES_MAX", 1000)
    journal = Journal(tmp_path, "alice")
    for seq in range(1, 31):
        journal.settle(_settled(seq))
        journal.flush()
    journal.forget(10)
    assert [entry.seq for entry in journal.settled_after(10)] == list(range(11, 31))


def test_a_torn_tail_ends_the_reading_and_nothing_before_it_is_lost(tmp_path):
    journal = Journal(tmp_path, "alice")
    for seq in range(1, 4):
        journal.settle(_settled(seq))
    journal.flush()
    (path,) = tmp_path.glob("*.log")
    whole = path.read_bytes()
    for cut in (1, 7, 50, 120):
        path.write_bytes(whole[:-cut])
        assert [entry.seq for entry in read(path)] == [1, 2] if cut < 120 else True
    path.write_bytes(whole[:-3] + b"???")
    assert [entry.seq for entry in read(path)] == [1, 2]


def test_the_journal_of_a_living_worker_is_not_adopted(tmp_path):
    living = Journal(tmp_path, "alice")
    living.settle(_settled(1))
    assert list(adopt(tmp_path, own="bob")) == []


def test_the_journal_of_a_dead_worker_is_adopted_once(tmp_path):
    _write_and_die(tmp_path, "alice", settles=3)
    (orphan,) = adopt(tmp_path, own="bob")
    assert orphan.worker == "alice"
    entries = list(orphan.entries())
    assert entries[0] == Dispatched("open", 7, b"admit")
    assert [entry.seq for entry in entries[1:]] == [1, 2, 3]
    assert list(adopt(tmp_path, own="carol")) == []
    orphan.release()
    (again,) = adopt(tmp_path, own="carol")
    again.remove()
    assert list(tmp_path.glob("*.log")) == []


def test_a_full_disk_refuses_dispatches_but_keeps_settles(tmp_path):
    journal = Journal(tmp_path, "alice")
    journal.settle(_settled(1))
    journal.flush()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._segments[-1].descriptor)
    with pytest.raises(journal_module.JournalUnwritable):
        journal.dispatch(Dispatched("attempt-2", 7, b"admit"))
    journal.settle(_settled(2))
    journal.flush()
    assert [entry.seq for entry in journal.settled_after(0)] == [1, 2]
    os.close(full)


def test_a_file_is_locked_from_the_moment_that_it_can_be_seen(tmp_path):
    adopted, is_over = [], threading.Event()

    def look() -> None:
        while not is_over.is_set():
            adopted.extend(adopt(tmp_path, own="bob"))

    looking = threading.Thread(target=look)
    looking.start()
    journals = [Journal(tmp_path, f"worker-{number}") for number in range(300)]
    is_over.set()
    looking.join()
    for journal in journals:
        journal.close(0)
    assert adopted == []


def test_orphans_are_locked_only_as_they_are_taken(tmp_path):
    for worker in ("alice", "carol"):
        _write_and_die(tmp_path, worker, settles=1)
    first = next(adopt(tmp_path, own="bob"))
    (second,) = adopt(tmp_path, own="dave")
    assert {first.worker, second.worker} == {"alice", "carol"}
    first.release()
    second.release()


def test_without_room_for_another_file_the_present_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES_MAX", 1)
    journal = Journal(tmp_path / "journal", "alice")
    journal.dispatch(Dispatched("first", 1, b"argument"))
    (tmp_path / "journal").rename(tmp_path / "elsewhere")
    journal.dispatch(Dispatched("second", 1, b"argument"))
    journal.settle(_settled(1))
    journal.flush()
    (tmp_path / "elsewhere").rename(tmp_path / "journal")
    assert [entry.attempt_id for entry in journal.open_attempts()] == ["first", "second"]
    assert [entry.seq for entry in journal.settled_after(0)] == [1]
    journal.close(0)
