"""Compiling: the models as the data path is to see them. Reads only; where the result goes is `publish.py`.

Secrets stay sealed. Whoever wants a snapshot that fits together calls within one REPEATABLE READ transaction.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from budgets import models as budgets
from budgets.price_book import Book, nanos
from budgets.windows import window_bounds
from keys.models import UpstreamCredential, VirtualKey
from proxy import snapshot
from routing import engine
from routing import models as routing
from routing.apis import APIS
from teams.models import Project, Team

log = logging.getLogger(__name__)

KEYS_PER_BATCH = 5_000
LONGEST_TWO_WINDOWS = timedelta(days=2 * 366 + 1)

Rules = tuple[list[snapshot.Budget], list[snapshot.Limit]]


def compile_snapshot(version: int, now: datetime) -> snapshot.Snapshot:
    """Everything but the virtual keys. `now` decides which prices are in force, and which increases still matter."""
    budgets_of_snapshot, limits = _budgets(now, virtual_key=None), _limits(virtual_key=None)
    return snapshot.Snapshot(
        schema_version=snapshot.SCHEMA_VERSION,
        version=version,
        published_at_s=now.timestamp(),
        teams={str(team.pk): _team(team) for team in Team.objects.all()},
        projects={str(project.pk): _project(project) for project in Project.objects.all()},
        providers={provider.slug: _provider(provider) for provider in routing.Provider.objects.all()},
        deployments=_deployments(now),
        aliases=_aliases(),
        budgets=tuple(budgets_of_snapshot),
        limits=tuple(limits),
    )


def compile_keys(digests: Iterable[str]) -> dict[str, snapshot.KeyRecord]:
    """Records of those of the `digests` that are some key's today."""
    keys = list(VirtualKey.objects.filter(digest__in=list(digests)).values_list(*_KEY_FIELDS, named=True))
    rules = _rules_of_keys(virtual_key__in=[key.pk for key in keys])
    return {key.digest: _key_record(key, rules) for key in keys}


def compile_all_keys() -> Iterator[dict[str, snapshot.KeyRecord]]:
    """The records of all virtual keys by digest, in batches."""
    rows = VirtualKey.objects.order_by("pk").values_list(*_KEY_FIELDS, named=True)
    batch = list(rows[:KEYS_PER_BATCH])
    while batch:
        first, last = batch[0].pk, batch[-1].pk
        rules = _rules_of_keys(virtual_key__gte=first, virtual_key__lte=last)
        yield {key.digest: _key_record(key, rules) for key in batch}
        batch = list(rows.filter(pk__gt=last)[:KEYS_PER_BATCH])


_KEY_FIELDS = (
    "pk",
    "digest",
    "version",
    "name",
    "project_id",
    "aliases",
    "passthrough",
    "paused_at",
    "revoked_at",
    "expires_at",
    "default_tags",
)


def _key_record(key: Any, rules: Mapping[str, Rules]) -> snapshot.KeyRecord:
    """From a row of `_KEY_FIELDS`: there are hundreds of thousands, and a model instance costs more than all the rest."""
    budgets_of_key, limits = rules.get(str(key.pk), ([], []))
    return snapshot.KeyRecord(
        key_id=str(key.pk),
        version=key.version,
        name=key.name,
        project_id=str(key.project_id),
        aliases=tuple(key.aliases),
        passthrough=tuple(key.passthrough),
        is_paused=key.paused_at is not None,
        is_revoked=key.revoked_at is not None,
        expires_at_s=key.expires_at.timestamp() if key.expires_at else None,
        default_tags=key.default_tags,
        budgets=tuple(budgets_of_key),
        limits=tuple(limits),
    )


def _team(team: Team) -> snapshot.Team:
    return snapshot.Team(team_id=str(team.pk), name=team.name, time_zone=team.time_zone)


def _project(project: Project) -> snapshot.Project:
    return snapshot.Project(
        project_id=str(project.pk),
        team_id=str(project.team_id),
        name=project.name,
        environment=project.environment,
        default_tags=project.default_tags,
        required_tags=tuple(project.required_tag_keys),
    )


def _rules_of_keys(**virtual_keys: Any) -> dict[str, Rules]:
    """The rules of virtual keys by the id of their key."""
    by_key: defaultdict[str, Rules] = defaultdict(lambda: ([], []))
    for budget in _budgets(timezone.now(), **virtual_keys):
        by_key[budget.subject["key"]][0].append(budget)
    for limit in _limits(**virtual_keys):
        by_key[limit.subject["key"]][1].append(limit)
    return by_key


_BUDGET_FIELDS = (
    "pk",
    "name",
    *budgets.SUBJECT_COLUMNS,
    "window",
    "starts_at",
    "ends_at",
    "rolls_over_since",
    "zone",
    "fiscal_month",
    "unit",
    "amount",
    "mode",
    "rollover",
)


def _budgets(now: datetime, **subjects: Any) -> Iterator[snapshot.Budget]:
    """Active budgets, in the order they were made in."""
    chosen = budgets.Budget.objects.filter(**subjects, is_active=True)
    thresholds, increases = _thresholds(chosen), _increases(chosen, now)
    rows = chosen.with_subject().with_zone().order_by("pk")
    for row in rows.values_list(*_BUDGET_FIELDS, named=True):
        matters_from_s = _matters_from_s(row, now)
        # Of a window that begins anew, the moment from which its counters were kept for what they leave.
        starts_at = row.starts_at or row.rolls_over_since
        yield snapshot.Budget(
            budget_id=str(row.pk),
            name=row.name,
            subject=budgets.subject_of(row),
            window=row.window,
            amount=_amount(row.amount, row.unit),
            unit=row.unit,
            mode=row.mode,
            time_zone=row.zone,
            fiscal_month=row.fiscal_month,
            starts_at_s=starts_at.timestamp() if starts_at else None,
            ends_at_s=row.ends_at.timestamp() if row.ends_at else None,
            rollover=_amount(row.rollover, row.unit),
            increases=tuple(one for one in increases.get(row.pk, ()) if one.until_s > matters_from_s),
            thresholds=tuple(thresholds.get(row.pk, ())),
        )


def _thresholds(chosen: QuerySet[budgets.Budget]) -> Mapping[UUID, list[snapshot.Threshold]]:
    """By their budget; without those that only tell somebody."""
    by_budget: defaultdict[UUID, list[snapshot.Threshold]] = defaultdict(list)
    rows = budgets.Threshold.objects.filter(budget__in=chosen).exclude(action=budgets.Threshold.Action.ALERT)
    fields = ("budget_id", "percent", "action", "per_minute", "alias__name")
    for budget_id, percent, action, per_minute, alias in rows.order_by("percent", "pk").values_list(*fields):
        by_budget[budget_id].append(
            snapshot.Threshold(percent=percent, action=action, per_minute=per_minute or 0, alias=alias or "")
        )
    return by_budget


def _matters_from_s(row: Any, now: datetime) -> float:
    """What is over by then is no part of any cap that is still asked for. Where there is a roll-over, a window asks for the cap of
    the one before at its last second; and a worker whose clock is behind may be in the last window."""
    if not row.rollover:
        return now.timestamp()
    start_s, _ = window_bounds(row.window, row.zone, now.timestamp(), fiscal_month=row.fiscal_month)
    before_s, _ = window_bounds(row.window, row.zone, start_s - 1, fiscal_month=row.fiscal_month)
    return before_s - 1


def _increases(chosen: QuerySet[budgets.Budget], now: datetime) -> Mapping[UUID, list[snapshot.Increase]]:
    """By their budget; those that were approved, and are not over for longer than the longest two windows."""
    by_budget: defaultdict[UUID, list[snapshot.Increase]] = defaultdict(list)
    rows = budgets.Increase.objects.in_force(now - LONGEST_TWO_WINDOWS).filter(budget__in=chosen)
    fields = ("budget_id", "budget__unit", "amount", "starts_at", "ends_at")
    for budget_id, unit, amount, starts_at, ends_at in rows.order_by("starts_at", "pk").values_list(*fields):
        by_budget[budget_id].append(
            snapshot.Increase(amount=_amount(amount, unit), from_s=starts_at.timestamp(), until_s=ends_at.timestamp())
        )
    return by_budget


_LIMIT_FIELDS = ("pk", "name", *budgets.SUBJECT_COLUMNS, "metric", "amount", "window_s", "burst", "is_observed")


def _limits(**subjects: Any) -> Iterator[snapshot.Limit]:
    """Active limits, in the order they were made in."""
    rows = budgets.Limit.objects.filter(**subjects, is_active=True).with_subject().order_by("pk")
    for row in rows.values_list(*_LIMIT_FIELDS, named=True):
        unit = "usd" if row.metric == budgets.Limit.Metric.SPEND else row.metric
        yield snapshot.Limit(
            limit_id=str(row.pk),
            name=row.name,
            subject=budgets.subject_of(row),
            metric=row.metric,
            amount=_amount(row.amount, unit),
            window_s=row.window_s,
            burst=None if row.burst is None else _amount(row.burst, unit),
            is_observed=row.is_observed,
        )


def _amount(amount: Decimal, unit: str) -> int:
    """As the data path counts it: nano-USD, or whole tokens and requests."""
    return nanos(amount) if unit == budgets.Budget.Unit.USD else int(amount)


def _provider(provider: routing.Provider) -> snapshot.Provider:
    return snapshot.Provider(
        slug=provider.slug,
        api=provider.api,
        base_url=provider.base_url,
        output_cap_field=provider.output_cap_field or APIS[provider.api].output_cap_field,
        connect_timeout_s=provider.connect_timeout_s,
        first_byte_timeout_s=provider.first_byte_timeout_s,
        idle_timeout_s=provider.idle_timeout_s,
        is_active=provider.is_active,
        options=provider.options,
        passthrough_hold_nanos=None if provider.passthrough_hold is None else nanos(provider.passthrough_hold),
        runs_on=provider.runs_on,
    )


def _deployments(now: datetime) -> dict[str, snapshot.Deployment]:
    book, credentials = Book(now), _credentials()
    return {
        str(deployment.pk): snapshot.Deployment(
            deployment_id=str(deployment.pk),
            name=deployment.name,
            provider=deployment.provider.slug,
            model=deployment.model.name,
            upstream_model=deployment.upstream_model,
            price=book.price(deployment),
            pool=str(deployment.pool_id) if deployment.pool_id else "",
            credentials=tuple(credentials[deployment.pool_id]) if deployment.pool_id else (),
            max_output_tokens=deployment.max_output_tokens or deployment.model.max_output_tokens,
            context_window=deployment.model.context_window,
            # A stream that is cut because its cap has no room for the next tranche must stop costing.
            output_is_visible=deployment.model.output_is_visible and not deployment.provider.runs_on,
            operations=tuple(deployment.model.operations),
            is_active=deployment.is_active and deployment.model.is_active,
            auto_tier=deployment.auto_tier,
        )
        for deployment in routing.Deployment.objects.select_related("model", "provider")
    }


def _credentials() -> Mapping[UUID, list[snapshot.Credential]]:
    """Active credentials by their pool."""
    by_pool: defaultdict[UUID, list[snapshot.Credential]] = defaultdict(list)
    for credential in UpstreamCredential.objects.filter(is_active=True):
        by_pool[credential.pool_id].append(
            snapshot.Credential(credential_id=str(credential.pk), sealed=credential.sealed)
        )
    return by_pool


def _aliases() -> dict[str, snapshot.Alias]:
    return {
        alias.name: snapshot.Alias(
            name=alias.name,
            targets=tuple(
                engine.AliasTarget(
                    deployment_id=str(target.deployment_id), position=target.position, weight=target.weight
                )
                for target in alias.targets.all()
            ),
            created_at_s=int(alias.created_at.timestamp()),
            is_lenient=alias.is_lenient,
        )
        for alias in routing.ModelAlias.objects.filter(is_active=True).prefetch_related("targets")
    }
