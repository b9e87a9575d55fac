"""What the provider saw: the simulator's own journal, read as it grows."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Call:
    """One upstream call. Moments are Unix microseconds; `end` is empty while it runs."""

    attempt_id: str
    received_at_us: int
    path: str = ""
    is_stream: bool = False
    end: str = ""
    status: int = 0
    billed: dict[str, int] = field(default_factory=dict)

    @property
    def input_tokens(self) -> int:
        return self.billed.get("input_tokens", 0)

    @property
    def output_tokens(self) -> int:
        return self.billed.get("output_tokens", 0)


class Witness:
    """`calls` by attempt id, as far as `look` has read; `repeated` are attempts that came more than once."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._offset = 0
        self.calls: dict[str, Call] = {}
        self.repeated: set[str] = set()

    def look(self) -> "Witness":
        if not self._journal.exists():
            return self
        with self._journal.open("rb") as journal:
            journal.seek(self._offset)
            read = journal.read()
        whole = read[: read.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._note(json.loads(line))
        return self

    def forget(self) -> None:
        """Begin anew: what was is another experiment's."""
        self.look()
        self.calls.clear()
        self.repeated.clear()

    def is_quiet(self) -> bool:
        return all(call.end for call in self.look().calls.values())

    def _note(self, line: dict[str, Any]) -> None:
        attempt_id = line.get("attempt_id", "")
        if not attempt_id:
            return
        if line["event"] == "received":
            if attempt_id in self.calls:
                self.repeated.add(attempt_id)
            self.calls[attempt_id] = Call(
                attempt_id, line["at_us"], path=line["path"], is_stream=line.get("stream", False)
            )
        elif line["event"] == "ended" and attempt_id in self.calls:
            call = self.calls[attempt_id]
            call.end, call.status, call.billed = line["end"], line["status"], line["billed"]
