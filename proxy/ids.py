"""Ids of requests and attempts: UUID version 7, so that they sort by time. No I/O."""

import random
import re
import time

_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def new_id() -> str:
    """A UUIDv7 (RFC 9562) as text: 48 bits of Unix milliseconds, 72 random bits."""
    # Unique, not secret: Python seeds this generator from the system in each process, also after a fork.
    digits = "%030x" % (time.time_ns() // 1_000_000 << 72 | random.getrandbits(72))
    return f"{digits[:8]}-{digits[8:12]}-7{digits[12:15]}-8{digits[15:18]}-{digits[18:]}"
