"""Where alerts may go: the addresses of channels, checked, and kept out of what is said about them. Nothing is sent here.

Chat, pagers and mail go through apprise, which knows many services and options; only those named here are loaded and let
through. Some of its options read files, fetch templates or switch off the check of certificates.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from apprise import AppriseAsset
from apprise.exception import AppriseException
from apprise.logger import LOGGER_NAME
from apprise.plugins.base import NotifyBase
from apprise.plugins.discord import NotifyDiscord
from apprise.plugins.email import NotifyEmail
from apprise.plugins.pagerduty import NotifyPagerDuty
from apprise.plugins.slack import NotifySlack
from apprise.plugins.workflows import NotifyWorkflows

from routing.addresses import InvalidAddress, check_base_url

WEBHOOK = "webhook"

# Redirects are not followed, nothing is read from disk, and no logo is fetched from elsewhere to stand beside the text.
ASSET = AppriseAsset(
    app_id="Tollgate",
    app_desc="Tollgate",
    app_url="",
    image_url_mask="",
    image_url_logo="",
    http_redirects=False,
    allow_templates=False,
    secure_logging=True,
    service_timeout=0,
)

ADDRESS_LENGTH_MAX = 2_000
# Shorter words stand in error messages for reasons of their own.
SCRUBBED_LENGTH_MIN = 5
ERROR_LENGTH_MAX = 300
REDACTED = "[redacted]"


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What sends there, and the options an address may have. `example` is shown to whoever enters one.

    `settings` are ours, and no address has them. A service that keeps incidents calls `incident` what tells it which notices are
    about the same one: the last ends what the first began.
    """

    plugin: type[NotifyBase]
    schemas: frozenset[str]
    parameters: frozenset[str] = frozenset()
    settings: Mapping[str, str] = {}
    incident: str = ""
    example: str


SERVICES = {
    "slack": Service(
        plugin=NotifySlack, schemas=frozenset({"slack"}), example="https://hooks.slack.com/services/T…/B…/…"
    ),
    "teams": Service(
        plugin=NotifyWorkflows,
        schemas=frozenset({"workflow", "workflows"}),
        parameters=frozenset({"api-version", "sp", "sv", "sig"}),
        example="https://….logic.azure.com:443/workflows/…/triggers/manual/paths/invoke?…&sig=…",
    ),
    "discord": Service(
        plugin=NotifyDiscord, schemas=frozenset({"discord"}), example="https://discord.com/api/webhooks/…/…"
    ),
    "pagerduty": Service(
        plugin=NotifyPagerDuty,
        schemas=frozenset({"pagerduty"}),
        parameters=frozenset({"region"}),
        settings={"action": "map"},
        incident="dedup",
        example="pagerduty://INTEGRATION_KEY@API_KEY",
    ),
    "mail": Service(
        plugin=NotifyEmail,
        schemas=frozenset({"mailto", "mailtos"}),
        parameters=frozenset({"to", "from", "name", "cc", "bcc", "reply", "smtp", "user", "pass", "mode"}),
        example="mailtos://USER:PASSWORD@smtp.example.com?from=tollgate@example.com&to=finance@example.com",
    ),
}


class Destination(msgspec.Struct, frozen=True):
    """What a channel keeps sealed. Only a webhook has a `signing_secret`."""

    address: str
    signing_secret: str = ""

    def __repr__(self) -> str:
        return f"Destination({REDACTED})"


def encode_destination(destination: Destination) -> str:
    return msgspec.json.encode(destination).decode()


def decode_destination(text: str) -> Destination:
    return msgspec.json.decode(text, type=Destination)


def check_address(kind: str, address: str, *, may_be_private: bool) -> None:
    """Raises `InvalidAddress`, whose message never repeats the address."""
    if len(address) > ADDRESS_LENGTH_MAX:
        raise InvalidAddress("The address is too long.")
    if kind == WEBHOOK:
        check_base_url(address, may_be_private=may_be_private)
        return
    plugin = open_service(kind, address)
    # Of the others, apprise knows the host.
    if isinstance(plugin, NotifyWorkflows | NotifyEmail):
        host = plugin.smtp_host if isinstance(plugin, NotifyEmail) else plugin.host
        check_base_url(f"https://{host}", may_be_private=may_be_private)


def keeps_incidents(kind: str) -> bool:
    return kind in SERVICES and bool(SERVICES[kind].incident)


def open_service(kind: str, address: str, incident: str = "") -> NotifyBase:
    """Apprise's object that sends there, about one incident where the service keeps such. Raises `InvalidAddress`."""
    service = SERVICES[kind]
    # What is read in one way here and in another way there would not have been checked.
    if not address.isascii() or address.count("?") > 1 or re.search(r"[\s\\#<>\x00-\x20\x7f]", address):
        raise InvalidAddress("The address holds a character that does not belong in one.")
    try:
        given = {name.lower() for name, _ in parse_qsl(urlsplit(address).query, keep_blank_values=True)}
    except ValueError:
        raise InvalidAddress("This is not an address.") from None
    refused = sorted(given - service.parameters)
    if refused:
        # Names only: a value may be a secret.
        raise InvalidAddress(f"Leave out of the address: {', '.join(name[:40] for name in refused)}.")
    try:
        fields = {**_parse(service, address), **service.settings, "asset": ASSET}
        if service.incident:
            fields[service.incident] = incident
        plugin = service.plugin(**fields)
    except (AppriseException, TypeError, ValueError):
        raise InvalidAddress(f"This is no address of {kind}: it looks like {service.example}") from None
    return plugin


def _parse(service: Service, address: str) -> dict[str, Any]:
    """As apprise has it, or as the service itself gives it out. Raises ValueError."""
    if address.partition(":")[0].lower() in service.schemas:
        parsed = service.plugin.parse_url(address)
    else:
        parsed = service.plugin.parse_native_url(address)
    if not parsed:
        raise ValueError("not of this service")
    return dict(parsed)


class _Complaints(logging.Handler):
    """Keeps what apprise complains of for who listens. Addresses stand in it, so it goes into no log."""

    heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)

    def emit(self, record: logging.LogRecord) -> None:
        heard = self.heard.get()
        if heard is not None:
            heard.append(record.getMessage())


_apprise_log = logging.getLogger(LOGGER_NAME)
_apprise_log.addHandler(_Complaints(logging.WARNING))
_apprise_log.propagate = False


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What apprise complains of in this thread meanwhile; not scrubbed."""
    heard: list[str] = []
    token = _Complaints.heard.set(heard)
    try:
        yield heard
    finally:
        _Complaints.heard.reset(token)


def scrub(text: str, destination: Destination) -> str:
    """An error message without anything of the destination, on one line, cut short."""
    words = {destination.address, destination.signing_secret}
    for form in (destination.address, unquote(destination.address)):
        words.update(re.split(r"[:/@?&=,;]+", form))
    for word in sorted((word for word in words if len(word) >= SCRUBBED_LENGTH_MIN), key=len, reverse=True):
        text = text.replace(word, REDACTED)
    return " ".join(text.split())[:ERROR_LENGTH_MAX]
