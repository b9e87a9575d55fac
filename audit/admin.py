"""The admin page of the audit: who changed what, from where, and why. Read-only, as the table is."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from unfold.contrib.filters.admin import ChoicesDropdownFilter

from audit.admin_base import ReadOnlyAdmin, differences
from audit.filters import ExactFilter, PeriodFilter
from audit.models import AuditEntry


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    empty_text = "Whatever is changed is on record here: by whom, from where, and why."
    list_display = ("at", "actor_name", "action", "object_type", "object_name", "reason", "ip")
    list_filter = (
        ("at", PeriodFilter),
        ("actor_kind", ChoicesDropdownFilter),
        ("actor_name", ExactFilter),
        ("action", ExactFilter),
        ("object_type", ExactFilter),
        ("object_id", ExactFilter),
    )
    list_filter_submit = True
    ordering = ("-id",)
    sortable_by = ()
    fields = (
        "at",
        "actor_name",
        "actor_kind",
        "actor_id",
        "ip",
        "action",
        "object_type",
        "object_id",
        "object_name",
        "reason",
    )
    change_form_outer_after_template = "admin/tollgate/entry_differences.html"

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        entry = self.get_object(request, object_id or "")
        shown = {"differences": differences(entry) if entry else [], "show_history": False}
        response: HttpResponse = super().changeform_view(
            request, object_id, form_url, {**(extra_context or {}), **shown}
        )
        return response
