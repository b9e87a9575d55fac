"""Budgets and limits: each has exactly one subject, and a rule of a key moves the key's record on."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from audit.actors import Actor
from audit.models import AuditEntry
from budgets import services
from budgets.models import Budget, Increase, Limit, subject_of
from controlplane import compiler
from keys import services as keys
from keys.models import VirtualKey
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db


def test_a_budget_is_for_a_team_a_project_or_a_key():
    key = factories.VirtualKeyFactory()
    for subject in (key.project.team, key.project, key):
        budget = services.create_budget(subject, "cap", "month", Decimal("12.5"), actor=ACTOR)
        assert budget.owner == subject and budget.mode == "hard"
    assert list(Budget.objects.order_by("id").values_list("scope", flat=True)) == ["team", "project", "key"]
    assert AuditEntry.objects.filter(object_type="budgets.budget").count() == 3


@pytest.mark.parametrize("amount", ["-1", "0.0000000001", "1234567890"])
def test_an_amount_that_is_none_is_refused(amount):
    with pytest.raises(ValidationError):
        services.create_budget(factories.TeamFactory(), "cap", "month", Decimal(amount), actor=ACTOR)


def test_a_window_there_is_not_is_refused():
    with pytest.raises(ValidationError):
        services.create_budget(factories.TeamFactory(), "cap", "fortnight", Decimal(1), actor=ACTOR)


def test_a_rule_has_one_subject_the_database_says_so():
    key = factories.VirtualKeyFactory()
    wrong = [
        {"scope": "team"},
        {"scope": "team", "project": key.project},
        {"scope": "team", "team": key.project.team, "virtual_key": key},
        {"scope": "planet", "team": key.project.team},
    ]
    for fields in wrong:
        for rule in (Budget(name="x", amount=1, **fields), Limit(metric="requests", amount=1, **fields)):
            with pytest.raises(ValidationError):
                rule.full_clean()
            with pytest.raises(IntegrityError), transaction.atomic():
                rule.save()


def test_a_subject_has_one_limit_of_a_kind():
    team = factories.TeamFactory()
    services.create_limit(team, "requests", 60, actor=ACTOR)
    services.create_limit(team, "tokens", 60, actor=ACTOR)
    with pytest.raises(ValidationError, match="such a limit already"):
        services.create_limit(team, "requests", 90, actor=ACTOR)


def test_a_rule_of_a_key_counts_its_version_up():
    key = factories.VirtualKeyFactory()
    limit = services.create_limit(key, "requests", 60, actor=ACTOR)
    services.change_rule(limit, actor=ACTOR, values={"amount": 90})
    services.remove_rule(limit, actor=ACTOR)
    assert VirtualKey.objects.get().version == 4
    services.create_limit(key.project, "requests", 60, actor=ACTOR)
    assert VirtualKey.objects.get().version == 4


def test_a_rule_keeps_its_subject():
    budget = factories.BudgetFactory()
    with pytest.raises(ValidationError, match="subject stays"):
        services.change_rule(budget, actor=ACTOR, values={"team": factories.TeamFactory()})


# Subjects


def test_a_rule_names_any_combination_and_says_so_to_people():
    project = factories.ProjectFactory(name="Search")
    deployment = factories.DeploymentFactory(model__name="small", provider__slug="acme")
    budget = services.create_budget(
        project, "cap", "week", Decimal(5), actor=ACTOR, model=deployment.model, tags={"customer": "acme"},
        each=["tag:feature", "end_user"],
    )  # fmt: skip
    assert (budget.scope, budget.each) == ("project", ["end_user", "tag:feature"])
    assert budget.subject == "Search · small · customer=acme, each end user, each tag feature"
    (row,) = Budget.objects.all().with_subject()
    assert subject_of(row) == {
        "project": str(project.pk),
        "model": "small",
        "tag:customer": "acme",
        "end_user": "*",
        "tag:feature": "*",
    }
    assert services.create_budget(None, "all", "total", Decimal(5), actor=ACTOR).subject == "everybody"


@pytest.mark.parametrize(
    "fields",
    [
        {"each": ["colour"]},
        {"each": ["tag:"]},
        {"each": ["end_user", "end_user"]},
        {"each": ["end_user"], "end_user": "ann"},
        {"each": ["tag:a"], "tags": {"a": "b"}},
        {"each": ["team"]},
        {"each": ["environment"]},
        {"end_user": "*"},
        {"tags": {"a": "*"}},
        {"tags": {"a b": "c"}},
        {"tags": {"a": "1", "b": "1", "c": "1", "d": "1", "e": "1"}},
        {"environment": "moon"},
    ],
)
def test_a_subject_that_makes_no_sense_is_refused(fields):
    project = factories.ProjectFactory()
    with pytest.raises(ValidationError):
        services.create_budget(project, "cap", "month", Decimal(1), actor=ACTOR, **fields)
    with pytest.raises(ValidationError):
        services.create_limit(project, "requests", 1, actor=ACTOR, **fields)


NEXT_YEAR = timezone.now() + timedelta(days=365)


@pytest.mark.parametrize(
    "fields",
    [
        {"window": "fixed"},
        {"window": "fixed", "starts_at": NEXT_YEAR},
        {"window": "fixed", "starts_at": NEXT_YEAR, "ends_at": NEXT_YEAR},
        {"window": "month", "starts_at": NEXT_YEAR, "ends_at": NEXT_YEAR + timedelta(days=1)},
        {"window": "total", "rollover": Decimal(1)},
        {"unit": "tokens", "amount": Decimal("1.5")},
        {"unit": "requests", "amount": Decimal(2**53 + 1)},
        {"fiscal_month": 13},
        {"fiscal_month": 0},
        {"time_zone": "Mars/Base"},
        {"mode": "gentle"},
    ],
)
def test_a_budget_that_cannot_be_counted_is_refused(fields):
    given = {"window": "month", "amount": Decimal(1)} | fields
    with pytest.raises(ValidationError):
        services.create_budget(factories.TeamFactory(), "cap", actor=ACTOR, **given)


def test_an_observed_limit_stands_beside_the_one_that_is_enforced():
    team = factories.TeamFactory()
    for fields in ({}, {"is_observed": True}, {"window_s": 3_600}, {"end_user": "ann"}):
        services.create_limit(team, "requests", 60, actor=ACTOR, **fields)
    assert [str(limit) for limit in Limit.objects.order_by("id")][2] == "60 requests per hour"
    with pytest.raises(ValidationError, match="fractions"):
        services.create_limit(team, "tokens", Decimal("0.5"), actor=ACTOR)
    services.create_limit(team, "spend", Decimal("0.5"), actor=ACTOR)


def test_a_rotated_key_keeps_its_budget(redis_url):
    key = factories.VirtualKeyFactory()
    budget = services.create_budget(key, "cap", "month", Decimal(1), actor=ACTOR)
    services.create_limit(key, "requests", 60, actor=ACTOR)
    rotated = keys.rotate_virtual_key(key, actor=ACTOR, reason="leaked").virtual_key
    (record,) = compiler.compile_keys([rotated.digest]).values()
    assert [rule.budget_id for rule in record.budgets] == [str(budget.pk)] and len(record.limits) == 1
    assert record.budgets[0].subject == {"key": str(key.pk)}


def test_the_last_change_is_undone_and_no_older_one():
    budget = services.create_budget(factories.TeamFactory(), "cap", "month", Decimal(100), actor=ACTOR)
    with pytest.raises(ValidationError, match="Nothing to undo"):
        services.undo_change(budget, actor=ACTOR)
    services.change_rule(budget, actor=ACTOR, values={"amount": Decimal(5), "mode": "soft"})
    services.undo_change(budget, actor=ACTOR, reason="a slip")
    budget.refresh_from_db()
    assert (budget.amount, budget.mode) == (100, "hard")
    assert AuditEntry.objects.about(budget).order_by("-id")[0].action == "undo"
    with pytest.raises(ValidationError, match="Nothing to undo"):
        services.undo_change(budget, actor=ACTOR)


# Thresholds


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("throttle", {}),
        ("downgrade", {}),
        ("block", {"per_minute": 5}),
        ("alert", {"per_minute": 5}),
        ("shout", {}),
    ],
)
def test_a_threshold_says_what_its_action_needs_and_no_more(action, fields):
    with pytest.raises(ValidationError):
        services.add_threshold(factories.BudgetFactory(), 80, action, actor=ACTOR, **fields)


def test_thresholds_and_increases_of_a_key_travel_with_its_record():
    key = factories.VirtualKeyFactory()
    budget = services.create_budget(key, "cap", "month", Decimal(1), actor=ACTOR)
    alias = factories.ModelAliasFactory(name="cheap")
    services.add_threshold(budget, 80, "alert", actor=ACTOR)
    services.add_threshold(budget, 90, "throttle", actor=ACTOR, per_minute=5)
    services.add_threshold(budget, 95, "downgrade", actor=ACTOR, alias=alias)
    now = timezone.now()
    services.grant_increase(budget, Decimal(2), now, now + timedelta(days=1), actor=ACTOR, reason="launch")
    key.refresh_from_db()
    assert key.version == 6
    (record,) = compiler.compile_keys([key.digest]).values()
    (compiled,) = record.budgets
    assert [(t.percent, t.action, t.per_minute, t.alias) for t in compiled.thresholds] == [
        (90, "throttle", 5, ""),
        (95, "downgrade", 0, "cheap"),
    ]
    assert [increase.amount for increase in compiled.increases] == [2 * 10**9]


# Increases


ASKER, BOSS = Actor("user", "1", "Ann"), Actor("user", "2", "Bob")


def asked(budget=None):
    now = timezone.now()
    budget = budget or factories.BudgetFactory()
    return services.request_increase(budget, Decimal(5), now, now + timedelta(days=2), actor=ASKER, reason="launch")


def test_what_is_asked_for_counts_once_somebody_else_has_approved_it():
    increase = asked()
    assert not Increase.objects.in_force(timezone.now()).exists()
    with pytest.raises(ValidationError, match="Somebody else"):
        services.approve_increase(increase, actor=ASKER, reason="mine")
    services.approve_increase(increase, actor=BOSS, reason="go ahead")
    assert Increase.objects.in_force(timezone.now()).get() == increase
    for decide in (services.approve_increase, services.reject_increase):
        with pytest.raises(ValidationError, match="approved by Bob already"):
            decide(increase, actor=BOSS, reason="again")
    actions = AuditEntry.objects.about(increase).order_by("id").values_list("actor_name", "action", "reason")
    assert list(actions) == [("Ann", "request", "launch"), ("Bob", "approve", "go ahead")]


def test_nobody_approves_the_own_request_the_database_says_so():
    increase = asked()
    with pytest.raises(IntegrityError), transaction.atomic():
        Increase.objects.filter(pk=increase.pk).update(
            state="approved", decided_by=increase.requested_by, decided_at=timezone.now()
        )


def test_what_is_rejected_changes_nothing():
    increase = asked()
    services.reject_increase(increase, actor=BOSS, reason="no")
    assert not Increase.objects.in_force(timezone.now()).exists()
    with pytest.raises(ValidationError, match="not in force"):
        services.end_increase(increase, actor=BOSS, reason="x")


def test_an_increase_ends_early_or_never_begins():
    budget, now = factories.BudgetFactory(), timezone.now()
    running = services.grant_increase(budget, Decimal(5), now, now + timedelta(days=2), actor=BOSS, reason="launch")
    later = services.grant_increase(
        budget, Decimal(5), now + timedelta(days=1), now + timedelta(days=2), actor=BOSS, reason="later"
    )
    for increase in (running, later):
        services.end_increase(increase, actor=BOSS, reason="over")
    assert not Increase.objects.in_force(timezone.now()).exists()
    assert list(Increase.objects.values_list("pk", flat=True)) == [running.pk]


@pytest.mark.parametrize(
    ("amount", "unit", "days"), [("0", "usd", (0, 1)), ("1", "usd", (2, 1)), ("1", "usd", (-2, -1)), ("1.5", "tokens", (0, 1))]
)  # fmt: skip
def test_an_increase_that_makes_no_sense_is_refused(amount, unit, days):
    budget = factories.BudgetFactory(unit=unit)
    starts_at, ends_at = (timezone.now() + timedelta(days=number) for number in days)
    with pytest.raises(ValidationError):
        services.request_increase(budget, Decimal(amount), starts_at, ends_at, actor=ASKER, reason="x")
