"""Budgets and limits: each has exactly one subject, and a rule of a key moves the key's record on."""

from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from audit.models import AuditEntry
from budgets import services
from budgets.models import Budget, Limit
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
