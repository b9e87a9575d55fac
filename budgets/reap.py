"""Reaping: the holds of workers that are gone. Their attempts may be billed, so the money stays spent, in suspense."""

import logging
from typing import cast

import redis

from budgets import gate

log = logging.getLogger(__name__)


def reap_lost_workers(client: redis.Redis) -> int:
    """Reap each worker that has holds and no lease any more; how many holds went into suspense. Raises `redis.RedisError`."""
    to_suspense = 0
    for worker in _lost(client):
        # The script looks at the lease again: a worker that is back in the meantime keeps its holds.
        argument = gate.encode_reap(worker=worker, is_dead=False, void_attempt_ids=[])
        answer = gate.decode_reap(client.eval(gate.REAP.text, 0, cast(str, argument)))
        if isinstance(answer, gate.Reaped) and answer.to_suspense:
            log.warning("worker %s is lost: %d attempts are in suspense", worker, answer.to_suspense)
            to_suspense += answer.to_suspense
    return to_suspense


def _lost(client: redis.Redis) -> list[str]:
    # Every worker that holds anything has beaten, and stays in the list for as long as it holds.
    workers = [name.decode() for name in cast("list[bytes]", client.hkeys(gate.WORKERS))]
    with client.pipeline(transaction=False) as pipeline:
        for worker in workers:
            pipeline.exists(gate.lease_key(worker))
            pipeline.exists(gate.holds_key(worker))
        answers = pipeline.execute()
    return [
        worker
        for worker, has_lease, has_holds in zip(workers, answers[::2], answers[1::2], strict=True)
        if has_holds and not has_lease
    ]
