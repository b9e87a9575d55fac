"""Admin pages of virtual keys, API tokens, upstream credentials and kill switches. Secrets are taken once or shown once."""

from typing import Any

import redis
from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter, DropdownFilter
from unfold.widgets import UnfoldAdminTextareaWidget

from audit.actors import Actor
from audit.admin_base import IssuingAdmin, ReasonForm, SecretWidget, TollgateAdmin, button, coloured
from keys import services
from keys.credentials import LENGTH_MAX
from keys.models import CredentialPool, KillSwitch, UpstreamCredential, VirtualKey
from keys.tokens import HINT_LENGTH, VIRTUAL_KEY_PREFIX
from teams.models import ApiToken

STATUS_COLOURS = {"active": "success", "paused": "warning", "expired": "info", "revoked": "danger"}
DIGEST_LENGTH_MIN = 6
REDIS_AWAY = "Redis does not answer, so nothing was changed. Without it no request is admitted either; try again."


class KeyStatusFilter(DropdownFilter):  # type: ignore[misc]
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status) for status in STATUS_COLOURS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[VirtualKey]) -> QuerySet[VirtualKey]:
        not_revoked = Q(revoked_at__isnull=True)
        expired = Q(expires_at__isnull=False, expires_at__lte=timezone.now())
        conditions = {
            "revoked": ~not_revoked,
            "expired": not_revoked & expired,
            "paused": not_revoked & ~expired & Q(paused_at__isnull=False),
            "active": not_revoked & ~expired & Q(paused_at__isnull=True),
        }
        return queryset.filter(conditions.get(self.value() or "", Q()))


@admin.register(VirtualKey)
class VirtualKeyAdmin(IssuingAdmin):
    empty_text = (
        "A virtual key is what an application presents to the gateway. Add one to a project: its secret is shown once."
    )
    list_display = ("name", "hint", "project", "team", "aliases", "expires_at", "shown_status", "created_at")
    list_select_related = ("project__team",)
    list_filter = (KeyStatusFilter, ("project", AutocompleteSelectFilter), ("project__team", AutocompleteSelectFilter))
    list_filter_submit = True
    search_fields = ("name",)
    search_help_text = "Beginning of the name, last four characters of the secret, or beginning of its SHA-256"
    ordering = ("-id",)
    sortable_by = ("created_at",)  # Which is the order of the ids: any other would sort every key there is.
    autocomplete_fields = ("project",)
    readonly_fields = ("hint", "digest", "shown_status", "version", "created_at", "created_by")
    fields = (
        "project",
        "name",
        "aliases",
        "passthrough",
        "default_tags",
        "expires_at",
        "shown_status",
        "hint",
        "digest",
        "version",
    )
    actions = ("pause_selected", "resume_selected", "revoke_selected", "export_csv", "delete_selected")
    actions_detail = ("pause", "resume", "rotate", "revoke")

    @admin.display(description="team", ordering=None)
    def team(self, key: VirtualKey) -> str:
        return str(key.project.team)

    @coloured("status", STATUS_COLOURS)
    def shown_status(self, key: VirtualKey) -> str:
        return key.status

    @admin.display(description="created", ordering="id")
    def created_at(self, key: VirtualKey) -> Any:
        return key.created_at

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what would change something."""
        key = self.get_object(request, str(object_id))
        if key is None:
            return []
        done = {"pause" if key.paused_at is not None else "resume"}
        if key.revoked_at is not None:
            done = {"pause", "resume", "rotate", "revoke"}
        names = {f"keys_virtualkey_{verb}" for verb in done}
        return [button for button in super().get_actions_detail(request, object_id) if button.action_name not in names]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = super().get_fields(request, obj)
        return fields if obj is not None else [name for name in fields if name not in self.readonly_fields]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.readonly_fields if obj is None else ("project", *self.readonly_fields)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        found = Q(name__istartswith=term)
        if len(term) == HINT_LENGTH or "…" in term:
            found |= Q(hint=f"{VIRTUAL_KEY_PREFIX}…{term[-HINT_LENGTH:]}")
        if len(term) >= DIGEST_LENGTH_MIN and all(character in "0123456789abcdef" for character in term.lower()):
            found |= Q(digest__startswith=term.lower())
        return queryset.filter(found), False

    def perform_create(self, obj: VirtualKey, form: Any, actor: Actor, reason: str) -> None:
        obj.issued_secret = services.issue(obj, actor=actor, reason=reason).secret  # type: ignore[attr-defined]

    @admin.action(description="Pause selected…", permissions=["change"])
    def pause_selected(self, request: HttpRequest, queryset: QuerySet[VirtualKey]) -> HttpResponse | None:
        return self.confirm(request, queryset, action_name="pause_selected", **PAUSE)

    @admin.action(description="Resume selected…", permissions=["change"])
    def resume_selected(self, request: HttpRequest, queryset: QuerySet[VirtualKey]) -> HttpResponse | None:
        return self.confirm(request, queryset, action_name="resume_selected", **RESUME)

    @admin.action(description="Revoke selected…", permissions=["change"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[VirtualKey]) -> HttpResponse | None:
        return self.confirm(request, queryset, action_name="revoke_selected", **REVOKE)

    @button("Pause", icon="pause")
    def pause(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(request, object_id, **PAUSE)

    @button("Resume", icon="play_arrow")
    def resume(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(request, object_id, **RESUME)

    @button("Revoke", icon="block", hurts=True)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(request, object_id, **REVOKE)

    @button("Rotate", icon="autorenew")
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        issued: list[services.IssuedKey] = []

        def perform(key: VirtualKey, actor: Actor, reason: str) -> None:
            issued.append(services.rotate_virtual_key(key, actor=actor, reason=reason))

        warning = "It gets a new secret, shown once; the present one is refused from that moment on."
        answer = self.confirm_one(request, object_id, verb="Rotate", warning=warning, perform=perform)
        return self.show_once(request, issued[0].virtual_key, issued[0].secret) if issued else answer


PAUSE: dict[str, Any] = {
    "verb": "Pause",
    "warning": "Its requests are refused until it is resumed.",
    "perform": services.pause_virtual_key,
}
RESUME: dict[str, Any] = {
    "verb": "Resume",
    "warning": "Its requests are let through again, unless it is revoked or expired.",
    "perform": services.resume_virtual_key,
}
REVOKE: dict[str, Any] = {
    "verb": "Revoke",
    "warning": "Its requests are refused from now on, for good: a revoked key does not come back.",
    "perform": services.revoke_virtual_key,
}


@admin.register(ApiToken)
class ApiTokenAdmin(IssuingAdmin):
    empty_text = "A service account presents an API token to the REST API. Add one: its secret is shown once."
    list_display = ("hint", "service_account", "expires_at", "last_used_at", "revoked_at", "created_at")
    list_select_related = ("service_account",)
    list_filter = (("service_account", AutocompleteSelectFilter),)
    list_filter_submit = True
    search_fields = ("hint", "service_account__name")
    ordering = ("-id",)
    autocomplete_fields = ("service_account",)
    readonly_fields = ("hint", "last_used_at", "revoked_at", "created_at")
    actions = ("export_csv",)
    actions_detail = ("revoke",)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.readonly_fields if obj is None else ("service_account", *self.readonly_fields)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # A token is revoked: who held what, when, stays to be seen.

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        if "service_account" in form.base_fields and not request.user.is_superuser:
            # A token is what its account may do, and nobody hands out more than they hold.
            accounts = form.base_fields["service_account"].queryset
            form.base_fields["service_account"].queryset = accounts.filter(scopes=[])
        return form

    def perform_create(self, obj: ApiToken, form: Any, actor: Actor, reason: str) -> None:
        issued = services.issue_api_token(obj.service_account, actor=actor, expires_at=obj.expires_at, reason=reason)
        obj.pk, obj.hint = issued.api_token.pk, issued.api_token.hint
        obj.issued_secret = issued.secret  # type: ignore[attr-defined]

    @button("Revoke", icon="block", hurts=True)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="Revoke",
            warning="Whatever uses this token is refused from now on, for good.",
            perform=services.revoke_api_token,
        )


@admin.register(CredentialPool)
class CredentialPoolAdmin(TollgateAdmin):
    empty_text = (
        "The credentials of a pool stand in for one another at one provider. Add a pool, then credentials to it."
    )
    list_display = ("name", "provider", "created_at")
    search_fields = ("name", "provider")
    ordering = ("name",)


class CredentialForm(ReasonForm):
    """The secret goes in and never comes out: an empty field keeps the one that is there."""

    secret = forms.CharField(
        required=False,
        strip=True,
        max_length=LENGTH_MAX,
        widget=SecretWidget,
        help_text=(
            "Sealed at once and never shown again. Leave empty to keep the present one. Of a Google service account, paste its"
            ' key file; of an AWS access key, {"access_key_id": "…", "secret_access_key": "…"}.'
        ),
    )

    class Meta:
        model = UpstreamCredential
        fields = ("pool", "name", "is_active")

    def clean_secret(self) -> str:
        secret: str = self.cleaned_data["secret"]
        if not secret and self.instance._state.adding:
            raise forms.ValidationError("Paste the provider's secret.")
        if secret:
            services.check_credential(secret)
        return secret


@admin.register(UpstreamCredential)
class UpstreamCredentialAdmin(TollgateAdmin):
    form = CredentialForm
    empty_text = (
        "A credential is the secret that the gateway presents to a provider; it is kept encrypted. Add one to a pool."
    )
    list_display = ("name", "pool", "provider", "shown_fingerprint", "is_active", "created_at")
    list_select_related = ("pool",)
    list_filter = ("is_active", ("pool", AutocompleteSelectFilter))
    list_filter_submit = True
    search_fields = ("name", "fingerprint", "pool__name")
    ordering = ("pool__name", "name")
    autocomplete_fields = ("pool",)
    fields = ("pool", "name", "secret", "is_active", "reason")

    @admin.display(description="provider")
    def provider(self, credential: UpstreamCredential) -> str:
        return credential.pool.provider

    @admin.display(description="secret")
    def shown_fingerprint(self, credential: UpstreamCredential) -> str:
        return f"…{credential.fingerprint}"

    def perform_create(self, obj: UpstreamCredential, form: Any, actor: Actor, reason: str) -> None:
        services.store_credential(obj, form.cleaned_data["secret"], actor=actor, reason=reason)

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        super().perform_change(obj, values, form, actor, reason)
        if form.cleaned_data["secret"]:
            services.replace_credential_secret(obj, form.cleaned_data["secret"], actor=actor, reason=reason)


class KillSwitchForm(forms.ModelForm):  # type: ignore[type-arg]
    viewer: Any  # Set by the page.

    class Meta:
        model = KillSwitch
        fields = ("scope", "target", "reason")
        widgets = {"reason": UnfoldAdminTextareaWidget(attrs={"rows": 2})}

    def clean(self) -> Any:
        cleaned = super().clean() or {}
        if "scope" in cleaned:
            cleaned["target"] = services.checked_target(cleaned["scope"], cleaned.get("target", ""))
            if not services.may_halt(self.viewer, cleaned["scope"], cleaned["target"]):
                raise forms.ValidationError("This is not of your teams: ask who sees all of them.")
        return cleaned

    def validate_constraints(self) -> None:
        pass  # What is halted already may be halted again: the switch in force stays.


@admin.register(KillSwitch)
class KillSwitchAdmin(TollgateAdmin):
    form = KillSwitchForm
    empty_text = (
        "A kill switch stops traffic: all of it, or that of a team, a project, a virtual key, a model or a provider. The "
        "red button throws one."
    )
    list_display = ("scope", "target", "is_thrown", "reason", "thrown_by", "thrown_at", "lifted_by", "lifted_at")
    list_filter = (("scope", ChoicesDropdownFilter),)
    list_filter_submit = True
    search_fields = ("target", "reason", "thrown_by")
    ordering = ("-id",)
    fields = ("scope", "target", "reason")
    actions = ("lift_selected", "export_csv")
    actions_detail = ("lift",)

    @coloured("state", {"halted": "danger", "lifted": "success"})
    def is_thrown(self, kill_switch: KillSwitch) -> str:
        return "halted" if kill_switch.is_active else "lifted"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else (*self.fields, "thrown_by", "thrown_at", "lifted_by", "lifted_at", "lift_reason")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields if obj is None else self.get_readonly_fields(request, obj)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        return type(form.__name__, (form,), {"viewer": request.user})

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # It is lifted, and stays on record.

    def save_model(self, request: HttpRequest, obj: KillSwitch, form: Any, change: bool) -> None:
        if change:
            return
        actor = Actor.from_request(request)
        try:
            thrown = services.throw_kill_switch(obj.scope, obj.target, reason=obj.reason, actor=actor)  # type: ignore[arg-type]
        except redis.RedisError as error:
            raise ValidationError(REDIS_AWAY) from error
        obj.pk = thrown.pk

    @admin.action(description="Lift selected…", permissions=["change"])
    def lift_selected(self, request: HttpRequest, queryset: QuerySet[KillSwitch]) -> HttpResponse | None:
        return self.confirm(request, queryset.filter(lifted_at=None), action_name="lift_selected", **LIFT)

    @button("Lift", icon="play_arrow")
    def lift(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(request, object_id, **LIFT)


def _lift(kill_switch: KillSwitch, actor: Actor, reason: str) -> None:
    try:
        services.lift_kill_switch(kill_switch, actor=actor, reason=reason)
    except redis.RedisError as error:
        raise ValidationError(REDIS_AWAY) from error


LIFT: dict[str, Any] = {
    "verb": "Lift",
    "warning": "The traffic it halted flows again at once.",
    "perform": _lift,
}
