"""Redis fails over to a replica that lacks its last second of writes; nothing of that second is lost."""

import random
import time

import redis

from controlplane import embedded
from tests.chaos.books import Books
from tests.chaos.faults import Fault, FaultProxy
from tests.chaos.load import Load
from tests.chaos.rig import Measured, Options, Rig, Server, alone, proxy_port, secret_of
from tests.stack import wait_until

LOST_S = 1.0
RECOVERY_TIMEOUT_S = 30.0


def run(rig: Rig, options: Options) -> Measured:
    failovers = options.kills_of(short=2, full=50)
    draw = random.Random(options.first_seed)
    primary = rig.redis()
    front = rig.fault_proxy(_socket(primary))
    tollgate = rig.tollgate(REDIS_URL=f"redis://127.0.0.1:{front.port}/0")
    books = rig.books(tollgate)
    lost = 0
    with Load(proxy_port(tollgate), secret_of(tollgate), seed=options.first_seed) as load:
        wait_until(lambda: load.answered > 0, "the first answer")
        progress = rig.progress("failover", failovers)
        for number in range(failovers):
            replica, link = _replicate(rig, primary)
            time.sleep(draw.uniform(0.5, 1.5))
            before = load.answered
            lost += _fail_over(primary, replica, link, front)
            primary = replica
            wait_until(lambda: load.answered > before + 10, "answers", timeout_s=RECOVERY_TIMEOUT_S)  # noqa: B023
            progress.reached(number + 1, f"{lost:,} bytes of replication lost, {load.answered:,} answers")
    return _measured(books, failovers, lost)


def _measured(books: Books, failovers: int, lost: int) -> Measured:
    assert lost, "the replicas had everything: nothing was shown"
    faults, calls = books.close_books(), books.witness.calls
    missing = books.missing(calls)
    return Measured(
        is_held=not missing and not faults,
        figure=f"{len(missing)} missing of {len(calls):,}",
        counts=f"{failovers} failovers, {lost:,} bytes of writes lost",
        detail="; ".join(faults[:5]),
    )


def _replicate(rig: Rig, primary: Server) -> tuple[Server, FaultProxy]:
    """A replica that has everything so far, and the link that feeds it."""
    link = rig.fault_proxy(_socket(primary))
    replica = rig.redis(None, "--replicaof", "127.0.0.1", str(link.port))
    with redis.Redis.from_url(replica.url) as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica")
    return replica, link


def _fail_over(primary: Server, replica: Server, link: FaultProxy, front: FaultProxy) -> int:
    """Returns how many bytes of replication the replica lacks."""
    link.set(Fault(is_black_hole=True))
    time.sleep(LOST_S)
    with redis.Redis.from_url(primary.url) as client:
        written = client.info("replication")["master_repl_offset"]
    primary.kill()
    with redis.Redis.from_url(replica.url) as client:
        has = client.info("replication")["slave_repl_offset"]
        client.replicaof("NO", "ONE")
    front.move(_socket(replica))
    return int(written) - int(has)


def _socket(server: Server) -> str:
    assert isinstance(server.server, embedded.Redis)
    return str(server.server.socket_path)


PROMISE = alone("failover", "Redis fails over to a replica without its last second of writes", "0 missing", run)
