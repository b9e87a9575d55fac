"""A project's part of a provider's list, over pages that are mostly others'; against a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import redis

from proxy.authenticate import Subject
from proxy.dialects import anthropic_batches, openai_batches
from proxy.dialects.stored import StoredDialect
from proxy.errors import InvalidRequest, UpstreamBroken
from proxy.jobs import StoredObject, encode_stored, stored_key
from proxy.registry import Registry
from proxy.snapshot import SCHEMA_VERSION, KeyRecord, Project, Snapshot, Team
from proxy.stored import PAGES_MAX, OwnList, Stored
from proxy.wire.redis import RedisPipeline

OWN, OTHER = "project-1", "project-2"
# What the provider has, newest first; every seventh is the project's, and one is nobody's that we know.
IDS = [f"batch_{number}" for number in range(1000)]
OWN_IDS = IDS[::7]


@pytest.fixture
async def stored(redis_url: str) -> AsyncIterator[Stored]:
    with redis.Redis.from_url(redis_url) as client:
        for upstream_id in IDS[:-1]:
            project_id = OWN if upstream_id in OWN_IDS else OTHER
            value = encode_stored(StoredObject(deployment_id="d", project_id=project_id, attempt_id="a"))
            for kind in ("batch", "message_batch"):
                client.set(stored_key(kind, upstream_id), value)
    pipeline = RedisPipeline(redis_url, timeout_s=2.0)
    pipeline.start()
    await asyncio.wait_for(pipeline.wait_until_ready(), 5)
    yield Stored(pipeline)
    await pipeline.close()


@pytest.fixture
def subject() -> Subject:
    team = Team(team_id="t", name="t")
    project = Project(project_id=OWN, team_id="t", name="p")
    key = KeyRecord(key_id="k", version=1, name="k", project_id=OWN, aliases=())
    registry = Registry(Snapshot(schema_version=SCHEMA_VERSION, version=1, published_at_s=0), lambda *_: "")
    return Subject(key, project, team, registry)


async def listed(dialect: StoredDialect, query: str, stored: Stored, subject: Subject) -> tuple[dict, int]:
    """(what the client gets, how many pages the provider was asked for)."""
    about = dialect.describe(b"", b"application/json", {"query": query} if query else {})
    own, pages = OwnList(stored, about), 0
    while not own.is_complete:
        pages += 1
        asked = {
            name: values[0]
            for name, values in parse_qs(urlsplit(own.next_page(about).parameters["path"]).query).items()
        }
        await own.take(_provider(asked), subject)
    return msgspec.json.decode(own.render()), pages


def _provider(asked: dict[str, str]) -> bytes:
    after = asked.get("after") or asked.get("after_id")
    start = IDS.index(after) + 1 if after else 0
    end = start + int(asked["limit"])
    if "before_id" in asked:
        end = IDS.index(asked["before_id"])
        start = max(end - int(asked["limit"]), 0)
    data = [{"id": upstream_id, "n": 1.50} for upstream_id in IDS[start:end]]
    return msgspec.json.encode(
        {"object": "list", "data": data, "first_id": "x", "last_id": "y", "has_more": end < len(IDS)}
    )


async def test_pages_are_read_until_there_is_enough_of_ones_own(stored, subject):
    told, pages = await listed(openai_batches.BATCHES, "limit=20", stored, subject)
    assert [one["id"] for one in told["data"]] == OWN_IDS[:20]
    assert (told["first_id"], told["last_id"], told["has_more"]) == (OWN_IDS[0], OWN_IDS[19], True)
    assert pages == 2


@pytest.mark.parametrize(
    ("dialect", "cursor"), [(openai_batches.BATCHES, "after"), (anthropic_batches.BATCHES, "after_id")]
)
async def test_whoever_goes_on_from_the_last_sees_each_once(stored, subject, dialect, cursor):
    seen: list[str] = []
    query = "limit=30"
    while True:
        told, _ = await listed(dialect, query, stored, subject)
        seen += [one["id"] for one in told["data"]]
        if not told["has_more"]:
            break
        query = f"limit=30&{cursor}={told['last_id']}"
    assert seen == OWN_IDS


async def test_backwards_there_is_one_page(stored, subject):
    told, pages = await listed(anthropic_batches.BATCHES, f"before_id={IDS[50]}", stored, subject)
    assert [one["id"] for one in told["data"]] == [name for name in IDS[:50] if name in OWN_IDS]
    assert pages == 1


async def test_the_search_has_an_end(stored, subject):
    told, pages = await listed(openai_batches.BATCHES, "limit=10000", stored, subject)
    assert pages == PAGES_MAX
    assert [one["id"] for one in told["data"]] == OWN_IDS


@pytest.mark.parametrize("limit", ["0", "-1", "x", "10001", "9" * 30])
async def test_a_limit_that_is_none_is_refused(stored, limit):
    about = openai_batches.BATCHES.describe(b"", b"application/json", {"query": f"limit={limit}"})
    with pytest.raises(InvalidRequest):
        OwnList(stored, about)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":7}', b'{"data":[{"name":"x"}]}'])
async def test_what_is_no_list_is_the_providers_failure(stored, subject, body):
    own = OwnList(stored, openai_batches.BATCHES.describe(b"", b"application/json", {}))
    with pytest.raises(UpstreamBroken):
        await own.take(body, subject)
