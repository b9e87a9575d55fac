"""Admin pages of providers, models, prices, deployments and aliases."""

from datetime import UTC
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import action
from unfold.widgets import UnfoldAdminFileFieldWidget

from audit.actors import Actor
from audit.admin_base import AppendOnlyAdmin, ReasonField, TollgateAdmin, TollgateInline, button, choices_field
from routing import exchange_rates, services
from routing.apis import APIS
from routing.models import AliasTarget, Deployment, Model, ModelAlias, Operation, Provider
from routing.price_models import Contract, ContractTier, ExchangeRate, ExchangeRateFeed


@admin.register(Provider)
class ProviderAdmin(TollgateAdmin):
    empty_text = (
        "A provider serves models: a company's API, or a server of your own. Add one, then a credential for it."
    )
    list_display = ("name", "slug", "api", "base_url", "currency", "is_active")
    list_filter = ("is_active", "api", "currency")
    search_fields = ("name", "slug")
    ordering = ("name",)
    fieldsets = (
        (None, {"fields": ("name", "slug", "is_active")}),
        ("Where", {"fields": ("api", "base_url", "options", "may_be_private", "output_cap_field")}),
        ("Money", {"fields": ("currency", "passthrough_hold", "runs_on")}),
        ("Patience, in seconds", {"fields": ("connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s")}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("slug",)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "base_url":
            field.widget.attrs["placeholder"] = APIS["openai"].base_url
        return field


@admin.register(Model)
class ModelAdmin(TollgateAdmin):
    empty_text = (
        "A model is entered once, wherever it is deployed. Add one, then its price and a deployment of it at a "
        "provider."
    )
    list_display = ("name", "publisher", "operations", "context_window", "max_output_tokens", "is_active")
    list_filter = ("is_active", "publisher")
    search_fields = ("name", "publisher")
    ordering = ("name",)
    fields = (
        "name",
        "publisher",
        "operations",
        "context_window",
        "max_output_tokens",
        "output_is_visible",
        "is_active",
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("name",)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "operations":
            return choices_field(Operation.values, required=True)
        return super().formfield_for_dbfield(db_field, request, **kwargs)


class ImportForm(forms.Form):
    """A file of exchange rates, and why."""

    file = forms.FileField(
        widget=UnfoldAdminFileFieldWidget,
        help_text=f"CSV with the columns {', '.join(exchange_rates.COLUMNS)}; what is in the book stays as it is.",
    )
    reason = ReasonField()


@admin.register(ExchangeRate)
class ExchangeRateAdmin(AppendOnlyAdmin):
    empty_text = (
        "What a provider bills in another currency is told in US dollars at the exchange rate of the day. Add "
        "one, import a file, or add a feed. Where all bill in US dollars, none is needed."
    )
    list_display = ("currency", "usd_per_unit", "effective_from", "source")
    list_filter = ("currency", "source")
    search_fields = ("currency",)
    ordering = ("currency", "-effective_from")
    actions_list = ("import_csv",)

    @action(description="Import CSV…", icon="upload", permissions=["add"], url_path="import")  # type: ignore[untyped-decorator]
    def import_csv(self, request: HttpRequest) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = ImportForm(request.POST or None, request.FILES or None)
        if request.method == "POST" and form.is_valid():
            try:
                added = self._import(form, Actor.from_request(request))
            except exchange_rates.InvalidRates as error:
                form.add_error("file", str(error))
            except ValidationError as error:
                form.add_error("file", error.messages)
            else:
                self.message_user(request, f"{added} exchange rates were added.", messages.SUCCESS)
                return HttpResponseRedirect(reverse(self._url_name("changelist")))
        context = self._page_context(request, "Import exchange rates") | {"form": form}
        return TemplateResponse(request, "admin/exchange_rates_import.html", context)

    def _import(self, form: ImportForm, actor: Actor) -> int:
        file = form.cleaned_data["file"]
        if file.size > exchange_rates.BYTES_MAX:
            raise exchange_rates.InvalidRates(f"more than {exchange_rates.BYTES_MAX:,} bytes")
        rates = exchange_rates.read(file.read(), timezone.now())
        reason = form.cleaned_data["reason"]
        return len(services.import_exchange_rates(rates, source=file.name[:200], actor=actor, reason=reason))


@admin.register(ExchangeRateFeed)
class ExchangeRateFeedAdmin(TollgateAdmin):
    empty_text = (
        "A feed is a URL that exchange rates are fetched from, at once and then once a day. Add one where a provider bills in "
        "another currency than US dollars."
    )
    list_display = ("name", "url", "is_active", "fetched_at", "due_at", "problem")
    list_filter = ("is_active",)
    search_fields = ("name",)
    ordering = ("name",)
    fields = ("name", "url", "may_be_private", "is_active", "fetched_at", "due_at", "problem")
    readonly_fields = ("fetched_at", "due_at", "problem")
    actions_detail = ("fetch",)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        feed = self.get_object(request, str(object_id))
        return super().get_actions_detail(request, object_id) if feed is not None and feed.is_active else []

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        services.change_feed(obj, values=values, actor=actor, reason=reason)

    @button("Fetch now", icon="download")
    def fetch(self, request: HttpRequest, object_id: str) -> HttpResponse:
        warning = "Within seconds this page says when it was fetched, or what was the matter."
        return self.confirm_one(request, object_id, verb="Fetch", warning=warning, perform=services.fetch_feed_now)


class ContractTierInline(TollgateInline):
    model = ContractTier
    verbose_name_plural = "discounts by the month's spend"
    fields = ("from_usd", "discount_percent")
    tab = False


@admin.register(Contract)
class ContractAdmin(AppendOnlyAdmin):
    empty_text = (
        "A contract is what was negotiated with a provider: discounts, free quotas, a commitment. Add one, and "
        "costs are reckoned by it from its day on."
    )
    list_display = (
        "name",
        "provider",
        "model",
        "discount_percent",
        "commitment_usd",
        "this_month",
        "effective_from",
        "effective_until",
    )
    list_select_related = ("provider", "model")
    list_filter = (("provider", AutocompleteSelectFilter),)
    list_filter_submit = True
    search_fields = ("name", "provider__name")
    ordering = ("-effective_from",)
    autocomplete_fields = ("provider", "model")
    inlines = (ContractTierInline,)
    fieldsets = (
        (None, {"fields": ("name", "provider", "model", "effective_from", "effective_until")}),
        ("Gives", {"fields": ("discount_percent", "free_tokens", "free_requests")}),
        ("Asks", {"fields": ("commitment_usd",)}),
    )

    def get_list_display(self, request: HttpRequest) -> Any:
        """How far a commitment has come tells what all teams have spent."""
        columns = super().get_list_display(request)
        return (*columns, "progress") if request.user.sees_all_teams else columns  # type: ignore[union-attr]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or not request.user.sees_all_teams:  # type: ignore[union-attr]
            return fieldsets
        return [*fieldsets, ("This month", {"fields": ("progress",)})]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("progress",)

    @admin.display(description="commitment, this month", empty_value="")
    def progress(self, contract: Contract) -> str | None:
        commitment = contract.commitment(timezone.now())
        return None if commitment is None else str(commitment)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("standings")

    @admin.display(description="gives now")
    def this_month(self, contract: Contract) -> str:
        today = timezone.now().astimezone(UTC).date()
        for standing in contract.standings.all():
            if (standing.month.year, standing.month.month) == (today.year, today.month):
                free = [
                    word
                    for word, is_free in (
                        ("free tokens", standing.has_free_tokens),
                        ("free requests", standing.has_free_requests),
                    )
                    if is_free
                ]
                return ", ".join([f"{standing.discount_percent.normalize():f} %", *free])
        return ""


@admin.register(Deployment)
class DeploymentAdmin(TollgateAdmin):
    empty_text = (
        "A deployment is a model at a provider, in a region, under a pool of credentials. Add one, then name it "
        "in a model alias."
    )
    list_display = ("name", "model", "provider", "upstream_model", "region", "uplift_percent", "pool", "is_active")
    list_select_related = ("model", "provider", "pool")
    list_filter = ("is_active", ("provider", AutocompleteSelectFilter), ("model", AutocompleteSelectFilter), "region")
    list_filter_submit = True
    search_fields = ("name", "upstream_model", "model__name", "provider__name")
    ordering = ("name",)
    autocomplete_fields = ("model", "provider", "pool")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "name",
                    "model",
                    "provider",
                    "upstream_model",
                    "region",
                    "pool",
                    "max_output_tokens",
                    "is_active",
                )
            },
        ),
        ("Money", {"fields": ("uplift_percent", "auto_tier", "unpriced_hold")}),
    )


class AliasTargetInline(TollgateInline):
    model = AliasTarget
    autocomplete_fields = ("deployment",)
    fields = ("deployment", "position", "weight")


@admin.register(ModelAlias)
class ModelAliasAdmin(TollgateAdmin):
    empty_text = (
        "An alias is what applications ask for; the deployments that it names may answer. Add one, and allow it "
        "to virtual keys."
    )
    list_display = ("name", "description", "is_lenient", "is_active", "created_at")
    list_filter = ("is_active", "is_lenient")
    search_fields = ("name", "description")
    ordering = ("name",)
    inlines = (AliasTargetInline,)
