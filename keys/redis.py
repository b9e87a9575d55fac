"""Kill flags in Redis, as the control plane writes them. The data path reads them inside its scripts.

Key names are those of docs/architecture.md.
"""

import functools
import time
from typing import Any, cast

import msgspec
import redis
from django.conf import settings

from keys.kills import KillFlag, decode_flag, encode_flag

KILLS = "tg:kills"
VERSIONS = "tg:versions"
PUSH = "tg:push"
UNRECORDED = "tg:kill:unrecorded"

TIMEOUT_S = 2.0

_REMOVE_OWN = """
local flag = redis.call('HGET', KEYS[1], ARGV[1])
if not flag or cjson.decode(flag).kill_switch_id ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""


class Unrecorded(msgspec.Struct, frozen=True, kw_only=True):
    """A throw or a lift that PostgreSQL has not heard of yet, as it waits in `tg:kill:unrecorded`."""

    action: str
    flag: KillFlag
    actor: dict[str, str | None]
    reason: str
    at_s: float


_unrecorded_decoder = msgspec.json.Decoder(Unrecorded)


@functools.cache
def redis_client() -> redis.Redis:
    """One pooled client per process; answers are bytes."""
    return redis.Redis.from_url(
        settings.REDIS_URL, protocol=2, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
    )


def raise_flag(client: redis.Redis, flag: KillFlag) -> KillFlag:
    """Halt this scope and target from now on, and tell the workers. The flag in force: an earlier one, if there is one."""
    body = encode_flag(flag)
    if not client.hsetnx(KILLS, flag.field, cast(str, body)):
        present = cast("bytes | None", client.hget(KILLS, flag.field))
        if present is not None:
            return decode_flag(present)
        client.hset(KILLS, flag.field, cast(str, body))
    _push(client, "kill", flag)
    return flag


def replace_flag(client: redis.Redis, flag: KillFlag) -> None:
    """Put `flag` in the place of whichever is there for its scope and target."""
    client.hset(KILLS, flag.field, cast(str, encode_flag(flag)))
    _push(client, "kill", flag)


def lower_flag(client: redis.Redis, flag: KillFlag) -> bool:
    """Let the traffic flow again; false when this very flag is not the one in force."""
    lowered = bool(client.eval(_REMOVE_OWN, 1, KILLS, flag.field, flag.kill_switch_id))
    if lowered:
        _push(client, "lift", flag)
    return lowered


def flags(client: redis.Redis) -> list[KillFlag]:
    """Every flag in force."""
    return [decode_flag(body) for body in cast("list[bytes]", client.hvals(KILLS))]


def leave_unrecorded(
    client: redis.Redis, action: str, flag: KillFlag, actor: dict[str, str | None], reason: str
) -> None:
    """Keep a `throw` or a `lift` for PostgreSQL to hear of later."""
    note = Unrecorded(action=action, flag=flag, actor=actor, reason=reason, at_s=time.time())
    client.rpush(UNRECORDED, msgspec.json.encode(note))


def first_unrecorded(client: redis.Redis) -> tuple[bytes, Unrecorded] | None:
    """The oldest note, as stored and decoded; it stays until `forget_unrecorded`."""
    body = cast("bytes | None", client.lindex(UNRECORDED, 0))
    return None if body is None else (body, _unrecorded_decoder.decode(body))


def forget_unrecorded(client: redis.Redis, body: bytes) -> None:
    client.lrem(UNRECORDED, 1, cast(str, body))


def _push(client: redis.Redis, kind: str, flag: KillFlag) -> None:
    version = client.hincrby(VERSIONS, "kills", 1)
    message: dict[str, Any] = {"kind": kind, "version": version, "field": flag.field, "flag": flag}
    client.publish(PUSH, msgspec.json.encode(message))
