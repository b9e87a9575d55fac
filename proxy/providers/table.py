"""The providers, by the word that stands in `snapshot.Provider.api`."""

from proxy.providers import (
    anthropic,
    azure,
    bedrock,
    cerebras,
    cohere,
    deepseek,
    gemini,
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
    vertex,
    vllm,
    voyage,
    xai,
)
from proxy.providers.provider import Provider

PROVIDERS: dict[str, Provider] = {
    module.PROVIDER.name: module.PROVIDER
    for module in (
        anthropic,
        azure,
        bedrock,
        cerebras,
        cohere,
        deepseek,
        gemini,
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
        vertex,
        vllm,
        voyage,
        xai,
    )
}
