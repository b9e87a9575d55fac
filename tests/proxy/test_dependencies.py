"""What the data path does when something it needs is killed, paused, emptied or full, or when it is so itself."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from budgets import gate
from proxy.snapshot import Budget
from tests.chaos.faults import Fault, FaultProxy
from tests.stack import ROOT, VAULT_KEY, ControlPlane, Proxy, Stack, chat, free_port, wait_until

BUDGET = Budget(budget_id="b1", name="all", window="month", amount=10**12)
# Long enough that a slow machine does not lose it without being paused.
LEASE_S = 5
SLOW = chat(content="[[simulate tokens_per_second=20,output_tokens=60]]", stream=True)
# For streams that are to be cut: it is longer than anybody waits.
ENDLESS = chat(content="[[simulate tokens_per_second=20,output_tokens=5000]]", max_tokens=5000, stream=True)


def _post(stack: Stack, secret: str, body: dict | None = None) -> httpx.Response:
    with stack.client(secret) as client:
        return client.post("/v1/chat/completions", json=body or chat(max_tokens=10))


class Listener:
    """A client that reads a stream to its end, in a thread of its own; `arrived` has its lines."""

    def __init__(self, stack: Stack, secret: str, body: dict = SLOW) -> None:
        self.arrived: list[str] = []
        self._stack, self._secret, self._body = stack, secret, body
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        wait_until(lambda: bool(self.arrived), "the first token")

    def _listen(self) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            self._stack.client(self._secret) as client,
            client.stream("POST", "/v1/chat/completions", json=self._body) as response,
        ):
            for line in response.iter_lines():
                if line:
                    self.arrived.append(line)

    @property
    def last(self) -> str:
        return self.arrived[-1].removeprefix("data: ")

    def wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the stream does not end"


def _rebuild(stack: Stack, keys: dict[bytes, bytes]) -> None:
    """As the control plane does after Redis was emptied: keys, snapshot, the counters of the ledger (none here), the epoch."""
    stack.control.redis.hset(gate.KEYS, mapping=keys)
    stack.control.publish()
    stack.control.open()


def test_redis_that_does_not_answer_is_503_while_it_does_not_and_traffic_flows_again_after(stack, redis_server):
    secret = stack.control.issue_key()
    assert _post(stack, secret).status_code == 200
    redis_server.pause()
    try:
        for _ in range(5):
            response = _post(stack, secret)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        with stack.client() as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
    finally:
        redis_server.resume()
    wait_until(lambda: _post(stack, secret).status_code == 200, "traffic")
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    events = stack.control.events()
    assert len({event["attempt_id"] for event in events}) == len(events)


def test_a_stream_outlives_the_death_of_redis_and_is_settled_once(stack, redis_server):
    stack.wait_for_version(stack.control.publish(budgets=(BUDGET,)))
    secret = stack.control.issue_key()
    listener = Listener(stack, secret)
    redis_server.kill()
    assert _post(stack, secret).status_code == 503
    redis_server.start()
    listener.wait()
    assert listener.last == "[DONE]"
    wait_until(lambda: stack.control.holds() == 0, "the end of the hold")
    ((event,),) = ([e for e in stack.control.events() if e.get("is_stream")],)
    assert event["usage_source"] == "provider"
    assert stack.control.spent_nanos("b1") == sum(e.get("cost_nanos", 0) for e in stack.control.events())


def test_an_emptied_redis_gets_back_what_runs_and_what_was_settled(stack):
    stack.wait_for_version(stack.control.publish(budgets=(BUDGET,)))
    secret = stack.control.issue_key()
    assert _post(stack, secret).status_code == 200
    listener = Listener(stack, secret, chat(content="[[simulate tokens_per_second=20,output_tokens=150]]", stream=True))
    before = stack.control.events()
    keys = stack.control.redis.hgetall(gate.KEYS)
    stack.control.redis.flushall()
    assert _post(stack, secret).status_code == 503
    _rebuild(stack, keys)
    wait_until(lambda: stack.control.holds() == 1, "the hold of the stream")
    assert [event["attempt_id"] for event in stack.control.events()] == [event["attempt_id"] for event in before]
    listener.wait()
    assert listener.last == "[DONE]"
    wait_until(lambda: stack.control.holds() == 0, "the end of the hold")
    wait_until(lambda: _post(stack, secret).status_code == 200, "traffic")
    wait_until(lambda: len(stack.control.events()) == 3, "the events")
    assert stack.control.spent_nanos("b1") == sum(event["cost_nanos"] for event in stack.control.events())


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_worker_paused_past_its_lease_passes_nothing_on(make_stack, is_stream):
    stack = make_stack(TOLLGATE_LEASE_S=str(LEASE_S))
    secret = stack.control.issue_key()
    worker = psutil.Process(stack.proxy.workers()[0])
    body = chat(content="[[simulate tokens_per_second=20,output_tokens=200]]", stream=is_stream)

    def pause() -> None:
        """Until the lease is gone, and all that the provider has to say has come."""
        (attempt_id,) = (
            name.decode()
            for key in stack.control.redis.scan_iter("tg:holds:*")
            for name in stack.control.redis.hkeys(key)
        )

        def events() -> list[str]:
            return [line["event"] for line in stack.simulator.entries() if line.get("attempt_id") == attempt_id]

        wait_until(lambda: "received" in events(), "the call")
        worker.suspend()
        assert "ended" not in events()
        wait_until(lambda: stack.control.leases() == 0, "the end of the lease")
        wait_until(lambda: "ended" in events(), "the end of the call")

    if is_stream:
        listener = Listener(stack, secret, body)
        pause()
        before = len(listener.arrived)
        worker.resume()
        listener.wait()
        late = listener.arrived[before:]
        assert [json.loads(line.removeprefix("data: "))["error"]["code"] for line in late] == ["worker_lease_lost"]
    else:
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(_post(stack, secret, body)))
        asking.start()
        wait_until(lambda: stack.control.holds() == 1, "the hold")
        pause()
        worker.resume()
        asking.join()
        assert answers[0].status_code == 503
        assert answers[0].headers["retry-after"]
    wait_until(lambda: stack.control.holds() == 0, "the end of the hold")
    (event,) = stack.control.events()
    assert event["error_type"] == "worker_lease_lost"
    assert event["cost_nanos"] > 0
    wait_until(lambda: _post(stack, secret).status_code == 200, "traffic")


def test_a_stopping_worker_lets_its_streams_end_and_settles_them(stack):
    secret = stack.control.issue_key()
    listener = Listener(stack, secret)
    stack.proxy.process.process.send_signal(signal.SIGTERM)
    listener.wait()
    assert listener.last == "[DONE]"
    assert stack.proxy.process.process.wait(20) == 0
    (event,) = stack.control.events()
    assert event["usage_source"] == "provider"
    assert stack.control.holds() == 0


def test_a_stopping_worker_cuts_what_outlasts_its_grace_and_says_so(make_stack):
    stack = make_stack(TOLLGATE_GRACE_S="0")
    listener = Listener(stack, stack.control.issue_key(), ENDLESS)
    stack.proxy.process.process.send_signal(signal.SIGTERM)
    listener.wait()
    assert json.loads(listener.last)["error"]["code"] == "service_unavailable"
    stack.proxy.process.process.wait(20)
    (event,) = stack.control.events()
    assert (event["error_type"], stack.control.holds()) == ("shutdown", 0)


def test_two_workers_finish_what_a_third_left_once(make_stack):
    stack = make_stack(workers=3)
    stack.wait_for_version(stack.control.publish(budgets=(BUDGET,)))
    secret = stack.control.issue_key()
    assert all(_post(stack, secret).status_code == 200 for _ in range(6))
    body = chat(content="[[simulate tokens_per_second=20,output_tokens=200]]", stream=True)
    listeners = [Listener(stack, secret, body) for _ in range(3)]
    dead = max(stack.control.redis.scan_iter("tg:holds:*"), key=stack.control.redis.hlen).decode().split(":", 2)[2]
    (pid,) = re.findall(r"-(\d+)-[0-9a-f]+$", dead)
    os.kill(int(pid), signal.SIGSTOP)  # None of its streams ends between the look and the death.
    running = [name.decode() for name in stack.control.redis.hkeys(gate.holds_key(dead))]
    os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: len(_suspended(stack)) == len(running), "the take-over")
    journals = Path(stack.proxy.directory, "journal")
    assert list(journals.glob(f"{dead}.*")), "the journal stays until PostgreSQL has what it says"
    for listener in listeners:
        listener.wait()
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    events = stack.control.events()
    assert len(events) == 9
    assert len({event["attempt_id"] for event in events}) == 9
    assert {event["attempt_id"] for event in _suspended(stack)} == set(running)
    assert stack.control.spent_nanos("b1") == sum(int(event["cost_nanos"]) for event in events)
    for entry_id, _ in stack.control.redis.xrange(gate.USAGE):  # As ingest does.
        stack.control.redis.xdel(gate.USAGE, entry_id)
    wait_until(lambda: not list(journals.glob(f"{dead}.*")), "the end of the dead worker's journal")


def _states(stack: Stack) -> list[str]:
    return [event.get("state", "posted") for event in stack.control.events()]


def _suspended(stack: Stack) -> list[dict]:
    return [event for event in stack.control.events() if event.get("state") == "suspense"]


def test_what_was_taken_over_is_written_again_when_redis_forgets_it(make_stack):
    stack = make_stack(workers=2)
    stack.wait_for_version(stack.control.publish(budgets=(BUDGET,)))
    secret = stack.control.issue_key()
    listener = Listener(stack, secret, ENDLESS)
    (holder,) = stack.control.redis.scan_iter("tg:holds:*")
    (pid,) = re.findall(rb"-(\d+)-[0-9a-f]+$", holder)
    os.kill(int(pid), signal.SIGKILL)
    listener.wait()
    wait_until(lambda: len(_suspended(stack)) == 1, "the take-over")
    (suspended,) = _suspended(stack)
    keys = stack.control.redis.hgetall(gate.KEYS)
    stack.control.redis.flushall()
    _rebuild(stack, keys)
    wait_until(lambda: len(_suspended(stack)) == 1, "the take-over once more")
    assert _suspended(stack)[0]["attempt_id"] == suspended["attempt_id"]
    assert stack.control.spent_nanos("b1") == int(suspended["cost_nanos"])


def test_a_full_disk_refuses_new_calls_and_ends_no_accounting(make_stack):
    stack = make_stack()
    secret = stack.control.issue_key()
    listener = Listener(stack, secret)
    (worker,) = stack.proxy.workers()
    before = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, before[1]))
    response = _post(stack, secret)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    listener.wait()
    assert listener.last == "[DONE]"
    wait_until(lambda: stack.control.holds() == 0, "the end of all holds")
    resource.prlimit(worker, resource.RLIMIT_FSIZE, before)
    wait_until(lambda: _post(stack, secret).status_code == 200, "traffic")
    # An answer may be there a moment before its event is.
    wait_until(lambda: _states(stack).count("posted") == 2, "both events")
    assert set(_states(stack)) == {"posted", "voided"}


def test_a_stream_whose_hold_cannot_be_journaled_is_ended_at_its_true_cost(make_stack):
    stack = make_stack()
    # Room for the first tranche of 1,024 tokens, and for one more, but not for all that the stream may cost.
    budget = Budget(budget_id="b1", name="tight", window="month", amount=20_000_000)
    stack.control.add_deployment("long", max_output_tokens=100_000)
    stack.control.add_alias("long", "long")
    stack.wait_for_version(stack.control.publish(budgets=(budget,)))
    body = chat("long", content="[[simulate tokens_per_second=200,output_tokens=3000]]", stream=True)
    listener = Listener(stack, stack.control.issue_key(), body)
    (worker,) = stack.proxy.workers()
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, resource.prlimit(worker, resource.RLIMIT_FSIZE)[1]))
    listener.wait()
    assert json.loads(listener.last)["error"]["code"] == "service_unavailable"
    wait_until(lambda: stack.control.holds() == 0, "the end of the hold")
    (event,) = stack.control.events()
    assert event["usage"]["output_tokens"] > 10
    assert stack.control.spent_nanos("b1") == event["cost_nanos"]


def test_a_client_that_leaves_before_the_provider_is_connected_costs_nothing(stack):
    known = stack.control.providers["sim"]
    # Nobody answers there (TEST-NET-1), nobody refuses either.
    stack.control.providers["void"] = known.__class__(slug="void", api="openai", base_url="http://192.0.2.1/v1")
    stack.control.add_deployment("void", provider="void")
    stack.control.add_alias("void", "void")
    stack.wait_for_version(stack.control.publish())
    with stack.asking(stack.control.issue_key(), chat("void")):
        # Where there is no network at all, it is known at once that nobody is there.
        wait_until(lambda: stack.control.holds() == 1 or bool(stack.control.events()), "the hold")
    wait_until(lambda: bool(stack.control.events()), "the event")
    assert stack.control.events()[0]["state"] == "voided"


def test_a_worker_starts_without_redis_and_recovers_by_itself(simulator, redis_server, short_tmp_path):
    control = ControlPlane(redis_server.url, simulator.url)
    control.publish()
    control.open()
    secret = control.issue_key()
    proxy = Proxy(short_tmp_path, redis_server.url, free_port(), 1)
    stack = Stack(simulator, control, proxy)
    try:
        proxy.wait_ready()
        wait_until((short_tmp_path / "snapshot.json").exists, "the snapshot on the disk")
        proxy.process.stop()
        redis_server.kill()
        proxy.start()
        with stack.client(secret) as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
            response = client.post("/v1/chat/completions", json=chat())
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "snapshot in force" in proxy.log
        redis_server.start()
        wait_until(lambda: _post(stack, secret).status_code == 200, "traffic")
    finally:
        proxy.process.stop()
        control.redis.close()


def test_a_worker_takes_no_request_before_it_has_heard_redis(simulator, redis_server, short_tmp_path):
    control = ControlPlane(redis_server.url, simulator.url)
    control.publish()
    control.open()
    relay = FaultProxy(redis_server.url.removeprefix("unix://"))
    # Whoever joins asks several times, and so is not done when gunicorn begins to listen.
    relay.set(Fault(latency_s=0.1))
    # It answers from here on.
    proxy = Proxy(short_tmp_path, f"redis://127.0.0.1:{relay.port}", free_port(), 1)
    try:
        assert _post(Stack(simulator, control, proxy), control.issue_key()).status_code == 200
    finally:
        proxy.process.stop()
        relay.close()
        control.redis.close()


def test_the_proxy_starts_where_django_cannot_be_imported(short_tmp_path):
    program = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('django', 'celery', 'rest_framework', 'psycopg', 'redis'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import proxy.asgi, proxy.worker\n"
        "assert callable(proxy.asgi.application)\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": "redis://127.0.0.1:1",
        "TOLLGATE_VAULT_KEY": VAULT_KEY,
        "TOLLGATE_DATA_DIR": str(short_tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_kill_switch_thrown_again_cuts_what_began_in_between_although_no_push_told(stack):
    secret = stack.control.issue_key()
    field = stack.control.throw("team", stack.control.team.team_id).field
    assert _post(stack, secret).status_code == 403
    first = json.loads(stack.control.redis.hget(gate.KILLS, field))
    stack.control.redis.hdel(gate.KILLS, field)
    listener = Listener(stack, secret, ENDLESS)
    stack.control.redis.hset(gate.KILLS, field, json.dumps({**first, "kill_switch_id": "the second"}))
    stack.control.redis.hincrby(gate.VERSIONS, "kills", 1)
    listener.wait()
    assert json.loads(listener.last)["error"]["kill_switch_id"] == "the second"


def test_a_bad_snapshot_is_refused_once_not_every_second(stack):
    stack.control.version = 9
    stack.control.publish_raw(b"nonsense")
    wait_until(lambda: "snapshot refused" in stack.proxy.log, "the refusal")
    refusals = stack.proxy.log.count("snapshot refused")
    time.sleep(2.5)
    assert stack.proxy.log.count("snapshot refused") == refusals
    stack.wait_for_version(stack.control.publish())


def test_head_is_answered_as_get_without_a_body_and_405_names_what_is_allowed(stack):
    with stack.client() as client:
        answer = client.head("/healthz")
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "18")
        assert client.options("/v1/chat/completions").headers["allow"] == "POST"
        assert client.post("/healthz").headers["allow"] == "GET, HEAD"
