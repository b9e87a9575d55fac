"""The gate's language: names of keys, texts of the scripts, encoders of their argument, decoders of their answer. No I/O.

Every script takes one MessagePack array and answers an array whose first item is a word. What each one does is said in
`docs/architecture.md`. Amounts are integers: of nano-USD, and where a budget counts them, of tokens and requests.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from budgets import limits

# Keys

EPOCH = "tg:epoch"
VERSIONS = "tg:versions"
SNAPSHOT = "tg:snapshot"
KEYS = "tg:keys"
KILLS = "tg:kills"
RUN_ID = "tg:run_id"
OPENING = "tg:opening"
AWAITED = "tg:awaited"
KILL_UNRECORDED = "tg:kill:unrecorded"
PUSH = "tg:push"
WORKERS = "tg:workers"
SUSPENSE = "tg:suspense"
JOBS = "tg:jobs"
APPLIED = "tg:applied"
USAGE = "tg:usage"
INGESTED = "tg:ingested"
OBSERVED_TOTAL = "tg:observed_total"
REFUSED = "tg:refused"
# Where nobody watches, no more counters that have refused are told.
REFUSED_MAX = 100_000


def lease_key(worker: str) -> str:
    return f"tg:lease:{worker}"


def holds_key(worker: str) -> str:
    return f"tg:holds:{worker}"


def kill_acks_key(kill_switch_id: str) -> str:
    return f"tg:kill:acks:{kill_switch_id}"


def spend_key(budget_id: str, window_start_s: int, *values: str) -> str:
    """`values` are those of the dimensions in which the budget has a counter for each (`matching.counter_values`)."""
    return ":".join((f"tg:spend:{budget_id}:{window_start_s}", *map(_quote, values)))


def read_spend_key(key: str) -> tuple[str, int, tuple[str, ...]]:
    """What `spend_key` made it of."""
    _, _, budget_id, window_start_s, *values = key.split(":")
    return budget_id, int(window_start_s), tuple(map(unquote, values))


def rate_key(limit_id: str, *values: str) -> str:
    return ":".join((f"tg:limit:{limit_id}", *map(_quote, values)))


def running_key(limit_id: str, *values: str) -> str:
    return ":".join((f"tg:running:{limit_id}", *map(_quote, values)))


def observed_key(day_start_s: int) -> str:
    """What observed rules would have refused on that day (UTC)."""
    return f"tg:observed:{day_start_s}"


def throttle_key(counter_key: str) -> str:
    """The rate at which a counter's budget lets pass what comes after its threshold."""
    return counter_key.replace("tg:spend:", "tg:limit:", 1)


# So that no value reads like two.
_quote = partial(quote, safe="")


# Scripts

# Room under a cap. Who needs no more than this part of what is left has room in abundance: it gets all it could use, and waits for
# nobody.
AMPLE_PARTS = 256
# Who needs so many times less than the first in line need not wait for what is too little for the first.
MUCH_LESS = 2


class Script(msgspec.Struct, frozen=True):
    name: str
    text: str
    sha1: str


def _load(name: str) -> Script:
    folder = Path(__file__).parent / "lua"
    shared = f"local AMPLE_PARTS, MUCH_LESS = {AMPLE_PARTS}, {MUCH_LESS}"
    text = "\n".join((shared, (folder / "prelude.lua").read_text(), (folder / f"{name}.lua").read_text()))
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


HEARTBEAT = _load("heartbeat")
ADMIT = _load("admit")
EXTEND = _load("extend")
SETTLE = _load("settle")
RESTORE = _load("restore")
REAP = _load("reap")
HELD = _load("held")
LINE = _load("line")
SCRIPTS = (HEARTBEAT, ADMIT, EXTEND, SETTLE, RESTORE, REAP, HELD, LINE)


# What goes in

# The largest amount that one script call moves: Lua counts exactly up to here. Nine million dollars for one attempt is no price,
# it is a client that asks for 10^18 tokens.
AMOUNT_MAX = 2**53

USD, TOKENS, REQUESTS = 1, 2, 3
UNITS = {"usd": USD, "tokens": TOKENS, "requests": REQUESTS}


class Carry(NamedTuple):
    """What the window before leaves to this one: at most `most` of what its counter is below its cap. Where that counter is gone,
    nothing was spent if it `is_empty_when_absent`, else nothing is known and nothing taken."""

    from_key: str
    from_cap: int
    most: int
    is_empty_when_absent: bool


class Throttle(NamedTuple):
    """From `at` on, requests pass at a rate: one costs `cost_ns`, and so much may be taken at once."""

    at: int
    key: str
    cost_ns: int
    capacity_ns: int


class Downgrade(NamedTuple):
    """From `at` on, `alias` takes the place of what was asked for."""

    at: int
    alias: str


class BudgetCounter(NamedTuple):
    """One budget in one window, amounts in its unit. `expire_at_s` is when the counter may go, in Unix seconds."""

    key: str
    cap: int
    is_hard: bool
    expire_at_s: int
    unit: int = USD
    is_observed: bool = False
    carry: Carry | None = None
    throttles: tuple[Throttle, ...] = ()
    downgrades: tuple[Downgrade, ...] = ()


class LimitCheck(NamedTuple):
    """`amount` units flow back in every window; `capacity` is how far they may be ahead, in nanoseconds. Without a window it is
    how many requests may run at once."""

    key: str
    amount: int
    window_ns: int
    capacity: int
    is_observed: bool = False

    def cost_ns(self, units: int) -> int:
        return limits.cost_ns(units, self.amount, self.window_ns)

    def units_in(self, free: int) -> int:
        """Of what is free, as the gate tells it: units of a rate, or slots."""
        return limits.units_in(free, self.amount, self.window_ns) if self.window_ns else free


# Text goes in as strings: the MessagePack of Redis 6.2 does not know the binary type.
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_json = msgspec.json.Encoder().encode


def _raw(column: Iterable[Any]) -> msgspec.Raw:
    return msgspec.Raw(_pack(tuple(column)))


class BudgetCounters(tuple[BudgetCounter, ...]):
    """The budgets that apply to an attempt. Keep it for as long as its windows last: what every call says of them is packed once.

    `units` is empty where all count money. `clauses` are what some of them say besides, `downgrades` those that take another
    alias: what this means to the attempt is the caller's to know.
    """

    packed: tuple[msgspec.Raw, ...]
    head: bytes
    units: tuple[int, ...]
    clauses: list[tuple[Any, ...]]
    downgrades: list[tuple[int, Downgrade]]

    def __init__(self, rows: Iterable[BudgetCounter] = ()) -> None:
        keys, ends = [row.key for row in self], [row.expire_at_s for row in self]
        self.packed = tuple(
            _raw(column) for column in (keys, [row.cap for row in self], [row.is_hard for row in self], ends)
        )
        self.units = tuple(row.unit for row in self) if any(row.unit != USD for row in self) else ()
        self.clauses = [clause for i, row in enumerate(self) for clause in _clauses(i, row)]
        self.downgrades = [(i, downgrade) for i, row in enumerate(self) for downgrade in row.downgrades]
        units = b',"units":%b' % _json(self.units) if self.units else b""
        # The first bar in a hold ends its head, so the head has none of its own.
        self.head = b'{"budgets":%b,"ends":%b%b,"running":' % (_escape(_json(keys)), _json(ends), units)


def _clauses(index: int, counter: BudgetCounter) -> Iterator[tuple[Any, ...]]:
    """In the order in which they are looked at."""
    if counter.carry is not None:
        yield "carry", index, *counter.carry
    if counter.is_observed:
        yield "observe", index
    for throttle in counter.throttles:
        yield "throttle", index, *throttle


class LimitChecks(tuple[LimitCheck, ...]):
    """The limits that apply to an attempt: rates first, then those of concurrency. Keep it: all but what one attempt takes of
    each is packed once."""

    packed_rates: tuple[msgspec.Raw, ...]
    packed_running: tuple[msgspec.Raw, ...]
    running_keys: list[str]
    rates: int
    observed: list[int]

    def __init__(self, rows: Iterable[LimitCheck] = ()) -> None:
        rates, running = [row for row in self if row.window_ns], [row for row in self if not row.window_ns]
        assert list(self) == rates + running, "positions are those of the columns, one after the other"
        self.packed_rates = _raw(row.key for row in rates), _raw(row.capacity for row in rates)
        self.running_keys = [row.key for row in running]
        self.packed_running = _raw(self.running_keys), _raw(row.capacity for row in running)
        self.rates = len(rates)
        self.observed = [i for i, row in enumerate(self) if row.is_observed]


NO_LIMITS = LimitChecks()


def _escape(json: bytes) -> bytes:
    return json.replace(b"|", b"\\u007c")


def _counters(budgets: Sequence[BudgetCounter]) -> BudgetCounters:
    return budgets if isinstance(budgets, BudgetCounters) else BudgetCounters(budgets)


def hold_value(
    budgets: Sequence[BudgetCounter], running_keys: Sequence[str], event_json: bytes, *, job: Any = None
) -> bytes:
    """What is kept with a hold, so that it can be resolved without its worker: `<head JSON>|<event JSON>`. `job` says what
    is needed besides, where the provider goes on with it."""
    told = b"" if job is None else b',"job":%b' % _escape(_json(job))
    return b"%b%b%b}|%b" % (_counters(budgets).head, _escape(_json(running_keys)), told, event_json)


class KeptHold(msgspec.Struct, frozen=True):
    """A hold as it was stored, in parts. `job` is as it was given to `hold_value`."""

    held_nanos: int
    held_tokens: int
    budgets: tuple[BudgetCounter, ...]
    event: bytes
    job: msgspec.Raw

    def amounts(self) -> Iterator[tuple[BudgetCounter, int]]:
        """What is held in each counter."""
        held = {USD: self.held_nanos, TOKENS: self.held_tokens, REQUESTS: 1}
        return ((counter, held[counter.unit]) for counter in self.budgets)


class _HoldHead(msgspec.Struct):
    budgets: list[str]
    ends: list[int]
    units: list[int] = []
    job: msgspec.Raw = msgspec.Raw(b"null")


_decode_head = msgspec.json.Decoder(_HoldHead).decode


def decode_kept_hold(value: bytes) -> KeptHold:
    """A stored hold (`<held_nanos>[,<held_tokens>]|<hold_value>`). Raises `ValueError` (a `msgspec.DecodeError` is one) for what is
    none."""
    held, head_json, event = value.split(b"|", 2)
    held_nanos, _, held_tokens = held.partition(b",")
    head = _decode_head(head_json)
    units = head.units or [USD] * len(head.budgets)
    # What the budget allows is not asked any more.
    budgets = tuple(
        BudgetCounter(key, 0, False, end_s, unit)
        for key, end_s, unit in zip(head.budgets, head.ends, units, strict=True)
    )
    return KeptHold(int(held_nanos), int(held_tokens or 0), budgets, event, head.job)


class Join(NamedTuple):
    """What the first beat of a connection says besides: which server this is (`run_id` of its INFO, "" where it does not tell), and who
    may hold something, as far as the worker knows."""

    run_id: str
    known: Sequence[str]


def encode_heartbeat(
    *, worker: str, fence: int, lease_ms: int, status: bytes, is_in_step: bool, join: Join | None = None
) -> bytes:
    """`fence` is the number of the lease: larger with each join of the worker, the same in all that it says until the next. A
    worker that `is_in_step` has put back what it holds."""
    return _pack((worker, fence, lease_ms, status.decode(), is_in_step, *(join or ())))


def encode_admit(
    *,
    worker: str,
    fence: int,
    attempt_id: str,
    kill_fields: Sequence[str],
    checks: LimitChecks = NO_LIMITS,
    costs_ns: Sequence[int] = (),
    budgets: Sequence[BudgetCounter],
    downgrades: Sequence[tuple[int, Downgrade]] = (),
    full_nanos: int,
    tranche_nanos: int,
    full_tokens: int = 0,
    tranche_tokens: int = 0,
    hold: bytes,
) -> bytes:
    """`hold` comes from `hold_value`. A tranche equals the full hold where tranches are unsafe. `costs_ns` is what the attempt
    takes of each rate, `downgrades` are those of the budgets' that are open to it."""
    counters = _counters(budgets)
    head = (
        worker,
        fence,
        attempt_id,
        kill_fields,
        *checks.packed_rates,
        costs_ns,
        *checks.packed_running,
        *counters.packed,
        min(full_nanos, AMOUNT_MAX),
        min(tranche_nanos, AMOUNT_MAX),
        hold.decode(),
    )
    if not (counters.units or counters.clauses or downgrades or checks.observed):
        return _pack(head)
    clauses = [*counters.clauses, *(("downgrade", i, *downgrade) for i, downgrade in downgrades)]
    tokens = min(full_tokens, AMOUNT_MAX), min(tranche_tokens, AMOUNT_MAX)
    return _pack((*head, counters.units, *tokens, checks.observed, clauses))


def encode_extend(
    *,
    worker: str,
    fence: int,
    attempt_id: str,
    add_nanos: int,
    add_tokens: int = 0,
    kill_fields: Sequence[str],
    budgets: Sequence[BudgetCounter],
) -> bytes:
    counters = _counters(budgets)
    tail = (counters.units, min(add_tokens, AMOUNT_MAX)) if counters.units else ()
    return _pack((worker, fence, attempt_id, min(add_nanos, AMOUNT_MAX), kill_fields, *counters.packed, *tail))


def encode_settle(
    *,
    worker: str,
    seq: int,
    attempt_id: str,
    cost_nanos: int,
    tokens: int = 0,
    requests: int = 0,
    budgets: Sequence[BudgetCounter],
    corrections: Sequence[tuple[str, int]] = (),
    running_keys: Sequence[str] = (),
    event: bytes,
    kept_hold: bytes = b"",
    is_late: bool = False,
) -> bytes:
    """`corrections` has (key, nanoseconds taken more than were charged) for each rate that was charged an estimate.

    `tokens` and `requests` are what it counts in budgets of those. `kept_hold` comes from `hold_value`: the provider goes on
    with it, and until a settle that `is_late` it costs `cost_nanos`.
    """
    cost_nanos = min(cost_nanos, AMOUNT_MAX)
    counters = _counters(budgets)
    keys, _, _, ends = counters.packed
    # Said only where there is something to say: most settles are of the ordinary kind, and journals are full of them.
    tail: tuple[Any, ...] = ()
    if counters.units:
        tail = (kept_hold.decode(), is_late, counters.units, min(tokens, AMOUNT_MAX), requests)
    elif kept_hold or is_late:
        tail = (kept_hold.decode(), is_late)
    # The second column of limits is of journals of old.
    rates, deltas_ns = zip(*corrections, strict=True) if corrections else ((), ())
    return _pack(
        (worker, seq, attempt_id, cost_nanos, keys, ends, rates, (), deltas_ns, running_keys, event.decode(), *tail)
    )


def encode_restore(
    *,
    by: str,
    fence: int,
    worker: str,
    attempt_id: str,
    held_nanos: int,
    held_tokens: int = 0,
    budgets: Sequence[BudgetCounter],
    running_keys: Sequence[str] = (),
    hold: bytes,
) -> bytes:
    """`by` is who does it, under the lease that has the number `fence`: `worker` itself, or who takes over from it."""
    counters = _counters(budgets)
    keys, _, _, ends = counters.packed
    tail = (counters.units, held_tokens) if counters.units else ()
    return _pack((by, fence, worker, attempt_id, held_nanos, keys, ends, running_keys, hold.decode(), *tail))


def restore_of_admit(argument: bytes, held_nanos: int, held_tokens: int, *, by: str, fence: int) -> bytes:
    """The argument of RESTORE for an attempt that was admitted with `argument` and holds so much by now."""
    worker, *said = _unpack(argument)
    if isinstance(said[0], int):  # Journals of old have no number of the lease.
        del said[0]
    attempt_id, _, _, _, _, running_keys, _, keys, _, _, ends, _, _, hold, *rest = said
    units = rest[0] if rest else ()
    tail = (units, held_tokens) if units else ()
    return _pack((by, fence, worker, attempt_id, held_nanos, keys, ends, running_keys, hold, *tail))


def encode_reap(*, worker: str, is_dead: bool, void_attempt_ids: Sequence[str]) -> bytes:
    """`is_dead` is proof of death (its journal's lock is free): then the lease is not asked."""
    return _pack((worker, is_dead, void_attempt_ids))


def encode_held(*, counter_key: str, attempt_id: str) -> bytes:
    """Whether others than `attempt_id` hold anything in a counter."""
    return _pack((counter_key, attempt_id))


def encode_line(*, worker: str, attempt_id: str, counter: BudgetCounter, since_us: int, need: int) -> bytes:
    """Of the worker's first in line: since when it waits, and how much of the counter's unit it needs."""
    return _pack((worker, attempt_id, counter.key, counter.cap, since_us, need))


# What comes out


class Beat(msgspec.Struct, frozen=True):
    """`epoch` is empty while Redis is being rebuilt. `time_us` is Redis time, Unix microseconds. `living` are the workers that have
    a lease."""

    epoch: str
    time_us: int
    snapshot_version: int
    keys_version: int
    kills_version: int
    applied_seq: int
    ingested_seq: int
    is_opening: bool
    living: frozenset[str]


class Admitted(msgspec.Struct, frozen=True):
    """`free` and `reset_ms` stand in the order of the limits that were asked for: nanoseconds of a rate, or slots."""

    held_nanos: int
    free: tuple[int, ...]
    reset_ms: tuple[int, ...]
    held_tokens: int = 0


class Extended(msgspec.Struct, frozen=True):
    held_nanos: int
    held_tokens: int = 0


class Halted(msgspec.Struct, frozen=True):
    """`flag` is the JSON that the kill switch left."""

    flag: bytes


class Limited(msgspec.Struct, frozen=True):
    """`index` is the position in `limits`. `retry_after_ms` is `budgets.limits.NEVER_FITS` when waiting does not help."""

    index: int
    free: int
    retry_after_ms: int


class Throttled(msgspec.Struct, frozen=True):
    """`index` is the position in `budgets` of one that has passed a threshold."""

    index: int
    retry_after_ms: int


class Downgraded(msgspec.Struct, frozen=True):
    """`alias` is to be used instead, says the budget at position `index`."""

    index: int
    alias: str


class OverBudget(msgspec.Struct, frozen=True):
    """`index` is the position in `budgets`. `left` is negative when the budget is overdrawn."""

    index: int
    left: int


class NotReady(msgspec.Struct, frozen=True):
    """The gate cannot say: `no_epoch` (being rebuilt), `no_lease` (this worker must join first), `opening` (not all have
    put back yet what they hold), `no_hold`."""

    reason: str


class Settled(msgspec.Struct, frozen=True):
    """`held_nanos` was held before; 0 where the hold was lost with Redis, or a late settle found nothing in suspense."""

    held_nanos: int


class Duplicate(msgspec.Struct, frozen=True):
    """Was applied before: nothing changed."""

    applied_seq: int


class Gap(msgspec.Struct, frozen=True):
    """Came too early: nothing changed. Everything after `applied_seq` is to be sent in order."""

    applied_seq: int


class Restored(msgspec.Struct, frozen=True):
    pass


class Present(msgspec.Struct, frozen=True):
    """All of the hold was there, or it is in suspense: nothing changed."""


class Reaped(msgspec.Struct, frozen=True):
    """How many holds went to suspense, and how many were given back."""

    to_suspense: int
    voided: int


class Alive(msgspec.Struct, frozen=True):
    """The worker has its lease: nothing changed."""


class Turn(msgspec.Struct, frozen=True):
    """Whether it is the asker's, and how much the counter has left."""

    is_yours: bool
    left: int


class UnknownAnswer(ValueError):
    """The script said something that this version does not know."""


def decode_heartbeat(reply: Sequence[Any]) -> Beat | NotReady:
    if reply[0] != b"ok":
        return _decode_not_ready(reply)
    _, epoch, time_us, snapshot, keys, kills, applied, ingested, is_opening, living = reply
    names = frozenset(name.decode() for name in living)
    return Beat(epoch.decode(), time_us, snapshot, keys, kills, applied, ingested, is_opening == 1, names)


AdmitAnswer = Admitted | Halted | Limited | Throttled | Downgraded | OverBudget | NotReady


def decode_admit(reply: Sequence[Any]) -> AdmitAnswer:
    word = reply[0]
    if word == b"ok":
        return Admitted(reply[1], tuple(reply[2]), tuple(reply[3]), reply[4])
    if word == b"limited":
        return Limited(reply[1], reply[2], reply[3])
    if word == b"throttled":
        return Throttled(reply[1], reply[2])
    if word == b"downgrade":
        return Downgraded(reply[1], reply[2].decode())
    return _decode_refusal(reply)


ExtendAnswer = Extended | Halted | OverBudget | NotReady


def decode_extend(reply: Sequence[Any]) -> ExtendAnswer:
    if reply[0] == b"ok":
        return Extended(reply[1], reply[2])
    return _decode_refusal(reply)


def decode_settle(reply: Sequence[Any]) -> Settled | Duplicate | Gap | NotReady:
    word = reply[0]
    if word == b"ok":
        return Settled(reply[1])
    if word == b"duplicate":
        return Duplicate(reply[1])
    if word == b"gap":
        return Gap(reply[1])
    return _decode_not_ready(reply)


def decode_restore(reply: Sequence[Any]) -> Restored | Present | NotReady:
    word = reply[0]
    if word == b"ok":
        return Restored()
    if word == b"present":
        return Present()
    return _decode_not_ready(reply)


def decode_reap(reply: Sequence[Any]) -> Reaped | Alive | NotReady:
    word = reply[0]
    if word == b"ok":
        return Reaped(reply[1], reply[2])
    if word == b"alive":
        return Alive()
    return _decode_not_ready(reply)


def decode_held(reply: Sequence[Any]) -> bool:
    if reply[0] != b"ok":
        raise _unknown(reply)
    return bool(reply[1])


def decode_line(reply: Sequence[Any]) -> Turn:
    if reply[0] != b"ok":
        raise _unknown(reply)
    return Turn(bool(reply[1]), reply[2])


def _decode_refusal(reply: Sequence[Any]) -> Halted | OverBudget | NotReady:
    word = reply[0]
    if word == b"over_budget":
        return OverBudget(reply[1], reply[2])
    if word == b"halted":
        return Halted(reply[1])
    return _decode_not_ready(reply)


def _decode_not_ready(reply: Sequence[Any]) -> NotReady:
    if reply[0] in (b"no_epoch", b"no_lease", b"opening", b"no_hold"):
        return NotReady(reply[0].decode())
    raise _unknown(reply)


def _unknown(reply: Sequence[Any]) -> UnknownAnswer:
    return UnknownAnswer(f"the gate answered {reply[0]!r}")
