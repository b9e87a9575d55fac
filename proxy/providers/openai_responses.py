"""OpenAI's responses, as OpenAI and the providers shaped like it (Azure, xAI, DeepSeek, vLLM, …) take them. Pure; no I/O."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import msgspec

from proxy.dialects.dialect import Call
from proxy.neutral import (
    EFFORT_BUDGETS,
    Answer,
    Media,
    Message,
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
    ToolResult,
    lose_all_but,
)
from proxy.providers.openai_errors import read_error
from proxy.providers.openai_responses_answers import ResponsesReader, measure, read_answer
from proxy.providers.openai_users import user_id
from proxy.providers.provider import UNBOUNDED_FIELDS, Api, Measured, Outgoing, StreamReader, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object

# Parameters that the API has a place for; `cache` holds without being said, since a prefix is cached by itself.
CARRIED = frozenset(
    {
        "parallel_tool_calls",
        "temperature",
        "top_p",
        "logprobs",
        "top_logprobs",
        "output_format",
        "reasoning",
        "verbosity",
        "user",
        "service_tier",
        "metadata",
        "store",
        "prompt_cache_key",
        "cache",
    }
)
SERVICE_TIERS = {tier: tier for tier in ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")}
SERVICE_TIERS["standard_only"] = "default"
# Models that do not reason refuse to be asked for encrypted reasoning.
_REASONING_MODEL = re.compile(r"(?:^|[./])(?:o\d|gpt-[5-9](?!.*chat)|codex|grok)|gpt-oss")
# Models that take cache breakpoints; the others cache by themselves alone, and refuse them.
_BREAKPOINT_MODEL = re.compile(r"gpt-(?:5\.(?:[6-9]|\d\d)|[6-9])")
# The ids of OpenAI's files; another provider's mean nothing here.
_FILE_ID_PREFIX = "file-"

_encode = msgspec.json.Encoder().encode
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class OpenAIResponses(Api):
    name = "openai.responses"
    capability = "chat"
    is_translatable = True
    target = b"/responses"
    # Whether reasoning that nobody signed may be returned as text.
    takes_reasoning_text: ClassVar[bool] = False

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = renamed(call, deployment)
        if call.output_tokens_max is None:
            fields["max_output_tokens"] = msgspec.Raw(b"%d" % deployment.max_output_tokens)
        return Outgoing(self.target, dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        return measure(body)

    def write_request(
        self, prompt: Prompt, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        lose_all_but(CARRIED, prompt, lost)
        model = deployment.upstream_model
        items = _Items(lost, takes_reasoning_text=self.takes_reasoning_text, model=model)
        body: dict[str, Any] = {"model": model, "input": items.of(prompt.messages)}
        if items.instructions:
            body["instructions"] = items.instructions
        if prompt.tools:
            body["tools"] = list(map(_tool, prompt.tools))
        _write_tool_choice(body, prompt)
        _write_text(body, prompt)
        reasons = _REASONING_MODEL.search(model) is not None
        if prompt.reasoning is not None and (reasons or _effort(prompt.reasoning) != "none"):
            _write_reasoning(body, prompt.reasoning)
            reasons = True
        include = []
        if reasons or items.has_reasoning:
            include.append("reasoning.encrypted_content")
        if prompt.logprobs:
            include.append("message.output_text.logprobs")
        if include:
            body["include"] = include
        body["max_output_tokens"] = prompt.max_output_tokens or deployment.max_output_tokens
        # Other APIs keep nothing unless they are told to; this one does unless it is told not to.
        body["store"] = bool(prompt.store)
        if prompt.user is not None:
            body["user"] = user_id(prompt.user)
        for name in (
            "temperature",
            "top_p",
            "top_logprobs",
            "parallel_tool_calls",
            "metadata",
            "prompt_cache_key",
        ):
            value = getattr(prompt, name)
            if value is not None:
                body[name] = value
        _write_tier(body, prompt, lost)
        if call.is_stream:
            body["stream"] = True
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Answer:
        return read_answer(body)

    def stream_reader(self) -> StreamReader:
        return ResponsesReader()

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class OpenResponses(OpenAIResponses):
    """As DeepSeek and the servers of open models offer it: they take their reasoning back as text, unsigned."""

    takes_reasoning_text = True
    unbounded = UNBOUNDED_FIELDS


# Prompt → request


class _Items:
    """Messages as items. The first system message becomes `instructions` where it is mere text."""

    def __init__(self, lost: list[str], *, takes_reasoning_text: bool, model: str) -> None:
        self.instructions = ""
        self.has_reasoning = False
        self._lost = lost
        self._takes_reasoning_text = takes_reasoning_text
        self._takes_breakpoints = _BREAKPOINT_MODEL.search(model) is not None
        self._items: list[dict[str, Any]] = []

    def of(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        for index, message in enumerate(messages):
            if message.name:
                self._lost.append(f"messages.{index}.name")
            plain = _plain_text(message.parts)
            if index == 0 and message.role == "system" and plain:
                self.instructions = plain
            else:
                self._message(message, f"messages.{index}")
        return self._items

    def _message(self, message: Message, path: str) -> None:
        content: list[Part] = []
        for part in message.parts:
            if isinstance(part, Text | Media | Refusal):
                content.append(part)
                continue
            self._say(message.role, content, path)
            content = []
            if isinstance(part, ToolCall):
                self._call(part)
            elif isinstance(part, ToolResult):
                self._result(part)
            elif isinstance(part, Thinking):
                self._thinking(part, path)
            else:
                self._lost.append(path)
        self._say(message.role, content, path)

    def _say(self, role: str, parts: list[Part], path: str) -> None:
        plain = _plain_text(parts)
        if plain is not None and not (self._takes_breakpoints and _has_mark(parts)):
            self._items.append({"type": "message", "role": role, "content": plain})
        elif parts:
            content = self._assistant_content(parts, path) if role == "assistant" else self._content(parts, path)
            if content:
                self._items.append({"type": "message", "role": role, "content": content})

    def _assistant_content(self, parts: Iterable[Part], path: str) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        for part in parts:
            match part:
                case Text(text=text, signature=signature):
                    if signature:
                        self._lost.append(f"{path}.signature")
                    if text:
                        content.append({"type": "output_text", "text": text})
                case Refusal(text=text):
                    content.append({"type": "refusal", "refusal": text})
                case Media(path=media_path):
                    self._lost.append(media_path or path)
                case _:
                    pass
        return content

    def _content(self, parts: Iterable[Part], path: str) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        for part in parts:
            match part:
                case Text(text=text, cache=cache):
                    content.append(self._marked({"type": "input_text", "text": text}, cache))
                case Refusal(text=text):
                    content.append({"type": "input_text", "text": text})
                case Media(cache=cache):
                    written = _media(part, self._lost)
                    if written is not None:
                        content.append(self._marked(written, cache))
                case _:
                    self._lost.append(path)
        return content

    def _marked(self, written: dict[str, Any], cache: str) -> dict[str, Any]:
        if cache and self._takes_breakpoints:
            written["prompt_cache_breakpoint"] = (
                {"mode": "explicit", "ttl": "30m"} if cache == "1h" else {"mode": "explicit"}
            )
        return written

    def _call(self, call: ToolCall) -> None:
        if call.signature:
            self._lost.append(f"{call.path}.signature")
        item: dict[str, Any] = {"type": "function_call", "call_id": call.call_id, "name": call.name}
        if call.is_custom:
            item.update(type="custom_tool_call", input=call.arguments)
        else:
            item["arguments"] = call.arguments
        self._items.append(item)

    def _result(self, result: ToolResult) -> None:
        output: str | list[dict[str, Any]] | None = _plain_text(result.content)
        takes_mark = self._takes_breakpoints and (result.cache != "" or _has_mark(result.content))
        if output is None or takes_mark:
            content = self._content(result.content, result.path)
            if content and takes_mark:
                self._marked(content[-1], result.cache)
            output = content or ""
        if result.is_error:
            output = _as_error(output)
        kind = "custom_tool_call_output" if result.is_custom else "function_call_output"
        self._items.append({"type": kind, "call_id": result.call_id, "output": output})

    def _thinking(self, thinking: Thinking, path: str) -> None:
        item: dict[str, Any] = {"type": "reasoning", "summary": []}
        encrypted = thinking.signature or thinking.redacted
        if thinking.origin == "openai" and encrypted:
            if thinking.thinking_id:
                item["id"] = thinking.thinking_id
            if thinking.text:
                item["summary"] = [{"type": "summary_text", "text": thinking.text}]
            item["encrypted_content"] = encrypted
        elif not thinking.origin and thinking.text and self._takes_reasoning_text:
            item["content"] = [{"type": "reasoning_text", "text": thinking.text}]
        else:
            self._lost.append(thinking.path or path)
            return
        self.has_reasoning = True
        self._items.append(item)


def _plain_text(parts: Sequence[Part]) -> str | None:
    """Of a single text; None where there is more to say."""
    if len(parts) == 1 and isinstance(parts[0], Text) and not parts[0].signature:
        return parts[0].text
    return None


def _has_mark(parts: Iterable[Part]) -> bool:
    return any(isinstance(part, Text | Media) and part.cache for part in parts)


def _as_error(output: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The API has no flag for a tool that failed: the output says it in words."""
    if type(output) is str:
        return f"Error: {output}"
    return [{"type": "input_text", "text": "Error:"}, *output]


def _media(media: Media, lost: list[str]) -> dict[str, Any] | None:
    match media.kind:
        case "image" if media.url or media.data:
            written = {"type": "input_image", "image_url": media.url or _data_url(media, "image/png")}
        case "image" | "document" if media.file_id.startswith(_FILE_ID_PREFIX):
            written = {"type": f"input_{'image' if media.kind == 'image' else 'file'}", "file_id": media.file_id}
        case "document" if media.text:
            told = (media.name, media.context, media.text)
            written = {"type": "input_text", "text": "\n\n".join(filter(None, told))}
        case "document" if media.url:
            written = {"type": "input_file", "file_url": media.url}
        case "document" if media.data:
            name = media.name or f"document.{media.media_type.rpartition('/')[2] or 'pdf'}"
            written = {"type": "input_file", "filename": name, "file_data": _data_url(media, "application/pdf")}
        case "audio" if media.data and media.media_type in _AUDIO_FORMATS:
            audio = {"data": media.data, "format": _AUDIO_FORMATS[media.media_type]}
            return {"type": "input_audio", "input_audio": audio}
        case _:
            lost.append(media.path)
            return None
    if media.detail and "text" not in written:
        written["detail"] = media.detail
    if media.is_cited:
        lost.append(f"{media.path}.citations")
    if media.context and not media.text:
        lost.append(f"{media.path}.context")
    return written


_AUDIO_FORMATS = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
}


def _data_url(media: Media, otherwise: str) -> str:
    return f"data:{media.media_type or otherwise};base64,{media.data}"


def _tool(tool: Tool) -> dict[str, Any]:
    written: dict[str, Any] = {"type": "custom" if tool.is_custom else "function", "name": tool.name}
    if tool.description:
        written["description"] = tool.description
    if tool.is_custom:
        if tool.format is not None:
            written["format"] = tool.format
    else:
        written["parameters"] = tool.parameters if tool.parameters is not None else _NO_PARAMETERS
        # This API would take a tool for strict where it does not say; the others would not.
        written["strict"] = bool(tool.is_strict)
    return written


def _write_tier(body: dict[str, Any], prompt: Prompt, lost: list[str]) -> None:
    if prompt.service_tier is None:
        return
    tier = SERVICE_TIERS.get(prompt.service_tier)
    if tier is not None:
        body["service_tier"] = tier
    else:
        lost.append(prompt.names.get("service_tier", "service_tier"))


def _write_tool_choice(body: dict[str, Any], prompt: Prompt) -> None:
    choice = prompt.tool_choice
    if choice is None:
        return
    custom = {tool.name for tool in prompt.tools if tool.is_custom}

    def named(name: str) -> dict[str, str]:
        return {"type": "custom" if name in custom else "function", "name": name}

    if choice.mode == "tool":
        body["tool_choice"] = named(choice.name)
    elif choice.allowed:
        body["tool_choice"] = {"type": "allowed_tools", "mode": choice.mode, "tools": list(map(named, choice.allowed))}
    else:
        body["tool_choice"] = choice.mode


def _write_text(body: dict[str, Any], prompt: Prompt) -> None:
    text: dict[str, Any] = {}
    if prompt.output_format is not None:
        text["format"] = _format(prompt.output_format)
    if prompt.verbosity is not None:
        text["verbosity"] = prompt.verbosity
    if text:
        body["text"] = text


def _format(output_format: OutputFormat) -> dict[str, Any]:
    if output_format.schema is None:
        return {"type": "json_object"}
    written = {"type": "json_schema", "name": output_format.name or "response", "schema": output_format.schema}
    if output_format.description:
        written["description"] = output_format.description
    if output_format.is_strict is not None:
        written["strict"] = output_format.is_strict
    return written


def _write_reasoning(body: dict[str, Any], reasoning: Reasoning) -> None:
    written = {}
    effort = _effort(reasoning)
    if effort:
        written["effort"] = effort
    if reasoning.summary in ("auto", "concise", "detailed"):
        written["summary"] = reasoning.summary
    if written:
        body["reasoning"] = written


def _effort(reasoning: Reasoning) -> str:
    """A budget in tokens is the least effort that has as many."""
    if reasoning.effort:
        return reasoning.effort
    if reasoning.is_on is False or reasoning.budget_tokens == 0:
        return "none"
    if reasoning.budget_tokens is None or reasoning.budget_tokens < 0:
        return ""
    return next((effort for effort, budget in EFFORT_BUDGETS.items() if budget >= reasoning.budget_tokens), "max")


RESPONSES = OpenAIResponses()
OPEN_RESPONSES = OpenResponses()
