"""A worker of the data path, as far as Redis can tell: what it sends, through the real scripts."""

import datetime
import uuid

import msgspec

from audit.records import Usage, UsageEvent, encode_event
from budgets import gate, spend

TOKENS_HELD = 500


class Worker:
    """What a worker sends, through the real scripts."""

    def __init__(self, client, key):
        self.client = client
        self.key = key
        self.seq = 0
        self.fence = 0
        self.beat()

    def beat(self):
        self.fence += 1
        argument = gate.encode_heartbeat(
            worker="w1", fence=self.fence, lease_ms=30_000, status=b"{}", is_in_step=True, join=gate.Join("", ())
        )
        self.client.eval(gate.HEARTBEAT.text, 0, argument)

    def admit(self, nanos, at=None, **said):
        at_s = (at or datetime.datetime.now(datetime.UTC)).timestamp()
        project = self.key.project
        fields = {
            "attempt_id": str(uuid.uuid4()),
            "request_id": str(uuid.uuid4()),
            "admitted_at_us": int(at_s * 1_000_000),
            "team_id": str(project.team_id),
            "project_id": str(project.pk),
            "virtual_key_id": str(self.key.pk),
            "alias": "fast",
            "provider": "openai",
            "model": "small",
            "deployment": "small-eu",
            "request_model": "small-2026",
            "tags": {"feature": "search"},
        }
        event = UsageEvent(**fields | said)
        dimensions = {"team": event.team_id, "project": event.project_id, "key": event.virtual_key_id}
        self.counters = spend.counters_of(dimensions | {"tag:feature": "search"}, at_s)
        hold = gate.hold_value(self.counters, [], encode_event(event))
        argument = gate.encode_admit(
            worker="w1",
            fence=self.fence,
            attempt_id=event.attempt_id,
            kill_fields=[],
            budgets=self.counters,
            full_nanos=nanos,
            tranche_nanos=nanos,
            full_tokens=TOKENS_HELD,
            tranche_tokens=TOKENS_HELD,
            hold=hold,
        )
        assert isinstance(gate.decode_admit(self.client.eval(gate.ADMIT.text, 0, argument)), gate.Admitted)
        return event

    def settle(self, event, nanos):
        self.seq += 1
        event = msgspec.structs.replace(
            event, cost_nanos=nanos, status_code=200, usage=Usage(input_tokens=10, output_tokens=5)
        )
        argument = gate.encode_settle(
            worker="w1",
            seq=self.seq,
            attempt_id=event.attempt_id,
            cost_nanos=nanos,
            tokens=15,
            requests=1,
            budgets=self.counters,
            event=encode_event(event),
        )
        assert isinstance(gate.decode_settle(self.client.eval(gate.SETTLE.text, 0, argument)), gate.Settled)

    def spend(self, nanos, **said):
        event = self.admit(2 * nanos, **said)
        self.settle(event, nanos)
        return event

    def die_and_come_back(self):
        argument = gate.encode_reap(worker="w1", is_dead=True, void_attempt_ids=[])
        assert isinstance(gate.decode_reap(self.client.eval(gate.REAP.text, 0, argument)), gate.Reaped)
        self.beat()
