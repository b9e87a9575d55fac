"""AWS Signature Version 4: what proves to Amazon who sends a request. Pure: the time is passed in.

Source: "Create a signed AWS API request" in the AWS IAM user guide, for services that are not S3: the canonical path is the
one that is sent, normalised, and then percent-encoded once more.
"""

import hashlib
import hmac
import time
from typing import NamedTuple
from urllib.parse import quote, unquote

from proxy.providers.provider import Headers, Outgoing

ALGORITHM = "AWS4-HMAC-SHA256"
# Whatever AWS itself may read.
SIGNED_PREFIX = b"x-amz"


class Keys(NamedTuple):
    """An access key of IAM, or a temporary one of STS with its session token."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""


class Signer:
    """Signs the requests of one access key to one service in one region."""

    def __init__(self, keys: Keys, region: str, service: str) -> None:
        self._keys = keys
        self._region = region
        self._service = service
        self._day = ""
        self._signing_key = b""

    def sign(self, outgoing: Outgoing, authority: str, path: bytes, now_s: float) -> Headers:
        """The headers to send besides. `path` is the whole request path with its query.

        What is signed is what AWS asks for: host, content type, and every header that begins with `x-amz`.
        """
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
        day = moment[:8]
        added: Headers = [(b"x-amz-date", moment.encode())]
        if self._keys.session_token:
            added.append((b"x-amz-security-token", self._keys.session_token.encode()))
        signed = {b"host": authority.encode()}
        if outgoing.content_type:
            signed[b"content-type"] = outgoing.content_type
        for name, value in (*outgoing.headers, *added):
            if name.startswith(SIGNED_PREFIX):
                signed[name] = b" ".join(value.split())
        names = b";".join(sorted(signed)).decode()
        request = canonical_request(outgoing, path, signed, names)
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = "\n".join((ALGORITHM, moment, scope, hashlib.sha256(request).hexdigest()))
        signature = hmac.new(self._key_of(day), text.encode(), hashlib.sha256).hexdigest()
        credential = f"{self._keys.access_key_id}/{scope}"
        authorization = f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
        return [*added, (b"authorization", authorization.encode())]

    def _key_of(self, day: str) -> bytes:
        """Derived once a day."""
        if day != self._day:
            self._signing_key = signing_key(self._keys.secret_access_key, day, self._region, self._service)
            self._day = day
        return self._signing_key


def signing_key(secret_access_key: str, day: str, region: str, service: str) -> bytes:
    """`day` as in 20150830."""
    key = f"AWS4{secret_access_key}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def canonical_request(outgoing: Outgoing, path: bytes, signed: dict[bytes, bytes], names: str) -> bytes:
    resource, _, query = path.decode("latin-1").partition("?")
    lines = (
        outgoing.method.decode(),
        _canonical_path(resource),
        _canonical_query(query),
        *(f"{name.decode()}:{signed[name].decode('latin-1')}" for name in sorted(signed)),
        "",
        names,
        hashlib.sha256(outgoing.body).hexdigest(),
    )
    return "\n".join(lines).encode("latin-1")


def _canonical_path(path: str) -> str:
    """Without empty, `.` and `..` segments, and encoded as what it is: a `%3A` becomes `%253A`."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(quote(segment.encode("latin-1"), safe="~"))
    end = "/" if segments and path.endswith(("/", "/.", "/..")) else ""
    return "/" + "/".join(segments) + end


def _canonical_query(query: str) -> str:
    """Sorted by name and then value, each encoded exactly once."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    return "&".join(
        f"{name}={value}" for name, value in sorted((_encoded(name), _encoded(value)) for name, _, value in pairs)
    )


def _encoded(text: str) -> str:
    return quote(unquote(text, "latin-1").encode("latin-1"), safe="~")
