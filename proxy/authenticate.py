"""Who is asking: the presented virtual key → its record → the subject that limits and budgets apply to."""

from collections.abc import Callable, Mapping

from budgets import gate
from budgets.windows import window_bounds
from keys import tokens
from keys.kills import kill_field
from proxy.ask import call
from proxy.errors import InvalidKey, Unavailable
from proxy.registry import Registry
from proxy.snapshot import Budget, KeyRecord, Limit, Project, Team, decode_key
from proxy.wire.redis import RedisPipeline

# Eight kilobytes each with what is prepared for them; a key that is not here costs one more round trip.
RECORDS_MAX = 5_000
BEARER = b"bearer "
# Where clients of Anthropic, Google and Azure put their key.
KEY_HEADERS = (b"x-api-key", b"x-goog-api-key", b"api-key")
# Where a browser puts it that opens a WebSocket: it may name no header.
SUBPROTOCOLS = b"sec-websocket-protocol"
KEY_SUBPROTOCOL = b"openai-insecure-api-key."


class _RateHeaders:
    """The names of OpenAI's `x-ratelimit-*` headers for one kind of limit."""

    __slots__ = ("limit", "remaining", "reset")

    def __init__(self, name: bytes) -> None:
        self.limit = b"x-ratelimit-limit-" + name
        self.remaining = b"x-ratelimit-remaining-" + name
        self.reset = b"x-ratelimit-reset-" + name


class Subject:
    """A virtual key with its project and team in one snapshot, and what the gate checks for it, prepared once."""

    __slots__ = (
        "_counters",
        "_counters_valid_until_s",
        "budgets",
        "key",
        "kill_fields",
        "limit_rules",
        "limits",
        "project",
        "rate_headers",
        "registry",
        "running_keys",
        "team",
        "token_limits",
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
        values = {
            "team": team.team_id,
            "project": project.project_id,
            "environment": project.environment,
            "key": key.key_id,
        }
        self.budgets: tuple[Budget, ...] = (*registry.budgets.matching(values), *key.budgets)
        self.limit_rules: tuple[Limit, ...] = (*registry.limits.matching(values), *key.limits)
        self.limits = gate.LimitChecks(map(_limit_check, self.limit_rules))
        self.token_limits = [(i, check) for i, check in enumerate(self.limits) if check.kind == "tpm"]
        self.running_keys = [check.key for check in self.limits if check.kind == "running"]
        self.rate_headers = [
            (_RateHeaders(name), [i for i, check in enumerate(self.limits) if check.kind == kind])
            for kind, name in (("rpm", b"requests"), ("tpm", b"tokens"))
        ]
        self._counters = gate.BudgetCounters()
        self._counters_valid_until_s = 0.0

    def counters(self, now_s: float) -> gate.BudgetCounters:
        """The spend counters of the windows that `now_s` (Unix seconds) lies in, in the order of `budgets`."""
        if now_s >= self._counters_valid_until_s:
            bounds = [window_bounds(budget.window, budget.time_zone, now_s) for budget in self.budgets]
            self._counters = gate.BudgetCounters(
                gate.BudgetCounter(gate.spend_key(budget.budget_id, start), budget.amount, budget.mode == "hard", end)
                for budget, (start, end) in zip(self.budgets, bounds, strict=True)
            )
            self._counters_valid_until_s = min((end for _, end in bounds), default=now_s + 3600)
        return self._counters


class KeyCache:
    """Records by digest, filled from Redis, forgotten by push. A worker never writes a record back."""

    def __init__(self, redis: RedisPipeline) -> None:
        self._redis = redis
        self._records: dict[str, KeyRecord | None] = {}
        self._subjects: dict[str, Subject] = {}
        self._generation = 0

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
    digest = tokens.digest(_presented(headers))
    key = await keys.find(digest)
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


def _presented(headers: Mapping[bytes, bytes]) -> str:
    """The one key that the headers hold, wherever the client's dialect puts it."""
    found = {headers[name].strip() for name in KEY_HEADERS if name in headers}
    authorization = headers.get(b"authorization", b"")
    if authorization[:7].lower() == BEARER:
        found.add(authorization[7:].strip())
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


def _limit_check(limit: Limit) -> gate.LimitCheck:
    kind = _KINDS[limit.metric]
    key = (
        gate.running_key("limit", limit.limit_id) if kind == "running" else gate.rate_key(kind, "limit", limit.limit_id)
    )
    return gate.LimitCheck(kind, key, limit.amount, 1)


_KINDS = {"requests": "rpm", "tokens": "tpm", "concurrency": "running"}
