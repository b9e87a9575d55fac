"""OpenAI's chat completions, as clients speak them: requests. `openai_chat_answers.py` writes the answers. Pure; no I/O.

Read is what OpenAI documents, and what its clients send to providers shaped like it: reasoning that comes back
(`reasoning_content`, `reasoning_details`), cache markers, Google's thought signatures.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from proxy.dialects.dialect import (
    LONG_MEDIA_TOKENS_MAX,
    MEDIA_TOKENS_MAX,
    TEMPLATE_TOKENS,
    Call,
    HeadReader,
    StreamWriter,
    beside_text,
    file_ids_in,
    json_fields,
)
from proxy.dialects.openai import OpenAI
from proxy.dialects.openai_chat_answers import ChatWriter, write_answer
from proxy.errors import InvalidRequest
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
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from proxy.reasoning_details import read_details

# Parts whose tokens do not show in the bytes of the request: an image by URL, a file by id, audio. Each is bounded apart.
MEDIA_MARKS = (b'_url"', b'"input_audio"', b'"file"')
LONG_MEDIA_MARK, FILM_MARK = b'"file_', b'"video_url"'  # `file_data`, `file_id`
CHOICES_MAX = 128
# Fields that have the provider search, of those who are shaped like OpenAI; and how often, where nobody says.
SEARCH_FIELDS = frozenset({"web_search_options", "search_parameters", "search_settings", "plugins"})
BUILT_IN_TOOL_CALLS_MAX = 16

# The client's names of what a prompt calls otherwise.
_NAMES = {
    "max_output_tokens": "max_completion_tokens",
    "choices": "n",
    "output_format": "response_format",
    "reasoning": "reasoning_effort",
    "cache": "cache_control",
}
_AUDIO_TYPES = {"mp3": "audio/mpeg"}


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _ToolHead(msgspec.Struct):
    type: str | None = None


class _Head(msgspec.Struct):
    """Only what we act on; everything else passes through untouched."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    tools: list[_ToolHead] | None = None
    metadata: Any = None


_decode = msgspec.json.Decoder(dict[str, Any]).decode
_decode_head = HeadReader(_Head).read


class OpenAIChat(OpenAI):
    name = "openai.chat"
    operation = "chat"
    capability = "chat"
    is_translatable = True

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_head(body)
        cap, other_cap = head.max_completion_tokens, head.max_tokens
        if (cap is not None and cap < 1) or (other_cap is not None and other_cap < 1):
            raise InvalidRequest("the output cap must be at least 1", param="max_completion_tokens")
        cap = cap if other_cap is None else max(cap or 0, other_cap)
        if cap is not None and "prediction" in fields:
            cap += len(fields["prediction"])  # What was predicted and is not said is billed as output, beyond the cap.
        choices = head.n if head.n is not None else 1
        if not 1 <= choices <= CHOICES_MAX:
            raise InvalidRequest(f"`n` must be between 1 and {CHOICES_MAX}", param="n")
        seen = beside_text(body, fields, "messages")
        # Byte-level tokenisers never make more tokens than bytes.
        input_tokens_max = len(body) + TEMPLATE_TOKENS
        for mark in MEDIA_MARKS:
            input_tokens_max += seen.count(mark) * MEDIA_TOKENS_MAX
        if LONG_MEDIA_MARK in seen or FILM_MARK in seen:
            input_tokens_max += LONG_MEDIA_TOKENS_MAX
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            is_stream=bool(head.stream),
            wants_usage_chunk=head.stream_options is not None and bool(head.stream_options.include_usage),
            output_tokens_max=cap,
            choices=choices,
            input_tokens_max=input_tokens_max,
            file_ids=file_ids_in(seen),
            tool_calls_max=BUILT_IN_TOOL_CALLS_MAX if _has_built_in_tools(head, fields) else 0,
            has_audio=b'audio"' in seen,
            has_images=b'"image' in seen,
            metadata=head.metadata,
        )

    def read_prompt(self, call: Call) -> Prompt:
        lost: list[str] = []
        fields = Fields(_decode(call.body))
        for name in ("model", "stream", "stream_options"):
            fields.any(name)
        if fields.flag("safe_prompt"):
            lost.append("safe_prompt")
        names = dict(_NAMES)
        cap = fields.integer("max_tokens")
        functions = fields.items("functions")
        if functions:
            names["parallel_tool_calls"] = "functions"
        if fields.has("random_seed"):
            names["seed"] = "random_seed"
        top_logprobs = fields.integer("top_logprobs")
        prompt = Prompt(
            messages=_messages(fields, lost),
            tools=[*_tools(fields, lost), *_functions(functions)],
            tool_choice=_tool_choice(fields, lost),
            # An answer with `function_call` has room for one.
            parallel_tool_calls=False if functions else fields.flag("parallel_tool_calls"),
            max_output_tokens=fields.integer("max_completion_tokens") or cap,
            temperature=fields.number("temperature"),
            top_p=fields.number("top_p"),
            top_k=fields.integer("top_k"),
            min_p=fields.number("min_p"),
            frequency_penalty=fields.number("frequency_penalty"),
            presence_penalty=fields.number("presence_penalty"),
            repetition_penalty=fields.number("repetition_penalty"),
            seed=fields.integer(names.get("seed", "seed")),
            stop=_stop(fields),
            choices=fields.integer("n"),
            logprobs=fields.flag("logprobs"),
            top_logprobs=top_logprobs or None,
            logit_bias=_numbers(fields, "logit_bias"),
            output_format=_output_format(fields, lost),
            reasoning=_reasoning(fields, names, lost),
            verbosity=fields.text("verbosity"),
            user=_user(fields, names, lost),
            service_tier=fields.text("service_tier"),
            metadata=_texts(fields, "metadata"),
            store=fields.flag("store"),
            prompt_cache_key=fields.text("prompt_cache_key"),
            cache=_cache(fields) or None,
            modalities=tuple(_strings(fields, "modalities")),
            names=names,
            lost=lost,
        )
        fields.any("prompt_cache_options")  # The parts' breakpoints say all of it that another API can be told.
        if fields.any("prompt_cache_retention") not in (None, "in_memory", "in-memory"):
            lost.append("prompt_cache_retention")
        fields.any("usage")  # OpenRouter's request for usage, which is always told.
        fields.rest(lost)
        return prompt

    def write_answer(self, answer: Answer, call: Call) -> bytes:
        return write_answer(answer, call)

    def stream_writer(self, call: Call) -> StreamWriter:
        return ChatWriter(call)


def _has_built_in_tools(head: _Head, fields: Mapping[str, msgspec.Raw]) -> bool:
    if head.tools is not None and any(tool.type not in ("function", "custom", None) for tool in head.tools):
        return True
    return not SEARCH_FIELDS.isdisjoint(fields)


# Messages


def _messages(fields: Fields, lost: list[str]) -> list[Message]:
    messages: list[Message] = []
    # What answers what in a conversation of the older kind, which has no ids.
    called: dict[str, str] = {}
    # A result does not say that its tool takes free text; its call did.
    custom: set[str] = set()
    answers_tools = False
    for index, message in enumerate(fields.objects("messages")):
        role = message.required_text("role")
        if role in ("tool", "function"):
            result = _tool_result(message, role, called, lost)
            result.is_custom = result.call_id in custom
            if answers_tools:
                messages[-1].parts.append(result)
            else:
                messages.append(Message(role="user", parts=[result]))
        elif role == "assistant":
            said = _assistant(message, index, called, lost)
            custom.update(part.call_id for part in said.parts if type(part) is ToolCall and part.is_custom)
            messages.append(said)
        elif role in ("user", "system", "developer"):
            parts = list(_content(message, lost))
            messages.append(Message(role=role, parts=parts, name=message.text("name") or ""))  # type: ignore[arg-type]
        else:
            raise wrong(message.path("role"), "one of developer, system, user, assistant, tool and function")
        answers_tools = role in ("tool", "function")
        message.rest(lost)
    if not messages:
        raise wrong("messages", "a list of at least one message")
    return messages


def _tool_result(message: Fields, role: str, called: dict[str, str], lost: list[str]) -> ToolResult:
    path = message.path("content")
    name = message.text("name") or ""
    call_id = called.get(name, f"function_{name}") if role == "function" else message.required_text("tool_call_id")
    return ToolResult(call_id=call_id, name=name, content=tuple(_content(message, lost)), path=path)


def _assistant(message: Fields, index: int, called: dict[str, str], lost: list[str]) -> Message:
    if message.flag("prefix"):
        lost.append(message.path("prefix"))
    said = list(_content(message, lost))
    if len(said) == 1 and said[0] == _NOTHING:
        said = []
    annotations = message.items("annotations")
    if annotations:
        _cite(said, annotations, message.path("annotations"), lost)
    if refusal := message.text("refusal"):
        said.append(Refusal(text=refusal))
    calls = [_tool_call(call, lost) for call in message.objects("tool_calls")]
    function = message.object("function_call")
    if function is not None:
        call = _called(function, f"function_{index}", message.path("function_call"))
        called[call.name] = call.call_id
        calls.append(call)
    # LiteLLM puts an answer's `"refusal": null` in there and returns it.
    if (aside := message.object("provider_specific_fields")) is not None:
        aside.rest(lost)
    signature = _google_signature(message)
    if signature:
        signed = calls[0] if calls else next((part for part in reversed(said) if type(part) is Text), None)
        if signed is not None:
            signed.signature = signed.signature or signature
    return Message(role="assistant", parts=[*_thoughts(message), *said, *calls], name=message.text("name") or "")


_NOTHING = Text(text="")


def _thoughts(message: Fields) -> list[Thinking]:
    """The details say what the text says, and whose it is."""
    text = message.text("reasoning_content") or message.text("reasoning")
    message.any("reasoning")
    if details := message.items("reasoning_details"):
        thoughts = read_details(details, message.path("reasoning_details"))
        if thoughts:
            return thoughts
    return [Thinking(text=text, path=message.path("reasoning_content"))] if text else []


def _tool_call(call: Fields, lost: list[str]) -> ToolCall:
    path, kind = call.path("")[:-1], call.text("type") or "function"
    call.any("index")  # Left over from a stream.
    call_id = call.required_text("id")
    custom = call.object("custom")
    if custom is not None:
        called = ToolCall(
            call_id=call_id,
            name=custom.required_text("name"),
            arguments=custom.text("input") or "",
            is_custom=True,
            path=path,
        )
        custom.rest(lost)
    else:
        function = call.object("function")
        if function is None or kind != "function":
            raise wrong(call.path("function"), "an object")
        called = _called(function, call_id, path)
        function.rest(lost)
    called.signature = _google_signature(call)
    call.rest(lost)
    return called


def _called(function: Fields, call_id: str, path: str) -> ToolCall:
    return ToolCall(
        call_id=call_id, name=function.required_text("name"), arguments=function.text("arguments") or "{}", path=path
    )


def _google_signature(value: Fields) -> str:
    extra = value.object("extra_content")
    google = extra.object("google") if extra is not None else None
    return (google.text("thought_signature") or "") if google is not None else ""


def _cite(parts: list[Part], annotations: list[Any], path: str, lost: list[str]) -> None:
    citations = []
    for index, item in enumerate(annotations):
        annotation = Fields(dict(item) if type(item) is dict else item, f"{path}.{index}.")
        cited = annotation.object("url_citation")
        if cited is None:
            lost.append(f"{path}.{index}")
            continue
        start, end = cited.integer("start_index"), cited.integer("end_index")
        citations.append(
            Citation(
                url=cited.text("url") or "",
                title=cited.text("title") or "",
                cited_text=cited.text("content") or "",
                start=-1 if start is None else start,
                end=-1 if end is None else end,
            )
        )
    text = next((part for part in parts if type(part) is Text), None)
    if text is not None:
        text.citations = tuple(citations)


def _content(message: Fields, lost: list[str]) -> Iterator[Part]:
    """Text, or a list of parts; nothing where there is none."""
    content = message.any("content")
    if type(content) is str:
        yield Text(text=content)
        return
    if content is None:
        return
    if type(content) is not list:
        raise wrong(message.path("content"), "text or a list of parts")
    path = message.path("content")
    for index, item in enumerate(content):
        yield from _part(item, f"{path}.{index}", lost)


def _part(item: Any, path: str, lost: list[str]) -> Iterator[Part]:
    if type(item) is str:
        yield Text(text=item)
        return
    part = Fields(item, f"{path}.")
    kind = part.required_text("type")
    cache = _cache(part)
    match kind:
        case "text" | "input_text" | "output_text":
            yield Text(text=part.required_text("text"), cache=cache)
        case "refusal":
            yield Refusal(text=part.required_text("refusal"))
        case "thinking":
            yield Thinking(text="".join(_thinking_texts(part)), signature=part.text("signature") or "", path=path)
            part.any("closed")
        case "image_url" | "video_url" | "audio_url" | "document_url":
            yield _linked(part, kind, cache, path, lost)
        case "input_audio":
            yield _audio(part, cache, path, lost)
        case "file":
            yield _file(part, cache, path, lost)
        case _:
            lost.append(path)
            return
    part.rest(lost)


def _thinking_texts(part: Fields) -> Iterator[str]:
    """Mistral: `[{"type": "text", "text"}]`."""
    value = part.any("thinking")
    if type(value) is str:
        yield value
        return
    for item in value if type(value) is list else ():
        if type(item) is dict and type(item.get("text")) is str:
            yield item["text"]


def _linked(part: Fields, kind: str, cache: str, path: str, lost: list[str]) -> Media:
    """`{"image_url": {"url", "detail"?}}`, or the address itself, as Mistral has it."""
    value = part.any(kind)
    detail = ""
    if type(value) is dict:
        inner = Fields(value, f"{path}.{kind}.")
        value, detail = inner.required_text("url"), inner.text("detail") or ""
        inner.rest(lost)
    if type(value) is not str:
        raise wrong(f"{path}.{kind}", "an object with a url")
    media = Media(
        kind=kind[:-4],  # type: ignore[arg-type]
        detail="" if detail == "auto" else detail,
        name=part.text("document_name") or "",
        cache=cache,
        path=path,
    )
    if value[:5] == "data:":
        media.media_type, media.data = _data_of(value, f"{path}.{kind}")
    else:
        media.url = value
    return media


def _audio(part: Fields, cache: str, path: str, lost: list[str]) -> Media:
    value = part.any("input_audio")
    if type(value) is str:
        return Media(kind="audio", data=value, cache=cache, path=path)
    inner = Fields(value, f"{path}.input_audio.")
    kind = inner.text("format") or "wav"
    data = inner.required_text("data")
    inner.rest(lost)
    return Media(kind="audio", media_type=_AUDIO_TYPES.get(kind, f"audio/{kind}"), data=data, cache=cache, path=path)


def _file(part: Fields, cache: str, path: str, lost: list[str]) -> Media:
    file = part.object("file")
    if file is None:
        raise wrong(f"{path}.file", "an object")
    media = Media(kind="document", name=file.text("filename") or "", cache=cache, path=path)
    data, file_id = file.text("file_data"), file.text("file_id")
    file.rest(lost)
    if file_id:
        media.file_id = file_id
    elif not data:
        raise wrong(f"{path}.file", "an object with file_data or file_id")
    elif data[:5] == "data:":
        media.media_type, media.data = _data_of(data, f"{path}.file.file_data")
        if media.media_type[:6] == "image/":
            media.kind = "image"
    elif data[:8] == "https://" or data[:7] == "http://":
        media.url = data
    else:
        media.media_type, media.data = "application/pdf", data
    return media


def _data_of(url: str, path: str) -> tuple[str, str]:
    """(media type, base64) of a data URL."""
    head, found, data = url[5:].partition(",")
    if not found or not head.endswith(";base64"):
        raise wrong(path, "a data URL in base64")
    return head[:-7].partition(";")[0], data


def _cache(value: Fields) -> str:
    """Anthropic's marker, as OpenRouter takes it; or OpenAI's breakpoint, which outlives the shorter of Anthropic's two."""
    marker = value.object("cache_control")
    if marker is not None:
        return "1h" if marker.text("ttl") == "1h" else "5m"
    return "5m" if value.any("prompt_cache_breakpoint") is not None else ""


# Tools


def _tools(fields: Fields, lost: list[str]) -> Iterator[Tool]:
    for tool in fields.objects("tools"):
        path = tool.path("")[:-1]
        kind = tool.text("type") or "function"
        if kind not in ("function", "custom"):
            lost.append(path)  # What the provider runs itself.
            continue
        function = tool.object(kind)
        if function is None:
            raise wrong(tool.path(kind), "an object")
        yield Tool(
            name=function.required_text("name"),
            description=function.text("description") or "",
            parameters=function.any("parameters"),
            is_strict=function.flag("strict"),
            is_custom=kind == "custom",
            format=function.any("format"),
            cache=_cache(tool),
            path=path,
        )
        function.rest(lost)
        tool.rest(lost)


def _functions(functions: list[Any]) -> Iterator[Tool]:
    """Of the older kind: tools without the shell."""
    for index, value in enumerate(functions):
        path = f"functions.{index}"
        function = Fields(value, f"{path}.")
        yield Tool(
            name=function.required_text("name"),
            description=function.text("description") or "",
            parameters=function.any("parameters"),
            path=path,
        )


def _tool_choice(fields: Fields, lost: list[str]) -> ToolChoice | None:
    value = fields.any("tool_choice")
    legacy = fields.any("function_call")
    if value is None and type(legacy) is dict:
        return ToolChoice(mode="tool", name=Fields(legacy, "function_call.").required_text("name"))
    value = legacy if value is None else value
    if value is None:
        return None
    if type(value) is str:
        if value not in ("auto", "none", "required", "any"):
            raise wrong("tool_choice", "one of auto, none and required, or an object")
        return ToolChoice(mode="required" if value == "any" else value)  # type: ignore[arg-type]
    choice = Fields(value, "tool_choice.")
    kind = choice.text("type")
    if kind == "allowed_tools":
        allowed = choice.object("allowed_tools") or choice
        mode = allowed.text("mode") or "auto"
        if mode not in ("auto", "required"):
            raise wrong(allowed.path("mode"), "auto or required")
        names = tuple(_tool_name(tool, tool.text("type") or "function") for tool in allowed.objects("tools"))
        return ToolChoice(mode=mode, allowed=names)  # type: ignore[arg-type]
    if kind not in ("function", "custom"):
        lost.append("tool_choice")
        return None
    return ToolChoice(mode="tool", name=_tool_name(choice, kind))


def _tool_name(tool: Fields, kind: str) -> str:
    """`{"type": "function", "function": {"name"}}`."""
    inner = tool.object(kind)
    return tool.required_text("name") if inner is None else inner.required_text("name")


# Parameters


def _output_format(fields: Fields, lost: list[str]) -> OutputFormat | None:
    wanted = fields.object("response_format")
    if wanted is None:
        return None
    kind = wanted.required_text("type")
    if kind == "text":
        return None
    if kind == "json_object":
        # llama.cpp and Together take a schema beside it.
        return OutputFormat(schema=wanted.any("schema"))
    schema = wanted.object("json_schema")
    if kind != "json_schema" or schema is None:
        lost.append("response_format")
        return None
    output_format = OutputFormat(
        name=schema.text("name") or "",
        description=schema.text("description") or "",
        schema=schema.any("schema"),
        is_strict=schema.flag("strict"),
    )
    schema.rest(lost)
    return output_format


def _reasoning(fields: Fields, names: dict[str, str], lost: list[str]) -> Reasoning | None:
    """`reasoning_effort`; OpenRouter's `reasoning`; `thinking`, as DeepSeek and z.ai switch it."""
    effort = fields.text("reasoning_effort") or ""
    thinking, reasoning = fields.object("thinking"), fields.object("reasoning")
    if thinking is None and reasoning is None:
        return Reasoning(effort=effort) if effort else None
    wanted = Reasoning(effort=effort)
    if thinking is not None:
        names["reasoning"] = "thinking"
        wanted.is_on = thinking.text("type") != "disabled"
        wanted.budget_tokens = thinking.integer("budget_tokens")
        thinking.rest(lost)
    if reasoning is not None:
        names["reasoning"] = "reasoning"
        wanted.effort = reasoning.text("effort") or effort
        wanted.budget_tokens = reasoning.integer("max_tokens") or wanted.budget_tokens
        is_on = reasoning.flag("enabled")
        wanted.is_on = wanted.is_on if is_on is None else is_on
        wanted.summary = "omitted" if reasoning.flag("exclude") else reasoning.text("summary") or ""
        reasoning.rest(lost)
    return wanted


def _user(fields: Fields, names: dict[str, str], lost: list[str]) -> str | None:
    user, safety = fields.text("user"), fields.text("safety_identifier")
    if safety is None:
        return user
    names["user"] = "safety_identifier"
    if user is not None and user != safety:
        lost.append("user")
    return safety


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.any("stop")
    if value is None:
        return ()
    if type(value) is str:
        return (value,)
    if type(value) is not list or any(type(item) is not str for item in value):
        raise wrong("stop", "text or a list of texts")
    return tuple(value)


def _strings(fields: Fields, name: str) -> list[str]:
    values = fields.items(name)
    if any(type(value) is not str for value in values):
        raise wrong(fields.path(name), "a list of texts")
    return values


def _texts(fields: Fields, name: str) -> dict[str, str] | None:
    value = fields.any(name)
    if value is not None and (type(value) is not dict or any(type(item) is not str for item in value.values())):
        raise wrong(fields.path(name), "an object of texts")
    return value


def _numbers(fields: Fields, name: str) -> dict[str, float] | None:
    value = fields.any(name)
    if value is not None and (
        type(value) is not dict or any(type(item) not in (int, float) for item in value.values())
    ):
        raise wrong(fields.path(name), "an object of numbers")
    return value


CHAT = OpenAIChat()
