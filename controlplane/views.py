"""The pages of the admin that belong to no model: the dashboard and the kill switch. Parse, authorize, ask, show.

Answers that must not be kept by anybody between are marked so.
"""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import wraps
from typing import Any, cast

import redis
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponseBase, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from audit import services as audit
from audit.actors import Actor
from audit.csv_export import csv_response
from budgets import gate
from controlplane import kill_board, workers
from controlplane.burn import burning
from controlplane.dashboard import (
    BREAKDOWN_ROWS,
    DIMENSIONS,
    FEATURE,
    NOT_WITH_TAGS,
    TAG_PREFIX,
    TOP_ROWS,
    Dimension,
    Question,
    Row,
    Usage,
    dimension_of,
)
from controlplane.periods import RANGES, named_period
from keys import services
from keys.kills import SCOPES
from keys.models import KillSwitch, VirtualKey
from keys.redis import redis_client
from routing.models import Model, ModelAlias, Provider
from teams.models import Project, Team

VIEW_USAGE = "budgets.view_usagehour"
VIEW_SWITCHES, THROW, LIFT = "keys.view_killswitch", "keys.add_killswitch", "keys.change_killswitch"
CHOICES_MAX = 500
REASON_LENGTH_MAX = 500
# A command that timed out may still be carried out.
NOT_CERTAIN = "Redis does not answer: whether it is thrown is not certain. Look below, and throw it again."

View = Callable[..., HttpResponseBase]


def signed_in(permission: str) -> Callable[[View], View]:
    """For staff who hold `permission`; others are sent to sign in, or refused."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.has_perm(permission):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return cast(View, admin.site.admin_view(never_cache(guarded)))

    return decorate


# The dashboard


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What the admin's home page shows, for the question in its URL."""
    if not request.user.has_perm(VIEW_USAGE):
        return context
    now = timezone.now()
    question = Question.parse(request.GET.dict(), now.date())
    usage = Usage(request.user, question)
    breakdown = usage.breakdown(question.dimension)
    return context | {
        "title": "Overview",
        "may_view_usage": True,
        "question": question,
        "total": usage.total,
        "compared": usage.compared(_spans(question, now)),
        "latency": usage.latency(),
        "breakdown": breakdown,
        "rest_usd": usage.total.cost_usd - sum(row.cost_usd for row in breakdown),
        "is_cut": len(breakdown) == BREAKDOWN_ROWS,
        "chart": _chart(usage, breakdown),
        "tops": _tops(usage, breakdown),
        "ranges": [(name, label, question.query(range=name)) for name, label in RANGES.items()],
        "groupings": _groupings(usage),
        "choices": _choices(request, question),
        "chips": _chips(request, question),
        "dropped": ", ".join(DIMENSIONS[name].title for name in question.dropped),
        "burns": burning(request.user, question, redis_client(), now),
        "workers": _worker_table(now) if _sees_everything(request) else None,
        "now": now,
    }


def _spans(question: Question, now: datetime) -> dict[str, Any]:
    periods = {"range": question.period} | {name: named_period(name, now.date()) for name in ("today", "month")}
    return {name: (period.so_far(now), period.before(now)) for name, period in periods.items()}


def _chart(usage: Usage, breakdown: list[Row]) -> dict[str, Any]:
    """What the page's script draws. Money as numbers: only pixels come of them."""
    buckets = usage.buckets
    is_by_tag = bool(usage.question.tag)
    return {
        "unit": usage.question.period.unit,
        "starts": [bucket.start.isoformat() for bucket in buckets if bucket.start],
        "spend": [
            {"name": series.name, "values": [float(cost) for cost in series.costs_usd]}
            for series in usage.series(breakdown)
        ],
        "requests": [bucket.requests for bucket in buckets],
        "errors": None if is_by_tag else [bucket.errors or 0 for bucket in buckets],
        "latency": None if is_by_tag else usage.latency_over_time(),
    }


def _tops(usage: Usage, breakdown: list[Row]) -> list[tuple[Dimension, list[Row], str]]:
    """The dearest of each dimension, with the query string that splits everything by it."""
    question = usage.question
    names = ["team", "project"] if question.tag else ["team", FEATURE, "project", "model", "key", "provider"]
    if any(getattr(question, name) for name in NOT_WITH_TAGS):
        names.remove(FEATURE)
    return [
        (
            dimension_of(name),
            breakdown[:TOP_ROWS] if name == question.by else usage.breakdown(dimension_of(name), TOP_ROWS),
            question.query(by=name),
        )
        for name in names
    ]


def _groupings(usage: Usage) -> list[tuple[str, str, bool]]:
    """Label, query string and whether it is the present one, of each way to split."""
    question = usage.question
    names = ["team", "project"] if question.tag else list(DIMENSIONS)
    tag_keys = [question.tag.partition("=")[0]] if question.tag else usage.tag_keys()
    names += [f"{TAG_PREFIX}{key}" for key in tag_keys]
    return [(dimension_of(name).title, question.query(by=name), name == question.by) for name in names]


def _choices(request: HttpRequest, question: Question) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Name, label and options of each select of the filter form."""
    teams = Team.objects.for_user(request.user).order_by("name").values_list("pk", "name")
    projects = Project.objects.for_user(request.user).order_by("team__name", "name")
    if question.team:
        projects = projects.filter(Q(team=question.team))
    selects: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("team", "Any team", [(str(pk), name) for pk, name in teams[:CHOICES_MAX]]),
        (
            "project",
            "Any project",
            [
                (str(pk), name if question.team else f"{team} / {name}")
                for pk, team, name in projects.values_list("pk", "team__name", "name")[:CHOICES_MAX]
            ],
        ),
        ("environment", "Any environment", [(value, str(label)) for value, label in Project.Environment.choices]),
    ]
    for name, model, column in (
        ("alias", ModelAlias, "name"),
        ("model", Model, "name"),
        ("provider", Provider, "slug"),
    ):
        values = model._default_manager.order_by(column).values_list(column, flat=True)[:CHOICES_MAX]
        selects.append((name, f"Any {name}", [(value, value) for value in values]))
    for name, _, options in selects:
        chosen = getattr(question, name)
        # It may be gone, or one of too many to list: the form must not lose it.
        if chosen and chosen not in dict(options):
            options.insert(0, (chosen, chosen))
    return selects


def _chips(request: HttpRequest, question: Question) -> list[tuple[str, str]]:
    """Filters that no select shows, each with the query string without it."""
    chips = []
    if question.key:
        virtual_key = VirtualKey.objects.for_user(request.user).filter(pk=question.key).first()
        chips.append((f"Virtual key: {virtual_key or question.key}", question.query(key="")))
    if question.tag:
        chips.append((question.tag.replace("=", " = ", 1), question.query(tag="")))
    return chips


def _sees_everything(request: HttpRequest) -> bool:
    return bool(cast(Any, request.user).sees_all_teams)


def _worker_table(now: datetime) -> dict[str, Any]:
    """The proxy's workers as Redis knows them; `error` where it does not answer."""
    client = redis_client()
    try:
        statuses, live = workers.statuses(client), set(workers.live_workers(client))
        published = int(cast("bytes | None", client.hget(gate.VERSIONS, "snapshot")) or 0)
        waiting = client.xlen(gate.USAGE)
    except redis.RedisError:
        return {"error": True}
    rows = [
        {
            "status": status,
            "is_live": status.worker in live,
            "is_current": status.snapshot_version == published,
            "backlog": max(0, status.journal_seq - status.ingested_seq),
            "seen_at": datetime.fromtimestamp(status.at_s, UTC),
        }
        for status in statuses
    ]
    return {
        "rows": rows,
        "published": published,
        "waiting": waiting,
        "is_in_force_everywhere": bool(live) and all(row["is_current"] for row in rows if row["is_live"]),
    }


@signed_in(VIEW_USAGE)
@require_GET
def usage_csv(request: HttpRequest) -> HttpResponseBase:
    """The breakdown as CSV: over time with `over_time=1`, else of the whole range."""
    question = Question.parse(request.GET.dict(), timezone.now().date())
    usage = Usage(request.user, question)
    is_over_time = request.GET.get("over_time") == "1"
    with transaction.atomic():
        audit.record(
            Actor.from_request(request),
            "export",
            object_type="budgets.usageday",
            object_name=f"usage: {question.query().removeprefix('?')}",
        )
    header = [question.dimension.name.removeprefix(TAG_PREFIX), "id", "requests", "errors", "tokens", "cost_usd"]
    name = f"usage-{question.period.first}-{question.period.last}"
    if is_over_time:
        return csv_response(name, [f"{question.period.unit} (UTC)", *header], _lines_over_time(usage))
    return csv_response(name, header, (_cells(row) for row in usage.every_row()))


def _lines_over_time(usage: Usage) -> Iterator[list[str]]:
    for start, row in usage.lines():
        yield [start.isoformat(), *_cells(row)]


def _cells(row: Row) -> list[str]:
    errors = "" if row.errors is None else str(row.errors)
    return [row.name, row.value, str(row.requests), errors, str(row.tokens), f"{row.cost_usd:f}"]


# The kill switch


@signed_in(VIEW_SWITCHES)
@require_GET
def kill_page(request: HttpRequest, kill_switch_id: uuid.UUID | None = None) -> HttpResponseBase:
    """Everything on one page: throw, what is in force, who has acknowledged, what was."""
    client = redis_client()
    problem = ""
    try:
        switches = kill_board.in_force(client, request.user, services.may_halt)
    except redis.RedisError:
        problem, switches = "Redis does not answer: nothing can be thrown or lifted until it does.", []
    shown = _shown(switches, request, kill_switch_id) if kill_switch_id else None
    if kill_switch_id and shown is None and not problem:
        raise Http404
    may_throw = request.user.has_perm(THROW)
    context = admin.site.each_context(request) | {
        "title": "Kill switch",
        "problem": problem,
        "switches": switches,
        "shown": shown,
        "history": kill_board.history(request.user),
        "scopes": _scopes(request) if may_throw else [],
        "may_lift": request.user.has_perm(LIFT),
        "preset": {"scope": request.GET.get("scope", ""), "target": request.GET.get("target", "")},
    }
    return TemplateResponse(request, "admin/kill_switch.html", context)


def _shown(switches: list[kill_board.Switch], request: HttpRequest, kill_switch_id: uuid.UUID) -> Any:
    for switch in switches:
        if switch.flag.kill_switch_id == str(kill_switch_id):
            return switch
    row = KillSwitch.objects.for_user(request.user).filter(pk=kill_switch_id).first()
    if row is None:
        return None
    name = kill_board.names_of([(row.scope, row.target)])[row.scope, row.target]
    return kill_board.Switch(flag=row.flag, name=name, is_in_force=False, may_lift=False, row=row)


SCOPE_TEXTS = {
    "global": ("Everything", "Every request of every team, at every provider.", "public_off"),
    "team": ("A team", "All projects and virtual keys of one team.", "groups"),
    "project": ("A project", "All virtual keys of one project.", "folder_off"),
    "key": ("A virtual key", "What one application sends.", "key_off"),
    "model": ("A model", "Whoever asks for it, wherever it is deployed.", "neurology"),
    "provider": ("A provider", "Nothing goes to it any more.", "cloud_off"),
}


def _scopes(request: HttpRequest) -> list[dict[str, str]]:
    """The buttons this user may press: who does not see every team stops only what is theirs."""
    allowed = SCOPES if _sees_everything(request) else ("team", "project", "key")
    return [
        {"name": scope, "title": SCOPE_TEXTS[scope][0], "text": SCOPE_TEXTS[scope][1], "icon": SCOPE_TEXTS[scope][2]}
        for scope in allowed
    ]


@signed_in(THROW)
@require_POST
def kill_throw(request: HttpRequest) -> HttpResponseBase:
    """Nothing is read from the database here but who asks: the flag must be up also while PostgreSQL is slow."""
    scope, target = request.POST.get("scope", ""), request.POST.get("target", "").strip()
    reason = request.POST.get("reason", "")[:REASON_LENGTH_MAX]
    if scope not in SCOPES:
        raise PermissionDenied
    try:
        target = services.checked_target(scope, target)
        if not services.may_halt(request.user, scope, target):
            raise PermissionDenied
        switch = services.throw_kill_switch(scope, target, reason=reason, actor=Actor.from_request(request))
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return HttpResponseRedirect(reverse("kill-switch"))
    except redis.RedisError:
        messages.error(request, NOT_CERTAIN)
        return HttpResponseRedirect(reverse("kill-switch"))
    return HttpResponseRedirect(reverse("kill-switch-thrown", args=[switch.pk]))


@signed_in(LIFT)
@require_POST
def kill_lift(request: HttpRequest, kill_switch_id: uuid.UUID) -> HttpResponseBase:
    reason = request.POST.get("reason", "")[:REASON_LENGTH_MAX]
    try:
        switches = kill_board.in_force(redis_client(), request.user, services.may_halt)
        switch = next((one for one in switches if one.flag.kill_switch_id == str(kill_switch_id)), None)
        if switch is None or not switch.may_lift:
            raise PermissionDenied
        services.lift_flag(switch.flag, reason=reason, actor=Actor.from_request(request))
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
    except redis.RedisError:
        messages.error(request, "Not lifted: Redis does not answer.")
    else:
        messages.success(request, f"Lifted: {switch.name}. Its traffic flows again.")
    return HttpResponseRedirect(reverse("kill-switch"))


@signed_in(VIEW_SWITCHES)
@require_GET
def kill_acks(request: HttpRequest, kill_switch_id: uuid.UUID) -> HttpResponseBase:
    """Who has acknowledged it; polled by the page."""
    if (
        not _sees_everything(request)
        and not KillSwitch.objects.for_user(request.user).filter(pk=kill_switch_id).exists()
    ):
        raise PermissionDenied
    try:
        return JsonResponse(kill_board.acknowledged(redis_client(), str(kill_switch_id)))
    except redis.RedisError:
        return JsonResponse({"error": "Redis does not answer."}, status=503)


@signed_in(THROW)
@require_GET
def kill_targets(request: HttpRequest) -> HttpResponseBase:
    """What could be stopped in a scope, for the page's search field."""
    found = kill_board.targets(request.user, request.GET.get("scope", ""), request.GET.get("q", ""))
    return JsonResponse({"targets": [target._asdict() for target in found]})


@signed_in(THROW)
@require_GET
def kill_reach(request: HttpRequest) -> HttpResponseBase:
    """How many requests run now that a switch would stop."""
    scope, target = request.GET.get("scope", ""), request.GET.get("target", "")
    try:
        target = services.checked_target(scope, target)
        if not services.may_halt(request.user, scope, target):
            raise PermissionDenied
        return JsonResponse(kill_board.reach(redis_client(), scope, target)._asdict())
    except ValidationError as error:
        return JsonResponse({"error": " ".join(error.messages)}, status=400)
    except redis.RedisError:
        return JsonResponse({"error": "Redis does not answer."}, status=503)
