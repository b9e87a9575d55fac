"""A provider's other paths: sent as they came, answered as they come. Pure; no I/O."""

from proxy.dialects.dialect import Call
from proxy.providers.provider import Api, ChunkMeter, Measured, Outgoing, StreamMeter
from proxy.snapshot import Deployment, Provider
from proxy.wire.chunks import Chunks

STREAM_TYPES = (b"text/event-stream", b"application/vnd.amazon.eventstream", b"application/x-ndjson")


class Passthrough(Api):
    name = "passthrough"
    capability = "passthrough"
    frames = Chunks
    stream_types = (b"",)
    has_many_successes = True

    def accept(self, call: Call) -> bytes:
        return b"*/*"

    def answers_in_stream(self, call: Call, content_type: bytes) -> bool:
        return content_type.lower().startswith(STREAM_TYPES)

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        said = call.parameters
        query = b"?" + said["query"].encode("latin-1") if "query" in said else b""
        target = b"/" + said["path"].encode("ascii") + query
        return Outgoing(target, call.body, content_type=call.content_type, method=said["method"].encode("ascii"))

    def measure(self, body: bytes) -> Measured:
        return Measured()

    def stream_meter(self, call: Call) -> StreamMeter:
        return ChunkMeter()


PASSTHROUGH = Passthrough()
