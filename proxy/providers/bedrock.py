"""Amazon Bedrock: Converse for the chats of all models. Pure; no I/O.

The credential is one of Bedrock's API keys, sent as a bearer token, or an access key of IAM as JSON, which signs each request.
"""

import msgspec

from proxy import snapshot
from proxy.providers.bedrock_converse import Converse
from proxy.providers.provider import Authorizer, Headers, Outgoing, Provider, bearer
from proxy.providers.sigv4 import Keys, Signer

SERVICE = "bedrock"


class _AccessKey(msgspec.Struct):
    access_key_id: str
    secret_access_key: str
    session_token: str = ""


class SigningAuthorizer(Authorizer):
    def __init__(self, keys: Keys, region: str) -> None:
        self._signer = Signer(keys, region, SERVICE)
        self.secrets = [secret.encode() for secret in keys[1:] if secret]

    def headers(self, outgoing: Outgoing, origin: str, path: bytes, now_s: float) -> Headers:
        return self._signer.sign(outgoing, origin, path, now_s)


def authorize(secret: str, provider: snapshot.Provider) -> Authorizer:
    """Raises `ValueError`."""
    if not secret.startswith("{"):
        return bearer(secret, provider)
    region = provider.options.get("region")
    if not region:
        raise ValueError("a request is signed for a region: the provider needs its option `region`")
    try:
        key = msgspec.json.decode(secret, type=_AccessKey)
    except msgspec.DecodeError as error:
        # Without its words, which may quote the secret.
        raise ValueError("the credential is not an access key as JSON") from error.with_traceback(None)
    keys = Keys(key.access_key_id, key.secret_access_key, key.session_token)
    if not all(word.isascii() and word.isprintable() for word in keys):
        raise ValueError("an access key is printable ASCII")
    return SigningAuthorizer(keys, region)


PROVIDER = Provider(
    name="bedrock",
    apis=(Converse(),),
    authorize=authorize,
    response_headers=frozenset({b"content-type", b"retry-after", b"x-amzn-requestid", b"x-amzn-errortype"}),
)
