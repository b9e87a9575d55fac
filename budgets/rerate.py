"""A past period reckoned again: what each record would cost, and entries in the ledger that correct those which cost otherwise.

Nothing is edited. An entry has the record's moment and subject, no usage, and the difference as its cost, so that every sum
over the ledger is right with it. Its id follows from the re-rate's and the record's: done twice, it is there once.
"""

import uuid
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from django.db import connection, transaction
from django.db.models import Case, DateTimeField, Q, QuerySet, Sum, Value, When
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from audit.models import UsageRecord, UsageRecordQuerySet
from audit.records import PriceTerms, Usage, UsageEvent
from budgets import ledger, ledger_rows
from budgets.impact import groups, usage_of
from budgets.price_book import compiled, cost_again_nanos, nanos, usd
from budgets.pricing import BATCH, Price, batch_price, cost_nanos
from budgets.rollups import Rollups
from routing import models as routing
from routing import price_models
from routing.price_models import Rerate
from teams.models import Project, Team

CHUNK_RECORDS = 2_000
REPORT_HEADER = (
    "attempt_id", "admitted_at", "team", "project", "alias", "model", "deployment", "price_before", "price_after",
    "cost_before_usd", "cost_after_usd", "difference_usd",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One record: what it had cost with all corrections so far, and what it costs now, in nano-USD."""

    event: UsageEvent
    before_nanos: int
    after_nanos: int
    price_id: str
    terms: PriceTerms

    @property
    def nanos(self) -> int:
        return self.after_nanos - self.before_nanos


@dataclass
class Summary:
    """`by_model` and `by_team` (ids): [before, after] in USD. `unpriced` records stay as they are: no price is known."""

    records: int = 0
    unpriced: int = 0
    by_model: dict[str, list[Decimal]] = field(default_factory=dict)
    by_team: dict[str, list[Decimal]] = field(default_factory=dict)

    @property
    def before_usd(self) -> Decimal:
        return sum((before for before, _ in self.by_model.values()), Decimal(0))

    @property
    def after_usd(self) -> Decimal:
        return sum((after for _, after in self.by_model.values()), Decimal(0))

    def add(self, model: str, team_id: str, before: Decimal, after: Decimal) -> None:
        for sums, name in ((self.by_model, model), (self.by_team, team_id)):
            one = sums.setdefault(name, [Decimal(0), Decimal(0)])
            one[0] += before
            one[1] += after


def summarize(rerate: Rerate) -> Summary:
    """What it would change, or has changed. Before it is applied, by sums of the ledger: right to less than a nano-USD for each
    record, whatever their number."""
    if rerate.state == Rerate.State.APPLIED:
        by_model, by_team = (
            {name: [Decimal(before), Decimal(after)] for name, (before, after) in rerate.sums[key].items()}
            for key in ("by_model", "by_team")
        )
        return Summary(rerate.records, 0, by_model, by_team)
    summary, book = Summary(), _Book(rerate)
    records = _records(rerate).annotate(since=book.since(), is_priced=Q(price_id__isnull=False))
    for group in groups(records, book.lengths(), "model", "deployment", "since", "is_priced"):
        row = book.row(group["model"], group["deployment"], group["since"]) if group["is_priced"] else None
        after = group["cost"] if row is None else usd(_cost_of_group(group, row, book))
        summary.records += group["records"]
        summary.unpriced += 0 if row is not None else group["records"]
        summary.add(group["model"], str(group["team_id"]), group["cost"], after)
    # What was corrected earlier is part of what it costs now, and is not there afterwards.
    for earlier in _entries(rerate).order_by().values("model", "team_id").annotate(cost=Sum("cost_usd")):
        summary.add(earlier["model"], str(earlier["team_id"]), earlier["cost"], Decimal(0))
    return summary


def _cost_of_group(group: Mapping[str, Any], row: price_models.Price, book: "_Book") -> int:
    price = book.price(row, book.terms(msgspec.convert(group["terms"], PriceTerms)))
    return cost_nanos(usage_of(group), batch_price(price) if group["operation"] == BATCH else price)


def differences(rerate: Rerate) -> Iterator[Difference]:
    """Of every posted record of the period, in the order of time. Of a re-rate that is applied, what it did."""
    book = _Book(rerate)
    for records in _chunks(rerate):
        yield from _compare(rerate, records, book)


def report_lines(rerate: Rerate) -> Iterator[list[str]]:
    """One line for each record whose cost differs."""
    teams = {str(pk): name for pk, name in Team.objects.values_list("pk", "name")}
    projects = {str(pk): name for pk, name in Project.objects.values_list("pk", "name")}
    for one in differences(rerate):
        if not one.nanos:
            continue
        event = one.event
        yield [
            event.attempt_id,
            moment_of(event).isoformat(),
            teams.get(event.team_id, event.team_id),
            projects.get(event.project_id, event.project_id),
            event.alias,
            event.model,
            event.deployment,
            event.price_id,
            one.price_id,
            str(usd(one.before_nanos)),
            str(usd(one.after_nanos)),
            str(usd(one.nanos)),
        ]


def apply(rerate: Rerate, *, actor: Actor) -> Summary:
    """Write the entries of an approved re-rate, chunk by chunk; again after a crash it goes on where it was.

    Raises `ValueError` for one that nobody has approved.
    """
    if rerate.state == Rerate.State.APPLIED:
        return summarize(rerate)
    if rerate.state != Rerate.State.APPROVED:
        raise ValueError(f"{rerate} is {rerate.state}")
    summary, book = Summary(), _Book(rerate)
    for records in _chunks(rerate):
        with transaction.atomic():
            _lock_out_ingest()
            found = list(_compare(rerate, records, book))
            _write(rerate, [difference for difference in found if difference.nanos])
        for one in found:
            summary.records += 1
            summary.unpriced += not one.price_id
            summary.add(one.event.model, one.event.team_id, usd(one.before_nanos), usd(one.after_nanos))
    values = {
        "state": Rerate.State.APPLIED,
        "applied_at": timezone.now(),
        "records": summary.records,
        "before_usd": summary.before_usd,
        "after_usd": summary.after_usd,
        "sums": {
            key: {name: [str(before), str(after)] for name, (before, after) in sums.items()}
            for key, sums in (("by_model", summary.by_model), ("by_team", summary.by_team))
        },
    }
    with transaction.atomic():
        if Rerate.objects.select_for_update().filter(pk=rerate.pk, state=Rerate.State.APPROVED).exists():
            audit.change(rerate, actor=actor, action="apply", reason=rerate.note, values=values)
    return summary


def apply_approved(*, actor: Actor) -> None:
    """Unless somebody is at it: a long period takes minutes."""
    approved = Rerate.objects.filter(state=Rerate.State.APPROVED)
    if not approved.exists():
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext('budgets.rerate'))")
        if not cursor.fetchone()[0]:
            return
        try:
            for rerate in approved:
                apply(rerate, actor=actor)
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtext('budgets.rerate'))")


class _Book:
    """The price of each moment of the past, as the re-rate wants it."""

    def __init__(self, rerate: Rerate) -> None:
        self._rerate = rerate
        self._compiled: dict[tuple[uuid.UUID, PriceTerms], Price] = {}
        self._deployments = dict(routing.Deployment.objects.filter(provider=rerate.provider).values_list("name", "pk"))
        self._prices: defaultdict[tuple[str, object], list[price_models.Price]] = defaultdict(list)
        rows = (
            price_models.Price.objects.filter(provider=rerate.provider)
            .select_related("model")
            .prefetch_related("tiers")
        )
        for row in rows.order_by("effective_from", "created_at", "pk"):
            self._prices[row.model.name, row.deployment_id].append(row)

    def row(self, model: str, deployment: str, moment: datetime) -> price_models.Price | None:
        """None where nobody has said what it costs."""
        if self._rerate.price is not None:
            return self._rerate.price
        deployment_id = self._deployments.get(deployment)
        of_deployment = _at(self._prices[model, deployment_id], moment) if deployment_id else None
        return of_deployment or _at(self._prices[model, None], moment)

    def since(self) -> Case:
        """The last moment, up to a record's, at which any price changed."""
        moments = {row.effective_from for rows in self._prices.values() for row in rows}
        changes = sorted((one for one in moments if one > self._rerate.starts_at), reverse=True)
        return Case(
            *(When(admitted_at__gte=one, then=Value(one)) for one in changes if one < self._rerate.ends_at),
            default=Value(self._rerate.starts_at),
            output_field=DateTimeField(),
        )

    def lengths(self) -> set[int]:
        rows = [row for rows in self._prices.values() for row in rows]
        return {tier.above_input_tokens for row in rows for tier in row.tiers.all() if tier.above_input_tokens}

    def price(self, row: price_models.Price, terms: PriceTerms) -> Price:
        """Reckoned out once: there are few, and millions of records."""
        key = row.pk, terms
        if key not in self._compiled:
            self._compiled[key] = compiled(row, terms)
        return self._compiled[key]

    def terms(self, terms: PriceTerms) -> PriceTerms:
        changes: dict[str, int] = {}
        if self._rerate.discount_percent is not None:
            changes["discount_basis_points"] = int(self._rerate.discount_percent * 100)
        if self._rerate.usd_per_unit is not None:
            changes["usd_per_unit_nanos"] = nanos(self._rerate.usd_per_unit)
        return msgspec.structs.replace(terms, **changes) if changes else terms


def _at(rows: Sequence[price_models.Price], moment: datetime) -> price_models.Price | None:
    index = bisect_right(rows, moment, key=lambda row: row.effective_from)
    return rows[index - 1] if index else None


def _within(rerate: Rerate) -> UsageRecordQuerySet:
    records = UsageRecord.objects.filter(
        provider=rerate.provider.slug,
        admitted_at__gte=rerate.starts_at,
        admitted_at__lt=rerate.ends_at,
        state=UsageRecord.State.POSTED,
    )
    return records if rerate.model is None else records.filter(model=rerate.model.name)


def _records(rerate: Rerate) -> QuerySet[UsageRecord]:
    """What can be reckoned again in the period."""
    return _within(rerate).metered()


def _entries(rerate: Rerate) -> QuerySet[UsageRecord]:
    """What corrects them."""
    return _within(rerate).exclude(adjusts=None)


def _chunks(rerate: Rerate) -> Iterator[list[UsageRecord]]:
    """By keyset: a long period is never in memory as a whole."""
    records = _records(rerate).order_by("admitted_at", "attempt_id")
    chunk = list(records[:CHUNK_RECORDS])
    while chunk:
        yield chunk
        last = chunk[-1]
        after = Q(admitted_at__gt=last.admitted_at) | Q(admitted_at=last.admitted_at, attempt_id__gt=last.attempt_id)
        chunk = list(records.filter(after)[:CHUNK_RECORDS])


def _compare(rerate: Rerate, records: Sequence[UsageRecord], book: _Book) -> Iterator[Difference]:
    own = {_entry_id(rerate, record.attempt_id) for record in records}
    earlier: defaultdict[object, Decimal] = defaultdict(Decimal)
    written: dict[object, UsageRecord] = {}
    entries = UsageRecord.objects.filter(adjusts__in=[record.attempt_id for record in records])
    for entry in entries.order_by("ingested_at", "attempt_id"):
        if entry.attempt_id in own:
            written[entry.adjusts] = entry
        elif entry.adjusts not in written:  # What was corrected after this re-rate is not its doing.
            earlier[entry.adjusts] += entry.cost_usd
    for record in records:
        event = ledger.event_of(record)
        before = nanos(record.cost_usd + earlier[record.attempt_id])
        if record.attempt_id in written:
            corrected = ledger.event_of(written[record.attempt_id])
            yield Difference(event, before, before + corrected.cost_nanos, corrected.price_id, corrected.terms)
            continue
        is_open = rerate.state != Rerate.State.APPLIED and event.price_id
        row = book.row(event.model, event.deployment, record.admitted_at) if is_open else None
        terms = book.terms(event.terms)
        after = before if row is None else cost_again_nanos(event, book.price(row, terms))
        yield Difference(event, before, after, event.price_id if row is None else str(row.pk), terms)


def _write(rerate: Rerate, found: Sequence[Difference]) -> None:
    entries = {uuid.UUID(entry.attempt_id): entry for entry in (_entry(rerate, one) for one in found)}
    rollups = Rollups()
    for attempt_id in ledger_rows.insert(entries.values()):
        rollups.add(entries[attempt_id])
    ledger_rows.add_hours(rollups.hours)
    ledger_rows.add_tags(rollups.tags)


def _entry(rerate: Rerate, difference: Difference) -> UsageEvent:
    event = difference.event
    return msgspec.structs.replace(
        event,
        attempt_id=str(_entry_id(rerate, uuid.UUID(event.attempt_id))),
        adjusts=event.attempt_id,
        usage=Usage(),
        usage_source="none",
        cost_nanos=difference.nanos,
        currency_cost_nanos=None,
        held_nanos=0,
        price_id=difference.price_id,
        terms=difference.terms,
        status_code=0,
        error_type="",
        finish_reason="",
        upstream_id="",
        latency_ms=0,
        first_token_ms=0,
        kill_switch_id="",
        route=(),
        tag_sources={},
    )


def moment_of(event: UsageEvent) -> datetime:
    return ledger.EPOCH_START + timedelta(microseconds=event.admitted_at_us)


def _entry_id(rerate: Rerate, attempt_id: uuid.UUID) -> uuid.UUID:
    return uuid.uuid5(rerate.pk, str(attempt_id))


def _lock_out_ingest() -> None:
    """Roll-ups have one writer at a time."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('budgets.ingest'))")
