"""Anthropic's Messages API, and counting tokens with it. Pure; no I/O.

Claude on Vertex and Bedrock speaks the same with the model in the URL and a version in the body: `version_in_body`.
"""

from typing import ClassVar

import msgspec

from proxy import snapshot
from proxy.dialects.dialect import Call
from proxy.neutral import Answer, Prompt, ProviderError
from proxy.providers import anthropic_answers
from proxy.providers.anthropic_answers import MessagesReader
from proxy.providers.anthropic_requests import write_body
from proxy.providers.anthropic_stored import AnthropicBatches
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Api, Authorizer, HeaderAuthorizer, Measured, Outgoing, Provider, StreamReader
from proxy.wire.frame import FrameParser
from proxy.wire.json_array import ELEMENT_BYTES_MAX
from proxy.wire.json_gate import dump_object
from proxy.wire.sse import SSEParser

# The version of the API itself, not of a model. Source: Anthropic's API reference, "Versions".
VERSION = (b"anthropic-version", b"2023-06-01")
# As Anthropic's own clients send it; nothing else of a query crosses.
BETA = "beta=true"
# Without it a file's id is not understood.
FILES = (b"anthropic-beta", b"files-api-2025-04-14")

_encode = msgspec.json.Encoder().encode


class AnthropicMessages(Api):
    name = "anthropic.messages"
    capability = "chat"
    is_translatable = True
    # What stands in `anthropic_version` of the body; the model is not in the body then.
    version_in_body: ClassVar[str] = ""
    path: ClassVar[bytes] = b"/messages"
    unbounded = frozenset({"fallbacks"})

    def frame_parser(self, call: Call) -> FrameParser:
        # What a tool of the provider found comes whole in one event.
        return SSEParser(event_bytes_max=ELEMENT_BYTES_MAX) if self.frames is SSEParser else self.frames()

    def target(self, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider) -> bytes:
        is_beta = call.dialect.name == self.name and call.parameters.get("query") == BETA
        return f"{self.path.decode()}?{BETA}".encode() if is_beta else self.path

    def pass_request(self, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider) -> Outgoing:
        fields = dict(call.fields)
        if call.output_tokens_max is None:
            fields["max_tokens"] = msgspec.Raw(b"%d" % deployment.max_output_tokens)
        if self.version_in_body:
            fields.pop("model", None)
            fields.setdefault("anthropic_version", msgspec.Raw(_encode(self.version_in_body)))
            # The URL says whether it streams.
            fields.pop("stream", None)
            beta = call.parameters.get("anthropic-beta")
            if beta and "anthropic_beta" not in fields:
                fields["anthropic_beta"] = msgspec.Raw(_encode([word.strip() for word in beta.split(",")]))
        else:
            fields["model"] = msgspec.Raw(_encode(deployment.upstream_model))
        return self._outgoing(dump_object(fields), call, deployment, provider)

    def write_request(
        self,
        prompt: Prompt,
        call: Call,
        deployment: snapshot.Deployment,
        provider: snapshot.Provider,
        lost: list[str],
    ) -> Outgoing:
        max_tokens = prompt.max_output_tokens or deployment.max_output_tokens
        body = write_body(prompt, deployment.upstream_model, max_tokens, lost)
        if self.version_in_body:
            body["anthropic_version"] = self.version_in_body
        else:
            body = {"model": deployment.upstream_model, **body}
            if call.is_stream:
                body["stream"] = True
        outgoing = self._outgoing(_encode(body), call, deployment, provider)
        if b'"source":{"type":"file"' in outgoing.body and not self.version_in_body:
            outgoing = outgoing._replace(headers=(*outgoing.headers, FILES))
        return outgoing

    def _outgoing(
        self, body: bytes, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider
    ) -> Outgoing:
        return Outgoing(
            self.target(call, deployment, provider), body, headers=() if self.version_in_body else (VERSION,)
        )

    def measure(self, body: bytes) -> Measured:
        return anthropic_answers.measure(body)

    def read_answer(self, body: bytes) -> Answer:
        return anthropic_answers.read_answer(body)

    def stream_reader(self) -> StreamReader:
        return MessagesReader()

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class AnthropicCountTokens(AnthropicMessages):
    """Free, and the same body without a cap."""

    name = "anthropic.count_tokens"
    is_translatable = False
    path = b"/messages/count_tokens"

    def measure(self, body: bytes) -> Measured:
        return Measured()


class OpenMessages(AnthropicMessages):
    """As servers of open models offer it, beside a form of their own that says more: it is only passed. What they refuse they
    tell as OpenAI does, at least in part."""

    is_translatable = False
    has_own_errors = True


class OpenCountTokens(AnthropicCountTokens):
    has_own_errors = True


def authorize(secret: str, provider: snapshot.Provider) -> Authorizer:
    return HeaderAuthorizer(b"x-api-key", secret, secret)


MESSAGES = AnthropicMessages()
COUNT_TOKENS = AnthropicCountTokens()
OPEN_MESSAGES = OpenMessages()
OPEN_COUNT_TOKENS = OpenCountTokens()

PROVIDER = Provider(
    name="anthropic",
    apis=(MESSAGES, COUNT_TOKENS, AnthropicBatches(VERSION)),
    authorize=authorize,
    response_headers=frozenset({b"content-type", b"retry-after"}),
    passthrough_headers=(VERSION,),
)
