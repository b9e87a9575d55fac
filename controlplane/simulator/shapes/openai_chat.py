"""OpenAI's chat completions, and the ways in which other providers speak them (`docs/simulator.md` lists them)."""

import functools
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec

from controlplane.simulator.calls import LENGTH, STOP, TOOL, Answer, Asked, Call, Counts, Event, Request, decode
from controlplane.simulator.directives import Like
from controlplane.simulator.shapes.openai_errors import error_body
from controlplane.simulator.wire import data_event
from controlplane.simulator.words import encode

Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
OutputCap = Annotated[int, msgspec.Meta(ge=1)]

_CHUNK = b"chat.completion.chunk"
_CUT_HERE = b"\0"  # JSON holds no such byte.
_FINISH = {STOP: b"stop", LENGTH: b"length", TOOL: b"tool_calls"}
DONE = b"data: [DONE]\n\n"


class Part(msgspec.Struct):
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None

    def texts(self) -> list[str]:
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content or () if part.text is not None]


class Function(msgspec.Struct):
    name: str


class Tool(msgspec.Struct):
    function: Function | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Form(msgspec.Struct):
    type: str = ""
    json_schema: dict[str, Any] | None = None

    def schema(self) -> object:
        """What the text is to fit: None is prose, `{}` any object."""
        if self.type == "json_object":
            return {}
        return (self.json_schema or {}).get("schema", {}) if self.type == "json_schema" else None


class ChatRequest(msgspec.Struct):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    max_tokens: OutputCap | None = None
    max_completion_tokens: OutputCap | None = None
    tools: list[Tool] | None = None
    response_format: Form | None = None

    def texts(self) -> list[str]:
        if len(self.messages) == 1:
            return self.messages[0].texts()
        return [text for message in self.messages for text in message.texts()]

    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


_decode = msgspec.json.Decoder(ChatRequest).decode


def ask(request: Request) -> Asked:
    """Raises `Refused`."""
    return understand(decode(_decode, request.body))


def understand(chat: ChatRequest) -> Asked:
    return Asked(
        model=chat.model,
        texts=chat.texts(),
        answers=Completion,
        is_stream=bool(chat.stream),
        cap=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        choices=chat.n or 1,
        tools=[tool.function.name for tool in chat.tools if tool.function is not None] if chat.tools else (),
        has_results=chat.messages[-1].role == "tool",
        schema=chat.response_format.schema() if chat.response_format is not None else None,
        details=chat.wants_usage_chunk(),
    )


class Ways(NamedTuple):
    """How a provider's chat completions differ from OpenAI's.

    `thought` is what a delta has of the reasoning, where it is shown at all, with `%b` for the words. Usage comes in a chunk of
    its own on request, or (`usage_on_finish`) on that with the finish reason, or (`usage_everywhere`) on each.
    """

    thought: bytes = b""
    usage_on_finish: bool = False
    usage_everywhere: bool = False
    has_done: bool = True
    first_event: bytes = b""
    extra: bytes = b'"service_tier":"default","system_fingerprint":"fp_simulator"'


_FILTERS = (
    b'{"hate":{"filtered":false,"severity":"safe"},"self_harm":{"filtered":false,"severity":"safe"},'
    b'"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}'
)
_AZURE_FIRST = (
    b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":'
    b'[{"prompt_index":0,"content_filter_results":%b}]}\n\n'
) % _FILTERS

_OPENAI = Ways()
_WAYS: dict[str, Ways] = {
    Like.MISTRAL: Ways(
        thought=b'"content":[{"type":"thinking","thinking":[{"type":"text","text":"%b"}]}]', usage_on_finish=True
    ),
    Like.GROQ: Ways(thought=b'"reasoning":"%b","channel":"analysis"', usage_on_finish=True),
    Like.DEEPSEEK: Ways(
        thought=b'"content":null,"reasoning_content":"%b"', usage_on_finish=True, first_event=b": keep-alive\n\n"
    ),
    Like.PERPLEXITY: Ways(usage_everywhere=True, has_done=False),
    Like.OPENROUTER: Ways(
        thought=b'"content":"","reasoning":"%b","reasoning_details":'
        b'[{"type":"reasoning.text","text":"%b","format":"unknown","index":0}]',
        first_event=b": OPENROUTER PROCESSING\n\n" * 2,
        extra=b'"provider":"Simulator"',
    ),
    Like.XAI: Ways(thought=b'"reasoning_content":"%b"', first_event=b": ping\n\n"),
    Like.AZURE: Ways(first_event=_AZURE_FIRST, extra=b'"system_fingerprint":"fp_simulator","obfuscation":"x9Kq"'),
}


class Completion(Answer):
    """A chat completion, whole or as the events of a stream. Calls the tool of the plan where it has one."""

    usual_like: ClassVar[str] = ""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._like = call.directives.like or self.usual_like
        self._ways = ways = _WAYS.get(self._like, _OPENAI)
        self.shows_reasoning = bool(ways.thought)
        plan = self.plan
        self._tool = encode(plan.tool) if plan.tool else b""
        self._finish = _FINISH[plan.finish]
        self._usage = usage_json(plan.counts, self._like) if self.says_usage else b""
        # Whether the stream has a chunk with nothing but the usage.
        self._has_usage_chunk = bool(self.asked.details) and not ways.usage_on_finish and not ways.usage_everywhere

    # Whole

    def whole(self) -> tuple[bytes, bytes]:
        message = self._message()
        parts = [
            b'{"index":%d,"message":%b,"logprobs":null,"finish_reason":"%b"}' % (index, message, self._finish)
            for index in range(self.plan.choices)
        ]
        told = b'"usage":%b,' % self._usage if self._usage else b""
        return self._envelope(b"chat.completion", b",".join(parts), told), self._usage

    def _message(self) -> bytes:
        said = self.plan.saying.whole()
        thought = self._thought_whole()
        if not self._tool:
            if self._like == Like.MISTRAL and thought:
                content = b'[%b,{"type":"text","text":"%b"}]' % (thought, said)
                return b'{"role":"assistant","tool_calls":null,"content":%b}' % content
            return b'{"role":"assistant","content":"%b",%b"refusal":null,"annotations":[]}' % (said, thought)
        content = b"[%b]" % thought if self._like == Like.MISTRAL and thought else b"null"
        aside = b"" if self._like == Like.MISTRAL else thought
        return b'{"role":"assistant","content":%b,%b"tool_calls":[%b],"refusal":null,"annotations":[]}' % (
            content,
            aside,
            b'{"id":"call_%b","type":"function","function":{"name":%b,"arguments":"%b"}}' % (self.id, self._tool, said),
        )

    def _thought_whole(self) -> bytes:
        """The field of the reasoning with a comma behind it; of Mistral's, the part of the content."""
        if not self.shows_reasoning or not self.plan.reasoning_tokens:
            return b""
        words = self.thoughts()
        match self._like:
            case Like.MISTRAL:
                return b'{"type":"thinking","thinking":[{"type":"text","text":"%b"}],"closed":true}' % words
            case Like.DEEPSEEK | Like.XAI:
                return b'"reasoning_content":"%b",' % words
            case _:
                return b'"reasoning":"%b",' % words

    # Streams

    def events(self) -> Iterator[Event]:
        plan, ways = self.plan, self._ways
        choices, saying = range(plan.choices), plan.saying
        if ways.first_event:
            yield ways.first_event, 0, 0, b""
        for index in choices:
            yield self._event(index, self._opening(), b"null"), 0, 0, b""
        for position in range(plan.reasoning_tokens):
            if not ways.thought:
                yield b"", plan.choices, 0, b""
                continue
            delta = b"{%b}" % ways.thought.replace(b"%b", self.thought(position))
            for index in choices:
                yield self._event(index, delta, b"null"), 1, 1, b""
        form = b'{"tool_calls":[{"index":0,"function":{"arguments":"%b"}}]}' if self._tool else b'{"content":"%b"}'
        for position in range(saying.tokens):
            delta = form % saying.piece(position)
            for index in choices:
                yield self._event(index, delta, b"null"), 1, 1, b""
        for index in choices:
            yield self._closing(index)
        if self._has_usage_chunk and self._usage:
            yield data_event(self._envelope(_CHUNK, b"", b'"usage":%b,' % self._usage)), 0, 0, self._usage
        if ways.has_done and not self.call.directives.no_done:
            yield DONE, 0, 0, b""

    def _opening(self) -> bytes:
        """The first delta of a choice: who speaks, and which tool is called. No token of it is visible text."""
        if not self._tool:
            return b'{"role":"assistant","content":"","refusal":null}'
        return (
            b'{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_%b","type":"function",'
            b'"function":{"name":%b,"arguments":""}}],"refusal":null}'
        ) % (self.id, self._tool)

    def _closing(self, index: int) -> Event:
        finish = b'"%b"' % self._finish
        is_last = index == self.plan.choices - 1
        if not (is_last and self._usage and (self._ways.usage_on_finish or self._ways.usage_everywhere)):
            return self._event(index, b"{}", finish), 0, 0, b""
        told = b'"usage":%b,' % self._usage
        if self._like == Like.GROQ:
            told = b'%b"x_groq":{"id":"req_%b","usage":%b},' % (told, self.id, self._usage)
        choice = b'{"index":%d,"delta":{"content":""},"finish_reason":%b}' % (index, finish)
        return data_event(self._envelope(_CHUNK, choice, told)), 0, 0, self._usage

    def _event(self, index: int, delta: bytes, finish: bytes) -> bytes:
        before, after = self._around
        choice = b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}' % (index, delta, finish)
        return before + choice + after

    @functools.cached_property
    def _around(self) -> list[bytes]:
        """What every event of the stream has before and after its choice."""
        told = b""
        if self._ways.usage_everywhere and self._usage:
            told = b'"usage":%b,' % self._usage
        elif self.asked.details:
            told = b'"usage":null,'
        return data_event(self._envelope(_CHUNK, _CUT_HERE, told)).split(_CUT_HERE)

    def _envelope(self, kind: bytes, choices: bytes, told: bytes) -> bytes:
        return (b'{"id":"chatcmpl-%b","object":"%b","created":%d,"model":%b,"choices":[%b],%b%b}') % (
            self.id,
            kind,
            self.call.created_s,
            self.model,
            choices,
            told,
            self._ways.extra,
        )

    def broken(self) -> bytes:
        return b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"con\n\n'

    def failure(self, status: int) -> bytes:
        event = b"event: error\n" if self._like == Like.GROQ else b""
        return event + data_event(error_body(status, like=self._like))

    def huge(self, blanks: int) -> tuple[bytes, bytes]:
        return b'data: {"object":"chat.completion.chunk","choices":[]', b"}\n\n"


def usage_json(counts: Counts, like: str = "") -> bytes:
    output_tokens = counts.output_tokens
    if like == Like.XAI:  # Its total is more than the sum.
        output_tokens -= counts.reasoning_tokens
    more = b""
    if like == Like.DEEPSEEK:
        missed = counts.input_tokens - counts.cached_tokens
        more = b',"prompt_cache_hit_tokens":%d,"prompt_cache_miss_tokens":%d' % (counts.cached_tokens, missed)
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0,'
        b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}%b}'
    ) % (
        counts.input_tokens,
        output_tokens,
        counts.input_tokens + counts.output_tokens,
        counts.cached_tokens,
        counts.reasoning_tokens,
        more,
    )
