"""What is being asked: the dialect's view of the body, tags, and what the later stages need to know. No I/O."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from audit.records import Candidate, storable
from proxy.authenticate import Subject
from proxy.dialects.dialect import JSON, Call, Dialect
from proxy.errors import InvalidRequest, MissingTags
from proxy.receive import Request
from teams import tags as tag_rules

END_USER_HEADER = b"x-tollgate-user"
END_USER_LENGTH_MAX = 256

_NONE: Mapping[str, str] = {}
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Described(NamedTuple):
    request_id: str
    subject: Subject
    call: Call
    tags: dict[str, str]
    end_user: str = ""
    # The alias that the client asked for, where a budget has put a cheaper one in its place.
    downgraded_from: str = ""
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
    return Described(request.request_id, subject, call, tags, _end_user(request, call), tag_sources=tag_sources)


def _end_user(request: Request, call: Call) -> str:
    """Whom the call is made for, as the client names them: in our header, else where its dialect has a place for it."""
    named = request.headers.get(END_USER_HEADER, b"").decode("latin-1").strip()
    if not named:
        fields = call.fields
        raw = fields.get("safety_identifier") or fields.get("user")
        if raw is None and call.dialect.name.startswith("anthropic") and "metadata" in fields:
            raw = _field_of(fields["metadata"], "user_id")
        value = msgspec.json.decode(raw) if raw is not None else None
        named = storable(value) if isinstance(value, str) else ""
    # What is too long for a name is known by its digest.
    return named if len(named) <= END_USER_LENGTH_MAX else hashlib.sha256(named.encode()).hexdigest()


def _field_of(raw: msgspec.Raw, name: str) -> msgspec.Raw | None:
    try:
        return _decode_object(raw).get(name)
    except msgspec.ValidationError:
        return None


def _tags(request: Request, subject: Subject, call: Call) -> tuple[dict[str, str], dict[str, str]]:
    """The tags, and where they came from."""
    header = request.headers.get(b"x-tollgate-tags")
    try:
        in_body = tag_rules.from_metadata(call.metadata) if call.metadata is not None else _NONE
        in_header = tag_rules.parse_header(header.decode("latin-1")) if header else _NONE
    except tag_rules.InvalidTags as error:
        raise InvalidRequest(str(error), code="invalid_tags") from error
    said = subject.project.default_tags, subject.key.default_tags, in_body, in_header
    tags = tag_rules.merge(*said)
    required = subject.project.required_tags
    # What costs nothing need not say whom it is charged to: a library that asks for its batch again sends no tags.
    if required and not call.is_free and (missing := tag_rules.missing(required, tags)):
        raise MissingTags(missing)
    return tags, tag_rules.sources(*said)
