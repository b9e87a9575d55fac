"""What is being asked: the dialect's view of the body, tags, and what the later stages need to know. No I/O."""

from collections.abc import Mapping
from typing import NamedTuple

from audit.records import Candidate
from proxy.authenticate import Subject
from proxy.dialects.dialect import JSON, Call, Dialect
from proxy.errors import InvalidRequest, MissingTags
from proxy.receive import Request
from teams import tags as tag_rules


class Described(NamedTuple):
    request_id: str
    subject: Subject
    call: Call
    tags: dict[str, str]
    # As `audit.records.UsageEvent` has them.
    tag_sources: dict[str, str] = {}
    candidates: tuple[Candidate, ...] = ()
    # Under which the provider keeps what the call is about; "" for any.
    credential_id: str = ""

    @property
    def is_lenient(self) -> bool:
        """Whether what a provider cannot be told may be left out."""
        alias = self.subject.registry.snapshot.aliases.get(self.call.alias)
        return alias is not None and alias.is_lenient


def describe(request: Request, subject: Subject, dialect: Dialect, parameters: Mapping[str, str]) -> Described:
    """Raises `InvalidRequest`, also for tags that the project requires and nobody gave."""
    if request.query:
        parameters = {**parameters, "query": request.query.decode("latin-1")}
    for name in dialect.request_headers:
        if name in request.headers:
            parameters = {**parameters, name.decode(): request.headers[name].decode("latin-1")}
    call = dialect.describe(request.body, request.headers.get(b"content-type", JSON), parameters)
    tags, tag_sources = _tags(request, subject, call)
    return Described(request.request_id, subject, call, tags, tag_sources)


def _tags(request: Request, subject: Subject, call: Call) -> tuple[dict[str, str], dict[str, str]]:
    """The tags, and where they came from."""
    header = request.headers.get(b"x-tollgate-tags")
    try:
        in_body = tag_rules.from_metadata(call.metadata)
        in_header = tag_rules.parse_header(header.decode("latin-1")) if header else {}
    except tag_rules.InvalidTags as error:
        raise InvalidRequest(str(error), code="invalid_tags") from error
    said = subject.project.default_tags, subject.key.default_tags, in_body, in_header
    tags = tag_rules.merge(*said)
    missing = tag_rules.missing(subject.project.required_tags, tags)
    # What costs nothing need not say whom it is charged to: a library that asks for its batch again sends no tags.
    if missing and not call.is_free:
        raise MissingTags(missing)
    return tags, tag_rules.sources(*said)
