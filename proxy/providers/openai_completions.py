"""OpenAI's legacy completions, as OpenAI and the providers shaped like it speak them. Pure; no I/O."""

from typing import ClassVar

import msgspec

from proxy.dialects.dialect import Call
from proxy.dialects.openai_completions import MAX_TOKENS_DEFAULT
from proxy.neutral import ProviderError
from proxy.providers.openai_chat import ChatMeter, including_usage, measure
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import UNBOUNDED_FIELDS, Api, Measured, Outgoing, StreamMeter, renamed
from proxy.snapshot import Deployment, Provider
from proxy.wire.json_gate import dump_object


class OpenAICompletions(Api):
    """Measured as chats are: the text stands elsewhere, all else is the same."""

    name = "openai.completions"
    capability = "completions"
    target: ClassVar[bytes] = b"/completions"
    unbounded = UNBOUNDED_FIELDS

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        fields = renamed(call, deployment)
        # What OpenAI takes for no cap, told to whoever takes another.
        if "max_tokens" not in fields or bytes(fields["max_tokens"]) == b"null":
            fields["max_tokens"] = msgspec.Raw(b"%d" % MAX_TOKENS_DEFAULT)
        if call.is_stream and not call.wants_usage_chunk:
            fields["stream_options"] = including_usage(fields.get("stream_options"))
        return Outgoing(self.target, dump_object(fields))

    def measure(self, body: bytes) -> Measured:
        return measure(body)

    def stream_meter(self, call: Call) -> StreamMeter:
        return ChatMeter(call.wants_usage_chunk)

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


COMPLETIONS = OpenAICompletions()
