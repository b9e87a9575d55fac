"""The APIs that providers speak: where each is found, what it calls the cap of an answer, what else it must be told.

Values in, values out: no database, no Django. How they are spoken is `proxy/providers/`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from routing.addresses import InvalidAddress, check_base_url

MAX_COMPLETION_TOKENS = "max_completion_tokens"
MAX_TOKENS = "max_tokens"

# They become part of a host, a path or a query, so nothing in them may mean something there.
_word = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,99}")


class InvalidOptions(ValueError):
    """The message names the option, and which there are."""


class Option(NamedTuple):
    """A word; one of `choices` where there are some, and a URL where it is an address."""

    is_required: bool = False
    choices: tuple[str, ...] = ()
    is_address: bool = False


class ProviderApi(NamedTuple):
    """`base_url` is where everybody finds it; "" where each customer has an address of their own, as in `example`."""

    label: str
    base_url: str = ""
    example: str = ""
    output_cap_field: str = MAX_TOKENS
    options: Mapping[str, Option] = {}


# By the word that stands in `snapshot.Provider.api`.
APIS: Mapping[str, ProviderApi] = {
    "openai": ProviderApi("OpenAI", "https://api.openai.com/v1", output_cap_field=MAX_COMPLETION_TOKENS),
    "azure": ProviderApi(
        "Azure OpenAI",
        example="https://RESOURCE.openai.azure.com",
        output_cap_field=MAX_COMPLETION_TOKENS,
        options={"api_version": Option(), "url_style": Option(choices=("v1", "deployments", "models"))},
    ),
    "anthropic": ProviderApi("Anthropic", "https://api.anthropic.com/v1"),
    "gemini": ProviderApi("Google Gemini", "https://generativelanguage.googleapis.com/v1beta"),
    "vertex": ProviderApi(
        "Google Vertex AI",
        example="https://LOCATION-aiplatform.googleapis.com/v1",
        options={
            "project": Option(is_required=True),
            "location": Option(is_required=True),
            "token_url": Option(is_address=True),
        },
    ),
    "bedrock": ProviderApi(
        "Amazon Bedrock",
        example="https://bedrock-runtime.REGION.amazonaws.com",
        options={"region": Option(is_required=True)},
    ),
    "mistral": ProviderApi("Mistral", "https://api.mistral.ai/v1"),
    "groq": ProviderApi("Groq", "https://api.groq.com/openai/v1", output_cap_field=MAX_COMPLETION_TOKENS),
    "deepseek": ProviderApi("DeepSeek", "https://api.deepseek.com/v1"),
    "cohere": ProviderApi("Cohere", "https://api.cohere.com"),
    "xai": ProviderApi("xAI", "https://api.x.ai/v1", output_cap_field=MAX_COMPLETION_TOKENS),
    "openrouter": ProviderApi("OpenRouter", "https://openrouter.ai/api/v1"),
    "together": ProviderApi("Together AI", "https://api.together.xyz/v1"),
    "perplexity": ProviderApi("Perplexity", "https://api.perplexity.ai"),
    "cerebras": ProviderApi("Cerebras", "https://api.cerebras.ai/v1", output_cap_field=MAX_COMPLETION_TOKENS),
    "voyage": ProviderApi("Voyage AI", "https://api.voyageai.com/v1"),
    "ollama": ProviderApi("Ollama", example="http://127.0.0.1:11434"),
    "vllm": ProviderApi("vLLM", example="http://127.0.0.1:8000/v1"),
    "llamacpp": ProviderApi("llama.cpp", example="http://127.0.0.1:8080/v1"),
    "huggingface": ProviderApi("Hugging Face", "https://router.huggingface.co/v1"),
    "openai_compatible": ProviderApi("Like OpenAI's", example="https://api.example.com/v1"),
}


def check_options(api: ProviderApi, options: Any, *, may_be_private: bool) -> None:
    """Raises `InvalidOptions`. Addresses among them are bound by `may_be_private` as the base URL is."""
    known = ", ".join(api.options)
    if not isinstance(options, dict):
        raise InvalidOptions('Write them as {"name": "value"}.')
    for name, value in options.items():
        if name not in api.options:
            raise InvalidOptions(f"{api.label} has no option {name!r}; it has {known or 'none'}.")
        if not isinstance(value, str):
            raise InvalidOptions(f"{name}: a text, in quotes.")
        _check_value(name, value, api.options[name], may_be_private=may_be_private)
    missing = [name for name, option in api.options.items() if option.is_required and name not in options]
    if missing:
        raise InvalidOptions(f"{api.label} needs {' and '.join(missing)}; its options are {known}.")


def _check_value(name: str, value: str, option: Option, *, may_be_private: bool) -> None:
    if option.is_address:
        try:
            check_base_url(value, may_be_private=may_be_private)
        except InvalidAddress as error:
            raise InvalidOptions(f"{name}: {error}") from error
    elif option.choices and value not in option.choices:
        raise InvalidOptions(f"{name}: {' or '.join(option.choices)}.")
    elif not _word.fullmatch(value):
        raise InvalidOptions(f"{name}: letters, digits and . _ : - only.")
