"""`manage.py kill` and `lift`: by id or by name, with PostgreSQL or without, and what the operator reads."""

import threading
import time
import uuid

import msgspec
import pytest
import redis
from django.core.management import CommandError, call_command

from audit.models import AuditEntry
from budgets import gate
from controlplane import rebuild, tasks, workers
from keys.kills import decode_flag
from keys.models import KillSwitch
from keys.redis import redis_client
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def client(redis_url):
    return redis_client()


@pytest.fixture
def virtual_key(client):
    key = factories.VirtualKeyFactory(name="Chatbot", project__name="Search", project__team__name="Research")
    factories.AliasTargetFactory(deployment__model__name="small", deployment__provider__slug="openai")
    rebuild.rebuild_redis()
    return key


class FakeWorker:
    """A worker with a lease that answers each kill, in a thread of its own."""

    def __init__(self, client, name, streams_cut, elapsed_ms):
        client.hset(gate.WORKERS, name, "{}")
        client.set(gate.lease_key(name), 1, ex=30)
        self.ack = msgspec.json.encode({"streams_cut": streams_cut, "elapsed_ms": elapsed_ms, "at_s": time.time()})
        self.name = name
        self.client = client
        self.channel = client.pubsub(ignore_subscribe_messages=True)
        self.channel.subscribe(gate.PUSH)
        self.channel.get_message(timeout=5)
        self.is_stopped = False
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self):
        while not self.is_stopped:
            message = self.channel.get_message(timeout=0.05)
            if message is not None:
                flag = msgspec.json.decode(message["data"])["flag"]
                time.sleep(0.02)
                self.client.hset(gate.kill_acks_key(flag["kill_switch_id"]), self.name, self.ack)

    def stop(self):
        self.is_stopped = True
        self.thread.join()
        self.channel.close()


@pytest.fixture
def four_workers(client, virtual_key, monkeypatch):
    monkeypatch.setattr("controlplane.management.commands.kill.WAIT_S", 60.0)
    four = [FakeWorker(client, f"w{n}", streams_cut=n + 1, elapsed_ms=30 + n) for n in range(4)]
    yield four
    for worker in four:
        worker.stop()


def said(capsys):
    return capsys.readouterr().out


def flag_in_redis(client, field):
    body = client.hget(gate.KILLS, field)
    return None if body is None else decode_flag(body)


def test_a_kill_is_in_force_on_record_and_acknowledged(client, four_workers, capsys):
    call_command("kill", "global", reason="a drill")
    assert flag_in_redis(client, "global").reason == "a drill"
    switch = KillSwitch.objects.get()
    assert switch.is_active and switch.reason == "a drill" and " at " in switch.thrown_by
    assert AuditEntry.objects.get(action="throw").object_id == str(switch.pk)
    assert "4 of 4 workers, 10 streams cut, 33 ms" in said(capsys)


def test_who_does_not_answer_is_named(client, virtual_key, four_workers, capsys, monkeypatch):
    monkeypatch.setattr("controlplane.management.commands.kill.WAIT_S", 10.0)
    client.hset(gate.WORKERS, "deaf", "{}")
    client.set(gate.lease_key("deaf"), 1, ex=30)
    call_command("kill", "global", reason="a drill")
    assert "4 of 5 workers, 10 streams cut, 33 ms; not heard from: deaf" in said(capsys)


def test_dead_workers_are_not_waited_for(client, virtual_key, capsys):
    client.hset(gate.WORKERS, "dead", "{}")
    call_command("kill", "global", reason="a drill")
    assert "0 of 0 workers, 0 streams cut, 0 ms\n" in said(capsys)


def test_every_scope_is_found_by_its_name_and_by_its_id(client, virtual_key):
    project = virtual_key.project
    expected = {
        "team": [("research", str(project.team_id)), (str(project.team_id), str(project.team_id))],
        "project": [("Search", str(project.pk)), (str(project.pk).upper(), str(project.pk))],
        "key": [("chatbot", str(virtual_key.pk))],
        "model": [("small", "small")],
        "provider": [("OpenAI", "openai")],
    }
    for scope, targets in expected.items():
        for wanted, target in targets:
            call_command("kill", scope, wanted, reason="a drill")
            assert flag_in_redis(client, f"{scope}:{target}").target == target
            call_command("lift", scope, wanted, reason="over")
            assert flag_in_redis(client, f"{scope}:{target}") is None
    assert not KillSwitch.objects.active().exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("team", "nobody"), "no team is called 'nobody'"),
        (("model", "smal"), "no model is called 'smal'"),
        (("team",), "say which team"),
        (("global", "all"), "has no target"),
    ],
)
def test_a_target_that_is_not_there_halts_nothing(client, virtual_key, arguments, complaint):
    with pytest.raises(CommandError, match=complaint):
        call_command("kill", *arguments, reason="a drill")
    assert client.hlen(gate.KILLS) == 0


def test_a_name_that_several_have_is_refused_with_their_ids(client, virtual_key):
    twin = factories.TeamFactory(name="RESEARCH")
    rebuild.rebuild_redis(force=True)
    with pytest.raises(CommandError, match=str(twin.pk)):
        call_command("kill", "team", "Research", reason="a drill")


def test_a_reason_is_asked_for(client, virtual_key):
    with pytest.raises(CommandError, match="reason"):
        call_command("kill", "global")
    with pytest.raises(CommandError, match="Say why"):
        call_command("kill", "global", reason="  ")
    assert client.hlen(gate.KILLS) == 0


def test_a_kill_twice_says_why_the_first_was_thrown(client, virtual_key, capsys):
    call_command("kill", "global", reason="the first")
    call_command("kill", "global", reason="the second")
    assert "thrown before: the first" in said(capsys)
    assert KillSwitch.objects.count() == 1


def test_an_empty_redis_takes_an_id_and_a_global_kill(client):
    target = str(uuid.uuid4())
    call_command("kill", "team", target, reason="a drill")
    call_command("kill", "global", reason="a drill")
    assert client.hlen(gate.KILLS) == 2
    with pytest.raises(CommandError, match="no snapshot"):
        call_command("kill", "team", "Research", reason="a drill")


def test_what_is_not_halted_cannot_be_lifted(client, virtual_key):
    with pytest.raises(CommandError, match="model:small is not halted"):
        call_command("lift", "model", "small", reason="over")


def test_without_postgres_a_kill_is_in_force_and_recorded_later(
    client, virtual_key, four_workers, postgres_away, capsys
):
    with postgres_away():
        call_command("kill", "team", "research", reason="a drill")
        assert flag_in_redis(client, f"team:{virtual_key.project.team_id}") is not None
        assert client.llen(gate.KILL_UNRECORDED) == 1
    text = said(capsys)
    assert "4 of 4 workers" in text and "goes on record when it does" in text
    assert not KillSwitch.objects.exists()
    tasks.record_unrecorded_kills()
    tasks.record_unrecorded_kills()
    assert KillSwitch.objects.get().target == str(virtual_key.project.team_id)
    assert client.llen(gate.KILL_UNRECORDED) == 0


def test_without_postgres_a_kill_is_lifted_and_both_are_recorded_later(client, virtual_key, postgres_away):
    with postgres_away():
        call_command("kill", "global", reason="a drill")
        call_command("lift", "global", reason="over")
        assert client.hlen(gate.KILLS) == 0
        tasks.record_unrecorded_kills()  # Not yet.
        assert client.llen(gate.KILL_UNRECORDED) == 2
    tasks.record_unrecorded_kills()
    switch = KillSwitch.objects.get()
    assert not switch.is_active and switch.lift_reason == "over"
    assert list(AuditEntry.objects.order_by("id").values_list("action", flat=True)) == ["throw", "lift"]


def test_without_redis_it_says_that_nothing_is_halted(client, virtual_key, monkeypatch):
    nowhere = redis.Redis(unix_socket_path="/nowhere", retry=None)
    monkeypatch.setattr("controlplane.management.commands.kill.redis_client", lambda: nowhere)
    with pytest.raises(CommandError, match="nothing is halted"):
        call_command("kill", "global", reason="a drill")
    assert not KillSwitch.objects.exists()


# The list of workers


def status(client, name, at_s):
    body = {
        "worker": name,
        "host": "h",
        "pid": 1,
        "started_at_s": 0,
        "at_s": at_s,
        "snapshot_version": 1,
        "is_ready": True,
    }
    client.hset(gate.WORKERS, name, msgspec.json.encode(body))


def test_workers_that_are_long_gone_and_hold_nothing_are_forgotten(client):
    now_s = client.time()[0]
    for name, age_s in (("fresh", 5), ("gone", 70), ("holding", 70), ("back", 70)):
        status(client, name, now_s - age_s)
    client.hset(gate.holds_key("holding"), "attempt", "1|{}|{}")
    client.set(gate.lease_key("back"), 1)
    assert workers.sweep(client) == ["gone"]
    assert [status.worker for status in workers.statuses(client)] == ["back", "fresh", "holding"]
    assert workers.live_workers(client) == ["back"]
    tasks.sweep_workers()
