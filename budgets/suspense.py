"""Resolving by hand what is in suspense, where the provider's bill says what it has cost. One proposes it, another approves it.

An approved resolution is on record in PostgreSQL; Redis hears of it in a late settle, which corrects the counters and puts the
event into the usage stream in one step, as a worker's does. It is sent until the ledger has it: of several only one counts.
"""

import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import cast

import msgspec
import redis
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from audit.models import UsageRecord
from audit.records import encode_event
from budgets import gate, ledger
from budgets.comparison import nanos
from budgets.ledger_models import SuspenseResolution
from budgets.spend import counters_of, dimensions_of

log = logging.getLogger(__name__)

# Whose settles these are, in the numbered log that each sender has.
SENDER = "control-plane"
TRIES = 5
NOT_WAITING = "It is not in suspense any more."


def propose(record: UsageRecord, cost_usd: Decimal, *, actor: Actor, reason: str) -> SuspenseResolution:
    """Raises ValidationError."""
    if record.state != UsageRecord.State.SUSPENSE:
        raise ValidationError(NOT_WAITING)
    resolution = SuspenseResolution(
        attempt_id=record.attempt_id,
        team_id=record.team_id,
        cost_usd=cost_usd,
        reason=reason.strip(),
        proposed_by_id=actor.id,
        proposed_by=actor.name[:200],
    )
    audit.create(resolution, actor=actor, reason=reason, action="propose")
    return resolution


def decide(resolution: SuspenseResolution, *, is_approved: bool, actor: Actor, note: str) -> None:
    """Whoever proposed it may take it back, and not approve it. Raises ValidationError."""
    with transaction.atomic():
        if SuspenseResolution.objects.select_for_update().get(pk=resolution.pk).is_approved is not None:
            raise ValidationError("This is decided already.")
        audit.change(
            resolution,
            actor=actor,
            reason=note,
            action="approve" if is_approved else "reject",
            values={
                "is_approved": is_approved,
                "decided_by_id": actor.id,
                "decided_by": actor.name[:200],
                "decided_at": timezone.now(),
                "note": note.strip(),
            },
        )


def apply_approved(client: redis.Redis) -> int:
    """Send the settles of what is approved, and note what the ledger has by now; how many were sent. Raises `redis.RedisError`."""
    sent = 0
    for resolution in SuspenseResolution.objects.wanted().order_by("pk"):
        record = UsageRecord.objects.get(attempt_id=resolution.attempt_id)
        if record.state != UsageRecord.State.SUSPENSE:
            _note_applied(resolution, record)
        elif _settle(client, record, resolution.cost_usd):
            sent += 1
    return sent


def _note_applied(resolution: SuspenseResolution, record: UsageRecord) -> None:
    with transaction.atomic():
        resolution.applied_at = timezone.now()
        resolution.save(update_fields=["applied_at"])
        audit.record(
            Actor.system("suspense"),
            "apply",
            resolution,
            after={"state": record.state, "cost_usd": str(record.cost_usd)},
        )


def _settle(client: redis.Redis, record: UsageRecord, cost_usd: Decimal) -> bool:
    """False where Redis is being rebuilt: the next time will do."""
    kept = cast("bytes | None", client.hget(gate.SUSPENSE, str(record.attempt_id)))
    event = msgspec.structs.replace(
        ledger.event_of(record),
        state="posted",
        usage_source="invoice",
        cost_nanos=nanos(cost_usd),
        currency_cost_nanos=None,
    )
    for _ in range(TRIES):
        applied = cast("bytes | None", client.hget(gate.APPLIED, SENDER))
        argument = gate.encode_settle(
            worker=SENDER,
            seq=int(applied or 0) + 1,
            attempt_id=event.attempt_id,
            cost_nanos=event.cost_nanos,
            tokens=event.usage.input_tokens + event.usage.output_tokens,
            requests=1,
            budgets=_counters(kept, record),
            event=encode_event(event),
            is_late=True,
        )
        answer = gate.decode_settle(client.eval(gate.SETTLE.text, 0, cast(str, argument)))
        if isinstance(answer, gate.Settled):
            return True
        if isinstance(answer, gate.NotReady):
            return False
        # Somebody else sent one of that number in between.
    log.warning("a resolution is put off: others were quicker")
    return False


def _counters(kept: bytes | None, record: UsageRecord) -> Sequence[gate.BudgetCounter]:
    """Those that it is held in. Where Redis was rebuilt, the hold does not say."""
    held_in = gate.decode_kept_hold(kept).budgets if kept is not None else ()
    return held_in or counters_of(dimensions_of(record), record.admitted_at.timestamp())
