"""Admin pages of budgets, limits and the ledger of usage records."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesDropdownFilter,
    DropdownFilter,
    TextFilter,
)
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminSplitDateTimeWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from audit.actors import Actor
from audit.admin_base import (
    EstimatingPaginator,
    ReadOnlyAdmin,
    ReasonForm,
    TollgateAdmin,
    TollgateChangeList,
    TollgateInline,
    button,
    coloured,
)
from audit.filters import ExactFilter, PeriodFilter
from audit.models import UsageRecord
from budgets import services
from budgets.counters import WindowSpend, refused_by_limit, spend_of, spends, spent_in_parts
from budgets.models import (
    DIMENSION_LABELS,
    OWNERS,
    SUBJECT_FIELDS,
    SUBJECT_RELATED,
    TAG,
    Budget,
    Increase,
    Limit,
    Threshold,
    amount_text,
)
from budgets.receipt import attempts_of, receipt_of
from keys.models import VirtualKey
from keys.redis import redis_client
from teams import tags
from teams.models import Project, Team

# Further on each page costs as much as all before it; who looks for something that old narrows the period.
LEDGER_PAGES_MAX = 200
EXPORT_ROWS_MAX = 100_000
INCREASES_SHOWN = 20
# What a rule is about, and the fields of its subject that say so. “Whatever fits” offers all of them.
ANYTHING = "anything"
ABOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "team": ("A team", ("team",)),
    "project": ("A project", ("project",)),
    "virtual_key": ("A virtual key", ("virtual_key",)),
    "end_user": ("Each end user of a project", ("project",)),
    "tag": ("A tag, such as customer=acme", ("team", "project", "tags")),
    "model": ("A model in a project", ("project", "model")),
    "provider": ("A provider", ("team", "provider")),
    "everybody": ("Everybody together", ()),
    ANYTHING: ("Whatever fits: choose any of it", (*SUBJECT_FIELDS.values(), "tags", "each_of", "each_tags")),
}
NARROWING = (
    "environment",
    "end_user",
    "tags",
    "alias",
    "model",
    "provider",
    "deployment",
    "pool",
    "each_of",
    "each_tags",
)
NOT_NAMED: dict[str, Any] = {"environment": "", "end_user": "", "tags": {}, "each_of": [], "each_tags": ""}
PRESET_EACH = {"end_user": ["end_user"]}


class TagsField(forms.CharField):
    """`customer=acme, feature=search`."""

    def __init__(self) -> None:
        super().__init__(
            required=False,
            widget=UnfoldAdminTextInputWidget,
            help_text="Requests that carry all of these, such as customer=acme, feature=search.",
        )

    def clean(self, value: Any) -> dict[str, str]:
        try:
            return dict(tags.parse_header(super().clean(value)))
        except tags.InvalidTags as error:
            raise ValidationError(str(error).removeprefix("x-tollgate-tags: ")) from error


class SubjectForm(ReasonForm):
    """Its subject as people choose it: first what it is about, then that, and no more. On a rule that is there, it is fixed."""

    about = forms.ChoiceField(
        label="For",
        choices=[(name, label) for name, (label, _) in ABOUT.items()],
        initial="team",
        widget=UnfoldAdminSelectWidget,
        required=False,
        help_text="It stays: a rule for somebody else is another rule.",
    )
    tags = TagsField()
    each_of = forms.MultipleChoiceField(
        label="the whole amount for each",
        choices=[(name, f"each {label}") for name, label in DIMENSION_LABELS.items()],
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="None: all of them share one amount.",
    )
    each_tags = forms.CharField(
        label="… and for each value of the tags",
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="Names of tags, separated by commas, such as customer.",
    )
    viewer: Any  # Set by the page.

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        for name in ("amount", "rollover", "burst"):
            if self.initial.get(name) is not None:
                self.initial[name] = f"{Decimal(self.initial[name]).normalize():f}"

    def clean(self) -> Any:
        cleaned = super().clean() or {}
        if not self.instance._state.adding:
            return cleaned
        about = cleaned.get("about") or ANYTHING
        for field in {*SUBJECT_FIELDS.values(), "tags", "each_of", "each_tags"}.difference(ABOUT[about][1]):
            cleaned[field] = NOT_NAMED.get(field)
        self._check_about(about, cleaned)
        each_tags = [name.strip() for name in (cleaned.get("each_tags") or "").split(",") if name.strip()]
        self.instance.tags = cleaned.get("tags") or {}
        self.instance.each = PRESET_EACH.get(about, [*cleaned["each_of"], *(f"{TAG}{name}" for name in each_tags)])
        for field in OWNERS.values():
            setattr(self.instance, field, cleaned.get(field))
        self.instance.scope = self.instance.own_scope()
        return cleaned

    def _check_about(self, about: str, cleaned: dict[str, Any]) -> None:
        needed = {"tag": ("tags",), "provider": ("provider",)}.get(about, ABOUT[about][1])
        for field in needed if about != ANYTHING else ():
            if not cleaned.get(field) and field not in self.errors:
                self.add_error(field, "Choose one.")
        if not any(cleaned.get(field) for field in OWNERS.values()) and not self.viewer.sees_all_teams:
            raise ValidationError(
                "Name a team, a project or a virtual key: only who sees every team sets what is for all."
            )

    def _get_validation_exclusions(self) -> set[str]:
        # They are no fields here, or others, but are set by now: the constraints that name them can be checked.
        excluded: set[str] = super()._get_validation_exclusions()  # type: ignore[misc]
        return excluded - {"scope", "each", "tags", "window"} if self.instance.scope else excluded


class SubjectRuleAdmin(TollgateAdmin):
    form: Any = SubjectForm
    list_select_related = SUBJECT_RELATED
    list_filter_submit = True
    ordering = ("-id",)
    autocomplete_fields = ("team", "project", "virtual_key", "alias", "model", "provider", "deployment", "pool")
    subject_fieldsets: Any = (
        (
            "For whom",
            {"fields": ("about", "team", "project", "virtual_key", *NARROWING)},
        ),
    )
    # Shown only where the subject that is chosen has them.
    conditional_fields: Any = {
        field: " || ".join(f"about == '{name}'" for name, (_, fields) in ABOUT.items() if field in fields)
        for field in (*SUBJECT_FIELDS.values(), "tags", "each_of", "each_tags")
    }

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None:
            return fieldsets
        return [("For whom", {"fields": ("subject",)}), *fieldsets[len(self.subject_fieldsets) :]]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("subject",)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        form.viewer = request.user
        return form

    @admin.display(description="for")
    def subject(self, rule: Budget | Limit) -> str:
        return rule.subject

    def perform_create(self, obj: Any, form: Any, actor: Actor, reason: str) -> None:
        services.create_rule(obj, actor=actor, reason=reason)

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        services.change_rule(obj, actor=actor, reason=reason, values=values)

    def perform_remove(self, obj: Any, actor: Actor, reason: str) -> None:
        services.remove_rule(obj, actor=actor, reason=reason)

    @button("Undo the last change", icon="undo")
    def undo(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="Undo the last change of",
            warning="What the last change set gets the values of before; see the history for which.",
            perform=lambda rule, actor, reason: services.undo_change(rule, actor=actor, reason=reason),
        )

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what would change something."""
        actions: list[Any] = super().get_actions_detail(request, object_id)
        rule = self.get_object(request, str(object_id))
        can_undo = rule is not None and services.last_change(rule) is not None
        return [action for action in actions if can_undo or not action.action_name.endswith("_undo")]


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
        less = stored.amount - cleaned["amount"]
        over = [counter for counter in window.counters if counter.spent + (counter.held or 0) >= counter.cap - less]
        if not over:
            return ""
        used = amount_text(over[0].spent + (over[0].held or 0), stored.unit)
        who = f"{len(over)} of them have" if stored.each else "There is"
        return f"{who} {used} {'or less ' if len(over) > 1 else ''}used in this window already: confirm that it stops them."


class SubjectTagFilter(TextFilter):  # type: ignore[misc]
    """Rules whose subject has the tag."""

    title = "tag (key=value)"
    parameter_name = "tag"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        key, separator, value = (self.value() or "").strip().partition("=")
        return queryset.filter(tags__contains={key: value}) if separator else queryset


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
    list_display = ("name", "subject", "amount_shown", "spent", "mode_label", "is_active")
    list_filter = (
        ("scope", ChoicesDropdownFilter),
        ("window", ChoicesDropdownFilter),
        ("mode", ChoicesDropdownFilter),
        ("unit", ChoicesDropdownFilter),
        "is_active",
        ("team", AutocompleteSelectFilter),
        ("project", AutocompleteSelectFilter),
        ("virtual_key", AutocompleteSelectFilter),
        ("model", AutocompleteSelectFilter),
        SubjectTagFilter,
    )
    search_fields = ("name",)
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
        context = self._page_context(request, budget.name) | {
            "budget": budget,
            "window": window,
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


@admin.register(Increase)
class IncreaseAdmin(ReadOnlyAdmin):
    """What was asked for and granted. Asking and granting start at the budget."""

    list_display = (
        "budget",
        "subject",
        "amount_shown",
        "starts_at",
        "ends_at",
        "state_label",
        "requested_by_name",
        "decided_by_name",
    )
    list_select_related = tuple(f"budget__{field}" for field in SUBJECT_RELATED)
    list_filter = (("state", ChoicesDropdownFilter), ("budget", AutocompleteSelectFilter))
    list_filter_submit = True
    ordering = ("-id",)
    fields = (
        "budget", "amount_shown", "starts_at", "ends_at", "reason", "state_label", "requested_by_name", "created_at",
        "decided_by_name", "decided_at", "note",
    )  # fmt: skip
    actions_detail = ("approve", "reject", "end")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    def has_decide_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("budgets.decide_increase")) and self._may_write(request, obj)

    def has_end_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("budgets.change_budget")) and self._may_write(request, obj)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what this user may do with it as it is."""
        increase = self.get_object(request, str(object_id))
        if increase is None:
            return []
        asker = services.identity(Actor.from_request(request))
        possible: set[str] = set()
        if increase.state == Increase.State.REQUESTED and increase.requested_by != asker:
            possible = {"approve", "reject"}
        elif increase.state == Increase.State.APPROVED and increase.ends_at > timezone.now():
            possible = {"end"}
        names = {f"budgets_increase_{verb}" for verb in possible}
        return [action for action in super().get_actions_detail(request, object_id) if action.action_name in names]

    @admin.display(description="for")
    def subject(self, increase: Increase) -> str:
        return increase.budget.subject

    @admin.display(description="amount", ordering="amount")
    def amount_shown(self, increase: Increase) -> str:
        return amount_text(increase.amount, increase.budget.unit)

    @coloured("state", {"approved": "success", "requested": "warning", "rejected": "danger"})
    def state_label(self, increase: Increase) -> tuple[str, str]:
        return increase.state, increase.get_state_display()

    @button("Approve", icon="check", permissions=("decide",))
    def approve(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="Approve",
            warning="It is added to the budget for its time. Whoever asked reads what you write here.",
            perform=lambda increase, actor, note: services.approve_increase(increase, actor=actor, note=note),
        )

    @button("Reject", icon="close", permissions=("decide",), hurts=True)
    def reject(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="Reject",
            warning="The budget stays as it is. Whoever asked reads what you write here.",
            perform=lambda increase, actor, note: services.reject_increase(increase, actor=actor, note=note),
        )

    @button("End it now", icon="stop", permissions=("end",), hurts=True)
    def end(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="End",
            warning="The budget goes back to its own amount; whoever has spent more is refused, if it is hard.",
            perform=lambda increase, actor, reason: services.end_increase(increase, actor=actor, reason=reason),
        )


class LimitForm(SubjectForm):
    class Meta:
        model = Limit
        fields = ("name", "metric", "amount")


class LimitChangeList(TollgateChangeList):
    """With what those on the page that only observe would have refused."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        refused = refused_by_limit(self.result_list, redis_client()) or {}
        for limit in self.result_list:
            limit.refused = refused.get(limit.pk)


@admin.register(Limit)
class LimitAdmin(SubjectRuleAdmin):
    form = LimitForm
    list_display = ("__str__", "subject", "amount_shown", "mode_label", "would_have_refused", "is_active")
    list_filter = (
        ("scope", ChoicesDropdownFilter),
        ("metric", ChoicesDropdownFilter),
        "is_observed",
        "is_active",
        ("team", AutocompleteSelectFilter),
        ("project", AutocompleteSelectFilter),
        ("virtual_key", AutocompleteSelectFilter),
        ("model", AutocompleteSelectFilter),
        SubjectTagFilter,
    )
    search_fields = ("name",)
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
        return None if limit.refused is None else f"{limit.refused:,} requests"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[TollgateChangeList]:
        return LimitChangeList


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


class TeamFilter(DropdownFilter):  # type: ignore[misc]
    title = "team"
    parameter_name = "team"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        teams = Team.objects.for_user(request.user).order_by("name")
        return [(str(pk), name) for pk, name in teams.values_list("pk", "name")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        chosen = {value for value, _ in self.lookup_choices}
        return queryset.filter(team_id=self.value()) if self.value() in chosen else queryset


class TagFilter(TextFilter):  # type: ignore[misc]
    """One tag, as `feature=search`; answered by the index on tags."""

    title = "tag (key=value)"
    parameter_name = "tag"

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        key, separator, value = (self.value() or "").strip().partition("=")
        return queryset.filter(tags__contains={key: value}) if separator else queryset


class LedgerPaginator(EstimatingPaginator):
    @property
    def num_pages(self) -> int:
        return min(super().num_pages, LEDGER_PAGES_MAX)


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin):
    """The ledger. It knows its subjects by id; their names are looked up for the page that is shown."""

    list_display = (
        "admitted_at",
        "team",
        "project",
        "virtual_key",
        "model",
        "provider",
        "state_label",
        "status_code",
        "tokens",
        "cost",
        "latency",
    )
    export_columns = ("team", "project", "virtual_key", *(field.name for field in UsageRecord._meta.concrete_fields))
    list_fullwidth = True
    list_filter = (
        ("admitted_at", PeriodFilter),
        TeamFilter,
        ("state", ChoicesDropdownFilter),
        ("environment", ExactFilter),
        TagFilter,
        ("model", ExactFilter),
        ("provider", ExactFilter),
        ("alias", ExactFilter),
        ("error_type", ExactFilter),
        ("project_id", ExactFilter),
        ("virtual_key_id", ExactFilter),
        ("request_id", ExactFilter),
        ("kill_switch_id", ExactFilter),
    )
    list_filter_submit = True
    paginator = LedgerPaginator
    ordering = ("-admitted_at", "-attempt_id")
    sortable_by = ()

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The record as a receipt: nothing about it is to be edited."""
        record = self.get_object(request, object_id or "")
        if record is None or request.method != "GET" or not self.has_view_permission(request, record):
            return super().changeform_view(request, object_id, form_url, extra_context)
        context = self._page_context(request, "Usage record") | {
            "record": record,
            "receipt": receipt_of(record),
            "attempts": attempts_of(record, request.user),
        }
        return TemplateResponse(request, "admin/usage_record.html", context)

    @admin.action(description=f"Export as CSV (the first {EXPORT_ROWS_MAX:,})", permissions=["view"])
    def export_csv(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> StreamingHttpResponse:
        return super().export_csv(request, queryset[:EXPORT_ROWS_MAX])

    def get_queryset(self, request: HttpRequest) -> Any:
        return (
            super()
            .get_queryset(request)
            .annotate(
                team_name=_name(Team, "team_id"),
                project_name=_name(Project, "project_id"),
                key_name=_name(VirtualKey, "virtual_key_id"),
            )
        )

    @admin.display(description="team")
    def team(self, record: Any) -> str:
        return str(record.team_name or record.team_id)

    @admin.display(description="project")
    def project(self, record: Any) -> str:
        return str(record.project_name or record.project_id)

    @admin.display(description="virtual key")
    def virtual_key(self, record: Any) -> str:
        return str(record.key_name or record.virtual_key_id)

    @admin.display(description="tokens in, out")
    def tokens(self, record: UsageRecord) -> str:
        return f"{record.input_tokens:,} · {record.output_tokens:,}"

    @admin.display(description="cost (USD)")
    def cost(self, record: UsageRecord) -> str:
        return f"{record.cost_usd:.9f}"

    @admin.display(description="ms")
    def latency(self, record: UsageRecord) -> str:
        return f"{record.latency_ms:,}"

    @coloured("state", {"posted": "success", "voided": "info", "suspense": "warning"})
    def state_label(self, record: UsageRecord) -> str:
        return record.state


def _name(model: Any, column: str) -> Subquery:
    return Subquery(model.objects.filter(pk=OuterRef(column)).values("name")[:1])
