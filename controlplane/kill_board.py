"""What the kill switch page shows: what a switch would stop, what was stopped by whom, and who acknowledged it. Reads only."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import msgspec
import redis
from django.db.models import Q

from audit.querysets import WRITERS
from budgets import gate
from controlplane import workers
from keys import redis as flags
from keys.kills import KillFlag, kill_field
from keys.models import KillSwitch, VirtualKey
from keys.tokens import HINT_LENGTH, VIRTUAL_KEY_PREFIX
from routing.models import Model, Provider
from teams.models import Project, Team

TARGETS_MAX = 12
HISTORY_MAX = 20
HOLD_PARTS = 3


class _Subject(msgspec.Struct):
    """What a hold says of whose traffic it is."""

    team_id: str = ""
    project_id: str = ""
    virtual_key_id: str = ""
    model: str = ""
    provider: str = ""

    def fields(self) -> set[str]:
        """The flags that would stop it."""
        return {
            "global",
            f"team:{self.team_id}",
            f"project:{self.project_id}",
            f"key:{self.virtual_key_id}",
            f"model:{self.model}",
            f"provider:{self.provider}",
        }


_decode_subject = msgspec.json.Decoder(_Subject).decode


class Reach(NamedTuple):
    """What a switch would stop if it were thrown now."""

    live_requests: int
    workers: int


class Target(NamedTuple):
    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Switch:
    """A kill switch as the page shows it. `row` is None while the database has not heard of it."""

    flag: KillFlag
    name: str
    is_in_force: bool
    may_lift: bool
    row: KillSwitch | None = None

    @property
    def thrown_at(self) -> datetime:
        return datetime.fromtimestamp(self.flag.thrown_at_s, UTC)


def reach(client: redis.Redis, scope: str, target: str) -> Reach:
    """Counted from the holds: each request in flight has one, and it says whose it is. Raises `redis.RedisError`."""
    wanted = kill_field(scope, target)
    live = workers.live_workers(client)
    with client.pipeline(transaction=False) as pipeline:
        for worker in live:
            pipeline.hvals(gate.holds_key(worker))
        holds = [hold for answer in pipeline.execute() for hold in cast("list[bytes]", answer)]
    return Reach(sum(wanted in _subject_of(hold).fields() for hold in holds), len(live))


def _subject_of(hold: bytes) -> _Subject:
    parts = hold.split(b"|", HOLD_PARTS - 1)
    return _decode_subject(parts[-1])


def acknowledged(client: redis.Redis, kill_switch_id: str) -> dict[str, Any]:
    """Who has acknowledged the switch, of those who live or have: JSON values. Raises `redis.RedisError`."""
    answers = workers.acknowledgements(client, kill_switch_id)
    live = set(workers.live_workers(client))
    hosts = {status.worker: f"{status.host}, process {status.pid}" for status in workers.statuses(client)}
    rows = [
        {
            "worker": worker,
            "host": hosts.get(worker, ""),
            "is_live": worker in live,
            "streams_cut": answers[worker].streams_cut if worker in answers else None,
            "elapsed_ms": answers[worker].elapsed_ms if worker in answers else None,
        }
        for worker in sorted(live | answers.keys())
    ]
    return {
        "workers": rows,
        "acknowledged": len(answers),
        "expected": len(rows),
        "streams_cut": sum(answer.streams_cut for answer in answers.values()),
        "elapsed_ms": max((answer.elapsed_ms for answer in answers.values()), default=None),
        "is_complete": bool(live) and live <= answers.keys(),
    }


def in_force(client: redis.Redis, viewer: Any, may_halt: Any) -> list[Switch]:
    """What is thrown, the newest first: on record, in Redis, or both. Raises `redis.RedisError`."""
    by_id = {flag.kill_switch_id: flag for flag in flags.flags(client)}
    rows = list(KillSwitch.objects.for_user(viewer).active())
    on_record = {str(row.pk) for row in rows}
    pairs: list[tuple[KillFlag, KillSwitch | None]] = [(row.flag, row) for row in rows]
    if viewer.sees_all_teams:
        pairs += [(flag, None) for flag in by_id.values() if flag.kill_switch_id not in on_record]
    names = names_of([(flag.scope, flag.target) for flag, _ in pairs])
    switches = [
        Switch(
            flag=flag,
            name=names[flag.scope, flag.target],
            is_in_force=flag.kill_switch_id in by_id,
            may_lift=may_halt(viewer, flag.scope, flag.target),
            row=row,
        )
        for flag, row in pairs
    ]
    return sorted(switches, key=lambda switch: -switch.flag.thrown_at_s)


def history(viewer: Any) -> list[tuple[KillSwitch, str]]:
    """What was thrown and lifted lately, with the name of what it stopped."""
    rows = list(KillSwitch.objects.for_user(viewer).filter(lifted_at__isnull=False).order_by("-id")[:HISTORY_MAX])
    names = names_of([(row.scope, row.target) for row in rows])
    return [(row, names[row.scope, row.target]) for row in rows]


def names_of(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What people call the targets of these scopes. One that is gone keeps its id for a name."""
    names = {(scope, target): target or "all traffic" for scope, target in pairs}
    for scope, model in (("team", Team), ("project", Project), ("key", VirtualKey)):
        ids = [target for of_scope, target in pairs if of_scope == scope]
        for pk, row in model._default_manager.in_bulk(ids).items():
            names[scope, str(pk)] = str(row)
    return names


def targets(viewer: Any, scope: str, search: str) -> list[Target]:
    """What could be stopped in this scope and is called like that: what the viewer may stop, a page of it."""
    search = search.strip()
    match scope:
        case "team":
            rows = Team.objects.for_user(viewer, WRITERS).filter(name__icontains=search).order_by("name")
            return [Target(str(row.pk), row.name, row.slug) for row in rows[:TARGETS_MAX]]
        case "project":
            projects = Project.objects.for_user(viewer, WRITERS).select_related("team").order_by("name")
            found = projects.filter(Q(name__icontains=search) | Q(team__name__icontains=search))
            return [Target(str(row.pk), row.name, row.team.name) for row in found[:TARGETS_MAX]]
        case "key":
            keys = VirtualKey.objects.for_user(viewer, WRITERS).select_related("project__team").order_by("-id")
            found_keys = keys.filter(_like_key(search)) if search else keys
            return [
                Target(str(row.pk), str(row), f"{row.project.team} / {row.project}") for row in found_keys[:TARGETS_MAX]
            ]
        case "model" | "provider" if viewer.sees_all_teams:
            return list(_shared_targets(scope, search))
        case _:
            return []


def _like_key(search: str) -> Q:
    """By the beginning of its name, or the last characters of its secret, or its id: what an index answers."""
    like = Q(name__istartswith=search) | Q(hint=f"{VIRTUAL_KEY_PREFIX}…{search[-HINT_LENGTH:]}")
    try:
        return like | Q(pk=uuid.UUID(search))
    except ValueError:
        return like


def _shared_targets(scope: str, search: str) -> Iterable[Target]:
    if scope == "model":
        for model in Model.objects.filter(name__icontains=search).order_by("name")[:TARGETS_MAX]:
            yield Target(model.name, model.name, model.publisher)
    else:
        for provider in Provider.objects.filter(name__icontains=search).order_by("name")[:TARGETS_MAX]:
            yield Target(provider.slug, provider.name, provider.slug)
