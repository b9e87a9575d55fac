"""Admin pages of people, teams, projects and service accounts."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as AuthGroupAdmin
from django.contrib.auth.admin import UserAdmin as AuthUserAdmin
from django.contrib.auth.models import Group as AuthGroup
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from audit import services
from audit.actors import Actor
from audit.admin_base import ReasonField, TollgateAdmin, TollgateInline, choices_field
from audit.querysets import OWNER
from teams import scopes
from teams.models import Group, Membership, Project, ServiceAccount, Team, User
from teams.services import may_grant

admin.site.unregister(AuthGroup)

GRANTS = ("is_superuser", "is_staff", "groups", "user_permissions")


class UserForm(UserChangeForm):  # type: ignore[misc]
    reason = ReasonField()


class NewUserForm(UserCreationForm):  # type: ignore[misc]
    reason = ReasonField()

    class Meta:
        model = User
        fields = ("username", "email")


@admin.register(User)
class UserAdmin(TollgateAdmin, AuthUserAdmin):  # type: ignore[misc,type-arg]
    form = UserForm
    add_form = NewUserForm
    change_password_form = AdminPasswordChangeForm
    empty_text = (
        "A user signs in here, and sees the teams that it is a member of. Add one, and make it a member on its "
        "team's page."
    )
    list_display = ("username", "email", "first_name", "last_name", "is_active", "is_superuser", "last_login")
    list_filter = ("is_active", "is_staff", "is_superuser")
    search_fields = ("username", "email", "first_name", "last_name")
    ordering = ("username",)
    readonly_fields = ("last_login", "date_joined")
    filter_horizontal = ("groups",)
    fieldsets = (
        (None, {"fields": ("username", "password", "email", "first_name", "last_name")}),
        ("Access", {"fields": ("is_active", "is_staff", "is_superuser", "groups")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"fields": ("username", "email", "usable_password", "password1", "password2", "reason")}),)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Only a superuser hands out power: nobody grants more than they hold."""
        fields = super().get_readonly_fields(request, obj)
        return fields if request.user.is_superuser else (*fields, *GRANTS)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and self._may_touch(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request, obj) and self._may_touch(request, obj)

    def _may_touch(self, request: HttpRequest, obj: Any) -> bool:
        if obj is None or request.user.is_superuser:
            return True
        user = obj if isinstance(obj, User) else User.objects.filter(pk=obj).first()
        # Whoever may set a password may become that user.
        return (
            user is not None and not user.is_superuser and not user.get_all_permissions() - _permissions(request.user)
        )

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        with transaction.atomic():
            user = self.get_object(request, id)
            if user is None or not self.has_change_permission(request, user):
                raise PermissionDenied
            response: HttpResponse = super().user_change_password(request, id, form_url)
            if User.objects.values_list("password", flat=True).get(pk=user.pk) != user.password:
                services.record(Actor.from_request(request), "set password", user)
        return response


def _permissions(user: Any) -> set[str]:
    held: set[str] = user.get_all_permissions()
    return held


@admin.register(Group)
class GroupAdmin(TollgateAdmin, AuthGroupAdmin):  # type: ignore[misc]
    empty_text = (
        "A group gives its members permissions, such as those of finance. Add one, choose what it may do, then "
        "put users into it."
    )
    list_display = ("name", "external_id")
    search_fields = ("name", "external_id")
    ordering = ("name",)
    filter_horizontal = ("permissions",)

    def scoped(self, request: HttpRequest, roles: Any) -> Any:
        return Group.objects.order_by("name")

    def _may_save(self, request: HttpRequest, obj: Any) -> bool:
        return bool(request.user.is_superuser)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_superuser)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_superuser)


class MembershipInline(TollgateInline):
    """Who is in the team: its owners say."""

    model = Membership
    autocomplete_fields = ("user",)
    fields = ("user", "role")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_add_permission(request, obj) and _owns(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and _owns(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request, obj) and _owns(request, obj)


def _owns(request: HttpRequest, team: Team | None) -> bool:
    return team is None or Team.objects.for_user(request.user, (OWNER,)).filter(pk=team.pk).exists()


@admin.register(Team)
class TeamAdmin(TollgateAdmin):
    empty_text = "A team owns projects, and the money that they spend. Add one, then a project in it."
    list_display = ("name", "slug", "time_zone", "created_at")
    search_fields = ("name", "slug")
    ordering = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    inlines = (MembershipInline,)


@admin.register(Project)
class ProjectAdmin(TollgateAdmin):
    empty_text = "Applications live in projects, and each project belongs to a team. Add one, then a virtual key in it."
    list_display = ("name", "team", "environment", "cost_centre", "created_at")
    list_select_related = ("team",)
    list_filter = (("team", AutocompleteSelectFilter), ("environment", ChoicesDropdownFilter), "cost_centre")
    list_filter_submit = True
    search_fields = ("name", "slug", "cost_centre", "team__name")
    ordering = ("name",)
    autocomplete_fields = ("team",)
    prepopulated_fields = {"slug": ("name",)}


@admin.register(ServiceAccount)
class ServiceAccountAdmin(TollgateAdmin):
    empty_text = (
        "A service account is a program that calls the REST API, with the scopes that it is given. Add one, then "
        "an API token for it."
    )
    list_display = ("name", "team", "scopes", "is_active", "created_at")
    list_select_related = ("team",)
    list_filter = ("is_active", ("team", AutocompleteSelectFilter))
    list_filter_submit = True
    search_fields = ("name",)
    ordering = ("name",)
    autocomplete_fields = ("team",)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "scopes":
            return choices_field(scopes.SCOPES)
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        # Without a team it sees every team: only who does may make such an account.
        if "team" in form.base_fields and not request.user.sees_all_teams:  # type: ignore[union-attr]
            form.base_fields["team"].required = True
        if "scopes" in form.base_fields and not request.user.is_superuser:
            form.base_fields["scopes"].disabled = True
            form.base_fields["scopes"].help_text = "Only a superuser hands out scopes."
        return form

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        allowed = super().has_change_permission(request, obj)
        return allowed and (obj is None or may_grant(request.user, obj))  # type: ignore[arg-type]
