"""Signatures of webhooks, as https://www.standardwebhooks.com has them: whoever gets one can tell that it is ours, and is new.

Signed is `<webhook-id>.<webhook-timestamp>.<body>` by HMAC-SHA256. No clock, no I/O.
"""

import base64
import hashlib
import hmac

SECRET_PREFIX = "whsec_"  # noqa: S105 what a secret begins with is none
SECRET_BYTES = 32


def encode_secret(random: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(random).decode()


def sign(secret: str, *, message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The headers that go with `body`."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    signed = b".".join((message_id.encode(), str(at_s).encode(), body))
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(at_s), "webhook-signature": f"v1,{signature}"}
