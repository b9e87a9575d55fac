"""Azure OpenAI and Azure AI Foundry. Pure; no I/O.

The provider's options say how its addresses are made, after a base URL that ends with the host:

    url_style      "v1" (default)   /openai/v1/chat/completions
                   "deployments"    /openai/deployments/{upstream model}/chat/completions?api-version=…
                   "models"         /models/chat/completions?api-version=…
    api_version    for the last two, and for "v1" where a preview is wanted

Source: learn.microsoft.com/azure/ai-foundry/openai/reference. Its streams may begin with a chunk without choices, id and
model that holds `prompt_filter_results`.
"""

from typing import Any
from urllib.parse import quote

from proxy import snapshot
from proxy.dialects.dialect import Call
from proxy.providers.azure_stored import at_azure
from proxy.providers.openai_chat import OpenAIChat
from proxy.providers.openai_completions import OpenAICompletions
from proxy.providers.openai_embeddings import OpenAIEmbeddings
from proxy.providers.openai_media import (
    EDITS,
    GENERATIONS,
    SPEECH,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    OpenAIMedia,
    OpenAISpeech,
)
from proxy.providers.openai_realtime import OpenAIRealtime, with_query
from proxy.providers.openai_responses import OpenAIResponses
from proxy.providers.provider import Api, Authorizer, HeaderAuthorizer, Outgoing, Provider, bearer

API_VERSION = "2024-10-21"
REALTIME_API_VERSION = "2025-04-01-preview"
_JWT_DOTS = 2
# Names its model in the body alone, in every style.
_RESPONSES = OpenAIResponses.target


def placed(outgoing: Outgoing, deployment: snapshot.Deployment, provider: snapshot.Provider) -> Outgoing:
    """The same request at the address that Azure gives it."""
    style, version = provider.options.get("url_style", "v1"), provider.options.get("api_version", "")
    prefix = "/openai/v1"
    if style != "v1" and outgoing.target == _RESPONSES:
        prefix = "/openai"
    elif style == "deployments":
        prefix = f"/openai/deployments/{quote(deployment.upstream_model, safe='')}"
    elif style == "models":
        prefix = "/models"
    if style != "v1":
        version = version or API_VERSION
    query = f"?api-version={quote(version, safe='')}" if version else ""
    return outgoing._replace(target=prefix.encode() + outgoing.target + query.encode())


class _Placed(Api):
    def pass_request(self, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider) -> Outgoing:
        return placed(super().pass_request(call, deployment, provider), deployment, provider)

    def write_request(
        self, prompt: Any, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider, lost: list[str]
    ) -> Outgoing:
        return placed(super().write_request(prompt, call, deployment, provider, lost), deployment, provider)


class AzureChat(_Placed, OpenAIChat):
    # Searches that the resource runs with its own identity; what they find is input that nobody sees.
    unbounded = frozenset({"data_sources"})


class AzureResponses(_Placed, OpenAIResponses):
    pass


class AzureCompletions(_Placed, OpenAICompletions):
    pass


class AzureEmbeddings(_Placed, OpenAIEmbeddings):
    pass


class AzureRealtime(OpenAIRealtime):
    """Always at the resource's own address, with the deployment in the query."""

    def pass_request(self, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider) -> Outgoing:
        if provider.options.get("url_style", "v1") == "v1":
            return Outgoing(
                with_query(b"/openai/v1/realtime", call, model=deployment.upstream_model), b"", method=b"GET"
            )
        version = provider.options.get("api_version") or REALTIME_API_VERSION
        named = {"api-version": version, "deployment": deployment.upstream_model}
        return Outgoing(with_query(b"/openai/realtime", call, **named), b"", method=b"GET")


class AzureMedia(_Placed, OpenAIMedia):
    pass


class AzureSpeech(_Placed, OpenAISpeech):
    pass


MEDIA = (
    AzureSpeech(SPEECH.name, SPEECH.capability, SPEECH.target),
    *(AzureMedia(api.name, api.capability, api.target) for api in (TRANSCRIPTIONS, TRANSLATIONS, GENERATIONS, EDITS)),
)


def authorize(secret: str, provider: snapshot.Provider) -> Authorizer:
    """A resource's key, or a token of Entra ID, which is a JWT."""
    if secret.startswith("eyJ") and secret.count(".") == _JWT_DOTS:
        return bearer(secret, provider)
    return HeaderAuthorizer(b"api-key", secret, secret)


PROVIDER = Provider(
    name="azure",
    apis=(
        AzureChat(),
        AzureResponses(),
        AzureCompletions(),
        AzureEmbeddings(),
        *MEDIA,
        AzureRealtime(),
        *at_azure(API_VERSION),
    ),
    authorize=authorize,
    response_headers=frozenset({b"content-type", b"retry-after", b"retry-after-ms", b"apim-request-id"}),
)
