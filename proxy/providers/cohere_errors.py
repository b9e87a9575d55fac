"""What Cohere says of a mistake. Pure; no I/O."""

import msgspec

from proxy.neutral import ProviderError
from proxy.providers import openai_errors
from proxy.providers.provider import name_of
from proxy.wire.json_shape import Shape

_NULL = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    message: str | None = None
    error: msgspec.Raw = _NULL
    error_type: str | None = None


_errors = Shape(_Error)


def read_error(status_code: int, body: bytes) -> ProviderError:
    """`{id, message}`, at times with an `error_type`."""
    error = openai_errors.read_error(status_code, body)
    found = _errors.find(body)
    if found is not None and found.error_type:
        error.kind = name_of(found.error_type)
    return error


def is_error(data: bytes) -> bool:
    """Whether an error stands where an event should."""
    error = _errors.find(data)
    return error is not None and bool(error.message or bytes(error.error) != b"null")
