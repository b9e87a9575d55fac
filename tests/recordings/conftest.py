"""One gateway for all recordings of a file."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.recordings.gateway import RecordedGateway


# Tests of other files may be next: its worker, while it runs, writes to the Redis that they share.
@pytest.fixture(scope="module")
def gateway(shared_redis: Any) -> Iterator[RecordedGateway]:
    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
    # The path of a Unix socket has room in it.
    with tempfile.TemporaryDirectory(prefix="tg-", ignore_cleanup_errors=True) as directory:
        running = RecordedGateway(shared_redis.url, Path(directory))
        yield running
        running.stop()
