"""What one worker counts, and the Prometheus text of what all workers on this Redis reported. No labels by key or user.

Counting is a few additions on plain integers; a library's labelled counters cost more than the rest of a request. The text
format is left to prometheus_client.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

# Milliseconds, upper bounds; the last bucket has none.
LATENCY_BOUNDS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000)


class Counts(msgspec.Struct):
    """Everything since this worker started; travels with its heartbeat."""

    requests: dict[str, int] = msgspec.field(default_factory=dict)
    latency_buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))
    latency_sum_ms: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanos: int = 0
    streams_cut: int = 0
    # Jobs whose end could not be known: they stay in suspense.
    jobs_lost: int = 0
    # Attempts that have cost more than was held for them: a cap may have been passed by the difference.
    over_hold: int = 0

    def request_done(self, status_code: int, latency_ms: float) -> None:
        name = str(status_code)
        self.requests[name] = self.requests.get(name, 0) + 1
        self.latency_buckets[bisect_left(LATENCY_BOUNDS_MS, latency_ms)] += 1
        self.latency_sum_ms += latency_ms

    def attempt_settled(self, input_tokens: int, output_tokens: int, cost_nanos: int) -> None:
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.cost_nanos += cost_nanos


class WorkerStatus(msgspec.Struct, kw_only=True):
    """What a worker says of itself each second; the value of its field in `tg:workers`."""

    worker: str
    host: str
    pid: int
    started_at_s: float
    at_s: float
    snapshot_version: int
    kills_version: int = 0
    is_ready: bool
    live_requests: int = 0
    live_streams: int = 0
    rss_bytes: int = 0
    # Of its event loop: those of live requests, and the few that run for as long as it does.
    tasks: int = 0
    journal_seq: int = 0
    ingested_seq: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(WorkerStatus).decode


def encode_status(status: WorkerStatus) -> bytes:
    return _encode(status)


def decode_status(body: bytes) -> WorkerStatus:
    return _decode(body)


def render(statuses: Iterable[WorkerStatus], would_refuse: int | None = None) -> bytes:
    """Prometheus text, a series for each worker; sum over `worker` for the whole. `would_refuse` counts for all of them what rules
    that are only observed would have refused; None when nobody knows."""
    registry = CollectorRegistry()
    registry.register(_Statuses(list(statuses)))
    if would_refuse is not None:
        registry.register(_Observed(would_refuse))
    return generate_latest(registry)


class _Observed:
    def __init__(self, would_refuse: int) -> None:
        self._would_refuse = would_refuse

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "tollgate_observed_refusals",
            "What observed budgets and limits would have refused",
            value=self._would_refuse,
        )


class _Statuses:
    def __init__(self, statuses: list[WorkerStatus]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("tollgate_requests", "Requests answered", labels=["worker", "status_code"])
        latency = HistogramMetricFamily("tollgate_request_duration_seconds", "Time to the last byte", labels=["worker"])
        tokens = CounterMetricFamily("tollgate_tokens", "Tokens settled", labels=["worker", "gen_ai_token_type"])
        cost = CounterMetricFamily("tollgate_cost_usd", "Cost settled", labels=["worker"])
        cut = CounterMetricFamily("tollgate_streams_cut", "Streams cut by kill switches", labels=["worker"])
        lost = CounterMetricFamily("tollgate_jobs_lost", "Jobs that stay in suspense", labels=["worker"])
        over = CounterMetricFamily(
            "tollgate_over_hold", "Attempts that cost more than was held for them", labels=["worker"]
        )
        live = GaugeMetricFamily("tollgate_live_requests", "Requests running", labels=["worker"])
        streams = GaugeMetricFamily("tollgate_live_streams", "Streams running", labels=["worker"])
        ready = GaugeMetricFamily("tollgate_ready", "1 when the worker admits requests", labels=["worker"])
        version = GaugeMetricFamily("tollgate_snapshot_version", "Configuration in force", labels=["worker"])
        backlog = GaugeMetricFamily(
            "tollgate_journal_backlog", "Settles PostgreSQL does not have yet", labels=["worker"]
        )
        rss = GaugeMetricFamily("tollgate_resident_memory_bytes", "Resident memory", labels=["worker"])
        tasks = GaugeMetricFamily("tollgate_tasks", "Tasks of the event loop", labels=["worker"])
        for status in self._statuses:
            counts, label = status.counts, [status.worker]
            for code, number in counts.requests.items():
                requests.add_metric([*label, code], number)
            latency.add_metric(label, _cumulative(counts.latency_buckets), sum_value=counts.latency_sum_ms / 1000)
            tokens.add_metric([*label, "input"], counts.input_tokens)
            tokens.add_metric([*label, "output"], counts.output_tokens)
            cost.add_metric(label, counts.cost_nanos / 1e9)
            cut.add_metric(label, counts.streams_cut)
            lost.add_metric(label, counts.jobs_lost)
            over.add_metric(label, counts.over_hold)
            live.add_metric(label, status.live_requests)
            streams.add_metric(label, status.live_streams)
            ready.add_metric(label, float(status.is_ready))
            version.add_metric(label, status.snapshot_version)
            backlog.add_metric(label, max(0, status.journal_seq - status.ingested_seq))
            rss.add_metric(label, status.rss_bytes)
            tasks.add_metric(label, status.tasks)
        yield from (requests, latency, tokens, cost, cut, lost, over)
        yield from (live, streams, ready, version, backlog, rss, tasks)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    bounds = [*(str(bound / 1000) for bound in LATENCY_BOUNDS_MS), "+Inf"]
    total, pairs = 0, []
    for bound, number in zip(bounds, buckets, strict=True):
        total += number
        pairs.append((bound, float(total)))
    return pairs
