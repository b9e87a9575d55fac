"""The bytes around an answer: heads, lengths, chunks, and how the events of a stream are told apart. Pure."""

REASONS = {
    101: b"Switching Protocols",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    422: b"Unprocessable Content",
    424: b"Failed Dependency",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    529: b"Site is overloaded",
}
_RETRYABLE = frozenset({429, 503, 529})

JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
JSON_LINES = b"content-type: application/x-ndjson\r\n"
EVENT_STREAM = b"content-type: application/vnd.amazon.eventstream\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def head(status: int, fields: bytes) -> bytes:
    """The status line and headers, each line of which ends in CRLF."""
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, REASONS.get(status, b"Unknown"), fields)


def content_length(body_bytes: int) -> bytes:
    return b"content-length: %d\r\n" % body_bytes


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def retry_after(status: int, seconds: int) -> bytes:
    return b"retry-after: %d\r\n" % seconds if status in _RETRYABLE else b""


def data_event(data: bytes) -> bytes:
    """A server-sent event without a name."""
    return b"data: %b\n\n" % data


def named_event(name: bytes, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, data)
