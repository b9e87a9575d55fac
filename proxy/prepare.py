"""What is sent to one upstream: the client's own bytes where the provider speaks its dialect, a translation elsewhere. No I/O."""

from typing import NamedTuple

import msgspec

from proxy import service_tiers
from proxy.describe import Described
from proxy.errors import CannotCarry, Unbounded
from proxy.neutral import Prompt
from proxy.providers.provider import Api, Outgoing
from proxy.registry import Upstream


class Prepared(NamedTuple):
    """One attempt, ready to be admitted. `dropped` names what a lenient alias lets fall."""

    described: Described
    upstream: Upstream
    attempt_number: int
    api: Api
    outgoing: Outgoing
    is_translated: bool = False
    dropped: tuple[str, ...] = ()
    # Besides the standard one, what it may be billed at.
    service_tiers: tuple[str, ...] = ()
    may_be_in_geo: bool = False


def prepare(described: Described, upstream: Upstream, attempt_number: int) -> Prepared:
    """Raises `InvalidRequest` for a request that is wrong in itself, `CannotCarry` for what this provider cannot be told, or may
    not be."""
    call = described.call
    api = upstream.api_for(call.dialect, call.capability)
    assert api is not None, "the route holds only upstreams that can take the call"
    tiers = service_tiers.asked(call.fields, upstream.deployment)
    if api.name == call.dialect.name:
        unbounded = [*api.unbounded_in(call), *tiers.unbounded]
        if unbounded:
            if not described.is_lenient:
                raise Unbounded(unbounded, upstream.provider.slug)
            kept = {name: value for name, value in call.fields.items() if name not in unbounded}
            call = msgspec.structs.replace(call, fields=kept)
        outgoing = api.pass_request(call, upstream.deployment, upstream.provider)
        return Prepared(
            described,
            upstream,
            attempt_number,
            api,
            outgoing,
            False,
            tuple(unbounded),
            tiers.tiers,
            tiers.may_be_in_geo,
        )
    if tiers.unbounded and not described.is_lenient:
        raise Unbounded(tiers.unbounded, upstream.provider.slug)
    if call.prompt is None:
        call.prompt = call.dialect.read_prompt(call)
    prompt, lost = call.prompt, [*call.prompt.lost, *tiers.unbounded]
    if tiers.unbounded and isinstance(prompt, Prompt):
        prompt = msgspec.structs.replace(prompt, service_tier=None)
    outgoing = api.write_request(prompt, call, upstream.deployment, upstream.provider, lost)
    lost = list(dict.fromkeys(lost))
    if lost and not described.is_lenient:
        raise CannotCarry(lost, upstream.provider.slug)
    return Prepared(
        described, upstream, attempt_number, api, outgoing, True, tuple(lost), tiers.tiers, tiers.may_be_in_geo
    )
