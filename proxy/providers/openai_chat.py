"""OpenAI's chat completions, as OpenAI and the providers shaped like it speak them. Pure; no I/O.

Here requests are passed and written, and passing answers measured; `openai_answers.py` reads answers to be translated. What
a provider does otherwise is a class attribute, or a small method, of its own subclass.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from proxy.dialects.dialect import Call
from proxy.neutral import (
    EFFORT_BUDGETS,
    EFFORTS,
    Answer,
    Media,
    Message,
    Opaque,
    OutputFormat,
    Part,
    Prompt,
    ProviderError,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    lose_all_but,
)
from proxy.providers.openai_answers import ChatReader, read_answer
from proxy.providers.openai_errors import read_error
from proxy.providers.openai_usage import ChatUsage, read_usage
from proxy.providers.openai_users import user_id
from proxy.providers.provider import Api, Measured, Outgoing, StreamMeter, StreamReader, name_of
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

_encode = msgspec.json.Encoder().encode
_TRUE = msgspec.Raw(b"true")
_NULL = msgspec.Raw(b"null")

# What only OpenAI itself takes, and Azure: `OpenAIChat.extras`.
DEVELOPER_ROLE = "developer role"
ALLOWED_TOOLS = "allowed tools"
CUSTOM_TOOLS = "custom tools"
REFUSALS = "refusals"

_AUDIO_FORMATS = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
}
_ERROR = Text(text="Error")


class OpenAIChat(Api):
    name = "openai.chat"
    capability = "chat"
    is_translatable = True
    target: ClassVar[bytes] = b"/chat/completions"

    # What the provider calls fields by another name, whether a request is passed or written.
    renames: ClassVar[Mapping[str, str]] = {}
    # Whether a stream tells its usage only when asked.
    asks_for_usage: ClassVar[bool] = True
    # Which parameters of a prompt it takes (`neutral.OPTIONAL_PARAMETERS`); the rest is lost. Prompts are cached without
    # being asked to be: a marker asks for what holds anyway.
    carried: ClassVar[frozenset[str]] = frozenset(
        {
            "parallel_tool_calls", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "choices",
            "logprobs", "top_logprobs", "logit_bias", "output_format", "reasoning", "verbosity", "user", "service_tier",
            "metadata", "store", "prompt_cache_key", "cache",
        }
    )  # fmt: skip
    extras: ClassVar[frozenset[str]] = frozenset({DEVELOPER_ROLE, ALLOWED_TOOLS, CUSTOM_TOOLS, REFUSALS})
    # What a message may hold besides text.
    media: ClassVar[frozenset[str]] = frozenset({"image", "document", "audio"})
    has_tools: ClassVar[bool] = True
    has_schemas: ClassVar[bool] = True
    any_tool: ClassVar[str] = "required"
    # The efforts it knows; another is rounded up to one of these.
    efforts: ClassVar[tuple[str, ...]] = ("none", "minimal", "low", "medium", "high", "xhigh")
    # The field of an assistant's message in which it takes its unsigned reasoning back.
    thinking_field: ClassVar[str] = ""

    # The same dialect on both sides

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = dict(call.fields)  # The next attempt may go to a provider that calls its cap otherwise.
        fields["model"] = msgspec.Raw(_encode(deployment.upstream_model))
        if call.output_tokens_max is None:
            fields[provider.output_cap_field] = msgspec.Raw(b"%d" % deployment.max_output_tokens)
        if call.is_stream and not call.wants_usage_chunk and self.asks_for_usage:
            fields["stream_options"] = including_usage(fields.get("stream_options"))
        if self.renames:
            fields = {self.renames.get(name, name): value for name, value in fields.items()}
        return Outgoing(self.target, dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        return measure(body)

    def stream_meter(self, call: Call) -> StreamMeter:
        return ChatMeter(call.wants_usage_chunk)

    # Across dialects

    def write_request(
        self, prompt: Prompt, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        lose_all_but(self.carried, prompt, lost)
        body: dict[str, Any] = {"model": deployment.upstream_model, "messages": self.write_messages(prompt, lost)}
        body[provider.output_cap_field] = prompt.max_output_tokens or deployment.max_output_tokens
        body |= self._parameters(prompt)
        if prompt.stop and "stop" in self.carried:
            body["stop"] = prompt.stop
        if prompt.modalities and "modalities" in self.carried:
            body["modalities"] = prompt.modalities
        if prompt.service_tier and "service_tier" in self.carried:
            body["service_tier"] = "default" if prompt.service_tier == "standard_only" else prompt.service_tier
        if prompt.tools:
            self.write_tools(prompt, body, lost)
        if prompt.output_format is not None and "output_format" in self.carried:
            body["response_format"] = self.write_format(prompt.output_format)
            if prompt.output_format.schema is not None and not self.has_schemas:
                lost.append(prompt.names.get("output_format", "output_format"))
        if prompt.reasoning is not None and "reasoning" in self.carried:
            self.write_reasoning(prompt.reasoning, body, prompt, lost)
        if call.is_stream:
            body["stream"] = True
            if self.asks_for_usage:
                body["stream_options"] = {"include_usage": True}
        self.adjust(body, prompt)
        if self.renames:
            body = {self.renames.get(name, name): value for name, value in body.items()}
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Answer:
        return read_answer(body)

    def stream_reader(self) -> StreamReader:
        return ChatReader()

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)

    # What providers do in their own way

    def adjust(self, body: dict[str, Any], prompt: Prompt) -> None:
        """The last touch."""

    def call_id(self, call_id: str) -> str:
        """As the provider takes the ids of calls, the same in a call and its result."""
        return call_id

    def write_reasoning(self, reasoning: Reasoning, body: dict[str, Any], prompt: Prompt, lost: list[str]) -> None:
        effort = self.effort_of(reasoning)
        if effort is not None:
            body["reasoning_effort"] = effort
        elif is_off(reasoning):
            lost.append(prompt.names.get("reasoning", "reasoning"))

    def effort_of(self, reasoning: Reasoning) -> str | None:
        """One of `efforts`; None where nothing needs to be said, or reasoning cannot be turned off."""
        if is_off(reasoning):
            return "none" if "none" in self.efforts else None
        wanted = reasoning.effort
        if not wanted and reasoning.budget_tokens is not None:
            budget = reasoning.budget_tokens
            wanted = next((word for word, tokens in EFFORT_BUDGETS.items() if tokens >= budget), EFFORTS[-1])
        if wanted not in EFFORTS:
            return wanted or None  # A word of tomorrow: the provider is to judge.
        enough = EFFORTS[EFFORTS.index(wanted) :]
        return next((word for word in enough if word in self.efforts), self.efforts[-1])

    def write_format(self, wanted: OutputFormat) -> dict[str, Any]:
        if wanted.schema is None or not self.has_schemas:
            return {"type": "json_object"}
        schema: dict[str, Any] = {"name": wanted.name or "answer", "schema": wanted.schema}
        if wanted.description:
            schema["description"] = wanted.description
        if wanted.is_strict is not None:
            schema["strict"] = wanted.is_strict
        return {"type": "json_schema", "json_schema": schema}

    def write_media(self, media: Media, lost: list[str]) -> dict[str, Any] | None:
        """None, and its path in `lost`, for what the provider cannot be shown."""
        if media.text:
            return {"type": "text", "text": _text_of(media, lost)}
        part = _media_part(media) if media.kind in self.media else None
        if part is None:
            lost.append(media.path)
            return None
        _lose_context(media, lost)
        return part

    def write_thinking(self, thoughts: Sequence[Thinking], message: dict[str, Any], lost: list[str]) -> None:
        unsigned = [thought for thought in thoughts if not (thought.signature or thought.redacted)]
        if self.thinking_field and unsigned:
            message[self.thinking_field] = "".join(thought.text for thought in unsigned)
            lost.extend(thought.path for thought in thoughts if thought.signature or thought.redacted)
        else:
            lost.extend(thought.path for thought in thoughts)

    def write_signatures(self, calls: Sequence[ToolCall], message: dict[str, Any], lost: list[str]) -> None:
        lost.extend(f"{call.path}.signature" for call in calls)

    def mark(self, part: dict[str, Any], cache: str) -> dict[str, Any]:
        """A part with its cache marker, where the provider has such markers."""
        return part

    # Messages

    def write_messages(self, prompt: Prompt, lost: list[str]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for message in prompt.messages:
            if message.role == "assistant":
                messages.append(self._assistant(message, lost))
            elif message.role == "user":
                self._user(message, messages, lost)
            else:
                role = message.role if DEVELOPER_ROLE in self.extras else "system"
                messages.append(self._named(message, {"role": role, "content": self._content(message.parts, lost)}))
        return messages

    def _assistant(self, message: Message, lost: list[str]) -> dict[str, Any]:
        written: dict[str, Any] = {"role": "assistant"}
        said: list[Part] = []
        thoughts: list[Thinking] = []
        calls: list[dict[str, Any]] = []
        for part in message.parts:
            match part:
                case ToolCall():
                    call = self._tool_call(part, lost)
                    if call is not None:
                        calls.append(call)
                case Thinking():
                    thoughts.append(part)
                case Refusal(text=text) if REFUSALS in self.extras:
                    written["refusal"] = text
                case Refusal(text=text):
                    said.append(Text(text=text))
                case _:
                    said.append(part)
        written["content"] = self._content(said, lost) if said else None
        if calls:
            written["tool_calls"] = calls
        elif not said and "refusal" not in written:
            written["content"] = ""
        if thoughts:
            self.write_thinking(thoughts, written, lost)
        signed = [part for part in message.parts if type(part) is ToolCall and part.signature]
        if signed:
            self.write_signatures(signed, written, lost)
        return self._named(message, written)

    def _user(self, message: Message, messages: list[dict[str, Any]], lost: list[str]) -> None:
        """Results become messages of their own; an image in one, which these cannot hold, follows in the user's."""
        said: list[Part] = []
        for part in message.parts:
            if type(part) is not ToolResult:
                said.append(part)
                continue
            texts = [inner for inner in part.content if type(inner) is Text]
            shown = [inner for inner in part.content if type(inner) is not Text]
            if part.is_error:  # There is no flag for it: the text says it.
                texts = [Text(text=f"Error: {texts[0].text}", cache=texts[0].cache), *texts[1:]] if texts else [_ERROR]
            if shown:
                said += [Text(text=f"From the result of {self.call_id(part.call_id)}:"), *shown]
                texts = texts or [Text(text="The result is in the next message.")]
            if texts and part.cache:
                texts[-1] = msgspec.structs.replace(texts[-1], cache=part.cache)
            content = self._content(texts, lost) if texts else ""
            messages.append({"role": "tool", "tool_call_id": self.call_id(part.call_id), "content": content})
        if said or not message.parts:
            messages.append(self._named(message, {"role": "user", "content": self._content(said, lost)}))

    def _named(self, message: Message, written: dict[str, Any]) -> dict[str, Any]:
        if message.name:
            written["name"] = message.name
        return written

    def _content(self, parts: Sequence[Part], lost: list[str]) -> str | list[dict[str, Any]]:
        """Text alone as text, as every provider takes it."""
        if len(parts) == 1 and type(parts[0]) is Text and not parts[0].cache:
            return parts[0].text
        written: list[dict[str, Any]] = []
        for part in parts:
            match part:
                case Text(text=text, cache=cache):
                    item: dict[str, Any] | None = {"type": "text", "text": text}
                case Media(cache=cache):
                    item = self.write_media(part, lost)
                case Opaque(kind=kind):
                    lost.append(kind)
                    continue
                case _:
                    lost.append(getattr(part, "path", "") or "messages")
                    continue
            if item is not None:
                written.append(self.mark(item, cache) if cache else item)
        if len(written) == 1 and written[0].keys() == {"type", "text"}:
            return str(written[0]["text"])
        return written or ""

    def _tool_call(self, call: ToolCall, lost: list[str]) -> dict[str, Any] | None:
        if call.is_custom and CUSTOM_TOOLS not in self.extras:
            lost.append(call.path)
            return None
        call_id = self.call_id(call.call_id)
        if call.is_custom:
            return {"id": call_id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
        return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}

    # Tools

    def write_tools(self, prompt: Prompt, body: dict[str, Any], lost: list[str]) -> None:
        choice = prompt.tool_choice
        allowed = choice.allowed if choice is not None and ALLOWED_TOOLS not in self.extras else ()
        written: list[dict[str, Any]] = []
        for tool in prompt.tools:
            if not self.has_tools or (tool.is_custom and CUSTOM_TOOLS not in self.extras):
                lost.append(tool.path)
            elif not allowed or tool.name in allowed:  # Without a way to allow some only, the others are not told.
                item = _tool(tool)
                written.append(self.mark(item, tool.cache) if tool.cache else item)
        if not written:
            return
        body["tools"] = written
        if choice is not None:
            body["tool_choice"] = self.write_tool_choice(choice, prompt.tools)
        if prompt.parallel_tool_calls is not None and "parallel_tool_calls" in self.carried:
            body["parallel_tool_calls"] = prompt.parallel_tool_calls

    def _parameters(self, prompt: Prompt) -> dict[str, Any]:
        """Those that need no translation, but for the user's id."""
        told = {field: getattr(prompt, name) for name, field in _PLAIN if name in self.carried}
        told = {field: value for field, value in told.items() if value is not None}
        if "user" in told:
            told["user"] = user_id(told["user"])
        return told

    def write_tool_choice(self, choice: ToolChoice, tools: Iterable[Tool]) -> str | dict[str, Any]:
        custom = {tool.name for tool in tools if tool.is_custom}
        if choice.mode == "tool":
            return _named_tool(choice.name, custom)
        if choice.allowed and ALLOWED_TOOLS in self.extras:
            names = [_named_tool(name, custom) for name in choice.allowed]
            return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": names}}
        return self.any_tool if choice.mode == "required" else choice.mode


# Parameters that need no translation, and what they are called.
_PLAIN = (
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("frequency_penalty", "frequency_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("repetition_penalty", "repetition_penalty"),
    ("seed", "seed"),
    ("choices", "n"),
    ("logprobs", "logprobs"),
    ("top_logprobs", "top_logprobs"),
    ("logit_bias", "logit_bias"),
    ("verbosity", "verbosity"),
    ("user", "user"),
    ("metadata", "metadata"),
    ("store", "store"),
    ("prompt_cache_key", "prompt_cache_key"),
)


def is_off(reasoning: Reasoning) -> bool:
    return reasoning.is_on is False or reasoning.effort == "none" or reasoning.budget_tokens == 0


def _named_tool(name: str, custom: set[str]) -> dict[str, Any]:
    kind = "custom" if name in custom else "function"
    return {"type": kind, kind: {"name": name}}


def _tool(tool: Tool) -> dict[str, Any]:
    described = {"name": tool.name, "description": tool.description} if tool.description else {"name": tool.name}
    if tool.is_custom:
        return {"type": "custom", "custom": {**described, "format": tool.format} if tool.format else described}
    function: dict[str, Any] = {**described}
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.is_strict is not None:
        function["strict"] = tool.is_strict
    return {"type": "function", "function": function}


def data_url(media: Media, default: str) -> str:
    return f"data:{media.media_type or default};base64,{media.data}"


def _media_part(media: Media) -> dict[str, Any] | None:
    if media.kind == "image" and (media.url or media.data):
        image = {"url": media.url or data_url(media, "image/png")}
        return {"type": "image_url", "image_url": {**image, "detail": media.detail} if media.detail else image}
    if media.kind == "audio" and media.data:
        kind = _AUDIO_FORMATS.get(media.media_type, media.media_type.rpartition("/")[2] or "wav")
        return {"type": "input_audio", "input_audio": {"data": media.data, "format": kind}}
    if media.kind == "document" and media.file_id:
        return {"type": "file", "file": {"file_id": media.file_id}}
    if media.kind == "document" and media.data:
        data = data_url(media, "application/pdf")
        return {"type": "file", "file": {"filename": media.name or "document.pdf", "file_data": data}}
    if media.kind == "video" and (media.url or media.data):
        return {"type": "video_url", "video_url": {"url": media.url or data_url(media, "video/mp4")}}
    return None


def _text_of(media: Media, lost: list[str]) -> str:
    """A document that is text, under its title."""
    if media.is_cited:
        lost.append(f"{media.path}.citations")
    return "\n\n".join(piece for piece in (media.name, media.context, media.text) if piece)


def _lose_context(media: Media, lost: list[str]) -> None:
    if media.is_cited:
        lost.append(f"{media.path}.citations")
    if media.context:
        lost.append(f"{media.path}.context")


# Measuring what passes


def including_usage(stream_options: msgspec.Raw | None) -> msgspec.Raw:
    options: dict[str, msgspec.Raw] = {}
    if stream_options is not None and bytes(stream_options) != b"null":
        options = msgspec.json.decode(stream_options, type=dict[str, msgspec.Raw])
    return msgspec.Raw(dump_object({**options, "include_usage": _TRUE}))


class _Delta(msgspec.Struct):
    """Every field in which output can show. Raw, because some providers send arrays where others send text."""

    content: msgspec.Raw = _NULL
    reasoning_content: msgspec.Raw = _NULL
    reasoning: msgspec.Raw = _NULL
    refusal: msgspec.Raw = _NULL
    tool_calls: msgspec.Raw = _NULL
    function_call: msgspec.Raw = _NULL
    annotations: msgspec.Raw = _NULL
    executed_tools: msgspec.Raw = _NULL

    def visible_bytes(self) -> int:
        size = 0
        for part in (
            self.content,
            self.reasoning_content,
            self.reasoning,
            self.refusal,
            self.tool_calls,
            self.function_call,
        ):
            if part is not _NULL:
                size += _visible_bytes(part)
        return size


class _Message(msgspec.Struct):
    """Of a whole answer only the signs of built-in tools: what cites has searched; Groq tells what it ran."""

    annotations: msgspec.Raw = _NULL
    executed_tools: msgspec.Raw = _NULL


class _Choice(msgspec.Struct):
    """`message` in a whole answer; `text` in legacy completions."""

    delta: _Delta | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    text: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL

    @property
    def has_error(self) -> bool:
        return bytes(self.error) != b"null"


class _Groq(msgspec.Struct):
    usage: ChatUsage | None = None
    error: str | None = None


class _Chunk(msgspec.Struct):
    """A stream's chunk, and just as well a whole answer. Groq says its usage twice, or only in its own corner."""

    model: str | None = None
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None
    x_groq: _Groq | None = None
    error: msgspec.Raw = _NULL
    object: str | None = None
    service_tier: Any = None

    @property
    def has_error(self) -> bool:
        """Besides those of its choices."""
        return (
            (self.error is not _NULL and bytes(self.error) != b"null")
            or self.object == "error"
            or (self.x_groq is not None and bool(self.x_groq.error))
        )


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_answers = Shape(_Chunk)


def measure(body: bytes) -> Measured:
    """Raises `msgspec.DecodeError`."""
    chunk = _answers.read(body)
    finish_reason, searches, usage, has_error = "", 0, chunk.usage, chunk.has_error
    for choice in chunk.choices or ():
        finish_reason = choice.finish_reason or finish_reason
        if choice.error is not _NULL and choice.has_error:
            has_error = True
        message = choice.message
        if message is not None and (message.annotations is not _NULL or message.executed_tools is not _NULL):
            searches += _searches(message)
    if usage is None and chunk.x_groq is not None:
        usage = chunk.x_groq.usage
    return Measured(
        usage=read_usage(usage, searches, chunk.service_tier),
        response_model=name_of(chunk.model),
        finish_reason=name_of(finish_reason),
        has_error=has_error,
    )


class ChatMeter(StreamMeter):
    """Decodes no more than it counts. The usage chunk is passed on only where the client had asked for it."""

    def __init__(self, wants_usage_chunk: bool) -> None:
        super().__init__()
        self._wants_usage_chunk = wants_usage_chunk
        self._searches = 0
        self._service_tier: Any = None

    def observe(self, frame: Frame) -> bool:
        data = frame.data
        if not data:
            if frame.raw.lstrip()[:1] == b"{":
                self.has_error = True  # A whole error that is only called a stream.
            return False
        if data == b"[DONE]":
            self.is_done = True
            return False
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Not ours to judge: it passes through, and counts as output of its own length.
            self.output_chunks += 1
            self.output_bytes += len(data)
            return False
        if chunk.choices:
            self._count(chunk.choices)
        if chunk.has_error or frame.event == b"error":
            self.has_error = True
        self._service_tier = chunk.service_tier or self._service_tier
        usage = chunk.usage
        if usage is None and chunk.x_groq is not None:
            usage = chunk.x_groq.usage
        if usage is not None:
            self.usage_so_far = read_usage(usage, self._searches, self._service_tier) or self.usage_so_far
        if chunk.model and chunk.model != self.response_model:
            self.response_model = name_of(chunk.model)
        return not chunk.choices and chunk.usage is not None and not self._wants_usage_chunk

    def _count(self, choices: Iterable[_Choice]) -> None:
        for choice in choices:
            if choice.finish_reason:
                self.finish_reason = name_of(choice.finish_reason)
            if choice.error is not _NULL and choice.has_error:
                self.has_error = True
            visible = _visible_bytes(choice.text) if choice.text is not _NULL else 0
            delta = choice.delta
            if delta is not None:
                visible += delta.visible_bytes()
                if delta.annotations is not _NULL or delta.executed_tools is not _NULL:
                    self._searches = max(self._searches, _searches(delta))
            if visible:
                self.output_chunks += 1
                self.output_bytes += visible


def _searches(message: _Message | _Delta) -> int:
    """Runs of built-in tools that no usage counts."""
    executed = bytes(message.executed_tools)
    if executed[:1] == b"[":
        return len(msgspec.json.decode(executed, type=list[msgspec.Raw]))
    return int(b'"url_citation"' in bytes(message.annotations))


def _visible_bytes(part: msgspec.Raw) -> int:
    raw = bytes(part)
    if raw[:1] == b'"':
        return len(raw) - 2
    return 0 if raw == b"null" else len(raw)


CHAT = OpenAIChat()
