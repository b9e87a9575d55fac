"""JSON of a known shape from somebody who may send anything. No I/O."""

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Shape(Generic[T]):
    """Decodes to `kind`, a `msgspec.Struct` with the fields that are needed. Text that is not UTF-8 and JSON that is nested
    too deep are the sender's mistake like any other."""

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def read(self, body: bytes | msgspec.Raw) -> T:
        """Raises `msgspec.DecodeError`, and nothing else."""
        try:
            return self._decode(body)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error

    def find(self, body: bytes | msgspec.Raw) -> T | None:
        """None where it is of another shape."""
        try:
            return self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
