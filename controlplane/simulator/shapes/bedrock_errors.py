"""Bedrock's errors: what kind it is stands in a header."""

from controlplane.simulator import wire
from controlplane.simulator.calls import Fixed
from controlplane.simulator.words import encode

# Status → kind and words of the error; the nearest hundred stands in for the rest.
_ERRORS = {
    400: ("ValidationException", "The provided request is not valid."),
    401: ("UnrecognizedClientException", "The security token included in the request is invalid."),
    403: ("AccessDeniedException", "You don't have access to the model with the specified model ID."),
    404: ("ResourceNotFoundException", "Could not resolve the foundation model from the provided model identifier."),
    408: ("ModelTimeoutException", "The request took too long to process."),
    424: ("ModelErrorException", "The request failed due to an error while processing the model."),
    429: ("ThrottlingException", "Too many requests, please wait before trying again."),
    500: ("InternalServerException", "The system encountered an unexpected error during processing."),
    503: ("ServiceUnavailableException", "Bedrock is unable to process your request."),
}


def error(status: int, message: str, code: str | None, like: str) -> Fixed:
    kind, usual_message = known(status)
    fields = wire.JSON + b"x-amzn-errortype: %b:http://internal.amazon.com/coral/com.amazon.bedrock/\r\n"
    return Fixed(status, encode({"message": message or usual_message}), fields % kind.encode())


def known(status: int) -> tuple[str, str]:
    """(kind, words) of an error."""
    return _ERRORS.get(status) or _ERRORS[500 if status >= 500 else 400]
