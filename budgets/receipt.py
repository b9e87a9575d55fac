"""The receipt of one usage record: what was counted, at which rates, and what it came to. Reads only.

Rates are those of the price in force when the attempt was admitted, in the provider's currency; the cost is the ledger's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from audit.models import UsageRecord
from budgets.pricing import TOKENS_PER_PRICING_UNIT
from routing.models import Operation, Price

INPUT, OUTPUT = "Input", "Output"
WRITTEN_FOR_AN_HOUR = "Input written to the provider's cache for an hour"
AUDIO_INPUT, IMAGE_INPUT = "Audio input", "Image input"
AUDIO_OUTPUT, IMAGE_OUTPUT = "Audio output", "Image output"
TOOL_CALLS = "Runs of the provider's tools"
# What `UsageRecord.units` are, by the operation.
UNITS: dict[str, str] = {
    Operation.IMAGES: "Images",
    Operation.SPEECH: "Characters",
    Operation.TRANSCRIPTION: "Seconds of audio",
    Operation.RERANK: "Search units",
}


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


@dataclass(frozen=True)
class Receipt:
    """`price` is None where none was in force or it is gone: then there are no lines."""

    record: UsageRecord
    price: Price | None
    lines: tuple[Line, ...]

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
    def is_reckoned(self) -> bool:
        """Whether the cost is the sum of the lines. In suspense it is what was held, voided nothing."""
        return self.price is not None and self.record.state == UsageRecord.State.POSTED


def receipt_of(record: UsageRecord) -> Receipt:
    price = Price.objects.select_related("provider").filter(pk=record.price_id).first() if record.price_id else None
    return Receipt(record, price, tuple(_lines(record, price)) if price else ())


def attempts_of(record: UsageRecord, viewer: Any) -> list[UsageRecord]:
    """Every attempt of the record's request, in order."""
    same = UsageRecord.objects.for_user(viewer).filter(request_id=record.request_id)
    return list(same.order_by("attempt_number", "admitted_at"))


def _lines(record: UsageRecord, price: Price) -> Iterable[Line]:
    """As `budgets.pricing.cost_nanos` reckons."""
    # What a batch costs of everything.
    share = Decimal(price.batch_percent if record.operation == Operation.BATCH else 100) / 100
    cached, written = record.cache_read_input_tokens, record.cache_write_input_tokens
    fresh, output = max(record.input_tokens - cached - written, 0), record.output_tokens
    hour, written = _apart(record.cache_write_1h_input_tokens, price.cache_write_1h, written)
    heard, fresh = _apart(record.input_audio_tokens, price.input_audio, fresh)
    seen, fresh = _apart(record.input_image_tokens, price.input_image, fresh)
    spoken, output = _apart(record.output_audio_tokens, price.output_audio, output)
    drawn, output = _apart(record.output_image_tokens, price.output_image, output)
    for what, tokens, rate in (
        (INPUT, fresh, price.input),
        (AUDIO_INPUT, heard, price.input_audio),
        (IMAGE_INPUT, seen, price.input_image),
        ("Input read from the provider's cache", cached, price.cached_input),
        ("Input written to the provider's cache", written, price.cache_write),
        (WRITTEN_FOR_AN_HOUR, hour, price.cache_write_1h),
        (OUTPUT, output, price.output),
        (AUDIO_OUTPUT, spoken, price.output_audio),
        (IMAGE_OUTPUT, drawn, price.output_image),
    ):
        if rate is not None and (tokens or what in (INPUT, OUTPUT)):
            yield Line(what, tokens, rate * share)
    for what, number, rate in (
        ("Request", 1, price.per_request),
        (TOOL_CALLS, record.tool_calls, price.per_tool_call),
        (_units(record), record.units, price.per_unit),
    ):
        if number and rate:
            yield Line(what, number, rate * share, is_each=True)


def _apart(tokens: int, rate: Decimal | None, among: int) -> tuple[int, int]:
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
    yield _units(record), record.units


def _units(record: UsageRecord) -> str:
    return UNITS.get(record.operation, "Units")
