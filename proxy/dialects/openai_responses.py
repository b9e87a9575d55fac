"""OpenAI's responses, as clients speak them: items in, items out. Pure; no I/O.

A conversation is a list of items (messages, calls, their outputs, reasoning); an answer is such a list too. Reasoning of
another provider is shown as a `reasoning` item whose `encrypted_content` says whose it is, so that it comes back unchanged.
Source: https://platform.openai.com/docs/api-reference/responses and `openai.types.responses` of the official SDK.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.dialects.dialect import (
    LONG_MEDIA_TOKENS_MAX,
    MEDIA_TOKENS_MAX,
    RESPONSE,
    TEMPLATE_TOKENS,
    Call,
    HeadReader,
    StreamWriter,
    beside_text,
    file_ids_in,
    json_fields,
)
from proxy.dialects.openai import OpenAI, error_object
from proxy.dialects.openai_chat import SEARCH_FIELDS
from proxy.dialects.openai_responses_answers import OF_CALL, OF_TEXT, REDACTED, ResponsesWriter, frame, write_answer
from proxy.errors import GatewayError, InvalidRequest
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
    Refusal,
    Role,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    unwrap_signature,
)

# Items and parts whose tokens do not show in the bytes of the request.
MEDIA_MARKS = (b'"input_image"', b'"input_file"', b'"input_audio"', b'"computer_screenshot"')
# What the provider keeps and reads with the request: an earlier response, a conversation, a template. A model's context.
STORED_TOKENS_MAX = 1_000_000
STORED_FIELDS = ("previous_response_id", "conversation", "prompt")
STORED_MARK = b'"item_reference"'
# How often the provider may run its own tools where the client does not say.
TOOL_CALLS_MAX = 16
# Tools that the client runs; every other is the provider's own.
CLIENT_TOOLS = frozenset({"function", "custom"})

_ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "developer"}
_NAMES = {
    "output_format": "text.format",
    "verbosity": "text.verbosity",
    "logprobs": "include",
    "user": "safety_identifier",
}
# Saying what holds anyway. `include` names what is always there, or belongs to tools that are refused by their own name.
_INCLUDABLE = frozenset(
    {
        "reasoning.encrypted_content",
        "message.output_text.logprobs",
        "message.input_image.image_url",
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "background": (False,),
    "truncation": ("disabled",),
    "prompt_cache_retention": ("in_memory",),
}

_decode_any = msgspec.json.Decoder().decode


class _Tool(msgspec.Struct):
    type: str | None = None


class _Head(msgspec.Struct):
    """Only what we act on; everything else passes through untouched."""

    model: str
    stream: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    tools: list[_Tool] | None = None
    metadata: Any = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None


_decode_head = HeadReader(_Head).read


class OpenAIResponses(OpenAI):
    name = "openai.responses"
    operation = "chat"
    capability = "chat"
    is_translatable = True

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_head(body)
        if head.max_output_tokens is not None and head.max_output_tokens < 1:
            raise InvalidRequest("the output cap must be at least 1", param="max_output_tokens")
        tool_calls_max = _tool_calls_max(head, fields)
        seen = beside_text(body, fields, "input")
        # Byte-level tokenisers never make more tokens than bytes; what a tool of the provider finds is read as input too.
        unseen = sum(seen.count(mark) for mark in MEDIA_MARKS) + tool_calls_max
        stored = any(_is_said(fields.get(name)) for name in STORED_FIELDS) or STORED_MARK in seen
        is_long = b'"input_file"' in seen
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            is_stream=bool(head.stream),
            output_tokens_max=head.max_output_tokens,
            input_tokens_max=len(body)
            + TEMPLATE_TOKENS
            + unseen * MEDIA_TOKENS_MAX
            + (STORED_TOKENS_MAX if stored else 0)
            + (LONG_MEDIA_TOKENS_MAX if is_long else 0),
            file_ids=file_ids_in(seen),
            tool_calls_max=tool_calls_max,
            has_audio=b'"input_audio"' in seen,
            has_images=b'"input_image"' in seen or b'"image_generation"' in seen,
            metadata=head.metadata,
            # Kept unless the client says otherwise; what is made in the background is kept for a while anyway.
            kept_kind=RESPONSE if head.store is not False or head.background else "",
            follows=head.previous_response_id or "",
            is_background=bool(head.background),
        )

    def read_prompt(self, call: Call) -> Prompt:
        return _read_prompt(Fields(_decode_any(call.body)))

    def write_answer(self, answer: Answer, call: Call) -> bytes:
        return write_answer(answer, call)

    def stream_writer(self, call: Call) -> StreamWriter:
        return ResponsesWriter(call)

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        """The documented event, and as `error` within what the official SDKs raise."""
        details = error_object(error)
        return frame(
            {
                "type": "error",
                "code": details["code"],
                "message": details["message"],
                "param": details["param"],
                "sequence_number": 0,
                "error": details,
            }
        )


def _tool_calls_max(head: _Head, fields: Mapping[str, msgspec.Raw]) -> int:
    # A stored prompt may have tools of its own; servers shaped like OpenAI's search on other fields.
    is_hidden = _is_said(fields.get("prompt")) or not SEARCH_FIELDS.isdisjoint(fields)
    if not is_hidden and all(tool.type in CLIENT_TOOLS for tool in head.tools or ()):
        return 0
    return TOOL_CALLS_MAX if head.max_tool_calls is None else max(head.max_tool_calls, 0)


def _is_said(value: msgspec.Raw | None) -> bool:
    return value is not None and bytes(value) != b"null"


# Request → prompt


def _read_prompt(fields: Fields) -> Prompt:
    lost: list[str] = []
    for name in ("model", "stream", "max_tool_calls"):  # The last bounds tools that are refused by their own name.
        fields.any(name)
    options = fields.object("stream_options")
    if options is not None:
        if options.flag("include_obfuscation"):
            lost.append(options.path("include_obfuscation"))
        options.rest(lost)
    for name, harmless in _HARMLESS.items():
        value = fields.any(name)
        if value is not None and value not in harmless:
            lost.append(name)
    names, user = _NAMES, fields.text("safety_identifier")
    deprecated_user = fields.text("user")
    if user is None and deprecated_user is not None:
        names, user = {**_NAMES, "user": "user"}, deprecated_user
    elif deprecated_user not in (None, user):
        lost.append("user")
    top_logprobs = fields.integer("top_logprobs") or None
    wants_logprobs = _read_include(fields, lost) or top_logprobs is not None
    output_format, verbosity = _read_text(fields, lost)
    _read_cache_options(fields, lost)
    prompt = Prompt(
        messages=_read_messages(fields, lost),
        tools=_read_tools(fields, lost),
        tool_choice=_read_tool_choice(fields, lost),
        parallel_tool_calls=fields.flag("parallel_tool_calls"),
        max_output_tokens=fields.integer("max_output_tokens"),
        temperature=fields.number("temperature"),
        top_p=fields.number("top_p"),
        logprobs=True if wants_logprobs else None,
        top_logprobs=top_logprobs,
        output_format=output_format,
        reasoning=_read_reasoning(fields, lost),
        verbosity=verbosity,
        user=user,
        service_tier=fields.text("service_tier"),
        metadata=_read_metadata(fields),
        store=fields.flag("store"),
        prompt_cache_key=fields.text("prompt_cache_key"),
        names=names,
        lost=lost,
    )
    # What the provider would keep or look up (`previous_response_id`, `conversation`, `prompt`) is among the rest.
    fields.rest(lost)
    return prompt


def _read_include(fields: Fields, lost: list[str]) -> bool:
    """Whether log probabilities are asked for."""
    included = fields.items("include")
    for index, name in enumerate(included):
        if type(name) is not str or name not in _INCLUDABLE:
            lost.append(f"include.{index}")
    return "message.output_text.logprobs" in included


def _read_text(fields: Fields, lost: list[str]) -> tuple[OutputFormat | None, str | None]:
    text = fields.object("text")
    if text is None:
        return None, None
    verbosity = text.text("verbosity")
    output_format = None
    shape = text.object("format")
    if shape is not None:
        kind = shape.text("type")
        if kind == "json_schema":
            output_format = OutputFormat(
                schema=shape.any("schema"),
                name=shape.text("name") or "",
                description=shape.text("description") or "",
                is_strict=shape.flag("strict"),
            )
        elif kind == "json_object":
            output_format = OutputFormat()
        elif kind != "text":
            lost.append("text.format")
        shape.rest(lost)
    text.rest(lost)
    return output_format, verbosity


def _read_cache_options(fields: Fields, lost: list[str]) -> None:
    """Breakpoints stand on the parts; whether there is one more by itself is the provider's affair anyway."""
    options = fields.object("prompt_cache_options")
    if options is not None:
        options.text("mode")
        if options.text("ttl") not in (None, "30m"):
            lost.append(options.path("ttl"))
        if options.flag("prewarm"):
            lost.append(options.path("prewarm"))
        options.rest(lost)


def _read_reasoning(fields: Fields, lost: list[str]) -> Reasoning | None:
    reasoning = fields.object("reasoning")
    if reasoning is None:
        return None
    effort = reasoning.text("effort") or ""
    deprecated_summary = reasoning.text("generate_summary")
    summary = reasoning.text("summary") or deprecated_summary or ""
    for name, harmless in (("context", "auto"), ("mode", "standard")):
        if reasoning.text(name) not in (None, harmless):
            lost.append(reasoning.path(name))
    reasoning.rest(lost)
    if not effort and not summary:
        return None
    return Reasoning(is_on=effort != "none" if effort else None, effort=effort, summary=summary)


def _read_metadata(fields: Fields) -> dict[str, str] | None:
    metadata = fields.any("metadata")
    if metadata is None:
        return None
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise wrong("metadata", "an object of texts")
    return metadata


def _read_tools(fields: Fields, lost: list[str]) -> list[Tool]:
    tools = []
    for tool in fields.objects("tools"):
        path = tool.path("")[:-1]
        kind = tool.text("type")
        if kind not in CLIENT_TOOLS:
            lost.append(path)
            continue
        name, description = tool.required_text("name"), tool.text("description") or ""
        if tool.flag("defer_loading"):
            lost.append(tool.path("defer_loading"))
        if kind == "function":
            parameters, is_strict = tool.any("parameters"), tool.flag("strict")
            read = Tool(name=name, description=description, parameters=parameters, is_strict=is_strict, path=path)
        else:
            read = Tool(name=name, description=description, is_custom=True, format=tool.any("format"), path=path)
        tool.rest(lost)
        tools.append(read)
    return tools


def _read_tool_choice(fields: Fields, lost: list[str]) -> ToolChoice | None:
    value = fields.any("tool_choice")
    if value is None:
        return None
    if value in ("auto", "none", "required"):
        return ToolChoice(mode=value)
    if type(value) is str:
        raise wrong("tool_choice", "auto, none, required or an object")
    choice = Fields(value, "tool_choice.")
    kind = choice.text("type")
    read = None
    if kind in CLIENT_TOOLS:
        read = ToolChoice(mode="tool", name=choice.required_text("name"))
    elif kind == "allowed_tools":
        mode = choice.text("mode")
        if mode not in ("auto", "required"):
            raise wrong("tool_choice.mode", "auto or required")
        allowed = []
        for tool in choice.objects("tools"):
            if tool.text("type") in CLIENT_TOOLS:
                allowed.append(tool.required_text("name"))
            else:
                lost.append(tool.path("")[:-1])
        read = ToolChoice(mode="auto" if mode == "auto" else "required", allowed=tuple(allowed))
    else:
        lost.append("tool_choice")
        return None
    choice.rest(lost)
    return read


def _read_messages(fields: Fields, lost: list[str]) -> list[Message]:
    conversation = _Conversation(lost)
    instructions = fields.text("instructions")
    if instructions is not None:
        conversation.messages.append(Message(role="system", parts=[Text(text=instructions)]))
    value = fields.any("input")
    if type(value) is str:
        conversation.messages.append(Message(role="user", parts=[Text(text=value)]))
    elif type(value) is list:
        for index, item in enumerate(value):
            conversation.read(Fields(item, f"input.{index}."), f"input.{index}")
    elif value is not None:
        raise wrong("input", "text or a list of items")
    return conversation.messages


class _Conversation:
    """Items as messages: what the model said in one turn (reasoning, texts, calls) is one, and so are the outputs that
    follow one another. An item's `id` and `status`, and a message's `phase`, are the provider's own bookkeeping."""

    def __init__(self, lost: list[str]) -> None:
        self.messages: list[Message] = []
        self._lost = lost
        self._signature_of_next_call = ""

    def read(self, item: Fields, path: str) -> None:
        kind = item.text("type") or ("message" if item.has("role") else "item_reference")
        match kind:
            case "message":
                self._message(item)
            case "function_call" | "custom_tool_call":
                self._call(item, path, is_custom=kind == "custom_tool_call")
            case "function_call_output" | "custom_tool_call_output":
                self._output(item, path, is_custom=kind == "custom_tool_call_output")
            case "reasoning":
                self._reasoning(item, path)
            case _:
                # What the provider keeps or has run: item_reference, compaction, web_search_call, ….
                self._lost.append(path)
                return
        item.any("id")
        item.any("status")
        item.rest(self._lost)

    def _message(self, item: Fields) -> None:
        role = _ROLES.get(item.text("role") or "")
        if role is None:
            raise wrong(item.path("role"), "user, assistant, system or developer")
        item.any("phase")
        parts = _read_content(item, "content", self._lost)
        if role == "assistant":
            self._said().extend(parts)
        else:
            self.messages.append(Message(role=role, parts=parts))

    def _call(self, item: Fields, path: str, *, is_custom: bool) -> None:
        call = ToolCall(
            call_id=item.required_text("call_id"),
            name=item.required_text("name"),
            arguments=item.required_text("input") if is_custom else item.required_text("arguments") or "{}",
            is_custom=is_custom,
            signature=self._signature_of_next_call,
            path=path,
        )
        self._signature_of_next_call = ""
        self._said().append(call)

    def _output(self, item: Fields, path: str, *, is_custom: bool) -> None:
        result = ToolResult(
            call_id=item.required_text("call_id"),
            content=tuple(_read_content(item, "output", self._lost)),
            name=item.text("name") or "",
            is_custom=is_custom,
            path=path,
        )
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == "user" and last.parts and isinstance(last.parts[0], ToolResult):
            last.parts.append(result)
        else:
            self.messages.append(Message(role="user", parts=[result]))

    def _reasoning(self, item: Fields, path: str) -> None:
        texts = [part.text("text") or "" for name in ("summary", "content") for part in item.objects(name)]
        text, encrypted = "\n\n".join(texts), item.text("encrypted_content") or ""
        thinking_id = item.text("id") or ""
        origin, signature = unwrap_signature(encrypted) or ("openai" if encrypted else "", encrypted)
        if origin == OF_CALL:
            self._signature_of_next_call = signature
        elif origin == OF_TEXT:
            self._sign_text(signature)
        elif origin.endswith(REDACTED):
            self._said().append(
                Thinking(text=text, redacted=signature, origin=origin.removesuffix(REDACTED), path=path)
            )
        elif text or signature:
            self._said().append(
                Thinking(text=text, signature=signature, origin=origin, thinking_id=thinking_id, path=path)
            )
        else:
            self._lost.append(path)  # A mere reference to what the provider keeps.

    def _sign_text(self, signature: str) -> None:
        parts = self._said()
        if parts and isinstance(parts[-1], Text) and not parts[-1].signature:
            parts[-1].signature = signature
        else:
            parts.append(Text(text="", signature=signature))

    def _said(self) -> list[Part]:
        """The parts of what the model said in the turn that is being read."""
        if not self.messages or self.messages[-1].role != "assistant":
            self.messages.append(Message(role="assistant", parts=[]))
        return self.messages[-1].parts


def _read_content(item: Fields, name: str, lost: list[str]) -> list[Part]:
    value = item.any(name)
    if type(value) is str:
        return [Text(text=value)]
    if type(value) is not list:
        raise wrong(item.path(name), "text or a list of parts")
    prefix = item.path(name)
    parts = []
    for index, piece in enumerate(value):
        path = f"{prefix}.{index}"
        part = _read_part(Fields(piece, f"{path}."), path, lost)
        if part is not None:
            parts.append(part)
    return parts


def _read_part(part: Fields, path: str, lost: list[str]) -> Part | None:
    read: Part
    match part.text("type"):
        case "input_text" | "text":
            read = Text(text=part.required_text("text"), cache=_read_breakpoint(part, lost))
        case "output_text":
            part.any("logprobs")
            citations = tuple(map(_read_annotation, part.objects("annotations")))
            read = Text(text=part.required_text("text"), citations=citations)
        case "refusal":
            read = Refusal(text=part.required_text("refusal"))
        case "input_image":
            read = Media(kind="image", detail=part.text("detail") or "", cache=_read_breakpoint(part, lost), path=path)
            _read_source(read, part, "image_url", part.text("image_url"))
        case "input_file":
            read = Media(
                kind="document",
                name=part.text("filename") or "",
                detail=part.text("detail") or "",
                cache=_read_breakpoint(part, lost),
                path=path,
            )
            data, url = part.text("file_data"), part.text("file_url")
            if data is not None and not data.startswith("data:"):
                data = f"data:application/pdf;base64,{data}"
            _read_source(read, part, "file_data", data if data is not None else url)
        case "input_audio":
            audio = part.object("input_audio")
            if audio is None:
                raise wrong(part.path("input_audio"), "an object")
            media_type = _AUDIO_TYPES.get(audio.required_text("format"))
            if media_type is None:
                raise wrong(audio.path("format"), "mp3 or wav")
            read = Media(kind="audio", data=audio.required_text("data"), media_type=media_type, path=path)
            audio.rest(lost)
        case _:
            lost.append(path)
            return None
    part.rest(lost)
    return read


_AUDIO_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav"}


def _read_source(media: Media, part: Fields, name: str, url: str | None) -> None:
    """Where the content is: within a data URL, at a URL, or a file that the provider keeps."""
    file_id = part.text("file_id")
    if url is None:
        if file_id is None:
            raise wrong(part.path(name), "there, or `file_id`")
        media.file_id = file_id
        return
    head, found, data = url.partition(",")
    if found and head[:5] == "data:":
        media_type, _, encoding = head[5:].rpartition(";")
        if encoding != "base64":
            raise wrong(part.path(name), "a data URL in base64")
        media.media_type, media.data = media_type.partition(";")[0], data
    else:
        media.url = url


def _read_breakpoint(part: Fields, lost: list[str]) -> str:
    """The provider's usual lifetime is anybody's usual one; 30 minutes take an hour elsewhere."""
    mark = part.object("prompt_cache_breakpoint")
    if mark is None:
        return ""
    mark.any("mode")
    ttl = mark.text("ttl")
    if ttl not in (None, "30m"):
        lost.append(mark.path("ttl"))
    mark.rest(lost)
    return "5m" if ttl is None else "1h"


def _read_annotation(note: Fields) -> Citation:
    start, end = note.integer("start_index"), note.integer("end_index")
    return Citation(
        url=note.text("url") or "",
        title=note.text("title") or note.text("filename") or "",
        start=-1 if start is None else start,
        end=-1 if end is None else end,
        file_id=note.text("file_id") or "",
    )


RESPONSES = OpenAIResponses()
