"""Code that is broken on purpose, one place at a time: a check that does not see it is no check.

A mutant is a copy of the tree with one text replaced. In the copy the same experiment is run, short, and has to end with
"not held"; an experiment that could not be run proves nothing.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CODE = ("audit", "budgets", "controlplane", "keys", "proxy", "routing", "teams", "templates", "tests", "docs")
HELD, NOT_HELD = 0, 1


class Mutant(NamedTuple):
    """`text` stands exactly once in the file at `path`, and `becomes` something worse."""

    promise: str
    name: str
    path: str
    text: str
    becomes: str
    arguments: tuple[str, ...] = ()


# Popped first and stored later: what dies in between is gone.
POPPED_FIRST = (
    "budgets/ledger.py",
    "        _ingest_batch(client, batch)\n",
    "        client.xtrim(gate.USAGE, maxlen=0)\n        _ingest_batch(client, batch)\n",
)
NEVER_REPLAYED = (
    "proxy/admission.py",
    "            while applied_seq < self.journal.seq:\n",
    "            while False and applied_seq < self.journal.seq:\n",
)
NEVER_REVIVED = (
    "controlplane/supervisor.py",
    "        if child.program.ends:\n            return\n        now",
    "        if True:\n            return\n        now",
)
PATIENT = ("proxy/config.py", "redis_timeout_s: float = 0.15\n", "redis_timeout_s: float = 2.0\n")

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "hard_cap",
        "the gate lets a tranche through that no longer fits",
        "budgets/lua/prelude.lua",
        "if tranche[unit] > left then",
        "if tranche[unit] > left + 1000000 then",
    ),
    Mutant(
        "hard_cap",
        "what was spent counts for nothing as soon as it is settled",
        "budgets/lua/settle.lua",
        "  cost[NANOS] - held[NANOS],",
        "  -held[NANOS],",
    ),
    Mutant(
        "usable_cap",
        "what was held stays held",
        "budgets/lua/settle.lua",
        "  cost[NANOS] - held[NANOS],",
        "  0,",
    ),
    Mutant(
        "limits",
        "a limit lets one more through now and then",
        "budgets/lua/admit.lua",
        "if after_ns > capacity_ns then",
        "if after_ns > capacity_ns + costs_ns[i] then",
    ),
    Mutant(
        "limits",
        "one more runs at once",
        "budgets/lua/admit.lua",
        "if taken >= slots[j] then",
        "if taken > slots[j] then",
    ),
    Mutant(
        "stranded",
        "nobody takes over from the dead",
        "proxy/control.py",
        "        self._spawn(self._forever(self._adopt_orphans, ADOPT_INTERVAL_S))\n",
        "",
    ),
    Mutant(
        "missing_worker",
        "what ran when a worker died is forgotten",
        "budgets/lua/reap.lua",
        "    append_event(event, 'suspense', held[NANOS])\n",
        "",
    ),
    Mutant("missing_redis", "the journal is not replayed", *NEVER_REPLAYED),
    Mutant("missing_postgres", "events leave the stream before they are stored", *POPPED_FIRST),
    Mutant("missing_celery", "what has died is not started again", *NEVER_REVIVED),
    Mutant("missing_beat", "what has died is not started again", *NEVER_REVIVED),
    Mutant("missing_admin", "what has died is not started again", *NEVER_REVIVED),
    Mutant("failover", "the journal is not replayed", *NEVER_REPLAYED),
    Mutant(
        "doubles",
        "a late settle does not find what is in suspense",
        "budgets/lua/settle.lua",
        "  holds_key = 'tg:suspense'\n",
        "  holds_key = 'tg:nowhere'\n",
    ),
    Mutant(
        "retried",
        "whoever comes second makes the call too",
        "proxy/idempotency.py",
        'b"SET", name, value, b"NX", b"EX", KEPT_S',
        'b"SET", name, value, b"EX", KEPT_S',
    ),
    Mutant(
        "bill_stops",
        "of a call that is cut only the prompt is charged",
        "proxy/estimate.py",
        "        return min(max(shown, min(made, held)), most)\n",
        "        return 0\n",
        # In fewer calls those before anything is learned of the deployment weigh too much.
        ("--calls", "4000"),
    ),
    Mutant(
        "bill_runs_on",
        "who bills to the end is left with its client",
        "proxy/gateway.py",
        "live.runs_on = prepared.upstream.provider.runs_on and not described.call.is_session",
        "live.runs_on = False",
    ),
    Mutant(
        "redis_down",
        "a gate that is away is an error of ours",
        "proxy/errors.py",
        'no call is made without a hold."""\n\n    status_code = 503\n',
        'no call is made without a hold."""\n\n    status_code = 500\n',
    ),
    Mutant("redis_paused", "the gate is waited for", *PATIENT),
    Mutant("redis_slow", "the gate is waited for", *PATIENT),
    Mutant("redis_unreachable", "the gate is waited for", *PATIENT),
    Mutant("redis_broken", "the journal is not replayed", *NEVER_REPLAYED),
    Mutant("redis_full", "the journal is not replayed", *NEVER_REPLAYED),
    Mutant("postgres_down", "events leave the stream before they are stored", *POPPED_FIRST),
    Mutant("postgres_paused", "events leave the stream before they are stored", *POPPED_FIRST),
    Mutant(
        "postgres_slow",
        "who is ahead of the ledger waits for it",
        "proxy/control.py",
        "        if not beat.epoch:\n",
        "        if not beat.epoch or self._admission.journal.seq > beat.ingested_seq + 100:\n",
    ),
    Mutant("postgres_full", "events leave the stream before they are stored", *POPPED_FIRST),
    Mutant(
        "retries",
        "everybody may fall back on what fails",
        "proxy/retries.py",
        "        while not self._is_good(deployment_id):\n",
        "        while False and not self._is_good(deployment_id):\n",
    ),
    Mutant(
        "malformed",
        "a stream that breaks off has ended well",
        "proxy/relay.py",
        "    if not stream.meter.has_ended:\n",
        "    if False:\n",
    ),
    Mutant(
        "cancelled",
        "a call whose client leaves is not settled",
        "proxy/gateway.py",
        "            self._settle(attempt, outcome)\n",
        "            live.cut_by or self._settle(attempt, outcome)\n",
    ),
    Mutant(
        "recovery_worker",
        "a worker takes its time to start",
        "proxy/worker.py",
        "        _raise_open_files_limit()\n        super()",
        "        __import__('time').sleep(5)\n        super()",
    ),
    Mutant(
        "recovery_redis",
        "the counters are not rebuilt",
        "controlplane/rebuild.py",
        "        counters = _write_counters(client)\n",
        "        counters = 0\n",
    ),
    Mutant(
        "recovery_celery",
        "the ledger is fed once in a while",
        "controlplane/settings.py",
        '"budgets.ingest_usage", "schedule": 1.0',
        '"budgets.ingest_usage", "schedule": 55.0',
    ),
    Mutant(
        "model",
        "a late settle forgets what was in suspense",
        "budgets/lua/settle.lua",
        " cost[TOKENS] - held[TOKENS],",
        " cost[TOKENS],",
    ),
    Mutant(
        "model",
        "a Redis that began anew waits for nobody",
        "budgets/lua/heartbeat.lua",
        "  call('SET', 'tg:opening', 1, 'PX', lease_ms)\n",
        "",
    ),
)


def of(promise: str) -> list[Mutant]:
    return [mutant for mutant in MUTANTS if mutant.promise == promise]


def broken(mutant: Mutant) -> str:
    """The file as the mutant has it."""
    body = (ROOT / mutant.path).read_text()
    assert body.count(mutant.text) == 1, (
        f"{mutant.name}: its text stands {body.count(mutant.text)} times in {mutant.path}"
    )
    return body.replace(mutant.text, mutant.becomes)


def is_held(promise: str, arguments: Sequence[str]) -> bool:
    """Whether the same short experiment says of the whole code that the promise is held. Else it would find anything."""
    return _status(promise, arguments, None) == HELD


def is_found(mutant: Mutant) -> bool:
    """Whether the experiment says, of the broken code, that the promise is not held."""
    return _status(mutant.promise, mutant.arguments, mutant) == NOT_HELD


def _status(promise: str, arguments: Sequence[str], mutant: Mutant | None) -> int:
    with tempfile.TemporaryDirectory(prefix="tg-mutant-") as directory:
        tree = Path(directory)
        for name in CODE:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results.json"))
        shutil.copy(ROOT / "manage.py", tree)
        if mutant is not None:
            (tree / mutant.path).write_text(broken(mutant))
        command = [sys.executable, "-m", "tests.chaos", "--short", "--dry", "--only", promise, *arguments]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    print("\n".join(f"    {line}" for line in done.stdout.splitlines() if promise in line), flush=True)
    if done.returncode not in (HELD, NOT_HELD):
        print(done.stdout[-2000:], done.stderr[-4000:])
    return done.returncode
