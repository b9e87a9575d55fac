"""Who is asking: the presented virtual key → its record → the subject that limits and budgets apply to."""

from collections.abc import Callable, Mapping

from budgets import gate, matching
from budgets.matching import Index
from keys import tokens
from keys.kills import kill_field
from proxy.ask import call
from proxy.errors import InvalidKey, Unavailable
from proxy.registry import Registry
from proxy.rules import Rules
from proxy.snapshot import KeyRecord, Project, Team, decode_key
from proxy.wire.redis import RedisPipeline

# Eight kilobytes each with what is prepared for them; a key that is not here costs one more round trip.
RECORDS_MAX = 5_000
# Of one key, for as many users, models, tags, … as it has lately been used for.
RULES_MAX = 64
BEARER = b"bearer "
# Where clients of Anthropic, Google and Azure put their key.
KEY_HEADERS = (b"x-api-key", b"x-goog-api-key", b"api-key")
# Where a browser puts it that opens a WebSocket: it may name no header.
SUBPROTOCOLS = b"sec-websocket-protocol"
KEY_SUBPROTOCOL = b"openai-insecure-api-key."


class Subject:
    """A virtual key with its project and team in one snapshot, and what the gate checks for it, prepared once."""

    __slots__ = (
        "_by_call",
        "_dimensions",
        "_of_key",
        "_rules",
        "_values",
        "key",
        "kill_fields",
        "project",
        "registry",
        "team",
    )

    def __init__(self, key: KeyRecord, project: Project, team: Team, registry: Registry) -> None:
        self.key = key
        self.project = project
        self.team = team
        self.registry = registry
        self.kill_fields = (
            kill_field("global"),
            kill_field("team", team.team_id),
            kill_field("project", project.project_id),
            kill_field("key", key.key_id),
        )
        self._values = {
            "team": team.team_id,
            "project": project.project_id,
            "environment": project.environment,
            "key": key.key_id,
        }
        # The rules of the key alone, and what it has besides that its calls decide.
        budgets, limits = registry.rules_of_keys(self._values)
        self._of_key = (
            budgets + [budget for budget in key.budgets if matching.is_of_keys(budget.subject)],
            limits + [limit for limit in key.limits if matching.is_of_keys(limit.subject)],
        )
        self._by_call = (
            Index(budget for budget in key.budgets if not matching.is_of_keys(budget.subject)),
            Index(limit for limit in key.limits if not matching.is_of_keys(limit.subject)),
        )
        indexes = (registry.budgets_of_calls, registry.limits_of_calls, *self._by_call)
        # What of a call decides which rules apply to it, and which of their counters.
        self._dimensions = sorted({name for index in indexes for name in index.dimensions} - matching.OF_KEYS)
        self._rules: dict[tuple[str, ...], Rules] = {}

    def rules(self, call_values: Callable[[str], str]) -> Rules:
        """Those that apply to a call. `call_values` says its value in a dimension, "" where it has none."""
        decides = tuple(map(call_values, self._dimensions)) if self._dimensions else ()
        try:
            return self._rules[decides]
        except KeyError:
            pass
        values = {**self._values, **dict(zip(self._dimensions, decides, strict=True))}
        budgets, limits = self._of_key
        budgets_by_call, limits_by_call = self._by_call
        rules = Rules(
            budgets + self.registry.budgets_of_calls.matching(values) + budgets_by_call.matching(values),
            limits + self.registry.limits_of_calls.matching(values) + limits_by_call.matching(values),
            values,
            self.registry.counters,
        )
        if len(self._rules) >= RULES_MAX:
            self._rules.clear()
        self._rules[decides] = rules
        return rules


class KeyCache:
    """Records by digest, filled from Redis, forgotten by push. A worker never writes a record back."""

    def __init__(self, redis: RedisPipeline) -> None:
        self._redis = redis
        self._records: dict[str, KeyRecord | None] = {}
        self._subjects: dict[str, Subject] = {}
        self._generation = 0

    def at_hand(self, digest: str) -> KeyRecord | None:
        """None also for a key that is only not here."""
        return self._records.get(digest)

    async def find(self, digest: str) -> KeyRecord | None:
        """None for an unknown key. Raises `Unavailable` when it is not at hand and Redis cannot be asked."""
        try:
            return self._records[digest]
        except KeyError:
            pass
        generation = self._generation
        body = await call(self._redis, b"HGET", gate.KEYS, digest)
        record = decode_key(body) if body is not None else None
        # A push that came while we asked may be newer than the answer: then the answer is not kept.
        if generation == self._generation:
            if len(self._records) >= RECORDS_MAX:
                self._forget_oldest()
            self._records[digest] = record
        return record

    def subject(self, digest: str, key: KeyRecord, registry: Registry) -> Subject | None:
        """The prepared subject of a key in a snapshot; None when the snapshot does not know its project yet."""
        subject = self._subjects.get(digest)
        if subject is not None and subject.registry is registry and subject.key is key:
            return subject
        project = registry.snapshot.projects.get(key.project_id)
        if project is None:
            return None
        subject = Subject(key, project, registry.snapshot.teams[project.team_id], registry)
        if self._records.get(digest) is key:
            self._subjects[digest] = subject
        return subject

    def forget(self, digest: str) -> None:
        self._generation += 1
        self._records.pop(digest, None)
        self._subjects.pop(digest, None)

    def clear(self) -> None:
        self._generation += 1
        self._records.clear()
        self._subjects.clear()

    def _forget_oldest(self) -> None:
        for digest in list(self._records)[: RECORDS_MAX // 10]:
            del self._records[digest]
            self._subjects.pop(digest, None)


async def authenticate(
    headers: Mapping[bytes, bytes], keys: KeyCache, registry: Registry, now_s: Callable[[], float]
) -> Subject:
    """The subject of the presented virtual key. Raises `InvalidKey` or `Unavailable`."""
    digest = tokens.digest(presented_key(headers))
    key = keys.at_hand(digest) or await keys.find(digest)
    if key is None:
        raise InvalidKey("this virtual key is not known: check it, or ask for a new one")
    check_key(key, now_s())
    subject = keys.subject(digest, key, registry)
    if subject is None:
        raise Unavailable("the key's project has not reached this worker yet")
    return subject


def check_key(key: KeyRecord, now_s: float) -> None:
    """Raises `InvalidKey` for a key that was revoked, is paused or has expired."""
    if key.is_revoked:
        raise InvalidKey("this virtual key was revoked", code="key_revoked")
    if key.is_paused:
        raise InvalidKey("this virtual key is paused", code="key_paused")
    if key.expires_at_s is not None and key.expires_at_s <= now_s:
        raise InvalidKey("this virtual key has expired", code="key_expired")


def presented_key(headers: Mapping[bytes, bytes]) -> str:
    """The one key that the headers hold, wherever the client's dialect puts it."""
    authorization = headers.get(b"authorization", b"")
    found = {authorization[7:].strip()} if authorization[:7].lower() == BEARER else set()
    for name in KEY_HEADERS:
        if name in headers:
            found.add(headers[name].strip())
    if SUBPROTOCOLS in headers:
        offered = (protocol.strip() for protocol in headers[SUBPROTOCOLS].split(b","))
        found.update(protocol[len(KEY_SUBPROTOCOL) :] for protocol in offered if protocol.startswith(KEY_SUBPROTOCOL))
    if not found:
        raise InvalidKey("no virtual key: send it as `Authorization: Bearer tg-…`", code="missing_api_key")
    if len(found) > 1:
        raise InvalidKey("the request presents two different keys: send one", code="ambiguous_api_key")
    secret = found.pop()
    if not secret or len(secret) > tokens.TOKEN_LENGTH_MAX or not secret.isascii():
        raise InvalidKey("this is not a virtual key")
    return secret.decode("ascii")
