"""What a provider's secret may look like, and what it is recognised by. Values in, values out; no Django.

Most are one word. Two kinds come as a JSON object: a Google service account's key file, as Google gives it, and an AWS access
key, `{"access_key_id", "secret_access_key"}` and optionally `session_token`.
"""

import json
from typing import Any

LENGTH_MIN = 8
# A key file takes some 2,400 characters.
LENGTH_MAX = 10_000
FINGERPRINT_LENGTH = 4

_SERVICE_ACCOUNT = ("private_key_id", "private_key", "client_email")
_ACCESS_KEY = ("access_key_id", "secret_access_key")


class InvalidCredential(ValueError):
    """The message says what is wrong, and repeats nothing of the secret."""


def fingerprint(secret: str) -> str:
    """The last characters of what names it: of a JSON object its key's id, else the secret itself. Raises `InvalidCredential`."""
    fields = _fields(secret) if _is_json(secret) else {}
    named = fields.get("private_key_id") or fields.get("access_key_id") or secret
    return str(named)[-FINGERPRINT_LENGTH:]


def one_line(secret: str) -> str:
    """As it is kept: JSON without its line breaks, and in ASCII, so that it cannot break a header. Raises `InvalidCredential`."""
    return json.dumps(_fields(secret), separators=(",", ":")) if _is_json(secret) else secret


def check_credential(secret: str) -> None:
    """Raises `InvalidCredential` when this can be no provider's secret: a slip of the clipboard."""
    if len(secret) > LENGTH_MAX:
        raise InvalidCredential(f"A credential is {LENGTH_MAX:,} characters at most.")
    if _is_json(secret):
        _check_fields(_fields(secret))
    elif len(secret) < LENGTH_MIN or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise InvalidCredential(
            f"A credential is {LENGTH_MIN} or more printable characters without blanks, as the provider gave it."
        )


def _is_json(secret: str) -> bool:
    return secret.startswith("{")


def _fields(secret: str) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(secret)
    except (ValueError, RecursionError):
        raise InvalidCredential("It begins as a JSON object does, and is none: paste all of it.") from None
    return fields


def _check_fields(fields: dict[str, Any]) -> None:
    is_service_account = fields.get("type") == "service_account"
    if not is_service_account and not fields.keys() & set(_ACCESS_KEY):
        raise InvalidCredential(
            'As JSON: a Google service account\'s key file ("type": "service_account"), or an AWS access key with'
            ' "access_key_id" and "secret_access_key".'
        )
    wanted = _SERVICE_ACCOUNT if is_service_account else _ACCESS_KEY
    missing = [name for name in wanted if not _is_text(fields.get(name))]
    if missing:
        raise InvalidCredential(
            f"Of the JSON object's fields, {' and '.join(missing)} must be a text that is not empty."
        )
    if is_service_account and "PRIVATE KEY-----" not in fields["private_key"]:
        raise InvalidCredential("The field private_key holds no private key: paste the key file as Google gave it.")
    if not is_service_account and not _is_text(fields.get("session_token", "none")):
        raise InvalidCredential("The field session_token is a text, or is left out.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
