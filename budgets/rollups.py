"""Summing usage up by the hour: what one record adds to which row, and the histograms. No database, no Django, no clock.

What counts: every attempt is one request here; it is an error when it has an error type or a status from 400 up.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from audit.records import UsageEvent

HOUR_US = 3_600_000_000

# Upper bounds in milliseconds, each 2^(1/2) of the one before, from 1 ms to 17 minutes; the last bucket has none.
HISTOGRAM_BOUNDS_MS: tuple[int, ...] = tuple(sorted({round(2 ** (step / 2)) for step in range(41)}))


class HourKey(NamedTuple):
    """A row of the hourly roll-up. `hour_us` is the start of the hour, Unix microseconds."""

    hour_us: int
    team_id: str
    project_id: str
    virtual_key_id: str
    alias: str
    model: str
    provider: str


class TagKey(NamedTuple):
    """A row of the hourly roll-up by tag."""

    hour_us: int
    team_id: str
    project_id: str
    tag_key: str
    tag_value: str


@dataclass(slots=True)
class HourSum:
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nanos: int = 0
    saved_nanos: int = 0
    shadow_cost_nanos: int = 0
    latency_histogram: list[int] = field(default_factory=list)
    first_token_histogram: list[int] = field(default_factory=list)


@dataclass(slots=True)
class TagSum:
    requests: int = 0
    tokens: int = 0
    cost_nanos: int = 0


class Rollups:
    """What a batch of records changes in the roll-ups."""

    def __init__(self) -> None:
        self.hours: dict[HourKey, HourSum] = {}
        self.tags: dict[TagKey, TagSum] = {}

    def add(self, event: UsageEvent) -> None:
        self._count(event, 1)

    def take_back(self, event: UsageEvent) -> None:
        """Undo the `add` of a record that is replaced by its resolution."""
        self._count(event, -1)

    def _count(self, event: UsageEvent, sign: int) -> None:
        hour_us = event.admitted_at_us - event.admitted_at_us % HOUR_US
        usage = event.usage
        key = HourKey(
            hour_us,
            event.team_id,
            event.project_id,
            event.virtual_key_id,
            event.alias,
            event.model,
            event.provider,
        )
        total = self.hours.get(key)
        if total is None:
            total = self.hours[key] = HourSum()
        # A correction changes what was spent, and is no request.
        requests = 0 if event.adjusts else sign
        total.requests += requests
        total.errors += sign if event.error_type or event.status_code >= 400 else 0
        total.input_tokens += sign * usage.input_tokens
        total.output_tokens += sign * usage.output_tokens
        total.cached_tokens += sign * usage.cache_read_input_tokens
        total.cost_nanos += sign * event.cost_nanos
        total.saved_nanos += sign * event.saved_nanos
        if event.kind == "shadow":
            total.shadow_cost_nanos += sign * event.cost_nanos
        # Nought was not measured: the attempt's worker died, or nothing was streamed.
        if event.latency_ms > 0:
            _count_in(total.latency_histogram, event.latency_ms, sign)
        if event.first_token_ms > 0:
            _count_in(total.first_token_histogram, event.first_token_ms, sign)
        for tag_key, tag_value in event.tags.items():
            tag = self.tags.setdefault(TagKey(hour_us, event.team_id, event.project_id, tag_key, tag_value), TagSum())
            tag.requests += requests
            tag.tokens += sign * (usage.input_tokens + usage.output_tokens)
            tag.cost_nanos += sign * event.cost_nanos


def _count_in(histogram: list[int], milliseconds: int, sign: int) -> None:
    """A histogram ends with its last bucket that was needed: most are short, and there are millions of them."""
    bucket = bisect_left(HISTOGRAM_BOUNDS_MS, milliseconds)
    histogram.extend([0] * (bucket + 1 - len(histogram)))
    histogram[bucket] += sign


def percentile_ms(histogram: Sequence[int], share: float) -> float | None:
    """The latency that `share` (0 to 1) of the requests stayed within, interpolated in its bucket; None without requests."""
    total = sum(histogram)
    if total <= 0:
        return None
    wanted, seen = share * total, 0
    for bucket, number in enumerate(histogram):
        if number > 0 and seen + number >= wanted:
            low = HISTOGRAM_BOUNDS_MS[bucket - 1] if bucket else 0
            high = HISTOGRAM_BOUNDS_MS[bucket] if bucket < len(HISTOGRAM_BOUNDS_MS) else low
            return low + (high - low) * (wanted - seen) / number
        seen += number
    return float(HISTOGRAM_BOUNDS_MS[-1])
