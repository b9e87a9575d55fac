"""A running data path for tests: real workers under gunicorn, a real Redis, the provider simulator. No Django anywhere.

What the control plane would publish is written here by hand, so that the data path is tested against its contract.
"""

import base64
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import redis

from budgets import gate
from budgets.pricing import Price
from keys import tokens
from keys.kills import KillFlag, encode_flag
from keys.vault import parse_master_keys, seal
from proxy.snapshot import (
    SCHEMA_VERSION,
    Alias,
    Budget,
    Credential,
    Deployment,
    KeyRecord,
    Limit,
    Project,
    Provider,
    Snapshot,
    Team,
    encode,
)
from routing.engine import AliasTarget

ROOT = Path(__file__).parents[1]
VAULT_KEY = base64.b64encode(bytes(range(32))).decode()
# Nobody waits for so long but where something is broken: a slow machine must not look like that.
READY_TIMEOUT_S = 60.0
# $1 and $2 per million tokens: a token costs 1,000 and 2,000 nano-USD.
PRICE = Price(
    price_id="00000000-0000-7000-8000-0000000000aa",
    input_nanos=1_000_000_000,
    output_nanos=2_000_000_000,
    cache_read_nanos=500_000_000,
    cache_write_nanos=1_250_000_000,
)
# On a busy machine Redis, too, is late: that is not what most tests are about.
REDIS_TIMEOUT_S = "2"
# Below those that the kernel gives to whoever asks for any, and apart for each process of pytest-xdist: between the choice of a
# port and its use nobody else takes it. Other runs on this machine begin elsewhere.
PORTS, PROCESSES_MAX = range(12_000, 32_000), 8
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES_MAX
_OWN_PORTS = PORTS[_PROCESS::PROCESSES_MAX]
_PORTS = itertools.cycle(random.SystemRandom().sample(_OWN_PORTS, len(_OWN_PORTS)))
UPSTREAM_SECRET = "sk-upstream-secret-that-must-never-show"


class Process:
    """A child of the test, in its own process group, that is surely gone at the end."""

    def __init__(self, argv: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdout=self._file, stderr=subprocess.STDOUT, start_new_session=True
        )

    def stop(self) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self._file.close()
        return self.process.wait()

    def wait_for(self, url: str, what: str) -> None:
        """Until it answers. Where that is not waited for to its end, nobody else has it yet to stop it."""
        try:
            wait_until(lambda: _answers(url), what, self.log)
        except BaseException:
            self.stop()
            raise

    def children(self) -> list[int]:
        listing = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listing.stdout.split()]


class Simulator:
    def __init__(self, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.journal = directory / "simulator.jsonl"
        argv = [sys.executable, "-m", "controlplane.simulator", "--port", str(port), "--journal", str(self.journal)]
        self.process = Process(argv, _environment(), directory / "simulator.log")
        self.process.wait_for(f"{self.url}/v1/models", "the simulator")

    def entries(self) -> list[dict[str, Any]]:
        if not self.journal.exists():
            return []
        return [json.loads(line) for line in self.journal.read_text().splitlines() if line.endswith("}")]


class ControlPlane:
    """Writes what the control plane would, by the same contract (docs/architecture.md)."""

    def __init__(self, redis_url: str, upstream_url: str) -> None:
        self.redis = redis.Redis.from_url(redis_url)
        self.upstream_url = upstream_url
        self.version = 0
        self.keys_version = 0
        # Then the versions that workers poll stay as they are, and what is pushed is all that they hear.
        self.is_only_pushed = False
        self.team = Team(team_id="00000000-0000-7000-8000-000000000001", name="Research")
        self.project = Project(
            project_id="00000000-0000-7000-8000-000000000002",
            team_id=self.team.team_id,
            name="Search",
            environment="prod",
        )
        self.budgets: tuple[Budget, ...] = ()
        self.limits: tuple[Limit, ...] = ()
        self.deployments: dict[str, Deployment] = {}
        self.aliases: dict[str, Alias] = {}
        self.providers = {"sim": Provider(slug="sim", api="openai", base_url=f"{upstream_url}/v1")}
        self.add_deployment("sim-fast")
        self.add_alias("demo", "sim-fast")

    def add_deployment(self, name: str, provider: str = "sim", **changes: Any) -> None:
        credential_id = f"credential of {name}"
        fields: dict[str, Any] = {
            "deployment_id": name,
            "name": name,
            "provider": provider,
            "model": f"model-{name}",
            "upstream_model": "sim-fast",
            "price": PRICE,
            "max_output_tokens": 256,
            "output_is_visible": True,
            "operations": ("chat", "embeddings"),
            "credentials": (
                Credential(
                    credential_id=credential_id,
                    sealed=seal(UPSTREAM_SECRET, credential_id, parse_master_keys(VAULT_KEY)),
                ),
            ),
        }
        self.deployments[name] = Deployment(**{**fields, **changes})

    def add_alias(self, name: str, *deployments: str) -> None:
        targets = tuple(AliasTarget(deployment_id=d, position=i) for i, d in enumerate(deployments))
        self.aliases[name] = Alias(name=name, targets=targets)

    def publish(self, **changes: Any) -> int:
        """Publish the snapshot; `team` and `project` may carry field changes, `budgets` and `limits` are new ones."""
        self.version += 1
        self.team = msgspec.structs.replace(self.team, **changes.get("team", {}))
        self.project = msgspec.structs.replace(self.project, **changes.get("project", {}))
        self.budgets = changes.get("budgets", self.budgets)
        self.limits = changes.get("limits", self.limits)
        snapshot = Snapshot(
            schema_version=SCHEMA_VERSION,
            version=self.version,
            published_at_s=time.time(),
            teams={self.team.team_id: self.team},
            projects={self.project.project_id: self.project},
            providers=self.providers,
            deployments=self.deployments,
            aliases=self.aliases,
            budgets=self.budgets,
            limits=self.limits,
        )
        self.publish_raw(encode(snapshot))
        return self.version

    def publish_raw(self, body: bytes) -> None:
        self.redis.set(gate.SNAPSHOT, body)
        self._count("snapshot", self.version)
        self._push(kind="snapshot", version=self.version)

    def issue_key(self, **changes: Any) -> str:
        """A new virtual key; returns its secret."""
        token = tokens.mint()
        self.set_key(token.digest, **changes)
        return token.secret

    def set_key(self, digest: str, **changes: Any) -> None:
        self.keys_version += 1
        fields: dict[str, Any] = {
            "key_id": f"00000000-0000-7000-8000-{digest[:12]}",
            "version": self.keys_version,
            "name": "a key",
            "project_id": self.project.project_id,
            "aliases": ("*",),
        }
        self.redis.hset(gate.KEYS, digest, encode(KeyRecord(**{**fields, **changes})))
        self._count("keys", self.keys_version)
        self._push(kind="key", digest=digest, keys_version=self.keys_version)

    def throw(self, scope: str, target: str = "", reason: str = "drill") -> KillFlag:
        flag = KillFlag(kill_switch_id=f"kill-{time.time_ns()}", scope=scope, target=target, reason=reason)  # type: ignore[arg-type]
        self.redis.hset(gate.KILLS, flag.field, encode_flag(flag))
        version = self.redis.hincrby(gate.VERSIONS, "kills", 1)
        self._push(kind="kill", version=version, flag=msgspec.to_builtins(flag), field=flag.field)
        return flag

    def lift(self, flag: KillFlag) -> None:
        self.redis.hdel(gate.KILLS, flag.field)
        version = self.redis.hincrby(gate.VERSIONS, "kills", 1)
        self._push(kind="lift", version=version, field=flag.field)

    def open(self) -> None:
        self.redis.set(gate.EPOCH, f"epoch-{time.time_ns()}")

    def events(self) -> list[dict[str, Any]]:
        """The usage stream, oldest first."""
        return [
            {
                **json.loads(fields[b"event"]),
                **{k.decode(): v.decode() for k, v in fields.items() if k in (b"state", b"cost_nanos")},
            }
            for _, fields in self.redis.xrange(gate.USAGE)
        ]

    def spent_nanos(self, budget_id: str) -> int:
        return sum(int(self.redis.get(key) or 0) for key in self.redis.scan_iter(f"tg:spend:{budget_id}:*"))

    def leases(self) -> int:
        return len(list(self.redis.scan_iter(gate.lease_key("*"))))

    def holds(self) -> int:
        return sum(self.redis.hlen(key) for key in self.redis.scan_iter("tg:holds:*"))

    def _count(self, field: str, version: int) -> None:
        if not self.is_only_pushed:
            self.redis.hset(gate.VERSIONS, field, version)

    def _push(self, **message: Any) -> None:
        self.redis.publish(gate.PUSH, json.dumps(message))


class Proxy:
    """gunicorn with our worker class, as in production."""

    def __init__(self, directory: Path, redis_url: str, port: int, workers: int, **environment: str) -> None:
        self.directory = directory
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self._environment = _environment(
            REDIS_URL=redis_url,
            TOLLGATE_VAULT_KEY=VAULT_KEY,
            TOLLGATE_DATA_DIR=str(directory),
            TOLLGATE_PROXY_BIND=f"127.0.0.1:{port}",
            TOLLGATE_PROXY_WORKERS=str(workers),
            **{"TOLLGATE_REDIS_TIMEOUT_S": REDIS_TIMEOUT_S, **environment},
        )
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "gunicorn", "-c", "proxy/gunicorn.conf.py", "proxy.asgi:application"]
        self.process = Process(argv, self._environment, self.directory / "proxy.log")
        self.process.wait_for(f"{self.url}/healthz", "the proxy")

    def wait_ready(self) -> None:
        wait_until(lambda: _answers(f"{self.url}/readyz"), "the proxy", self.process.log)

    def workers(self) -> list[int]:
        return self.process.children()

    @property
    def log(self) -> str:
        return self.process.log.read_text()


class Stack:
    """Simulator, Redis and proxy together."""

    def __init__(self, simulator: Simulator, control: ControlPlane, proxy: Proxy) -> None:
        self.simulator = simulator
        self.control = control
        self.proxy = proxy

    def client(self, secret: str | None = None, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        return httpx.Client(base_url=self.proxy.url, headers=headers, timeout=60, **options)

    @contextlib.contextmanager
    def asking(self, secret: str, body: dict[str, Any], *headers: str) -> Iterator[None]:
        """A client that waits for its answer without reading any of it, and leaves at the end of the `with`."""
        content = httpx.Request("POST", self.proxy.url, json=body).read()  # As other clients write it.
        lines = ["POST /v1/chat/completions HTTP/1.1", "host: test", f"authorization: Bearer {secret}", *headers]
        head = "\r\n".join([*lines, "content-type: application/json", f"content-length: {len(content)}", "", ""])
        with socket.create_connection(("127.0.0.1", self.proxy.port)) as connection:
            connection.sendall(head.encode() + content)
            yield

    def wait_for_version(self, version: int) -> None:
        def is_in_force() -> bool:
            statuses = [json.loads(body) for body in self.control.redis.hvals(gate.WORKERS)]
            return bool(statuses) and all(status["snapshot_version"] >= version for status in statuses)

        wait_until(is_in_force, "the snapshot")


def wait_until(
    condition: Callable[[], bool], what: str, log: Path | None = None, timeout_s: float = READY_TIMEOUT_S
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} is not there after {timeout_s} s\n{log.read_text() if log else ''}")
        time.sleep(0.02)


def chat(model: str = "demo", content: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses, for whoever binds it later."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("the ports never end")


def _environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **more}
