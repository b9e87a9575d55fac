"""The bytes of OpenAI's answers: heads, JSON bodies, the events of a stream, errors. Pure; no timing, no faults."""

import base64
import functools
import struct
import zlib
from collections.abc import Iterable

import msgspec

from controlplane.simulator.directives import PROFILES

_TEXTS_MAX = 64
_AXES_MAX = 16
_VECTORS_MAX = 256
_CREATED_S = 1_760_000_000  # Of the models. Any moment in the past does.
DIMENSIONS = 256

_encode = msgspec.json.Encoder().encode

REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    529: b"Site is overloaded",
}
# Status → type, code and words of the error; the nearest hundred stands in for the rest.
_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", "invalid_value", "The request has a value that the model does not take."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "permission_denied", "The project has no access to this model."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", None, "The server had an error while processing the request."),
    503: ("server_error", "service_unavailable", "The engine is not available."),
    529: ("overloaded_error", "overloaded", "The engine is overloaded."),
}
_RETRYABLE = frozenset({429, 503, 529})

_COMMON = (
    b"openai-version: 2020-10-01\r\nopenai-processing-ms: 1\r\n"
    b"x-ratelimit-limit-requests: 30000\r\nx-ratelimit-remaining-requests: 29999\r\nx-ratelimit-reset-requests: 2ms\r\n"
    b"x-ratelimit-limit-tokens: 150000000\r\nx-ratelimit-remaining-tokens: 149999000\r\nx-ratelimit-reset-tokens: 0s\r\n"
)
JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_PLAIN_TEXT = "Every word of this answer is one token so that whoever reads along can count what it costs"
# Two, three and four bytes a character.
_WIDE_TEXT = "żółw größer naïve 日本語 трава 한국어 🙂 ελιά"


def head(status: int, call_id: bytes, fields: bytes) -> bytes:
    """The status line and headers, `fields` among them, each line of which ends in CRLF."""
    reason = REASONS.get(status, b"Unknown")
    return b"HTTP/1.1 %d %b\r\n%bx-request-id: req_%b\r\n%b\r\n" % (status, reason, _COMMON, call_id, fields)


def content_length(body_bytes: int) -> bytes:
    return b"content-length: %d\r\n" % body_bytes


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def error_body(status: int, *, message: str = "", code: str | None = None, param: str | None = None) -> bytes:
    kind, usual_code, usual_message = _ERRORS.get(status) or _ERRORS[500 if status >= 500 else 400]
    detail = {"message": message or usual_message, "type": kind, "param": param, "code": code or usual_code}
    return _encode({"error": detail})


def retry_after(status: int, seconds: int) -> bytes:
    return b"retry-after: %d\r\n" % seconds if status in _RETRYABLE else b""


def usage_json(
    input_tokens: int, output_tokens: int | None, *, cached_tokens: int = 0, reasoning_tokens: int = 0
) -> bytes:
    """`output_tokens` is None where the operation has no output to count."""
    if output_tokens is None:
        return b'{"prompt_tokens":%d,"total_tokens":%d}' % (input_tokens, input_tokens)
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0,'
        b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
    ) % (input_tokens, output_tokens, input_tokens + output_tokens, cached_tokens, reasoning_tokens)


# What an answer says


def word(position: int, *, is_wide: bool = False) -> bytes:
    """The visible text of one token, JSON-escaped, without its quotes."""
    words = _WIDE if is_wide else _PLAIN
    return words[position % len(words)] if position else words[0][1:]


@functools.lru_cache(_TEXTS_MAX)
def text(tokens: int, *, is_wide: bool = False) -> bytes:
    return b"".join(word(position, is_wide=is_wide) for position in range(tokens))


def _escaped(sentence: str) -> list[bytes]:
    return [_encode(f" {word}")[1:-1] for word in sentence.split()]


_PLAIN = _escaped(_PLAIN_TEXT)
_WIDE = _escaped(_WIDE_TEXT)


_CHUNK = b"chat.completion.chunk"
_CUT_HERE = b"\0"  # JSON holds no such byte.


class Completion:
    """A chat completion, whole or as the events of a stream. Calls the tool of that name where there is one."""

    def __init__(
        self, call_id: bytes, created_s: int, model: str, *, is_wide: bool, tool_name: str, says_usage: bool
    ) -> None:
        self.says_usage = says_usage
        self._is_wide = is_wide
        self._tool_name = _encode(tool_name) if tool_name else b""
        self._call_id = call_id
        self._created_s = created_s
        self._model = _encode(model)

    def whole(self, choices: int, tokens: int, finish_reason: bytes, usage: bytes) -> bytes:
        """`usage` is JSON; empty to say nothing of it."""
        message = self._message(tokens)
        parts = [
            b'{"index":%d,"message":%b,"logprobs":null,"finish_reason":"%b"}' % (index, message, finish_reason)
            for index in range(choices)
        ]
        said = b'"usage":%b,' % usage if usage else b""
        return self._envelope(b"chat.completion", b",".join(parts), said)

    def _message(self, tokens: int) -> bytes:
        if not self._tool_name:
            content = text(tokens, is_wide=self._is_wide)
            return b'{"role":"assistant","content":"%b","refusal":null,"annotations":[]}' % content
        arguments = b"".join(self._argument(position, position == tokens - 1) for position in range(tokens))
        return b'{"role":"assistant","content":null,"tool_calls":[%b],"refusal":null,"annotations":[]}' % (
            b'{"id":"call_%b","type":"function","function":{"name":%b,"arguments":"%b"}}'
            % (self._call_id, self._tool_name, arguments)
        )

    def opening(self, index: int) -> bytes:
        """The first event of a choice: who speaks, and which tool is called. No token of it is visible text."""
        if not self._tool_name:
            delta = b'{"role":"assistant","content":"","refusal":null}'
        else:
            delta = (
                b'{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_%b","type":"function",'
                b'"function":{"name":%b,"arguments":""}}],"refusal":null}'
            ) % (self._call_id, self._tool_name)
        return self._event(index, delta, b"null")

    def token(self, index: int, position: int, *, is_last: bool) -> bytes:
        if self._tool_name:
            arguments = self._argument(position, is_last)
            delta = b'{"tool_calls":[{"index":0,"function":{"arguments":"%b"}}]}' % arguments
        else:
            delta = b'{"content":"%b"}' % word(position, is_wide=self._is_wide)
        return self._event(index, delta, b"null")

    def closing(self, index: int, finish_reason: bytes) -> bytes:
        return self._event(index, b"{}", b'"%b"' % finish_reason)

    def usage_event(self, usage: bytes) -> bytes:
        return b"data: %b\n\n" % self._envelope(_CHUNK, b"", b'"usage":%b,' % usage)

    @functools.cached_property
    def _around(self) -> list[bytes]:
        """What every event of the stream has before and after its choice."""
        usage = b'"usage":null,' if self.says_usage else b""
        return (b"data: %b\n\n" % self._envelope(_CHUNK, _CUT_HERE, usage)).split(_CUT_HERE)

    def _argument(self, position: int, is_last: bool) -> bytes:
        """One token of the arguments: together they are `{"words":"…"}`, however many there are."""
        opened = b'{\\"words\\":\\"' if position == 0 else b""
        closed = b'\\"}' if is_last else b""
        return opened + word(position, is_wide=self._is_wide) + closed

    def _event(self, index: int, delta: bytes, finish_reason: bytes) -> bytes:
        before, after = self._around
        choice = b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}' % (index, delta, finish_reason)
        return before + choice + after

    def _envelope(self, kind: bytes, choices: bytes, usage: bytes) -> bytes:
        return (
            b'{"id":"chatcmpl-%b","object":"%b","created":%d,"model":%b,"choices":[%b],%b'
            b'"service_tier":"default","system_fingerprint":"fp_simulator"}'
        ) % (self._call_id, kind, self._created_s, self._model, choices, usage)


DONE = b"data: [DONE]\n\n"
BROKEN_EVENT = b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"con\n\n'


def error_event(status: int) -> bytes:
    return b"data: %b\n\n" % error_body(status)


# Embeddings


def embeddings(
    items: Iterable[str | list[int]], model: str, dimensions: int, usage: bytes, *, is_base64: bool
) -> bytes:
    vector = _vector_base64 if is_base64 else _vector_json
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector(dimensions, _place(item) % dimensions))
        for index, item in enumerate(items)
    )
    said = b',"usage":%b' % usage if usage else b""
    return b'{"object":"list","data":[%b],"model":%b%b}' % (data, _encode(model), said)


def _place(item: str | list[int]) -> int:
    return zlib.crc32(item.encode(errors="surrogatepass") if isinstance(item, str) else _encode(item))


@functools.lru_cache(_AXES_MAX)
def _axis(dimensions: int) -> list[float]:
    """A vector of length one. Every text gets it turned by as many places as its checksum says."""
    raw = [((place * 7919) % 1009 - 504) or 1 for place in range(dimensions)]
    length = sum(value * value for value in raw) ** 0.5
    return [round(value / length, 8) for value in raw]


@functools.lru_cache(_VECTORS_MAX)
def _vector_json(dimensions: int, place: int) -> bytes:
    axis = _axis(dimensions)
    return _encode(axis[place:] + axis[:place])


@functools.lru_cache(_VECTORS_MAX)
def _vector_base64(dimensions: int, place: int) -> bytes:
    axis = _axis(dimensions)
    return b'"%b"' % base64.b64encode(struct.pack(f"<{dimensions}f", *axis[place:], *axis[:place]))


def models() -> bytes:
    data = [{"id": name, "object": "model", "created": _CREATED_S, "owned_by": "simulator"} for name in PROFILES]
    return _encode({"object": "list", "data": data})
