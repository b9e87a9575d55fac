"""Anthropic's errors."""

from controlplane.simulator.calls import Fixed
from controlplane.simulator.words import encode

# Status → type and words of the error; the nearest hundred stands in for the rest.
_ERRORS = {
    400: ("invalid_request_error", "The request has a value that the model does not take."),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "The requested resource could not be found."),
    413: ("request_too_large", "Request exceeds the maximum allowed number of bytes."),
    429: ("rate_limit_error", "This request would exceed your rate limit."),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}


def error(status: int, message: str, code: str | None, like: str) -> Fixed:
    return Fixed(status, error_body(status, message))


def error_body(status: int, message: str = "") -> bytes:
    kind, usual_message = _ERRORS.get(status) or _ERRORS[500 if status >= 500 else 400]
    detail = {"type": kind, "message": message or usual_message}
    return encode({"type": "error", "error": detail, "request_id": "req_simulator"})
