"""Admin pages of alerts, of the channels they go out by, and of their notices."""

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter, DropdownFilter
from unfold.widgets import UnfoldAdminSelectWidget

from audit.actors import Actor
from audit.admin_base import (
    IssuingAdmin,
    ReadOnlyAdmin,
    ReasonField,
    ReasonForm,
    SecretWidget,
    button,
    coloured,
)
from audit.filters import ExactFilter, PeriodFilter
from audit.querysets import WRITERS
from budgets import alert_services as services
from budgets.alert_models import Alert, AlertQuerySet, Channel, Delivery, Mute
from budgets.channels import ADDRESS_LENGTH_MAX, SERVICES
from keys.vault import Secret
from teams.models import Team

DELIVERIES_SHOWN = 20
SEVERITY_COLOURS = {"critical": "danger", "warning": "warning", "info": "info"}
STATUS_COLOURS = {"open": "danger", "acknowledged": "warning", "recovered": "success"}
STATE_COLOURS = {"sent": "success", "waiting": "warning", "dead": "danger"}
# The page of what an alert is about, by its kind; the others are about the gateway.
SUBJECT_PAGES: dict[str, str] = {
    Alert.Kind.THRESHOLD: "admin:budgets_budget_spend",
    Alert.Kind.FORECAST: "admin:budgets_budget_spend",
    Alert.Kind.KILL_SWITCH: "kill-switch-thrown",
    Alert.Kind.INCREASE: "admin:budgets_increase_change",
    Alert.Kind.CREDENTIAL: "admin:keys_credentialpool_change",
}
MUTED_FOR = {
    "an hour": timedelta(hours=1),
    "eight hours": timedelta(hours=8),
    "a day": timedelta(days=1),
    "a week": timedelta(days=7),
    "no longer": timedelta(0),
}


class ChannelForm(ReasonForm):
    """The address goes in and never comes out: an empty field keeps the one that is there."""

    viewer: Any  # Set by the page.

    address = forms.CharField(
        required=False,
        strip=True,
        max_length=ADDRESS_LENGTH_MAX,
        widget=SecretWidget,
        help_text="Sealed at once and never shown again. Leave empty to keep the present one. For a webhook an https URL; else "
        + "; ".join(
            f"{Channel.Kind(kind).label.removeprefix('Microsoft ')}: {service.example}"
            for kind, service in SERVICES.items()
        )
        + ".",
    )

    class Meta:
        model = Channel
        fields = ("name", "team", "kind", "least_severity", "may_be_private", "is_active")

    def clean_address(self) -> str:
        address: str = self.cleaned_data["address"]
        if not address and self.instance._state.adding:
            raise forms.ValidationError("Paste the address.")
        return address

    def clean(self) -> Any:
        cleaned = super().clean() or {}
        if not self.errors:
            self.bounded = self._bounded(cleaned)
        return cleaned

    def _bounded(self, cleaned: dict[str, Any]) -> dict[str, Any]:
        """What this user may write of what was changed, and what follows from it."""
        columns = [name for name in self.Meta.fields if name in self.changed_data or self.instance._state.adding]
        values = {name: cleaned[name] for name in columns if name in cleaned}
        try:
            return services.bounded(self.viewer, values, is_readdressed=bool(cleaned["address"]))
        except PermissionDenied as error:
            raise forms.ValidationError(str(error)) from error


@admin.register(Channel)
class ChannelAdmin(IssuingAdmin):
    form = ChannelForm
    empty_text = (
        "A channel is where alerts go: a chat, a pager, mail, or a signed webhook. Add one, and send a test from "
        "its page."
    )
    list_display = ("name", "team", "kind_label", "least_severity", "is_active", "last_delivery")
    list_select_related = ("team",)
    list_filter = (("team", AutocompleteSelectFilter), ("kind", ChoicesDropdownFilter), "is_active")
    list_filter_submit = True
    list_before_template = "admin/budgets/channels_hint.html"
    search_fields = ("name",)
    ordering = ("name",)
    autocomplete_fields = ("team",)
    fields = ("name", "team", "kind", "address", "least_severity", "may_be_private", "is_active", "reason")
    change_form_outer_after_template = "admin/budgets/channel_deliveries.html"
    actions_detail = ("renew_signing_secret",)
    issued_name = "Signing secret"
    issued_kept = "Tollgate keeps it sealed"
    export_columns = ("name", "team", "kind", "least_severity", "may_be_private", "is_active", "created_at")

    def get_queryset(self, request: HttpRequest) -> Any:
        last = Delivery.objects.filter(channel=OuterRef("pk")).order_by("-id").values("state")[:1]
        return super().get_queryset(request).annotate(last_state=Subquery(last))

    @admin.display(description="kind", ordering="kind")
    def kind_label(self, channel: Channel) -> str:
        return channel.get_kind_display()

    @coloured("last notice", STATE_COLOURS)
    def last_delivery(self, channel: Any) -> tuple[str, str] | None:
        return (channel.last_state, Delivery.State(channel.last_state).label) if channel.last_state else None

    def get_urls(self) -> list[URLPattern]:
        test = path("<uuid:object_id>/test/", self.admin_site.admin_view(self.fire_test), name="budgets_channel_test")
        return [test, *super().get_urls()]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fixed = () if obj is None else ("kind",)
        return fixed if request.user.sees_all_teams else (*fixed, "may_be_private")  # type: ignore[union-attr]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        if "team" in form.base_fields and not request.user.sees_all_teams:  # type: ignore[union-attr]
            form.base_fields["team"].required = True
        return type(form.__name__, (form,), {"viewer": request.user})

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        channel = self.get_object(request, str(object_id))
        is_signed = channel is not None and channel.kind == Channel.Kind.WEBHOOK
        return super().get_actions_detail(request, object_id) if is_signed else []

    def perform_create(self, obj: Channel, form: Any, actor: Actor, reason: str) -> None:
        obj.issued_secret = services.add_channel(  # type: ignore[attr-defined]
            obj, form.cleaned_data["address"], actor=actor, reason=reason
        )

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        address = form.cleaned_data["address"]
        services.change_channel(obj, actor=actor, reason=reason, values=form.bounded, address=address)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        channel: Channel | None = self.get_object(request, unquote(object_id)) if object_id else None
        context = dict(extra_context or {})
        if channel is not None:
            context |= _log_of(channel.deliveries.select_related("alert"))
            context["may_test"] = self.has_change_permission(request, channel)
        return super().changeform_view(request, object_id, form_url, context)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return super().changelist_view(request, (extra_context or {}) | _hints(request))

    def fire_test(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        channel = self.scoped(request, WRITERS).filter(pk=object_id).first()
        if request.method != "POST" or channel is None or not self.has_change_permission(request, channel):
            raise PermissionDenied
        services.fire_test(channel, actor=Actor.from_request(request))
        self.message_user(request, "A test is on its way: what becomes of it is in the list below.", messages.SUCCESS)
        return HttpResponseRedirect(reverse(self._url_name("change"), args=[channel.pk]))

    @button("Renew the signing secret", icon="autorenew")
    def renew_signing_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        issued: list[Secret] = []

        def perform(channel: Channel, actor: Actor, reason: str) -> None:
            issued.append(services.renew_signing_secret(channel, actor=actor, reason=reason))

        warning = (
            "It gets a new secret, shown once; whoever checks signatures by the present one refuses what comes then."
        )
        answer = self.confirm_one(request, object_id, verb="Renew the secret", warning=warning, perform=perform)
        return self.show_once(request, Channel.objects.get(pk=object_id), issued[0]) if issued else answer


class StatusFilter(DropdownFilter):  # type: ignore[misc]
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status) for status in STATUS_COLOURS]

    def queryset(self, request: HttpRequest, queryset: AlertQuerySet) -> AlertQuerySet:
        return queryset.of_status(self.value()) if self.value() in STATUS_COLOURS else queryset


class MuteForm(forms.Form):
    length = forms.ChoiceField(
        label="Be quiet for",
        choices=[(words, words) for words in MUTED_FOR],
        widget=UnfoldAdminSelectWidget,
        help_text="Alerts are opened and shown as ever, and nobody is told. “no longer” ends it.",
    )
    reason = ReasonField()


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    empty_text = (
        "An alert opens by itself when a budget runs out or will, a credential is refused, a kill switch is thrown, or "
        "something about money is wrong. The thresholds of a budget say when it is told of."
    )
    list_display = (
        "title",
        "severity_label",
        "status_label",
        "team",
        "kind_label",
        "opened_at",
        "recovered_at",
        "told",
    )
    list_filter = (
        StatusFilter,
        ("severity", ChoicesDropdownFilter),
        ("kind", ChoicesDropdownFilter),
        ("opened_at", PeriodFilter),
        ("about_id", ExactFilter),
    )
    list_filter_submit = True
    list_fullwidth = True
    list_before_template = "admin/budgets/channels_hint.html"
    search_fields = ("title",)
    ordering = ("-opened_at",)
    sortable_by = ()
    fields = (
        "title", "text", "severity_label", "status_label", "team", "kind_label", "opened_at", "window", "recovered_at",
        "recovery", "acknowledged_at", "acknowledged_by", "note", "muted_until",
    )  # fmt: skip
    export_columns = (
        "title", "kind", "severity", "status", "team", "percent", "opened_at", "recovered_at", "recovery",
        "acknowledged_at", "acknowledged_by", "note",
    )  # fmt: skip
    actions = ("acknowledge_selected", "export_csv")
    actions_detail = ("acknowledge", "mute", "open_subject")
    change_form_outer_after_template = "admin/budgets/alert_deliveries.html"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    def has_handle_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("budgets.change_alert")) and self._may_write(request, obj)

    def get_queryset(self, request: HttpRequest) -> Any:
        mutes = Mute.objects.filter(about_id=OuterRef("about_id"), until__gt=timezone.now()).values("until")
        return (
            super()
            .get_queryset(request)
            .annotate(
                team_name=Subquery(Team.objects.filter(pk=OuterRef("team_id")).values("name")[:1]),
                mute_until=Subquery(mutes[:1]),
                sent=Count("deliveries", filter=Q(deliveries__state=Delivery.State.SENT)),
                failed=Count("deliveries", filter=Q(deliveries__state=Delivery.State.DEAD)),
            )
        )

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what there is to do with it as it is."""
        alert = self.get_object(request, str(object_id))
        if alert is None:
            return []
        hidden = set()
        if alert.acknowledged_at is not None or alert.recovered_at is not None:
            hidden.add("budgets_alert_acknowledge")
        if alert.kind not in SUBJECT_PAGES:
            hidden.add("budgets_alert_open_subject")
        return [a for a in super().get_actions_detail(request, object_id) if a.action_name not in hidden]

    @coloured("severity", SEVERITY_COLOURS)
    def severity_label(self, alert: Alert) -> str:
        return alert.severity

    @coloured("status", STATUS_COLOURS)
    def status_label(self, alert: Alert) -> str:
        return alert.status

    @admin.display(description="kind")
    def kind_label(self, alert: Alert) -> str:
        return alert.get_kind_display()

    @admin.display(description="team")
    def team(self, alert: Any) -> Any:
        return alert.team_name or alert.team_id

    @admin.display(description="window (UTC)")
    def window(self, alert: Alert) -> str | None:
        if alert.window_start is None:
            return None
        end = f" until {alert.window_end:%Y-%m-%d %H:%M}" if alert.window_end else ""
        return f"from {alert.window_start:%Y-%m-%d %H:%M}{end}"

    @admin.display(description="muted until")
    def muted_until(self, alert: Any) -> Any:
        return alert.mute_until

    @coloured("notices", {"failed": "danger", "sent": "success"})
    def told(self, alert: Any) -> tuple[str, str] | None:
        if alert.failed:
            return "failed", f"{alert.failed} given up"
        return ("sent", f"{alert.sent} sent") if alert.sent else None

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        alert: Alert | None = self.get_object(request, unquote(object_id)) if object_id else None
        log = _log_of(alert.deliveries.all()) if alert is not None else {}
        return super().changeform_view(request, object_id, form_url, (extra_context or {}) | log)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return super().changelist_view(request, (extra_context or {}) | _hints(request))

    @admin.action(description="Acknowledge selected…", permissions=["handle"])
    def acknowledge_selected(self, request: HttpRequest, queryset: QuerySet[Alert]) -> HttpResponse | None:
        fresh = queryset.filter(acknowledged_at__isnull=True)
        return self.confirm(request, fresh, action_name="acknowledge_selected", **ACKNOWLEDGE)

    @button("Acknowledge", icon="check", permissions=("handle",))
    def acknowledge(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(request, object_id, **ACKNOWLEDGE)

    @button("Mute", icon="notifications_paused", permissions=("handle",))
    def mute(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Whatever comes of what this alert is about, for a while."""
        alert = self.scoped(request, WRITERS).filter(pk=object_id).first()
        if alert is None:
            raise PermissionDenied
        form = MuteForm(request.POST or None)
        if form.is_valid():
            until = timezone.now() + MUTED_FOR[form.cleaned_data["length"]]
            services.mute(alert, until, actor=Actor.from_request(request), reason=form.cleaned_data["reason"])
            self.message_user(request, "It is noted.", messages.SUCCESS)
            return HttpResponseRedirect(reverse(self._url_name("change"), args=[alert.pk]))
        context = self._page_context(request, f"Mute: {alert}") | {"form": form, "alert": alert}
        return TemplateResponse(request, "admin/budgets/mute.html", context)

    @button("What it is about", icon="arrow_outward", permissions=("view",))
    def open_subject(self, request: HttpRequest, object_id: str) -> HttpResponse:
        alert = self.get_queryset(request).filter(pk=object_id).first()
        if alert is None:
            raise PermissionDenied
        return HttpResponseRedirect(reverse(SUBJECT_PAGES[alert.kind], args=[alert.about_id]))


ACKNOWLEDGE: dict[str, Any] = {
    "verb": "Acknowledge",
    "warning": "Say what comes of it: others see that somebody is on it.",
    "perform": lambda alert, actor, reason: services.acknowledge(alert, actor=actor, note=reason),
}


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    empty_text = (
        "A notice tells a channel of an alert, and stands here until it is sent or given up. The first comes with "
        "an alert, or a test from a channel's page."
    )
    list_display = ("created_at", "channel_name", "event", "alert", "state_label", "tries", "last_error", "due")
    list_select_related = ("alert",)
    list_filter = (
        ("state", ChoicesDropdownFilter),
        ("event", ChoicesDropdownFilter),
        ("channel", AutocompleteSelectFilter),
        ("created_at", PeriodFilter),
    )
    list_filter_submit = True
    list_fullwidth = True
    ordering = ("-id",)
    sortable_by = ()
    fields = (
        "channel_name", "event", "alert", "state_label", "tries", "last_error", "created_at", "due", "ended_at"
    )  # fmt: skip
    actions = ("try_again_selected", "export_csv")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    def has_try_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.has_perm("budgets.change_channel")) and self._may_write(request, obj)

    @coloured("state", STATE_COLOURS)
    def state_label(self, delivery: Delivery) -> tuple[str, str]:
        return delivery.state, delivery.get_state_display()

    @admin.display(description="next try")
    def due(self, delivery: Delivery) -> datetime | None:
        return delivery.due_at if delivery.state == Delivery.State.WAITING else None

    @admin.action(description="Try again…", permissions=["try"])
    def try_again_selected(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        return self.confirm(
            request,
            queryset.filter(state=Delivery.State.DEAD),
            action_name="try_again_selected",
            verb="Try again",
            warning="What was given up is sent as if it were new.",
            perform=services.try_again,
        )


def _log_of(deliveries: QuerySet[Delivery]) -> dict[str, Any]:
    return {"deliveries": deliveries.order_by("-id")[:DELIVERIES_SHOWN], "deliveries_shown": DELIVERIES_SHOWN}


def _hints(request: HttpRequest) -> dict[str, Any]:
    """What keeps alerts from being heard."""
    active = Channel.objects.filter(is_active=True)
    given_up = Delivery.objects.for_user(request.user).filter(state=Delivery.State.DEAD)
    return {
        "has_no_channel": not active.exists(),
        "has_no_shared_channel": not active.filter(team=None).exists(),
        "given_up": given_up.exclude(event=Delivery.Event.TEST).count(),
    }
