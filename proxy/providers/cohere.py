"""Cohere: chat, embeddings and reranking. Pure; no I/O.

Usage is `billed_units`, which is what Cohere bills: it leaves out Cohere's own prompt text, and so what of it was cached.
A model that plans its tool calls says so in `tool_plan`; that is its thinking, and Cohere's templates write it as such.
Prompts are cached without being told.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.neutral import (
    CONTENT_FILTER,
    EFFORT_BUDGETS,
    LENGTH,
    OPTIONAL_PARAMETERS,
    STOP,
    STOP_SEQUENCE,
    TOOL_CALLS,
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
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
    Ranked,
    Reasoning,
    Refusal,
    Reranking,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    ToolResult,
    UsageSeen,
    lose_all_but,
)
from proxy.providers import openai_errors
from proxy.providers import provider as base
from proxy.providers.provider import Api, Measured, Outgoing, StreamReader, checked_usage
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

FINISHES = {
    "COMPLETE": STOP,
    "STOP_SEQUENCE": STOP_SEQUENCE,
    "MAX_TOKENS": LENGTH,
    "TOOL_CALL": TOOL_CALLS,
    "ERROR_TOXIC": CONTENT_FILTER,
    "ERROR_LIMIT": LENGTH,
}
FAILURES = frozenset({"ERROR", "TIMEOUT"})
_CITES_TEXT = frozenset({None, "TEXT_CONTENT"})
_ENDS = frozenset({"content-end", "citation-end"})
INPUT_TYPES = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}

# `cache` asks for what is done anyway, and so does the key that sends like prompts to the same cache.
_CARRIED = frozenset(OPTIONAL_PARAMETERS) - {
    "parallel_tool_calls", "min_p", "repetition_penalty", "choices", "top_logprobs", "logit_bias", "verbosity", "user",
    "service_tier", "metadata", "store", "modalities",
}  # fmt: skip
_TOP_P_MAX = 0.99
_NULL = msgspec.Raw(b"null")

_encode = msgspec.json.Encoder().encode


# What is read. Counts may be written as 5.0.


class _Units(msgspec.Struct):
    input_tokens: float | None = None
    output_tokens: float | None = None
    search_units: float | None = None
    images: float | None = None
    text_tokens: float | None = None
    image_tokens: float | None = None


class _Tokens(msgspec.Struct):
    input_tokens: float | None = None
    output_tokens: float | None = None
    reasoning_tokens: float | None = None
    image_tokens: float | None = None


class _Usage(msgspec.Struct):
    billed_units: _Units | None = None
    tokens: _Tokens | None = None


class _Block(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Citation(msgspec.Struct):
    start: int | None = None
    end: int | None = None
    content_index: int | None = None
    type: str | None = None
    sources: list[dict[str, Any]] | None = None


class _Logprob(msgspec.Struct):
    text: str | None = None
    logprobs: list[float] | None = None


class _Message(msgspec.Struct):
    content: list[_Block] | None = None
    tool_plan: str | None = None
    tool_calls: list[_ToolCall] | None = None
    citations: list[_Citation] | None = None


class _Answer(msgspec.Struct):
    message: _Message
    id: str | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None
    logprobs: list[_Logprob] | None = None


class _Head(msgspec.Struct):
    finish_reason: str | None = None
    usage: _Usage | None = None


class _Frame(msgspec.Struct):
    """`delta` is read by what `type` says."""

    type: str
    id: str | None = None
    index: int | None = None
    delta: msgspec.Raw = _NULL


class _BlockMessage(msgspec.Struct):
    content: _Block


class _BlockDelta(msgspec.Struct):
    message: _BlockMessage
    logprobs: _Logprob | None = None


class _PlanMessage(msgspec.Struct):
    tool_plan: str | None = None


class _PlanDelta(msgspec.Struct):
    message: _PlanMessage


class _ToolCallMessage(msgspec.Struct):
    tool_calls: _ToolCall


class _ToolCallDelta(msgspec.Struct):
    message: _ToolCallMessage


class _CitationMessage(msgspec.Struct):
    citations: _Citation


class _CitationDelta(msgspec.Struct):
    message: _CitationMessage


class _EndDelta(msgspec.Struct):
    finish_reason: str | None = None
    error: str | None = None
    usage: msgspec.Raw = _NULL


class _Error(msgspec.Struct):
    message: str | None = None
    error: msgspec.Raw = _NULL
    error_type: str | None = None


class _Meta(msgspec.Struct):
    billed_units: _Units | None = None


class _EmbedHead(msgspec.Struct):
    meta: _Meta | None = None


class _ByType(msgspec.Struct):
    float: list[list[float]]


class _Embedded(msgspec.Struct):
    embeddings: _ByType
    meta: _Meta | None = None


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranked(msgspec.Struct):
    results: list[_Result]
    id: str | None = None
    meta: _Meta | None = None


_answers = Shape(_Answer)
_heads = Shape(_Head)
_frames = Shape(_Frame)
_block_deltas = Shape(_BlockDelta)
_plan_deltas = Shape(_PlanDelta)
_tool_call_deltas = Shape(_ToolCallDelta)
_citation_deltas = Shape(_CitationDelta)
_end_deltas = Shape(_EndDelta)
_usages = Shape(_Usage)
_errors = Shape(_Error)
_embed_heads = Shape(_EmbedHead)
_embedded = Shape(_Embedded)
_ranked = Shape(_Ranked)


# Chat


class CohereChat(Api):
    name = "cohere.chat"
    capability = "chat"
    target = b"/v2/chat"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = {**call.fields, "model": msgspec.Raw(_encode(deployment.upstream_model))}
        if call.output_tokens_max is None:
            fields["max_tokens"] = msgspec.Raw(b"%d" % deployment.max_output_tokens)
        return Outgoing(self.target, dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        head = _heads.read(body)
        return Measured(
            usage=_usage_of(head.usage),
            finish_reason=base.name_of(head.finish_reason),
            has_error=head.finish_reason in FAILURES,
        )

    def write_request(
        self, prompt: Prompt, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        """Documents that are to be cited go where Cohere cites from, `documents`; other texts stay in their message."""
        lose_all_but(_CARRIED, prompt, lost)
        documents: list[dict[str, Any]] = []
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "messages": _write_messages(prompt, documents, lost),
            "max_tokens": prompt.max_output_tokens or deployment.max_output_tokens,
            "stream": call.is_stream,
        }
        if documents:
            body["documents"] = documents
        _write_tools(prompt, body, lost)
        for name, value in (
            ("temperature", prompt.temperature),
            # All of the probability, which others call 1, is called so.
            ("p", prompt.top_p if prompt.top_p is None else min(prompt.top_p, _TOP_P_MAX)),
            ("k", prompt.top_k),
            ("frequency_penalty", prompt.frequency_penalty),
            ("presence_penalty", prompt.presence_penalty),
            ("seed", prompt.seed),
            ("logprobs", prompt.logprobs),
        ):
            if value is not None:
                body[name] = value
        if prompt.stop:
            body["stop_sequences"] = prompt.stop
        if prompt.output_format is not None:
            body["response_format"] = {"type": "json_object"}
            if prompt.output_format.schema is not None:
                body["response_format"]["json_schema"] = prompt.output_format.described_schema()
        if prompt.reasoning is not None:
            thinking = _write_thinking(prompt.reasoning)
            if thinking is not None:
                body["thinking"] = thinking
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Answer:
        answer = _answers.read(body)
        logprobs = [token for item in answer.logprobs for token in _tokens(item)] if answer.logprobs else None
        finish = answer.finish_reason or ""
        return Answer(
            answer_id=answer.id or "",
            choices=[
                Choice(
                    parts=_read_parts(answer.message),
                    finish=FINISHES.get(finish, STOP),
                    finish_detail=base.name_of(finish),
                    logprobs=logprobs,
                )
            ],
            usage=_usage_of(answer.usage),
        )

    def stream_reader(self) -> StreamReader:
        return CohereChatReader()

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


def _write_messages(prompt: Prompt, documents: list[dict[str, Any]], lost: list[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(prompt.messages):
        if message.name:
            lost.append(f"messages.{index}.name")
        if message.role == "assistant":
            messages.append(_write_assistant(message, f"messages.{index}", lost))
            continue
        role = "system" if message.role == "developer" else message.role
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                messages.append(_write_tool_result(part, lost))
            elif isinstance(part, Text):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, Media):
                _write_media(part, content, documents, lost)
            else:
                lost.append(_path_of(part))
        if content:
            is_text = len(content) == 1 and content[0]["type"] == "text"
            messages.append({"role": role, "content": content[0]["text"] if is_text else content})
    return messages


def _write_assistant(message: Message, path: str, lost: list[str]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    plans: list[str] = []
    tool_calls: list[dict[str, Any]] = []
    has_tool_calls = any(isinstance(part, ToolCall) for part in message.parts)
    for part in message.parts:
        if isinstance(part, Text | ToolCall | Thinking) and part.signature:
            lost.append(getattr(part, "path", "") or f"{path}.signature")  # Somebody else's: Cohere signs nothing.
        if isinstance(part, Text | Refusal):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Thinking) and not part.redacted:
            if has_tool_calls:
                plans.append(part.text)
            elif part.text:
                content.append({"type": "thinking", "thinking": part.text})
        elif isinstance(part, ToolCall) and not part.is_custom:
            function = {"name": part.name, "arguments": part.arguments}
            tool_calls.append({"id": part.call_id, "type": "function", "function": function})
        else:
            lost.append(_path_of(part))
    written: dict[str, Any] = {"role": "assistant"}
    if content:
        written["content"] = content
    if plans:
        written["tool_plan"] = "\n".join(filter(None, plans))
    if tool_calls:
        written["tool_calls"] = tool_calls
    return written


def _write_tool_result(result: ToolResult, lost: list[str]) -> dict[str, Any]:
    """An error has no mark of its own: it is a document that says so."""
    texts: list[str] = []
    for part in result.content:
        if isinstance(part, Text) or (isinstance(part, Media) and part.text):
            texts.append(part.text)
        else:
            lost.append(getattr(part, "path", "") or result.path)
    if result.is_custom:
        lost.append(result.path)
    content: Any = [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)
    if result.is_error:
        content = [{"type": "document", "document": {"data": {"error": "\n".join(texts)}}}]
    return {"role": "tool", "tool_call_id": result.call_id, "content": content}


def _write_media(media: Media, content: list[dict[str, Any]], documents: list[dict[str, Any]], lost: list[str]) -> None:
    if media.kind == "image" and (media.data or media.url):
        image = {"url": media.url or f"data:{media.media_type};base64,{media.data}"}
        if media.detail:
            image["detail"] = media.detail
        content.append({"type": "image_url", "image_url": image})
    elif media.kind == "document" and media.text:
        if media.is_cited:
            named = {"title": media.name, "context": media.context, "text": media.text}
            data = {name: value for name, value in named.items() if value}
            documents.append({"id": f"doc:{len(documents)}", "data": data})
        else:
            text = "\n\n".join(filter(None, (media.name, media.context, media.text)))
            content.append({"type": "text", "text": text})
    else:
        lost.append(media.path)


def _write_tools(prompt: Prompt, body: dict[str, Any], lost: list[str]) -> None:
    """A choice that names tools is the choice among them alone: only they are sent."""
    choice = prompt.tool_choice
    tools = prompt.tools
    if choice is not None:
        if choice.mode == "tool":
            tools = [tool for tool in tools if tool.name == choice.name]
        elif choice.allowed:
            tools = [tool for tool in tools if tool.name in choice.allowed]
        if choice.mode == "none":
            body["tool_choice"] = "NONE"
        elif choice.mode != "auto":
            body["tool_choice"] = "REQUIRED"
    lost += [tool.path for tool in tools if tool.is_custom]
    tools = [tool for tool in tools if not tool.is_custom]
    if not tools:
        body.pop("tool_choice", None)
        return
    strict = [tool for tool in tools if tool.is_strict]
    if len(strict) == len(tools):
        body["strict_tools"] = True
    else:
        lost += [tool.path for tool in strict]
    body["tools"] = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def _write_thinking(reasoning: Reasoning) -> dict[str, Any] | None:
    if reasoning.is_on is False or reasoning.effort == "none":
        return {"type": "disabled"}
    budget = reasoning.budget_tokens or EFFORT_BUDGETS.get(reasoning.effort)
    if budget is not None:
        return {"type": "enabled", "token_budget": budget}
    return {"type": "enabled"} if reasoning.is_on or reasoning.is_adaptive else None


def _read_parts(message: _Message) -> list[Part]:
    """Citations of the plan or of thinking have no part to stand at, and are left out."""
    citations = [
        (citation.content_index, read)
        for citation in message.citations or ()
        if citation.type in _CITES_TEXT
        for read in _citations(citation)
    ]
    parts: list[Part] = [Thinking(text=message.tool_plan)] if message.tool_plan else []
    only_text = len([block for block in message.content or () if block.text]) == 1
    for index, block in enumerate(message.content or ()):
        if block.thinking:
            parts.append(Thinking(text=block.thinking))
        if block.text:
            own = tuple(read for at, read in citations if only_text or (at or 0) == index)
            parts.append(Text(text=block.text, citations=own))
    for index, tool_call in enumerate(message.tool_calls or ()):
        function = tool_call.function or _Function()
        parts.append(
            ToolCall(
                call_id=tool_call.id or f"call_{index}",
                name=function.name or "",
                arguments=_arguments(function.arguments),
            )
        )
    return parts


def _arguments(text: str | None) -> str:
    """A tool without parameters is called with nothing, or with null."""
    return text if text and text != "null" else "{}"


def _citations(citation: _Citation) -> list[Citation]:
    """One for each source. `doc:0` is the first of the documents that were sent."""
    read: list[Citation] = []
    for source in citation.sources or ():
        document = source.get("document")
        fields: dict[str, Any] = document if isinstance(document, dict) else {}
        number = str(source.get("id", "")).removeprefix("doc:")
        read.append(
            Citation(
                url=_text(fields.get("url")),
                title=_text(fields.get("title")),
                cited_text=_text(fields.get("text") or fields.get("snippet")),
                start=-1 if citation.start is None else citation.start,
                end=-1 if citation.end is None else citation.end,
                document=int(number) if number.isascii() and number.isdigit() and len(number) < 6 else -1,
                source=source,
            )
        )
    return read


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _tokens(item: _Logprob) -> list[TokenLogprob]:
    """Cohere gives the text of several tokens at once: it is all given to the first."""
    return [
        TokenLogprob(token=(item.text or "") if index == 0 else "", logprob=logprob)
        for index, logprob in enumerate(item.logprobs or ())
    ]


def _usage_of(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    tokens = usage.tokens or _Tokens()
    billed = usage.billed_units or _Units(input_tokens=tokens.input_tokens, output_tokens=tokens.output_tokens)
    if billed.input_tokens is None and billed.output_tokens is None:
        return None
    input_tokens, output_tokens = _count(billed.input_tokens), _count(billed.output_tokens)
    return checked_usage(
        Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            reasoning_tokens=min(_count(tokens.reasoning_tokens), output_tokens),
            input_image_tokens=min(_count(tokens.image_tokens), input_tokens),
        )
    )


def _count(number: float | None) -> int:
    """What is no number of tokens is -1, which `checked_usage` refuses."""
    if number is None:
        return 0
    return int(number) if 0 <= number <= base.TOKENS_MAX else -1


class CohereChatReader(StreamReader):
    def __init__(self) -> None:
        self._tool_calls = -1
        self._has_arguments = False
        self._has_text = False
        self._begins_text = False

    def read(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if not data or data == b"[DONE]":
            return ()  # `message-end` has said so; not every deployment sends another end.
        read = _frames.find(data)
        if read is None:
            return _read_strange(data)
        events = self._events(read)
        return events if events is not None else (OpaqueDone(kind=read.type, size=len(data)),)

    def _events(self, frame: _Frame) -> Sequence[Event] | None:
        """None for what cannot be read."""
        match frame.type:
            case "content-delta" | "content-start":
                return self._read_block(frame)
            case "tool-call-delta":
                return self._read_arguments(frame)
            case "tool-call-start":
                return self._begin_tool_call(frame)
            case "tool-plan-delta":
                return _read_plan(frame)
            case "citation-start":
                return _read_citation(frame)
            case "message-start":
                return (Began(answer_id=frame.id or ""),)
            case "tool-call-end":
                return self._end_tool_call()
            case "message-end":
                return _read_end(frame)
            case _:
                return () if frame.type in _ENDS else None

    def _read_block(self, frame: _Frame) -> Sequence[Event] | None:
        delta = _block_deltas.find(frame.delta)
        if delta is None:
            return None
        block = delta.message.content
        if frame.type == "content-start" and block.type == "text":
            self._begins_text = self._has_text
        if block.thinking:
            return (ThinkingDelta(text=block.thinking),)
        if not block.text and delta.logprobs is None:
            return ()
        begins, self._begins_text, self._has_text = self._begins_text, False, True
        logprobs = _tokens(delta.logprobs) if delta.logprobs is not None else None
        return (TextDelta(text=block.text or "", begins_part=begins, logprobs=logprobs),)

    def _read_arguments(self, frame: _Frame) -> Sequence[Event] | None:
        delta = _tool_call_deltas.find(frame.delta)
        if delta is None:
            return None
        function = delta.message.tool_calls.function
        if self._tool_calls < 0 or function is None or not function.arguments:
            return ()
        if not self._has_arguments and function.arguments == "null":
            return ()
        self._has_arguments = True
        return (ToolCallDelta(index=self._tool_calls, arguments=function.arguments),)

    def _begin_tool_call(self, frame: _Frame) -> Sequence[Event] | None:
        delta = _tool_call_deltas.find(frame.delta)
        if delta is None:
            return None
        self._tool_calls += 1
        self._has_arguments = False
        tool_call = delta.message.tool_calls
        function = tool_call.function or _Function()
        call_id = tool_call.id or f"call_{self._tool_calls}"
        began = ToolCallBegan(index=self._tool_calls, call_id=call_id, name=function.name or "")
        if function.arguments:
            self._has_arguments = True
            return (began, ToolCallDelta(index=self._tool_calls, arguments=function.arguments))
        return (began,)

    def _end_tool_call(self) -> Sequence[Event]:
        """A tool without parameters is called with nothing, or with null."""
        if self._tool_calls < 0 or self._has_arguments:
            return ()
        self._has_arguments = True
        return (ToolCallDelta(index=self._tool_calls, arguments="{}"),)


def _read_plan(frame: _Frame) -> Sequence[Event] | None:
    delta = _plan_deltas.find(frame.delta)
    if delta is None:
        return None
    return (ThinkingDelta(text=delta.message.tool_plan),) if delta.message.tool_plan else ()


def _read_citation(frame: _Frame) -> Sequence[Event] | None:
    delta = _citation_deltas.find(frame.delta)
    if delta is None:
        return None
    citation = delta.message.citations
    return [Cited(citation=each) for each in _citations(citation)] if citation.type in _CITES_TEXT else ()


def _read_end(frame: _Frame) -> Sequence[Event] | None:
    delta = _end_deltas.find(frame.delta)
    if delta is None:
        return None
    events: list[Event] = []
    usage = _usage_of(_usages.find(delta.usage))
    if usage is not None:
        events.append(UsageSeen(usage=usage))
    finish = delta.finish_reason or ""
    if finish in FAILURES:
        message = delta.error or "the generation failed"
        return [*events, Failed(error=ProviderError(message=message, kind=base.name_of(finish)))]
    return [*events, Finished(finish=FINISHES.get(finish, STOP), finish_detail=base.name_of(finish)), Done()]


def _read_strange(data: bytes) -> Sequence[Event]:
    """An error where an event should be, or something unheard of."""
    error = _errors.find(data)
    if error is not None and (error.message or bytes(error.error) != b"null"):
        return (Failed(error=read_error(0, data)),)
    return (OpaqueDone(kind="", size=len(data)),)


def read_error(status_code: int, body: bytes) -> ProviderError:
    """`{id, message}`, at times with an `error_type`."""
    error = openai_errors.read_error(status_code, body)
    found = _errors.find(body)
    if found is not None and found.error_type:
        error.kind = base.name_of(found.error_type)
    return error


def _path_of(part: Part) -> str:
    """Where the client wrote it, or what it is."""
    return getattr(part, "path", "") or type(part).__name__.lower()


# Embeddings


class CohereEmbed(Api):
    name = "cohere.embed"
    capability = "embeddings"
    target = b"/v2/embed"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return _renamed(self.target, call, deployment)

    def measure(self, body: bytes) -> Measured:
        return Measured(usage=_units_usage(_embed_heads.read(body).meta))

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        """Cohere's models want a task: a document's, where the client has none. Too long an input is an error, as it is
        with everybody but Cohere, and not cut."""
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "input_type": INPUT_TYPES.get(prompt.task, "search_document"),
            "embedding_types": ["float"],
            "truncate": "NONE",
        }
        if prompt.task and prompt.task not in INPUT_TYPES:
            lost.append(prompt.names.get("task", "task"))
        for name in ("title", "user"):
            if getattr(prompt, name):
                lost.append(prompt.names.get(name, name))
        if prompt.dimensions is not None:
            body["output_dimension"] = prompt.dimensions
        images = _data_images(prompt)
        if all(isinstance(item, str) for item in prompt.inputs):
            body["texts"] = prompt.inputs
        elif len(images) == len(prompt.inputs):
            body["images"] = images
            body["input_type"] = "image"
        else:
            body["inputs"] = _write_inputs(prompt, lost)
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Embedded:
        embedded = _embedded.read(body)
        return Embedded(vectors=embedded.embeddings.float, usage=_units_usage(embedded.meta))

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class CohereEmbedV1(CohereEmbed):
    """The same with other defaults, for clients that were written for it."""

    name = "cohere.embed.v1"
    target = b"/v1/embed"
    is_translatable = False


def _data_images(prompt: Embedding) -> list[str]:
    """Older models take these alone."""
    return [
        f"data:{item.media_type};base64,{item.data}"
        for item in prompt.inputs
        if isinstance(item, Media) and item.kind == "image" and item.data
    ]


def _write_inputs(prompt: Embedding, lost: list[str]) -> list[dict[str, Any]]:
    inputs: list[dict[str, Any]] = []
    for item in prompt.inputs:
        content: list[dict[str, Any]] = []
        if isinstance(item, str):
            content.append({"type": "text", "text": item})
        elif isinstance(item, Media):
            _write_media(item, content, [], lost)
        else:
            lost.append(prompt.names.get("inputs", "input"))  # Token ids of somebody else's tokeniser.
        inputs.append({"content": content})
    return inputs


def _units_usage(meta: _Meta | None) -> Usage | None:
    if meta is None or meta.billed_units is None:
        return None
    billed = meta.billed_units
    images = _count(billed.image_tokens)
    texts = _count(billed.input_tokens if billed.text_tokens is None else billed.text_tokens)
    return checked_usage(
        Usage(
            input_tokens=texts + images,
            output_tokens=_count(billed.output_tokens),
            input_image_tokens=images,
            units=_count(billed.search_units) + _count(billed.images),
        )
    )


def _renamed(target: bytes, call: Call, deployment: Deployment) -> Outgoing:
    fields = {**call.fields, "model": msgspec.Raw(_encode(deployment.upstream_model))}
    return Outgoing(target, dump_object(fields))


# Reranking


class CohereRerank(Api):
    """Billed in search units: a query with up to a hundred documents."""

    name = "cohere.rerank"
    capability = "rerank"
    target = b"/v2/rerank"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        return _renamed(self.target, call, deployment)

    def measure(self, body: bytes) -> Measured:
        return Measured(usage=_units_usage(_ranked.read(body).meta))

    def write_request(
        self, prompt: Reranking, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        body: dict[str, Any] = {
            "model": deployment.upstream_model,
            "query": prompt.query,
            "documents": prompt.documents,
        }
        if prompt.top_n is not None:
            body["top_n"] = prompt.top_n
        return Outgoing(self.target, _encode(body))

    def read_answer(self, body: bytes) -> Ranked:
        ranked = _ranked.read(body)
        return Ranked(
            results=[(result.index, result.relevance_score) for result in ranked.results],
            answer_id=ranked.id or "",
            usage=_units_usage(ranked.meta),
        )

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class CohereRerankV1(CohereRerank):
    """The same, and documents may have fields."""

    name = "cohere.rerank.v1"
    target = b"/v1/rerank"
    is_translatable = False


PROVIDER = base.Provider(
    name="cohere",
    apis=(CohereChat(), CohereEmbed(), CohereEmbedV1(), CohereRerank(), CohereRerankV1()),
    response_headers=frozenset({b"content-type", b"retry-after", b"x-debug-trace-id"}),
)
