"""What `manage.py up` runs: a whole Tollgate on one machine, in one terminal.

Decides what is missing (PostgreSQL, Redis, secrets) and supplies it under the data directory, which programs start in
which order, and what is printed. How programs are kept running is in `supervisor.py`; what is in the database, in
`demo.py`.
"""

import base64
import contextlib
import fcntl
import http.client
import json
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import redis

from controlplane import embedded
from controlplane.private_file import write_private
from controlplane.processes import StartFailed
from controlplane.supervisor import Program, StopRequested, Supervisor
from proxy.config import Config, ConfigError

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 5
PROBE_TIMEOUT_S = 1.0
SERVERS_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 60.0
SETTLE_S = 10.0  # For the proxy, after the grace of its live streams.
ADMIN_PROCESSES = 2
ADMIN_THREADS = 4
CELERY_PROCESSES = 2
# Of these each program gets what it needs, and no more.
PROVIDER_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY", "GROQ_API_KEY", "DEEPSEEK_API_KEY")
CONFIDENTIAL = (*PROVIDER_KEYS, "DATABASE_URL", "REDIS_URL", "TOLLGATE_SECRET_KEY", "TOLLGATE_VAULT_KEY")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the environment says. A URL is empty where an embedded server is wanted."""

    data_dir: Path
    admin_port: int
    proxy_port: int
    is_demo: bool
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Options":
        """Raises `StartFailed` on nonsense."""
        return cls(
            data_dir=Path(environ.get("TOLLGATE_DATA_DIR") or ROOT / "var").resolve(),
            admin_port=_port(environ, "TOLLGATE_ADMIN_PORT", 8000),
            proxy_port=_port(environ, "TOLLGATE_PROXY_PORT", 8080),
            is_demo=environ.get("TOLLGATE_DEMO", "1").lower() not in {"", "0", "false", "no", "off"},
            database_url=environ.get("DATABASE_URL", ""),
            redis_url=environ.get("REDIS_URL", ""),
        )


def main() -> int:
    """`manage.py up`: the exit status."""
    try:
        up(os.environ, partial(print, flush=True))
    except StartFailed as error:
        print(f"Tollgate does not start: {error}", file=sys.stderr)
        return 1
    return 0


def up(environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Run until SIGINT or SIGTERM. Raises `StartFailed` when it cannot start."""
    options = Options.from_environment(environ)
    _make_directory(options.data_dir)
    os.umask(0o077)  # What we and our programs write in it is for our eyes only.
    with _only_one_in(options.data_dir):
        _check_ports(options)
        with Supervisor(options.data_dir / "logs", say) as supervisor:
            with contextlib.suppress(StopRequested):
                Installation(options, environ).start(supervisor, say)
                supervisor.watch()
            # Live requests end while all that they need still runs. The databases stop last, by leaving.
            supervisor.stop("proxy")
            supervisor.stop("beat", "worker", "admin", "simulator")
        say("Stopped.")


class Installation:
    """The programs of one Tollgate, and what each of them is told."""

    def __init__(self, options: Options, environ: Mapping[str, str]) -> None:
        """Raises `StartFailed` on nonsense in the environment, and when a URL of it leads nowhere."""
        self.options = options
        self.servers: list[embedded.Server] = []
        self.redis_url = options.redis_url or self._embed(embedded.Redis(options.data_dir / "redis"))
        self.database_url = options.database_url or self._embed(embedded.Postgres(options.data_dir / "postgres"))
        if options.redis_url:
            _check_redis(options.redis_url)
        if options.database_url:
            _check_postgres(options.database_url)
        kept = _kept_secrets(options.data_dir / "secrets.json")
        self.public = {name: value for name, value in environ.items() if name not in CONFIDENTIAL} | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
            "TOLLGATE_DATA_DIR": str(options.data_dir),
            "TOLLGATE_DEMO": str(int(options.is_demo)),
            "TOLLGATE_PROXY_BIND": f"{HOST}:{options.proxy_port}",
        }
        if options.is_demo:  # Else the admin is reached by https, and somebody must say where.
            self.public.setdefault("TOLLGATE_CONTROL_URL", f"http://{HOST}:{options.admin_port}")
        self.data_path = self.public | {
            "REDIS_URL": self.redis_url,
            "TOLLGATE_VAULT_KEY": environ.get("TOLLGATE_VAULT_KEY") or kept["vault_key"],
        }
        try:
            self.proxy = Config.from_environment(self.data_path)
        except ConfigError as error:
            raise StartFailed(str(error)) from None
        self.control_plane = self.data_path | {
            "DATABASE_URL": self.database_url,
            "TOLLGATE_SECRET_KEY": environ.get("TOLLGATE_SECRET_KEY") or kept["secret_key"],
        }
        self._supplied = {name: value for name, value in self.control_plane.items() if environ.get(name) != value}
        self.provider_keys = {name: environ[name] for name in PROVIDER_KEYS if environ.get(name)}
        self.demo_file = options.data_dir / "demo.json"
        self.admin_url = f"http://{HOST}:{options.admin_port}/admin/"
        self.gateway_url = f"http://{HOST}:{options.proxy_port}/v1"

    def start(self, supervisor: Supervisor, say: Callable[[str], None]) -> None:
        """Start everything and wait until it is ready."""
        # For other commands beside this one: set -a; . var/environment; set +a
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in sorted(self._supplied.items())]
        write_private(self.options.data_dir / "environment", "".join(lines))
        for server in self.servers:
            supervisor.start(self._server(server))
        supervisor.wait_ready(SERVERS_TIMEOUT_S)
        simulator_port = _simulator_port(self.demo_file)
        if self.options.is_demo:
            supervisor.start(self._simulator(simulator_port))
        # The proxy needs no database: it is on its way while the database is prepared.
        supervisor.start(self._proxy())
        supervisor.run_once(self._prepare(f"http://{HOST}:{simulator_port}/v1"))
        supervisor.start(self._admin(), self._worker(), self._beat())
        supervisor.wait_ready(READY_TIMEOUT_S)
        say(_welcome(json.loads(self.demo_file.read_text())) if self.options.is_demo else self._summary())

    def _embed(self, server: embedded.Server) -> str:
        self.servers.append(server)
        return server.url

    def _server(self, server: embedded.Server) -> Program:
        return Program(
            name=server.name,
            argv=server.argv,
            environ=self.public,
            stop_signal=server.stop_signal,
            prepare=server.prepare,
            is_ready=server.is_ready,
        )

    def _simulator(self, port: int) -> Program:
        journal = str(self.options.data_dir / "simulator.jsonl")
        argv = _python("controlplane.simulator", "--host", HOST, "--port", str(port), "--journal", journal)
        return Program(name="simulator", argv=argv, environ=self.public, is_ready=lambda: _listens(port))

    def _prepare(self, simulator_url: str) -> Program:
        argv = [sys.executable, str(ROOT / "manage.py"), "prepare"]
        if self.options.is_demo:
            argv += ["--demo", str(self.demo_file), "--admin-url", self.admin_url, "--gateway-url", self.gateway_url]
            argv += ["--simulator-url", simulator_url]
        return Program(name="prepare", argv=argv, environ=self.control_plane | self.provider_keys, ends=True)

    def _admin(self) -> Program:
        port = self.options.admin_port
        argv = _python("gunicorn", "controlplane.wsgi:application", "--bind", f"{HOST}:{port}", "--no-control-socket")
        argv += [
            "--preload",
            "--worker-class",
            "gthread",
            "--workers",
            str(ADMIN_PROCESSES),
            "--threads",
            str(ADMIN_THREADS),
        ]
        return Program(name="admin", argv=argv, environ=self.control_plane, is_ready=lambda: _answers(port, "/healthz"))

    def _worker(self) -> Program:
        argv = _python("celery", "-A", "controlplane", "worker", "--loglevel", "INFO")
        argv += ["--concurrency", str(CELERY_PROCESSES), "--without-gossip", "--without-mingle"]
        return Program(name="worker", argv=argv, environ=self.control_plane)

    def _beat(self) -> Program:
        schedule = str(self.options.data_dir / "beat-schedule")
        argv = _python(
            "celery", "-A", "controlplane", "beat", "--loglevel", "INFO", "--schedule", schedule, "--pidfile="
        )
        return Program(name="beat", argv=argv, environ=self.control_plane)

    def _proxy(self) -> Program:
        port = self.options.proxy_port
        argv = _python("gunicorn", "-c", str(ROOT / "proxy" / "gunicorn.conf.py"), "proxy.asgi:application")
        return Program(
            name="proxy",
            argv=argv,
            environ=self.data_path,
            grace_s=self.proxy.grace_s + SETTLE_S,
            is_ready=lambda: _answers(port, "/readyz"),
        )

    def _summary(self) -> str:
        return f"Tollgate runs.\n  Admin    {self.admin_url}\n  Gateway  {self.gateway_url}"


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise StartFailed(f"{name} is {text!r}; it must be a number from 1 to 65535")
    return int(text)


def _make_directory(data_dir: Path) -> None:
    try:
        # Others may pass through: where we are root, PostgreSQL runs as somebody else.
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"the data directory {data_dir} cannot be made: {error.strerror}") from None


@contextlib.contextmanager
def _only_one_in(data_dir: Path) -> Iterator[None]:
    """Hold the data directory. The kernel lets go of it however this process ends."""
    try:
        lock = (data_dir / "lock").open("a+")
    except OSError as error:
        raise StartFailed(f"the data directory {data_dir} is not writable: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartFailed(f"another Tollgate runs in {data_dir}") from None
        yield


def _check_ports(options: Options) -> None:
    if options.admin_port == options.proxy_port:
        raise StartFailed("TOLLGATE_ADMIN_PORT and TOLLGATE_PROXY_PORT are the same")
    for name, port in (("TOLLGATE_ADMIN_PORT", options.admin_port), ("TOLLGATE_PROXY_PORT", options.proxy_port)):
        try:
            socket.create_server((HOST, port)).close()
        except OSError as error:
            raise StartFailed(f"port {port} cannot be used ({error.strerror}); set {name} to another") from None


def _check_postgres(url: str) -> None:
    """Texts of our own: those of the libraries may quote a part of the password."""
    try:
        parts = urlsplit(url)
        is_clear = parts.scheme in {"postgres", "postgresql"} and parts.netloc.count("@") <= 1
    except ValueError:
        is_clear = False
    if not is_clear:
        raise StartFailed(
            "DATABASE_URL is not a PostgreSQL URL, postgresql://user:password@host:5432/name (write @ as %40)"
        )
    try:
        psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg.OperationalError as error:
        raise StartFailed(f"DATABASE_URL leads nowhere: {str(error).splitlines()[0]}") from None
    except psycopg.Error:
        raise StartFailed("DATABASE_URL is not understood by PostgreSQL's client library") from None


def _check_redis(url: str) -> None:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT_S) as client:
            client.ping()
    except ValueError:
        raise StartFailed("REDIS_URL is not a Redis URL, redis://:password@host:6379/0 or unix:///path") from None
    except (redis.RedisError, OSError) as error:
        raise StartFailed(f"REDIS_URL leads nowhere: {error}") from None


def _kept_secrets(path: Path) -> dict[str, str]:
    """The secrets of this installation, made on its first start. Without the vault key no stored credential opens again."""
    with contextlib.suppress(FileNotFoundError):
        kept: dict[str, str] = json.loads(path.read_text())
        return kept
    kept = {
        "secret_key": secrets.token_urlsafe(48),
        "vault_key": base64.b64encode(secrets.token_bytes(32)).decode(),
    }
    write_private(path, json.dumps(kept, indent=2) + "\n")
    return kept


def _simulator_port(demo_file: Path) -> int:
    """The port of last time where it is free, since the database names it; else any."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        port = urlsplit(json.loads(demo_file.read_text())["simulator_url"]).port or 0
        socket.create_server((HOST, port)).close()
        return port
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _answers(port: int, path: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=PROBE_TIMEOUT_S)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _welcome(demo: Mapping[str, str]) -> str:
    body = json.dumps({"model": demo["model"], "messages": [{"role": "user", "content": "Say hello"}]})
    return f"""
Tollgate runs.

  Admin        {demo["admin_url"]}
               {demo["username"]} / {demo["password"]}
  Gateway      {demo["gateway_url"]}
  Virtual key  {demo["virtual_key"]}
  Model        {demo["model"]}

Try it:

curl {demo["gateway_url"]}/chat/completions \\
  -H "Authorization: Bearer {demo["virtual_key"]}" \\
  -H "Content-Type: application/json" \\
  -d '{body}'

Or in Python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{demo["gateway_url"]}", api_key="{demo["virtual_key"]}")
answer = client.chat.completions.create(model="{demo["model"]}", messages=[{{"role": "user", "content": "Say hello"}}])
print(answer.choices[0].message.content)

Ctrl-C stops everything. The data stays.
"""
