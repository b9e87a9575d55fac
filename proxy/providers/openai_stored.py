"""OpenAI's files, batches and stored responses. Pure; no I/O.

Source: https://platform.openai.com/docs/api-reference, and `openai.types.Batch` of the official SDK.
"""

from typing import Any

import msgspec

from audit.records import Usage
from proxy.dialects.dialect import BATCH, FILE
from proxy.neutral import ProviderError
from proxy.providers import openai_responses_answers
from proxy.providers.openai_errors import read_error
from proxy.providers.provider import Kept, Measured, checked_usage, name_of
from proxy.providers.stored import Progress, StoredApi

RUNNING_BATCH = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
RUNNING_RESPONSE = frozenset({"queued", "in_progress"})
# Of a response; anything else was made, as far as it was, and is paid for.
UNBILLED_RESPONSE = frozenset({"failed", "cancelled"})


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _BatchUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Counts(msgspec.Struct):
    completed: int | None = None


class _Batch(msgspec.Struct):
    id: str = ""
    status: str = ""
    endpoint: str = ""
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: _Counts | None = None
    usage: _BatchUsage | None = None


class _Object(msgspec.Struct):
    id: str


class _LineResponse(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    response: _LineResponse | None = None


class _Response(msgspec.Struct):
    status: str = ""
    error: Any = None


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_object = msgspec.json.Decoder(_Object).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_response = msgspec.json.Decoder(_Response).decode


class OpenAIStored(StoredApi):
    def read_error(self, status_code: int, body: bytes) -> ProviderError:
        return read_error(status_code, body)


class OpenAIFiles(OpenAIStored):
    name = "openai.files"
    capability = "files"
    root = "/files"

    def measure(self, body: bytes) -> Measured:
        return Measured(kept=(Kept(FILE, _decode_object(body).id),))


class OpenAIBatches(OpenAIStored):
    name = "openai.batches"
    capability = "batch"
    root = "/batches"

    def measure(self, body: bytes) -> Measured:
        """The batch, and the files that its results are in."""
        batch = _decode_batch(body)
        files = (batch.output_file_id, batch.error_file_id)
        kept = (Kept(BATCH, batch.id), *(Kept(FILE, file_id) for file_id in files if file_id))
        return Measured(kept=kept, finish_reason=name_of(batch.status))

    def progress(self, body: bytes) -> Progress:
        batch = _decode_batch(body)
        if batch.status in RUNNING_BATCH:
            return Progress(is_over=False, status=batch.status)
        # Batches that expired or were cancelled have been answered in part. Where nothing was, there is no such file.
        if batch.output_file_id is None:
            return Progress(is_over=True, status=batch.status, usage=Usage(), requests=0)
        completed = batch.request_counts.completed if batch.request_counts is not None else None
        return Progress(
            is_over=True,
            status=batch.status,
            usage=_usage_of(batch.usage) if completed else None,
            requests=completed or 0,
            results=f"{FILES.path_of(batch.output_file_id)}/content",
            response_model=name_of(batch.model),
            endpoint=batch.endpoint,
        )

    def line_body(self, line: bytes) -> bytes | None:
        response = _decode_line(line).response
        if response is None or response.status_code != 200:
            return None
        return bytes(response.body)


class OpenAIStoredResponses(OpenAIStored):
    name = "openai.stored_responses"
    capability = "responses"
    root = "/responses"

    def progress(self, body: bytes) -> Progress:
        status = _decode_response(body).status
        if status in RUNNING_RESPONSE:
            return Progress(is_over=False, status=status)
        measured = openai_responses_answers.measure(body)
        return Progress(
            is_over=True,
            status=name_of(status),
            usage=measured.usage,
            response_model=measured.response_model,
            is_billed=status not in UNBILLED_RESPONSE,
        )


def _usage_of(usage: _BatchUsage | None) -> Usage | None:
    """None where there is nothing in it: older batches have a usage of zeros."""
    if usage is None or not usage.input_tokens:
        return None
    read, made = usage.input_tokens_details or _Details(), usage.output_tokens_details or _Details()
    return checked_usage(
        Usage(
            input_tokens=usage.input_tokens,
            cache_read_input_tokens=read.cached_tokens or 0,
            output_tokens=usage.output_tokens or 0,
            reasoning_tokens=made.reasoning_tokens or 0,
        )
    )


FILES = OpenAIFiles()
BATCHES = OpenAIBatches()
STORED_RESPONSES = OpenAIStoredResponses()
ALL = (FILES, BATCHES, STORED_RESPONSES)
