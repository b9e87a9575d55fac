"""Writes about budgets and limits. Each is one transaction with one audit entry.

A rule of a virtual key travels with that key's record, so writing it counts the key's version up too. Raise ValidationError.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.db.models import F

from audit import services as audit
from audit.actors import Actor
from budgets.models import Budget, Limit, Scope, SubjectRule
from keys.models import VirtualKey
from teams.models import Project, Team

Subject = Team | Project | VirtualKey


def create_budget(
    subject: Subject,
    name: str,
    window: str,
    amount_usd: Decimal,
    *,
    actor: Actor,
    is_hard: bool = True,
    reason: str = "",
) -> Budget:
    """`window` is hour, day or month on the calendar of the subject's team."""
    budget = Budget(name=name, window=window, amount_usd=amount_usd, is_hard=is_hard, **_subject_fields(subject))
    create_rule(budget, actor=actor, reason=reason)
    return budget


def create_limit(subject: Subject, metric: str, amount: int, *, actor: Actor, reason: str = "") -> Limit:
    """`metric` is requests or tokens (per minute), or concurrency (at once)."""
    limit = Limit(metric=metric, amount=amount, **_subject_fields(subject))
    create_rule(limit, actor=actor, reason=reason)
    return limit


def create_rule(rule: SubjectRule, *, actor: Actor, reason: str = "") -> None:
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


def _count_key_up(rule: SubjectRule) -> None:
    if rule.virtual_key_id is not None:
        VirtualKey.objects.filter(pk=rule.virtual_key_id).update(version=F("version") + 1)


def _subject_fields(subject: Subject) -> dict[str, Any]:
    if isinstance(subject, Team):
        return {"scope": Scope.TEAM, "team": subject}
    if isinstance(subject, Project):
        return {"scope": Scope.PROJECT, "project": subject}
    return {"scope": Scope.KEY, "virtual_key": subject}
