"""Cohere's chat. Pure; no I/O. Prompts are cached without being told."""

from typing import Any

import msgspec

from proxy.dialects.dialect import Call
from proxy.neutral import (
    EFFORT_BUDGETS,
    OPTIONAL_PARAMETERS,
    Answer,
    Media,
    Message,
    Part,
    Prompt,
    ProviderError,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    lose_all_but,
)
from proxy.providers.cohere_chat_answers import CohereChatReader, measure, read_answer
from proxy.providers.cohere_errors import read_error
from proxy.providers.provider import Api, Measured, Outgoing, StreamReader, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object

# `cache` asks for what is done anyway, and so does the key that sends like prompts to the same cache.
_CARRIED = frozenset(OPTIONAL_PARAMETERS) - {
    "parallel_tool_calls", "min_p", "repetition_penalty", "choices", "top_logprobs", "logit_bias", "verbosity", "user",
    "service_tier", "metadata", "store", "modalities",
}  # fmt: skip
_TOP_P_MAX = 0.99

_encode = msgspec.json.Encoder().encode


class CohereChat(Api):
    name = "cohere.chat"
    capability = "chat"
    target = b"/v2/chat"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = renamed(call, deployment)
        if call.output_tokens_max is None:
            fields["max_tokens"] = msgspec.Raw(b"%d" % deployment.max_output_tokens)
        return Outgoing(self.target, dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        return measure(body)

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
        return read_answer(body)

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
    if (image := write_image(media)) is not None:
        content.append(image)
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


def write_image(media: Media) -> dict[str, Any] | None:
    """None for what is no image, and for one that is kept elsewhere."""
    if media.kind != "image" or not (media.data or media.url):
        return None
    image = {"url": media.url or f"data:{media.media_type};base64,{media.data}"}
    if media.detail:
        image["detail"] = media.detail
    return {"type": "image_url", "image_url": image}


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


def _path_of(part: Part) -> str:
    """Where the client wrote it, or what it is."""
    return getattr(part, "path", "") or type(part).__name__.lower()


CHAT = CohereChat()
