"""Google's Gemini API: content, the count of its tokens, and embeddings. Pure; no I/O. Vertex AI reuses most of it.

`promptTokenCount` includes cached tokens; thoughts (`thoughtsTokenCount`) and what built-in tools fed to the model
(`toolUsePromptTokenCount`) stand beside the others. A finish of `STOP` ends tool calls, too. Calls mostly have no id, so one
is derived from the answer's id. A `thoughtSignature` may stand on any part and must come back on it. Prompts are cached without
being told. Offsets of citations are bytes, here characters.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from proxy.dialects.dialect import JSON, Call
from proxy.neutral import OPTIONAL_PARAMETERS, Answer, Embedded, Embedding, Prompt, ProviderError, lose_all_but
from proxy.providers import provider as base
from proxy.providers.gemini_answers import (
    COUNT_ANSWERS,
    EMBED_ANSWERS,
    EMBED_HEADS,
    Reader,
    is_error,
    measure,
    read_answer,
    read_error,
    usage_of,
)
from proxy.providers.gemini_requests import RequestWriter, embed_contents, embed_options
from proxy.providers.provider import Api, Authorizer, HeaderAuthorizer, Measured, Outgoing, StreamReader
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import FrameParser
from proxy.wire.json_array import ELEMENT_BYTES_MAX, JSONArrayParser
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape
from proxy.wire.sse import SSEParser

PATH_SAFE = "/@.-_~"
SERVICE_TIERS = {"flex": "flex", "priority": "priority"}
_LOST = frozenset(
    {
        "parallel_tool_calls", "min_p", "repetition_penalty", "logit_bias", "verbosity", "user", "service_tier", "metadata",
        "store",
    }
)  # fmt: skip
CARRIED = frozenset(OPTIONAL_PARAMETERS) - _LOST

_objects = Shape(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class Gemini(Api):
    """What its APIs have in common: paths and errors."""

    def model_path(self, deployment: Deployment, provider: Provider) -> str:
        return f"/{self.model_name(deployment, provider)}"

    def model_name(self, deployment: Deployment, provider: Provider) -> str:
        """As a body names it."""
        model = deployment.upstream_model
        return model if "/" in model else f"models/{model}"

    def target(self, deployment: Deployment, provider: Provider, method: str, query: str = "") -> bytes:
        path = quote(self.model_path(deployment, provider), safe=PATH_SAFE)
        return f"{path}:{method}{'?' if query else ''}{query}".encode()

    def renamed(
        self, fields: Mapping[str, msgspec.Raw], deployment: Deployment, provider: Provider
    ) -> dict[str, msgspec.Raw]:
        """A body that names the model besides the path has to name the same."""
        renamed = dict(fields)
        if "model" in renamed:
            renamed["model"] = msgspec.Raw(_encode(self.model_name(deployment, provider)))
        return renamed

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class Generate(Gemini):
    name = "gemini.generate"
    capability = "chat"
    stream_types = (b"text/event-stream", b"application/json")
    is_translatable = True

    def accept(self, call: Call) -> bytes:
        return JSON if self._is_array(call) else super().accept(call)

    def frame_parser(self, call: Call) -> FrameParser:
        # Generated images come as base64 within one event.
        return JSONArrayParser() if self._is_array(call) else SSEParser(event_bytes_max=ELEMENT_BYTES_MAX)

    def _is_array(self, call: Call) -> bool:
        """Whether the client speaks the same dialect, and did not ask for server-sent events."""
        return call.is_stream and call.dialect.name == self.name and call.parameters.get("alt") != "sse"

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = self.renamed(call.fields, deployment, provider)
        if call.output_tokens_max is None:
            _cap_output(fields, deployment.max_output_tokens)
        method, query = call.parameters["method"], call.parameters.get("query", "")
        return Outgoing(self.target(deployment, provider, method, query), dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        return measure(body)

    def write_request(
        self, prompt: Prompt, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        writer = RequestWriter(prompt, deployment, lost)
        body = writer.body()
        headers = self.carry_platform(prompt, body, lost)
        method, query = ("streamGenerateContent", "alt=sse") if call.is_stream else ("generateContent", "")
        return Outgoing(self.target(deployment, provider, method, query), _encode(body), headers)

    def carry_platform(self, prompt: Prompt, body: dict[str, Any], lost: list[str]) -> tuple[tuple[bytes, bytes], ...]:
        """Into `body`, or into the headers that are returned, what Vertex AI says in another way; the rest into `lost`."""
        tier = SERVICE_TIERS.get(prompt.service_tier or "")
        lose_all_but(CARRIED | {"service_tier"} if tier else CARRIED, prompt, lost)
        if tier:
            body["serviceTier"] = tier
        return ()

    def read_answer(self, body: bytes) -> Answer:
        return read_answer(body)

    def stream_reader(self) -> StreamReader:
        return Reader()


class CountTokens(Gemini):
    name = "gemini.count_tokens"
    capability = "chat"

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = self.renamed(call.fields, deployment, provider)
        for key in ("generateContentRequest", "generate_content_request"):
            inner = _objects.find(fields[key]) if key in fields else None
            if inner is not None:
                fields[key] = msgspec.Raw(dump_object(self.renamed(inner, deployment, provider)))
        return Outgoing(self.target(deployment, provider, "countTokens"), dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        return Measured(has_error=is_error(COUNT_ANSWERS.read(body).error))


class Embed(Gemini):
    name = "gemini.embed"
    capability = "embeddings"
    is_translatable = True

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = self.renamed(call.fields, deployment, provider)
        if "requests" in fields:
            requests = msgspec.json.decode(fields["requests"], type=list[dict[str, msgspec.Raw]])
            renamed = [dump_object(self.renamed(request, deployment, provider)) for request in requests]
            fields["requests"] = msgspec.Raw(b"[" + b",".join(renamed) + b"]")
        method, query = call.parameters["method"], call.parameters.get("query", "")
        return Outgoing(self.target(deployment, provider, method, query), dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        head = EMBED_HEADS.read(body)
        return Measured(usage=usage_of(head.usage_metadata), has_error=is_error(head.error))

    def write_request(
        self, prompt: Embedding, call: Call, deployment: Deployment, provider: Provider, lost: list[str]
    ) -> Outgoing:
        name = self.model_name(deployment, provider)
        requests = [
            {"model": name, "content": content, **embed_options(prompt)} for content in embed_contents(prompt, lost)
        ]
        return Outgoing(self.target(deployment, provider, "batchEmbedContents"), _encode({"requests": requests}))

    def read_answer(self, body: bytes) -> Embedded:
        answer = EMBED_ANSWERS.read(body)
        embeddings = answer.embeddings or ([answer.embedding] if answer.embedding is not None else None)
        if embeddings is None:
            raise msgspec.DecodeError("the answer has no embeddings")
        return Embedded(vectors=[embedding.values for embedding in embeddings], usage=usage_of(answer.usage_metadata))


def _cap_output(fields: dict[str, msgspec.Raw], tokens: int) -> None:
    key = "generation_config" if "generation_config" in fields else "generationConfig"
    config = (_objects.find(fields[key]) or {}) if key in fields else {}
    cap = "max_output_tokens" if "max_output_tokens" in config else "maxOutputTokens"
    fields[key] = msgspec.Raw(dump_object({**config, cap: msgspec.Raw(b"%d" % tokens)}))


def authorize(secret: str, provider: Provider) -> Authorizer:
    return HeaderAuthorizer(b"x-goog-api-key", secret, secret)


GENERATE = Generate()
COUNT_TOKENS = CountTokens()
EMBED = Embed()

PROVIDER = base.Provider(name="gemini", apis=(GENERATE, COUNT_TOKENS, EMBED), authorize=authorize)
