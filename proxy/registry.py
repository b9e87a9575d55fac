"""The snapshot compiled for use: where each deployment is called and with which credential. No I/O.

A registry is built whole from a good snapshot and swapped by one assignment; a request keeps the one it started with.
"""

from collections.abc import Callable, Mapping

import structlog
from msgspec import structs

from budgets.matching import Index, is_of_keys
from budgets.pricing import fixed_price
from keys.kills import kill_field
from proxy import snapshot as configuration
from proxy.dialects.dialect import Dialect
from proxy.providers.passthrough import PASSTHROUGH
from proxy.providers.provider import Api, Authorizer, Provider
from proxy.providers.table import PROVIDERS
from proxy.rules import Shared
from proxy.wire.http1 import Origin

log = structlog.get_logger()

# Reveals a sealed credential: (sealed text, credential id) → secret. Raises ValueError when no key of the vault opens it.
OpenSealed = Callable[[str, str], str]


class Upstream:
    """One deployment, ready to be called. Credentials are used in turn."""

    __slots__ = (
        "_api_by_dialect",
        "_apis",
        "_authorizers",
        "_turn",
        "deployment",
        "deployment_header",
        "kill_fields",
        "kind",
        "origin",
        "provider",
    )

    def __init__(
        self,
        deployment: configuration.Deployment,
        provider: configuration.Provider,
        kind: Provider,
        authorizers: list[Authorizer],
    ) -> None:
        self.deployment = deployment
        self.provider = provider
        self.kind = kind
        self.origin = Origin.parse(provider.base_url)
        halting = (("model", deployment.model), ("provider", provider.slug))
        self.kill_fields = tuple(kill_field(scope, target) for scope, target in halting if target)
        self.deployment_header = (b"x-tollgate-deployment", deployment.name.encode())
        self._apis = [api for api in kind.apis if api.serves(deployment, provider)]
        self._api_by_dialect: dict[str, Api | None] = {}
        self._authorizers = authorizers
        self._turn = 0

    @property
    def can_be_called(self) -> bool:
        """Not when it has credentials and the vault opens none of them. One that has none needs none: a model of one's own."""
        return bool(self._authorizers) or not self.deployment.credentials

    @property
    def credential_ids(self) -> list[str]:
        """Under which it may be called: "" where none is needed."""
        return [authorizer.credential_id for authorizer in self._authorizers] or [""]

    def authorizer(
        self, credential_id: str = "", *, may_use: Callable[[str], bool] = lambda _: True
    ) -> Authorizer | None:
        """The credential of that id, else the next in turn that one may use, else any; None where none is needed."""
        if not self._authorizers:
            return None
        if credential_id:
            for authorizer in self._authorizers:
                if authorizer.credential_id == credential_id:
                    return authorizer
        if len(self._authorizers) == 1:
            return self._authorizers[0]
        for _ in self._authorizers:
            self._turn = (self._turn + 1) % len(self._authorizers)
            if may_use(self._authorizers[self._turn].credential_id):
                break
        return self._authorizers[self._turn]

    def passthrough(self, model: str) -> "Upstream":
        """The same provider and credentials for any of its paths, at the price that is fixed for a call of unknown cost.

        It is no deployment that anybody has set up: what is counted or learned of those is not of it.
        """
        name = f"passthrough/{self.provider.slug}"
        held_nanos = self.provider.passthrough_hold_nanos
        price = None if held_nanos is None else fixed_price(held_nanos)
        deployment = structs.replace(
            self.deployment, deployment_id=name, name=name, model=model, upstream_model=model, price=price
        )
        return Upstream(deployment, self.provider, structs.replace(self.kind, apis=(PASSTHROUGH,)), self._authorizers)

    def api_for(self, dialect: Dialect, capability: str) -> Api | None:
        """The provider's API that speaks the dialect, else its first that can be translated to; None where there is none."""
        try:
            return self._api_by_dialect[dialect.name]
        except KeyError:
            pass
        chosen = next((api for api in self._apis if api.name == dialect.name), None)
        if chosen is None and dialect.is_translatable:
            chosen = next((api for api in self._apis if api.capability == capability and api.is_translatable), None)
        self._api_by_dialect[dialect.name] = chosen
        return chosen


class Registry:
    """`snapshot` as it came, `upstreams` by deployment id, rules by whom they are about."""

    def __init__(self, snapshot: configuration.Snapshot, open_sealed: OpenSealed) -> None:
        self.snapshot = snapshot
        self.upstreams = {
            deployment_id: _upstream(deployment, snapshot.providers[deployment.provider], open_sealed)
            for deployment_id, deployment in snapshot.deployments.items()
        }
        # Apart: those that a key alone decides, which are looked for once, and those that each call decides.
        self._budgets_of_keys = Index(budget for budget in snapshot.budgets if is_of_keys(budget.subject))
        self._limits_of_keys = Index(limit for limit in snapshot.limits if is_of_keys(limit.subject))
        self._rules_of_keys: dict[str, tuple[list[configuration.Budget], list[configuration.Limit]]] = {}
        self.counters: Shared = {}
        self.budgets_of_calls = Index(budget for budget in snapshot.budgets if not is_of_keys(budget.subject))
        self.limits_of_calls = Index(limit for limit in snapshot.limits if not is_of_keys(limit.subject))
        # By provider and upstream model; "" for calls that name no model we know.
        self.passthroughs: dict[tuple[str, str], Upstream] = {}
        for upstream in self.upstreams.values():
            slug = upstream.provider.slug
            self.passthroughs[slug, upstream.deployment.upstream_model] = upstream.passthrough(
                upstream.deployment.model
            )
            if (slug, "") not in self.passthroughs:
                self.passthroughs[slug, ""] = upstream.passthrough("")

    @property
    def version(self) -> int:
        return self.snapshot.version

    def rules_of_keys(self, values: Mapping[str, str]) -> tuple[list[configuration.Budget], list[configuration.Limit]]:
        """Those that apply to a key with these values, whatever it calls. They are the same for every key of its project: what names
        a key travels with that key."""
        try:
            return self._rules_of_keys[values["project"]]
        except KeyError:
            pass
        rules = self._budgets_of_keys.matching(values), self._limits_of_keys.matching(values)
        self._rules_of_keys[values["project"]] = rules
        return rules


def _upstream(
    deployment: configuration.Deployment, provider: configuration.Provider, open_sealed: OpenSealed
) -> Upstream:
    # Of a provider that a newer control plane knows and this worker does not, nothing can be called.
    kind = PROVIDERS.get(provider.api) or Provider(name=provider.api, apis=())
    opened = (_authorizer(credential, kind, provider, open_sealed) for credential in deployment.credentials)
    return Upstream(deployment, provider, kind, [authorizer for authorizer in opened if authorizer is not None])


def _authorizer(
    credential: configuration.Credential, kind: Provider, provider: configuration.Provider, open_sealed: OpenSealed
) -> Authorizer | None:
    try:
        authorizer = kind.authorize(open_sealed(credential.sealed, credential.credential_id), provider)
        authorizer.credential_id = credential.credential_id
        return authorizer
    except ValueError:
        # The rest of the snapshot is good: one credential that cannot be opened or used must not stop all traffic.
        log.error("credential cannot be used", credential_id=credential.credential_id)
        return None
