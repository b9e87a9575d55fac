"""The outbox: notices reach real receivers, signed; what fails is tried again, and given up where somebody sees it."""

import base64
import datetime
import email
import email.policy
import hashlib
import hmac
import http.server
import json
import socket
import socketserver
import ssl
import threading

import pytest
from django.db import connection
from django.utils import timezone

from budgets import alert_services, notify
from budgets.alert_models import Alert, Channel, Delivery
from budgets.alerts import TRIES_MAX
from keys.vault import Secret
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((dict(self.headers), body))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


class ReceiverServer(http.server.ThreadingHTTPServer):
    # As many as three who deliver connect at once: with the usual five some wait for seconds, and on a busy machine too long.
    request_queue_size = 3 * notify.BATCH


@pytest.fixture
def receiver():
    """An HTTP server: `.url`, `.received` as (headers, body), and `.statuses` of the next answers."""
    with ReceiverServer(("127.0.0.1", 0), Receiver) as server:
        server.received, server.statuses = [], []
        server.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# What each says when it has taken a message.
TAKEN = {
    "hooks.slack.com": (200, b"ok"),
    "discord.com": (204, b""),
    "events.pagerduty.com": (202, b"{}"),
    "prod-1.logic.azure.com": (202, b""),
}


class ServiceHandler(Receiver):
    """A proxy that answers itself for whoever is asked for, on TLS."""

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.host = self.path.partition(":")[0]
        self.close_connection = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.host + self.path, json.loads(body)))
        status, answer = (self.server.statuses.pop(0), b"") if self.server.statuses else TAKEN[self.host]
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def finish(self):
        super().finish()
        self.connection.close()


@pytest.fixture
def services(make_certificate, monkeypatch):
    """Stands for the services that apprise knows: `.received` as (host and path, body), and `.statuses` of the next answers."""
    certificate = make_certificate(*TAKEN)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with ReceiverServer(("127.0.0.1", 0), ServiceHandler) as server:
        server.received, server.statuses, server.context = [], [], context
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class MailHandler(socketserver.StreamRequestHandler):
    """As much of SMTP as a sender needs."""

    def handle(self):
        self.wfile.write(b"220 mail\r\n")
        while line := self.rfile.readline():
            verb = line.split()[0].upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.received.append(b"".join(lines))
            if verb == b"RCPT" and self.server.refuses:
                self.wfile.write(b"550 no such user\r\n")
                continue
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 good\r\n")
            if verb == b"QUIT":
                return


@pytest.fixture
def mail_server():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), MailHandler) as server:
        server.received, server.refuses = [], False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def webhook(url, **fields):
    """A channel, and what its messages are signed with."""
    channel = Channel(name="hook", kind="webhook", may_be_private=True, **fields)
    return channel, alert_services.add_channel(channel, url, actor=ACTOR)


def service_channel(kind, address):
    channel = Channel(name=kind, kind=kind, may_be_private=True)
    alert_services.add_channel(channel, address, actor=ACTOR)
    return channel


def mail_channel(server, **fields):
    channel = Channel(name="mail", kind="mail", **{"may_be_private": True, **fields})
    address = (
        f"mailto://127.0.0.1:{server.server_address[1]}?mode=insecure&from=tollgate@example.com&to=finance@example.com"
    )
    alert_services.add_channel(channel, address, actor=ACTOR)
    return channel


def finding(**values):
    fields = {
        "kind": "kill_switch",
        "about_id": Alert().pk,
        "counter": (),
        "percent": 0,
        "window_start": None,
        "window_end": None,
        "team_id": None,
        "severity": "critical",
        "title": "Kill switch thrown: global",
        "text": "boss halted this traffic.",
    }
    return alert_services.Finding(**fields | values)


def make_due():
    Delivery.objects.filter(state="waiting").update(due_at=timezone.now())


def expected_signature(secret, headers, body):
    """As docs/alerts.md tells receivers to compute it."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def test_a_webhook_is_signed_with_the_secret_that_was_shown_once(receiver):
    channel, secret = webhook(receiver.url)
    (alert,) = alert_services.open_alerts([finding()], now=timezone.now())
    assert isinstance(secret, Secret) and notify.deliver_due() == 1
    ((headers, body),) = receiver.received
    assert headers["webhook-signature"] == expected_signature(secret.reveal(), headers, body)
    assert abs(int(headers["webhook-timestamp"]) - timezone.now().timestamp()) < 60
    delivery = Delivery.objects.get()
    assert headers["webhook-id"] == str(delivery.pk) and delivery.state == "sent"
    told = json.loads(body)
    assert told["type"] == "alert.opened"
    assert told["data"]["alert_id"] == str(alert.pk) and told["data"]["title"] == "Kill switch thrown: global"
    assert notify.deliver_due() == 0 and channel.deliveries.count() == 1


def test_a_new_signing_secret_replaces_the_old(receiver):
    channel, old = webhook(receiver.url)
    new = alert_services.renew_signing_secret(channel, actor=ACTOR, reason="leaked")
    alert_services.open_alerts([finding()], now=timezone.now())
    notify.deliver_due()
    ((headers, body),) = receiver.received
    assert headers["webhook-signature"] == expected_signature(new.reveal(), headers, body)
    assert headers["webhook-signature"] != expected_signature(old.reveal(), headers, body)


def test_the_end_of_an_alert_is_told_where_its_beginning_was(receiver):
    webhook(receiver.url)
    (alert,) = alert_services.open_alerts([finding()], now=timezone.now())
    late = factories.ChannelFactory(name="came later")
    alert_services.recover_alerts({alert.pk: "It is lifted."}, now=timezone.now())
    alert_services.recover_alerts({alert.pk: "It is lifted."}, now=timezone.now())
    notify.deliver()
    told = [json.loads(body) for _, body in receiver.received]
    assert [message["type"] for message in told] == ["alert.opened", "alert.recovered"]
    over = told[1]
    assert over["data"]["text"] == "It is lifted." and over["data"]["recovered_at"]
    assert not late.deliveries.exists()


def test_mail_goes_through_apprise(mail_server):
    mail_channel(mail_server)
    alert_services.open_alerts([finding(text="80 % of Müller's budget.")], now=timezone.now())
    notify.deliver_due()
    message = email.message_from_bytes(mail_server.received[0], policy=email.policy.default)
    assert message["To"] == "finance@example.com" and message["Subject"] == "Kill switch thrown: global"
    assert "80 % of Müller's budget." in message.get_body(("html", "plain")).get_content()
    assert Delivery.objects.get().state == "sent"


def test_mail_that_is_refused_says_why_and_not_where_to(mail_server):
    mail_server.refuses = True
    mail_channel(mail_server)
    alert_services.open_alerts([finding()], now=timezone.now())
    notify.deliver_due()
    delivery = Delivery.objects.get()
    assert delivery.state == "waiting" and delivery.last_error
    assert "finance@example.com" not in delivery.last_error and "127.0.0.1" not in delivery.last_error


@pytest.mark.parametrize(
    ("kind", "address", "asked"),
    [
        (
            "slack",
            "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
            "hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
        ),
        (
            "discord",
            "https://discord.com/api/webhooks/4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js",
            "discord.com/api/webhooks/4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js",
        ),
        (
            "teams",
            "https://prod-1.logic.azure.com:443/workflows/643e69f8/triggers/manual/paths/invoke?sig=KODuebWb",
            "prod-1.logic.azure.com/workflows/643e69f8/triggers/manual/paths/invoke",
        ),
        ("pagerduty", "pagerduty://integrationkey@apikey", "events.pagerduty.com/v2/enqueue"),
    ],
)
def test_a_notice_goes_to_the_service_and_says_what_it_is_about(services, kind, address, asked):
    service_channel(kind, address)
    alert_services.open_alerts([finding(text="80 % of Müller's budget.")], now=timezone.now())
    notify.deliver()
    assert Delivery.objects.get().last_error == ""
    ((address, body),) = services.received
    assert address.partition("?")[0] == asked
    told = json.dumps(body, ensure_ascii=False)
    assert "Kill switch thrown: global" in told and "80 % of Müller's budget." in told


@pytest.mark.parametrize("status", [403, 404, 500])
def test_what_a_service_refuses_is_tried_again_and_told_without_its_address(services, status):
    service_channel("slack", "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")
    alert_services.open_alerts([finding()], now=timezone.now())
    services.statuses = [status]
    notify.deliver()
    delivery = Delivery.objects.get()
    assert delivery.state == "waiting" and str(status) in delivery.last_error
    assert "TIiajkdnlazkcOXrIdevi7FQ" not in delivery.last_error


def test_the_end_of_an_alert_resolves_its_incident_at_pagerduty(services):
    service_channel("pagerduty", "pagerduty://integrationkey@apikey")
    window = {"kind": "threshold", "window_start": timezone.now()}
    found = finding(**window, title="Search: 100 % of 100 USD")
    for _ in range(2):
        (alert,) = alert_services.open_alerts([found], now=timezone.now())
        alert_services.recover_alerts({alert.pk: "It is raised."}, now=timezone.now())
    alert_services.open_alerts([finding(title="Another")], now=timezone.now())
    notify.deliver()
    assert not Delivery.objects.exclude(state="sent").exists()
    assert {address for address, _ in services.received} == {"events.pagerduty.com/v2/enqueue"}
    told = [body for _, body in services.received]
    assert {body["routing_key"] for body in told} == {"integrationkey"}
    steps = {}
    for body in told:
        steps.setdefault(body["dedup_key"], []).append(body["event_action"])
    assert sorted(steps.values()) == [["trigger"], ["trigger", "resolve"], ["trigger", "resolve"]]
    # Each is sent by a thread of its own, in any order.
    opened = [body["payload"] for body in told if body["event_action"] == "trigger"]
    assert {payload["severity"] for payload in opened} == {"critical"}
    assert sum(payload["summary"].startswith("Search: 100 % of 100 USD") for payload in opened) == 2


def test_muting_leaves_no_incident_open(services):
    service_channel("pagerduty", "pagerduty://integrationkey@apikey")
    service_channel("slack", "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")
    (alert,) = alert_services.open_alerts([finding()], now=timezone.now())
    notify.deliver()
    alert_services.mute(alert, timezone.now() + datetime.timedelta(hours=1), actor=ACTOR)
    alert_services.recover_alerts({alert.pk: "It is lifted."}, now=timezone.now())
    services.received.clear()
    notify.deliver()
    assert [body.get("event_action") for _, body in services.received] == ["resolve"]


def test_the_end_is_not_told_before_the_beginning_has_arrived(services):
    service_channel("pagerduty", "pagerduty://integrationkey@apikey")
    (alert,) = alert_services.open_alerts([finding()], now=timezone.now())
    services.statuses = [500]
    notify.deliver()
    alert_services.recover_alerts({alert.pk: "It is lifted."}, now=timezone.now())
    notify.deliver()
    assert [body["event_action"] for _, body in services.received] == ["trigger"]
    make_due()
    notify.deliver()
    assert [body["event_action"] for _, body in services.received] == ["trigger", "trigger", "resolve"]


def test_a_failure_is_tried_again_later_and_then_sent(receiver):
    webhook(receiver.url)
    alert_services.open_alerts([finding()], now=timezone.now())
    receiver.statuses = [500]
    before = timezone.now()
    notify.deliver_due(fraction=lambda: 1.0)
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.tries, delivery.last_error) == ("waiting", 1, "answered 500")
    assert datetime.timedelta(seconds=9) < delivery.due_at - before < datetime.timedelta(seconds=60)
    assert notify.deliver_due() == 0
    make_due()
    notify.deliver_due()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.tries, delivery.last_error) == ("sent", 2, "")
    first, second = receiver.received
    assert first[0]["webhook-id"] == second[0]["webhook-id"]


def test_what_fails_too_often_is_given_up_and_may_be_tried_again_by_hand(receiver, caplog):
    webhook(receiver.url)
    alert_services.open_alerts([finding()], now=timezone.now())
    receiver.statuses = [503] * TRIES_MAX
    for _ in range(TRIES_MAX):
        make_due()
        notify.deliver_due()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.tries, delivery.last_error) == ("dead", TRIES_MAX, "answered 503")
    assert "is given up: answered 503" in caplog.text and receiver.url not in caplog.text
    alert_services.try_again(delivery, actor=ACTOR, reason="mended")
    notify.deliver_due()
    delivery.refresh_from_db()
    assert delivery.state == "sent"


def test_a_receiver_that_is_not_there_is_told_without_its_address(free_port):
    webhook(f"http://127.0.0.1:{free_port}/secret-path")
    alert_services.open_alerts([finding()], now=timezone.now())
    notify.deliver_due()
    error = Delivery.objects.get().last_error
    assert "ConnectError" in error and "secret-path" not in error and str(free_port) not in error


def test_a_redirect_is_not_followed(receiver):
    webhook(receiver.url)
    alert_services.open_alerts([finding()], now=timezone.now())
    receiver.statuses = [302]
    notify.deliver_due()
    assert Delivery.objects.get().last_error == "answered 302" and len(receiver.received) == 1


@pytest.mark.parametrize("make", ["webhook", "mail"])
def test_a_private_address_is_not_connected_where_it_was_not_allowed(receiver, mail_server, make):
    """Also where the address was fine when it was entered: a name can be turned to any address later."""
    if make == "webhook":
        webhook(receiver.url)
    else:
        mail_channel(mail_server)
    Channel.objects.update(may_be_private=False)
    alert_services.open_alerts([finding()], now=timezone.now())
    notify.deliver_due()
    assert Delivery.objects.get().state == "waiting" and Delivery.objects.get().last_error
    assert not receiver.received and not mail_server.received


def test_one_channel_that_hangs_or_breaks_keeps_no_other_back(receiver):
    webhook(receiver.url)
    factories.ChannelFactory(name="unopenable")
    alert_services.open_alerts([finding()], now=timezone.now())
    assert notify.deliver_due() == 2
    assert len(receiver.received) == 1
    broken = Delivery.objects.get(channel_name="unopenable")
    assert broken.state == "waiting" and "sealed text" in broken.last_error


def test_a_receiver_that_never_ends_its_answer_keeps_no_other_back(receiver):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        webhook(receiver.url)
        slow = Channel(name="slow", kind="webhook", may_be_private=True)
        alert_services.add_channel(slow, f"http://127.0.0.1:{silent.getsockname()[1]}/", actor=ACTOR)
        alert_services.open_alerts([finding()], now=timezone.now())
        assert notify.deliver_due(deadline_s=8.0) == 2
        assert slow.deliveries.get().last_error == "the answer took too long"
        assert slow.deliveries.get().state == "waiting"
        assert Delivery.objects.get(channel_name="hook").state == "sent"


def test_everything_due_is_sent_and_by_one_at_a_time(receiver):
    webhook(receiver.url)
    count = notify.BATCH + 1
    alert_services.open_alerts([finding(about_id=Alert().pk) for _ in range(count)], now=timezone.now())
    notify.deliver()
    assert len(receiver.received) == count and Delivery.objects.filter(state="sent").count() == count


def test_a_channel_that_is_gone_is_seen_in_the_log_of_deliveries(receiver):
    channel, _ = webhook(receiver.url)
    alert_services.open_alerts([finding()], now=timezone.now())
    channel.delete()
    notify.deliver_due()
    delivery = Delivery.objects.get()
    assert delivery.channel_name == "hook" and "gone" in delivery.last_error and not receiver.received


def test_a_test_is_tried_once_and_says_that_it_is_one(receiver):
    channel, _ = webhook(receiver.url)
    alert_services.fire_test(channel, actor=ACTOR)
    notify.deliver_due()
    assert json.loads(receiver.received[0][1])["type"] == "alert.test"
    receiver.statuses = [500]
    failed = alert_services.fire_test(channel, actor=ACTOR)
    notify.deliver_due()
    failed.refresh_from_db()
    assert (failed.state, failed.tries) == ("dead", 1)


def test_a_link_leads_to_the_admin_where_its_address_is_known(receiver, settings):
    settings.TOLLGATE_ADMIN_URL = "https://tollgate.example.com/admin"
    webhook(receiver.url)
    (alert,) = alert_services.open_alerts([finding()], now=timezone.now())
    notify.deliver_due()
    link = json.loads(receiver.received[0][1])["data"]["link"]
    assert link == f"https://tollgate.example.com/admin/budgets/alert/{alert.pk}/change/"


@pytest.mark.django_db(transaction=True)
def test_two_who_deliver_at_once_send_each_notice_once(receiver):
    webhook(receiver.url)
    alert_services.open_alerts([finding(about_id=Alert().pk) for _ in range(60)], now=timezone.now())
    start = threading.Barrier(3)

    def deliver():
        start.wait()
        while notify.deliver_due():
            pass
        connection.close()

    threads = [threading.Thread(target=deliver) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(Delivery.objects.values_list("state", "tries", "last_error")) == [("sent", 1, "")] * 60
    assert len(receiver.received) == 60
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 60


def test_who_dies_while_sending_leaves_the_notice_to_another(receiver):
    webhook(receiver.url)
    alert_services.open_alerts([finding()], now=timezone.now())
    notify._claim(timezone.now())
    assert notify.deliver_due() == 0
    assert len(notify._claim(timezone.now() + notify.CLAIM)) == 1
