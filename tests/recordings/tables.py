"""The tables of docs/translation.md and docs/compatibility.md, made from the code and the recordings, so that they cannot rot.

python -m tests.recordings.tables        # writes them anew
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from proxy.dialects.dialect import JSON
from proxy.dialects.table import ENDPOINTS
from proxy.neutral import (
    EFFORT_BUDGETS,
    OPTIONAL_PARAMETERS,
    Media,
    Message,
    OutputFormat,
    Prompt,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from proxy.providers.provider import Api
from proxy.providers.table import PROVIDERS
from proxy.snapshot import Deployment, Provider
from tests.recordings.billed import recorded_usage
from tests.recordings.corpus import Recording, place_of, recordings
from tests.recordings.exceptions import EXCEPTIONS, TRANSLATION, USAGE, reason_of
from tests.recordings.foreign import DIALECTS, is_chat, is_translated
from tests.recordings.limits import LIMITS

DOCS = Path(__file__).parents[2] / "docs"
YES, NO = "yes", "no"
_WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


# What providers are told


class Column(NamedTuple):
    """An API of a provider for a model. `origin` is whose signatures it knows."""

    title: str
    provider: str
    api: str
    model: str
    origin: str = ""


MAKERS = (
    Column("OpenAI chat", "openai", "openai.chat", "gpt-4.1"),
    Column("OpenAI responses", "openai", "openai.responses", "gpt-5", "openai"),
    Column("Anthropic", "anthropic", "anthropic.messages", "claude-opus-4-5", "anthropic"),
    Column("Gemini", "gemini", "gemini.generate", "gemini-2.5-pro", "gemini"),
    Column("Vertex Gemini", "vertex", "gemini.generate", "gemini-2.5-pro", "gemini"),
    Column("Bedrock Claude", "bedrock", "bedrock.converse", "anthropic.claude-opus-4-5-20251101-v1:0", "anthropic"),
    Column("Bedrock Nova", "bedrock", "bedrock.converse", "amazon.nova-pro-v1:0"),
    Column("Cohere", "cohere", "cohere.chat", "command-a-03-2025"),
    Column("Ollama", "ollama", "ollama.chat", "qwen3"),
    Column("Mistral", "mistral", "openai.chat", "mistral-medium-latest"),
)
SHAPED = tuple(
    Column(name, name, "openai.chat", "a-model")
    for name in (
        "azure", "groq", "deepseek", "xai", "openrouter", "together", "perplexity", "cerebras", "huggingface", "vllm",
        "llamacpp", "openai_compatible",
    )
)  # fmt: skip

_TOOL = Tool(name="weather", description="of a city", parameters=_WEATHER, path="tools.0")
# A value that says something, and what has to be said with it.
PARAMETERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "seed": {"seed": 7},
    "stop": {"stop": ("END",)},
    "choices": {"choices": 2},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "logit_bias": {"logit_bias": {"50256": -100.0}},
    "parallel_tool_calls": {"parallel_tool_calls": False, "tools": [_TOOL]},
    "output_format": {"output_format": OutputFormat(schema=_WEATHER, name="answer")},
    "reasoning": {"reasoning": Reasoning(is_on=True, effort="high")},
    "verbosity": {"verbosity": "low"},
    "user": {"user": "user-1"},
    "service_tier": {"service_tier": "priority"},
    "metadata": {"metadata": {"team": "search"}},
    "store": {"store": True},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "cache": {"cache": "5m"},
    "modalities": {"modalities": ("image",)},
}
assert set(PARAMETERS) == set(OPTIONAL_PARAMETERS)

_BLANK = "iVBORw0KGgo="
_CALLED = [
    Message(role="user", parts=[Text(text="Weather?")]),
    Message(role="assistant", parts=[ToolCall(call_id="call_1", name="weather", arguments='{"city":"Rome"}')]),
]


def _asks(*parts: Any) -> Prompt:
    return Prompt(messages=[Message(role="user", parts=[*parts, Text(text="What is it?")])])


def _answered(result: ToolResult) -> Prompt:
    return Prompt(messages=[*_CALLED, Message(role="user", parts=[result])], tools=[_TOOL])


def _thought(thinking: Thinking) -> Prompt:
    told = Message(role="assistant", parts=[thinking, Text(text="Hello")])
    return Prompt(messages=[*_asks().messages, told, *_asks().messages], reasoning=Reasoning(is_on=True, effort="low"))


def contents(origin: str) -> dict[str, Prompt]:
    """What messages may hold. `origin` is the provider's own: a foreign signature is anybody else's."""
    image = Media(kind="image", media_type="image/png", data=_BLANK, path="x")
    foreign = "anthropic" if origin != "anthropic" else "openai"
    return {
        "image (base64)": _asks(image),
        "image (URL)": _asks(Media(kind="image", url="https://example.com/i.png", path="x")),
        "PDF (base64)": _asks(
            Media(kind="document", media_type="application/pdf", data="JVBERi0=", name="a.pdf", path="x")
        ),
        "PDF (URL)": _asks(
            Media(kind="document", media_type="application/pdf", url="https://example.com/a.pdf", path="x")
        ),
        "document (text)": _asks(Media(kind="document", media_type="text/plain", text="facts", path="x")),
        "audio (base64)": _asks(Media(kind="audio", media_type="audio/wav", data="UklGRg==", path="x")),
        "video (base64)": _asks(Media(kind="video", media_type="video/mp4", data="AAAA", path="x")),
        "cache marker on a part": _asks(Text(text="long", cache="5m")),
        "tool with a strict schema": Prompt(
            messages=_asks().messages, tools=[msgspec.structs.replace(_TOOL, is_strict=True)]
        ),
        "tool choice: required": Prompt(
            messages=_asks().messages, tools=[_TOOL], tool_choice=ToolChoice(mode="required")
        ),
        "tool choice: one tool": Prompt(
            messages=_asks().messages, tools=[_TOOL], tool_choice=ToolChoice(mode="tool", name="weather")
        ),
        "custom tool (free text)": Prompt(
            messages=_asks().messages, tools=[Tool(name="sql", is_custom=True, path="tools.0")]
        ),
        "tool result: text": _answered(ToolResult(call_id="call_1", content=(Text(text="sunny"),), path="x")),
        "tool result: image": _answered(ToolResult(call_id="call_1", content=(image,), path="x")),
        "tool result: error": _answered(
            ToolResult(call_id="call_1", content=(Text(text="no such city"),), is_error=True, path="x")
        ),
        "own signed thinking": _thought(
            Thinking(text="so", signature="c2ln", origin=origin or "none", thinking_id="rs_1", path="x")
        ),
        "thinking signed by another": _thought(Thinking(text="so", signature="c2ln", origin=foreign, path="x")),
        "unsigned thinking": _thought(Thinking(text="so", path="x")),
    }


def is_carried(column: Column, prompt: Prompt) -> bool:
    """Whether the provider is told all of it."""
    lost: list[str] = []
    call = DIALECTS["openai.chat"].call(is_stream=False)
    deployment = Deployment(
        deployment_id="d", name="d", provider="p", model="m", upstream_model=column.model, max_output_tokens=4_096
    )
    options = {"project": "a-project", "location": "us-east5", "region": "us-east-1"}
    provider = Provider(slug="p", api=column.provider, base_url="https://api.example.com/v1", options=options)
    _api(column).write_request(prompt, call, deployment, provider, lost)
    return not lost


def _api(column: Column) -> Api:
    return next(api for api in PROVIDERS[column.provider].apis if api.name == column.api)


def carried_table(columns: tuple[Column, ...]) -> str:
    rows = []
    for name, values in PARAMETERS.items():
        prompt = Prompt(**{"messages": _asks().messages, **values})
        rows.append([f"`{name}`", *(_mark(is_carried(column, prompt)) for column in columns)])
    for name in contents(""):
        rows.append([name, *(_mark(is_carried(column, contents(column.origin)[name])) for column in columns)])
    return _table(["", *(column.title for column in columns)], rows)


def _mark(holds: bool) -> str:
    return YES if holds else NO


# What clients say


def said_in(dialect: str) -> dict[str, dict[str, Any]]:
    """For each parameter of a prompt, the fields in which clients of the dialect say it."""
    tools = {"name": "f", "parameters": _WEATHER}
    function = {"type": "function", "function": tools}
    effort: dict[str, Any] = {"reasoning_effort": "high"}
    match dialect:
        case "openai.chat":
            schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _WEATHER}}
            return {
                name: {name: value}
                for name, value in {
                    "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.5,
                    "presence_penalty": 0.5, "repetition_penalty": 1.1, "seed": 7, "stop": ["END"], "logprobs": True,
                    "top_logprobs": 2, "logit_bias": {"5": -100}, "parallel_tool_calls": False, "verbosity": "low", "user": "u",
                    "service_tier": "priority", "metadata": {"a": "b"}, "store": True, "prompt_cache_key": "k",
                    "modalities": ["text", "audio"],
                }.items()
            } | {
                "choices": {"n": 2},
                "output_format": {"response_format": schema},
                "reasoning": effort,
                "cache": {"cache_control": {"type": "ephemeral"}},
                "tools": {"tools": [function]},
                "max_output_tokens": {"max_completion_tokens": 9},
            }  # fmt: skip
        case "openai.responses":
            schema = {"format": {"type": "json_schema", "name": "answer", "schema": _WEATHER}}
            return {
                "temperature": {"temperature": 0.5},
                "top_p": {"top_p": 0.5},
                "logprobs": {"include": ["message.output_text.logprobs"]},
                "top_logprobs": {"top_logprobs": 2},
                "parallel_tool_calls": {"parallel_tool_calls": False},
                "output_format": {"text": schema},
                "reasoning": {"reasoning": {"effort": "high"}},
                "verbosity": {"text": {"verbosity": "low"}},
                "user": {"user": "u"},
                "service_tier": {"service_tier": "priority"},
                "metadata": {"metadata": {"a": "b"}},
                "store": {"store": True},
                "prompt_cache_key": {"prompt_cache_key": "k"},
                "tools": {"tools": [{"type": "function", **tools}]},
                "max_output_tokens": {"max_output_tokens": 9},
            }
        case "anthropic.messages":
            return {
                "temperature": {"temperature": 0.5},
                "top_p": {"top_p": 0.5},
                "top_k": {"top_k": 5},
                "stop": {"stop_sequences": ["END"]},
                "parallel_tool_calls": {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
                "output_format": {"output_config": {"format": {"type": "json_schema", "schema": _WEATHER}}},
                "reasoning": {"thinking": {"type": "enabled", "budget_tokens": 2_048}},
                "user": {"metadata": {"user_id": "u"}},
                "service_tier": {"service_tier": "standard_only"},
                "cache": {"cache_control": {"type": "ephemeral"}},
                "tools": {"tools": [{"name": "f", "input_schema": _WEATHER}]},
                "max_output_tokens": {"max_tokens": 9},
            }
        case "gemini.generate":
            config: dict[str, tuple[str, Any]] = {
                "temperature": ("temperature", 0.5), "top_p": ("topP", 0.5), "top_k": ("topK", 5),
                "frequency_penalty": ("frequencyPenalty", 0.5), "presence_penalty": ("presencePenalty", 0.5),
                "seed": ("seed", 7), "stop": ("stopSequences", ["END"]), "choices": ("candidateCount", 2),
                "logprobs": ("responseLogprobs", True), "top_logprobs": ("logprobs", 2),
                "output_format": ("responseJsonSchema", _WEATHER), "reasoning": ("thinkingConfig", {"thinkingBudget": 2_048}),
                "modalities": ("responseModalities", ["TEXT", "IMAGE"]), "max_output_tokens": ("maxOutputTokens", 9),
            }  # fmt: skip
            said = {name: {"generationConfig": {field: value}} for name, (field, value) in config.items()}
            said["output_format"]["generationConfig"]["responseMimeType"] = "application/json"
            said["metadata"] = {"labels": {"a": "b"}}
            said["service_tier"] = {"serviceTier": "priority"}
            said["tools"] = {"tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": _WEATHER}]}]}
            return said
        case _:
            return {
                "temperature": {"temperature": 0.5},
                "top_p": {"p": 0.5},
                "top_k": {"k": 5},
                "frequency_penalty": {"frequency_penalty": 0.5},
                "presence_penalty": {"presence_penalty": 0.5},
                "seed": {"seed": 7},
                "stop": {"stop_sequences": ["END"]},
                "logprobs": {"logprobs": True},
                "output_format": {"response_format": {"type": "json_object", "json_schema": _WEATHER}},
                "reasoning": {"thinking": {"type": "enabled", "token_budget": 2_048}},
                "tools": {"tools": [function]},
                "max_output_tokens": {"max_tokens": 9},
            }


def is_read(dialect: str, name: str) -> bool:
    """Whether a request that says it is read so, with nothing lost."""
    foreign = DIALECTS[dialect]
    body = {**foreign.body, **said_in(dialect)[name]}
    call = foreign.dialect.describe(json.dumps(body).encode(), JSON, {"model": "alias", "method": "generateContent"})
    prompt = foreign.dialect.read_prompt(call)
    assert isinstance(prompt, Prompt)
    return getattr(prompt, name) not in (None, (), []) and prompt.lost == []


def _path(fields: dict[str, Any]) -> str:
    """`generationConfig.topP` of {"generationConfig": {"topP": …}}; the deepest that is one name of many."""
    name, value = next(iter(fields.items()))
    inner = value if isinstance(value, dict) else {}
    if name in ("generationConfig", "output_config", "text") or (name == "tool_choice") or "user_id" in inner:
        key = next(iter(inner)) if name != "tool_choice" else "disable_parallel_tool_use"
        return f"{name}.{key}"
    return str(name)


def said_table() -> str:
    names = ("tools", "max_output_tokens", *PARAMETERS)
    rows = [
        [
            f"`{name}`",
            *(f"`{_path(said_in(dialect)[name])}`" if name in said_in(dialect) else NO for dialect in DIALECTS),
        ]
        for name in names
    ]
    return _table(["", "chat completions", "responses", "Anthropic", "Gemini", "Cohere"], rows)


def efforts_table() -> str:
    return _table(["effort", "tokens"], [[f"`{effort}`", f"{tokens:,}"] for effort, tokens in EFFORT_BUDGETS.items()])


def limits_table() -> str:
    rows = []
    for dialect, limits in LIMITS.items():
        finishes = "; ".join(f"`{told}` as `{other}`" for told, other in limits.finishes.items())
        unsaid = [*sorted(limits.unsaid), *(["every choice but the first"] if not limits.has_choices else [])]
        if limits.cites_sources_only:
            unsaid.append("citations of neither an address nor a file")
        refusal = "a refusal" if limits.has_refusals else "text"
        rows.append([f"`{dialect}`", finishes, refusal, ", ".join(unsaid), ", ".join(sorted(limits.uncounted))])
    return _table(
        ["dialect", "finish told otherwise", "a refusal is", "has no place for", "does not count apart"], rows
    )


# What real traffic shows


def endpoints_table() -> str:
    rows = [
        [endpoint.method, f"`{endpoint.path}`", f"`{endpoint.dialect.name}`"]
        for endpoint in sorted(ENDPOINTS, key=lambda found: (found.dialect.name, found.path, found.method))
    ]
    return _table(["method", "path", "dialect"], list(dict.fromkeys(map(tuple, rows))))


def compatibility_table() -> str:
    groups: dict[tuple[str, str], list[Recording]] = {}
    for recording in recordings():
        groups.setdefault((recording.provider, recording.api), []).append(recording)
    rows = []
    for (provider, api), found in groups.items():
        failed = {found.recording_id for found in EXCEPTIONS}
        chats = [one for one in found if is_chat(one) and one.status == 200]
        across = [one for one in chats if reason_of(one, TRANSLATION) is None]
        errors = [one for one in found if one.status >= 400]
        booked = [one for one in found if _is_metered(one)]
        rows.append(
            [
                provider,
                api,
                _where(found),
                f"{sum(one.recording_id not in failed for one in found)}/{len(found)}",
                str(sum(one.is_stream for one in found)),
                str(len(errors)),
                f"{sum(reason_of(one, USAGE) is None for one in booked)}/{len(booked)}" if booked else "",
                f"{len(across)}/{len(chats)}" if chats else "",
            ]
        )
    rows.sort()
    titles = ["provider", "API", "at", "pass", "streamed", "errors", "usage", "across dialects"]
    return _table(titles, rows)


def _is_metered(recording: Recording) -> bool:
    """Whether it is said, and the gateway reads it."""
    is_read = not place_of(recording).is_passthrough or is_translated(recording)
    return recording.status == 200 and is_read and recorded_usage(recording) is not None


def _where(found: list[Recording]) -> str:
    paths = {"/passthrough/…" if place.is_passthrough else place.path for place in map(place_of, found)}
    shown = {path if path.startswith(("/pass", "/v1/", "/v2/")) else "/v1beta/models/…" for path in paths}
    translated = any(is_translated(one) and place_of(one).is_passthrough and one.status == 200 for one in found)
    return ", ".join(f"`{path}`" for path in sorted(shown)) + (" and translated" if translated else "")


def exceptions_table() -> str:
    rows = [[f"`{found.recording_id}`", found.respect, found.reason] for found in EXCEPTIONS]
    return _table(["recording", "in respect of", "why"], rows)


# Documents


def _table(titles: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [" | ".join(titles), "|".join("---" for _ in titles), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


TABLES = {
    "translation.md": {
        "said": said_table,
        "makers": lambda: carried_table(MAKERS),
        "shaped": lambda: carried_table(SHAPED),
        "efforts": efforts_table,
        "answers": limits_table,
    },
    "compatibility.md": {
        "endpoints": endpoints_table,
        "recordings": compatibility_table,
        "exceptions": exceptions_table,
    },
}


def begin(name: str) -> str:
    return f"<!-- table: {name} -->"


END = "<!-- end -->"


def table_in(document: str, name: str) -> str:
    """As it stands in the document."""
    return document.partition(begin(name))[2].partition(END)[0].strip()


def write() -> None:
    for file, tables in TABLES.items():
        document = (DOCS / file).read_text()
        for name, make in tables.items():
            before, found, after = document.partition(begin(name))
            assert found, f"{file} has no table {name}"
            document = f"{before}{begin(name)}\n{make()}\n{END}{after.partition(END)[2]}"
        (DOCS / file).write_text(document)


if __name__ == "__main__":
    write()
