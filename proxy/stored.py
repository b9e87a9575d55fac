"""What providers keep for clients: whose it is, where it is, and where calls about it go.

`tg:stored:{kind}:{id}` says which deployment has it and which project may use it. Whatever is not there, or another
project's, does not exist. Values are written once, when the provider has said the id.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec
import structlog

from keys.kills import KillFlag
from proxy.admission import Admission
from proxy.ask import call
from proxy.attempt import Attempt, Outcome
from proxy.authenticate import Subject
from proxy.call import gateway_error
from proxy.describe import Described
from proxy.dialects import anthropic_batches, openai_batches, openai_files
from proxy.dialects.dialect import BATCH, FILE, MESSAGE_BATCH, RESPONSE, Call
from proxy.dialects.stored import CREATE, Bounds, Line, StoredDialect, as_batch, check_alike, read_line
from proxy.errors import AliasNotAllowed, InvalidRequest, StoredUnknown, Unavailable, Unbounded, UpstreamBroken
from proxy.holds import input_tokens_max, output_tokens_max
from proxy.jobs import StoredObject, decode_stored, encode_stored, expires_s, stored_key
from proxy.providers.provider import Kept
from proxy.registry import Upstream
from proxy.respond import Responder
from proxy.route import allowed_aliases, choose_route, halted, may_use
from proxy.wire import http1
from proxy.wire.json_gate import dump_object
from proxy.wire.redis import RedisError, RedisPipeline

log = structlog.get_logger()

# By which a client names the model whose provider is to have a file that is for no model.
MODEL_HEADER = b"x-tollgate-model"
# A provider's list is searched so far for the objects of one project.
PAGES_MAX = 10
PAGE_OBJECTS = 100
LIMIT_DEFAULT = 20
LIMIT_MAX = 10_000
LIST_BYTES_MAX = 32 * 1024 * 1024


class Place(NamedTuple):
    """Where a call goes: what is sent, and to whom. `bounds` are of the batch in the file that it uploads; `attempt_id` is
    that which has made what the call is about."""

    described: Described
    upstream: Upstream
    bounds: Bounds | None = None
    attempt_id: str = ""


_encode = msgspec.json.Encoder().encode

Draw = Callable[[], float]
Kills = Mapping[str, KillFlag]


class Stored:
    def __init__(self, redis: RedisPipeline) -> None:
        self._redis = redis

    # Whose it is

    def remember(self, attempt: Attempt, kept: Sequence[Kept], bounds: Bounds | None = None) -> None:
        """Never waits, and changes nothing that is known."""
        record = encode_stored(
            StoredObject(
                deployment_id=attempt.upstream.deployment.deployment_id,
                project_id=attempt.subject.project.project_id,
                attempt_id=attempt.attempt_id,
                alias=attempt.described.call.alias,
                credential_id=attempt.credential_id,
                bounds=bounds,
            )
        )
        for kind, upstream_id in kept:
            self._send(b"SET", stored_key(kind, upstream_id), record, b"NX", b"EX", expires_s(kind))

    def forget(self, kind: str, upstream_id: str) -> None:
        self._send(b"DEL", stored_key(kind, upstream_id))

    async def find(self, kind: str, upstream_id: str, subject: Subject) -> StoredObject | None:
        """None for what is not there, and for what is another project's. Raises `Unavailable`."""
        body = await call(self._redis, b"GET", stored_key(kind, upstream_id))
        return _own(body, subject)

    async def own(self, kind: str, upstream_ids: Sequence[str], subject: Subject) -> set[str]:
        """Which of them are the project's. Raises `Unavailable`."""
        if not upstream_ids:
            return set()
        bodies = await call(self._redis, b"MGET", *(stored_key(kind, upstream_id) for upstream_id in upstream_ids))
        found = zip(upstream_ids, bodies, strict=True)
        return {upstream_id for upstream_id, body in found if _own(body, subject) is not None}

    def _send(self, *command: bytes | str | int) -> None:
        try:
            self._redis.call(*command).add_done_callback(_note_failure)
        except RedisError:
            log.warning("what a provider keeps could not be noted", key=command[1])

    # Where it goes

    async def place(self, described: Described, headers: Mapping[bytes, bytes], kills: Kills, draw: Draw) -> Place:
        """Of a call about one thing that is there, or is to be made. Raises a `GatewayError`."""
        dialect = described.call.dialect
        assert isinstance(dialect, StoredDialect), "nobody else's calls come here"
        if dialect.verb is not CREATE:
            return await self._place_of(described, dialect.kind, described.call.parameters["id"])
        if dialect.kind == FILE:
            return await self._place_upload(described, headers, kills, draw)
        if dialect.kind == BATCH:
            return await self._place_batch(described)
        return await self._place_message_batch(described, kills, draw)

    async def follow_on(self, described: Described, route: list[Upstream]) -> tuple[Described, list[Upstream]]:
        """The part of a route that can go on from the stored response that the call names: at the provider that has it, and
        under the same credential. Raises `InvalidRequest`, `Unavailable`."""
        about = described.call
        found = await self.find(RESPONSE, about.follows, described.subject)
        # Whoever is told in other words is told nothing of it, or refused by name.
        others = [
            up
            for up in route
            if (api := up.api_for(about.dialect, about.capability)) and api.name != about.dialect.name
        ]
        home = described.subject.registry.upstreams.get(found.deployment_id) if found is not None else None
        if found is not None and home is not None:
            near = [up for up in route if up.provider.slug == home.provider.slug and up not in others]
            near.sort(key=lambda up: up.deployment.deployment_id != found.deployment_id)
            if near:
                return described._replace(credential_id=found.credential_id), near
        if not others:
            raise InvalidRequest(
                f"there is no stored response `{about.follows}` where `{about.alias}` is served",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return described, others

    async def with_files(self, described: Described, route: list[Upstream]) -> tuple[Described, list[Upstream]]:
        """The part of a route that has the files which the call names, under the same credential; the whole of it where the
        files were not uploaded through here. Raises `StoredUnknown` for another project's, `Unavailable`."""
        file_ids = described.call.file_ids
        bodies = await call(self._redis, b"MGET", *(stored_key(FILE, file_id) for file_id in file_ids))
        for file_id, body in zip(file_ids, bodies, strict=True):
            if body is None:
                continue
            found = _own(body, described.subject)
            if found is None:
                raise StoredUnknown(FILE, file_id, param="file_id")
            home = described.subject.registry.upstreams.get(found.deployment_id)
            near = [up for up in route if home is not None and up.provider.slug == home.provider.slug]
            if near:
                described, route = described._replace(credential_id=found.credential_id), near
        return described, route

    async def _place_of(self, described: Described, kind: str, upstream_id: str, param: str | None = None) -> Place:
        found = await self.find(kind, upstream_id, described.subject)
        if found is None:
            raise StoredUnknown(kind, upstream_id, param=param)
        upstream = described.subject.registry.upstreams.get(found.deployment_id)
        if upstream is None or not upstream.can_be_called or not upstream.provider.is_active:
            raise Unavailable(
                f"the {kind.replace('_', ' ')} is at a deployment that cannot be called", retry_after_s=10
            )
        about = msgspec.structs.replace(described.call, alias=found.alias)
        placed = described._replace(call=about, credential_id=found.credential_id)
        return Place(placed, upstream, found.bounds, found.attempt_id)

    async def _place_batch(self, described: Described) -> Place:
        """Where its file is; what it may use is what the file's lines may."""
        said = described.call.parameters
        placed = await self._place_of(described, FILE, said["input_file_id"], param="input_file_id")
        bounds, alias = placed.bounds, placed.described.call.alias
        if bounds is None:
            raise InvalidRequest(
                "what the requests in this file may use is not known: upload it with the purpose `batch`",
                code="invalid_value",
                param="input_file_id",
            )
        if said["endpoint"].removeprefix("/v1") != bounds.endpoint.removeprefix("/v1"):
            raise InvalidRequest(
                f"the requests in the file call {bounds.endpoint}", code="invalid_value", param="endpoint"
            )
        if not placed.upstream.deployment.is_active:
            raise Unavailable(f"no batch of `{alias}` can be made where its file is", retry_after_s=10)
        if not may_use(described.subject.key, alias):
            raise AliasNotAllowed(f"this virtual key may not use the model `{alias}`", param="input_file_id")
        made = as_batch(described.call, described.call.body, alias, bounds)
        return Place(placed.described._replace(call=made), placed.upstream)

    async def _place_upload(
        self, described: Described, headers: Mapping[bytes, bytes], kills: Kills, draw: Draw
    ) -> Place:
        about = described.call
        upload = openai_files.read_upload(about.body, about.content_type)
        if upload.purpose != openai_files.BATCH_PURPOSE:
            return place_anywhere(described, headers, kills)
        start, end = upload.file.start, upload.file.end
        # Thousands of lines would hold up every other request of this worker.
        lines = await asyncio.to_thread(_read_lines, about.body[start:end])
        first = check_alike(lines)
        upstream = _upstream_for(described, first, kills, draw)
        url = msgspec.json.decode(first.fields["url"], type=str)
        rewritten, bounds = await asyncio.to_thread(_rewrite, lines, upstream, "body", url)
        body = about.body[:start] + b"\n".join(rewritten) + b"\n" + about.body[end:]
        about = msgspec.structs.replace(about, alias=first.call.alias, body=body)
        return Place(described._replace(call=about), upstream, bounds)

    async def _place_message_batch(self, described: Described, kills: Kills, draw: Draw) -> Place:
        about = described.call
        lines = await asyncio.to_thread(_read_requests, about)
        first = check_alike(lines)
        upstream = _upstream_for(described, first, kills, draw)
        rewritten, bounds = await asyncio.to_thread(_rewrite, lines, upstream, "params", "")
        body = dump_object({**about.fields, "requests": msgspec.Raw(b"[" + b",".join(rewritten) + b"]")})
        return Place(described._replace(call=as_batch(about, body, first.call.alias, bounds)), upstream)


def place_anywhere(described: Described, headers: Mapping[bytes, bytes], kills: Kills) -> Place:
    """Of a call about no model and no thing in particular: at the provider of the model that the client names in a header,
    else of the first of its models whose provider has the API. Raises a `GatewayError`."""
    subject, about = described.subject, described.call
    aliases = allowed_aliases(subject.key, subject.registry)
    named = headers.get(MODEL_HEADER, b"").decode("latin-1")
    if named:
        aliases = [alias for alias in aliases if alias.name == named]
    reasons: set[str] = set()
    for alias in aliases:
        for target in sorted(alias.targets, key=lambda target: target.position):
            upstream = subject.registry.upstreams[target.deployment_id]
            if upstream.api_for(about.dialect, about.capability) is None:
                continue
            reasons |= {field for field in upstream.kill_fields if field in kills}
            is_active = upstream.provider.is_active and upstream.deployment.is_active
            if is_active and upstream.can_be_called and upstream.deployment.price and not reasons:
                about = msgspec.structs.replace(about, alias=alias.name)
                return Place(described._replace(call=about), upstream)
    for field in reasons:
        raise halted(kills[field])
    raise InvalidRequest(
        f"no model that this key may use is at a provider that serves {about.operation} here"
        + (f": `{MODEL_HEADER.decode()}` names {named!r}" if named else ""),
        code="operation_not_supported",
    )


def _upstream_for(described: Described, line: Line, kills: Kills, draw: Draw) -> Upstream:
    """The best that takes the request as it is, and in batches. Raises a `GatewayError`."""
    about, stored = line.call, described.call
    _, route = choose_route(described._replace(call=about), kills, draw)
    for upstream in route:
        api = upstream.api_for(about.dialect, about.capability)
        has_batches = upstream.api_for(stored.dialect, stored.capability) is not None
        if api is not None and api.name == about.dialect.name and has_batches:
            return upstream
    raise InvalidRequest(
        f"the model `{about.alias}` is not served in batches of {about.dialect.name}",
        code="operation_not_supported",
        param="model",
    )


def _read_lines(content: bytes) -> list[Line]:
    texts = enumerate(content.split(b"\n"), start=1)
    return [read_line(number, text, openai_batches.DIALECTS, "body") for number, text in texts if text.strip()]


def _read_requests(about: Call) -> list[Line]:
    texts = enumerate(anthropic_batches.requests_of(about), start=1)
    return [read_line(number, text, anthropic_batches.DIALECTS, "params") for number, text in texts]


def _rewrite(lines: Sequence[Line], upstream: Upstream, body_name: str, endpoint: str) -> tuple[list[bytes], Bounds]:
    """Each line with the provider's name of the model, and a cap where it had none; and what they may use together."""
    deployment, dialect = upstream.deployment, lines[0].call.dialect
    api = upstream.api_for(dialect, lines[0].call.capability)
    assert api is not None, "the upstream was chosen for it"
    rewritten, input_tokens, output_tokens = [], 0, 0
    for line in lines:
        about = line.call
        if unbounded := api.unbounded_in(about):
            raise Unbounded([f"line {line.number}: {name}" for name in unbounded], upstream.provider.slug)
        body = api.pass_request(about, deployment, upstream.provider).body
        rewritten.append(dump_object({**line.fields, body_name: msgspec.Raw(body)}))
        input_tokens += input_tokens_max(about, deployment)
        output_tokens += output_tokens_max(about, deployment)
    bounds = Bounds(
        endpoint=endpoint,
        requests=len(lines),
        input_tokens_max=input_tokens,
        output_tokens_max=output_tokens,
        units_max=sum(line.call.units_max for line in lines),
        tool_calls_max=sum(line.call.tool_calls_max for line in lines),
        has_audio=any(line.call.has_audio for line in lines),
        has_images=any(line.call.has_images for line in lines),
    )
    return rewritten, bounds


def _own(body: bytes | None, subject: Subject) -> StoredObject | None:
    if body is None:
        return None
    try:
        found = decode_stored(body)
    except msgspec.DecodeError:
        return None  # Written by another release.
    return found if found.project_id == subject.project.project_id else None


def _note_failure(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled() and future.exception() is not None:
        log.warning("what a provider keeps could not be noted", reason=str(future.exception()))


# Lists


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool | None = None


class _Item(msgspec.Struct):
    id: str


_decode_page = msgspec.json.Decoder(_Page).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_item = msgspec.json.Decoder(_Item).decode


class Collecting:
    """In place of a relay: the answer is for the gateway itself."""

    body = b""

    async def __call__(
        self,
        response: http1.UpstreamResponse,
        attempt: Attempt,
        outcome: Outcome,
        responder: Responder,
        admission: Admission,
    ) -> None:
        outcome.status_code = response.status
        try:
            self.body = attempt.prepared.api.retell(await response.read(LIST_BYTES_MAX))
        except http1.UpstreamFailure as failure:
            raise gateway_error(failure) from failure


class OwnList:
    """A project's part of a provider's list, which has everybody's: pages are read until there is enough for the client's."""

    def __init__(self, stored: Stored, about: Call) -> None:
        """Raises `InvalidRequest`."""
        dialect = about.dialect
        assert isinstance(dialect, StoredDialect), "nobody else's lists come here"
        self._stored = stored
        self._kind = dialect.kind
        self._root = dialect.root
        self._query = dict(parse_qsl(about.parameters.get("query", ""), keep_blank_values=True))
        self._limit = _limit_of(self._query.pop("limit", ""))
        self._cursor = "after_id" if dialect.kind == MESSAGE_BATCH else "after"
        self._fields: dict[str, msgspec.Raw] = {}
        self._items: list[tuple[str, msgspec.Raw]] = []
        self._has_more = True
        self._pages = 0

    @property
    def is_complete(self) -> bool:
        # Backwards there is one page: the objects before it stand in its own order.
        is_backwards = "before_id" in self._query and self._pages > 0
        return not self._has_more or self._pages >= PAGES_MAX or len(self._items) > self._limit or is_backwards

    def next_page(self, about: Call) -> Call:
        query = urlencode({**self._query, "limit": PAGE_OBJECTS})
        return msgspec.structs.replace(about, parameters={**about.parameters, "path": f"{self._root}?{query}"})

    async def take(self, body: bytes, subject: Subject) -> None:
        """Raises `UpstreamBroken`, `Unavailable`."""
        try:
            page = _decode_page(body)
            self._fields = _decode_fields(body)
            found = [(_decode_item(item).id, item) for item in page.data]
        except msgspec.DecodeError as error:
            raise UpstreamBroken("the provider's answer is no list", may_have_been_billed=False) from error
        own = await self._stored.own(self._kind, [upstream_id for upstream_id, _ in found], subject)
        self._items += [(upstream_id, item) for upstream_id, item in found if upstream_id in own]
        self._pages += 1
        self._has_more = bool(page.has_more) and bool(found)
        if found:
            self._query[self._cursor] = found[-1][0]

    def render(self) -> bytes:
        shown = self._items[: self._limit]
        first, last = (shown[0][0], shown[-1][0]) if shown else (None, None)
        told = {
            "data": [item for _, item in shown],
            "has_more": bool(shown) and (self._has_more or len(self._items) > len(shown)),
            "first_id": first,
            "last_id": last,
        }
        return _encode({**self._fields, **told})


def _limit_of(text: str) -> int:
    """Raises `InvalidRequest`."""
    if not text:
        return LIMIT_DEFAULT
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= LIMIT_MAX:
        raise InvalidRequest(f"`limit` is a whole number from 1 to {LIMIT_MAX}", code="invalid_value", param="limit")
    return int(text)
