"""The receipt of one usage record: what was counted, at which rates, and what it came to. Reads only.

Rates are those of the price in force when the attempt was admitted, in the provider's currency; the cost is the ledger's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from audit.models import UsageRecord
from budgets.pricing import TOKENS_PER_PRICING_UNIT
from routing.models import Price


@dataclass(frozen=True)
class Line:
    """`tokens` at `rate` per million, or one request at `rate` where tokens is None; in the price's currency."""

    what: str
    tokens: int | None
    rate: Decimal

    @property
    def amount(self) -> Decimal:
        return self.rate if self.tokens is None else self.tokens * self.rate / TOKENS_PER_PRICING_UNIT


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
    cached, written = record.cache_read_input_tokens, record.cache_write_input_tokens
    yield Line("Input", max(record.input_tokens - cached - written, 0), price.input)
    if cached:
        yield Line("Input read from the provider's cache", cached, price.cached_input)
    if written:
        yield Line("Input written to the provider's cache", written, price.cache_write)
    yield Line("Output", record.output_tokens, price.output)
    if price.per_request:
        yield Line("Request", None, price.per_request)
