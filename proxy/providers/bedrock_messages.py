"""Anthropic's messages through Bedrock's InvokeModel: its bodies without the model, its stream in Amazon's messages. Pure."""

import msgspec

from proxy.dialects.dialect import EVENT_STREAM as SERVER_SENT_EVENTS
from proxy.dialects.dialect import Call
from proxy.neutral import ProviderError
from proxy.providers.bedrock_answers import read_error
from proxy.providers.bedrock_chunks import ClaudeChunks, as_server_sent
from proxy.providers.bedrock_converse import CLAUDE, EVENT_STREAM, family_of, is_mantle, model_target
from proxy.providers.provider import Api, Outgoing
from proxy.snapshot import Deployment, Provider
from proxy.wire.frame import Frame
from proxy.wire.json_gate import dump_object
from proxy.wire.json_shape import Shape

BETA_HEADER = b"anthropic-beta"

_encode = msgspec.json.Encoder().encode
_VERSION = msgspec.Raw(b'"bedrock-2023-05-31"')
_betas = Shape(list[str])


class OnBedrock(Api):
    """What Anthropic's messages are on Bedrock; goes before the class that reads and measures them."""

    frames = ClaudeChunks
    stream_types = (EVENT_STREAM,)
    has_own_errors = True

    def serves(self, deployment: Deployment, provider: Provider) -> bool:
        return family_of(deployment) == CLAUDE and not is_mantle(provider)

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        """The path says the model and whether to stream; the version and betas stand in the body."""
        fields = {name: value for name, value in call.fields.items() if name not in ("model", "stream")}
        fields["anthropic_version"] = _VERSION
        betas = _betas_of(call)
        if betas:
            fields["anthropic_beta"] = msgspec.Raw(_encode(betas))
        if call.output_tokens_max is None:
            fields["max_tokens"] = msgspec.Raw(b"%d" % deployment.max_output_tokens)
        action = "invoke-with-response-stream" if call.is_stream else "invoke"
        return Outgoing(model_target(deployment, action), dump_object(fields))

    def stream_type(self, call: Call, content_type: bytes) -> bytes:
        return SERVER_SENT_EVENTS

    def reframe(self, frame: Frame) -> bytes:
        return as_server_sent(frame)

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


def _betas_of(call: Call) -> list[str]:
    """Of the header, and of the body for clients that write for Bedrock."""
    header = call.headers.get(BETA_HEADER, b"").decode("latin-1")
    said = [
        *(beta.strip() for beta in header.split(",")),
        *(_betas.find(call.fields.get("anthropic_beta", b"[]")) or ()),
    ]
    return list(dict.fromkeys(filter(None, said)))
