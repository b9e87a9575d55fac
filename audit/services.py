"""Every write goes through here: create, change, remove, each one transaction with one audit entry. No rules of its own.

What may be written is said by the models (`clean()`, constraints); who may write, by the faces.
"""

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any

from django.db import connection, models, router, transaction
from django.db.models.deletion import Collector

from audit.actors import Actor
from audit.models import AuditEntry, Versioned
from audit.signals import recorded

REDACTED = "[redacted]"
CHANGED = "[redacted, changed]"

State = dict[str, Any]


def record(
    actor: Actor,
    action: str,
    obj: models.Model | None = None,
    *,
    object_type: str = "",
    object_id: str = "",
    object_name: str = "",
    before: State | None = None,
    after: State | None = None,
    reason: str = "",
) -> AuditEntry:
    """Write one audit entry in the caller's transaction and tell who listens. For an act on no row, name the object."""
    assert connection.in_atomic_block, "an audit entry belongs to the transaction of its change"
    if obj is not None:
        object_type, object_id, object_name = obj._meta.label_lower, str(obj.pk), str(obj)
    entry = AuditEntry.objects.create(
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_name=actor.name[:200],
        ip=actor.ip,
        action=action,
        object_type=object_type,
        object_id=object_id,
        object_name=object_name[:300],
        before=before,
        after=after,
        reason=reason,
    )
    recorded.send(sender=AuditEntry, entry=entry, obj=obj)
    return entry


def create(obj: models.Model, *, actor: Actor, reason: str = "", action: str = "create") -> AuditEntry:
    """Insert `obj`. Raises ValidationError when a field, `clean()` or a constraint refuses it."""
    with transaction.atomic():
        obj.full_clean()
        obj.save(force_insert=True)
        return record(actor, action, obj, after=describe(obj), reason=reason)


def change(
    obj: models.Model, *, actor: Actor, reason: str = "", action: str = "change", values: Mapping[str, Any]
) -> AuditEntry | None:
    """Set `values` on the row of `obj`, and on `obj`; None when they change nothing. Raises ValidationError.

    Only these fields are written, over what the row holds now: an edit that was begun before somebody else's must not
    write the older state of other fields back (and so un-revoke a key).
    """
    with transaction.atomic():
        stored = _locked(obj)
        for field in obj._meta.concrete_fields:
            setattr(obj, field.attname, getattr(stored, field.attname))
        for name, value in values.items():
            setattr(obj, name, value)
        touched = [f for f in obj._meta.concrete_fields if f.value_from_object(obj) != f.value_from_object(stored)]
        if not touched:
            return None
        if isinstance(obj, Versioned) and isinstance(stored, Versioned):
            obj.version = stored.version + 1
        obj.full_clean()
        obj.save(force_update=True)
        before, after = describe(stored), describe(obj)
        for field in touched:
            if after[field.attname] == REDACTED:
                after[field.attname] = CHANGED
        return record(actor, action, obj, before=before, after=after, reason=reason)


def change_related(
    obj: models.Model, name: str, chosen: Iterable[models.Model], *, actor: Actor, reason: str = ""
) -> AuditEntry | None:
    """Set the many-to-many field `name` to `chosen`; None when that changes nothing."""
    with transaction.atomic():
        _locked(obj)
        related = getattr(obj, name)
        before = sorted(str(row) for row in related.all())
        related.set(chosen)
        after = sorted(str(row) for row in related.all())
        if before == after:
            return None
        return record(actor, "change", obj, before={name: before}, after={name: after}, reason=reason)


def remove(obj: models.Model, *, actor: Actor, reason: str = "", action: str = "delete") -> None:
    """Delete the row, and the parts that go with it, each with an entry of its own.

    Raises ProtectedError while something else still refers to it.
    """
    with transaction.atomic():
        stored = _locked(obj)
        collector = Collector(using=router.db_for_write(type(obj)), origin=obj)
        collector.collect([stored])
        parts = [part for rows in collector.data.values() for part in rows]
        parts += [part for rows in collector.fast_deletes for part in rows]
        for part in parts:
            record(actor, action, part, before=describe(part), reason=reason)
        collector.delete()


def describe(obj: models.Model) -> State:
    """The row as JSON values by column; secret fields (the model's `audit_hidden`) only as present or empty."""
    hidden: frozenset[str] = getattr(obj, "audit_hidden", frozenset())
    state: State = {}
    for field in obj._meta.concrete_fields:
        value = field.value_from_object(obj)
        if field.name in hidden:
            state[field.attname] = REDACTED if value else ""
        else:
            state[field.attname] = _json_value(value)
    return state


def ensure_partitions(months_ahead: int = 3) -> list[str]:
    """Create the ledger's missing monthly partitions, this month's and those of `months_ahead`; the names of the new.

    A month that already has rows in the default partition stays there: ledger rows are never moved.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT audit_ensure_partitions(%s)", [months_ahead])
        return list(cursor.fetchone()[0])


def _locked(obj: models.Model) -> models.Model:
    return type(obj)._base_manager.select_for_update(of=("self",)).get(pk=obj.pk)


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool | list | dict):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)
