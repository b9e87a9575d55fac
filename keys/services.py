"""Writes about keys, credentials and kill switches. Each is one transaction with one audit entry.

Raise ValidationError when a field, a constraint or a missing reason refuses. A kill switch is thrown in Redis first.
"""

import dataclasses
import functools
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from audit.ids import uuid7
from audit.querysets import WRITERS
from keys import credentials
from keys import redis as flags
from keys.kills import KillFlag, Scope, kill_field
from keys.models import CredentialPool, KillSwitch, UpstreamCredential, VirtualKey
from keys.tokens import API_TOKEN_PREFIX, mint
from keys.vault import MasterKey, Secret, open_sealed, parse_master_keys, rewrap, seal
from teams.models import ApiToken, Project, ServiceAccount, Team

SCOPES_BY_ID = ("team", "project", "key")


@dataclasses.dataclass(frozen=True, slots=True)
class IssuedKey:
    """`secret` is in nobody's hands but the caller's: show it once."""

    virtual_key: VirtualKey
    secret: Secret


@dataclasses.dataclass(frozen=True, slots=True)
class IssuedToken:
    """`secret` is in nobody's hands but the caller's: show it once."""

    api_token: ApiToken
    secret: Secret


# Virtual keys


def issue_virtual_key(
    project: Project,
    name: str,
    *,
    actor: Actor,
    aliases: Iterable[str] = (),
    passthrough: Iterable[str] = (),
    default_tags: Mapping[str, str] | None = None,
    expires_at: datetime | None = None,
    reason: str = "",
) -> IssuedKey:
    """`aliases` names the model aliases the key may call, `passthrough` the providers of which it may call any path; `*`
    is all of them, and none is the default."""
    virtual_key = VirtualKey(
        project=project,
        name=name,
        aliases=list(aliases),
        passthrough=list(passthrough),
        default_tags=dict(default_tags or {}),
        expires_at=expires_at,
    )
    return issue(virtual_key, actor=actor, reason=reason)


def issue(virtual_key: VirtualKey, *, actor: Actor, reason: str = "") -> IssuedKey:
    """Give a new, unsaved virtual key its secret, and insert it."""
    token = mint()
    virtual_key.digest, virtual_key.hint, virtual_key.created_by = token.digest, token.hint, actor.name[:200]
    audit.create(virtual_key, actor=actor, reason=reason, action="issue")
    return IssuedKey(virtual_key, Secret(token.secret))


def rotate_virtual_key(virtual_key: VirtualKey, *, actor: Actor, reason: str) -> IssuedKey:
    """A new secret for the same key, with its budgets and history; the old secret is dead at once."""
    token = mint()
    values = {"digest": token.digest, "hint": token.hint}
    _require_reason(reason)
    audit.change(virtual_key, actor=actor, reason=reason, action="rotate", values=values)
    return IssuedKey(virtual_key, Secret(token.secret))


def pause_virtual_key(virtual_key: VirtualKey, *, actor: Actor, reason: str = "") -> None:
    """Refuse its requests until it is resumed. A paused key stays paused since it was."""
    with transaction.atomic():
        if VirtualKey.objects.select_for_update().get(pk=virtual_key.pk).paused_at is None:
            audit.change(virtual_key, actor=actor, reason=reason, action="pause", values={"paused_at": timezone.now()})


def resume_virtual_key(virtual_key: VirtualKey, *, actor: Actor, reason: str = "") -> None:
    audit.change(virtual_key, actor=actor, reason=reason, action="resume", values={"paused_at": None})


def revoke_virtual_key(virtual_key: VirtualKey, *, actor: Actor, reason: str) -> None:
    """For good. A revoked key stays revoked since it was."""
    _require_reason(reason)
    with transaction.atomic():
        if VirtualKey.objects.select_for_update().get(pk=virtual_key.pk).revoked_at is None:
            audit.change(
                virtual_key, actor=actor, reason=reason, action="revoke", values={"revoked_at": timezone.now()}
            )


# Tokens of the management API


def issue_api_token(
    service_account: ServiceAccount, *, actor: Actor, expires_at: datetime | None = None, reason: str = ""
) -> IssuedToken:
    token = mint(API_TOKEN_PREFIX)
    api_token = ApiToken(service_account=service_account, digest=token.digest, hint=token.hint, expires_at=expires_at)
    audit.create(api_token, actor=actor, reason=reason, action="issue")
    return IssuedToken(api_token, Secret(token.secret))


def revoke_api_token(api_token: ApiToken, *, actor: Actor, reason: str) -> None:
    _require_reason(reason)
    with transaction.atomic():
        if ApiToken.objects.select_for_update().get(pk=api_token.pk).revoked_at is None:
            audit.change(api_token, actor=actor, reason=reason, action="revoke", values={"revoked_at": timezone.now()})


# The vault


def create_pool(name: str, provider: str, *, actor: Actor, reason: str = "") -> CredentialPool:
    """`provider` is the slug of the only provider its secrets are sent to."""
    pool = CredentialPool(name=name, provider=provider)
    audit.create(pool, actor=actor, reason=reason)
    return pool


def add_credential(
    pool: CredentialPool, name: str, secret: str, *, actor: Actor, reason: str = ""
) -> UpstreamCredential:
    """Seal a provider's secret into the vault; nothing shows it again."""
    credential = UpstreamCredential(pool=pool, name=name)
    return store_credential(credential, secret, actor=actor, reason=reason)


def store_credential(
    credential: UpstreamCredential, secret: str, *, actor: Actor, reason: str = ""
) -> UpstreamCredential:
    """Seal `secret` into a new, unsaved credential, and insert it."""
    credential.sealed, credential.fingerprint = _sealed(credential, secret)
    audit.create(credential, actor=actor, reason=reason)
    return credential


def replace_credential_secret(credential: UpstreamCredential, secret: str, *, actor: Actor, reason: str = "") -> None:
    sealed, fingerprint = _sealed(credential, secret)
    values = {"sealed": sealed, "fingerprint": fingerprint}
    audit.change(credential, actor=actor, reason=reason, action="replace secret", values=values)


def reveal_credential(credential: UpstreamCredential) -> Secret:
    """For who must call the provider. Raises `keys.vault.VaultError`."""
    return open_sealed(credential.sealed, str(credential.pk), master_keys())


def rewrap_rows(rows: QuerySet[Any], *, actor: Actor, reason: str = "") -> int:
    """Put what is `sealed` in each under the first master key, after a new one was set before the old; how many were not."""
    waiting = rows.exclude(sealed__startswith=f"v1.{master_keys()[0].key_id}.")
    rewrapped = 0
    for pk in list(waiting.values_list("pk", flat=True)):
        with transaction.atomic():
            # Read under its lock: one that is replaced meanwhile must not come back.
            row = waiting.select_for_update().filter(pk=pk).first()
            if row is not None:
                values = {"sealed": rewrap(row.sealed, master_keys())}
                audit.change(row, actor=actor, reason=reason, action="rewrap", values=values)
                rewrapped += 1
    return rewrapped


def master_keys() -> tuple[MasterKey, ...]:
    """From `TOLLGATE_VAULT_KEY`. Raises `keys.vault.VaultError` when there is none."""
    return _parsed_master_keys(settings.TOLLGATE_VAULT_KEY)


_parsed_master_keys = functools.lru_cache(maxsize=2)(parse_master_keys)


def check_credential(secret: str) -> None:
    """Raises ValidationError when this can be no provider's secret."""
    try:
        credentials.check_credential(secret)
    except credentials.InvalidCredential as error:
        raise ValidationError(str(error)) from error


def _sealed(credential: UpstreamCredential, secret: str) -> tuple[str, str]:
    """The sealed text and the fingerprint of `secret`."""
    check_credential(secret)
    sealed = seal(credentials.one_line(secret), str(credential.pk), master_keys())
    return sealed, credentials.fingerprint(secret)


# Kill switches


def throw_kill_switch(scope: Scope, target: str = "", *, reason: str, actor: Actor) -> KillSwitch:
    """Halt this traffic: in Redis, which is in force at once, and then on record.

    Thrown twice, it is the switch that is already in force. Where PostgreSQL is down the switch comes back unsaved, and
    what is to be recorded waits in Redis. Raises ValidationError, and `redis.RedisError` when it could not be thrown.
    """
    return put_on_record(halt(scope, target, reason=reason), actor=actor)


def halt(scope: Scope, target: str = "", *, reason: str) -> KillFlag:
    """The first half of a throw, without PostgreSQL: the flag in force. Raises as `throw_kill_switch`."""
    flag = KillFlag(
        kill_switch_id=str(uuid7()),
        scope=scope,
        target=checked_target(scope, target),
        reason=_require_reason(reason),
        thrown_at_s=timezone.now().timestamp(),
    )
    return flags.raise_flag(flags.redis_client(), flag)


def put_on_record(flag: KillFlag, *, actor: Actor) -> KillSwitch:
    """The second half: now, or from what is left in Redis as soon as PostgreSQL is back."""
    try:
        return record_kill(flag, actor=actor)
    except (OperationalError, InterfaceError):
        flags.leave_unrecorded(flags.redis_client(), "throw", flag, dataclasses.asdict(actor), flag.reason)
        return _switch(flag, actor)


def may_halt(viewer: Any, scope: str, target: str) -> bool:
    """Whether this user or service account may throw (and lift) such a switch: in its own teams, or as who sees all."""
    if viewer.sees_all_teams:
        return True
    rows = {"team": Team.objects, "project": Project.objects, "key": VirtualKey.objects}.get(scope)
    return rows is not None and rows.for_user(viewer, WRITERS).filter(pk=target).exists()


def lift_kill_switch(kill_switch: KillSwitch, *, reason: str, actor: Actor) -> None:
    """Let the traffic flow again. Raises ValidationError, and `redis.RedisError` (then it stays thrown, and on record)."""
    _require_reason(reason)
    with transaction.atomic():
        record_lift(kill_switch.flag, reason=reason, actor=actor)
        # Last, so that traffic is not let through unrecorded. Nothing but the commit can fail from here on.
        flags.lower_flag(flags.redis_client(), kill_switch.flag)
    kill_switch.refresh_from_db()


def lift_flag(flag: KillFlag, *, reason: str, actor: Actor) -> None:
    """Lift what Redis says is thrown, also while PostgreSQL is down. Raises as `lift_kill_switch`."""
    _require_reason(reason)
    client = flags.redis_client()
    try:
        with transaction.atomic():
            record_kill(flag, actor=actor)
            record_lift(flag, reason=reason, actor=actor)
            flags.lower_flag(client, flag)
    except (OperationalError, InterfaceError):
        flags.leave_unrecorded(client, "lift", flag, dataclasses.asdict(actor), reason)
        flags.lower_flag(client, flag)


def record_kill(flag: KillFlag, *, actor: Actor) -> KillSwitch:
    """Put a flag that is in force on record, once; the row."""
    with transaction.atomic():
        _one_at_a_time(flag)
        recorded = KillSwitch.objects.filter(pk=flag.kill_switch_id).first()
        if recorded is not None:
            return recorded
        earlier = KillSwitch.objects.active().filter(scope=flag.scope, target=flag.target).first()
        if earlier is not None:  # Redis had lost its flag: the switch on record goes on being the one in force.
            flags.replace_flag(flags.redis_client(), earlier.flag)
            return earlier
        kill_switch = _switch(flag, actor)
        audit.create(kill_switch, actor=actor, reason=flag.reason, action="throw")
        return kill_switch


def record_lift(flag: KillFlag, *, reason: str, actor: Actor, at: datetime | None = None) -> None:
    """Put the lifting of a flag on record, once."""
    with transaction.atomic():
        _one_at_a_time(flag)
        kill_switch = KillSwitch.objects.active().filter(pk=flag.kill_switch_id).first()
        if kill_switch is None:
            return
        values = {"lifted_at": at or timezone.now(), "lifted_by": actor.name[:200], "lift_reason": reason}
        audit.change(kill_switch, actor=actor, reason=reason, action="lift", values=values)


def record_unrecorded_kills() -> int:
    """Put on record what was thrown and lifted while PostgreSQL was down, in order; how many. A second run finds none."""
    client = flags.redis_client()
    recorded = 0
    while (first := flags.first_unrecorded(client)) is not None:
        body, note = first
        actor = Actor(**note.actor)  # type: ignore[arg-type]
        record_kill(note.flag, actor=actor)
        if note.action == "lift":
            record_lift(note.flag, reason=note.reason, actor=actor, at=datetime.fromtimestamp(note.at_s, UTC))
        flags.forget_unrecorded(client, body)
        recorded += 1
    return recorded


def checked_target(scope: str, target: str) -> str:
    """The target as the data path spells it: a flag that is spelled otherwise would stop nothing."""
    target = target.strip()
    try:
        if scope in SCOPES_BY_ID:
            target = str(uuid.UUID(target))
        kill_field(scope, target)
    except ValueError as error:
        raise ValidationError({"target": f"A kill switch of scope {scope} names an id of that {scope}."}) from error
    if scope == "global" and target:
        raise ValidationError({"target": "The global kill switch has no target."})
    return target


def _one_at_a_time(flag: KillFlag) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"kill:{flag.field}"])


def _switch(flag: KillFlag, actor: Actor) -> KillSwitch:
    return KillSwitch(
        id=uuid.UUID(flag.kill_switch_id),
        scope=flag.scope,
        target=flag.target,
        reason=flag.reason,
        thrown_by=actor.name[:200],
        thrown_at=datetime.fromtimestamp(flag.thrown_at_s, UTC),
    )


def _require_reason(reason: str) -> str:
    reason = reason.strip()
    if not reason:
        raise ValidationError({"reason": "Say why: it goes on record."})
    return reason
