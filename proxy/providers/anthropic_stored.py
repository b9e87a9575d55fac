"""Anthropic's batches of messages. Pure; no I/O. Source: https://platform.claude.com/docs/en/api/messages/batches."""

import re

import msgspec

from proxy.dialects.dialect import MESSAGE_BATCH
from proxy.neutral import ProviderError
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Kept, Measured
from proxy.providers.stored import Progress, StoredApi

ENDED = "ended"
SUCCEEDED = "succeeded"


class _Batch(msgspec.Struct):
    id: str = ""
    processing_status: str = ""


class _Result(msgspec.Struct):
    type: str = ""
    message: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    result: _Result


# An address, of which only the path is kept: that is where they are here, too.
_RESULTS_URL = re.compile(rb'("results_url"\s*:\s*")[^"]*?(/v1/messages/batches/[^"]*)')

_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_line = msgspec.json.Decoder(_Line).decode


class AnthropicBatches(StoredApi):
    name = "anthropic.batches"
    capability = "batch"
    root = "/messages/batches"

    def __init__(self, version: tuple[bytes, bytes]) -> None:
        self.headers = (version,)

    def measure(self, body: bytes) -> Measured:
        return Measured(kept=(Kept(MESSAGE_BATCH, _decode_batch(body).id),))

    def retell(self, body: bytes) -> bytes:
        """Anthropic's own clients fetch the results from where the batch says that they are."""
        return _RESULTS_URL.sub(rb"\1\2", body)

    def progress(self, body: bytes) -> Progress:
        batch = _decode_batch(body)
        if batch.processing_status != ENDED:
            return Progress(is_over=False, status=batch.processing_status)
        return Progress(is_over=True, status=ENDED, requests=0, results=f"{self.path_of(batch.id)}/results")

    def line_body(self, line: bytes) -> bytes | None:
        result = _decode_line(line).result
        return bytes(result.message) if result.type == SUCCEEDED else None

    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)
