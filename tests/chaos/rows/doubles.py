"""Nothing is charged twice: every usage event delivered twice, Celery killed between commit and acknowledgement, workers
that are taken for dead and settle after all; and clients that try again with the same `Idempotency-Key`."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

from budgets import gate
from tests.chaos.books import Books
from tests.chaos.load import Answer, Load, ask, chat
from tests.chaos.rig import Measured, Options, Rig, alone, proxy_port, secret_of, waited, worker_pids
from tests.chaos.witness import Witness
from tests.stack import wait_until

RACING = 20
REAPED_S = 40.0


def run(rig: Rig, options: Options) -> Measured:
    rounds = options.kills_of(short=2, full=50)
    draw = random.Random(options.first_seed)
    tollgate = rig.tollgate()
    books = rig.books(tollgate)
    with (
        Load(proxy_port(tollgate), secret_of(tollgate), seed=options.first_seed) as load,
        _redelivered(books) as redelivered,
    ):
        wait_until(lambda: load.answered > 10, "answers")
        late, progress = 0, rig.progress("round", rounds)
        for number in range(rounds):
            progress.reached(number, f"{load.answered:,} answers")
            late += _pause_a_worker(books, draw)
            with suppress(StopIteration):
                tollgate.program("worker").kill()
            time.sleep(draw.uniform(0.5, 2.0))
    faults = books.close_books()
    assert redelivered and late, "nothing was delivered twice, or nothing was settled late"
    return Measured(
        is_held=not faults and not books.witness.repeated,
        figure=f"{len(faults)} differences between journal, ledger, roll-ups and counters",
        counts=f"{len(books.witness.calls):,} calls, {len(redelivered):,} events twice, {late} settled late, {rounds} kills",
        detail="; ".join(faults[:5]),
    )


@contextmanager
def _redelivered(books: Books) -> Iterator[list[dict[bytes, bytes]]]:
    """Within the `with`, whatever is in the usage stream is put there once more."""
    is_over, done = threading.Event(), list[dict[bytes, bytes]]()

    def redeliver() -> None:
        newest = b"-"
        while not is_over.wait(0.05):
            with suppress(redis.RedisError):
                for entry_id, fields in books.redis.xrange(gate.USAGE, newest, "+", count=1000):
                    newest = b"(" + entry_id
                    if fields not in done[-2000:]:
                        books.redis.xadd(gate.USAGE, fields)
                        done.append(fields)

    thread = threading.Thread(target=redeliver, daemon=True)
    thread.start()
    yield done
    is_over.set()
    thread.join()


def _pause_a_worker(books: Books, draw: random.Random) -> int:
    """Past its lease, until its holds are reaped; then it is back, and settles them after all. How many it held."""
    name, pid = draw.choice(sorted(worker_pids(books.redis).items()))
    os.kill(pid, signal.SIGSTOP)
    held = int(books.redis.hlen(gate.holds_key(name)))
    is_reaped = waited(lambda: not books.redis.exists(gate.holds_key(name)), REAPED_S) is not None
    os.kill(pid, signal.SIGCONT)
    assert is_reaped, f"nobody has reaped what a paused worker held, within {REAPED_S:.0f} s"
    return held


def retried(rig: Rig, options: Options) -> Measured:
    rounds = options.seeds or (3 if options.is_short else 50)
    stack = rig.stack(2, TOLLGATE_REDIS_TIMEOUT_S="2", TOLLGATE_LEASE_S="30")
    secret, port = stack.control.issue_key(), stack.proxy.port
    witness = Witness(stack.simulator.journal)
    calls = differing = wrong = 0
    for number in range(rounds):
        witness.forget()
        key = {"idempotency-key": f"order-{number}"}
        answers = asyncio.run(_race(port, secret, key))
        replayed = asyncio.run(_tell("Hello", port, secret, key))
        differing += len({answer.body for answer in (*answers, replayed) if answer.status == 200}) != 1
        other = asyncio.run(_tell("Goodbye", port, secret, key))
        wrong += other.status != 422 or not {answer.status for answer in answers} <= {200, 409}
        calls += len(witness.look().calls)
    return Measured(
        is_held=calls == rounds and not differing and not wrong,
        figure=f"{calls} calls for {rounds} keys, {differing} replays that differ, {wrong} wrong statuses",
        counts=f"{rounds} keys, {RACING} clients each",
    )


async def _race(port: int, secret: str, key: dict[str, str]) -> list[Answer]:
    return await asyncio.gather(*(_tell("Hello", port, secret, key) for _ in range(RACING)))


async def _tell(text: str, port: int, secret: str, key: dict[str, str]) -> Answer:
    return await ask(port, secret, chat(f"{text} [[simulate latency_ms=100]]", max_tokens=8), headers=key)


PROMISES = (
    alone("doubles", "Nothing is charged twice: redelivery, settle races", "0 differences", run),
    alone(
        "retried",
        "Nothing is charged twice: clients that try again with an `Idempotency-Key`",
        "one upstream call, equal replays; 409 in flight, 422 for another body",
        retried,
    ),
)
