"""What the commands `kill` and `lift` share: what is aimed at, by id or by name, and who aims.

The target is found in Redis alone, so that it is found while PostgreSQL is down: teams, projects and models in the
published snapshot, virtual keys in their records.
"""

import getpass
import os
import socket
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from typing import cast
from uuid import UUID

import redis

from audit.actors import Actor
from budgets import gate
from keys.kills import SCOPES, Scope
from proxy.snapshot import Snapshot, decode_key, decode_snapshot

KEYS_PER_CALL = 5_000


class UnknownTarget(ValueError):
    """No such target, or several of that name. The message says which."""


def find_target(client: redis.Redis, scope: Scope, wanted: str) -> str:
    """The target as a kill flag names it: an id of a team, project or key, a model's name, a provider's slug.

    Names are compared without regard to case. An id is believed without looking: to halt what does not exist stops nobody.
    Raises `UnknownTarget`.
    """
    if scope == "global":
        if wanted:
            raise UnknownTarget("the global kill switch has no target")
        return ""
    if not wanted:
        raise UnknownTarget(f"say which {scope}")
    if scope in ("team", "project", "key") and _is_id(wanted):
        return str(UUID(wanted))
    found = sorted({target for target, name in _candidates(client, scope) if name.casefold() == wanted.casefold()})
    if len(found) > 1:
        raise UnknownTarget(f"several are called {wanted!r}; give the id of one: {', '.join(found)}")
    if not found:
        raise UnknownTarget(f"no {scope} is called {wanted!r}")
    return found[0]


def _candidates(client: redis.Redis, scope: Scope) -> Iterable[tuple[str, str]]:
    """(target, name) of everything that the scope can be aimed at."""
    if scope == "key":
        return _keys(client)
    body = cast("bytes | None", client.get(gate.SNAPSHOT))
    if body is None:
        raise UnknownTarget("Redis has no snapshot to look names up in: give an id, or halt everything")
    return _in_snapshot(decode_snapshot(body), scope)


def _in_snapshot(snapshot: Snapshot, scope: Scope) -> list[tuple[str, str]]:
    match scope:
        case "team":
            return [(team.team_id, team.name) for team in snapshot.teams.values()]
        case "project":
            return [(project.project_id, project.name) for project in snapshot.projects.values()]
        case "model":
            return [(deployment.model, deployment.model) for deployment in snapshot.deployments.values()]
        case _:
            return [(slug, slug) for slug in snapshot.providers]


def _keys(client: redis.Redis) -> Iterator[tuple[str, str]]:
    for _, body in client.hscan_iter(gate.KEYS, count=KEYS_PER_CALL):
        record = decode_key(body)
        yield record.key_id, record.name


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def add_target(parser: ArgumentParser) -> None:
    """The arguments that name a scope and its target."""
    parser.add_argument("scope", choices=SCOPES)
    parser.add_argument("target", nargs="?", default="", help="id or name; nothing for global")


def operator() -> Actor:
    """Whoever types a command: the account on this machine."""
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # A container may run under a user id without a name.
        account = f"user {os.getuid()}"
    return Actor.system(f"{account} at {socket.gethostname()}")
