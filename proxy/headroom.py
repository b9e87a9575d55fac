"""Headroom: what a provider's own rate limits have left, by its word, for each deployment under each credential.

It is read off every answer's headers, counted down between two answers, and told to the other workers when it is scarce, on a
channel of its own. It only ever passes a deployment over: what a provider says may be wrong, and it is asked again soon.
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple

import msgspec
import structlog

from proxy.clock import Clock
from proxy.dialects.dialect import Call
from proxy.registry import Upstream
from proxy.wire.redis import RedisError, RedisPipeline

log = structlog.get_logger()

CHANNEL = "tg:headroom"
# A provider that says to wait for longer, or until a day is over, is asked again all the same.
WAIT_S_MAX = 60.0
# Where nothing is left and it does not say until when.
WAIT_S_UNKNOWN = 5.0
# With more than a fifth of a limit left nobody needs to be told, and not every answer is read.
SCARCE = 5
READ_INTERVAL_S = 0.05
SHARE_INTERVAL_S = 0.1
BYTES_PER_TOKEN = 4

# Tokens are of the input, or of input and output together. A limit of output tokens is apart: how many an answer gets nobody knows
# before, so that each request counts as one of them.
Unit = Literal["requests", "tokens", "output_tokens"]
Headers = Iterable[tuple[bytes, bytes]]


class Meter(NamedTuple):
    """Names of the three headers that tell of one limit. One that `refills` gets back what was taken little by little, and its
    reset is when all of it is there; the others get all of it back at their reset."""

    unit: Unit
    limit: bytes
    remaining: bytes
    reset: bytes
    refills: bool = False


def _openai(unit: Unit, name: bytes, *, refills: bool) -> Meter:
    limit, remaining, reset = (b"x-ratelimit-%b-%b" % (what, name) for what in (b"limit", b"remaining", b"reset"))
    return Meter(unit, limit, remaining, reset, refills)


def _anthropic(unit: Unit, name: bytes) -> Meter:
    limit, remaining, reset = (
        b"anthropic-ratelimit-%b-%b" % (name, what) for what in (b"limit", b"remaining", b"reset")
    )
    return Meter(unit, limit, remaining, reset, refills=True)


# OpenAI, Azure, Groq, xAI and others after OpenAI: "the time until the rate limit resets to its initial state". Anthropic: "the
# time when the rate limit will be fully replenished". Cerebras and Hugging Face name the period, Mistral too, in its own way.
METERS = (
    _openai("requests", b"requests", refills=True),
    _openai("tokens", b"tokens", refills=True),
    _openai("tokens", b"project-tokens", refills=True),
    _openai("tokens", b"tokens_usage_based", refills=True),
    _openai("requests", b"requests-minute", refills=False),
    _openai("requests", b"requests-hour", refills=False),
    _openai("requests", b"requests-day", refills=False),
    _openai("tokens", b"tokens-minute", refills=False),
    _openai("tokens", b"tokens-hour", refills=False),
    _openai("tokens", b"tokens-day", refills=False),
    _openai("requests", b"req-minute", refills=False),
    _openai("requests", b"req-10-second", refills=False),
    _anthropic("requests", b"requests"),
    _anthropic("tokens", b"tokens"),
    _anthropic("tokens", b"input-tokens"),
    _anthropic("output_tokens", b"output-tokens"),
    Meter("tokens", b"ratelimitbysize-limit", b"ratelimitbysize-remaining", b"ratelimitbysize-reset"),
    Meter("requests", b"ratelimit-limit", b"ratelimit-remaining", b"ratelimit-reset"),
    Meter("requests", b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"),
)
_METERS_BY_REMAINING = {meter.remaining: meter for meter in METERS}
_REMAINING = frozenset(_METERS_BY_REMAINING)
_RETRY_AFTER, _RETRY_AFTER_MS = b"retry-after", b"retry-after-ms"
TOO_MANY_REQUESTS = 429

_NUMBER = re.compile(r"\d{1,18}(\.\d{1,18})?")
_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,18})?)s)?(?:(\d{1,9}(?:\.\d{1,18})?)ms)?"
)
_DURATION_S = (86_400, 3_600, 60, 1, 0.001)
# Numbers from here on are moments of Unix time, and from the second on of its milliseconds.
_UNIX_S, _UNIX_MS = 1e9, 1e12


class Left(msgspec.Struct, frozen=True, array_like=True):
    """Of one limit: `remaining` now, `per_s` more in each second up to `limit`, and all of it in `reset_s`. None: not said."""

    unit: Unit
    remaining: float
    limit: float | None
    reset_s: float | None
    per_s: float = 0.0

    @property
    def is_scarce(self) -> bool:
        return self.limit is None or self.remaining * SCARCE <= self.limit


def read(headers: Mapping[bytes, bytes], now_s: float) -> list[Left]:
    """What an answer says of its provider's limits; what cannot be understood is not said. `now_s` is Unix time."""
    found = []
    for name in _REMAINING.intersection(headers):
        meter = _METERS_BY_REMAINING[name]
        remaining = _amount(headers[name])
        if remaining is None:
            continue
        limit, reset_s = _amount(headers.get(meter.limit, b"")), parse_wait_s(headers.get(meter.reset, b""), now_s)
        per_s = 0.0
        if meter.refills and limit is not None and reset_s and limit > remaining:
            per_s = (limit - remaining) / reset_s
        found.append(Left(meter.unit, remaining, limit, reset_s or None, per_s))
    return found


def retry_after_s(headers: Mapping[bytes, bytes], now_s: float) -> float:
    """How long a refusal says to wait; 0 where it does not."""
    if _RETRY_AFTER_MS in headers:
        return (_amount(headers[_RETRY_AFTER_MS]) or 0.0) / 1000
    return parse_wait_s(headers.get(_RETRY_AFTER, b""), now_s) or 0.0


def parse_wait_s(value: bytes, now_s: float) -> float | None:
    """Seconds from now, of what is written as seconds, as `6m0s` or `12ms`, as Unix time, as RFC 3339 or as an HTTP date. None for
    anything else."""
    text = value.decode("latin-1").strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number >= _UNIX_MS:
            number /= 1000
        return max(number - now_s, 0.0) if number >= _UNIX_S else number
    duration = _DURATION.fullmatch(text) if text else None
    if duration is not None:
        return sum(float(part) * unit for part, unit in zip(duration.groups(), _DURATION_S, strict=True) if part)
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
        except ValueError:
            continue
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(moment.timestamp() - now_s, 0.0)
    return None


def _amount(value: bytes) -> float | None:
    text = value.decode("latin-1").strip()
    return float(text) if _NUMBER.fullmatch(text) else None


class Headroom:
    """Of one deployment under one credential. Moments are of the monotonic clock, in seconds."""

    __slots__ = (
        "closed_until_s",
        "left",
        "read_again_s",
        "requests_left",
        "requests_taken",
        "seen_at_s",
        "share_again_s",
        "tokens_left",
        "tokens_taken",
    )

    def __init__(self) -> None:
        self.closed_until_s = 0.0
        self.read_again_s = 0.0
        self.share_again_s = 0.0
        self.see((), 0.0)

    def see(self, left: Sequence[Left], at_s: float) -> None:
        self.left = left
        self.seen_at_s = at_s
        # The least of what its limits have left, and what this worker's requests have taken of it since.
        self.requests_left = min((each.remaining for each in left if each.unit != "tokens"), default=math.inf)
        self.tokens_left = min((each.remaining for each in left if each.unit == "tokens"), default=math.inf)
        self.requests_taken = 0.0
        self.tokens_taken = 0.0

    def take(self, tokens: float) -> None:
        self.requests_taken += 1
        self.tokens_taken += tokens

    def wait_s(self, tokens: float, at_s: float) -> float:
        """Until one more request of at least `tokens` may be sent; 0 for now."""
        is_ample = self.requests_taken < self.requests_left and self.tokens_taken + tokens <= self.tokens_left
        if is_ample and self.closed_until_s <= at_s:
            return 0.0
        longest = self.closed_until_s - at_s
        age_s = at_s - self.seen_at_s
        for left in self.left:
            longest = max(longest, self._wait_of(left, tokens, age_s))
        return min(max(longest, 0.0), WAIT_S_MAX)

    def _wait_of(self, left: Left, tokens: float, age_s: float) -> float:
        reset_s = WAIT_S_UNKNOWN if left.reset_s is None else min(left.reset_s, WAIT_S_MAX)
        if age_s >= reset_s:
            return 0.0
        needed, taken = (tokens, self.tokens_taken) if left.unit == "tokens" else (1.0, self.requests_taken)
        if left.limit is not None:
            # What is large besides is the provider's to judge: what it counts of images is not known.
            needed = min(needed, max(left.limit / 2, 1.0))
        missing = needed - (left.remaining - taken + left.per_s * age_s)
        if missing <= 0:
            return 0.0
        return min(missing / left.per_s, reset_s - age_s) if left.per_s else reset_s - age_s


class _Told(msgspec.Struct, frozen=True):
    """One message of `tg:headroom`. Durations, not moments: workers' clocks differ."""

    worker: str
    deployment_id: str
    credential_id: str
    closed_s: float
    left: list[Left]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Told).decode


class Headrooms:
    """All that this worker has seen or heard. A deployment of which nothing was said has room."""

    def __init__(self, *, redis: RedisPipeline, worker: str, clock: Clock) -> None:
        self._redis = redis
        self._worker = worker
        self._clock = clock
        self._rooms: dict[tuple[str, str], Headroom] = {}

    def wait_s(self, upstream: Upstream, call: Call) -> float:
        """Until a request may be sent there, under the credential that is free first; 0 for now."""
        if not self._rooms:
            return 0.0
        at_s, tokens = self._clock.monotonic_s(), _tokens_min(call)
        shortest = WAIT_S_MAX
        for credential_id in upstream.credential_ids:
            room = self._rooms.get((upstream.deployment.deployment_id, credential_id))
            if room is None:
                return 0.0
            shortest = min(shortest, room.wait_s(tokens, at_s))
        return shortest

    def has_room(self, upstream: Upstream, credential_id: str, call: Call) -> bool:
        room = self._rooms.get((upstream.deployment.deployment_id, credential_id))
        return room is None or room.wait_s(_tokens_min(call), self._clock.monotonic_s()) <= 0

    def take(self, upstream: Upstream, credential_id: str, call: Call) -> None:
        """A request is being sent."""
        room = self._rooms.get((upstream.deployment.deployment_id, credential_id))
        if room is not None:
            room.take(_tokens_min(call))

    def hear(self, upstream: Upstream, credential_id: str, status: int, answered: Headers) -> None:
        """What an answer says of what is left."""
        name = (upstream.deployment.deployment_id, credential_id)
        room, at_s = self._rooms.get(name), self._clock.monotonic_s()
        if status < TOO_MANY_REQUESTS and room is not None and at_s < room.read_again_s:
            return
        if status != TOO_MANY_REQUESTS and not _says_what_is_left(answered):
            return
        headers = dict(answered)
        now_s = self._clock.now_s()
        left = read(headers, now_s)
        closed_s = min(retry_after_s(headers, now_s), WAIT_S_MAX) if status == TOO_MANY_REQUESTS else 0.0
        if not left and not closed_s:
            return
        if room is None:
            room = self._rooms[name] = Headroom()
        had_room = room.wait_s(1, at_s) <= 0
        room.see(left, at_s)
        room.closed_until_s = max(room.closed_until_s, at_s + closed_s) if closed_s else room.closed_until_s
        is_scarce = bool(closed_s) or any(each.is_scarce for each in left)
        room.read_again_s = 0.0 if is_scarce else at_s + READ_INTERVAL_S
        has_closed = had_room and room.wait_s(1, at_s) > 0
        if has_closed or (is_scarce and at_s >= room.share_again_s):
            room.share_again_s = at_s + SHARE_INTERVAL_S
            self._tell(_Told(self._worker, *name, max(room.closed_until_s - at_s, 0.0), list(left)))

    def told(self, body: bytes) -> None:
        """One message of another worker; nonsense is logged and left."""
        try:
            told = _decode(body)
        except msgspec.DecodeError:
            log.error("what another worker says of a provider's limits is not readable")
            return
        if told.worker == self._worker:
            return
        room = self._rooms.setdefault((told.deployment_id, told.credential_id), Headroom())
        at_s = self._clock.monotonic_s()
        room.see(told.left, at_s)
        room.closed_until_s = max(room.closed_until_s, at_s + min(told.closed_s, WAIT_S_MAX))
        room.read_again_s = 0.0

    def _tell(self, told: _Told) -> None:
        with contextlib.suppress(RedisError):  # The others find out by themselves.
            self._redis.call(b"PUBLISH", CHANNEL, _encode(told)).add_done_callback(_look_at)


def _says_what_is_left(answered: Headers) -> bool:
    for name, _ in answered:  # noqa: SIM110  A generator costs three times as much.
        if name in _REMAINING:
            return True
    return False


def _look_at(future: "asyncio.Future[Any]") -> None:
    """At a failure that nobody waits for, so that it is not reported as forgotten."""
    if not future.cancelled():
        future.exception()


def _tokens_min(call: Call) -> float:
    """What the provider surely counts: its own estimate of a prompt is no less."""
    return 0.0 if call.is_session else call.input_tokens_max / BYTES_PER_TOKEN
