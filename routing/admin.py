"""Admin pages of providers, models, prices, deployments and aliases."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from audit.admin_base import TollgateAdmin, TollgateInline, choices_field
from audit.filters import PeriodFilter
from routing.apis import APIS
from routing.models import (
    PRICE_RATES,
    AliasTarget,
    Deployment,
    ExchangeRate,
    Model,
    ModelAlias,
    Operation,
    Price,
    Provider,
)


class SupersededAdmin(TollgateAdmin):
    """Rows that are never edited: a new one supersedes the old."""

    actions = ("export_csv",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Provider)
class ProviderAdmin(TollgateAdmin):
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


@admin.register(Price)
class PriceAdmin(SupersededAdmin):
    list_display = (
        "model",
        "provider",
        "currency",
        "input",
        "cached_input",
        "output",
        "per_request",
        "per_unit",
        "effective_from",
    )
    export_columns = ("model", "provider", "currency", *PRICE_RATES, "batch_percent", "effective_from")
    list_select_related = ("model", "provider")
    list_filter = (
        ("model", AutocompleteSelectFilter),
        ("provider", AutocompleteSelectFilter),
        ("effective_from", PeriodFilter),
    )
    list_filter_submit = True
    search_fields = ("model__name", "provider__name")
    ordering = ("-effective_from",)
    autocomplete_fields = ("model", "provider")
    fieldsets = (
        (None, {"fields": ("model", "provider", "effective_from")}),
        (
            "Per 1,000,000 tokens, in the provider's currency",
            {"fields": ("input", "cached_input", "cache_write", "cache_write_1h", "output")},
        ),
        (
            "Per 1,000,000 tokens of sound and pictures",
            {"fields": ("input_audio", "output_audio", "input_image", "output_image")},
        ),
        ("Each", {"fields": ("per_request", "per_tool_call", "per_unit")}),
        ("In a batch", {"fields": ("batch_percent",)}),
    )

    @admin.display(description="currency")
    def currency(self, price: Price) -> str:
        return price.provider.currency


@admin.register(ExchangeRate)
class ExchangeRateAdmin(SupersededAdmin):
    list_display = ("currency", "usd_per_unit", "effective_from")
    list_filter = ("currency",)
    search_fields = ("currency",)
    ordering = ("currency", "-effective_from")


@admin.register(Deployment)
class DeploymentAdmin(TollgateAdmin):
    list_display = ("name", "model", "provider", "upstream_model", "region", "pool", "is_active")
    list_select_related = ("model", "provider", "pool")
    list_filter = ("is_active", ("provider", AutocompleteSelectFilter), ("model", AutocompleteSelectFilter), "region")
    list_filter_submit = True
    search_fields = ("name", "upstream_model", "model__name", "provider__name")
    ordering = ("name",)
    autocomplete_fields = ("model", "provider", "pool")


class AliasTargetInline(TollgateInline):
    model = AliasTarget
    autocomplete_fields = ("deployment",)
    fields = ("deployment", "position", "weight")


@admin.register(ModelAlias)
class ModelAliasAdmin(TollgateAdmin):
    list_display = ("name", "description", "is_lenient", "is_active", "created_at")
    list_filter = ("is_active", "is_lenient")
    search_fields = ("name", "description")
    ordering = ("name",)
    inlines = (AliasTargetInline,)
