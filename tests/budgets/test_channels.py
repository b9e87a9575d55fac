"""Addresses of channels: only the named services, none of the options that read files or weaken TLS, nothing private."""

import logging

import pytest

from budgets.channels import Destination, check_address, complaints, decode_destination, encode_destination, scrub
from routing.addresses import InvalidAddress

SLACK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
DISCORD = "https://discord.com/api/webhooks/4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js"
TEAMS = (
    "https://prod-161.westeurope.logic.azure.com:443/workflows/643e69f83c8944438d68119179a10a64/triggers/manual/paths/"
    "invoke?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=KODuebWbDGYFr0z0eu-6Rj8aUKz7108W3wrNJZxFE5A"
)
MAIL = "mailtos://ops:hunter2secret@smtp.example.com?from=tollgate@example.com&to=finance@example.com"


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("slack", SLACK),
        ("slack", "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/"),
        ("discord", DISCORD),
        ("teams", TEAMS),
        ("pagerduty", "pagerduty://integrationkey@apikey?region=eu"),
        ("mail", MAIL),
        ("webhook", "https://alerts.example.com/tollgate"),
    ],
)
def test_what_the_services_give_out_is_an_address(kind, address):
    check_address(kind, address, may_be_private=False)


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("slack", DISCORD),
        ("discord", SLACK),
        ("slack", "json://hooks.slack.com/"),
        ("slack", "exec://hooks.slack.com/"),
        ("slack", "slack://short"),
        ("mail", "file:///etc/passwd"),
        ("webhook", "ftp://alerts.example.com"),
        ("webhook", "https://user:password@alerts.example.com"),
        ("slack", "not an address"),
        ("slack", "https://[::"),
    ],
)
def test_another_service_than_the_one_said_is_refused(kind, address):
    with pytest.raises(InvalidAddress):
        check_address(kind, address, may_be_private=True)


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("teams", "workflows://flows.example.com/643e69f8/KODuebWb/?template=/etc/passwd"),
        ("teams", "workflows://flows.example.com/643e69f8/KODuebWb/?TEMPLATE=http://169.254.169.254/"),
        ("teams", "workflows://flows.example.com/643e69f8/KODuebWb/?tem%70late=/etc/passwd"),
        ("teams", "workflows://flows.example.com/643e69f8/KODuebWb/?sig=a?template=/etc/passwd"),
        ("slack", f"{SLACK}?verify=no"),
        ("slack", f"{SLACK}?redirect=yes"),
        ("mail", f"{MAIL}&pgpprv=/etc/ssl/private/key"),
        ("mail", f"{MAIL}&+X-Header=1"),
        ("mail", f"{MAIL}#fragment"),
    ],
)
def test_an_option_that_is_not_named_is_refused(kind, address):
    with pytest.raises(InvalidAddress):
        check_address(kind, address, may_be_private=True)


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("webhook", "http://127.0.0.1:9000/hook"),
        ("webhook", "https://169.254.169.254/latest"),
        ("mail", "mailto://10.0.0.25:25?from=a@example.com&to=b@example.com"),
        ("mail", "mailto://example.com?smtp=10.0.0.25&from=a@example.com&to=b@example.com"),
        ("teams", "workflows://127.0.0.1:8443/643e69f8/KODuebWb/"),
    ],
)
def test_a_private_host_wants_to_be_allowed(kind, address):
    check_address(kind, address, may_be_private=True)
    with pytest.raises(InvalidAddress, match="private network"):
        check_address(kind, address, may_be_private=False)


@pytest.mark.parametrize("kind", ["slack", "teams", "mail", "webhook"])
def test_a_refusal_never_repeats_the_address(kind):
    with pytest.raises(InvalidAddress) as refused:
        check_address(
            kind, "slack://hunter2secret/hunter2secret?hunter2secret-value=hunter2secret", may_be_private=True
        )
    assert "=hunter2secret" not in str(refused.value) and "hunter2secret/" not in str(refused.value)


def test_what_apprise_complains_of_is_heard_and_goes_into_no_log():
    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    logging.getLogger().addHandler(handler)
    try:
        with complaints() as said:
            logging.getLogger("apprise").warning("cannot reach %s", SLACK)
    finally:
        logging.getLogger().removeHandler(handler)
    assert said == [f"cannot reach {SLACK}"]
    assert not logged


def test_an_error_is_told_without_the_destination():
    destination = Destination(MAIL, "whsec_abcdef")
    text = "535 login of ops with hunter2secret at smtp.example.com\nfailed; whsec_abcdef"
    assert scrub(text, destination) == "535 login of ops with [redacted] at [redacted] failed; [redacted]"


def test_a_destination_does_not_print_itself():
    destination = Destination(MAIL, "whsec_abcdef")
    assert "hunter2" not in repr(destination) + str(destination) + f"{destination}"
    assert decode_destination(encode_destination(destination)) == destination
