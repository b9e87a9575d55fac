"""Admin pages of budgets and limits."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminSplitDateTimeWidget,
    UnfoldAdminTextareaWidget,
    UnfoldBooleanWidget,
)

from audit.actors import Actor
from audit.admin_base import TollgateChangeList, TollgateInline, button, coloured
from budgets import services
from budgets.counters import OBSERVED_DAYS, WindowSpend, spend_of, spends, spent_in_parts, would_have_refused
from budgets.models import SUBJECT_RELATED, Budget, Increase, Limit, Threshold, amount_text
from budgets.spend import in_whole_units, rows_of
from budgets.subject_admin import SubjectForm, SubjectRuleAdmin
from keys.redis import redis_client

INCREASES_SHOWN = 20


class BudgetForm(SubjectForm):
    # Not by the name of its column: the page's script would take it for the browser's window.
    each_window = forms.ChoiceField(
        label="Window",
        choices=Budget.Window.choices,
        initial=Budget.Window.MONTH,
        widget=UnfoldAdminSelectWidget,
        help_text=Budget._meta.get_field("window").help_text,
    )
    is_confirmed = forms.BooleanField(
        label="It may be used up with this",
        required=False,
        widget=forms.HiddenInput,
        help_text="Requests of whoever is over it are refused from now on.",
    )

    class Meta:
        model = Budget
        fields = ("name", "amount", "mode")

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if not self.instance._state.adding:
            self.initial["each_window"] = self.instance.window

    def clean(self) -> Any:
        cleaned = super().clean() or {}
        self.instance.window = cleaned.get("each_window") or ""
        if self.instance.window != Budget.Window.FIXED:
            cleaned["starts_at"] = cleaned["ends_at"] = None
        if not self.instance._state.adding and not self.errors and not cleaned.get("is_confirmed"):
            used_up = self._used_up(cleaned)
            if used_up:
                self.fields["is_confirmed"].widget = UnfoldBooleanWidget()
                self.add_error("is_confirmed", used_up)
        return cleaned

    def _used_up(self, cleaned: dict[str, Any]) -> str:
        """What a change would stop at once, "" where nothing."""
        stored = Budget.objects.get(pk=self.instance.pk)
        is_hard = cleaned.get("mode") == Budget.Mode.HARD and cleaned.get("is_active")
        was_hard = stored.mode == Budget.Mode.HARD and stored.is_active
        if not is_hard or (was_hard and cleaned["amount"] >= stored.amount):
            return ""
        window = spend_of(stored, timezone.now(), redis_client())
        (row,) = rows_of(Budget.objects.filter(pk=stored.pk))
        changed = row._replace(mode=Budget.Mode.HARD, amount=in_whole_units(cleaned["amount"], row.unit))
        cap = changed.cap(in_whole_units(window.increased_by, row.unit))
        over = [
            counter
            for counter in window.counters
            if in_whole_units(counter.spent + (counter.held or 0) - counter.rolled_over, row.unit) >= cap
        ]
        if not over:
            return ""
        used = amount_text(over[0].spent + (over[0].held or 0), stored.unit)
        who = f"{len(over)} of them have" if stored.each else "There is"
        return f"{who} {used} {'or less ' if len(over) > 1 else ''}used in this window already: confirm that it stops them."


class ThresholdInline(TollgateInline):
    model = Threshold
    fields = ("percent", "action", "per_minute", "alias")
    autocomplete_fields = ("alias",)
    tab = False


class BudgetChangeList(TollgateChangeList):
    """With what is spent of those on the page."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        shown = Budget.objects.filter(pk__in=[budget.pk for budget in self.result_list])
        found = {window.budget.pk: window for window in spends(shown, timezone.now(), redis_client())}
        for budget in self.result_list:
            budget.window_spend = found.get(budget.pk)


@admin.register(Budget)
class BudgetAdmin(SubjectRuleAdmin):
    form = BudgetForm
    inlines = (ThresholdInline,)
    empty_text = (
        "A budget caps what may be spent in an hour, a day, a month or another window, by whatever its subject "
        "names. Add one: for whom, and how much."
    )
    list_display = ("name", "subject", "amount_shown", "spent", "mode_label", "is_active")
    list_filter = (
        ("scope", ChoicesDropdownFilter),
        ("window", ChoicesDropdownFilter),
        ("mode", ChoicesDropdownFilter),
        ("unit", ChoicesDropdownFilter),
        "is_active",
        *SubjectRuleAdmin.subject_filters,
    )
    export_columns = (
        "name",
        "subject",
        "window",
        "unit",
        "amount",
        "mode",
        "rollover",
        "time_zone",
        "is_active",
        "created_at",
    )
    fieldsets = (
        *SubjectRuleAdmin.subject_fieldsets,
        (
            "How much",
            {
                "fields": (
                    "name",
                    "amount",
                    "unit",
                    "is_confirmed",
                    "each_window",
                    "starts_at",
                    "ends_at",
                    "mode",
                    "is_active",
                )
            },
        ),
        ("Calendar", {"fields": ("time_zone", "fiscal_month", "rollover"), "classes": ("collapse",)}),
    )
    conditional_fields: Any = SubjectRuleAdmin.conditional_fields | {
        "starts_at": "each_window == 'fixed'",
        "ends_at": "each_window == 'fixed'",
        "time_zone": "!['total', 'fixed'].includes(each_window)",
        "fiscal_month": "['quarter', 'year'].includes(each_window)",
        "rollover": "!['total', 'fixed'].includes(each_window)",
    }
    actions_detail = ("spend", "grant", "ask", "undo")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[TollgateChangeList]:
        return BudgetChangeList

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        super().perform_change(obj, values | {"window": form.cleaned_data["each_window"]}, form, actor, reason)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("subject", "unit")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Who may grant need not ask."""
        actions = super().get_actions_detail(request, object_id)
        may_grant = any(action.action_name.endswith("_grant") for action in actions)
        return [action for action in actions if not (may_grant and action.action_name.endswith("_ask"))]

    @admin.display(description="amount", ordering="amount")
    def amount_shown(self, budget: Budget) -> str:
        return f"{budget.amount_text} {budget.window_text}"

    @admin.display(description="this window")
    def spent(self, budget: Any) -> str:
        return render_to_string("admin/budgets/bar.html", {"window": budget.window_spend})

    @coloured("mode", {"hard": "success", "soft": "warning", "observe": "info"})
    def mode_label(self, budget: Budget) -> tuple[str, str]:
        return budget.mode, budget.mode

    def perform_row_create(self, row: Threshold, actor: Actor, reason: str) -> None:
        services.create_threshold(row, actor=actor, reason=reason)

    def perform_row_change(self, row: Threshold, values: dict[str, Any], actor: Actor, reason: str) -> None:
        services.change_threshold(row, actor=actor, reason=reason, values=values)

    def perform_row_remove(self, row: Threshold, actor: Actor, reason: str) -> None:
        services.remove_threshold(row, actor=actor, reason=reason)

    @button("Spend", icon="monitoring", permissions=("view",))
    def spend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """What is spent, held and left, now or in a window of the past."""
        budget = self.get_queryset(request).filter(pk=object_id).select_related(*SUBJECT_RELATED).first()
        if budget is None or not self.has_view_permission(request, budget):
            raise PermissionDenied
        now = timezone.now()
        at = min(_moment(request.GET.get("at", "")) or now, now)
        window = spend_of(budget, at, redis_client())
        refused = would_have_refused([budget], now, redis_client()).get(budget.pk)
        context = self._page_context(request, budget.name) | {
            "budget": budget,
            "window": window,
            "refused": None if refused is None else _refused_text(refused),
            "is_now": window.starts_at <= now and (window.ends_at is None or now < window.ends_at),
            "chart": _chart(budget, window, now),
            "before": window.starts_at - timedelta(seconds=1) if budget.window not in ("total", "fixed") else None,
            "after": window.ends_at if window.ends_at and window.ends_at <= now else None,
            "thresholds": budget.thresholds.select_related("alias"),
            "increases": budget.increases.exclude(state=Increase.State.REJECTED).order_by("-id")[:INCREASES_SHOWN],
            "now": now,
        }
        return TemplateResponse(request, "admin/budgets/spend.html", context)

    @button("Increase for a while", icon="trending_up")
    def grant(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._increase(request, object_id, "Increase for a while", services.grant_increase)

    @button("Ask for more", icon="front_hand", permissions=("view",))
    def ask(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._increase(request, object_id, "Ask for more", services.request_increase)

    def _increase(self, request: HttpRequest, object_id: str, verb: str, perform: Any) -> HttpResponse:
        budget = self.get_queryset(request).filter(pk=object_id).first()
        may = self.has_view_permission if perform is services.request_increase else self.has_change_permission
        if budget is None or not may(request, budget):
            raise PermissionDenied
        form = IncreaseForm(request.POST if request.method == "POST" else None, instance=Increase(budget=budget))
        if form.is_valid():
            try:
                increase = perform(budget, actor=Actor.from_request(request), **form.cleaned_data)
            except ValidationError as error:
                form.add_error(None, error.messages)
            else:
                self.message_user(request, f"{verb}: {increase}.", messages.SUCCESS)
                return HttpResponseRedirect(reverse("admin:budgets_budget_spend", args=[budget.pk]))
        context = self._page_context(request, f"{verb}: {budget.name}") | {"form": form, "budget": budget, "verb": verb}
        return TemplateResponse(request, "admin/budgets/increase.html", context)


class IncreaseForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Increase
        fields = ("amount", "starts_at", "ends_at", "reason")
        field_classes = {"starts_at": forms.SplitDateTimeField, "ends_at": forms.SplitDateTimeField}
        widgets = {
            "amount": UnfoldAdminDecimalFieldWidget,
            "starts_at": UnfoldAdminSplitDateTimeWidget,
            "ends_at": UnfoldAdminSplitDateTimeWidget,
            "reason": UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        }


class LimitForm(SubjectForm):
    class Meta:
        model = Limit
        fields = ("name", "metric", "amount")


class LimitChangeList(TollgateChangeList):
    """With what those on the page that only observe would have refused."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        refused = would_have_refused(self.result_list, timezone.now(), redis_client())
        for limit in self.result_list:
            limit.refused = refused.get(limit.pk)


@admin.register(Limit)
class LimitAdmin(SubjectRuleAdmin):
    form = LimitForm
    empty_text = (
        "A limit caps how fast: requests, tokens or money in a stretch of time, or requests at once. Add one: for "
        "whom, and how many."
    )
    list_display = ("__str__", "subject", "amount_shown", "mode_label", "would_have_refused", "is_active")
    list_filter = (
        ("scope", ChoicesDropdownFilter),
        ("metric", ChoicesDropdownFilter),
        "is_observed",
        "is_active",
        *SubjectRuleAdmin.subject_filters,
    )
    export_columns = (
        "name",
        "subject",
        "metric",
        "amount",
        "window_s",
        "burst",
        "is_observed",
        "is_active",
        "created_at",
    )
    fieldsets = (
        *SubjectRuleAdmin.subject_fieldsets,
        ("How much", {"fields": ("name", "metric", "amount", "window_s", "burst", "is_observed", "is_active")}),
    )
    conditional_fields: Any = SubjectRuleAdmin.conditional_fields | {
        "window_s": "metric != 'concurrency'",
        "burst": "metric != 'concurrency'",
    }
    actions_detail = ("undo",)

    @admin.display(description="at most", ordering="amount")
    def amount_shown(self, limit: Limit) -> str:
        return limit.amount_text

    @coloured("mode", {"enforced": "success", "observed": "info"})
    def mode_label(self, limit: Limit) -> tuple[str, str]:
        word = "observed" if limit.is_observed else "enforced"
        return word, word

    @admin.display(description="would have refused", empty_value="")
    def would_have_refused(self, limit: Any) -> str | None:
        return None if limit.refused is None else _refused_text(limit.refused)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[TollgateChangeList]:
        return LimitChangeList


def _refused_text(requests: int) -> str:
    return f"{requests:,} requests in the last {OBSERVED_DAYS} days"


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _chart(budget: Budget, window: WindowSpend, now: datetime) -> dict[str, Any]:
    """What the page's script draws: spent in each part of the window, and up to its end. Numbers: only pixels come of them."""
    parts = spent_in_parts(budget, window, now)
    cap = window.counters[0].cap if window.counters and not budget.each else None
    return {
        "unit": budget.unit,
        "starts": [start.isoformat() for start, _ in parts],
        "spent": [float(amount) for _, amount in parts],
        "cap": None if cap is None else float(cap),
        "thresholds": [] if cap is None else [threshold.percent for threshold in budget.thresholds.all()],
        "isLong": (parts[-1][0] - parts[0][0]).days > 1 if parts else False,
        "timeZone": window.zone,
    }
