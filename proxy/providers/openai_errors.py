"""Errors of OpenAI and of everybody shaped like it, in any of the shapes they have been seen in. Pure; no I/O."""

import re
from typing import Any

import msgspec

from proxy.neutral import ProviderError
from proxy.providers.provider import text_of

MESSAGE_CHARACTERS_MAX = 4_000

_decode = msgspec.json.Decoder().decode
_FIRST_ERROR_STATUS, _LAST_ERROR_STATUS = 400, 599
# In a stream the status line said 200 already: what a kind or code means.
_STATUS_CODES = {
    "rate_limit": 429,
    "quota": 429,
    "invalid_request": 400,
    "bad_request": 400,
    "context_length": 400,
    "authentication": 401,
    "invalid_api_key": 401,
    "permission": 403,
    "not_found": 404,
    "overloaded": 503,
    "unavailable": 503,
    "timeout": 504,
    "server_error": 500,
    "internal": 500,
}
# "Please try again in 1m2.5s", "in 20ms", "Please retry after 23 seconds".
_RETRY = re.compile(r"(?:try again|retry) (?:in|after) (?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?) ?(ms|s))?", re.I)


def read_error(status_code: int, body: bytes) -> ProviderError:
    """`status_code` is 0 within a stream. Never raises."""
    try:
        value = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _error_of_text(status_code, body)
    if type(value) is list and value:
        value = value[0]  # Gemini's endpoint wraps its one error in a list.
    if type(value) is not dict:
        return _error_of_text(status_code, body)
    return error_of(value, status_code)


def error_of(value: dict[str, Any], status_code: int = 0) -> ProviderError:
    """Of a decoded body or chunk: the error it holds, or is itself."""
    inner = _inner(value)
    message = text_of(inner.get("message")) or text_of(inner.get("error")) or _detail(inner.get("detail"))
    metadata = inner.get("metadata")
    if type(metadata) is dict and (raw := text_of(metadata.get("raw"))) and raw not in message:
        message = f"{message}: {raw}"  # OpenRouter: what the provider behind it said.
    kind = text_of(inner.get("type")) or text_of(inner.get("status"))
    code = _word(inner.get("code")) or _word(value.get("code"))
    status_code = status_code or _status_code(inner, kind, code)
    return ProviderError(
        message=message[:MESSAGE_CHARACTERS_MAX] or "the provider reported an error",
        kind=kind,
        code=code,
        param=text_of(inner.get("param")),
        status_code=status_code,
        retry_after_s=_retry_after_s(message),
    )


def _inner(value: dict[str, Any]) -> dict[str, Any]:
    error = value.get("error")
    if type(error) is dict:
        return error
    if type(error) is str and error:
        return {"message": error, **{name: value.get(name) for name in ("type", "code", "param")}}
    if type(errors := value.get("errors")) is list and errors and type(errors[0]) is dict:
        return errors[0]
    for choice in choices if type(choices := value.get("choices")) is list else ():
        if type(choice) is dict and type(choice.get("error")) is dict:
            return choice["error"]  # type: ignore[no-any-return]
    return value


def _error_of_text(status_code: int, body: bytes) -> ProviderError:
    text = body.decode("utf-8", "replace").strip()
    if not text or text[:1] == "<":
        return ProviderError(message=f"the provider answered {status_code}", status_code=status_code)
    return ProviderError(
        message=text[:MESSAGE_CHARACTERS_MAX], status_code=status_code, retry_after_s=_retry_after_s(text)
    )


def _detail(detail: Any) -> str:
    """FastAPI: a text, or a list of what is wrong, each with where it is."""
    if type(detail) is str:
        return detail
    if type(detail) is dict:
        return text_of(detail.get("message")) or text_of(detail.get("error"))
    messages = []
    for item in detail if type(detail) is list else ():
        if type(item) is dict:
            place = item.get("loc")
            where = ".".join(map(str, place)) if type(place) is list else ""
            messages.append(f"{where}: {text_of(item.get('msg'))}" if where else text_of(item.get("msg")))
    return "; ".join(messages)


def _status_code(inner: dict[str, Any], kind: str, code: str) -> int:
    for name in ("status_code", "code", "status", "raw_status_code"):
        number = inner.get(name)
        if type(number) is int and _FIRST_ERROR_STATUS <= number <= _LAST_ERROR_STATUS:
            return number
    words = f"{kind} {code}".lower()
    return next((status for word, status in _STATUS_CODES.items() if word in words), 0)


def _retry_after_s(message: str) -> int | None:
    """Rounded up to a whole second."""
    found = _RETRY.search(message)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, number, unit = found.groups()
    seconds = float(number or 0) / (1000 if unit and unit.lower() == "ms" else 1)
    return -int(-(int(hours or 0) * 3600 + int(minutes or 0) * 60 + seconds) // 1)


def _word(value: Any) -> str:
    return str(value) if type(value) is int or type(value) is str else ""
