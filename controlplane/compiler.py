"""Compiling: the models as the data path is to see them. Reads only; where the result goes is `publish.py`.

Secrets stay sealed. Whoever wants a snapshot that fits together calls within one REPEATABLE READ transaction.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any
from uuid import UUID

from budgets import models as budgets
from budgets.pricing import Price
from budgets.spend import with_time_zone
from keys.models import UpstreamCredential, VirtualKey
from proxy import snapshot
from routing import engine
from routing import models as routing
from teams.models import Project, Team

log = logging.getLogger(__name__)

NANO_DIGITS = 9
USD = "USD"
KEYS_PER_BATCH = 5_000

# Exact for the product of the largest price and the largest exchange rate that the models allow.
_exact = Context(prec=64)

_LIMIT_FIELDS = {
    budgets.Limit.Metric.REQUESTS: "requests_per_minute",
    budgets.Limit.Metric.TOKENS: "tokens_per_minute",
    budgets.Limit.Metric.CONCURRENCY: "concurrency",
}

Rules = tuple[tuple[snapshot.Budget, ...], snapshot.Limits]
NO_RULES: Rules = ((), snapshot.Limits())


def nanos(amount: Decimal, usd_per_unit: Decimal = Decimal(1)) -> int:
    """`amount` of a currency in nano-USD, rounded up: what is held and charged is never below the price."""
    exact = _exact.scaleb(_exact.multiply(amount, usd_per_unit), NANO_DIGITS)
    return int(exact.to_integral_value(ROUND_CEILING))


def compile_snapshot(version: int, now: datetime) -> snapshot.Snapshot:
    """Everything but the virtual keys. `now` decides which prices are in force."""
    rules = _rules(virtual_key=None)
    return snapshot.Snapshot(
        schema_version=snapshot.SCHEMA_VERSION,
        version=version,
        published_at_s=now.timestamp(),
        teams={str(team.pk): _team(team, rules) for team in Team.objects.all()},
        projects={str(project.pk): _project(project, rules) for project in Project.objects.all()},
        providers={provider.slug: _provider(provider) for provider in routing.Provider.objects.all()},
        deployments=_deployments(now),
        aliases=_aliases(),
    )


def compile_keys(digests: Iterable[str]) -> dict[str, snapshot.KeyRecord]:
    """Records of those of the `digests` that are some key's today."""
    return _key_records(VirtualKey.objects.filter(digest__in=list(digests)))


def compile_all_keys() -> Iterator[dict[str, snapshot.KeyRecord]]:
    """The records of all virtual keys by digest, in batches. In one transaction: the rows come through a cursor."""
    batch: list[VirtualKey] = []
    for key in VirtualKey.objects.order_by().iterator(chunk_size=KEYS_PER_BATCH):
        batch.append(key)
        if len(batch) == KEYS_PER_BATCH:
            yield _key_records(batch)
            batch = []
    if batch:
        yield _key_records(batch)


def _key_records(keys: Iterable[VirtualKey]) -> dict[str, snapshot.KeyRecord]:
    keys = list(keys)
    rules = _rules(virtual_key__in=[key.pk for key in keys])
    return {key.digest: _key_record(key, rules.get(key.pk, NO_RULES)) for key in keys}


def _key_record(key: VirtualKey, rules: Rules) -> snapshot.KeyRecord:
    return snapshot.KeyRecord(
        key_id=str(key.pk),
        version=key.version,
        name=key.name,
        project_id=str(key.project_id),
        aliases=tuple(key.aliases),
        is_paused=key.paused_at is not None,
        is_revoked=key.revoked_at is not None,
        expires_at_s=key.expires_at.timestamp() if key.expires_at else None,
        default_tags=key.default_tags,
        budgets=rules[0],
        limits=rules[1],
    )


def _team(team: Team, rules: Mapping[UUID, Rules]) -> snapshot.Team:
    budgets_of_team, limits = rules.get(team.pk, NO_RULES)
    return snapshot.Team(
        team_id=str(team.pk), name=team.name, time_zone=team.time_zone, budgets=budgets_of_team, limits=limits
    )


def _project(project: Project, rules: Mapping[UUID, Rules]) -> snapshot.Project:
    budgets_of_project, limits = rules.get(project.pk, NO_RULES)
    return snapshot.Project(
        project_id=str(project.pk),
        team_id=str(project.team_id),
        name=project.name,
        environment=project.environment,
        default_tags=project.default_tags,
        required_tags=tuple(project.required_tag_keys),
        budgets=budgets_of_project,
        limits=limits,
    )


def _rules(**subjects: Any) -> dict[UUID, Rules]:
    """Active budgets and limits by the id of their subject. Budgets stand in the order they were made in."""
    budgets_by_subject: defaultdict[UUID, list[snapshot.Budget]] = defaultdict(list)
    for budget in with_time_zone(budgets.Budget.objects.filter(**subjects, is_active=True)).order_by("pk"):
        budgets_by_subject[_subject_id(budget)].append(_budget(budget))
    limits_by_subject: defaultdict[UUID, dict[str, int]] = defaultdict(dict)
    for limit in budgets.Limit.objects.filter(**subjects, is_active=True):
        limits_by_subject[_subject_id(limit)][_LIMIT_FIELDS[budgets.Limit.Metric(limit.metric)]] = limit.amount
    return {
        subject: (tuple(budgets_by_subject[subject]), snapshot.Limits(**limits_by_subject[subject]))
        for subject in budgets_by_subject.keys() | limits_by_subject.keys()
    }


def _subject_id(rule: budgets.SubjectRule) -> UUID:
    subject = rule.team_id or rule.project_id or rule.virtual_key_id
    assert subject is not None, "a constraint of the table gives every rule its subject"
    return subject


def _budget(budget: Any) -> snapshot.Budget:
    return snapshot.Budget(
        budget_id=str(budget.pk),
        name=budget.name,
        scope=budget.scope,
        window=budget.window,
        amount_nanos=nanos(budget.amount_usd),
        is_hard=budget.is_hard,
        time_zone=budget.time_zone,
    )


def _provider(provider: routing.Provider) -> snapshot.Provider:
    return snapshot.Provider(
        slug=provider.slug,
        api=provider.api,
        base_url=provider.base_url,
        output_cap_field=provider.output_cap_field,
        connect_timeout_s=provider.connect_timeout_s,
        first_byte_timeout_s=provider.first_byte_timeout_s,
        idle_timeout_s=provider.idle_timeout_s,
        is_active=provider.is_active,
    )


def _deployments(now: datetime) -> dict[str, snapshot.Deployment]:
    prices, credentials = _prices(now), _credentials()
    return {
        str(deployment.pk): snapshot.Deployment(
            deployment_id=str(deployment.pk),
            name=deployment.name,
            provider=deployment.provider.slug,
            model=deployment.model.name,
            upstream_model=deployment.upstream_model,
            price=prices.get((deployment.model_id, deployment.provider_id)),
            credentials=tuple(credentials[deployment.pool_id]) if deployment.pool_id else (),
            max_output_tokens=deployment.max_output_tokens or deployment.model.max_output_tokens,
            context_window=deployment.model.context_window,
            output_is_visible=deployment.model.output_is_visible,
            operations=tuple(deployment.model.operations),
            is_active=deployment.is_active and deployment.model.is_active,
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


def _prices(now: datetime) -> dict[tuple[UUID, UUID], Price]:
    """The price in force by (model, provider). None where there is no rate for the provider's currency."""
    usd_per_unit = {USD: Decimal(1)} | dict(
        routing.ExchangeRate.objects.filter(effective_from__lte=now)
        .order_by("currency", "-effective_from")
        .distinct("currency")
        .values_list("currency", "usd_per_unit")
    )
    in_force = (
        routing.Price.objects.filter(effective_from__lte=now)
        .order_by("model_id", "provider_id", "-effective_from")
        .distinct("model_id", "provider_id")
        .select_related("provider")
    )
    prices = {}
    for price in in_force:
        rate = usd_per_unit.get(price.provider.currency)
        if rate is None:
            log.warning("no exchange rate for %s: models at %s are unpriced", price.provider.currency, price.provider)
            continue
        prices[price.model_id, price.provider_id] = Price(
            price_id=str(price.pk),
            input_nanos=nanos(price.input, rate),
            output_nanos=nanos(price.output, rate),
            cache_read_nanos=nanos(price.cached_input, rate),
            cache_write_nanos=nanos(price.cache_write, rate),
            request_nanos=nanos(price.per_request, rate),
        )
    return prices


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
        )
        for alias in routing.ModelAlias.objects.filter(is_active=True).prefetch_related("targets")
    }
