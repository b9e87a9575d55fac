import http.server
import threading
from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from audit.actors import Actor
from budgets import feeds
from routing import services
from routing.price_models import ExchangeRate, ExchangeRateFeed
from tests import factories

pytestmark = pytest.mark.django_db

ACTOR = Actor.system("test")
CSV = b"currency,usd_per_unit,effective_from\nEUR,1.0812,2026-11-01\nSEK,0.09,2026-11-01\n"


@pytest.fixture
def server():
    """On loopback; answers what `answers` says for a path: (status, body). `/slow` answers a byte at a time until the test ends."""
    answers = {"/rates.csv": (200, CSV), "/broken": (503, b""), "/moved": (302, b""), "/large": (200, b"x" * 1_100_000)}

    is_over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/slow":
                self.send_response(200)
                self.end_headers()
                while not is_over.wait(0.02):
                    self.wfile.write(b"x")
                return
            status, body = answers[self.path]
            self.send_response(status)
            self.send_header("location", "/rates.csv")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    is_over.set()
    running.shutdown()
    running.server_close()


def feed(url, **fields):
    return ExchangeRateFeed.objects.create(name=url, url=url, **{"may_be_private": True, **fields})


def fetched(source, **options):
    feeds.fetch_due(actor=ACTOR, **options)
    source.refresh_from_db()
    return source


def test_a_feed_adds_the_rates_of_currencies_that_a_provider_has_once(server):
    factories.ProviderFactory(currency="EUR")
    source = feed(f"{server}/rates.csv", problem="it answered 503")
    assert feeds.fetch_due(actor=ACTOR) == 1
    services.fetch_feed_now(source, actor=ACTOR)
    assert feeds.fetch_due(actor=ACTOR) == 0
    rate = ExchangeRate.objects.get()
    assert (rate.currency, rate.usd_per_unit, rate.source) == ("EUR", Decimal("1.0812"), source.name)
    source.refresh_from_db()
    assert source.problem == "" and source.fetched_at <= timezone.now()


@pytest.mark.parametrize(("path", "problem"), [("broken", "503"), ("moved", "302"), ("large", "bytes")])
def test_what_is_no_answer_is_not_taken(server, path, problem):
    assert problem in fetched(feed(f"{server}/{path}")).problem


def test_a_feed_of_the_internet_does_not_lead_inside(server):
    port = server.rpartition(":")[2]
    assert "private" in fetched(feed(f"https://127.0.0.1:{port}/rates.csv", may_be_private=False)).problem
    assert not ExchangeRate.objects.exists()


def test_a_feed_that_never_ends_its_answer_keeps_no_other_back(server):
    factories.ProviderFactory(currency="EUR")
    slow, good = feed(f"{server}/slow"), feed(f"{server}/rates.csv")
    assert fetched(slow, deadline_s=3.0).problem == "the answer took too long"
    good.refresh_from_db()
    assert good.problem == "" and ExchangeRate.objects.get().source == good.name


def test_what_one_feed_lacks_does_not_stop_the_next(server):
    factories.ProviderFactory(currency="EUR")
    broken, good = feed(f"{server}/broken"), feed(f"{server}/rates.csv")
    feed(f"{server}/large", is_active=False)
    assert feeds.fetch_due(actor=ACTOR) == 1
    broken.refresh_from_db()
    good.refresh_from_db()
    assert (broken.problem, good.problem) == ("it answered 503", "")


def test_a_feed_is_fetched_when_it_is_added_changed_or_asked_for_and_else_once_a_day(server):
    source = feed(f"{server}/rates.csv")

    def is_due():
        return ExchangeRateFeed.objects.filter(pk=source.pk, due_at__lte=timezone.now()).exists()

    assert is_due()
    first = fetched(source).fetched_at
    assert not is_due() and source.due_at == first + services.FEED_EVERY
    assert fetched(source).fetched_at == first
    services.change_feed(source, values={"url": f"{server}/broken"}, actor=ACTOR)
    assert is_due()
    claimed_at = timezone.now()
    assert fetched(source).problem and source.fetched_at == first
    assert claimed_at <= source.due_at - services.FEED_AGAIN <= timezone.now()
    services.fetch_feed_now(source, actor=ACTOR)
    assert is_due()


def test_who_asks_for_a_feed_while_it_is_fetched_gets_what_it_says_after(server):
    source = feed(f"{server}/rates.csv")
    (claimed,) = services.claim_feeds(timezone.now())
    assert services.claim_feeds(timezone.now()) == []
    services.fetch_feed_now(source, actor=ACTOR)
    services.take_feed(claimed, CSV, timezone.now(), actor=ACTOR)
    assert services.claim_feeds(timezone.now()) == [source]


def test_a_feed_that_is_switched_off_is_not_asked_for():
    source = factories.ExchangeRateFeedFactory(is_active=False)
    with pytest.raises(ValidationError, match="switched off"):
        services.fetch_feed_now(source, actor=ACTOR)
