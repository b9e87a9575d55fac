"""Admin pages of the ledger of usage records."""

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from unfold.contrib.filters.admin import ChoicesDropdownFilter, DropdownFilter

from audit.admin_base import EstimatingPaginator, ReadOnlyAdmin, coloured
from audit.filters import ExactFilter, PeriodFilter, TagFilter
from audit.models import UsageRecord
from budgets.receipt import attempts_of, receipt_of
from keys.models import VirtualKey
from teams.models import Project, Team

# Further on each page costs as much as all before it; who looks for something that old narrows the period.
LEDGER_PAGES_MAX = 200
EXPORT_ROWS_MAX = 100_000


class TeamFilter(DropdownFilter):  # type: ignore[misc]
    title = "team"
    parameter_name = "team"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        teams = Team.objects.for_user(request.user).order_by("name")
        return [(str(pk), name) for pk, name in teams.values_list("pk", "name")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        chosen = {value for value, _ in self.lookup_choices}
        return queryset.filter(team_id=self.value()) if self.value() in chosen else queryset


class LedgerPaginator(EstimatingPaginator):
    @property
    def num_pages(self) -> int:
        return min(super().num_pages, LEDGER_PAGES_MAX)


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin):
    """The ledger. It knows its subjects by id; their names are looked up for the page that is shown."""

    empty_text = (
        "Each call to a provider is on record here within seconds, with what was used and what it cost. Send a "
        "request with a virtual key for the first."
    )
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
        ("kind", ChoicesDropdownFilter),
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
