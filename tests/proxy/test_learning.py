"""What a call is taken to have used whose provider never said: priced, it is never less than the bill, and hardly more."""

import json
import uuid

import msgspec
import pytest

from audit.records import Usage
from budgets.pricing import Price, cost_nanos
from proxy.attempt import Attempt, Outcome
from proxy.authenticate import Subject
from proxy.describe import Described
from proxy.dialects import anthropic
from proxy.dialects.dialect import TEMPLATE_TOKENS
from proxy.estimate import BYTES_PER_TOKEN
from proxy.learning import Learning
from proxy.prepare import prepare
from proxy.providers.anthropic_answers import MessagesReader
from proxy.providers.openai_responses_answers import ResponsesReader
from proxy.providers.provider import EventMeter, StreamMeter, StreamReader
from proxy.providers.table import PROVIDERS
from proxy.registry import Registry, Upstream
from proxy.snapshot import SCHEMA_VERSION, Deployment, KeyRecord, Project, Provider, Snapshot, Team
from proxy.wire.frame import Frame

NOW_S = 1_763_640_000.0
RATES = {
    "input_nanos": 3_000_000_000,
    "output_nanos": 15_000_000_000,
    "cache_read_nanos": 300_000_000,
    "cache_write_nanos": 3_750_000_000,
    "cache_write_1h_nanos": 6_000_000_000,
    "tool_call_nanos": 10_000_000,
}
STANDARD = Price(price_id=str(uuid.uuid4()), **RATES)
ABROAD = msgspec.structs.replace(STANDARD, **{name: nanos * 11 // 10 for name, nanos in RATES.items()})
PRICE = msgspec.structs.replace(STANDARD, tiers={"fast": msgspec.structs.replace(STANDARD, input_nanos=6_000_000_000)})
INPUT_TOKENS, OUTPUT_TOKENS = 10_000, 500
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
# The provider's last word was heard: what has come is all.
CUT = Outcome(output_chunks=OUTPUT_TOKENS, output_bytes=4 * OUTPUT_TOKENS, shown_s=1.0, in_flight_s=0.0)


def subject():
    team = Team(team_id=str(uuid.uuid4()), name="t")
    project = Project(project_id=str(uuid.uuid4()), team_id=team.team_id, name="p")
    key = KeyRecord(key_id=str(uuid.uuid4()), version=1, name="k", project_id=project.project_id, aliases=())
    registry = Registry(Snapshot(schema_version=SCHEMA_VERSION, version=1, published_at_s=0), lambda *_: "")
    return Subject(key, project, team, registry)


def attempt(price, **said):
    """A request of as many bytes as `INPUT_TOKENS` tokens are taken to have."""
    deployment = Deployment(
        deployment_id="d", name="d", provider="p", model="m", upstream_model="m", price=price, max_output_tokens=4_096,
        context_window=200_000, output_is_visible=True,
    )  # fmt: skip
    upstream = Upstream(
        deployment, Provider(slug="p", api="anthropic", base_url="http://127.0.0.1"), PROVIDERS["anthropic"], []
    )
    body = {"model": "fast", "max_tokens": 4_096, "stream": True, "messages": [{"role": "user", "content": "?"}]} | said
    missing = INPUT_TOKENS * BYTES_PER_TOKEN - TEMPLATE_TOKENS - len(json.dumps(body))
    body["messages"][-1]["content"] += "a" * missing
    call = anthropic.MESSAGES.describe(json.dumps(body).encode(), b"application/json", {})
    described = Described(str(uuid.uuid4()), subject(), call, {})
    made = Attempt(prepare(described, upstream, 1), price, NOW_S, 0.0)
    made.covered_tokens = made.output_tokens_max
    return made


def charged(made, outcome=CUT, learning=None):
    return cost_nanos((learning or Learning()).usage_of(made, outcome, 1.0), made.price)


def billed(price, **used):
    return cost_nanos(Usage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, **used), price)


def is_right(charge, bill):
    return bill <= charge <= bill * 1.02


def test_a_plain_call_is_charged_what_it_has_used():
    assert charged(attempt(STANDARD)) == billed(STANDARD) == 37_500_000


def in_geo(price=STANDARD):
    return msgspec.structs.replace(price, in_geo=ABROAD)


def test_what_is_asked_for_in_a_geography_is_charged_at_its_rates():
    price = in_geo()
    bill = billed(price, inference_geo="us")
    assert bill == 41_250_000 and is_right(charged(attempt(price, inference_geo="us")), bill)
    assert charged(attempt(price, inference_geo="global")) == 37_500_000


@pytest.mark.parametrize("geo", ["us", ""])
def test_what_names_no_geography_is_served_where_others_lately_were(geo):
    price, learning = in_geo(), Learning()
    assert charged(attempt(price), learning=learning) == 41_250_000  # Nobody knows where its workspace is set to.
    usage = Usage(input_tokens=1, output_tokens=1, inference_geo=geo)
    learning.note(attempt(price), Outcome(usage=usage), 1.0)
    # What another has asked for says nothing of the workspace.
    learning.note(attempt(price, inference_geo="eu"), Outcome(usage=Usage(input_tokens=1, inference_geo="eu")), 1.0)
    assert learning.usage_of(attempt(price), CUT, 1.0).inference_geo == geo


def test_the_tier_that_is_asked_for_is_charged():
    assert charged(attempt(PRICE, speed="fast")) == billed(PRICE, service_tier="fast") > billed(PRICE)


@pytest.mark.parametrize(("runs", "expected"), [(3, 3), (0, 0), (None, 5)])
def test_runs_of_tools_are_charged_that_were_seen_else_all_that_may_be(runs, expected):
    made = attempt(STANDARD, tools=[SEARCH | {"max_uses": 5}])
    known = Usage(input_tokens=INPUT_TOKENS)
    cut = Outcome(usage_so_far=known, tool_runs=runs, **{
        name: getattr(CUT, name) for name in ("output_chunks", "output_bytes", "shown_s", "in_flight_s")
    })  # fmt: skip
    bill = billed(STANDARD, tool_calls=expected, searches=expected)
    assert charged(made, cut) == bill == 37_500_000 + expected * 10_000_000


def test_the_dearer_of_a_search_and_another_run_is_charged():
    price = msgspec.structs.replace(STANDARD, search_nanos=20_000_000)
    made = attempt(price, tools=[SEARCH | {"max_uses": 1}])
    cut = Outcome(usage_so_far=Usage(input_tokens=INPUT_TOKENS), tool_runs=1, in_flight_s=0.0)
    assert charged(made, cut) == 30_000_000 + 20_000_000


def marked(ttl, tokens, role="user"):
    text = {"type": "text", "text": "b" * (tokens * BYTES_PER_TOKEN)}
    return text | {"cache_control": {"type": "ephemeral"} | ({"ttl": ttl} if ttl else {})}


@pytest.mark.parametrize(
    ("system", "used"),
    [
        ([marked("1h", 9_000)], {"cache_write_input_tokens": 9_000, "cache_write_1h_input_tokens": 9_000}),
        ([marked("", 9_000)], {"cache_write_input_tokens": 9_000}),
        (
            [marked("1h", 4_000), marked("5m", 5_000)],
            {"cache_write_input_tokens": 9_000, "cache_write_1h_input_tokens": 4_000},
        ),
        ([{"type": "text", "text": 'say \\"cache_control\\"'}], {}),
    ],
)
def test_what_is_to_be_cached_is_charged_as_written(system, used):
    assert is_right(charged(attempt(STANDARD, system=system)), billed(STANDARD, **used))


def test_what_the_provider_has_said_of_its_cache_is_believed():
    known = Usage(input_tokens=INPUT_TOKENS, cache_read_input_tokens=9_000)
    made = attempt(STANDARD, system=[marked("1h", 9_000)])
    cut = msgspec.structs.replace(CUT, usage_so_far=known)
    assert charged(made, cut) == billed(STANDARD, cache_read_input_tokens=9_000)


def read(reader, *events):
    for event in events:
        reader.read(Frame(b"", json.dumps(event).encode(), b""))
    return EventMeter(reader).tool_runs


def test_streams_of_anthropic_show_the_searches_that_have_begun():
    def began(**block):
        return {"type": "content_block_start", "index": 1, "content_block": {"id": "x", **block}}

    search = began(type="server_tool_use", name="web_search", input={})
    others = (
        began(type="server_tool_use", name="web_fetch", input={}),
        began(type="tool_use", name="web_search", input={}),
    )
    assert read(MessagesReader(), search, *others, search) == 2
    assert read(MessagesReader()) == 0


def test_streams_of_responses_show_the_runs_that_run_and_those_that_are_billed():
    def item(event, index, **said):
        return {
            "type": f"response.output_item.{event}",
            "output_index": index,
            "item": {"type": "web_search_call"} | said,
        }

    added = [item("added", index) for index in range(3)]
    searched, opened = item("done", 0, action={"type": "search"}), item("done", 1, action={"type": "open_page"})
    assert read(ResponsesReader(), *added) == 3
    assert read(ResponsesReader(), *added, searched, opened) == 2
    assert read(ResponsesReader(), item("added", 0, type="message")) == 0


def test_what_shows_no_runs_says_so():
    assert EventMeter(StreamReader()).tool_runs is StreamMeter().tool_runs is None
