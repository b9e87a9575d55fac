"""Cohere's chat, as clients speak it. Pure; no I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.dialects.cohere import IMAGE_MARK, Cohere, read_content, texts
from proxy.dialects.cohere_chat_answers import CohereChatWriter, write_answer
from proxy.dialects.dialect import (
    MEDIA_TOKENS_MAX,
    TEMPLATE_TOKENS,
    Call,
    HeadReader,
    StreamWriter,
    beside_text,
    json_fields,
)
from proxy.errors import InvalidRequest
from proxy.fields import Fields, wrong
from proxy.neutral import (
    Answer,
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

NAMES = {
    "max_output_tokens": "max_tokens",
    "top_p": "p",
    "top_k": "k",
    "stop": "stop_sequences",
    "output_format": "response_format",
    "reasoning": "thinking",
}

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class _Head(msgspec.Struct):
    model: str
    stream: bool | None = None
    max_tokens: int | None = None


_decode_head = HeadReader(_Head).read


class CohereChat(Cohere):
    name = "cohere.chat"
    operation = "chat"
    capability = "chat"

    def describe(self, body: bytes, content_type: bytes, parameters: Mapping[str, str]) -> Call:
        fields = json_fields(body)
        head = _decode_head(body)
        if head.max_tokens is not None and head.max_tokens < 1:
            raise InvalidRequest("the output cap must be at least 1", param="max_tokens")
        images = beside_text(body, fields, "messages").count(IMAGE_MARK)
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
            stop=tuple(texts(fields, "stop_sequences")),
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
        return write_answer(answer, call)

    def stream_writer(self, call: Call) -> StreamWriter:
        return CohereChatWriter(call)


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
            parts = list(read_content(message, lost))
            messages.append(Message(role="system" if role == "system" else "user", parts=parts))
        else:
            raise wrong(message.path("role"), '"system", "user", "assistant" or "tool"')
        is_tool_turn = role == "tool"
        message.rest(lost)
    if not messages:
        raise wrong("messages", "a list of messages")
    return messages


def _read_assistant(message: Fields, lost: list[str]) -> list[Part]:
    plan = message.text("tool_plan")
    parts: list[Part] = [Thinking(text=plan, path=message.path("tool_plan"))] if plan else []
    parts += read_content(message, lost)
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
        content=tuple(read_content(message, lost)),
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


CHAT = CohereChat()
