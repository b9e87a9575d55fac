"""A chat in nobody's dialect: the prompt, the answer, and the events of a stream. Types only; no I/O, no wire format.

Between two dialects everything passes through here: a dialect reads a request into a `Prompt`, a provider's API writes it;
the API reads an `Answer` or stream events, the dialect writes those. What these types cannot say cannot be carried, and is
named to the client (`Prompt.lost`, `lost` of the writers), never dropped in silence. docs/translation.md is the full table.
"""

import base64
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from audit.records import Usage

Role = Literal["system", "developer", "user", "assistant"]

# Finish reasons, one word each whatever a provider calls it.
STOP = "stop"
STOP_SEQUENCE = "stop_sequence"
LENGTH = "length"
TOOL_CALLS = "tool_calls"
CONTENT_FILTER = "content_filter"
REFUSAL = "refusal"
PAUSE = "pause"

# Reasoning effort, from none to the most. Writers that want a number of tokens take `EFFORT_BUDGETS`.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
EFFORT_BUDGETS = {
    "minimal": 1_024,
    "low": 2_048,
    "medium": 8_192,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 65_536,
}


class Struct(msgspec.Struct, kw_only=True, omit_defaults=True):
    pass


# Parts of a message. `path` is where the client wrote it, for the refusal of what a provider cannot take;
# `cache` is "" for no marker, "5m" or "1h" for a cache breakpoint after the part.


class Citation(Struct):
    """What a passage rests on. `start` and `end` are characters of the answer's text, -1 where the provider does not say."""

    url: str = ""
    title: str = ""
    cited_text: str = ""
    start: int = -1
    end: int = -1
    document: int = -1
    file_id: str = ""
    source: Any = None  # As the provider wrote it.


class Text(Struct, tag="text"):
    text: str
    cache: str = ""
    citations: tuple[Citation, ...] = ()
    signature: str = ""


class Media(Struct, tag="media"):
    """An image, document, audio or video. Exactly one of `data` (base64), `url`, `file_id`, `text` says what it holds."""

    kind: Literal["image", "document", "audio", "video"]
    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    text: str = ""
    name: str = ""
    detail: str = ""
    context: str = ""
    transcript: str = ""
    is_cited: bool = False
    cache: str = ""
    path: str = ""


class ToolCall(Struct, tag="tool_call"):
    """`arguments` is JSON text of an object as the model wrote it; free text for a custom tool."""

    call_id: str
    name: str
    arguments: str = "{}"
    is_custom: bool = False
    cache: str = ""
    signature: str = ""
    path: str = ""


class ToolResult(Struct, tag="tool_result"):
    """In a user message. `name` is filled where the dialect says it; `Prompt.tool_name` finds it by id otherwise."""

    call_id: str
    content: tuple["Part", ...] = ()
    name: str = ""
    is_error: bool = False
    is_custom: bool = False
    cache: str = ""
    path: str = ""


class Thinking(Struct, tag="thinking"):
    """Reasoning. `origin` says whose: a signature means something to that API alone and is returned to it unchanged.
    `redacted` is reasoning that only its provider can read. A provider without signatures leaves both empty."""

    text: str = ""
    signature: str = ""
    redacted: str = ""
    origin: str = ""
    thinking_id: str = ""
    path: str = ""


class Refusal(Struct, tag="refusal"):
    text: str


class Opaque(Struct, tag="opaque"):
    """Something of the provider's own without counterpart, in an answer: a search it ran, code it executed."""

    kind: str
    value: Any = None


Part = Text | Media | ToolCall | ToolResult | Thinking | Refusal | Opaque


class Message(Struct):
    role: Role
    parts: list[Part]
    name: str = ""


# Prompt


class Tool(Struct):
    """A function the client runs. `parameters` is its JSON Schema; a custom tool takes free text, with `format` as given."""

    name: str
    description: str = ""
    parameters: Any = None
    is_strict: bool | None = None
    is_custom: bool = False
    format: Any = None
    cache: str = ""
    path: str = ""


class ToolChoice(Struct):
    """`tool` names one; `allowed` narrows `auto` and `required` to some of the tools."""

    mode: Literal["auto", "none", "required", "tool"]
    name: str = ""
    allowed: tuple[str, ...] = ()


class OutputFormat(Struct):
    """Structured output: any JSON object where there is no schema."""

    schema: Any = None
    name: str = ""
    description: str = ""
    is_strict: bool | None = None

    def described_schema(self) -> Any:
        """The schema for an API that has no other place for a description."""
        if self.description and isinstance(self.schema, dict) and "description" not in self.schema:
            return {**self.schema, "description": self.description}
        return self.schema


class Reasoning(Struct):
    """What the client asks for: an effort, a budget in tokens, or neither and just on or off (`is_on`)."""

    is_on: bool | None = None
    effort: str = ""
    budget_tokens: int | None = None
    # Whether thoughts are to be shown: "", "auto", "concise", "detailed" as a summary; "omitted" for none.
    summary: str = ""
    # The provider decides how much (Anthropic's adaptive thinking, Gemini's dynamic budget).
    is_adaptive: bool = False


class Prompt(Struct):
    """A chat request. A parameter is None where the client did not say.

    `names` gives the client's own names of parameters, for refusals; `lost` is what the dialect read and cannot be said here.
    """

    messages: list[Message]
    tools: list[Tool] = []
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choices: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    output_format: OutputFormat | None = None
    reasoning: Reasoning | None = None
    verbosity: str | None = None
    user: str | None = None
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    cache: str | None = None  # Cache automatically up to the last part that can be: "5m" or "1h".
    modalities: tuple[str, ...] = ()  # Asked of the output besides text: "image", "audio".
    names: Mapping[str, str] = {}
    lost: list[str] = []

    def tool_names(self) -> dict[str, str]:
        """By the id of the call, which a result has too. The first counts where one comes twice."""
        calls = [part for message in self.messages for part in message.parts if isinstance(part, ToolCall)]
        return {call.call_id: call.name for call in reversed(calls)}


# Which parameters a writer may be unable to carry; messages, tools, tool_choice and stop it must look at part by part.
OPTIONAL_PARAMETERS = (
    "parallel_tool_calls", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "seed", "choices", "logprobs", "top_logprobs", "logit_bias", "output_format", "reasoning",
    "verbosity", "user", "service_tier", "metadata", "store", "prompt_cache_key", "cache", "modalities", "stop",
)  # fmt: skip
# Saying what holds anyway is no loss.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "parallel_tool_calls": (True,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "choices": (1,),
    "logprobs": (False,),
    "store": (False,),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": ((), ("text",)),
    "stop": ((),),
    "service_tier": ("auto", "default", "standard_only"),
    "verbosity": ("medium",),
}


def lose_all_but(carried: frozenset[str], prompt: Prompt, lost: list[str]) -> None:
    """Name every parameter that the client gave and the writer's API has no place for."""
    for name in OPTIONAL_PARAMETERS:
        if name not in carried:
            value = getattr(prompt, name)
            if value is not None and value not in _HARMLESS.get(name, ()):
                lost.append(prompt.names.get(name, name))


# Answer


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top: tuple["TokenLogprob", ...] = ()


class Choice(Struct):
    """`finish` is one of the words above; `finish_detail` the provider's own. `stop_sequence` where it stopped at one."""

    parts: list[Part]
    finish: str = STOP
    finish_detail: str = ""
    stop_sequence: str | None = None
    logprobs: list[TokenLogprob] | None = None


class Answer(Struct):
    """A whole answer. `usage` is None where the provider does not say."""

    answer_id: str = ""
    model: str = ""
    created_at_s: int = 0
    choices: list[Choice] = []
    usage: Usage | None = None
    service_tier: str = ""
    system_fingerprint: str = ""


class ProviderError(Struct):
    """What a provider says went wrong, whichever way it says it. `kind` is its own word for the type."""

    message: str
    kind: str = ""
    code: str = ""
    param: str = ""
    status_code: int = 0
    retry_after_s: int | None = None


# Stream events, in the order in which they may come:
# Began · (TextDelta | ThinkingDelta | RefusalDelta | ToolCallBegan ToolCallDelta… | MediaDone | Cited | OpaqueDone)… · Finished
# for each choice · UsageSeen (any time, the last one counts) · Done. Failed ends a stream at any point.


class Began(Struct, tag="began"):
    answer_id: str = ""
    model: str = ""
    created_at_s: int = 0
    service_tier: str = ""
    system_fingerprint: str = ""


class TextDelta(Struct, tag="text_delta"):
    """`begins_part`: the provider began another text part, which a dialect with parts of its own keeps apart."""

    text: str
    choice: int = 0
    begins_part: bool = False
    signature: str = ""
    logprobs: list[TokenLogprob] | None = None


class ThinkingDelta(Struct, tag="thinking_delta"):
    """A `signature` or `redacted` closes its thinking; more thinking after it is another."""

    text: str = ""
    signature: str = ""
    redacted: str = ""
    origin: str = ""
    thinking_id: str = ""
    choice: int = 0


class RefusalDelta(Struct, tag="refusal_delta"):
    text: str
    choice: int = 0


class ToolCallBegan(Struct, tag="tool_call_began"):
    """`index` counts the tool calls of its choice from 0, and names this one in its deltas."""

    index: int
    call_id: str
    name: str
    is_custom: bool = False
    signature: str = ""
    choice: int = 0


class ToolCallDelta(Struct, tag="tool_call_delta"):
    """`arguments` is the next piece of JSON text."""

    index: int
    arguments: str
    choice: int = 0


class MediaDone(Struct, tag="media_done"):
    media: Media
    choice: int = 0


class Cited(Struct, tag="cited"):
    citation: Citation
    choice: int = 0


class OpaqueDone(Struct, tag="opaque_done"):
    """`size` is how many bytes it took on the wire: what cannot be read still counts as output."""

    kind: str
    size: int = 0
    value: Any = None
    choice: int = 0


class Finished(Struct, tag="finished"):
    finish: str
    finish_detail: str = ""
    stop_sequence: str | None = None
    choice: int = 0


class UsageSeen(Struct, tag="usage_seen"):
    usage: Usage


class Failed(Struct, tag="failed"):
    error: ProviderError


class Done(Struct, tag="done"):
    """The provider has said that this was all."""


Event = (
    Began
    | TextDelta
    | ThinkingDelta
    | RefusalDelta
    | ToolCallBegan
    | ToolCallDelta
    | MediaDone
    | Cited
    | OpaqueDone
    | Finished
    | UsageSeen
    | Failed
    | Done
)


# Signatures in a dialect that has no place for a foreign one: wrapped as text that comes back unchanged.

_WRAPPED = "tg1."


def wrap_signature(origin: str, signature: str) -> str:
    """One opaque word of URL-safe characters that says whose signature it is; `unwrap_signature` is its inverse."""
    return f"{_WRAPPED}{origin}.{base64.urlsafe_b64encode(signature.encode()).decode()}"


def unwrap_signature(text: str) -> tuple[str, str] | None:
    """(origin, signature), or None for one that is not wrapped: the dialect's own."""
    if not text.startswith(_WRAPPED):
        return None
    origin, found, encoded = text[len(_WRAPPED) :].rpartition(".")
    try:
        return (origin, base64.urlsafe_b64decode(encoded).decode()) if found else None
    except ValueError:
        return None


# Other operations


class Embedding(Struct):
    """A request for embeddings. Each input is a text, token ids, or media."""

    inputs: list[str | list[int] | Media]
    dimensions: int | None = None
    task: str = ""  # "query", "document", "classification", "clustering", "similarity"; "" where not said.
    title: str = ""
    encoding: str = "float"
    user: str | None = None
    names: Mapping[str, str] = {}
    lost: list[str] = []


class Embedded(Struct):
    vectors: list[list[float]]
    model: str = ""
    usage: Usage | None = None


class Reranking(Struct):
    query: str
    documents: list[str]
    top_n: int | None = None
    returns_documents: bool = False
    names: Mapping[str, str] = {}
    lost: list[str] = []


class Ranked(Struct):
    """`results` are (index of the document, relevance), best first."""

    results: list[tuple[int, float]]
    answer_id: str = ""
    model: str = ""
    usage: Usage | None = None


# What each operation asks and is told: a chat, embeddings, a reranking.
Request = Prompt | Embedding | Reranking
Reply = Answer | Embedded | Ranked
