"""Receipts for applications. The ledger is the control plane's, so it is asked, with the key that the client presents.

The control plane decides what the key may see. Asking is bounded in time and in number: receipts must not take from inference.
"""

import asyncio
from typing import NamedTuple

import structlog

from proxy.errors import Unavailable
from proxy.wire import http1
from proxy.wire.http1 import Origin

log = structlog.get_logger()

TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 1.0
BODY_BYTES_MAX = 1024 * 1024
ASKING_MAX = 8
RETRY_AFTER_S = 5
# A receipt, "not yet", "there is none". Anything else is between the control plane and us.
CROSSING = frozenset({200, 202, 404})


class Answer(NamedTuple):
    """`retry_after` is empty where there is nothing to wait for."""

    status_code: int
    body: bytes
    retry_after: bytes


class Receipts:
    """`control_url` is where the control plane listens; empty where nobody has said."""

    def __init__(self, pool: http1.UpstreamPool, control_url: str) -> None:
        self._pool = pool
        self._origin = Origin.parse(control_url) if control_url else None
        self._asking = 0

    @property
    def are_served(self) -> bool:
        return self._origin is not None

    async def find(self, request_id: str, secret: str) -> Answer:
        """`request_id` is one segment of a path, as the client sent it. Raises `Unavailable`."""
        if self._asking >= ASKING_MAX:
            raise Unavailable("many receipts are being asked for", retry_after_s=RETRY_AFTER_S)
        self._asking += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._ask(request_id, secret)
        except (TimeoutError, http1.UpstreamFailure) as error:
            raise Unavailable("the control plane does not answer", retry_after_s=RETRY_AFTER_S) from error
        finally:
            self._asking -= 1
        if answer.status_code not in CROSSING:
            log.warning("a receipt could not be had", status_code=answer.status_code)
            raise Unavailable("the control plane cannot say", retry_after_s=RETRY_AFTER_S)
        return answer

    async def _ask(self, request_id: str, secret: str) -> Answer:
        assert self._origin is not None, "nobody asks where nobody answers"
        response = await self._pool.send(
            self._origin,
            b"GET",
            f"/api/v1/receipts/{request_id}/".encode(),
            [(b"authorization", b"Bearer " + secret.encode()), (b"accept", b"application/json")],
            b"",
            connect_timeout_s=CONNECT_TIMEOUT_S,
            first_byte_timeout_s=TIMEOUT_S,
            idle_timeout_s=TIMEOUT_S,
        )
        try:
            return Answer(response.status, await response.read(BODY_BYTES_MAX), response.header(b"retry-after"))
        finally:
            response.close()
