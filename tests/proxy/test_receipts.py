"""What the data path notes down for receipts: which deployments there were to choose from, and where tags came from; and the
receipts that it fetches from the control plane."""

import http.server
import threading

import pytest

from proxy.config import Config, ConfigError
from proxy.snapshot import Provider
from tests.stack import chat, wait_until


def _events(stack, count):
    wait_until(lambda: len(stack.control.events()) >= count, f"{count} usage events")
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


# The route of the proxy: what the control plane answers to whom is its own (tests/controlplane/test_receipt_api.py).


class ControlPlane:
    """Answers as it is told, in HTTP, and notes what it was asked."""

    def __init__(self) -> None:
        self.answer = (200, b'{"cost_usd": "0.1"}', {})
        self.asked = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.asked.append((self.path, self.headers["authorization"]))
                status, body, headers = owner.answer
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def control_plane():
    running = ControlPlane()
    yield running
    running.stop()


REQUEST_ID = "019a0000-0000-7000-8000-000000000001"


def test_a_receipt_is_the_control_planes_answer_to_the_same_key(make_stack, control_plane):
    stack = make_stack(TOLLGATE_CONTROL_URL=control_plane.url)
    secret = stack.control.issue_key()
    with stack.client(secret) as client:
        response = client.get(f"/v1/receipts/{REQUEST_ID}")
        assert (response.status_code, response.json()) == (200, {"cost_usd": "0.1"})
        assert control_plane.asked == [(f"/api/v1/receipts/{REQUEST_ID}/", f"Bearer {secret}")]

        control_plane.answer = (202, b'{"detail": "not yet"}', {"retry-after": "1"})
        response = client.get(f"/v1/receipts/{REQUEST_ID}")
        assert (response.status_code, response.headers["retry-after"]) == (202, "1")

        control_plane.answer = (404, b"{}", {})
        assert client.get(f"/v1/receipts/{REQUEST_ID}").status_code == 404

        for status in (301, 401, 500):
            control_plane.answer = (status, b"internal words", {"location": "http://elsewhere/"})
            response = client.get(f"/v1/receipts/{REQUEST_ID}")
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert "internal words" not in response.text

        asked = len(control_plane.asked)
        for wrong in ("7", REQUEST_ID + "?x", "..%2F..%2Fapi%2Fv1%2Fteams"):
            assert client.get(f"/v1/receipts/{wrong}").status_code in (404, 503)
        assert all(path == f"/api/v1/receipts/{REQUEST_ID}/" for path, _ in control_plane.asked[asked:])

    with stack.client("tg-unknown") as stranger:
        asked = len(control_plane.asked)
        assert stranger.get(f"/v1/receipts/{REQUEST_ID}").status_code == 401
        assert len(control_plane.asked) == asked
    assert secret not in stack.proxy.log

    control_plane.stop()
    with stack.client(secret) as client:
        response = client.get(f"/v1/receipts/{REQUEST_ID}")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


def test_where_nobody_said_where_the_control_plane_is_there_are_no_receipts(stack):
    with stack.client(stack.control.issue_key()) as client:
        assert client.get(f"/v1/receipts/{REQUEST_ID}").status_code == 404


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "https://user:secret@host", "http://host/path", "http://host:0", "http://h?x", "nonsense"],
)
def test_a_control_url_that_is_none_stops_the_start_and_is_not_repeated(url):
    with pytest.raises(ConfigError, match="TOLLGATE_CONTROL_URL") as refused:
        Config.from_environment({"REDIS_URL": "redis://localhost", "TOLLGATE_CONTROL_URL": url})
    assert url not in str(refused.value)
