"""What outlives its request, made anew from the ledger after Redis was lost: jobs, and what providers keep. Reads PostgreSQL only."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from audit.models import UsageRecord
from audit.records import PriceTerms, encode_event
from budgets import gate, ledger
from budgets.price_book import compiled
from budgets.pricing import Price, batch_price
from budgets.spend import counters_of, dimensions_of
from proxy.jobs import EXPIRES_OTHERWISE_S, Job, StoredObject, encode_stored, expires_s, kind_of, stored_key
from routing import models as routing
from routing import price_models

log = logging.getLogger(__name__)

# The newest count: whoever asks for one that is older, after Redis was lost, is told that there is none.
STORED_ROWS_MAX = 200_000


class StoredValue(NamedTuple):
    key: str
    value: bytes
    expire_at_s: int


def hold_of(record: UsageRecord) -> bytes:
    """What stands in `tg:suspense` for a record in suspense."""
    event = ledger.event_of(record)
    body = encode_event(event)
    job = _job(record)
    if job is None:
        return b"%d|" % event.cost_nanos + gate.hold_value((), (), body)
    at_s = record.admitted_at.timestamp()
    counters = counters_of(dimensions_of(record), at_s)
    return b"%d|" % event.cost_nanos + gate.hold_value(counters, (), body, job=job)


def is_job(record: UsageRecord) -> bool:
    """Whether the provider can be asked what became of it."""
    return record.upstream_id != ""


def _job(record: UsageRecord) -> Job | None:
    if not is_job(record):
        return None
    deployment = _deployments(record.provider).get(record.deployment)
    price = _price(record)
    if deployment is None or price is None:
        log.error("job %s cannot be made anew: its deployment or its price is gone", record.attempt_id)
        return None
    deployment_id, api = deployment
    return Job(
        kind=kind_of(record.operation, api),
        deployment_id=deployment_id,
        price=batch_price(price) if record.operation == routing.Operation.BATCH else price,
    )


def _price(record: UsageRecord) -> Price | None:
    """As it was when the attempt was admitted, under the terms of then."""
    if record.price_id is None:
        return None
    row = price_models.Price.objects.filter(pk=record.price_id).first()
    return None if row is None else compiled(row, msgspec.convert(record.terms, PriceTerms))


def _deployments(provider_slug: str) -> dict[str, tuple[str, str]]:
    """(id, API of the provider) by name."""
    rows = routing.Deployment.objects.filter(provider__slug=provider_slug).values_list("name", "pk", "provider__api")
    return {name: (str(pk), api) for name, pk, api in rows}


def stored(now_s: float) -> Iterator[StoredValue]:
    """Where the things are that providers keep, and whose they are, the newest first. What the requests of a file may use is
    not in the ledger: such a file can be read, but no batch can be made of it."""
    since = datetime.fromtimestamp(now_s, UTC) - timedelta(seconds=EXPIRES_OTHERWISE_S)
    rows = (
        UsageRecord.objects.filter(admitted_at__gte=since)
        .exclude(upstream_id="")
        .order_by("-admitted_at")
        .values_list(
            "operation", "upstream_id", "provider", "deployment", "project_id", "attempt_id", "alias", "admitted_at"
        )
    )
    deployments: dict[str, dict[str, tuple[str, str]]] = {}
    for operation, upstream_id, provider, name, project_id, attempt_id, alias, at in rows[:STORED_ROWS_MAX].iterator():
        if provider not in deployments:
            deployments[provider] = _deployments(provider)
        found = deployments[provider].get(name)
        if found is None:
            continue
        deployment_id, api = found
        kind = kind_of(operation, api)
        expire_at_s = int(at.timestamp()) + expires_s(kind)
        if expire_at_s > now_s:
            value = StoredObject(
                deployment_id=deployment_id, project_id=str(project_id), attempt_id=str(attempt_id), alias=alias
            )
            yield StoredValue(stored_key(kind, upstream_id), encode_stored(value), expire_at_s)
