"""Where traffic may be sent: the check of a provider's base URL. No database, no Django, no name look-ups."""

import ipaddress
from urllib.parse import urlsplit


class InvalidAddress(ValueError):
    """The message says what is wrong with the URL, and never repeats it: people paste secrets into URLs."""


def check_base_url(url: str, *, may_be_private: bool) -> None:
    """An `https` URL of a public host; with `may_be_private` also private and loopback hosts, and `http` to those.

    Raises `InvalidAddress`.
    """
    if not url.isascii() or any(character <= " " or character == "\\" for character in url):
        raise InvalidAddress("The URL holds a character that does not belong in one.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidAddress("This is not a URL.") from None
    if parts.scheme not in ("https", "http") or not host:
        raise InvalidAddress("Write it as https://host/path.")
    if parts.username is not None or parts.password is not None:
        raise InvalidAddress("User and password do not belong in the URL: use a credential.")
    if parts.query or parts.fragment:
        raise InvalidAddress("Leave out the query and the fragment.")
    is_inside = is_private(host)
    if is_inside and not may_be_private:
        raise InvalidAddress("This host is on a private network: allow that explicitly.")
    if parts.scheme == "http" and not is_inside:
        raise InvalidAddress("Use https: plain http would show prompts and credentials to the network.")


def is_private(host: str) -> bool:
    """An address that is not on the internet, or a name that nobody out there has."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".internal", ".local"))
