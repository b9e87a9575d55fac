"""One upstream call under a hold: what ADMIT makes, the provider's answer fills, and SETTLE ends. No I/O, no clock."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from audit.records import Usage, UsageEvent
from budgets import gate
from budgets.pricing import Price
from proxy.authenticate import Subject
from proxy.describe import Described
from proxy.holds import input_tokens_max, output_tokens_max
from proxy.ids import new_id
from proxy.prepare import Prepared
from proxy.providers.provider import Kept
from proxy.registry import Upstream
from proxy.rules import Rules


class Attempt:
    """Money in nano-USD, moments in seconds of the monotonic clock. `now_s` is Unix time."""

    __slots__ = (
        "admit_argument",
        "attempt_id",
        "costs_ns",
        "counters",
        "covered_tokens",
        "credential_id",
        "described",
        "dispatched_at_s",
        "event",
        "first_token_at_s",
        "free",
        "full_nanos",
        "held_nanos",
        "held_tokens",
        "input_tokens_max",
        "is_dispatched",
        "is_settled",
        "kill_fields",
        "output_tokens_max",
        "prepared",
        "price",
        "remember",
        "reset_ms",
        "rules",
        "started_at_s",
        "subject",
        "tranche_tokens",
        "upstream",
    )

    def __init__(self, prepared: Prepared, price: Price, now_s: float, started_at_s: float) -> None:
        described, upstream = prepared.described, prepared.upstream
        subject = described.subject
        self.prepared = prepared
        self.described = described
        self.subject: Subject = subject
        self.upstream = upstream
        self.price = price
        self.rules: Rules = subject.rules(partial(_value_in, described, upstream))
        in_force = self.rules.in_force(now_s)
        self.counters: gate.BudgetCounters = in_force.counters
        self.event = event = _event(prepared, price, in_force.budget_ids, now_s)
        self.attempt_id = event.attempt_id
        self.kill_fields: tuple[str, ...] = subject.kill_fields + upstream.kill_fields
        # What the provider may bill at most.
        self.input_tokens_max = input_tokens_max(described.call, upstream.deployment)
        self.output_tokens_max = output_tokens_max(described.call, upstream.deployment)
        self.started_at_s = started_at_s
        self.first_token_at_s: float | None = None
        self.full_nanos = 0
        # How many tokens of output the first hold covers, where it is not the whole.
        self.tranche_tokens = 0
        # As many are held for now.
        self.covered_tokens = 0
        # Money is held from here on, and it goes out at once.
        self.dispatched_at_s = started_at_s
        self.held_nanos = 0
        self.held_tokens = 0
        self.costs_ns: list[int] = []
        self.admit_argument = b""
        self.free: Sequence[int] = ()
        self.reset_ms: Sequence[int] = ()
        self.is_dispatched = False
        self.is_settled = False
        self.credential_id = ""
        # Takes note of what the provider keeps, and whose it is.
        self.remember: Callable[[Attempt, Sequence[Kept]], None] | None = None

    def dispatched(self) -> None:
        """From here on the provider may charge for it."""
        self.is_dispatched = True


class Outcome(msgspec.Struct, kw_only=True):
    """How an attempt ended. `usage` None: the provider did not say, so it is estimated from what was seen and from what it
    had said by then (`usage_so_far`)."""

    usage: Usage | None = None
    usage_so_far: Usage | None = None
    # As `StreamReader` has it.
    tool_runs: int | None = None
    output_chunks: int = 0
    output_bytes: int = 0
    # As `estimate.Seen` has them.
    shown_s: float = 0.0
    in_flight_s: float | None = None
    may_have_been_billed: bool = True
    status_code: int = 0
    error_type: str = ""
    finish_reason: str = ""
    response_model: str = ""
    kill_switch_id: str = ""
    upstream_id: str = ""


def is_counted_in(counter_key: str, described: Described, upstream: Upstream, now_s: float) -> bool:
    """Whether the call at that upstream would count in that counter of a budget or a limit."""
    rules = described.subject.rules(partial(_value_in, described, upstream))
    counted = *rules.checks, *rules.in_force(now_s).counters
    return any(counter.key == counter_key for counter in counted)


def _event(prepared: Prepared, price: Price, budget_ids: tuple[str, ...], now_s: float) -> UsageEvent:
    described, deployment = prepared.described, prepared.upstream.deployment
    subject, call = described.subject, described.call
    return UsageEvent(
        attempt_id=new_id(),
        request_id=described.request_id,
        attempt_number=prepared.attempt_number,
        admitted_at_us=int(now_s * 1_000_000),
        team_id=subject.team.team_id,
        project_id=subject.project.project_id,
        virtual_key_id=subject.key.key_id,
        environment=subject.project.environment,
        end_user=described.end_user,
        alias=call.alias,
        downgraded_from=described.downgraded_from,
        provider=deployment.provider,
        model=deployment.model,
        deployment=deployment.name,
        pool=deployment.pool,
        operation=call.operation,
        request_model=deployment.upstream_model,
        is_stream=call.is_stream,
        price_id=price.price_id,
        terms=price.terms,
        tags=described.tags,
        tag_sources=described.tag_sources,
        route=described.candidates,
        budget_ids=budget_ids,
    )


def _value_in(described: Described, upstream: Upstream, dimension: str) -> str:
    """Of a call, as subjects of rules name it (`budgets.matching`)."""
    deployment = upstream.deployment
    match dimension:
        case "end_user":
            return described.end_user
        case "alias":
            return described.call.alias
        case "model":
            return deployment.model
        case "provider":
            return deployment.provider
        case "deployment":
            return deployment.deployment_id
        case "pool":
            return deployment.pool
        case _:
            return described.tags.get(dimension.removeprefix("tag:"), "")
