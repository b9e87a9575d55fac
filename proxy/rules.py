"""The budgets and limits that apply to an attempt, as the gate is asked about them. Prepared once, kept while windows last. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import NamedTuple

from budgets import caps, gate, limits
from budgets.matching import counter_values
from budgets.windows import window_bounds
from proxy.snapshot import Budget, Limit, Threshold

NANOS_PER_MINUTE = 60 * limits.NANOS_PER_S
# How long counters of no budget at all are good for.
NO_WINDOW_S = 3600.0
NEVER_CARRIED = ("fixed", "total")
SHARED_MAX = 4096

# Counters that many keys count in, prepared once for all of them, by the rule and what tells its counters apart. With each, until
# when (Unix seconds) it is the one; None while the budget has no window.
Shared = dict[tuple[str, ...], tuple[gate.BudgetCounter | None, float]]


class InForce(NamedTuple):
    """The budgets whose windows a moment lies in and their counters, in the same order, until `valid_until_s` (Unix seconds)."""

    budgets: tuple[Budget, ...]
    budget_ids: tuple[str, ...]
    counters: gate.BudgetCounters
    valid_until_s: float


_NEVER = InForce((), (), gate.BudgetCounters(), 0.0)


class RateHeaders(NamedTuple):
    """The names of OpenAI's `x-ratelimit-*` headers for one kind of limit, and the positions of those limits: one at least."""

    limit: bytes
    remaining: bytes
    reset: bytes
    positions: list[int]


class Estimated(NamedTuple):
    """A rate of which an attempt takes what it is likely to use, corrected when it is known; `at` is its position. It counts so
    many of its units for each token of input, token of output, and nano-USD; the rest is as in `gate.LimitCheck`."""

    at: int
    key: str
    amount: int
    window_ns: int
    capacity: int
    of_input: int
    of_output: int
    of_money: int


# What each metric counts, as `Estimated` has it.
_COUNTED = {
    limits.INPUT_TOKENS: (1, 0, 0),
    limits.OUTPUT_TOKENS: (0, 1, 0),
    limits.TOKENS: (1, 1, 0),
    limits.SPEND: (0, 0, 1),
}


class Rules:
    """`budgets` and `limits` are those that match; `values` say which of their counters it is."""

    __slots__ = (
        "_budgets",
        "_costs_of_one",
        "_estimated",
        "_in_force",
        "_shared",
        "_values",
        "checks",
        "limits",
        "rate_headers",
    )

    def __init__(
        self, budgets: Sequence[Budget], limits_: Sequence[Limit], values: Mapping[str, str], shared: Shared
    ) -> None:
        self._budgets = budgets
        self._values = values
        self._shared = shared
        self._in_force = _NEVER
        self.limits = sorted(limits_, key=_is_of_concurrency)
        self.checks = gate.LimitChecks(_check(limit, values) for limit in self.limits)
        rates = self.checks[: self.checks.rates]
        self._estimated = [
            Estimated(i, check.key, check.amount, check.window_ns, check.capacity, *_COUNTED[self.limits[i].metric])
            for i, check in enumerate(rates)
            if self.limits[i].metric != limits.REQUESTS
        ]
        # Of all other rates an attempt takes one.
        self._costs_of_one = [check.cost_ns(1) for check in rates]
        self.rate_headers = [
            _rate_headers(name, positions)
            for metric, name in ((limits.REQUESTS, b"requests"), (limits.TOKENS, b"tokens"))
            if (positions := [i for i, limit in enumerate(self.limits) if limit.metric == metric])
        ]

    def costs_ns(self, input_tokens: int, output_tokens: int, nanos: int) -> list[int]:
        """What an attempt takes of each rate, in its nanoseconds, that uses about so much: the whole burst at most, so that no
        request is too large for ever."""
        if not self._estimated:
            return self._costs_of_one
        costs = self._costs_of_one.copy()
        for at, _, amount, window_ns, capacity, of_input, of_output, of_money in self._estimated:
            units = input_tokens * of_input + output_tokens * of_output + nanos * of_money
            costs[at] = min(limits.cost_ns(units, amount, window_ns), capacity)
        return costs

    def corrections(
        self, taken_ns: Sequence[int], input_tokens: int, output_tokens: int, nanos: int
    ) -> list[tuple[str, int]]:
        """(key, nanoseconds more than `costs_ns` took) of each rate of which it was not known, now that it is."""
        corrections = []
        for at, key, amount, window_ns, _, of_input, of_output, of_money in self._estimated:
            units = input_tokens * of_input + output_tokens * of_output + nanos * of_money
            corrections.append((key, limits.cost_ns(units, amount, window_ns) - taken_ns[at]))
        return corrections

    def in_force(self, now_s: float) -> InForce:
        if now_s >= self._in_force.valid_until_s:
            self._in_force = self._at(now_s)
        return self._in_force

    def _at(self, now_s: float) -> InForce:
        budgets, rows, valid_until_s = [], [], now_s + NO_WINDOW_S
        for budget in self._budgets:
            counter, until_s = self._counter(budget, now_s)
            valid_until_s = min(valid_until_s, until_s)
            if counter is not None:
                budgets.append(budget)
                rows.append(counter)
        budget_ids = tuple([budget.budget_id for budget in budgets])
        return InForce(tuple(budgets), budget_ids, gate.BudgetCounters(rows), valid_until_s)

    def _counter(self, budget: Budget, now_s: float) -> tuple[gate.BudgetCounter | None, float]:
        of_each = counter_values(budget.subject, self._values)
        if "key" in budget.subject:
            return _counter_at(budget, of_each, now_s)
        place = budget.budget_id, *of_each
        counter = self._shared.get(place)
        if counter is None or now_s >= counter[1]:
            if len(self._shared) >= SHARED_MAX:
                self._shared.clear()
            counter = self._shared[place] = _counter_at(budget, of_each, now_s)
        return counter


def window_of(budget: Budget, at_s: float) -> tuple[int, int]:
    """(start, end) in Unix seconds; of a fixed range also where `at_s` lies outside of it."""
    return window_bounds(
        budget.window,
        budget.time_zone,
        at_s,
        fiscal_month=budget.fiscal_month,
        starts_at_s=budget.starts_at_s,
        ends_at_s=budget.ends_at_s,
    )


def amount_of(budget: Budget, at_s: float) -> int:
    """The amount with what is added for a while, in the budget's unit."""
    added = (increase.amount for increase in budget.increases if increase.from_s <= at_s < increase.until_s)
    return budget.amount + sum(added)


def cap_percent_of(budget: Budget) -> int:
    """The share of the amount that is its cap."""
    return caps.cap_percent(budget.mode, _blocking(budget))


def _blocking(budget: Budget) -> list[int]:
    return [threshold.percent for threshold in budget.thresholds if threshold.action == "block"]


def _increase_moments(budget: Budget) -> Iterator[float]:
    for increase in budget.increases:
        yield increase.from_s
        yield increase.until_s


def _counter_at(budget: Budget, of_each: tuple[str, ...], now_s: float) -> tuple[gate.BudgetCounter | None, float]:
    """As `Shared` has it. `of_each` are the values that tell its counters apart."""
    start_s, end_s = window_of(budget, now_s)
    changes_s = [moment for moment in (start_s, end_s, *_increase_moments(budget)) if moment > now_s]
    counter = _counter(budget, start_s, end_s, now_s, of_each) if start_s <= now_s < end_s else None
    return counter, min(changes_s, default=inf)


def _counter(budget: Budget, start_s: int, end_s: int, now_s: float, of_each: tuple[str, ...]) -> gate.BudgetCounter:
    key = gate.spend_key(budget.budget_id, start_s, *of_each)
    amount, unit, percent = amount_of(budget, now_s), gate.UNITS[budget.unit], cap_percent_of(budget)
    carry = None
    if budget.rollover and budget.window not in NEVER_CARRIED:
        before_s, _ = window_of(budget, start_s - 1)
        from_key = gate.spend_key(budget.budget_id, before_s, *of_each)
        # What it was before it was a budget with a roll-over is not known.
        is_empty_when_absent = budget.starts_at_s is not None and budget.starts_at_s <= before_s
        from_cap = caps.share(amount_of(budget, start_s - 1), percent)
        carry = gate.Carry(from_key, from_cap, budget.rollover, is_empty_when_absent)
        _, end_s = window_of(budget, end_s)  # The next window asks what this one left.
    if budget.mode == "observe":
        return gate.BudgetCounter(key, amount, False, end_s, unit, True, carry)
    return gate.BudgetCounter(
        key=key,
        cap=caps.share(amount, percent),
        is_hard=caps.refuses(budget.mode, _blocking(budget)),
        expire_at_s=end_s,
        unit=unit,
        carry=carry,
        throttles=tuple(_throttles(budget, amount, key)),
        downgrades=tuple(
            gate.Downgrade(caps.share(amount, threshold.percent), threshold.alias)
            for threshold in sorted(budget.thresholds, key=_percent, reverse=True)
            if threshold.action == "downgrade"
        ),
    )


def _throttles(budget: Budget, amount: int, counter_key: str) -> Iterator[gate.Throttle]:
    for threshold in budget.thresholds:
        if threshold.action == "throttle":
            per_minute = threshold.per_minute
            yield gate.Throttle(
                at=caps.share(amount, threshold.percent),
                key=f"{gate.throttle_key(counter_key)}:{threshold.percent}",
                cost_ns=limits.cost_ns(1, per_minute, NANOS_PER_MINUTE),
                capacity_ns=limits.capacity_ns(limits.REQUESTS, per_minute, per_minute, NANOS_PER_MINUTE),
            )


def _percent(threshold: Threshold) -> int:
    return threshold.percent


def _check(limit: Limit, values: Mapping[str, str]) -> gate.LimitCheck:
    of_each = counter_values(limit.subject, values)
    if limit.metric == limits.CONCURRENCY:
        key = gate.running_key(limit.limit_id, *of_each)
        return gate.LimitCheck(key, limit.amount, 0, limit.amount, limit.is_observed)
    window_ns = limit.window_s * limits.NANOS_PER_S
    burst = limit.amount if limit.burst is None else limit.burst
    capacity = limits.capacity_ns(limit.metric, burst, limit.amount, window_ns)
    key = gate.rate_key(limit.limit_id, *of_each)
    return gate.LimitCheck(key, limit.amount, window_ns, capacity, limit.is_observed)


def _is_of_concurrency(limit: Limit) -> bool:
    return limit.metric == limits.CONCURRENCY


def _rate_headers(name: bytes, positions: list[int]) -> RateHeaders:
    return RateHeaders(
        b"x-ratelimit-limit-" + name, b"x-ratelimit-remaining-" + name, b"x-ratelimit-reset-" + name, positions
    )
