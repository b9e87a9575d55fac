"""Google's Gemini API, as clients speak it: content, the count of its tokens, embeddings. Pure; no I/O.

Requests are protocol buffers written as JSON: each field may be named in camelCase or in snake_case, an enum may be its number,
and a field that is empty is as good as absent. The model stands in the path, and so does whether to stream; `alt=sse` in the query
asks for server-sent events where a JSON array would come.

Foreign signatures stand as `thoughtSignature` of a part with `thought: true`, which is base64 of the wrapped one.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from proxy.dialects.dialect import (
    MEDIA_TOKENS_MAX,
    TEMPLATE_TOKENS,
    Call,
    Dialect,
    HeadReader,
    StreamWriter,
    beside_text,
    json_fields,
    plain,
)
from proxy.dialects.gemini_answers import ArrayWriter, Writer, write_answer
from proxy.dialects.gemini_prompts import NAMES, PromptReader, Proto, read_embedding
from proxy.errors import GatewayError, InvalidRequest, RouteUnknown
from proxy.fields import wrong
from proxy.neutral import Answer, Embedded, Embedding, Prompt
from proxy.snapshot import Alias

STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "NOT_FOUND",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
CHOICES_MAX = 8
TOOL_CALLS_MAX = 16
# What a cached content, a long video by its address, or pages that a tool reads may add: no context window is larger.
CONTEXT_TOKENS_MAX = 2_097_152
_FILE_MARKS = (b'"fileData"', b'"file_data"')
_MEDIA_MARKS = (b'"inlineData"', b'"inline_data"', *_FILE_MARKS)
_CACHE_MARKS = (b'"cachedContent"', b'"cached_content"')
# What may be hours of sound, whatever the request calls it.
_FAR_MARKS = (*_CACHE_MARKS, *_FILE_MARKS)
_LONG_MARKS = (b"video/", b"youtu", b"application/pdf")
_AUDIO_MARKS = (b"audio", b"video", *_FILE_MARKS)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Gemini(Dialect):
    def render_error(self, error: GatewayError, request_id: str) -> bytes:
        """`{"error": {code, message, status, details}}`, with details as `google.rpc` has them."""
        return _encode(error_object(error, request_id))

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        """Bare JSON after the events, as Vertex AI does: the official SDKs look for that."""
        return self.render_error(error, request_id) + b"\r\n"

    def render_models(self, aliases: Iterable[Alias], parameters: Mapping[str, str]) -> bytes:
        models = [
            {
                "name": f"models/{alias.name}",
                "baseModelId": alias.name,
                "version": "001",
                "displayName": alias.name,
                "supportedGenerationMethods": [
                    "generateContent", "countTokens", "embedContent", "batchEmbedContents",
                ],
            }
            for alias in aliases
        ]  # fmt: skip
        return _encode(models[0] if "model" in parameters else {"models": models})


def error_object(error: GatewayError, request_id: str) -> dict[str, Any]:
    metadata = {
        name: value if isinstance(value, str) else _encode(value).decode() for name, value in error.details.items()
    }
    info = {"reason": error.code.upper(), "domain": "tollgate", "metadata": metadata}
    details: list[dict[str, Any]] = [_detail("ErrorInfo", info), _detail("RequestInfo", {"requestId": request_id})]
    if error.param is not None:
        violations = [{"field": error.param, "description": error.message}]
        details.append(_detail("BadRequest", {"fieldViolations": violations}))
    if error.retry_after_s is not None:
        details.append(_detail("RetryInfo", {"retryDelay": f"{error.retry_after_s}s"}))
    code = error.status_code
    status = STATUSES.get(code) or ("INVALID_ARGUMENT" if code < 500 else "INTERNAL")
    return {"error": {"code": code, "message": error.message, "status": status, "details": details}}


def _detail(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}


class _Shape(msgspec.Struct):
    """Only what we act on, in either spelling."""


class _GenerationHead(_Shape):
    maxOutputTokens: int | None = None
    max_output_tokens: int | None = None
    candidateCount: int | None = None
    candidate_count: int | None = None
    routingConfig: Any = None
    routing_config: Any = None


class _Head(_Shape):
    generationConfig: _GenerationHead | None = None
    generation_config: _GenerationHead | None = None
    tools: list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw] | None = None
    labels: dict[str, Any] | None = None


_decode_head = HeadReader(_Head).read


class GeminiGenerate(Gemini):
    name = "gemini.generate"
    operation = "chat"
    capability = "chat"
    is_translatable = True

    def __init__(self, method: str) -> None:
        """`method` is what the path says, where its parameters do not."""
        self._method = method

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        """`parameters` are `model`, the raw `query`, and `method` unless there is one endpoint for each."""
        fields = json_fields(body)
        head = _decode_head(body)
        method = parameters.get("method", self._method)
        alt, query = _alternative(parameters)
        is_stream = method == "streamGenerateContent"
        has_tools = any(
            name not in ("functionDeclarations", "function_declarations") and bytes(value) != b"null"
            for tool in (head.tools if isinstance(head.tools, list) else [head.tools or {}])
            for name, value in tool.items()
        )
        seen = beside_text(body, fields, "contents")
        media = _media(seen)
        caps, choices = _bounds(head)
        return Call(
            dialect=ARRAY if is_stream and alt != "sse" else self,
            operation=self.operation,
            capability=self.capability,
            alias=_alias(parameters),
            body=body,
            fields=fields,
            parameters={"method": method, "alt": alt, "query": query},
            is_stream=is_stream,
            input_tokens_max=_input_tokens_max(body, seen, media) + (CONTEXT_TOKENS_MAX if has_tools else 0),
            output_tokens_max=max(caps, default=None),
            choices=max(choices, default=1),
            tool_calls_max=TOOL_CALLS_MAX if has_tools else 0,
            has_audio=b"AUDIO" in seen or (media > 0 and any(mark in seen for mark in _AUDIO_MARKS)),
            has_images=media > 0 or b"IMAGE" in seen,
            metadata=head.labels,
        )

    def read_prompt(self, call: Call) -> Prompt:
        return PromptReader().read(Proto(_decode(call.body)))

    def write_answer(self, answer: Answer, call: Call) -> bytes:
        return write_answer(answer, call)

    def stream_writer(self, call: Call) -> StreamWriter:
        return Writer(call)


class GeminiArray(GeminiGenerate):
    """The streams of clients that did not ask for server-sent events."""

    stream_content_type = b"application/json; charset=UTF-8"

    def render_error(self, error: GatewayError, request_id: str) -> bytes:
        return b"[" + super().render_error(error, request_id) + b"\n]\n"

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b",\r\n" + Gemini.render_error(self, error, request_id) + b"\n]\n"

    def stream_writer(self, call: Call) -> StreamWriter:
        return ArrayWriter(call)


class GeminiCountTokens(Gemini):
    name = "gemini.count_tokens"
    operation = "count_tokens"
    capability = "chat"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=_alias(parameters),
            body=body,
            fields=json_fields(body),
            input_tokens_max=0,
            output_tokens_max=0,
            is_free=True,
        )


class GeminiEmbed(Gemini):
    name = "gemini.embed"
    operation = "embeddings"
    capability = "embeddings"
    is_translatable = True

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        seen = plain(body)
        media = _media(seen)
        requests = fields.get("requests")
        method = parameters.get("method", "embedContent" if requests is None else "batchEmbedContents")
        if method not in ("embedContent", "batchEmbedContents"):
            raise RouteUnknown(f"the method `{method}` of a model is not served here")
        if requests is not None:
            _check_requests(requests)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=_alias(parameters),
            body=body,
            fields=fields,
            parameters={"method": method, "query": _alternative(parameters)[1]},
            input_tokens_max=_input_tokens_max(body, seen, media),
            output_tokens_max=0,
            has_audio=b"AUDIO" in seen or (media > 0 and any(mark in seen for mark in _AUDIO_MARKS)),
            has_images=media > 0 or b"IMAGE" in seen,
        )

    def read_prompt(self, call: Call) -> Embedding:
        top = Proto(_decode(call.body))
        top.any("model")
        requests = list(top.objects("requests")) if call.parameters["method"] == "batchEmbedContents" else [top]
        if not requests:
            raise wrong("requests", "a list of requests")
        embeddings = [read_embedding(request) for request in requests]
        first = embeddings[0]
        lost = first.lost
        for index, embedding in enumerate(embeddings[1:], start=1):
            first.inputs += embedding.inputs
            lost += embedding.lost
            # Neutral embeddings have these in common.
            for field, name in (("task", "taskType"), ("title", "title"), ("dimensions", "outputDimensionality")):
                if getattr(embedding, field) != getattr(first, field):
                    lost.append(f"requests.{index}.{name}")
        if requests[0] is not top:
            top.rest(lost)
        return first

    def write_answer(self, answer: Embedded, call: Call) -> bytes:
        embeddings = [{"values": vector} for vector in answer.vectors]
        body: dict[str, Any] = {"embeddings": embeddings}
        if call.parameters["method"] == "embedContent":
            body = {"embedding": embeddings[0] if embeddings else {}}
        if answer.usage is not None:
            body["usageMetadata"] = {"promptTokenCount": answer.usage.input_tokens}
        return _encode(body)


def _alias(parameters: Mapping[str, str]) -> str:
    alias = parameters.get("model", "").removeprefix("models/")
    if not alias:
        raise InvalidRequest("the path names no model: GET /v1beta/models lists them", param="model")
    return alias


def _alternative(parameters: Mapping[str, str]) -> tuple[str, str]:
    """(`sse` or ``, what of the query crosses to the provider): how the answer is to be written, and nothing of keys."""
    query = parameters.get("query", "")
    if query == "alt=sse":
        return "sse", query
    given = [(name, value) for name, value in parse_qsl(query) if name in ("alt", "$alt")]
    if "alt" in parameters and not given:
        given = [("alt", parameters["alt"])] if parameters["alt"] else []
    words = {value.partition(";")[0] for _, value in given}
    if not words <= {"sse", "json"}:
        raise InvalidRequest("`alt` must be sse or json", code="invalid_value", param="alt")
    return "sse" if "sse" in words else "", urlencode(given, safe="$;=")


def _bounds(head: _Head) -> tuple[list[int], list[int]]:
    """(output caps, numbers of candidates) that are given. The larger counts where both spellings are."""
    caps: list[int] = []
    choices: list[int] = []
    for config in (head.generationConfig, head.generation_config):
        if config is not None:
            if config.routingConfig or config.routing_config:
                reason = "another model costs what this model's price does not say"
                raise InvalidRequest(reason, code="invalid_value", param="generationConfig.routingConfig")
            caps += [cap for cap in (config.maxOutputTokens, config.max_output_tokens) if cap is not None]
            choices += [count for count in (config.candidateCount, config.candidate_count) if count is not None]
    if any(cap < 1 for cap in caps):
        raise InvalidRequest("the output cap must be at least 1", param=NAMES["max_output_tokens"])
    if any(not 1 <= count <= CHOICES_MAX for count in choices):
        raise InvalidRequest(f"`candidateCount` must be between 1 and {CHOICES_MAX}", param=NAMES["choices"])
    return caps, choices


def _media(body: bytes) -> int:
    return sum([body.count(mark) for mark in _MEDIA_MARKS])


def _input_tokens_max(body: bytes, seen: bytes, media: int) -> int:
    tokens = len(body) + TEMPLATE_TOKENS + media * MEDIA_TOKENS_MAX
    is_long = any(mark in seen for mark in _FAR_MARKS) or (media > 0 and any(mark in seen for mark in _LONG_MARKS))
    return tokens + CONTEXT_TOKENS_MAX if is_long else tokens


_decode_requests = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def _check_requests(requests: msgspec.Raw) -> None:
    try:
        _decode_requests(requests)
    except msgspec.DecodeError as error:
        raise wrong("requests", "a list of requests") from error


GENERATE = GeminiGenerate("generateContent")
STREAM = GeminiGenerate("streamGenerateContent")
ARRAY = GeminiArray("streamGenerateContent")
COUNT_TOKENS = GeminiCountTokens()
EMBED = GeminiEmbed()
