"""Cohere's chat, embeddings and reranking, as clients speak them. Pure; no I/O.

Cohere signs nothing. Signatures of other providers stand as `signature` (and `data` for redacted thinking) of the content
block or tool call, wrapped; clients that send back the message they got return them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import (
    MEDIA_TOKENS_MAX,
    TEMPLATE_TOKENS,
    Call,
    Dialect,
    HeadReader,
    StreamWriter,
    json_fields,
    plain,
)
from proxy.dialects.openai_embeddings import TASKS, packed_base64
from proxy.errors import GatewayError, InvalidRequest
from proxy.fields import Fields, wrong
from proxy.neutral import (
    CONTENT_FILTER,
    LENGTH,
    PAUSE,
    REFUSAL,
    STOP,
    STOP_SEQUENCE,
    TOOL_CALLS,
    Answer,
    Began,
    Choice,
    Citation,
    Cited,
    Embedded,
    Embedding,
    Event,
    Finished,
    Media,
    Message,
    OutputFormat,
    Part,
    Prompt,
    Ranked,
    Reasoning,
    Refusal,
    RefusalDelta,
    Reranking,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    UsageSeen,
    unwrap_signature,
    wrap_signature,
)
from proxy.snapshot import Alias

FINISHES = {
    STOP: "COMPLETE",
    STOP_SEQUENCE: "STOP_SEQUENCE",
    LENGTH: "MAX_TOKENS",
    TOOL_CALLS: "TOOL_CALL",
    CONTENT_FILTER: "ERROR_TOXIC",
    REFUSAL: "COMPLETE",
    PAUSE: "COMPLETE",
}
NAMES = {
    "max_output_tokens": "max_tokens",
    "top_p": "p",
    "top_k": "k",
    "stop": "stop_sequences",
    "output_format": "response_format",
    "reasoning": "thinking",
}
IMAGE_MARK = b'"image_url"'
# A search unit is a query with up to so many documents; a longer document counts for each so many tokens.
DOCUMENTS_PER_UNIT = 100
TOKENS_PER_DOCUMENT = 500

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Cohere(Dialect):
    request_headers = (b"x-client-name",)
    is_translatable = True

    def render_error(self, error: GatewayError, request_id: str) -> bytes:
        """`{id, message}`, and our details."""
        return _encode({"id": request_id, "message": error.message, "code": error.code, **error.details})

    def render_error_event(self, error: GatewayError, request_id: str) -> bytes:
        delta = {"finish_reason": "ERROR", "error": error.message}
        return _event({"id": request_id, "type": "message-end", "delta": delta})

    def render_models(self, aliases: Iterable[Alias], parameters: Mapping[str, str]) -> bytes:
        models = [{"name": alias.name, "endpoints": ["chat", "embed", "rerank"]} for alias in aliases]
        return _encode(models[0] if "model" in parameters else {"models": models})


# Chat


class _ChatHead(msgspec.Struct):
    model: str
    stream: bool | None = None
    max_tokens: int | None = None


_decode_chat_head = HeadReader(_ChatHead).read


class CohereChat(Cohere):
    name = "cohere.chat"
    operation = "chat"
    capability = "chat"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_chat_head(body)
        if head.max_tokens is not None and head.max_tokens < 1:
            raise InvalidRequest("the output cap must be at least 1", param="max_tokens")
        images = plain(body).count(IMAGE_MARK)
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            is_stream=bool(head.stream),
            output_tokens_max=head.max_tokens,
            input_tokens_max=len(body) + TEMPLATE_TOKENS + images * MEDIA_TOKENS_MAX,
            has_images=images > 0,
        )

    def read_prompt(self, call: Call) -> Prompt:
        fields = Fields(_decode(call.body))
        fields.any("model")
        fields.any("stream")
        lost: list[str] = []
        prompt = Prompt(
            messages=_read_messages(fields, lost),
            tools=_read_tools(fields, lost),
            tool_choice=_read_tool_choice(fields),
            max_output_tokens=fields.integer("max_tokens"),
            temperature=fields.number("temperature"),
            top_p=fields.number("p"),
            top_k=fields.integer("k"),
            frequency_penalty=fields.number("frequency_penalty"),
            presence_penalty=fields.number("presence_penalty"),
            seed=fields.integer("seed"),
            stop=tuple(_texts(fields, "stop_sequences")),
            logprobs=fields.flag("logprobs"),
            output_format=_read_format(fields, lost),
            reasoning=_read_thinking(fields, lost),
            names=NAMES,
            lost=lost,
        )
        _read_documents(fields, prompt, lost)
        # The mode that holds where nobody says so, and the one that asks for nothing.
        if fields.text("safety_mode") == "STRICT":
            lost.append("safety_mode")
        if fields.integer("priority"):
            lost.append("priority")
        fields.rest(lost)
        return prompt

    def write_answer(self, answer: Answer, call: Call) -> bytes:
        choice = answer.choices[0] if answer.choices else Choice(parts=[])
        written: dict[str, Any] = {
            "id": answer.answer_id,
            "message": _write_message(choice.parts, _document_ids(call)),
            "finish_reason": FINISHES.get(choice.finish, "COMPLETE"),
        }
        if answer.usage is not None:
            written["usage"] = _write_usage(answer.usage)
        if choice.logprobs is not None:
            written["logprobs"] = [_write_logprob(token) for token in choice.logprobs]
        return _encode(written)

    def stream_writer(self, call: Call) -> StreamWriter:
        return CohereChatWriter(_document_ids(call))


def _read_messages(fields: Fields, lost: list[str]) -> list[Message]:
    messages: list[Message] = []
    is_tool_turn = False
    for message in fields.objects("messages"):
        role = message.required_text("role")
        if role == "tool":
            result = _read_tool_result(message, lost)
            if is_tool_turn:
                messages[-1].parts.append(result)
            else:
                messages.append(Message(role="user", parts=[result]))
        elif role == "assistant":
            messages.append(Message(role="assistant", parts=_read_assistant(message, lost)))
        elif role in {"system", "user"}:
            parts = list(_read_content(message, lost))
            messages.append(Message(role="system" if role == "system" else "user", parts=parts))
        else:
            raise wrong(message.path("role"), '"system", "user", "assistant" or "tool"')
        is_tool_turn = role == "tool"
        message.rest(lost)
    if not messages:
        raise wrong("messages", "a list of messages")
    return messages


def _read_content(message: Fields, lost: list[str]) -> Iterator[Part]:
    """A text, or blocks of text, thinking, images and documents."""
    content = message.any("content")
    if content is None:
        return
    if type(content) is str:
        yield Text(text=content)
        return
    if type(content) is not list:
        raise wrong(message.path("content"), "a text or a list of blocks")
    for index, value in enumerate(content):
        block = Fields(value, f"{message.path('content')}.{index}.")
        kind = block.required_text("type")
        if kind == "text":
            yield Text(text=block.required_text("text"), signature=block.text("signature") or "")
        elif kind == "thinking":
            yield _read_thought(block)
        elif kind == "image_url":
            yield _read_image(block, lost)
        elif kind == "document":
            yield Text(text=_document_text(block.any("document"), block.path("document")))
        else:
            lost.append(block.path("type"))
            continue
        block.rest(lost)


def _read_thought(block: Fields) -> Thinking:
    wrapped, data = block.text("signature") or "", block.text("data") or ""
    origin, own = unwrap_signature(wrapped or data) or ("", "")
    return Thinking(
        text=block.text("thinking") or "",
        signature=own if wrapped else "",
        redacted=own if data and not wrapped else "",
        origin=origin,
        path=block.path("thinking"),
    )


def _read_image(block: Fields, lost: list[str]) -> Media:
    image = block.object("image_url")
    if image is None:
        raise wrong(block.path("image_url"), "an object")
    media = _image(image.required_text("url"), image.path("url"))
    media.detail = image.text("detail") or ""
    image.rest(lost)
    return media


def _image(url: str, path: str) -> Media:
    if not url.startswith("data:"):
        return Media(kind="image", url=url, path=path)
    head, found, data = url[len("data:") :].partition(",")
    if not found or not head.endswith(";base64"):
        raise wrong(path, "a URL, or a data URL in base64")
    return Media(kind="image", media_type=head.removesuffix(";base64"), data=data, path=path)


def _read_assistant(message: Fields, lost: list[str]) -> list[Part]:
    plan = message.text("tool_plan")
    parts: list[Part] = [Thinking(text=plan, path=message.path("tool_plan"))] if plan else []
    parts += _read_content(message, lost)
    for part in parts:
        if isinstance(part, Text) and part.signature:
            part.signature = (unwrap_signature(part.signature) or ("", ""))[1]
    for tool_call in message.objects("tool_calls"):
        tool_call.any("type")
        function = tool_call.object("function")
        if function is None:
            raise wrong(tool_call.path("function"), "an object")
        signature = unwrap_signature(tool_call.text("signature") or "") or ("", "")
        parts.append(
            ToolCall(
                call_id=tool_call.required_text("id"),
                name=function.required_text("name"),
                arguments=function.text("arguments") or "{}",
                signature=signature[1],
                path=tool_call.path("function"),
            )
        )
        function.rest(lost)
        tool_call.rest(lost)
    message.any("citations")  # Where earlier answers came from: for readers, not for the model.
    return parts


def _read_tool_result(message: Fields, lost: list[str]) -> ToolResult:
    return ToolResult(
        call_id=message.required_text("tool_call_id"),
        content=tuple(_read_content(message, lost)),
        path=message.path("content"),
    )


def _read_documents(fields: Fields, prompt: Prompt, lost: list[str]) -> None:
    """They belong to the whole request; elsewhere they stand in front of the last question."""
    options = fields.object("citation_options")
    mode = (options.text("mode") if options is not None else None) or "ENABLED"
    if options is not None:
        options.rest(lost)
    documents: list[Part] = []
    for index, value in enumerate(fields.items("documents")):
        path = f"documents.{index}"
        text, name, rest = _document(value, path)
        is_cited = mode not in {"OFF", "DISABLED"}
        documents.append(Media(kind="document", text=text, name=name, context=rest, is_cited=is_cited, path=path))
    if not documents:
        return
    asked = next((message for message in reversed(prompt.messages) if message.role == "user"), None)
    if asked is None:
        prompt.messages.append(Message(role="user", parts=documents))
    else:
        asked.parts[:0] = documents


def _document(value: Any, path: str) -> tuple[str, str, str]:
    """(text, title, whatever else it says) of a text, or of `{id, data}` whose data is a text or an object."""
    if type(value) is str:
        return value, "", ""
    if type(value) is not dict:
        raise wrong(path, "a text or an object")
    name, data = str(value.get("id") or ""), value.get("data")
    if type(data) is str:
        return data, name, ""
    if type(data) is not dict:
        raise wrong(f"{path}.data", "a text or an object")
    rest = dict(data)
    title = rest.pop("title", None)
    text = next((rest.pop(key) for key in ("text", "snippet") if type(rest.get(key)) is str), None)
    if text is None:
        return _encode(data).decode(), name, ""
    return text, title if type(title) is str else name, _encode(rest).decode() if rest else ""


def _document_text(value: Any, path: str) -> str:
    """Of a tool's document, all that it says."""
    data = value.get("data") if type(value) is dict else value
    if type(data) is str:
        return data
    if type(data) is not dict:
        raise wrong(path, "a text or an object")
    return _encode(data).decode()


def _document_ids(call: Call) -> list[str]:
    """The client's own names of its documents, which citations speak of."""
    if "documents" not in call.fields:
        return []
    values = _decode(call.fields["documents"]) or []
    given = [value.get("id") if type(value) is dict else None for value in values]
    return [str(name) if name else f"doc:{index}" for index, name in enumerate(given)]


def _read_tools(fields: Fields, lost: list[str]) -> list[Tool]:
    is_strict = fields.flag("strict_tools")
    tools: list[Tool] = []
    for tool in fields.objects("tools"):
        tool.any("type")
        function = tool.object("function")
        if function is None:
            raise wrong(tool.path("function"), "an object")
        tools.append(
            Tool(
                name=function.required_text("name"),
                description=function.text("description") or "",
                parameters=function.any("parameters"),
                is_strict=is_strict,
                path=tool.path("function"),
            )
        )
        function.rest(lost)
        tool.rest(lost)
    return tools


def _read_tool_choice(fields: Fields) -> ToolChoice | None:
    choice = fields.text("tool_choice")
    match choice.upper() if choice is not None else None:
        case None:
            return None
        case "REQUIRED":
            return ToolChoice(mode="required")
        case "NONE":
            return ToolChoice(mode="none")
        case _:
            raise wrong("tool_choice", '"REQUIRED" or "NONE"')


def _read_format(fields: Fields, lost: list[str]) -> OutputFormat | None:
    """The schema is `json_schema`, and was `schema`."""
    given = fields.object("response_format")
    if given is None or given.text("type") in {"text", None}:
        return None
    older = given.any("schema")
    output_format = OutputFormat(schema=given.any("json_schema") or older)
    given.rest(lost)
    return output_format


def _read_thinking(fields: Fields, lost: list[str]) -> Reasoning | None:
    given = fields.object("thinking")
    if given is None:
        return None
    is_on = given.text("type") != "disabled"
    reasoning = Reasoning(is_on=is_on, budget_tokens=given.integer("token_budget") if is_on else None)
    given.rest(lost)
    return reasoning


def _texts(fields: Fields, name: str) -> list[str]:
    values = fields.items(name)
    for index, value in enumerate(values):
        if type(value) is not str:
            raise wrong(f"{fields.path(name)}.{index}", "a text")
    return values


def _write_message(parts: list[Part], document_ids: list[str]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    tool_calls: list[dict[str, Any]] = []
    citations: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text):
            for citation in part.citations:
                citations.append(_write_citation(citation, part.text, len(content), document_ids))
            content.append(_signed({"type": "text", "text": part.text}, "gemini", part.signature))
        elif isinstance(part, Refusal):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Thinking):
            content.append(_write_thought(part.text, part))
        elif isinstance(part, ToolCall):
            function = {"name": part.name, "arguments": part.arguments}
            tool_call = {"id": part.call_id, "type": "function", "function": function}
            tool_calls.append(_signed(tool_call, "gemini", part.signature))
    message: dict[str, Any] = {"role": "assistant"}
    if content:
        message["content"] = content
    if tool_calls:
        message["tool_calls"] = tool_calls
    if citations:
        message["citations"] = citations
    return message


def _signed(block: dict[str, Any], origin: str, signature: str) -> dict[str, Any]:
    if signature:
        block["signature"] = wrap_signature(origin, signature)
    return block


def _write_thought(text: str, thinking: Thinking | ThinkingDelta) -> dict[str, Any]:
    block = _signed({"type": "thinking", "thinking": text}, thinking.origin, thinking.signature)
    if thinking.redacted:
        block["data"] = wrap_signature(thinking.origin, thinking.redacted)
    return block


def _write_citation(citation: Citation, text: str, index: int, document_ids: list[str]) -> dict[str, Any]:
    document = {"title": citation.title, "url": citation.url, "text": citation.cited_text}
    if 0 <= citation.document < len(document_ids):
        source_id = document_ids[citation.document]
    else:
        source_id = citation.url or citation.file_id or citation.title
    source = {
        "type": "document",
        "id": source_id,
        "document": {"id": source_id, **{name: value for name, value in document.items() if value}},
    }
    written: dict[str, Any] = {"sources": [source], "content_index": index, "type": "TEXT_CONTENT"}
    if 0 <= citation.start <= citation.end:
        written |= {"start": citation.start, "end": citation.end, "text": text[citation.start : citation.end]}
    return written


def _write_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"text": token.token, "token_ids": [], "logprobs": [token.logprob]}


def _write_usage(usage: Usage) -> dict[str, Any]:
    counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    tokens = {**counts, "reasoning_tokens": usage.reasoning_tokens, "image_tokens": usage.input_image_tokens}
    return {"billed_units": counts, "tokens": tokens, "cached_tokens": usage.cache_read_input_tokens}


def _event(value: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (str(value["type"]).encode(), _encode(value))


class CohereChatWriter(StreamWriter):
    """Content blocks and tool calls each begin and end; a block is open until something else comes."""

    def __init__(self, document_ids: list[str]) -> None:
        self._document_ids = document_ids
        self._index = -1
        self._open = ""
        self._tool_call = -1
        self._citation = -1
        self._finish = Finished(finish=STOP)
        self._usage: Usage | None = None

    def write(self, events: Iterable[Event]) -> bytes:
        return b"".join([piece for event in events for piece in self._pieces(event)])

    def finish(self) -> bytes:
        delta: dict[str, Any] = {"finish_reason": FINISHES.get(self._finish.finish, "COMPLETE")}
        if self._usage is not None:
            delta["usage"] = _write_usage(self._usage)
        end = _event({"type": "message-end", "delta": delta})
        return b"".join([*self._close(), end, b"data: [DONE]\n\n"])

    def _pieces(self, event: Event) -> Iterator[bytes]:
        if getattr(event, "choice", 0):
            return  # Cohere knows one answer.
        match event:
            case TextDelta():
                yield from self._text(event)
            case RefusalDelta(text=text):
                yield from self._text(TextDelta(text=text))
            case ThinkingDelta():
                yield from self._thinking(event)
            case ToolCallDelta(index=index, arguments=arguments):
                function = {"function": {"arguments": arguments}}
                yield _event(
                    {"type": "tool-call-delta", "index": index, "delta": {"message": {"tool_calls": function}}}
                )
            case ToolCallBegan():
                yield from self._begin_tool_call(event)
            case Cited(citation=citation):
                yield from self._cite(citation)
            case Began(answer_id=answer_id):
                message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
                yield _event({"id": answer_id, "type": "message-start", "delta": {"message": message}})
            case Finished():
                self._finish = event
            case UsageSeen(usage=usage):
                self._usage = usage
            case _:
                pass

    def _text(self, event: TextDelta) -> Iterator[bytes]:
        if self._open != "text" or event.begins_part:
            yield from self._begin({"type": "text", "text": ""})
        delta: dict[str, Any] = {
            "message": {"content": _signed({"text": event.text}, "gemini", event.signature)},
        }
        if event.logprobs:
            delta["logprobs"] = _write_logprob(event.logprobs[0])
            delta["logprobs"]["logprobs"] = [token.logprob for token in event.logprobs]
            delta["logprobs"]["text"] = "".join(token.token for token in event.logprobs)
        yield _event({"type": "content-delta", "index": self._index, "delta": delta})

    def _thinking(self, event: ThinkingDelta) -> Iterator[bytes]:
        if self._open != "thinking":
            yield from self._begin({"type": "thinking", "thinking": ""})
        block = _write_thought(event.text, event)
        del block["type"]
        yield _event({"type": "content-delta", "index": self._index, "delta": {"message": {"content": block}}})
        if event.signature or event.redacted:
            yield from self._close()

    def _begin_tool_call(self, event: ToolCallBegan) -> Iterator[bytes]:
        yield from self._close()
        self._open, self._tool_call = "tool-call", event.index
        tool_call = {"id": event.call_id, "type": "function", "function": {"name": event.name, "arguments": ""}}
        delta = {"message": {"tool_calls": _signed(tool_call, "gemini", event.signature)}}
        yield _event({"type": "tool-call-start", "index": event.index, "delta": delta})

    def _cite(self, citation: Citation) -> Iterator[bytes]:
        self._citation += 1
        delta = {"message": {"citations": _write_citation(citation, "", max(self._index, 0), self._document_ids)}}
        yield _event({"type": "citation-start", "index": self._citation, "delta": delta})
        yield _event({"type": "citation-end", "index": self._citation})

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._open = block["type"]
        self._index += 1
        yield _event({"type": "content-start", "index": self._index, "delta": {"message": {"content": block}}})

    def _close(self) -> Iterator[bytes]:
        if self._open == "tool-call":
            yield _event({"type": "tool-call-end", "index": self._tool_call})
        elif self._open:
            yield _event({"type": "content-end", "index": self._index})
        self._open = ""


# Embeddings


class _EmbedHead(msgspec.Struct):
    model: str
    images: list[msgspec.Raw] | None = None


_decode_embed_head = HeadReader(_EmbedHead).read


class CohereEmbed(Cohere):
    name = "cohere.embed"
    operation = "embeddings"
    capability = "embeddings"
    version = "2"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_embed_head(body)
        images = plain(body).count(IMAGE_MARK) + len(head.images or ())
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            input_tokens_max=len(body) + TEMPLATE_TOKENS + images * MEDIA_TOKENS_MAX,
            output_tokens_max=0,
            units_max=images,
            has_images=images > 0,
        )

    def read_prompt(self, call: Call) -> Embedding:
        """`encoding` is what of `embedding_types` can be made of floats, separated by blanks."""
        fields = Fields(_decode(call.body))
        fields.any("model")
        lost: list[str] = []
        task = fields.text("input_type") or ""
        encodings: list[str] = []
        for index, kind in enumerate(_texts(fields, "embedding_types")):
            if kind in {"float", "base64"}:
                encodings.append(kind)
            else:
                lost.append(f"embedding_types.{index}")
        # What is too long is an error with others, and so it is with "NONE".
        if (fields.text("truncate") or "NONE").upper() != "NONE":
            lost.append("truncate")
        embedding = Embedding(
            inputs=_read_embed_inputs(fields, lost),
            dimensions=fields.integer("output_dimension"),
            task=TASKS.get(task, ""),
            encoding=" ".join(encodings),
            names={"task": "input_type", "dimensions": "output_dimension", "inputs": "texts"},
            lost=lost,
        )
        if task not in TASKS and task not in {"", "image"}:
            lost.append("input_type")
        fields.rest(lost)
        return embedding

    def write_answer(self, answer: Embedded, call: Call) -> bytes:
        assert isinstance(call.prompt, Embedding), "an answer comes after its request"
        encodings = call.prompt.encoding.split()
        written: dict[str, Any] = {"id": "", "texts": [text for text in call.prompt.inputs if isinstance(text, str)]}
        if not encodings and self.version == "1":
            written["embeddings"] = answer.vectors
            written["response_type"] = "embeddings_floats"
        else:
            by_type: dict[str, Any] = {}
            if "float" in encodings or not encodings:
                by_type["float"] = answer.vectors
            if "base64" in encodings:
                by_type["base64"] = [packed_base64(vector) for vector in answer.vectors]
            written["embeddings"] = by_type
            written["response_type"] = "embeddings_by_type"
        written["meta"] = _meta(self.version, answer.usage)
        return _encode(written)


class CohereEmbedV1(CohereEmbed):
    """Where no type is asked for, the vectors stand there as they are."""

    name = "cohere.embed.v1"
    version = "1"


def _read_embed_inputs(fields: Fields, lost: list[str]) -> list[str | list[int] | Media]:
    inputs: list[str | list[int] | Media] = [*_texts(fields, "texts")]
    inputs += [_image(url, f"images.{index}") for index, url in enumerate(_texts(fields, "images"))]
    for item in fields.objects("inputs"):
        parts = list(_read_content(item, lost))
        if len(parts) == 1 and isinstance(parts[0], Text):
            inputs.append(parts[0].text)
        elif len(parts) == 1 and isinstance(parts[0], Media):
            inputs.append(parts[0])
        else:
            lost.append(item.path("content"))  # Texts and images as one.
        item.rest(lost)
    if not inputs and not lost:
        raise wrong("texts", "a list of texts")
    return inputs


def _meta(version: str, usage: Usage | None) -> dict[str, Any]:
    used = usage or Usage()
    billed: dict[str, int] = {"search_units": used.units} if used.units else {"input_tokens": used.input_tokens}
    return {"api_version": {"version": version}, "billed_units": billed}


# Reranking


class _RerankHead(msgspec.Struct):
    model: str
    query: str
    documents: list[msgspec.Raw]


_decode_rerank_head = HeadReader(_RerankHead).read


class CohereRerank(Cohere):
    name = "cohere.rerank"
    operation = "rerank"
    capability = "rerank"
    version = "2"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        """Bounds for providers that bill search units and for those that bill tokens, who count the query with each document."""
        fields = json_fields(body)
        head = _decode_rerank_head(body)
        documents = len(head.documents)
        pieces = documents + len(body) // TOKENS_PER_DOCUMENT
        return Call(
            dialect=self,
            operation=self.operation,
            capability=self.capability,
            alias=head.model,
            body=body,
            fields=fields,
            input_tokens_max=len(body) + documents * (len(head.query.encode()) + TEMPLATE_TOKENS),
            output_tokens_max=0,
            units_max=-(-pieces // DOCUMENTS_PER_UNIT),
        )

    def read_prompt(self, call: Call) -> Reranking:
        fields = Fields(_decode(call.body))
        fields.any("model")
        lost: list[str] = []
        reranking = Reranking(
            query=fields.required_text("query"),
            documents=[_read_document(value, index, lost) for index, value in enumerate(fields.items("documents"))],
            top_n=fields.integer("top_n"),
            returns_documents=bool(fields.flag("return_documents")),
            lost=lost,
        )
        fields.rest(lost)
        return reranking

    def write_answer(self, answer: Ranked, call: Call) -> bytes:
        assert isinstance(call.prompt, Reranking), "an answer comes after its request"
        documents = call.prompt.documents
        results: list[dict[str, Any]] = []
        for index, score in answer.results:
            result: dict[str, Any] = {"index": index, "relevance_score": score}
            if call.prompt.returns_documents and 0 <= index < len(documents):
                result["document"] = {"text": documents[index]}
            results.append(result)
        return _encode({"id": answer.answer_id, "results": results, "meta": _meta(self.version, answer.usage)})


class CohereRerankV1(CohereRerank):
    """Documents may be objects with a `text`. Jina, vLLM and llama.cpp took this form over."""

    name = "cohere.rerank.v1"
    version = "1"


def _read_document(value: Any, index: int, lost: list[str]) -> str:
    if type(value) is str:
        return value
    document = Fields(value, f"documents.{index}.")
    text = document.required_text("text")
    document.rest(lost)
    return text


CHAT = CohereChat()
EMBED = CohereEmbed()
EMBED_V1 = CohereEmbedV1()
RERANK = CohereRerank()
RERANK_V1 = CohereRerankV1()
