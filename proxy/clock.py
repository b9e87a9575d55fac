"""The data path's clock: this machine's, corrected by what Redis says, so that all workers cut windows alike."""

import time


class Clock:
    """Unix time in seconds by Redis' reckoning, and a monotonic one for durations."""

    # Counts on while the process is stopped, so a paused worker notices how long it slept. Every request asks ten times, so it is
    # the system's own.
    monotonic_s = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._offset_s = 0.0

    def now_s(self) -> float:
        return time.time() + self._offset_s

    def correct(self, redis_time_us: int, asked_at_s: float) -> None:
        """`asked_at_s`: this machine's `time.time()` half way between question and answer."""
        self._offset_s = redis_time_us / 1e6 - asked_at_s
