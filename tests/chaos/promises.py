"""The promises, in the order in which the scorecard tells them."""

from tests.chaos.rig import Promise
from tests.chaos.rows import (
    bill,
    cancelled,
    doubles,
    failover,
    hard_cap,
    limits,
    malformed,
    missing,
    model,
    postgres_away,
    recovery,
    redis_away,
    retries,
    stranded,
    usable_cap,
)

PROMISES: tuple[Promise, ...] = (
    hard_cap.PROMISE,
    usable_cap.PROMISE,
    limits.PROMISE,
    stranded.PROMISE,
    *missing.PROMISES,
    failover.PROMISE,
    *doubles.PROMISES,
    *bill.PROMISES,
    *redis_away.PROMISES,
    *postgres_away.PROMISES,
    retries.PROMISE,
    malformed.PROMISE,
    cancelled.PROMISE,
    *recovery.PROMISES,
    model.PROMISE,
)
