"""Prometheus text of what the control plane knows of the money: drift, suspense, how old that knowledge is, and alerts.

The proxy's metrics are its own (`proxy/metrics.py`). These tell amounts, so they need the scope `usage:read` of every team, as
`Authorization: Bearer tgapi-…` in Prometheus.
"""

from collections.abc import Iterator
from typing import ClassVar, cast

import redis
from django.db.models import Count, F, Sum
from django.db.models.functions import Abs
from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request

from audit.api_base import ApiView
from audit.models import UsageRecord
from budgets import gate, ledger
from budgets.alert_models import Alert, Delivery, Severity
from budgets.comparison import USD, nanos
from budgets.ledger_models import Drift, Verification
from controlplane.books import suspended
from keys.redis import redis_client


class MetricsView(ApiView):
    scope: ClassVar[str] = "usage"
    queryset = UsageRecord.objects.all()

    @extend_schema(exclude=True)
    def list(self, request: Request) -> HttpResponse:
        if not self.caller.sees_all_teams:
            raise PermissionDenied("These are of every team.")
        registry = CollectorRegistry()
        registry.register(_Money())
        return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


show_metrics = MetricsView.as_view({"get": "list"})


class _Money:
    def collect(self) -> Iterator[Metric]:
        yield from _drift()
        yield from _suspense()
        yield from _usage_stream()
        yield from _alerts()


def _drift() -> Iterator[Metric]:
    open_drifts = Drift.objects.filter(closed_at=None)
    difference = Sum(Abs(F("found") - F("expected")))
    by_kind = dict(open_drifts.filter(unit=USD).order_by().values_list("kind").annotate(nanos=difference))
    counts = dict(open_drifts.order_by().values_list("kind").annotate(rows=Count("pk")))
    drift = GaugeMetricFamily("tollgate_drift_nanos", "Nano-USD by which copies of the money differ", labels=["kind"])
    drifts = GaugeMetricFamily("tollgate_drifts", "Rows and counters that differ, in any unit", labels=["kind"])
    for kind in Drift.Kind.values:
        drift.add_metric([kind], by_kind.get(kind, 0))
        drifts.add_metric([kind], counts.get(kind, 0))
    yield from (drift, drifts)
    age = GaugeMetricFamily("tollgate_verified_age_seconds", "Since the verifier ran last; none where it never has")
    last = Verification.objects.first()
    if last is not None:
        age.add_metric([], (timezone.now() - last.at).total_seconds())
    yield age


def _suspense() -> Iterator[Metric]:
    found = suspended(UsageRecord.objects.all())
    age_s = (timezone.now() - found.since).total_seconds() if found.since is not None else 0.0
    yield GaugeMetricFamily("tollgate_suspense_oldest_seconds", "Age of the oldest attempt in suspense", age_s)
    yield GaugeMetricFamily("tollgate_suspense_records", "Attempts in suspense", found.records)
    yield GaugeMetricFamily("tollgate_suspense_nanos", "Nano-USD in suspense", nanos(found.held_usd))


def _usage_stream() -> Iterator[Metric]:
    """Nothing where Redis does not answer."""
    client = redis_client()
    try:
        waiting, dead = client.xlen(gate.USAGE), client.xlen(ledger.DEAD_LETTERS)
        mended = cast("dict[bytes, bytes]", client.hgetall(ledger.MENDED))
    except redis.RedisError:
        return
    yield GaugeMetricFamily("tollgate_usage_waiting", "Usage events that are not in the ledger yet", waiting)
    yield GaugeMetricFamily("tollgate_usage_dead", "Usage events that could not be stored", dead)
    fields = CounterMetricFamily("tollgate_usage_mended", "Usage events with a field that cannot be", labels=["field"])
    for name, events in mended.items():
        fields.add_metric([name.decode()], int(events))
    yield fields


def _alerts() -> Iterator[Metric]:
    is_open = GaugeMetricFamily("tollgate_alerts_open", "Alerts that are not over", labels=["severity"])
    by_severity = dict(Alert.objects.open().order_by().values_list("severity").annotate(Count("pk")))
    for severity in Severity.values:
        is_open.add_metric([severity], by_severity.get(severity, 0))
    notices = GaugeMetricFamily("tollgate_alert_notices", "Notices not sent yet, and those given up", labels=["state"])
    for state in (Delivery.State.WAITING, Delivery.State.DEAD):
        notices.add_metric([state.value], Delivery.objects.filter(state=state).count())
    yield from (is_open, notices)
