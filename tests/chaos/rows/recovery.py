"""What was killed is back soon, by itself: a worker, a Redis that lost everything, Celery after Redis."""

import asyncio
import random
import shutil
import time
from collections.abc import Callable

import redis

from budgets import gate
from controlplane import supervisor
from tests.chaos.load import Load, ask, chat
from tests.chaos.rig import (
    Measured,
    Options,
    Rig,
    alone,
    kill_process,
    proxy_port,
    secret_of,
    waited,
)
from tests.e2e.conftest import Tollgate
from tests.stack import wait_until

WORKER_S = 2.0
REDIS_S = 3.0
CELERY_S = 30.0
TIMEOUT_S = 60.0


def worker(rig: Rig, options: Options) -> Measured:
    """The only worker of its host, so that nobody else answers meanwhile."""
    kills = options.kills_of(short=3, full=50)
    stack = rig.stack(1)
    secret, slowest_s = stack.control.issue_key(), 0.0
    progress = rig.progress("kill", kills)
    for number in range(kills):
        progress.reached(number, f"{slowest_s:.1f} s at most")
        wait_until(lambda: bool(stack.proxy.workers()) and _answers(stack.proxy.port, secret), "the worker")
        slowest_s = max(slowest_s, _kill(stack.proxy.workers()[0], lambda: _answers(stack.proxy.port, secret)))
    return _measured(slowest_s, WORKER_S, f"{kills} kills of the only worker")


def redis_lost(rig: Rig, options: Options) -> Measured:
    """It comes back empty, so that everything must be rebuilt before anything is admitted."""
    kills = options.kills_of(short=1, full=20)
    tollgate = rig.tollgate()
    books, port, secret = rig.books(tollgate), proxy_port(tollgate), secret_of(tollgate)
    slowest_s, drifts, counters, faults = 0.0, 0, 0, list[str]()
    progress = rig.progress("kill", kills)
    for number in range(kills):
        progress.reached(number, f"{slowest_s:.1f} s at most")
        with Load(port, secret) as load:
            wait_until(lambda: load.answered > 20, "answers")
        # Celery has started; and what dies often is started again ever more slowly, by design.
        wait_until(books.is_quiet, "an empty usage stream", timeout_s=TIMEOUT_S)
        time.sleep(supervisor.HEALTHY_AFTER_S)
        with Load(port, secret):
            process = tollgate.program("redis")
            shutil.move(tollgate.data_dir / "redis" / "appendonly.aof", rig.directory())
            took_s = _kill(process.pid, lambda: _answers(port, secret))
            slowest_s = max(slowest_s, took_s)
        faults += books.close_books()
        drifts, counters = drifts + len(books.drift()), books.counters()
    measured = _measured(slowest_s, REDIS_S, f"{kills} kills of a Redis whose file is gone too")
    return measured._replace(
        is_held=measured.is_held and not drifts and not faults,
        figure=f"{measured.figure}; {drifts} of {counters} counters drift",
        detail="; ".join(faults[:5]),
    )


def celery(rig: Rig, options: Options) -> Measured:
    """Redis is its broker: after each restart what is in the usage stream goes into the ledger again."""
    restarts = options.kills_of(short=2, full=20)
    draw = random.Random(options.first_seed)
    tollgate = rig.tollgate()
    books, port, secret = rig.books(tollgate), proxy_port(tollgate), secret_of(tollgate)
    slowest_s, stuck = 0.0, 0
    progress = rig.progress("restart", restarts)
    for number in range(restarts):
        progress.reached(number, f"{slowest_s:.1f} s at most")
        wait_until(lambda: _answers(port, secret), "an answer", timeout_s=TIMEOUT_S)
        wait_until(books.is_quiet, "an empty usage stream", timeout_s=TIMEOUT_S)
        time.sleep(draw.uniform(0, 1.5))
        _restart_redis(tollgate)
        wait_until(lambda: _answers(port, secret), "an answer after the restart", timeout_s=TIMEOUT_S)
        took_s = waited(lambda: _is_ingested(books.redis), TIMEOUT_S)
        stuck += took_s is None
        slowest_s = max(slowest_s, took_s or TIMEOUT_S)
    return _measured(slowest_s, CELERY_S, f"{restarts - stuck} of {restarts} restarts")


def _kill(pid: int, is_back: Callable[[], bool]) -> float:
    """Seconds from the signal to the first answer."""
    began_at_s = time.monotonic()
    kill_process(pid)
    return TIMEOUT_S if waited(is_back, TIMEOUT_S) is None else time.monotonic() - began_at_s


def _restart_redis(tollgate: Tollgate) -> None:
    process = tollgate.program("redis")
    process.terminate()
    process.wait(TIMEOUT_S)


def _answers(port: int, secret: str) -> bool:
    return asyncio.run(ask(port, secret, chat(max_tokens=8))).status == 200


def _is_ingested(client: redis.Redis) -> bool:
    try:
        return client.xlen(gate.USAGE) == 0
    except redis.RedisError:
        return False


def _measured(slowest_s: float, bound_s: float, counts: str) -> Measured:
    return Measured(is_held=slowest_s <= bound_s, figure=f"{slowest_s:.1f} s at most", counts=counts)


PROMISES = (
    alone("recovery_worker", "A killed worker is back", "< 2 s to the first answer", worker),
    alone(
        "recovery_redis", "A Redis that lost everything is back", "< 3 s, its counters rebuilt with 0 drift", redis_lost
    ),
    alone("recovery_celery", "Celery consumes again after a restart of Redis", "≤ 30 s, each time", celery),
)
