"""The gunicorn worker of the proxy: one event loop, one `EdgeServer`, one heartbeat. Which application is not its business."""

import asyncio
import logging
import mmap
import os
import resource
import sys
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
import uvloop
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from proxy.config import Config
from proxy.wire.server import EdgeLimits, EdgeProtocol, EdgeServer

WEBSOCKET_PATHS = frozenset({b"/v1/realtime"})
SLOTS = 512
ABSENT = 2**31 - 1
# A worker lets its siblings go first when it has so many connections more than the one with the fewest, or a quarter more.
AHEAD = 4


class Siblings:
    """How many connections each worker of a master has, in memory that they share because they are forked from it.

    Left to the kernel, of 200 connections one of four workers gets 3 and another 120: for streams of minutes that stays.
    """

    def __init__(self) -> None:
        self._connections = memoryview(mmap.mmap(-1, 4 * SLOTS)).cast("i")
        for slot in range(SLOTS):
            self._connections[slot] = ABSENT

    def publish(self, slot: int, connections: int) -> None:
        self._connections[slot] = connections

    def is_turn_of(self, connections: int) -> bool:
        fewest = min(self._connections)
        return connections <= fewest + max(AHEAD, fewest // 4)


class ProxyWorker(Worker):  # type: ignore[misc]
    """SIGTERM: stop accepting, give live requests their grace, then cut them. SIGINT, SIGQUIT: cut them at once."""

    siblings = Siblings()  # In the master, which loads this class before it forks.
    server: EdgeServer | None = None

    def init_process(self) -> None:
        _raise_open_files_limit()
        super().init_process()

    def run(self) -> None:
        """Serves until told to stop. Exits with gunicorn's boot error when the application does not start."""
        config = Config.from_environment(os.environ)
        limits = EdgeLimits(body_bytes_max=config.body_bytes_max)
        # Wraps nothing around the application: the scope's client is the peer, whatever its headers claim.
        settings = uvicorn.Config(
            cast(Any, self.wsgi),
            http=cast(Any, partial(EdgeProtocol, limits=limits, websocket_paths=WEBSOCKET_PATHS)),
            ws="none",
            lifespan="on",
            interface="asgi3",
            backlog=self.cfg.backlog,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._send_log_to_gunicorn()
        self.server = EdgeServer(settings, grace_s=config.grace_s, on_sweep=self._beat, is_my_turn=self._is_my_turn)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self.server.serve(sockets=self.sockets))
        if not self.server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        if self.server is not None:
            self.server.grace_s = 0
        self._stop()

    def _stop(self) -> None:
        self.alive = False
        if self.server is None:
            sys.exit(0)
        self.server.should_exit = True

    def leave(self) -> None:
        """Called in the master, once the worker is gone: its siblings no longer wait for it."""
        self.siblings.publish(self._slot, ABSENT)

    @property
    def _slot(self) -> int:
        return int(self.age) % SLOTS

    def _publish_connections(self) -> int:
        assert self.server is not None
        connections = self.server.connections()
        self.siblings.publish(self._slot, connections if self.alive else ABSENT)
        return connections

    def _is_my_turn(self) -> bool:
        return self.siblings.is_turn_of(self._publish_connections())

    def _beat(self) -> None:
        self.notify()
        self._publish_connections()
        # Nobody is left to supervise this worker, nor to start another in its place.
        if os.getppid() != self.ppid:
            self._stop()

    def _send_log_to_gunicorn(self) -> None:
        log = logging.getLogger("uvicorn.error")
        log.handlers = self.log.error_log.handlers
        log.setLevel(self.log.error_log.level)
        log.propagate = False


def _raise_open_files_limit() -> None:
    """As far as allowed: each live request holds two sockets, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
