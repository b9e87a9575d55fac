"""Redis comes back without what it held, and a worker does not: nobody spends what that worker still holds."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
import redis

from budgets import gate
from budgets.windows import FOREVER_S
from proxy.journal import Dispatched, Journal
from proxy.room import ASK_EVERY_S_MAX
from proxy.snapshot import Budget
from tests.chaos.faults import FaultProxy
from tests.stack import ControlPlane, Proxy, Simulator, Stack, chat, free_port, wait_until

# 655,000 are held for the stream and 402,000 are spent in the end: with either there is room for a short answer, and none for a long.
CAP_NANOS = 1_000_000
LONG, SHORT = chat(max_tokens=300), chat(max_tokens=8)
SLOW = chat(content="[[simulate output_tokens=200,tokens_per_second=20]]", max_tokens=200, stream=True)


OPENING = (503, "service_unavailable")
# Longer than anybody here waits.
LONG_LEASE_S = 600
ATTEMPT_ID = "018f3f5e-7b1a-7c3e-9a51-2f6d8d1b7a10"


class Hosts:
    """Two with a worker each, that know of each other by Redis alone; or one, which is both."""

    def __init__(self, here: Stack, there: Stack, redis_server) -> None:
        self.here = here
        self.there = there
        self.redis_server = redis_server
        self.secret = ""
        self.body = b""

    def fill(self) -> None:
        """What Redis has of the control plane."""
        self.here.control.publish(budgets=(Budget(budget_id="cap", name="cap", window="total", amount=CAP_NANOS),))
        self.secret = self.here.control.issue_key()
        self.here.control.open()

    def stream_there(self) -> Thread:
        """A stream that has begun."""

        def read() -> None:
            with (
                contextlib.suppress(httpx.HTTPError),
                self.there.client(self.secret) as client,
                client.stream("POST", "/v1/chat/completions", json=SLOW) as response,
            ):
                for chunk in response.iter_bytes():
                    self.body += chunk

        thread = Thread(target=read)
        thread.start()
        wait_until(lambda: b"data:" in self.body, "the first of the stream")
        return thread

    def ask_here(self, body: dict[str, object] = LONG) -> tuple[int, str]:
        with self.here.client(self.secret) as client:
            response = client.post("/v1/chat/completions", json=body)
        return response.status_code, response.json().get("error", {}).get("code", "")

    def restart_redis(self) -> None:
        """Another process, with the same data."""
        self.redis_server.kill()
        self.redis_server.start()
        self.here.proxy.wait_ready()

    def signal_there(self, number: signal.Signals) -> None:
        os.kill(self.there.proxy.workers()[0], number)

    def redis_loses_everything(self) -> None:
        self.redis_server.kill()
        shutil.rmtree(self.redis_server.directory)
        self.redis_server.start()
        self.fill()
        self.here.proxy.wait_ready()


@pytest.fixture
def two_hosts(simulator: Simulator, redis_server, short_tmp_path: Path) -> Iterator[Callable[[float], Hosts]]:
    control = ControlPlane(redis_server.url, simulator.url)
    proxies: list[Proxy] = []

    def start(lease_s: float) -> Hosts:
        for name in ("here", "there"):
            directory = short_tmp_path / name
            directory.mkdir()
            proxies.append(Proxy(directory, redis_server.url, free_port(), 1, TOLLGATE_LEASE_S=str(lease_s)))
        hosts = Hosts(*(Stack(simulator, control, proxy) for proxy in proxies), redis_server)
        hosts.fill()
        for stack in (hosts.here, hosts.there):
            stack.proxy.wait_ready()
            stack.wait_for_version(control.version)
        return hosts

    yield start
    for proxy in proxies:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(proxy.process.process.pid, signal.SIGCONT)
        proxy.process.stop()
    control.redis.close()


def test_a_worker_that_is_away_is_waited_for_with_what_it_holds(two_hosts):
    hosts = two_hosts(LONG_LEASE_S)
    stream = hosts.stream_there()
    assert hosts.ask_here() == (429, "budget_exceeded")
    hosts.signal_there(signal.SIGSTOP)
    hosts.redis_loses_everything()
    assert hosts.ask_here() == OPENING
    assert hosts.here.control.spent_nanos("cap") == 0
    hosts.signal_there(signal.SIGCONT)
    wait_until(lambda: hosts.ask_here() != OPENING, "the other worker")
    assert hosts.ask_here() == (429, "budget_exceeded")
    stream.join()
    assert b"[DONE]" in hosts.body
    wait_until(lambda: hosts.here.control.holds() == 0, "the end of all holds")
    assert hosts.here.control.spent_nanos("cap") == 402_000
    assert hosts.ask_here(SHORT)[0] == 200


def test_a_worker_that_is_away_for_longer_than_its_lease_is_not_waited_for_and_cuts_its_streams(two_hosts):
    hosts = two_hosts(8)
    stream = hosts.stream_there()
    hosts.signal_there(signal.SIGSTOP)
    hosts.redis_loses_everything()
    refused = [hosts.ask_here()]
    wait_until(lambda: refused.append(hosts.ask_here()) or refused[-1][0] == 200, "the end of the lease")
    assert set(refused[:-1]) == {OPENING}
    hosts.signal_there(signal.SIGCONT)
    stream.join()
    assert b"worker_lease_lost" in hosts.body and b"[DONE]" not in hosts.body
    wait_until(lambda: hosts.here.control.holds() == 0, "the end of all holds")


class OpensMeanwhile(FaultProxy):
    """Before every other time that a worker asks for more, the gate is opening, and opens by itself before the worker asks again:
    how late anybody else is does not matter. `struck` counts the answers that this was so."""

    OPENS_AFTER_MS = int(ASK_EVERY_S_MAX * 900)

    def __init__(self, target: str, client: redis.Redis) -> None:
        self._client = client
        self._is_opening_next = True
        super().__init__(target)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, slice_bytes: int) -> None:
        if gate.EXTEND.sha1.encode() in data:
            if self._is_opening_next:
                self._client.set(gate.OPENING, 1, px=self.OPENS_AFTER_MS)
            self._is_opening_next = not self._is_opening_next
        self.struck += b"$7\r\nopening\r\n" in data
        await super()._write(writer, data, slice_bytes)


def test_a_stream_that_needs_more_meanwhile_waits_a_little(simulator, redis_server, short_tmp_path):
    control = ControlPlane(redis_server.url, simulator.url)
    control.publish(budgets=(Budget(budget_id="cap", name="cap", window="total", amount=100 * CAP_NANOS),))
    control.open()
    relay = OpensMeanwhile(redis_server.url.removeprefix("unix://"), control.redis)
    url = f"redis://127.0.0.1:{relay.port}"
    proxy = Proxy(short_tmp_path, url, free_port(), 1, TOLLGATE_REDIS_TIMEOUT_S="2", TOLLGATE_LEASE_S=str(LONG_LEASE_S))
    long = chat(content="[[simulate output_tokens=7000,tokens_per_second=2000]]", max_tokens=8_000, stream=True)
    try:
        proxy.wait_ready()
        with Stack(simulator, control, proxy).client(control.issue_key()) as client:
            body = client.post("/v1/chat/completions", json=long).content
    finally:
        proxy.process.stop()
        relay.close()
        control.redis.close()
    assert b"[DONE]" in body and b"error" not in body
    assert relay.struck


def test_a_worker_that_was_stopped_is_not_waited_for(two_hosts):
    hosts = two_hosts(LONG_LEASE_S)
    redis = hosts.here.control.redis
    hosts.there.proxy.process.stop()
    before = redis.hgetall(gate.WORKERS)
    wait_until(lambda: redis.hgetall(gate.WORKERS) != before, "the next beat of the other")
    hosts.restart_redis()
    assert hosts.ask_here(SHORT)[0] == 200


def test_whoever_has_a_journal_on_the_host_is_waited_for_until_somebody_has_taken_over(make_stack, redis_server):
    """Also where nobody who is left has known of it."""
    stack = make_stack(TOLLGATE_LEASE_S=str(LONG_LEASE_S))
    host = Hosts(stack, stack, redis_server)
    journal = Journal(stack.proxy.directory / "journal", "another")
    cap = gate.BudgetCounter(gate.spend_key("cap", 0), CAP_NANOS, True, FOREVER_S)
    admit = gate.encode_admit(
        worker="another",
        fence=1,
        attempt_id=ATTEMPT_ID,
        kill_fields=(),
        budgets=[cap],
        full_nanos=CAP_NANOS,
        tranche_nanos=CAP_NANOS,
        hold=gate.hold_value([cap], (), b"{}"),
    )
    journal.dispatch(Dispatched(ATTEMPT_ID, CAP_NANOS, admit))
    host.redis_loses_everything()
    assert host.ask_here(SHORT) == OPENING
    journal.close(0)  # It dies.
    wait_until(lambda: host.ask_here(SHORT) != OPENING, "whoever takes over")
    assert host.ask_here(SHORT) == (429, "budget_exceeded")
    assert stack.control.redis.hkeys(gate.SUSPENSE) == [ATTEMPT_ID.encode()]


def test_a_redis_from_before_what_the_journal_has_is_rebuilt(stack):
    """The control plane, which is the test here, has counted anew when it sets the epoch."""
    control = stack.control
    secret = control.issue_key()
    with stack.client(secret) as client:
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=chat()).status_code == 200
        wait_until(lambda: list(control.redis.hgetall(gate.APPLIED).values()) == [b"3"], "the settles")
        (worker,) = control.redis.hkeys(gate.APPLIED)
        for path in (stack.proxy.directory / "journal").glob("*.log"):
            path.write_bytes(b"")
        control.redis.hset(gate.APPLIED, worker, 1)
        control.redis.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: not control.redis.exists(gate.EPOCH), "the wish for a rebuild")
        control.redis.hset(gate.APPLIED, worker, 3)
        control.open()
        wait_until(lambda: client.get("/readyz").status_code == 200, "the worker")
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
