"""The providers, by the word that stands in `snapshot.Provider.api`: each the `PROVIDER` of the module of that name."""

from importlib import import_module

from proxy.providers.provider import Provider
from routing.apis import APIS

PROVIDERS: dict[str, Provider] = {api: import_module(f"proxy.providers.{api}").PROVIDER for api in APIS}
