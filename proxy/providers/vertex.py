"""Google's Vertex AI: Gemini, Claude and embeddings, in a project and a location of one's own. Pure; no I/O.

Gemini and Claude speak their makers' dialects under other paths. `provider.options` holds `project` and `location`. A credential is
the JSON of a service account's key, an API key, or an access token that somebody else renews.
"""

import base64
import re
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.neutral import Embedded, Embedding, Media, Prompt, ProviderError, lose_all_but
from proxy.providers.anthropic import AnthropicCountTokens, AnthropicMessages
from proxy.providers.gemini import CARRIED, PATH_SAFE, SERVICE_TIERS, CountTokens, Embed, Generate
from proxy.providers.gemini_answers import is_error
from proxy.providers.gemini_answers import read_error as read_google_error
from proxy.providers.gemini_requests import TASK_TYPES, embed_contents, embed_options
from proxy.providers.provider import (
    Api,
    Authorizer,
    HeaderAuthorizer,
    Headers,
    Measured,
    Outgoing,
    Provider,
    bearer,
    checked_usage,
)
from proxy.snapshot import Deployment
from proxy.snapshot import Provider as ProviderEntry
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 -- an address.
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
ASSERTION_LIFETIME_S = 3600
# A token is renewed so long before it expires: no call outlives it by much.
RENEWED_BEFORE_S = 300
API_KEY_STARTS = ("AIza", "AQ.")

# What a label's value may be; a key begins with a letter.
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")
_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode
_objects = Shape(dict[str, msgspec.Raw])


def model_path(deployment: Deployment, provider: ProviderEntry, publisher: str) -> str:
    """Without the first slash. A tuned model is named by its whole path."""
    model = deployment.upstream_model
    if model.startswith("projects/"):
        return model
    if not model.startswith("publishers/"):
        model = f"publishers/{publisher}/models/{model}"
    return f"projects/{provider.options['project']}/locations/{provider.options['location']}/{model}"


def is_claude(deployment: Deployment) -> bool:
    return deployment.upstream_model.rpartition("/")[2].startswith("claude")


class _Google(Api):
    """Models that Google makes."""

    def serves(self, deployment: Deployment, provider: ProviderEntry) -> bool:
        return not is_claude(deployment)

    def model_name(self, deployment: Deployment, provider: ProviderEntry) -> str:
        return model_path(deployment, provider, "google")


class VertexGenerate(_Google, Generate):
    def carry_platform(self, prompt: Prompt, body: dict[str, Any], lost: list[str]) -> tuple[tuple[bytes, bytes], ...]:
        """Metadata are labels, where they can be; a service tier is asked for in a header."""
        carried = CARRIED
        labels = prompt.metadata or {}
        if all(
            _LABEL.fullmatch(value) and _LABEL.fullmatch(name) and name[:1].isalpha() for name, value in labels.items()
        ):
            carried |= {"metadata"}
            if labels:
                body["labels"] = labels
        tier = SERVICE_TIERS.get(prompt.service_tier or "")
        lose_all_but(carried | {"service_tier"} if tier else carried, prompt, lost)
        return ((b"x-vertex-ai-llm-shared-request-type", tier.encode()),) if tier else ()


class VertexCountTokens(_Google, CountTokens):
    def pass_request(self, call: Call, deployment: Deployment, provider: ProviderEntry) -> Outgoing:
        """Here the fields of the request to be counted stand at the top."""
        inner = next(
            (
                _objects.find(call.fields[key])
                for key in ("generateContentRequest", "generate_content_request")
                if key in call.fields
            ),
            None,
        )
        fields = self.renamed(inner if inner is not None else call.fields, deployment, provider)
        return Outgoing(self.target(deployment, provider, "countTokens"), dump_object(fields))


def embeds_content(deployment: Deployment) -> bool:
    """Later models take media, too, and one input at a time."""
    return deployment.upstream_model.rpartition("/")[2].startswith("gemini-embedding-2")


class VertexEmbedContent(_Google, Embed):
    """Not the Gemini API's: there are no batches."""

    name = "vertex.embed_content"

    def serves(self, deployment: Deployment, provider: ProviderEntry) -> bool:
        return embeds_content(deployment)

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: ProviderEntry, lost: list[str]
    ) -> Outgoing:
        contents = embed_contents(prompt, lost)
        if len(contents) != 1:
            lost.append(prompt.names.get("inputs", "input"))
        body = {"content": contents[0] if contents else {}, **embed_options(prompt)}
        return Outgoing(self.target(deployment, provider, "embedContent"), _encode(body))


class _Statistics(msgspec.Struct):
    token_count: float | None = None


class _Embeddings(msgspec.Struct):
    values: list[float] = []
    statistics: _Statistics | None = None


class _Prediction(msgspec.Struct):
    embeddings: _Embeddings


class _Predictions(msgspec.Struct):
    predictions: list[_Prediction]
    error: msgspec.Raw = _NULL


_predictions = Shape(_Predictions)


class VertexPredict(_Google, Embed):
    """Embeddings of texts, as Vertex AI's own prediction service has them."""

    name = "vertex.predict"

    def serves(self, deployment: Deployment, provider: ProviderEntry) -> bool:
        return not is_claude(deployment) and not embeds_content(deployment)

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: ProviderEntry, lost: list[str]
    ) -> Outgoing:
        options: dict[str, Any] = {}
        if prompt.task in TASK_TYPES:
            options["task_type"] = TASK_TYPES[prompt.task]
        if prompt.title:
            options["title"] = prompt.title
        instances = []
        for item in prompt.inputs:
            if isinstance(item, str):
                instances.append({"content": item, **options})
            else:
                lost.append(item.path if isinstance(item, Media) else prompt.names.get("inputs", "input"))
        if prompt.user is not None:
            lost.append(prompt.names.get("user", "user"))
        # A text that is too long would lose its end in silence.
        parameters: dict[str, Any] = {"autoTruncate": False}
        if prompt.dimensions is not None:
            parameters["outputDimensionality"] = prompt.dimensions
        body = {"instances": instances, "parameters": parameters}
        return Outgoing(self.target(deployment, provider, "predict"), _encode(body))

    def measure(self, body: bytes) -> Measured:
        answer = _predictions.read(body)
        return Measured(usage=_usage_of(answer), has_error=is_error(answer.error))

    def read_answer(self, body: bytes) -> Embedded:
        answer = _predictions.read(body)
        return Embedded(
            vectors=[prediction.embeddings.values for prediction in answer.predictions], usage=_usage_of(answer)
        )


def _usage_of(answer: _Predictions) -> Usage | None:
    statistics = [prediction.embeddings.statistics for prediction in answer.predictions]
    counts = [counted.token_count for counted in statistics if counted is not None and counted.token_count is not None]
    return checked_usage(Usage(input_tokens=int(sum(counts)))) if counts else None


# Claude


class VertexClaude(AnthropicMessages):
    """Anthropic's Messages, with the model in the path."""

    version_in_body = "vertex-2023-10-16"

    def serves(self, deployment: Deployment, provider: ProviderEntry) -> bool:
        return is_claude(deployment)

    def target(self, call: Call, deployment: Deployment, provider: ProviderEntry) -> bytes:
        path = quote(model_path(deployment, provider, "anthropic"), safe=PATH_SAFE)
        return f"/{path}:{'streamRawPredict' if call.is_stream else 'rawPredict'}".encode()

    def pass_request(self, call: Call, deployment: Deployment, provider: ProviderEntry) -> Outgoing:
        return _saying_stream(super().pass_request(call, deployment, provider), call)

    def write_request(
        self, prompt: Prompt, call: Call, deployment: Deployment, provider: ProviderEntry, lost: list[str]
    ) -> Outgoing:
        return _saying_stream(super().write_request(prompt, call, deployment, provider, lost), call)

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        """Anthropic's errors, and Google's where it did not come that far."""
        error = read_google_error(status_code, body)
        return error if error.kind else super().read_error(status_code, body)


def _saying_stream(outgoing: Outgoing, call: Call) -> Outgoing:
    """The body has to say so, too."""
    return outgoing._replace(body=b'{"stream":true,' + outgoing.body[1:]) if call.is_stream else outgoing


class VertexClaudeCountTokens(AnthropicCountTokens):
    """One path for all models."""

    def serves(self, deployment: Deployment, provider: ProviderEntry) -> bool:
        return is_claude(deployment)

    def pass_request(self, call: Call, deployment: Deployment, provider: ProviderEntry) -> Outgoing:
        counter = msgspec.structs.replace(deployment, upstream_model="count-tokens")
        fields = {
            **call.fields,
            "model": msgspec.Raw(_encode(deployment.upstream_model)),
            "anthropic_version": msgspec.Raw(_encode(VertexClaude.version_in_body)),
        }
        return Outgoing(f"/{model_path(counter, provider, 'anthropic')}:rawPredict".encode(), dump_object(fields))

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return VERTEX_CLAUDE.read_error(status_code, body)


VERTEX_CLAUDE = VertexClaude()


# Credentials


class _Key(msgspec.Struct):
    """A service account's key. What it says of addresses is not asked: a secret must not choose where it is sent."""

    client_email: str
    private_key: str
    private_key_id: str = ""


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float = ASSERTION_LIFETIME_S


_keys = Shape(_Key)
_tokens = Shape(_Token)


class ServiceAccount(Authorizer):
    """Signs an assertion, which is exchanged for an access token (RFC 7523)."""

    def __init__(self, secret: str, provider: ProviderEntry) -> None:
        key = _keys.find(secret.encode())
        if key is None:
            raise ValueError("the credential is not a service account's key")
        self._key = key
        self._private_key = _rsa_key(key.private_key)
        self._token_url = provider.options.get("token_url", TOKEN_URL)
        self._token = ""
        self._renewed_at_s = 0.0

    def headers(self, outgoing: Outgoing, origin: str, path: bytes, now_s: float) -> Headers:
        return [(b"authorization", f"Bearer {self._token}".encode("ascii"))]

    def token_request(self, now_s: float) -> tuple[str, Outgoing] | None:
        if self._token and now_s < self._renewed_at_s:
            return None
        url = urlsplit(self._token_url)
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": self._assertion(now_s)}
        outgoing = Outgoing(
            url.path.encode() or b"/", urlencode(form).encode(), content_type=b"application/x-www-form-urlencoded"
        )
        return f"{url.scheme}://{url.netloc}", outgoing

    def token_answered(self, status_code: int, body: bytes, now_s: float) -> None:
        answer = _tokens.find(body) if status_code == 200 else None
        if answer is None or not answer.access_token.isascii() or not answer.access_token.isprintable():
            raise ValueError(f"no access token came with status {status_code}")
        self._token = answer.access_token
        self._renewed_at_s = now_s + answer.expires_in - RENEWED_BEFORE_S
        self.secrets = (self._token.encode("ascii"),)

    def _assertion(self, now_s: float) -> str:
        """A JWT, signed with RS256."""
        issued_at_s = int(now_s)
        header = {"alg": "RS256", "typ": "JWT", "kid": self._key.private_key_id}
        claims = {
            "iss": self._key.client_email,
            "scope": SCOPE,
            "aud": self._token_url,
            "iat": issued_at_s,
            "exp": issued_at_s + ASSERTION_LIFETIME_S,
        }
        signed = f"{_base64url(_encode(header))}.{_base64url(_encode(claims))}"
        signature = self._private_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"


def _rsa_key(pem: str) -> RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("a service account's key is a PEM without a password") from error
    if isinstance(key, RSAPrivateKey):
        return key
    raise ValueError("a service account's key is an RSA key")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def authorize(secret: str, provider: ProviderEntry) -> Authorizer:
    """Raises `ValueError` for a JSON that is no service account's key."""
    if secret.lstrip().startswith("{"):
        return ServiceAccount(secret, provider)
    if secret.startswith(API_KEY_STARTS):
        return HeaderAuthorizer(b"x-goog-api-key", secret, secret)
    return bearer(secret, provider)


PROVIDER = Provider(
    name="vertex",
    apis=(
        VertexGenerate(),
        VertexCountTokens(),
        VertexEmbedContent(),
        VertexPredict(),
        VERTEX_CLAUDE,
        VertexClaudeCountTokens(),
    ),
    authorize=authorize,
)
