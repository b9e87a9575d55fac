"""Virtual key tokens: mint, recognise, digest. No database, no Django.

A token is `tg-` and 32 URL-safe characters: 192 random bits. Only its SHA-256 is stored; with that much entropy a plain
digest cannot be guessed, and digests of keys issued elsewhere can be imported.
"""

import hashlib
import secrets
from typing import NamedTuple

VIRTUAL_KEY_PREFIX = "tg-"
API_TOKEN_PREFIX = "tgapi-"  # noqa: S105  The public prefix of a token, not a token.
RANDOM_BYTES = 24
TOKEN_LENGTH_MAX = 256
HINT_LENGTH = 4


class MintedToken(NamedTuple):
    """`secret` is shown once and forgotten; `digest` is hex SHA-256; `hint` is what people recognise it by."""

    secret: str
    digest: str
    hint: str

    def __repr__(self) -> str:
        return f"MintedToken(secret=[redacted], hint={self.hint!r})"


def mint(prefix: str = VIRTUAL_KEY_PREFIX) -> MintedToken:
    secret = prefix + secrets.token_urlsafe(RANDOM_BYTES)
    return MintedToken(secret, digest(secret), hint(secret))


def digest(secret: str) -> str:
    """Hex SHA-256 of the presented secret, 64 characters."""
    return hashlib.sha256(secret.encode()).hexdigest()


def hint(secret: str) -> str:
    """`tg-…x7Qz`: enough to recognise a token by, useless to present."""
    prefix = next((p for p in (API_TOKEN_PREFIX, VIRTUAL_KEY_PREFIX) if secret.startswith(p)), "")
    return f"{prefix}…{secret[-HINT_LENGTH:]}"
