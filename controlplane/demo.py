"""The demo organisation: made once in an empty database, through the same services as everything else, with some past usage.

`seed` may run at every start. It never changes what somebody may have changed since; it only keeps the way to the
simulator right, adds providers whose keys have appeared in the environment, and gives access where `demo.json` is lost.
"""

import json
import random
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import redis
from django.db import transaction
from django.utils import timezone

from audit import services as audit
from audit.actors import Actor
from audit.ids import uuid7
from audit.records import Usage, UsageEvent, encode_event
from budgets import gate, pricing
from budgets import services as budgets
from budgets.models import Budget, Limit, Threshold
from controlplane.private_file import write_private
from keys import services as keys
from keys.models import VirtualKey
from keys.redis import redis_client
from keys.tokens import digest
from routing import services as routing
from routing.apis import APIS
from routing.models import Deployment, Model, ModelAlias, Operation, Provider
from teams import scopes
from teams import services as teams
from teams.models import ApiToken, Project, ServiceAccount, Team, User

ACTOR = Actor.system("demo")
REASON = "the demo organisation"
USERNAME = "admin"
EMAIL = "admin@example.com"
SERVICE_ACCOUNT = "demo"
TEAM, PROJECT, VIRTUAL_KEY = "acme-research", "search", "demo"
ALIAS = "demo"
SIMULATOR = "simulator"
# Where the simulator speaks as OpenAI does.
OPENAI_PATH = "/v1"
CUSTOMERS = ("globex", "initech", "umbrella")
END_USERS = ("ann", "bob", "carla", "dmitri", "emeka")
PAST_HOURS = 14 * 24
NANOS = 1_000_000_000

FACTS = (
    "admin_url",
    "username",
    "password",
    "api_token",
    "gateway_url",
    "virtual_key",
    "model",
    "team",
    "project",
    "simulator_url",
)


class KnownModel(NamedTuple):
    """List price in USD per 1,000,000 tokens. A price in the database that differs stands.

    What is written to the cache costs as input where nothing is said, and for an hour as for less.
    """

    name: str
    input: str
    cached_input: str
    output: str
    output_is_visible: bool = False
    cache_write: str | None = None
    cache_write_1h: str | None = None


class KnownProvider(NamedTuple):
    """`api` is also its slug, and says where it is. `per_tool_call` is what a web search costs, in USD."""

    environment_variable: str
    api: str
    models: tuple[KnownModel, ...]
    per_tool_call: str = "0"
    batch_percent: int = 50


KNOWN_PROVIDERS = (
    KnownProvider(
        "OPENAI_API_KEY",
        "openai",
        (
            KnownModel("gpt-4o-mini", "0.15", "0.075", "0.60", True),
            KnownModel("gpt-4.1-mini", "0.40", "0.10", "1.60", True),
            KnownModel("gpt-5-mini", "0.25", "0.025", "2.00"),
        ),
        per_tool_call="0.01",
    ),
    KnownProvider(
        "ANTHROPIC_API_KEY",
        "anthropic",
        (
            KnownModel("claude-haiku-4-5", "1.00", "0.10", "5.00", cache_write="1.25", cache_write_1h="2.00"),
            KnownModel("claude-sonnet-4-5", "3.00", "0.30", "15.00", cache_write="3.75", cache_write_1h="6.00"),
        ),
        per_tool_call="0.01",
    ),
    KnownProvider("MISTRAL_API_KEY", "mistral", (KnownModel("mistral-small-latest", "0.10", "0.10", "0.30", True),)),
    KnownProvider("GROQ_API_KEY", "groq", (KnownModel("llama-3.1-8b-instant", "0.05", "0.05", "0.08", True),)),
    KnownProvider(
        "DEEPSEEK_API_KEY",
        "deepseek",
        (KnownModel("deepseek-chat", "0.28", "0.028", "0.42", True),),
        batch_percent=100,
    ),
)


class SimulatedProvider(NamedTuple):
    """Another API that the simulator speaks, under `path` of its own; one model of it, and the alias for that."""

    api: str
    path: str
    alias: str
    model: KnownModel
    options: Mapping[str, str] = {}

    @property
    def slug(self) -> str:
        return f"{SIMULATOR}-{self.api}"

    def base_url(self, simulator_url: str) -> str:
        return simulator_url.removesuffix(OPENAI_PATH) + self.path


SIMULATED_PROVIDERS = (
    SimulatedProvider(
        "anthropic",
        "/anthropic/v1",
        "demo-claude",
        KnownModel("simulated-claude", "1.00", "0.10", "5.00", True, cache_write="1.25", cache_write_1h="2.00"),
    ),
    SimulatedProvider(
        "gemini", "/gemini/v1beta", "demo-gemini", KnownModel("simulated-gemini", "0.30", "0.03", "2.50", True)
    ),
    SimulatedProvider(
        "bedrock",
        "/bedrock",
        "demo-bedrock",
        KnownModel("simulated-nova", "0.06", "0.015", "0.24", True),
        {"region": "local"},
    ),
    SimulatedProvider(
        "cohere", "/cohere", "demo-cohere", KnownModel("simulated-command", "0.15", "0.15", "0.60", True)
    ),
    SimulatedProvider("ollama", "/ollama", "demo-ollama", KnownModel("simulated-llama", "0.01", "0.01", "0.01", True)),
)


class Addresses(NamedTuple):
    admin_url: str
    gateway_url: str
    simulator_url: str


def seed(facts_file: Path, addresses: Addresses, environ: Mapping[str, str]) -> None:
    """Make the organisation where there is none, and write how to reach it to `facts_file`."""
    with transaction.atomic():
        is_first = not Provider.objects.filter(slug=SIMULATOR).exists()
        if is_first:
            _create_organisation(addresses.simulator_url)
        else:
            _move_simulators(addresses.simulator_url)
        for known in KNOWN_PROVIDERS:
            if environ.get(known.environment_variable):
                _register(known, environ[known.environment_variable])
        access = _known_access(facts_file) or _give_access()
        project = VirtualKey.objects.get(digest=digest(access["virtual_key"])).project
    facts = {
        **addresses._asdict(),
        **access,
        "model": ALIAS,
        "team": project.team.name,
        "project": project.name,
    }
    write_private(facts_file, json.dumps({name: facts[name] for name in FACTS}, indent=2) + "\n")
    if is_first:
        _tell_past_usage(redis_client(), timezone.now())


def _create_organisation(simulator_url: str) -> None:
    _create_simulator(simulator_url)
    for simulated in SIMULATED_PROVIDERS:
        _simulate(simulated, simulator_url)
    research = teams.create_team("Acme Research", TEAM, actor=ACTOR, time_zone="Europe/Berlin", reason=REASON)
    search = _create_project(research, "Search", PROJECT, "prod", "R-100")
    summaries = _create_project(research, "Summaries", "summaries", "staging", "R-100")
    service = teams.create_team("Acme Customer Service", "acme-customer-service", actor=ACTOR, reason=REASON)
    support = _create_project(service, "Support", "support", "prod", "C-200", required_tag_keys=["customer"])

    for subject, window, amount in (
        (research, Budget.Window.MONTH, "1000"),
        (research, Budget.Window.DAY, "200"),
        (search, Budget.Window.DAY, "100"),
        (search, Budget.Window.HOUR, "25"),
        (service, Budget.Window.MONTH, "500"),
        (support, Budget.Window.DAY, "50"),
    ):
        name = f"{subject.name} by the {window}"
        budgets.create_budget(subject, name, window, Decimal(amount), actor=ACTOR, reason=REASON)
    _create_telling_budgets(search, support)
    budgets.create_limit(research, Limit.Metric.CONCURRENCY, 2_000, actor=ACTOR, reason=REASON)
    observed = {"name": "Would 20 a minute do?", "is_observed": True}
    budgets.create_limit(search, Limit.Metric.REQUESTS, 20, actor=ACTOR, reason=REASON, **observed)
    budgets.create_limit(support, Limit.Metric.REQUESTS, 600, actor=ACTOR, reason=REASON)
    # Their secrets are shown to nobody: these keys are those of the past usage.
    for project in (search, summaries, support):
        keys.issue_virtual_key(project, f"{project.slug}-application", actor=ACTOR, aliases=[ALIAS], reason=REASON)


def _create_telling_budgets(search: Project, support: Project) -> None:
    """One of each kind that people ask for: per end user, per customer, per model, with thresholds and a request for more."""

    def create(project: Project, name: str, window: str, amount: str, **fields: Any) -> Budget:
        return budgets.create_budget(project, name, window, Decimal(amount), actor=ACTOR, reason=REASON, **fields)

    create(search, "Each end user of Search", Budget.Window.DAY, "1", each=["end_user"], mode=Budget.Mode.SOFT)
    create(support, f"Customer {CUSTOMERS[0]}", Budget.Window.MONTH, "25", tags={"customer": CUSTOMERS[0]})
    tokens = {"unit": Budget.Unit.TOKENS, "mode": Budget.Mode.OBSERVE}
    create(support, "Tokens of each customer", Budget.Window.WEEK, "1000000", each=["tag:customer"], **tokens)
    of_model = create(
        search,
        "Chat model in Search",
        Budget.Window.MONTH,
        "40",
        model=Model.objects.get(name="simulated-chat"),
        rollover=Decimal(10),
    )
    for percent, action, fields in (
        (80, Threshold.Action.ALERT, {}),
        (90, Threshold.Action.THROTTLE, {"per_minute": 30}),
        (95, Threshold.Action.DOWNGRADE, {"alias": ModelAlias.objects.get(name="demo-ollama")}),
    ):
        budgets.add_threshold(of_model, percent, action, actor=ACTOR, reason=REASON, **fields)
    now = timezone.now()
    asker, why = Actor.system("Search's lead"), "The index is rebuilt next week."
    budgets.request_increase(of_model, Decimal(15), now, now + timedelta(days=7), actor=asker, reason=why)


def _create_project(
    team: Team, name: str, slug: str, environment: str, cost_centre: str, *, required_tag_keys: list[str] | None = None
) -> Project:
    return teams.create_project(
        team,
        name,
        slug,
        actor=ACTOR,
        environment=environment,
        cost_centre=cost_centre,
        default_tags={"feature": slug},
        required_tag_keys=required_tag_keys or [],
        reason=REASON,
    )


def _create_simulator(url: str) -> None:
    provider = routing.create_provider(
        SIMULATOR, "Simulator", url, actor=ACTOR, may_be_private=True, idle_timeout_s=30.0, reason=REASON
    )
    pool = keys.create_pool("simulator", SIMULATOR, actor=ACTOR, reason=REASON)
    keys.add_credential(pool, "simulator", f"sim-{secrets.token_urlsafe(24)}", actor=ACTOR, reason=REASON)
    chat = routing.create_model(
        "simulated-chat", actor=ACTOR, publisher="Tollgate", output_is_visible=True, reason=REASON
    )
    embedding = routing.create_model(
        "simulated-embedding", actor=ACTOR, publisher="Tollgate", operations=[Operation.EMBEDDINGS], reason=REASON
    )
    routing.set_price(
        chat, provider, actor=ACTOR, input=Decimal("0.50"), cached_input=Decimal("0.05"), output=Decimal("1.50"),
        reason=REASON,
    )  # fmt: skip
    routing.set_price(embedding, provider, actor=ACTOR, input=Decimal("0.02"), output=Decimal(0), reason=REASON)

    def deploy(name: str, model: Model, upstream_model: str) -> Deployment:
        return routing.create_deployment(
            name, model, provider, upstream_model, actor=ACTOR, pool=pool, region="local", reason=REASON
        )

    fast = deploy("simulator-fast", chat, "sim-fast")
    slow = deploy("simulator-slow", chat, "sim-slow")
    failing = deploy("simulator-failing", chat, "sim?error=500")
    vectors = deploy("simulator-embedding", embedding, "sim-embedding")
    for name, deployments, description in (
        (ALIAS, (fast,), "Answers at once."),
        ("demo-slow", (slow,), "Streams slowly: something to stop with a kill switch."),
        ("demo-fallback", (failing, fast), "The first deployment always fails; the second answers."),
        ("demo-embedding", (vectors,), "Embeddings."),
    ):
        targets = [routing.Target(deployment, position) for position, deployment in enumerate(deployments)]
        routing.create_alias(name, targets, actor=ACTOR, description=description, reason=REASON)


def _simulate(simulated: SimulatedProvider, simulator_url: str) -> None:
    label = APIS[simulated.api].label
    provider = routing.create_provider(
        simulated.slug,
        f"Simulated {label}",
        simulated.base_url(simulator_url),
        actor=ACTOR,
        api=simulated.api,
        options=dict(simulated.options),
        may_be_private=True,
        idle_timeout_s=30.0,
        reason=REASON,
    )
    pool = keys.create_pool(simulated.slug, simulated.slug, actor=ACTOR, reason=REASON)
    keys.add_credential(pool, simulated.slug, f"sim-{secrets.token_urlsafe(24)}", actor=ACTOR, reason=REASON)
    model = _priced(simulated.model, provider, publisher="Tollgate", reason=REASON)
    deployment = routing.create_deployment(
        simulated.slug, model, provider, "sim-fast", actor=ACTOR, pool=pool, region="local", reason=REASON
    )
    targets = [routing.Target(deployment)]
    description = f"Answers at once, as {label} does."
    routing.create_alias(simulated.alias, targets, actor=ACTOR, description=description, reason=REASON)


def _move_simulators(url: str) -> None:
    urls = {SIMULATOR: url} | {simulated.slug: simulated.base_url(url) for simulated in SIMULATED_PROVIDERS}
    for provider in Provider.objects.filter(slug__in=urls):
        values = {"base_url": urls[provider.slug]}
        audit.change(provider, actor=ACTOR, reason="the simulator has another port", values=values)


def _register(known: KnownProvider, secret: str) -> None:
    """The provider, a credential of it, its models and an alias for each, unless a provider of that slug is there."""
    if Provider.objects.filter(slug=known.api).exists():
        return
    reason = f"{known.environment_variable} is in the environment"
    label = APIS[known.api].label
    provider = routing.create_provider(known.api, label, "", actor=ACTOR, api=known.api, reason=reason)
    pool = keys.create_pool(known.api, known.api, actor=ACTOR, reason=reason)
    keys.add_credential(pool, known.environment_variable, secret, actor=ACTOR, reason=reason)
    for item in known.models:
        model = _priced(
            item,
            provider,
            publisher=label,
            per_tool_call=Decimal(known.per_tool_call),
            batch_percent=known.batch_percent,
            reason=reason,
        )
        deployment = routing.create_deployment(
            f"{known.api}/{item.name}", model, provider, item.name, actor=ACTOR, pool=pool, reason=reason
        )
        if not ModelAlias.objects.filter(name=item.name).exists():
            routing.create_alias(item.name, [routing.Target(deployment)], actor=ACTOR, reason=reason)


def _priced(item: KnownModel, provider: Provider, *, publisher: str, reason: str, **rates: Any) -> Model:
    """The model, made where it is not there, with its price at the provider."""
    model = Model.objects.filter(name=item.name).first() or routing.create_model(
        item.name, actor=ACTOR, publisher=publisher, output_is_visible=item.output_is_visible, reason=reason
    )
    routing.set_price(
        model,
        provider,
        actor=ACTOR,
        input=Decimal(item.input),
        cached_input=Decimal(item.cached_input),
        cache_write=None if item.cache_write is None else Decimal(item.cache_write),
        cache_write_1h=None if item.cache_write_1h is None else Decimal(item.cache_write_1h),
        output=Decimal(item.output),
        reason=reason,
        **rates,
    )
    return model


def _known_access(facts_file: Path) -> dict[str, str] | None:
    """What an earlier start gave, if this is the same database."""
    try:
        facts = json.loads(facts_file.read_text())
        access = {name: str(facts[name]) for name in ("username", "password", "api_token", "virtual_key")}
    except (OSError, ValueError, KeyError):
        return None
    is_of_this_database = (
        VirtualKey.objects.filter(digest=digest(access["virtual_key"])).exists()
        and ApiToken.objects.filter(digest=digest(access["api_token"])).exists()
    )
    return access if is_of_this_database else None


def _give_access() -> dict[str, str]:
    """A new password for the administrator, a new API token and a new virtual key."""
    password = secrets.token_urlsafe(12)
    user = User.objects.filter(email=EMAIL).first()
    if user is None:
        user = teams.create_user(USERNAME, EMAIL, password, actor=ACTOR, is_superuser=True, reason=REASON)
    else:
        teams.set_password(user, password, actor=ACTOR, reason=REASON)
    account = ServiceAccount.objects.filter(name=SERVICE_ACCOUNT).first() or teams.create_service_account(
        SERVICE_ACCOUNT, actor=ACTOR, scopes=scopes.SCOPES, reason=REASON
    )
    token = keys.issue_api_token(account, actor=ACTOR, reason=REASON)
    projects = Project.objects.order_by("id")
    project = projects.filter(team__slug=TEAM, slug=PROJECT).first() or projects[0]
    issued = keys.issue_virtual_key(project, VIRTUAL_KEY, actor=ACTOR, aliases=["*"], reason=REASON)
    for window, amount in ((Budget.Window.DAY, "50"), (Budget.Window.HOUR, "10")):
        name = f"{VIRTUAL_KEY} key by the {window}"
        budgets.create_budget(issued.virtual_key, name, window, Decimal(amount), actor=ACTOR, reason=REASON)
    budgets.create_limit(issued.virtual_key, Limit.Metric.REQUESTS, 60_000, actor=ACTOR, reason=REASON)
    return {
        "username": user.username,
        "password": password,
        "api_token": token.secret.reveal(),
        "virtual_key": issued.secret.reveal(),
    }


def _tell_past_usage(client: redis.Redis, now: datetime) -> None:
    """Put two weeks of usage into the stream, from where it goes the way of all usage."""
    draw = random.Random(now.toordinal())  # noqa: S311 (scenery)
    deployment = Deployment.objects.select_related("model").get(name="simulator-fast")
    price = deployment.model.prices.get()
    rates = pricing.Price(
        price_id=str(price.pk),
        input_nanos=int(price.input * NANOS),
        output_nanos=int(price.output * NANOS),
        cache_read_nanos=int(price.cached_input * NANOS),
        cache_write_nanos=int(price.cache_write * NANOS),
    )
    with client.pipeline(transaction=False) as pipeline:
        for virtual_key in VirtualKey.objects.filter(name__endswith="-application").select_related("project"):
            for hours_ago in range(1, PAST_HOURS):
                for _ in range(_requests_in(now - timedelta(hours=hours_ago), draw)):
                    at = now - timedelta(hours=hours_ago, seconds=draw.randrange(3600))
                    event = _past_event(virtual_key, deployment, rates, at, draw)
                    pipeline.xadd(gate.USAGE, {"worker": "demo", "seq": 0, "event": encode_event(event)})
        pipeline.execute()


def _requests_in(hour: datetime, draw: random.Random) -> int:
    """People work by day and on weekdays."""
    is_work = 7 <= hour.hour < 19 and hour.weekday() < 5
    return draw.randrange(4, 9) if is_work else draw.randrange(0, 2)


def _past_event(
    virtual_key: VirtualKey, deployment: Deployment, rates: pricing.Price, at: datetime, draw: random.Random
) -> UsageEvent:
    has_failed = draw.random() < 0.02
    input_tokens = draw.randrange(400, 12_000)
    usage = Usage(
        input_tokens=input_tokens,
        cache_read_input_tokens=draw.choice((0, input_tokens // 2)),
        output_tokens=draw.randrange(80, 1_600),
    )
    latency_ms = int(draw.lognormvariate(6.8, 0.5))
    project = virtual_key.project
    return UsageEvent(
        attempt_id=str(uuid7()),
        request_id=str(uuid7()),
        admitted_at_us=int(at.timestamp() * 1_000_000),
        team_id=str(project.team_id),
        project_id=str(project.pk),
        virtual_key_id=str(virtual_key.pk),
        environment=project.environment,
        alias=ALIAS,
        provider=SIMULATOR,
        model=deployment.model.name,
        deployment=deployment.name,
        request_model=deployment.upstream_model,
        response_model=deployment.upstream_model,
        status_code=500 if has_failed else 200,
        error_type="upstream_error" if has_failed else "",
        finish_reason="" if has_failed else "stop",
        usage=Usage() if has_failed else usage,
        usage_source="none" if has_failed else "provider",
        cost_nanos=0 if has_failed else pricing.cost_nanos(usage, rates),
        price_id=rates.price_id,
        latency_ms=latency_ms,
        first_token_ms=latency_ms // 4,
        end_user=draw.choice(END_USERS),
        tags={"feature": project.slug, "customer": draw.choice(CUSTOMERS), "demo": "true"},
    )
