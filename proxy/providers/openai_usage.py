"""Usage as OpenAI counts it, and the many ways in which providers shaped like it count otherwise. Pure; no I/O."""

import msgspec

from audit.records import Usage
from proxy.providers.provider import checked_usage
from proxy.service_tiers import tier_of


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _ServerTools(msgspec.Struct):
    web_search_requests: int | None = None
    tool_calls_executed: int | None = None


class ChatUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    # DeepSeek; Mistral; Moonshot; Databricks and others that bill as Anthropic does.
    prompt_cache_hit_tokens: int | None = None
    num_cached_tokens: int | None = None
    cached_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    # Mistral; Perplexity; xAI; OpenRouter, now and before.
    prompt_audio_seconds: float | None = None
    num_search_queries: int | None = None
    num_sources_used: int | None = None
    server_tool_use_details: _ServerTools | None = None
    server_tool_use: _ServerTools | None = None


_NO_PROMPT_DETAILS = _PromptDetails()
_NO_COMPLETION_DETAILS = _CompletionDetails()


def read_usage(usage: ChatUsage | None, tool_calls: int = 0, service_tier: object = None) -> Usage | None:
    """None where it does not say, or says what no provider can mean. `tool_calls` is how many runs of built-in tools the answer itself
    shows: the dearest of them are searches, and most are. `service_tier` stands beside the usage."""
    if usage is None or usage.prompt_tokens is None:
        return None
    details = usage.prompt_tokens_details or _NO_PROMPT_DETAILS
    completion_details = usage.completion_tokens_details or _NO_COMPLETION_DETAILS
    prompt, output = usage.prompt_tokens, usage.completion_tokens or 0
    audio = details.audio_tokens or 0
    # What is in neither sum but in the total: Mistral's audio, or reasoning where it is left out of `completion_tokens`.
    beside = (usage.total_tokens or 0) - prompt - output
    if beside > 0:
        if usage.prompt_audio_seconds and not audio:
            audio = beside
        if audio > prompt or beside == audio:
            prompt += audio
            beside -= audio
        output += max(beside, 0)
    cached = (
        details.cached_tokens
        or usage.prompt_cache_hit_tokens
        or usage.num_cached_tokens
        or usage.cached_tokens
        or usage.cache_read_input_tokens
        or 0
    )
    written = details.cache_write_tokens or usage.cache_creation_input_tokens or 0
    if cached + written > prompt:
        prompt += cached + written  # They stand beside, as with Anthropic.
    hour = usage.cache_creation.ephemeral_1h_input_tokens or 0 if usage.cache_creation is not None else 0
    calls = max(tool_calls, _tool_calls(usage))
    read = Usage(
        input_tokens=prompt,
        cache_read_input_tokens=cached,
        cache_write_input_tokens=written,
        output_tokens=output,
        reasoning_tokens=min(completion_details.reasoning_tokens or 0, output),
        cache_write_1h_input_tokens=min(hour, written),
        input_audio_tokens=audio,
        input_image_tokens=details.image_tokens or 0,
        output_audio_tokens=completion_details.audio_tokens or 0,
        output_image_tokens=completion_details.image_tokens or 0,
        tool_calls=calls,
        searches=calls,
        service_tier=tier_of(service_tier),
    )
    return checked_usage(read)


def _tool_calls(usage: ChatUsage) -> int:
    calls = max(usage.num_search_queries or 0, usage.num_sources_used or 0)
    tools = usage.server_tool_use_details or usage.server_tool_use
    return max(calls, tools.web_search_requests or 0, tools.tool_calls_executed or 0) if tools is not None else calls
