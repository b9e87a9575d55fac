"""How far a month has come with what a contract commits to, and what will be missing at its end. Values in, values out."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

CENT = Decimal("0.01")


@dataclass(frozen=True)
class Commitment:
    """From `starts_at` until `ends_at` (exclusive) at least `amount_usd` is paid. `spent_usd` of it was used until `now`."""

    amount_usd: Decimal
    spent_usd: Decimal
    starts_at: datetime
    ends_at: datetime
    now: datetime

    @property
    def percent(self) -> int:
        """Rounded down: the whole of it is 100."""
        return int(self.spent_usd * 100 / self.amount_usd) if self.amount_usd else 100

    @property
    def expected_usd(self) -> Decimal:
        """What will be spent at its end, at the pace so far."""
        passed, whole = self.now - self.starts_at, self.ends_at - self.starts_at
        if not passed:
            return self.spent_usd
        return (self.spent_usd * Decimal(whole / passed)).quantize(CENT)

    @property
    def shortfall_usd(self) -> Decimal:
        """What will be paid beyond use, at the pace so far."""
        return max(self.amount_usd - self.expected_usd, Decimal(0))

    def __str__(self) -> str:
        so_far = f"{self.spent_usd:,.2f} of {self.amount_usd:,.2f} USD ({self.percent} %)"
        ending = f"{self.shortfall_usd:,.2f} USD short" if self.shortfall_usd else "met"
        return f"{so_far}; {ending} at this pace"
