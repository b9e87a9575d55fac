"""Amazon Bedrock. Pure; no I/O.

Its runtime endpoint has Converse for the chats of all models, and takes Anthropic's own messages for Claude. The base URL may
name the mantle endpoint instead, which speaks OpenAI's APIs: `https://bedrock-mantle.REGION.api.aws/v1` for open models,
`…/openai/v1` for OpenAI's, which have responses only.

The credential is one of Bedrock's API keys, sent as a bearer token, or an access key of IAM as JSON, which signs each request.
"""

import msgspec

from proxy import snapshot
from proxy.providers.bedrock_converse import Converse, is_mantle
from proxy.providers.bedrock_messages import BedrockMessages
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.openai_responses import OpenAIResponses
from proxy.providers.provider import Authorizer, Headers, Outgoing, Provider, bearer
from proxy.providers.sigv4 import Keys, Signer

RUNTIME_SERVICE = "bedrock"
MANTLE_SERVICE = "bedrock-mantle"


class MantleChat(CompatibleChat):
    media = frozenset({"image", "audio"})

    def serves(self, deployment: snapshot.Deployment, provider: snapshot.Provider) -> bool:
        return is_mantle(provider) and "/openai/" not in provider.base_url


class MantleResponses(OpenAIResponses):
    def serves(self, deployment: snapshot.Deployment, provider: snapshot.Provider) -> bool:
        return is_mantle(provider)


class _AccessKey(msgspec.Struct):
    access_key_id: str
    secret_access_key: str
    session_token: str = ""


class SigningAuthorizer(Authorizer):
    """Signs each request with an access key."""

    def __init__(self, keys: Keys, region: str, service: str) -> None:
        self._signer = Signer(keys, region, service)
        self.secrets = [word.encode() for word in keys if word]

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
    return SigningAuthorizer(keys, region, MANTLE_SERVICE if is_mantle(provider) else RUNTIME_SERVICE)


PROVIDER = Provider(
    name="bedrock",
    apis=(Converse(), BedrockMessages(), MantleChat(), MantleResponses()),
    authorize=authorize,
    response_headers=frozenset({b"content-type", b"retry-after", b"x-amzn-requestid", b"x-amzn-errortype"}),
)
