"""Reads bounded by what a person may see. The rule of every list, form choice and API endpoint; no writes."""

from collections.abc import Collection, Iterable
from typing import Any, ClassVar, Protocol, Self, TypeVar

from django.db import models

Row = TypeVar("Row", bound=models.Model)

OWNER, MEMBER, VIEWER = "owner", "member", "viewer"
READERS = (OWNER, MEMBER, VIEWER)
WRITERS = (OWNER, MEMBER)


class Viewer(Protocol):
    """A user or a service account, as far as seeing goes."""

    is_active: Any

    @property
    def sees_all_teams(self) -> bool: ...

    def team_ids(self, roles: Collection[str] = READERS) -> Iterable[Any]: ...


class SharedQuerySet(models.QuerySet[Row]):
    """Rows that belong to no team: whoever is active and has the model's permission may see them."""

    def for_user(self, viewer: Any, roles: Collection[str] = READERS) -> Self:
        return self.all() if viewer.is_active else self.none()


class EveryTeamQuerySet(models.QuerySet[Row]):
    """Rows each of which may tell of any team: seen by who sees all teams, and by nobody else."""

    def for_user(self, viewer: Any, roles: Collection[str] = READERS) -> Self:
        return self.all() if viewer.is_active and viewer.sees_all_teams else self.none()


class TeamQuerySet(models.QuerySet[Row]):
    """Rows that belong to a team, which `team_paths` lead to; seen by that team and by who sees all teams."""

    team_paths: ClassVar[tuple[str, ...]] = ("team_id",)

    def for_user(self, viewer: Any, roles: Collection[str] = READERS) -> Self:
        """Rows of the teams in which the viewer has one of `roles`; nothing for the inactive and the anonymous."""
        if not viewer.is_active:
            return self.none()
        if viewer.sees_all_teams:
            return self.all()
        teams = viewer.team_ids(roles)
        belongs = models.Q()
        for path in self.team_paths:
            belongs |= models.Q(**{f"{path}__in": teams})
        return self.filter(belongs)
