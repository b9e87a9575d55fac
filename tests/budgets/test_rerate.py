import csv
import datetime
import io
import uuid
from decimal import Decimal

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db.models import Sum
from django.urls import reverse
from django.utils import timezone

from audit.actors import Actor
from audit.models import AuditEntry, UsageRecord
from audit.records import Usage
from budgets import ledger_rows, rerate
from budgets.impact import impact_of, impact_of_proposal
from budgets.ledger_models import UsageDay, UsageHour
from budgets.price_book import compiled
from budgets.pricing import cost_nanos
from budgets.rollups import Rollups
from routing import services
from routing.price_models import PRICE_RATES, Price, PriceProposal, Rerate
from teams.models import Team, User
from tests import factories
from tests.api import assert_problem, client_with, post, url
from tests.budgets.test_ingest import make_event

pytestmark = pytest.mark.django_db

ALICE, BOB = Actor("user", "1", "Alice"), Actor("user", "2", "Bob")
# Sees every team.
BOSS = User(is_superuser=True)
START = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
END = START + datetime.timedelta(days=30)
NOON_US = int((START + datetime.timedelta(days=5, hours=12)).timestamp() * 1_000_000)


@pytest.fixture
def price():
    return factories.PriceFactory(effective_from=START - datetime.timedelta(days=1), input=2, output=8)


def used(price, number=3, **fields):
    """Records as ingest writes them, at the price of then."""
    events = []
    for index in range(number):
        usage = Usage(input_tokens=1_000_000 * (index + 1), output_tokens=1_000)
        event = make_event(
            **{
                "provider": price.provider.slug,
                "model": price.model.name,
                "admitted_at_us": NOON_US + index,
                "price_id": str(price.pk),
                "usage": usage,
                "usage_source": "provider",
                "cost_nanos": cost_nanos(usage, compiled(price)),
                **fields,
            }
        )
        events.append(event)
    rollups = Rollups()
    for event in events:
        rollups.add(event)
    ledger_rows.insert(events)
    ledger_rows.add_hours(rollups.hours)
    ledger_rows.add_tags(rollups.tags)
    return events


def mended(price, **fields):
    """The price that should have been there from the first day on."""
    return services.set_price(
        price.model,
        price.provider,
        actor=ALICE,
        input=Decimal(1),
        output=Decimal(8),
        effective_from=price.effective_from,
        **fields,
    )


def asked(at, **fields):
    return services.ask_for_rerate(at.provider, START, END, actor=ALICE, note="invoice 4711", **fields)


def approved(at, **fields):
    row = asked(at, **fields)
    services.decide_rerate(row, is_approved=True, actor=BOB)
    return row


def total(model):
    return model.objects.aggregate(total=Sum("cost_usd"))["total"]


def test_a_period_reckoned_again_is_corrected_by_entries_and_nothing_is_edited(price):
    events = used(price)
    before = {row.pk: row.cost_usd for row in UsageRecord.objects.all()}
    mended(price)
    summary = rerate.apply(approved(price), actor=ALICE)
    assert (summary.records, summary.after_usd) == (3, total(UsageRecord))
    assert all(UsageRecord.objects.get(pk=pk).cost_usd == cost for pk, cost in before.items())
    expected = sum(Decimal(index + 1) + Decimal("0.008") for index in range(3))
    assert total(UsageRecord) == total(UsageHour) == total(UsageDay) == expected
    entry = UsageRecord.objects.get(adjusts=events[2].attempt_id)
    assert (entry.cost_usd, entry.input_tokens, entry.admitted_at.day) == (Decimal(-3), 0, 6)
    assert sum(UsageHour.objects.values_list("requests", flat=True)) == 3


def test_reckoning_twice_corrects_once_also_when_it_was_interrupted(price, monkeypatch):
    used(price, 5)
    mended(price)
    row = approved(price)
    monkeypatch.setattr(rerate, "CHUNK_RECORDS", 2)
    for _ in rerate._chunks(row):  # As if it had died after its first chunk.
        records = next(rerate._chunks(row))
        rerate._write(row, list(rerate._compare(row, records, rerate._Book(row))))
        break
    rerate.apply(row, actor=ALICE)
    after = total(UsageRecord)
    rerate.apply(row, actor=ALICE)
    assert total(UsageRecord) == total(UsageHour) == after == sum(range(1, 6)) + 5 * Decimal("0.008")
    again = approved(price)
    unchanged = rerate.apply(again, actor=ALICE)
    assert unchanged.before_usd == unchanged.after_usd == total(UsageRecord)
    assert AuditEntry.objects.filter(action="apply").count() == 2


def test_a_later_correction_goes_on_from_the_earlier_one(price):
    used(price, 1)
    mended(price)
    first = approved(price)
    rerate.apply(first, actor=ALICE)
    second = approved(price, discount_percent=Decimal(50))
    summary = rerate.apply(second, actor=ALICE)
    assert (summary.before_usd, summary.after_usd) == (Decimal("1.008"), Decimal("0.504"))
    assert total(UsageRecord) == Decimal("0.504")
    assert rerate.summarize(first).after_usd == Decimal("1.008")


def test_an_explicit_price_and_exchange_rate_take_the_place_of_the_books(price):
    used(price, 1)
    other = mended(price)
    row = approved(price, model=price.model, price=other, usd_per_unit=Decimal("1.5"))
    assert rerate.apply(row, actor=ALICE).after_usd == Decimal("1.512")


def test_what_it_would_change_is_known_from_sums_before_it_is_applied(price):
    used(price, 3)
    used(price, 1, price_id="", cost_nanos=7)
    used(price, 2, operation="batch", usage=Usage(input_tokens=900, batch_requests=3), cost_nanos=5)
    mended(price, tiers=[services.Tier(above_input_tokens=1_500_000, percent=300)])
    later = START + datetime.timedelta(days=5, hours=12, microseconds=1)
    services.set_price(
        price.model, price.provider, actor=ALICE, input=Decimal(7), output=Decimal(1), effective_from=later
    )
    row = approved(price)
    before = rerate.summarize(row)
    done = rerate.apply(row, actor=ALICE)
    assert (before.records, before.unpriced) == (done.records, done.unpriced) == (6, 1)
    assert before.by_model.keys() == done.by_model.keys() and before.by_team.keys() == done.by_team.keys()
    assert before.before_usd == done.before_usd
    assert abs(before.after_usd - done.after_usd) <= Decimal("0.000000006")
    assert total(UsageRecord) == done.after_usd


def test_what_was_charged_a_fixed_amount_or_is_in_suspense_stays(price):
    used(price, 1, price_id="", cost_nanos=7)
    used(price, 1, state="suspense")
    mended(price)
    summary = rerate.apply(approved(price), actor=ALICE)
    assert (summary.records, summary.unpriced, summary.after_usd) == (1, 1, summary.before_usd)


def test_what_an_invoice_has_said_the_cost_of_stays(price):
    """It was in suspense and its usage never came: at any price nothing of it would be left."""
    (event,) = used(price, 1, usage=Usage(), usage_source="invoice", cost_nanos=5_000_000_000)
    used(price, 1)
    mended(price)
    row = approved(price)
    summary = rerate.summarize(row)
    assert (summary.records, summary.before_usd, summary.after_usd) == (1, Decimal("2.008"), Decimal("1.008"))
    assert rerate.apply(row, actor=ALICE).after_usd == Decimal("1.008")
    assert not UsageRecord.objects.filter(adjusts=event.attempt_id).exists()
    assert total(UsageRecord) == total(UsageHour) == Decimal("6.008")
    impact = impact_of(BOSS, price, [], END)
    assert (impact.requests, impact.total.before_usd) == (1, Decimal("2.008"))


def test_who_asks_for_it_does_not_approve_it(price):
    row = asked(price)
    with pytest.raises(ValidationError, match="cannot approve"):
        services.decide_rerate(row, is_approved=True, actor=ALICE)
    with pytest.raises(ValueError, match="proposed"):
        rerate.apply(row, actor=ALICE)
    services.decide_rerate(row, is_approved=False, actor=ALICE)
    rerate.apply_approved(actor=ALICE)
    assert Rerate.objects.get().state == "rejected"


def test_the_report_has_a_line_for_each_record_that_differs(price):
    events = used(price, 2)
    new = mended(price)
    out = io.StringIO()
    call_command("rerate", str(asked(price).pk), "--report", stdout=out)
    lines = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [line["attempt_id"] for line in lines] == [event.attempt_id for event in events]
    assert lines[0]["cost_before_usd"] == "2.008000000" and lines[0]["difference_usd"] == "-1.000000000"
    assert (lines[0]["price_before"], lines[0]["price_after"]) == (str(price.pk), str(new.pk))


# What a price would have cost


def test_the_impact_of_a_price_is_what_its_records_would_have_cost(price):
    team = factories.TeamFactory(name="Search")
    used(price, 3, team_id=str(team.pk))
    used(price, 1, usage=Usage(input_tokens=300_000, output_tokens=10, service_tier="flex", tool_calls=2))
    used(price, 1, operation="batch", usage=Usage(input_tokens=500, batch_requests=5))
    new = mended(
        price,
        per_request=Decimal("0.01"),
        batch_percent=50,
        tiers=[services.Tier(above_input_tokens=1_500_000, percent=300), services.Tier("flex", percent=50)],
    )
    impact = impact_of(BOSS, new, list(new.tiers.all()), END)
    expected = sum(
        difference.after_nanos for difference in rerate.differences(asked(price, model=price.model, price=new))
    )
    assert impact.requests == 5
    assert abs(impact.total.after_usd - Decimal(expected).scaleb(-9)) <= Decimal("0.000000005")
    assert next(change for change in impact.teams if change.team == "Search").before_usd == Decimal("12.024")


def test_the_impact_leaves_out_deployments_that_have_a_price_of_their_own(price):
    at = {"model": price.model, "provider": price.provider}
    apart, later, listed = (factories.DeploymentFactory(name=name, **at) for name in ("apart", "later", "listed"))
    for deployment in (apart, later, listed):
        used(price, 1, deployment=deployment.name)
    factories.PriceFactory(deployment=apart, effective_from=START, **at)
    factories.PriceFactory(deployment=later, effective_from=END + datetime.timedelta(days=2), **at)
    new = mended(price)
    assert impact_of(BOSS, new, [], END).requests == 2
    new.effective_from = END + datetime.timedelta(days=2)
    assert impact_of(BOSS, new, [], END).requests == 1
    proposal = factories.PriceProposalFactory(effective_from=END, **at)
    assert impact_of_proposal(BOSS, proposal, END).requests == 2
    new.deployment = apart
    assert impact_of(BOSS, new, [], END).requests == 1


# Pages


@pytest.fixture
def boss(client):
    user = factories.UserFactory(username="boss", is_superuser=True)
    client.force_login(user)
    return user


def page(name, *args):
    return reverse(f"admin:routing_{name}", args=args)


def test_a_rerate_is_asked_for_shown_and_reported_in_the_admin(client, boss, price):
    used(price)
    mended(price)
    form = {
        "provider": str(price.provider_id),
        "starts_at_0": "2026-11-01",
        "starts_at_1": "00:00:00",
        "ends_at_0": "2026-12-01",
        "ends_at_1": "00:00:00",
        "note": "invoice 4711",
    }
    answer = client.post(page("rerate_add"), form)
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    row = Rerate.objects.get()
    assert row.asked_by == "boss"
    shown = client.get(page("rerate_change", row.pk)).content.decode()
    assert "3 records" in shown and "12.02" in shown and "6.02" in shown
    refused = client.post(page("rerate_approve", row.pk), {"confirmed": "yes", "reason": "mine"})
    assert "cannot approve" in refused.content.decode()
    other = factories.UserFactory(username="other", is_superuser=True)
    client.force_login(other)
    assert client.post(page("rerate_approve", row.pk), {"confirmed": "yes", "reason": "seen"}).status_code == 302
    rerate.apply_approved(actor=ALICE)
    assert "-6.00" in client.get(page("rerate_changelist")).content.decode()
    report = b"".join(client.get(page("rerate_report", row.pk)).streaming_content).decode()
    assert report.count("\n") == 4


@pytest.fixture
def entered(price):
    """The form of another price, of the same model, as a browser sends it."""
    used(price, admitted_at_us=int(timezone.now().timestamp() * 1_000_000) - 1_000_000)
    return {
        "model": str(price.model_id),
        "provider": str(price.provider_id),
        "effective_from_0": "2026-12-01",
        "effective_from_1": "00:00:00",
        **dict.fromkeys(("input", "output", "cached_input", "cache_write"), "1"),
        **dict.fromkeys(("per_request", "per_tool_call", "per_unit"), "0"),
        "batch_percent": "100",
        "geo_percent": "100",
        "tiers-TOTAL_FORMS": "1",
        "tiers-INITIAL_FORMS": "0",
        "tiers-0-service_tier": "",
        "tiers-0-above_input_tokens": "1000000",
        "tiers-0-percent": "200",
        "reason": "a new contract",
    }


def test_a_price_is_previewed_before_it_is_saved(client, boss, price, entered):
    add = page("price_add")
    assert "_preview" in client.get(add).content.decode()
    shown = client.post(add, entered | {"_preview": ""})
    assert shown.status_code == 200 and Price.objects.count() == 1
    text = shown.content.decode()
    assert f"{shown.context['impact'].total.difference_text} USD" in text and "3 requests" in text
    assert "Nothing is saved yet" in text and "Please correct" not in text
    form = shown.context["adminform"].form
    assert (form["input"].value(), form["reason"].value(), not form.errors) == ("1", "a new contract", True)
    (tiers,) = shown.context["inline_admin_formsets"]
    assert tiers.formset.forms[0]["percent"].value() == "200"
    assert client.post(add, entered).status_code == 302
    saved = Price.objects.latest("created_at")
    saved_impact = impact_of(boss, saved, list(saved.tiers.all()), timezone.now())
    assert saved_impact.total.difference_usd == shown.context["impact"].total.difference_usd != 0


def test_the_preview_counts_the_tiers_that_were_entered(client, boss, entered):
    def total(**changes):
        return client.post(page("price_add"), entered | changes | {"_preview": ""}).context["impact"].total.after_usd

    assert total(**{"tiers-0-above_input_tokens": "1"}) == 2 * total(**{"tiers-TOTAL_FORMS": "0"})


def test_a_tier_has_every_rate_that_a_price_has(client, boss, price, entered):
    shown = client.get(page("price_add"))
    (tiers,) = shown.context["inline_admin_formsets"]
    assert set(PRICE_RATES) <= set(tiers.formset.empty_form.fields)
    assert all(f"tiers-__prefix__-{rate}" in shown.content.decode() for rate in PRICE_RATES)
    assert (
        client.post(page("price_add"), entered | {"tiers-0-reasoning": "7", "tiers-0-per_search": "0.02"}).status_code
        == 302
    )
    saved = Price.objects.latest("created_at")
    assert (saved.tiers.get().reasoning, saved.tiers.get().per_search) == (7, Decimal("0.02"))
    assert "0.020000000" in client.get(page("price_change", saved.pk)).content.decode()


def test_what_is_entered_wrongly_has_no_preview(client, boss, entered):
    shown = client.post(page("price_add"), entered | {"input": "-1", "_preview": ""})
    assert shown.context["adminform"].form.errors and "impact" not in shown.context
    assert Price.objects.count() == 1


@pytest.fixture
def clerk(client):
    """Works on prices, and is of one team."""
    user = factories.UserFactory(username="clerk", is_staff=True)
    names = [f"{verb}_{name}" for verb in ("view", "add", "change") for name in ("price", "priceproposal", "rerate")]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    factories.MembershipFactory(user=user, team__name="The clerk's")
    client.force_login(user)
    return user


def of_two_teams(price, clerk):
    """Ten dollars of the clerk's, thousands of a stranger's."""
    stranger = factories.TeamFactory(name="Strangers")
    now_us = int(timezone.now().timestamp() * 1_000_000) - 1_000_000
    own = str(clerk.team_ids().get())
    used(price, 1, admitted_at_us=now_us, team_id=own, cost_nanos=10_000_000_000)
    used(price, 1, admitted_at_us=now_us, team_id=str(stranger.pk), cost_nanos=7_777_000_000_000)


def test_a_preview_tells_of_the_viewers_teams_and_of_no_other(client, clerk, price, entered):
    of_two_teams(price, clerk)
    shown = client.post(page("price_add"), entered | {"_preview": ""})
    assert [change.team for change in shown.context["impact"].teams] == ["The clerk's"]
    assert shown.context["impact"].total.before_usd == 10 and shown.context["impact"].requests == 1
    assert "7,777" not in shown.content.decode() and Price.objects.count() == 1


def test_the_impact_of_a_proposal_tells_of_the_viewers_teams_and_of_no_other(client, clerk, price):
    of_two_teams(price, clerk)
    proposal = factories.PriceProposalFactory(model=price.model, provider=price.provider)
    shown = client.get(page("priceproposal_change", proposal.pk)).content.decode()
    assert "The clerk&#x27;s" in shown and "Strangers" not in shown and "7,777" not in shown
    path = url("price-proposals", proposal.pk, "impact")
    answer = client_with("routing:read", team=Team.objects.for_user(clerk).get()).get(path).json()
    assert [change["team"] for change in answer["teams"]] == ["The clerk's"]
    assert (answer["total"]["before_usd"], answer["requests"]) == ("10.000000000", 1)
    assert len(client_with("routing:read").get(path).json()["teams"]) == 2


def test_a_rerate_tells_of_every_team_and_so_only_to_who_sees_them(client, clerk, price):
    of_two_teams(price, clerk)
    row = asked(price)
    assert str(row.pk) not in client.get(page("rerate_changelist")).content.decode()
    for name in ("rerate_change", "rerate_report", "rerate_history"):
        assert client.get(page(name, row.pk)).status_code in (302, 403)
    assert client.post(page("rerate_approve", row.pk), {"confirmed": "yes", "reason": "x"}).status_code == 403
    assert client.get(page("rerate_add")).status_code == 403
    body = {"provider": str(price.provider_id), "starts_at": START, "ends_at": END, "note": "mine"}
    assert_problem(post(client, url("rerates"), body), 403, "every team")
    for act in ("", "summary", "report"):
        assert_problem(client.get(url("rerates", row.pk, act)), 404)
    assert_problem(post(client, url("rerates", row.pk, "approve")), 404)


def test_a_proposal_shows_its_impact_and_is_approved_in_bulk(client, boss, price):
    now_us = int(timezone.now().timestamp() * 1_000_000)
    used(price, admitted_at_us=now_us - 1_000_000)
    rates = {**dict.fromkeys(("input", "output", "cached_input", "cache_write"), "1"), "batch_percent": 100}
    rates |= {**dict.fromkeys(("per_request", "per_tool_call", "per_unit"), "0"), "geo_percent": 100, "tiers": []}
    proposal = PriceProposal.objects.create(
        source="a list",
        model=price.model,
        provider=price.provider,
        effective_from=START,
        rates=rates,
        differences=[["input", "2", "1"], ["output", "8", "1"]],
    )
    shown = client.get(page("priceproposal_change", proposal.pk)).content.decode()
    assert "-6.02 USD" in shown and "3 requests" in shown
    bulk = {"action": "approve_selected", "_selected_action": [str(proposal.pk)]}
    assert "Approve" in client.post(page("priceproposal_changelist"), bulk).content.decode()
    assert not Price.objects.filter(proposal=proposal).exists()
    client.post(page("priceproposal_changelist"), bulk | {"confirmed": "yes", "reason": "checked"})
    assert Price.objects.filter(proposal=proposal).get().input == 1


def test_charlie_sees_none_of_it(client, price):
    client.force_login(factories.UserFactory(username="charlie", is_staff=True))
    row, unknown = asked(price), uuid.uuid4()
    for name, args in (
        ("rerate_changelist", ()), ("rerate_change", (row.pk,)), ("rerate_report", (row.pk,)),
        ("priceproposal_changelist", ()), ("priceproposal_change", (unknown,)),
    ):  # fmt: skip
        assert client.get(page(name, *args)).status_code in (302, 403)
    assert client.post(page("rerate_approve", row.pk), {"confirmed": "yes", "reason": "x"}).status_code == 403
