"""Histograms of milliseconds, as the roll-ups keep them: which bucket a value counts in, and what a percentile is.

No database, no Django. The buckets are those of the worker's own counts in `proxy/metrics.py`.
"""

from bisect import bisect_left
from collections.abc import Sequence

# Upper bounds, inclusive; the last bucket has none.
BOUNDS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000)
BUCKETS = len(BOUNDS_MS) + 1


def bucket(value_ms: float) -> int:
    """Index of the bucket that counts `value_ms`."""
    return bisect_left(BOUNDS_MS, value_ms)


def percentile_ms(counts: Sequence[int], fraction: float) -> float | None:
    """The value below which `fraction` (0 to 1) of what was counted lies; None when nothing was.

    Interpolated within its bucket, so off by less than the width of one; in the last bucket, its lower bound.
    """
    total = sum(counts)
    if total == 0:
        return None
    wanted, below = fraction * total, 0
    for index, number in enumerate(counts):
        if number and below + number >= wanted:
            lower = BOUNDS_MS[index - 1] if index else 0
            if index == len(BOUNDS_MS):
                return float(lower)
            return lower + (BOUNDS_MS[index] - lower) * (wanted - below) / number
        below += number
    return float(BOUNDS_MS[-1])
