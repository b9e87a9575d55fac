"""Admin pages of prices, entered or proposed, with what they would change; and of past periods that are reckoned again."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import action

from audit.actors import Actor
from audit.admin_base import AppendOnlyAdmin, ReadOnlyAdmin, ReasonForm, TollgateStackedInline, button, coloured
from audit.csv_export import csv_response
from audit.filters import PeriodFilter
from budgets import rerate
from budgets.impact import impact_of, impact_of_proposal
from routing import catalogue, services
from routing.price_models import PRICE_RATES, Price, PriceProposal, PriceTier, Rerate
from teams.models import Team

# The name of a button of the form of a price.
PREVIEW = "_preview"
# On the list; the page of a proposal has all of them.
CHANGES_NAMED = 3
STATE_COLOURS = {
    "proposed": "warning",
    "approved": "success",
    "applied": "success",
    "rejected": "danger",
    "outdated": "info",
}


class PriceTierInline(TollgateStackedInline):
    model = PriceTier
    verbose_name_plural = "other tiers, and long contexts"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("service_tier", "above_input_tokens", "percent"),
                    ("input", "output"),
                    ("cached_input", "reasoning"),
                    ("cache_write", "cache_write_1h"),
                )
            },
        ),
        (
            "Sound, pictures, and each",
            {
                "classes": ("collapse",),
                "fields": (
                    ("input_audio", "output_audio"),
                    ("input_image", "output_image"),
                    ("per_request", "per_unit"),
                    ("per_tool_call", "per_search"),
                ),
            },
        ),
    )
    tab = False


class PriceForm(ReasonForm):
    """With the button *Preview* it is looked at and never saved: the page comes back as it was filled in."""

    def is_valid(self) -> bool:
        return super().is_valid() and PREVIEW not in self.data


@admin.register(Price)
class PriceAdmin(AppendOnlyAdmin):
    form = PriceForm
    change_form_before_template = "admin/price_preview.html"
    empty_text = (
        "A price says what a model costs at a provider from a moment on; without one its requests are refused. "
        "Add one, or approve what is proposed from the catalogue."
    )
    list_display = (
        "model",
        "where",
        "currency",
        "input_rate",
        "cached_input_rate",
        "output_rate",
        "other_rates",
        "effective_from",
    )
    export_columns = (
        "model",
        "provider",
        "deployment",
        "currency",
        *PRICE_RATES,
        "batch_percent",
        "geo_percent",
        "other_rates",
        "effective_from",
    )
    list_select_related = ("model", "provider", "deployment")
    list_filter = (
        ("model", AutocompleteSelectFilter),
        ("provider", AutocompleteSelectFilter),
        ("effective_from", PeriodFilter),
    )
    list_filter_submit = True
    search_fields = ("model__name", "provider__name")
    ordering = ("-effective_from",)
    autocomplete_fields = ("model", "provider", "deployment")
    inlines = (PriceTierInline,)
    fieldsets = (
        (None, {"fields": ("model", "provider", "deployment", "effective_from")}),
        (
            "Per 1,000,000 tokens, in the provider's currency",
            {"fields": ("input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning")},
        ),
        (
            "Per 1,000,000 tokens of sound and pictures",
            {"fields": ("input_audio", "output_audio", "input_image", "output_image")},
        ),
        ("Each", {"fields": ("per_request", "per_tool_call", "per_search", "per_unit")}),
        ("Otherwise", {"fields": ("batch_percent", "geo_percent")}),
    )

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("tiers")

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if object_id is None:
            preview = {"action_name": PREVIEW, "description": "Preview the last 30 days", "icon": "difference"}
            extra_context = {"actions_submit_line": [preview]} | (extra_context or {})
        return super().changeform_view(request, object_id, form_url, extra_context)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        if PREVIEW in request.POST and not context["errors"]:
            tiers = [row for one in context["inline_admin_formsets"] for row in one.formset.save(commit=False)]
            context["impact"] = impact_of(request.user, context["adminform"].form.instance, tiers, timezone.now())
        response: HttpResponse = super().render_change_form(request, context, *args, **kwargs)
        return response

    @admin.display(description="at", ordering="provider")
    def where(self, price: Price) -> str:
        return price.deployment.name if price.deployment is not None else price.provider.name

    @admin.display(description="currency")
    def currency(self, price: Price) -> str:
        return price.provider.currency

    @admin.display(description="input", ordering="input")
    def input_rate(self, price: Price) -> str:
        return f"{price.input.normalize():f}"

    @admin.display(description="cached input", ordering="cached_input")
    def cached_input_rate(self, price: Price) -> str:
        return f"{price.cached_input.normalize():f}"

    @admin.display(description="output", ordering="output")
    def output_rate(self, price: Price) -> str:
        return f"{price.output.normalize():f}"

    @admin.display(description="other rates")
    def other_rates(self, price: Price) -> str:
        """What else there is, by name: the page of the price has the amounts."""
        return "; ".join(str(tier) for tier in price.tiers.all())


@admin.register(PriceProposal)
class PriceProposalAdmin(ReadOnlyAdmin):
    empty_text = (
        "Once a day the catalogue is compared with the prices here, and what differs is proposed, for a person to "
        "approve. “Compare with the catalogue” does it now."
    )
    list_display = ("model", "provider", "changes", "shown_state", "source", "effective_from", "created_at")
    list_select_related = ("model", "provider")
    list_filter = ("state", ("provider", AutocompleteSelectFilter))
    list_filter_submit = True
    search_fields = ("model__name", "provider__name")
    ordering = ("-created_at",)
    actions: Sequence[Any] = ("approve_selected", "reject_selected", "export_csv")
    actions_list = ("compare",)
    actions_detail = ("approve", "reject")
    fieldsets = (
        (
            None,
            {"fields": ("model", "provider", "shown_state", "source", "effective_from", "decided_by", "decided_at")},
        ),
        ("What changes", {"fields": ("shown_differences", "shown_impact", "shown_remarks")}),
    )
    readonly_fields = ("shown_state", "shown_differences", "shown_impact", "shown_remarks")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """With who looks at it: what it would have cost is told of their teams."""
        proposal: Any = super().get_object(request, object_id, from_field)
        if proposal is not None:
            proposal.viewer = request.user
        return proposal

    def has_decide_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("routing.change_priceproposal"))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        proposal = self.get_object(request, object_id)
        is_open = proposal is not None and proposal.state == PriceProposal.State.PROPOSED
        return super().get_actions_detail(request, object_id) if is_open else []

    @admin.display(description="changes")
    def changes(self, proposal: PriceProposal) -> str:
        if all(before is None for _, before, _ in proposal.differences):
            return "first price"
        named = [f"{what}: {before or 'none'} → {after or 'none'}" for what, before, after in proposal.differences]
        more = len(named) - CHANGES_NAMED
        return ", ".join(named[:CHANGES_NAMED]) + (f", and {more} more" if more > 0 else "")

    @coloured("state", STATE_COLOURS)
    def shown_state(self, proposal: PriceProposal) -> str:
        return proposal.state

    @admin.display(description="rates")
    def shown_differences(self, proposal: PriceProposal) -> SafeString:
        return render_to_string("admin/price_differences.html", {"differences": proposal.differences})

    @admin.display(description="the last 30 days at this price")
    def shown_impact(self, proposal: Any) -> SafeString:
        impact = impact_of_proposal(proposal.viewer, proposal, timezone.now())
        return render_to_string("admin/price_impact.html", {"impact": impact})

    @admin.display(description="left out")
    def shown_remarks(self, proposal: PriceProposal) -> str:
        return "; ".join(proposal.remarks) or "nothing"

    @action(description="Compare with the catalogue", icon="difference", permissions=["decide"])  # type: ignore[untyped-decorator]
    def compare(self, request: HttpRequest) -> HttpResponse:
        if not self.has_decide_permission(request):
            raise PermissionDenied
        proposed = services.compare_with_catalogue(timezone.now())
        added = services.propose_prices(proposed, source=catalogue.source(), actor=Actor.from_request(request))
        self.message_user(request, f"{len(added)} prices are proposed.", messages.SUCCESS)
        return HttpResponseRedirect(reverse(self._url_name("changelist")))

    @admin.action(description="Approve selected…", permissions=["decide"])
    def approve_selected(self, request: HttpRequest, queryset: QuerySet[PriceProposal]) -> HttpResponse | None:
        return self.confirm(
            request,
            queryset,
            verb="Approve",
            warning="Each becomes the price in force, from its day on, and not before now.",
            perform=services.approve_proposal,
            action_name="approve_selected",
        )

    @admin.action(description="Reject selected…", permissions=["decide"])
    def reject_selected(self, request: HttpRequest, queryset: QuerySet[PriceProposal]) -> HttpResponse | None:
        return self.confirm(
            request,
            queryset,
            verb="Reject",
            warning="The prices in force stay. The same rates are not proposed again.",
            perform=services.reject_proposal,
            action_name="reject_selected",
        )

    @button("Approve", icon="check", permissions=("decide",))
    def approve(self, request: HttpRequest, object_id: str) -> HttpResponse:
        warning = "This becomes the price in force, from its day on, and not before now."
        return self.confirm_one(request, object_id, verb="Approve", warning=warning, perform=services.approve_proposal)

    @button("Reject", icon="close", permissions=("decide",), hurts=True)
    def reject(self, request: HttpRequest, object_id: str) -> HttpResponse:
        warning = "The price in force stays. The same rates are not proposed again."
        return self.confirm_one(request, object_id, verb="Reject", warning=warning, perform=services.reject_proposal)


@admin.register(Rerate)
class RerateAdmin(AppendOnlyAdmin):
    empty_text = (
        "A re-rate reckons a past period again, at the price, discount or exchange rate of the invoice. Add one; "
        "once somebody else approves it, the ledger is corrected by further entries."
    )
    list_display = (
        "provider",
        "model",
        "starts_at",
        "ends_at",
        "shown_state",
        "note",
        "difference",
        "asked_by",
        "decided_by",
    )
    list_select_related = ("provider", "model")
    list_filter = ("state", ("provider", AutocompleteSelectFilter))
    list_filter_submit = True
    ordering = ("-created_at",)
    autocomplete_fields = ("provider", "model", "price")
    actions_detail = ("approve", "reject", "report")
    asked = ("provider", "model", "starts_at", "ends_at", "price", "discount_percent", "usd_per_unit", "note")
    decided = ("shown_state", "asked_by", "decided_by", "applied_at", "shown_summary")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        asked = (None, {"fields": self.asked})
        return (asked,) if obj is None else (asked, ("What it changes", {"fields": self.decided}))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else (*self.asked, *self.decided)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """It concerns every team: who does not see them all would not see it either."""
        user: Any = request.user
        return bool(super().has_add_permission(request) and user.sees_all_teams)

    def has_decide_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("routing.change_rerate"))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        row = self.get_object(request, object_id)
        is_open = row is not None and row.state == Rerate.State.PROPOSED
        buttons = super().get_actions_detail(request, object_id)
        return buttons if is_open else [one for one in buttons if one.action_name == "report"]

    def perform_create(self, obj: Any, form: Any, actor: Actor, reason: str) -> None:
        fields = {name: getattr(obj, name) for name in ("model", "price", "discount_percent", "usd_per_unit", "note")}
        asked = services.ask_for_rerate(obj.provider, obj.starts_at, obj.ends_at, actor=actor, **fields)
        obj.pk, obj._state.adding = asked.pk, False

    @coloured("state", STATE_COLOURS)
    def shown_state(self, row: Rerate) -> str:
        return row.state

    @admin.display(description="difference (USD)")
    def difference(self, row: Rerate) -> str:
        return f"{row.after_usd - row.before_usd:+,.2f}" if row.state == Rerate.State.APPLIED else ""

    @admin.display(description="difference")
    def shown_summary(self, row: Rerate) -> SafeString:
        summary = rerate.summarize(row)
        names = Team.objects.filter(pk__in=summary.by_team).values_list("pk", "name")
        teams = {str(pk): name for pk, name in names}
        groups = [
            (title, [(names.get(name, name), before, after) for name, (before, after) in sums.items()])
            for title, sums, names in (("By model", summary.by_model, {}), ("By team", summary.by_team, teams))
        ]
        return render_to_string("admin/rerate_summary.html", {"summary": summary, "groups": groups})

    @button("Approve", icon="check", permissions=("decide",))
    def approve(self, request: HttpRequest, object_id: str) -> HttpResponse:
        warning = "Entries that correct the cost of each record are added to the ledger. Nothing is edited, and nothing undone."
        return self.confirm_one(
            request,
            object_id,
            verb="Approve",
            warning=warning,
            perform=partial(services.decide_rerate, is_approved=True),
        )

    @button("Reject", icon="close", permissions=("decide",), hurts=True)
    def reject(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="Reject",
            warning="The ledger stays as it is.",
            perform=partial(services.decide_rerate, is_approved=False),
        )

    @button("Report (CSV)", icon="download", permissions=("view",))
    def report(self, request: HttpRequest, object_id: str) -> Any:
        row = self.get_object(request, object_id)
        if row is None or not self.has_view_permission(request, row):
            raise PermissionDenied
        return csv_response(f"rerate-{row.pk}", rerate.REPORT_HEADER, rerate.report_lines(row))
