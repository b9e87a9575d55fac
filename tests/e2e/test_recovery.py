"""Whatever dies under load, the books close: the simulator's own journal is reconciled with the ledger, attempt by attempt."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
import pytest
import redis

from tests.stack import wait_until

LEASE_S = 3
CLIENTS = 24
BEFORE_S = 1.5
AFTER_S = 3.0
# A third each: whole answers, streams that end, streams that their client leaves.
SHORT = "[[simulate output_tokens=12]]"
STREAM = "[[simulate tokens_per_second=100,output_tokens=40]]"


@dataclass
class Load:
    """What the clients saw. A broken connection says nothing about what the provider did: it is not counted as anything."""

    answered: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    usages: list[dict[str, Any]] = field(default_factory=list)

    async def run(self, url: str, secret: str, until: float) -> None:
        headers = {"authorization": f"Bearer {secret}"}
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20, limits=limits) as client:
            await asyncio.gather(*(self._client(client, number, until) for number in range(CLIENTS)))

    async def _client(self, client: httpx.AsyncClient, number: int, until: float) -> None:
        while time.monotonic() < until:
            try:
                await (self._whole, self._stream, self._leave)[number % 3](client)
            except (httpx.HTTPError, OSError):
                await asyncio.sleep(0.05)

    async def _whole(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/chat/completions", json=_body(SHORT))
        self._saw(response.status_code)
        if response.status_code != 200:
            await asyncio.sleep(0.05)

    async def _stream(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/chat/completions", json=_body(STREAM, stream=True)) as response:
            async for _ in response.aiter_bytes():
                pass
        self._saw(response.status_code)

    async def _leave(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/chat/completions", json=_body(STREAM, stream=True)) as response:
            async for _ in response.aiter_bytes():
                break
        self._saw(response.status_code)

    def _saw(self, status_code: int) -> None:
        self.statuses[status_code] += 1
        self.answered += status_code == 200


def _body(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 64, **fields}


class Books:
    """The two accounts: what the simulator wrote down, and what the ledger says."""

    def __init__(self, tollgate: Any) -> None:
        lines = (tollgate.data_dir / "environment").read_text().splitlines()
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        self._database_url = environment["DATABASE_URL"].strip("'\"")
        self.redis = redis.Redis.from_url(environment["REDIS_URL"].strip("'\""))
        self._journal = tollgate.data_dir / "simulator.jsonl"

    def provider(self) -> tuple[set[str], dict[str, dict[str, Any]]]:
        """(attempts received, the account of each that ended)."""
        lines = [json.loads(line) for line in self._journal.read_text().splitlines()]
        received = {line["attempt_id"] for line in lines if line["event"] == "received"}
        ended = {line["attempt_id"]: line for line in lines if line["event"] == "ended"}
        return received, ended

    def ledger(self) -> list[dict[str, Any]]:
        query = """
            SELECT attempt_id::text, state, input_tokens, output_tokens, usage_source, cost_usd, held_usd
            FROM audit_usagerecord WHERE NOT tags ? 'demo'
        """
        with psycopg.connect(self._database_url, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query).fetchall()

    def spent_nanos(self) -> int:
        """By the ledger, all of it: the demo's past too."""
        with psycopg.connect(self._database_url) as connection:
            row = connection.execute("SELECT sum(cost_usd) FROM budgets_usagehour").fetchone()
            ledger = connection.execute("SELECT sum(cost_usd) FROM audit_usagerecord").fetchone()
        assert row == ledger, "the roll-ups are the sum of the records"
        return int(ledger[0] * 10**9)

    def counters(self) -> dict[str, int]:
        """Spend counters that are in force: Redis against the ledger is `manage.py`'s business, here they are only read."""
        return {key.decode(): int(self.redis.get(key) or 0) for key in self.redis.scan_iter("tg:spend:*")}

    def is_quiet(self) -> bool:
        """Nothing is held, nothing waits to be ingested, and the gate is open."""
        try:
            holds = sum(self.redis.hlen(key) for key in self.redis.scan_iter("tg:holds:*"))
            return bool(self.redis.exists("tg:epoch")) and holds == 0 and self.redis.xlen("tg:usage") == 0
        except redis.RedisError:
            return False


def _reconcile(books: Books) -> None:
    received, ended = books.provider()
    assert len(received) > 100, "too little load to prove anything"
    rows = books.ledger()
    by_attempt = Counter(row["attempt_id"] for row in rows)
    records = {row["attempt_id"]: row for row in rows}
    assert not [attempt for attempt, times in by_attempt.items() if times > 1], "an attempt is in the ledger twice"
    missing = received - records.keys()
    assert not missing, f"{len(missing)} of {len(received)} calls are missing from the ledger"
    phantom = [row for attempt, row in records.items() if attempt not in received and row["state"] != "voided"]
    assert all(row["cost_usd"] == 0 or row["state"] == "suspense" for row in phantom), phantom
    for attempt, account in ended.items():
        row, billed = records[attempt], account["billed"]
        assert row["state"] != "voided", "a call that the provider got is not void"
        if row["state"] == "posted" and row["usage_source"] == "provider":
            assert (row["input_tokens"], row["output_tokens"]) == (billed["input_tokens"], billed["output_tokens"])
        if row["state"] == "suspense":
            assert row["cost_usd"] == row["held_usd"] or row["cost_usd"] > 0


def _drift(tollgate: Any, books: Books) -> dict[str, tuple[int, int]]:
    """Spend counters of windows that are open, against the ledger: only those that differ."""
    query = """
        SELECT b.id::text, b.window, coalesce(b.team_id, b.project_id, b.virtual_key_id)::text, b.scope
        FROM budgets_budget b WHERE b.is_active
    """
    column = {"team": "team_id", "project": "project_id", "key": "virtual_key_id"}
    differing = {}
    with psycopg.connect(books._database_url) as connection:
        for budget_id, _window, subject, scope in connection.execute(query).fetchall():
            for name, counted in books.counters().items():
                _, _, budget, start = name.split(":")
                if budget != budget_id:
                    continue
                row = connection.execute(
                    f"SELECT coalesce(sum(cost_usd), 0) FROM audit_usagerecord "
                    f"WHERE {column[scope]} = %s AND admitted_at >= to_timestamp(%s)",
                    (subject, int(start)),
                ).fetchone()
                told = int(row[0] * 10**9)
                if told != counted:
                    differing[name] = (counted, told)
    return differing


@pytest.fixture(scope="module")
def small_tollgate(make_tollgate):
    running = make_tollgate(TOLLGATE_PROXY_WORKERS="2", TOLLGATE_LEASE_S=str(LEASE_S))
    running.start()
    return running


def _victim(tollgate: Any, name: str) -> Any:
    program = tollgate.program("proxy" if name == "proxy worker" else name)
    return program.children()[0] if name == "proxy worker" else program


@pytest.mark.parametrize("name", ["proxy worker", "redis", "postgres", "worker"])
def test_a_kill_under_load_loses_nothing_and_doubles_nothing(small_tollgate, name):
    facts, books, load = small_tollgate.facts, Books(small_tollgate), Load()

    async def drive() -> None:
        running = asyncio.create_task(
            load.run(facts["gateway_url"], facts["virtual_key"], time.monotonic() + BEFORE_S + AFTER_S)
        )
        await asyncio.sleep(BEFORE_S)
        before = load.answered
        assert before > 0, f"nothing was answered before the kill: {load.statuses}"
        _victim(small_tollgate, name).kill()
        await running
        assert load.answered > before, f"nothing was answered after the kill: {load.statuses}"

    asyncio.run(drive())
    wait_until(books.is_quiet, "the end of holds and of the usage stream", timeout_s=LEASE_S + 20)
    _reconcile(books)
    if name == "proxy worker":
        assert any(row["state"] == "suspense" for row in books.ledger()), "no call was cut by the kill"
    assert _drift(small_tollgate, books) == {}
    assert books.spent_nanos() > 0


def test_an_event_is_in_the_ledger_within_three_seconds(small_tollgate):
    facts, books = small_tollgate.facts, Books(small_tollgate)
    headers = {"authorization": f"Bearer {facts['virtual_key']}"}
    response = httpx.post(f"{facts['gateway_url']}/chat/completions", json=_body(SHORT), headers=headers)
    assert response.status_code == 200
    known = len(books.ledger())
    wait_until(lambda: len(books.ledger()) >= known and books.is_quiet(), "the record", timeout_s=3)
