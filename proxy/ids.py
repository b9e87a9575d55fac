"""Ids of requests and attempts: UUID version 7, so that they sort by time. No I/O."""

import os
import time

_VARIANT = ("8", "9", "a", "b")


def new_id() -> str:
    """A UUIDv7 (RFC 9562) as text: 48 bits of Unix milliseconds, 74 random bits."""
    random = os.urandom(10).hex()
    stamp = f"{time.time_ns() // 1_000_000:012x}"
    variant = _VARIANT[int(random[3], 16) & 3]
    return f"{stamp[:8]}-{stamp[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"
