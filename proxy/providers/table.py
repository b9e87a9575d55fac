"""The providers, by the word that stands in `snapshot.Provider.api`."""

from proxy.providers import (
    azure,
    bedrock,
    cerebras,
    cohere,
    deepseek,
    groq,
    huggingface,
    llamacpp,
    mistral,
    ollama,
    openai,
    openai_compatible,
    openrouter,
    perplexity,
    together,
    vllm,
    voyage,
    xai,
)
from proxy.providers.provider import Provider

PROVIDERS: dict[str, Provider] = {
    module.PROVIDER.name: module.PROVIDER
    for module in (
        azure,
        bedrock,
        cerebras,
        cohere,
        deepseek,
        groq,
        huggingface,
        llamacpp,
        mistral,
        ollama,
        openai,
        openai_compatible,
        openrouter,
        perplexity,
        together,
        vllm,
        voyage,
        xai,
    )
}
