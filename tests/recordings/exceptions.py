"""The recordings that cannot pass in some respect, each with the reason. docs/compatibility.md shows them."""

from typing import NamedTuple

from tests.recordings.corpus import Recording

# In which respect.
BODY = "body"
USAGE = "usage"
TRANSLATION = "translation"
REQUEST = "request"
NEXT_TURN = "next turn"
REFUSED = "refused"


class Exception_(NamedTuple):
    recording_id: str
    respect: str
    reason: str


EXCEPTIONS = (
    *(
        Exception_(
            recording_id,
            REFUSED,
            "It continues a response that is stored at the provider and that nobody has asked this gateway for: what the "
            "provider keeps belongs to the project that made it.",
        )
        for recording_id in ("openai-responses-plain-2f9e04", "openai-responses-plain-483644")
    ),
    Exception_(
        "openai-completions-stream-truncated-n2-c2e2e9",
        BODY,
        "The request was recorded without `stream`, the answer is a stream that calls itself application/json.",
    ),
    Exception_("openai-completions-stream-truncated-n2-c2e2e9", USAGE, "As above."),
    Exception_(
        "openai-chat-completions-plain-76d5a4",
        TRANSLATION,
        "Audio whose data is empty. Only clients of chat completions and of Gemini can ask for audio.",
    ),
    *(
        Exception_(
            recording_id,
            NEXT_TURN,
            "Gemini's signatures go back to its endpoint in OpenAI's form from clients of chat completions alone: for "
            "others they are named as lost. The provider `gemini` returns them for all.",
        )
        for recording_id in (
            "gemini-chat-completions-tool-result-reasoning-43d283",
            "gemini-chat-completions-tools-reasoning-a00672",
        )
    ),
    Exception_("ollama-messages-reasoning-truncated-7089f2", REQUEST, "The request was recorded without its body."),
    Exception_(
        "anthropic-messages-error-400-json-schema-c872ee",
        REQUEST,
        "Its schema is missing: the gateway refuses it as Anthropic did.",
    ),
)
_REASONS = {(found.recording_id, found.respect): found.reason for found in EXCEPTIONS}


def reason_of(recording: Recording, respect: str) -> str | None:
    return _REASONS.get((recording.recording_id, respect))
