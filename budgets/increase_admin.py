"""Admin pages of what budgets were increased by for a while, and of what was asked for."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter

from audit.actors import Actor
from audit.admin_base import ReadOnlyAdmin, button, coloured
from budgets import services
from budgets.models import SUBJECT_RELATED, Increase, amount_text


@admin.register(Increase)
class IncreaseAdmin(ReadOnlyAdmin):
    """What was asked for and granted. Asking and granting start at the budget."""

    empty_text = (
        "An increase adds to a budget for a while. Open a budget to grant one or to ask for it; what was asked "
        "for is approved here, by somebody else."
    )
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
            perform=services.approve_increase,
        )

    @button("Reject", icon="close", permissions=("decide",), hurts=True)
    def reject(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="Reject",
            warning="The budget stays as it is. Whoever asked reads what you write here.",
            perform=services.reject_increase,
        )

    @button("End it now", icon="stop", permissions=("end",), hurts=True)
    def end(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="End",
            warning="The budget goes back to its own amount; whoever has spent more is refused, if it is hard.",
            perform=services.end_increase,
        )
