"""Objects for tests, made through no service: the plain rows, with what is not said filled in."""

import datetime
import secrets
import uuid
from decimal import Decimal

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from audit.actors import Actor
from audit.models import UsageRecord
from budgets.alert_models import Alert, Channel, Delivery
from budgets.models import Budget, Increase, Limit, Threshold
from keys.kills import KillFlag
from keys.models import CredentialPool, KillSwitch, UpstreamCredential, VirtualKey
from keys.tokens import digest, hint
from routing.models import AliasTarget, Deployment, Model, ModelAlias, Provider
from routing.price_models import Contract, ExchangeRate, ExchangeRateFeed, Price, PriceProposal, Rerate
from teams.models import ApiToken, Group, Membership, Project, ServiceAccount, Team, User

ACTOR = Actor.system("test")


class UserFactory(DjangoModelFactory):
    class Meta:
        model = User
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"user{n}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.com")
    is_staff = True


class GroupFactory(DjangoModelFactory):
    class Meta:
        model = Group

    name = factory.Sequence(lambda n: f"group {n}")


class TeamFactory(DjangoModelFactory):
    class Meta:
        model = Team

    name = factory.Sequence(lambda n: f"Team {n}")
    slug = factory.Sequence(lambda n: f"team-{n}")


class MembershipFactory(DjangoModelFactory):
    class Meta:
        model = Membership

    user = factory.SubFactory(UserFactory)
    team = factory.SubFactory(TeamFactory)
    role = "member"


class ProjectFactory(DjangoModelFactory):
    class Meta:
        model = Project

    team = factory.SubFactory(TeamFactory)
    name = factory.Sequence(lambda n: f"Project {n}")
    slug = factory.Sequence(lambda n: f"project-{n}")


class ServiceAccountFactory(DjangoModelFactory):
    class Meta:
        model = ServiceAccount

    name = factory.Sequence(lambda n: f"account {n}")


class ApiTokenFactory(DjangoModelFactory):
    """Pass `secret` to know it."""

    class Meta:
        model = ApiToken

    class Params:
        secret = factory.LazyFunction(lambda: f"tgapi-{secrets.token_urlsafe(24)}")

    service_account = factory.SubFactory(ServiceAccountFactory)
    digest = factory.LazyAttribute(lambda token: digest(token.secret))
    hint = factory.LazyAttribute(lambda token: hint(token.secret))


class VirtualKeyFactory(DjangoModelFactory):
    """Pass `secret` to know it."""

    class Meta:
        model = VirtualKey

    class Params:
        secret = factory.LazyFunction(lambda: f"tg-{secrets.token_urlsafe(24)}")

    project = factory.SubFactory(ProjectFactory)
    name = factory.Sequence(lambda n: f"key {n}")
    digest = factory.LazyAttribute(lambda key: digest(key.secret))
    hint = factory.LazyAttribute(lambda key: hint(key.secret))
    aliases = factory.LazyFunction(lambda: ["*"])


class CredentialPoolFactory(DjangoModelFactory):
    class Meta:
        model = CredentialPool

    name = factory.Sequence(lambda n: f"pool {n}")
    provider = "provider"


class UpstreamCredentialFactory(DjangoModelFactory):
    """Not really sealed: use `keys.services.add_credential` where it is to be opened."""

    class Meta:
        model = UpstreamCredential

    pool = factory.SubFactory(CredentialPoolFactory)
    name = factory.Sequence(lambda n: f"credential {n}")
    sealed = "v1.none"
    fingerprint = "1234"


class KillSwitchFactory(DjangoModelFactory):
    """On record only: no flag in Redis."""

    class Meta:
        model = KillSwitch

    scope = "global"
    reason = "a drill"
    thrown_by = "test"


class ProviderFactory(DjangoModelFactory):
    class Meta:
        model = Provider

    slug = factory.Sequence(lambda n: f"provider-{n}")
    name = factory.Sequence(lambda n: f"Provider {n}")
    base_url = "https://api.example.com/v1"


class ModelFactory(DjangoModelFactory):
    class Meta:
        model = Model

    name = factory.Sequence(lambda n: f"model-{n}")


class PriceFactory(DjangoModelFactory):
    class Meta:
        model = Price

    model = factory.SubFactory(ModelFactory)
    provider = factory.SubFactory(ProviderFactory)
    input = Decimal("1")
    cached_input = Decimal("0.5")
    cache_write = Decimal("1.25")
    output = Decimal("4")


class ContractFactory(DjangoModelFactory):
    class Meta:
        model = Contract

    name = "framework"
    provider = factory.SubFactory(ProviderFactory)


class ExchangeRateFeedFactory(DjangoModelFactory):
    class Meta:
        model = ExchangeRateFeed

    name = factory.Sequence(lambda n: f"feed {n}")
    url = "https://rates.example/daily.csv"


class PriceProposalFactory(DjangoModelFactory):
    """Of a model that costs one of everything."""

    class Meta:
        model = PriceProposal

    source = "a list"
    model = factory.SubFactory(ModelFactory)
    provider = factory.SubFactory(ProviderFactory)
    effective_from = factory.LazyFunction(timezone.now)
    rates = factory.LazyFunction(
        lambda: {
            **dict.fromkeys(("input", "output", "cached_input", "cache_write"), "1"),
            **dict.fromkeys(("per_request", "per_tool_call", "per_unit"), "0"),
            **dict.fromkeys(("batch_percent", "geo_percent"), 100),
            "tiers": [],
        }
    )
    differences = factory.LazyFunction(lambda: [["input", None, "1"]])


class RerateFactory(DjangoModelFactory):
    """A day."""

    class Meta:
        model = Rerate

    provider = factory.SubFactory(ProviderFactory)
    starts_at = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
    ends_at = datetime.datetime(2026, 11, 2, tzinfo=datetime.UTC)
    note = "invoice 4711"
    asked_by = "Alice"


class ExchangeRateFactory(DjangoModelFactory):
    class Meta:
        model = ExchangeRate

    currency = "EUR"
    usd_per_unit = Decimal("1.1")


class DeploymentFactory(DjangoModelFactory):
    class Meta:
        model = Deployment

    name = factory.Sequence(lambda n: f"deployment-{n}")
    model = factory.SubFactory(ModelFactory)
    provider = factory.SubFactory(ProviderFactory)
    upstream_model = "upstream"


class ModelAliasFactory(DjangoModelFactory):
    class Meta:
        model = ModelAlias

    name = factory.Sequence(lambda n: f"alias-{n}")


class AliasTargetFactory(DjangoModelFactory):
    class Meta:
        model = AliasTarget

    alias = factory.SubFactory(ModelAliasFactory)
    deployment = factory.SubFactory(DeploymentFactory)


class BudgetFactory(DjangoModelFactory):
    """For a team, unless `scope` and its subject say otherwise."""

    class Meta:
        model = Budget

    name = factory.Sequence(lambda n: f"budget {n}")
    scope = "team"
    team = factory.Maybe(
        factory.LazyAttribute(lambda rule: rule.scope == "team"), factory.SubFactory(TeamFactory), None
    )
    amount = Decimal("100")


class ThresholdFactory(DjangoModelFactory):
    class Meta:
        model = Threshold

    budget = factory.SubFactory(BudgetFactory)
    percent = 80


class IncreaseFactory(DjangoModelFactory):
    """Asked for by somebody, and not decided."""

    class Meta:
        model = Increase

    budget = factory.SubFactory(BudgetFactory)
    amount = Decimal("10")
    ends_at = factory.LazyFunction(lambda: timezone.now() + datetime.timedelta(days=7))
    reason = "the launch"
    requested_by = "user:somebody"
    requested_by_name = "somebody"


class LimitFactory(DjangoModelFactory):
    """For a team, unless `scope` and its subject say otherwise."""

    class Meta:
        model = Limit

    scope = "team"
    team = factory.Maybe(
        factory.LazyAttribute(lambda rule: rule.scope == "team"), factory.SubFactory(TeamFactory), None
    )
    metric = "requests"
    amount = 60


class ChannelFactory(DjangoModelFactory):
    """Of no team, and not really sealed: use `budgets.alert_services.add_channel` where something is to be sent."""

    class Meta:
        model = Channel

    name = factory.Sequence(lambda n: f"channel {n}")
    kind = "webhook"
    sealed = "v1.none"


class AlertFactory(DjangoModelFactory):
    """Of no team and no window, unless it is said."""

    class Meta:
        model = Alert

    kind = "kill_switch"
    about_id = factory.LazyFunction(uuid.uuid4)
    severity = "critical"
    title = factory.Sequence(lambda n: f"alert {n}")
    text = "Something happened."


class DeliveryFactory(DjangoModelFactory):
    """Waiting, and to no channel that is there."""

    class Meta:
        model = Delivery

    alert = factory.SubFactory(AlertFactory)
    channel_name = "gone"
    event = "opened"


class UsageRecordFactory(DjangoModelFactory):
    class Meta:
        model = UsageRecord

    attempt_id = factory.LazyFunction(uuid.uuid4)
    request_id = factory.LazyFunction(uuid.uuid4)
    admitted_at = factory.LazyFunction(lambda: timezone.now() - datetime.timedelta(seconds=1))
    team_id = factory.LazyFunction(uuid.uuid4)
    project_id = factory.LazyFunction(uuid.uuid4)
    virtual_key_id = factory.LazyFunction(uuid.uuid4)
    alias = "alias"
    provider = "provider"
    model = "model"
    deployment = "deployment"
    request_model = "alias"
    status_code = 200
    input_tokens = 10
    output_tokens = 20
    cost_usd = Decimal("0.000123456")


def kill_flag(scope: str = "global", target: str = "", reason: str = "a drill") -> KillFlag:
    return KillFlag(kill_switch_id=str(uuid.uuid4()), scope=scope, target=target, reason=reason, thrown_at_s=1.0)
