"""What Cohere bills, in the answers of all its APIs. Pure; no I/O.

`billed_units` leaves out Cohere's own prompt text, and so what of it was cached. Counts may be written as 5.0.
"""

import msgspec

from audit.records import Usage
from proxy.providers.provider import TOKENS_MAX, checked_usage


class _Units(msgspec.Struct):
    input_tokens: float | None = None
    output_tokens: float | None = None
    search_units: float | None = None
    images: float | None = None
    text_tokens: float | None = None
    image_tokens: float | None = None


class _Tokens(msgspec.Struct):
    input_tokens: float | None = None
    output_tokens: float | None = None
    reasoning_tokens: float | None = None
    image_tokens: float | None = None


class ChatUsage(msgspec.Struct):
    billed_units: _Units | None = None
    tokens: _Tokens | None = None


class Meta(msgspec.Struct):
    """Of embeddings and reranking."""

    billed_units: _Units | None = None


def usage_of_chat(usage: ChatUsage | None) -> Usage | None:
    if usage is None:
        return None
    tokens = usage.tokens or _Tokens()
    billed = usage.billed_units or _Units(input_tokens=tokens.input_tokens, output_tokens=tokens.output_tokens)
    if billed.input_tokens is None and billed.output_tokens is None:
        return None
    input_tokens, output_tokens = _count(billed.input_tokens), _count(billed.output_tokens)
    return checked_usage(
        Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            reasoning_tokens=min(_count(tokens.reasoning_tokens), output_tokens),
            input_image_tokens=min(_count(tokens.image_tokens), input_tokens),
        )
    )


def usage_of_meta(meta: Meta | None) -> Usage | None:
    if meta is None or meta.billed_units is None:
        return None
    billed = meta.billed_units
    images = _count(billed.image_tokens)
    texts = _count(billed.input_tokens if billed.text_tokens is None else billed.text_tokens)
    return checked_usage(
        Usage(
            input_tokens=texts + images,
            output_tokens=_count(billed.output_tokens),
            input_image_tokens=images,
            units=_count(billed.search_units) + _count(billed.images),
        )
    )


def _count(number: float | None) -> int:
    """What is no number of tokens is -1, which `checked_usage` refuses."""
    if number is None:
        return 0
    return int(number) if 0 <= number <= TOKENS_MAX else -1
