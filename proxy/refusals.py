"""What a client is told whose request passes a budget or a limit: which one, whose, how much is left, and when it resets."""

from budgets import caps, limits
from budgets.matching import scope_of
from budgets.windows import FOREVER_S
from proxy.errors import BudgetExceeded, LimitExceeded
from proxy.rules import Rules, amount_of, cap_percent_of, window_of
from proxy.snapshot import Budget, Limit

_WINDOWS = {1: "second", 60: "minute", 3600: "hour", 86_400: "day"}


def limit_exceeded(rules: Rules, index: int, free: int, retry_after_ms: int) -> LimitExceeded:
    """`index`, `free` and `retry_after_ms` as `gate.Limited` has them."""
    limit, scope = rules.limits[index], scope_of(rules.limits[index].subject)
    left, kind = rules.checks[index].units_in(free), _kind(limit)
    details: dict[str, object] = {
        "limit": limit.amount,
        "limit_id": limit.limit_id,
        "limit_name": limit.name,
        "limit_kind": kind,
        "limit_scope": scope,
        "limit_window_s": 0 if limit.metric == limits.CONCURRENCY else limit.window_s,
        "left": left,
    }
    amount = f"${usd(limit.amount)}" if limit.metric == "spend" else str(limit.amount)
    if retry_after_ms == limits.NEVER_FITS:
        message = f"the {scope}'s limit of {amount} {kind} never lets this request pass"
        return LimitExceeded(message, should_retry=False, details=details)
    return LimitExceeded(
        f"the {scope}'s limit of {amount} {kind} is reached ({usd(left) if limit.metric == 'spend' else left} left)",
        retry_after_s=_seconds(retry_after_ms),
        details={**details, "resets_in_ms": retry_after_ms},
    )


def throttled(budget: Budget, retry_after_ms: int) -> LimitExceeded:
    """`retry_after_ms` as `gate.Throttled` has it."""
    scope = scope_of(budget.subject)
    return LimitExceeded(
        f"budget {budget.name!r} of the {scope} is nearly spent: it lets requests pass at a low rate only",
        code="budget_throttled",
        retry_after_s=_seconds(retry_after_ms),
        details={"budget": budget.name, "budget_id": budget.budget_id, "scope": scope, "resets_in_ms": retry_after_ms},
    )


def budget_exceeded(budget: Budget, left: int, now_s: float) -> BudgetExceeded:
    """`left` as `gate.OverBudget` has it; `now_s` says in which window."""
    scope, left = scope_of(budget.subject), max(left, 0)
    amount, percent = amount_of(budget, now_s), cap_percent_of(budget)
    cap = caps.share(amount, percent)
    _, end_s = window_of(budget, now_s)
    window = budget.window if budget.window in ("total", "fixed") else f"per {budget.window}"
    resets = f"it resets in {max(0, int(end_s - now_s))} s" if end_s < FOREVER_S else "it does not reset"
    details: dict[str, object] = {
        "budget": budget.name,
        "budget_id": budget.budget_id,
        "scope": scope,
        "window": budget.window,
        "unit": budget.unit,
        "resets_at": end_s if end_s < FOREVER_S else None,
        "cap_percent": percent,
    }
    if budget.unit == "usd":
        details |= {"amount_usd": usd(amount), "cap_usd": usd(cap), "left_usd": usd(left)}
    else:
        details |= {"amount": amount, "cap": cap, "left": left}
    share = "" if percent == caps.WHOLE_PERCENT else f", {percent} % of {_text(amount, budget.unit)}"
    return BudgetExceeded(
        f"budget {budget.name!r} of the {scope} ({_text(cap, budget.unit)} {window}{share}) has "
        f"{_text(left, budget.unit)} left, too little for this request; {resets}",
        should_retry=False,
        details=details,
    )


def usd(nanos: int) -> str:
    """Exact decimal text of nano-USD, at least cents."""
    whole, fraction = divmod(nanos, 1_000_000_000)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{whole}.{digits.ljust(2, '0')}"


def _text(amount: int, unit: str) -> str:
    return f"${usd(amount)}" if unit == "usd" else f"{amount:,} {unit}"


def _kind(limit: Limit) -> str:
    if limit.metric == limits.CONCURRENCY:
        return "requests at once"
    return f"{limit.metric.replace('_', ' ')} per {_WINDOWS.get(limit.window_s, f'{limit.window_s} s')}"


def _seconds(milliseconds: int) -> int:
    return max(1, -(-milliseconds // 1000))
