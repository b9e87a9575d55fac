"""A running gateway with a deployment and an alias for each recording, whose provider answers as it was recorded."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from msgspec import structs

from budgets import gate
from budgets.pricing import scaled
from keys.vault import parse_master_keys, seal
from proxy.snapshot import Alias, Credential
from routing.engine import AliasTarget
from tests.recordings.corpus import Place, Recording, place_of, recordings
from tests.recordings.upstream import Received, ReplayUpstream, traceparent
from tests.stack import PRICE, UPSTREAM_SECRET, VAULT_KEY, ControlPlane, Proxy, free_port

CREDENTIAL = Credential(
    credential_id="the same for all", sealed=seal(UPSTREAM_SECRET, "the same for all", parse_master_keys(VAULT_KEY))
)
EVERY_RATE = structs.replace(
    PRICE,
    request_nanos=0,
    tool_call_nanos=10_000_000,
    unit_nanos=1_000_000,
    tiers={"priority": scaled(PRICE, 200), "fast": scaled(PRICE, 600)},
)
# Some clients say which dialect is theirs where two share a path.
VERSION_HEADERS = {"anthropic.messages": {"anthropic-version": "2023-06-01"}}
EVENT_TIMEOUT_S = 60.0


class Replay(NamedTuple):
    """What the client got, what the provider got, and what the ledger is told; None where there is no such thing."""

    place: Place
    response: httpx.Response
    received: Received | None
    event: dict[str, Any] | None


class RecordedGateway:
    def __init__(self, redis_url: str, directory: Path) -> None:
        self.upstream = ReplayUpstream()
        self.control = ControlPlane(redis_url, self.upstream.url)
        self.places: dict[int, Place] = {}
        for recording in recordings():
            place = place_of(recording, self.upstream.url, price=EVERY_RATE, credentials=(CREDENTIAL,))
            self.places[recording.number] = place
            self.control.providers[place.name] = place.provider
            self.control.deployments[place.name] = place.deployment
            target = AliasTarget(deployment_id=place.name, position=0)
            self.control.aliases[place.name] = Alias(name=place.name, targets=(target,), is_lenient=True)
        self.control.publish()
        self.control.open()
        self.proxy = Proxy(directory, redis_url, free_port(), workers=1)
        self.proxy.wait_ready()
        secret = self.control.issue_key(passthrough=("*",))
        headers = {"authorization": f"Bearer {secret}", "accept-encoding": "identity"}
        self._client = httpx.Client(base_url=self.proxy.url, headers=headers, timeout=60)
        self._events: dict[str, dict[str, Any]] = {}
        self._last_event = b"0"

    def stop(self) -> None:
        self._client.close()
        self.proxy.process.stop()
        self.control.redis.close()
        self.upstream.stop()

    def replay(self, recording: Recording, body: bytes | None = None) -> Replay:
        """As the recorded client called, in the same dialect; with another `body` where there is one."""
        place = self.places[recording.number]
        headers = {"content-type": "application/json", **VERSION_HEADERS.get(place.api.name, {})}
        sent = place.body if body is None else body
        return self._send(recording, recording.request["method"], place.path, place.query, sent, headers)

    def translate(self, recording: Recording, path: str, body: dict[str, Any]) -> Replay:
        """As a client of another dialect calls the same deployment."""
        return self._send(recording, "POST", path, "", json.dumps(body).encode(), {"content-type": "application/json"})

    def _send(
        self, recording: Recording, method: str, path: str, query: str, body: bytes, headers: dict[str, str]
    ) -> Replay:
        self.upstream.received.pop(recording.number, None)
        headers = {**headers, "traceparent": traceparent(recording)}
        url = httpx.URL(path) if not query else httpx.URL(f"{path}?{query}")
        response = self._client.request(method, url, content=body, headers=headers)
        received = self.upstream.received.get(recording.number)
        event = self._event(response.headers["x-request-id"]) if received is not None else None
        return Replay(self.places[recording.number], response, received, event)

    def _event(self, request_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        while request_id not in self._events:
            for entry_id, fields in self.control.redis.xrange(gate.USAGE, min=b"(" + self._last_event):
                event = json.loads(fields[b"event"])
                self._events[event["request_id"]] = event
                self._last_event = entry_id
            assert time.monotonic() < deadline, f"no usage event of request {request_id}\n{self.proxy.log[-3000:]}"
            time.sleep(0.001)
        return self._events.pop(request_id)
