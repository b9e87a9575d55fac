"""OpenAI's errors, and those of the providers that answer its chat completions in words of their own."""

from controlplane.simulator.calls import Fixed
from controlplane.simulator.directives import Like
from controlplane.simulator.words import encode

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


def error(status: int, message: str, code: str | None, like: str) -> Fixed:
    return Fixed(status, error_body(status, message, code, like))


def error_body(status: int, message: str = "", code: str | None = None, like: str = "") -> bytes:
    kind, usual_code, usual_message = _ERRORS.get(status) or _ERRORS[500 if status >= 500 else 400]
    message, code = message or usual_message, code or usual_code
    match like:
        case Like.MISTRAL if status == 401:
            return encode({"detail": message})
        case Like.MISTRAL:
            flat = {"object": "error", "message": message, "type": kind, "param": None, "code": "1500"}
            return encode(flat | {"raw_status_code": status})
        case Like.XAI:
            return encode({"code": code or kind, "error": message})
        case Like.OPENROUTER:
            return encode({"error": {"message": message, "code": status}, "user_id": "user_simulator"})
        case Like.AZURE if status in (401, 404, 429):
            return encode({"error": {"code": str(status), "message": message}})
        case _:
            return encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
