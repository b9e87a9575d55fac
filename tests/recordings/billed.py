"""What a recorded exchange used, by each provider's own meaning of its counts, read from what the recording lists of them.

Written apart from the code under test, from the providers' documentation.
"""

import json
from typing import Any

from audit.records import Usage
from tests.recordings.corpus import Recording

# How Gemini names modalities, and how it numbers them.
_AUDIO, _IMAGE = ("AUDIO", 4), ("IMAGE", 2)


def recorded_usage(recording: Recording) -> Usage | None:
    """None where the provider did not say. Runs of built-in tools are left out: they stand in the answer itself."""
    said = [usage for usage in recording.meta["usage"] if isinstance(usage, dict)]
    if not said and recording.api != "predict":
        return None
    match recording.api:
        case "responses" | "images":
            return _responses(said[-1])
        case "messages":
            return _anthropic(_merged(said))
        case "invoke":
            return _anthropic(_merged(said)) if "input_tokens" in said[0] else None
        case "generate-content" | "embed-content":
            return _gemini(said[-1])
        case "converse":
            return _converse(said[-1])
        case "ollama-chat" | "ollama-embed":
            return _usage(input_tokens=said[-1].get("prompt_eval_count"), output_tokens=said[-1].get("eval_count"))
        case "chat-v2" | "embed" | "rerank" if recording.provider == "cohere":
            return _cohere(said[-1])
        case "predict":
            predictions = json.loads(recording.body)["predictions"]
            return _usage(
                input_tokens=sum(int(found["embeddings"]["statistics"]["token_count"]) for found in predictions)
            )
        case "rerank":
            return _usage(input_tokens=said[-1].get("total_tokens"))
        case _:
            return _openai(_merged(said))


def _merged(said: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a stream: the last word on each count."""
    merged: dict[str, Any] = {}
    for usage in said:
        merged.update({name: value for name, value in usage.items() if value is not None})
    return merged


def _usage(**counts: int | None) -> Usage:
    return Usage(**{name: count or 0 for name, count in counts.items()})


def _openai(said: dict[str, Any]) -> Usage | None:
    """Reasoning that stands beside `completion_tokens`, or Mistral's audio beside `prompt_tokens`, is in the total alone."""
    if said.get("prompt_tokens") is None and said.get("total_tokens") is None:
        return None
    prompt_details = said.get("prompt_tokens_details") or {}
    completion_details = said.get("completion_tokens_details") or {}
    prompt, completion = said.get("prompt_tokens") or 0, said.get("completion_tokens") or 0
    audio = prompt_details.get("audio_tokens") or 0
    beside = max((said.get("total_tokens") or 0) - prompt - completion, 0)
    if said.get("prompt_audio_seconds"):
        prompt, beside = prompt + beside, 0
    output = completion + beside
    cached = prompt_details.get("cached_tokens") or said.get("prompt_cache_hit_tokens") or said.get("num_cached_tokens")
    if cached is not None and cached > prompt:
        prompt += cached  # No prompt holds more cached tokens than it has: Azure's Grok counts them beside.
    return _usage(
        input_tokens=prompt,
        cache_read_input_tokens=cached,
        cache_write_input_tokens=prompt_details.get("cache_write_tokens") or said.get("cache_creation_input_tokens"),
        output_tokens=output,
        reasoning_tokens=min(completion_details.get("reasoning_tokens") or 0, output),
        input_audio_tokens=audio,
        input_image_tokens=prompt_details.get("image_tokens"),
        output_audio_tokens=completion_details.get("audio_tokens"),
        output_image_tokens=completion_details.get("image_tokens"),
    )


def _responses(said: dict[str, Any]) -> Usage:
    inputs, outputs = said.get("input_tokens_details") or {}, said.get("output_tokens_details") or {}
    return _usage(
        input_tokens=said["input_tokens"],
        cache_read_input_tokens=inputs.get("cached_tokens"),
        cache_write_input_tokens=inputs.get("cache_write_tokens"),
        output_tokens=said["output_tokens"],
        reasoning_tokens=outputs.get("reasoning_tokens"),
        input_image_tokens=inputs.get("image_tokens"),
        output_image_tokens=outputs.get("image_tokens"),
    )


def _anthropic(said: dict[str, Any]) -> Usage:
    """`input_tokens` are those after the last cache breakpoint."""
    read, written = said.get("cache_read_input_tokens") or 0, said.get("cache_creation_input_tokens") or 0
    return _usage(
        input_tokens=said["input_tokens"] + read + written,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        cache_write_1h_input_tokens=(said.get("cache_creation") or {}).get("ephemeral_1h_input_tokens"),
        output_tokens=said.get("output_tokens"),
        reasoning_tokens=(said.get("output_tokens_details") or {}).get("thinking_tokens"),
    )


def _gemini(said: dict[str, Any]) -> Usage:
    """Thoughts and the results of tools stand beside the counts of the prompt and the candidates."""
    thoughts = said.get("thoughtsTokenCount") or 0
    return _usage(
        input_tokens=(said.get("promptTokenCount") or 0) + (said.get("toolUsePromptTokenCount") or 0),
        cache_read_input_tokens=said.get("cachedContentTokenCount"),
        output_tokens=(said.get("candidatesTokenCount") or 0) + thoughts,
        reasoning_tokens=thoughts,
        input_audio_tokens=_of_modality(said, "promptTokensDetails", _AUDIO),
        input_image_tokens=_of_modality(said, "promptTokensDetails", _IMAGE)
        or _of_modality(said, "promptTokenDetails", _IMAGE),
        output_audio_tokens=_of_modality(said, "candidatesTokensDetails", _AUDIO),
        output_image_tokens=_of_modality(said, "candidatesTokensDetails", _IMAGE),
    )


def _of_modality(said: dict[str, Any], field: str, modality: tuple[str, int]) -> int:
    return sum(item.get("tokenCount") or 0 for item in said.get(field) or [] if item.get("modality") in modality)


def _converse(said: dict[str, Any]) -> Usage:
    """As Anthropic: cached tokens stand beside the input."""
    read = said.get("cacheReadInputTokens") or 0
    written = said.get("cacheWriteInputTokens") or 0
    return _usage(
        input_tokens=said["inputTokens"] + read + written,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        cache_write_1h_input_tokens=sum(
            item.get("inputTokens") or 0 for item in said.get("cacheDetails") or [] if item.get("ttl") == "1h"
        ),
        output_tokens=said["outputTokens"],
    )


def _cohere(said: dict[str, Any]) -> Usage | None:
    """What is billed, not what was read."""
    units, tokens = said.get("billed_units") or {}, said.get("tokens") or {}
    return _usage(
        input_tokens=units.get("input_tokens"),
        output_tokens=units.get("output_tokens"),
        reasoning_tokens=tokens.get("reasoning_tokens"),
        units=units.get("search_units") or units.get("images"),
        input_image_tokens=tokens.get("image_tokens"),
    )
