"""Figures as people read them: money, counts, shares, milliseconds, bytes. A dash stands for what is not known."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from django import template
from django.utils import timezone

register = template.Library()

UNKNOWN = "\u2013"
NBSP = "\u00a0"  # A figure and its unit stay on one line.
SHORT_FROM = 10_000


@register.filter
def usd(amount: Decimal | None) -> str:
    """Cents, and for less than ten cents as many places as say something."""
    if amount is None:
        return UNKNOWN
    if amount and abs(amount) < Decimal("0.1"):
        return (
            f"${amount.quantize(Decimal('0.000001')).normalize():f}"
            if abs(amount) >= Decimal("0.000001")
            else "<$0.000001"
        )
    return f"${amount:,.2f}"


@register.filter
def in_unit(amount: Decimal | None, unit: str) -> str:
    """Of a budget: dollars as money, tokens and requests as counts."""
    return usd(amount) if unit == "usd" or amount is None else f"{short(float(amount))}{NBSP}{unit}"


@register.filter
def short(number: float | None) -> str:
    """12,300,000 as 12.3M."""
    if number is None:
        return UNKNOWN
    value = float(number)
    for suffix, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= max(size, SHORT_FROM):
            return f"{value / size:.1f}{suffix}"
    return f"{value:,.0f}"


@register.filter
def share(fraction: float | None) -> str:
    """0.0123 as 1.23 %."""
    if fraction is None:
        return UNKNOWN
    percent = 100 * float(fraction)
    return f"{percent:.0f}{NBSP}%" if percent >= 10 or not percent else f"{percent:.2g}{NBSP}%"


@register.filter
def change(fraction: float | None) -> str:
    """0.12 as +12 %."""
    if fraction is None:
        return UNKNOWN
    percent = round(100 * float(fraction))
    return f"{percent:+,}{NBSP}%" if percent else f"±0{NBSP}%"


@register.filter
def milliseconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.0f}{NBSP}ms" if value < 1_000 else f"{value / 1_000:.1f}{NBSP}s"


@register.filter
def mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f}{NBSP}MiB"


@register.filter
def percent_width(fraction: float) -> str:
    """A CSS width."""
    return f"{100 * min(max(float(fraction), 0.0), 1.0):.2f}%"


@register.filter
def seconds_ago(moment: datetime | None) -> str:
    if moment is None:
        return UNKNOWN
    seconds = max(0, round((timezone.now() - moment).total_seconds()))
    return f"{seconds} s ago" if seconds < 120 else f"{seconds // 60} min ago"


@register.filter
def lookup(values: Mapping[str, str], name: str) -> str:
    """The value of a name that is itself a variable."""
    return values.get(name, "")


@register.filter
def exact(amount: Decimal) -> str:
    """Every place that is not a trailing nought, and two at least."""
    text = f"{amount:,f}"
    whole, _, places = text.partition(".")
    return f"{whole}.{places.rstrip('0'):0<2}"


@register.filter
def grouped(number: int) -> str:
    return f"{number:,}"
