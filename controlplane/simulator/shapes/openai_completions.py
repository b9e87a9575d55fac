"""OpenAI's completions of old: a prompt, and text that follows it."""

from collections.abc import Iterator

import msgspec

from controlplane.simulator.calls import LENGTH, Answer, Asked, Event, Request, decode
from controlplane.simulator.shapes.openai_chat import DONE, Choices, OutputCap, StreamOptions, usage_json
from controlplane.simulator.shapes.openai_errors import error_body
from controlplane.simulator.wire import data_event


class CompletionsRequest(msgspec.Struct):
    model: str
    prompt: str | list[str | int | list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    max_tokens: OutputCap | None = None

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        numbers = [item for item in self.prompt if isinstance(item, int)]
        return [numbers] if numbers else [item for item in self.prompt if not isinstance(item, int)]


_decode = msgspec.json.Decoder(CompletionsRequest).decode


def ask(request: Request) -> Asked:
    """Raises `Refused`."""
    asked = decode(_decode, request.body)
    prompts = asked.prompts()
    return Asked(
        model=asked.model,
        texts=[prompt for prompt in prompts if isinstance(prompt, str)],
        answers=Text,
        is_stream=bool(asked.stream),
        cap=asked.max_tokens,
        choices=(asked.n or 1) * len(prompts),
        more_tokens=sum(len(prompt) for prompt in prompts if not isinstance(prompt, str)),
        details=asked.stream_options is not None and bool(asked.stream_options.include_usage),
    )


class Text(Answer):
    def whole(self) -> tuple[bytes, bytes]:
        said = self.plan.saying.whole()
        choices = b",".join(self._choice(index, said, self._finish()) for index in range(self.plan.choices))
        usage = usage_json(self.plan.counts) if self.says_usage else b""
        return self._envelope(choices, usage), usage

    def events(self) -> Iterator[Event]:
        choices, saying = range(self.plan.choices), self.plan.saying
        for _ in range(self.plan.reasoning_tokens):
            yield b"", self.plan.choices, 0, b""
        for position in range(saying.tokens):
            for index in choices:
                choice = self._choice(index, saying.piece(position), b"null")
                yield data_event(self._envelope(choice, b"")), 1, 1, b""
        for index in choices:
            yield data_event(self._envelope(self._choice(index, b"", self._finish()), b"")), 0, 0, b""
        if self.asked.details and self.says_usage:
            usage = usage_json(self.plan.counts)
            yield data_event(self._envelope(b"", usage)), 0, 0, usage
        if not self.call.directives.no_done:
            yield DONE, 0, 0, b""

    def shown_tokens(self) -> int:
        return self.plan.choices * self.plan.visible_tokens

    def _finish(self) -> bytes:
        return b'"length"' if self.plan.finish == LENGTH else b'"stop"'

    def _choice(self, index: int, said: bytes, finish: bytes) -> bytes:
        return b'{"text":"%b","index":%d,"logprobs":null,"finish_reason":%b}' % (said, index, finish)

    def _envelope(self, choices: bytes, usage: bytes) -> bytes:
        told = b',"usage":%b' % usage if usage else b""
        return b'{"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b,"choices":[%b]%b}' % (
            self.id,
            self.call.created_s,
            self.model,
            choices,
            told,
        )

    def failure(self, status: int) -> bytes:
        return data_event(error_body(status))
