"""Cohere's chat, as clients speak it: answers and streams. Pure; no I/O."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.cohere import server_sent
from proxy.dialects.dialect import Call, StreamWriter
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
    Event,
    Finished,
    Part,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    UsageSeen,
    wrap_signature,
)

FINISHES = {
    STOP: "COMPLETE",
    STOP_SEQUENCE: "STOP_SEQUENCE",
    LENGTH: "MAX_TOKENS",
    TOOL_CALLS: "TOOL_CALL",
    CONTENT_FILTER: "ERROR_TOXIC",
    REFUSAL: "COMPLETE",
    PAUSE: "COMPLETE",
}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def write_answer(answer: Answer, call: Call) -> bytes:
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


def _document_ids(call: Call) -> list[str]:
    """The client's own names of its documents, which citations speak of."""
    if "documents" not in call.fields:
        return []
    values = _decode(call.fields["documents"]) or []
    given = [value.get("id") if type(value) is dict else None for value in values]
    return [str(name) if name else f"doc:{index}" for index, name in enumerate(given)]


# Streams


class CohereChatWriter(StreamWriter):
    """Content blocks and tool calls each begin and end; a block is open until something else comes."""

    def __init__(self, call: Call) -> None:
        self._document_ids = _document_ids(call)
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
        end = server_sent({"type": "message-end", "delta": delta})
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
                yield server_sent(
                    {"type": "tool-call-delta", "index": index, "delta": {"message": {"tool_calls": function}}}
                )
            case ToolCallBegan():
                yield from self._begin_tool_call(event)
            case Cited(citation=citation):
                yield from self._cite(citation)
            case Began(answer_id=answer_id):
                message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
                yield server_sent({"id": answer_id, "type": "message-start", "delta": {"message": message}})
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
        yield server_sent({"type": "content-delta", "index": self._index, "delta": delta})

    def _thinking(self, event: ThinkingDelta) -> Iterator[bytes]:
        if self._open != "thinking":
            yield from self._begin({"type": "thinking", "thinking": ""})
        block = _write_thought(event.text, event)
        del block["type"]
        yield server_sent({"type": "content-delta", "index": self._index, "delta": {"message": {"content": block}}})
        if event.signature or event.redacted:
            yield from self._close()

    def _begin_tool_call(self, event: ToolCallBegan) -> Iterator[bytes]:
        yield from self._close()
        self._open, self._tool_call = "tool-call", event.index
        tool_call = {"id": event.call_id, "type": "function", "function": {"name": event.name, "arguments": ""}}
        delta = {"message": {"tool_calls": _signed(tool_call, "gemini", event.signature)}}
        yield server_sent({"type": "tool-call-start", "index": event.index, "delta": delta})

    def _cite(self, citation: Citation) -> Iterator[bytes]:
        self._citation += 1
        delta = {"message": {"citations": _write_citation(citation, "", max(self._index, 0), self._document_ids)}}
        yield server_sent({"type": "citation-start", "index": self._citation, "delta": delta})
        yield server_sent({"type": "citation-end", "index": self._citation})

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._open = block["type"]
        self._index += 1
        yield server_sent({"type": "content-start", "index": self._index, "delta": {"message": {"content": block}}})

    def _close(self) -> Iterator[bytes]:
        if self._open == "tool-call":
            yield server_sent({"type": "tool-call-end", "index": self._tool_call})
        elif self._open:
            yield server_sent({"type": "content-end", "index": self._index})
        self._open = ""
