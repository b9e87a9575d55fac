"""OpenRouter's `reasoning_details`: a message's reasoning in an OpenAI chat, with its signatures. Pure; no I/O.

    {"type": "reasoning.text", "text", "signature"?, "id"?, "format", "index"}
    {"type": "reasoning.summary", "summary", "format", "index"}
    {"type": "reasoning.encrypted", "data", "id"?, "format", "index"}

Source: openrouter.ai/docs/use-cases/reasoning-tokens. OpenRouter says by `format` whose a signature is and takes it raw; to
clients of the gateway a signature is shown wrapped, since they may come back without the format.
"""

from collections.abc import Iterable
from typing import Any

from proxy.neutral import Thinking, ThinkingDelta, unwrap_signature, wrap_signature

_ORIGIN_OF_FORMAT = {
    "anthropic-claude-v1": "anthropic",
    "google-gemini-v1": "gemini",
    "openai-responses-v1": "openai",
    "azure-openai-responses-v1": "openai",
}
_FORMAT_OF_ORIGIN = {
    "anthropic": "anthropic-claude-v1",
    "gemini": "google-gemini-v1",
    "openai": "openai-responses-v1",
    "": "unknown",
}


def read_details(details: Iterable[Any], path: str = "") -> list[Thinking]:
    """What cannot be read is left out. `path` is where the details stand, for what cannot be carried on."""
    thoughts: list[Thinking] = []
    for index, detail in enumerate(details):
        delta = read_detail(detail)
        if delta is None:
            continue
        last = thoughts[-1] if thoughts else None
        # What OpenAI thought comes as a summary and then, apart, as what only OpenAI can read.
        if (
            last is not None
            and not (last.signature or last.redacted)
            and delta.origin == last.origin
            and (delta.signature and not delta.text)
        ):
            last.signature, last.thinking_id = delta.signature, delta.thinking_id or last.thinking_id
            continue
        thoughts.append(
            Thinking(
                text=delta.text,
                signature=delta.signature,
                redacted=delta.redacted,
                origin=delta.origin,
                thinking_id=delta.thinking_id,
                path=f"{path}.{index}" if path else "",
            )
        )
    for thought in thoughts:
        if not (thought.signature or thought.redacted):
            thought.origin = ""  # What nobody signed is nobody's: anyone may read it.
    return thoughts


def read_detail(detail: Any, choice: int = 0) -> ThinkingDelta | None:
    """One detail, whole or a piece of a stream; None for what says nothing."""
    if type(detail) is not dict:
        return None
    origin = _ORIGIN_OF_FORMAT.get(_text(detail.get("format")), "")
    text = _text(detail.get("text")) or _text(detail.get("summary"))
    thinking_id = _text(detail.get("id"))
    signature, data = _text(detail.get("signature")), _text(detail.get("data"))
    if unwrapped := unwrap_signature(signature or data):
        origin, unwrapped_text = unwrapped
        signature, data = (unwrapped_text, "") if signature else ("", unwrapped_text)
    elif data and origin in ("openai", "gemini"):
        signature, data = data, ""  # Of these two a signature is all that is encrypted.
    if not (text or signature or data):
        return None
    return ThinkingDelta(
        text=text, signature=signature, redacted=data, origin=origin, thinking_id=thinking_id, choice=choice
    )


def shown_details(thoughts: Iterable[Thinking]) -> list[dict[str, Any]]:
    """For a client of the gateway: signatures wrapped."""
    return [shown_detail(thought, index) for index, thought in enumerate(thoughts)]


def shown_detail(thought: Thinking | ThinkingDelta, index: int) -> dict[str, Any]:
    if thought.redacted:
        detail = {"type": "reasoning.encrypted", "data": _wrapped(thought.origin, thought.redacted)}
    else:
        detail = {"type": "reasoning.text", "text": thought.text}
        if thought.signature:
            detail["signature"] = _wrapped(thought.origin, thought.signature)
    if thought.thinking_id:
        detail["id"] = thought.thinking_id
    return {**detail, "format": _FORMAT_OF_ORIGIN.get(thought.origin, "unknown"), "index": index}


def sent_details(thoughts: Iterable[Thinking]) -> list[dict[str, Any]]:
    """For OpenRouter: as it gave them itself."""
    details: list[dict[str, Any]] = []
    for index, thought in enumerate(thoughts):
        tail = {"format": _FORMAT_OF_ORIGIN.get(thought.origin, "unknown"), "index": index}
        encrypted = thought.redacted
        if thought.origin in ("openai", "gemini"):
            encrypted = thought.signature or thought.redacted
            if thought.text:
                kind, field = ("summary", "summary") if thought.origin == "openai" else ("text", "text")
                details.append({"type": f"reasoning.{kind}", field: thought.text, **tail})
        elif thought.text or thought.signature:
            signed = {"signature": thought.signature} if thought.signature else {}
            details.append({"type": "reasoning.text", "text": thought.text, **signed, **tail})
        if encrypted:
            named = {"id": thought.thinking_id} if thought.thinking_id else {}
            details.append({"type": "reasoning.encrypted", "data": encrypted, **named, **tail})
    return details


def _wrapped(origin: str, signature: str) -> str:
    return wrap_signature(origin, signature) if origin else signature


def _text(value: Any) -> str:
    return value if type(value) is str else ""
