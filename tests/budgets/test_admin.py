"""Pages of budgets, limits and the ledger: the scope follows from the subject; names are shown where the ledger has ids."""

import datetime
import uuid
from decimal import Decimal

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from audit.models import AuditEntry
from budgets import gate, services
from budgets.ledger_models import UsageHour
from budgets.models import Budget, Increase, Limit, subject_of
from keys.models import VirtualKey
from keys.redis import redis_client
from tests import factories
from tests.factories import ACTOR

DAY_S = 86_400

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]


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


def used(team, cost_usd, model="model"):
    """Spent in the present hour."""
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    names = {"alias": "alias", "model": model, "provider": "provider"}
    ids = {"project_id": uuid.uuid4(), "virtual_key_id": uuid.uuid4()}
    UsageHour.objects.create(team_id=team.pk, hour=hour, cost_usd=cost_usd, requests=1, **ids, **names)


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


@pytest.mark.parametrize(
    ("about", "fields", "subject"),
    [
        ("everybody", {}, {}),
        ("end_user", {"project": 1}, {"project": 1, "end_user": "*"}),
        ("tag", {"tags": "customer=acme, feature=chat"}, {"tag:customer": "acme", "tag:feature": "chat"}),
        ("model", {"project": 1, "model": 1}, {"project": 1, "model": "small"}),
        (
            "anything",
            {"project": 1, "environment": "", "each_of": ["key"], "each_tags": "customer"},
            {"project": 1, "key": "*", "tag:customer": "*"},
        ),
        # What the page has hidden since does not count.
        ("project", {"project": 1, "end_user": "ann", "tags": "a=b"}, {"project": 1}),
    ],
)
def test_a_subject_is_chosen_by_what_it_is_about(client, boss, about, fields, subject):
    project, model = factories.ProjectFactory(), factories.ModelFactory(name="small")
    ids = {"project": str(project.pk), "model": str(model.pk)}
    form = budget_form(**{name: ids[name] if value == 1 else value for name, value in fields.items()}, about=about)
    page = client.post(url("budgets_budget_add"), form)
    assert page.status_code == 302, page.context["adminform"].form.errors
    (budget,) = Budget.objects.all().with_subject()
    assert subject_of(budget) == {name: ids[name] if value == 1 else value for name, value in subject.items()}


@pytest.mark.parametrize("about", ["team", "tag", "provider", "model"])
def test_what_is_left_open_is_asked_for(client, boss, about):
    page = client.post(url("budgets_budget_add"), budget_form(about=about))
    assert page.status_code == 200 and "Choose one." in page.content.decode()


def test_a_cap_below_what_is_spent_is_confirmed_first(client, boss):
    budget = factories.BudgetFactory(name="cap", amount=100, window="day")
    used(budget.team, 60)
    path = url("budgets_budget_change", budget.pk)
    lower = budget_form(amount="50", each_window="day")
    page = client.post(path, lower)
    assert page.status_code == 200 and "60 USD used in this window already" in page.content.decode()
    budget.refresh_from_db()
    assert budget.amount == 100
    assert client.post(path, lower | {"is_confirmed": "on"}).status_code == 302
    assert client.post(path, budget_form(amount="60.5", each_window="day")).status_code == 302
    budget.refresh_from_db()
    assert budget.amount == Decimal("60.5")


def test_what_the_share_that_blocks_would_stop_is_confirmed_too(client, boss):
    budget = factories.BudgetFactory(name="cap", amount=100, window="day")
    factories.ThresholdFactory(budget=budget, percent=80, action="block")
    used(budget.team, 60)
    path = url("budgets_budget_change", budget.pk)
    rows = {"thresholds-TOTAL_FORMS": "0"}
    page = client.post(path, budget_form(amount="75", each_window="day", **rows))
    assert page.status_code == 200 and "60 USD used in this window already" in page.content.decode()
    assert client.post(path, budget_form(amount="76", each_window="day", **rows)).status_code == 302


def test_thresholds_are_edited_with_their_budget(client, boss):
    key = factories.VirtualKeyFactory()
    budget = factories.BudgetFactory(scope="key", team=None, virtual_key=key)
    rows = {"thresholds-TOTAL_FORMS": "1", "thresholds-0-percent": "90", "thresholds-0-action": "throttle"}
    path = url("budgets_budget_change", budget.pk)
    assert "requests per minute" in client.post(path, budget_form(**rows)).content.decode()
    assert client.post(path, budget_form(**rows, **{"thresholds-0-per_minute": "5"})).status_code == 302
    (threshold,) = budget.thresholds.all()
    assert (threshold.percent, threshold.per_minute) == (90, 5)
    key.refresh_from_db()
    assert key.version > 2


def test_a_budget_has_a_page_of_what_is_spent(client, boss):
    budget = factories.BudgetFactory(name="Cap of all", amount=100, window="month", each=["model"])
    for model, cost in (("small", 25), ("large", 125)):
        used(budget.team, cost, model)
    page = client.get(url("budgets_budget_spend", budget.pk))
    text = page.content.decode()
    assert [counter.each_text for counter in page.context["window"].counters] == ["large", "small"]
    for word in ("Cap of all", "$125.00", "$25.00", "$75.00"):
        assert word in text
    assert sum(page.context["chart"]["spent"]) == 150
    before = client.get(url("budgets_budget_spend", budget.pk), {"at": page.context["before"].isoformat()})
    assert before.context["window"].ends_at == page.context["window"].starts_at
    assert not before.context["window"].counters
    assert client.get(url("budgets_budget_spend", budget.pk), {"at": "nonsense"}).status_code == 200
    assert "$125.00" in client.get(url("budgets_budget_changelist")).content.decode()


def increase_form(**fields):
    until = timezone.now() + datetime.timedelta(days=2)
    moments = {
        "starts_at_0": "2026-01-01",
        "starts_at_1": "00:00",
        "ends_at_0": f"{until:%Y-%m-%d}",
        "ends_at_1": "00:00",
    }
    return {"amount": "5", "reason": "launch", **moments, **fields}


def increases_to_decide(client):
    """What the sidebar says."""
    sidebar = client.get(url("budgets_increase_changelist")).context["sidebar_navigation"]
    (link,) = [item for section in sidebar for item in section["items"] if item["title"] == "Increases"]
    return link.get("badge")


def test_alice_asks_bob_approves_and_charlie_sees_nothing():
    permissions = Permission.objects.filter(content_type__app_label="budgets")
    people = {name: factories.UserFactory(username=name) for name in ("alice", "bob", "charlie")}
    budget = factories.BudgetFactory(name="Cap of all")
    factories.MembershipFactory(user=people["alice"], team=budget.team, role="viewer")
    factories.MembershipFactory(user=people["bob"], team=budget.team, role="owner")
    factories.MembershipFactory(user=people["charlie"], role="owner")
    clients = {name: Client() for name in people}
    for name, person in people.items():
        person.user_permissions.set(permissions)
        clients[name].force_login(person)

    def post(name, path, data):
        return clients[name].post(path, data)

    assert post("charlie", url("budgets_budget_ask", budget.pk), increase_form()).status_code == 403
    assert post("alice", url("budgets_budget_grant", budget.pk), increase_form()).status_code == 403
    assert "This field is required" in post("alice", url("budgets_budget_ask", budget.pk), {}).content.decode()
    assert post("alice", url("budgets_budget_ask", budget.pk), increase_form()).status_code == 302
    increase = Increase.objects.get()
    approve = url("budgets_increase_approve", increase.pk)
    assert {name: increases_to_decide(client) for name, client in clients.items()} == {
        "alice": None,
        "bob": 1,
        "charlie": None,
    }
    for name in ("alice", "charlie"):
        assert post(name, approve, {"confirmed": "yes", "reason": "mine"}).status_code == 403
    assert post("bob", approve, {"confirmed": "yes", "reason": "go"}).status_code == 302
    increase.refresh_from_db()
    assert (increase.state, increase.note, increase.decided_by_name) == ("approved", "go", "bob")
    assert increases_to_decide(clients["bob"]) is None
    for path in (url("budgets_increase_changelist"), url("budgets_budget_changelist")):
        assert "Cap of all" not in clients["charlie"].get(path).content.decode()
    assert clients["charlie"].get(url("budgets_budget_spend", budget.pk)).status_code == 403
    assert "End it now" in clients["bob"].get(url("budgets_increase_change", increase.pk)).content.decode()


def test_a_change_is_taken_back_by_a_button(client, boss):
    budget = services.create_budget(factories.TeamFactory(), "cap", "month", Decimal(100), actor=ACTOR)
    path = url("budgets_budget_change", budget.pk)
    assert "Undo the last change" not in client.get(path).content.decode()
    client.post(path, budget_form(amount="200"))
    assert "Undo the last change" in client.get(path).content.decode()
    client.post(url("budgets_budget_undo", budget.pk), {"confirmed": "yes", "reason": "a slip"})
    budget.refresh_from_db()
    assert budget.amount == 100


def test_the_list_of_limits_says_what_would_have_been_refused(client, boss):
    limit = factories.LimitFactory(is_observed=True, each=["end_user"])
    factories.LimitFactory()
    would_refuse(limit, 1_212)
    page = client.get(url("budgets_limit_changelist")).content.decode()
    assert page.count("requests in the last 7 days") == 1 and "1,212 requests in the last 7 days" in page


@pytest.mark.parametrize("each", [[], ["end_user"]])
def test_the_page_of_a_budget_says_what_would_have_been_refused(client, boss, each):
    budget = factories.BudgetFactory(mode="observe", each=each)
    would_refuse(budget, 212)
    page = client.get(url("budgets_budget_spend", budget.pk)).content.decode()
    assert "Were it hard, it would have refused 212 requests in the last 7 days." in page
    enforced = client.get(url("budgets_budget_spend", factories.BudgetFactory().pk)).content.decode()
    assert "would have refused" not in enforced


def would_refuse(rule, requests):
    """Yesterday: it stays within the last days when midnight comes meanwhile."""
    yesterday_s = (int(timezone.now().timestamp()) // DAY_S - 1) * DAY_S
    redis_client().hset(gate.observed_key(yesterday_s), str(rule.pk), requests)


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
