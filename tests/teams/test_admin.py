"""Pages of people and teams: nobody hands out more than they hold."""

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse

from audit.models import AuditEntry
from teams.models import Membership, ServiceAccount, Team, User
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


@pytest.fixture
def clerk(client):
    """Works on users and teams, sees every team, and is no superuser."""
    user = factories.UserFactory(username="clerk")
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="teams"))
    client.force_login(user)
    return user


def url(name, *args):
    return reverse(f"admin:teams_{name}", args=args)


def user_form(user, **fields):
    return {
        "username": user.username,
        "email": user.email,
        "first_name": "",
        "last_name": "",
        "is_active": "on",
        "is_staff": "on",
        **fields,
    }


def inline(prefix, *rows, initial=0):
    management = {f"{prefix}-TOTAL_FORMS": len(rows), f"{prefix}-INITIAL_FORMS": initial}
    return management | {f"{prefix}-{n}-{name}": value for n, row in enumerate(rows) for name, value in row.items()}


def test_a_user_is_made_with_a_password(client, boss):
    form = {
        "username": "alice",
        "email": "alice@example.com",
        "usable_password": "true",
        "password1": "correct horse battery",
        "password2": "correct horse battery",
        "reason": "joined",
    }
    page = client.post(url("user_add"), form)
    assert page.status_code == 302, page.context["adminform"].form.errors
    assert User.objects.get(username="alice").check_password("correct horse battery")
    entry = AuditEntry.objects.get()
    assert entry.reason == "joined" and "pbkdf2" not in str(entry.after)


def test_a_superuser_gives_groups_and_it_is_recorded(client, boss):
    user, group = factories.UserFactory(), factories.GroupFactory(name="Finance")
    client.post(url("user_change", user.pk), user_form(user, groups=[str(group.pk)], reason="new job"))
    entry = AuditEntry.objects.get()
    assert entry.after == {"groups": ["Finance"]} and entry.reason == "new job"


def test_nobody_makes_a_superuser_but_one(client, clerk):
    user, group = factories.UserFactory(), factories.GroupFactory()
    client.post(url("user_change", user.pk), user_form(user, is_superuser="on", groups=[str(group.pk)]))
    user.refresh_from_db()
    assert not user.is_superuser and not user.groups.exists()
    client.post(url("user_change", clerk.pk), user_form(clerk, is_superuser="on"))
    clerk.refresh_from_db()
    assert not clerk.is_superuser


def test_nobody_sets_the_password_of_who_holds_more(client, clerk):
    chief = factories.UserFactory(is_superuser=True)
    auditor = factories.UserFactory()
    auditor.user_permissions.set(Permission.objects.filter(codename="view_auditentry"))
    form = {"usable_password": "true", "password1": "correct horse battery", "password2": "correct horse battery"}
    for user in (chief, auditor):
        assert client.post(reverse("admin:auth_user_password_change", args=[user.pk]), form).status_code == 403
        assert client.post(url("user_change", user.pk), user_form(user, email="mine@example.com")).status_code == 403
    assert not AuditEntry.objects.exists()


def test_a_password_set_in_the_admin_is_recorded(client, boss):
    user = factories.UserFactory()
    form = {"usable_password": "true", "password1": "correct horse battery", "password2": "correct horse battery"}
    assert client.post(reverse("admin:auth_user_password_change", args=[user.pk]), form).status_code == 302
    assert User.objects.get(pk=user.pk).check_password("correct horse battery")
    assert AuditEntry.objects.get().action == "set password"


def test_groups_are_the_superusers_business(client, clerk):
    group = factories.GroupFactory()
    assert client.get(url("group_add")).status_code == 403
    everything = [str(pk) for pk in Permission.objects.values_list("pk", flat=True)]
    page = client.post(url("group_change", group.pk), {"name": group.name, "permissions": everything})
    assert page.status_code == 403 and not group.permissions.exists()


def test_the_permissions_of_a_group_are_recorded(client, boss):
    group = factories.GroupFactory(name="Finance")
    permission = Permission.objects.get(codename="view_budget")
    client.post(url("group_change", group.pk), {"name": "Finance", "external_id": "", "permissions": [permission.pk]})
    assert "Can view budget" in str(AuditEntry.objects.get().after)


def test_members_are_added_changed_and_removed_on_the_page_of_their_team(client, boss):
    team, alice, bob = factories.TeamFactory(name="T", slug="t"), factories.UserFactory(), factories.UserFactory()
    form = {"name": "T", "slug": "t", "time_zone": "UTC"}
    rows = [{"user": str(alice.pk), "role": "owner"}, {"user": str(bob.pk), "role": "viewer"}]
    page = client.post(url("team_change", team.pk), form | inline("memberships", *rows))
    assert page.status_code == 302, page.content
    assert Membership.objects.count() == 2
    stored = {member.user_id: member for member in Membership.objects.all()}
    rows = [
        {"id": str(stored[alice.pk].pk), "user": str(alice.pk), "role": "member", "team": str(team.pk)},
        {"id": str(stored[bob.pk].pk), "user": str(bob.pk), "role": "viewer", "team": str(team.pk), "DELETE": "on"},
    ]
    client.post(url("team_change", team.pk), form | inline("memberships", *rows, initial=2))
    assert Membership.objects.get().role == "member"
    actions = AuditEntry.objects.filter(object_type="teams.membership").order_by("id").values_list("action", flat=True)
    assert list(actions) == ["create", "create", "delete", "change"]


def test_a_member_does_not_become_owner_by_the_own_hand(client):
    alice = factories.UserFactory(username="alice")
    alice.user_permissions.set(Permission.objects.filter(content_type__app_label="teams"))
    alice.user_permissions.remove(Permission.objects.get(codename="view_all_teams"))
    client.force_login(alice)
    membership = factories.MembershipFactory(user=alice, role="member", team__name="T", team__slug="t")
    row = {"id": str(membership.pk), "user": str(alice.pk), "role": "owner", "team": str(membership.team.pk)}
    form = {"name": "T2", "slug": "t", "time_zone": "UTC"}
    client.post(url("team_change", membership.team.pk), form | inline("memberships", row, initial=1))
    membership.refresh_from_db()
    assert membership.role == "member" and Team.objects.get().name == "T2"


def test_an_account_for_every_team_is_made_by_who_sees_every_team_and_scopes_by_a_superuser(client):
    alice = factories.UserFactory(username="alice")
    alice.user_permissions.set(Permission.objects.filter(content_type__app_label="teams"))
    alice.user_permissions.remove(Permission.objects.get(codename="view_all_teams"))
    team = factories.MembershipFactory(user=alice, role="owner").team
    client.force_login(alice)
    page = client.post(url("serviceaccount_add"), {"name": "bot", "is_active": "on", "scopes": ["keys:read"]})
    assert page.status_code == 200 and not ServiceAccount.objects.exists()
    form = {"name": "bot", "is_active": "on", "scopes": ["keys:read", "usage:read"], "team": str(team.pk)}
    page = client.post(url("serviceaccount_add"), form)
    assert page.status_code == 302, page.context["adminform"].form.errors
    account = ServiceAccount.objects.get()
    assert account.team == team
    assert account.scopes == []
    ServiceAccount.objects.update(scopes=["keys:read"])
    page = client.post(url("serviceaccount_change", account.pk), {**form, "name": "taken over"})
    assert ServiceAccount.objects.get().name == "bot"
    client.force_login(factories.UserFactory(username="root", is_superuser=True))
    client.post(url("serviceaccount_change", account.pk), form)
    assert ServiceAccount.objects.get().scopes == ["keys:read", "usage:read"]
