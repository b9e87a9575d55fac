"""Looks for what is worth an alert, and for what is over.

Each minute at everything: the counters of budgets, alerts that are open, the ledger, kill switches, credentials. Every few
seconds at the counters that were spent on since: ingest leaves word of them (`note`), so that no counter of a budget that has
one for each end user, or of one of the very many virtual keys, has to be looked for.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from uuid import UUID

import msgspec
import redis
from django.conf import settings
from django.db import connection
from django.db.models import Count, Min, Q, Sum
from django.db.models.functions import Coalesce

from audit.models import UsageRecord
from audit.records import CREDENTIAL_REFUSED, UsageEvent
from budgets import alerts, caps, feeds, gate
from budgets.alert_models import Alert, Severity
from budgets.alert_services import Finding, identity, open_alerts, recover_alerts
from budgets.ledger_models import Drift
from budgets.matching import EACH, Index, counter_values
from budgets.models import (
    TAG,
    Budget,
    BudgetQuerySet,
    Increase,
    IncreaseQuerySet,
    Scope,
    Threshold,
    amount_text,
)
from budgets.spend import COUNTER_GRACE_S, NANO_DIGITS, Row, rows_of
from budgets.windows import FOREVER_S
from keys.models import CredentialPool, KillSwitch, VirtualKey
from routing.models import Deployment
from teams.models import Project

# What was spent on since the last look: a set of JSON objects of dimensions and values.
TOUCHED = "tg:touched"
TOUCHED_MAX = 100_000
TOUCHED_PER_LOOK = 10_000
KEYS_PER_COMMAND = 5_000
OPENED_AT_ONCE = 1_000

# A counter that was not spent on for so long has no pace.
PACE_KEPT_S = 90 * alerts.DAY_S

NONE_REFUSED: Mapping[str, int] = {}

# What alerts are about that are of the gateway as a whole.
GATEWAY = UUID(int=0)
CREDENTIALS_SEEN_FOR = timedelta(minutes=5)
REFUSALS_MIN = 3
# As the provider answered: 101 where it is a WebSocket.
TAKEN = (100, 299)

_encode = msgspec.json.Encoder(order="sorted").encode
_decode_values = msgspec.json.Decoder(dict[str, str]).decode
_decode_pace = msgspec.json.Decoder(alerts.Pace).decode


class Taken(Exception):
    """Another process is watching."""


class Counter(NamedTuple):
    """One counter of a budget, in one window."""

    row: Row
    each: tuple[str, ...]
    start_s: int
    end_s: int

    @property
    def key(self) -> str:
        return gate.spend_key(str(self.row.pk), self.start_s, *self.each)

    def kept_s(self, now_s: float) -> int:
        """For how long what is known of it is kept."""
        return min(self.end_s + COUNTER_GRACE_S - int(now_s), PACE_KEPT_S)

    @property
    def half_life_s(self) -> float:
        return alerts.half_life_s(self.start_s, self.end_s)


class Terms(NamedTuple):
    """What a budget says, as far as its alerts need it. `amount` is in nano-USD, tokens or requests, with its increases."""

    name: str
    unit: str
    mode: str
    amount: int
    team_id: UUID | None
    effects: Mapping[int, list[str]]

    def text(self, amount: int) -> str:
        return amount_text(Decimal(amount).scaleb(-NANO_DIGITS if self.unit == Budget.Unit.USD else 0), self.unit)


def note(client: redis.Redis, events: Iterable[UsageEvent]) -> None:
    """Leave word of the counters that these were counted in. Where nobody listens, the words do not pile up without end."""
    touched = {_encode(_values_of(event)) for event in events}
    if touched and client.scard(TOUCHED) < TOUCHED_MAX:
        client.sadd(TOUCHED, *touched)


def watch(client: redis.Redis, now: datetime) -> None:
    """At everything. Raises `Taken`, `redis.RedisError` or OperationalError."""
    with _alone("budgets.watch"):
        counters = [
            counter
            for row in rows_of(Budget.objects.filter(is_active=True).exclude(scope=Scope.KEY))
            if EACH not in row.subject.values()
            for counter in _present(row, (), now)
        ]
        _look_at(client, counters, now)
        _recover_budgets(client, now)
        _watch_one(Alert.Kind.SUSPENSE, _old_suspense(client, now), "No suspense is old any more.", now)
        _watch_one(Alert.Kind.DRIFT, _drift(), "All copies of the same money agree again.", now)
        _watch_one(Alert.Kind.KILL_SWITCH, _kill_switches(), "It is lifted.", now)
        _watch_one(Alert.Kind.INCREASE, _increases_asked_for(now), "It is decided, or its time is over.", now)
        _watch_one(Alert.Kind.FEED, feeds.failing(now), "It is fetched again, or switched off.", now)
        _watch_credentials(now)


def watch_touched(client: redis.Redis, now: datetime) -> int:
    """At what was spent on since, and at what has refused; how many words of it were left. Raises as `watch`."""
    with _alone("budgets.watch_touched"):
        words = cast("list[bytes]", client.srandmember(TOUCHED, TOUCHED_PER_LOOK))
        refused = _refused(client)
        if not words and not refused:
            return 0
        deployments = {name: str(pk) for pk, name in Deployment.objects.values_list("pk", "name")}
        spent_by = []
        for word in words:
            values = _decode_values(word)
            spent_by.append(values | {"deployment": deployments.get(values["deployment"], values["deployment"])})
        keys = {values["key"] for values in spent_by}
        rows = Budget.objects.filter(~Q(scope=Scope.KEY) | Q(virtual_key__in=keys), is_active=True)
        index = Index(rows_of(rows))
        counters = {
            counter.key: counter
            for values in spent_by
            for row in index.matching(values)
            for counter in _present(row, counter_values(row.subject, values), now)
        }
        counters |= _counters_of(refused, now)
        _look_at(client, list(counters.values()), now, refused)
        # Only now: who died on the way has forgotten nothing.
        if words:
            client.srem(TOUCHED, *words)
        if refused:
            client.hdel(gate.REFUSED, *refused)
        return len(words) + len(refused)


def _refused(client: redis.Redis) -> dict[str, int]:
    """Counters that workers say have refused requests, and what was left of each."""
    flat = cast("list[bytes]", client.hrandfield(gate.REFUSED, TOUCHED_PER_LOOK, withvalues=True) or [])
    return {key.decode(): int(left) for key, left in zip(flat[::2], flat[1::2], strict=True)}


def _counters_of(keys: Iterable[str], now: datetime) -> dict[str, Counter]:
    """By key, those whose window is now, and whose budget still counts as it did."""
    each: defaultdict[UUID, list[tuple[str, ...]]] = defaultdict(list)
    for key in keys:
        budget_id, _, values = gate.read_spend_key(key)
        each[UUID(budget_id)].append(values)
    rows = rows_of(Budget.objects.filter(pk__in=list(each), is_active=True))
    found = (
        counter
        for row in rows
        for values in each[row.pk]
        if len(values) == len(_each(row))
        for counter in _present(row, values, now)
    )
    return {counter.key: counter for counter in found}


def _values_of(event: UsageEvent) -> dict[str, str]:
    """By dimension; of the deployment the name."""
    values = {
        "team": event.team_id,
        "project": event.project_id,
        "key": event.virtual_key_id,
        "environment": event.environment,
        "end_user": event.end_user,
        "alias": event.alias,
        "model": event.model,
        "provider": event.provider,
        "deployment": event.deployment,
        "pool": event.pool,
    }
    return values | {f"{TAG}{name}": value for name, value in event.tags.items()}


@contextmanager
def _alone(look: str) -> Iterator[None]:
    """Two who look at the same would only do the same work: which alerts are opened, the database decides."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [look])
        if not cursor.fetchone()[0]:
            raise Taken
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtext(%s))", [look])


# Budgets


def _present(row: Row, each: tuple[str, ...], now: datetime) -> Iterator[Counter]:
    """The counter in the window that is now; none outside of fixed dates."""
    start_s, end_s = row.bounds(now.timestamp())
    if start_s <= now.timestamp() < end_s:
        yield Counter(row, each, start_s, end_s)


def _look_at(
    client: redis.Redis, counters: list[Counter], now: datetime, refused: Mapping[str, int] = NONE_REFUSED
) -> None:
    if not client.exists(gate.EPOCH):
        return  # It is being rebuilt: what the counters say is not so.
    used = defaultdict(int, _read(client, [counter.key for counter in counters]))
    in_use = [counter for counter in counters if used[counter.key] > 0 or counter.key in refused]
    terms = _terms([counter.row.pk for counter in in_use], now)
    in_use = [counter for counter in in_use if counter.row.pk in terms]
    paces = _move_paces(client, in_use, used, now.timestamp())
    _keep_refusals(client, in_use, refused, now.timestamp())
    findings: list[Finding] = []
    for counter in in_use:
        its = terms[counter.row.pk]
        findings += _crossed(counter, its, used[counter.key], refused.get(counter.key))
        findings += _running_out(counter, its, paces[counter.key], now)
    new = _not_open(findings)
    # Who is stopped on the way, because there are very many, has come further than the one before.
    for start in range(0, len(new), OPENED_AT_ONCE):
        open_alerts(new[start : start + OPENED_AT_ONCE], now=now)


def _read(client: redis.Redis, keys: list[str]) -> dict[str, int]:
    return {key: int(value) for key, value in _get(client, keys).items()}


def _get(client: redis.Redis, keys: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for start in range(0, len(keys), KEYS_PER_COMMAND):
        chunk = keys[start : start + KEYS_PER_COMMAND]
        values = cast("list[bytes | None]", client.mget(chunk))
        found |= {key: value for key, value in zip(chunk, values, strict=True) if value is not None}
    return found


def _terms(budget_ids: list[UUID], now: datetime) -> dict[UUID, Terms]:
    chosen = Budget.objects.filter(pk__in=set(budget_ids), is_active=True)
    effects: defaultdict[UUID, dict[int, list[str]]] = defaultdict(dict)
    for threshold in Threshold.objects.filter(budget__in=chosen.values("pk")).select_related("alias"):
        of_percent = effects[threshold.budget_id].setdefault(threshold.percent, [])
        if threshold.action != Threshold.Action.ALERT:
            of_percent.append(threshold.effect)
    more = dict(_increases(chosen, now))
    owners = Coalesce("team_id", "project__team_id", "virtual_key__project__team_id")
    return {
        pk: Terms(name, unit, mode, _whole(amount + more.get(pk, 0), unit), team_id, effects[pk])
        for pk, name, unit, mode, amount, team_id in chosen.annotate(owner_id=owners).values_list(
            "pk", "name", "unit", "mode", "amount", "owner_id"
        )
    }


def _increases(budgets: BudgetQuerySet, now: datetime) -> Iterable[tuple[UUID, Decimal]]:
    rows = Increase.objects.in_force(now).filter(budget__in=budgets.values("pk"), starts_at__lte=now)
    return rows.values_list("budget_id").annotate(Sum("amount")).order_by()


def _whole(amount: Decimal, unit: str) -> int:
    return int(amount.scaleb(NANO_DIGITS if unit == Budget.Unit.USD else 0))


def _pace_key(counter_key: str) -> str:
    return counter_key.replace("tg:spend:", "tg:pace:", 1)


def _move_paces(
    client: redis.Redis, counters: list[Counter], used: Mapping[str, int], now_s: float
) -> dict[str, alerts.Pace]:
    stored = _get(client, [_pace_key(counter.key) for counter in counters])
    paces = {}
    with client.pipeline(transaction=False) as pipeline:
        for counter in counters:
            key = _pace_key(counter.key)
            before = _decode_pace(stored[key]) if key in stored else None
            pace = alerts.moved(before, used[counter.key], now_s, counter.half_life_s)
            paces[counter.key] = pace
            pipeline.set(key, _encode(pace), ex=counter.kept_s(now_s))
        pipeline.execute()
    return paces


def _refusal_key(counter_key: str) -> str:
    return counter_key.replace("tg:spend:", "tg:refusal:", 1)


def _keep_refusals(client: redis.Redis, counters: list[Counter], refused: Mapping[str, int], now_s: float) -> None:
    """What was left of each when it refused: the alert is over when there is more."""
    with client.pipeline(transaction=False) as pipeline:
        for counter in counters:
            if counter.key in refused:
                pipeline.set(_refusal_key(counter.key), refused[counter.key], ex=counter.kept_s(now_s))
        pipeline.execute()


def _crossed(counter: Counter, its: Terms, used: int, refused_left: int | None) -> Iterator[Finding]:
    """`refused_left` is what was left when a request was refused, None where none was."""
    refuses_at = counter.row.refuses_at
    reached = alerts.crossed(used, its.amount, its.effects, refuses_at=refuses_at)
    spent = f"{its.text(used)} of {its.text(its.amount)} are spent or held{_window_text(counter)}."
    for percent in reached:
        is_refused = refuses_at is not None and percent >= refuses_at
        is_whole = is_refused or percent >= caps.WHOLE_PERCENT
        said = [spent]
        if is_refused:
            said.append("What would pass it is refused.")
        elif is_whole and refuses_at is None:
            said.append(_NEVER_REFUSED[Budget.Mode(its.mode)])
        said += [f"From here on: {effect}." for effect in its.effects.get(percent, ())]
        yield _finding(
            counter,
            its,
            Alert.Kind.THRESHOLD,
            percent=percent,
            severity=Severity.CRITICAL if is_whole else Severity.WARNING,
            title=f"{_name(counter, its)}: {percent} % of {its.text(its.amount)}",
            text=" ".join(said),
        )
    if refused_left is not None and refuses_at is not None and refuses_at not in reached:
        left = its.text(max(refused_left, 0))
        yield _finding(
            counter,
            its,
            Alert.Kind.THRESHOLD,
            percent=refuses_at,
            severity=Severity.CRITICAL,
            title=f"{_name(counter, its)}: requests are refused",
            text=f"A request was refused that could have cost more than was left: {left} were left. {spent}",
        )


_NEVER_REFUSED = {
    Budget.Mode.SOFT: "Nothing is refused: the budget is soft.",
    Budget.Mode.OBSERVE: "Nothing is refused: the budget only observes what a hard one would.",
}


def _running_out(counter: Counter, its: Terms, pace: alerts.Pace, now: datetime) -> Iterator[Finding]:
    cap = caps.share(its.amount, counter.row.cap_percent)
    at_s = alerts.runs_out_at_s(pace, cap, counter.half_life_s)
    if pace.used >= cap or at_s is None or not alerts.runs_out(at_s, now.timestamp(), counter.end_s):
        return
    moment = alerts.moment_text(at_s, counter.row.zone)
    yield _finding(
        counter,
        its,
        Alert.Kind.FORECAST,
        percent=0,
        severity=Severity.WARNING,
        title=f"{_name(counter, its)}: runs out on {moment}",
        text=(
            f"At the recent pace nothing is left on {moment}. {its.text(pace.used)} of {its.text(cap)} are spent or"
            f" held{_window_text(counter)}."
        ),
    )


def _finding(
    counter: Counter, its: Terms, kind: str, *, percent: int, severity: Severity, title: str, text: str
) -> Finding:
    each = dict(zip(_each(counter.row), counter.each, strict=True))
    return Finding(
        kind=kind,
        about_id=counter.row.pk,
        counter=counter.each,
        percent=percent,
        window_start=_moment(counter.start_s),
        window_end=None if counter.end_s >= FOREVER_S else _moment(counter.end_s),
        team_id=UUID(each["team"]) if "team" in each else its.team_id,
        severity=severity,
        title=title,
        text=text,
    )


def _each(row: Row) -> list[str]:
    return [name for name in sorted(row.subject) if row.subject[name] == EACH]


def _name(counter: Counter, its: Terms) -> str:
    return f"{its.name} ({', '.join(counter.each)})" if counter.each else its.name


def _window_text(counter: Counter) -> str:
    if counter.end_s >= FOREVER_S:
        return ""
    return f"; the window ends on {alerts.moment_text(counter.end_s, counter.row.zone)}"


def _not_open(findings: list[Finding]) -> list[Finding]:
    """What is found is nearly always found again, so it is read first and written only where it is new."""
    chosen = Alert.objects.open().filter(about_id__in={finding.about_id for finding in findings})
    known = {identity(alert) for alert in chosen}
    return [finding for finding in findings if finding.identity not in known]


def _recover_budgets(client: redis.Redis, now: datetime) -> None:
    still_open = list(Alert.objects.open().filter(kind__in=(Alert.Kind.THRESHOLD, Alert.Kind.FORECAST)))
    terms = _terms([alert.about_id for alert in still_open], now)
    rows = {row.pk: row for row in rows_of(Budget.objects.filter(pk__in=list(terms)))}
    recoveries: dict[UUID, str] = {}
    counters: dict[UUID, Counter] = {}
    for alert in still_open:
        if alert.about_id not in terms:
            recoveries[alert.pk] = "The budget is gone, or switched off."
        elif alert.window_end is not None and alert.window_end <= now:
            recoveries[alert.pk] = "The window has ended, and another has begun."
        elif alert.window_start is not None:
            start_s, end_s = int(alert.window_start.timestamp()), _end_s(alert)
            counters[alert.pk] = Counter(rows[alert.about_id], tuple(alert.counter), start_s, end_s)
    if client.exists(gate.EPOCH):
        used = _read(client, [counter.key for counter in counters.values()])
        paces = _get(client, [_pace_key(counter.key) for counter in counters.values()])
        refusals = _read(client, [_refusal_key(counter.key) for counter in counters.values()])
        for alert in still_open:
            counter = counters.get(alert.pk)
            if counter is None:
                continue
            its, its_used = terms[alert.about_id], used.get(counter.key, 0)
            now_text = f"{its.text(its_used)} of {its.text(its.amount)} are spent or held now."
            if alert.kind == Alert.Kind.THRESHOLD:
                refused_left = refusals.get(_refusal_key(counter.key))
                left = caps.share(its.amount, counter.row.cap_percent) - its_used
                is_over = alerts.is_behind(its_used, its.amount, alert.percent) and not (
                    alert.percent == counter.row.refuses_at
                    and refused_left is not None
                    and alerts.still_refuses(left, refused_left, its.amount)
                )
            else:
                pace = paces.get(_pace_key(counter.key))
                is_over = pace is not None and _lasts(counter, its, _decode_pace(pace), now)
            if is_over:
                recoveries[alert.pk] = now_text
    recover_alerts(recoveries, now=now)


def _lasts(counter: Counter, its: Terms, pace: alerts.Pace, now: datetime) -> bool:
    # Idle since the last look: as if it had been looked at now.
    pace = alerts.moved(pace, pace.used, now.timestamp(), counter.half_life_s)
    cap = caps.share(its.amount, counter.row.cap_percent)
    at_s = alerts.runs_out_at_s(pace, cap, counter.half_life_s)
    return pace.used >= cap or alerts.runs_out(at_s, now.timestamp(), counter.end_s) is False


def _end_s(alert: Alert) -> int:
    return FOREVER_S if alert.window_end is None else int(alert.window_end.timestamp())


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# The ledger, kill switches, credentials


def _watch_one(kind: str, findings: list[Finding], over: str, now: datetime) -> None:
    """Alerts of a kind that have no window: those found are open, and those open that are not found are over."""
    open_alerts(_not_open(findings), now=now)
    found = {finding.about_id for finding in findings}
    rest = Alert.objects.open().filter(kind=kind).exclude(about_id__in=found).values_list("pk", flat=True)
    recover_alerts(dict.fromkeys(rest, over), now=now)


def _lasting(
    kind: str, about_id: UUID, *, team_id: UUID | None = None, severity: Severity, title: str, text: str
) -> Finding:
    """A finding of what has no window."""
    return Finding(kind, about_id, (), 0, None, None, team_id, severity, title, text)


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def _old_suspense(client: redis.Redis, now: datetime) -> list[Finding]:
    """Attempts long in suspense that nobody follows: a batch is, until it is over."""
    before = now - timedelta(seconds=settings.TOLLGATE_SUSPENSE_ALERT_S)
    old = UsageRecord.objects.filter(state=UsageRecord.State.SUSPENSE, admitted_at__lt=before)
    jobs = [UUID(attempt_id.decode()) for attempt_id in cast("list[bytes]", client.zrange(gate.JOBS, 0, -1))]
    sums = old.exclude(attempt_id__in=jobs).aggregate(
        count=Count("attempt_id"), oldest=Min("admitted_at"), cost=Sum("cost_usd")
    )
    if not sums["count"]:
        return []
    attempts = _number(sums["count"], "attempt")
    text = (
        f"{attempts} in suspense, the oldest since"
        f" {sums['oldest']:%Y-%m-%d %H:%M} UTC; they count as {amount_text(sums['cost'], 'usd')}. Look up what the provider"
        " has billed for them, and resolve them in the admin."
    )
    title = f"{attempts} in suspense"
    return [_lasting(Alert.Kind.SUSPENSE, GATEWAY, severity=Severity.WARNING, title=title, text=text)]


def _drift() -> list[Finding]:
    count = Drift.objects.filter(closed_at__isnull=True).count()
    if not count:
        return []
    title = f"The books differ in {_number(count, 'sum')}"
    text = "The verifier finds that the ledger, its roll-ups and the counters in Redis do not say the same."
    return [_lasting(Alert.Kind.DRIFT, GATEWAY, severity=Severity.CRITICAL, title=title, text=text)]


def _kill_switches() -> list[Finding]:
    thrown = list(KillSwitch.objects.active())
    teams = {switch.target: UUID(switch.target) for switch in thrown if switch.scope == "team"}
    targets = {scope: [switch.target for switch in thrown if switch.scope == scope] for scope in ("project", "key")}
    teams |= _owners(Project.objects.filter(pk__in=targets["project"]).values_list("pk", "team_id"))
    teams |= _owners(VirtualKey.objects.filter(pk__in=targets["key"]).values_list("pk", "project__team_id"))
    return [
        _lasting(
            Alert.Kind.KILL_SWITCH,
            switch.pk,
            team_id=teams.get(switch.target),
            severity=Severity.CRITICAL,
            title=f"Kill switch thrown: {' '.join(filter(None, (switch.scope, switch.target)))}",
            text=f"{switch.thrown_by} halted this traffic at {switch.thrown_at:%Y-%m-%d %H:%M:%S} UTC: {switch.reason}",
        )
        for switch in thrown
    ]


def _increases_asked_for(now: datetime) -> list[Finding]:
    owners = Coalesce(*IncreaseQuerySet.team_paths)
    asked: Iterable[Any] = Increase.objects.undecided(now).select_related("budget").annotate(owner_id=owners)
    return [
        _lasting(
            Alert.Kind.INCREASE,
            increase.pk,
            team_id=increase.owner_id,
            severity=Severity.INFO,
            title=f"{increase.requested_by_name} asks for {amount_text(increase.amount, increase.budget.unit)} more: {increase.budget.name}",
            text=f"From {increase.starts_at:%Y-%m-%d %H:%M} until {increase.ends_at:%Y-%m-%d %H:%M} UTC: {increase.reason}",
        )
        for increase in asked
    ]


def _owners(rows: Iterable[tuple[UUID, UUID]]) -> dict[str, UUID]:
    return {str(pk): team_id for pk, team_id in rows}


def _watch_credentials(now: datetime) -> None:
    """A provider that refuses all that a pool's credentials were presented for, a few times running."""
    recent = UsageRecord.objects.filter(admitted_at__gte=now - CREDENTIALS_SEEN_FOR).exclude(pool="").order_by()
    counted = recent.values("pool").annotate(
        refused=Count("attempt_id", filter=Q(error_type=CREDENTIAL_REFUSED)),
        taken=Count("attempt_id", filter=Q(status_code__range=TAKEN)),
    )
    by_pool = {UUID(row["pool"]): row for row in counted}
    names = dict(CredentialPool.objects.filter(pk__in=list(by_pool)).values_list("pk", "name"))
    findings = [
        _lasting(
            Alert.Kind.CREDENTIAL,
            pool,
            severity=Severity.CRITICAL,
            title=f"Credentials refused: {names.get(pool, pool)}",
            text=f"The provider refused {row['refused']:,} requests with credentials of this pool in five minutes, and took none.",
        )
        for pool, row in by_pool.items()
        if row["refused"] >= REFUSALS_MIN and not row["taken"]
    ]
    open_alerts(_not_open(findings), now=now)
    taken = [pool for pool, row in by_pool.items() if row["taken"]]
    over = Alert.objects.open().filter(kind=Alert.Kind.CREDENTIAL, about_id__in=taken).values_list("pk", flat=True)
    recover_alerts(dict.fromkeys(over, "The provider takes them again."), now=now)
