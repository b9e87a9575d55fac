"""What recorded exchanges cost: reckoned by the price book from each provider's usage object, and by `genai-prices` on its own from
the same object. Only tokens: how often tools ran stands in the answers themselves.

That the ledger books the usage that is taken here is `test_replay.py`'s.
"""

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

import pytest
from genai_prices import data_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider

from budgets.price_book import compiled, usd
from budgets.pricing import cost_nanos
from routing import catalogue
from routing.price_models import Price, PriceTier
from tests.recordings.billed import recorded_usage
from tests.recordings.corpus import KINDS, Recording, parameters, recordings

NOW = datetime(2026, 11, 20, tzinfo=UTC)
TOOLS = ("web_searches_kcount", "storage_searches_kcount")
# How the list calls the shape of each API's usage, and where it looks for it.
FLAVOURS: Mapping[str, tuple[str, str]] = {
    "chat-completions": ("chat", "usage"),
    "responses": ("responses", "usage"),
    "messages": ("default", "usage"),
    "generate-content": ("default", "usageMetadata"),
    "converse": ("default", "usage"),
    "embeddings": ("embeddings", "usage"),
}
# How Gemini numbers modalities where it does not name them.
MODALITIES: Mapping[object, str] = {1: "TEXT", 2: "IMAGE", 3: "VIDEO", 4: "AUDIO"}
# Where the list reads less than the provider bills, and ours is meant to differ.
BESIDE = "cached tokens stand beside the prompt's, and the list takes them for a part of those"
THOUGHTS = "thoughts stand in the total alone, and the list takes no count from there"
EXCEPTIONS: Mapping[str, str] = {
    "azure-chat-completions-json-mode-cached-0f7642": BESIDE,
    "azure-chat-completions-parallel-tools-cached-de8b4b": BESIDE,
    "azure-chat-completions-stream-tool-result-cached-05a21c": BESIDE,
    "azure-chat-completions-stream-tools-tool-result-cached-66ef0c": BESIDE,
    "gemini-chat-completions-tool-result-reasoning-43d283": THOUGHTS,
    "gemini-chat-completions-tools-reasoning-a00672": THOUGHTS,
}


def listed(recording: Recording) -> tuple[Provider, ModelInfo] | None:
    """Whose price it is, where the list knows the model and can read the usage."""
    if recording.status != 200 or recording.api not in FLAVOURS or not recording.meta.get("model"):
        return None
    name = catalogue._PROVIDERS.get(KINDS.get(recording.provider, recording.provider))
    if name is None or recorded_usage(recording) is None:
        return None
    try:
        provider, info = data_snapshot.get_snapshot().find_provider_model(recording.meta["model"], None, name, None)
    except LookupError:
        return None
    shapes = {(extractor.api_flavor, str(extractor.root)) for extractor in provider.extractors or ()}
    is_priced = catalogue.rates_at(info, NOW)[0] is not None
    return (provider, info) if is_priced and FLAVOURS[recording.api] in shapes else None


KNOWN = [recording for recording in recordings() if listed(recording) is not None]


def ours(recording: Recording, info: ModelInfo) -> Decimal:
    rates, _ = catalogue.rates_at(info, NOW)
    assert rates is not None
    amounts = catalogue.amounts(rates) | {"per_tool_call": Decimal(0), "per_search": Decimal(0)}
    tiers = [
        PriceTier(**{name: tier[name] for name in ("service_tier", "above_input_tokens", "percent")}, **tier["rates"])
        for tier in catalogue.tiers(rates)
    ]
    usage = recorded_usage(recording)
    assert usage is not None
    return usd(cost_nanos(usage, compiled(Price(**amounts), tiers=tiers)))


def theirs(recording: Recording, provider: Provider, info: ModelInfo) -> Decimal:
    flavour, root = FLAVOURS[recording.api]
    said: dict[str, Any] = {}
    for usage in recording.meta["usage"]:
        said.update({name: _worded(value) for name, value in (usage or {}).items() if value is not None})
    _, usage = provider.extract_usage({"model": recording.meta["model"], root: said}, api_flavor=flavour)
    price: ModelPrice = copy.copy(info.get_prices(NOW))
    for name in TOOLS:
        price.__dict__.pop(name, None)
    return Decimal(price.calc_price(usage)["total_price"])


def _worded(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [
        one | {"modality": MODALITIES.get(one["modality"], one["modality"])} if "modality" in one else one
        for one in value
    ]


@pytest.mark.parametrize("recording", parameters(KNOWN))
def test_a_recorded_exchange_costs_what_the_list_reckons(recording: Recording) -> None:
    found = listed(recording)
    assert found is not None
    reckoned = ours(recording, found[1])
    if recording.recording_id in EXCEPTIONS:
        assert reckoned > _if_readable(recording, *found), "no exception any more"
    else:
        assert reckoned == theirs(recording, *found).quantize(Decimal("0.000000001"), ROUND_CEILING)


def _if_readable(recording: Recording, provider: Provider, info: ModelInfo) -> Decimal:
    try:
        return theirs(recording, provider, info)
    except ValueError:
        return Decimal(0)
