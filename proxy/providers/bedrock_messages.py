"""Anthropic's messages through Bedrock's InvokeModel: its own bodies, its own stream in Amazon's messages. Pure; no I/O."""

import msgspec

from proxy import snapshot
from proxy.dialects.dialect import EVENT_STREAM as SERVER_SENT_EVENTS
from proxy.dialects.dialect import Call
from proxy.neutral import ProviderError
from proxy.providers.anthropic import AnthropicMessages
from proxy.providers.bedrock_answers import read_error
from proxy.providers.bedrock_chunks import ClaudeChunks, as_server_sent
from proxy.providers.bedrock_converse import CLAUDE, EVENT_STREAM, family_of, is_mantle, model_target
from proxy.providers.provider import Outgoing
from proxy.wire.frame import Frame, FrameParser
from proxy.wire.json_gate import dump_object

_encode = msgspec.json.Encoder().encode
_VERSION = msgspec.Raw(b'"bedrock-2023-05-31"')


class BedrockMessages(AnthropicMessages):
    """For clients of Anthropic's alone: what others ask of Claude goes through Converse."""

    is_translatable = False
    stream_types = (EVENT_STREAM,)
    has_own_errors = True

    def serves(self, deployment: snapshot.Deployment, provider: snapshot.Provider) -> bool:
        return family_of(deployment) == CLAUDE and not is_mantle(provider)

    def frame_parser(self, call: Call) -> FrameParser:
        return ClaudeChunks()

    def pass_request(self, call: Call, deployment: snapshot.Deployment, provider: snapshot.Provider) -> Outgoing:
        """The path says the model and whether to stream, the body the version and the betas."""
        fields = {name: value for name, value in call.fields.items() if name not in ("model", "stream")}
        fields["anthropic_version"] = _VERSION
        betas = [beta.strip() for beta in call.parameters.get("anthropic-beta", "").split(",")]
        if any(betas) and "anthropic_beta" not in fields:
            fields["anthropic_beta"] = msgspec.Raw(_encode([beta for beta in betas if beta]))
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
