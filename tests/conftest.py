"""The servers the tests meet: a real PostgreSQL and a real Redis, embedded, one pair per test process.

They are named in the environment before Django's settings load, started when the first test asks for them, and gone at
the end. Tests that hurt a server take one of their own: `redis_server`, `postgres_server`.
"""

import base64
import contextlib
import datetime
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import django
import pytest
import pytest_django
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from django.db import connection
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from controlplane import embedded, processes
from tests import stack

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
HALF_HOUR_S, LASTING_S = 1800.0, 60.0
DIRECTORY = Path(tempfile.mkdtemp(prefix="tollgate-test-"))
# Data need not survive a power cut here; it does survive the death of the process.
POSTGRES = embedded.Postgres(DIRECTORY / "postgres", fsync="off", synchronous_commit="off", full_page_writes="off")
REDIS = embedded.Redis(DIRECTORY / "redis")
# The same examples in every run, however slow the machine. `make chaos` and `make fuzz` look for new ones, or another profile does.
hypothesis_settings.register_profile(
    "tollgate", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("tollgate")

assert not settings.configured, "the tests name servers of their own, too late: unset DJANGO_SETTINGS_MODULE first"
os.environ.update(
    DJANGO_SETTINGS_MODULE="controlplane.settings",
    DATABASE_URL=POSTGRES.url,
    REDIS_URL=REDIS.url,
    TOLLGATE_DATA_DIR=str(DIRECTORY / "data"),
    TOLLGATE_DEMO="1",
    TOLLGATE_SECRET_KEY="a secret key for tests, of no use anywhere else, and long enough",
    TOLLGATE_VAULT_KEY=base64.b64encode(b"a master key for the tests: 32 b").decode(),
)
django.setup()  # Test modules import models.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """The processes that run the tests inherit our environment, and would load the settings before they come here."""
    del os.environ["DJANGO_SETTINGS_MODULE"]


def pytest_unconfigure() -> None:
    shutil.rmtree(DIRECTORY, ignore_errors=True)


class RunningServer:
    """An embedded server that a test may kill, pause, stop and start again on the same data."""

    def __init__(self, server: embedded.Server, directory: Path) -> None:
        self.server = server
        self.url = server.url
        self.directory = directory
        self._log = directory.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self.server.prepare()  # Ends the one that still runs.
        if self._process is not None:
            self._process.wait()
        with self._log.open("ab") as log:
            self._process = processes.start(self.server.argv, stop_signal=self.server.stop_signal, output=log)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.server.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.server.name} did not start:\n{self._log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(self.server.stop_signal)
        self._process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """As `kill -9` of the server and whatever it started."""
        assert self._process is not None
        processes.kill_group(self._process)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def _running(server: embedded.Server, directory: Path) -> Iterator[RunningServer]:
    running = RunningServer(server, directory)
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[RunningServer]:
    """The PostgreSQL that `DATABASE_URL` names."""
    yield from _running(POSTGRES, POSTGRES.directory)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RunningServer]:
    """The Redis that `REDIS_URL` names."""
    yield from _running(REDIS, REDIS.directory)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(shared_postgres: RunningServer, shared_redis: RunningServer) -> None:
    """Whatever uses the database may publish to Redis: both run before the test database is made."""


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    return True  # The whole server is thrown away.


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: pytest_django.DjangoDbBlocker) -> None:
    """Between tests that commit, tables are truncated: that refusal, and no other, is off in the test database."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'append_only_truncate'")
        for (table,) in cursor.fetchall():
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER append_only_truncate")


@pytest.fixture
def redis_url(shared_redis: RunningServer) -> str:
    """URL of the shared Redis, empty."""
    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
    return shared_redis.url


@pytest.fixture
def lasting_hour() -> None:
    """The hour, in India too, where it begins at half past, has a minute to go at least: the test is over before another begins."""
    left_s = HALF_HOUR_S - time.time() % HALF_HOUR_S
    if left_s < LASTING_S:
        time.sleep(left_s)


@pytest.fixture
def short_tmp_path() -> Iterator[Path]:
    """A directory of a short name: the path of a Unix socket has room in it."""
    directory = Path(tempfile.mkdtemp(prefix="tg-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def redis_server(short_tmp_path: Path) -> Iterator[RunningServer]:
    """A Redis of the test's own: `.url`, `.pid`, `.kill()`, `.pause()`, `.resume()`, `.stop()`, `.start()`."""
    yield from _running(embedded.Redis(short_tmp_path / "redis"), short_tmp_path / "redis")


@pytest.fixture
def postgres_server(short_tmp_path: Path) -> Iterator[RunningServer]:
    """A PostgreSQL of the test's own; the same verbs as `redis_server`."""
    yield from _running(embedded.Postgres(short_tmp_path / "postgres", fsync="off"), short_tmp_path / "postgres")


@pytest.fixture
def postgres_away() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Within the context every connection this process makes to PostgreSQL is refused, as when the server is down."""

    @contextlib.contextmanager
    def away() -> Iterator[None]:
        connection.close()
        connection.close_pool()
        present = connection.settings_dict["OPTIONS"]
        nowhere = {name: value for name, value in present.items() if name != "pool"} | {"host": "/nowhere"}
        connection.settings_dict["OPTIONS"] = nowhere
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict["OPTIONS"] = present

    return away


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses."""
    return stack.free_port()


@pytest.fixture(scope="session")
def make_certificate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Call with the names of hosts to get a key and a self-signed certificate for them, in one file."""

    def make(*hosts: str) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0])])
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        built = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        path = tmp_path_factory.mktemp("tls") / f"{hosts[0]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + built.public_bytes(serialization.Encoding.PEM)
        )
        return path

    return make
