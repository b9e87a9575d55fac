"""The pages of the ledger: the receipt of a request, whether the books close, and what is in suspense. Parse, authorize, ask, show."""

import uuid
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Count, Min, Sum
from django.http import Http404, HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from audit.actors import Actor
from audit.admin_base import REASON_LENGTH_MAX
from audit.models import UsageRecord
from audit.querysets import WRITERS
from budgets import suspense
from budgets.ledger_models import Drift, SuspenseResolution, Verification
from budgets.receipt import receipt_of_request
from controlplane.views import signed_in
from teams.models import Team

VIEW_RECORDS, VIEW_VERIFICATIONS = "audit.view_usagerecord", "budgets.view_verification"
PROPOSE, DECIDE = "budgets.add_suspenseresolution", "budgets.change_suspenseresolution"
SUSPENSE_ROWS, DRIFT_ROWS, RUN_ROWS, RESOLVED_ROWS = 200, 200, 20, 20
# The verifier runs each minute; one that has missed two is not to be relied on.
LATE = timedelta(minutes=3)


@signed_in(VIEW_RECORDS)
@require_GET
def receipt_page(request: HttpRequest, request_id: uuid.UUID) -> HttpResponseBase:
    receipt = receipt_of_request(request_id, UsageRecord.objects.for_user(request.user))
    if receipt is None:
        raise Http404
    return _page(request, "Receipt", "admin/receipt.html", receipt=receipt, request_id=request_id)


@signed_in(VIEW_VERIFICATIONS)
@require_GET
def books_page(request: HttpRequest) -> HttpResponseBase:
    """Rows and counters of every team, so only for who sees them all."""
    if not request.user.sees_all_teams:  # type: ignore[union-attr]
        raise PermissionDenied
    runs = list(Verification.objects.all()[:RUN_ROWS])
    return _page(
        request,
        "Books",
        "admin/books.html",
        last=runs[0] if runs else None,
        is_late=not runs or runs[0].at < timezone.now() - LATE,
        runs=runs,
        open=Drift.objects.filter(closed_at=None)[:DRIFT_ROWS],
        closed=Drift.objects.exclude(closed_at=None).order_by("-closed_at")[:RUN_ROWS],
        suspense=suspended(UsageRecord.objects.all()),
    )


class Suspended(NamedTuple):
    """All that is in suspense, together. `since` is None where nothing is."""

    records: int
    held_usd: Decimal
    since: datetime | None


def suspended(records: Any) -> Suspended:
    found = records.filter(state=UsageRecord.State.SUSPENSE).aggregate(
        records=Count("pk"), held_usd=Sum("cost_usd"), since=Min("admitted_at")
    )
    return Suspended(found["records"], found["held_usd"] or Decimal(0), found["since"])


@signed_in(VIEW_RECORDS)
@require_GET
def suspense_page(request: HttpRequest) -> HttpResponseBase:
    visible = UsageRecord.objects.for_user(request.user)
    oldest = list(visible.filter(state=UsageRecord.State.SUSPENSE).order_by("admitted_at")[:SUSPENSE_ROWS])
    proposals = SuspenseResolution.objects.filter(attempt_id__in=[record.pk for record in oldest]).exclude(
        is_approved=False
    )
    by_attempt = {proposal.attempt_id: proposal for proposal in proposals}
    names = dict(Team.objects.filter(pk__in={record.team_id for record in oldest}).values_list("pk", "name"))
    return _page(
        request,
        "In suspense",
        "admin/suspense.html",
        total=suspended(visible),
        rows=[(record, names.get(record.team_id, ""), by_attempt.get(record.pk)) for record in oldest],
        resolved=SuspenseResolution.objects.for_user(request.user).exclude(is_approved=None)[:RESOLVED_ROWS],
    )


class ProposalForm(forms.Form):
    cost_usd = forms.DecimalField(label="Cost in USD", min_value=0, max_digits=20, decimal_places=9)
    reason = forms.CharField(label="Why?", max_length=REASON_LENGTH_MAX)


class DecisionForm(forms.Form):
    is_approved = forms.TypedChoiceField(choices=[("yes", "yes"), ("no", "no")], coerce=lambda word: word == "yes")
    note = forms.CharField(label="Why?", max_length=REASON_LENGTH_MAX)


@signed_in(VIEW_RECORDS)
@require_http_methods(["GET", "HEAD", "POST"])
def resolve_page(request: HttpRequest, attempt_id: uuid.UUID) -> HttpResponseBase:
    """One attempt in suspense: what is known of it, and the proposal of what it has cost."""
    record = get_object_or_404(UsageRecord.objects.for_user(request.user), pk=attempt_id)
    if request.method == "POST":
        _check_may(request, PROPOSE, record.team_id)
        form = ProposalForm(request.POST)
        if form.is_valid():
            actor = Actor.from_request(request)
            try:
                suspense.propose(record, form.cleaned_data["cost_usd"], actor=actor, reason=form.cleaned_data["reason"])
            except ValidationError as error:
                form.add_error(None, error.messages)
            else:
                messages.success(request, "Proposed. Somebody else approves it now.")
                return HttpResponseRedirect(request.path)
    else:
        form = ProposalForm()
    proposal = SuspenseResolution.objects.filter(attempt_id=attempt_id).exclude(is_approved=False).first()
    return _page(
        request,
        "In suspense",
        "admin/suspense_resolve.html",
        record=record,
        form=form,
        proposal=proposal,
        may_propose=_may(request, PROPOSE, record.team_id),
        may_decide=_may(request, DECIDE, record.team_id),
        is_own=proposal is not None and proposal.proposed_by_id == str(request.user.pk),
    )


@signed_in(VIEW_RECORDS)
@require_POST
def decide_resolution(request: HttpRequest, resolution_id: uuid.UUID) -> HttpResponseBase:
    resolution = get_object_or_404(SuspenseResolution.objects.for_user(request.user), pk=resolution_id)
    form = DecisionForm(request.POST)
    is_own = resolution.proposed_by_id == str(request.user.pk)
    takes_back = form.is_valid() and not form.cleaned_data["is_approved"] and is_own
    _check_may(request, PROPOSE if takes_back else DECIDE, resolution.team_id)
    if not form.is_valid():
        messages.error(request, "Say yes or no, and why.")
        return HttpResponseRedirect(reverse("suspense-resolve", args=[resolution.attempt_id]))
    try:
        suspense.decide(resolution, actor=Actor.from_request(request), **form.cleaned_data)
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
    else:
        done = "Approved: the ledger has it within seconds." if form.cleaned_data["is_approved"] else "Rejected."
        messages.success(request, done)
    return HttpResponseRedirect(reverse("suspense-resolve", args=[resolution.attempt_id]))


def _may(request: HttpRequest, permission: str, team_id: uuid.UUID) -> bool:
    user: Any = request.user
    return user.has_perm(permission) and (user.sees_all_teams or team_id in set(user.team_ids(WRITERS)))


def _check_may(request: HttpRequest, permission: str, team_id: uuid.UUID) -> None:
    if not _may(request, permission, team_id):
        raise PermissionDenied


def _page(request: HttpRequest, title: str, template: str, **context: Any) -> TemplateResponse:
    return TemplateResponse(request, template, admin.site.each_context(request) | {"title": title} | context)
