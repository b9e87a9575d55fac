"""Google's errors, of Gemini and of Vertex."""

from controlplane.simulator.calls import Fixed
from controlplane.simulator.words import encode

# Status → the status in words, the message; the nearest hundred stands in for the rest.
_ERRORS = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "The caller does not have permission."),
    404: ("NOT_FOUND", "The model is not found, or is not supported for this method."),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota."),
    500: ("INTERNAL", "An internal error has occurred."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The request timed out."),
}


def error(status: int, message: str, code: str | None, like: str) -> Fixed:
    return Fixed(status, error_body(status, message))


def error_body(status: int, message: str = "") -> bytes:
    kind, usual_message = _ERRORS.get(status) or _ERRORS[500 if status >= 500 else 400]
    return encode({"error": {"code": status, "message": message or usual_message, "status": kind}})
