"""OpenAI's embeddings, as OpenAI and the providers shaped like it speak them. Pure; no I/O."""

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.providers.provider import Api, Measured, Outgoing, checked_usage, name_of
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NULL


_decode_answer = msgspec.json.Decoder(_Answer).decode


class OpenAIEmbeddings(Api):
    name = "openai.embeddings"
    capability = "embeddings"
    target = b"/embeddings"

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = {**call.fields, "model": msgspec.Raw(_encode(deployment.upstream_model))}
        return Outgoing(self.target, dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        answer = _decode_answer(body)
        usage = None
        if answer.usage is not None:
            tokens = answer.usage.prompt_tokens or answer.usage.total_tokens
            usage = checked_usage(Usage(input_tokens=tokens)) if tokens is not None else None
        return Measured(usage=usage, response_model=name_of(answer.model), has_error=bytes(answer.error) != b"null")


EMBEDDINGS = OpenAIEmbeddings()
