"""How gunicorn runs the proxy: `gunicorn -c proxy/gunicorn.conf.py proxy.asgi:application`."""

import os
import sys
from pathlib import Path

from proxy.config import Config, ConfigError
from proxy.worker import ProxyWorker

# How long a worker may take, after the grace of its live requests, to settle those that were cut.
SETTLE_S = 4
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (gunicorn makes an unguessable, unlinked file in it)

try:
    tollgate = Config.from_environment(os.environ)
except ConfigError as error:
    sys.exit(f"tollgate: {error}")

bind = tollgate.bind
workers = tollgate.workers
worker_class = "proxy.worker.ProxyWorker"
backlog = 2048
timeout = 30
graceful_timeout = int(tollgate.grace_s) + SETTLE_S
preload_app = False
max_requests = 0
control_socket_disable = True
# The heartbeat is a file's time; on a disk a stalled write would read as a hung worker.
worker_tmp_dir = str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
proc_name = "tollgate-proxy"


def child_exit(server: object, worker: ProxyWorker) -> None:
    """gunicorn calls this in the master when a worker is gone, however it went."""
    worker.leave()
