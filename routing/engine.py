"""Choosing a route: a pure function from an alias's targets to an ordered chain of deployments, with reasons.

No Django, clock or I/O; randomness is passed in.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec


class AliasTarget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Targets are tried by `position`; within one position they share the load by `weight`."""

    deployment_id: str
    position: int = 0
    weight: int = 1


class Candidate(NamedTuple):
    """`reason` says why the deployment stands where it stands, or why it was passed over (then `is_usable` is false)."""

    deployment_id: str
    is_usable: bool
    reason: str


def choose(
    targets: Sequence[AliasTarget], obstacle: Callable[[str], str | None], draw: Callable[[], float]
) -> list[Candidate]:
    """Every target as a candidate, usable ones in the order they are to be tried, the others after them.

    `obstacle(deployment_id)` says why a deployment cannot serve this request, or None. `draw()` is uniform in [0, 1).
    """
    usable: list[AliasTarget] = []
    passed_over: list[Candidate] = []
    for target in targets:
        reason = obstacle(target.deployment_id)
        if reason is None:
            usable.append(target)
        else:
            passed_over.append(Candidate(target.deployment_id, False, reason))
    if len(usable) > 1:
        # Weighted order without replacement: the largest u^(1/w) first (Efraimidis and Spirakis, 2006).
        usable.sort(key=lambda target: (target.position, -(draw() ** (1.0 / max(target.weight, 1)))))
    chosen = [Candidate(target.deployment_id, True, f"position {target.position}") for target in usable]
    return chosen + passed_over
