"""The gate's language: names of keys, texts of the scripts, encoders of their argument, decoders of their answer. No I/O.

Every script takes one MessagePack array and answers an array whose first item is a word. What each one does is said in
`docs/architecture.md`. All amounts are integers of nano-USD.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

# Keys

EPOCH = "tg:epoch"
VERSIONS = "tg:versions"
SNAPSHOT = "tg:snapshot"
KEYS = "tg:keys"
KILLS = "tg:kills"
KILL_UNRECORDED = "tg:kill:unrecorded"
PUSH = "tg:push"
WORKERS = "tg:workers"
SUSPENSE = "tg:suspense"
JOBS = "tg:jobs"
APPLIED = "tg:applied"
USAGE = "tg:usage"
INGESTED = "tg:ingested"


def lease_key(worker: str) -> str:
    return f"tg:lease:{worker}"


def holds_key(worker: str) -> str:
    return f"tg:holds:{worker}"


def kill_acks_key(kill_switch_id: str) -> str:
    return f"tg:kill:acks:{kill_switch_id}"


def spend_key(budget_id: str, window_start_s: int, *values: str) -> str:
    """`values` are those of the dimensions in which the budget has a counter for each (`matching.counter_values`)."""
    return ":".join((f"tg:spend:{budget_id}:{window_start_s}", *map(_quote, values)))


def rate_key(kind: str, scope: str, subject_id: str) -> str:
    """`kind` is rpm or tpm."""
    return f"tg:limit:{kind}:{scope}:{subject_id}"


def running_key(scope: str, subject_id: str) -> str:
    return f"tg:running:{scope}:{subject_id}"


# So that no value reads like two.
_quote = partial(quote, safe="")


# Scripts


class Script(msgspec.Struct, frozen=True):
    name: str
    text: str
    sha1: str


def _load(name: str) -> Script:
    folder = Path(__file__).parent / "lua"
    text = (folder / "prelude.lua").read_text() + "\n" + (folder / f"{name}.lua").read_text()
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


HEARTBEAT = _load("heartbeat")
ADMIT = _load("admit")
EXTEND = _load("extend")
SETTLE = _load("settle")
RESTORE = _load("restore")
REAP = _load("reap")
SCRIPTS = (HEARTBEAT, ADMIT, EXTEND, SETTLE, RESTORE, REAP)


# What goes in

# The largest amount that one script call moves: Lua counts exactly up to here. Nine million dollars for one attempt is no price,
# it is a client that asks for 10^18 tokens.
AMOUNT_MAX_NANOS = 2**53


class BudgetCounter(NamedTuple):
    """One budget in one window. `expire_at_s` is the window's end in Unix seconds."""

    key: str
    cap_nanos: int
    is_hard: bool
    expire_at_s: int


class LimitCheck(NamedTuple):
    """`kind` is rpm, tpm or running. `per_minute` units flow back in every minute; of `running` so many run at once."""

    kind: str
    key: str
    per_minute: int
    cost: int


# Text goes in as strings: the MessagePack of Redis 6.2 does not know the binary type.
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_json = msgspec.json.Encoder().encode


def _columns(rows: Sequence[BudgetCounter] | Sequence[LimitCheck]) -> tuple[tuple[Any, ...], ...]:
    """The four fields of all rows. The scripts take columns: Redis unpacks few lists faster than many."""
    return tuple(zip(*rows, strict=True)) or ((), (), (), ())


class BudgetCounters(tuple[BudgetCounter, ...]):
    """The budgets that apply to an attempt. Keep it for as long as its windows last: what every call says of them is packed once."""

    packed: tuple[msgspec.Raw, ...]
    head: bytes

    def __init__(self, rows: Iterable[BudgetCounter] = ()) -> None:
        keys, _, _, ends = columns = _columns(self)
        self.packed = tuple(msgspec.Raw(_pack(column)) for column in columns)
        # The first bar in a hold ends its head, so the head has none of its own.
        self.head = b'{"budgets":%b,"ends":%b,"running":' % (_escape(_json(keys)), _json(ends))


class LimitChecks(tuple[LimitCheck, ...]):
    """The limits that apply to a subject. Keep it: all but what one attempt takes of each is packed once."""

    packed: tuple[msgspec.Raw, ...]

    def __init__(self, rows: Iterable[LimitCheck] = ()) -> None:
        self.packed = tuple(msgspec.Raw(_pack(column)) for column in _columns(self)[:3])


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


def decode_hold(value: bytes) -> tuple[int, list[tuple[str, int]]]:
    """What a stored hold (`<held_nanos>|<hold_value>`) holds, and in which counters: (nanos, [(key, expire_at_s), ...])."""
    held_nanos, head, _ = value.split(b"|", 2)
    fields = msgspec.json.decode(head)
    return int(held_nanos), list(zip(fields["budgets"], fields["ends"], strict=True))


class KeptHold(msgspec.Struct, frozen=True):
    """A hold as it was stored, in parts. `job` is as it was given to `hold_value`."""

    held_nanos: int
    budgets: tuple[BudgetCounter, ...]
    event: bytes
    job: msgspec.Raw


class _HoldHead(msgspec.Struct):
    budgets: list[str]
    ends: list[int]
    job: msgspec.Raw = msgspec.Raw(b"null")


_decode_head = msgspec.json.Decoder(_HoldHead).decode


def decode_kept_hold(value: bytes) -> KeptHold:
    """Raises `ValueError` (a `msgspec.DecodeError` is one) for what is no hold."""
    held_nanos, head_json, event = value.split(b"|", 2)
    head = _decode_head(head_json)
    # What the budget allows is not asked any more.
    budgets = tuple(BudgetCounter(key, 0, False, end_s) for key, end_s in zip(head.budgets, head.ends, strict=True))
    return KeptHold(int(held_nanos), budgets, event, head.job)


def encode_heartbeat(*, worker: str, lease_ms: int, status: bytes) -> bytes:
    return _pack((worker, lease_ms, status.decode()))


def encode_admit(
    *,
    worker: str,
    attempt_id: str,
    kill_fields: Sequence[str],
    limits: Sequence[LimitCheck],
    costs: Sequence[int] | None = None,
    budgets: Sequence[BudgetCounter],
    full_nanos: int,
    tranche_nanos: int,
    hold: bytes,
) -> bytes:
    """`hold` comes from `hold_value`. `tranche_nanos` equals `full_nanos` where tranches are unsafe. `costs`, where given, is
    what the attempt takes of each limit, in place of the costs that the limits have."""
    full_nanos, tranche_nanos = min(full_nanos, AMOUNT_MAX_NANOS), min(tranche_nanos, AMOUNT_MAX_NANOS)
    checks = limits if isinstance(limits, LimitChecks) else LimitChecks(limits)
    if costs is None:
        costs = [check.cost for check in checks]
    columns = (*checks.packed, costs, *_counters(budgets).packed)
    return _pack((worker, attempt_id, kill_fields, *columns, full_nanos, tranche_nanos, hold.decode()))


def encode_extend(
    *, worker: str, attempt_id: str, add_nanos: int, kill_fields: Sequence[str], budgets: Sequence[BudgetCounter]
) -> bytes:
    return _pack((worker, attempt_id, min(add_nanos, AMOUNT_MAX_NANOS), kill_fields, *_counters(budgets).packed))


def encode_settle(
    *,
    worker: str,
    seq: int,
    attempt_id: str,
    cost_nanos: int,
    budgets: Sequence[BudgetCounter],
    tpm: Sequence[tuple[str, int, int]],
    running_keys: Sequence[str],
    event: bytes,
    kept_hold: bytes = b"",
    is_late: bool = False,
) -> bytes:
    """`tpm` has (key, tokens per minute, tokens used more than charged) for each token limit of the attempt.

    `kept_hold` comes from `hold_value`: the provider goes on with it, and until a settle that `is_late` it costs `cost_nanos`.
    """
    cost_nanos = min(cost_nanos, AMOUNT_MAX_NANOS)
    keys, _, _, ends = _counters(budgets).packed
    tpm_columns = tuple(zip(*tpm, strict=True)) or ((), (), ())
    # Said only where there is something to say: most settles are of the ordinary kind, and journals are full of them.
    late = (kept_hold.decode(), is_late) if kept_hold or is_late else ()
    return _pack((worker, seq, attempt_id, cost_nanos, keys, ends, *tpm_columns, running_keys, event.decode(), *late))


def encode_restore(
    *,
    worker: str,
    attempt_id: str,
    held_nanos: int,
    budgets: Sequence[BudgetCounter],
    running_keys: Sequence[str],
    hold: bytes,
) -> bytes:
    keys, _, _, ends = _counters(budgets).packed
    return _pack((worker, attempt_id, held_nanos, keys, ends, running_keys, hold.decode()))


def restore_of_admit(argument: bytes, held_nanos: int) -> bytes:
    """The argument of RESTORE for an attempt that was admitted with `argument` and holds `held_nanos` by now."""
    worker, attempt_id, _, kinds, limit_keys, _, _, keys, _, _, ends, _, _, hold = _unpack(argument)
    running_keys = [key for kind, key in zip(kinds, limit_keys, strict=True) if kind == "running"]
    return _pack((worker, attempt_id, held_nanos, keys, ends, running_keys, hold))


def encode_reap(*, worker: str, is_dead: bool, void_attempt_ids: Sequence[str]) -> bytes:
    """`is_dead` is proof of death (its journal's lock is free): then the lease is not asked."""
    return _pack((worker, is_dead, void_attempt_ids))


# What comes out


class Beat(msgspec.Struct, frozen=True):
    """`epoch` is empty while Redis is being rebuilt. `time_us` is Redis time, Unix microseconds."""

    lease_was_alive: bool
    epoch: str
    time_us: int
    snapshot_version: int
    keys_version: int
    kills_version: int
    applied_seq: int
    ingested_seq: int


class Admitted(msgspec.Struct, frozen=True):
    """`remaining` and `reset_ms` stand in the order of the limits that were asked for."""

    held_nanos: int
    remaining: tuple[int, ...]
    reset_ms: tuple[int, ...]


class Extended(msgspec.Struct, frozen=True):
    held_nanos: int


class Halted(msgspec.Struct, frozen=True):
    """`flag` is the JSON that the kill switch left."""

    flag: bytes


class Limited(msgspec.Struct, frozen=True):
    """`index` is the position in `limits`. `retry_after_ms` is `budgets.limits.NEVER_FITS` when waiting does not help."""

    index: int
    remaining: int
    retry_after_ms: int


class OverBudget(msgspec.Struct, frozen=True):
    """`index` is the position in `budgets`. `left_nanos` is negative when the budget is overdrawn."""

    index: int
    left_nanos: int


class NotReady(msgspec.Struct, frozen=True):
    """The gate cannot say: `no_epoch` (being rebuilt), `no_lease` (this worker must beat first), `no_hold`."""

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
    """The hold was there, or in suspense: nothing changed."""


class Reaped(msgspec.Struct, frozen=True):
    """How many holds went to suspense, and how many were given back."""

    to_suspense: int
    voided: int


class Alive(msgspec.Struct, frozen=True):
    """The worker has its lease: nothing changed."""


class UnknownAnswer(ValueError):
    """The script said something that this version does not know."""


def decode_heartbeat(reply: Sequence[Any]) -> Beat:
    if reply[0] != b"ok":
        raise _unknown(reply)
    return Beat(reply[1] == 1, reply[2].decode(), *reply[3:])


def decode_admit(reply: Sequence[Any]) -> Admitted | Halted | Limited | OverBudget | NotReady:
    word = reply[0]
    if word == b"ok":
        return Admitted(reply[1], tuple(reply[2]), tuple(reply[3]))
    if word == b"limited":
        return Limited(reply[1], reply[2], reply[3])
    return _decode_refusal(reply)


def decode_extend(reply: Sequence[Any]) -> Extended | Halted | OverBudget | NotReady:
    if reply[0] == b"ok":
        return Extended(reply[1])
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


def _decode_refusal(reply: Sequence[Any]) -> Halted | OverBudget | NotReady:
    word = reply[0]
    if word == b"over_budget":
        return OverBudget(reply[1], reply[2])
    if word == b"halted":
        return Halted(reply[1])
    return _decode_not_ready(reply)


def _decode_not_ready(reply: Sequence[Any]) -> NotReady:
    if reply[0] in (b"no_epoch", b"no_lease", b"no_hold"):
        return NotReady(reply[0].decode())
    raise _unknown(reply)


def _unknown(reply: Sequence[Any]) -> UnknownAnswer:
    return UnknownAnswer(f"the gate answered {reply[0]!r}")
