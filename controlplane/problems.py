"""How the REST API says what went wrong: RFC 9457 problem details, whatever raised it; and which of them the schema names."""

import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import redis
from django.core.exceptions import PermissionDenied, RequestDataTooBig, ValidationError
from django.db import DataError, IntegrityError, InterfaceError, OperationalError
from django.db.models.deletion import ProtectedError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.defaults import server_error as html_server_error
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView, set_rollback

from audit.api_base import REASON_HEADER, REASON_LENGTH_MAX

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
WRITING = ("post", "patch", "delete")
PROBLEM_STATUSES = {
    HTTPStatus.BAD_REQUEST: "Something in the request is wrong; `errors` says what, by field.",
    HTTPStatus.UNAUTHORIZED: "No token, or one that is unknown, expired or revoked.",
    HTTPStatus.FORBIDDEN: "The caller lacks the scope, or may only look.",
    HTTPStatus.NOT_FOUND: "There is no such thing, or the caller may not see it.",
    HTTPStatus.CONFLICT: "Something else refers to it, or was written in between.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not JSON.",
    HTTPStatus.SERVICE_UNAVAILABLE: "PostgreSQL or Redis does not answer. Try again.",
}


def problem_response(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """REST framework's exception handler. None for what nobody expected: that is logged, and answered by `server_error`."""
    known = _known(error)
    if known is None:
        return None
    set_rollback()
    request: Request = context["request"]
    headers = {}
    if isinstance(known, exceptions.NotAuthenticated | exceptions.AuthenticationFailed):
        headers["WWW-Authenticate"] = "Bearer"
    if known.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
        log.warning("%s %s: %s", request.method, request.path, type(error).__name__)
    body = problem(known.status_code, known.detail, request.path)
    return Response(body, known.status_code, headers=headers, content_type=PROBLEM_JSON)


def problem(status_code: int, detail: Any, instance: str) -> dict[str, Any]:
    """`detail` is a text, or errors by field as REST framework nests them."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status_code).phrase,
        "status": status_code,
        "detail": detail,
        "instance": instance,
    }
    if isinstance(detail, dict | list):
        errors = _by_field(detail)
        body["detail"] = " ".join(
            f"{name}: {' '.join(texts)}" if name else " ".join(texts) for name, texts in errors.items()
        )
        body["errors"] = {name or "non_field_errors": texts for name, texts in errors.items()}
    return body


class Conflict(exceptions.APIException):
    status_code = HTTPStatus.CONFLICT


class Unavailable(exceptions.APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE


class TooLarge(exceptions.APIException):
    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def _known(error: Exception) -> exceptions.APIException | None:
    match error:
        case exceptions.APIException():
            return error
        case ValidationError():
            return exceptions.ValidationError(serializers.as_serializer_error(error))
        case Http404():
            return exceptions.NotFound("There is no such thing, or it is not yours to see.")
        case PermissionDenied() | PermissionError():
            return exceptions.PermissionDenied()
        case ProtectedError():
            users = sorted({str(row._meta.verbose_name_plural) for row in error.protected_objects})
            return Conflict(f"It is still in use by {', '.join(users)}.")
        case IntegrityError():
            return Conflict("Somebody else wrote the same in between.")
        case DataError():
            return exceptions.ValidationError("A value is beyond what the database can hold.")
        case redis.RedisError():
            return Unavailable("Redis does not answer: nothing was done.")
        case OperationalError() | InterfaceError():
            return Unavailable("The database does not answer: nothing was done.")
        case RequestDataTooBig():
            return TooLarge("The body is too large.")
    return None


def _by_field(detail: Any, name: str = "") -> dict[str, list[str]]:
    """Nested errors, flat: `targets.0.deployment` → texts. What is of no field has the empty name."""
    if isinstance(detail, str):
        return {name: [str(detail)]}
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(detail, dict):
        pairs = detail.items()
    else:
        pairs = [("" if isinstance(part, str) else index, part) for index, part in enumerate(detail)]
    flat: dict[str, list[str]] = {}
    for key, part in pairs:
        step = "" if key in ("", "non_field_errors", "__all__") else str(key)
        for field, texts in _by_field(part, ".".join(filter(None, (name, step)))).items():
            flat.setdefault(field, []).extend(texts)
    return flat


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler of what nobody expected: it is in the log, and not in the answer."""
    if not request.path.startswith("/api/"):
        return html_server_error(request)
    body = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here; the log knows more.", request.path)
    return JsonResponse(body, status=HTTPStatus.INTERNAL_SERVER_ERROR, content_type=PROBLEM_JSON)


class NotFoundView(APIView):
    """Every other path, so that an unknown one is said like any other problem."""

    permission_classes = ()
    authentication_classes = ()
    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise exceptions.NotFound("There is no such path; those that there are, are at /api/docs/.")


def document_problems(result: dict[str, Any], generator: Any, **_: Any) -> dict[str, Any]:
    """Schema hook: which problems each operation answers, and the header that says why something is written."""
    result["components"]["schemas"]["Problem"] = _problem_schema()
    for url, operations in result["paths"].items():
        for method, operation in operations.items():
            if method in WRITING:
                operation.setdefault("parameters", []).append(_reason_parameter())
            for status in _problems_of(url, method, operation.get("parameters", [])):
                operation["responses"][str(int(status))] = _documented(PROBLEM_STATUSES[status])
    return result


def _problems_of(url: str, method: str, parameters: Iterable[Mapping[str, Any]]) -> list[HTTPStatus]:
    left_out = set()
    if "{" not in url:
        left_out.add(HTTPStatus.NOT_FOUND)
    if method not in WRITING:
        left_out |= {HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE}
    if method == "get" and all(parameter["in"] == "path" for parameter in parameters):
        left_out.add(HTTPStatus.BAD_REQUEST)
    return [status for status in PROBLEM_STATUSES if status not in left_out]


def _documented(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {PROBLEM_JSON: {"schema": schema}}}


def _reason_parameter() -> dict[str, Any]:
    return {
        "in": "header",
        "name": REASON_HEADER,
        "schema": {"type": "string", "maxLength": REASON_LENGTH_MAX},
        "description": "Why; goes on record. The body's `reason` comes first.",
    }


def _problem_schema() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "What went wrong, as RFC 9457 has it.",
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "instance": text,
            "errors": {
                "type": "object",
                "description": "Texts by field.",
                "additionalProperties": {"type": "array", "items": text},
            },
        },
        "required": ["type", "title", "status", "detail", "instance"],
    }
