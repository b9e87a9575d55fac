"""Publishing: what is changed through the services is what Redis holds, in order, and nothing is lost while it is away."""

import datetime
import threading
import uuid
from decimal import Decimal

import msgspec
import pytest
import redis
import time_machine
from django.db import connection, transaction
from django.utils import timezone

from audit import services as audit
from audit.records import UsageEvent, encode_event
from budgets import gate, ledger, price_book
from budgets import services as budgets
from budgets.windows import window_bounds
from controlplane import publish, tasks
from controlplane.models import Unpublished
from keys import services as keys
from keys.redis import redis_client
from proxy.snapshot import decode_key, decode_snapshot
from routing import services as routing
from teams import services as teams
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def client(redis_url):
    client = redis_client()
    client.set(gate.EPOCH, "an epoch")
    return client


@pytest.fixture
def pushes(client):
    """What has been pushed since: call it for the messages so far."""
    channel = client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(gate.PUSH)
    channel.get_message(timeout=5)

    def so_far():
        messages = []
        while (message := channel.get_message(timeout=0.2)) is not None:
            messages.append(msgspec.json.decode(message["data"]))
        return messages

    yield so_far
    channel.close()


@pytest.fixture
def team(client):
    return teams.create_team("Research", "research", actor=ACTOR, time_zone="Asia/Kolkata")


@pytest.fixture
def project(team):
    return teams.create_project(team, "Search", "search", actor=ACTOR, default_tags={"feature": "search"})


def snapshot(client):
    return decode_snapshot(client.get(gate.SNAPSHOT))


def key_record(client, virtual_key):
    return decode_key(client.hget(gate.KEYS, virtual_key.digest))


# What a snapshot says


def test_a_snapshot_says_what_the_models_say(client, team, project):
    pool = keys.create_pool("pool", "openai", actor=ACTOR)
    credential = keys.add_credential(pool, "one", "sk-secret-secret", actor=ACTOR)
    spare = keys.add_credential(pool, "two", "sk-secret-spare", actor=ACTOR)
    audit.change(spare, actor=ACTOR, values={"is_active": False})
    provider = routing.create_provider("openai", "OpenAI", "https://api.example.com/v1", actor=ACTOR)
    model = routing.create_model("small", actor=ACTOR, context_window=1_000, max_output_tokens=200)
    deployment = routing.create_deployment("small-eu", model, provider, "small-1", actor=ACTOR, pool=pool)
    routing.set_price(model, provider, actor=ACTOR, input=Decimal("0.15"), output=Decimal("0.6"))
    routing.create_alias("fast", [routing.Target(deployment, position=1, weight=3)], actor=ACTOR)
    budget = budgets.create_budget(team, "all", "month", Decimal("12.5"), actor=ACTOR)
    budgets.create_limit(project, "requests", 60, actor=ACTOR)

    published = snapshot(client)
    assert published.teams[str(team.pk)].time_zone == "Asia/Kolkata"
    (team_budget,) = published.budgets
    assert (team_budget.budget_id, team_budget.amount) == (str(budget.pk), 12_500_000_000)
    assert team_budget.subject == {"team": str(team.pk)}
    assert (team_budget.window, team_budget.time_zone) == ("month", "Asia/Kolkata")
    (limit,) = published.limits
    assert (limit.subject, limit.metric, limit.amount) == ({"project": str(project.pk)}, "requests", 60)
    assert published.projects[str(project.pk)].default_tags == {"feature": "search"}
    found = published.deployments[str(deployment.pk)]
    assert (found.provider, found.model, found.max_output_tokens) == ("openai", "small", 200)
    assert (found.price.input_nanos, found.price.output_nanos) == (150_000_000, 600_000_000)
    assert [(c.credential_id, c.sealed) for c in found.credentials] == [(str(credential.pk), credential.sealed)]
    (target,) = published.aliases["fast"].targets
    assert (target.deployment_id, target.position, target.weight) == (str(deployment.pk), 1, 3)
    assert b"sk-secret" not in client.get(gate.SNAPSHOT)


def test_a_provider_is_published_with_what_its_kind_knows(client, project):
    routing.create_provider(
        "vertex",
        "Vertex",
        "https://europe-west4-aiplatform.googleapis.com/v1",
        actor=ACTOR,
        api="vertex",
        options={"project": "acme", "location": "europe-west4"},
        passthrough_hold=Decimal("0.5"),
        runs_on=True,
    )
    routing.create_provider("groq", "Groq", "", actor=ACTOR, api="groq")
    routing.create_provider("own", "Own", "https://llm.example.com", actor=ACTOR, api="vllm")
    routing.create_alias("loose", [], actor=ACTOR, is_lenient=True)
    issued = keys.issue_virtual_key(project, "x", actor=ACTOR, passthrough=["vertex"])

    published = snapshot(client)
    vertex, groq, own = (published.providers[slug] for slug in ("vertex", "groq", "own"))
    assert (vertex.api, vertex.options) == ("vertex", {"project": "acme", "location": "europe-west4"})
    assert (vertex.passthrough_hold_nanos, groq.passthrough_hold_nanos) == (500_000_000, None)
    assert (vertex.runs_on, groq.runs_on) == (True, False)
    assert (groq.base_url, groq.output_cap_field) == ("https://api.groq.com/openai/v1", "max_completion_tokens")
    assert own.output_cap_field == "max_tokens"
    assert published.aliases["loose"].is_lenient
    assert key_record(client, issued.virtual_key).passthrough == ("vertex",)


def test_every_rate_of_a_price_is_published_with_what_its_currency_is_worth(client):
    deployment = factories.DeploymentFactory(provider__currency="EUR")
    routing.set_exchange_rate("EUR", Decimal("1.1"), actor=ACTOR)
    routing.set_price(
        deployment.model,
        deployment.provider,
        actor=ACTOR,
        input=Decimal(1),
        output=Decimal(2),
        cache_write_1h=Decimal(2),
        input_audio=Decimal(10),
        output_image=Decimal(30),
        per_tool_call=Decimal("0.01"),
        per_unit=Decimal("0.04"),
        batch_percent=50,
    )
    price = snapshot(client).deployments[str(deployment.pk)].price
    assert (price.cache_write_1h_nanos, price.input_audio_nanos) == (2_000_000_000, 10_000_000_000)
    assert (price.input_image_nanos, price.output_audio_nanos) == (None, None)
    assert (price.output_image_nanos, price.batch_percent) == (30_000_000_000, 50)
    assert (price.tool_call_nanos, price.unit_nanos) == (10_000_000, 40_000_000)
    assert (price.usd_per_unit_nanos, price.terms.currency) == (1_100_000_000, "EUR")


@pytest.mark.parametrize(
    ("amount", "usd_per_unit", "expected"),
    [
        ("5", "1", 5_000_000_000),
        ("0.000000001", "1", 1),
        ("0.000000001", "0.000000001", 1),
        ("1", "1.1", 1_100_000_000),
        ("0.333333333", "1.000000001", 333_333_334),
        ("999999999.999999999", "999999999.999999999", 999_999_999_999_999_998_000_000_001),
        ("0", "1.1", 0),
    ],
)
def test_a_price_in_nano_usd_is_rounded_up_exactly(amount, usd_per_unit, expected):
    assert price_book.nanos(Decimal(amount), Decimal(usd_per_unit)) == expected


def test_the_latest_price_in_force_counts_in_the_currency_of_the_provider(client):
    deployment = factories.DeploymentFactory(provider__currency="EUR")
    model, provider = deployment.model, deployment.provider
    now = timezone.now()

    def priced(**offset):
        at = now + datetime.timedelta(**offset)
        return routing.set_price(model, provider, actor=ACTOR, input=Decimal(10), output=Decimal(20), effective_from=at)

    priced(days=-2)
    current = priced(days=-1)
    priced(days=1)
    assert snapshot(client).deployments[str(deployment.pk)].price is None
    routing.set_exchange_rate("EUR", Decimal("1.5"), actor=ACTOR)
    price = snapshot(client).deployments[str(deployment.pk)].price
    assert price.price_id == str(current.pk) and price.input_nanos == 10_000_000_000
    assert price.usd_per_unit_nanos == 1_500_000_000


def test_a_price_of_the_future_is_published_when_its_time_comes(client):
    deployment = factories.DeploymentFactory()
    then = timezone.now() + datetime.timedelta(days=1)
    routing.set_price(
        deployment.model, deployment.provider, actor=ACTOR, input=Decimal(1), output=Decimal(1), effective_from=then
    )
    assert snapshot(client).deployments[str(deployment.pk)].price is None
    assert publish.publish_pending() is False
    with time_machine.travel(then):
        tasks.watch_epoch()
    assert snapshot(client).deployments[str(deployment.pk)].price is not None
    assert not Unpublished.objects.exists()


def test_an_alias_that_is_switched_off_is_not_in_the_snapshot_and_a_deployment_is_marked(client):
    target = factories.AliasTargetFactory()
    audit.change(target.deployment, actor=ACTOR, values={"is_active": False})
    assert snapshot(client).deployments[str(target.deployment_id)].is_active is False
    assert target.alias.name in snapshot(client).aliases
    audit.change(target.alias, actor=ACTOR, values={"is_active": False})
    assert target.alias.name not in snapshot(client).aliases


# When and what is published


def test_each_change_has_a_greater_version_and_is_pushed(client, pushes, team):
    first = snapshot(client).version
    pushes()
    audit.change(team, actor=ACTOR, values={"name": "Renamed"})
    assert snapshot(client).version > first
    assert pushes() == [{"kind": "snapshot", "version": snapshot(client).version}]
    assert int(client.hget(gate.VERSIONS, "snapshot")) == snapshot(client).version


def test_a_virtual_key_is_published_alone(client, pushes, project):
    version = snapshot(client).version
    pushes()
    expires_at = timezone.now() + datetime.timedelta(days=1)
    issued = keys.issue_virtual_key(project, "app", actor=ACTOR, aliases=["fast"], expires_at=expires_at)
    record = key_record(client, issued.virtual_key)
    assert (record.key_id, record.project_id) == (str(issued.virtual_key.pk), str(project.pk))
    assert record.aliases == ("fast",) and record.expires_at_s == expires_at.timestamp()
    assert snapshot(client).version == version
    digest = issued.virtual_key.digest
    assert pushes() == [{"kind": "key", "digest": digest, "version": 1, "keys_version": 1}]


def test_a_paused_and_a_revoked_key_stay_to_be_refused_by_name(client, project):
    virtual_key = keys.issue_virtual_key(project, "app", actor=ACTOR).virtual_key
    keys.pause_virtual_key(virtual_key, actor=ACTOR)
    assert key_record(client, virtual_key).is_paused
    keys.revoke_virtual_key(virtual_key, actor=ACTOR, reason="leaked")
    record = key_record(client, virtual_key)
    assert record.is_revoked and record.version == 3


def test_a_rotated_key_leaves_no_record_under_its_old_digest(client, pushes, project):
    virtual_key = keys.issue_virtual_key(project, "app", actor=ACTOR).virtual_key
    old_digest = virtual_key.digest
    pushes()
    keys.rotate_virtual_key(virtual_key, actor=ACTOR, reason="routine")
    assert client.hget(gate.KEYS, old_digest) is None
    assert key_record(client, virtual_key).key_id == str(virtual_key.pk)
    assert {push["digest"] for push in pushes()} == {old_digest, virtual_key.digest}


def test_a_deleted_key_is_removed(client, project):
    virtual_key = keys.issue_virtual_key(project, "app", actor=ACTOR).virtual_key
    audit.remove(virtual_key, actor=ACTOR)
    assert client.hlen(gate.KEYS) == 0


def test_rules_of_a_key_travel_with_its_record(client, project):
    virtual_key = keys.issue_virtual_key(project, "app", actor=ACTOR).virtual_key
    version = snapshot(client).version
    budget = budgets.create_budget(virtual_key, "daily", "day", Decimal("0.000000001"), actor=ACTOR, mode="soft")
    budgets.create_limit(virtual_key, "concurrency", 3, actor=ACTOR)
    record = key_record(client, virtual_key)
    (published,) = record.budgets
    assert (published.amount, published.mode, published.subject) == (1, "soft", {"key": str(virtual_key.pk)})
    assert published.time_zone == "Asia/Kolkata"
    assert [(limit.metric, limit.amount) for limit in record.limits] == [("concurrency", 3)]
    budgets.change_rule(budget, actor=ACTOR, values={"is_active": False})
    assert key_record(client, virtual_key).budgets == ()
    assert snapshot(client).version == version


def test_a_team_that_moves_takes_the_windows_of_its_keys_along(client, team, project):
    virtual_key = keys.issue_virtual_key(project, "app", actor=ACTOR).virtual_key
    budgets.create_budget(virtual_key, "daily", "day", Decimal(1), actor=ACTOR)
    audit.change(team, actor=ACTOR, values={"time_zone": "Europe/Berlin"})
    assert key_record(client, virtual_key).budgets[0].time_zone == "Europe/Berlin"


def test_what_is_rolled_back_is_not_published(client, team):
    version = snapshot(client).version
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        audit.change(team, actor=ACTOR, values={"name": "Never"})
        raise ZeroDivisionError
    assert snapshot(client).version == version
    assert not Unpublished.objects.exists()


def test_one_transaction_is_one_publication(client, pushes):
    with transaction.atomic():
        team = teams.create_team("A", "a", actor=ACTOR)
        project = teams.create_project(team, "P", "p", actor=ACTOR)
        keys.issue_virtual_key(project, "app", actor=ACTOR)
    assert [push["kind"] for push in pushes()] == ["snapshot", "key"]


def test_people_and_their_tokens_change_nothing_on_the_data_path(client, pushes):
    teams.create_user("alice", "alice@example.com", "a long password", actor=ACTOR)
    keys.issue_api_token(teams.create_service_account("ci", actor=ACTOR, scopes=[]), actor=ACTOR)
    assert pushes() == []


# Redis away, and two at once


def test_a_change_while_redis_is_away_is_saved_and_published_later(client, redis_server, monkeypatch, caplog):
    elsewhere = redis.Redis.from_url(redis_server.url, retry=None, socket_timeout=1)
    elsewhere.set(gate.EPOCH, "an epoch")
    monkeypatch.setattr(publish, "redis_client", lambda: elsewhere)
    monkeypatch.setattr("controlplane.rebuild.redis_client", lambda: elsewhere)
    redis_server.stop()
    team = teams.create_team("A", "a", actor=ACTOR)
    assert "put off" in caplog.text
    tasks.watch_epoch()
    assert Unpublished.objects.count() == 1
    redis_server.start()
    tasks.watch_epoch()
    assert str(team.pk) in snapshot(elsewhere).teams
    assert not Unpublished.objects.exists()
    elsewhere.close()


def test_nothing_is_published_into_an_empty_redis(client, team):
    client.flushall()
    audit.change(team, actor=ACTOR, values={"name": "Renamed"})
    assert client.dbsize() == 0
    assert Unpublished.objects.exists()


def test_a_publisher_that_was_overtaken_is_refused(client, team):
    newer = snapshot(client)
    older = msgspec.structs.replace(newer, version=newer.version - 1)
    with pytest.raises(publish.Superseded):
        publish.write(client, older.version, older, {})
    assert snapshot(client) == newer


def test_a_database_from_a_backup_publishes_again(client, team):
    client.hset(gate.VERSIONS, mapping={"publication": 10**9, "snapshot": 10**9})
    audit.change(team, actor=ACTOR, values={"name": "Restored"})  # The sequence is far behind: refused, and moved on.
    tasks.watch_epoch()
    assert snapshot(client).teams[str(team.pk)].name == "Restored"
    assert snapshot(client).version > 10**9


def test_concurrent_changes_all_end_up_in_force(client):
    created = [teams.create_team(f"T{n}", f"t{n}", actor=ACTOR) for n in range(8)]

    def rename(team):
        for n in range(5):
            audit.change(team, actor=ACTOR, values={"name": f"{team.slug} {n}"})
        connection.close()

    threads = [threading.Thread(target=rename, args=[team]) for team in created]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tasks.watch_epoch()
    assert {team.name for team in snapshot(client).teams.values()} == {f"t{n} 4" for n in range(8)}
    assert not Unpublished.objects.exists()


# Budgets that come when money was spent already


def counter(client, budget, time_zone="Asia/Kolkata"):
    start_s, _ = window_bounds(budget.window, time_zone, client.time()[0])
    return int(client.get(gate.spend_key(str(budget.pk), start_s)) or 0)


@pytest.fixture
def spent_already(client, project, lasting_hour):
    """A virtual key whose project has spent 7 nano-USD in this hour."""
    virtual_key = keys.issue_virtual_key(project, "app", actor=ACTOR).virtual_key
    event = UsageEvent(
        attempt_id=str(uuid.uuid4()),
        request_id=str(uuid.uuid4()),
        admitted_at_us=client.time()[0] * 1_000_000,
        team_id=str(project.team_id),
        project_id=str(project.pk),
        virtual_key_id=str(virtual_key.pk),
        cost_nanos=7,
        **dict.fromkeys(("alias", "provider", "model", "deployment", "request_model"), "x"),
    )
    client.xadd(gate.USAGE, {"worker": "w", "seq": 1, "event": encode_event(event)})
    ledger.ingest(client)
    return virtual_key


def test_a_new_budget_counts_what_its_window_has_seen(client, team, project, spent_already):
    for subject in (team, project, spent_already):
        for window in ("hour", "day", "week", "month", "quarter", "year", "total"):
            budget = budgets.create_budget(subject, "late", window, Decimal(1), actor=ACTOR)
            assert counter(client, budget) == 7


def test_a_change_never_lowers_a_counter(client, team, spent_already):
    budget = budgets.create_budget(team, "late", "hour", Decimal(1), actor=ACTOR)
    start_s, _ = window_bounds("hour", "Asia/Kolkata", client.time()[0])
    client.incrby(gate.spend_key(str(budget.pk), start_s), 100)  # Held by attempts that run.
    budgets.change_rule(budget, actor=ACTOR, values={"amount": Decimal(2)})
    assert counter(client, budget) == 107


def test_another_time_zone_is_another_window_and_counts_too(client, team, spent_already):
    of_team = budgets.create_budget(team, "team", "month", Decimal(1), actor=ACTOR)
    of_key = budgets.create_budget(spent_already, "key", "month", Decimal(1), actor=ACTOR)
    audit.change(team, actor=ACTOR, values={"time_zone": "America/New_York"})
    for budget in (of_team, of_key):
        assert counter(client, budget, "America/New_York") == 7
