"""Every recorded answer, told in every dialect, comes back in the client's next request, and goes back to who gave it."""

import json
from typing import Any

import msgspec
import pytest

from proxy.dialects.dialect import JSON, Call
from proxy.neutral import Answer, Choice, Prompt
from proxy.providers.table import PROVIDERS
from tests.recordings.corpus import (
    Recording,
    api_of,
    deployment_of,
    parameters,
    place_of,
    provider_of,
    recordings,
)
from tests.recordings.exceptions import NEXT_TURN, REQUEST, TRANSLATION, reason_of
from tests.recordings.foreign import DIALECTS, Foreign, is_chat
from tests.recordings.limits import LIMITS, as_told
from tests.recordings.meaning import Meaning, Said, of_answer

# What a request does not repeat of an answer.
_NOT_REPEATED = {"finish": "", "stop_sequence": None, "citations": [], "logprobs": [], "media": []}
# What holds of a provider's kind wherever it is called.
OPTIONS = {
    "azure": {},
    "bedrock": {"region": "us-east-1"},
    "vertex": {"project": "a-project", "location": "us-east5"},
}


ANSWERS = parameters(
    [
        found
        for found in recordings()
        if is_chat(found) and found.status == 200 and not found.is_stream
        if reason_of(found, TRANSLATION) is None and reason_of(found, NEXT_TURN) is None
    ]
)


@pytest.mark.parametrize("recording", ANSWERS)
def test_an_answer_comes_back_unchanged_in_the_next_turn(recording: Recording) -> None:
    api = api_of(recording)
    assert api is not None
    answer = api.read_answer(recording.body)
    assert isinstance(answer, Answer)
    for dialect, foreign in DIALECTS.items():
        call = _next_turn(foreign, json.loads(foreign.dialect.write_answer(answer, foreign.call(is_stream=False))))
        prompt = foreign.dialect.read_prompt(call)
        assert isinstance(prompt, Prompt)
        assert prompt.lost == [], dialect
        # What a client is not shown of a signature can still be kept for it.
        limits = LIMITS[dialect]
        limits = limits._replace(unsaid=limits.unsaid - {"signatures"})
        expected = _repeated(as_told(of_answer(answer), limits))
        assert _repeated(_said_before(prompt)) == expected, dialect
        if api.name == dialect:
            continue  # Passed on as it is.
        lost: list[str] = []
        outgoing = api.write_request(prompt, call, deployment_of(recording, "d"), provider_of(recording, "", ""), lost)
        for _, signature in expected.signatures:
            assert signature.encode() in outgoing.body, f"{dialect}: a provider's own signature is returned to it"
        assert not [path for path in lost if "signature" in path], dialect


def _next_turn(foreign: Foreign, told: dict[str, Any]) -> Call:
    """The client's request after that answer."""
    body = dict(foreign.body)
    match foreign.dialect.name:
        case "openai.chat":
            message = {name: value for name, value in told["choices"][0]["message"].items() if name != "annotations"}
            body["messages"] = [*body["messages"], message]
        case "openai.responses":
            asked = {"role": "user", "content": body["input"]}
            body["input"] = [asked, *told["output"]]
        case "anthropic.messages":
            body["messages"] = [*body["messages"], {"role": "assistant", "content": told["content"]}]
        case "gemini.generate":
            body["contents"] = [*body["contents"], told["candidates"][0]["content"]]
        case "cohere.chat":
            message = {name: value for name, value in told["message"].items() if name != "citations"}
            body["messages"] = [*body["messages"], message]
    said = {"model": "alias", "method": "generateContent"}
    return foreign.dialect.describe(json.dumps(body).encode(), JSON, said)


def _said_before(prompt: Prompt) -> Meaning:
    parts = [part for message in prompt.messages if message.role == "assistant" for part in message.parts]
    return of_answer(Answer(choices=[Choice(parts=parts)]))


def _repeated(meaning: Meaning) -> Said:
    """Of one choice: a conversation goes on with one."""
    return msgspec.structs.replace(meaning.choices[0] if meaning.choices else Said(), **_NOT_REPEATED)


@pytest.mark.parametrize(
    "recording", parameters([found for found in recordings() if not place_of(found).is_passthrough])
)
def test_every_provider_is_asked_what_was_asked(recording: Recording) -> None:
    """No writer fails, and what is lost is what the client wrote."""
    call = place_of(recording).call
    if not call.dialect.is_translatable or call.capability != "chat" or reason_of(recording, REQUEST) is not None:
        return
    prompt = call.dialect.read_prompt(call)
    assert isinstance(prompt, Prompt)
    before = msgspec.json.encode(prompt)
    sent = json.loads(call.body)
    for kind in PROVIDERS.values():
        provider = msgspec.structs.replace(
            provider_of(recording, "http://h", ""), api=kind.name, options=OPTIONS.get(kind.name, {})
        )
        deployment = deployment_of(recording, "d", upstream_model="anthropic.claude-opus-4-5-20251101-v1:0")
        for api in kind.apis:
            if api.capability == "chat" and api.is_translatable and api.serves(deployment, provider):
                lost: list[str] = []
                json.loads(api.write_request(prompt, call, deployment, provider, lost).body)
                named = {name.partition(".")[0].partition("[")[0] for name in lost}
                assert named <= set(sent), (kind.name, api.name)
    assert msgspec.json.encode(prompt) == before, "a prompt is not changed by being written"
