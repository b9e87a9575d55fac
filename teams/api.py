"""The API of teams, projects and service accounts."""

from typing import Any, ClassVar

import django_filters
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied

from audit.api_base import ApiFilterSet, ApiSerializer, WritingView
from teams import scopes
from teams.models import Project, ServiceAccount, ServiceAccountQuerySet, Team
from teams.services import may_grant


class TeamSerializer(ApiSerializer):
    class Meta:
        model = Team
        fields = ("id", "name", "slug", "time_zone", "created_at")


class TeamView(WritingView):
    """The owners of projects and money. Adding one takes a caller that sees every team."""

    scope: ClassVar[str] = "teams"
    queryset = Team.objects.all()
    serializer_class = TeamSerializer
    filterset_fields = ("name", "slug")

    def check(self, values: dict[str, Any], present: Any = None) -> None:
        if present is None and not self.caller.sees_all_teams:
            raise PermissionDenied("Only who sees every team may add one.")


class ProjectSerializer(ApiSerializer):
    default_tags = serializers.DictField(child=serializers.CharField(max_length=256), required=False)

    class Meta:
        model = Project
        fields = (
            "id",
            "team",
            "name",
            "slug",
            "environment",
            "cost_centre",
            "default_tags",
            "required_tag_keys",
            "created_at",
        )


class ProjectFilters(ApiFilterSet):
    class Meta:
        model = Project
        fields = ("team", "name", "slug", "environment", "cost_centre")


class ProjectView(WritingView):
    """The units applications live in; each belongs to a team."""

    scope: ClassVar[str] = "teams"
    queryset = Project.objects.all()
    serializer_class = ProjectSerializer
    filterset_class = ProjectFilters


class ServiceAccountSerializer(ApiSerializer):
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=scopes.SCOPES), required=False)

    class Meta:
        model = ServiceAccount
        fields = ("id", "name", "team", "scopes", "is_active", "created_at")


class ServiceAccountFilters(ApiFilterSet):
    scope = django_filters.ChoiceFilter(method="with_scope", choices=[(scope, scope) for scope in scopes.SCOPES])

    class Meta:
        model = ServiceAccount
        fields = ("team", "name", "is_active")

    def with_scope(self, accounts: ServiceAccountQuerySet, name: str, scope: str) -> ServiceAccountQuerySet:
        return accounts.filter(scopes__contains=[scope])


class ServiceAccountView(WritingView):
    """Machines that call this API. Nobody grants more than they hold, or touches an account that holds more."""

    scope: ClassVar[str] = "service_accounts"
    queryset = ServiceAccount.objects.all()
    serializer_class = ServiceAccountSerializer
    filterset_class = ServiceAccountFilters

    def check(self, values: dict[str, Any], present: Any = None) -> None:
        wanted = ServiceAccount(team=getattr(present, "team", None), scopes=getattr(present, "scopes", []))
        allowed = present is None or may_grant(self.caller, present)
        for name in ("team", "scopes"):
            setattr(wanted, name, values.get(name, getattr(wanted, name)))
        if not allowed or not may_grant(self.caller, wanted):
            raise PermissionDenied("This account may do more than you may, so you cannot make or change it.")
