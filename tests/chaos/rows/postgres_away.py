"""PostgreSQL is down, paused, slow or full: applications do not notice it, and the ledger has everything afterwards."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.chaos.faults import Fault
from tests.chaos.load import Answer, Load, ask, asked_apart, chat
from tests.chaos.rig import Measured, Options, Rig, alone, proxy_port, secret_of
from tests.e2e.conftest import Tollgate
from tests.stack import wait_until

AWAY_S = 3.0
CAUGHT_UP_S = 70.0
ANSWER_S = 0.25
ASKED = 40
DISK_MB = 256


def run(rig: Rig, options: Options, *, kind: str) -> Measured:
    rounds = options.kills_of(short=1, full=10)
    data_dir = rig.directory() / "var"
    environ = {}
    if kind == "full":
        rig.small_disk(data_dir / "postgres", DISK_MB)
    if kind == "slow":
        postgres = rig.postgres()
        front = rig.fault_proxy(str(postgres.directory / ".s.PGSQL.5432"))
        environ["DATABASE_URL"] = f"postgresql://tollgate@127.0.0.1:{front.port}/tollgate?sslmode=disable"
    tollgate = rig.tollgate(data_dir, **environ)
    books = rig.books(tollgate)
    port, secret = proxy_port(tollgate), secret_of(tollgate)
    slowest_s, refused = 0.0, 0
    progress = rig.progress("round", rounds)
    for number in range(rounds):
        progress.reached(number)
        with asked_apart(_ask_often, port, secret) as ask_often, Load(port, secret) as load:
            wait_until(lambda: load.answered > 10, "answers")
            if kind == "slow":
                front.set(Fault(latency_s=1.0))
                answers = ask_often()
                front.clear()
            else:
                answers = _while_away(kind, tollgate, ask_often)
        refused += sum(answer.status != 200 for answer in answers)
        slowest_s = max([slowest_s, *(answer.elapsed_s for answer in answers)])
        wait_until(books.is_quiet, "a ledger that has everything", timeout_s=CAUGHT_UP_S)
    assert kind != "full" or _was_full(data_dir), "the disk was not full enough"
    faults = books.close_books()
    missing = books.missing(books.witness.calls)
    return Measured(
        is_held=not refused and slowest_s < ANSWER_S and not missing and not faults,
        figure=f"{refused} of {rounds * ASKED} refused, answered in {slowest_s * 1000:.0f} ms; {len(missing)} missing afterwards",
        counts=f"{rounds} times {AWAY_S:.0f} s",
        detail="; ".join(faults[:5]),
    )


def _while_away(kind: str, tollgate: Tollgate, ask_often: Callable[[], list[Answer]]) -> list[Answer]:
    process = tollgate.program("postgres")
    if kind == "down":
        # Its supervisor brings it back at once; so again, for as long as it is to be away.
        process.kill()
        answers = ask_often()
        with suppress(StopIteration):
            tollgate.program("postgres").kill()
        return answers
    if kind == "paused":
        group = os.getpgid(process.pid)
        os.killpg(group, signal.SIGSTOP)
        answers = ask_often()
        os.killpg(group, signal.SIGCONT)
        return answers
    ballast = tollgate.data_dir / "postgres" / "ballast"
    _fill(ballast)
    answers = ask_often()
    ballast.unlink()
    return answers


def _fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)


def _was_full(data_dir: Path) -> bool:
    return any(b"No space left on device" in log.read_bytes() for log in (data_dir / "logs").glob("*.log"))


async def _ask_often(port: int, secret: str) -> list[Answer]:
    answers, began_at_s = list[Answer](), time.monotonic()
    for number in range(1, ASKED + 1):
        answers.append(await ask(port, secret, chat(max_tokens=8)))
        await asyncio.sleep(max(0.0, began_at_s + AWAY_S * number / ASKED - time.monotonic()))
    return answers


KINDS = {
    "down": "is killed",
    "paused": "is paused",
    "slow": "takes a second longer for each answer",
    "full": "has a full disk",
}
PROMISES = tuple(
    alone(
        f"postgres_{kind}",
        f"PostgreSQL {text}: applications do not notice",
        "0 refused, answered in < 250 ms; 0 missing afterwards",
        partial(run, kind=kind),
    )
    for kind, text in KINDS.items()
)
