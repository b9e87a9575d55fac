"""What an answer says, in whichever way it is cut into parts, chunks and events: the same for an answer and for its stream."""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from audit.records import Usage
from proxy.neutral import (
    Answer,
    Citation,
    Cited,
    Event,
    Failed,
    Finished,
    Media,
    MediaDone,
    Part,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    UsageSeen,
    unwrap_signature,
)


class Said(msgspec.Struct):
    """One choice. `signatures` are (origin, signature or redacted), sorted; arguments of calls are decoded. `last_signature`
    is that of these which came last of all in a stream, after the text that it signs."""

    text: str = ""
    thinking: str = ""
    refusal: str = ""
    signatures: list[tuple[str, str]] = []
    last_signature: tuple[str, str] | None = None
    calls: list[tuple[str, str, Any]] = []
    media: list[tuple[str, int]] = []
    citations: list[str] = []
    logprobs: list[tuple[str, float]] = []
    finish: str = ""
    stop_sequence: str | None = None


class Meaning(NamedTuple):
    choices: list[Said]
    usage: Usage | None
    error: str = ""


def of_answer(answer: Answer) -> Meaning:
    choices = []
    for choice in answer.choices:
        said = Said(finish=choice.finish, stop_sequence=choice.stop_sequence, logprobs=_logprobs(choice.logprobs))
        for part in choice.parts:
            _add(said, part)
        said.signatures.sort()
        choices.append(said)
    return Meaning(choices, answer.usage)


def of_events(events: Iterable[Event]) -> Meaning:
    choices: dict[int, Said] = {}
    calls: dict[tuple[int, int], list[Any]] = {}
    usage, error = None, ""
    for event in events:
        said = choices.setdefault(getattr(event, "choice", 0), Said())
        match event:
            case TextDelta():
                is_late = said.text != "" and not event.begins_part
                said.text += event.text
                said.logprobs += _logprobs(event.logprobs)
                if event.signature:
                    said.signatures.append(("gemini", event.signature))
                    said.last_signature = ("gemini", event.signature) if is_late else None
            case ThinkingDelta():
                _think(said, event)
            case RefusalDelta(text=text):
                said.refusal += text
            case ToolCallBegan():
                said.last_signature = None
                calls[event.choice, event.index] = [event.call_id, event.name, ""]
                if event.signature:
                    said.signatures.append(("gemini", event.signature))
            case ToolCallDelta():
                calls[event.choice, event.index][2] += event.arguments
            case MediaDone(media=media):
                _add(said, media)
            case Cited(citation=citation):
                said.citations.append(_source(citation))
            case Finished():
                said.finish, said.stop_sequence = event.finish, event.stop_sequence
            case UsageSeen(usage=seen):
                usage = seen
            case Failed(error=failure):
                error = failure.message
            case _:
                pass
    for (choice, _), (call_id, name, arguments) in sorted(calls.items()):
        choices[choice].calls.append((call_id, name, _decoded(arguments)))
    for said in choices.values():
        said.signatures.sort()
    return Meaning([choices[index] for index in sorted(choices)], usage, error)


def _add(said: Said, part: Part) -> None:
    match part:
        case Text():
            said.text += part.text
            said.citations += [_source(citation) for citation in part.citations]
            if part.signature:
                said.signatures.append(("gemini", part.signature))
        case Thinking():
            _think(said, part)
        case Refusal(text=text):
            said.refusal += text
        case ToolCall():
            said.calls.append((part.call_id, part.name, _decoded(part.arguments)))
            if part.signature:
                said.signatures.append(("gemini", part.signature))
        case Media():
            said.media.append((part.kind, len(part.data or part.url or part.file_id)))
        case _:
            pass


def _think(said: Said, thought: Thinking | ThinkingDelta) -> None:
    said.thinking += thought.text
    for signature in (thought.signature, thought.redacted):
        origin, unwrapped = _unwrapped(thought.origin, signature)
        if unwrapped:
            said.signatures.append((origin, unwrapped))


def _unwrapped(origin: str, signature: str) -> tuple[str, str]:
    """Whose it really is: one that a dialect wrapped shows as its own, for Gemini's in base64 once more."""
    found = unwrap_signature(signature)
    if found is None and signature.startswith("dGcxL"):
        found = unwrap_signature(base64.b64decode(signature).decode())
    return (re.split(r"[.:]", found[0])[0], found[1]) if found is not None else (origin, signature)


def _decoded(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _source(citation: Citation) -> str:
    return citation.url or citation.title or citation.file_id


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> list[tuple[str, float]]:
    return [(token.token, token.logprob) for token in tokens or ()]
