"""What `up` makes of its environment, and who is told what."""

import json
import stat

import pytest

from controlplane.processes import StartFailed
from controlplane.up import CONFIDENTIAL, Installation, Options

PROVIDER_KEY = "sk-not-a-real-key"


def installation(data_dir, **environ):
    environ = {"PATH": "/usr/bin", "TOLLGATE_DATA_DIR": str(data_dir), **environ}
    return Installation(Options.from_environment(environ), environ)


def test_each_program_is_told_what_it_needs_and_no_more(tmp_path):
    made = installation(tmp_path, OPENAI_API_KEY=PROVIDER_KEY)
    assert set(CONFIDENTIAL) & set(made.public) == set()
    assert set(CONFIDENTIAL) & set(made.data_path) == {"REDIS_URL", "TOLLGATE_VAULT_KEY"}
    assert set(CONFIDENTIAL) & set(made.control_plane) == {
        "REDIS_URL",
        "TOLLGATE_VAULT_KEY",
        "DATABASE_URL",
        "TOLLGATE_SECRET_KEY",
    }
    assert made.provider_keys == {"OPENAI_API_KEY": PROVIDER_KEY}


def test_secrets_are_made_once_and_kept(tmp_path):
    first, second = installation(tmp_path), installation(tmp_path)
    assert first.control_plane == second.control_plane
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
    assert len(json.loads((tmp_path / "secrets.json").read_text())["secret_key"]) >= 50


def test_secrets_of_the_environment_win(tmp_path):
    made = installation(tmp_path, TOLLGATE_SECRET_KEY="mine", TOLLGATE_VAULT_KEY="also mine")
    assert made.control_plane["TOLLGATE_SECRET_KEY"] == "mine"
    assert made.data_path["TOLLGATE_VAULT_KEY"] == "also mine"


def test_servers_are_embedded_only_where_none_are_named(tmp_path, shared_redis):
    assert [server.name for server in installation(tmp_path).servers] == ["redis", "postgres"]
    made = installation(tmp_path, REDIS_URL=shared_redis.url)
    assert [server.name for server in made.servers] == ["postgres"]
    assert made.redis_url == shared_redis.url


def test_secrets_do_not_show_in_options(tmp_path):
    options = Options.from_environment(
        {"DATABASE_URL": "postgresql://u:hunter2@h/d", "REDIS_URL": "redis://:hunter2@h"}
    )
    assert "hunter2" not in repr(options)


@pytest.mark.parametrize("name", ["TOLLGATE_PROXY_WORKERS", "TOLLGATE_GRACE_S", "TOLLGATE_LEASE_S"])
def test_nonsense_for_the_proxy_stops_the_start(tmp_path, name):
    with pytest.raises(StartFailed, match=name):
        installation(tmp_path, **{name: "many"})
