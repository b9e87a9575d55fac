"""Azure's files, batches and stored responses: OpenAI's at Azure's addresses, which name no deployment. Pure; no I/O."""

from urllib.parse import quote

from proxy.dialects.dialect import Call
from proxy.providers.openai_stored import OpenAIBatches, OpenAIFiles, OpenAIStoredResponses
from proxy.providers.provider import Outgoing
from proxy.providers.stored import StoredApi
from proxy.snapshot import Deployment, Provider


class _Placed(StoredApi):
    def __init__(self, api_version: str) -> None:
        self.api_version = api_version

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return self._placed(super().pass_request(call, deployment, provider), provider)

    def read(self, path: str, deployment: Deployment, provider: Provider) -> Outgoing:
        return self._placed(super().read(path, deployment, provider), provider)

    def _placed(self, outgoing: Outgoing, provider: Provider) -> Outgoing:
        is_v1 = provider.options.get("url_style", "v1") == "v1"
        version = provider.options.get("api_version") or ("" if is_v1 else self.api_version)
        target = (b"/openai/v1" if is_v1 else b"/openai") + outgoing.target
        if version:
            target += b"%b%b" % (b"&" if b"?" in target else b"?", f"api-version={quote(version, safe='')}".encode())
        return outgoing._replace(target=target)


class AzureFiles(_Placed, OpenAIFiles):
    pass


class AzureBatches(_Placed, OpenAIBatches):
    pass


class AzureStoredResponses(_Placed, OpenAIStoredResponses):
    pass


def at_azure(api_version: str) -> tuple[StoredApi, ...]:
    """`api_version` where the provider's options name none, and its addresses need one."""
    return AzureFiles(api_version), AzureBatches(api_version), AzureStoredResponses(api_version)
