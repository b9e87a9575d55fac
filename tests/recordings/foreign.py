"""The dialects of chats, each with a provider that speaks it: what one writes for its clients, the other has to read."""

import json
from typing import Any, NamedTuple

from proxy.dialects import anthropic, cohere_chat, gemini, openai_chat, openai_responses
from proxy.dialects.dialect import JSON, Call, Dialect
from proxy.neutral import Event
from proxy.providers.provider import Api
from proxy.providers.table import PROVIDERS
from tests.recordings.corpus import Recording, api_of, place_of


class Foreign(NamedTuple):
    """`body` is a request of the dialect's; `path` what Gemini says of it in the path."""

    dialect: Dialect
    provider: str
    body: dict[str, Any]

    @property
    def api(self) -> Api:
        return next(api for api in PROVIDERS[self.provider].apis if api.name == self.dialect.name)

    def call(self, is_stream: bool) -> Call:
        body = {"stream": True, **self.body} if is_stream and self.dialect.name != "gemini.generate" else self.body
        method = "streamGenerateContent" if is_stream else "generateContent"
        said = {"model": "alias", "method": method, "query": "alt=sse" if is_stream else ""}
        call = self.dialect.describe(json.dumps(body).encode(), JSON, said)
        call.prompt = self.dialect.read_prompt(call)
        return call


_HELLO = [{"role": "user", "content": "Hello"}]
DIALECTS = {
    foreign.dialect.name: foreign
    for foreign in (
        Foreign(
            openai_chat.CHAT,
            "openai",
            {"model": "alias", "messages": _HELLO, "logprobs": True, "stream_options": {"include_usage": True}},
        ),
        Foreign(
            openai_responses.RESPONSES,
            "openai",
            {
                "model": "alias",
                "input": "Hello",
                "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
            },
        ),
        Foreign(anthropic.MESSAGES, "anthropic", {"model": "alias", "messages": _HELLO, "max_tokens": 99}),
        Foreign(
            gemini.GENERATE,
            "gemini",
            {
                "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
                "generationConfig": {"thinkingConfig": {"includeThoughts": True}, "responseLogprobs": True},
            },
        ),
        Foreign(cohere_chat.CHAT, "cohere", {"model": "alias", "messages": _HELLO, "logprobs": True}),
    )
}


def events_of(api: Api, parser: Any, pieces: Any) -> list[Event]:
    """What the API's reader makes of a stream that comes in `pieces`."""
    reader = api.stream_reader()
    events: list[Event] = []
    for piece in pieces:
        for frame in parser.feed(piece):
            events += reader.read(frame)
    tail = parser.finish()
    return events + list(reader.read(tail)) if tail is not None else events


def is_translated(recording: Recording) -> bool:
    """Whether clients of other dialects can have such an answer."""
    api = api_of(recording)
    return api is not None and api.is_translatable


def is_chat(recording: Recording) -> bool:
    """Whether they can, of a chat."""
    api = api_of(recording)
    return api is not None and api.capability == "chat" and api.is_translatable


def api_name(recording: Recording) -> str:
    api = api_of(recording)
    return api.name if api is not None else ""


def own_call(recording: Recording, api: Api) -> Call:
    """The recorded request's, or, where no dialect is like it, that of somebody else."""
    place = place_of(recording)
    return DIALECTS["openai.chat"].call(recording.is_stream) if place.is_passthrough else place.call
