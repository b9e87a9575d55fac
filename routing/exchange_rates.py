"""Exchange rates as others write them: CSV, or JSON with a base. No Django, no clock, no I/O."""

import csv
from datetime import UTC, datetime, time
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

import msgspec

USD = "USD"
COLUMNS = ("currency", "usd_per_unit", "effective_from")
BYTES_MAX = 1024 * 1024
CURRENCY_LETTERS = 3
DIGITS = Decimal("0.000000001")
RATE_MAX = Decimal(1_000_000_000)


class Rate(NamedTuple):
    """What one unit of the currency is worth in USD from a moment on."""

    currency: str
    usd_per_unit: Decimal
    effective_from: datetime


class InvalidRates(ValueError):
    """The message names the line or the currency that is wrong."""


class _Published(msgspec.Struct):
    """How much of each currency one unit of the base is worth, as most public sources say it."""

    base: str
    rates: dict[str, Decimal]
    date: str | None = None


_decode = msgspec.json.Decoder(_Published).decode


def read(body: bytes, now: datetime) -> list[Rate]:
    """CSV with the columns of `COLUMNS` (the last may be left out: then they hold from `now`), or `{base, date, rates}`.

    Raises `InvalidRates`.
    """
    if len(body) > BYTES_MAX:
        raise InvalidRates(f"more than {BYTES_MAX:,} bytes")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRates("not UTF-8") from None
    return _json(text, now) if text.lstrip().startswith("{") else _csv(text, now)


def _csv(text: str, now: datetime) -> list[Rate]:
    reader = csv.DictReader(text.splitlines())
    if not reader.fieldnames or not {"currency", "usd_per_unit"} <= set(reader.fieldnames):
        raise InvalidRates(f"the first line must name the columns {', '.join(COLUMNS)}")
    rates = []
    for row in reader:
        try:
            moment = _moment(row.get("effective_from") or "", now)
            rates.append(_rate(row["currency"] or "", Decimal((row["usd_per_unit"] or "").strip()), moment))
        except (ValueError, InvalidOperation) as error:
            raise InvalidRates(f"line {reader.line_num}: {error or 'not a number'}") from None
    return rates


def _json(text: str, now: datetime) -> list[Rate]:
    try:
        published = _decode(text)
        moment = _moment(published.date or "", now)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRates(str(error)) from None
    base, per_base = published.base.strip().upper(), {name.upper(): rate for name, rate in published.rates.items()}
    usd_per_base = Decimal(1) if base == USD else per_base.get(USD)
    if usd_per_base is None:
        raise InvalidRates("the rates lack USD")
    per_base[base] = Decimal(1)
    rates = []
    for currency, rate in sorted(per_base.items()):
        if currency == USD:
            continue
        if not rate.is_finite() or rate <= 0:
            raise InvalidRates(f"{currency}: not a rate")
        rates.append(_rate(currency, usd_per_base / rate, moment))
    return rates


def _rate(currency: str, usd_per_unit: Decimal, moment: datetime) -> Rate:
    currency = currency.strip().upper()
    if len(currency) != CURRENCY_LETTERS or not currency.isalpha() or not currency.isascii() or currency == USD:
        raise InvalidRates("a currency has three letters, and is not USD")
    if not usd_per_unit.is_finite() or not 0 < usd_per_unit < RATE_MAX:
        raise InvalidRates(f"{currency}: not a rate")
    rounded = usd_per_unit.quantize(DIGITS)
    if not rounded:
        raise InvalidRates(f"{currency}: too small a rate")
    return Rate(currency, rounded, moment)


def _moment(text: str, now: datetime) -> datetime:
    """A date is its first moment in UTC; a moment without a zone is UTC too."""
    text = text.strip()
    if not text:
        return now
    moment = datetime.fromisoformat(text)
    if len(text) <= len("2026-01-01"):
        moment = datetime.combine(moment.date(), time())
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
