"""A network that delivers late: what a worker gave up waiting for must not be done after all."""

import time

import pytest

from proxy.snapshot import Budget
from tests.chaos.faults import Fault, FaultProxy
from tests.stack import ControlPlane, Proxy, Simulator, Stack, chat, free_port, wait_until

LATENCY_S = 1.5
# Who may not end connections meets the last one's late commands at the server.
MAY_ALL = ()
MAY_NOT_KILL = ("-client", "+client|id")


@pytest.fixture(params=[MAY_ALL, MAY_NOT_KILL], ids=["may end connections", "may not"])
def slow_stack(request, simulator: Simulator, redis_server, short_tmp_path):
    """(a stack, what is between its worker and Redis)"""
    control = ControlPlane(redis_server.url, simulator.url)
    budget = Budget(budget_id="all", name="all", window="total", amount=10**12)
    control.publish(budgets=(budget,))
    control.open()
    relay = FaultProxy(redis_server.url.removeprefix("unix://"))
    control.redis.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", *request.param)
    proxy = Proxy(
        short_tmp_path, f"redis://worker:secret@127.0.0.1:{relay.port}", free_port(), 1, TOLLGATE_REDIS_TIMEOUT_S="0.5"
    )
    proxy.wait_ready()
    yield Stack(simulator, control, proxy), relay
    proxy.process.stop()
    relay.close()
    control.redis.close()


def test_a_hold_that_was_given_up_is_not_made_later(slow_stack):
    stack, relay = slow_stack
    with stack.client(stack.control.issue_key()) as client:
        wait_until(lambda: client.post("/v1/chat/completions", json=chat()).status_code == 200, "traffic")
        for _ in range(5):
            relay.set(Fault(latency_s=LATENCY_S))
            assert client.post("/v1/chat/completions", json=chat()).status_code == 503
            relay.clear()
            wait_until(lambda: client.get("/readyz").status_code == 200, "the worker")
        time.sleep(2 * LATENCY_S)  # By now all that was on its way has come.
        wait_until(lambda: client.post("/v1/chat/completions", json=chat()).status_code == 200, "traffic")
    assert relay.struck
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    spent = sum(event.get("cost_nanos", 0) for event in stack.control.events())
    assert stack.control.spent_nanos("all") == spent
