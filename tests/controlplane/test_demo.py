"""The demo organisation: made once, kept as people change it, reachable again when its file is lost."""

import json
import stat
from decimal import Decimal

import pytest
import redis
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from audit.models import UsageRecord
from budgets import ledger
from controlplane import compiler
from controlplane.demo import FACTS, KNOWN_PROVIDERS, Addresses, seed
from keys import services as keys
from keys.models import UpstreamCredential, VirtualKey
from keys.tokens import digest
from routing.apis import APIS
from routing.models import ModelAlias, Provider
from routing.price_models import Price
from teams.models import ApiToken, Project, Team, User

pytestmark = pytest.mark.django_db

ADDRESSES = Addresses("http://127.0.0.1:8000/admin/", "http://127.0.0.1:8080/v1", "http://127.0.0.1:9000/v1")
SOMEBODY = Actor.system("somebody")


@pytest.fixture
def facts_file(tmp_path, redis_url):
    return tmp_path / "demo.json"


def seeded(facts_file, addresses=ADDRESSES, **environ):
    seed(facts_file, addresses, environ)
    return json.loads(facts_file.read_text())


def test_the_file_holds_every_fact_and_is_private(facts_file):
    facts = seeded(facts_file)
    assert set(facts) == set(FACTS)
    assert stat.S_IMODE(facts_file.stat().st_mode) == 0o600
    assert VirtualKey.objects.get(digest=digest(facts["virtual_key"])).aliases == ["*"]
    assert ApiToken.objects.get(digest=digest(facts["api_token"])).is_usable
    assert User.objects.get(username=facts["username"]).check_password(facts["password"])
    assert ModelAlias.objects.filter(name=facts["model"]).exists()
    assert Project.objects.filter(team__name=facts["team"], name=facts["project"]).exists()


def test_a_second_start_makes_nothing_again(facts_file):
    first = seeded(facts_file)
    assert seeded(facts_file) == first
    assert Team.objects.count() == 2
    assert VirtualKey.objects.count() == 4


def test_what_people_changed_stays(facts_file):
    facts = seeded(facts_file)
    user = User.objects.get(username=facts["username"])
    user.set_password("a password of one's own")
    user.save()
    virtual_key = VirtualKey.objects.get(digest=digest(facts["virtual_key"]))
    keys.revoke_virtual_key(virtual_key, actor=SOMEBODY, reason="it leaked")
    seeded(facts_file)
    assert User.objects.get(username=facts["username"]).check_password("a password of one's own")
    assert VirtualKey.objects.get(pk=virtual_key.pk).revoked_at is not None


def test_a_lost_file_gives_access_anew(facts_file):
    first = seeded(facts_file)
    facts_file.unlink()
    second = seeded(facts_file)
    assert first["virtual_key"] != second["virtual_key"]
    assert User.objects.get(username=second["username"]).check_password(second["password"])


def test_the_file_of_another_database_is_not_believed(facts_file):
    facts_file.write_text(json.dumps({"password": "old", "api_token": "tgapi-old", "virtual_key": "tg-old"}))
    facts = seeded(facts_file)
    assert VirtualKey.objects.filter(digest=digest(facts["virtual_key"])).exists()


def test_the_simulator_is_found_where_it_is_now(facts_file):
    seeded(facts_file)
    seeded(facts_file, ADDRESSES._replace(simulator_url="http://127.0.0.1:9001/v1"))
    assert Provider.objects.get(slug="simulator").base_url == "http://127.0.0.1:9001/v1"
    assert Provider.objects.get(slug="simulator-gemini").base_url == "http://127.0.0.1:9001/gemini/v1beta"


def test_every_way_to_speak_to_a_model_has_a_simulated_provider_with_a_price_and_an_alias(facts_file):
    seeded(facts_file)
    published = compiler.compile_snapshot(1, timezone.now())
    aliases = {"demo-claude", "demo-gemini", "demo-bedrock", "demo-cohere", "demo-ollama"}
    assert aliases < published.aliases.keys()
    for name in aliases:
        (target,) = published.aliases[name].targets
        deployment = published.deployments[target.deployment_id]
        assert deployment.price is not None and deployment.credentials
        assert (
            published.providers[deployment.provider].slug == f"simulator-{published.providers[deployment.provider].api}"
        )


def test_a_known_provider_is_spoken_to_in_its_own_api_at_its_public_address(facts_file):
    environ = {known.environment_variable: "sk-not-a-real-key" for known in KNOWN_PROVIDERS}
    seeded(facts_file, **environ)
    for known in KNOWN_PROVIDERS:
        provider = Provider.objects.get(slug=known.api)
        assert (provider.api, provider.base_url) == (known.api, APIS[known.api].base_url)
    haiku = Price.objects.get(model__name="claude-haiku-4-5")
    assert (haiku.cache_write, haiku.cache_write_1h, haiku.batch_percent) == (Decimal("1.25"), 2, 50)


def test_a_provider_key_of_the_environment_is_sealed_and_its_models_have_aliases_and_prices(facts_file):
    seeded(facts_file)
    assert not Provider.objects.filter(slug="openai").exists()
    seeded(facts_file, OPENAI_API_KEY="sk-not-a-real-key")
    seeded(facts_file, OPENAI_API_KEY="sk-not-a-real-key")
    credential = UpstreamCredential.objects.get(pool__provider="openai")
    assert keys.reveal_credential(credential).reveal() == "sk-not-a-real-key"
    assert "sk-not" not in credential.sealed
    models = set(Price.objects.filter(provider__slug="openai").values_list("model__name", flat=True))
    assert models <= set(ModelAlias.objects.values_list("name", flat=True))


def test_access_can_be_given_after_the_organisation_was_changed(facts_file):
    seeded(facts_file)
    facts_file.unlink()
    user = User.objects.get()
    audit.change(user, actor=SOMEBODY, values={"username": "root"})
    facts = seeded(facts_file)
    assert User.objects.get(username=facts["username"]).check_password(facts["password"])


def test_past_usage_is_in_the_ledger_once_and_says_that_it_is_scenery(facts_file, redis_url):
    seeded(facts_file)
    seeded(facts_file)
    with redis.Redis.from_url(redis_url) as client:
        told = client.xlen("tg:usage")
        assert ledger.ingest(client) == told
    assert UsageRecord.objects.count() == told > 1_000
    assert not UsageRecord.objects.exclude(tags__demo="true").exists()
    assert UsageRecord.objects.filter(cost_usd__gt=0).exists()
    assert not UsageRecord.objects.filter(admitted_at__gt=timezone.now()).exists()
