"""Pages of budgets, limits and the ledger: the scope follows from the subject; names are shown where the ledger has ids."""

import datetime

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone

from audit.models import AuditEntry
from budgets.models import Budget, Limit
from keys.models import VirtualKey
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


def url(name, *args):
    return reverse(f"admin:{name}", args=args)


def budget_form(**fields):
    about = next((name for name in ("team", "project", "virtual_key") if name in fields), "everybody")
    form = {"about": about, "name": "cap", "each_window": "month", "amount": "100", "unit": "usd", "mode": "hard"}
    form |= {"fiscal_month": "1", "rollover": "0", "is_active": "on"}
    return form | {"thresholds-TOTAL_FORMS": "0", "thresholds-INITIAL_FORMS": "0"} | fields


def test_the_scope_follows_from_the_subject(client, boss):
    key = factories.VirtualKeyFactory()
    for field, subject in [("team", key.project.team), ("project", key.project), ("virtual_key", key)]:
        page = client.post(url("budgets_budget_add"), budget_form(**{field: str(subject.pk)}))
        assert page.status_code == 302, page.context["adminform"].form.errors
    assert [(budget.scope, budget.owner) for budget in Budget.objects.order_by("id")] == [
        ("team", key.project.team),
        ("project", key.project),
        ("key", key),
    ]
    assert VirtualKey.objects.get().version == 2


def test_a_budget_of_two_owners_is_refused(client, boss):
    key = factories.VirtualKeyFactory()
    both = {"team": str(key.project.team.pk), "project": str(key.project.pk), "about": "anything"}
    page = client.post(url("budgets_budget_add"), budget_form(**both))
    assert page.status_code == 200 and "at most one" in page.content.decode()
    assert not Budget.objects.exists()


def test_raising_a_cap_is_recorded(client, boss):
    budget = factories.BudgetFactory(name="cap", amount=100)
    page = client.post(url("budgets_budget_change", budget.pk), budget_form(amount="200", reason="launch"))
    assert page.status_code == 302, page.context["adminform"].form.errors
    entry = AuditEntry.objects.get()
    assert (entry.before["amount"], entry.after["amount"]) == ("100.000000000", "200")
    assert entry.reason == "launch"


def test_a_member_budgets_no_other_team(client):
    alice = factories.UserFactory(username="alice")
    alice.user_permissions.set(Permission.objects.filter(content_type__app_label="budgets"))
    factories.MembershipFactory(user=alice, role="owner")
    client.force_login(alice)
    page = client.post(url("budgets_budget_add"), budget_form(team=str(factories.TeamFactory().pk)))
    assert page.status_code == 200 and not Budget.objects.exists()


def test_a_limit_is_set(client, boss):
    team = factories.TeamFactory()
    form = {
        "about": "team",
        "team": str(team.pk),
        "metric": "requests",
        "amount": "60",
        "window_s": "60",
        "is_active": "on",
    }
    client.post(url("budgets_limit_add"), form)
    assert Limit.objects.get().amount == 60
    assert "such a limit already" in client.post(url("budgets_limit_add"), form).content.decode()


def test_the_ledger_shows_names_and_exact_costs(client, boss):
    key = factories.VirtualKeyFactory(name="chatbot", project__name="Search", project__team__name="Research")
    factories.UsageRecordFactory(
        team_id=key.project.team.pk, project_id=key.project.pk, virtual_key_id=key.pk, cost_usd="0.000000001"
    )
    page = client.get(url("audit_usagerecord_changelist")).content.decode()
    for text in ("chatbot", "Search", "Research", "0.000000001"):
        assert text in page


def test_the_ledger_is_filtered(client, boss):
    team = factories.TeamFactory()
    wanted = factories.UsageRecordFactory(team_id=team.pk, model="gpt", state="suspense")
    factories.UsageRecordFactory(model="other", admitted_at=timezone.now() - datetime.timedelta(days=3))
    today = timezone.now().date().isoformat()
    for query in [
        {"team": str(team.pk)},
        {"model": "gpt"},
        {"state__exact": "suspense"},
        {"request_id": str(wanted.request_id)},
        {"admitted_at_from_0": today, "admitted_at_from_1": "00:00:00"},
    ]:
        page = client.get(url("audit_usagerecord_changelist"), query)
        assert page.status_code == 200, query
        assert [row.pk for row in page.context["cl"].result_list] == [wanted.pk], query


def test_a_filter_that_makes_no_sense_finds_nothing_and_breaks_nothing(client, boss):
    factories.UsageRecordFactory()
    for query in [{"team": "x"}, {"request_id": "not an id"}, {"project_id": "'; DROP TABLE"}]:
        assert client.get(url("audit_usagerecord_changelist"), query).status_code in (200, 302), query
