"""Who sees what: the reads that every list, form and endpoint is bounded by; and what the fields refuse."""

import pytest
from django.contrib.auth.models import AnonymousUser, Permission
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from audit.querysets import OWNER, WRITERS
from budgets.models import Budget
from keys.models import KillSwitch, VirtualKey
from teams.models import Membership, Project, ServiceAccount, Team, User
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice():
    """Owner of one team, viewer of another; there is a third."""
    user = factories.UserFactory(username="alice")
    for role in ("owner", "viewer"):
        factories.MembershipFactory(user=user, role=role, team=factories.TeamFactory(name=role))
    factories.TeamFactory(name="stranger")
    for team in Team.objects.all():
        key = factories.VirtualKeyFactory(project__team=team, name=team.name, project__name=team.name)
        factories.BudgetFactory(name=team.name, team=team)
        factories.BudgetFactory(name=team.name, scope="project", project=key.project)
        factories.BudgetFactory(name=team.name, scope="key", virtual_key=key)
    return user


def names(queryset):
    return {row.name for row in queryset}


@pytest.mark.parametrize("model", [Team, Project, VirtualKey, Budget])
def test_a_member_sees_the_own_teams_and_writes_by_role(alice, model):
    assert names(model.objects.for_user(alice)) == {"owner", "viewer"}
    assert names(model.objects.for_user(alice, WRITERS)) == {"owner"}


def test_budgets_of_every_scope_follow_their_team(alice):
    assert Budget.objects.for_user(alice, (OWNER,)).count() == 3


@pytest.mark.parametrize("model", [Team, Project, VirtualKey, Budget, Membership, ServiceAccount, User, KillSwitch])
def test_the_inactive_and_the_anonymous_see_nothing(alice, model):
    factories.KillSwitchFactory()
    nobody = factories.UserFactory(is_active=False, is_superuser=True)
    assert not model.objects.for_user(nobody).exists()
    assert not model.objects.for_user(AnonymousUser()).exists()
    assert not model.objects.for_user(factories.ServiceAccountFactory(is_active=False)).exists()


def test_who_may_view_all_teams_sees_them(alice):
    auditor = factories.UserFactory()
    assert not Team.objects.for_user(auditor).exists()
    auditor.user_permissions.add(Permission.objects.get(codename="view_all_teams"))
    assert Team.objects.for_user(User.objects.get(pk=auditor.pk)).count() == 3


def test_an_account_of_a_team_sees_that_team(alice):
    team = Team.objects.get(name="stranger")
    assert names(VirtualKey.objects.for_user(factories.ServiceAccountFactory(team=team))) == {"stranger"}
    assert VirtualKey.objects.for_user(factories.ServiceAccountFactory()).count() == 3


def test_colleagues_see_each_other_and_nobody_else(alice):
    bob = factories.MembershipFactory(team=Team.objects.get(name="owner")).user
    factories.MembershipFactory(team=Team.objects.get(name="stranger"))
    assert set(User.objects.for_user(alice)) == {alice, bob}


def test_kill_switches_of_other_teams_stay_theirs(alice):
    own, other = Team.objects.get(name="owner"), Team.objects.get(name="stranger")
    key = VirtualKey.objects.get(name="owner")
    seen = [
        factories.KillSwitchFactory(),
        factories.KillSwitchFactory(scope="team", target=str(own.pk)),
        factories.KillSwitchFactory(scope="project", target=str(key.project.pk)),
        factories.KillSwitchFactory(scope="key", target=str(key.pk)),
    ]
    factories.KillSwitchFactory(scope="team", target=str(other.pk))
    factories.KillSwitchFactory(scope="key", target=str(VirtualKey.objects.get(name="stranger").pk))
    assert set(KillSwitch.objects.for_user(alice)) == set(seen)
    assert set(KillSwitch.objects.for_user(alice, WRITERS)) == set(seen[1:])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "America/St_Johns"])
def test_a_time_zone_is_an_iana_name(zone):
    Team(name="a", slug="a", time_zone=zone).full_clean()


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../../etc/passwd", "europe/berlin "])
def test_no_other_time_zone_is_taken(zone):
    with pytest.raises(ValidationError):
        Team(name="a", slug="a", time_zone=zone).full_clean()


@pytest.mark.parametrize(
    "tags", [["a"], {"a": 1}, {"a b": "x"}, {"": "x"}, {"a": "x" * 257}, {"a": "line\nbreak"}, "text"]
)
def test_tags_are_an_object_of_strings(tags):
    with pytest.raises(ValidationError):
        factories.ProjectFactory.build(team=factories.TeamFactory(), default_tags=tags).full_clean()


def test_an_email_is_taken_once_in_any_case():
    factories.UserFactory(email="Alice@example.com")
    with pytest.raises(IntegrityError), transaction.atomic():
        factories.UserFactory(email="alice@example.com")


def test_an_account_of_one_team_gets_no_scope_beyond_it():
    account = factories.ServiceAccountFactory.build(team=factories.TeamFactory(), scopes=["keys:write"])
    account.full_clean()
    account.scopes = ["keys:write", "credentials:write"]
    with pytest.raises(ValidationError, match="beyond one team"):
        account.full_clean()


def test_no_scope_is_made_up():
    with pytest.raises(ValidationError, match="not a scope"):
        factories.ServiceAccountFactory.build(scopes=["everything:write"]).full_clean()
