"""Kill switches through the API: in force when it answers, aimed by id or name, lifted once; and the workers that obey."""

import time

import msgspec
import pytest

from budgets import gate
from keys import redis as flags
from keys import services
from keys.models import KillSwitch
from proxy.metrics import WorkerStatus, encode_status
from tests import factories
from tests.api import assert_problem, client_with, post, results, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


@pytest.fixture
def redis_client():
    return flags.redis_client()


def in_force():
    return {flag.field: flag for flag in flags.flags(flags.redis_client())}


def throw(client, scope, target="", reason="a drill"):
    return post(client, url("kill-switches"), {"scope": scope, "target": target, "reason": reason})


def say_alive(redis_client, worker):
    status = WorkerStatus(
        worker=worker, host="h", pid=7, started_at_s=1.0, at_s=time.time(), snapshot_version=3, is_ready=True
    )
    redis_client.hset(gate.WORKERS, worker, encode_status(status))
    redis_client.set(gate.lease_key(worker), "1", px=60_000)


def test_what_is_thrown_is_in_force_when_it_answers():
    answer = throw(client_with("kill_switches:write"), "global", reason="a leak")
    assert answer.status_code == 201
    body = answer.json()
    assert (body["scope"], body["target"], body["reason"], body["is_active"]) == ("global", "", "a leak", True)
    assert in_force()["global"].kill_switch_id == body["id"] == str(KillSwitch.objects.get().pk)


def test_a_target_is_aimed_at_by_id_or_name():
    key = factories.VirtualKeyFactory(name="Chatbot", project__name="Search", project__team__name="Web")
    factories.ModelFactory(name="gpt-5")
    factories.ProviderFactory(slug="acme", name="Acme AI")
    client = client_with()
    for scope, targets, field in (
        ("team", ["web", str(key.project.team.pk)], f"team:{key.project.team.pk}"),
        ("project", ["SEARCH", str(key.project.pk).upper()], f"project:{key.project.pk}"),
        ("key", ["chatbot", str(key.pk)], f"key:{key.pk}"),
        ("model", ["GPT-5"], "model:gpt-5"),
        ("provider", ["acme", "acme ai"], "provider:acme"),
    ):
        for target in targets:
            answer = throw(client, scope, target)
            assert answer.status_code == 201
            assert f"{scope}:{answer.json()['target']}" == field
            assert in_force()[field].kill_switch_id == answer.json()["id"]


@pytest.mark.parametrize(
    ("scope", "target", "field"),
    [
        ("team", "", "target"),
        ("team", "nobody", "target"),
        ("global", "web", "target"),
        ("galaxy", "", "scope"),
        ("model", "unknown", "target"),
    ],
)
def test_what_names_nothing_is_refused(scope, target, field):
    assert set(assert_problem(throw(client_with(), scope, target), 400)["errors"]) == {field}
    assert not in_force()


def test_a_name_that_several_have_is_refused():
    factories.ProjectFactory(name="Search")
    factories.ProjectFactory(name="search")
    assert_problem(throw(client_with(), "project", "search"), 400, "Several")


def test_a_reason_is_needed_and_may_stand_in_the_header():
    client = client_with()
    assert set(assert_problem(throw(client, "global", reason=""), 400)["errors"]) == {"reason"}
    answer = post(client, url("kill-switches"), {"scope": "global"}, **{"X-Audit-Reason": "a leak"})
    assert answer.json()["reason"] == "a leak"


def test_thrown_twice_it_is_the_switch_in_force():
    client = client_with()
    first, second = throw(client, "global", reason="first"), throw(client, "global", reason="second")
    assert second.status_code == 201
    assert first.json() == second.json()


def test_an_account_of_a_team_halts_its_own_and_lifts_it():
    key = factories.VirtualKeyFactory(name="Chatbot")
    client = client_with(team=key.project.team)
    for scope, target in (("team", key.project.team), ("project", key.project), ("key", key)):
        answer = throw(client, scope, target.name)
        assert answer.status_code == 201
        assert client.delete(url("kill-switches", answer.json()["id"])).status_code == 200
    assert not in_force()


def test_an_account_of_a_team_sees_a_switch_for_everybody_and_does_not_lift_it():
    thrown = throw(client_with(), "global").json()["id"]
    client = client_with(team=factories.TeamFactory())
    assert client.get(url("kill-switches", thrown)).status_code == 200
    assert_problem(client.delete(url("kill-switches", thrown)), 403)
    assert in_force()


def test_lifting_lets_traffic_flow_says_why_and_is_done_once():
    client = client_with("kill_switches:read", "kill_switches:write")
    thrown = throw(client, "global").json()["id"]
    lifted = client.delete(url("kill-switches", thrown), {"reason": "fixed"}, content_type="application/json").json()
    assert (lifted["is_active"], lifted["lift_reason"]) == (False, "fixed")
    assert not in_force()
    again = client.delete(url("kill-switches", thrown))
    assert again.status_code == 200 and again.json() == lifted
    assert [row["id"] for row in results(client.get(url("kill-switches"), {"is_active": "false"}))] == [thrown]
    assert results(client.get(url("kill-switches"), {"is_active": "true"})) == []


def test_a_switch_that_only_redis_knows_is_lifted_too():
    flag = services.halt("global", reason="thrown while the database was down")
    assert_problem(client_with(team=factories.TeamFactory()).delete(url("kill-switches", flag.kill_switch_id)), 404)
    assert client_with().delete(url("kill-switches", flag.kill_switch_id)).json()["is_active"] is False
    assert not in_force()


def test_one_switch_says_what_each_worker_did(redis_client):
    client = client_with()
    thrown = throw(client, "global").json()["id"]
    for worker in ("w1", "w2"):
        say_alive(redis_client, worker)
    acknowledgement = msgspec.json.encode({"streams_cut": 17, "elapsed_ms": 41.5, "at_s": time.time()})
    redis_client.hset(gate.kill_acks_key(thrown), "w1", acknowledgement)
    said = client.get(url("kill-switches", thrown)).json()["acknowledgements"]
    assert (said["acknowledged"], said["expected"], said["streams_cut"], said["is_complete"]) == (1, 2, 17, False)
    assert [(row["worker"], row["streams_cut"]) for row in said["workers"]] == [("w1", 17), ("w2", None)]


# Workers


def test_workers_are_listed_with_the_version_they_run_page_by_page(redis_client):
    for worker in ("w3", "w1", "w2"):
        say_alive(redis_client, worker)
    redis_client.delete(gate.lease_key("w2"))
    client, seen, path = client_with("kill_switches:read"), [], url("workers") + "?page_size=2"
    while path:
        page = client.get(path).json()
        seen += [(row["worker"], row["is_live"], row["snapshot_version"]) for row in page["results"]]
        path = page["next"]
    assert seen == [("w1", True, 3), ("w2", False, 3), ("w3", True, 3)]
