"""The gunicorn worker of the proxy: one event loop, one `EdgeServer`, one heartbeat. Which application is not its business."""

import asyncio
import logging
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


class ProxyWorker(Worker):  # type: ignore[misc]
    """SIGTERM: stop accepting, give live requests their grace, then cut them. SIGINT, SIGQUIT: cut them at once."""

    server: EdgeServer | None = None

    def init_process(self) -> None:
        _raise_open_files_limit()
        super().init_process()

    def run(self) -> None:
        """Serves until told to stop. Exits with gunicorn's boot error when the application does not start."""
        config = Config.from_environment(os.environ)
        # Wraps nothing around the application: the scope's client is the peer, whatever its headers claim.
        settings = uvicorn.Config(
            cast(Any, self.wsgi),
            http=cast(Any, partial(EdgeProtocol, limits=EdgeLimits(body_bytes_max=config.body_bytes_max))),
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
        self.server = EdgeServer(settings, grace_s=config.grace_s, on_sweep=self._beat)
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

    def _beat(self) -> None:
        self.notify()
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
