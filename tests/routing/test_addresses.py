"""Where a provider may be: https on the internet; anything private only where that is allowed by name."""

import pytest

from routing.addresses import InvalidAddress, check_base_url


@pytest.mark.parametrize("url", ["https://api.openai.com/v1", "https://x.example.com:8443", "https://1.1.1.1/v1"])
def test_https_on_the_internet_is_good(url):
    check_base_url(url, may_be_private=False)
    check_base_url(url, may_be_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000/v1",
        "http://localhost:9000",
        "http://[::1]:9000/v1",
        "http://10.1.2.3/v1",
        "https://192.168.0.1/v1",
        "https://[fd00::1]/v1",
        "http://ollama:11434/v1",
        "http://llm.internal/v1",
    ],
)
def test_a_private_host_wants_to_be_allowed(url):
    check_base_url(url, may_be_private=True)
    with pytest.raises(InvalidAddress, match="private network"):
        check_base_url(url, may_be_private=False)


def test_the_metadata_service_of_a_cloud_is_not_on_the_internet():
    with pytest.raises(InvalidAddress):
        check_base_url("https://169.254.169.254/latest", may_be_private=False)


@pytest.mark.parametrize("may_be_private", [True, False])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com/v1",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://",
        "https://user:canary@example.com/",
        "https://example.com/?key=1",
        "https://example.com/#x",
        "https://example.com:99999/",
        "https://exam ple.com/",
        "https://example.com\\@evil.com/",
        "https://exämple.com/",
        "https://example.com/\nx",
        "http://example.com/v1",
        "https://[::1",
    ],
)
def test_what_is_ambiguous_or_in_the_clear_is_refused(url, may_be_private):
    with pytest.raises(InvalidAddress) as refused:
        check_base_url(url, may_be_private=may_be_private)
    assert "canary" not in str(refused.value)
