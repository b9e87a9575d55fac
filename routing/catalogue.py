"""Prices as the `genai-prices` package lists them, told in the words of our price book, and how they differ from it.

The list is data that ships with the package: nothing here asks the network, and nothing is in force before a person approves it.
No Django, no clock.
"""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, time
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple
from uuid import UUID

from genai_prices import data_snapshot
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, StartDateConstraint, TieredPrices

CURRENCY = "USD"
DIGITS = Decimal("0.000000001")
PER_THOUSAND, PER_MILLION, SECONDS_PER_HOUR = 1_000, 1_000_000, 3_600

# Our field, and by what the listed amount is divided.
_FIELDS: Mapping[str, tuple[str, int]] = {
    "input_mtok": ("input", 1),
    "output_mtok": ("output", 1),
    "cache_read_mtok": ("cached_input", 1),
    "cache_write_mtok": ("cache_write", 1),
    "cache_write_1h_mtok": ("cache_write_1h", 1),
    "output_reasoning_mtok": ("reasoning", 1),
    "input_audio_mtok": ("input_audio", 1),
    "input_image_mtok": ("input_image", 1),
    "output_audio_mtok": ("output_audio", 1),
    "output_image_mtok": ("output_image", 1),
    "requests_kcount": ("per_request", PER_THOUSAND),
    "web_searches_kcount": ("per_search", PER_THOUSAND),
    "storage_searches_kcount": ("per_tool_call", PER_THOUSAND),
    "audio_hours": ("per_unit", SECONDS_PER_HOUR),
    "input_mchars": ("per_unit", PER_MILLION),
}
# What follows from the others, and is no loss when it is left out.
_IMPLIED = frozenset({"input_audio_hours"})
# By the word of `routing.apis`; elsewhere the provider is known by its address.
_PROVIDERS: Mapping[str, str] = {
    "openai": "openai",
    "azure": "azure",
    "anthropic": "anthropic",
    "gemini": "google",
    "vertex": "google",
    "bedrock": "aws",
    "mistral": "mistral",
    "groq": "groq",
    "deepseek": "deepseek",
    "xai": "x-ai",
    "together": "together",
    "perplexity": "perplexity",
    "openrouter": "openrouter",
    "cohere": "cohere",
    "cerebras": "cerebras",
    "voyage": "voyageai",
}
_STANDARD = frozenset({"", "default", "standard", "auto"})
_ORDER = [field.replace("_", " ") for field in dict.fromkeys(field for field, _ in _FIELDS.values())]
DEFAULTS: Mapping[str, str] = {"per_request": "0", "per_tool_call": "0", "per_unit": "0"}

# Fields of a price, amounts as text, and under "tiers" a list of those of a tier.
Rates = dict[str, Any]


class Sold(NamedTuple):
    """A model at a provider here, and the rates that are in force for it; None where there are none."""

    model_id: UUID
    provider_id: UUID
    upstream_model: str
    api: str
    base_url: str
    current: Rates | None


class Proposed(NamedTuple):
    """`differences` are [what, before, after]; `remarks` what the list says and our price cannot."""

    model_id: UUID
    provider_id: UUID
    effective_from: datetime
    rates: Rates
    differences: list[list[str | None]]
    remarks: list[str]


def source() -> str:
    return f"genai-prices {importlib.metadata.version('genai-prices')}"


def propose(sold: Iterable[Sold], now: datetime) -> list[Proposed]:
    """What the list says otherwise than we do: of today, or where that is the same, of the next day that it names."""
    proposed = []
    for one in sold:
        info = find(one.api, one.base_url, one.upstream_model)
        if info is None:
            continue
        for moment in (now, *_later(info, now)):
            rates, remarks = rates_at(info, moment)
            if rates is None:
                break
            kept = {"geo_percent": one.current["geo_percent"]} if one.current else {}  # The list does not know it.
            differences = differ(one.current, rates | kept)
            if differences:
                proposed.append(Proposed(one.model_id, one.provider_id, moment, rates | kept, differences, remarks))
                break
    return proposed


def find(api: str, base_url: str, upstream_model: str) -> ModelInfo | None:
    try:
        _, info = data_snapshot.get_snapshot().find_provider_model(
            upstream_model, None, _PROVIDERS.get(api), base_url or None
        )
    except LookupError:
        return None
    return info


def rates_at(info: ModelInfo, moment: datetime) -> tuple[Rates | None, list[str]]:
    """(the rates, what could not be told). None where the list does not say what tokens, seconds or characters cost."""
    remarks: list[str] = []
    standard = _in_force(info, moment, remarks)
    base, longer = _told(standard, remarks)
    if not {"input", "output", "per_unit", "per_request"} & base.keys():
        return None, remarks
    if "per_search" in base:
        base.setdefault("per_tool_call", base["per_search"])  # Of another tool's run nothing is said.
    rates: Rates = {
        **DEFAULTS,
        "input": "0",
        "output": "0",
        **base,
        "batch_percent": 100,
        "geo_percent": 100,
        "tiers": [],
    }
    for name in ("cached_input", "cache_write"):
        rates.setdefault(name, rates["input"])
    _add_tier(rates["tiers"], "", {}, longer)
    for name, prices in _variants(info, moment, remarks):
        _add_tier(rates["tiers"], name, *_told(prices, remarks))
    return rates, sorted(set(remarks))


def _add_tier(tiers: list[dict[str, Any]], name: str, base: Mapping[str, str], longer: Mapping[int, Any]) -> None:
    if name and base:
        tiers.append({"service_tier": name, "above_input_tokens": 0, "percent": 100, "rates": dict(base)})
    for above, amounts in sorted(longer.items()):
        tiers.append({"service_tier": name, "above_input_tokens": above, "percent": 100, "rates": dict(base) | amounts})


def _in_force(info: ModelInfo, moment: datetime, remarks: list[str]) -> ModelPrice:
    if isinstance(info.prices, ModelPrice):
        return info.prices
    dated = [one for one in info.prices if one.constraint is None or isinstance(one.constraint, StartDateConstraint)]
    if len(dated) < len(info.prices):
        remarks.append("prices by the time of day are left out: the standard ones hold all day")
    active = [one for one in dated if one.constraint is None or one.constraint.active(moment)]
    return (active or dated or info.prices)[-1 if active else 0].prices


def _variants(info: ModelInfo, moment: datetime, remarks: list[str]) -> Iterable[tuple[str, ModelPrice]]:
    for variant in info.price_variants or ():
        if variant.constraint is not None and not variant.constraint.active(moment):
            continue
        (name, word), *more = variant.when.items()
        if more or name not in ("processing", "service_tier", "speed"):
            remarks.append(f"prices where {variant.when} are left out")
        elif word not in _STANDARD:
            yield word, variant.prices


def _told(price: ModelPrice, remarks: list[str]) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    """(amounts by our field, those above each length of input)."""
    base: dict[str, Decimal] = {}
    longer: dict[int, dict[str, Decimal]] = {}
    listed = {name: value for name, value in vars(price).items() if value is not None and not name.startswith("_")}
    starts = sorted(
        {tier.start for value in listed.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    )
    for name, value in listed.items():
        field, divisor = _FIELDS.get(name, ("", 1))
        if not field:
            if name not in _IMPLIED:
                remarks.append(f"{name} is left out: no rate here says it")
            continue
        plain = value.base if isinstance(value, TieredPrices) else value
        base[field] = plain / divisor
        for start in starts:
            longer.setdefault(start, {})[field] = _above(value, start) / divisor
    return _texts(base), {start: _texts(amounts) for start, amounts in longer.items()}


def _above(value: Decimal | TieredPrices, start: int) -> Decimal:
    if not isinstance(value, TieredPrices):
        return value
    reached = [tier.price for tier in value.tiers if tier.start <= start]
    return reached[-1] if reached else value.base


def _texts(amounts: Mapping[str, Decimal]) -> dict[str, str]:
    return {name: text_of(amount) for name, amount in amounts.items()}


def text_of(amount: Decimal) -> str:
    """Rounded up to what a price can hold, without zeros at its end."""
    return f"{amount.quantize(DIGITS, ROUND_CEILING).normalize():f}"


def _later(info: ModelInfo, now: datetime) -> Sequence[datetime]:
    """The days to come on which the list says that something changes."""
    conditional: list[Any] = [one for one in _listed(info) if one.constraint is not None]
    days = {one.constraint.start_date for one in conditional if isinstance(one.constraint, StartDateConstraint)}
    moments = sorted(datetime.combine(day, time(), tzinfo=UTC) for day in days)
    return [moment for moment in moments if moment > now]


def _listed(info: ModelInfo) -> list[Any]:
    prices: list[ConditionalPrice] = info.prices if isinstance(info.prices, list) else []
    return [*prices, *(info.price_variants or ())]


# Compared with ours, and read back


def differ(current: Rates | None, rates: Rates) -> list[list[str | None]]:
    before, after = _flat(current) if current else {}, _flat(rates)
    names = sorted(dict.fromkeys([*after, *before]), key=_place)
    return [[name, before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)]


def _place(name: str) -> tuple[str, int]:
    """The price's own rates first, in the order of its form; then tier by tier."""
    tier, _, rate = name.rpartition(": ")
    return tier, _ORDER.index(rate) if rate in _ORDER else len(_ORDER)


def _flat(rates: Rates) -> dict[str, str]:
    """Every amount by a name that a person reads: a tier's rates where they are not those that it would have anyway."""
    flat = {
        name.replace("_", " "): str(value) for name, value in rates.items() if name != "tiers" and value is not None
    }
    for tier in rates["tiers"]:
        words = [tier["service_tier"]] if tier["service_tier"] else []
        if tier["above_input_tokens"]:
            words.append(f"above {tier['above_input_tokens']:,}")
        if tier["percent"] != 100:
            flat[f"{', '.join(words)}: percent"] = str(tier["percent"])
        for name, amount in tier["rates"].items():
            flat[f"{', '.join(words)}: {name.replace('_', ' ')}"] = amount
    return flat


def rates_of(price: Any) -> Rates:
    """Of a row of the price book, as the list's are told; `price.tiers` with it."""
    rates: Rates = _given(price) | {"batch_percent": price.batch_percent, "geo_percent": price.geo_percent}
    rates["tiers"] = [
        {
            "service_tier": tier.service_tier,
            "above_input_tokens": tier.above_input_tokens,
            "percent": tier.percent,
            "rates": _given(tier),
        }
        for tier in price.tiers.all()
    ]
    return rates


def _given(row: Any) -> dict[str, Any]:
    fields = dict.fromkeys(field for field, _ in _FIELDS.values())
    return {name: text_of(amount) for name in fields if (amount := getattr(row, name)) is not None}


def amounts(rates: Rates) -> dict[str, Any]:
    """The fields of a price, but for its tiers."""
    return {
        name: value if isinstance(value, int) else Decimal(value) for name, value in rates.items() if name != "tiers"
    }


def tiers(rates: Rates) -> list[dict[str, Any]]:
    return [tier | {"rates": {name: Decimal(text) for name, text in tier["rates"].items()}} for tier in rates["tiers"]]
