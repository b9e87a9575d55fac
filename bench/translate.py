"""What a translation costs: microseconds of one core for a whole request and answer, and for one event of a stream.

Every dialect that can be translated, to every API of another dialect. The request is a conversation of some 2 KB with a
system prompt, tools, a tool call and its result; what a client of the dialect would send and a provider would answer is
made by the project's own writers. "Added" is beside the same dialect on both sides, whose bytes pass untouched.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from audit.records import Usage
from proxy.dialects.dialect import Call, Dialect
from proxy.dialects.table import ENDPOINTS
from proxy.neutral import (
    STOP,
    Answer,
    Began,
    Choice,
    Done,
    Finished,
    Message,
    Prompt,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolResult,
    UsageSeen,
)
from proxy.providers.provider import Api
from proxy.providers.table import PROVIDERS
from proxy.snapshot import Deployment, Provider

BODY_BYTES = 2048
STREAM_EVENTS = 200
DEPLOYMENT = Deployment(deployment_id="d", name="d", provider="p", model="m", upstream_model="model-1")
PROVIDER = Provider(
    slug="p",
    api="p",
    base_url="http://127.0.0.1",
    options={"project": "p", "location": "l", "region": "r", "api_version": "1"},
)
USAGE = Usage(input_tokens=500, cache_read_input_tokens=100, output_tokens=200)
ANSWER = Answer(
    answer_id="answer-1",
    model="model-1",
    created_at_s=1_790_000_000,
    choices=[Choice(parts=[Text(text="All work and no play makes a gateway dull. " * 20)], finish=STOP)],
    usage=USAGE,
)
EVENTS = [
    Began(answer_id="answer-1", model="model-1", created_at_s=1_790_000_000),
    *(TextDelta(text=f" word{number}") for number in range(STREAM_EVENTS)),
    Finished(finish=STOP),
    UsageSeen(usage=USAGE),
    Done(),
]


class Cost(NamedTuple):
    """`added_us` is beside the same dialect on both sides. None where no sample answer of the API can be made here."""

    dialect: str
    provider: str
    api: str
    request_us: float
    answer_us: float | None
    added_us: float | None
    event_us: float | None


def _prompt() -> Prompt:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    prompt = Prompt(
        messages=[
            Message(role="system", parts=[Text(text="You are the one who answers. " * 10)]),
            Message(role="user", parts=[Text(text="How is the weather in Bern?")]),
            Message(role="assistant", parts=[ToolCall(call_id="call_1", name="weather", arguments='{"city":"Bern"}')]),
            Message(role="user", parts=[ToolResult(call_id="call_1", content=(Text(text="12 degrees, rain"),))]),
            Message(role="assistant", parts=[Text(text="It rains in Bern, at 12 degrees.")]),
        ],
        tools=[Tool(name="weather", description="The weather of a city, now.", parameters=schema)],
        max_output_tokens=200,
        temperature=0.5,
    )
    filler = "All work and no play makes a gateway dull. " * 40
    prompt.messages.append(Message(role="user", parts=[Text(text=filler[: BODY_BYTES - 900])]))
    return prompt


def measure(rounds: int) -> Iterator[Cost]:
    dialects = {
        e.dialect.name: e.dialect for e in ENDPOINTS if e.dialect.is_translatable and e.dialect.operation == "chat"
    }
    apis = [(name, api) for name, kind in PROVIDERS.items() for api in kind.apis if api.capability == "chat"]
    for dialect in dialects.values():
        maker = PROVIDERS[dialect.name.partition(".")[0]]
        native = next(api for api in maker.apis if api.name == dialect.name)
        body, parameters = _client_body(dialect, native)
        untouched_us = _native_us(dialect, native, body, parameters, rounds)
        for provider, api in apis:
            if api.name != dialect.name and api.is_translatable:
                yield _cost(dialect, provider, api, dialects.get(api.name), body, parameters, untouched_us, rounds)


def _client_body(dialect: Dialect, api: Api) -> tuple[bytes, dict[str, str]]:
    """What a client of the dialect sends for the sample, and what its path says."""
    empty = _call(dialect, b"{}", {})
    outgoing = api.write_request(_prompt(), empty, DEPLOYMENT, PROVIDER, [])
    parameters = {"model": "demo", "method": "generateContent"} if dialect.name.startswith("gemini") else {}
    return outgoing.body, parameters


def _call(dialect: Dialect, body: bytes, parameters: dict[str, str]) -> Call:
    return Call(
        dialect=dialect,
        operation="chat",
        capability="chat",
        alias="demo",
        body=body,
        parameters=parameters,
        input_tokens_max=1,
    )


def _native_us(dialect: Dialect, api: Api, body: bytes, parameters: dict[str, str], rounds: int) -> float:
    answer = dialect.write_answer(ANSWER, dialect.describe(body, b"application/json", parameters))

    def run() -> None:
        call = dialect.describe(body, b"application/json", parameters)
        api.pass_request(call, DEPLOYMENT, PROVIDER)
        api.measure(answer)

    return _us(run, rounds)


def _cost(
    dialect: Dialect,
    provider: str,
    api: Api,
    twin: Dialect | None,
    body: bytes,
    parameters: dict[str, str],
    untouched_us: float,
    rounds: int,
) -> Cost:
    call = dialect.describe(body, b"application/json", parameters)

    def request() -> None:
        described = dialect.describe(body, b"application/json", parameters)
        api.write_request(dialect.read_prompt(described), described, DEPLOYMENT, PROVIDER, [])

    request_us = _us(request, rounds)
    if twin is None:
        return Cost(dialect.name, provider, api.name, round(request_us, 1), None, None, None)
    twin_call = _call(twin, b"{}", {"alt": "sse"})
    answered = twin.write_answer(ANSWER, twin_call)
    answer_us = _us(lambda: dialect.write_answer(api.read_answer(answered), call), rounds)
    event_us = _stream_us(dialect, call, api, twin, twin_call, max(rounds // STREAM_EVENTS, 5))
    added_us = request_us + answer_us - untouched_us
    figures = (round(figure, 1) for figure in (request_us, answer_us, added_us, event_us))
    return Cost(dialect.name, provider, api.name, *figures)


def _stream_us(dialect: Dialect, call: Call, api: Api, twin: Dialect, twin_call: Call, rounds: int) -> float:
    writer = twin.stream_writer(twin_call)
    stream = [writer.write([event]) for event in EVENTS] + [writer.finish()]
    chunks = [chunk for chunk in stream if chunk]

    def run() -> None:
        parser, reader, told = api.frames(), api.stream_reader(), dialect.stream_writer(call)
        for chunk in chunks:
            for frame in parser.feed(chunk):
                told.write(reader.read(frame))
        told.finish()

    return _us(run, rounds) / len(chunks)


def _us(run: Callable[[], None], rounds: int) -> float:
    """The best of five: what disturbs only ever adds."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(max(rounds // 5, 1)):
            run()
        best = min(best, (time.perf_counter() - began) / max(rounds // 5, 1))
    return best * 1e6
