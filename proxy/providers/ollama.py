"""Ollama: its own chat and embeddings, OpenAI's, and Anthropic's messages. Pure; no I/O.

The base URL is the server's, without a path. A message has one text: parts of it are set apart by an empty line. Images come
as base64 only, tool calls whole. Prompts are cached without being told.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.neutral import (
    EFFORT_BUDGETS,
    LENGTH,
    STOP,
    TOOL_CALLS,
    Answer,
    Began,
    Choice,
    Done,
    Embedded,
    Embedding,
    Event,
    Failed,
    Finished,
    Media,
    Message,
    OpaqueDone,
    Part,
    Prompt,
    ProviderError,
    Reasoning,
    Refusal,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    ToolResult,
    UsageSeen,
    lose_all_but,
)
from proxy.providers import provider as base
from proxy.providers.anthropic import AnthropicMessages
from proxy.providers.openai_compatible import CompatibleChat
from proxy.providers.openai_completions import OpenAICompletions
from proxy.providers.openai_embeddings import OpenAIEmbeddings, texts_of
from proxy.providers.openai_errors import read_error
from proxy.providers.openai_responses import OpenResponses
from proxy.providers.provider import Api, Measured, Outgoing, StreamReader, checked_usage, name_of
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.json_lines import JSONLinesParser
from proxy.wire.json_shape import Shape

# `cache` asks for what is done anyway, and so does the key that sends like prompts to the same cache.
_CARRIED = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed",
        "stop", "logprobs", "top_logprobs", "output_format", "reasoning", "cache", "prompt_cache_key",
    }
)  # fmt: skip
# Ollama knows three levels.
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


# What is read: a line of a stream, and just as well a whole answer.


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = _NULL


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprob(msgspec.Struct):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list["_Logprob"] | None = None


class _Line(msgspec.Struct):
    model: str | None = None
    created_at: str | None = None
    message: _Message | None = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    logprobs: list[_Logprob] | None = None
    error: msgspec.Raw = _NULL


class _EmbedHead(msgspec.Struct):
    model: str | None = None
    prompt_eval_count: int | None = None
    error: msgspec.Raw = _NULL


class _Embedded(msgspec.Struct):
    embeddings: list[list[float]]
    model: str | None = None
    prompt_eval_count: int | None = None


_lines = Shape(_Line)
_embed_heads = Shape(_EmbedHead)
_embedded = Shape(_Embedded)
_objects = Shape(dict[str, msgspec.Raw])
_text = Shape(str)


# Chat


class OllamaChat(Api):
    name = "ollama.chat"
    capability = "chat"
    frames = JSONLinesParser
    stream_types = (b"application/x-ndjson",)
    is_translatable = True

    def measure(self, body: bytes) -> Measured:
        line = _lines.read(body)
        return Measured(
            usage=_usage_of(line.prompt_eval_count, line.eval_count),
            response_model=name_of(line.model),
            finish_reason=name_of(line.done_reason),
            has_error=bytes(line.error) != b"null",
        )

    def write_request(
        self, prompt: Prompt, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        lose_all_but(_CARRIED, prompt, lost)
        options: dict[str, Any] = {"num_predict": prompt.max_output_tokens or deployment.max_output_tokens}
        for name, value in (
            ("temperature", prompt.temperature),
            ("top_p", prompt.top_p),
            ("top_k", prompt.top_k),
            ("min_p", prompt.min_p),
            ("frequency_penalty", prompt.frequency_penalty),
            ("presence_penalty", prompt.presence_penalty),
            ("repeat_penalty", prompt.repetition_penalty),
            ("seed", prompt.seed),
            ("stop", prompt.stop or None),
        ):
            if value is not None:
                options[name] = value
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "messages": _write_messages(prompt, lost),
            "stream": call.is_stream,
            "options": options,
        }
        tools = _write_tools(prompt, lost)
        if tools:
            body["tools"] = tools
        if prompt.output_format is not None:
            schema = prompt.output_format.described_schema()
            body["format"] = "json" if schema is None else schema
        think = _write_think(prompt.reasoning)
        if think is not None:
            body["think"] = think
        if prompt.logprobs:
            body["logprobs"] = True
        if prompt.top_logprobs:
            body["top_logprobs"] = prompt.top_logprobs
        return Outgoing(b"/api/chat", _encode(body))

    def read_answer(self, body: bytes) -> Answer:
        line = _lines.read(body)
        if line.message is None:
            raise msgspec.ValidationError("an answer without a message")
        answer_id = _answer_id(line)
        tool_calls = [
            _read_tool_call(called, answer_id, index) for index, called in enumerate(line.message.tool_calls or ())
        ]
        parts: list[Part] = []
        if line.message.thinking:
            parts.append(Thinking(text=line.message.thinking))
        if line.message.content:
            parts.append(Text(text=line.message.content))
        return Answer(
            answer_id=answer_id,
            model=name_of(line.model),
            created_at_s=_seconds(line.created_at),
            choices=[
                Choice(
                    parts=[*parts, *tool_calls],
                    finish=_finish_of(line.done_reason, bool(tool_calls)),
                    finish_detail=name_of(line.done_reason),
                    logprobs=[_read_logprob(token) for token in line.logprobs] if line.logprobs else None,
                )
            ],
            usage=_usage_of(line.prompt_eval_count, line.eval_count),
        )

    def stream_reader(self) -> StreamReader:
        return OllamaChatReader()

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


def _write_messages(prompt: Prompt, lost: list[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    tool_names = prompt.tool_names()
    for index, message in enumerate(prompt.messages):
        if message.name:
            lost.append(f"messages.{index}.name")
        if message.role == "assistant":
            messages.append(_write_assistant(message, f"messages.{index}", lost))
            continue
        texts: list[str] = []
        images: list[str] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                messages.append(_write_tool_result(part, tool_names, lost))
            else:
                _write_part(part, texts, images, f"messages.{index}", lost)
        if texts or images:
            role = "system" if message.role == "developer" else message.role
            messages.append(_message(role, texts, images))
    return messages


def _message(role: str, texts: list[str], images: list[str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": "\n\n".join(texts)}
    if images:
        message["images"] = images
    return message


def _write_part(part: Part, texts: list[str], images: list[str], path: str, lost: list[str]) -> None:
    if isinstance(part, Text):
        texts.append(part.text)
    elif isinstance(part, Media) and part.kind == "image" and part.data:
        images.append(part.data)
    elif isinstance(part, Media) and part.kind == "document" and part.text and not part.is_cited:
        texts.append("\n\n".join(filter(None, (part.name, part.context, part.text))))
    else:
        lost.append(getattr(part, "path", "") or path)


def _write_assistant(message: Message, path: str, lost: list[str]) -> dict[str, Any]:
    """Neighbouring texts are one text that was cited from, so nothing sets them apart."""
    texts: list[str] = []
    thoughts: list[str] = []
    tool_calls: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Text | ToolCall | Thinking) and part.signature:
            lost.append(getattr(part, "path", "") or f"{path}.signature")  # Somebody else's: Ollama signs nothing.
        if isinstance(part, Text | Refusal):
            texts.append(part.text)
        elif isinstance(part, Thinking) and not part.redacted:
            thoughts.append(part.text)
        elif isinstance(part, ToolCall) and not part.is_custom:
            arguments = _objects.find(part.arguments.encode() or b"{}")
            if arguments is None:
                lost.append(part.path)  # What the model wrote was no object, and Ollama takes nothing else.
            function = {"name": part.name, "arguments": arguments or {}}
            tool_calls.append({"id": part.call_id, "type": "function", "function": function})
        else:
            lost.append(getattr(part, "path", "") or path)
    written = _message("assistant", ["".join(texts)], [])
    thinking = "\n\n".join(filter(None, thoughts))
    if thinking:
        written["thinking"] = thinking
    if tool_calls:
        written["tool_calls"] = tool_calls
    return written


def _write_tool_result(result: ToolResult, tool_names: Mapping[str, str], lost: list[str]) -> dict[str, Any]:
    """A failure has no mark of its own, so the text says it."""
    texts: list[str] = ["The tool failed:"] if result.is_error else []
    images: list[str] = []
    for part in result.content:
        _write_part(part, texts, images, result.path, lost)
    if result.is_custom:
        lost.append(result.path)
    message = _message("tool", texts, images)
    message["tool_call_id"] = result.call_id
    name = result.name or tool_names.get(result.call_id)
    if name:
        message["tool_name"] = name
    return message


def _write_tools(prompt: Prompt, lost: list[str]) -> list[dict[str, Any]]:
    """Ollama's models are free to choose among the tools that are sent: none for none, some for some."""
    choice = prompt.tool_choice
    tools = prompt.tools
    if choice is not None:
        if choice.mode == "none":
            return []
        if choice.mode in {"required", "tool"}:
            lost.append(prompt.names.get("tool_choice", "tool_choice"))
        if choice.allowed:
            tools = [tool for tool in tools if tool.name in choice.allowed]
    lost += [tool.path for tool in tools if tool.is_custom or tool.is_strict]
    return [_write_tool(tool) for tool in tools if not tool.is_custom]


def _write_tool(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _write_think(reasoning: Reasoning | None) -> bool | str | None:
    if reasoning is None:
        return None
    if reasoning.is_on is False or reasoning.effort == "none":
        return False
    budget = reasoning.budget_tokens
    effort = reasoning.effort
    if not effort and budget is not None:
        effort = next((name for name, tokens in EFFORT_BUDGETS.items() if tokens >= budget), "max")
    if effort in _LEVELS:
        return _LEVELS[effort]
    return True if reasoning.is_on or reasoning.is_adaptive else None


def _answer_id(line: _Line) -> str:
    """Ollama names its answers by nothing but their moment."""
    return "ollama-" + "".join(filter(str.isdigit, name_of(line.created_at)))


def _seconds(created_at: str | None) -> int:
    try:
        return max(0, int(datetime.fromisoformat(created_at or "").timestamp()))
    except (ValueError, OverflowError):
        return 0


def _read_tool_call(called: _ToolCall, answer_id: str, index: int) -> ToolCall:
    function = called.function or _Function()
    arguments = bytes(function.arguments).decode(errors="replace")
    if arguments.startswith('"'):  # An object written as text, by some that stand in for Ollama.
        arguments = _text.find(function.arguments) or "null"
    return ToolCall(
        call_id=called.id or f"call_{answer_id}_{index}",
        name=function.name or "",
        arguments=arguments if arguments != "null" else "{}",
    )


def _read_logprob(token: _Logprob) -> TokenLogprob:
    top = tuple(
        TokenLogprob(token=other.token, logprob=other.logprob, bytes=other.bytes) for other in token.top_logprobs or ()
    )
    return TokenLogprob(token=token.token, logprob=token.logprob, bytes=token.bytes, top=top)


def _finish_of(done_reason: str | None, has_tool_calls: bool) -> str:
    if done_reason == "length":
        return LENGTH
    return TOOL_CALLS if has_tool_calls else STOP


def _usage_of(prompt_tokens: int | None, tokens: int | None) -> Usage | None:
    """Older versions leave the prompt's count out where all of it was cached."""
    if prompt_tokens is None and tokens is None:
        return None
    return checked_usage(Usage(input_tokens=prompt_tokens or 0, output_tokens=tokens or 0))


class OllamaChatReader(StreamReader):
    def __init__(self) -> None:
        self._answer_id = ""
        self._tool_calls = 0

    def read(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if not data:
            return ()
        line = _lines.find(data)
        if line is None:
            return (OpaqueDone(kind="", size=len(data)),)
        if bytes(line.error) != b"null":
            return (Failed(error=read_error(0, data)),)
        events: list[Event] = []
        if not self._answer_id:
            self._answer_id = _answer_id(line)
            model, created_at_s = name_of(line.model), _seconds(line.created_at)
            events.append(Began(answer_id=self._answer_id, model=model, created_at_s=created_at_s))
        if line.message is not None:
            self._read_message(line.message, line.logprobs, events)
        if line.done:
            self._read_end(line, events)
        return events

    def _read_message(self, message: _Message, logprobs: list[_Logprob] | None, events: list[Event]) -> None:
        if message.thinking:
            events.append(ThinkingDelta(text=message.thinking))
        if message.content or logprobs:
            read = [_read_logprob(token) for token in logprobs] if logprobs else None
            events.append(TextDelta(text=message.content or "", logprobs=read))
        for called in message.tool_calls or ():
            index = self._tool_calls
            self._tool_calls += 1
            tool_call = _read_tool_call(called, self._answer_id, index)
            events.append(ToolCallBegan(index=index, call_id=tool_call.call_id, name=tool_call.name))
            events.append(ToolCallDelta(index=index, arguments=tool_call.arguments))

    def _read_end(self, line: _Line, events: list[Event]) -> None:
        usage = _usage_of(line.prompt_eval_count, line.eval_count)
        if usage is not None:
            events.append(UsageSeen(usage=usage))
        finish = _finish_of(line.done_reason, self._tool_calls > 0)
        events += (Finished(finish=finish, finish_detail=name_of(line.done_reason)), Done())


# Embeddings


class OllamaEmbed(Api):
    name = "ollama.embed"
    capability = "embeddings"
    is_translatable = True

    def measure(self, body: bytes) -> Measured:
        head = _embed_heads.read(body)
        return Measured(
            usage=_usage_of(head.prompt_eval_count, None),
            response_model=name_of(head.model),
            has_error=bytes(head.error) != b"null",
        )

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        """A task is no loss: these models make one embedding for every task. Too long an input is an error and not cut."""
        for name in ("title", "user"):
            if getattr(prompt, name):
                lost.append(prompt.names.get(name, name))
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "input": texts_of(prompt, lost),
            "truncate": False,
        }
        if prompt.dimensions is not None:
            body["dimensions"] = prompt.dimensions
        return Outgoing(b"/api/embed", _encode(body))

    def read_answer(self, body: bytes) -> Embedded:
        embedded = _embedded.read(body)
        return Embedded(
            vectors=embedded.embeddings,
            model=name_of(embedded.model),
            usage=_usage_of(embedded.prompt_eval_count, None),
        )

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


# What it offers in the forms of others; only passed, since its own form says more.


class OllamaOpenAIChat(CompatibleChat):
    target = b"/v1/chat/completions"


class OllamaOpenAIResponses(OpenResponses):
    target = b"/v1/responses"


class OllamaOpenAICompletions(OpenAICompletions):
    target = b"/v1/completions"


class OllamaOpenAIEmbeddings(OpenAIEmbeddings):
    target = b"/v1/embeddings"


class OllamaAnthropicMessages(AnthropicMessages):
    path = b"/v1/messages"


CHAT = OllamaChat()
EMBED = OllamaEmbed()
PROVIDER = base.Provider(
    name="ollama",
    apis=(
        CHAT,
        EMBED,
        OllamaOpenAIChat(),
        OllamaOpenAIResponses(),
        OllamaOpenAICompletions(),
        OllamaOpenAIEmbeddings(),
        OllamaAnthropicMessages(),
    ),
)
