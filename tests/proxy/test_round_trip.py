"""What is said in one dialect means the same when it has been through another: conversations, answers and streams.

The four dialects that providers speak too are put against each other, in each direction. What two of them can both say is
generated; what one of them cannot say is left out of `FORMATS`, where it says why. The requests of clients are written here
by hand as each API documents them, so that reader and writer cannot agree on the same mistake.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from audit.records import Usage
from proxy.dialects import anthropic as anthropic_dialect
from proxy.dialects import gemini as gemini_dialect
from proxy.dialects import openai_chat as chat_dialect
from proxy.dialects import openai_responses as responses_dialect
from proxy.dialects.dialect import JSON, Call, Dialect
from proxy.neutral import (
    Answer,
    Began,
    Choice,
    Done,
    Event,
    Finished,
    Media,
    Message,
    OutputFormat,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallBegan,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    UsageSeen,
)
from proxy.providers import anthropic, gemini, openai_chat, openai_responses
from proxy.providers.provider import Api
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame

PROVIDER = Provider(slug="p", api="p", base_url="https://api.example.com/v1")
PIXEL = "iVBORw0KGgo="
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city"],
    "additionalProperties": False,
}
# As many as the profile says (100): there are many pairs, and a campaign takes another profile.
PLENTY = settings.default.max_examples if settings.default is not None else 100
# Without the explanation of a failure, which takes longer than all the rest.
FAST = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Format(NamedTuple):
    """One API, as its clients and its providers have it. `says` is what a conversation can hold in it, `counts` what its
    usage tells apart."""

    dialect: Dialect
    api: Api
    model: str
    says: frozenset[str]
    counts: frozenset[str]


# What everybody can say: system prompts, texts, images, tools, calls, results, a choice of tools, caps, efforts, sampling.
_SAMPLING = {"temperature", "top_p"}
FORMATS = {
    # A failed tool and an image in a result it can only say in words; of documents it has no URL.
    "chat": Format(
        chat_dialect.CHAT,
        openai_chat.CHAT,
        "gpt-5",
        frozenset(
            {
                *_SAMPLING, "frequency_penalty", "presence_penalty", "seed", "stop", "choices", "logprobs", "top_logprobs",
                "logit_bias", "parallel_tool_calls", "user", "service_tier", "metadata", "store", "prompt_cache_key",
                "verbosity", "audio", "developer", "message_name", "custom_tools", "allowed_tools", "refusal", "detail",
            }
        ),
        frozenset(
            {
                "cache_read_input_tokens", "cache_write_input_tokens", "reasoning_tokens", "input_audio_tokens",
                "output_audio_tokens",
            }
        ),
    ),
    # It has no stop sequences and no seed.
    "responses": Format(
        responses_dialect.RESPONSES,
        openai_responses.RESPONSES,
        "gpt-5",
        frozenset(
            {
                *_SAMPLING, "logprobs", "top_logprobs", "parallel_tool_calls", "user", "service_tier", "metadata", "store",
                "prompt_cache_key", "verbosity", "audio", "developer", "custom_tools", "allowed_tools", "refusal", "detail",
                "document_url", "result_image",
            }
        ),
        frozenset({"cache_read_input_tokens", "cache_write_input_tokens", "reasoning_tokens"}),
    ),
    # Of some tools that are allowed only those are sent: what comes back is as good, and not the same.
    "anthropic": Format(
        anthropic_dialect.MESSAGES,
        anthropic.MESSAGES,
        "claude-opus-4-6",
        frozenset(
            {
                *_SAMPLING, "top_k", "stop", "parallel_tool_calls", "user", "cache", "part_cache", "document_url",
                "document_text", "result_image", "result_error",
            }
        ),
        frozenset(
            {
                "cache_read_input_tokens", "cache_write_input_tokens", "cache_write_1h_input_tokens", "reasoning_tokens",
                "searches",
            }
        ),
    ),
    # Calls are parallel, and nothing tells it whose they are; tools that are allowed are kept to their schemas as well.
    "gemini": Format(
        gemini_dialect.GENERATE,
        gemini.GENERATE,
        "gemini-3-pro",
        frozenset(
            {
                *_SAMPLING, "top_k", "frequency_penalty", "presence_penalty", "seed", "stop", "choices", "logprobs",
                "top_logprobs", "service_tier", "audio", "document_url", "document_text", "result_image", "result_error",
            }
        ),
        frozenset({"cache_read_input_tokens", "reasoning_tokens", "input_audio_tokens", "output_audio_tokens"}),
    ),
}  # fmt: skip


def called(name: str, body: dict[str, Any]) -> Call:
    """As a client of that dialect calls it; the alias stands in the body, or in the path."""
    parameters = {"model": "alias"} if name == "gemini" else {}
    named = body if name == "gemini" else {"model": "alias", **body}
    return FORMATS[name].dialect.describe(json.dumps(named).encode(), JSON, parameters)


def read(name: str, body: dict[str, Any]) -> Prompt:
    prompt = FORMATS[name].dialect.read_prompt(called(name, body))
    assert isinstance(prompt, Prompt)
    return prompt


def write(name: str, prompt: Prompt) -> tuple[dict[str, Any], list[str]]:
    form = FORMATS[name]
    deployment = Deployment(deployment_id="d", name="d", provider="p", model="m", upstream_model=form.model)
    lost: list[str] = []
    body = {"model": "alias", "messages": [], "contents": []}
    call = chat_dialect.CHAT.describe(json.dumps(body).encode(), JSON, {})
    return json.loads(form.api.write_request(prompt, call, deployment, PROVIDER, lost).body), lost


# What a conversation means, whoever says it


def meaning(prompt: Prompt) -> dict[str, Any]:
    """System prompts are one, messages of one role in a row are one, results come first in theirs; saying what holds anyway
    says nothing. Efforts are compared, not how thoughts are shown."""
    system: list[Any] = []
    turns: list[tuple[str, list[Any]]] = []
    for message in prompt.messages:
        parts = list(map(_part, message.parts))
        if message.role in ("system", "developer"):
            system += parts
        elif turns and turns[-1][0] == message.role:
            turns[-1][1].extend(parts)
        else:
            turns.append((message.role, parts))
    said = {
        name: getattr(prompt, name)
        for name in (
            "max_output_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed",
            "stop", "top_logprobs", "logit_bias", "verbosity", "user", "metadata", "prompt_cache_key", "cache",
        )
    }  # fmt: skip
    choice = prompt.tool_choice or ToolChoice("auto")
    tier = prompt.service_tier
    return {
        **said,
        "system": system,
        "turns": [(role, _joined(sorted(parts, key=_is_no_result))) for role, parts in turns],
        "tools": [(tool.name, tool.description, _schema(tool), tool.is_custom, tool.cache) for tool in prompt.tools],
        "tool_choice": (choice.mode, choice.name, choice.allowed),
        "is_serial": prompt.parallel_tool_calls is False,
        "choices": prompt.choices or 1,
        "logprobs": bool(prompt.logprobs),
        "store": bool(prompt.store),
        "service_tier": None if tier in ("auto", "default", "standard_only") else tier,
        "effort": prompt.reasoning.effort if prompt.reasoning is not None else "",
        "schema": prompt.output_format.schema if prompt.output_format is not None else None,
    }


def _schema(tool: Tool) -> Any:
    return tool.format if tool.is_custom else tool.parameters


def _is_no_result(part: Sequence[Any]) -> bool:
    return part[0] != "result"


def _part(part: Part) -> tuple[Any, ...]:
    match part:
        case Text():
            return ("text", part.text, part.cache, part.signature)
        case Media():
            named = "" if part.name.startswith("document.") else part.name
            data, media_type = part.data, "" if part.url else part.media_type
            text = part.text
            if media_type == "text/plain" and data:
                text, data = _decoded(data), ""
            return ("media", part.kind, media_type, data, part.url, text, named, part.detail, part.cache)
        case ToolCall():
            arguments = part.arguments if part.is_custom else json.loads(part.arguments or "{}")
            return ("call", part.call_id, part.name, arguments, part.is_custom, part.signature)
        case ToolResult():
            content = _joined(map(_part, part.content))
            return ("result", part.call_id, content, part.is_error, part.is_custom, part.cache)
        case Thinking():
            if not (part.signature or part.redacted):
                return ("thinking", part.text, "", "", "", "")
            # Of the others' reasoning the id is the dialect's own.
            item_id = part.thinking_id if part.origin == "openai" else ""
            return ("thinking", part.text, part.origin, part.signature, part.redacted, item_id)
        case Refusal():
            return ("refusal", part.text)
    raise AssertionError(part)


def _decoded(data: str) -> str:
    return msgspec.json.decode(f'"{data}"'.encode(), type=bytes).decode()


def _joined(parts: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Texts that follow one another are one, up to a marker; empty ones say nothing."""
    joined: list[tuple[Any, ...]] = []
    for part in parts:
        last = joined[-1] if joined else None
        if part[0] == "text":
            # What a document is called where it has to be called something goes before it, to Gemini.
            if (not part[1] or part[1] == "document.pdf") and not part[3]:
                continue
            if last is not None and last[0] == "text" and not last[2] and not last[3]:
                joined[-1] = ("text", last[1] + part[1], *part[2:])
                continue
        if part[0] == "thinking" and last is not None and last[0] == "thinking" and not any(last[2:] + part[2:]):
            joined[-1] = ("thinking", last[1] + part[1], *part[2:])
            continue
        if part[0] == "refusal" and last is not None and last[0] == "refusal":
            joined[-1] = ("refusal", last[1] + part[1])
            continue
        if part[0] != "thinking" or any(part[1:]):
            joined.append(part)
    return joined


# Conversations

texts = st.text(min_size=1, max_size=12)
names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)  # fmt: skip
objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2)),
    max_size=3,
)
percents = st.integers(0, 99).map(lambda value: value / 100)  # 1 is what holds anyway.
# One strategy for each parameter that not everybody has.
PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": percents,
    "top_p": percents,
    "top_k": st.integers(1, 40),
    "frequency_penalty": st.integers(-200, 200).map(lambda value: value / 100),
    "presence_penalty": st.integers(-200, 200).map(lambda value: value / 100),
    "seed": st.integers(-(2**31), 2**31 - 1),
    "stop": st.lists(texts, min_size=1, max_size=3).map(tuple),
    "choices": st.integers(1, 4),
    "logit_bias": st.dictionaries(st.from_regex(r"[0-9]{1,5}", fullmatch=True), st.integers(-100, 100), min_size=1),
    "user": texts,
    "service_tier": st.sampled_from(["auto", "default", "flex", "priority"]),
    "metadata": st.dictionaries(names, texts, min_size=1, max_size=2),
    "store": st.booleans(),
    "prompt_cache_key": texts,
    "verbosity": st.sampled_from(["low", "medium", "high"]),
    "cache": st.sampled_from(["5m", "1h"]),
}


def media(says: frozenset[str], caches: st.SearchStrategy[str]) -> st.SearchStrategy[Media]:
    details = st.sampled_from(["", "low", "high"]) if "detail" in says else st.just("")
    urls = st.sampled_from(["https://example.com/a.png", "https://example.com/b?c=d&e=%20"])
    kinds = [
        st.builds(Media, kind=st.just("image"), url=urls, detail=details, cache=caches),
        st.builds(
            Media, kind=st.just("image"), media_type=st.sampled_from(["image/png", "image/jpeg"]), data=st.just(PIXEL),
            detail=details, cache=caches,
        ),
        st.builds(
            Media, kind=st.just("document"), media_type=st.just("application/pdf"), data=st.just("JVBERi0="), cache=caches
        ),
    ]  # fmt: skip
    if "document_url" in says:
        pages = st.sampled_from(["https://example.com/a.pdf"])
        kinds.append(st.builds(Media, kind=st.just("document"), url=pages, cache=caches))
    if "document_text" in says:
        kinds.append(
            st.builds(Media, kind=st.just("document"), media_type=st.just("text/plain"), text=texts, cache=caches)
        )
    if "audio" in says:
        types = st.sampled_from(["audio/wav", "audio/mpeg"])
        kinds.append(st.builds(Media, kind=st.just("audio"), media_type=types, data=st.just("UklGRg==")))
    return st.one_of(kinds)


@st.composite
def prompts(draw: st.DrawFn, says: frozenset[str]) -> Prompt:
    """A conversation that holds nothing but what `says` names, and what everybody can say."""
    caches = st.sampled_from(["", "", "5m", "1h"]) if "part_cache" in says else st.just("")
    parts = st.builds(Text, text=texts, cache=caches) | media(says, caches)
    systems = st.sampled_from(["system", "developer"] if "developer" in says else ["system"])
    messages = draw(
        st.lists(st.builds(Message, role=systems, parts=st.builds(Text, text=texts, cache=caches).map(lambda text: [text])), max_size=2)
    )  # fmt: skip
    speakers = st.sampled_from(["", "bob"]) if "message_name" in says else st.just("")
    has_tools = draw(st.booleans())
    calls = 0
    for _ in range(draw(st.integers(0, 2))):
        messages.append(Message(role="user", parts=draw(st.lists(parts, min_size=1, max_size=3)), name=draw(speakers)))
        said: list[Part] = []
        if draw(st.booleans()):
            said.append(Text(text=draw(texts)))
        elif "refusal" in says and draw(st.booleans()):
            said.append(Refusal(text=draw(texts)))
        for _ in range(draw(st.integers(0 if said else 1, 2))):
            is_custom = "custom_tools" in says and draw(st.booleans())
            arguments = draw(texts) if is_custom else json.dumps(draw(objects), ensure_ascii=draw(st.booleans()))
            call_id = draw(st.sampled_from(["call_", "toolu_01-", "fc-"])) + str(calls)
            said.append(ToolCall(call_id=call_id, name=draw(names), arguments=arguments, is_custom=is_custom))
            calls += 1
        messages.append(Message(role="assistant", parts=said))
        results: list[Part] = [
            _result(draw, call, says, draw(caches)) for call in said if isinstance(call, ToolCall)
        ]  # fmt: skip
        if results:
            messages.append(Message(role="user", parts=results))
    messages.append(Message(role="user", parts=draw(st.lists(parts, min_size=1, max_size=3)), name=draw(speakers)))
    prompt = Prompt(messages=messages, max_output_tokens=draw(st.integers(1, 100_000)))
    if has_tools:
        _add_tools(draw, prompt, says, caches)
    _add_parameters(draw, prompt, says)
    return prompt


def _result(draw: st.DrawFn, call: ToolCall, says: frozenset[str], cache: str) -> ToolResult:
    content: list[Part] = [Text(text=draw(texts))]
    if "result_image" in says and not call.is_custom and draw(st.booleans()):
        content.append(Media(kind="image", media_type="image/png", data=PIXEL))
    is_error = "result_error" in says and draw(st.booleans())
    return ToolResult(
        call_id=call.call_id, content=tuple(content), is_error=is_error, is_custom=call.is_custom, cache=cache
    )


def _add_tools(draw: st.DrawFn, prompt: Prompt, says: frozenset[str], caches: st.SearchStrategy[str]) -> None:
    schemas = st.sampled_from([SCHEMA, {"type": "object", "properties": {}}])
    descriptions = st.text(max_size=8)
    tools = st.builds(Tool, name=names, description=descriptions, parameters=schemas, cache=caches)
    if "custom_tools" in says:
        tools |= st.builds(Tool, name=names, description=descriptions, is_custom=st.just(True))
    prompt.tools = draw(st.lists(tools, min_size=1, max_size=3, unique_by=lambda tool: tool.name))
    named = [tool.name for tool in prompt.tools]
    choices = [st.sampled_from([None, *(ToolChoice(mode) for mode in ("auto", "none", "required"))])]
    choices.append(st.sampled_from(named).map(lambda name: ToolChoice("tool", name=name)))
    if "allowed_tools" in says:
        some = st.lists(st.sampled_from(named), min_size=1, unique=True).map(tuple)
        choices.append(st.builds(ToolChoice, mode=st.sampled_from(["auto", "required"]), allowed=some))
    prompt.tool_choice = draw(st.one_of(choices))
    is_off = prompt.tool_choice is not None and prompt.tool_choice.mode == "none"
    if "parallel_tool_calls" in says and not is_off:  # What is not called is not called in parallel.
        prompt.parallel_tool_calls = draw(st.none() | st.booleans())


def _add_parameters(draw: st.DrawFn, prompt: Prompt, says: frozenset[str]) -> None:
    forced = prompt.tool_choice is not None and prompt.tool_choice.mode in ("required", "tool")
    # A model of Anthropic's that thinks is neither forced nor sampled in another way.
    if not forced and draw(st.booleans()):
        prompt.reasoning = Reasoning(effort=draw(st.sampled_from(["low", "medium", "high"])))
        says -= {"temperature", "top_p", "top_k"}
    if draw(st.booleans()):
        prompt.output_format = OutputFormat(schema=SCHEMA, name="answer", is_strict=True)
    for name in draw(st.lists(st.sampled_from(sorted(says & PARAMETERS.keys())), unique=True, max_size=5)):
        setattr(prompt, name, draw(PARAMETERS[name]))
    if prompt.temperature is not None:
        prompt.top_p = None  # Anthropic's newer models take one of the two.
    if "logprobs" in says and draw(st.booleans()):
        prompt.logprobs = True
        prompt.top_logprobs = draw(st.none() | st.integers(1, 5))


# The same as clients write it, by hand


def _plain_or_list(draw: st.DrawFn, content: list[dict[str, Any]]) -> Any:
    if len(content) == 1 and content[0].keys() == {"type", "text"} and draw(st.booleans()):
        return content[0]["text"]
    return content


def _told(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def as_chat(draw: st.DrawFn, prompt: Prompt) -> dict[str, Any]:
    def content(part: Part) -> dict[str, Any]:
        match part:
            case Text():
                return {"type": "text", "text": part.text}
            case Media(kind="image"):
                url = part.url or f"data:{part.media_type};base64,{part.data}"
                return {"type": "image_url", "image_url": _told(url=url, detail=part.detail)}
            case Media(kind="audio"):
                kind = "mp3" if part.media_type == "audio/mpeg" else "wav"
                return {"type": "input_audio", "input_audio": {"data": part.data, "format": kind}}
            case Media():
                data = f"data:{part.media_type};base64,{part.data}"
                return {"type": "file", "file": {"file_data": data, "filename": "document.pdf"}}
        raise AssertionError(part)

    def named(tool: ToolCall | Tool, **fields: Any) -> dict[str, Any]:
        kind = "custom" if tool.is_custom else "function"
        return {"type": kind, kind: {"name": tool.name, **fields}}

    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        if message.role == "assistant":
            said = [part.text for part in message.parts if isinstance(part, Text)]
            refused = [part.text for part in message.parts if isinstance(part, Refusal)]
            calls = [
                {"id": part.call_id, **named(part, **{"input" if part.is_custom else "arguments": part.arguments})}
                for part in message.parts
                if isinstance(part, ToolCall)
            ]
            written = {"role": "assistant", "content": said[0] if said else None}
            messages.append(written | _told(refusal="".join(refused), tool_calls=calls or None))
            continue
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        messages += [
            {"role": "tool", "tool_call_id": part.call_id, "content": _plain_or_list(draw, list(map(content, part.content)))}
            for part in results
        ]  # fmt: skip
        rest = [content(part) for part in message.parts if not isinstance(part, ToolResult)]
        if rest:
            messages.append({"role": message.role, "content": _plain_or_list(draw, rest)} | _told(name=message.name))
    body: dict[str, Any] = {"messages": messages, draw(st.sampled_from(["max_tokens", "max_completion_tokens"])): prompt.max_output_tokens}  # fmt: skip
    if prompt.tools:
        body["tools"] = [
            named(tool, **_told(description=tool.description, parameters=tool.parameters)) for tool in prompt.tools
        ]
    choice = prompt.tool_choice
    if choice is not None:
        by_name = {tool.name: named(tool) for tool in prompt.tools}
        body["tool_choice"] = by_name[choice.name] if choice.name else choice.mode
        if choice.allowed:
            allowed = {"mode": choice.mode, "tools": [by_name[name] for name in choice.allowed]}
            body["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
    if prompt.output_format is not None:
        shape = {"name": "answer", "strict": True, "schema": prompt.output_format.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return body | _told(
        temperature=prompt.temperature, top_p=prompt.top_p, frequency_penalty=prompt.frequency_penalty,
        presence_penalty=prompt.presence_penalty, seed=prompt.seed, stop=list(prompt.stop) or None, n=prompt.choices,
        logprobs=prompt.logprobs, top_logprobs=prompt.top_logprobs, logit_bias=prompt.logit_bias, user=prompt.user,
        service_tier=prompt.service_tier, metadata=prompt.metadata, store=prompt.store, verbosity=prompt.verbosity,
        prompt_cache_key=prompt.prompt_cache_key, parallel_tool_calls=prompt.parallel_tool_calls,
        reasoning_effort=prompt.reasoning.effort if prompt.reasoning else None,
    )  # fmt: skip


def as_responses(draw: st.DrawFn, prompt: Prompt) -> dict[str, Any]:
    def content(part: Part) -> dict[str, Any]:
        match part:
            case Text():
                return {"type": "input_text", "text": part.text}
            case Media(kind="image"):
                url = part.url or f"data:{part.media_type};base64,{part.data}"
                return {"type": "input_image", "image_url": url} | _told(detail=part.detail)
            case Media(kind="audio"):
                kind = "mp3" if part.media_type == "audio/mpeg" else "wav"
                return {"type": "input_audio", "input_audio": {"data": part.data, "format": kind}}
            case Media() if part.url:
                return {"type": "input_file", "file_url": part.url}
            case Media():
                data = f"data:{part.media_type};base64,{part.data}"
                return {"type": "input_file", "filename": "document.pdf", "file_data": data}
        raise AssertionError(part)

    def item(part: Part) -> dict[str, Any]:
        match part:
            case ToolCall(is_custom=True):
                return {"type": "custom_tool_call", "call_id": part.call_id, "name": part.name, "input": part.arguments}
            case ToolCall():
                call = {"call_id": part.call_id, "name": part.name, "arguments": part.arguments}
                return {"type": "function_call", "id": f"fc_{part.call_id}", "status": "completed", **call}
            case ToolResult():
                kind = "custom_tool_call_output" if part.is_custom else "function_call_output"
                output = _plain_or_list(draw, list(map(content, part.content)))
                return {"type": kind, "call_id": part.call_id, "output": output}
            case Text() | Refusal():
                kind, field = ("output_text", "text") if isinstance(part, Text) else ("refusal", "refusal")
                said = {"type": kind, field: part.text}
                return {"type": "message", "role": "assistant", "id": "msg_1", "content": [said]}
        raise AssertionError(part)

    items: list[dict[str, Any]] = []
    for message in prompt.messages:
        if message.role == "assistant" or isinstance(message.parts[0], ToolResult):
            items += map(item, message.parts)
        else:
            said = _plain_or_list(draw, list(map(content, message.parts)))
            items.append({"role": message.role, "content": said} | ({"type": "message"} if draw(st.booleans()) else {}))
    body: dict[str, Any] = {"input": items, "max_output_tokens": prompt.max_output_tokens}
    if prompt.tools:
        body["tools"] = [
            {"type": "custom" if tool.is_custom else "function", "name": tool.name}
            | _told(description=tool.description, parameters=tool.parameters)
            for tool in prompt.tools
        ]
    choice = prompt.tool_choice
    if choice is not None:
        kinds = {
            tool.name: {"type": "custom" if tool.is_custom else "function", "name": tool.name} for tool in prompt.tools
        }
        body["tool_choice"] = kinds[choice.name] if choice.name else choice.mode
        if choice.allowed:
            allowed = [kinds[name] for name in choice.allowed]
            body["tool_choice"] = {"type": "allowed_tools", "mode": choice.mode, "tools": allowed}
    text: dict[str, Any] = _told(verbosity=prompt.verbosity)
    if prompt.output_format is not None:
        text["format"] = {
            "type": "json_schema",
            "name": "answer",
            "strict": True,
            "schema": prompt.output_format.schema,
        }
    return body | _told(
        temperature=prompt.temperature, top_p=prompt.top_p, user=prompt.user, service_tier=prompt.service_tier,
        metadata=prompt.metadata, store=prompt.store, prompt_cache_key=prompt.prompt_cache_key, text=text or None,
        parallel_tool_calls=prompt.parallel_tool_calls, top_logprobs=prompt.top_logprobs,
        include=["message.output_text.logprobs"] if prompt.logprobs else None,
        reasoning={"effort": prompt.reasoning.effort} if prompt.reasoning else None,
    )  # fmt: skip


def as_anthropic(draw: st.DrawFn, prompt: Prompt) -> dict[str, Any]:
    def marked(block: dict[str, Any], cache: str) -> dict[str, Any]:
        marker: dict[str, Any] = {"type": "ephemeral"}
        if cache == "1h" or (cache and draw(st.booleans())):
            marker["ttl"] = cache
        return {**block, "cache_control": marker} if cache else block

    def block(part: Part) -> dict[str, Any]:
        match part:
            case Text():
                return marked({"type": "text", "text": part.text}, part.cache)
            case Media():
                if part.url:
                    source = {"type": "url", "url": part.url}
                elif part.text:
                    source = {"type": "text", "media_type": "text/plain", "data": part.text}
                else:
                    source = {"type": "base64", "media_type": part.media_type, "data": part.data}
                return marked({"type": part.kind, "source": source}, part.cache)
            case ToolCall():
                arguments = json.loads(part.arguments)
                return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": arguments}
            case ToolResult():
                content = _plain_or_list(draw, list(map(block, part.content)))
                result = {"type": "tool_result", "tool_use_id": part.call_id, "content": content}
                if part.is_error or draw(st.booleans()):
                    result["is_error"] = part.is_error
                return marked(result, part.cache)
        raise AssertionError(part)

    system = [block(part) for message in prompt.messages if message.role == "system" for part in message.parts]
    messages = [
        {"role": message.role, "content": _plain_or_list(draw, list(map(block, message.parts)))}
        for message in prompt.messages
        if message.role != "system"
    ]
    body: dict[str, Any] = {"max_tokens": prompt.max_output_tokens, "messages": messages}
    if system:
        body["system"] = _plain_or_list(draw, system)
    if prompt.tools:
        body["tools"] = [
            marked(
                {"name": tool.name, "input_schema": tool.parameters} | _told(description=tool.description), tool.cache
            )
            for tool in prompt.tools
        ]
        modes = {"required": {"type": "any"}, "tool": {"type": "tool"}, "none": {"type": "none"}}
        choice = prompt.tool_choice or ToolChoice("auto")
        serial = (
            {} if prompt.parallel_tool_calls is None else {"disable_parallel_tool_use": not prompt.parallel_tool_calls}
        )
        if prompt.tool_choice is not None or serial:
            body["tool_choice"] = modes.get(choice.mode, {"type": "auto"}) | _told(name=choice.name) | serial
    config: dict[str, Any] = {}
    if prompt.output_format is not None:
        config["format"] = {"type": "json_schema", "schema": prompt.output_format.schema}
    if prompt.reasoning is not None:
        config["effort"] = prompt.reasoning.effort
        body["thinking"] = {"type": "adaptive"}
    if prompt.cache:
        body = marked(body, prompt.cache)
    return body | _told(
        temperature=prompt.temperature, top_p=prompt.top_p, top_k=prompt.top_k, output_config=config or None,
        stop_sequences=list(prompt.stop) or None, metadata={"user_id": prompt.user} if prompt.user else None,
    )  # fmt: skip


def as_gemini(draw: st.DrawFn, prompt: Prompt) -> dict[str, Any]:
    snake = draw(st.booleans())

    def key(name: str) -> str:
        """Either spelling is good."""
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name) if snake else name

    def blob(part: Media) -> dict[str, Any]:
        if part.url:
            media_type = "application/pdf" if part.kind == "document" else "image/png"
            return {key("fileData"): {key("mimeType"): media_type, key("fileUri"): part.url}}
        data = msgspec.json.encode(part.text.encode()).decode().strip('"') if part.text else part.data
        return {key("inlineData"): {key("mimeType"): part.media_type, "data": data}}

    called_by: dict[str, str] = {}

    def written(part: Part) -> dict[str, Any]:
        match part:
            case Text():
                return {"text": part.text}
            case Media():
                return blob(part)
            case ToolCall():
                called_by[part.call_id] = part.name
                call = {"id": part.call_id, "name": part.name, "args": json.loads(part.arguments)}
                return {key("functionCall"): call}
            case ToolResult():
                text, *images = part.content
                assert isinstance(text, Text)
                response: dict[str, Any] = {"id": part.call_id, "name": called_by[part.call_id]}
                response["response"] = {"error" if part.is_error else "output": text.text}
                if images:
                    response["parts"] = [blob(image) for image in images if isinstance(image, Media)]
                return {key("functionResponse"): response}
        raise AssertionError(part)

    contents = [
        {"role": "model" if message.role == "assistant" else "user", "parts": list(map(written, message.parts))}
        for message in prompt.messages
        if message.role != "system"
    ]
    system = [written(part) for message in prompt.messages if message.role == "system" for part in message.parts]
    config = _told(
        maxOutputTokens=prompt.max_output_tokens, temperature=prompt.temperature, topP=prompt.top_p, topK=prompt.top_k,
        frequencyPenalty=prompt.frequency_penalty, presencePenalty=prompt.presence_penalty, seed=prompt.seed,
        stopSequences=list(prompt.stop) or None, candidateCount=prompt.choices, responseLogprobs=prompt.logprobs,
        logprobs=prompt.top_logprobs,
    )  # fmt: skip
    if prompt.output_format is not None:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": prompt.output_format.schema}
    if prompt.reasoning is not None:
        config["thinkingConfig"] = {key("thinkingLevel"): prompt.reasoning.effort}
    body: dict[str, Any] = {"contents": contents, key("generationConfig"): {key(k): v for k, v in config.items()}}
    if system:
        body[key("systemInstruction")] = {"parts": system}
    if prompt.tools:
        declarations = [
            {"name": tool.name, "description": tool.description, key("parametersJsonSchema"): tool.parameters}
            for tool in prompt.tools
        ]
        body["tools"] = [{key("functionDeclarations"): declarations}]
    choice = prompt.tool_choice
    if choice is not None:
        calling: dict[str, Any] = {"mode": {"auto": "AUTO", "none": "NONE"}.get(choice.mode, "ANY")}
        if choice.name:
            calling[key("allowedFunctionNames")] = [choice.name]
        body[key("toolConfig")] = {key("functionCallingConfig"): calling}
    if prompt.service_tier not in (None, "auto", "default"):
        body[key("serviceTier")] = prompt.service_tier
    return body


WRITTEN: dict[str, Callable[[st.DrawFn, Prompt], dict[str, Any]]] = {
    "chat": as_chat,
    "responses": as_responses,
    "anthropic": as_anthropic,
    "gemini": as_gemini,
}
PAIRS = [(client, provider) for client in FORMATS for provider in FORMATS]


@pytest.mark.parametrize(("client", "provider"), PAIRS)
def test_a_conversation_means_the_same_at_another_provider_and_back(client: str, provider: str) -> None:
    says = FORMATS[client].says & FORMATS[provider].says

    @given(st.data())
    @settings(FAST, max_examples=PLENTY // 8)
    def check(data: st.DataObject) -> None:
        said = data.draw(prompts(says))
        asked = read(client, WRITTEN[client](data.draw, said))
        assert (asked.lost, meaning(asked)) == ([], meaning(said))
        sent, lost = write(provider, asked)
        arrived = read(provider, _without_model(sent))
        assert (lost, arrived.lost, meaning(arrived)) == ([], [], meaning(said))
        sent_back, lost = write(client, arrived)
        returned = read(client, _without_model(sent_back))
        assert (lost, returned.lost, meaning(returned)) == ([], [], meaning(said))

    check()


# What a provider is told in another way, and is not named as lost: a refusal as what was said; a failed tool in words; an
# image in a result after it; a document of text as text; one detail for all images, or always the high one; allowed tools as
# the only ones, or kept to their schemas. Markers and keys of caches are hints.
APPROXIMATED = {
    "chat": {"result_error", "result_image", "document_text", "cache", "part_cache"},
    "responses": {"result_error", "document_text", "cache", "part_cache"},
    "anthropic": {"refusal", "allowed_tools", "detail"},
    "gemini": {"refusal", "detail", "allowed_tools", "cache", "part_cache", "prompt_cache_key"},
}


@pytest.mark.parametrize(
    ("client", "provider"), [(client, provider) for client, provider in PAIRS if client != provider]
)
def test_what_a_provider_cannot_be_told_is_named(client: str, provider: str) -> None:
    said_by_both = FORMATS[client].says & FORMATS[provider].says
    others = sorted(FORMATS[client].says - said_by_both - APPROXIMATED[provider])

    @given(st.data())
    @settings(FAST, max_examples=PLENTY // 8)
    def check(data: st.DataObject) -> None:
        said = data.draw(prompts(said_by_both | {data.draw(st.sampled_from(others))}))
        for name, harmless in (("frequency_penalty", 0), ("presence_penalty", 0), ("verbosity", "medium")):
            if getattr(said, name) == harmless:
                setattr(said, name, None)
        asked = read(client, WRITTEN[client](data.draw, said))
        sent, lost = write(provider, asked)
        assert all(lost)
        if not lost:
            assert meaning(read(provider, _without_model(sent))) == meaning(said)

    check()


def _without_model(body: dict[str, Any]) -> dict[str, Any]:
    body.pop("model", None)
    return body


# Answers


class Heard(NamedTuple):
    """What an answer says: its parts, why it ended, what it used."""

    parts: list[tuple[Any, ...]]
    finish: str
    usage: Usage | None


def heard(answer: Answer) -> Heard:
    (choice,) = answer.choices
    return Heard(_joined(map(_part, choice.parts)), choice.finish, answer.usage)


@st.composite
def usages(draw: st.DrawFn, counts: frozenset[str]) -> Usage:
    """Details are within what they are of."""

    def within(name: str, total: int) -> int:
        return draw(st.integers(0, total)) if name in counts else 0

    input_tokens, output_tokens = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    read = within("cache_read_input_tokens", input_tokens)
    written = within("cache_write_input_tokens", input_tokens - read)
    reasoning = within("reasoning_tokens", output_tokens)
    searches = within("searches", 9)
    return Usage(
        input_tokens=input_tokens,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        cache_write_1h_input_tokens=within("cache_write_1h_input_tokens", written),
        input_audio_tokens=within("input_audio_tokens", input_tokens),
        output_tokens=output_tokens,
        reasoning_tokens=reasoning,
        output_audio_tokens=within("output_audio_tokens", output_tokens - reasoning),
        # What else its provider's tools did none of them tells.
        tool_calls=searches,
        searches=searches,
    )


seals = st.from_regex(r"[A-Za-z0-9+/]{4,16}", fullmatch=True).map(lambda seal: seal + "=" * (-len(seal) % 4))
# Reasoning as each provider signs it.
SIGNED = {
    "": st.builds(Thinking, text=texts),
    "anthropic": st.builds(Thinking, text=st.just("") | texts, signature=seals, origin=st.just("anthropic"))
    | st.builds(Thinking, redacted=seals, origin=st.just("anthropic")),
    "gemini": st.builds(Thinking, text=texts, signature=seals, origin=st.just("gemini")),
    "openai": st.builds(
        Thinking,
        text=st.just("") | texts,
        signature=seals,
        origin=st.just("openai"),
        thinking_id=st.from_regex(r"rs_[0-9a-f]{4,8}", fullmatch=True),
    ),
}
# Whose signatures an API gives, and thus reads.
OWN_ORIGIN = {"chat": "", "responses": "openai", "anthropic": "anthropic", "gemini": "gemini"}
# Only here it is told apart why a model stopped of itself, and only here nothing says that a filter stopped it.
FINISHES = {
    "chat": ("stop", "length", "content_filter"),
    "responses": ("stop", "length", "content_filter"),
    "anthropic": ("stop", "length", "stop_sequence", "refusal", "pause"),
    "gemini": ("stop", "length", "content_filter"),
}


@st.composite
def answers(draw: st.DrawFn, name: str, origins: Sequence[str], signs_parts: bool = False) -> Answer:
    """Reasoning, then a text, then calls, as chat completions have it: there everything else would come in another order."""
    thoughts = draw(st.lists(SIGNED[draw(st.sampled_from(origins))], max_size=2))
    parts: list[Part] = [*thoughts]
    if draw(st.booleans()):
        parts.append(Text(text=draw(texts)))
    if "refusal" in FORMATS[name].says and draw(st.booleans()):
        parts.append(Refusal(text=draw(texts)))
        usage = draw(usages(FORMATS[name].counts))
        return Answer(answer_id="id1", created_at_s=1, choices=[Choice(parts=parts, finish="refusal")], usage=usage)
    is_custom = st.booleans() if "custom_tools" in FORMATS[name].says else st.just(False)
    for number in range(draw(st.integers(0, 2))):
        call = ToolCall(call_id=f"call_{number}", name=draw(names), is_custom=draw(is_custom))
        call.arguments = draw(texts) if call.is_custom else json.dumps(draw(objects))
        parts.append(call)
    if signs_parts:
        signed = [part for part in parts if isinstance(part, Text | ToolCall)]
        # A message of chat completions has one signature besides those of its calls.
        for part in draw(st.lists(st.sampled_from(signed), max_size=2, unique_by=id)) if signed else ():
            if isinstance(part, ToolCall) or not any(isinstance(other, ToolCall) for other in signed):
                part.signature = draw(seals)
    has_calls = any(isinstance(part, ToolCall) for part in parts)
    finish = "tool_calls" if has_calls else draw(st.sampled_from(FINISHES[name]))
    usage = draw(usages(FORMATS[name].counts))
    # Where nothing was said, an empty text stands in its place.
    parts = parts if len(parts) > len(thoughts) else [*parts, Text(text="A")]
    return Answer(answer_id="id1", created_at_s=1, choices=[Choice(parts=parts, finish=finish)], usage=usage)


def asking(name: str) -> Call:
    """A call that asks to be shown thoughts, and to be told the usage at the end of a stream."""
    bodies: dict[str, dict[str, Any]] = {
        "chat": {"messages": [{"role": "user", "content": "U"}], "stream_options": {"include_usage": True}},
        "responses": {"input": "U"},
        "anthropic": {"max_tokens": 9, "messages": [{"role": "user", "content": "U"}]},
        "gemini": {
            "contents": [{"parts": [{"text": "U"}]}],
            "generationConfig": {"thinkingConfig": {"includeThoughts": True}},
        },
    }
    call = called(name, bodies[name])
    call.prompt = call.dialect.read_prompt(call)
    return call


ASKING = {name: asking(name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_says_what_it_said_when_it_is_read_again(name: str) -> None:
    form = FORMATS[name]

    @given(answers(name, ("", OWN_ORIGIN[name]), signs_parts=name == "gemini"))
    @settings(FAST, max_examples=PLENTY // 2)
    def check(answer: Answer) -> None:
        body = form.dialect.write_answer(answer, ASKING[name])
        again = form.api.read_answer(body)
        assert isinstance(again, Answer)
        assert heard(again) == heard(answer)
        assert form.api.measure(body).usage == answer.usage

    check()


def next_turn(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """The next request of a client that returns an answer as it got it."""
    match name:
        case "chat":
            return {"messages": [body["choices"][0]["message"]]}
        case "responses":
            return {"input": body["output"]}
        case "anthropic":
            return {"max_tokens": 9, "messages": [{"role": "assistant", "content": body["content"]}]}
        case _:
            return {"contents": [body["candidates"][0]["content"]]}


@pytest.mark.parametrize("name", FORMATS)
def test_what_any_model_thought_and_signed_comes_back_with_the_next_turn(name: str) -> None:
    @given(answers(name, tuple(SIGNED), signs_parts=True))
    @settings(FAST, max_examples=PLENTY // 2)
    def check(answer: Answer) -> None:
        body = json.loads(FORMATS[name].dialect.write_answer(answer, ASKING[name]))
        prompt = read(name, next_turn(name, body))
        returned = [part for message in prompt.messages for part in message.parts]
        assert prompt.lost == []
        assert _joined(map(_part, returned)) == heard(answer).parts

    check()


# Streams


@st.composite
def events_of(draw: st.DrawFn, answer: Answer) -> list[Event]:
    """The answer as a provider streams it: texts in pieces, calls one after the other or mixed."""

    def pieces(text: str) -> list[str]:
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        found = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [piece for piece in found if piece]

    events: list[Event] = [Began(answer_id=answer.answer_id, created_at_s=1)]
    (choice,) = answer.choices
    waiting: list[list[Event]] = []
    for part in choice.parts:
        match part:
            case Text():
                said = pieces(part.text)
                events += [TextDelta(text=piece) for piece in said[:-1]]
                events.append(TextDelta(text=said[-1], signature=part.signature))
            case Refusal():
                events += [RefusalDelta(text=piece) for piece in pieces(part.text)]
            case Thinking():
                seal = {"origin": part.origin, "thinking_id": part.thinking_id}
                events += [ThinkingDelta(text=piece, **seal) for piece in pieces(part.text)]
                if part.signature or part.redacted:
                    events.append(ThinkingDelta(signature=part.signature, redacted=part.redacted, **seal))
            case ToolCall():
                index = len(waiting)
                began = ToolCallBegan(
                    index=index,
                    call_id=part.call_id,
                    name=part.name,
                    is_custom=part.is_custom,
                    signature=part.signature,
                )
                told = [ToolCallDelta(index=index, arguments=piece) for piece in pieces(part.arguments)]
                waiting.append([began, *told])
    is_mixed = draw(st.booleans())
    if is_mixed:
        events += [call.pop(0) for call in waiting]
    while left := [call for call in waiting if call]:
        events.append((draw(st.sampled_from(left)) if is_mixed else left[0]).pop(0))
    assert answer.usage is not None
    last: list[Event] = [Finished(finish=choice.finish), UsageSeen(usage=answer.usage)]
    return [*events, *(last if draw(st.booleans()) else reversed(last))]


def overheard(events: Iterable[Event]) -> Heard:
    """The parts that a stream tells of, put together again."""
    parts: list[Part] = []
    calls: dict[int, ToolCall] = {}
    finish, usage = "", None
    for event in events:
        match event:
            case TextDelta():
                parts.append(Text(text=event.text, signature=event.signature))
            case RefusalDelta():
                parts.append(Refusal(text=event.text))
            case ThinkingDelta():
                last = parts[-1] if parts else None
                if not isinstance(last, Thinking) or last.signature or last.redacted:
                    last = Thinking()
                    parts.append(last)
                last.text += event.text
                last.signature, last.redacted = event.signature, event.redacted
                last.origin, last.thinking_id = event.origin or last.origin, event.thinking_id or last.thinking_id
            case ToolCallBegan():
                assert event.index not in calls
                call = calls[event.index] = ToolCall(
                    call_id=event.call_id,
                    name=event.name,
                    arguments="",
                    is_custom=event.is_custom,
                    signature=event.signature,
                )
                parts.append(call)
            case ToolCallDelta():
                calls[event.index].arguments += event.arguments
            case Finished():
                finish = event.finish
            case UsageSeen():
                usage = event.usage
            case Began() | Done():
                pass
            case _:
                raise AssertionError(event)
    return Heard(_joined(map(_part, parts)), finish, usage)


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_says_what_it_said_when_it_is_read_again_at_any_cut(name: str) -> None:
    form = FORMATS[name]

    @given(answers(name, ("", OWN_ORIGIN[name]), signs_parts=name == "gemini"), st.data())
    @settings(FAST, max_examples=PLENTY // 2)
    def check(answer: Answer, data: st.DataObject) -> None:
        writer, parser, reader = form.dialect.stream_writer(ASKING[name]), form.api.frames(), form.api.stream_reader()
        events = data.draw(events_of(answer))
        told = [writer.write(batch) for batch in _cut(data.draw, events)] + [writer.finish()]
        frames = [frame for chunk in _cut(data.draw, b"".join(told)) for frame in parser.feed(chunk)]
        again = [event for frame in frames for event in reader.read(frame)]
        assert b"".join(frame.raw for frame in frames) == b"".join(told)
        assert parser.finish() is None
        assert overheard(again) == heard(answer)

    check()


def accumulated(name: str, frames: Iterable[Frame]) -> dict[str, Any]:
    """The whole answer, as the clients of a stream put it together."""
    told = [json.loads(frame.data) for frame in frames if frame.data.startswith(b"{")]
    match name:
        case "chat":
            return {
                "choices": [
                    {"message": _chat_message([chunk["choices"][0]["delta"] for chunk in told if chunk["choices"]])}
                ]
            }
        case "responses":
            return next(
                event["response"] for event in told if event["type"] in ("response.completed", "response.incomplete")
            )
        case "anthropic":
            return {"content": _blocks(told)}
        case _:
            parts = [part for chunk in told for part in chunk["candidates"][0]["content"]["parts"]]
            return {"candidates": [{"content": {"role": "model", "parts": parts}}]}


def _chat_message(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """Texts are put together, and so are calls and details of reasoning by their index."""
    message: dict[str, Any] = {}

    def add(whole: dict[str, Any], piece: dict[str, Any]) -> None:
        for key, value in piece.items():
            if isinstance(value, list):
                items = whole.setdefault(key, [])
                for item in value:
                    same = next((other for other in items if other["index"] == item["index"]), None)
                    add(same, item) if same is not None else items.append(item)
            elif isinstance(value, dict):
                add(whole.setdefault(key, {}), value)
            elif (
                key in ("content", "reasoning_content", "refusal", "arguments", "input", "text")
                and whole.get(key) is not None
            ):
                whole[key] += value or ""
            else:
                whole[key] = value

    for delta in deltas:
        add(message, delta)
    return message


def _blocks(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    blocks: dict[int, dict[str, Any]] = {}
    for event in told:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = {**event["content_block"], "json": ""}
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            for key in ("text", "thinking", "signature"):
                block[key] = block.get(key, "") + delta[key] if key in delta else block.get(key)
            block["json"] += delta.get("partial_json", "")
    for block in blocks.values():
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")
    return [{key: value for key, value in block.items() if value is not None} for block in blocks.values()]


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_signed_in_a_stream_comes_back_with_the_next_turn(name: str) -> None:
    form = FORMATS[name]

    @given(answers(name, tuple(SIGNED), signs_parts=True), st.data())
    @settings(FAST, max_examples=PLENTY // 2)
    def check(answer: Answer, data: st.DataObject) -> None:
        for part in answer.choices[0].parts:
            if name == "anthropic" and isinstance(part, Text):
                part.signature = ""  # It comes after its text, and nothing may come there: the one thing left out.
        writer = form.dialect.stream_writer(ASKING[name])
        told = writer.write(data.draw(events_of(answer))) + writer.finish()
        prompt = read(name, next_turn(name, accumulated(name, form.api.frames().feed(told))))
        returned = [part for message in prompt.messages for part in message.parts]
        assert prompt.lost == []
        assert _joined(map(_part, returned)) == heard(answer).parts

    check()


def _cut(draw: st.DrawFn, whole: Any) -> list[Any]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
