"""A batch in a whole Tollgate: whatever dies while it runs, its one record says in the end what the provider bills for it."""

import json
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest
import redis

from tests.stack import wait_until

WORK_MS = 12_000
NANO = Decimal("0.000000001")


class Books:
    """The ledger, Redis, and what the simulator wrote down."""

    def __init__(self, tollgate: Any) -> None:
        lines = (tollgate.data_dir / "environment").read_text().splitlines()
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        self._database_url = environment["DATABASE_URL"].strip("'\"")
        self.redis = redis.Redis.from_url(environment["REDIS_URL"].strip("'\""))
        self._journal = tollgate.data_dir / "simulator.jsonl"

    def records(self, upstream_id: str) -> list[dict[str, Any]]:
        query = """
            SELECT r.*, p.input, p.output, p.batch_percent, r.attempt_id::text AS attempt
            FROM audit_usagerecord r JOIN routing_price p ON p.id = r.price_id WHERE upstream_id = %s
        """
        with psycopg.connect(self._database_url, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query, (upstream_id,)).fetchall()

    def state(self, upstream_id: str) -> str:
        found = self.records(upstream_id)
        return found[0]["state"] if found else ""

    def bills(self, batch_id: str) -> list[dict[str, int]]:
        lines = [json.loads(line) for line in self._journal.read_text().splitlines()]
        return [line["billed"] for line in lines if line["event"] == "ended" and line.get("batch") == batch_id]


@pytest.fixture(scope="module")
def small_tollgate(make_tollgate):
    running = make_tollgate(TOLLGATE_PROXY_WORKERS="1", TOLLGATE_LEASE_S="8")
    running.start()
    return running


def _make_batch(client: httpx.Client) -> str:
    line = {"method": "POST", "url": "/v1/chat/completions"}
    asked = {"model": "demo", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 30}
    content = b"\n".join(json.dumps({**line, "custom_id": str(n), "body": asked}).encode() for n in range(5))
    file = client.post("/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", content)})
    assert file.status_code == 200, file.text
    body = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = client.post("/batches", json=body)
    assert batch.status_code == 200, batch.text
    return batch.json()["id"]


def test_a_batch_outlives_its_worker_and_redis_and_is_billed_once(small_tollgate):
    facts, books = small_tollgate.facts, Books(small_tollgate)
    headers = {"authorization": f"Bearer {facts['virtual_key']}"}
    with httpx.Client(base_url=facts["gateway_url"], headers=headers, timeout=60) as client:
        simulator = _simulator_url(books)
        httpx.post(f"{simulator}/_control", json={"work_ms": WORK_MS}).raise_for_status()
        batch_id = _make_batch(client)
        wait_until(lambda: books.state(batch_id) == "suspense", "the record in suspense")
        (held,) = books.records(batch_id)
        assert held["cost_usd"] == held["held_usd"] > 0
        small_tollgate.program("proxy").children()[0].kill()
        books.redis.flushall()
        wait_until(lambda: books.state(batch_id) == "posted", "the end of the batch", timeout_s=120)
        assert client.get(f"/batches/{batch_id}").json()["status"] == "completed"
    (record,) = books.records(batch_id)
    bills = books.bills(batch_id)
    assert len(bills) == 5
    tokens = {name: sum(bill[name] for bill in bills) for name in ("input_tokens", "output_tokens")}
    assert {name: record[name] for name in tokens} == tokens
    rate = Decimal(record["batch_percent"]) / 100 / 1_000_000
    cost = (tokens["input_tokens"] * record["input"] + tokens["output_tokens"] * record["output"]) * rate
    assert abs(record["cost_usd"] - cost) <= NANO
    assert record["held_usd"] == held["held_usd"] > record["cost_usd"]
    assert not books.redis.exists("tg:jobs")


def _simulator_url(books: Books) -> str:
    """Where the demo's simulator listens, as the registry has it."""
    with psycopg.connect(books._database_url) as connection:
        (base_url,) = connection.execute("SELECT base_url FROM routing_provider WHERE slug = 'simulator'").fetchone()
    return base_url.removesuffix("/v1")
