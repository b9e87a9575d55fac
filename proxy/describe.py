"""What is being asked: the dialect's view of the body, tags, and what the later stages need to know. No I/O."""

from typing import NamedTuple

import msgspec

from proxy.authenticate import Subject
from proxy.dialects import openai
from proxy.errors import InvalidRequest, MissingTags
from proxy.receive import Request
from proxy.wire.json_gate import MalformedBody, parse_object
from teams import tags as tag_rules


class Described(NamedTuple):
    request_id: str
    subject: Subject
    call: openai.Call
    tags: dict[str, str]


def describe(request: Request, subject: Subject) -> Described:
    """Raises `InvalidRequest`, also for tags that the project requires and nobody gave."""
    try:
        fields = parse_object(request.body)
    except MalformedBody as error:
        raise InvalidRequest(f"the body is not acceptable JSON: {error}") from error
    try:
        call = openai.describe(openai.OPERATIONS[request.path], fields, request.body)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not acceptable JSON: {error}") from error
    return Described(request.request_id, subject, call, _tags(request, subject, call))


def _tags(request: Request, subject: Subject, call: openai.Call) -> dict[str, str]:
    header = request.headers.get(b"x-tollgate-tags")
    try:
        given = tag_rules.merge(
            tag_rules.from_metadata(call.metadata),
            tag_rules.parse_header(header.decode("latin-1")) if header else {},
        )
    except tag_rules.InvalidTags as error:
        raise InvalidRequest(str(error), code="invalid_tags") from error
    tags = tag_rules.merge(subject.project.default_tags, subject.key.default_tags, given)
    missing = tag_rules.missing(subject.project.required_tags, tags)
    if missing:
        raise MissingTags(missing)
    return tags
