"""Ids of requests and attempts: UUID version 7, so that they sort by time. No I/O."""

import random
import re
import time

_VARIANT = 0b10 << 62
_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def new_id() -> str:
    """A UUIDv7 (RFC 9562) as text: 48 bits of Unix milliseconds, 74 random bits."""
    # Unique, not secret: Python seeds this generator from the system in each process, also after a fork.
    digits = f"{time.time_ns() // 1_000_000:012x}7{random.getrandbits(12):03x}{_VARIANT | random.getrandbits(62):016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
