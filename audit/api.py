"""The API of what was changed and what was used: audit entries and the ledger's records. Nothing here can be written."""

from typing import ClassVar

import django_filters
from django.db.models import QuerySet
from rest_framework import serializers

from audit.api_base import ApiFilterSet, Pages, ReadOnlyView
from audit.models import AuditEntry, UsageRecord


class AuditEntrySerializer(serializers.ModelSerializer[AuditEntry]):
    before = serializers.DictField(allow_null=True, read_only=True)
    after = serializers.DictField(allow_null=True, read_only=True)

    class Meta:
        model = AuditEntry
        fields = (
            "id",
            "at",
            "actor_kind",
            "actor_id",
            "actor_name",
            "ip",
            "action",
            "object_type",
            "object_id",
            "object_name",
            "before",
            "after",
            "reason",
        )


class AuditEntryFilters(ApiFilterSet):
    start = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    end = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")

    class Meta:
        model = AuditEntry
        fields = ("actor_kind", "actor_id", "action", "object_type", "object_id")


class AuditEntryView(ReadOnlyView):
    """Who changed what, from where, and why. For accounts and users that see every team."""

    scope: ClassVar[str] = "audit"
    queryset = AuditEntry.objects.all()
    serializer_class = AuditEntrySerializer
    filterset_class = AuditEntryFilters


class UsageRecordSerializer(serializers.ModelSerializer[UsageRecord]):
    tags = serializers.DictField(child=serializers.CharField(), read_only=True)

    class Meta:
        model = UsageRecord
        exclude = ("ingested_at",)


class UsageRecordFilters(ApiFilterSet):
    start = django_filters.IsoDateTimeFilter(field_name="admitted_at", lookup_expr="gte")
    end = django_filters.IsoDateTimeFilter(field_name="admitted_at", lookup_expr="lt")
    team = django_filters.UUIDFilter(field_name="team_id")
    project = django_filters.UUIDFilter(field_name="project_id")
    virtual_key = django_filters.UUIDFilter(field_name="virtual_key_id")
    kill_switch = django_filters.UUIDFilter(field_name="kill_switch_id")
    tag = django_filters.CharFilter(method="with_tag", label="Such as feature=search.")

    class Meta:
        model = UsageRecord
        fields = (
            "request_id",
            "kind",
            "alias",
            "model",
            "provider",
            "deployment",
            "state",
            "status_code",
            "error_type",
        )

    def with_tag(self, records: QuerySet[UsageRecord], name: str, tag: str) -> QuerySet[UsageRecord]:
        key, _, value = tag.partition("=")
        return records.filter(tags__contains={key: value})


class UsageRecordPages(Pages):
    ordering = ("-admitted_at", "-attempt_id")  # type: ignore[assignment]


class UsageRecordView(ReadOnlyView):
    """The ledger: one record for each attempt, that is, each call of a provider."""

    scope: ClassVar[str] = "usage"
    queryset = UsageRecord.objects.all()
    serializer_class = UsageRecordSerializer
    filterset_class = UsageRecordFilters
    pagination_class = UsageRecordPages
