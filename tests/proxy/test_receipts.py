"""What the data path notes down for receipts: which deployments there were to choose from, and where tags came from."""

from proxy.snapshot import Provider
from tests.stack import chat, wait_until


def _events(stack, count):
    wait_until(lambda: len(stack.control.events()) >= count, f"{count} usage events", timeout_s=5)
    return stack.control.events()


def test_where_tags_came_from_is_in_the_event(stack):
    stack.wait_for_version(stack.control.publish(project={"default_tags": {"team": "x", "feature": "none"}}))
    headers = {"x-tollgate-tags": "feature=search"}
    with stack.client(stack.control.issue_key(default_tags={"tier": "gold"})) as client:
        client.post("/v1/chat/completions", json=chat(metadata={"customer": "acme"}), headers=headers)
    (event,) = _events(stack, 1)
    assert event["tags"] == {"team": "x", "feature": "search", "tier": "gold", "customer": "acme"}
    assert event["tag_sources"] == {"team": "project", "tier": "key", "customer": "body"}


def test_every_candidate_of_the_route_is_in_the_event_with_its_reason(stack):
    control = stack.control
    control.providers["closed"] = Provider(slug="closed", api="openai", base_url="http://127.0.0.1:9/v1")
    control.add_deployment("unreachable", provider="closed")
    control.add_deployment("resting", is_active=False)
    control.add_alias("chain", "resting", "unreachable", "sim-fast")
    stack.wait_for_version(control.publish())
    with stack.client(control.issue_key()) as client:
        assert client.post("/v1/chat/completions", json=chat("chain")).status_code == 200
    first, second = _events(stack, 2)
    assert first["route"] == second["route"]
    assert [(tried["deployment"], tried.get("is_passed_over", False)) for tried in first["route"]] == [
        ("unreachable", False),
        ("sim-fast", False),
        ("resting", True),
    ]
    assert first["route"][2]["reason"] == "paused"


def test_what_a_provider_cannot_be_told_is_why_it_was_passed_over(stack):
    control = stack.control
    control.providers["claude"] = Provider(slug="claude", api="anthropic", base_url=stack.simulator.url)
    control.add_deployment("claude", provider="claude")
    control.add_alias("chain", "claude", "sim-fast")
    stack.wait_for_version(control.publish())
    with stack.client(control.issue_key()) as client:
        assert client.post("/v1/chat/completions", json=chat("chain", logit_bias={"1": 2})).status_code == 200
    (event,) = _events(stack, 1)
    assert event["deployment"] == "sim-fast"
    assert event["route"][0] == {
        "deployment": "claude",
        "reason": "cannot carry logit_bias",
        "is_passed_over": True,
    }


def test_where_there_was_no_choice_nothing_is_told(stack):
    with stack.client(stack.control.issue_key()) as client:
        client.post("/v1/chat/completions", json=chat(), headers={"x-tollgate-tags": "feature=search"})
    (event,) = _events(stack, 1)
    assert "route" not in event
    assert "tag_sources" not in event
