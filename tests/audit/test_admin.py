"""Every admin page, for who may do all, who may do some, and Charlie, who may do nothing here."""

import html

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.urls import reverse

from audit.models import AuditEntry, UsageRecord
from budgets.models import Budget
from teams.models import User
from tests import factories

pytestmark = pytest.mark.django_db

PAGES = sorted(admin.site._registry, key=lambda model: model._meta.label)


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


def rows():
    """One row of every kind."""
    team = factories.TeamFactory()
    project = factories.ProjectFactory(team=team)
    key = factories.VirtualKeyFactory(project=project)
    budget = factories.BudgetFactory(scope="key", virtual_key=key)
    return {
        type(row): row
        for row in [
            team,
            project,
            key,
            factories.GroupFactory(),
            factories.UserFactory(),
            factories.ServiceAccountFactory(team=team),
            factories.ApiTokenFactory(service_account__team=team),
            factories.CredentialPoolFactory(),
            factories.UpstreamCredentialFactory(),
            factories.KillSwitchFactory(scope="team", target=str(team.pk)),
            factories.ProviderFactory(),
            factories.ModelFactory(),
            factories.PriceFactory(),
            factories.ExchangeRateFactory(),
            factories.ExchangeRateFeedFactory(),
            factories.ContractFactory(),
            factories.PriceProposalFactory(),
            factories.RerateFactory(),
            factories.DeploymentFactory(),
            factories.ModelAliasFactory(),
            budget,
            factories.IncreaseFactory(budget=budget),
            factories.LimitFactory(team=team),
            factories.ChannelFactory(team=team),
            factories.AlertFactory(team_id=team.pk),
            factories.DeliveryFactory(alert__team_id=team.pk),
            factories.UsageRecordFactory(team_id=team.pk, project_id=project.pk, virtual_key_id=key.pk),
            AuditEntry.objects.create(actor_kind="system", actor_name="x", action="y", object_type="z", after={"a": 1}),
        ]
    }


def url(model, page, *args):
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


@pytest.mark.parametrize("model", PAGES, ids=lambda model: model._meta.label)
def test_every_page_renders(client, boss, model):
    row = rows()[model]
    assert client.get(url(model, "changelist")).status_code == 200
    assert client.get(url(model, "change", row.pk)).status_code == 200
    assert client.get(url(model, "history", row.pk)).status_code == 200
    assert client.get(url(model, "changelist"), {"q": "x"}).status_code == 200
    may_add = admin.site._registry[model].has_add_permission(type("Request", (), {"user": boss})())
    assert client.get(url(model, "add")).status_code == (200 if may_add else 403)


@pytest.mark.parametrize("model", [model for model in PAGES if model is not User], ids=lambda model: model._meta.label)
def test_a_list_without_rows_says_what_it_is_for(client, boss, model):
    page = html.unescape(client.get(url(model, "changelist")).content.decode())
    empty_text = admin.site._registry[model].empty_text
    assert empty_text and empty_text in page
    assert "Reset search" not in page


@pytest.mark.parametrize(
    ("model", "narrowed"),
    [
        (User, {"q": "nobody"}),
        (Budget, {"mode__exact": "soft"}),
        (UsageRecord, {"model": "none"}),
        (UsageRecord, {"admitted_at_from_0": "2026-11-01", "admitted_at_to_0": "2026-12-01"}),
    ],
)
def test_a_list_that_is_narrowed_to_nothing_offers_to_widen_it(client, boss, model, narrowed):
    page = html.unescape(client.get(url(model, "changelist"), narrowed).content.decode())
    assert "Reset search and filters" in page
    assert admin.site._registry[model].empty_text not in page


@pytest.mark.parametrize("model", PAGES, ids=lambda model: model._meta.label)
def test_every_list_exports(client, boss, model):
    row = rows()[model]
    response = client.post(
        url(model, "changelist"), {"action": "export_csv", "_selected_action": [str(row.pk)], "select_across": "0"}
    )
    assert response.status_code == 200, response.content
    assert response["Content-Type"].startswith("text/csv")
    assert len(b"".join(response.streaming_content).splitlines()) == 2
    assert AuditEntry.objects.filter(action="export", actor_name="boss").exists()


TEAM_OWNED = {
    "team",
    "project",
    "virtualkey",
    "serviceaccount",
    "apitoken",
    "budget",
    "increase",
    "limit",
    "usagerecord",
}


@pytest.mark.parametrize("model", [m for m in PAGES if m._meta.model_name in TEAM_OWNED], ids=lambda m: m._meta.label)
def test_charlie_sees_nothing_of_other_teams(client, model):
    charlie = factories.UserFactory(username="charlie")
    charlie.user_permissions.set(Permission.objects.exclude(codename="view_all_teams"))
    factories.MembershipFactory(user=charlie, role="owner")
    client.force_login(charlie)
    row = rows()[model]
    listed = client.get(url(model, "changelist"))
    assert str(row.pk) not in listed.content.decode()
    assert client.get(url(model, "change", row.pk)).status_code == 302  # "doesn't exist", to the index.
    assert client.get(url(model, "history", row.pk)).status_code == 403
    assert client.get(url(model, "delete", row.pk)).status_code in (403, 404)
    assert client.post(url(model, "change", row.pk), {}).status_code in (302, 403)


def test_who_is_not_staff_is_sent_to_the_login(client):
    client.force_login(factories.UserFactory(is_staff=False, is_superuser=True))
    for model in PAGES:
        assert client.get(url(model, "changelist")).status_code == 302


def test_who_has_no_permission_is_refused(client):
    user = factories.UserFactory()
    client.force_login(user)
    for model in PAGES:
        assert client.get(url(model, "changelist")).status_code == 403


def test_nobody_sees_the_audit_without_seeing_all_teams(client):
    bob = factories.UserFactory()
    bob.user_permissions.set(Permission.objects.filter(codename="view_auditentry"))
    factories.MembershipFactory(user=bob)
    client.force_login(bob)
    row = rows()[AuditEntry]
    assert str(row.pk) not in client.get(url(AuditEntry, "changelist")).content.decode()


def test_the_audit_and_the_ledger_cannot_be_edited_in_the_admin(client, boss):
    made = rows()
    for name in ("auditentry", "usagerecord"):
        model = next(m for m in PAGES if m._meta.model_name == name)
        page = client.get(url(model, "change", made[model].pk)).content.decode()
        assert 'name="_save"' not in page
        assert client.get(url(model, "delete", made[model].pk)).status_code == 403
        assert client.post(url(model, "change", made[model].pk), {"reason": "x"}).status_code == 403


def test_scripts_are_evaluated_in_the_admin_only(client, boss):
    assert "'unsafe-eval'" in client.get(reverse("admin:index"))["Content-Security-Policy"]
    assert "'unsafe-eval'" not in client.get("/healthz")["Content-Security-Policy"]
