"""What the Gemini API is asked: a prompt as a `GenerateContentRequest`, inputs of embeddings as `Content`s. Pure; no I/O."""

import base64
import re
from typing import Any

import msgspec

from proxy.neutral import (
    EFFORT_BUDGETS,
    Embedding,
    Media,
    Message,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from proxy.snapshot import Deployment
from proxy.wire.json_shape import Shape

ORIGIN = "gemini"

# Models that take a thinking level, want their signatures back, and take media within a tool's result.
_THINKS_BY_LEVEL = re.compile(r"gemini-(?!1|2|exp)")
# Says that a call is not of this model, so that it has no signature of its own.
# Source: ai.google.dev/gemini-api/docs/thought-signatures.
_FOREIGN_CALL = "skip_thought_signature_validator"
_LEVELS = {"none": "minimal", "minimal": "minimal", "low": "low", "medium": "medium", "high": "high"}
_BUDGET_MAX, _FLASH_BUDGET_MAX = 32_768, 24_576
_SEED_MAX = 2**31
_RESOLUTIONS = {"low": "MEDIA_RESOLUTION_LOW", "high": "MEDIA_RESOLUTION_HIGH"}
_MEDIA_TYPES = {"image": "image/jpeg", "document": "application/pdf", "audio": "audio/mpeg", "video": "video/mp4"}
_MEDIA_TYPES_BY_ENDING = {
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif",
    "heic": "image/heic", "pdf": "application/pdf", "txt": "text/plain", "html": "text/html", "csv": "text/csv",
    "mp3": "audio/mpeg", "wav": "audio/wav", "ogg": "audio/ogg", "flac": "audio/flac", "m4a": "audio/mp4",
    "mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm",
}  # fmt: skip
_OWN_FILES = ("https://generativelanguage.googleapis.com/", "gs://")
TASK_TYPES = {
    "query": "RETRIEVAL_QUERY",
    "document": "RETRIEVAL_DOCUMENT",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
    "similarity": "SEMANTIC_SIMILARITY",
}

_objects = Shape(dict[str, msgspec.Raw])


def embed_contents(prompt: Embedding, lost: list[str]) -> list[dict[str, Any]]:
    """One `Content` for each input."""
    if prompt.user is not None:
        lost.append(prompt.names.get("user", "user"))
    contents: list[dict[str, Any]] = []
    for item in prompt.inputs:
        if isinstance(item, str):
            contents.append({"parts": [{"text": item}]})
        elif isinstance(item, Media):
            contents.append({"parts": _write_media(item, lost)})
        else:
            lost.append(prompt.names.get("inputs", "input"))  # Token ids are those of another tokeniser.
    return contents


def embed_options(prompt: Embedding) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if prompt.task in TASK_TYPES:
        options["taskType"] = TASK_TYPES[prompt.task]
    if prompt.title:
        options["title"] = prompt.title
    if prompt.dimensions is not None:
        options["outputDimensionality"] = prompt.dimensions
    return options


class RequestWriter:
    """One prompt as a `GenerateContentRequest`."""

    def __init__(self, prompt: Prompt, deployment: Deployment, lost: list[str]) -> None:
        self._prompt = prompt
        self._model = deployment.upstream_model.rpartition("/")[2]
        self._thinks_by_level = _THINKS_BY_LEVEL.match(self._model) is not None
        self._output_tokens_max = prompt.max_output_tokens or deployment.max_output_tokens
        self._lost = lost
        self._details: dict[str, str] = {}
        self._tool_names = {
            part.call_id: part.name
            for message in prompt.messages
            for part in message.parts
            if isinstance(part, ToolCall)
        }

    def body(self) -> dict[str, Any]:
        prompt = self._prompt
        body: dict[str, Any] = {"contents": []}
        system: list[dict[str, Any]] = []
        for index, message in enumerate(prompt.messages):
            if message.name:
                self._lost.append(f"messages.{index}.name")
            if message.role in ("system", "developer"):
                system += self._system_parts(message)
                continue
            role = "model" if message.role == "assistant" else "user"
            parts = self._parts(message)
            contents = body["contents"]
            if contents and contents[-1]["role"] == role:
                contents[-1]["parts"] += parts
            elif parts:
                contents.append({"role": role, "parts": parts})
        if system and body["contents"]:
            body["systemInstruction"] = {"parts": system}
        elif system:
            body["contents"].append({"role": "user", "parts": system})  # There has to be something to answer.
        declarations = self._declarations()
        if declarations:
            body["tools"] = [{"functionDeclarations": declarations}]
            config = self._tool_config()
            if config:
                body["toolConfig"] = {"functionCallingConfig": config}
        body["generationConfig"] = self._generation_config()
        return body

    def _system_parts(self, message: Message) -> list[dict[str, Any]]:
        parts = []
        for part in message.parts:
            if isinstance(part, Text):
                parts.append({"text": part.text})
            else:
                self._lost.append(_path_of(part))
        return parts

    def _parts(self, message: Message) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        has_call = False
        for part in message.parts:
            match part:
                case Text(text="", signature=""):
                    pass
                case Text():
                    written.append(_signed({"text": part.text}, part.signature))
                case ToolCall():
                    # Only the first of parallel calls is signed by the model.
                    signature = part.signature or ("" if has_call or not self._thinks_by_level else _FOREIGN_CALL)
                    written += self._call(part, signature)
                    has_call = True
                case ToolResult():
                    written += self._result(part)
                case Media():
                    written += self._media(part)
                case Thinking():
                    written += self._thinking(part)
                case Refusal(text=text):
                    written.append({"text": text})
                case _:
                    self._lost.append(_path_of(part))
        return written

    def _call(self, part: ToolCall, signature: str) -> list[dict[str, Any]]:
        if part.is_custom:
            self._lost.append(part.path or part.name)
            return []
        arguments = _arguments(part.arguments)
        if arguments is None:
            self._lost.append(f"{part.path}.arguments" if part.path else part.name)
            return []
        return [_signed({"functionCall": {"id": part.call_id, "name": part.name, "args": arguments}}, signature)]

    def _result(self, part: ToolResult) -> list[dict[str, Any]]:
        """What a tool said is its `output` or `error`; media stand within, or after it for models that take none there."""
        texts: list[str] = []
        media: list[dict[str, Any]] = []
        for inner in part.content:
            if isinstance(inner, Text):
                texts.append(inner.text)
            elif isinstance(inner, Media):
                media += self._media(inner)
            else:
                self._lost.append(_path_of(inner) or part.path)
        name = part.name or self._tool_names.get(part.call_id, "")
        response: dict[str, Any] = {
            "id": part.call_id,
            "name": name or part.call_id,
            "response": {"error" if part.is_error else "output": "\n".join(texts)},
        }
        if media and self._thinks_by_level:
            response["parts"] = media
            media = []
        return [{"functionResponse": response}, *media]

    def _media(self, part: Media) -> list[dict[str, Any]]:
        if part.detail in _RESOLUTIONS:
            self._details[part.path] = part.detail
        return _write_media(part, self._lost)

    def _thinking(self, part: Thinking) -> list[dict[str, Any]]:
        if part.origin not in ("", ORIGIN) or part.redacted:
            self._lost.append(part.path or "thinking")
            return []
        return [_signed({"text": part.text, "thought": True}, part.signature)]

    def _declarations(self) -> list[dict[str, Any]]:
        declarations = []
        for tool in self._prompt.tools:
            if tool.is_custom:
                self._lost.append(tool.path or tool.name)
                continue
            declaration: dict[str, Any] = {"name": tool.name, "description": tool.description}
            if tool.parameters is not None:
                declaration["parametersJsonSchema"] = tool.parameters
            declarations.append(declaration)
        return declarations

    def _tool_config(self) -> dict[str, Any]:
        """`VALIDATED` keeps calls to their schemas, as strict tools promise; `ANY` does so anyway."""
        choice = self._prompt.tool_choice or ToolChoice("auto")
        is_strict = any(tool.is_strict for tool in self._prompt.tools)
        match choice.mode:
            case "none":
                return {"mode": "NONE"}
            case "tool":
                return {"mode": "ANY", "allowedFunctionNames": [choice.name]}
            case "required":
                config: dict[str, Any] = {"mode": "ANY"}
            case _ if choice.allowed or is_strict:
                config = {"mode": "VALIDATED"}
            case _:
                return {"mode": "AUTO"} if self._prompt.tool_choice is not None else {}
        if choice.allowed:
            config["allowedFunctionNames"] = list(choice.allowed)
        return config

    def _generation_config(self) -> dict[str, Any]:
        prompt = self._prompt
        config: dict[str, Any] = {"maxOutputTokens": self._output_tokens_max}
        for name, value in (
            ("temperature", prompt.temperature),
            ("topP", prompt.top_p),
            ("topK", prompt.top_k),
            ("frequencyPenalty", prompt.frequency_penalty),
            ("presencePenalty", prompt.presence_penalty),
            ("candidateCount", prompt.choices),
            ("seed", self._seed()),
            ("stopSequences", prompt.stop or None),
            ("responseLogprobs", prompt.logprobs or None),
            ("logprobs", (prompt.logprobs and prompt.top_logprobs) or None),
        ):
            if value is not None:
                config[name] = value
        if prompt.output_format is not None:
            config["responseMimeType"] = "application/json"
            if prompt.output_format.schema is not None:
                config["responseJsonSchema"] = prompt.output_format.described_schema()
        if prompt.reasoning is not None:
            thinking = self._thinking_config(prompt.reasoning)
            if thinking:
                config["thinkingConfig"] = thinking
        if "audio" in prompt.modalities:
            config["responseModalities"] = ["AUDIO"]
        elif "image" in prompt.modalities:
            config["responseModalities"] = ["TEXT", "IMAGE"]
        if self._details:
            self._add_resolution(config)
        return config

    def _seed(self) -> int | None:
        seed = self._prompt.seed
        if seed is not None and not -_SEED_MAX <= seed < _SEED_MAX:
            self._lost.append(self._prompt.names.get("seed", "seed"))
            return None
        return seed

    def _add_resolution(self, config: dict[str, Any]) -> None:
        """There is one for the whole request."""
        details = set(self._details.values())
        if len(details) == 1:
            config["mediaResolution"] = _RESOLUTIONS[details.pop()]
        else:
            self._lost += [f"{path}.detail" for path in self._details]

    def _thinking_config(self, reasoning: Reasoning) -> dict[str, Any]:
        config: dict[str, Any] = {}
        effort, budget = reasoning.effort, reasoning.budget_tokens
        if reasoning.is_on is False:
            effort = "none"
        if self._thinks_by_level:
            if not effort and budget is not None:
                effort = next((name for name, most in EFFORT_BUDGETS.items() if most >= budget), "high")
            if effort:
                # These cannot but think: the least comes nearest to none.
                level = _LEVELS.get(effort, "high")
                config["thinkingLevel"] = "low" if level == "minimal" and "flash" not in self._model else level
        else:
            if effort == "none":
                budget = 0
            elif budget is None and effort:
                budget = EFFORT_BUDGETS.get(effort)
            if budget is not None:
                config["thinkingBudget"] = min(budget, _FLASH_BUDGET_MAX if "flash" in self._model else _BUDGET_MAX)
            elif reasoning.is_adaptive or reasoning.is_on:
                config["thinkingBudget"] = -1
        asks = reasoning.is_on or reasoning.budget_tokens or reasoning.is_adaptive
        if reasoning.summary == "omitted":
            config["includeThoughts"] = False
        elif effort != "none" and (reasoning.summary or asks):
            config["includeThoughts"] = True
        return config


def _signed(part: dict[str, Any], signature: str) -> dict[str, Any]:
    if signature:
        part["thoughtSignature"] = signature
    return part


def _path_of(part: Part) -> str:
    return getattr(part, "path", "") or part.__struct_config__.tag  # type: ignore[return-value]


def _arguments(text: str) -> Any:
    """A JSON object as it was written; None for anything else."""
    if not text.strip():
        return {}
    raw = text.encode("utf-8", "surrogatepass")
    return msgspec.Raw(raw) if _objects.find(raw) is not None else None


def _write_media(part: Media, lost: list[str]) -> list[dict[str, Any]]:
    """What names a document or tells of it goes before it, as text."""
    if part.is_cited:
        lost.append(f"{part.path}.citations")
    label = "\n".join(text for text in (part.name, part.context, part.transcript) if text)
    parts: list[dict[str, Any]] = [{"text": label}] if label else []
    if part.text:
        data = base64.b64encode(part.text.encode()).decode()
        parts.append({"inlineData": {"mimeType": part.media_type or "text/plain", "data": data}})
    elif part.data:
        media_type = part.media_type or _MEDIA_TYPES[part.kind]
        parts.append({"inlineData": {"mimeType": media_type, "data": part.data}})
    elif part.url or part.file_id.startswith(_OWN_FILES):
        uri = part.url or part.file_id
        parts.append({"fileData": {"mimeType": part.media_type or _media_type_of(uri, part.kind), "fileUri": uri}})
    else:
        lost.append(part.path or part.kind)
        return []
    return parts


def _media_type_of(url: str, kind: str) -> str:
    ending = url.partition("?")[0].rpartition(".")[2].lower()
    return _MEDIA_TYPES_BY_ENDING.get(ending, _MEDIA_TYPES[kind])
