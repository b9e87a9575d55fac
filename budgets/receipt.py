"""Receipts: of one attempt, what was counted, at which rates, and what it came to; of a request, that of all its attempts, which
deployments there were to choose from, and whose it was. Reads only.

Rates are those of the price in force when the attempt was admitted, in the provider's currency; the cost is the ledger's.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db import models

from audit.models import UsageRecord
from audit.records import PriceTerms, Usage
from budgets.models import Budget
from budgets.price_book import compiled
from budgets.pricing import TOKENS_PER_PRICING_UNIT, Rates, batch_price, rates_for
from keys.models import VirtualKey
from routing.models import Operation
from routing.price_models import Price
from teams.models import Project, Team

INPUT, OUTPUT = "Input", "Output"
CACHED = "Input read from the provider's cache"
WRITTEN_FOR_AN_HOUR = "Input written to the provider's cache for an hour"
AUDIO_INPUT, IMAGE_INPUT = "Audio input", "Image input"
AUDIO_OUTPUT, IMAGE_OUTPUT = "Audio output", "Image output"
REASONING = "Reasoning"
TOOL_CALLS, SEARCHES = "Runs of the provider's tools", "Searches"
NANO_USD = Decimal("0.000000001")
# What `UsageRecord.units` are, by the operation.
UNITS: dict[str, str] = {
    Operation.IMAGES: "Images",
    Operation.SPEECH: "Characters",
    Operation.TRANSCRIPTION: "Seconds of audio",
    Operation.RERANK: "Search units",
}

# For so long after it was made, nothing in the ledger may mean "not yet": of a stream that runs, of what is on its way.
PENDING_S = 600.0
FROM_HEADER = "header"


@dataclass(frozen=True)
class Line:
    """So many tokens at `rate` per million, or where `is_each` pieces at `rate` each; in the price's currency."""

    what: str
    number: int
    rate: Decimal
    is_each: bool = False

    @property
    def amount(self) -> Decimal:
        return self.number * self.rate / (1 if self.is_each else TOKENS_PER_PRICING_UNIT)


class Counted(NamedTuple):
    """What a budget held while an attempt ran, and what it counts of it now: US dollars, tokens or requests, by its unit. The
    ledger does not know how many tokens were held: None."""

    budget_id: UUID
    name: str
    unit: str
    held: Decimal | None
    counted: Decimal


@dataclass(frozen=True)
class Receipt:
    """`price` is None where none was in force or it is gone: then there are no lines, nor where nothing was called."""

    record: UsageRecord
    price: Price | None
    lines: tuple[Line, ...]
    rates: Rates | None = None
    budgets: tuple[Counted, ...] = ()

    @property
    def total(self) -> Decimal:
        """In the price's currency, unrounded."""
        return sum((line.amount for line in self.lines), Decimal(0))

    @property
    def usd_per_unit(self) -> Decimal | None:
        """The exchange rate that the cost was reckoned at; None in USD, and where nothing was charged."""
        if self.price is None or self.price.provider.currency == "USD" or not self.total:
            return None
        return (self.record.cost_usd / self.total).quantize(Decimal("0.000001"))

    @property
    def also_counted(self) -> list[tuple[str, int]]:
        """What has no line of its own, for want of a rate: (what, how many)."""
        lines = {line.what for line in self.lines}
        return [(what, number) for what, number in _rare(self.record) if number and what not in lines]

    @property
    def cache_saving_usd(self) -> Decimal:
        """What reading from the provider's cache has saved, against the rate of fresh input."""
        if self.rates is None or not self.is_reckoned:
            return Decimal(0)
        cheaper = _amount(self.rates.input_nanos - self.rates.cache_read_nanos)
        saved = self.record.cache_read_input_tokens * cheaper / TOKENS_PER_PRICING_UNIT
        return (saved * (self.usd_per_unit or 1)).quantize(NANO_USD)

    @property
    def is_reckoned(self) -> bool:
        """Whether the cost is the sum of the lines. In suspense it is what was held, voided nothing."""
        return self.price is not None and self.record.state == UsageRecord.State.POSTED


class Tag(NamedTuple):
    """`source` is project or key (a default), body or header."""

    key: str
    value: str
    source: str


class Step(NamedTuple):
    """One deployment that the route was chosen from. `outcome` is answered, failed, not tried, or passed over."""

    deployment: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class RequestReceipt:
    """All attempts of one request, in order, and the entries that corrected their cost later."""

    attempts: tuple[Receipt, ...]
    corrections: tuple[UsageRecord, ...]

    @property
    def last(self) -> UsageRecord:
        """What the client was answered from, or the attempt that failed last; it knows most of the route."""
        return (self._for_the_client or [receipt.record for receipt in self.attempts])[-1]

    @property
    def _for_the_client(self) -> list[UsageRecord]:
        return [receipt.record for receipt in self.attempts if receipt.record.kind != UsageRecord.Kind.SHADOW]

    @property
    def cost_usd(self) -> Decimal:
        records = (*(receipt.record for receipt in self.attempts), *self.corrections)
        return sum((record.cost_usd for record in records), Decimal(0))

    @property
    def cache_saving_usd(self) -> Decimal:
        return sum((receipt.cache_saving_usd for receipt in self.attempts), Decimal(0))

    @property
    def saved_usd(self) -> Decimal:
        """What an answer from the gateway's own cache would have cost."""
        return sum((receipt.record.saved_usd for receipt in self.attempts), Decimal(0))

    @property
    def latency_ms(self) -> int:
        """From the first attempt's admission to the last one's end."""
        first = self.attempts[0].record
        return round((self.last.admitted_at - first.admitted_at).total_seconds() * 1000) + self.last.latency_ms

    @property
    def is_settled(self) -> bool:
        """Whether it is known what everything has cost."""
        return all(receipt.record.state != UsageRecord.State.SUSPENSE for receipt in self.attempts)

    @property
    def tags(self) -> list[Tag]:
        sources = self.last.tag_sources
        return [Tag(key, value, sources.get(key, FROM_HEADER)) for key, value in self.last.tags.items()]

    @property
    def route(self) -> list[Step]:
        """In the order of trial, those passed over where they stood in it, or last."""
        tried = {record.deployment: record for record in self._for_the_client}
        if not self.last.route:
            return [Step(name, _outcome(record), "the only one") for name, record in tried.items()]
        return [
            Step(name, _outcome(tried[name]), said.get("reason", ""))
            if (name := said["deployment"]) in tried
            else Step(name, "passed over" if said.get("is_passed_over") else "not tried", said.get("reason", ""))
            for said in self.last.route
        ]

    @property
    def team(self) -> Team | None:
        return Team.objects.filter(pk=self.last.team_id).first()

    @property
    def project(self) -> Project | None:
        return Project.objects.filter(pk=self.last.project_id).first()

    @property
    def virtual_key(self) -> VirtualKey | None:
        return VirtualKey.objects.filter(pk=self.last.virtual_key_id).first()


def receipt_of_request(request_id: UUID, visible: models.QuerySet[UsageRecord]) -> RequestReceipt | None:
    """Out of the records that the caller may see; None where they have none of it."""
    records = list(visible.filter(request_id=request_id).order_by("attempt_number", "admitted_at", "attempt_id"))
    attempts = [record for record in records if record.adjusts is None]
    if not attempts:
        return None
    corrections = tuple(record for record in records if record.adjusts is not None)
    return RequestReceipt(tuple(_receipts_of(attempts)), corrections)


def may_be_pending(request_id: UUID, now_s: float | None = None) -> bool:
    """Whether the ledger may not know it *yet*. Request ids begin with when they were made (UUID version 7)."""
    made_at_s = (request_id.int >> 80) / 1000
    now_s = time.time() if now_s is None else now_s
    return request_id.version == 7 and now_s - PENDING_S < made_at_s < now_s + PENDING_S


def _outcome(record: UsageRecord) -> str:
    return "failed" if record.error_type or record.status_code >= 400 else "answered"


def _receipts_of(records: Sequence[UsageRecord]) -> Iterable[Receipt]:
    prices = Price.objects.select_related("provider").in_bulk(
        [record.price_id for record in records if record.price_id is not None]
    )
    budgets = Budget.objects.in_bulk({pk for record in records for pk in record.budget_ids})
    for record in records:
        price = prices.get(record.price_id) if record.price_id else None
        counted = tuple(_counted(record, pk, budgets.get(pk)) for pk in record.budget_ids)
        if price is None or record.kind == UsageRecord.Kind.CACHE_HIT:
            yield Receipt(record, price, (), budgets=counted)
        else:
            rates = _rates(record, price)
            yield Receipt(record, price, tuple(_lines(record, rates)), rates, counted)


def _counted(record: UsageRecord, pk: UUID, budget: Budget | None) -> Counted:
    """As the gate has counted it. A budget that was removed since has lost its name; money is told, as most budgets are in it."""
    unit = Budget.Unit.USD if budget is None else Budget.Unit(budget.unit)
    name = "" if budget is None else budget.name
    if unit == Budget.Unit.TOKENS:
        return Counted(pk, name, unit, None, Decimal(record.input_tokens + record.output_tokens))
    if unit == Budget.Unit.REQUESTS:
        return Counted(pk, name, unit, Decimal(1), Decimal(record.state != UsageRecord.State.VOIDED))
    return Counted(pk, name, unit, record.held_usd, record.cost_usd)


def receipt_of(record: UsageRecord) -> Receipt:
    (receipt,) = _receipts_of([record])
    return receipt


def attempts_of(record: UsageRecord, viewer: Any) -> list[UsageRecord]:
    """Every attempt of the record's request, in order."""
    same = UsageRecord.objects.for_user(viewer).filter(request_id=record.request_id)
    return list(same.order_by("attempt_number", "admitted_at"))


def _rates(record: UsageRecord, price: Price) -> Rates:
    """Those that the attempt was billed at: under the terms of then, of its service tier and length."""
    compiled_price = compiled(price, msgspec.convert(record.terms, PriceTerms))
    if record.operation == Operation.BATCH:
        compiled_price = batch_price(compiled_price)
    usage = Usage(**{meter: getattr(record, meter) for meter in Usage.__struct_fields__})
    return rates_for(usage, compiled_price)


def _lines(record: UsageRecord, rates: Rates) -> Iterable[Line]:
    """As `budgets.pricing.cost_nanos` reckons."""
    cached, written = record.cache_read_input_tokens, record.cache_write_input_tokens
    fresh, output = max(record.input_tokens - cached - written, 0), record.output_tokens
    hour, written = _apart(record.cache_write_1h_input_tokens, rates.cache_write_1h_nanos, written)
    heard, fresh = _apart(record.input_audio_tokens, rates.input_audio_nanos, fresh)
    seen, fresh = _apart(record.input_image_tokens, rates.input_image_nanos, fresh)
    spoken, output = _apart(record.output_audio_tokens, rates.output_audio_nanos, output)
    drawn, output = _apart(record.output_image_tokens, rates.output_image_nanos, output)
    thought, output = _apart(record.reasoning_tokens, rates.reasoning_nanos, output)
    searches, tools = _apart(record.searches, rates.search_nanos, record.tool_calls)
    for what, tokens, nanos in (
        (INPUT, fresh, rates.input_nanos),
        (AUDIO_INPUT, heard, rates.input_audio_nanos),
        (IMAGE_INPUT, seen, rates.input_image_nanos),
        (CACHED, cached, rates.cache_read_nanos),
        ("Input written to the provider's cache", written, rates.cache_write_nanos),
        (WRITTEN_FOR_AN_HOUR, hour, rates.cache_write_1h_nanos),
        (OUTPUT, output, rates.output_nanos),
        (REASONING, thought, rates.reasoning_nanos),
        (AUDIO_OUTPUT, spoken, rates.output_audio_nanos),
        (IMAGE_OUTPUT, drawn, rates.output_image_nanos),
    ):
        if nanos is not None and (tokens or what in (INPUT, OUTPUT)):
            yield Line(what, tokens, _amount(nanos))
    for what, number, nanos in (
        ("Request", record.batch_requests or 1, rates.request_nanos),
        (TOOL_CALLS, tools, rates.tool_call_nanos),
        (SEARCHES, searches, rates.search_nanos),
        (_units(record), record.units, rates.unit_nanos),
    ):
        if number and nanos:
            yield Line(what, number, _amount(nanos), is_each=True)


def _amount(nanos: int) -> Decimal:
    return (Decimal(nanos) * NANO_USD).normalize()


def _apart(tokens: int, rate: int | None, among: int) -> tuple[int, int]:
    """(how many have a rate of their own, how many of `among` are left at the common one)."""
    apart = 0 if rate is None else min(tokens, among)
    return apart, among - apart


def _rare(record: UsageRecord) -> Iterable[tuple[str, int]]:
    """The meters that few records have."""
    yield WRITTEN_FOR_AN_HOUR, record.cache_write_1h_input_tokens
    yield AUDIO_INPUT, record.input_audio_tokens
    yield IMAGE_INPUT, record.input_image_tokens
    yield AUDIO_OUTPUT, record.output_audio_tokens
    yield IMAGE_OUTPUT, record.output_image_tokens
    yield TOOL_CALLS, record.tool_calls
    yield SEARCHES, record.searches
    yield _units(record), record.units


def _units(record: UsageRecord) -> str:
    return UNITS.get(record.operation, "Units")
