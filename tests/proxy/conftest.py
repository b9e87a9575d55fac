"""A running proxy for each test that asks for one; the simulator is shared."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.stack import ControlPlane, Proxy, Simulator, Stack, free_port


class ClockedLoop(uvloop.Loop):
    """The event loop of production, whose clock a test may put forward: deadlines pass, and nobody has waited for them.

    Timers are uvloop's own, and run on as if nothing had happened.
    """

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": ClockedLoop}


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator"), free_port())
    yield simulator
    simulator.process.stop()


@pytest.fixture
def make_stack(simulator: Simulator, redis_server: Any, short_tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Call it with `workers` and further environment variables of the proxy."""
    stacks: list[Stack] = []

    def make(workers: int = 1, **environment: str) -> Stack:
        control = ControlPlane(redis_server.url, simulator.url)
        control.publish()
        control.open()
        proxy = Proxy(short_tmp_path, redis_server.url, free_port(), workers, **environment)
        stacks.append(Stack(simulator, control, proxy))
        proxy.wait_ready()
        return stacks[-1]

    yield make
    for stack in stacks:
        stack.proxy.process.stop()
        stack.control.redis.close()


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    return make_stack()


@pytest.fixture(scope="session")
def certificate(make_certificate: Callable[..., Path]) -> Path:
    return make_certificate("localhost")


@pytest.fixture
def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
