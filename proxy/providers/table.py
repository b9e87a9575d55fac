"""The providers, by the word that stands in `snapshot.Provider.api`."""

from proxy.providers import openai
from proxy.providers.provider import Provider

PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (openai.PROVIDER,)}
