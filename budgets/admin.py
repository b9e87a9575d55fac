"""Admin pages of budgets, limits and the ledger of usage records."""

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesDropdownFilter,
    DropdownFilter,
)

from audit.actors import Actor
from audit.admin_base import ReadOnlyAdmin, ReasonForm, TollgateAdmin, coloured
from audit.filters import ExactFilter, PeriodFilter
from audit.models import UsageRecord
from budgets import services
from budgets.models import Budget, Limit, Scope
from keys.models import VirtualKey
from teams.models import Project, Team

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


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin):
    """The ledger. It knows its subjects by id; their names are looked up for the page that is shown."""

    list_display = (
        "admitted_at",
        "team",
        "project",
        "virtual_key",
        "alias",
        "model",
        "provider",
        "state_label",
        "status_code",
        "input_tokens",
        "output_tokens",
        "cost_usd",
        "latency_ms",
    )
    list_filter = (
        ("admitted_at", PeriodFilter),
        TeamFilter,
        ("state", ChoicesDropdownFilter),
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
    ordering = ("-admitted_at", "-attempt_id")
    sortable_by = ()

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

    @coloured("state", {"posted": "success", "voided": "info", "suspense": "warning"})
    def state_label(self, record: UsageRecord) -> str:
        return record.state


def _name(model: Any, column: str) -> Subquery:
    return Subquery(model.objects.filter(pk=OuterRef(column)).values("name")[:1])
