"""What a budget is never passed at: its amount, or the share of it that a threshold blocks at. Values in, values out."""

from collections.abc import Collection

WHOLE_PERCENT = 100


def refuses(mode: str, blocking: Collection[int]) -> bool:
    """Whether there is a cap that it refuses at. `mode` is hard, soft or observe; `blocking` the percentages of thresholds that block."""
    return mode == "hard" or (mode != "observe" and bool(blocking))


def cap_percent(mode: str, blocking: Collection[int]) -> int:
    """The share of the amount that is the cap; the whole of one that refuses nothing. A hard budget is never passed, so no share
    above the whole is its cap."""
    if mode == "observe":
        return WHOLE_PERCENT
    return min((*blocking, WHOLE_PERCENT) if mode == "hard" else blocking, default=WHOLE_PERCENT)


def share(amount: int, percent: int) -> int:
    """In whole units, rounded down."""
    return amount * percent // 100
