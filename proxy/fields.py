"""A JSON object read field by field. What nobody took is what cannot be carried, at any depth. No I/O.

    message = Fields(value, "messages.2.")
    role = message.text("role")
    message.rest(lost)          # everything else that is there: ["messages.2.audio"]

A field of the wrong type is an `InvalidRequest` that names it. `null` counts as not there.
"""

from collections.abc import Iterator
from typing import Any

from proxy.errors import InvalidRequest


class Fields:
    """Takes fields out of `value`, which it empties."""

    __slots__ = ("_path", "_value")

    def __init__(self, value: Any, path: str = "") -> None:
        """`path` ends in a dot unless it is empty. Raises `InvalidRequest` unless `value` is an object."""
        if type(value) is not dict:
            raise wrong(path[:-1], "an object")
        self._value: dict[str, Any] = value
        self._path = path

    def path(self, name: str) -> str:
        return self._path + name

    def has(self, name: str) -> bool:
        return self._value.get(name) is not None

    def any(self, name: str) -> Any:
        return self._value.pop(name, None)

    def text(self, name: str) -> str | None:
        value = self._value.pop(name, None)
        if value is not None and type(value) is not str:
            raise wrong(self._path + name, "text")
        return value

    def required_text(self, name: str) -> str:
        value = self._value.pop(name, None)
        if type(value) is not str:
            raise wrong(self._path + name, "text")
        return value

    def integer(self, name: str) -> int | None:
        value = self._value.pop(name, None)
        if type(value) is float and value.is_integer():
            return int(value)
        if value is not None and type(value) is not int:
            raise wrong(self._path + name, "an integer")
        return value

    def number(self, name: str) -> float | None:
        """As it was written: 1 stays an integer."""
        value = self._value.pop(name, None)
        if value is not None and type(value) is not int and type(value) is not float:
            raise wrong(self._path + name, "a number")
        return value

    def flag(self, name: str) -> bool | None:
        value = self._value.pop(name, None)
        if value is not None and type(value) is not bool:
            raise wrong(self._path + name, "true or false")
        return value

    def object(self, name: str) -> "Fields | None":
        value = self._value.pop(name, None)
        return None if value is None else Fields(value, f"{self._path}{name}.")

    def items(self, name: str) -> list[Any]:
        """An empty list where there is none."""
        value = self._value.pop(name, None)
        if value is None:
            return []
        if type(value) is not list:
            raise wrong(self._path + name, "a list")
        return value

    def objects(self, name: str) -> "Iterator[Fields]":
        path = f"{self._path}{name}."
        for index, value in enumerate(self.items(name)):
            yield Fields(value, f"{path}{index}.")

    def rest(self, lost: list[str]) -> None:
        """Everything that was not taken, by its path, into `lost`."""
        if self._value:
            lost.extend(self._path + name for name, value in self._value.items() if value is not None)


def wrong(path: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"`{path}` must be {expected}", code="invalid_value", param=path or None)
