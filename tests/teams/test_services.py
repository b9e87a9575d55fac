"""People, teams and projects: what each verb makes, and leaves on record."""

import pytest
from django.core.exceptions import ValidationError

from audit.models import AuditEntry
from teams import services
from teams.models import Membership, User
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db


def test_a_team_and_its_project_are_made_and_recorded():
    team = services.create_team("Research", "research", actor=ACTOR, time_zone="Europe/Berlin")
    project = services.create_project(
        team, "Search", "search", actor=ACTOR, environment="prod", default_tags={"feature": "search"}
    )
    assert project.team == team and project.environment == "prod"
    assert [entry.object_name for entry in AuditEntry.objects.order_by("id")] == ["Research", "Search"]


def test_two_projects_of_a_team_have_different_slugs():
    project = factories.ProjectFactory(slug="search")
    with pytest.raises(ValidationError):
        services.create_project(project.team, "Other", "search", actor=ACTOR)
    services.create_project(factories.TeamFactory(), "Other", "search", actor=ACTOR)


def test_a_password_is_set_and_never_recorded():
    user = services.create_user("alice", "alice@example.com", "correct horse battery", actor=ACTOR)
    assert User.objects.get().check_password("correct horse battery")
    services.set_password(user, "another horse entirely", actor=ACTOR)
    assert User.objects.get().check_password("another horse entirely")
    recorded = str(list(AuditEntry.objects.values()))
    assert "horse" not in recorded and "pbkdf2" not in recorded
    assert AuditEntry.objects.filter(action="set password").count() == 1


def test_a_member_is_added_once_and_then_changes_role():
    user, team = factories.UserFactory(), factories.TeamFactory()
    services.set_member(user, team, "viewer", actor=ACTOR)
    services.set_member(user, team, "owner", actor=ACTOR)
    assert Membership.objects.get().role == "owner"
    assert [entry.action for entry in AuditEntry.objects.order_by("id")] == ["create", "change"]


def test_nobody_gets_a_role_there_is_not():
    with pytest.raises(ValidationError):
        services.set_member(factories.UserFactory(), factories.TeamFactory(), "emperor", actor=ACTOR)
