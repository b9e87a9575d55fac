"""What a record cost and why."""

import uuid
from decimal import Decimal

import msgspec
import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse

from audit.records import PriceTerms, Usage
from budgets import price_book, pricing
from budgets.receipt import attempts_of, receipt_of
from tests import factories

pytestmark = pytest.mark.django_db


def test_the_lines_add_up_to_the_cost():
    price = factories.PriceFactory(input=2, cached_input=Decimal("0.5"), output=8, per_request=Decimal("0.001"))
    record = factories.UsageRecordFactory(
        price_id=price.pk,
        input_tokens=1_000,
        cache_read_input_tokens=400,
        output_tokens=100,
        cost_usd=Decimal("0.0032"),
    )
    receipt = receipt_of(record)
    assert [(line.what, line.number, line.amount) for line in receipt.lines] == [
        ("Input", 600, Decimal("0.0012")),
        ("Input read from the provider's cache", 400, Decimal("0.0002")),
        ("Output", 100, Decimal("0.0008")),
        ("Request", 1, Decimal("0.001")),
    ]
    assert receipt.total == record.cost_usd
    assert receipt.usd_per_unit is None


RARE = {
    "input_tokens": 10_000,
    "cache_read_input_tokens": 1_000,
    "cache_write_input_tokens": 3_000,
    "cache_write_1h_input_tokens": 1_000,
    "input_audio_tokens": 500,
    "input_image_tokens": 700,
    "output_tokens": 900,
    "output_audio_tokens": 300,
    "output_image_tokens": 100,
    "tool_calls": 2,
    "searches": 1,
    "reasoning_tokens": 200,
    "units": 5,
}
RATES = {
    "cache_write_1h": 6,
    "input_audio": 32,
    "input_image": 10,
    "output_audio": 64,
    "output_image": 40,
    "per_tool_call": Decimal("0.01"),
    "per_search": Decimal("0.025"),
    "reasoning": 12,
    "per_unit": Decimal("0.04"),
    "per_request": Decimal("0.001"),
}


@pytest.mark.parametrize("operation", ["chat", "images", "batch"])
@pytest.mark.parametrize("left_out", [None, *RATES])
def test_the_lines_of_every_meter_add_up_to_what_was_charged(operation, left_out):
    rates = {name: rate for name, rate in RATES.items() if name != left_out}
    price = factories.PriceFactory(input=2, cached_input=1, cache_write=4, output=8, batch_percent=50, **rates)
    charged = price_book.compiled(price)
    if operation == "batch":
        charged = pricing.batch_price(charged)
    cost_nanos = pricing.cost_nanos(Usage(**RARE), charged)
    record = factories.UsageRecordFactory(price_id=price.pk, operation=operation, **RARE)
    assert receipt_of(record).total == Decimal(cost_nanos).scaleb(-9)


def test_the_lines_are_at_the_terms_that_were_in_force():
    terms = PriceTerms(discount_basis_points=1_000, uplift_basis_points=500)
    price = factories.PriceFactory(input=2, cached_input=1, output=8)
    used = {"input_tokens": 10_000, "cache_read_input_tokens": 4_000, "output_tokens": 500, "reasoning_tokens": 200}
    cost_nanos = pricing.cost_nanos(Usage(**used), price_book.compiled(price, terms))
    record = factories.UsageRecordFactory(price_id=price.pk, terms=msgspec.to_builtins(terms), **used)
    assert receipt_of(record).total == Decimal(cost_nanos).scaleb(-9)
    assert receipt_of(record).total < receipt_of(factories.UsageRecordFactory(price_id=price.pk, **used)).total


def test_what_has_no_rate_of_its_own_is_said_besides():
    price = factories.PriceFactory(input_audio=32)
    record = factories.UsageRecordFactory(price_id=price.pk, operation="speech", input_audio_tokens=5, units=7)
    assert receipt_of(record).also_counted == [("Characters", 7)]


def test_a_price_in_another_currency_shows_the_rate_it_was_reckoned_at():
    price = factories.PriceFactory(input=2, output=8, provider__currency="EUR")
    record = factories.UsageRecordFactory(
        price_id=price.pk, input_tokens=1_000_000, output_tokens=0, cost_usd=Decimal("2.2")
    )
    assert receipt_of(record).usd_per_unit == Decimal("1.1")


def test_a_receipt_says_which_budgets_it_was_counted_in_and_how():
    money, tokens, requests = (
        factories.BudgetFactory(name=unit, unit=unit, amount=1_000_000) for unit in ("usd", "tokens", "requests")
    )
    gone = uuid.uuid4()
    record = factories.UsageRecordFactory(
        budget_ids=[money.pk, tokens.pk, gone, requests.pk], held_usd=Decimal("0.5"), cost_usd=Decimal("0.2")
    )
    assert [tuple(counted) for counted in receipt_of(record).budgets] == [
        (money.pk, "usd", "usd", Decimal("0.5"), Decimal("0.2")),
        (tokens.pk, "tokens", "tokens", None, 30),
        (gone, "", "usd", Decimal("0.5"), Decimal("0.2")),
        (requests.pk, "requests", "requests", 1, 1),
    ]
    record.state = "voided"
    assert receipt_of(record).budgets[-1].counted == 0


def test_a_record_without_a_price_has_no_lines():
    assert receipt_of(factories.UsageRecordFactory(price_id=uuid.uuid4())).lines == ()


def test_the_attempts_of_a_request_are_seen_in_order_and_by_its_team_only():
    boss, charlie = factories.UserFactory(is_superuser=True), factories.UserFactory()
    first = factories.UsageRecordFactory(attempt_number=1, status_code=529)
    second = factories.UsageRecordFactory(attempt_number=2, request_id=first.request_id, team_id=first.team_id)
    factories.UsageRecordFactory()
    assert attempts_of(second, boss) == [first, second]
    assert attempts_of(second, charlie) == []


def test_the_page_of_a_record_is_readable(client):
    client.force_login(factories.UserFactory(is_superuser=True))
    price = factories.PriceFactory(input=2, output=8)
    record = factories.UsageRecordFactory(
        price_id=price.pk,
        input_tokens=750,
        output_tokens=745,
        cost_usd=Decimal("0.00746"),
        tags={"feature": "<search>"},
    )
    page = client.get(reverse("admin:audit_usagerecord_change", args=[record.pk])).content.decode()
    for text in ("0.0015", "0.00596", "0.00746", "feature = &lt;search&gt;", str(record.request_id)):
        assert text in page
    assert "<search>" not in page


def test_the_page_of_another_teams_record_is_not_there(client):
    charlie = factories.UserFactory()
    factories.MembershipFactory(user=charlie)
    charlie.user_permissions.set(Permission.objects.filter(codename="view_usagerecord"))
    client.force_login(charlie)
    record = factories.UsageRecordFactory()
    assert client.get(reverse("admin:audit_usagerecord_change", args=[record.pk])).status_code == 302


def test_records_are_filtered_by_kind(client):
    client.force_login(factories.UserFactory(is_superuser=True))
    factories.UsageRecordFactory()
    wanted = factories.UsageRecordFactory(kind="cache_hit")
    page = client.get(reverse("admin:audit_usagerecord_changelist"), {"kind__exact": "cache_hit"})
    assert [row.pk for row in page.context["cl"].result_list] == [wanted.pk]


def test_records_are_filtered_by_tag(client):
    client.force_login(factories.UserFactory(is_superuser=True))
    wanted = factories.UsageRecordFactory(tags={"feature": "a=b", "customer": "acme"})
    factories.UsageRecordFactory(tags={"feature": "other"})
    page = client.get(reverse("admin:audit_usagerecord_changelist"), {"tag": "feature=a=b"})
    assert [row.pk for row in page.context["cl"].result_list] == [wanted.pk]
