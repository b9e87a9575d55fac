"""Nothing that a provider delivered is missing from the ledger, whichever process is killed under load."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from tests.chaos.books import Arrivals
from tests.chaos.load import Load
from tests.chaos.rig import Measured, Options, Promise, Rig, proxy_port, secret_of, waited
from tests.e2e.conftest import Tollgate
from tests.stack import wait_until

VISIBLE_S = 5.0
# So long is waited for what comes late, and for what may never come.
LATE_S = 60.0
RECOVERY_TIMEOUT_S = 120.0
NAME = "missing_"
VICTIMS = {
    "worker": "a proxy worker",
    "redis": "Redis",
    "postgres": "PostgreSQL",
    "celery": "the Celery worker",
    "beat": "beat",
    "admin": "the admin",
}


@dataclass
class Tally:
    """What the kills of one victim have done. `calls` are those that the provider had got since the kill before, whichever that was."""

    kills: int = 0
    calls: set[str] = field(default_factory=set)
    late: int = 0
    # From recovery, and from the kill, until all was visible.
    slowest_s: float = 0.0
    slowest_since_kill_s: float = 0.0
    elapsed_s: float = 0.0
    # It did not come back, or nothing worked any more: there are no more kills.
    is_lost: bool = False


def run(rig: Rig, options: Options, names: Sequence[str]) -> dict[str, Measured]:
    """The victims take turns: whoever dies has lived for a while, as what dies often is started again ever more slowly."""
    kills = options.kills_of(short=5, full=200)
    draw = random.Random(options.first_seed)
    tollgate = rig.tollgate()
    books = rig.books(tollgate)
    tallies = {name.removeprefix(NAME): Tally() for name in names}
    with (
        books.arrivals() as arrivals,
        Load(proxy_port(tollgate), secret_of(tollgate), seed=options.first_seed) as load,
    ):
        wait_until(lambda: load.answered > 0, "the first answer")
        progress = rig.progress("kill", kills * len(tallies))
        for number in range(kills * len(tallies)):
            if number % len(tallies) == 0:
                turns = draw.sample(sorted(tallies), len(tallies))
            victim = turns[number % len(tallies)]
            _take_turn(tallies[victim], victim, tollgate, arrivals, draw)
            if tallies[victim].is_lost:
                break
            slowest_s = max(tally.slowest_s for tally in tallies.values())
            progress.reached(number + 1, f"{load.answered:,} answers, all visible within {slowest_s:.1f} s")
    faults, calls = books.close_books(), books.witness.calls
    missing = books.missing(calls)
    return {NAME + victim: _measured(victim, tally, missing, faults) for victim, tally in tallies.items()}


def _take_turn(tally: Tally, victim: str, tollgate: Tollgate, arrivals: Arrivals, draw: random.Random) -> None:
    began_at_s = time.monotonic()
    # At any moment of what happens each second.
    time.sleep(draw.uniform(0, 1))
    killed_among = _kill(tollgate, victim, draw)
    if killed_among is None:
        tally.is_lost = True
        return
    killed_at_s = time.monotonic()
    tally.calls |= arrivals.since_last_look()
    before = arrivals.missing()
    has_recovered = _has_recovered(tollgate, victim, killed_among, arrivals)
    visible_s = waited(lambda: not before & arrivals.missing(), LATE_S) if has_recovered else None
    tally.kills += 1
    tally.is_lost = visible_s is None
    tally.late += visible_s is None or visible_s > VISIBLE_S
    tally.slowest_s = max(tally.slowest_s, LATE_S if visible_s is None else visible_s)
    tally.slowest_since_kill_s = max(tally.slowest_since_kill_s, time.monotonic() - killed_at_s)
    tally.elapsed_s += time.monotonic() - began_at_s


def _measured(victim: str, tally: Tally, missing: set[str], faults: list[str]) -> Measured:
    """What is wrong with the books is everybody's fault: who has done it cannot be told from them."""
    is_exact = not (missing or faults or tally.is_lost)
    return Measured(
        is_held=is_exact and not tally.late,
        is_only_late=is_exact and tally.late > 0,
        figure=f"{len(missing & tally.calls)} missing of {len(tally.calls):,}; "
        f"visible within {tally.slowest_s:.1f} s of recovery, {tally.slowest_since_kill_s:.1f} s of the kill"
        f"{'; it never came back' if tally.is_lost else ''}",
        counts=f"{tally.kills} kills of {VICTIMS[victim]}",
        detail="; ".join([*faults[:5], f"{tally.elapsed_s / max(tally.kills, 1):.1f} s a kill"]),
    )


def _kill(tollgate: Tollgate, victim: str, draw: random.Random) -> set[psutil.Process] | None:
    """`kill -9`, once it is there again since the last one. All that might have been killed; None when it does not come back."""
    if waited(lambda: bool(_processes(tollgate, victim)), RECOVERY_TIMEOUT_S) is None:
        return None
    processes = _processes(tollgate, victim)
    draw.choice(processes).kill()
    return set(processes)


def _processes(tollgate: Tollgate, victim: str) -> list[psutil.Process]:
    """Any of which may be killed; none while it is being started again."""
    try:
        program = tollgate.program({"worker": "proxy", "celery": "worker"}.get(victim, victim))
        return program.children() if victim == "worker" else [program]
    except (StopIteration, psutil.NoSuchProcess):
        return []


def _has_recovered(tollgate: Tollgate, victim: str, before: set[psutil.Process], arrivals: Arrivals) -> bool:
    """Wait until there is another for whom was killed, and a call that began after that is in the ledger: then everything on the
    way works again. What was under way at the kill may still feed the ledger once more, and is no recovery."""
    if waited(lambda: bool(set(_processes(tollgate, victim)) - before), RECOVERY_TIMEOUT_S) is None:
        return False
    back_at_us = time.time_ns() // 1000
    return waited(lambda: arrivals.has_any_since(back_at_us), RECOVERY_TIMEOUT_S) is not None


PROMISES = tuple(
    Promise(
        NAME + victim,
        f"Nothing delivered is missing after `kill -9` of {name}",
        "0 missing, visible within 5 s of recovery",
        run,
    )
    for victim, name in VICTIMS.items()
)
