"""Choosing the route: which deployments are tried, in which order, and why. Pure, but for the draw that is passed in."""

import math
from collections.abc import Callable, Iterable, Mapping

from audit.records import Candidate
from keys.kills import KillFlag
from proxy.describe import Described
from proxy.dialects.dialect import Call
from proxy.errors import (
    AliasNotAllowed,
    AliasUnknown,
    InvalidRequest,
    ProviderLimitReached,
    TrafficHalted,
    Unavailable,
    UnpricedModel,
)
from proxy.headroom import Headrooms
from proxy.registry import Registry, Upstream
from proxy.snapshot import Alias, KeyRecord
from routing.engine import choose

# One of those that a call may be tried on, and the call as it is to be told there.
Turn = tuple[Described, Upstream]

EVERY_ALIAS = "*"
NO_HEADROOM = "no headroom"


def may_use(key: KeyRecord, alias: str) -> bool:
    return alias in key.aliases or EVERY_ALIAS in key.aliases


def allowed_aliases(key: KeyRecord, registry: Registry) -> list[Alias]:
    return [alias for name, alias in sorted(registry.snapshot.aliases.items()) if may_use(key, name)]


def choose_route(
    described: Described, kills: Mapping[str, KillFlag], draw: Callable[[], float], headrooms: Headrooms | None = None
) -> tuple[Described, list[Upstream]]:
    """At least one upstream, best first, and the call with the candidates it was chosen from. Raises when the alias is unknown
    or not allowed, or no deployment can serve."""
    subject, call = described.subject, described.call
    registry = subject.registry
    if call.capability == "passthrough":
        upstream = _passthrough(described, kills)
        if headrooms is not None and (wait_s := headrooms.wait_s(upstream, call)):
            raise _no_headroom(upstream.provider.slug, wait_s)
        return described, [upstream]
    alias = registry.snapshot.aliases.get(call.alias)
    if alias is None:
        raise AliasUnknown(
            f"the model `{call.alias}` does not exist: GET /v1/models lists what this key may use", param="model"
        )
    if not may_use(subject.key, call.alias):
        raise AliasNotAllowed(f"this virtual key may not use the model `{call.alias}`", param="model")

    def obstacle(deployment_id: str) -> str | None:
        upstream = registry.upstreams[deployment_id]
        found = _obstacle(upstream, call, kills)
        if found is None and headrooms is not None and headrooms.wait_s(upstream, call):
            return NO_HEADROOM
        return found

    if len(alias.targets) == 1 and obstacle(alias.targets[0].deployment_id) is None:
        return described, [
            registry.upstreams[alias.targets[0].deployment_id]
        ]  # Nothing was chosen, so nothing is told of it.
    candidates = choose(alias.targets, obstacle, draw)
    route = [registry.upstreams[candidate.deployment_id] for candidate in candidates if candidate.is_usable]
    if route:
        told = [
            Candidate(registry.upstreams[deployment_id].deployment.name, reason, not is_usable)
            for deployment_id, is_usable, reason in candidates
        ]
        return described._replace(candidates=tuple(told)), route
    # All are passed over. A kill switch is told before anything else: it is somebody's decision.
    for target in alias.targets:
        for field in registry.upstreams[target.deployment_id].kill_fields:
            if field in kills:
                raise halted(kills[field])
    reasons = {candidate.reason for candidate in candidates}
    if headrooms is not None and NO_HEADROOM in reasons:
        full = [candidate.deployment_id for candidate in candidates if candidate.reason == NO_HEADROOM]
        waits_s = [headrooms.wait_s(registry.upstreams[deployment_id], call) for deployment_id in full]
        raise _no_headroom(call.alias, min(waits_s))
    if reasons and reasons <= {"operation", "dialect"}:
        raise InvalidRequest(
            f"the model `{call.alias}` does not serve {call.operation}"
            + (f" for {call.dialect.name} clients" if "dialect" in reasons else ""),
            code="operation_not_supported",
            param="model",
        )
    raise Unavailable(
        f"no deployment of `{call.alias}` can be called: {', '.join(sorted(reasons)) or 'it has none'}",
        retry_after_s=10,
    )


def passed_over(described: Described, upstreams: Iterable[Upstream], reason: str) -> Described:
    """The call, with these of its candidates out of the route after all."""
    names = {upstream.deployment.name for upstream in upstreams}
    candidates = [
        Candidate(candidate.deployment, reason, True)
        if candidate.deployment in names and not candidate.is_passed_over
        else candidate
        for candidate in described.candidates
    ]
    return described._replace(candidates=tuple(candidates))


def _passthrough(described: Described, kills: Mapping[str, KillFlag]) -> Upstream:
    """Any path of a provider that the key may call so."""
    key, registry, said = described.subject.key, described.subject.registry, described.call.parameters
    slug = said["provider"]
    if slug not in key.passthrough and EVERY_ALIAS not in key.passthrough:
        raise AliasNotAllowed(f"this virtual key may not pass requests through to `{slug}`")
    upstream = registry.passthroughs.get((slug, said["model"])) or registry.passthroughs.get((slug, ""))
    if upstream is None:
        raise AliasUnknown(f"there is no provider `{slug}` with a deployment")
    for field in upstream.kill_fields:
        if field in kills:
            raise halted(kills[field])
    if upstream.deployment.price is None:
        raise UnpricedModel(
            f"nothing can be passed through to `{slug}`: what such a call costs is unknown, and an administrator has not set "
            "what to hold for it"
        )
    if not upstream.provider.is_active or not upstream.can_be_called:
        raise Unavailable(f"`{slug}` cannot be called now", retry_after_s=10)
    return upstream


def _no_headroom(what: str, wait_s: float) -> ProviderLimitReached:
    return ProviderLimitReached(
        f"the provider's own rate limits have nothing left for `{what}` now", retry_after_s=max(1, math.ceil(wait_s))
    )


def halted(flag: KillFlag) -> TrafficHalted:
    return TrafficHalted(flag.reason, kill_switch_id=flag.kill_switch_id, scope=flag.scope)


def _obstacle(upstream: Upstream, call: Call, kills: Mapping[str, KillFlag]) -> str | None:
    if call.capability not in upstream.deployment.operations:
        return "operation"
    if upstream.api_for(call.dialect, call.capability) is None:
        return "dialect"
    if not upstream.deployment.is_active or not upstream.provider.is_active:
        return "paused"
    if not upstream.can_be_called:
        return "no credential"
    if kills and any(field in kills for field in upstream.kill_fields):
        return "halted"
    return None
