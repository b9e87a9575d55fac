"""What a provider's APIs for stored things have in common: sent as they came, and asked for the end of a job. Pure; no I/O."""

from typing import ClassVar, NamedTuple
from urllib.parse import quote

from audit.records import Usage
from proxy.dialects.dialect import Call
from proxy.dialects.stored import StoredDialect
from proxy.providers.provider import Api, ChunkMeter, Measured, Outgoing, StreamMeter
from proxy.snapshot import Deployment, Provider
from proxy.wire.chunks import Chunks


class Progress(NamedTuple):
    """How far a job is. `usage` is of `requests` that were answered, together; None where the provider does not say, and
    then each line at `results`, a path, has its own."""

    is_over: bool
    status: str
    usage: Usage | None = None
    requests: int = 1
    results: str = ""
    response_model: str = ""
    # Whether what was made is paid for: what failed as a whole is not.
    is_billed: bool = True
    # The path that the requests of a batch called.
    endpoint: str = ""


class StoredApi(Api):
    frames = Chunks
    stream_types = (b"",)
    # The largest file that OpenAI keeps, twice.
    stream_bytes_max: ClassVar[int] = 1024 * 1024 * 1024
    headers: tuple[tuple[bytes, bytes], ...] = ()
    root: ClassVar[str] = ""

    def accept(self, call: Call) -> bytes:
        return b"*/*"

    def answers_in_stream(self, call: Call, content_type: bytes) -> bool:
        dialect = call.dialect
        assert isinstance(dialect, StoredDialect), "nobody else's calls come here"
        # What was made in the background can be followed as a stream.
        return dialect.is_content or content_type.startswith(b"text/event-stream")

    def pass_request(self, call: Call, deployment: Deployment, provider: Provider) -> Outgoing:
        said = call.parameters
        return Outgoing(
            said["path"].encode("latin-1"),
            call.body,
            headers=self.headers,
            content_type=call.content_type,
            method=said["method"].encode("ascii"),
        )

    def measure(self, body: bytes) -> Measured:
        return Measured()

    def stream_meter(self, call: Call) -> StreamMeter:
        return ChunkMeter()

    # Jobs

    def path_of(self, upstream_id: str) -> str:
        return f"{self.root}/{quote(upstream_id, safe='')}"

    def read(self, path: str, deployment: Deployment, provider: Provider) -> Outgoing:
        """For the gateway itself: a job at `path_of` it, or its results."""
        return Outgoing(path.encode("latin-1"), b"", headers=self.headers, method=b"GET")

    def progress(self, body: bytes) -> Progress:
        """Raises `msgspec.DecodeError`."""
        raise NotImplementedError

    def line_body(self, line: bytes) -> bytes | None:
        """The answer that a line of the results holds; None for a request that was not answered. Raises
        `msgspec.DecodeError`."""
        raise NotImplementedError
