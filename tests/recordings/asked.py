"""What a request asks, whichever dialect asks it: messages of one role in a row are one, and blanks between texts are nobody's."""

import json
from typing import Any

import msgspec

from proxy.neutral import Media, Part, Prompt, Refusal, Text, Thinking, ToolCall, ToolResult


class Turn(msgspec.Struct):
    """`media` are (kind, what it holds); calls (name, arguments); results (their text, its media, whether an error)."""

    role: str
    text: str = ""
    thinking: str = ""
    media: list[tuple[str, str]] = []
    calls: list[tuple[str, Any]] = []
    results: list[tuple[str, list[tuple[str, str]]]] = []


class Asked(msgspec.Struct):
    system: str
    turns: list[Turn]
    tools: dict[str, tuple[str, Any]]
    tool_choice: tuple[str, str]
    parameters: dict[str, Any]
    schema: Any


def asked(prompt: Prompt) -> Asked:
    system, turns = "", list[Turn]()
    for message in prompt.messages:
        if message.role in ("system", "developer"):
            system += "".join(part.text for part in message.parts if isinstance(part, Text))
            continue
        if not turns or turns[-1].role != message.role:
            turns.append(Turn(message.role))
        for part in message.parts:
            _add(turns[-1], part)
    for turn in turns:
        turn.text = _bare(turn.text)
    choice, wanted = prompt.tool_choice, prompt.output_format
    return Asked(
        system=_bare(system),
        turns=turns,
        tools={tool.name: (tool.description, tool.parameters or {}) for tool in prompt.tools},
        tool_choice=(choice.mode, choice.name) if choice is not None else ("auto", ""),
        parameters={
            name: getattr(prompt, name)
            for name in ("temperature", "top_p", "top_k", "seed", "stop", "max_output_tokens")
            if getattr(prompt, name) not in (None, ())
        },
        schema=wanted.schema if wanted is not None else None,
    )


def _add(turn: Turn, part: Part) -> None:
    match part:
        case Text() | Refusal():
            turn.text += part.text
        case Thinking():
            turn.thinking += part.text
        case Media():
            turn.media.append(_held(part))
        case ToolCall():
            turn.calls.append((part.name, _decoded(part.arguments)))
        case ToolResult():
            text = "".join(inner.text for inner in part.content if isinstance(inner, Text))
            turn.results.append((_bare(text), [_held(inner) for inner in part.content if isinstance(inner, Media)]))
        case _:
            pass


def _held(media: Media) -> tuple[str, str]:
    held = media.data or media.url or media.file_id or media.text
    return media.kind, held[:60]


def _bare(text: str) -> str:
    return "".join(text.split())


def _decoded(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments
