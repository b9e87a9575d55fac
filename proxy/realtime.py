"""A session: what passes between a client's WebSocket and the provider's, counted, covered by the hold, and cut in time.

The hold covers what was used so far and whatever may be running: it grows before a message goes on that may make the provider
work, and after each that says what was used. A session is one attempt, so it has one usage record.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

from websockets.frames import CloseCode

from audit.records import Usage
from proxy.admission import Admission
from proxy.attempt import Attempt, Outcome
from proxy.authenticate import SUBPROTOCOLS
from proxy.errors import ClientGone, GatewayError, LeaseLost, UpstreamBroken, UpstreamTimedOut
from proxy.respond import Headers, Responder, rate_limit_headers
from proxy.wire.websocket import Closed, Message, WebSocket

GOOD_CLOSINGS = frozenset({CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD})
PROTOCOL = b"realtime"


async def converse(
    provider: WebSocket, attempt: Attempt, outcome: Outcome, responder: Responder, admission: Admission
) -> None:
    """Accept the client's WebSocket and pass on what both sides say, until one of them is done. Raises an `UpstreamFailed`,
    `ClientGone`, `LeaseLost`, or a refusal of `extend_by`."""
    outcome.usage = Usage()
    client = responder.upgrade(_headers(attempt, responder.offered_protocols, provider.subprotocol))
    session = Session(client, provider, attempt, admission)
    outcome.status_code = HTTPStatus.SWITCHING_PROTOCOLS
    try:
        outcome.error_type = await session.run()
    finally:
        session.tell(outcome)
    responder.has_ended = True


class Patience(NamedTuple):
    """A side that says nothing at all for `silence_s`, not even that it lives, is gone. After `idle_s` in which neither has
    anything to say the session is over."""

    ping_s: float = 20.0
    silence_s: float = 60.0
    idle_s: float = 900.0


PATIENCE = Patience()


class Session:
    """Two WebSockets, each read by a task of its own."""

    def __init__(self, client: WebSocket, provider: WebSocket, attempt: Attempt, admission: Admission) -> None:
        self._client = client
        self._provider = provider
        self._attempt = attempt
        self._admission = admission
        self._meter = attempt.prepared.api.session_meter(attempt.described.call, attempt.upstream.deployment)
        self._covering = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._spoken_at_s = self._loop.time()

    async def run(self) -> str:
        """Until one side is done, and the other was told so in the same words. Returns the error type, "" for a good end."""
        of_client = self._loop.create_task(self._listen_to_client())
        of_provider = self._loop.create_task(self._listen_to_provider())
        watching = self._loop.create_task(watch(self._client, self._provider, lambda: self._spoken_at_s))
        tasks = (of_client, of_provider, watching)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (failure := task.exception()) is not None:
                raise failure
        if not of_client.cancelled():
            closed = of_client.result()
            self._provider.close(closed.code, closed.reason)
        elif not of_provider.cancelled():
            closed = of_provider.result()
            self._client.close(closed.code, closed.reason)
            return "" if closed.code in GOOD_CLOSINGS else UpstreamBroken.error_type
        else:
            self._client.close(CloseCode.GOING_AWAY, f"nothing was said for {PATIENCE.idle_s:.0f} s")
        return ""

    def tell(self, outcome: Outcome) -> None:
        meter = self._meter
        meter.finish()
        outcome.usage = None if meter.is_estimated else meter.usage
        outcome.usage_so_far = meter.usage
        outcome.response_model = meter.response_model
        outcome.finish_reason = meter.finish_reason

    async def _listen_to_client(self) -> Closed:
        while True:
            try:
                message = await self._client.receive()
            except Closed as closed:
                if closed.code == CloseCode.ABNORMAL_CLOSURE:
                    raise ClientGone("the client left") from closed
                return closed
            onward = Message(self._meter.sent(message.data), message.is_text)
            try:
                await self._cover()
            except GatewayError:
                self._meter.withheld(message.data)
                raise
            await self._pass_on(onward, self._provider)

    async def _listen_to_provider(self) -> Closed:
        while True:
            try:
                message = await self._provider.receive()
            except Closed as closed:
                if closed.code == CloseCode.ABNORMAL_CLOSURE:
                    raise UpstreamBroken(
                        "the connection to the provider was lost", may_have_been_billed=True
                    ) from closed
                return closed
            self._meter.received(message.data)
            if self._meter.has_begun_to_answer and self._attempt.first_token_at_s is None:
                self._attempt.first_token_at_s = self._admission.clock.monotonic_s()
            await self._pass_on(message, self._client)
            await self._cover()

    async def _pass_on(self, message: Message, to: WebSocket) -> None:
        if not self._admission.has_lease:
            raise LeaseLost("this worker lost its lease; the session was stopped")
        self._spoken_at_s = self._loop.time()
        try:
            await to.send(message)
        except Closed:
            return  # Whoever listens to that side hears why.

    async def _cover(self) -> None:
        """Raises a GatewayError when the cap has no room."""
        if not any(self._missing()):
            return
        async with self._covering:
            missing_nanos, missing_tokens = self._missing()
            if missing_nanos or missing_tokens:
                await self._admission.extend_by(self._attempt, missing_nanos, missing_tokens)

    def _missing(self) -> tuple[int, int]:
        """What the hold is short of: (nano-USD, tokens where a budget counts them)."""
        attempt = self._attempt
        price = attempt.upstream.deployment.price
        assert price is not None, "an attempt is only admitted with a price"
        nanos = max(self._meter.needed_nanos(price) - attempt.held_nanos, 0)
        counts_tokens = bool(attempt.counters.units)
        return nanos, max(self._meter.needed_tokens() - attempt.held_tokens, 0) if counts_tokens else 0


async def watch(
    client: WebSocket, provider: WebSocket, spoken_at_s: Callable[[], float], patience: Patience = PATIENCE
) -> None:
    """Until nobody has spoken for too long. Raises `ClientGone` or `UpstreamTimedOut` for a side that is not there."""
    loop = asyncio.get_running_loop()
    while loop.time() - spoken_at_s() < patience.idle_s:
        client.ping()
        provider.ping()
        await asyncio.sleep(patience.ping_s)
        if client.silent_s() > patience.silence_s:
            raise ClientGone("the client does not answer any more")
        if provider.silent_s() > patience.silence_s:
            raise UpstreamTimedOut("the provider does not answer any more", may_have_been_billed=True)


def _headers(attempt: Attempt, offered: list[bytes], chosen: bytes) -> Headers:
    headers = [attempt.upstream.deployment_header]
    # A browser that has offered some wants one of them.
    protocol = chosen or (PROTOCOL if PROTOCOL in offered else b"")
    if protocol:
        headers.append((SUBPROTOCOLS, protocol))
    return headers + rate_limit_headers(attempt.rules, attempt.free, attempt.reset_ms)
