"""What a client names, a counter is named by: whatever it is, the ledger stores it as it stands in that name."""

import json
import uuid

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from audit.models import UsageRecord
from audit.records import UsageEvent, encode_event
from budgets import gate, ledger
from keys.redis import redis_client
from proxy.authenticate import Subject
from proxy.describe import END_USER_HEADER, describe
from proxy.dialects import anthropic
from proxy.dialects.openai_chat import OpenAIChat
from proxy.errors import InvalidRequest
from proxy.receive import Request
from proxy.registry import Registry
from proxy.snapshot import SCHEMA_VERSION, KeyRecord, Project, Snapshot, Team

pytestmark = pytest.mark.django_db

BUDGET_ID = str(uuid.uuid4())
CHAT = {"model": "fast", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
# Also what JSON has an escape for, what looks like one, and what is half of a pair.
TEXTS = st.one_of(
    st.text(max_size=300),
    st.text(st.characters(), max_size=20),
    st.lists(st.sampled_from(["\0", "\\", "u0000", "\\u0000", "é", "😀", "\ud800", " ", "a" * 200]), max_size=6).map(
        "".join
    ),
)


def subject() -> Subject:
    team = Team(team_id=str(uuid.uuid4()), name="t")
    project = Project(project_id=str(uuid.uuid4()), team_id=team.team_id, name="p")
    key = KeyRecord(key_id=str(uuid.uuid4()), version=1, name="k", project_id=project.project_id, aliases=())
    registry = Registry(Snapshot(schema_version=SCHEMA_VERSION, version=1, published_at_s=0), lambda *_: "")
    return Subject(key, project, team, registry)


def described(dialect, body, headers=()):
    """(end user, the value of the tag), None where the client is refused."""
    request = Request({"method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": headers})
    request.body = json.dumps(CHAT | body).encode()
    try:
        found = describe(request, subject(), dialect, {})
    except InvalidRequest:
        return None
    return found.end_user, found.tags.get("customer", "")


def stored(client, named):
    """As `described` has them, from the rows that ingest has made of their events."""
    ids = [str(uuid.uuid4()) for _ in named]
    for attempt_id, (end_user, customer) in zip(ids, named, strict=True):
        event = UsageEvent(
            attempt_id=attempt_id, request_id=attempt_id, admitted_at_us=1_763_640_000_000_000, team_id=attempt_id,
            project_id=attempt_id, virtual_key_id=attempt_id, alias="fast", provider="p", model="m", deployment="d",
            request_model="m", end_user=end_user, tags={"customer": customer},
        )  # fmt: skip
        client.xadd(gate.USAGE, {"worker": "w", "seq": 0, "event": encode_event(event)})
    ledger.ingest(client)
    rows = UsageRecord.objects.in_bulk(ids, field_name="attempt_id")
    return [(rows[uuid.UUID(pk)].end_user, rows[uuid.UUID(pk)].tags["customer"]) for pk in ids]


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(["a\0b", "a\\u0000b", "\\\0", "\\\\u0000", "\0" * 257, "\ud800", "é" * 256, "a" * 257])
@given(st.lists(TEXTS, min_size=1, max_size=20))
def test_a_counter_is_named_as_the_ledger_stores_it(redis_url, texts):
    client = redis_client()
    asked = []
    for text in texts:
        header = text.encode("latin-1", "ignore").translate(None, b"\0\r\n")
        asked += [
            described(OpenAIChat(), {"user": text}),
            described(OpenAIChat(), {"metadata": {"customer": text}}),
            described(anthropic.MESSAGES, {"metadata": {"user_id": text}}),
            described(OpenAIChat(), {}, [(END_USER_HEADER, header)]),
            described(OpenAIChat(), {}, [(b"x-tollgate-tags", b"customer=" + header)]),
        ]
    named = [one for one in asked if one is not None]
    for values, kept in zip(named, stored(client, named), strict=True):
        assert gate.spend_key(BUDGET_ID, 0, *values) == gate.spend_key(BUDGET_ID, 0, *kept)
