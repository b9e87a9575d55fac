"""A chat as Anthropic's Messages API wants it. Pure; no I/O.

Source: Anthropic's API reference, "Create a Message". Claude on Vertex and Bedrock takes the same body.
"""

import base64
import hashlib
import re
from typing import Any

import msgspec

from proxy.neutral import (
    EFFORT_BUDGETS,
    Media,
    Message,
    OutputFormat,
    Part,
    Prompt,
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
from proxy.wire.json_shape import Shape

ORIGIN = "anthropic"

CARRIED = frozenset(
    {
        "parallel_tool_calls",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "output_format",
        "reasoning",
        "user",
        "service_tier",
        "cache",
    }
)
_SERVICE_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
_IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")
# The ids of files at Anthropic; those of others look like `file-…`.
_FILE_ID = re.compile(r"file_\w+")
# claude-3-7-sonnet-…, claude-opus-4-6, claude-sonnet-4-20250514 (a date is no minor version), claude-haiku-4.5.
_OLD_NAME = re.compile(r"claude-(\d)(?:[-.](\d)(?!\d))?-")
_NAME = re.compile(r"claude-[a-z]+-(\d{1,2})(?!\d)(?:[-.](\d{1,2})(?!\d))?")
# From here on a model decides itself how much to think, told by an effort; and from there on it takes no budget.
_ADAPTIVE_FROM, _WITHOUT_BUDGET_FROM = (4, 6), (4, 7)
_THINKING_FROM = (3, 7)
# From here on a model is sampled by a temperature or by `top_p`; and from there on by nothing that a client says.
_ONE_SAMPLING_FROM, _WITHOUT_SAMPLING_FROM = (4, 1), (4, 7)
# What `top_p` is at least while a model thinks.
_THINKING_TOP_P_MIN = 0.95
# Documents that are text, besides those of `text/…`.
_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/yaml", "application/x-yaml"})
# Keywords of a schema that hold plain values, and those that hold schemas by names of the author's own.
_VALUES = frozenset({"enum", "const", "default", "examples", "example"})
_NAMED_SCHEMAS = frozenset({"properties", "$defs", "definitions", "patternProperties"})
_UNKNOWN = (0, 0)

_objects = Shape(dict[str, Any])


def write_body(prompt: Prompt, model: str, max_tokens: int, lost: list[str]) -> dict[str, Any]:
    """Everything but the model and whether it streams."""
    lose_all_but(CARRIED, prompt, lost)
    chat = _Chat(lost)
    for index, message in enumerate(prompt.messages):
        chat.add(message, f"messages.{index}")
    chat.put_results_first()
    if not chat.messages and chat.system:
        # A chat of nothing but instructions, which others answer.
        chat.messages.append({"role": "user", "content": chat.system})
        chat.system = []
    body: dict[str, Any] = {"max_tokens": max_tokens, "messages": chat.messages}
    if chat.system:
        only = chat.system[0]
        body["system"] = only["text"] if len(chat.system) == 1 and len(only) == 2 else chat.system
    _write_tools(prompt, body, lost)
    output_config = _reasoning(prompt, version_of(model), body, lost)
    _write_parameters(prompt, version_of(model), body, lost)
    if prompt.output_format is not None:
        output_config |= _output_format(prompt, prompt.output_format, lost)
    if output_config:
        body["output_config"] = output_config
    return body


def _write_parameters(prompt: Prompt, version: tuple[int, int], body: dict[str, Any], lost: list[str]) -> None:
    body |= sampling(prompt, version, body.get("thinking", {}).get("type", ""), lost)
    if prompt.stop:
        body["stop_sequences"] = prompt.stop
    if prompt.user is not None:
        body["metadata"] = {"user_id": prompt.user}
    if prompt.service_tier in _SERVICE_TIERS:
        body["service_tier"] = _SERVICE_TIERS[prompt.service_tier]
    elif prompt.service_tier is not None:
        lost.append(_name(prompt, "service_tier"))
    if prompt.cache:
        body["cache_control"] = _marker(prompt.cache)


def sampling(prompt: Prompt, version: tuple[int, int], thinking: str, lost: list[str]) -> dict[str, Any]:
    """`temperature`, `top_p` and `top_k`, as far as the model takes them. No more than 1 is a temperature; and while a model
    thinks, sampling is as it is."""
    thinks = thinking in ("enabled", "adaptive")
    temperature, top_p, top_k = prompt.temperature, prompt.top_p, prompt.top_k
    if version >= _ONE_SAMPLING_FROM:  # Which also refuses what holds anyway.
        temperature = None if temperature == 1 else temperature
        top_p = None if top_p == 1 else top_p
    is_sampled = version < _WITHOUT_SAMPLING_FROM
    has_one = version >= _ONE_SAMPLING_FROM and temperature is not None
    taken: dict[str, Any] = {}
    for name, value, fits in (
        ("temperature", temperature, temperature == 1 or not (thinks or (temperature or 0) > 1)),
        ("top_p", top_p, not has_one and (not thinks or (top_p or 0) >= _THINKING_TOP_P_MIN)),
        ("top_k", top_k, not thinks),
    ):
        if value is None:
            continue
        if fits and is_sampled:
            taken[name] = value
        else:
            lost.append(_name(prompt, name))
    return taken


def version_of(model: str) -> tuple[int, int]:
    """(4, 6) of `claude-opus-4-6`; (0, 0) of a name that does not say."""
    found = _OLD_NAME.search(model) or _NAME.search(model)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else _UNKNOWN


def _name(prompt: Prompt, parameter: str) -> str:
    return prompt.names.get(parameter, parameter)


class _Chat:
    """The messages: user and assistant in turn, none of them empty, the system prompt apart."""

    def __init__(self, lost: list[str]) -> None:
        self.system: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self._lost = lost

    def add(self, message: Message, path: str) -> None:
        if message.name:
            self._lost.append(f"{path}.name")
        if message.role in ("system", "developer"):
            self._add_system(message, path)
            return
        blocks: list[dict[str, Any]] = []
        for part in message.parts:
            block = self._block(part, path)
            if block is not None:
                blocks.append(block)
            elif blocks and type(part) is Text and not part.text and "thinking" not in blocks[-1]["type"]:
                _cached(blocks[-1], part.cache)  # The marker of a text that says nothing covers what is before it.
        if not blocks:
            return
        if self.messages and self.messages[-1]["role"] == message.role:
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": message.role, "content": blocks})

    def put_results_first(self) -> None:
        """Results answer the calls right before them. Once, at the end: a client may send very many messages."""
        for message in self.messages:
            if message["role"] == "user":
                message["content"].sort(key=_is_no_result)

    def _add_system(self, message: Message, path: str) -> None:
        for part in message.parts:
            if not isinstance(part, Text):
                self._lost.append(getattr(part, "path", "") or path)
            elif part.text:
                self.system.append(_cached({"type": "text", "text": part.text}, part.cache))

    def _block(self, part: Part, path: str) -> dict[str, Any] | None:
        """None for what says nothing, and for what is lost."""
        block: dict[str, Any] | None = None
        match part:
            case Text():
                return self._text(part, path)
            case Refusal(text=text):
                block = {"type": "text", "text": text}
            case Media():
                block = self._media(part)
            case ToolCall():
                block = self._tool_call(part)
            case ToolResult():
                block = self._tool_result(part)
            case Thinking(text="", signature="", redacted=""):
                return None
            case Thinking():
                block = _thinking(part)
            case _:
                pass
        if block is None:
            self._lost.append(getattr(part, "path", "") or path)
        return block

    def _text(self, part: Text, path: str) -> dict[str, Any] | None:
        if part.signature:
            self._lost.append(f"{path}.signature")
        if not part.text:  # Anthropic refuses empty ones.
            return None
        block: dict[str, Any] = {"type": "text", "text": part.text}
        own = [cited.source for cited in part.citations if _is_own_citation(cited.source)]
        if own:
            block["citations"] = own
        return _cached(block, part.cache)

    def _tool_call(self, call: ToolCall) -> dict[str, Any] | None:
        text = (call.arguments.strip() or "{}").encode()
        if call.is_custom or _objects.find(text) is None:
            return None
        if call.signature:
            self._lost.append(f"{call.path}.signature")
        block = {"type": "tool_use", "id": _call_id(call.call_id), "name": call.name, "input": msgspec.Raw(text)}
        return _cached(block, call.cache)

    def _tool_result(self, result: ToolResult) -> dict[str, Any] | None:
        if result.is_custom:
            return None
        content: list[dict[str, Any]] = []
        for part in result.content:
            block: dict[str, Any] | None = None
            if isinstance(part, Text):
                if not part.text:
                    continue
                block = _cached({"type": "text", "text": part.text}, part.cache)
            elif isinstance(part, Media):
                block = self._media(part)
            if block is None:
                self._lost.append(getattr(part, "path", "") or result.path)
            else:
                content.append(block)
        written: dict[str, Any] = {"type": "tool_result", "tool_use_id": _call_id(result.call_id)}
        if len(content) == 1 and content[0].keys() == {"type", "text"}:
            written["content"] = content[0]["text"]
        elif content:
            written["content"] = content
        if result.is_error:
            written["is_error"] = True
        return _cached(written, result.cache)

    def _media(self, media: Media) -> dict[str, Any] | None:
        media_type = media.media_type.partition(";")[0].strip().lower()
        is_image = media.kind == "image"
        if not is_image and media.kind != "document":
            return None
        source = _source(media, media_type, is_image)
        if source is None:
            return None
        if media.detail == "low":  # Here it is high anyway.
            self._lost.append(f"{media.path}.detail")
        block: dict[str, Any] = {"type": media.kind, "source": source}
        if not is_image:
            if media.name:
                block["title"] = media.name
            if media.context:
                block["context"] = media.context
            if media.is_cited:
                block["citations"] = {"enabled": True}
        return _cached(block, media.cache)


def _source(media: Media, media_type: str, is_image: bool) -> dict[str, Any] | None:
    """Images of four types; of documents PDF and plain text."""
    if media.data:
        if not is_image and (media_type.startswith("text/") or media_type in _TEXT_TYPES):
            return _plain(_decoded(media.data))
        fits = media_type in _IMAGE_TYPES if is_image else media_type == "application/pdf"
        return {"type": "base64", "media_type": media_type, "data": media.data} if fits else None
    if media.text and not is_image:
        return _plain(media.text)
    if media.url.startswith(("https://", "http://")):
        return {"type": "url", "url": media.url}
    if _FILE_ID.fullmatch(media.file_id):
        return {"type": "file", "file_id": media.file_id}
    return None


def _plain(text: str | None) -> dict[str, Any] | None:
    return {"type": "text", "media_type": "text/plain", "data": text} if text else None


def _decoded(data: str) -> str | None:
    try:
        return base64.b64decode(data).decode()
    except ValueError:
        return None


def _thinking(thinking: Thinking) -> dict[str, Any] | None:
    """Only Claude's own, as it was: what it did not sign it does not take."""
    if thinking.origin != ORIGIN:
        return None
    if thinking.redacted:
        return {"type": "redacted_thinking", "data": thinking.redacted}
    if not thinking.signature:
        return None
    return {"type": "thinking", "thinking": thinking.text, "signature": thinking.signature}


def _is_own_citation(source: Any) -> bool:
    return type(source) is dict and str(source.get("type", "")).endswith("_location")


def _is_no_result(block: dict[str, Any]) -> bool:
    return bool(block["type"] != "tool_result")


def _call_id(call_id: str) -> str:
    """One that Anthropic would refuse gets another, always the same."""
    if _CALL_ID.fullmatch(call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:32]}"


def _marker(cache: str) -> dict[str, Any]:
    """Five minutes hold where no `ttl` is said."""
    return {"type": "ephemeral", "ttl": "1h"} if cache == "1h" else {"type": "ephemeral"}


def _cached(block: dict[str, Any], cache: str) -> dict[str, Any]:
    if cache:
        block["cache_control"] = _marker(cache)
    return block


def _write_tools(prompt: Prompt, body: dict[str, Any], lost: list[str]) -> None:
    choice = prompt.tool_choice
    tools = []
    for tool in prompt.tools:
        if choice is not None and choice.allowed and tool.name not in choice.allowed:
            continue
        if tool.is_custom:
            lost.append(tool.path)
        else:
            tools.append(_tool(tool))
    if not tools:
        return
    body["tools"] = tools
    written = _choice(choice)
    if prompt.parallel_tool_calls is False and written != {"type": "none"}:
        written = {**(written or {"type": "auto"}), "disable_parallel_tool_use": True}
    if written:
        body["tool_choice"] = written


def _tool(tool: Tool) -> dict[str, Any]:
    written: dict[str, Any] = {"name": tool.name}
    if tool.description:
        written["description"] = tool.description
    schema = tool.parameters if type(tool.parameters) is dict else {}
    # Anthropic insists on the type.
    written["input_schema"] = schema if "type" in schema else {"type": "object", "properties": {}, **schema}
    if tool.is_strict:
        written["strict"] = True
    return _cached(written, tool.cache)


def _choice(choice: ToolChoice | None) -> dict[str, Any]:
    """Empty where nothing was asked for."""
    if choice is None:
        return {}
    match choice.mode:
        case "tool":
            return {"type": "tool", "name": choice.name}
        case "required":
            return {"type": "any"}
        case mode:
            return {"type": mode}


def _reasoning(prompt: Prompt, version: tuple[int, int], body: dict[str, Any], lost: list[str]) -> dict[str, Any]:
    """Thinking by a budget in tokens for the older models; for those that decide themselves, what goes into the output's
    configuration is the effort."""
    reasoning = prompt.reasoning
    if reasoning is None:
        return {}
    if reasoning.is_on is False or reasoning.effort == "none" or reasoning.budget_tokens == 0:
        if version >= _THINKING_FROM:
            body["thinking"] = {"type": "disabled"}
        return {}
    if not (reasoning.is_on or reasoning.effort or reasoning.budget_tokens):
        return {}  # How thoughts are to be shown, where none were asked for.
    if body.get("tool_choice", {}).get("type") in ("any", "tool"):
        lost.append(_name(prompt, "reasoning"))  # A model that thinks cannot be forced to a tool.
        return {}
    shown = {"": {}, "omitted": {"display": "omitted"}}.get(reasoning.summary, {"display": "summarized"})
    has_budget = reasoning.budget_tokens is not None and version < _WITHOUT_BUDGET_FROM
    if reasoning.is_adaptive or (version >= _ADAPTIVE_FROM and not has_budget):
        body["thinking"] = {"type": "adaptive", **shown}
        effort = _effort(reasoning, version)
        return {"effort": effort} if effort else {}
    # Thinking is part of the output, and must leave something of it: half, unless the client said how much.
    if reasoning.budget_tokens is not None:
        budget = min(reasoning.budget_tokens, body["max_tokens"] - 1)
    else:
        budget = min(EFFORT_BUDGETS.get(reasoning.effort, EFFORT_BUDGETS["medium"]), body["max_tokens"] // 2)
    budget = max(budget, EFFORT_BUDGETS["minimal"])
    if budget >= body["max_tokens"]:
        lost.append(_name(prompt, "reasoning"))
    else:
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
        if reasoning.summary == "omitted":
            body["thinking"] |= shown
    return {}


def _effort(reasoning: Reasoning, version: tuple[int, int]) -> str:
    effort = reasoning.effort
    if not effort and reasoning.budget_tokens is not None:
        enough = (name for name, tokens in EFFORT_BUDGETS.items() if tokens >= (reasoning.budget_tokens or 0))
        effort = next(enough, "max")
    if effort == "minimal":
        return "low"
    return "high" if effort == "xhigh" and version < _WITHOUT_BUDGET_FROM else effort


def _output_format(prompt: Prompt, wanted: OutputFormat, lost: list[str]) -> dict[str, Any]:
    """Just any JSON cannot be asked for."""
    if wanted.schema is None:
        lost.append(_name(prompt, "output_format"))
        return {}
    return {"format": {"type": "json_schema", "schema": _closed(wanted.described_schema())}}


def _closed(schema: Any) -> Any:
    """The schema with every object closed, as Anthropic insists: what fits it then fits the open one too."""
    if type(schema) is list:
        return [_closed(item) for item in schema]
    if type(schema) is not dict:
        return schema
    closed = {name: _closed_within(name, value) for name, value in schema.items()}
    if "properties" in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def _closed_within(keyword: str, value: Any) -> Any:
    if keyword in _VALUES:
        return value
    if keyword in _NAMED_SCHEMAS and type(value) is dict:
        return {name: _closed(schema) for name, schema in value.items()}
    return _closed(value)
