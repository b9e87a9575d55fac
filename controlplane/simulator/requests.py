"""What the simulator understands of a request: the fields that change the answer, and how many tokens it has. No I/O.

A token is what stands between two blanks: `text.count(" ") + 1`. Anybody can count that again, and no text has more tokens
than bytes plus one.
"""

from typing import Annotated, Literal

import msgspec

Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
OutputCap = Annotated[int, msgspec.Meta(ge=1)]


class Part(msgspec.Struct):
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None

    def texts(self) -> list[str]:
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content or () if part.text is not None]


class Function(msgspec.Struct):
    name: str


class Tool(msgspec.Struct):
    function: Function | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct):
    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    max_tokens: OutputCap | None = None
    max_completion_tokens: OutputCap | None = None
    tools: list[Tool] | None = None

    def texts(self) -> list[str]:
        if len(self.messages) == 1:
            return self.messages[0].texts()
        return [text for message in self.messages for text in message.texts()]

    def input_tokens(self) -> int:
        return sum(map(count_tokens, self.texts()))

    def output_cap(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def tool_name(self) -> str:
        """The first function that it offers; empty where there is none."""
        names = (tool.function.name for tool in self.tools or () if tool.function is not None)
        return next(names, "")


class EmbeddingsRequest(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=16_384)] | None = None

    def items(self) -> list[str | list[int]]:
        """One for each vector asked for: a text, or a text as token numbers."""
        if isinstance(self.input, str):
            return [self.input]
        numbers = [item for item in self.input if isinstance(item, int)]
        if numbers:
            return [numbers]
        return [item for item in self.input if not isinstance(item, int)]

    def texts(self) -> list[str]:
        return [item for item in self.items() if isinstance(item, str)]

    def input_tokens(self) -> int:
        return sum(count_tokens(item) if isinstance(item, str) else len(item) for item in self.items())


def count_tokens(text: str) -> int:
    return text.count(" ") + 1
