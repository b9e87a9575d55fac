"""What clients of the Gemini API are answered, whole and in streams. Pure; no I/O."""

import base64
from collections.abc import Iterable
from typing import Any

import msgspec

from audit.records import Usage
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
    Citation,
    Cited,
    Event,
    Finished,
    Media,
    MediaDone,
    Part,
    Prompt,
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
from proxy.wire.json_shape import Shape

ORIGIN = "gemini"
FINISHES = {
    STOP: "STOP",
    STOP_SEQUENCE: "STOP",
    LENGTH: "MAX_TOKENS",
    TOOL_CALLS: "STOP",
    CONTENT_FILTER: "SAFETY",
    REFUSAL: "SAFETY",
    PAUSE: "OTHER",
}

_encode = msgspec.json.Encoder().encode
_objects = Shape(dict[str, msgspec.Raw])


def write_answer(answer: Answer, call: Call) -> bytes:
    shows_thoughts = _shows_thoughts(call)
    candidates = []
    for index, choice in enumerate(answer.choices):
        parts, is_whole = _write_parts(choice.parts, shows_thoughts)
        finish = _finish(choice.finish, is_whole)
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "finishReason": finish}
        if choice.finish_detail and finish not in ("STOP", "MAX_TOKENS"):
            candidate["finishMessage"] = choice.finish_detail
        candidate["index"] = index
        cited = [(part.text, part.citations) for part in choice.parts if isinstance(part, Text)]
        _add_grounding(candidate, cited)
        if choice.logprobs:
            candidate["logprobsResult"] = _write_logprobs(choice.logprobs)
        candidates.append(candidate)
    body: dict[str, Any] = {"candidates": candidates}
    if answer.usage is not None:
        body["usageMetadata"] = _write_usage(answer.usage, answer.service_tier)
    body["modelVersion"] = call.alias
    body["responseId"] = answer.answer_id
    return _encode(body)


def _seal(part: Thinking | ThinkingDelta) -> str:
    """A thinking's signature, as clients of Gemini may see it; "" where it has none."""
    if part.origin == ORIGIN:
        return part.signature
    if not (part.signature or part.redacted or part.thinking_id):
        return ""
    label = f"{part.origin}:{'redacted' if part.redacted else 'signed'}:{part.thinking_id}"
    return base64.b64encode(wrap_signature(label, part.redacted or part.signature).encode()).decode()


def _shows_thoughts(call: Call) -> bool:
    """Clients put the texts of all parts together unless they asked for thoughts; signatures have to come along all the same."""
    reasoning = call.prompt.reasoning if isinstance(call.prompt, Prompt) else None
    return reasoning is not None and reasoning.summary not in ("", "omitted")


def _write_parts(parts: Iterable[Part], shows_thoughts: bool) -> tuple[list[dict[str, Any]], bool]:
    """(parts, whether all of them could be written): not a call whose arguments are no JSON object."""
    written: list[dict[str, Any]] = []
    is_whole = True
    for part in parts:
        match part:
            case Text(text=text, signature=signature):
                written.append(_signed({"text": text}, signature))
            case ToolCall(call_id=call_id, name=name, arguments=arguments, signature=signature):
                call = _function_call(call_id, name, arguments)
                if call is None:
                    is_whole = False
                else:
                    written.append(_signed({"functionCall": call}, signature))
            case Thinking(text=text):
                seal = _seal(part)
                if shows_thoughts or seal:
                    written.append(_signed({"text": text, "thought": True}, seal))
            case Refusal(text=text):
                written.append({"text": text})
            case Media():
                written.append(_write_media(part))
            case _:
                pass  # What another provider ran has no place here.
    return written, is_whole


def _signed(part: dict[str, Any], signature: str) -> dict[str, Any]:
    if signature:
        part["thoughtSignature"] = signature
    return part


def _function_call(call_id: str, name: str, arguments: str) -> dict[str, Any] | None:
    raw = arguments.encode("utf-8", "surrogatepass") if arguments.strip() else b"{}"
    if _objects.find(raw) is None:
        return None
    if b"\n" in raw or b"\r" in raw:
        raw = msgspec.json.format(raw, indent=-1)  # A line of an event stream holds no other.
    return {"id": call_id, "name": name, "args": msgspec.Raw(raw)}


def _write_media(part: Media) -> dict[str, Any]:
    if part.url:
        return {"fileData": {"mimeType": part.media_type, "fileUri": part.url}}
    return {"inlineData": {"mimeType": part.media_type, "data": part.data}}


def _finish(finish: str, is_whole: bool) -> str:
    return FINISHES[finish] if is_whole or finish == LENGTH else "MALFORMED_FUNCTION_CALL"


def _write_usage(usage: Usage, service_tier: str) -> dict[str, Any]:
    """Thoughts stand beside the candidates' tokens."""
    body: dict[str, Any] = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens,
    }
    if usage.cache_read_input_tokens:
        body["cachedContentTokenCount"] = usage.cache_read_input_tokens
    if usage.reasoning_tokens:
        body["thoughtsTokenCount"] = usage.reasoning_tokens
    body["promptTokensDetails"] = _details(usage.input_tokens, usage.input_audio_tokens, usage.input_image_tokens)
    if usage.output_audio_tokens or usage.output_image_tokens:
        body["candidatesTokensDetails"] = _details(
            body["candidatesTokenCount"], usage.output_audio_tokens, usage.output_image_tokens
        )
    if service_tier:
        body["serviceTier"] = service_tier
    return body


def _details(tokens: int, audio: int, image: int) -> list[dict[str, Any]]:
    counts = (("TEXT", tokens - audio - image), ("AUDIO", audio), ("IMAGE", image))
    return [{"modality": modality, "tokenCount": count} for modality, count in counts if count > 0]


def _write_logprobs(logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    chosen, top = [], []
    for token in logprobs:
        chosen.append({"token": token.token, "logProbability": token.logprob})
        top.append({"candidates": [{"token": other.token, "logProbability": other.logprob} for other in token.top]})
    result: dict[str, Any] = {"chosenCandidates": chosen}
    if any(entry["candidates"] for entry in top):
        result["topCandidates"] = top
    return result


def _add_grounding(candidate: dict[str, Any], texts: Iterable[tuple[str, Iterable[Citation]]]) -> None:
    """Sources, and the segments that rest on them; offsets are bytes. A citation without offsets is of its whole text."""
    chunks: dict[tuple[str, str, str], int] = {}
    supports: list[dict[str, Any]] = []
    before = ""
    said = "".join([text for text, _ in texts])
    for text, citations in texts:
        for citation in citations:
            source = (citation.url, citation.title, "" if citation.url else citation.cited_text)
            index = chunks.setdefault(source, len(chunks))
            start, end = citation.start, citation.end
            if not 0 <= start <= end <= len(said):
                start, end = len(before), len(before) + len(text)
            segment: dict[str, Any] = {
                "startIndex": len(said[:start].encode()),
                "endIndex": len(said[:end].encode()),
                "text": said[start:end],
            }
            supports.append({"segment": segment, "groundingChunkIndices": [index]})
        before += text
    if supports:
        candidate["groundingMetadata"] = {
            "groundingChunks": [_grounding_chunk(*source) for source in chunks],
            "groundingSupports": supports,
        }


def _grounding_chunk(url: str, title: str, cited_text: str) -> dict[str, Any]:
    if url:
        return {"web": {"uri": url, "title": title}}
    return {"retrievedContext": {"title": title, "text": cited_text}}


# Streams


class _Open:
    """What a stream has said of one choice. A call is kept until it is whole: Gemini's have their arguments as an object."""

    def __init__(self) -> None:
        self.texts: list[tuple[list[str], list[Citation]]] = [([], [])]
        self.calls: dict[int, tuple[ToolCallBegan, list[str]]] = {}
        self.is_whole = True
        self.finished: Finished | None = None

    def note(self, event: Event) -> None:
        match event:
            case TextDelta(text=text, begins_part=begins_part):
                if begins_part:
                    self.texts.append(([], []))
                self.texts[-1][0].append(text)
            case Cited(citation=citation):
                self.texts[-1][1].append(citation)
            case ToolCallBegan(index=index):
                self.calls[index] = (event, [])
            case ToolCallDelta(index=index, arguments=arguments) if index in self.calls:
                self.calls[index][1].append(arguments)
            case Finished():
                self.finished = event
            case _:
                pass

    def take_calls(self, *, is_last: bool) -> list[dict[str, Any]]:
        """Those whose arguments are an object by now, in their order; at last all that ever will be."""
        parts, taken = [], []
        for index, (began, pieces) in self.calls.items():
            # An object ends so; looking at all that has come for each piece of it would take ever longer.
            if not is_last and not (pieces and pieces[-1].rstrip().endswith("}")):
                break
            call = _function_call(began.call_id, began.name, "".join(pieces))
            if call is not None:
                parts.append(_signed({"functionCall": call}, began.signature))
            elif is_last:
                self.is_whole = False
            else:
                break
            taken.append(index)
        for index in taken:
            del self.calls[index]
        return parts


class Writer(StreamWriter):
    """Server-sent events, each a `GenerateContentResponse`. The last says why it finished, and the usage."""

    def __init__(self, call: Call) -> None:
        self._alias = call.alias
        self._shows_thoughts = _shows_thoughts(call)
        self._answer_id = ""
        self._service_tier = ""
        self._usage: Usage | None = None
        self._choices: dict[int, _Open] = {}

    def write(self, events: Iterable[Event]) -> bytes:
        candidates: dict[int, dict[str, Any]] = {}
        for event in events:
            match event:
                case Began(answer_id=answer_id, service_tier=service_tier):
                    self._answer_id, self._service_tier = answer_id, service_tier
                case UsageSeen(usage=usage):
                    self._usage = usage
                case (
                    TextDelta(choice=choice)
                    | ThinkingDelta(choice=choice)
                    | RefusalDelta(choice=choice)
                    | MediaDone(choice=choice)
                    | ToolCallBegan(choice=choice)
                    | ToolCallDelta(choice=choice)
                    | Cited(choice=choice)
                    | Finished(choice=choice)
                ):
                    self._write_one(event, choice, candidates)
                case _:
                    pass
        return self._send(list(candidates.values())) if candidates else b""

    def finish(self) -> bytes:
        last = []
        for choice, open_choice in sorted(self._choices.items()):
            finished = open_choice.finished or Finished(finish=STOP)
            parts = open_choice.take_calls(is_last=True)
            finish = _finish(finished.finish, open_choice.is_whole)
            candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "finishReason": finish}
            if finished.finish_detail and finish not in ("STOP", "MAX_TOKENS"):
                candidate["finishMessage"] = finished.finish_detail
            candidate["index"] = choice
            _add_grounding(candidate, [("".join(pieces), citations) for pieces, citations in open_choice.texts])
            last.append(candidate)
        return self._send(last, self._usage)

    def _write_one(self, event: Event, choice: int, candidates: dict[int, dict[str, Any]]) -> None:
        open_choice = self._choices.get(choice)
        if open_choice is None:
            open_choice = self._choices[choice] = _Open()
        parts: list[dict[str, Any]] = []
        if open_choice.calls and not isinstance(event, ToolCallDelta):
            parts = open_choice.take_calls(is_last=isinstance(event, Finished))
        open_choice.note(event)
        part = self._part(event)
        if part is not None:
            parts.append(part)
        if not parts:
            return
        candidate = candidates.get(choice)
        if candidate is None:
            candidate = candidates[choice] = {"content": {"parts": parts, "role": "model"}, "index": choice}
        else:
            candidate["content"]["parts"] += parts
        if isinstance(event, TextDelta) and event.logprobs:
            candidate["logprobsResult"] = _write_logprobs(event.logprobs)

    def _part(self, event: Event) -> dict[str, Any] | None:
        match event:
            case TextDelta(text=text, signature=signature) if text or signature or event.logprobs:
                return _signed({"text": text}, signature)
            case ThinkingDelta(text=text):
                seal = _seal(event) if event.signature or event.redacted else ""
                # What a signature covers has to come with it, and it comes last.
                shows = self._shows_thoughts or event.origin or seal
                return _signed({"text": text, "thought": True}, seal) if shows else None
            case RefusalDelta(text=text):
                return {"text": text}
            case MediaDone(media=media):
                return _write_media(media)
        return None

    def _send(self, candidates: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        body: dict[str, Any] = {"candidates": candidates}
        if usage is not None:
            body["usageMetadata"] = _write_usage(usage, self._service_tier)
        body["modelVersion"] = self._alias
        body["responseId"] = self._answer_id
        return self._frame(_encode(body))

    def _frame(self, body: bytes) -> bytes:
        return b"data: " + body + b"\r\n\r\n"


class ArrayWriter(Writer):
    """The same in a JSON array."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._has_begun = False

    def finish(self) -> bytes:
        return super().finish() + b"]\n"

    def _frame(self, body: bytes) -> bytes:
        start = b",\r\n" if self._has_begun else b"["
        self._has_begun = True
        return start + body + b"\n"
