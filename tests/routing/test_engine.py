"""Choosing a route: order, weights, and what is passed over."""

import random

from routing.engine import AliasTarget, choose


def _targets(*places: tuple[str, int, int]) -> list[AliasTarget]:
    return [AliasTarget(deployment_id=name, position=position, weight=weight) for name, position, weight in places]


def test_positions_come_in_order():
    targets = _targets(("c", 2, 1), ("a", 0, 1), ("b", 1, 1))
    chosen = choose(targets, lambda _: None, random.Random(1).random)
    assert [candidate.deployment_id for candidate in chosen] == ["a", "b", "c"]


def test_weights_share_the_load_within_a_position():
    targets = _targets(("heavy", 0, 9), ("light", 0, 1))
    draw = random.Random(7).random
    firsts = [choose(targets, lambda _: None, draw)[0].deployment_id for _ in range(5_000)]
    assert 0.87 < firsts.count("heavy") / len(firsts) < 0.93


def test_what_cannot_serve_is_named_with_its_reason_and_stands_last():
    targets = _targets(("a", 0, 1), ("b", 1, 1))
    chosen = choose(targets, lambda name: "paused" if name == "a" else None, random.random)
    assert [(c.deployment_id, c.is_usable) for c in chosen] == [("b", True), ("a", False)]
    assert chosen[1].reason == "paused"


def test_an_alias_without_targets_has_no_route():
    assert choose([], lambda _: None, random.random) == []
