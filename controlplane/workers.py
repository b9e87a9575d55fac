"""The proxy's workers as Redis knows them: who is alive, what they acknowledged, and forgetting those that are gone."""

from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import redis

from budgets import gate
from proxy.metrics import WorkerStatus, decode_status

FORGET_AFTER_S = 60.0


class Acknowledgement(msgspec.Struct, frozen=True):
    """What a worker says after a kill: streams it has cut, and the time from hearing of it to the last one's end."""

    streams_cut: int
    elapsed_ms: float
    at_s: float = 0.0


_decode_acknowledgement = msgspec.json.Decoder(Acknowledgement).decode


def statuses(client: redis.Redis) -> list[WorkerStatus]:
    """What each worker last said of itself, also the dead ones until they are forgotten."""
    bodies = cast("dict[bytes, bytes]", client.hgetall(gate.WORKERS))
    return [decode_status(bodies[name]) for name in sorted(bodies)]


def live_workers(client: redis.Redis) -> list[str]:
    """Ids of the workers that hold their lease: only these can admit anything."""
    workers = [name.decode() for name in sorted(cast("list[bytes]", client.hkeys(gate.WORKERS)))]
    has_lease = _exist(client, gate.lease_key, workers)
    return [worker for worker in workers if has_lease[worker]]


def acknowledgements(client: redis.Redis, kill_switch_id: str) -> dict[str, Acknowledgement]:
    """Who has acknowledged the kill, by worker id."""
    bodies = cast("dict[bytes, bytes]", client.hgetall(gate.kill_acks_key(kill_switch_id)))
    return {name.decode(): _decode_acknowledgement(body) for name, body in bodies.items()}


def sweep(client: redis.Redis) -> list[str]:
    """Forget the workers that have long said nothing and hold nothing; who they were."""
    now_s = client.time()[0]
    silent = [status.worker for status in statuses(client) if now_s - status.at_s > FORGET_AFTER_S]
    has_lease, has_holds = _exist(client, gate.lease_key, silent), _exist(client, gate.holds_key, silent)
    gone = [worker for worker in silent if not has_lease[worker] and not has_holds[worker]]
    if gone:
        client.hdel(gate.WORKERS, *gone)
    return gone


def _exist(client: redis.Redis, key_of: Callable[[str], str], workers: Sequence[str]) -> dict[str, bool]:
    with client.pipeline(transaction=False) as pipeline:
        for worker in workers:
            pipeline.exists(key_of(worker))
        return dict(zip(workers, map(bool, pipeline.execute()), strict=True))
