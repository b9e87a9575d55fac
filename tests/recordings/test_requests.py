"""Every recorded request, read from its own dialect and written for every other kind of provider: what is not named as lost is there."""

import base64
import json
from typing import Any

import pytest

from proxy.dialects.dialect import JSON
from proxy.errors import InvalidRequest
from proxy.neutral import Prompt
from proxy.snapshot import Provider
from tests.recordings.asked import Asked, Turn, asked
from tests.recordings.corpus import MAX_OUTPUT_TOKENS, Recording, deployment_of, parameters, place_of, recordings
from tests.recordings.exceptions import REQUEST, reason_of
from tests.recordings.foreign import DIALECTS, Foreign

MODELS = {
    "openai.chat": "gpt-5",
    "openai.responses": "gpt-5",
    "anthropic.messages": "claude-opus-4-5",
    "gemini.generate": "gemini-3-pro-preview",
    "cohere.chat": "command-a-03-2025",
}


def _is_chat(recording: Recording) -> bool:
    """Whether there is a dialect that reads it."""
    call = place_of(recording).call
    return call.capability == "chat" and call.dialect.is_translatable and reason_of(recording, REQUEST) is None


@pytest.mark.parametrize("recording", parameters([recording for recording in recordings() if _is_chat(recording)]))
def test_what_is_not_named_as_lost_is_asked(recording: Recording) -> None:
    call = place_of(recording).call
    prompt, sent = call.dialect.read_prompt(call), json.loads(call.body)
    assert isinstance(prompt, Prompt)
    for dialect, foreign in DIALECTS.items():
        if dialect == call.dialect.name:
            continue
        lost = list(prompt.lost)
        deployment = deployment_of(recording, "d", upstream_model=MODELS[dialect])
        provider = Provider(slug="p", api=foreign.provider, base_url="https://api.example.com/v1")
        outgoing = foreign.api.write_request(prompt, call, deployment, provider, lost)
        assert all(_is_named(name, sent) for name in lost), (dialect, lost)
        again = _read_again(foreign, outgoing.body, call.is_stream)
        if again is None:
            # The conversation is kept by the provider, or all that it said is named as lost.
            assert lost, dialect
        else:
            _compare(asked(prompt), again, prompt, lost)


def _is_named(path: str, sent: dict[str, Any]) -> bool:
    """Whether it is something that the client wrote, by its own name."""
    return path.partition(".")[0].partition("[")[0] in sent


def _read_again(foreign: Foreign, body: bytes, is_stream: bool) -> Asked | None:
    method = "streamGenerateContent" if is_stream else "generateContent"
    said = {"model": "m", "method": method, "query": "alt=sse" if is_stream else ""}
    try:
        call = foreign.dialect.describe(body, JSON, said)
        prompt = foreign.dialect.read_prompt(call)
    except InvalidRequest as error:
        assert error.param in ("messages", "contents", "input"), error
        return None
    assert isinstance(prompt, Prompt)
    # Strictness about tools, which only Gemini calls a mode.
    assert set(prompt.lost) <= {"toolConfig.functionCallingConfig.mode"}
    return asked(prompt)


def _compare(before: Asked, after: Asked, prompt: Prompt, lost: list[str]) -> None:
    if not before.turns:
        # Where there has to be a message, the system's becomes one.
        assert before.system in after.system + "".join(turn.text for turn in after.turns)
        return
    assert before.system in after.system
    if len(before.turns) == len(after.turns):
        for told, read in zip(before.turns, after.turns, strict=True):
            _compare_turns(told, read, lost)
    else:
        assert lost, "messages are missing"
    if not any(name.startswith(("tools", "tool_choice")) for name in lost):
        one_of, chosen = before.tool_choice[1], prompt.tool_choice
        offered = set(chosen.allowed) if chosen is not None and chosen.allowed else set(before.tools)
        assert after.tools in (before.tools, {name: before.tools[name] for name in offered}) or set(after.tools) == {
            one_of
        }
        assert after.tool_choice in (before.tool_choice, ("required", "") if one_of else before.tool_choice)
    for name, value in before.parameters.items():
        if prompt.names.get(name, name) not in lost:
            # To leave no token out of the draw is to say nothing.
            assert after.parameters.get(name) == value or (name, value) == ("top_p", 1)
    assert after.parameters["max_output_tokens"] == (prompt.max_output_tokens or MAX_OUTPUT_TOKENS)
    if before.schema is not None and prompt.names.get("output_format", "output_format") not in lost:
        assert set(after.schema.get("properties", {})) == set(before.schema.get("properties", {}))


def _compare_turns(told: Turn, read: Turn, lost: list[str]) -> None:
    assert read.role == told.role
    assert told.text in read.text
    inside = [name for name in lost if name.startswith(("messages", "input", "contents"))]
    assert read.calls == told.calls or inside
    assert len(read.results) == len(told.results)
    shown = {_bytes_of(*media) for media in read.media}
    for (text, _), (read_text, read_media) in zip(told.results, read.results, strict=True):
        # Cohere and Gemini are told of an error as JSON.
        assert text in read_text or text in read_text.replace("\\n", "").replace('\\"', '"')
        shown |= {_bytes_of(*one) for one in read_media}
    all_told = [*told.media, *(one for _, inner in told.results for one in inner)]
    # A document of words may be told in words.
    spoken = [media for media in all_told if "".join(media[1].split()) in read.text]
    missing = [media for media in all_told if _bytes_of(*media) not in shown and media not in spoken]
    assert len(missing) <= len(inside), f"{missing} is missing"
    assert told.thinking == read.thinking or inside


def _bytes_of(kind: str, held: str) -> bytes:
    """The beginning, whether it is text, base64 of it, or where to find it."""
    try:
        return base64.b64decode(held[:56], validate=True)[:20]
    except ValueError:
        return held.encode()[:20]
