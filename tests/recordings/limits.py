"""What each dialect has no words for in an answer, so that it is left out or told otherwise. docs/translation.md shows it.

In an answer nothing can be refused any more: what has no counterpart is left out, and these are all such things.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from audit.records import Usage
from proxy.neutral import CONTENT_FILTER, REFUSAL, STOP, STOP_SEQUENCE
from tests.recordings.meaning import Meaning, Said


class Limits(NamedTuple):
    """`finishes` says how a reason to finish is told that the dialect does not have; `unsaid` are fields of `Said`, and
    `uncounted` of `Usage`, that have no place. `bare_refusal` is how a refusal without words is told."""

    finishes: Mapping[str, str]
    unsaid: frozenset[str] = frozenset()
    uncounted: frozenset[str] = frozenset()
    has_refusals: bool = False
    bare_refusal: str = REFUSAL
    has_choices: bool = False
    # Whether a stream that ends in words ends with these, and not with a signature of theirs.
    ends_in_words: bool = False
    # Whether a citation needs an address or a file; an answer its usage.
    cites_sources_only: bool = False
    needs_usage: bool = False


LIMITS = {
    "openai.chat": Limits(
        {STOP_SEQUENCE: STOP},
        unsaid=frozenset({"stop_sequence"}),
        uncounted=frozenset({"searches", "tool_calls"}),
        has_refusals=True,
        bare_refusal=CONTENT_FILTER,
        has_choices=True,
        cites_sources_only=True,
    ),
    "openai.responses": Limits(
        {STOP_SEQUENCE: STOP},
        unsaid=frozenset({"stop_sequence", "media"}),
        uncounted=frozenset(
            {
                "searches", "tool_calls", "cache_write_1h_input_tokens", "input_audio_tokens", "input_image_tokens",
                "output_audio_tokens", "output_image_tokens",
            }
        ),
        has_refusals=True,
        bare_refusal=CONTENT_FILTER,
        cites_sources_only=True,
    ),
    "anthropic.messages": Limits(
        {CONTENT_FILTER: REFUSAL},
        unsaid=frozenset({"logprobs", "media"}),
        # Of the runs only the searches are told.
        uncounted=frozenset(
            {"tool_calls", "input_audio_tokens", "input_image_tokens", "output_audio_tokens", "output_image_tokens"}
        ),
        ends_in_words=True,
        needs_usage=True,
    ),
    "gemini.generate": Limits(
        {STOP_SEQUENCE: STOP, REFUSAL: CONTENT_FILTER},
        unsaid=frozenset({"stop_sequence"}),
        uncounted=frozenset(
            {"searches", "tool_calls", "cache_write_input_tokens", "cache_write_1h_input_tokens"}
        ),
        has_choices=True,
    ),
    "cohere.chat": Limits(
        {REFUSAL: STOP},
        unsaid=frozenset({"stop_sequence", "signatures", "media"}),
        uncounted=frozenset(
            {
                "searches", "tool_calls", "cache_read_input_tokens", "cache_write_input_tokens",
                "cache_write_1h_input_tokens", "input_audio_tokens", "output_audio_tokens", "output_image_tokens",
            }
        ),
    ),
}  # fmt: skip
_NOTHING = Said()


def as_told(meaning: Meaning, limits: Limits) -> Meaning:
    """What is left of it in a dialect of these limits."""
    choices = meaning.choices if limits.has_choices else meaning.choices[:1]
    usage = meaning.usage if meaning.usage is not None or not limits.needs_usage else Usage()
    if usage is not None:
        usage = msgspec.structs.replace(usage, **dict.fromkeys(limits.uncounted, 0))
        # Where an answer was served, its tier tells, if any.
        usage = msgspec.structs.replace(usage, service_tier="", inference_geo="")
    return Meaning([_told(said, limits) for said in choices], usage, meaning.error)


def _told(said: Said, limits: Limits) -> Said:
    finish = said.finish
    if finish == REFUSAL and not said.refusal:
        finish = limits.bare_refusal
    changes = {name: getattr(_NOTHING, name) for name in ("last_signature", *limits.unsaid)}
    if limits.ends_in_words and said.last_signature is not None and "signatures" not in limits.unsaid:
        changes["signatures"] = [signature for signature in said.signatures if signature != said.last_signature]
    if not limits.has_refusals and said.refusal:
        changes |= {"text": said.text + said.refusal, "refusal": ""}
    if limits.cites_sources_only:
        changes["citations"] = [source for source in said.citations if source.startswith(("http", "file-"))]
    return msgspec.structs.replace(said, finish=limits.finishes.get(finish, finish), **changes)
