"""The cache stage: answers that need no provider. Nothing is cached for now; the exact-match cache will stand here."""

from proxy.describe import Described


def look_in_cache(described: Described) -> bytes | None:
    return None
