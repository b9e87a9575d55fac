"""The API of kill switches, and of the proxy's workers that obey them. What is thrown is in force when it answers."""

import uuid
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
from drf_spectacular.helpers import forced_singular_serializer
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from audit.actors import Actor
from audit.api_base import (
    PAGE_SIZE,
    PAGE_SIZE_MAX,
    ApiFilterSet,
    ApiView,
    ReadOnlyView,
    StrictSerializer,
    TrueOrFalse,
    reason_alone,
    reasoned,
)
from audit.querysets import WRITERS
from controlplane import kill_board, workers
from keys import redis as flags
from keys import services
from keys.kills import KillFlag
from keys.models import KillSwitch, VirtualKey
from routing.models import Model, Provider
from teams.models import Project, Team

NAMES_MAX = 10
LIFTED = "Lifted through the API."


class KillSwitchSerializer(serializers.ModelSerializer[KillSwitch]):
    class Meta:
        model = KillSwitch
        fields = (
            "id",
            "scope",
            "target",
            "reason",
            "is_active",
            "thrown_by",
            "thrown_at",
            "lifted_by",
            "lifted_at",
            "lift_reason",
        )
        read_only_fields = fields


class WorkerAcknowledgementSerializer(serializers.Serializer[Any]):
    worker = serializers.CharField()
    host = serializers.CharField()
    is_live = serializers.BooleanField()
    streams_cut = serializers.IntegerField(allow_null=True, help_text="Null until it has acknowledged.")
    elapsed_ms = serializers.FloatField(allow_null=True)


class AcknowledgementsSerializer(serializers.Serializer[Any]):
    workers = WorkerAcknowledgementSerializer(many=True)
    acknowledged = serializers.IntegerField()
    expected = serializers.IntegerField()
    streams_cut = serializers.IntegerField()
    elapsed_ms = serializers.FloatField(allow_null=True)
    is_complete = serializers.BooleanField(help_text="Every live worker has acknowledged.")


class KillSwitchDetailSerializer(KillSwitchSerializer):
    """A kill switch, and what each worker has done about it."""

    acknowledgements = AcknowledgementsSerializer(read_only=True)

    class Meta(KillSwitchSerializer.Meta):
        fields = (*KillSwitchSerializer.Meta.fields, "acknowledgements")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]


class ThrowSerializer(StrictSerializer):
    scope = serializers.ChoiceField(choices=KillSwitch.Scope.choices)
    target = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=100,
        default="",
        help_text="Id or name of the team, project or virtual key; name of the model; slug or name of the provider.",
    )
    reason = serializers.CharField(
        required=False, allow_blank=True, max_length=500, help_text="Needed; those who are refused read it."
    )


class KillSwitchFilters(ApiFilterSet):
    is_active = TrueOrFalse(field_name="lifted_at", lookup_expr="isnull")

    class Meta:
        model = KillSwitch
        fields = ("scope", "target")


class KillSwitchView(ReadOnlyView):
    """Stops of all traffic in one scope."""

    http_method_names = ["get", "post", "delete", "head"]
    scope: ClassVar[str] = "kill_switches"
    permission_verbs: ClassVar[dict[str, str]] = {"destroy": "change"}
    queryset = KillSwitch.objects.all()
    serializer_class = KillSwitchSerializer
    filterset_class = KillSwitchFilters

    @extend_schema(request=ThrowSerializer, responses={201: KillSwitchSerializer})
    def create(self, request: Request) -> Response:
        """Halt traffic. When this answers, no worker admits any more of it, and streams are being cut.

        Where the same is halted already, the switch in force is the answer.
        """
        serializer = ThrowSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values, reason = reasoned(request, serializer)
        scope, target = values["scope"], _target(self.caller, values["scope"], values["target"].strip())
        if not services.may_halt(self.caller, scope, target):
            raise PermissionDenied("This is not of your teams: ask who sees all of them.")
        thrown = services.throw_kill_switch(scope, target, reason=reason, actor=Actor.from_request(request))
        return Response(self.get_serializer(thrown).data, 201)

    @extend_schema(responses=KillSwitchDetailSerializer)
    def retrieve(self, request: Request, pk: uuid.UUID) -> Response:
        """One kill switch, with what each worker has acknowledged."""
        kill_switch = self.get_object()
        kill_switch.acknowledgements = kill_board.acknowledged(flags.redis_client(), str(pk))
        return Response(KillSwitchDetailSerializer(kill_switch).data)

    @extend_schema(responses={200: KillSwitchSerializer})
    def destroy(self, request: Request, pk: uuid.UUID) -> Response:
        """Lift it: its traffic flows again. It stays on record. Lifted twice, it is lifted once."""
        flag = self._flag(pk)
        if not services.may_halt(self.caller, flag.scope, flag.target):
            self.permission_denied(request, message="This is not of your teams: ask who sees all of them.")
        services.lift_flag(flag, reason=reason_alone(request) or LIFTED, actor=Actor.from_request(request))
        return Response(self.get_serializer(self.get_queryset().get(pk=pk)).data)

    def _flag(self, pk: uuid.UUID) -> KillFlag:
        """Of the switch on record, else as Redis has it: one thrown while the database was down is lifted like any other."""
        kill_switch: KillSwitch | None = self.get_queryset().filter(pk=pk).first()
        if kill_switch is not None:
            return kill_switch.flag
        in_force = flags.flags(flags.redis_client()) if self.caller.sees_all_teams else []
        flag = next((flag for flag in in_force if flag.kill_switch_id == str(pk)), None)
        if flag is None:
            raise NotFound
        return flag


def _target(caller: Any, scope: str, wanted: str) -> str:
    """The target as a flag names it. An id is believed without looking; a name is looked for in what the caller may halt.

    Raises ValidationError when there is none, or several, of that name.
    """
    if scope == "global" or not wanted or _is_id(wanted):
        return services.checked_target(scope, wanted)
    found = sorted(set(_named(caller, scope, wanted)))
    if len(found) > 1:
        raise ValidationError({"target": "Several are called that: give the id of one."})
    if not found:
        raise ValidationError({"target": f"No {scope} of yours is called that."})
    return services.checked_target(scope, found[0])


def _named(caller: Any, scope: str, name: str) -> Iterable[str]:
    match scope:
        case "team" | "project" | "key":
            rows: Any = {"team": Team, "project": Project, "key": VirtualKey}[scope]
            found = rows.objects.for_user(caller, WRITERS).filter(name__iexact=name)
            return [str(pk) for pk in found.values_list("pk", flat=True)[:NAMES_MAX]]
        case "model":
            return Model.objects.filter(name__iexact=name).values_list("name", flat=True)
        case _:
            by_slug = Provider.objects.filter(slug=name).values_list("slug", flat=True)
            return by_slug or Provider.objects.filter(name__iexact=name).values_list("slug", flat=True)


def _is_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


class WorkerSerializer(serializers.Serializer[Any]):
    worker = serializers.CharField()
    host = serializers.CharField()
    pid = serializers.IntegerField()
    started_at_s = serializers.FloatField(help_text="Unix seconds.")
    at_s = serializers.FloatField(help_text="When it last said so, Unix seconds.")
    is_live = serializers.BooleanField(help_text="It holds its lease: only then it admits requests.")
    is_ready = serializers.BooleanField()
    snapshot_version = serializers.IntegerField(help_text="Of the configuration it runs.")
    kills_version = serializers.IntegerField()
    live_requests = serializers.IntegerField()
    live_streams = serializers.IntegerField()
    rss_bytes = serializers.IntegerField()
    journal_seq = serializers.IntegerField()
    ingested_seq = serializers.IntegerField(help_text="Up to here the ledger has its settles.")


class WorkerPageSerializer(serializers.Serializer[Any]):
    next = serializers.URLField(allow_null=True)
    results = WorkerSerializer(many=True)


class WorkerQuestionSerializer(StrictSerializer):
    cursor = serializers.CharField(required=False, help_text="From `next` of the page before.")
    page_size = serializers.IntegerField(required=False, min_value=1, max_value=PAGE_SIZE_MAX, default=PAGE_SIZE)


class WorkerView(ApiView):
    """The proxy's workers, as each last said of itself. They belong to no team: who sees every team sees them."""

    scope: ClassVar[str] = "kill_switches"
    queryset = KillSwitch.objects.all()
    serializer_class = WorkerSerializer
    pagination_class = None
    filter_backends = ()

    @extend_schema(parameters=[WorkerQuestionSerializer], responses=forced_singular_serializer(WorkerPageSerializer))  # type: ignore[no-untyped-call]
    def list(self, request: Request) -> Response:
        """The workers, alive or lately so, by their id."""
        if not self.caller.sees_all_teams:
            raise PermissionDenied("Workers serve every team: ask who sees all of them.")
        asked = WorkerQuestionSerializer(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        size, after = asked.validated_data["page_size"], asked.validated_data.get("cursor", "")
        client = flags.redis_client()
        live = set(workers.live_workers(client))
        rows = [status for status in workers.statuses(client) if status.worker > after]
        following = None
        if len(rows) > size:
            rows = rows[:size]
            following = replace_query_param(request.build_absolute_uri(), "cursor", rows[-1].worker)
        results = [msgspec.structs.asdict(row) | {"is_live": row.worker in live} for row in rows]
        return Response(WorkerPageSerializer({"next": following, "results": results}).data)
