"""Admin pages of budgets, limits and the ledger of usage records."""

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesDropdownFilter,
    DropdownFilter,
    TextFilter,
)

from audit.actors import Actor
from audit.admin_base import EstimatingPaginator, ReadOnlyAdmin, ReasonForm, TollgateAdmin, coloured
from audit.filters import ExactFilter, PeriodFilter
from audit.models import UsageRecord
from budgets import services
from budgets.models import Budget, Limit, Scope
from budgets.receipt import attempts_of, receipt_of
from keys.models import VirtualKey
from teams.models import Project, Team

# Further on each page costs as much as all before it; who looks for something that old narrows the period.
LEDGER_PAGES_MAX = 200
EXPORT_ROWS_MAX = 100_000
SUBJECT_FIELDS = {"team": Scope.TEAM, "project": Scope.PROJECT, "virtual_key": Scope.KEY}


class SubjectForm(ReasonForm):
    """The scope follows from the subject that is named."""

    def clean(self) -> Any:
        cleaned = super().clean() or {}
        named = [scope for field, scope in SUBJECT_FIELDS.items() if cleaned.get(field) is not None]
        if self.instance._state.adding and len(named) == 1:
            self.instance.scope = named[0]
        return cleaned

    def _get_validation_exclusions(self) -> set[str]:
        # The scope is no field here, but it is set by now, so the constraints that name it can be checked.
        excluded: set[str] = super()._get_validation_exclusions()  # type: ignore[misc]
        return excluded - {"scope"} if self.instance.scope else excluded


class SubjectRuleAdmin(TollgateAdmin):
    form = SubjectForm
    list_select_related = ("team", "project__team", "virtual_key__project__team")
    list_filter_submit = True
    ordering = ("-id",)
    autocomplete_fields = ("team", "project", "virtual_key")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else tuple(SUBJECT_FIELDS)

    @admin.display(description="for")
    def subject(self, rule: Budget | Limit) -> str:
        return str(rule.subject)

    def perform_create(self, obj: Any, form: Any, actor: Actor, reason: str) -> None:
        services.create_rule(obj, actor=actor, reason=reason)

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        services.change_rule(obj, actor=actor, reason=reason, values=values)

    def perform_remove(self, obj: Any, actor: Actor, reason: str) -> None:
        services.remove_rule(obj, actor=actor, reason=reason)


@admin.register(Budget)
class BudgetAdmin(SubjectRuleAdmin):
    list_display = ("name", "scope", "subject", "window", "amount_usd", "is_hard", "is_active")
    list_filter = (
        ("scope", ChoicesDropdownFilter),
        ("window", ChoicesDropdownFilter),
        "is_hard",
        "is_active",
        ("team", AutocompleteSelectFilter),
        ("project", AutocompleteSelectFilter),
        ("virtual_key", AutocompleteSelectFilter),
    )
    search_fields = ("name",)
    fields = ("name", "team", "project", "virtual_key", "window", "amount_usd", "is_hard", "is_active")


@admin.register(Limit)
class LimitAdmin(SubjectRuleAdmin):
    list_display = ("subject", "scope", "metric", "amount", "is_active")
    list_filter = (
        ("scope", ChoicesDropdownFilter),
        ("metric", ChoicesDropdownFilter),
        "is_active",
        ("team", AutocompleteSelectFilter),
        ("project", AutocompleteSelectFilter),
        ("virtual_key", AutocompleteSelectFilter),
    )
    fields = ("team", "project", "virtual_key", "metric", "amount", "is_active")


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
