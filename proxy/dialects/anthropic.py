"""Anthropic's messages, as clients speak them: requests, errors and models. `anthropic_answers.py` writes the answers. Pure; no I/O.

A conversation is a list of messages made of blocks; tool results are blocks of the user's. Reasoning of another provider is
shown as a `thinking` block whose signature says whose it is, so that it comes back unchanged.
Source: https://platform.claude.com/docs/en/api/messages and `anthropic.types` of the official SDK.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from proxy.dialects.anthropic_answers import MessagesWriter, unwrapped, write_answer
from proxy.dialects.dialect import (
    LONG_MEDIA_TOKENS_MAX,
    MEDIA_TOKENS_MAX,
    TEMPLATE_TOKENS,
    Call,
    Dialect,
    HeadReader,
    StreamWriter,
    beside_text,
    file_ids_in,
    json_fields,
)
from proxy.errors import GatewayError, InvalidRequest, UpstreamRefused
from proxy.fields import Fields, wrong
from proxy.neutral import (
    Answer,
    Citation,
    Media,
    Message,
    OutputFormat,
    Part,
    Prompt,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from proxy.snapshot import Alias

# The beta that makes the context of some models longer than the registry says.
LONG_CONTEXT_BETA = b"context-1m"
LONG_CONTEXT_TOKENS = 1_000_000
# Blocks whose tokens do not show in the bytes of the request: pages and pixels, whether they are in it or elsewhere.
MEDIA_MARKS = (b'"image"', b'"document"')
# Sources of documents whose text does not stand in the request.
LONG_MEDIA_MARKS = (b"application/pdf", b'"url"', b'"file"')
# How often the provider may run a tool of its own where the client does not say.
TOOL_CALLS_MAX = 16
# Tools with a name of Anthropic's that the client runs all the same: they cost nothing but their tokens.
CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_", "browser_")

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_ERROR_WORDS = frozenset({*ERROR_TYPES.values(), "api_error"})

_NAMES = {
    "max_output_tokens": "max_tokens",
    "stop": "stop_sequences",
    "user": "metadata.user_id",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "output_format": "output_config.format",
    "reasoning": "thinking",
    "cache": "cache_control",
}
# Of what Anthropic takes beside a tool's schema: what says how its input is streamed, or what holds anyway.
_HARMLESS_OF_TOOLS: Mapping[str, tuple[Any, ...]] = {
    "eager_input_streaming": (True, False),
    "defer_loading": (False,),
    "allowed_callers": (["direct"],),
    "input_examples": ([],),
}
_HARMLESS: Mapping[str, tuple[Any, ...]] = {"speed": ("standard",), "mcp_servers": ([],), "fallbacks": ([],)}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class _Tool(msgspec.Struct):
    type: str | None = None
    max_uses: int | None = None
    model: str | None = None


class _Head(msgspec.Struct):
    """Only what we act on; everything else passes through untouched."""

    model: str
    stream: bool | None = None
    max_tokens: int | None = None
    tools: list[_Tool] | None = None
    mcp_servers: list[Any] | None = None


_decode_head = HeadReader(_Head).read


class Anthropic(Dialect):
    """What its APIs have in common for their clients."""

    capability = "chat"
    request_headers = (b"anthropic-version", b"anthropic-beta")
    request_id_header = b"request-id"

    def render_error(self, error: GatewayError, request_id: str) -> bytes:
        """`{"type": "error", "error": {type, message, …}, "request_id"}`."""
        details: dict[str, Any] = {"type": _error_type(error), "message": error.message, "code": error.code}
        if error.param is not None:
            details["param"] = error.param
        return _encode({"type": "error", "error": {**details, **error.details}, "request_id": request_id})

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"event: error\ndata: " + self.render_error(error, request_id) + b"\n\n"

    def render_models(self, aliases: Iterable[Alias], parameters: Mapping[str, str]) -> bytes:
        data = [
            {
                "type": "model",
                "id": alias.name,
                "display_name": alias.name,
                "created_at": datetime.fromtimestamp(alias.created_at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            for alias in aliases
        ]
        if "model" in parameters:
            return _encode(data[0])
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return _encode({"data": data, "has_more": False, "first_id": first, "last_id": last})


class AnthropicMessages(Anthropic):
    name = "anthropic.messages"
    operation = "chat"
    is_translatable = True

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields, head = _head_of(body)
        # Nothing at all may be asked for: that only fills the cache.
        if head.max_tokens is not None and head.max_tokens < 0:
            raise InvalidRequest("the output cap must not be negative", code="invalid_value", param="max_tokens")
        tool_calls_max = _tool_calls_max(head)
        seen = beside_text(body, fields, "messages")
        media = sum(seen.count(mark) for mark in MEDIA_MARKS)
        is_long = b'"document"' in seen and any(mark in seen for mark in LONG_MEDIA_MARKS)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            parameters=parameters,
            is_stream=bool(head.stream),
            output_tokens_max=head.max_tokens,
            # Byte-level tokenisers never make more tokens than bytes; what a tool of the provider finds is read as input too.
            input_tokens_max=len(body)
            + TEMPLATE_TOKENS
            + (media + tool_calls_max) * MEDIA_TOKENS_MAX
            + (LONG_MEDIA_TOKENS_MAX if is_long else 0),
            file_ids=file_ids_in(seen),
            tool_calls_max=tool_calls_max,
            context_tokens=_context_tokens(fields, parameters),
            has_images=media > 0,
        )

    def read_prompt(self, call: Call) -> Prompt:
        return _read_prompt(Fields(_decode(call.body)))

    def write_answer(self, answer: Answer, call: Call) -> bytes:
        return write_answer(answer, call)

    def stream_writer(self, call: Call) -> StreamWriter:
        return MessagesWriter(call)


class AnthropicCountTokens(Anthropic):
    """How many tokens a request would have; it costs nothing."""

    name = "anthropic.count_tokens"
    operation = "count_tokens"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields, head = _head_of(body)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            parameters=parameters,
            input_tokens_max=len(body) + TEMPLATE_TOKENS,
            output_tokens_max=0,
            is_free=True,
        )


def _head_of(body: bytes) -> tuple[dict[str, msgspec.Raw], _Head]:
    fields = json_fields(body)
    head = _decode_head(body)
    for index, tool in enumerate(head.tools or ()):
        if tool.model is not None:
            reason = "a tool that calls another model costs what this model's price does not say"
            raise InvalidRequest(reason, code="invalid_value", param=f"tools.{index}.model")
    return fields, head


def _context_tokens(fields: Mapping[str, msgspec.Raw], parameters: Mapping[str, str]) -> int:
    """What the beta of a longer context lets a prompt have."""
    betas = parameters.get("anthropic-beta", "").encode() + bytes(fields.get("anthropic_beta", b""))
    return LONG_CONTEXT_TOKENS if LONG_CONTEXT_BETA in betas else 0


def _tool_calls_max(head: _Head) -> int:
    servers = TOOL_CALLS_MAX if head.mcp_servers else 0
    return servers + sum(
        TOOL_CALLS_MAX if tool.max_uses is None else max(tool.max_uses, 0)
        for tool in head.tools or ()
        if not _is_clients(tool.type)
    )


def _is_clients(tool_type: str | None) -> bool:
    return tool_type is None or tool_type.startswith(CLIENT_TOOLS)


def _error_type(error: GatewayError) -> str:
    if error.code in _ERROR_WORDS:
        return error.code  # The provider's own word is ours.
    status_code = error.upstream_status if isinstance(error, UpstreamRefused) else error.status_code
    return ERROR_TYPES.get(status_code, "invalid_request_error" if status_code < 500 else "api_error")


# Request → prompt


def _read_prompt(fields: Fields) -> Prompt:
    lost: list[str] = []
    for name in ("model", "stream", "anthropic_version"):  # The last, of clients that write for Bedrock or Vertex.
        fields.any(name)
    for name, harmless in _HARMLESS.items():
        value = fields.any(name)
        if value is not None and value not in harmless:
            lost.append(name)
    _read_context_management(fields, lost)
    names = dict(_NAMES)
    max_tokens = fields.integer("max_tokens")
    if max_tokens == 0:
        lost.append("max_tokens")
    tool_choice, parallel_tool_calls = _read_tool_choice(fields, lost)
    output_format, effort = _read_output(fields, names, lost)
    prompt = Prompt(
        messages=_read_messages(fields, lost),
        tools=_read_tools(fields, lost),
        tool_choice=tool_choice,
        parallel_tool_calls=parallel_tool_calls,
        max_output_tokens=max_tokens,
        temperature=fields.number("temperature"),
        top_p=fields.number("top_p"),
        top_k=fields.integer("top_k"),
        stop=_read_stop(fields),
        output_format=output_format,
        reasoning=_read_reasoning(fields, effort, names, lost),
        user=_read_user(fields, lost),
        service_tier=fields.text("service_tier"),
        cache=_cache(fields) or None,
        names=names,
        lost=lost,
    )
    # What the provider would keep, do or choose itself (`container`, `inference_geo`, …) is among the rest.
    fields.rest(lost)
    return prompt


def _read_context_management(fields: Fields, lost: list[str]) -> None:
    """Keeping all thoughts, as Claude Code asks, is what holds anyway."""
    management = fields.object("context_management")
    if management is None:
        return
    for edit in management.objects("edits"):
        kind, keep = edit.text("type") or "", edit.any("keep")
        if not (kind.startswith("clear_thinking_") and keep == "all"):
            lost.append(edit.path("")[:-1])
    management.rest(lost)


def _read_output(fields: Fields, names: dict[str, str], lost: list[str]) -> tuple[OutputFormat | None, str]:
    """(format, effort). The format stood at the top while it was in beta."""
    wanted, effort = fields.object("output_format"), ""
    if wanted is not None:
        names["output_format"] = "output_format"
    config = fields.object("output_config")
    if config is not None:
        effort = config.text("effort") or ""
        current = config.object("format")
        if current is not None:
            wanted = current
            names["output_format"] = "output_config.format"
        config.rest(lost)
    if wanted is None:
        return None, effort
    if wanted.text("type") != "json_schema":
        lost.append(names["output_format"])
        return None, effort
    schema = wanted.any("schema")
    if type(schema) is not dict:
        raise wrong(wanted.path("schema"), "an object")
    wanted.rest(lost)
    return OutputFormat(schema=schema, is_strict=True), effort


def _read_reasoning(fields: Fields, effort: str, names: dict[str, str], lost: list[str]) -> Reasoning | None:
    thinking = fields.object("thinking")
    if thinking is None:
        names["reasoning"] = "output_config.effort"
        return Reasoning(effort=effort) if effort else None
    kind, budget, display = thinking.text("type"), thinking.integer("budget_tokens"), thinking.text("display")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise wrong("thinking.type", "enabled, adaptive or disabled")
    thinking.rest(lost)
    if kind == "disabled":
        return Reasoning(is_on=False, effort=effort)
    summary = {"summarized": "auto", "omitted": "omitted"}.get(display or "", "")
    return Reasoning(is_on=True, effort=effort, budget_tokens=budget, summary=summary, is_adaptive=kind == "adaptive")


def _read_user(fields: Fields, lost: list[str]) -> str | None:
    metadata = fields.object("metadata")
    if metadata is None:
        return None
    user = metadata.text("user_id")
    metadata.rest(lost)
    return user


def _read_stop(fields: Fields) -> tuple[str, ...]:
    stop = fields.items("stop_sequences")
    if any(type(text) is not str for text in stop):
        raise wrong("stop_sequences", "a list of texts")
    return tuple(stop)


def _cache(value: Fields) -> str:
    """A marker's `scope` says who may share what it marks; where there is no such marker, nobody does."""
    marker = value.object("cache_control")
    if marker is None:
        return ""
    return "1h" if marker.text("ttl") == "1h" else "5m"


# Messages


def _read_messages(fields: Fields, lost: list[str]) -> list[Message]:
    messages: list[Message] = []
    system = _read_content(fields, "system", lost) if fields.has("system") else []
    if system:
        messages.append(Message(role="system", parts=system))
    said = 0
    for message in fields.objects("messages"):
        role = message.required_text("role")
        if role not in ("user", "assistant", "system"):
            raise wrong(message.path("role"), "user, assistant or system")
        _add_message(role, message, messages, lost)
        message.rest(lost)
        said += 1
    if not said:
        raise wrong("messages", "a list of at least one message")
    return messages


def _add_message(role: str, message: Fields, messages: list[Message], lost: list[str]) -> None:
    content = message.any("content")
    if type(content) is str:
        parts: list[Part] = [Text(text=content)]
    elif type(content) is list:
        path = message.path("content")
        parts = []
        for index, value in enumerate(content):
            block = Fields(value, f"{path}.{index}.")
            if value.get("type") == "mid_conv_system":
                messages.append(Message(role="system", parts=_read_content(block, "content", lost)))
            else:
                _read_block(block, f"{path}.{index}", parts, lost)
        _attach_signatures(parts)
    else:
        raise wrong(message.path("content"), "text or a list of blocks")
    if parts or role != "system":
        messages.append(Message(role=role, parts=parts))  # type: ignore[arg-type]


def _read_content(value: Fields, name: str, lost: list[str]) -> list[Part]:
    """Text, or a list of blocks; nothing where there is none."""
    content = value.any(name)
    if content is None:
        return []
    if type(content) is str:
        return [Text(text=content)] if content else []
    path = value.path(name)
    if type(content) is not list:
        raise wrong(path, "text or a list of blocks")
    parts: list[Part] = []
    for index, item in enumerate(content):
        _read_block(Fields(item, f"{path}.{index}."), f"{path}.{index}", parts, lost)
    return parts


def _read_block(block: Fields, path: str, parts: list[Part], lost: list[str]) -> None:
    match block.required_text("type"):
        case "text":
            parts.append(_read_text(block))
        case "tool_use":
            parts.append(_read_tool_call(block, path, lost))
        case "tool_result":
            parts.append(
                ToolResult(
                    call_id=block.required_text("tool_use_id"),
                    content=tuple(_read_content(block, "content", lost)),
                    is_error=bool(block.flag("is_error")),
                    cache=_cache(block),
                    path=path,
                )
            )
        case "thinking":
            text, signature = block.text("thinking") or "", block.text("signature") or ""
            origin, thinking_id, signature = unwrapped(signature)
            parts.append(Thinking(text=text, signature=signature, origin=origin, thinking_id=thinking_id, path=path))
        case "redacted_thinking":
            origin, thinking_id, data = unwrapped(block.required_text("data"))
            parts.append(Thinking(redacted=data, origin=origin, thinking_id=thinking_id, path=path))
        case "image" | "document" as kind:
            parts.append(_read_media(kind, block, path, lost))
        case "search_result":
            parts.append(_read_search_result(block, path, lost))
        case "compaction" if not block.has("content"):
            return  # One that failed, which says nothing.
        case _:
            # What the provider ran itself (server_tool_use, mcp_tool_use, …), and what only it understands.
            lost.append(path)
            return
    block.rest(lost)


def _read_text(block: Fields) -> Text:
    text = Text(text=block.required_text("text"), cache=_cache(block))
    if block.has("citations"):
        text.citations = tuple(map(_read_citation, block.items("citations")))
    return text


def _read_citation(value: Any) -> Citation:
    if type(value) is not dict:
        raise wrong("citations", "a list of objects")
    citation = Fields(dict(value), "citations.")
    document = citation.integer("document_index")
    source = citation.text("source") or ""
    return Citation(
        url=citation.text("url") or (source if source[:4] == "http" else ""),
        title=citation.text("title") or citation.text("document_title") or "",
        cited_text=citation.text("cited_text") or "",
        document=-1 if document is None else document,
        file_id=citation.text("file_id") or "",
        source=value,
    )


def _read_tool_call(block: Fields, path: str, lost: list[str]) -> ToolCall:
    arguments = block.any("input")
    if type(arguments) is not dict:
        raise wrong(block.path("input"), "an object")
    caller = block.object("caller")
    if caller is not None and caller.text("type") != "direct":
        lost.append(block.path("caller"))
    return ToolCall(
        call_id=block.required_text("id"),
        name=block.required_text("name"),
        arguments=_encode(arguments).decode(),
        cache=_cache(block),
        path=path,
    )


def _read_media(kind: str, block: Fields, path: str, lost: list[str]) -> Media:
    source = block.object("source")
    if source is None:
        raise wrong(block.path("source"), "an object")
    citations = block.object("citations")
    media = Media(
        kind=kind,  # type: ignore[arg-type]
        name=block.text("title") or "",
        context=block.text("context") or "",
        is_cited=citations is not None and bool(citations.flag("enabled")),
        cache=_cache(block),
        path=path,
    )
    match source.required_text("type"):
        case "base64":
            media.media_type, media.data = source.required_text("media_type"), source.required_text("data")
        case "url":
            media.url = source.required_text("url")
        case "file":
            media.file_id = source.required_text("file_id")
        case "text":
            media.media_type, media.text = source.text("media_type") or "text/plain", source.required_text("data")
        case "content":
            media.media_type, media.text = "text/plain", _read_passages(source, lost)
        case _:
            raise wrong(source.path("type"), "base64, url, file, text or content")
    source.rest(lost)
    return media


def _read_search_result(block: Fields, path: str, lost: list[str]) -> Media:
    """A document of text, for those who know no search results of the client's own."""
    citations = block.object("citations")
    return Media(
        kind="document",
        media_type="text/plain",
        text=_read_passages(block, lost),
        name=block.text("title") or "",
        context=block.text("source") or "",
        is_cited=citations is not None and bool(citations.flag("enabled")),
        cache=_cache(block),
        path=path,
    )


def _read_passages(value: Fields, lost: list[str]) -> str:
    texts = []
    for part in _read_content(value, "content", lost):
        if type(part) is Text:
            texts.append(part.text)
        else:
            lost.append(getattr(part, "path", ""))
    return "\n\n".join(texts)


def _attach_signatures(parts: list[Part]) -> None:
    """Gemini signs texts and calls: what was shown before one of these is its signature, and returns to it."""
    if not any(type(part) is Thinking and part.redacted and part.origin == "gemini" for part in parts):
        return
    waiting = ""
    signed: list[Part] = []
    for part in parts:
        if type(part) is Thinking and part.redacted and part.origin == "gemini":
            if waiting:
                signed.append(Text(text="", signature=waiting))
            waiting = part.redacted
            continue
        if waiting:
            if type(part) is Text or type(part) is ToolCall:
                part.signature = waiting
            else:
                signed.append(Text(text="", signature=waiting))
            waiting = ""
        signed.append(part)
    if waiting:
        signed.append(Text(text="", signature=waiting))
    parts[:] = signed


# Tools


def _read_tools(fields: Fields, lost: list[str]) -> list[Tool]:
    tools = []
    for tool in fields.objects("tools"):
        path = tool.path("")[:-1]
        if tool.text("type") not in (None, "custom"):
            lost.append(path)  # One of Anthropic's: others know neither its schema nor how to run it.
            continue
        for name, harmless in _HARMLESS_OF_TOOLS.items():
            value = tool.any(name)
            if value is not None and value not in harmless:
                lost.append(tool.path(name))
        tools.append(
            Tool(
                name=tool.required_text("name"),
                description=tool.text("description") or "",
                parameters=tool.any("input_schema"),
                is_strict=tool.flag("strict"),
                cache=_cache(tool),
                path=path,
            )
        )
        tool.rest(lost)
    return tools


def _read_tool_choice(fields: Fields, lost: list[str]) -> tuple[ToolChoice | None, bool | None]:
    """(choice, whether calls may be parallel)."""
    choice = fields.object("tool_choice")
    if choice is None:
        return None, None
    kind, is_serial = choice.required_text("type"), choice.flag("disable_parallel_tool_use")
    name = choice.required_text("name") if kind == "tool" else ""
    if kind not in ("auto", "any", "tool", "none"):
        raise wrong("tool_choice.type", "auto, any, tool or none")
    choice.rest(lost)
    read = ToolChoice(mode="required" if kind == "any" else kind, name=name)  # type: ignore[arg-type]
    return read, None if is_serial is None else not is_serial


MESSAGES = AnthropicMessages()
COUNT_TOKENS = AnthropicCountTokens()
