"""The embedded servers, started, killed and started again."""

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis

from controlplane import embedded, processes
from tests.stack import wait_until


def write_and_read(postgres_url: str) -> int:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS written (number int)")
        connection.execute("INSERT INTO written VALUES (1)")
        return connection.execute("SELECT count(*) FROM written").fetchone()[0]


def test_what_postgres_committed_survives_its_death(postgres_server):
    assert write_and_read(postgres_server.url) == 1
    postgres_server.kill()
    postgres_server.start()
    assert write_and_read(postgres_server.url) == 2


def test_what_redis_wrote_survives_its_death(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("written", "before")
    redis_server.kill()
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.get("written") == b"before"


def test_a_redis_that_dies_again_and_again_does_not_load_ever_more(redis_server, short_tmp_path):
    """It measures the growth of its file from its own start: what it doubles by, it would hardly reach between two deaths."""
    _write_30_mib(redis_server)
    for _ in range(4):
        redis_server.kill()
        redis_server.start()
        _write_30_mib(redis_server)
    file = short_tmp_path / "redis" / "appendonly.aof"
    wait_until(lambda: file.stat().st_size < 30 * 1024 * 1024, "a file that is written anew")


HALF = b"*1\r\n$5\r\nMULTI\r\n*3\r\n$6\r\nINCRBY\r\n$5\r\nspent\r\n$3\r\n100\r\n*3\r\n$3\r\nSET\r\n$5\r\nspent\r\n"


@pytest.mark.parametrize("length", [*range(5, len(HALF), 10), len(HALF)])
def test_half_of_a_transaction_does_not_come_into_force_with_the_next_one(redis_server, short_tmp_path, length):
    """Wherever it broke off. Redis leaves it in its file, and what is written later ends it: an amount would count that never was."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("spent", 5)
    redis_server.kill()
    with (short_tmp_path / "redis" / "appendonly.aof").open("ab") as file:
        file.write(HALF[:length])
    for spent in (6, 7):
        redis_server.start()
        with redis.Redis.from_url(redis_server.url) as client:
            assert client.pipeline(transaction=True).incr("spent").incr("other").execute()[0] == spent
        redis_server.kill()


def test_a_file_that_is_broken_in_its_middle_is_left_for_a_person(redis_server, short_tmp_path):
    redis_server.kill()
    file = short_tmp_path / "redis" / "appendonly.aof"
    broken = b"nonsense" + HALF * 2
    file.write_bytes(broken)
    redis_server.server.prepare()
    assert file.read_bytes() == broken


def _write_30_mib(server):
    with redis.Redis.from_url(server.url) as client:
        for _ in range(30):
            client.set("only", bytes(1024 * 1024))


def test_the_database_role_is_no_superuser(postgres_server):
    with psycopg.connect(postgres_server.url) as connection:
        assert connection.execute("SELECT current_setting('is_superuser')").fetchone() == ("off",)


def test_redis_never_evicts_and_listens_on_no_network(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("port")["port"] == "0"


@pytest.mark.parametrize("server_fixture", ["postgres_server", "redis_server"])
def test_a_server_left_over_is_ended_by_the_next_start(server_fixture, request):
    server = request.getfixturevalue(server_fixture)
    left_over = server.pid
    server.server.prepare()
    assert not server.server.is_ready()
    server.start()
    assert server.pid != left_over
    assert server.server.is_ready()


def test_a_lock_file_that_names_a_stranger_does_not_stop_postgres(postgres_server):
    postgres_server.kill()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        lock = postgres_server.server.data / "postmaster.pid"
        first_line, rest = lock.read_text().split("\n", 1)
        assert first_line.strip().isdigit()
        lock.write_text(f"{stranger.pid}\n{rest}")
        postgres_server.start()
    finally:
        stranger.kill()
        stranger.wait()


def test_an_initdb_cut_short_is_not_taken_for_a_database(short_tmp_path):
    server = embedded.Postgres(short_tmp_path / "postgres")
    (short_tmp_path / "postgres" / "unfinished").mkdir(parents=True)
    (short_tmp_path / "postgres" / "unfinished" / "PG_VERSION").write_text("18")
    server.prepare()
    assert (server.data / "global" / "pg_control").exists()
    assert not (server.directory / "unfinished").exists()


def test_a_path_too_long_for_a_socket_gets_a_short_directory(tmp_path):
    server = embedded.Redis(tmp_path / ("long" * 30) / "redis")
    assert len(str(server.socket_path)) < 104
    assert server.socket_path == embedded.Redis(tmp_path / ("long" * 30) / "redis").socket_path


def test_a_directory_that_is_a_link_of_somebody_else_is_refused(short_tmp_path, monkeypatch):
    target = short_tmp_path / "elsewhere"
    target.mkdir()
    server = embedded.Redis(short_tmp_path / "redis")
    Path(short_tmp_path / "redis").symlink_to(target)
    with pytest.raises(processes.StartFailed, match="belongs to another user"):
        server.prepare()
