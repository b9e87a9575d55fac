"""The vault: seal and open upstream credentials. No database, no Django.

Each secret is encrypted (AES-256-GCM) under a data key of its own, which is wrapped (AES key wrap, RFC 3394) under a
master key. A sealed text is `v1.<master key id>.<wrapped data key>.<nonce>.<ciphertext>`, URL-safe base64 without
padding. The record's id is bound in as associated data: a sealed text moved to another row does not open.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

FORMAT = "v1"
KEY_BYTES = 32
# Key wrapping adds a block of eight bytes.
WRAPPED_BYTES = KEY_BYTES + 8
NONCE_BYTES = 12
KEY_ID_LENGTH = 16


class VaultError(ValueError):
    """A secret cannot be opened, or a master key is malformed. The message never holds either."""


class Secret:
    """A clear text that does not print itself."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "[redacted]"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return "[redacted]"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        raise TypeError("a secret is not a dictionary key")

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


class MasterKey:
    """`key_id` names the key in sealed texts; it is derived from the key and tells nothing about it."""

    __slots__ = ("_key", "key_id")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise VaultError(f"a vault key is {KEY_BYTES} bytes, not {len(key)}")
        self._key = key
        self.key_id = hashlib.sha256(b"tollgate vault key id\0" + key).hexdigest()[:KEY_ID_LENGTH]

    def wrap(self, data_key: bytes) -> bytes:
        return aes_key_wrap(self._key, data_key)

    def unwrap(self, wrapped: bytes) -> bytes:
        return aes_key_unwrap(self._key, wrapped)

    def __repr__(self) -> str:
        return f"MasterKey({self.key_id}, [redacted])"


def parse_master_keys(text: str) -> tuple[MasterKey, ...]:
    """Comma-separated base64 of 32 bytes each; the first seals, all of them open. Raises `VaultError`."""
    keys = []
    for number, part in enumerate((part.strip() for part in text.split(",")), start=1):
        if not part:
            continue
        try:
            keys.append(MasterKey(_unbase64(part)))
        except (binascii.Error, ValueError) as error:
            reason = str(error) if isinstance(error, VaultError) else "not base64"
            raise VaultError(f"vault key number {number}: {reason}") from None
    if not keys:
        raise VaultError("there is no vault key")
    return tuple(keys)


def seal(secret: str, record_id: str, master_keys: Sequence[MasterKey]) -> str:
    """Encrypt for the row `record_id` under the first master key."""
    data_key, nonce = AESGCM.generate_key(KEY_BYTES * 8), secrets.token_bytes(NONCE_BYTES)
    ciphertext = AESGCM(data_key).encrypt(nonce, secret.encode(), _associated(record_id))
    return _join(master_keys[0], data_key, nonce, ciphertext)


def open_sealed(sealed: str, record_id: str, master_keys: Sequence[MasterKey]) -> Secret:
    """Raises `VaultError` when no master key fits, the row is another one, or the text was altered."""
    data_key, nonce, ciphertext = _split(sealed, master_keys)
    try:
        return Secret(AESGCM(data_key).decrypt(nonce, ciphertext, _associated(record_id)).decode())
    except (InvalidTag, ValueError):
        raise VaultError("the sealed text was altered, or belongs to another record") from None


def seal_bytes(clear: bytes, record_id: str, master_keys: Sequence[MasterKey]) -> bytes:
    """As `seal`, for what is large or no text: `<master key id><wrapped data key><nonce><ciphertext>`."""
    data_key, nonce = AESGCM.generate_key(KEY_BYTES * 8), secrets.token_bytes(NONCE_BYTES)
    ciphertext = AESGCM(data_key).encrypt(nonce, clear, _associated(record_id))
    return b"".join((master_keys[0].key_id.encode(), master_keys[0].wrap(data_key), nonce, ciphertext))


def open_bytes(sealed: bytes, record_id: str, master_keys: Sequence[MasterKey]) -> bytes:
    """Raises `VaultError`, as `open_sealed` does."""
    key_id, rest = sealed[:KEY_ID_LENGTH], sealed[KEY_ID_LENGTH:]
    wrapped, nonce, ciphertext = (
        rest[:WRAPPED_BYTES],
        rest[WRAPPED_BYTES:][:NONCE_BYTES],
        rest[WRAPPED_BYTES + NONCE_BYTES :],
    )
    master_key = next((key for key in master_keys if key.key_id.encode() == key_id), None)
    if master_key is None:
        raise VaultError("sealed under a vault key which is not configured")
    try:
        return AESGCM(master_key.unwrap(wrapped)).decrypt(nonce, ciphertext, _associated(record_id))
    except (InvalidUnwrap, InvalidTag, ValueError):
        raise VaultError("the sealed bytes were altered, or belong to another record") from None


def rewrap(sealed: str, master_keys: Sequence[MasterKey]) -> str:
    """The same secret under the first master key; the secret itself is not decrypted. Raises `VaultError`."""
    data_key, nonce, ciphertext = _split(sealed, master_keys)
    return _join(master_keys[0], data_key, nonce, ciphertext)


def _join(master_key: MasterKey, data_key: bytes, nonce: bytes, ciphertext: bytes) -> str:
    parts = (master_key.wrap(data_key), nonce, ciphertext)
    return ".".join([FORMAT, master_key.key_id, *(_base64(part) for part in parts)])


def _split(sealed: str, master_keys: Sequence[MasterKey]) -> tuple[bytes, bytes, bytes]:
    """Data key, nonce and ciphertext."""
    parts = sealed.split(".")
    if len(parts) != 5 or parts[0] != FORMAT:
        raise VaultError("not a sealed text of this version")
    master_key = next((key for key in master_keys if key.key_id == parts[1]), None)
    if master_key is None:
        raise VaultError(f"sealed under vault key {parts[1]}, which is not configured")
    try:
        wrapped, nonce, ciphertext = (_unbase64(part) for part in parts[2:])
        return master_key.unwrap(wrapped), nonce, ciphertext
    except (InvalidUnwrap, binascii.Error, ValueError):
        raise VaultError("the sealed text was altered") from None


def _associated(record_id: str) -> bytes:
    return b"tollgate.v1:" + record_id.encode()


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    standard = text.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
