"""From the journal to the gate: holds and settles that Redis does not have. In order, and doing it again does no harm."""

import asyncio

import structlog

from budgets import gate
from proxy.ask import ask, call, send
from proxy.errors import Unavailable
from proxy.journal import Dispatched, Orphan, Settled
from proxy.wire.redis import RedisError, RedisPipeline

log = structlog.get_logger()

REPLAY_BATCH = 500


class JournalTooShort(Unavailable):
    """Redis came back as it was longer ago than the journal reaches. Asking again does not help, and nothing is admitted on wrong
    counters."""


async def restore(redis: RedisPipeline, entry: Dispatched, *, by: str, fence: int) -> None:
    """Put back the hold of an attempt that runs, or ran when its worker died. Raises `Unavailable`."""
    argument = gate.restore_of_admit(entry.admit, entry.held_nanos, entry.held_tokens, by=by, fence=fence)
    if isinstance(gate.decode_restore(await ask(redis, gate.RESTORE, argument)), gate.NotReady):
        raise Unavailable("the gate is being rebuilt")


async def replay(redis: RedisPipeline, entries: list[Settled], applied_seq: int) -> int:
    """Send settles in order; returns the last applied sequence number. Raises `Unavailable`, `JournalTooShort`."""
    if not entries or entries[0].seq > applied_seq + 1:
        log.error("the journal does not reach back to where Redis is", applied_seq=applied_seq)
        raise JournalTooShort("the gate is behind this worker's journal")
    for start in range(0, len(entries), REPLAY_BATCH):
        batch = entries[start : start + REPLAY_BATCH]
        # Futures, not tasks: while a connection is made ready it serves only the task that does so.
        futures = [send(redis, gate.SETTLE, entry.settle) for entry in batch]
        try:
            answers = await asyncio.gather(*futures)
        except RedisError as error:
            raise Unavailable("the gate did not answer") from error
        for entry, answer in zip(batch, answers, strict=True):
            decoded = gate.decode_settle(answer)
            if isinstance(decoded, gate.Gap):
                # Redis is further back than it said: another server. Start again from where it is.
                return decoded.applied_seq
            if isinstance(decoded, gate.NotReady):
                raise Unavailable("the gate is being rebuilt")
            applied_seq = entry.seq
    return applied_seq


async def have_rebuilt(redis: RedisPipeline) -> None:
    """What a journal lacks PostgreSQL has: the control plane is to count anew from there. Nobody is admitted until it has. Raises
    `Unavailable`."""
    log.warning("the gate is to be rebuilt from the ledger")
    await call(redis, b"DEL", gate.EPOCH)


async def take_over(redis: RedisPipeline, orphan: Orphan, *, by: str, fence: int) -> bytes:
    """Finish what a dead worker of this host left: its settles, then its open holds. Returns the last id of the usage
    stream: once all up to it is ingested, the journal is not needed. `by` does it, under its lease of the number `fence`. Raises
    `Unavailable` half way; doing it again does no harm."""
    open_attempts, settles = await asyncio.to_thread(_sort_out, orphan)
    applied = await call(redis, b"HGET", gate.APPLIED, orphan.worker)
    applied_seq = int(applied or 0)
    for entry in open_attempts.values():
        await restore(redis, entry, by=by, fence=fence)
    unapplied = [entry for entry in settles if entry.seq > applied_seq]
    while unapplied:
        applied_seq = await replay(redis, unapplied, applied_seq)
        unapplied = [entry for entry in unapplied if entry.seq > applied_seq]
    # Every hold that is not in the journal was never dispatched.
    held = await call(redis, b"HKEYS", gate.holds_key(orphan.worker))
    undispatched = [name.decode() for name in held if name.decode() not in open_attempts]
    argument = gate.encode_reap(worker=orphan.worker, is_dead=True, void_attempt_ids=undispatched)
    if isinstance(gate.decode_reap(await ask(redis, gate.REAP, argument)), gate.NotReady):
        raise Unavailable("the gate is being rebuilt")
    log.info(
        "took over from a dead worker",
        dead_worker=orphan.worker,
        settled=len(settles),
        open_attempts=len(open_attempts),
        voided=len(undispatched),
    )
    newest = await call(redis, b"XREVRANGE", gate.USAGE, b"+", b"-", b"COUNT", 1)
    return newest[0][0] if newest else b"0"


def _sort_out(orphan: Orphan) -> tuple[dict[str, Dispatched], list[Settled]]:
    """(attempts that were dispatched and never settled, settles in order). Blocks on the disk."""
    open_attempts: dict[str, Dispatched] = {}
    settles: list[Settled] = []
    for entry in orphan.entries():
        if isinstance(entry, Dispatched):
            open_attempts[entry.attempt_id] = entry
        else:
            open_attempts.pop(entry.attempt_id, None)
            settles.append(entry)
    return open_attempts, settles
