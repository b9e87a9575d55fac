"""What recorded exchanges cost, each worked out by hand: the providers of which no other list tells, and what `test_cost.py` leaves out:
searches, units of their own, a price for each request.

The prices are round ones near those of the makers, in USD per 1,000,000 tokens. What is expected is in nano-USD: so much for one token is
a thousand times the dollars for a million.
"""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pytest

from audit.records import Usage
from budgets.price_book import nanos
from budgets.pricing import Price, cost_nanos
from tests.recordings.corpus import ABSENT, Recording, recordings
from tests.recordings.foreign import DIALECTS
from tests.recordings.gateway import RecordedGateway

# How Cohere's clients ask for what no client here has a dialect for.
ASKED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ollama-chat": ("/v2/chat", DIALECTS["cohere.chat"].body),
    "ollama-embed": ("/v2/embed", {"texts": ["Hello"], "input_type": "search_query", "embedding_types": ["float"]}),
    "rerank": ("/v2/rerank", {"query": "Who?", "documents": ["a", "b", "c"]}),
}
RECORDED = {recording.recording_id: recording for recording in recordings()}


def price(input: str = "0", output: str = "0", *, cached: str | None = None, **more: str) -> Price:
    """`more` are rates by their names in `Price`: for a request, a search or a unit, the dollars of one."""
    return Price(
        price_id="by hand",
        input_nanos=nanos(Decimal(input)),
        output_nanos=nanos(Decimal(output)),
        cache_read_nanos=nanos(Decimal(cached or input)),
        cache_write_nanos=nanos(Decimal(input)),
        **{name: nanos(Decimal(amount)) for name, amount in more.items()},
    )


class Golden(NamedTuple):
    recording_id: str
    price: Price
    expected_nanos: int


SONAR = price("1", "1", request_nanos="0.005")
COMPOUND = price("0.15", "0.60", search_nanos="0.008")
GOLDEN = (
    # Cohere bills less than was read: `billed_units`, not `tokens`, and nothing apart for what was cached.
    Golden("cohere-chat-v2-cached-a0abeb", price("0.15", "0.60"), 377 * 150 + 102 * 600),
    Golden("cohere-chat-v2-reasoning-cached-2710d2", price("2.50", "10"), 8 * 2_500 + 50 * 10_000),
    Golden("cohere-chat-v2-stream-tools-cached-8b6b91", price("2.50", "10"), 44 * 2_500 + 28 * 10_000),
    Golden("cohere-chat-v2-tools-reasoning-cached-017835", price("2.50", "10"), 80 * 2_500 + 301 * 10_000),
    Golden("cohere-embed-plain-319332", price("0.10"), 2 * 100),
    Golden("cohere-embed-plain-a3405a", price("0.10", unit_nanos="0.0001"), 1 * 100_000),  # An image.
    Golden("cohere-rerank-plain-93925e", price(unit_nanos="0.002"), 1 * 2_000_000),  # A search.
    # Of Mistral's 144 tokens 112 were cached. It tells so in three ways, and counts sound beside the prompt: 11 + 375.
    Golden(
        "mistral-chat-completions-tools-cached-9da189",
        price("0.10", "0.30", cached="0.01"),
        32 * 100 + 112 * 10 + 28 * 300,
    ),
    Golden(
        "mistral-chat-completions-stream-parallel-tools-cached-381d21",
        price("0.10", "0.30", cached="0.01"),
        32 * 100 + 128 * 10 + 19 * 300,
    ),
    Golden(
        "mistral-chat-completions-tools-tool-result-280ceb",
        price("2", "6", cached="0.20"),
        1 * 2_000 + 174 * 200 + 39 * 6_000,
    ),
    Golden(
        "mistral-chat-completions-audio-cached-a79651",
        price("0.10", "0.30", cached="0.01", input_audio_nanos="2"),
        2 * 100 + 9 * 10 + 375 * 2_000 + 15 * 300,
    ),
    Golden("mistral-chat-completions-stream-reasoning-10aecf", price("2", "5"), 10 * 2_000 + 46 * 5_000),
    Golden("mistral-embeddings-plain-a07a23", price("0.10"), 5 * 100),
    # Groq: half a nano for each cached token; compound models run tools by themselves. The second visited a page
    # besides, which counts as a search too: not told apart, and never less.
    Golden("groq-chat-completions-tools-d55822", price("1", "3"), 93 * 1_000 + 32 * 3_000),
    Golden(
        "groq-chat-completions-reasoning-cached-truncated-6fe1e5",
        price("0.075", "0.30", cached="0.0375"),
        3 * 75 + 1_792 // 2 * 75 + 16 * 300,
    ),
    Golden(
        "groq-chat-completions-stream-reasoning-cached-truncated-b67a27",
        price("0.075", "0.30", cached="0.0375"),
        3 * 75 + 1_792 // 2 * 75 + 16 * 300,
    ),
    Golden(
        "groq-chat-completions-stream-tools-tool-result-reasoning-bf26bc",
        price("0.15", "0.60"),
        304 * 150 + 49 * 600,
    ),
    Golden("groq-chat-completions-reasoning-5aea2e", COMPOUND, 5_296 * 150 + 387 * 600 + 1 * 8_000_000),
    Golden("groq-chat-completions-reasoning-ff01a4", COMPOUND, 14_100 * 150 + 921 * 600 + 2 * 8_000_000),
    Golden("voyage-rerank-plain-6d8b86", price("0.02"), 43 * 20),
    # Perplexity: every request is a search. A stream tells its count again and again; the last is all of it.
    Golden("perplexity-chat-completions-citations-accef9", SONAR, 5_000_000 + 50 * 1_000 + 48 * 1_000),
    Golden("perplexity-chat-completions-stream-citations-266f99", SONAR, 5_000_000 + 12 * 1_000 + 43 * 1_000),
    Golden("together-chat-completions-tools-b3a2a7", price("0.88", "0.88"), 350 * 880),
    Golden("together-completions-truncated-bdaa9c", price("0.60", "0.60"), 10 * 600 + 512 * 600),
    # What one's own servers cost, Ollama's counts in both of its APIs.
    Golden("ollama-ollama-chat-stream-tools-f6d699", price("0.05", "0.20"), 307 * 50 + 308 * 200),
    Golden("ollama-ollama-chat-tools-reasoning-7addc2", price("0.05", "0.20"), 310 * 50 + 145 * 200),
    Golden("ollama-chat-completions-tools-7ce0b8", price("0.05", "0.20"), 158 * 50 + 18 * 200),
    Golden("ollama-ollama-embed-plain-e6e3d2", price("0.01"), 2 * 10),
    Golden("ollama-cloud-chat-completions-tools-tool-result-ce1158", price("0.15", "0.60"), 251 * 150 + 15 * 600),
    Golden("huggingface-chat-completions-json-schema-0947c2", price("0.02", "0.05"), 272 * 20 + 19 * 50),
    Golden("huggingface-chat-completions-stream-image-29ec96", price("0.20", "0.20"), 33 * 200 + 16 * 200),
    Golden("huggingface-chat-completions-tool-result-a2076e", price("1", "3"), 299 * 1_000 + 29 * 3_000),
)


@pytest.mark.skipif(not RECORDED, reason=ABSENT)
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.recording_id)
def test_a_recorded_exchange_costs_what_was_worked_out_by_hand(golden: Golden, gateway: RecordedGateway) -> None:
    assert cost_nanos(_booked(RECORDED[golden.recording_id], gateway), golden.price) == golden.expected_nanos


@pytest.mark.skipif(not RECORDED, reason=ABSENT)
def test_perplexity_says_the_same_cost(gateway: RecordedGateway) -> None:
    """Rounded by it, to a hundred-thousandth of a dollar."""
    recording = RECORDED["perplexity-chat-completions-citations-accef9"]
    said = json.loads(recording.body)["usage"]["cost"]["total_cost"]
    assert round(cost_nanos(_booked(recording, gateway), SONAR) / 1e9, 5) == said


def _booked(recording: Recording, gateway: RecordedGateway) -> Usage:
    """By the provider's word, as the ledger is told."""
    name, asked = gateway.places[recording.number].name, ASKED.get(recording.api)
    if recording.provider == "cohere" or asked is None:
        event = gateway.replay(recording).event
    else:
        path, body = asked
        event = gateway.translate(recording, path, {**body, "model": name, "stream": recording.is_stream}).event
    assert event is not None and event["usage_source"] == "provider"
    return msgspec.convert(event["usage"], Usage)
