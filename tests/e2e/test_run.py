"""`manage.py up` as a user meets it: what it prints works when pasted, it keeps its data, and leaves nothing behind."""

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time

import httpx
import openai
import psutil
import psycopg
import pytest

FACTS = {"admin_url", "username", "password", "api_token", "gateway_url", "virtual_key", "model", "team", "project"}


def ask(facts):
    with openai.OpenAI(base_url=facts["gateway_url"], api_key=facts["virtual_key"], max_retries=0) as client:
        return client.chat.completions.create(model=facts["model"], messages=[{"role": "user", "content": "Say hello"}])


def wait_until(condition, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not (outcome := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return outcome


def answers(facts):
    try:
        return ask(facts).choices[0].message.content
    except openai.APIError:
        return None


def ledger_rows(tollgate):
    lines = (tollgate.data_dir / "environment").read_text().splitlines()
    url = next(shlex.split(line)[0].removeprefix("DATABASE_URL=") for line in lines if line.startswith("DATABASE_URL="))
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT count(*) FROM audit_usagerecord").fetchone()[0]


def _ledger_rows_or_none(tollgate):
    try:
        return ledger_rows(tollgate)
    except psycopg.OperationalError:
        return None


def assert_refused_in_one_line(tollgate, text):
    done = tollgate.run()
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_demo_json_holds_the_facts_and_is_private(tollgate):
    assert set(tollgate.facts) >= FACTS
    assert all(tollgate.facts.values())
    for name in ("demo.json", "secrets.json"):
        assert stat.S_IMODE((tollgate.data_dir / name).stat().st_mode) == 0o600


def test_the_printed_curl_works_when_pasted(tollgate):
    command = re.search(r"^curl .*?^ +-d '.*?'$", tollgate.output, re.DOTALL | re.MULTILINE).group()
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_the_printed_python_works_when_pasted(tollgate):
    code = re.search(r"^from openai import OpenAI$.*?^print\(.*?\)$", tollgate.output, re.DOTALL | re.MULTILINE).group()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip()


def test_a_stream_arrives_through_the_official_sdk(tollgate):
    facts = tollgate.facts
    with openai.OpenAI(base_url=facts["gateway_url"], api_key=facts["virtual_key"], max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model=facts["model"], messages=[{"role": "user", "content": "Say hello"}], stream=True
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_the_administrator_can_sign_in(tollgate):
    facts = tollgate.facts
    with httpx.Client(follow_redirects=True) as client:
        page = client.get(facts["admin_url"])
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text).group(1)
        form = {"username": facts["username"], "password": facts["password"], "csrfmiddlewaretoken": token}
        page = client.post(page.url, data=form, headers={"referer": str(page.url)})
        assert page.status_code == 200
        assert "logout" in page.text.lower() or "log out" in page.text.lower()


def test_secrets_are_in_no_log_and_on_no_command_line(tollgate):
    secrets = [*json.loads((tollgate.data_dir / "secrets.json").read_text()).values()]
    secrets += [tollgate.facts[name] for name in ("password", "api_token", "virtual_key")]
    seen = tollgate.logs() + "".join(" ".join(process.cmdline()) for process in tollgate.processes())
    assert not [secret for secret in secrets if secret in seen]


def test_what_was_spent_is_in_the_ledger_soon(tollgate):
    before = ledger_rows(tollgate)
    ask(tollgate.facts)
    wait_until(lambda: ledger_rows(tollgate) > before)  # What was asked just before may arrive now too.


@pytest.mark.parametrize("name", ["proxy", "admin", "worker", "beat", "simulator", "redis", "postgres"])
def test_a_program_that_is_killed_is_back_and_so_is_all_that_leans_on_it(tollgate, name):
    killed = tollgate.program(name)
    killed.kill()
    wait_until(lambda: _runs_again(tollgate, name, killed.pid))
    wait_until(lambda: answers(tollgate.facts))
    wait_until(lambda: _status(f"{tollgate.admin_root}/admin/login/") == 200)
    before = wait_until(lambda: _ledger_rows_or_none(tollgate))
    ask(tollgate.facts)
    wait_until(lambda: (_ledger_rows_or_none(tollgate) or 0) > before)


def _runs_again(tollgate, name, earlier_pid):
    try:
        return tollgate.program(name).pid != earlier_pid
    except (StopIteration, psutil.NoSuchProcess):
        return False


def _status(url):
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.HTTPError:
        return None


def test_a_second_up_on_the_same_data_is_refused(tollgate, make_tollgate):
    second = make_tollgate(TOLLGATE_DATA_DIR=str(tollgate.data_dir))
    assert_refused_in_one_line(second, "another Tollgate runs in")


def test_a_restart_keeps_data_and_key_and_leaves_no_process(make_tollgate):
    tollgate = make_tollgate(TOLLGATE_PROXY_WORKERS="1")
    tollgate.start()
    facts = tollgate.facts
    assert ask(facts).choices
    started = tollgate.processes()
    assert len(started) > 8
    assert tollgate.stop(signal.SIGINT) == 0
    wait_until(lambda: not any(process.is_running() for process in started))

    tollgate.start()
    assert tollgate.facts == facts
    assert ask(facts).choices

    started = tollgate.processes()
    tollgate.kill()
    wait_until(lambda: not any(process.is_running() for process in started))
    tollgate.start()
    assert ask(facts).choices
    assert tollgate.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("to_group", [True, False], ids=["ctrl-c", "sigterm to make alone"])
def test_make_run_passes_the_end_on(make_tollgate, to_group):
    tollgate = make_tollgate(TOLLGATE_PROXY_WORKERS="1")
    tollgate.start("make", "run")
    started = tollgate.processes()
    if to_group:
        os.killpg(tollgate.process.pid, signal.SIGINT)
    else:
        tollgate.process.terminate()
    tollgate.process.wait(45)
    wait_until(lambda: not any(process.is_running() for process in started))


def test_a_port_in_use_is_named(make_tollgate):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert_refused_in_one_line(make_tollgate(TOLLGATE_PROXY_PORT=port), f"port {port}")


@pytest.mark.parametrize("port", ["0", "65536", "eighty", "٨٠"])
def test_a_port_that_is_none_is_named(make_tollgate, port):
    assert_refused_in_one_line(make_tollgate(TOLLGATE_ADMIN_PORT=port), "TOLLGATE_ADMIN_PORT")


def test_a_data_directory_that_is_not_writable_is_named(make_tollgate):
    assert_refused_in_one_line(make_tollgate(TOLLGATE_DATA_DIR="/proc/tollgate"), "/proc/tollgate")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://user:hunter2@127.0.0.1:1/tollgate"),
        ("DATABASE_URL", "mysql://user:hunter2@127.0.0.1/tollgate"),
        ("DATABASE_URL", "postgresql://user:hunter2@ter@127.0.0.1/tollgate"),
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:1/0"),
        ("REDIS_URL", "http://:hunter2@127.0.0.1/"),
    ],
)
def test_a_wrong_url_is_named_and_its_password_is_not(make_tollgate, name, url):
    tollgate = make_tollgate(**{name: url})
    assert_refused_in_one_line(tollgate, name)
    assert "hunter2" not in tollgate.run().stderr


def test_a_provider_whose_key_is_in_the_environment_is_registered(make_tollgate):
    tollgate = make_tollgate(OPENAI_API_KEY="sk-not-a-real-key-of-anybody", TOLLGATE_PROXY_WORKERS="1")
    tollgate.start()
    facts = tollgate.facts
    with openai.OpenAI(base_url=facts["gateway_url"], api_key=facts["virtual_key"]) as client:
        assert {"gpt-4o-mini", facts["model"]} <= {model.id for model in client.models.list()}
    assert "sk-not-a-real-key-of-anybody" not in tollgate.logs()
