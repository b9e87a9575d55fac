"""The ledger, against what the provider saw and against the counters. Sums are made here anew, by other means than the code's."""

import contextlib
import itertools
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import redis
from psycopg.rows import dict_row

from budgets import gate
from proxy.snapshot import Budget, KeyRecord, Snapshot, decode_key, decode_snapshot
from tests.chaos.witness import Call, Witness

NANOS = 10**9
QUIET_TIMEOUT_S = 120.0
# What the demo says of its past is not an attempt that any provider has seen.
OURS = "NOT tags ? 'demo'"
COLUMNS = {
    "team": "team_id::text",
    "project": "project_id::text",
    "key": "virtual_key_id::text",
    "environment": "environment",
    "end_user": "end_user",
    "alias": "alias",
    "model": "model",
    "provider": "provider",
    "pool": "pool",
}
SIMULATED_CHAT = {"input": 500, "output": 1_500}  # Nano-USD a token: $0.50 and $1.50 per million.


class Row(NamedTuple):
    attempt_id: str
    state: str
    input_tokens: int
    output_tokens: int
    usage_source: str
    cost_nanos: int
    held_nanos: int
    request_id: str


class Books:
    """The accounts of a Tollgate that runs in `data_dir`."""

    def __init__(self, data_dir: Path, environ: Mapping[str, str]) -> None:
        """`environ` is what it was started with; what it has supplied for itself is in a file."""
        lines = (data_dir / "environment").read_text().splitlines()
        supplied = {name: value.strip("'\"") for name, _, value in (line.partition("=") for line in lines)}
        self.environ = {**environ, **supplied}
        self.database_url = self.environ["DATABASE_URL"]
        self.redis = redis.Redis.from_url(self.environ["REDIS_URL"], socket_timeout=5)
        self.witness = Witness(data_dir / "simulator.jsonl")

    def close(self) -> None:
        self.redis.close()

    def rows(self, attempt_ids: Iterable[str] | None = None) -> list[Row]:
        """Of the ledger, all that any provider saw or these attempts."""
        query = f"""
            SELECT attempt_id::text, state, input_tokens, output_tokens, usage_source,
                (cost_usd * {NANOS})::bigint AS cost_nanos, (held_usd * {NANOS})::bigint AS held_nanos,
                request_id::text
            FROM audit_usagerecord WHERE {OURS}
        """
        parameters: tuple[Any, ...] = ()
        if attempt_ids is not None:
            query += " AND attempt_id = ANY(%s::uuid[])"
            parameters = (list(attempt_ids),)
        with self._connected() as connection:
            return [Row(**row) for row in connection.execute(query, parameters).fetchall()]

    def missing(self, attempt_ids: Iterable[str]) -> set[str]:
        wanted = set(attempt_ids)
        return wanted - {row.attempt_id for row in self.rows(wanted)} if wanted else set()

    @contextlib.contextmanager
    def arrivals(self) -> Iterator["Arrivals"]:
        arrivals = Arrivals(self.witness, self.database_url)
        try:
            yield arrivals
        finally:
            arrivals.close()

    def is_quiet(self) -> bool:
        """The gate is open, nothing is held and nothing waits for the ledger."""
        with contextlib.suppress(redis.RedisError):
            holds = sum(self.redis.hlen(key) for key in self.redis.scan_iter("tg:holds:*"))
            is_empty = holds == 0 and self.redis.xlen(gate.USAGE) == 0
            return bool(self.redis.exists(gate.EPOCH)) and is_empty and self.witness.is_quiet()
        return False

    def close_books(self) -> list[str]:
        """Wait until all is quiet. What is wrong then between the provider's journal, the ledger, its roll-ups and the
        counters; nothing, if all is well."""
        until_s = time.monotonic() + QUIET_TIMEOUT_S
        while not self.is_quiet() and time.monotonic() < until_s:
            time.sleep(0.1)
        found = [] if self.is_quiet() else [f"not quiet after {QUIET_TIMEOUT_S:.0f} s"]
        calls, rows = self.witness.look().calls, self.rows()
        found += self._between(calls, rows)
        found += [f"{name} counts {counted}, the ledger {told}" for name, (counted, told) in self.drift().items()]
        return found + self._roll_ups()

    def _between(self, calls: dict[str, Call], rows: list[Row]) -> Iterator[str]:
        times = Counter(row.attempt_id for row in rows)
        yield from (f"{attempt_id} is in the ledger {n} times" for attempt_id, n in times.items() if n > 1)
        records = {row.attempt_id: row for row in rows}
        missing = calls.keys() - records.keys()
        if missing:
            yield f"{len(missing)} of {len(calls)} calls are missing from the ledger: {sorted(missing)[:3]}"
        for row in rows:
            if row.attempt_id not in calls and row.cost_nanos and row.state != "suspense":
                yield f"{row.attempt_id} is charged, and no provider saw it"
        for attempt_id, call in calls.items():
            row = records.get(attempt_id)
            if row is not None and row.state == "voided":
                yield f"{attempt_id} is void, and a provider got it"
            # What a client has left, or a worker cut, is estimated: how well, `rows/bill.py` measures.
            if row is None or row.usage_source != "provider" or call.end != "completed":
                continue
            if (row.input_tokens, row.output_tokens) != (call.input_tokens, call.output_tokens):
                yield f"{attempt_id}: {row.input_tokens}+{row.output_tokens} tokens, billed {call.billed}"

    def drift(self) -> dict[str, tuple[int, int]]:
        """The counters of money in the windows of now that differ from the ledger: name to (counted, recorded) nano-USD."""
        newest: dict[tuple[str, str], tuple[int, str]] = {}
        for raw in self.redis.scan_iter("tg:spend:*"):
            _, _, budget_id, start, *values = raw.decode().split(":")
            if not re.fullmatch(r"-?\d+", start):
                continue
            place = (budget_id, ":".join(values))
            newest[place] = max(newest.get(place, (-1, "")), (int(start), raw.decode()))
        budgets = {budget.budget_id: budget for budget in self._budgets()}
        differing = {}
        with self._connected() as connection:
            for (budget_id, values), (start_s, name) in newest.items():
                budget = budgets.get(budget_id)
                if budget is None or budget.unit != "usd" or values or budget.rollover:
                    continue
                counted, told = int(self.redis.get(name) or 0), _recorded(connection, budget, start_s)
                if counted != told:
                    differing[name] = (counted, told)
        return differing

    def counters(self) -> int:
        return sum(1 for _ in self.redis.scan_iter("tg:spend:*"))

    def _budgets(self) -> list[Budget]:
        snapshot: Snapshot = decode_snapshot(self.redis.get(gate.SNAPSHOT) or b"")
        keys: list[KeyRecord] = [decode_key(body) for body in self.redis.hvals(gate.KEYS)]
        return [*snapshot.budgets, *(budget for key in keys for budget in key.budgets)]

    def _roll_ups(self) -> list[str]:
        with self._connected() as connection:
            sums = {
                table: connection.execute(f"SELECT coalesce(sum(cost_usd), 0) AS cost FROM {table}").fetchone()
                for table in ("audit_usagerecord", "budgets_usagehour", "budgets_usageday")
            }
        told = {table: row["cost"] for table, row in sums.items() if row}
        return [] if len(set(told.values())) == 1 else [f"the roll-ups differ: {told}"]

    @contextlib.contextmanager
    def _connected(self) -> Iterator["psycopg.Connection[dict[str, Any]]"]:
        with psycopg.connect(self.database_url, row_factory=dict_row, connect_timeout=2) as connection:
            yield connection


class Arrivals:
    """Which calls of the provider's journal have arrived in the ledger. What has is there for good, and is not asked about
    again: so one may look often, also after hours, and does not keep busy what one looks at."""

    def __init__(self, witness: Witness, database_url: str) -> None:
        self._witness = witness
        self._database_url = database_url
        self._connection: psycopg.Connection | None = None
        self._missing: set[str] = set()
        self._known = self._looked = 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def missing(self) -> set[str]:
        """The calls that are not in the ledger, as far as it can be asked."""
        calls = self._witness.look().calls
        self._missing |= set(itertools.islice(calls, self._known, None))
        self._known = len(calls)
        self._missing -= self._recorded()
        return set(self._missing)

    def since_last_look(self) -> set[str]:
        """The calls that the provider has got since this was last asked."""
        calls = self._witness.look().calls
        new = set(itertools.islice(calls, self._looked, None))
        self._looked = len(calls)
        return new

    def has_any_since(self, moment_us: int) -> bool:
        """Whether a call is in the ledger that the provider got after `moment_us` (Unix microseconds)."""
        missing = self.missing()
        for call in reversed(self._witness.calls.values()):
            if call.received_at_us <= moment_us:
                return False
            if call.attempt_id not in missing:
                return True
        return False

    def _recorded(self) -> set[str]:
        """Of those that were missing; none while there is no PostgreSQL."""
        query = "SELECT attempt_id::text FROM audit_usagerecord WHERE attempt_id = ANY(%s::uuid[])"
        try:
            if self._connection is None:
                self._connection = psycopg.connect(self._database_url, autocommit=True, connect_timeout=2)
            return {name for (name,) in self._connection.execute(query, [list(self._missing)])}
        except psycopg.OperationalError:
            self.close()
            return set()


def _recorded(connection: "psycopg.Connection[dict[str, Any]]", budget: Budget, start_s: int) -> int:
    conditions, parameters = ["admitted_at >= to_timestamp(%s)"], [str(start_s)]
    for dimension, value in budget.subject.items():
        kind, _, tag = dimension.partition(":")
        conditions.append(f"{COLUMNS[kind]} = %s" if not tag else "tags ->> %s = %s")
        parameters += [value] if not tag else [tag, value]
    query = f"SELECT coalesce(sum(cost_usd), 0) AS cost FROM audit_usagerecord WHERE {' AND '.join(conditions)}"
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return int(row["cost"] * NANOS)
