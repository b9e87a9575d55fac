"""Nothing that a provider delivered is missing from the ledger, whichever process is killed under load."""

import random
import time
from functools import partial

import psycopg
import redis

from tests.chaos.books import Books
from tests.chaos.load import Load
from tests.chaos.rig import Measured, Options, Promise, Rig, proxy_port, secret_of, waited
from tests.e2e.conftest import Tollgate
from tests.stack import wait_until

VISIBLE_S = 5.0
LATE_S = 20.0
RECOVERY_TIMEOUT_S = 60.0
VICTIMS = {
    "worker": "a proxy worker",
    "redis": "Redis",
    "postgres": "PostgreSQL",
    "celery": "the Celery worker",
    "beat": "beat",
    "admin": "the admin",
}


def run(rig: Rig, options: Options, *, victim: str) -> Measured:
    kills = options.kills_of(short=2, full=200)
    draw = random.Random(options.first_seed)
    tollgate = rig.tollgate()
    books = rig.books(tollgate)
    slowest_s, late = 0.0, 0
    with Load(proxy_port(tollgate), secret_of(tollgate), seed=options.first_seed) as load:
        wait_until(lambda: load.answered > 0, "the first answer")
        for number in range(kills):
            time.sleep(draw.uniform(0.3, 1.5))
            _kill(tollgate, victim, draw)
            visible_s = _time_to_visible(books)
            late += visible_s is None or visible_s > VISIBLE_S
            slowest_s = max(slowest_s, LATE_S if visible_s is None else visible_s)
            if number % 10 == 9:
                rig.say(f"{number + 1} kills, {load.answered} calls, all visible within {slowest_s:.1f} s")
    faults, calls = books.close_books(), books.witness.calls
    missing = books.missing(calls)
    return Measured(
        is_held=not (missing or faults or late),
        figure=f"{len(missing)} missing of {len(calls):,}; visible within {slowest_s:.1f} s of recovery",
        counts=f"{kills} kills of {VICTIMS[victim]}",
        detail="; ".join(faults[:5]),
    )


def _kill(tollgate: Tollgate, victim: str, draw: random.Random) -> None:
    """`kill -9`, once it is there again since the last one."""
    program = {"worker": "proxy", "celery": "worker"}.get(victim, victim)
    wait_until(lambda: _is_there(tollgate, program), victim, timeout_s=RECOVERY_TIMEOUT_S)
    process = tollgate.program(program)
    if victim == "worker":
        wait_until(lambda: bool(process.children()), "a worker", timeout_s=RECOVERY_TIMEOUT_S)
        process = draw.choice(process.children())
    process.kill()


def _is_there(tollgate: Tollgate, program: str) -> bool:
    try:
        return tollgate.program(program).is_running()
    except StopIteration:
        return False


def _time_to_visible(books: Books) -> float | None:
    """Seconds from recovery until all that was received before this moment is in the ledger; None if it took too long.

    Recovery is when a call that began after the kill is in the ledger: then everything on the way works again.
    """
    killed_at_us = time.time_ns() // 1000
    before = set(books.witness.look().calls)

    def has_recovered() -> bool:
        after = {c.attempt_id for c in books.witness.look().calls.values() if c.received_at_us > killed_at_us and c.end}
        return _missing(books, after) != after

    if waited(has_recovered, RECOVERY_TIMEOUT_S) is None:
        return None
    return waited(lambda: not _missing(books, before), LATE_S)


def _missing(books: Books, attempt_ids: set[str]) -> set[str]:
    try:
        return books.missing(attempt_ids)
    except (psycopg.OperationalError, redis.RedisError):
        return attempt_ids


PROMISES = tuple(
    Promise(
        f"missing_{victim}",
        f"Nothing delivered is missing after `kill -9` of {name}",
        "0 missing, visible within 5 s of recovery",
        partial(run, victim=victim),
    )
    for victim, name in VICTIMS.items()
)
