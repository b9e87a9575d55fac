"""What clients of the Gemini API ask, in neutral words. Pure; no I/O."""

import base64
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from proxy.errors import InvalidRequest
from proxy.fields import Fields, wrong
from proxy.neutral import (
    Embedding,
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
    unwrap_signature,
)

ORIGIN = "gemini"
_CONFIG = "generationConfig."
NAMES = {
    "max_output_tokens": _CONFIG + "maxOutputTokens",
    "temperature": _CONFIG + "temperature",
    "top_p": _CONFIG + "topP",
    "top_k": _CONFIG + "topK",
    "frequency_penalty": _CONFIG + "frequencyPenalty",
    "presence_penalty": _CONFIG + "presencePenalty",
    "seed": _CONFIG + "seed",
    "stop": _CONFIG + "stopSequences",
    "choices": _CONFIG + "candidateCount",
    "logprobs": _CONFIG + "responseLogprobs",
    "top_logprobs": _CONFIG + "logprobs",
    "output_format": _CONFIG + "responseMimeType",
    "reasoning": _CONFIG + "thinkingConfig",
    "modalities": _CONFIG + "responseModalities",
    "tool_choice": "toolConfig.functionCallingConfig.mode",
    "metadata": "labels",
    "service_tier": "serviceTier",
}
# Enums by number.
_TYPES = ("TYPE_UNSPECIFIED", "STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL")
_MODES = ("MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED")
_MODALITIES = ("MODALITY_UNSPECIFIED", "TEXT", "IMAGE", "AUDIO")
_LEVELS = ("THINKING_LEVEL_UNSPECIFIED", "LOW", "HIGH", "MEDIUM", "MINIMAL")
_RESOLUTIONS = (
    "MEDIA_RESOLUTION_UNSPECIFIED", "MEDIA_RESOLUTION_LOW", "MEDIA_RESOLUTION_MEDIUM", "MEDIA_RESOLUTION_HIGH",
)  # fmt: skip
_DETAILS = {"MEDIA_RESOLUTION_UNSPECIFIED": "", "MEDIA_RESOLUTION_LOW": "low", "MEDIA_RESOLUTION_HIGH": "high"}
_TASKS = (
    "TASK_TYPE_UNSPECIFIED", "RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING",
)  # fmt: skip
TASKS = {
    "TASK_TYPE_UNSPECIFIED": "",
    "RETRIEVAL_QUERY": "query",
    "RETRIEVAL_DOCUMENT": "document",
    "SEMANTIC_SIMILARITY": "similarity",
    "CLASSIFICATION": "classification",
    "CLUSTERING": "clustering",
}
# Safety settings that hold at every provider: nothing is blocked for them.
_UNBLOCKED = (None, 0, 4, 5, "HARM_BLOCK_THRESHOLD_UNSPECIFIED", "BLOCK_NONE", "OFF")
_WHOLE_NUMBERS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})

_AS_NAMED: Mapping[str, str] = {}
_WRAPPED_START = "dGcxL"  # How base64 of every wrapped signature begins.
# What Google has clients say of a call that no Gemini made, as it is and in base64.
_NO_SIGNATURES = (
    *("skip_thought_signature_validator", "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="),
    *("context_engineering_is_the_way_to_go", "Y29udGV4dF9lbmdpbmVlcmluZ19pc190aGVfd2F5X3RvX2dv"),
)

_encode = msgspec.json.Encoder().encode


class Proto(Fields):
    """A message whose fields may be named in either spelling; paths keep the client's."""

    __slots__ = ("_written",)

    def __init__(self, value: Any, path: str = "") -> None:
        super().__init__(value, path)
        self._written: Mapping[str, str] = _AS_NAMED
        if "_" in "".join(value):
            self._value = self._in_camel_case(value, path)

    def _in_camel_case(self, value: dict[str, Any], path: str) -> dict[str, Any]:
        renamed: dict[str, Any] = {}
        self._written = written = {}
        for name, inner in value.items():
            camel = _camel(name)
            if camel in renamed:
                raise InvalidRequest(f"`{path}{name}` is given twice", code="invalid_value", param=path + name)
            if camel != name:
                written[camel] = name
            renamed[camel] = inner
        return renamed

    def path(self, name: str) -> str:
        return self._path + self._written.get(name, name)

    def object(self, name: str) -> "Proto | None":
        value = self._value.pop(name, None)
        return None if value is None else Proto(value, f"{self.path(name)}.")

    def objects(self, name: str) -> "Iterator[Proto]":
        path = self.path(name)
        for index, value in enumerate(self.items(name)):
            yield Proto(value, f"{path}.{index}.")

    def items(self, name: str) -> list[Any]:
        """A single one may stand for a list of one."""
        values = self._value.pop(name, None)
        if values is None:
            return []
        if type(values) is dict:
            return [values]
        if type(values) is not list:
            raise wrong(self.path(name), "a list")
        return values

    def word(self, name: str, words: tuple[str, ...]) -> str:
        """An enum's value in capitals; the first of `words`, its unspecified one, where there is none."""
        value = self._value.pop(name, None)
        if value is None:
            return words[0]
        if type(value) is int and 0 <= value < len(words):
            return words[value]
        if type(value) is not str:
            raise wrong(self.path(name), "the name of a value")
        return value.upper()

    def rest(self, lost: list[str]) -> None:
        """Fields that are empty are as good as absent."""
        if self._value:
            lost.extend(self.path(name) for name, value in self._value.items() if not _is_empty(value))


def _camel(name: str) -> str:
    if "_" not in name:
        return name
    head, *tail = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in tail) if head else name


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [])


class PromptReader:
    """One request, its calls named where the client did not: a result answers the first call of its name that is open."""

    def __init__(self) -> None:
        self._lost: list[str] = []
        self._calls = 0
        # By name the ids of calls, in their order; and which of them a response has named.
        self._open_calls: dict[str, deque[str]] = {}
        self._answered_ids: set[str] = set()
        self._detail = ""

    def read(self, top: Proto) -> Prompt:
        top.any("model")
        lost = self._lost
        config = top.object("generationConfig") or Proto({})
        self._read_resolution(config)
        messages: list[Message] = []
        system = top.object("systemInstruction")
        if system is not None:
            messages.append(self._read_system(system))
        messages += [self._read_content(content) for content in top.objects("contents")]
        prompt = Prompt(
            messages=messages,
            tools=[tool for tools in top.objects("tools") for tool in self._read_tools(tools)],
            tool_choice=self._read_tool_config(top.object("toolConfig")),
            max_output_tokens=config.integer("maxOutputTokens"),
            temperature=config.number("temperature"),
            top_p=config.number("topP"),
            top_k=config.integer("topK"),
            frequency_penalty=config.number("frequencyPenalty"),
            presence_penalty=config.number("presencePenalty"),
            seed=config.integer("seed"),
            stop=_read_stop(config),
            choices=config.integer("candidateCount"),
            logprobs=config.flag("responseLogprobs"),
            top_logprobs=config.integer("logprobs"),
            output_format=_read_output_format(config, lost),
            reasoning=_read_thinking(config.object("thinkingConfig"), lost),
            service_tier=_read_service_tier(top),
            metadata=_read_labels(top),
            store=top.flag("store"),
            modalities=_read_modalities(config, lost),
            names=NAMES,
            lost=lost,
        )
        self._read_safety(top)
        config.rest(lost)
        top.rest(lost)
        return prompt

    def _read_resolution(self, config: Proto) -> None:
        path = config.path("mediaResolution")
        resolution = config.word("mediaResolution", _RESOLUTIONS)
        if resolution not in _DETAILS:
            self._lost.append(path)
        self._detail = _DETAILS.get(resolution, "")

    def _read_safety(self, top: Proto) -> None:
        path = top.path("safetySettings")
        settings = list(top.objects("safetySettings"))
        if any(setting.any("threshold") not in _UNBLOCKED for setting in settings):
            self._lost.append(path)

    def _read_system(self, system: Proto) -> Message:
        system.any("role")
        message = Message(role="system", parts=[])
        for part in system.objects("parts"):
            part.flag("thought")
            text = part.text("text")
            if text is not None:
                message.parts.append(Text(text=text))
            part.rest(self._lost)
        system.rest(self._lost)
        return message

    def _read_content(self, content: Proto) -> Message:
        role = content.text("role") or "user"
        if role not in ("user", "model", "function", "tool"):
            raise wrong(content.path("role"), "user or model")
        is_model = role == "model"
        message = Message(role="assistant" if is_model else "user", parts=[])
        path = content.path("parts")
        for index, value in enumerate(content.items("parts")):
            if type(value) is dict and len(value) == 1 and type(text := value.get("text")) is str:
                _add_text(message.parts, text, "", is_model)  # So nearly all parts are.
                continue
            part = Proto(value, f"{path}.{index}.")
            self._read_part(part, is_model, message.parts)
            part.rest(self._lost)
        content.rest(self._lost)
        return message

    def _read_part(self, part: Proto, is_model: bool, parts: list[Part]) -> None:
        is_thought = bool(part.flag("thought"))
        signature = part.text("thoughtSignature") or ""
        if signature in _NO_SIGNATURES:
            signature = ""
        text = part.text("text")
        if text is not None:
            if is_thought or signature.startswith(_WRAPPED_START):
                _add_thinking(parts, text, signature, part.path("")[:-1])
            else:
                _add_text(parts, text, signature, is_model)
        elif part.has("functionCall"):
            parts.append(self._read_call(part, signature))
        elif part.has("functionResponse"):
            parts.append(self._read_response(part))
        elif (media := self.read_media(part)) is not None:
            parts.append(media)

    def _read_call(self, part: Proto, signature: str) -> ToolCall:
        path = part.path("functionCall")
        call = part.object("functionCall")
        assert call is not None
        call_id = call.text("id") or f"call_{self._calls}"
        self._calls += 1
        arguments = call.any("args")
        name = call.required_text("name")
        call.rest(self._lost)
        self._open_calls.setdefault(name, deque()).append(call_id)
        self._answered_ids.discard(call_id)
        return ToolCall(
            call_id=call_id,
            name=name,
            arguments="{}" if arguments is None else _encode(arguments).decode(),
            signature=signature,
            path=path,
        )

    def _read_response(self, part: Proto) -> ToolResult:
        """`{"output": …}` and `{"result": …}` are what was said, `{"error": …}` what went wrong; any other object is said itself."""
        path = part.path("functionResponse")
        response = part.object("functionResponse")
        assert response is not None
        name = response.text("name") or ""
        call_id = self._answered(response.text("id"), name)
        said = response.any("response")
        is_error = False
        if type(said) is dict and len(said) == 1:
            key, value = next(iter(said.items()))
            if key in ("output", "result", "error"):
                said, is_error = value, key == "error"
        content: list[Part] = []
        if said is not None:
            content.append(Text(text=said if type(said) is str else _encode(said).decode()))
        for inner in response.objects("parts"):
            media = self.read_media(inner)
            if media is not None:
                content.append(media)
            inner.rest(self._lost)
        response.any("scheduling")
        response.rest(self._lost)
        return ToolResult(call_id=call_id, content=tuple(content), name=name, is_error=is_error, path=path)

    def _answered(self, call_id: str | None, name: str) -> str:
        """The id of the call that a response answers: its own, else that of the first call of its name that is open."""
        if call_id:
            self._answered_ids.add(call_id)
            return call_id
        waiting = self._open_calls.get(name)
        while waiting:
            open_id = waiting.popleft()
            if open_id not in self._answered_ids:
                return open_id
        self._calls += 1
        return f"call_{self._calls - 1}"

    def read_media(self, part: Proto) -> Media | None:
        inline = part.object("inlineData")
        if inline is not None:
            path = inline.path("")[:-1]
            media_type = inline.text("mimeType") or ""
            media = Media(
                kind=_kind_of(media_type, ""),
                media_type=media_type,
                data=(inline.text("data") or "").replace("-", "+").replace("_", "/"),
                name=inline.text("displayName") or "",
                detail=self._detail,
                path=path,
            )
            inline.rest(self._lost)
            return media
        file = part.object("fileData")
        if file is None:
            return None
        path = file.path("")[:-1]
        media_type = file.text("mimeType") or ""
        uri = file.required_text("fileUri")
        # Files that only Google has.
        is_own = uri.startswith("gs://") or "generativelanguage.googleapis.com/" in uri or "://" not in uri
        media = Media(
            kind=_kind_of(media_type, uri),
            media_type=media_type,
            url="" if is_own else uri,
            file_id=uri if is_own else "",
            name=file.text("displayName") or "",
            detail=self._detail,
            path=path,
        )
        file.rest(self._lost)
        return media

    def _read_tools(self, tools: Proto) -> list[Tool]:
        """Whatever stands beside the functions is run by Google."""
        read = []
        for function in tools.objects("functionDeclarations"):
            path = function.path("")[:-1]
            parameters = function.any("parametersJsonSchema")
            schema = function.any("parameters")
            if parameters is None and schema is not None:
                parameters = json_schema(schema)
            returned = function.any("responseJsonSchema")
            response = function.any("response")
            if returned is None and response is not None:
                returned = json_schema(response)
            if function.any("behavior") not in (None, 0, 1, "UNSPECIFIED", "BLOCKING"):
                self._lost.append(f"{path}.behavior")
            read.append(
                Tool(
                    name=function.required_text("name"),
                    description=_described(function.text("description") or "", returned),
                    parameters=parameters,
                    path=path,
                )
            )
            function.rest(self._lost)
        tools.rest(self._lost)
        return read

    def _read_tool_config(self, config: Proto | None) -> ToolChoice | None:
        if config is None:
            return None
        calling = config.object("functionCallingConfig")
        config.rest(self._lost)
        if calling is None:
            return None
        mode_path = calling.path("mode")
        mode = calling.word("mode", _MODES)
        allowed = tuple(calling.items("allowedFunctionNames"))
        if not all(type(name) is str for name in allowed):
            raise wrong(calling.path("allowedFunctionNames"), "a list of names")
        calling.flag(
            "streamFunctionCallArguments"
        )  # How a stream is written; pieces of arguments are put together here.
        calling.rest(self._lost)
        match mode:
            case "NONE":
                return ToolChoice(mode="none")
            case "ANY" if len(allowed) == 1:
                return ToolChoice(mode="tool", name=allowed[0])
            case "ANY":
                return ToolChoice(mode="required", allowed=allowed)
            case "VALIDATED":
                self._lost.append(mode_path)
        return ToolChoice(mode="auto", allowed=allowed)


def _described(description: str, returned: Any) -> str:
    """Only in words can others be told what a function returns."""
    if returned is None:
        return description
    return f"{description}\n\nReturns JSON of this schema: {_encode(returned).decode()}".lstrip()


def _add_thinking(parts: list[Part], text: str, signature: str, path: str) -> None:
    """A stream's pieces of one thinking are one again: a signature closes it."""
    last = parts[-1] if parts else None
    if not isinstance(last, Thinking) or last.signature or last.redacted or last.thinking_id:
        last = Thinking(path=path)
        parts.append(last)
    last.text += text
    if signature:
        last.origin, last.signature, last.redacted, last.thinking_id = _unseal(signature)


def _add_text(parts: list[Part], text: str, signature: str, is_model: bool) -> None:
    """Of the model's own words, the pieces of a stream are one text again; a signature belongs to its part."""
    if not text and not signature:
        return
    last = parts[-1] if parts else None
    if is_model and isinstance(last, Text) and not last.signature:
        last.text += text
        last.signature = signature
    else:
        parts.append(Text(text=text, signature=signature))


def _kind_of(media_type: str, uri: str) -> Any:
    kind = media_type.partition("/")[0]
    if kind in ("image", "audio", "video"):
        return kind
    if not media_type and "youtu" in uri:
        return "video"
    ending = uri.partition("?")[0].rpartition(".")[2].lower()
    return "image" if not media_type and ending in ("png", "jpg", "jpeg", "webp", "gif") else "document"


def _read_stop(config: Proto) -> tuple[str, ...]:
    path = config.path("stopSequences")
    stop = config.items("stopSequences")
    if not all(type(sequence) is str for sequence in stop):
        raise wrong(path, "a list of texts")
    return tuple(stop)


def _read_labels(top: Proto) -> dict[str, str] | None:
    path = top.path("labels")
    labels = top.any("labels")
    if labels is not None and not (type(labels) is dict and all(type(value) is str for value in labels.values())):
        raise wrong(path, "an object of texts")
    return labels


def _read_service_tier(top: Proto) -> str | None:
    tier = top.word("serviceTier", ("UNSPECIFIED", "STANDARD", "FLEX", "PRIORITY"))
    return {"UNSPECIFIED": None, "STANDARD": "default"}.get(tier, tier.lower())


def _read_modalities(config: Proto, lost: list[str]) -> tuple[str, ...]:
    path = config.path("responseModalities")
    asked = []
    for value in config.items("responseModalities"):
        word = _MODALITIES[value] if type(value) is int and 0 <= value < len(_MODALITIES) else str(value).upper()
        if word in ("IMAGE", "AUDIO"):
            asked.append(word.lower())
        elif word not in ("TEXT", _MODALITIES[0]):
            lost.append(path)
    return tuple(asked)


def _read_output_format(config: Proto, lost: list[str]) -> OutputFormat | None:
    path = config.path("responseMimeType")
    media_type = config.text("responseMimeType") or "text/plain"
    schema = config.any("responseSchema")
    if schema is not None:
        schema = json_schema(schema)
    for name in ("responseJsonSchema", "_responseJsonSchema"):
        schema = config.any(name) or schema
    if media_type == "application/json":
        return OutputFormat(schema=schema)
    if media_type != "text/plain":
        lost.append(path)
    return None


def _read_thinking(config: Proto | None, lost: list[str]) -> Reasoning | None:
    """A budget of -1 leaves it to the model, one of 0 turns thinking off."""
    if config is None:
        return None
    reasoning = Reasoning()
    budget = config.integer("thinkingBudget")
    if budget == 0:
        reasoning.is_on = False
    elif budget is not None and budget < 0:
        reasoning.is_adaptive = True
    else:
        reasoning.budget_tokens = budget
    level = config.word("thinkingLevel", _LEVELS)
    if level != _LEVELS[0]:
        reasoning.effort = level.lower()
    shows = config.flag("includeThoughts")
    if shows is not None:
        reasoning.summary = "auto" if shows else "omitted"
    config.rest(lost)
    return reasoning


def json_schema(value: Any) -> Any:
    """OpenAPI's schema objects, as Gemini has them, in the words of JSON Schema."""
    if type(value) is list:
        return [json_schema(item) for item in value]
    if type(value) is not dict:
        return value
    written = {_camel(name): inner for name, inner in value.items()}
    is_nullable = written.pop("nullable", None) is True
    order = written.pop("propertyOrdering", None)
    if written.get("format") == "enum":
        del written["format"]
    schema = {name: _schema_value(name, inner) for name, inner in written.items()}
    properties = schema.get("properties")
    if type(order) is list and type(properties) is dict:
        named = [key for key in order if type(key) is str and key in properties]
        schema["properties"] = {key: properties[key] for key in (*named, *properties)}
    return _nullable(schema) if is_nullable else schema


def _schema_value(name: str, value: Any) -> Any:
    if name == "type":
        return _schema_type(value)
    if name in ("properties", "defs", "$defs") and type(value) is dict:
        return {key: json_schema(inner) for key, inner in value.items()}
    if name in ("items", "anyOf", "additionalProperties"):
        return json_schema(value)
    # Counts are 64 bits wide, which are written as text.
    return int(value) if name in _WHOLE_NUMBERS and type(value) is str and value.isdecimal() else value


def _schema_type(value: Any) -> Any:
    if type(value) is int and 0 < value < len(_TYPES):
        return _TYPES[value].lower()
    if type(value) is list:
        return [_schema_type(item) for item in value]
    return value.lower() if type(value) is str else value


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if type(schema.get("type")) is str:
        schema["type"] = [schema["type"], "null"]
    if type(schema.get("enum")) is list:
        schema["enum"] = [*schema["enum"], None]
    if type(schema.get("anyOf")) is list:
        schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    return schema


def read_embedding(request: Proto) -> Embedding:
    lost: list[str] = []
    request.any("model")
    content = request.object("content")
    if content is None:
        raise wrong(request.path("content"), "an object")
    content.any("role")
    inputs: list[Any] = []
    reader = PromptReader()
    for part in content.objects("parts"):
        text = part.text("text")
        item = text if text is not None else reader.read_media(part)
        if item is not None:
            inputs.append(item)
        part.rest(lost)
    content.rest(lost)
    if len(inputs) > 1 and all(type(item) is str for item in inputs):
        inputs = ["\n".join(inputs)]  # One vector is made of all parts.
    elif len(inputs) != 1:
        lost.append(content.path("parts"))
    task_path = request.path("taskType")
    task = request.word("taskType", _TASKS)
    if task not in TASKS:
        lost.append(task_path)
    embedding = Embedding(
        inputs=inputs[:1],
        dimensions=request.integer("outputDimensionality"),
        task=TASKS.get(task, ""),
        title=request.text("title") or "",
        names={"inputs": content.path("parts"), "dimensions": request.path("outputDimensionality"), "task": task_path},
        lost=lost,
    )
    request.rest(lost)
    return embedding


def _unseal(signature: str) -> tuple[str, str, str, str]:
    """(origin, signature, redacted, thinking id)"""
    if signature.startswith(_WRAPPED_START):
        try:
            found = unwrap_signature(base64.b64decode(signature.replace("-", "+").replace("_", "/")).decode())
        except ValueError:
            found = None
        if found is not None:
            origin, kind, thinking_id = (*found[0].split(":", 2), "", "")[:3]
            return (origin, "", found[1], thinking_id) if kind == "redacted" else (origin, found[1], "", thinking_id)
    return ORIGIN, signature, "", ""
