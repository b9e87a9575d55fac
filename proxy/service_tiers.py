"""Service tiers: what a request may be billed at, by what it asks for, and what an answer says it was. Pure; no I/O.

Providers have many words for the same. Ours are "" (standard) and those that prices use: batch, flex, priority, fast, ….
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from budgets.pricing import Price
from proxy.snapshot import Deployment

STANDARD = ""
# OpenAI, Anthropic, Groq, Gemini, Vertex AI; what a person may have set for the project decides about "auto".
_WORDS: Mapping[str, str] = {
    "default": STANDARD,
    "standard": STANDARD,
    "standard_only": STANDARD,
    "on_demand": STANDARD,
    "unspecified": STANDARD,
    "service_tier_unspecified": STANDARD,
    "traffic_type_unspecified": STANDARD,
    "on_demand_priority": "priority",
    "on_demand_flex": "flex",
}
_AUTO = frozenset({STANDARD, "auto", "null"})
# Never dearer than standard, whether or not the price sets them apart: cheap, or paid for beforehand.
_NEVER_DEARER = frozenset({STANDARD, "flex", "batch", "scale", "reserved", "provisioned_throughput"})
_EVERYWHERE = frozenset({"", "global", "not_available"})
_TIER_FIELDS = ("service_tier", "serviceTier", "speed")
_GEO_FIELD = "inference_geo"
_FIELDS = frozenset({*_TIER_FIELDS, _GEO_FIELD})
WORD_CHARACTERS_MAX = 64


class Asked(NamedTuple):
    """The tiers besides the standard one, and whether a geography may be, that a request may be billed for; the fields that ask
    for what the price has no rates for."""

    tiers: tuple[str, ...] = ()
    may_be_in_geo: bool = False
    unbounded: tuple[str, ...] = ()


_NOTHING = Asked()


def tier_of(said: object) -> str:
    """Of a provider's own word in an answer."""
    if not said or type(said) is not str:
        return STANDARD
    word = said[:WORD_CHARACTERS_MAX].lower()
    return STANDARD if word == "auto" else _WORDS.get(word, word)


def geo_of(said: object) -> str:
    """The geography that was paid for; "" for anywhere."""
    word = said[:WORD_CHARACTERS_MAX].lower() if type(said) is str else ""
    return "" if word in _EVERYWHERE else word


def asked(fields: Mapping[str, msgspec.Raw], deployment: Deployment) -> Asked:
    """`fields` are the top level of a request's body."""
    price = deployment.price
    if price is None or not price.price_id:
        return _NOTHING  # A fixed amount is charged, whatever is asked.
    if price.in_geo is None and not deployment.auto_tier and _FIELDS.isdisjoint(fields):
        return _NOTHING
    named = [name for name in _TIER_FIELDS if name in fields]
    tiers, unbounded = [], []
    is_auto = True
    for name in named:
        word = _word(fields[name])
        if word in _AUTO:
            continue
        is_auto = is_auto and name == "speed"
        tier = _WORDS.get(word, word)
        if tier in price.tiers:
            tiers.append(tier)
        elif tier not in _NEVER_DEARER:
            unbounded.append(name)
    if is_auto and deployment.auto_tier:
        tiers.append(deployment.auto_tier)
    may_be_in_geo = _may_be_in_geo(fields, price)
    if may_be_in_geo and price.in_geo is None:
        unbounded.append(_GEO_FIELD)
    return Asked(tuple(tiers), may_be_in_geo, tuple(unbounded))


def geo_asked(fields: Mapping[str, msgspec.Raw]) -> str | None:
    """The geography that a request names, "" for anywhere; None where it does not say: then it is where the workspace is set to."""
    word = _word(fields[_GEO_FIELD]) if _GEO_FIELD in fields else "null"
    return None if word == "null" else geo_of(word)


def _may_be_in_geo(fields: Mapping[str, msgspec.Raw], price: Price) -> bool:
    """A request that does not say is served where the workspace is set to, which may be dearer."""
    geo = geo_asked(fields)
    return price.in_geo is not None if geo is None else geo != ""


def _word(value: msgspec.Raw) -> str:
    """A value as it stands in a request; what is no text is no word that anybody knows."""
    return bytes(value)[: WORD_CHARACTERS_MAX + 2].decode("utf-8", "replace").strip('"').lower()
