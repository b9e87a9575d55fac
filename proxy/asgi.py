"""The ASGI application of one worker: builds the parts on startup, takes them down in order on shutdown."""

import asyncio
import gc
import os
import secrets
import socket
from collections.abc import Awaitable

import structlog

from budgets import gate
from keys.vault import open_sealed, parse_master_keys
from proxy.admission import Admission
from proxy.authenticate import KeyCache
from proxy.clock import Clock
from proxy.config import Config
from proxy.control import Control
from proxy.follow import Follower
from proxy.gateway import Gateway
from proxy.headroom import CHANNEL as HEADROOM
from proxy.headroom import Headrooms
from proxy.idempotency import Idempotency
from proxy.journal import Journal
from proxy.live import LiveRequests
from proxy.logs import configure
from proxy.metrics import Counts, WorkerStatus, decode_status, render
from proxy.receipts import Receipts
from proxy.receive import Receive, Scope, Send
from proxy.stored import Stored
from proxy.wire.http1 import UpstreamPool
from proxy.wire.redis import RedisError, RedisPipeline, RedisSubscriber

log = structlog.get_logger()

# A worker that has not beaten for this long is not shown in the metrics any more.
STATUS_STALE_S = 30.0
GC_THRESHOLD = 20_000


class Worker:
    """Everything one worker process owns."""

    def __init__(self, config: Config) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.clock = Clock()
        self.counts = Counts()
        self.live = LiveRequests()
        self.pool = UpstreamPool()
        self.redis = RedisPipeline(config.redis_url, timeout_s=config.redis_timeout_s)
        self.keys = KeyCache(self.redis)
        self.journal = Journal(config.data_dir / "journal", name)
        self.admission = Admission(
            worker=name, redis=self.redis, journal=self.journal, clock=self.clock, lease_s=config.lease_s
        )
        master_keys = parse_master_keys(config.vault_key)
        self.control = Control(
            redis=self.redis,
            admission=self.admission,
            keys=self.keys,
            live=self.live,
            clock=self.clock,
            counts=self.counts,
            data_dir=config.data_dir,
            open_sealed=lambda sealed, record_id: open_sealed(sealed, record_id, master_keys).reveal(),
        )
        self.follower = Follower(
            redis=self.redis,
            admission=self.admission,
            control=self.control,
            pool=self.pool,
            clock=self.clock,
            counts=self.counts,
        )
        self.idempotency = Idempotency(
            redis=self.redis,
            worker=name,
            master_keys=master_keys,
            answer_bytes_max=config.idempotency_bytes_max,
        )
        self.headrooms = Headrooms(redis=self.redis, worker=name, clock=self.clock)
        self.gateway = Gateway(
            control=self.control,
            admission=self.admission,
            stored=Stored(self.redis),
            idempotency=self.idempotency,
            receipts=Receipts(self.pool, config.control_url),
            headrooms=self.headrooms,
            follower=self.follower,
            keys=self.keys,
            pool=self.pool,
            live=self.live,
            clock=self.clock,
            counts=self.counts,
            metrics=self.metrics,
            body_bytes_max=config.body_bytes_max,
        )
        self.subscriber = RedisSubscriber(
            config.redis_url,
            [gate.PUSH, HEADROOM],
            on_message=self._heard,
            on_connect=self.control.resubscribed,
        )

    async def start(self) -> None:
        """Connect, and hear what is in force. Without Redis: serve all the same, with the refusals that are declared for that."""
        self.control.load_last_good()
        for script in gate.SCRIPTS:
            self.redis.register_script(script.text)
        self.redis.on_connect = self.control.connected
        self.redis.start()
        self.subscriber.start()
        self.control.start()
        self.follower.start()
        # Who connects meanwhile is served by another worker, or waits a moment, instead of being refused for nothing.
        await self.redis.wait_until_tried()

    async def stop(self) -> None:
        """After the last request: wait for the settles on their way, then leave."""
        self.gateway.is_draining = True
        await self.follower.stop()
        await asyncio.sleep(0)  # The settles of this turn go out.
        await self.idempotency.stop()
        await self.control.stop()
        await self.subscriber.close()
        await self.redis.close()
        await self.pool.close()
        self.journal.close(self.control.ingested_seq)

    def _heard(self, channel: bytes, body: bytes) -> None:
        if channel == HEADROOM.encode():
            self.headrooms.told(body)
        else:
            self.control.pushed(body)

    async def metrics(self) -> bytes:
        """All workers that beat lately; this one alone when Redis cannot be asked."""
        own = self.control.status()
        try:
            bodies = await self.redis.call(b"HVALS", gate.WORKERS)
            observed = await self.redis.call(b"GET", gate.OBSERVED_TOTAL)
        except RedisError:
            return render([own])
        others = (decode_status(body) for body in bodies)
        known = [own, *(status for status in others if self._is_other(status, own))]
        return render(known, would_refuse=int(observed or 0))

    def _is_other(self, status: WorkerStatus, own: WorkerStatus) -> bool:
        return status.worker != own.worker and own.at_s - status.at_s < STATUS_STALE_S


class Application:
    """ASGI: the lifespan builds the worker inside its own event loop; requests go to its gateway."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._gateway: Gateway | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return self._lifespan(receive, send)
        assert self._gateway is not None, (
            "the lifespan comes first, and WebSockets come as the requests that they begin as"
        )
        return self._gateway(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        worker = Worker(self._config)
        self._gateway = worker.gateway
        await worker.start()
        _quieten_collector()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await worker.stop()
        await send({"type": "lifespan.shutdown.complete"})


def _quieten_collector() -> None:
    """What was built at start stays: the cycle collector need not look at it again, and a request leaves next to nothing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)


configure()
application = Application(Config.from_environment(os.environ))
