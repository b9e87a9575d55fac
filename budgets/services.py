"""Writes about budgets and limits. Each is one transaction with one audit entry.

A rule of a virtual key travels with that key's record, so writing it counts the key's version up too. Raise ValidationError.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from audit.models import AuditEntry
from budgets.models import Budget, Increase, Limit, SubjectRule, Threshold
from keys.models import VirtualKey
from teams.models import Project, Team

Owner = Team | Project | VirtualKey

NOTHING_TO_UNDO = "Nothing to undo: it is as it was made, or was changed from elsewhere since."


# Budgets and limits


def create_budget(
    owner: Owner | None,
    name: str,
    window: str,
    amount: Decimal,
    *,
    actor: Actor,
    reason: str = "",
    **fields: Any,
) -> Budget:
    """`owner` is a team, a project, a virtual key, or None for everybody; `fields` are those of `Budget`."""
    budget = Budget(name=name, window=window, amount=amount, **owner_fields(owner), **fields)
    create_rule(budget, actor=actor, reason=reason)
    return budget


def create_limit(
    owner: Owner | None, metric: str, amount: Decimal | int, *, actor: Actor, reason: str = "", **fields: Any
) -> Limit:
    """`amount` of `metric` in `window_s` seconds (60 where it is not said); `fields` are those of `Limit`."""
    limit = Limit(metric=metric, amount=Decimal(amount), **owner_fields(owner), **fields)
    create_rule(limit, actor=actor, reason=reason)
    return limit


def create_rule(rule: SubjectRule, *, actor: Actor, reason: str = "") -> None:
    rule.scope = rule.own_scope()
    with transaction.atomic():
        _count_key_up(rule)
        audit.create(rule, actor=actor, reason=reason)


def change_rule(rule: SubjectRule, *, actor: Actor, values: Mapping[str, Any], reason: str = "") -> None:
    with transaction.atomic():
        _count_key_up(rule)
        audit.change(rule, actor=actor, reason=reason, values=values)


def remove_rule(rule: SubjectRule, *, actor: Actor, reason: str = "") -> None:
    with transaction.atomic():
        _count_key_up(rule)
        audit.remove(rule, actor=actor, reason=reason)


def undo_change(rule: SubjectRule, *, actor: Actor, reason: str = "") -> None:
    """Take the last change back: what it changed gets the values of before."""
    with transaction.atomic():
        undone = last_change(rule)
        if undone is None:
            raise ValidationError(NOTHING_TO_UNDO)
        _count_key_up(rule)
        audit.change(rule, actor=actor, action="undo", reason=reason, values=undone)


def last_change(rule: SubjectRule) -> dict[str, Any] | None:
    """What undoing the last change would set, by field; None where the last entry is none, or is not how the rule is now."""
    entry = AuditEntry.objects.about(rule).order_by("-id").first()
    if entry is None or entry.action != "change" or entry.before is None or entry.after is None:
        return None
    if _stored(rule, audit.describe(rule)) != _stored(rule, entry.after):
        return None
    changed = {name for name in entry.after if entry.after[name] != entry.before.get(name)}
    before = _stored(rule, {name: entry.before.get(name) for name in changed})
    return before or None


def _stored(rule: SubjectRule, state: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an audit entry's state, as the fields of the rule hold them."""
    fields = {field.attname: field for field in rule._meta.concrete_fields}
    return {name: fields[name].to_python(value) for name, value in state.items() if name in fields}


# Thresholds


def add_threshold(
    budget: Budget, percent: int, action: str, *, actor: Actor, reason: str = "", **fields: Any
) -> Threshold:
    """`fields` are `per_minute` (throttle) or `alias` (downgrade)."""
    threshold = Threshold(budget=budget, percent=percent, action=action, **fields)
    create_threshold(threshold, actor=actor, reason=reason)
    return threshold


def set_thresholds(budget: Budget, thresholds: Iterable[Mapping[str, Any]], *, actor: Actor, reason: str = "") -> None:
    """Make these the thresholds of a budget, and no others. Each is as the arguments of `add_threshold`."""
    with transaction.atomic():
        present = {(row.percent, row.action): row for row in budget.thresholds.select_for_update()}
        for wanted in thresholds:
            row = present.pop((wanted["percent"], wanted["action"]), None)
            if row is None:
                add_threshold(budget, **wanted, actor=actor, reason=reason)
            else:
                values = {"per_minute": wanted.get("per_minute"), "alias": wanted.get("alias")}
                change_threshold(row, actor=actor, reason=reason, values=values)
        for row in present.values():
            remove_threshold(row, actor=actor, reason=reason)


def create_threshold(threshold: Threshold, *, actor: Actor, reason: str = "") -> None:
    with transaction.atomic():
        _count_key_up(threshold.budget)
        audit.create(threshold, actor=actor, reason=reason)


def change_threshold(threshold: Threshold, *, actor: Actor, values: Mapping[str, Any], reason: str = "") -> None:
    with transaction.atomic():
        _count_key_up(threshold.budget)
        audit.change(threshold, actor=actor, reason=reason, values=values)


def remove_threshold(threshold: Threshold, *, actor: Actor, reason: str = "") -> None:
    with transaction.atomic():
        _count_key_up(threshold.budget)
        audit.remove(threshold, actor=actor, reason=reason)


# Increases


def grant_increase(
    budget: Budget, amount: Decimal, starts_at: datetime, ends_at: datetime, *, actor: Actor, reason: str
) -> Increase:
    """At once, by somebody who may change the budget."""
    increase = _increase(budget, amount, starts_at, ends_at, reason)
    for name, value in {"state": Increase.State.APPROVED, **_decided(actor)}.items():
        setattr(increase, name, value)
    with transaction.atomic():
        _count_key_up(budget)
        audit.create(increase, actor=actor, action="grant", reason=reason)
    return increase


def request_increase(
    budget: Budget, amount: Decimal, starts_at: datetime, ends_at: datetime, *, actor: Actor, reason: str
) -> Increase:
    """Changes nothing until somebody else approves it."""
    increase = _increase(budget, amount, starts_at, ends_at, reason)
    increase.requested_by, increase.requested_by_name = identity(actor), actor.name[:200]
    audit.create(increase, actor=actor, action="request", reason=reason)
    return increase


def approve_increase(increase: Increase, *, actor: Actor, reason: str) -> None:
    with transaction.atomic():
        _check_open(increase, actor)
        if increase.ends_at <= timezone.now():
            raise ValidationError("What it asks for is over.")
        _count_key_up(increase.budget)
        values = {"state": Increase.State.APPROVED, "note": reason, **_decided(actor)}
        audit.change(increase, actor=actor, action="approve", reason=reason, values=values)


def reject_increase(increase: Increase, *, actor: Actor, reason: str) -> None:
    with transaction.atomic():
        _check_open(increase, actor)
        values = {"state": Increase.State.REJECTED, "note": reason, **_decided(actor)}
        audit.change(increase, actor=actor, action="reject", reason=reason, values=values)


def end_increase(increase: Increase, *, actor: Actor, reason: str) -> None:
    """Take back what is left of its time; one that has not begun never does."""
    with transaction.atomic():
        stored = Increase.objects.select_for_update().get(pk=increase.pk)
        now = timezone.now()
        if stored.state != Increase.State.APPROVED or stored.ends_at <= now:
            raise ValidationError("It is not in force.")
        _count_key_up(increase.budget)
        if stored.starts_at >= now:
            audit.remove(increase, actor=actor, action="end", reason=reason)
        else:
            audit.change(increase, actor=actor, action="end", reason=reason, values={"ends_at": now})


def identity(actor: Actor) -> str:
    """What tells people and service accounts apart; names may be given twice, or changed."""
    return f"{actor.kind}:{actor.id}"


def _increase(budget: Budget, amount: Decimal, starts_at: datetime, ends_at: datetime, reason: str) -> Increase:
    if ends_at <= timezone.now():
        raise ValidationError({"ends_at": "That is over."})
    return Increase(budget=budget, amount=amount, starts_at=starts_at, ends_at=ends_at, reason=reason)


def _decided(actor: Actor) -> dict[str, Any]:
    return {"decided_by": identity(actor), "decided_by_name": actor.name[:200], "decided_at": timezone.now()}


def _check_open(increase: Increase, actor: Actor) -> None:
    stored = Increase.objects.select_for_update().get(pk=increase.pk)
    if stored.state != Increase.State.REQUESTED:
        raise ValidationError(f"It was {stored.get_state_display()} by {stored.decided_by_name} already.")
    if stored.requested_by == identity(actor):
        raise ValidationError("Somebody else decides on what you ask for.")


def _count_key_up(rule: SubjectRule) -> None:
    if rule.virtual_key_id is not None:
        VirtualKey.objects.filter(pk=rule.virtual_key_id).update(version=F("version") + 1)


def owner_fields(owner: Owner | None) -> dict[str, Any]:
    field = {Team: "team", Project: "project", VirtualKey: "virtual_key", type(None): None}[type(owner)]
    return {field: owner} if field else {}
