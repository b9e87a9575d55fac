"""Bedrock's Converse: one API for the chats of every family of models. No client speaks it, so it is always translated. Pure.

Each family has fields of its own besides (`additionalModelRequestFields`): how it reasons, its `top_k`. Bedrock takes media as
bytes or from S3, by no other address. Claude and Nova cache what is marked; the others cache nothing, marked or not.
"""

import hashlib
import re
from typing import Any
from urllib.parse import quote

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
    ToolChoice,
    ToolResult,
    lose_all_but,
)
from proxy.providers.anthropic_requests import sampling, version_of
from proxy.providers.bedrock_answers import ORIGIN, ConverseReader, read_answer, read_error
from proxy.providers.provider import Api, Outgoing, StreamReader
from proxy.snapshot import Deployment, Provider
from proxy.wire.event_stream import EventStreamParser
from proxy.wire.json_shape import Shape

EVENT_STREAM = b"application/vnd.amazon.eventstream"

CLAUDE, NOVA, GPT, MISTRAL, COHERE, OTHER = "claude", "nova", "gpt", "mistral", "cohere", ""
# A profile's ARN hides whose model it is; then the name that the model has here must tell.
_FAMILIES = (
    (CLAUDE, ("anthropic.", "claude")),
    (NOVA, ("amazon.nova", "nova-")),
    (GPT, ("openai.", "gpt-oss")),
    (MISTRAL, ("mistral",)),
    (COHERE, ("cohere.", "command-")),
)

# Claude since 4.6 decides itself how much to think, told by an effort; since 4.7 it takes no budget.
_DECIDES_ITSELF = re.compile(r"claude-[a-z]+-(?:4[-.][6-9]|[5-9])(?!\d)")
_TAKES_NO_BUDGET = re.compile(r"claude-[a-z]+-(?:4[-.][7-9]|[5-9])(?!\d)")

_encode = msgspec.json.Encoder().encode
_objects = Shape(dict[str, Any])
_CARRIED = frozenset(
    {
        "parallel_tool_calls",
        "temperature",
        "top_p",
        "top_k",
        "output_format",
        "reasoning",
        "user",
        "service_tier",
        "metadata",
        "cache",
        "stop",
    }
)
_SERVICE_TIERS = ("priority", "flex", "reserved")
# What Bedrock takes as a piece of `requestMetadata`, which it writes to its log of invocations.
_LOGGABLE = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.\-]{0,256}")
_LOGGABLE_MAX = 16

_FORMATS = {
    "image": {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"},
    "document": {
        "application/pdf": "pdf",
        "text/csv": "csv",
        "application/msword": "doc",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
        "application/vnd.ms-excel": "xls",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
        "text/html": "html",
        "text/plain": "txt",
        "text/markdown": "md",
    },
    "audio": {
        "audio/mpeg": "mp3",
        "audio/mp3": "mp3",
        "audio/wav": "wav",
        "audio/x-wav": "wav",
        "audio/wave": "wav",
        "audio/flac": "flac",
        "audio/ogg": "ogg",
        "audio/opus": "opus",
        "audio/aac": "aac",
        "audio/mp4": "mp4",
        "audio/m4a": "m4a",
        "audio/x-m4a": "m4a",
        "audio/webm": "webm",
        "audio/pcm": "pcm",
    },
    "video": {
        "video/mp4": "mp4",
        "video/quicktime": "mov",
        "video/x-matroska": "mkv",
        "video/webm": "webm",
        "video/x-flv": "flv",
        "video/mpeg": "mpeg",
        "video/x-ms-wmv": "wmv",
        "video/3gpp": "three_gp",
    },
}

_CALL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
# What a document's name may not hold.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9\s()\[\]-]+")
_NAME_CHARACTERS_MAX = 190


def family_of(deployment: Deployment) -> str:
    names = f"{deployment.upstream_model} {deployment.model}".lower()
    return next((family for family, marks in _FAMILIES if any(mark in names for mark in marks)), OTHER)


def model_target(deployment: Deployment, action: str) -> bytes:
    """The model's id is one segment of the path: the `:` and `/` of an ARN are encoded."""
    return f"/model/{quote(deployment.upstream_model, safe='')}/{action}".encode()


def is_mantle(provider: Provider) -> bool:
    """Bedrock's other endpoint, which speaks OpenAI's and Anthropic's APIs and none of its own."""
    return "bedrock-mantle" in provider.base_url


class Converse(Api):
    name = "bedrock.converse"
    capability = "chat"
    frames = EventStreamParser
    stream_types = (EVENT_STREAM,)
    is_translatable = True

    def serves(self, deployment: Deployment, provider: Provider) -> bool:
        return not is_mantle(provider)

    def write_request(
        self, prompt: Prompt, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        family = family_of(deployment)
        max_tokens = prompt.max_output_tokens or deployment.max_output_tokens
        lose_all_but(_CARRIED, prompt, lost)
        chat = _Chat(family, lost)
        for index, message in enumerate(prompt.messages):
            chat.add(message, f"messages.{index}")
        chat.cache_to_here(prompt.cache)
        body: dict[str, Any] = {"messages": chat.messages}
        if chat.system:
            body["system"] = chat.system
        additional = _reasoning_fields(prompt, deployment, family, max_tokens, lost)
        body["inferenceConfig"] = {
            "maxTokens": max_tokens,
            **_sampling(prompt, deployment, family, additional, lost),
            **({"stopSequences": prompt.stop} if prompt.stop else {}),
        }
        _write_tools(prompt, family, body, additional, lost)
        if additional:
            body["additionalModelRequestFields"] = additional
        if prompt.stop and family == CLAUDE:
            body["additionalModelResponseFieldPaths"] = ["/stop_sequence"]
        if prompt.output_format is not None:
            _write_output_format(prompt, prompt.output_format, body, lost)
        if prompt.service_tier in _SERVICE_TIERS:
            body["serviceTier"] = {"type": prompt.service_tier}
        elif prompt.service_tier not in (None, "auto", "default", "standard_only"):
            lost.append(_name(prompt, "service_tier"))
        metadata = _request_metadata(prompt, lost)
        if metadata:
            body["requestMetadata"] = metadata
        return Outgoing(model_target(deployment, "converse-stream" if call.is_stream else "converse"), _encode(body))

    def read_answer(self, body: bytes) -> Answer:
        return read_answer(body)

    def stream_reader(self) -> StreamReader:
        return ConverseReader()

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


def _name(prompt: Prompt, parameter: str) -> str:
    return prompt.names.get(parameter, parameter)


class _Chat:
    """The messages as Converse wants them: user and assistant in turn, none of them empty, the system prompt apart."""

    def __init__(self, family: str, lost: list[str]) -> None:
        self.system: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self._family = family
        self._lost = lost
        self._document_names: set[str] = set()

    def add(self, message: Message, path: str) -> None:
        if message.name:
            self._lost.append(f"{path}.name")
        if message.role in ("system", "developer"):
            self._add_system(message, path)
            return
        blocks: list[dict[str, Any]] = []
        for part in message.parts:
            self._add_part(part, blocks, path)
        if not blocks:
            return
        if self.messages and self.messages[-1]["role"] == message.role:
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": message.role, "content": blocks})

    def cache_to_here(self, cache: str | None) -> None:
        if cache and self.messages:
            _mark(self.messages[-1]["content"], cache, self._family)

    def _add_system(self, message: Message, path: str) -> None:
        for part in message.parts:
            if isinstance(part, Text):
                if part.text:
                    self.system.append({"text": part.text})
                _mark(self.system, part.cache, self._family)
            else:
                self._lost.append(getattr(part, "path", "") or path)

    def _add_part(self, part: Part, blocks: list[dict[str, Any]], path: str) -> None:
        block: dict[str, Any] | None = None
        cache = ""
        match part:
            case Text(text=text, cache=cache, signature=signature):
                if signature:
                    self._lost.append(f"{path}.signature")
                if text:  # Bedrock refuses empty ones.
                    blocks.append({"text": text})
                _mark(blocks, cache, self._family)
                return
            case Refusal(text=text):
                block = {"text": text}
            case Media(cache=cache):
                block = self._media(part)
            case ToolCall(cache=cache):
                block = self._tool_call(part)
            case ToolResult(cache=cache):
                block = self._tool_result(part)
                # A marker within a result stands at its end.
                cache = cache or next(filter(None, (getattr(inner, "cache", "") for inner in part.content)), "")
            case Thinking(text="", signature="", redacted=""):
                return
            case Thinking():
                block = self._thinking(part)
            case _:
                pass
        if block is None:
            self._lost.append(getattr(part, "path", "") or path)
            return
        blocks.append(block)
        _mark(blocks, cache, self._family)

    def _tool_call(self, call: ToolCall) -> dict[str, Any] | None:
        arguments = _object(call.arguments)
        if call.is_custom or arguments is None:
            return None
        if call.signature:
            self._lost.append(f"{call.path}.signature")
        return {"toolUse": {"toolUseId": _call_id(call.call_id), "name": call.name, "input": arguments}}

    def _tool_result(self, result: ToolResult) -> dict[str, Any] | None:
        if result.is_custom:
            return None
        content: list[dict[str, Any]] = []
        for part in result.content:
            block: dict[str, Any] | None = None
            if isinstance(part, Text):
                if not part.text:
                    continue
                block = {"text": part.text}
            elif isinstance(part, Media) and part.kind != "audio":
                block = self._media(part)
            if block is None:
                self._lost.append(getattr(part, "path", "") or result.path)
            else:
                content.append(block)
        written: dict[str, Any] = {"toolUseId": _call_id(result.call_id), "content": content}
        if result.is_error:  # Not every model takes a status, and success is what holds without.
            written["status"] = "error"
        return {"toolResult": written}

    def _thinking(self, thinking: Thinking) -> dict[str, Any] | None:
        """Claude's own comes back as it was. Other families sign nothing, and take text back."""
        if thinking.origin == ORIGIN and self._family == CLAUDE:
            if thinking.redacted:
                return {"reasoningContent": {"redactedContent": thinking.redacted}}
            text = {"text": thinking.text, "signature": thinking.signature}
            return {"reasoningContent": {"reasoningText": text}} if thinking.signature else None
        if thinking.origin or thinking.signature or thinking.redacted or self._family == CLAUDE:
            return None
        return {"reasoningContent": {"reasoningText": {"text": thinking.text}}}

    def _media(self, media: Media) -> dict[str, Any] | None:
        source: dict[str, Any]
        word = _FORMATS[media.kind].get(media.media_type.partition(";")[0].strip().lower(), "")
        if media.data:
            source = {"bytes": media.data}
        elif media.url.startswith("s3://"):
            source = {"s3Location": {"uri": media.url}}
        elif media.text and media.kind == "document":
            source = {"text": media.text}
            word = word or "txt"
        else:
            return None
        if not word:
            return None
        if media.detail not in ("", "auto"):
            self._lost.append(f"{media.path}.detail")
        block: dict[str, Any] = {"format": word}
        if media.kind == "document":
            block["name"] = self._document_name(media.name)
        block["source"] = source
        if media.context:
            block["context"] = media.context
        if media.is_cited:
            block["citations"] = {"enabled": True}
        return {media.kind: block}

    def _document_name(self, name: str) -> str:
        """Bedrock takes few characters, and no name twice. The same request gets the same names: it may be cached."""
        name = " ".join(_NOT_IN_A_NAME.sub("-", name).split()).strip("-")[:_NAME_CHARACTERS_MAX] or "Document"
        free, count = name, 1
        while free in self._document_names:
            count += 1
            free = f"{name} ({count})"
        self._document_names.add(free)
        return free


def _mark(blocks: list[dict[str, Any]], cache: str, family: str) -> None:
    """Everything up to here is to be cached, for five minutes where no `ttl` is said. Other families refuse a marker."""
    if cache and family in (CLAUDE, NOVA) and blocks and "cachePoint" not in blocks[-1]:
        is_long = cache == "1h" and family == CLAUDE
        blocks.append({"cachePoint": {"type": "default", "ttl": "1h"} if is_long else {"type": "default"}})


def _call_id(call_id: str) -> str:
    """One that Bedrock would refuse gets another, always the same."""
    if _CALL_ID.fullmatch(call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:32]}"


def _object(arguments: str) -> msgspec.Raw | None:
    """The arguments as they were written, where they are a JSON object. A call without any is one of an empty object."""
    text = (arguments.strip() or "{}").encode()
    return msgspec.Raw(text) if _objects.find(text) is not None else None


def _sampling(
    prompt: Prompt, deployment: Deployment, family: str, additional: dict[str, Any], lost: list[str]
) -> dict[str, Any]:
    """What all models have; `top_k` is each one's own, and goes to `additional`."""
    taken = {"temperature": prompt.temperature, "top_p": prompt.top_p, "top_k": prompt.top_k}
    if family == CLAUDE:
        thinking = additional.get("thinking", {}).get("type", "")
        taken = sampling(prompt, version_of(_names(deployment)), thinking, lost)
    top_k = taken.get("top_k")
    if top_k is not None:
        if family in (CLAUDE, MISTRAL):
            additional["top_k"] = top_k
        elif family == NOVA:
            additional["inferenceConfig"] = {"topK": top_k}
        elif family == COHERE:
            additional["k"] = top_k
        else:
            lost.append(_name(prompt, "top_k"))
    names = {"temperature": "temperature", "top_p": "topP"}
    return {field: taken[name] for name, field in names.items() if taken.get(name) is not None}


def _names(deployment: Deployment) -> str:
    return f"{deployment.upstream_model} {deployment.model}"


def _reasoning_fields(
    prompt: Prompt, deployment: Deployment, family: str, max_tokens: int, lost: list[str]
) -> dict[str, Any]:
    if prompt.reasoning is None:
        return {}
    if family == CLAUDE:
        return _write_thinking(prompt, prompt.reasoning, _names(deployment), max_tokens, lost)
    return _write_reasoning(prompt, prompt.reasoning, family, lost)


def _write_reasoning(prompt: Prompt, reasoning: Reasoning, family: str, lost: list[str]) -> dict[str, Any]:
    is_off = reasoning.is_on is False or reasoning.effort == "none"
    effort = _effort(reasoning)
    if family == NOVA and is_off:
        return {"reasoningConfig": {"type": "disabled"}}
    # With "high" Nova refuses an output cap, and without a cap there is no bound on what is spent.
    if family == NOVA and effort != "high":
        return {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": effort}}
    if family == GPT and not is_off:
        return {"reasoning_effort": effort}
    if family in (NOVA, GPT) or not is_off:
        lost.append(_name(prompt, "reasoning"))
    return {}


def _write_thinking(
    prompt: Prompt, reasoning: Reasoning, names: str, max_tokens: int, lost: list[str]
) -> dict[str, Any]:
    """In Anthropic's own words: a budget for the older models, an effort for those that decide themselves."""
    if reasoning.is_on is False or reasoning.effort == "none":
        return {"thinking": {"type": "disabled"}}
    shown = {"display": "omitted"} if reasoning.summary == "omitted" else {}
    has_budget = reasoning.budget_tokens is not None and not _TAKES_NO_BUDGET.search(names)
    if reasoning.is_adaptive or (_DECIDES_ITSELF.search(names) and not has_budget):
        written: dict[str, Any] = {"thinking": {"type": "adaptive", **shown}}
        effort = _effort_of(reasoning)
        if effort:
            written["output_config"] = {"effort": "low" if effort == "minimal" else effort}
        return written
    budget = reasoning.budget_tokens or EFFORT_BUDGETS.get(reasoning.effort, EFFORT_BUDGETS["medium"])
    # Thinking is part of the output, and must leave something of it.
    budget = min(budget, max_tokens - 1)
    if budget < EFFORT_BUDGETS["minimal"]:
        lost.append(_name(prompt, "reasoning"))
        return {}
    return {"thinking": {"type": "enabled", "budget_tokens": budget, **shown}}


def _effort(reasoning: Reasoning) -> str:
    """The three that Nova and GPT know."""
    effort = _effort_of(reasoning)
    if effort in ("minimal", "low"):
        return "low"
    return "high" if effort in ("high", "xhigh", "max") else "medium"


def _effort_of(reasoning: Reasoning) -> str:
    budget = reasoning.budget_tokens
    if reasoning.effort or budget is None:
        return reasoning.effort
    return next((effort for effort, tokens in EFFORT_BUDGETS.items() if tokens >= budget), "max")


def _write_tools(
    prompt: Prompt, family: str, body: dict[str, Any], additional: dict[str, Any], lost: list[str]
) -> None:
    """Only Claude can be told "none" and "one at a time", both among its own fields, where its whole choice goes then.

    To the others "none" is said by leaving the tools out, unless the chat has calls, which Bedrock takes only with tools.
    """
    choice = prompt.tool_choice or ToolChoice(mode="auto")
    if choice.mode == "none" and family != CLAUDE:
        if _has_calls(prompt):
            lost.append(_name(prompt, "tool_choice"))
        else:
            return
    tools: list[dict[str, Any]] = []
    for tool in prompt.tools:
        if choice.allowed and tool.name not in choice.allowed:
            continue
        if tool.is_custom:
            lost.append(tool.path)
            continue
        tools.append({"toolSpec": _tool_spec(tool)})
        if family == CLAUDE:
            _mark(tools, tool.cache, family)
    if not tools:
        return
    config = body["toolConfig"] = {"tools": tools}
    is_serial = prompt.parallel_tool_calls is False
    if family == CLAUDE and (is_serial or choice.mode == "none"):
        additional["tool_choice"] = _claude_choice(choice, is_serial)
        return
    if is_serial:
        lost.append(_name(prompt, "parallel_tool_calls"))
    if choice.mode == "tool":
        config["toolChoice"] = {"tool": {"name": choice.name}}
    elif choice.mode == "required":
        config["toolChoice"] = {"any": {}}


def _claude_choice(choice: ToolChoice, is_serial: bool) -> dict[str, Any]:
    """In Anthropic's own words."""
    match choice.mode:
        case "none":
            return {"type": "none"}
        case "tool":
            written: dict[str, Any] = {"type": "tool", "name": choice.name}
        case "required":
            written = {"type": "any"}
        case _:
            written = {"type": "auto"}
    if is_serial:
        written["disable_parallel_tool_use"] = True
    return written


def _has_calls(prompt: Prompt) -> bool:
    return any(isinstance(part, ToolCall | ToolResult) for message in prompt.messages for part in message.parts)


def _tool_spec(tool: Tool) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": tool.name}
    if tool.description:
        spec["description"] = tool.description
    spec["inputSchema"] = {"json": tool.parameters or {"type": "object", "properties": {}}}
    if tool.is_strict:
        spec["strict"] = True
    return spec


def _write_output_format(prompt: Prompt, wanted: OutputFormat, body: dict[str, Any], lost: list[str]) -> None:
    """Just any JSON cannot be asked for."""
    if wanted.schema is None:
        lost.append(_name(prompt, "output_format"))
        return
    schema = {"schema": _encode(wanted.schema).decode()}
    if wanted.name:
        schema["name"] = wanted.name
    if wanted.description:
        schema["description"] = wanted.description
    body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}


def _request_metadata(prompt: Prompt, lost: list[str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for name, value in (prompt.metadata or {}).items():
        if name and _LOGGABLE.fullmatch(name) and _LOGGABLE.fullmatch(value) and len(metadata) < _LOGGABLE_MAX:
            metadata[name] = value
        else:
            lost.append(f"{_name(prompt, 'metadata')}.{name}")
    if prompt.user is not None:
        if _LOGGABLE.fullmatch(prompt.user) and len(metadata) < _LOGGABLE_MAX:
            metadata.setdefault("user_id", prompt.user)
        else:
            lost.append(_name(prompt, "user"))
    return metadata
